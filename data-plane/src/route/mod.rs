//! The service of a call, by which rule and under which policy: the first step after a request's headers are decoded.
//! Takes headers and an immutable table; gives a route or the reason why there is none. No I/O, no locks, and no
//! allocation if there is a route.

pub mod authority;
pub mod decision;
pub mod instance;
pub mod nearest;
pub mod table;

pub use decision::{Decision, Route, Rule};
pub use heddle_proto::paths::Rank;
pub use table::{Builder, ProtoService, Protocol, RouteTable, Service};
