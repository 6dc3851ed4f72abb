//! The control side's handle on all workers: start, listen, publish a table, drain, read metrics. Used only from the
//! control runtime; nothing here runs on a worker's thread.

use std::collections::{HashMap, HashSet};
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use heddle_listen::{SocketFile, bind_unix};
use tokio::sync::{mpsc, watch};

use super::calls_watch::{CallsInFlight, CallsWatch};
use super::mailbox::{Command, MAILBOX, Shared, WorkerHandle, WorkerInit};
use super::{ConnectionInfo, Report, Role, WorkerOptions};
use crate::listener::bind::bind_tcp;
use crate::listener::{ListenAddr, ListenError};
use crate::observe::MetricsSnapshot;
use crate::observe::load::{LocalityLoad, Use};
use crate::observe::metrics::WorkerMetrics;
use crate::route::RouteTable;

/// Token of each worker's waker.
pub(crate) const WAKER: mio::Token = mio::Token(usize::MAX);
/// How long to wait for the workers' lists of connections before the missing ones are left out.
const LIST_TIMEOUT: Duration = Duration::from_millis(500);

/// All workers of a proxy. Dropping it ends their threads and closes all connections.
#[derive(Debug)]
pub struct Workers {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Files of the Unix sockets; removed when a drain begins.
    files: Mutex<Vec<SocketFile>>,
}

impl Workers {
    /// Starts the threads. `reports` receives refused and lost connections to local instances, for the agent.
    /// `internal` receives the other end of each worker's own connection for health and reflection calls.
    pub fn start(
        options: WorkerOptions,
        reports: mpsc::Sender<Report>,
        internal: mpsc::Sender<UnixStream>,
    ) -> io::Result<Self> {
        let mut handles = Vec::new();
        let mut inits = Vec::new();
        for _ in 0..options.workers.max(1) {
            let poll = mio::Poll::new()?;
            let (mailbox, commands) = sync_channel(MAILBOX);
            handles.push(WorkerHandle {
                mailbox,
                waker: mio::Waker::new(poll.registry(), WAKER)?,
                load: AtomicUsize::new(0),
                metrics: Arc::new(WorkerMetrics::default()),
                table: ArcSwap::from_pointee(RouteTable::empty(&options.node)),
            });
            let registries = [poll.registry().try_clone()?, poll.registry().try_clone()?];
            inits.push((registries, poll, commands));
        }
        let shared = Arc::new(Shared {
            options: Arc::new(options),
            handles,
            reports,
            internal,
            draining: AtomicBool::new(false),
            drained: watch::Sender::new(0),
        });
        let mut workers = Self {
            shared,
            threads: Vec::new(),
            files: Mutex::default(),
        };
        for (index, (registries, poll, commands)) in inits.into_iter().enumerate() {
            let shared = Arc::clone(&workers.shared);
            let init = WorkerInit {
                index,
                poll,
                registries,
                commands,
                shared,
            };
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            workers
                .threads
                .push(thread.spawn(move || super::run(init))?);
        }
        Ok(workers)
    }

    /// Opens a listener on every worker (a Unix socket on the first only) and returns its address.
    pub fn listen(&self, role: Role, address: &ListenAddr) -> Result<ListenAddr, ListenError> {
        let stopped = || ListenError::Stopped {
            address: address.clone(),
        };
        match address {
            ListenAddr::Tcp(tcp) => {
                let (bound, sockets) = bind_tcp(*tcp, self.shared.handles.len())?;
                for (handle, socket) in self.shared.handles.iter().zip(sockets) {
                    handle
                        .send(Command::ListenTcp(role, socket))
                        .ok_or_else(stopped)?;
                }
                Ok(ListenAddr::Tcp(bound))
            }
            ListenAddr::Unix(path) => {
                let (socket, file) = bind_unix(path)?;
                let handle = self.shared.handles.first().ok_or_else(stopped)?;
                handle
                    .send(Command::ListenUnix(role, socket))
                    .ok_or_else(stopped)?;
                let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
                files.push(file);
                Ok(address.clone())
            }
        }
    }

    /// Gives every worker a new table, which it installs in its next turn.
    pub fn publish(&self, table: Arc<RouteTable>) {
        if let Some((last, others)) = self.shared.handles.split_last() {
            for handle in others {
                handle.table.store(Arc::new(table.copy_for_worker()));
            }
            last.table.store(table);
        }
        self.send_all(|| Command::Table);
    }

    /// Calls and attempts of every service that this node's callers have used.
    #[must_use]
    pub fn used(&self) -> HashMap<Arc<str>, Use> {
        let mut sum = HashMap::new();
        for handle in &self.shared.handles {
            handle.metrics.add_use(&mut sum);
        }
        sum
    }

