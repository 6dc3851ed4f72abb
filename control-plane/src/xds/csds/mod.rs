//! What each client was sent, resource by resource, and what it said about it, in the words of
//! `envoy.service.status.v3.ClientStatusDiscoveryService`. In come the clients of this replica and a question with
//! matchers of node ids, out go pieces of bounded size, which are merged with those of other replicas and packed into
//! answers. Pure: who asks whom is `replica`'s, and the gRPC service is `status`'s. Nothing is changed here.

mod asked;
mod pieces;
mod own;
mod merge;
mod parts;

pub(crate) use asked::Unclear;
pub(crate) use merge::Merge;
pub(crate) use own::Own;
pub(crate) use parts::{Part, Parts};
pub(crate) use pieces::Piece;

#[cfg(test)]
mod tests;
