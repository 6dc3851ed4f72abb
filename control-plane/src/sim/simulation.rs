//! The state that all parts of a run share: the trace, the network, and the expected state. Locks are held only for a
//! moment, and never across an await.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use tokio::{
    sync::{Notify, futures::Notified},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    client::ClientResources,
    invariants::Invariants,
    node::NodeState,
    random::{Random, hash},
    replica::Replica,
    store::Cluster,
};
use crate::{access::Caller, budget::Account};

/// Lines of the trace that a failing run prints.
const LINES: usize = 400;

/// Every part that has an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Who {
    Store,
    Replica(usize),
    /// A node and the number of its process.
    Node(usize, u32),
    Client(usize),
}

impl Who {
    /// As whom it appears at a replica: each has an address of its own, on another host.
    pub(super) fn caller(self) -> Caller {
        let (host, port) = match self {
            Self::Store | Self::Replica(_) => (0, 0),
            Self::Node(n, process) => (n, process),
            Self::Client(n) => (n, 0),
        };
        let kind = if matches!(self, Self::Client(_)) {
            2
        } else {
            1
        };
        let number = u8::try_from(host).unwrap_or(u8::MAX);
        let port = 1_000 + u16::try_from(port % 60_000).unwrap_or_default();
        let address = SocketAddr::from(([10, kind, 0, number], port));
        Caller::of_connection(Some(address), Account::default())
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store => write!(f, "store"),
            Self::Replica(n) => write!(f, "replica r{n}"),
            Self::Node(n, process) => write!(f, "node n{n} (process {process})"),
            Self::Client(n) => write!(f, "client c{n}"),
        }
    }
}

/// The shape of a run.
#[derive(Clone, Debug)]
pub(super) struct Profile {
    pub(super) replicas: usize,
    pub(super) nodes: usize,
    pub(super) services: usize,
    pub(super) clients: usize,
    /// Only what must never make a living instance disappear: kills of single replicas, broken connections, a single
    /// replica cut off, and the normal changes of nodes and clients.
    pub(super) gentle: bool,
    /// How many of a thousand requests to the store have a lost or late answer.
    pub(super) lossy: u64,
    /// How many revisions the store keeps.
    pub(super) history: usize,
    pub(super) faults: Duration,
}

/// Lines of the same millisecond are sorted: their order is not part of the run.
#[derive(Default)]
struct Trace {
    lines: VecDeque<String>,
    now: Vec<String>,
    at: u128,
    hash: u64,
    print: bool,
}

impl Trace {
    #[allow(clippy::print_stdout, reason = "a replay is for people")]
    fn flush(&mut self) {
        self.now.sort_unstable();
        for line in self.now.drain(..) {
            self.hash = hash(self.hash, line.as_bytes());
            if self.print {
                println!("{line}");
            }
            if self.lines.len() == LINES {
                self.lines.pop_front();
            }
            self.lines.push_back(line);
        }
    }
}

#[derive(Default)]
pub(super) struct Net {
    pub(super) blocked: BTreeSet<(Who, Who)>,
    pub(super) paused: BTreeSet<Who>,
    pub(super) slow: BTreeSet<Who>,
}

impl Net {
    fn passable(&self, from: Who, to: Who) -> bool {
        !self.blocked.contains(&(from, to))
            && !self.paused.contains(&from)
            && !self.paused.contains(&to)
    }
}

/// A client as the invariants see it.
pub(super) struct ClientState {
    pub(super) resources: ClientResources,
    pub(super) life: CancellationToken,
    /// The replica it is connected to, and since when.
    pub(super) connected: Option<(usize, Duration)>,
    /// Cancelled when that replica no longer has its connection.
    pub(super) lost_there: CancellationToken,
    /// It rejected something: what it has is not checked until it connects again.
    pub(super) rejected: bool,
}

pub(super) struct Inner {
    pub(super) profile: Profile,
    pub(super) seed: u64,
    trace: Mutex<Trace>,
    start: Instant,
    net: Mutex<Net>,
    net_changed: Notify,
    pub(super) store: Mutex<Cluster>,
    pub(super) published: Notify,
    pub(super) replicas: Mutex<BTreeMap<usize, Arc<Replica>>>,
    pub(super) nodes: Mutex<BTreeMap<Who, NodeState>>,
    /// Which process of each node is the rightful one.
    pub(super) rightful: Mutex<BTreeMap<usize, u32>>,
    pub(super) client_states: Mutex<BTreeMap<usize, ClientState>>,
    pub(super) invariants: Mutex<Invariants>,
    broken: Mutex<Option<String>>,
    pub(super) over: CancellationToken,
    /// There are no more faults.
    pub(super) calm: AtomicBool,
}

