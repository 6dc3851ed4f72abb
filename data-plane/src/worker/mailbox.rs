//! How other threads reach a worker: commands through a bounded queue and a waker, the routing table through an atomic
//! pointer, metrics through atomics. This file has everything that threads share; a worker shares nothing else.

use std::collections::HashSet;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::mpsc::{Receiver, SyncSender};

use arc_swap::ArcSwap;
use tokio::sync::{mpsc, watch};

use super::ConnectionInfo;
use super::calls_watch::CallsWatch;
use crate::caller::Role;
use crate::observe::Report;
use crate::observe::metrics::WorkerMetrics;
use crate::route::RouteTable;
use crate::settings::WorkerOptions;

/// Commands that may wait for a worker. Each turn handles all of them, so a full queue means a stuck worker.
pub(crate) const MAILBOX: usize = 4096;

/// A command to a worker.
#[derive(Debug)]
pub(crate) enum Command {
    /// Accept from this socket.
    ListenTcp(Role, TcpListener),
    /// Accept from this socket.
    ListenUnix(Role, UnixListener),
    /// A connection that another worker accepted and passes on.
    AcceptedTcp(Role, std::net::TcpStream),
    /// The same from a Unix socket.
    AcceptedUnix(Role, UnixStream),
    /// There is a new table in [`WorkerHandle::table`].
    Table,
    /// Drop the counters of these services, which have not been called for a long time.
    Forget(Arc<HashSet<Arc<str>>>),
    /// Report the number of calls in flight on an endpoint, until there are none.
    WatchCalls(CallsWatch),
    /// Stop accepting, send GOAWAY, finish calls.
    Drain,
    /// End the calls that a drain has left.
    EndCalls,
    /// List the connections.
    Connections(SyncSender<Vec<ConnectionInfo>>),
    /// End the thread.
    Stop,
}

/// What one worker shares with the others and with the control side.
#[derive(Debug)]
pub(crate) struct WorkerHandle {
    pub(crate) mailbox: SyncSender<Command>,
    pub(crate) waker: mio::Waker,
    /// Downstream connections; decides which worker gets an accepted socket.
    pub(crate) load: AtomicUsize,
    pub(crate) metrics: Arc<WorkerMetrics>,
    /// The worker's own copy of the latest table.
    pub(crate) table: ArcSwap<RouteTable>,
}

/// What all threads of the data path share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: Arc<WorkerOptions>,
    pub(crate) handles: Vec<WorkerHandle>,
    pub(crate) reports: mpsc::Sender<Report>,
    pub(crate) internal: mpsc::Sender<UnixStream>,
    pub(crate) draining: AtomicBool,
    /// Number of workers without calls since `drain`.
    pub(crate) drained: watch::Sender<usize>,
}

/// What a worker needs at its start.
pub(crate) struct WorkerInit {
    pub(crate) index: usize,
    pub(crate) poll: mio::Poll,
    /// Registries of `poll`, for connections and for listeners.
    pub(crate) registries: [mio::Registry; 2],
    pub(crate) commands: Receiver<Command>,
    pub(crate) shared: Arc<Shared>,
}
