//! How many connections each listener of a worker holds, and which of them goes when there is no place left: the idlest.
//! Connections and ends of calls come in, the connection that is to go comes out. Nothing is closed here.

use std::time::{Duration, Instant};

use heddle_listen::{Idle, IdleQueue, Standing};

use crate::worker::Role;
use crate::worker::arena::{Arena, Key};
use crate::worker::conn::{Conn, ConnKey};

/// A listener that is full is logged no more often.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// What is known of one connection.
#[derive(Debug)]
pub(crate) struct PlaceState {
    idle: Idle,
    /// When its first request is to have come.
    first_by: Instant,
    /// It has an entry in the queue.
    queued: bool,
}

impl PlaceState {
    pub(crate) fn new(now: Instant, first_by: Instant) -> Self {
        let idle = Idle {
            called: false,
            since: now,
        };
        Self {
            idle,
            first_by,
            queued: true,
        }
    }

    /// A request has come.
    pub(crate) fn called(&mut self) {
        self.idle.called = true;
    }

    /// When the first request is to be there, until it is.
    pub(crate) fn first_by(&self) -> Option<Instant> {
        (!self.idle.called).then_some(self.first_by)
    }
}

/// The connections of both listeners.
#[derive(Debug, Default)]
pub(crate) struct Places {
    outbound: Listening,
    inbound: Listening,
}

#[derive(Debug, Default)]
struct Listening {
    open: usize,
    queue: IdleQueue<u64>,
    logged: Option<Instant>,
}

impl Places {
    /// How many connections a listener has.
    pub(crate) fn open(&self, role: Role) -> usize {
        match role {
            Role::Outbound => self.outbound.open,
            Role::Inbound => self.inbound.open,
        }
    }

    pub(crate) fn entered(
        &mut self,
        role: Role,
        key: ConnKey,
        now: Instant,
        conns: &mut Arena<Conn>,
    ) {
        let listening = self.of(role);
        listening.open += 1;
        let idle = Idle {
            called: false,
            since: now,
        };
        listening.queue.push(key.pack(), idle);
        let open = listening.open;
        listening.queue.prune(open, |key| standing(conns, key));
    }

    pub(crate) fn left(&mut self, role: Role) {
        let listening = self.of(role);
        listening.open = listening.open.saturating_sub(1);
    }

    /// A call of a connection has ended, perhaps its last.
    pub(crate) fn call_ended(&mut self, key: ConnKey, conn: &mut Conn, now: Instant) {
        if !conn.calls.is_empty() {
            return;
        }
        let Some(down) = conn.down_mut() else { return };
        down.place.idle.since = now;
        if !down.place.queued {
            down.place.queued = true;
            let (role, idle) = (down.role, down.place.idle);
            self.of(role).queue.push(key.pack(), idle);
        }
    }

    /// The connection of a listener that is to go first; none if all have a call in flight.
    pub(crate) fn idlest(&mut self, role: Role, conns: &mut Arena<Conn>) -> Option<ConnKey> {
        let key = self.of(role).queue.pop(|key| standing(conns, key))?;
        Some(Key::unpack(key))
    }

    /// Whether it is time again to log that a listener is full.
    pub(crate) fn may_log(&mut self, role: Role, now: Instant) -> bool {
        let logged = &mut self.of(role).logged;
        let may = logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_EVERY);
        if may {
            *logged = Some(now);
        }
        may
    }

    fn of(&mut self, role: Role) -> &mut Listening {
        match role {
            Role::Outbound => &mut self.outbound,
            Role::Inbound => &mut self.inbound,
        }
    }
}

/// What the queue is told of a connection. A busy one loses its entry until its last call ends.
fn standing(conns: &mut Arena<Conn>, key: u64) -> Standing {
    let Some(conn) = conns.get_mut(Key::unpack(key)) else {
        return Standing::Gone;
    };
    let busy = !conn.calls.is_empty();
    let Some(down) = conn.down_mut() else {
        return Standing::Gone;
    };
    if busy {
        down.place.queued = false;
        return Standing::Busy;
    }
    Standing::Idle(down.place.idle)
}