    /// What this node's callers sent to each service and locality, by worker.
    #[must_use]
    pub fn loads(&self) -> Vec<Arc<LocalityLoad>> {
        self.shared
            .handles
            .iter()
            .flat_map(|handle| handle.metrics.loads())
            .collect()
    }

    /// Drops the counters of services that nobody calls any more.
    pub fn forget(&self, services: &Arc<HashSet<Arc<str>>>) {
        self.send_all(|| Command::Forget(Arc::clone(services)));
    }

    /// The calls in flight on an endpoint, from local callers and from other nodes.
    #[must_use]
    pub fn calls_in_flight(&self, uid: u64) -> CallsInFlight {
        let handles = self.shared.handles.iter();
        let counts = handles.map(|handle| {
            let (count, counts) = watch::channel(None);
            let _ = handle.send(Command::WatchCalls(CallsWatch { uid, count }));
            counts
        });
        CallsInFlight::new(counts.collect())
    }

    /// Stops accepting, sends GOAWAY to every caller and lets calls finish, at most until the drain timeout.
    pub fn drain(&self) {
        // Removed first, so that nobody connects to a socket that is about to close.
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.clear();
        drop(files);
        self.shared.draining.store(true, Ordering::SeqCst);
        self.send_all(|| Command::Drain);
    }

    /// Ends the calls that a drain has left; [`Workers::drained`] returns when their callers have got it.
    pub fn end_calls(&self) {
        self.send_all(|| Command::EndCalls);
    }

    /// Returns when `drain` has been called and no calls are left.
    pub async fn drained(&self) {
        let mut drained = self.shared.drained.subscribe();
        let all = self.shared.handles.len();
        // The sender lives as long as `self`, so this cannot fail.
        let _ = drained.wait_for(|count| *count >= all).await;
    }

    /// The sum of all workers' metrics.
    #[must_use]
    pub fn metrics(&self) -> MetricsSnapshot {
        MetricsSnapshot::sum(self.shared.handles.iter().map(|handle| &*handle.metrics))
    }

    /// All open connections. Waits for the workers' next turn, at most half a second in all.
    #[must_use]
    pub fn connections(&self) -> Vec<ConnectionInfo> {
        let (reply, lists) = sync_channel(self.shared.handles.len());
        self.send_all(|| Command::Connections(reply.clone()));
        drop(reply);
        let mut all = gather(&lists, LIST_TIMEOUT);
        all.sort_by(|a, b| (a.worker, a.kind, &a.peer).cmp(&(b.worker, b.kind, &b.peer)));
        all
    }

    fn send_all(&self, command: impl Fn() -> Command) {
        for handle in &self.shared.handles {
            let _ = handle.send(command());
        }
    }
}

/// All lists that arrive within `time`, or until nobody can send another.
fn gather<T>(lists: &Receiver<Vec<T>>, time: Duration) -> Vec<T> {
    let deadline = Instant::now() + time;
    let mut all = Vec::new();
    while let Ok(list) = lists.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        all.extend(list);
        // A timeout of zero still returns a list that is there.
        if Instant::now() >= deadline {
            break;
        }
    }
    all
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.send_all(|| Command::Stop);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl WorkerHandle {
    /// Sends a command and wakes the worker; `None` if its thread has ended. Blocks while the queue is full, so only
    /// for the control side.
    fn send(&self, command: Command) -> Option<()> {
        self.mailbox.send(command).ok()?;
        self.waker.wake().ok()
    }

    /// Sends without waiting: returns the command if the queue is full.
    pub(crate) fn try_send(&self, command: Command) -> Result<(), Command> {
        use std::sync::mpsc::TrySendError::{Disconnected, Full};
        self.mailbox
            .try_send(command)
            .map_err(|error| match error {
                Full(command) | Disconnected(command) => command,
            })?;
        // If waking fails, the worker sees the command with its next event.
        let _ = self.waker.wake();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_lists_together_have_one_time() {
        let (send, lists) = sync_channel(1);
        let sender = std::thread::spawn(move || {
            // Far faster than the time, without an end.
            while send.send(vec![1]).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        assert!(!gather(&lists, Duration::from_millis(100)).is_empty());
        drop(lists);
        sender.join().unwrap();
        let (send, lists) = sync_channel(2);
        send.send(vec![1, 2]).unwrap();
        send.send(vec![3]).unwrap();
        drop(send);
        assert_eq!(gather(&lists, LIST_TIMEOUT), [1, 2, 3]);
    }
}
