//! Limits the connections of a listener and chooses which one is closed when it is full: the idlest, at once. A
//! connection with a call in flight is never closed; if all have one, the new connection is refused. Input: connections
//! and their calls. Output: a notice to the connection that must end. No socket is used here.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use http::Response;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::idle::{Activity, Idle, IdleQueue};

/// The longest time between accepting a connection and its first request.
pub const FIRST_REQUEST: Duration = Duration::from_secs(10);
/// The least time between two log lines about a full listener.
const LOG_EVERY: Duration = Duration::from_secs(10);
/// The most evicted connections that are closed gracefully (GOAWAY) at a time; others are closed without notice. They
/// do not count against the limit.
const MAX_CLOSING: usize = 64;
/// The longest graceful close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);

/// The limits of a listener.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at a time.
    pub connections: usize,
    /// See [`FIRST_REQUEST`].
    pub first_request: Duration,
}

impl Limits {
    /// Limits with this many connections and the default time for the first request.
    #[must_use]
    pub fn of(connections: usize) -> Self {
        Self {
            connections: connections.max(1),
            first_request: FIRST_REQUEST,
        }
    }
}

/// The connections of one listener, on any number of sockets. Clones share them.
#[derive(Clone, Debug)]
pub struct Connections(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    listener: &'static str,
    limits: Limits,
    table: Mutex<Table>,
    closing: Semaphore,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Table {
    /// At most `limits.connections`.
    open: HashMap<u64, Open>,
    queue: IdleQueue<u64>,
    next: u64,
    logged: Option<Instant>,
}

#[derive(Debug)]
struct Open {
    calls: usize,
    idle: Idle,
    /// Whether it has an entry in the queue.
    queued: bool,
    leave: CancellationToken,
}

#[derive(Debug, Default)]
struct Counts {
    evicted: AtomicU64,
    refused: AtomicU64,
    late: AtomicU64,
}

/// The counters of a listener, for the metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub listener: &'static str,
    pub open: u64,
    /// Idle connections that were closed for new ones.
    pub evicted: u64,
    /// New connections that were refused because all others had a call in flight.
    pub refused: u64,
    /// Connections that sent no request in time.
    pub late: u64,
}

/// The totals of several listeners in the Prometheus format.
#[must_use]
pub fn prometheus(all: &[Totals]) -> String {
    type Read = fn(&Totals) -> u64;
    let families: [(&str, &str, &str, Read); 4] = [
        (
            "gauge",
            "heddle_listener_connections",
            "Open connections.",
            |t| t.open,
        ),
        (
            "counter",
            "heddle_listener_evicted_total",
            "Idle connections closed to make room for new ones.",
            |t| t.evicted,
        ),
        (
            "counter",
            "heddle_listener_refused_total",
            "New connections refused because all others had a call in flight.",
            |t| t.refused,
        ),
        (
            "counter",
            "heddle_listener_timeouts_total",
            "Connections closed because they sent no request in time.",
            |t| t.late,
        ),
    ];
    let mut text = String::new();
    for (kind, name, help, read) in families {
        text.push_str(&format!("# HELP {name} {help}\n# TYPE {name} {kind}\n"));
        for totals in all {
            let (listener, value) = (totals.listener, read(totals));
            text.push_str(&format!("{name}{{listener=\"{listener}\"}} {value}\n"));
        }
    }
    text
}

impl Connections {
    #[must_use]
    pub fn new(listener: &'static str, limits: Limits) -> Self {
        Self(Arc::new(Inner {
            listener,
            limits,
            table: Mutex::default(),
            closing: Semaphore::new(MAX_CLOSING),
            counts: Counts::default(),
        }))
    }

