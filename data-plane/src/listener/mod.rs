//! Where calls come in: listening sockets and the connections accepted from them. Sockets come in, connections
//! with their HTTP/2 machine go out. No routing and nothing of gRPC may come in here.

pub mod bind;

pub use bind::{ListenAddr, ListenError};
