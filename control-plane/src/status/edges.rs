//! Which services call which, from the load reports of all replicas, sorted.

use heddle_proto::status::v1::{Edge, ListEdgesResponse};

use crate::{load, replica::Answers};

pub(super) fn all(own: Vec<Edge>, others: Answers) -> ListEdgesResponse {
    let mut edges = own;
    for answer in others.answers {
        edges.extend(answer.edges);
    }
    edges.sort_by(|a, b| load::order(a).cmp(&load::order(b)));
    ListEdgesResponse {
        edges,
        unanswered: others.unanswered,
    }
}
