//! Carries out what `expiry` decides: removes the instances of nodes that have gone, or marks the nodes suspect.
//! In come the view's batches and the time; out go transactions, each under the condition that the node has not
//! come back, and one line in the log with the cause. Several sweepers at once do no harm.

use std::sync::Arc;

use heddle_proto::store::v1::NodeRecord;
use prost::Message as _;

use super::{
    Registry, View,
    expiry::{Expiry, Verdict},
};
use crate::store::{Compare, MAX_TXN_OPS, Op, StoreError, Txn, keys};

pub(super) async fn run(registry: Registry) {
    let options = registry.options();
    let mut expiry = Expiry::new(
        options.expiry.clone(),
        options.lease_ttl,
        options.renew_interval,
    );
    let mut changes = registry.subscribe();
    let known: Vec<_> =
        registry.read(|view| view.nodes().map(|node| Arc::clone(&node.name)).collect());
    observe(&registry, &mut expiry, &known);
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
                observe(&registry, &mut expiry, &nodes);
            }
            () = due => {}
        }
        let overdue = registry.overdue(now());
        for verdict in expiry.verdicts(now(), overdue) {
            carry_out(&registry, verdict).await;
        }
    }
}

fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}

fn observe(registry: &Registry, expiry: &mut Expiry, nodes: &[Arc<str>]) {
    let now = now();
    registry.read(|view: &View| {
        for name in nodes {
            match view.node(name) {
                Some(node) if node.alive && view.instances_on(name) > 0 => expiry.on_alive(name),
                Some(node) if view.instances_on(name) > 0 => {
                    expiry.on_lapsed(name, node.suspect, now);
                }
                // A node that has nothing has nothing to lose.
                _ => expiry.on_gone(name),
            }
        }
    });
}

async fn carry_out(registry: &Registry, verdict: Verdict) {
    let (node, result) = match &verdict {
        Verdict::Remove { node, cause } => (node, remove(registry, node, cause).await),
        Verdict::Suspect { node, cause } => (node, suspect(registry, node, cause).await),
    };
    if let Err(error) = result {
        tracing::warn!(%node, %error, "a lapsed node cannot be swept yet");
    }
}

async fn remove(registry: &Registry, node: &str, cause: &str) -> Result<(), StoreError> {
    let store = registry.store();
    let found = store.range_keys(&keys::instances_of(node), None).await?;
    for chunk in found.items.chunks(MAX_TXN_OPS) {
        let then = chunk
            .iter()
            .map(|item| Op::Delete {
                key: Arc::clone(&item.key),
            })
            .collect();
        let compare = vec![Compare::absent(&keys::alive(node))];
        if !store
            .txn(Txn {
                compare,
                then,
                ..Txn::default()
            })
            .await?
            .succeeded
        {
            tracing::info!(node, "a lapsed node came back while it was being removed");
            return Ok(());
        }
    }
    mark(registry, node, false).await?;
    let instances = found.items.len();
    tracing::warn!(
        event = "node-expired",
        node,
        instances,
        cause,
        "a node's instances are removed"
    );
    Ok(())
}

async fn suspect(registry: &Registry, node: &str, cause: &str) -> Result<(), StoreError> {
    if mark(registry, node, true).await? {
        tracing::warn!(
            event = "node-suspect",
            node,
            cause,
            "a node is suspect; it stays in use"
        );
    }
    Ok(())
}

/// False: nothing was to be changed, or the node came back.
async fn mark(registry: &Registry, node: &str, suspect: bool) -> Result<bool, StoreError> {
    let store = registry.store();
    let key = keys::node(node);
    let Some(found) = store.get(&key).await? else {
        return Ok(false);
    };
    let Ok(mut record) = NodeRecord::decode(found.value) else {
        return Ok(false);
    };
    if record.suspect == suspect {
        return Ok(false);
    }
    record.suspect = suspect;
    let compare = vec![
        Compare::absent(&keys::alive(node)),
        Compare::unchanged(&key, found.mod_revision),
    ];
    let then = vec![Op::put(&key, record.encode_to_vec())];
    Ok(store
        .txn(Txn {
            compare,
            then,
            ..Txn::default()
        })
        .await?
        .succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::{
        NodeLease,
        fixture::{Fixture, identity, instance, names},
    };

    #[tokio::test]
    async fn a_verdict_that_comes_too_late_does_not_touch_a_node_that_is_back() {
        let fixture = Fixture::new().await;
        let registry = &fixture.registry;
        let mut lease = NodeLease::claim(registry, &identity("a", "p1"))
            .await
            .unwrap();
        let revision = lease
            .replace_all(vec![instance("a", "users/u1")])
            .await
            .unwrap();
        remove(registry, "a", "too late").await.unwrap();
        suspect(registry, "a", "too late").await.unwrap();
        let now = registry.store().range("", None).await.unwrap().revision;
        assert_eq!(now, revision, "nothing was written");
        registry.reached(now).await;
        assert_eq!(registry.read(names), ["a/users.default/u1"]);
    }
}
