//! The make-before-break order as data: the order of the types on a stream, what must be sent before what, and what
//! must be acknowledged before something may be removed.

use super::Kind;

/// The order in which the types are sent on a stream.
pub const FLOW: [Kind; 6] = Kind::ALL;

/// The types that others refer to: sent first, removed last.
pub const TARGETS: &[Kind] = &[Kind::Cluster, Kind::Endpoint];

/// The types that refer to them. A cluster is removed only after these were sent and acknowledged.
pub const ROUTES: &[Kind] = &[Kind::Listener, Kind::Route, Kind::ServiceIndex];

/// Types of which nothing new may be left to send before `kind` is sent.
pub const fn made_before(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::Listener | Kind::Route | Kind::ServiceIndex => TARGETS,
        Kind::Cluster | Kind::Endpoint | Kind::Schema => &[],
    }
}
