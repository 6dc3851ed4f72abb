//! Carries out the decisions of `expiry`: removes the instances of nodes that are gone, or marks nodes as suspect. Each
//! transaction has the conditions that the node has not returned and that this replica is still the leader, and records
//! its event.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use heddle_proto::{count, store::v1::NodeRecord};
use prost::Message as _;

use super::{
    election::FencingToken,
    expiry::{Decision, Expiry},
    now,
};
use crate::{
    names::{ServiceName, keys},
    registry::{
        core::{Registry, events::NewEvent},
        membership::Membership,
        view::View,
    },
    store::{Compare, KeyValue, MAX_TXN_OPS, Op, StoreError, Txn},
};

/// Suspect nodes per transaction, with three conditions each.
const MAX_NOTES_PER_TXN: usize = 20;
/// Instances deleted per transaction; the last one also has the node's record and the event.
const MAX_PER_TXN: usize = MAX_TXN_OPS - 8;

/// The most services that the cause of an event names.
const NAMED_SERVICES: usize = 5;

/// The kinds of the event that reports a removal.
const EXPIRED: &str = "node-expired";
const LEFT: &str = "node-left";

pub(super) async fn run(membership: &Membership, token: FencingToken) {
    let registry = membership.registry();
    let options = registry.options();
    let mut expiry = Expiry::new(
        options.expiry.clone(),
        options.lease_ttl,
        options.renew_interval,
    );
    let mut changes = registry.subscribe();
    let known: Vec<_> =
        registry.read(|view| view.nodes().map(|node| Arc::clone(&node.name)).collect());
    observe(registry, &mut expiry, &known);
    // The previous leader's knowledge of recent lapses is lost; they may have been a mass lapse.
    expiry.hold(now() + options.lease_ttl, now());
    loop {
        let due = async {
            match expiry.next() {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            batch = changes.next() => {
                let nodes: Vec<_> = batch.nodes.into_iter().collect();
                observe(registry, &mut expiry, &nodes);
            }
            () = due => {}
        }
        if let Some(from) = registry.store_health().expire_from(options.lease_ttl) {
            expiry.hold(from.into_std(), now());
        }
        let mut notes = BTreeMap::new();
        for decision in expiry.decisions(now(), || membership.overdue_nodes()) {
            match decision {
                Decision::Remove {
                    node,
                    cause,
                    stopped,
                } => {
                    let kind = if stopped { LEFT } else { EXPIRED };
                    let done = remove(registry, token, &node, kind, &cause).await;
                    carried_out(registry, &node, done);
                }
                Decision::Suspect { node, cause } => {
                    let done = suspect(registry, token, &node, &cause).await;
                    carried_out(registry, &node, done);
                }
                Decision::Note { node, suspect_for } => {
                    notes.insert(node, suspect_for);
                }
            }
        }
        if !notes.is_empty() {
            let noted = note(registry, token, &notes).await;
            registry.on_store_result(&noted);
            if let Err(error) = noted {
                tracing::warn!(%error, "cannot record how long nodes have been suspect; retrying");
            }
        }
    }
}

fn observe(registry: &Registry, expiry: &mut Expiry, nodes: &[Arc<str>]) {
    let now = now();
    registry.read(|view: &View| {
        for name in nodes {
            match view.node(name) {
                Some(node) if node.alive => expiry.on_alive(name),
                Some(node) if node.left && view.instances_on(name) > 0 => expiry.on_left(name, now),
                // A node without instances has nothing to remove, but its failure is recorded, once.
                Some(node) if view.instances_on(name) > 0 || !(node.left || node.expired) => {
                    expiry.on_lapsed(name, node.suspect.then_some(node.suspect_for), now);
                }
                _ => expiry.on_gone(name),
            }
        }
    });
}

fn carried_out(registry: &Registry, node: &str, result: Result<(), StoreError>) {
    registry.on_store_result(&result);
    if let Err(error) = result {
        tracing::warn!(%node, %error, "cannot expire a node; retrying");
    }
}

/// A leader's transaction on the condition that the node has not returned.
fn about(token: FencingToken, node: &str, then: Vec<Op>) -> Txn {
    Txn {
        compare: vec![Compare::absent(&keys::alive(node)), token.compare()],
        then,
        ..Txn::default()
    }
}

async fn remove(
    registry: &Registry,
    token: FencingToken,
    node: &str,
    kind: &'static str,
    cause: &str,
) -> Result<(), StoreError> {
    let store = registry.store();
    let mut found = store.range_keys(&keys::instances_of(node), None).await?;
    found.items.retain(|item| is_instance(&item.key));
    let instances = found.items.len();
    let services = found.items.iter().filter_map(|item| service_of(&item.key));
    // A transaction whose answer was lost may be applied long after the retry: it must not record the event again.
    let first_time = found
        .items
        .last()
        .map(|item| Compare::unchanged(&item.key, item.mod_revision));
    let delete = |item: &KeyValue| Op::Delete {
        key: Arc::clone(&item.key),
    };
    let mut chunks: Vec<Vec<Op>> = found
        .items
        .chunks(MAX_PER_TXN)
        .map(|chunk| chunk.iter().map(delete).collect())
        .collect();
    // The event is part of the last transaction, so that it is recorded when the removal is complete.
    let last = chunks.pop().unwrap_or_default();
    for chunk in chunks {
        if !store.txn(about(token, node, chunk)).await?.succeeded {
            return came_back(node);
        }
    }
    let mut txn = about(token, node, last);
    txn.compare.extend(first_time);
    let mark = |record: &mut NodeRecord| {
        if record.suspect {
            (record.suspect, record.suspect_ms) = (false, 0);
        }
        record.expired |= kind == EXPIRED;
    };
    if let Some((compare, put)) = marked(registry, node, mark).await? {
        txn.compare.push(compare);
        txn.then.push(put);
    }
    if txn.then.is_empty() {
        return Ok(());
    }
    let services: BTreeSet<ServiceName> = services.collect();
    let cause = format!("{cause}; {}", removed_with_it(instances, &services));
    let event = NewEvent::of_node(kind, node, &cause).with_services(&services);
    if !registry.txn_with_events(txn, &[event]).await?.succeeded {
        return came_back(node);
    }
    tracing::warn!(
        event = kind,
        node,
        instances,
        cause,
        "removed the instances of a node"
    );
    Ok(())
}

/// What a node took along.
fn removed_with_it(instances: usize, services: &BTreeSet<ServiceName>) -> String {
    if instances == 0 {
        return "it had no instances".to_owned();
    }
    let named: Vec<_> = services.iter().take(NAMED_SERVICES).collect();
    let more = match services.len().saturating_sub(named.len()) {
        0 => String::new(),
        more => format!(" and {}", count(more, "more service")),
    };
    let named: Vec<_> = named.into_iter().map(ToString::to_string).collect();
    let instances = count(instances, "instance");
    format!("removed with it: {instances} of {}{more}", named.join(", "))
}

/// False for keys of another mesh whose prefix ends with this mesh's folder of instances.
fn is_instance(key: &str) -> bool {
    matches!(keys::parse(key), Some(keys::Key::Instance(_)))
}

fn service_of(key: &str) -> Option<ServiceName> {
    match keys::parse(key) {
        Some(keys::Key::Instance(key)) => Some(key.service),
        _ => None,
    }
}

fn came_back(node: &str) -> Result<(), StoreError> {
    tracing::info!(
        node,
        "a node came back, or another replica became leader, while the node was being expired"
    );
    Ok(())
}

async fn suspect(
    registry: &Registry,
    token: FencingToken,
    node: &str,
    cause: &str,
) -> Result<(), StoreError> {
    let mark = |record: &mut NodeRecord| {
        if !record.suspect {
            (record.suspect, record.suspect_ms) = (true, 0);
        }
    };
    let Some((compare, put)) = marked(registry, node, mark).await? else {
        return Ok(());
    };
    let mut txn = about(token, node, vec![put]);
    txn.compare.push(compare);
    let event = NewEvent::of_node("node-suspect", node, cause);
    let event = registry.read(|view| event.with_services(view.services_on(node)));
    if registry.txn_with_events(txn, &[event]).await?.succeeded {
        tracing::warn!(
            event = "node-suspect",
            node,
            cause,
            "a node is suspect; its instances stay in use"
        );
    }
    Ok(())
}

/// Writes how long nodes have been suspect. If one of them has returned meanwhile, its transaction fails, and the other
/// nodes of that transaction are written the next time.
async fn note(
    registry: &Registry,
    token: FencingToken,
    notes: &BTreeMap<Arc<str>, Duration>,
) -> Result<(), StoreError> {
    let store = registry.store();
    let mut due = Vec::new();
    for item in store.range(keys::NODES, None).await?.items {
        let Some(keys::Key::Node(_)) = keys::parse(&item.key) else {
            continue;
        };
        let Ok(mut record) = NodeRecord::decode(item.value) else {
            continue;
        };
        let Some(suspect_for) = notes.get(record.name.as_str()).filter(|_| record.suspect) else {
            continue;
        };
        record.suspect_ms = u64::try_from(suspect_for.as_millis()).unwrap_or(u64::MAX);
        let mut txn = about(
            token,
            &record.name,
            vec![Op::put(&item.key, record.encode_to_vec())],
        );
        let unchanged = Compare::unchanged(&item.key, item.mod_revision);
        txn.compare.push(unchanged);
        due.push(txn);
    }
    for together in due.chunks(MAX_NOTES_PER_TXN) {
        let txn = Txn {
            compare: together
                .iter()
                .flat_map(|txn| txn.compare.clone())
                .collect(),
            then: together.iter().flat_map(|txn| txn.then.clone()).collect(),
            ..Txn::default()
        };
        store.txn(txn).await?;
    }
    Ok(())
}

/// The write that changes the marks of the node's record; none if it has them already, or has no record.
async fn marked(
    registry: &Registry,
    node: &str,
    mark: impl FnOnce(&mut NodeRecord),
) -> Result<Option<(Compare, Op)>, StoreError> {
    let key = keys::node(node);
    let Some(found) = registry.store().get(&key).await? else {
        return Ok(None);
    };
    let Ok(mut record) = NodeRecord::decode(found.value) else {
        return Ok(None);
    };
    let before = record.clone();
    mark(&mut record);
    if record == before {
        return Ok(None);
    }
    let put = Op::put(&key, record.encode_to_vec());
    Ok(Some((Compare::unchanged(&key, found.mod_revision), put)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{
        fixture::{Fixture, identity, instance, names},
        lease::NodeLease,
    };

    #[tokio::test]
    async fn a_decision_that_comes_too_late_does_not_touch_a_node_that_is_back() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let mut lease = NodeLease::claim(registry, &identity("a", "p1"))
            .await
            .unwrap();
        let revision = lease
            .replace_all(vec![instance("a", "users/u1")])
            .await
            .unwrap();
        remove(registry, fixture.fencing_token(), "a", EXPIRED, "too late")
            .await
            .unwrap();
        suspect(registry, fixture.fencing_token(), "a", "too late")
            .await
            .unwrap();
        let now = registry.store().range("", None).await.unwrap().revision;
        assert_eq!(now, revision, "nothing was written");
        registry.reached(now).await;
        assert_eq!(registry.read(names), ["a/users.default/u1"]);
    }
}
