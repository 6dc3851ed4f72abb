//! The state of each client, resource by resource, in the terms of
//! `envoy.service.status.v3.ClientStatusDiscoveryService`. The clients that a request matches become pieces of bounded
//! size, which are merged with those of other replicas and packed into answers. Pure: `replica` asks the other
//! replicas, and the gRPC service is in `status`.

mod filter;
mod pieces;
mod own_pieces;
mod merge;
mod parts;

pub(crate) use filter::InvalidMatcher;
pub(crate) use merge::Merge;
pub(crate) use own_pieces::OwnPieces;
pub(crate) use parts::{Part, Parts};
pub(crate) use pieces::Piece;

#[cfg(test)]
mod tests;
