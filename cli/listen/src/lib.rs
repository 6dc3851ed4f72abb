//! What every listener of Heddle has in common, whichever program opens it: how its address is written, which addresses
//! need the operator's consent, how sockets are bound, how many connections it holds and which goes first, and what a
//! browser may not ask of it. In come words and sockets, out go connections. What is said on a connection, and the
//! options of any one program, may not come in here.

pub mod address;
pub mod connections;
pub mod exposure;
pub mod files;
pub mod guard;
pub mod idle;
pub mod serve;
pub mod socket;

pub use address::{AddressError, ListenAddr, ListenOption};
pub use connections::{Connections, Limits, Place};
pub use exposure::Consent;
pub use guard::{Guard, Refusal};
pub use idle::{Idle, IdleQueue, Standing};
pub use serve::{Accepted, Io, each};
pub use socket::{BindError, Bound, Socket, SocketFile, bind, bind_unix};
