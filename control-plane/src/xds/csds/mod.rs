//! The state of each client, resource by resource, in the terms of
//! `envoy.service.status.v3.ClientStatusDiscoveryService`. The clients that a request matches become pieces of bounded
//! size, which are merged with those of other replicas and packed into answers. Pure: `replica` asks the other
//! replicas, and the gRPC service is in `status`.

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
