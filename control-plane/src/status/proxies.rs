//! The connected clients as status lists them. In come those of this replica and the answers of the others, out goes
//! one sorted list.

use heddle_proto::status::v1::{ListProxiesResponse, Proxy, Refused, TypeStatus};

use super::mesh::count;
use crate::{
    replica::Answers,
    xds::{ClientStatus, Clients, RefusedStatus},
};

/// The clients of this replica, sorted by node id.
pub(crate) fn own_clients(clients: &Clients, replica: &str) -> Vec<Proxy> {
    let statuses = clients.statuses().into_iter();
    statuses.map(|client| proxy(client, replica)).collect()
}

pub(super) fn all(own: Vec<Proxy>, others: Answers) -> ListProxiesResponse {
    let mut proxies = own;
    for answer in others.answers {
        proxies.extend(answer.clients);
    }
    // Stable: streams of one node on one replica stay in the order in which they came.
    proxies.sort_by(|a, b| (&a.node_id, &a.replica).cmp(&(&b.node_id, &b.replica)));
    ListProxiesResponse {
        proxies,
        unanswered: others.unanswered,
    }
}

fn proxy(client: ClientStatus, replica: &str) -> Proxy {
    Proxy {
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
