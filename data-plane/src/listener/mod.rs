//! Where calls come in: listening sockets and the connections accepted from them. Sockets come in, connections
//! with their HTTP/2 machine go out, and their events go to exchange/. No routing may come in here.

pub mod bind;
pub(crate) mod accept;
pub(crate) mod events;
pub(crate) mod hello;

pub use bind::{ListenAddr, ListenError};
