//! Sockets, bound before anything is promised, and who comes in by them. In come the addresses of one listener option,
//! out go bound sockets and the addresses that they really have, or one sentence that names the option and the remedy;
//! then connections, so many at a time. What is said on them is not known here.

use std::{
    fmt, io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    net::{TcpListener, TcpSocket, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::options::ListenAddr;

mod counted;

pub(crate) use counted::Io;
use counted::Stream;

/// Pause when the system has no descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Troubles of a listener are logged no more often.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// Connections that may wait to be accepted; the system has a bound of its own.
const BACKLOG: u32 = 4096;

/// A place that is taken: nobody comes in by it yet.
#[derive(Debug)]
pub enum Bound {
    Tcp(TcpSocket, SocketAddr, &'static str),
    /// It listens from the start: a file on which nobody listens is one that a dead process left behind.
    Unix(UnixListener, SocketFile),
}

impl Bound {
    /// Opens it.
    pub fn listen(self) -> Result<Socket, ListenError> {
        match self {
            Self::Tcp(socket, address, option) => {
                let failed = |cause| ListenError::new(option, address, cause);
                Ok(Socket::Tcp(
                    socket.listen(BACKLOG).map_err(failed)?,
                    address,
                ))
            }
            Self::Unix(listener, file) => Ok(Socket::Unix(listener, file)),
        }
    }
}

/// One open socket.
#[derive(Debug)]
pub enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener, SocketFile),
}

/// The file of a Unix socket; removed with it.
#[derive(Debug)]
pub struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(_, address) => address.fmt(f),
            Self::Unix(_, file) => write!(f, "unix:{}", file.0.display()),
        }
    }
}

/// Why a listener has no socket.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error(
        "{option} {address}: the port is in use; stop the process that has it, or choose another one with \
         {option} IP:PORT"
    )]
    InUse {
        option: &'static str,
        address: String,
    },
    #[error(
        "{option} {address}: another process answers on this socket; stop it, or choose another path"
    )]
    SocketInUse {
        option: &'static str,
        address: String,
    },
    #[error("{option} {address}: cannot listen there: {cause}")]
    Other {
        option: &'static str,
        address: String,
        cause: io::Error,
    },
}

impl ListenError {
    fn new(option: &'static str, address: SocketAddr, cause: io::Error) -> Self {
        let address = address.to_string();
        match cause.kind() {
            io::ErrorKind::AddrInUse => Self::InUse { option, address },
            _ => Self::Other {
                option,
                address,
                cause,
            },
        }
    }
}

/// Binds every address of one option.
pub fn bind(option: &'static str, addresses: &[ListenAddr]) -> Result<Vec<Bound>, ListenError> {
    let mut sockets = Vec::new();
    for address in addresses {
        match address {
            ListenAddr::Tcp(address) => sockets.push(tcp(option, *address)?),
            ListenAddr::Localhost(port) => {
                let first = tcp(option, (Ipv4Addr::LOCALHOST, *port).into())?;
                // The same port on both, also when it was chosen by the system. A host without IPv6 has one only.
                let port = match &first {
                    Bound::Tcp(_, address, _) => address.port(),
                    Bound::Unix(..) => *port,
                };
                sockets.push(first);
                match tcp(option, (Ipv6Addr::LOCALHOST, port).into()) {
                    Ok(second) => sockets.push(second),
                    Err(ListenError::Other { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            ListenAddr::Unix(path) => sockets.push(unix(option, path)?),
        }
    }
    Ok(sockets)
}

/// Opens what was bound.
pub fn open(bound: Vec<Bound>) -> Result<Vec<Socket>, ListenError> {
    bound.into_iter().map(Bound::listen).collect()
}

/// As the ready line says it: the real addresses, joined with "+".
pub fn joined(sockets: &[Socket]) -> String {
    sockets
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("+")
}

fn tcp(option: &'static str, address: SocketAddr) -> Result<Bound, ListenError> {
    let failed = |cause| ListenError::new(option, address, cause);
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    };
    let socket = socket.map_err(failed)?;
    // After a restart the port is free at once. One that the system chooses is never shared with another that is
    // bound and does not listen yet.
    socket.set_reuseaddr(address.port() != 0).map_err(failed)?;
    socket.bind(address).map_err(failed)?;
    let bound = socket.local_addr().map_err(failed)?;
    Ok(Bound::Tcp(socket, bound, option))
}

fn unix(option: &'static str, path: &Path) -> Result<Bound, ListenError> {
    let address = format!("unix:{}", path.display());
    match UnixStream::connect(path) {
        Ok(_) => return Err(ListenError::SocketInUse { option, address }),
        // Left behind by a process that was killed.
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            let _ = std::fs::remove_file(path);
        }
        Err(_) => {}
    }
    let listener = UnixListener::bind(path).map_err(|cause| ListenError::Other {
        option,
        address,
        cause,
    })?;
    Ok(Bound::Unix(listener, SocketFile(path.to_owned())))
}

/// One connection; it counts until it is dropped.
pub(crate) struct Visitor {
    pub(crate) io: Io,
    /// None: it came by a Unix socket.
    pub(crate) address: Option<SocketAddr>,
    _place: OwnedSemaphorePermit,
}

/// Serves every connection, so many at a time, until `stop`, and waits for the last of them.
pub(crate) async fn each<F>(
    socket: Socket,
    places: usize,
    stop: &CancellationToken,
    serve: impl Fn(Visitor) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let tracker = TaskTracker::new();
    let door = Door::new(socket, places);
    while let Some(visitor) = door.next(stop).await {
        tracker.spawn(serve(visitor));
    }
    // Nobody new is to wait at a door that stays shut.
    drop(door);
    tracker.close();
    tracker.wait().await;
}

/// Lets so many in at a time; further ones wait in the kernel.
struct Door {
    socket: Socket,
    places: Arc<Semaphore>,
    /// When its troubles were told last.
    told: Mutex<Option<Instant>>,
}

impl Door {
    fn new(socket: Socket, places: usize) -> Self {
        let places = Arc::new(Semaphore::new(places));
        Self {
            socket,
            places,
            told: Mutex::default(),
        }
    }

    /// The next one; none after `stop`.
    async fn next(&self, stop: &CancellationToken) -> Option<Visitor> {
        stop.run_until_cancelled(async {
            loop {
                match self.admit().await {
                    Ok(visitor) => return visitor,
                    Err(error) => {
                        self.tell(&format!("a connection cannot be accepted: {error}"));
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
        .await
    }

    /// In the log, now and then.
    fn tell(&self, what: &str) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            *told = Some(Instant::now());
            tracing::warn!(listener = %self.socket, "{what}");
        }
    }

    async fn admit(&self) -> io::Result<Visitor> {
        if self.places.available_permits() == 0 {
            self.tell("all places for connections are taken: further ones wait in the kernel");
        }
        let places = Arc::clone(&self.places);
        let _place = places.acquire_owned().await.map_err(io::Error::other)?;
        let (stream, address): (Box<dyn Stream>, _) = match &self.socket {
            Socket::Tcp(listener, _) => {
                let (stream, address) = listener.accept().await?;
                stream.set_nodelay(true)?;
                (Box::new(stream), Some(address))
            }
            Socket::Unix(listener, _) => (Box::new(listener.accept().await?.0), None),
        };
        Ok(Visitor {
            io: Io::new(stream),
            address,
            _place,
        })
    }
}
