//! Binds sockets. Input: addresses. Output: sockets and their real addresses, or one sentence with the address and the
//! remedy. A Unix socket is accessible to its owner only (0600), and its file is removed with it. Nothing is accepted
//! here.

use std::{
    fmt, fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::{
        fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _},
        net::{UnixListener as StdUnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use socket2::{Domain, SockAddr, Type};
use tokio::net::{TcpListener, TcpSocket, UnixListener};

use crate::address::{ListenAddr, ListenOption};

/// The most connections that wait to be accepted; the system has its own limit.
const BACKLOG: u32 = 4096;
/// Only the user that runs the process may connect.
const SOCKET_MODE: u32 = 0o600;
/// Mode of the folders that are created for a socket; existing ones are not changed.
const FOLDER_MODE: u32 = 0o700;

/// Why a socket cannot be bound.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error(
        "port {port} on {ip} is in use by another process: stop it or choose another port (0 takes any free one)"
    )]
    PortInUse { ip: IpAddr, port: u16 },
    #[error("socket {} is in use by another process: stop it or choose another path", path.display())]
    PathInUse { path: PathBuf },
    #[error("{} exists and is not a socket: remove it or choose another path", path.display())]
    NotASocket { path: PathBuf },
    #[error(
        "cannot listen on {address}: {source}; check that this host has the address and that you \
         are permitted to use it"
    )]
    System {
        address: ListenAddr,
        source: io::Error,
    },
}

impl BindError {
    /// The error of a TCP address.
    #[must_use]
    pub fn tcp(address: SocketAddr, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse {
                ip: address.ip(),
                port: address.port(),
            },
            _ => Self::System {
                address: ListenAddr::Tcp(address),
                source,
            },
        }
    }

    /// Whether the host lacks this address or address family.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        use io::ErrorKind::{AddrNotAvailable, Unsupported};
        matches!(self, Self::System { source, .. } if matches!(source.kind(), AddrNotAvailable | Unsupported))
    }
}

/// A bound address; it does not accept connections yet.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpSocket, SocketAddr),
    /// It listens from the start: a socket file on which nobody listens would count as left behind by a dead process.
    Unix(UnixListener, SocketFile),
}

impl Bound {
    /// Starts to listen.
    ///
    /// # Errors
    /// The system's error; another process may have opened the port meanwhile.
    pub fn listen(self) -> Result<Socket, BindError> {
        match self {
            Self::Tcp(socket, address) => socket
                .listen(BACKLOG)
                .map(|listener| Socket::Tcp(listener, address))
                .map_err(|source| BindError::tcp(address, source)),
            Self::Unix(listener, file) => Ok(Socket::Unix(listener, file)),
        }
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> ListenAddr {
        match self {
            Self::Tcp(_, address) => ListenAddr::Tcp(*address),
            Self::Unix(_, file) => ListenAddr::Unix(file.0.path.clone()),
        }
    }
}

/// One open socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, SocketFile),
}

impl Socket {
    /// The file of a Unix socket.
    #[must_use]
    pub fn file(&self) -> Option<&SocketFile> {
        match self {
            Self::Tcp(..) => None,
            Self::Unix(_, file) => Some(file),
        }
    }

    /// The bound address.
    #[must_use]
    pub fn address(&self) -> ListenAddr {
        match self {
            Self::Tcp(_, address) => ListenAddr::Tcp(*address),
            Self::Unix(_, file) => ListenAddr::Unix(file.0.path.clone()),
        }
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.address().fmt(f)
    }
}

/// Binds all sockets of one value of an option. Call it inside a tokio runtime.
///
/// # Errors
/// The address and the remedy.
pub fn bind(option: &ListenOption) -> Result<Vec<Bound>, BindError> {
    match option {
        ListenOption::At(ListenAddr::Tcp(address)) => Ok(vec![tcp(*address)?]),
        ListenOption::At(ListenAddr::Unix(path)) => {
            let (listener, file) = bind_unix(path)?;
            let listener =
                UnixListener::from_std(listener).map_err(|source| BindError::System {
                    address: ListenAddr::Unix(path.clone()),
                    source,
                })?;
            Ok(vec![Bound::Unix(listener, file)])
        }
        ListenOption::Localhost(port) => {
            let first = tcp((Ipv4Addr::LOCALHOST, *port).into())?;
            // The same port on both addresses, even if the system chose it.
            let port = match &first {
                Bound::Tcp(_, address) => address.port(),
                Bound::Unix(..) => *port,
            };
            match tcp((Ipv6Addr::LOCALHOST, port).into()) {
                Ok(second) => Ok(vec![first, second]),
                Err(error) if error.is_absent() => Ok(vec![first]),
                Err(error) => Err(error),
            }
        }
    }
}

fn tcp(address: SocketAddr) -> Result<Bound, BindError> {
    let failed = |source| BindError::tcp(address, source);
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let socket = socket.map_err(failed)?;
    // After a restart the port can be bound at once, although old connections to it are in TIME_WAIT. For a port that the
    // system chooses the option is set only after the bind: before, the system could choose one that another process has
    // bound and does not listen on yet.
    let chosen_by_system = address.port() == 0;
    if !chosen_by_system {
        socket.set_reuseaddr(true).map_err(failed)?;
    }
    socket.bind(address).map_err(failed)?;
    if chosen_by_system {
        socket.set_reuseaddr(true).map_err(failed)?;
    }
    let bound = socket.local_addr().map_err(failed)?;
    Ok(Bound::Tcp(socket, bound))
}

