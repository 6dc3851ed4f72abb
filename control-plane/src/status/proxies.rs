//! The clients of all replicas as the status lists them, sorted. A client that moved to another replica is listed once.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use heddle_proto::status::v1::{ListProxiesResponse, Proxy, proxy::Sync};

use crate::{registry::View, replica::Answers};

/// Whether it had a stream and has none now.
fn is_departed(proxy: &Proxy) -> bool {
    proxy.variant.is_empty()
}

pub(super) fn all(own: Vec<Proxy>, others: Answers) -> ListProxiesResponse {
    let mut proxies = own;
    for answer in others.answers {
        proxies.extend(answer.clients);
    }
    // A proxy that connected to another replica has not departed. If several replicas miss it, the one that it left
    // last knows best.
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
            // Two replicas may report the same lag.
            lags.remove(&proxy.node_id);
        }
        newest && !connected.contains(&proxy.node_id)
    });
    sort(&mut proxies);
    ListProxiesResponse {
        proxies,
        unanswered: others.unanswered,
    }
}

/// Adds the proxies of nodes whose lease has expired, for as long as the event of that is kept: a replica that started
/// later has had no stream of theirs. `now` is in milliseconds since 1970.
pub(super) fn add_lapsed(proxies: &mut Vec<Proxy>, view: &View, now: u64) {
    let listed: BTreeSet<&str> = proxies.iter().map(|proxy| &*proxy.node_id).collect();
    let mut expired: BTreeMap<&str, u64> = BTreeMap::new();
    for event in view.events() {
        if event.record.kind == "node-expired" {
            expired.insert(&event.record.node, event.record.unix_ms);
        }
    }
    let lapsed = view
        .nodes()
        .filter(|node| node.expired && !node.alive && !node.left)
        .filter(|node| !listed.contains(&*node.name));
    let missing: Vec<_> = lapsed
        .filter_map(|node| {
            let since = *expired.get(&*node.name)?;
            Some(Proxy {
                node_id: node.name.to_string(),
                role: "proxy".to_owned(),
                process_id: node.process_id.clone(),
                sync: Sync::Stale.into(),
                lag_seconds: Duration::from_millis(now.saturating_sub(since)).as_secs_f64(),
                ..Proxy::default()
            })
        })
        .collect();
    if !missing.is_empty() {
        proxies.extend(missing);
        sort(proxies);
    }
}

/// Stable: streams of one node on one replica stay in the order in which they began.
fn sort(proxies: &mut [Proxy]) {
    proxies.sort_by(|a, b| (&a.node_id, &a.replica).cmp(&(&b.node_id, &b.replica)));
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