#[derive(Clone)]
pub(super) struct Simulation(Arc<Inner>);

impl std::ops::Deref for Simulation {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl Simulation {
    pub(super) fn new(profile: Profile, seed: u64, print: bool) -> Self {
        let start = Instant::now();
        Self(Arc::new(Inner {
            seed,
            trace: Mutex::new(Trace {
                print,
                ..Trace::default()
            }),
            start,
            net: Mutex::default(),
            net_changed: Notify::new(),
            store: Mutex::new(Cluster::new(profile.history, start.into_std())),
            published: Notify::new(),
            replicas: Mutex::default(),
            nodes: Mutex::default(),
            rightful: Mutex::default(),
            client_states: Mutex::default(),
            invariants: Mutex::default(),
            broken: Mutex::default(),
            over: CancellationToken::new(),
            calm: AtomicBool::new(false),
            profile,
        }))
    }

    pub(super) fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// Adds a line to the trace. The hash of all lines is the run's fingerprint.
    pub(super) fn log(&self, text: fmt::Arguments<'_>) {
        let line = format!("{:9.3} {text}", self.now().as_secs_f64());
        let mut trace = lock(&self.trace);
        let at = self.now().as_millis();
        if at != trace.at {
            trace.at = at;
            trace.flush();
        }
        trace.now.push(line);
    }

    pub(super) fn finger_print(&self) -> u64 {
        let mut trace = lock(&self.trace);
        trace.flush();
        trace.hash
    }

    pub(super) fn trace(&self) -> String {
        let trace = lock(&self.trace);
        trace
            .lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }

    /// An invariant is violated: the run ends; only the first violation counts.
    pub(super) fn broken(&self, invariant: &str, text: fmt::Arguments<'_>) {
        let mut broken = lock(&self.broken);
        if broken.is_none() {
            self.log(format_args!("BROKEN: {invariant}: {text}"));
            *broken = Some(format!("{invariant}: {text}"));
            self.over.cancel();
        }
    }

    pub(super) fn verdict(&self) -> Option<String> {
        lock(&self.broken).clone()
    }

    // ---- the network ----

    pub(super) fn change_net(&self, change: impl FnOnce(&mut Net)) {
        change(&mut lock(&self.net));
        self.net_changed.notify_waiters();
    }

    pub(super) fn net<R>(&self, look: impl FnOnce(&Net) -> R) -> R {
        look(&lock(&self.net))
    }

    /// The next change of the network from now on.
    pub(super) fn net_change(&self) -> Notified<'_> {
        self.net_changed.notified()
    }

    pub(super) fn joined(&self, a: Who, b: Who) -> bool {
        let net = lock(&self.net);
        net.passable(a, b) && net.passable(b, a)
    }

    /// The latency of a message that is sent now.
    pub(super) fn latency(&self, random: &mut Random, from: Who, to: Who) -> Duration {
        let slow = self.net(|net| net.slow.contains(&from) || net.slow.contains(&to));
        if slow {
            random.millis(200..=900)
        } else if random.chance(20) {
            random.millis(50..=600)
        } else {
            random.millis(1..=12)
        }
    }

    async fn until(&self, wanted: impl Fn(&Net) -> bool) {
        loop {
            // Created before the check, so that no notification is missed.
            let change = self.net_change();
            if self.net(&wanted) {
                return;
            }
            change.await;
        }
    }

    pub(super) async fn until_passable(&self, from: Who, to: Who) {
        self.until(|net| net.passable(from, to)).await;
    }

    pub(super) async fn until_joined(&self, a: Who, b: Who) {
        self.until(|net| net.passable(a, b) && net.passable(b, a))
            .await;
    }

    /// Waits while the process is paused.
    pub(super) async fn until_awake(&self, who: Who) {
        self.until(|net| !net.paused.contains(&who)).await;
    }

    /// Whether the replica and the store are up, and the replica is connected to the store and to `who`.
    pub(super) fn serves(&self, replica: usize, who: Who) -> bool {
        let up = lock(&self.replicas).contains_key(&replica) && lock(&self.store).up;
        up && self.joined(Who::Replica(replica), Who::Store)
            && self.joined(Who::Replica(replica), who)
    }

    pub(super) fn is_served(&self, who: Who) -> bool {
        (0..self.profile.replicas).any(|replica| self.serves(replica, who))
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
