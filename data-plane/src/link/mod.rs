//! The handshake of a link between two proxies: on its first stream the opening side sends its version, node and
//! incarnation (Hello), and the accepting side answers with its own. Takes a connection; its address and its later
//! contents do not belong here.

pub(crate) mod client;
pub(crate) mod server;
mod wire;

/// The identity of this proxy in a handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) node: &'a str,
    pub(crate) incarnation: &'a str,
}
