//! What all listeners of Heddle's programs share: how an address is written, which addresses need the operator's
//! consent, how sockets are bound, how many connections are allowed and which is closed first, and what a browser may
//! not request. Protocols and the options of single programs do not belong here.

pub mod address;
pub mod connections;
pub mod exposure;
pub mod files;
pub mod guard;
pub mod idle;
pub mod serve;
pub mod socket;

pub use address::{AddressError, ListenAddr, ListenOption};
pub use connections::{ConnectionPermit, Connections, Limits};
pub use exposure::InsecureListeners;
pub use guard::{Guard, Refusal};
pub use idle::{Activity, Idle, IdleQueue};
pub use serve::{Accepted, Io, each};
pub use socket::{BindError, Bound, Socket, SocketFile, bind, bind_unix};
