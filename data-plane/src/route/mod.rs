//! Which service a call is for, by which rule and under which policy: the first step after a request's headers are
//! decoded. Headers come in with an immutable table, a route or a reason why there is none goes out. No I/O, no locks,
//! and no allocation where there is a route.

pub mod authority;
pub mod decision;
pub mod instance;
pub mod nearest;
pub mod table;

pub use decision::{Decision, Route, Rule};
pub use heddle_proto::paths::Rank;
pub use table::{Builder, ProtoService, Protocol, RouteTable, Service};
