//! Opens listening sockets: one per worker on the same TCP port (`SO_REUSEPORT`), or one Unix socket. Addresses
//! come in, sockets go out, or an error that names the address and the remedy. Nothing is accepted here.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use socket2::{Domain, Protocol, Socket, Type};

/// Connections that the kernel may hold for each socket until a worker accepts them.
const BACKLOG: i32 = 1024;

/// Where to listen, or where it is listened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddr {
    /// IP and port; port 0 means any free one.
    Tcp(SocketAddr),
    /// Path of a Unix socket.
    Unix(PathBuf),
}

impl fmt::Display for ListenAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a listener could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another process has the port.
    #[error(
        "port {port} on {ip} is in use by another process: stop it or choose another port (0 takes any free one)"
    )]
    PortInUse {
        /// The address's IP.
        ip: std::net::IpAddr,
        /// The port.
        port: u16,
    },
    /// Another process answers on the path.
    #[error("socket {} is in use by another process: stop it or choose another path", path.display())]
    PathInUse {
        /// The path.
        path: PathBuf,
    },
    /// The path is taken by something that is no socket.
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// Anything else the system says.
    #[error(
        "cannot listen on {address}: {source}; check that the address is this host's and that you may use it"
    )]
    System {
        /// The address as asked for.
        address: ListenAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The workers are gone.
    #[error("cannot listen on {address}: the workers have stopped")]
    Stopped {
        /// The address as asked for.
        address: ListenAddr,
    },
}

/// Binds `count` sockets to one TCP address. The first bind is done without `SO_REUSEPORT`, or a second proxy
/// would share the port silently.
pub fn bind_tcp(
    address: SocketAddr,
    count: usize,
) -> Result<(SocketAddr, Vec<TcpListener>), ListenError> {
    let system = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::PortInUse {
            ip: address.ip(),
            port: address.port(),
        },
        _ => ListenError::System {
            address: ListenAddr::Tcp(address),
            source,
        },
    };
    let probe = tcp_socket(address, false).map_err(system)?;
    let bound = probe
        .local_addr()
        .map_err(system)?
        .as_socket()
        .unwrap_or(address);
    drop(probe);
    let mut sockets = Vec::with_capacity(count);
    for _ in 0..count.max(1) {
        sockets.push(tcp_socket(bound, true).map_err(system)?.into());
    }
    Ok((bound, sockets))
}

fn tcp_socket(address: SocketAddr, share: bool) -> io::Result<Socket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(share)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Binds a Unix socket, replacing one that a dead process left behind.
pub fn bind_unix(path: &Path) -> Result<UnixListener, ListenError> {
    let system = |source| ListenError::System {
        address: ListenAddr::Unix(path.to_owned()),
        source,
    };
    match std::fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(ListenError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(ListenError::PathInUse {
                path: path.to_owned(),
            });
        }
        Ok(_) => std::fs::remove_file(path).map_err(system)?,
        Err(_) => {
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).map_err(system)?;
            }
        }
    }
    let listener = UnixListener::bind(path).map_err(system)?;
    listener.set_nonblocking(true).map_err(system)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_in_use_is_named_even_if_its_owner_shares_it() {
        let (first, _held) = bind_tcp("127.0.0.1:0".parse().unwrap(), 2).unwrap();
        let error = bind_tcp(first, 1).unwrap_err().to_string();
        assert!(
            error.contains(&first.port().to_string()) && error.contains("choose another"),
            "{error}"
        );
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/proxy.sock");
        let live = bind_unix(&path).unwrap();
        assert!(matches!(
            bind_unix(&path),
            Err(ListenError::PathInUse { .. })
        ));
        drop(live);
        drop(bind_unix(&path).unwrap());
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "text").unwrap();
        assert!(matches!(
            bind_unix(&path),
            Err(ListenError::NotASocket { .. })
        ));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "text");
    }
}
