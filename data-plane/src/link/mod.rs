//! The handshake of a link between two proxies: on its first stream the opening side says its version, node and
//! incarnation (Hello), and the accepting side answers with its own. A connection comes in; what it carries afterwards
//! and where it was dialed to may not come in.

pub(crate) mod client;
pub(crate) mod server;
mod wire;

/// Who this proxy is, as it says in a handshake.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Identity<'a> {
    pub(crate) node: &'a str,
    pub(crate) incarnation: &'a str,
}
