//! Where a service listens: `IP:port` (0 for a free one), `localhost:port` or `unix:/path`. In comes what a person wrote, out goes a
//! bound socket, or an error that names the port and the remedy.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "\"{0}\" is no address to listen on: give IP:PORT (port 0 takes a free one), localhost:PORT or unix:/path"
    )]
    Address(String),
    #[error("port {port} of {ip} is in use: stop what listens there, or choose another address")]
    InUse { ip: IpAddr, port: u16 },
    #[error("the socket {0} is in use by another process: choose another path")]
    SocketInUse(PathBuf),
    #[error("cannot listen on {address}: {why}")]
    Bind { address: String, why: io::Error },
}

/// A bound socket. A Unix socket's file goes when this is dropped.
#[derive(Debug)]
pub enum Listener {
    Tcp {
        socket: TcpListener,
        address: SocketAddr,
    },
    Unix {
        socket: UnixListener,
        file: SocketFile,
    },
}

impl Listener {
    /// Binds `address`; `localhost:port` and `loopback:port` are both loopback addresses, where the host has both.
    ///
    /// # Errors
    /// As [`Listener::bind`].
    pub async fn bind_each(address: &str) -> Result<Vec<Self>, ListenError> {
        let port = ["localhost:", "loopback:"]
            .iter()
            .find_map(|word| address.strip_prefix(word));
        let Some(port) = port else {
            return Ok(vec![Self::bind(address).await?]);
        };
        let mut bound = vec![Self::bind(&format!("127.0.0.1:{port}")).await?];
        match Self::bind(&format!("[::1]:{port}")).await {
            Ok(listener) => bound.push(listener),
            Err(ListenError::Bind { why, .. }) if is_absent(&why) => {}
            Err(why) => return Err(why),
        }
        Ok(bound)
    }

    /// Binds `address`.
    ///
    /// # Errors
    /// If it is no address, in use, or cannot be bound.
    pub async fn bind(address: &str) -> Result<Self, ListenError> {
        let failed = |why| ListenError::Bind {
            address: address.to_owned(),
            why,
        };
        if let Some(path) = address.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            clear_stale(&path)?;
            let socket = UnixListener::bind(&path).map_err(failed)?;
            return Ok(Self::Unix {
                socket,
                file: SocketFile(path),
            });
        }
        let wanted: SocketAddr = address
            .parse()
            .map_err(|_| ListenError::Address(address.to_owned()))?;
        let socket = TcpListener::bind(wanted)
            .await
            .map_err(|why| match why.kind() {
                io::ErrorKind::AddrInUse => ListenError::InUse {
                    ip: wanted.ip(),
                    port: wanted.port(),
                },
                _ => failed(why),
            })?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self::Tcp { socket, address })
    }

    /// The address to register: that of a TCP socket, with loopback for "any". None for a Unix socket.
    #[must_use]
    pub fn advertised(&self) -> Option<SocketAddr> {
        let Self::Tcp { address, .. } = self else {
            return None;
        };
        let ip = match address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        Some(SocketAddr::new(ip, address.port()))
    }
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { address, .. } => write!(f, "{address}"),
            Self::Unix { file, .. } => write!(f, "unix:{}", file.0.display()),
        }
    }
}

/// The host has no such address, or no such family.
fn is_absent(why: &io::Error) -> bool {
    use io::ErrorKind::{AddrNotAvailable, Unsupported};
    matches!(why.kind(), AddrNotAvailable | Unsupported)
}

/// The file of a Unix socket, removed with it.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Removes the file that a killed process left; one that still answers is in use.
fn clear_stale(path: &Path) -> Result<(), ListenError> {
    match UnixStream::connect(path) {
        Ok(_) => Err(ListenError::SocketInUse(path.to_owned())),
        Err(why) if why.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
            Ok(())
        }
        Err(_) => Ok(()),
    }
}