/// Binds a Unix socket and listens on it, replacing the file of a dead process. Missing folders are created.
///
/// # Errors
/// The path and the remedy.
pub fn bind_unix(path: &Path) -> Result<(StdUnixListener, SocketFile), BindError> {
    let system = |source| BindError::System {
        address: ListenAddr::Unix(path.to_owned()),
        source,
    };
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            return Err(BindError::NotASocket {
                path: path.to_owned(),
            });
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            return Err(BindError::PathInUse {
                path: path.to_owned(),
            });
        }
        Ok(_) => fs::remove_file(path).map_err(system)?,
        Err(_) => {
            if let Some(folder) = path.parent() {
                let mut folders = fs::DirBuilder::new();
                folders.recursive(true).mode(FOLDER_MODE);
                folders.create(folder).map_err(system)?;
            }
        }
    }
    private_listener(path).map_err(system)
}

/// Nobody can connect before the mode is set, because the socket does not listen yet.
fn private_listener(path: &Path) -> io::Result<(StdUnixListener, SocketFile)> {
    let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile::of(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE))?;
    socket.listen(i32::try_from(BACKLOG).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    Ok((socket.into(), file))
}

/// The file of a Unix socket. Removed by [`SocketFile::remove`] or when the last clone is dropped, unless another
/// process has replaced it.
#[derive(Clone, Debug)]
pub struct SocketFile(Arc<OwnFile>);

#[derive(Debug)]
struct OwnFile {
    path: PathBuf,
    device: u64,
    inode: u64,
    /// Removed at most once: after the socket is closed another process's file may get the same inode number.
    removed: AtomicBool,
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::symlink_metadata(path)?;
        Ok(Self(Arc::new(OwnFile {
            path: path.to_owned(),
            device: found.dev(),
            inode: found.ino(),
            removed: AtomicBool::new(false),
        })))
    }

    /// Removes it now: new clients no longer find the socket.
    pub fn remove(&self) {
        self.0.remove();
    }
}

impl OwnFile {
    fn remove(&self) {
        if self.removed.swap(true, Ordering::Relaxed) {
            return;
        }
        let is_own = fs::symlink_metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) == (self.device, self.inode));
        if is_own {
            let _ = fs::remove_file(&self.path);
        }
    }
}

impl Drop for OwnFile {
    fn drop(&mut self) {
        self.remove();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_socket_left_behind_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/proxy.sock");
        let live = bind_unix(&path).unwrap();
        assert!(matches!(bind_unix(&path), Err(BindError::PathInUse { .. })));
        // The state that a killed process leaves.
        let (listener, file) = live;
        std::mem::forget(file);
        drop(listener);
        drop(bind_unix(&path).unwrap());
        fs::write(&path, "text").unwrap();
        assert!(matches!(
            bind_unix(&path),
            Err(BindError::NotASocket { .. })
        ));
        assert_eq!(fs::read_to_string(&path).unwrap(), "text");
    }

    /// Issue 10, D3.
    #[test]
    fn a_socket_is_its_owners_alone_and_its_file_leaves_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/proxy.sock");
        let bound = bind_unix(&path).unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        drop(bound);
        assert!(!path.exists());
    }

    #[test]
    fn the_file_of_a_successor_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("proxy.sock");
        let (_old, file) = bind_unix(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let _new = bind_unix(&path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    /// Issue 10, D5: a file system gives the inode number of a removed file to the next one.
    #[test]
    fn the_file_of_a_successor_with_the_same_number_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (path, kept) = (dir.path().join("proxy.sock"), dir.path().join("kept"));
        let (_old, file) = bind_unix(&path).unwrap();
        fs::hard_link(&path, &kept).unwrap();
        file.remove();
        assert!(!path.exists());
        fs::rename(&kept, &path).unwrap();
        drop(file);
        assert!(path.exists());
    }

    #[tokio::test]
    async fn localhost_has_one_port_on_both_addresses() {
        let bound = bind(&ListenOption::Localhost(0)).unwrap();
        let ports: Vec<_> = bound
            .iter()
            .map(|bound| match bound.address() {
                ListenAddr::Tcp(address) => address.port(),
                ListenAddr::Unix(_) => 0,
            })
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
    }

    #[tokio::test]
    async fn a_port_that_the_system_chose_can_be_bound_again_at_once() {
        let tcp = |address: SocketAddr| match tcp(address).unwrap() {
            Bound::Tcp(socket, address) => (socket.listen(8).unwrap(), address),
            Bound::Unix(..) => unreachable!(),
        };
        let (listener, address) = tcp("127.0.0.1:0".parse().unwrap());
        let client = tokio::net::TcpStream::connect(address).await.unwrap();
        let (server, _) = listener.accept().await.unwrap();
        // Whoever closes first keeps the connection in TIME_WAIT.
        drop(server);
        let mut end = [0];
        client.readable().await.unwrap();
        assert_eq!(client.try_read(&mut end).unwrap(), 0);
        drop((client, listener));
        tcp(address);
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_the_remedy() {
        let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = held.local_addr().unwrap();
        let option = ListenOption::At(ListenAddr::Tcp(address));
        let error = bind(&option).unwrap_err().to_string();
        let parts = [&*address.port().to_string(), "in use", "choose another"];
        for part in parts {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
