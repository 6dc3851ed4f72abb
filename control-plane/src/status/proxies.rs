//! The connected clients as status lists them. In come those of this replica and the answers of the others, out goes
//! one sorted list.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_proto::status::v1::{ListProxiesResponse, Proxy, Refused, TypeStatus, proxy::Sync};

use super::mesh::count;
use crate::{
    registry::Registry,
    replica::Answers,
    xds::{ClientStatus, Clients, KindStatus, RefusedStatus},
};

/// A client that has owed an answer for so long without giving one is stale.
const STALE: Duration = Duration::from_secs(30);
/// Proxies without a stream are listed for so long.
const LISTED: Duration = Duration::from_secs(3600);

/// The clients of this replica, sorted by node id, and proxies of known nodes that had a stream here and have none now.
pub(crate) fn own_clients(registry: &Registry, clients: &Clients) -> Vec<Proxy> {
    let replica = &registry.options().replica;
    let statuses = clients.statuses().into_iter();
    let mut proxies: Vec<Proxy> = statuses.map(|client| proxy(client, replica)).collect();
    let mut departed = clients.departed();
    registry.read(|view| {
        departed.retain(|(name, since)| {
            *since < LISTED && view.node(name).is_some_and(|node| !node.left)
        });
    });
    proxies.extend(departed.into_iter().map(|(node_id, since)| Proxy {
        node_id,
        role: "proxy".to_owned(),
        replica: replica.clone(),
        sync: Sync::Stale.into(),
        lag_seconds: since.as_secs_f64(),
        ..Proxy::default()
    }));
    proxies.sort_by(|a, b| a.node_id.cmp(&b.node_id));
    proxies
}

/// It had a stream and has none now.
fn is_departed(proxy: &Proxy) -> bool {
    proxy.variant.is_empty()
}

pub(super) fn all(own: Vec<Proxy>, others: Answers) -> ListProxiesResponse {
    let mut proxies = own;
    for answer in others.answers {
        proxies.extend(answer.clients);
    }
    // One that went to another replica has not departed, and of several replicas that miss it the last one knows best.
    let connected: BTreeSet<String> = proxies
        .iter()
        .filter(|proxy| !is_departed(proxy))
        .map(|proxy| proxy.node_id.clone())
        .collect();
    let mut lags: BTreeMap<String, f64> = BTreeMap::new();
    for proxy in proxies.iter().filter(|proxy| is_departed(proxy)) {
        let lag = lags.entry(proxy.node_id.clone()).or_insert(f64::INFINITY);
        *lag = lag.min(proxy.lag_seconds);
    }
    proxies.retain(|proxy| {
        if !is_departed(proxy) {
            return true;
        }
        let newest = lags.get(&proxy.node_id) == Some(&proxy.lag_seconds);
        if newest {
            // Two replicas may say the same.
            lags.remove(&proxy.node_id);
        }
        newest && !connected.contains(&proxy.node_id)
    });
    // Stable: streams of one node on one replica stay in the order in which they came.
    proxies.sort_by(|a, b| (&a.node_id, &a.replica).cmp(&(&b.node_id, &b.replica)));
    ListProxiesResponse {
        proxies,
        unanswered: others.unanswered,
    }
}

fn sync(client: &ClientStatus) -> Sync {
    let rejects = |kind: &KindStatus| !kind.rejected_version.is_empty() || !kind.refused.is_empty();
    match client.owes_for {
        Some(owes) if owes >= STALE => Sync::Stale,
        _ if client.kinds.iter().any(rejects) => Sync::Rejecting,
        _ => Sync::InSync,
    }
}

fn proxy(client: ClientStatus, replica: &str) -> Proxy {
    Proxy {
        sync: sync(&client).into(),
        lag_seconds: client.owes_for.map_or(0.0, |owes| owes.as_secs_f64()),
        node_id: client.node_id,
        role: client.role,
        address: client.address,
        variant: client.variant.to_owned(),
        types: client
            .kinds
            .into_iter()
            .map(|kind| TypeStatus {
                type_url: kind.kind.url().to_owned(),
                acknowledged_version: kind.acknowledged_version,
                sent_version: kind.sent_version,
                in_flight: kind.in_flight,
                subscribed: count(kind.subscribed),
                wildcard: kind.wildcard,
                resources: count(kind.held),
                rejected_version: kind.rejected_version,
                rejected_reason: kind.rejected_reason,
                refused: kind.refused.into_iter().map(refused).collect(),
            })
            .collect(),
        replica: replica.to_owned(),
    }
}

fn refused(resource: RefusedStatus) -> Refused {
    Refused {
        name: resource.name,
        version: resource.version,
        reason: resource.reason,
    }
}

#[cfg(test)]
mod tests {
    use heddle_proto::control::v1::ListClientsResponse;

    use super::*;

    fn connected(node_id: &str) -> Proxy {
        Proxy {
            node_id: node_id.into(),
            variant: "delta".into(),
            sync: Sync::InSync.into(),
            ..Proxy::default()
        }
    }

    fn departed(node_id: &str, lag_seconds: f64) -> Proxy {
        Proxy {
            variant: String::new(),
            sync: Sync::Stale.into(),
            lag_seconds,
            ..connected(node_id)
        }
    }

    #[test]
    fn a_proxy_without_a_stream_is_listed_once_and_only_if_no_replica_has_it() {
        let own = vec![departed("a", 40.0), departed("b", 9.0), departed("c", 1.0)];
        let other = ListClientsResponse {
            clients: vec![connected("a"), departed("b", 5.0)],
            ..ListClientsResponse::default()
        };
        let answers = Answers {
            answers: vec![other],
            unanswered: Vec::new(),
        };
        let listed = all(own, answers).proxies;
        let short: Vec<_> = listed
            .iter()
            .map(|it| (&*it.node_id, it.sync(), it.lag_seconds))
            .collect();
        let stale = Sync::Stale;
        assert_eq!(
            short,
            [
                ("a", Sync::InSync, 0.0),
                ("b", stale, 5.0),
                ("c", stale, 1.0)
            ]
        );
    }
}
