//! Which service a call is for: the first room a request meets after its headers are decoded. Authority and
//! path come in with an immutable table, a service or a reason why there is none goes out. No I/O, no locks
//! and no allocation on the way that finds one.

pub mod authority;
pub mod nearest;
pub mod table;

pub use heddle_proto::paths::Rank;
pub use table::{Builder, ProtoService, Protocol, RouteTable, Service};
