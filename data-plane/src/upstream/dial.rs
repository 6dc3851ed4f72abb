//! Addresses of pools, and the sockets that are opened for them. Takes an address, gives a socket that is being
//! connected. The handshake of a link is in `link`.

use std::io;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use tokio::sync::mpsc;

use crate::balance::{Endpoint, Target};
use crate::connection::Transport;

/// The address that a pool dials.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Dial {
    /// An instance of this node.
    Local(SocketAddr),
    /// The inbound listener of a node, which must identify itself as that node.
    Node(SocketAddr, Arc<str>),
    /// The control side of this proxy.
    Internal,
}

impl Dial {
    pub(crate) fn of(endpoint: &Endpoint) -> Self {
        match endpoint.target {
            Target::Local(address) => Self::Local(address),
            Target::Node(address) => Self::Node(address, Arc::clone(&endpoint.node)),
        }
    }

    pub(crate) fn is_link(&self) -> bool {
        matches!(self, Self::Node(..))
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Local(address) => address.to_string(),
            Self::Node(address, node) => format!("{address}, the inbound of node {node}"),
            Self::Internal => "the proxy's own services".to_owned(),
        }
    }

    /// Opens a socket. `internal` receives the other end of connections to the proxy's own services.
    pub(crate) fn connect(&self, internal: &mpsc::Sender<UnixStream>) -> io::Result<Transport> {
        let transport = match self {
            Self::Local(address) | Self::Node(address, _) => {
                mio::net::TcpStream::connect(*address).map(Transport::Tcp)?
            }
            Self::Internal => connect_internal(internal)?,
        };
        transport.set_options();
        Ok(transport)
    }
}

/// One end of a socket pair; the other end is sent to the control side, which serves health and reflection on it.
fn connect_internal(internal: &mpsc::Sender<UnixStream>) -> io::Result<Transport> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    internal.try_send(theirs).map_err(|_| {
        io::Error::new(
            io::ErrorKind::ConnectionRefused,
            "the proxy's control side accepts no connection at the moment",
        )
    })?;
    Ok(Transport::Unix(mio::net::UnixStream::from_std(ours)))
}
