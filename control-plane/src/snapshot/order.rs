//! Make before break, as data: in which order a stream is told of the types, what has to be told before what, and
//! what has to be settled before something may be taken away.

use super::Kind;

/// The order in which a stream is served.
pub const FLOW: [Kind; 6] = Kind::ALL;

/// What others point at: told first, taken away last.
pub const TARGETS: &[Kind] = &[Kind::Cluster, Kind::Endpoint];

/// What points at them. A cluster goes only after these were told and acknowledged.
pub const ROUTES: &[Kind] = &[Kind::Listener, Kind::Route, Kind::ServiceIndex];

/// Kinds that must have nothing new left to send before `kind` may be sent.
pub const fn made_before(kind: Kind) -> &'static [Kind] {
    match kind {
        Kind::Listener | Kind::Route | Kind::ServiceIndex => TARGETS,
        Kind::Cluster | Kind::Endpoint | Kind::Schema => &[],
    }
}
