//! Counts the connections that each listener of a worker has accepted, and finds the one to close when there are too many:
//! the idlest. On inbound, connections that have not said Hello go before links, even with calls in flight, so that they
//! cannot lock out other nodes. Takes connections and ends of calls; gives the connection to close. Closes nothing itself.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use heddle_listen::{Activity, Idle, IdleQueue};

use super::conn::{Conn, Side};
use crate::arena::{Arena, Key};
use crate::caller::Role;
use crate::keys::{ConnKey, ConnKind};

/// Interval of the log message that a listener is full.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// Up to this many entries of strangers are kept unchecked.
const LEAST_PRUNED: usize = 64;

/// State of one connection.
#[derive(Debug)]
pub(super) struct IdleState {
    idle: Idle,
    /// Deadline for its first request.
    first_request_by: Instant,
    /// It has an entry in the queue.
    queued: bool,
    /// Its Hello was accepted.
    is_link: bool,
}

impl IdleState {
    pub(super) fn new(now: Instant, first_request_by: Instant) -> Self {
        Self {
            idle: idle_from(now),
            first_request_by,
            queued: true,
            is_link: false,
        }
    }

    /// Its Hello was accepted: it is another proxy's.
    pub(super) fn on_hello(&mut self) {
        self.is_link = true;
    }

    /// A request has arrived.
    pub(super) fn on_request(&mut self) {
        self.idle.called = true;
    }

    /// The deadline for the first request, until it arrives.
    pub(super) fn first_request_by(&self) -> Option<Instant> {
        (!self.idle.called).then_some(self.first_request_by)
    }
}

fn idle_from(now: Instant) -> Idle {
    Idle {
        called: false,
        since: now,
    }
}

/// The accepted connections of both listeners.
#[derive(Debug, Default)]
pub(super) struct ByListener {
    outbound: OfListener,
    inbound: OfListener,
}

#[derive(Debug, Default)]
struct OfListener {
    open: usize,
    queue: IdleQueue<u64>,
    /// On inbound, in order of arrival: connections that had not said Hello when they were last looked at. Some may be
    /// closed, or links by now.
    strangers: VecDeque<ConnKey>,
    logged: Option<Instant>,
}

impl ByListener {
    /// Number of a listener's connections.
    pub(super) fn open(&self, role: Role) -> usize {
        match role {
            Role::Outbound => self.outbound.open,
            Role::Inbound => self.inbound.open,
        }
    }

    pub(super) fn add(
        &mut self,
        role: Role,
        key: ConnKey,
        now: Instant,
        arena: &mut Arena<ConnKind, Conn>,
    ) {
        let of = self.of(role);
        of.open += 1;
        of.queue.push(key.pack(), idle_from(now));
        let open = of.open;
        of.queue.prune(open, |key| activity(arena, key));
        if role == Role::Inbound {
            of.strangers.push_back(key);
            if of.strangers.len() > 2 * open + LEAST_PRUNED {
                of.strangers.retain(|key| is_stranger(arena, *key));
            }
        }
    }

    pub(super) fn remove(&mut self, role: Role) {
        let of = self.of(role);
        of.open = of.open.saturating_sub(1);
    }

    /// A call of a connection has ended. It may have been the last one.
    pub(super) fn on_call_end(&mut self, key: ConnKey, conn: &mut Conn, now: Instant) {
        let Side::Accepted(accepted) = &mut conn.side else {
            return;
        };
        if !conn.calls.is_empty() {
            return;
        }
        let role = accepted.caller().role;
        let state = &mut accepted.idle;
        state.idle.since = now;
        if !state.queued {
            state.queued = true;
            self.of(role).queue.push(key.pack(), state.idle);
        }
    }

    /// The connection of a listener to close first; `None` if all have calls in flight, and on inbound all are links.
    pub(super) fn idlest(
        &mut self,
        role: Role,
        arena: &mut Arena<ConnKind, Conn>,
    ) -> Option<ConnKey> {
        let of = self.of(role);
        let idle = of.queue.pop(|key| activity(arena, key)).map(Key::unpack);
        if role == Role::Outbound || idle.is_some_and(|key| is_stranger(arena, key)) {
            return idle;
        }
        while let Some(key) = of.strangers.pop_front() {
            if !is_stranger(arena, key) {
                continue;
            }
            // The idle link stays, and keeps its place in the queue.
            if let Some(link) = idle
                && let Activity::Idle(since) = activity(arena, link.pack())
            {
                of.queue.push(link.pack(), since);
            }
            return Some(key);
        }
        idle
    }

    /// Whether to log again that a listener is full.
    pub(super) fn may_log(&mut self, role: Role, now: Instant) -> bool {
        let logged = &mut self.of(role).logged;
        let may = logged.is_none_or(|at| now.saturating_duration_since(at) >= LOG_EVERY);
        if may {
            *logged = Some(now);
        }
        may
    }

    fn of(&mut self, role: Role) -> &mut OfListener {
        match role {
            Role::Outbound => &mut self.outbound,
            Role::Inbound => &mut self.inbound,
        }
    }
}

/// Whether an inbound connection is open and no link yet.
fn is_stranger(arena: &Arena<ConnKind, Conn>, key: ConnKey) -> bool {
    let accepted = arena.get(key).and_then(Conn::accepted);
    accepted.is_some_and(|accepted| !accepted.idle.is_link)
}

/// State of a connection for the queue. A busy one loses its entry until its last call ends.
fn activity(arena: &mut Arena<ConnKind, Conn>, key: u64) -> Activity {
    let Some(conn) = arena.get_mut(Key::unpack(key)) else {
        return Activity::Gone;
    };
    let busy = !conn.calls.is_empty();
    let Side::Accepted(accepted) = &mut conn.side else {
        return Activity::Gone;
    };
    if busy {
        accepted.idle.queued = false;
        return Activity::Busy;
    }
    Activity::Idle(accepted.idle.idle)
}
