//! The make-before-break order as data: the order of the types on a stream, what must be sent before what, and what
//! must be acknowledged before something may be removed.

use super::Kind;

/// The order in which a stream is served.
pub const FLOW: [Kind; 6] = Kind::ALL;

/// The types that others refer to: sent first, removed last.
pub const TARGETS: &[Kind] = &[Kind::Cluster, Kind::Endpoint];

/// The types that refer to them. A cluster is removed only after these were sent and acknowledged.
pub const ROUTES: &[Kind] = &[Kind::Listener, Kind::Route, Kind::ServiceIndex];

/// Kinds that must have nothing new left to send before `kind` may be sent.
pub const fn made_before(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::Listener | Kind::Route | Kind::ServiceIndex => TARGETS,
        Kind::Cluster | Kind::Endpoint | Kind::Schema => &[],
    }
}