    /// The counts so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let counts = &self.0.counts;
        Totals {
            listener: self.0.listener,
            open: self.table().open.len() as u64,
            evicted: read(&counts.evicted),
            refused: read(&counts.refused),
            late: read(&counts.late),
        }
    }

    /// A place for a new connection; if the listener is full, the idlest one is closed for it. `None` if all have a
    /// call in flight.
    #[must_use]
    pub fn enter(&self) -> Option<ConnectionPermit> {
        let mut table = self.table();
        if table.open.len() >= self.0.limits.connections {
            self.log_full(&mut table);
            if !self.evict(&mut table) {
                self.0.counts.refused.fetch_add(1, Ordering::Relaxed);
                return None;
            }
        }
        let id = table.next;
        table.next += 1;
        let idle = Idle {
            called: false,
            since: Instant::now(),
        };
        let leave = CancellationToken::new();
        let open = Open {
            calls: 0,
            idle,
            queued: true,
            leave: leave.clone(),
        };
        let Table {
            open: all, queue, ..
        } = &mut *table;
        all.insert(id, open);
        queue.push(id, idle);
        queue.prune(all.len(), |id| activity(all, id));
        Some(ConnectionPermit {
            connections: self.clone(),
            id,
            leave,
        })
    }

    /// Closes the idlest connection, when the process itself is out of resources. False if there is none.
    pub fn make_room(&self) -> bool {
        self.evict(&mut self.table())
    }

    fn evict(&self, table: &mut Table) -> bool {
        let Table { open, queue, .. } = table;
        let Some(id) = queue.pop(|id| activity(open, id)) else {
            return false;
        };
        if let Some(gone) = open.remove(&id) {
            gone.leave.cancel();
        }
        self.0.counts.evicted.fetch_add(1, Ordering::Relaxed);
        true
    }

    fn log_full(&self, table: &mut Table) {
        if table.logged.is_some_and(|at| at.elapsed() < LOG_EVERY) {
            return;
        }
        table.logged = Some(Instant::now());
        tracing::warn!(
            listener = self.0.listener,
            connections = self.0.limits.connections,
            "the connection limit is reached: idle connections are closed to make room for new ones"
        );
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The state of a connection, for the queue. A busy one loses its entry until its last call ends.
fn activity(open: &mut HashMap<u64, Open>, id: u64) -> Activity {
    match open.get_mut(&id) {
        None => Activity::Gone,
        Some(open) if open.calls == 0 => Activity::Idle(open.idle),
        Some(open) => {
            open.queued = false;
            Activity::Busy
        }
    }
}

/// The place of one connection; dropping it frees the place.
#[derive(Debug)]
pub struct ConnectionPermit {
    connections: Connections,
    id: u64,
    leave: CancellationToken,
}

impl ConnectionPermit {
    /// Counts a call as in flight until the body of its response has ended or the call is cancelled.
    pub fn call<F, B, E>(
        &self,
        answer: F,
    ) -> impl Future<Output = Result<Response<InCall<B>>, E>> + use<F, B, E>
    where
        F: Future<Output = Result<Response<B>, E>>,
    {
        let call = Call::begin(&self.connections, self.id);
        async move {
            let response = answer.await?;
            Ok(response.map(|body| InCall { body, _call: call }))
        }
    }

    /// Serves a connection until it ends, sends no request in time, is evicted, or `end`. In the last two cases `leave`
    /// begins its graceful close.
    pub async fn serve<C: Future>(
        &self,
        connection: C,
        leave: impl FnOnce(Pin<&mut C>),
        end: impl Future<Output = ()>,
    ) {
        let mut connection = std::pin::pin!(connection);
        tokio::select! {
            // A broken connection is not an error of the listener.
            _ = connection.as_mut() => {}
            () = self.late() => {}
            () = self.leave.cancelled() => {
                let Ok(_closing) = self.connections.0.closing.try_acquire() else { return };
                leave(connection.as_mut());
                let _ = tokio::time::timeout(CLOSE_TIMEOUT, connection).await;
            }
            () = end => {
                // A connection without a request needs no graceful close.
                if !self.has_called() {
                    return;
                }
                leave(connection.as_mut());
                connection.await;
            }
        }
    }

    async fn late(&self) {
        tokio::time::sleep(self.connections.0.limits.first_request).await;
        if self.has_called() {
            std::future::pending::<()>().await;
        }
        let late = &self.connections.0.counts.late;
        late.fetch_add(1, Ordering::Relaxed);
    }

    fn has_called(&self) -> bool {
        let table = self.connections.table();
        table
            .open
            .get(&self.id)
            .is_some_and(|open| open.idle.called)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        self.connections.table().open.remove(&self.id);
    }
}

/// A call in flight.
#[derive(Debug)]
struct Call {
    connections: Connections,
    id: u64,
}

impl Call {
    fn begin(connections: &Connections, id: u64) -> Self {
        let mut table = connections.table();
        if let Some(open) = table.open.get_mut(&id) {
            open.calls += 1;
            open.idle.called = true;
        }
        drop(table);
        Self {
            connections: connections.clone(),
            id,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut table = self.connections.table();
        let Table { open, queue, .. } = &mut *table;
        let Some(open) = open.get_mut(&self.id) else {
            return;
        };
        open.calls = open.calls.saturating_sub(1);
        open.idle.since = Instant::now();
        if open.calls == 0 && !open.queued {
            open.queued = true;
            queue.push(self.id, open.idle);
        }
    }
}

/// The body of a response; its call is in flight until this is dropped.
#[derive(Debug)]
pub struct InCall<B> {
    body: B,
    _call: Call,
}

impl<B: Body + Unpin> Body for InCall<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Connections {
        Connections::new("test", Limits::of(2))
    }

    fn in_call(place: &ConnectionPermit) -> Call {
        Call::begin(&place.connections, place.id)
    }

    /// Issue 10, A4.
    #[test]
    fn the_idlest_goes_first_and_one_without_a_request_before_all() {
        let connections = two();
        let (old, silent) = (connections.enter().unwrap(), connections.enter().unwrap());
        drop(in_call(&old));
        let third = connections.enter().unwrap();
        assert!(silent.leave.is_cancelled() && !old.leave.is_cancelled());
        drop(in_call(&third));
        let _fourth = connections.enter().unwrap();
        assert!(old.leave.is_cancelled() && !third.leave.is_cancelled());
        assert_eq!(connections.totals().evicted, 2);
        assert_eq!(connections.totals().open, 2);
    }

    #[test]
    fn one_with_a_call_stays_and_goes_only_when_it_is_idle_again() {
        let connections = two();
        let (first, second) = (connections.enter().unwrap(), connections.enter().unwrap());
        let calls = (in_call(&first), in_call(&second));
        assert!(connections.enter().is_none());
        assert_eq!(connections.totals().refused, 1);
        drop(calls.0);
        assert!(connections.enter().is_some());
        assert!(first.leave.is_cancelled() && !second.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_in_time_is_left() {
        let connections = two();
        let place = connections.enter().unwrap();
        let began = tokio::time::Instant::now();
        place
            .serve(std::future::pending::<()>(), |_| {}, std::future::pending())
            .await;
        assert_eq!(began.elapsed(), FIRST_REQUEST);
        assert_eq!(connections.totals().late, 1);
    }
}
