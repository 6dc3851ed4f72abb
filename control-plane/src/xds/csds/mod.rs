//! The state of each client, resource by resource, in the terms of
//! `envoy.service.status.v3.ClientStatusDiscoveryService`. The clients that a question matches become pieces of
//! bounded size, which are merged with those of other replicas and packed into answers. Pure: other replicas are
//! asked by `replica`, and the gRPC service is in `status`.

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
