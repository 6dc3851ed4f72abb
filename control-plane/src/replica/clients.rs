//! The clients of this replica as the status lists them: the connected ones, and proxies that were connected recently.

use std::time::Duration;

use heddle_proto::status::v1::{Proxy, Refused, TypeStatus, proxy::Sync};

use crate::{
    registry::Registry,
    xds::{ClientStatus, Clients, KindStatus, RefusedStatus},
};

/// A client that has owed an answer for this long is stale.
const STALE_AFTER: Duration = Duration::from_secs(30);
/// How long proxies without a stream are listed.
const LISTED_FOR: Duration = Duration::from_secs(3600);

/// The clients of this replica, sorted by node id, and proxies of known nodes that had a stream here and have none now.
pub(crate) fn own_clients(registry: &Registry, clients: &Clients) -> Vec<Proxy> {
    let replica = &registry.options().replica;
    let statuses = clients.statuses().into_iter();
    let mut proxies: Vec<Proxy> = statuses.map(|client| proxy(client, replica)).collect();
    let mut departed = clients.departed();
    registry.read(|view| {
        departed.retain(|(name, since)| {
            *since < LISTED_FOR && view.node(name).is_some_and(|node| !node.left)
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

fn sync(client: &ClientStatus) -> Sync {
    let rejects = |kind: &KindStatus| !kind.rejected_version.is_empty() || !kind.refused.is_empty();
    match client.owes_for {
        Some(owes) if owes >= STALE_AFTER => Sync::Stale,
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
        process_id: client.process_id,
        draining: client.draining,
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
                resources: count(kind.resources),
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

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}
