//! Listening sockets: they are bound, watched and accepted from. Addresses come in, accepted sockets go out. What becomes
//! of a connection is decided in the modules above.

pub mod bind;
pub(crate) mod sockets;

pub use bind::{ListenAddr, ListenError};
