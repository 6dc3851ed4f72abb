//! The connections to one address of one worker: few and full ones while they do, up to the bound as long as calls wait
//! for a stream. Which calls wait and who may be served is known here; when to dial is decided by the owner (`pools`).

use std::time::{Duration, Instant};

use super::account::Streams;
use super::dial::Dial;
use super::waiting::{Anybody, Eligible, Waiting};
use crate::keys::{CallKey, ConnKey};
use crate::timers::TimerId;
use heddle_pacing::Backoff;

/// How long an address rests after its first failed dial, and at the most.
const FIRST_REDIAL: Duration = Duration::from_millis(50);
const LAST_REDIAL: Duration = Duration::from_secs(3);
/// What HTTP/2 recommends a peer to allow at least (RFC 9113 §6.5.2), until it has said so.
const UNKNOWN_LIMIT: u32 = 100;

#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) dial: Dial,
    pub(super) conns: Vec<ConnKey>,
    /// Calls that wait for a stream.
    pub(super) waiting: Waiting,
    /// Streams in use, by whose calls.
    pub(super) streams: Streams,
    /// How many streams the peer allows on a connection, as it said last.
    pub(super) limit: Option<u32>,
    /// Connections that are not ready yet.
    pub(super) opening: usize,
    pub(super) backoff: Backoff,
    /// Not before this.
    pub(super) retry_at: Option<Instant>,
    pub(super) timer: Option<TimerId>,
    /// Endpoints that are reached here.
    pub(super) uids: Vec<u64>,
    /// Why the last dial failed.
    pub(super) last_error: Option<String>,
}

impl Pool {
    pub(super) fn new(dial: Dial) -> Self {
        Self {
            streams: Streams::new(dial.is_link()),
            limit: None,
            dial,
            conns: Vec::new(),
            waiting: Waiting::default(),
            opening: 0,
            backoff: Backoff::new(FIRST_REDIAL, LAST_REDIAL),
            retry_at: None,
            timer: None,
            uids: Vec::new(),
            last_error: None,
        }
    }

    pub(crate) fn dial(&self) -> &Dial {
        &self.dial
    }

    /// Why the last dial failed.
    pub(crate) fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// How many streams the peer allows on a connection, as it said last.
    pub(crate) fn limit(&self) -> Option<u32> {
        self.limit
    }

    pub(crate) fn connections(&self) -> &[ConnKey] {
        &self.conns
    }

    /// How many connections are ready.
    pub(crate) fn ready(&self) -> usize {
        self.conns.len().saturating_sub(self.opening)
    }

    /// Whether no connection stands or is being opened, and the next dial is not before `soon`.
    pub(crate) fn is_unreachable_for_long(&self, soon: Instant) -> bool {
        self.is_unreachable() && self.opening == 0 && self.retry_at.is_some_and(|at| at > soon)
    }

    /// Whether no endpoint is reached here any more and nobody waits.
    pub(super) fn is_unused(&self) -> bool {
        self.uids.is_empty() && self.waiting.is_empty() && self.dial != Dial::Internal
    }

    /// A connection has become ready: the address is as good as new.
    pub(super) fn on_ready(&mut self) {
        self.opening = self.opening.saturating_sub(1);
        self.backoff.reset();
        self.retry_at = None;
        self.last_error = None;
    }

    /// Takes out the next of all that wait, whoever it is.
    pub(super) fn next_of_all(&mut self) -> Option<CallKey> {
        self.waiting.next(&Anybody)
    }

    /// The last dial failed, and no connection is left.
    pub(crate) fn is_unreachable(&self) -> bool {
        !self.has_ready() && self.retry_at.is_some()
    }

    /// Whether there is a connection that has been opened.
    pub(crate) fn has_ready(&self) -> bool {
        self.conns.len() > self.opening
    }

    /// How many streams all connections may carry, if there are as many as there may be.
    pub(crate) fn capacity(&self, most_connections: usize) -> usize {
        let limit = usize::try_from(self.limit.unwrap_or(UNKNOWN_LIMIT)).unwrap_or(usize::MAX);
        most_connections.max(1).saturating_mul(limit)
    }

    /// How many connections may be under way at once for the calls that wait.
    pub(super) fn wanted(&self) -> usize {
        match self.limit {
            // Whether one is enough is known once it has been opened.
            _ if self.conns.len() == self.opening => 1,
            None => 1,
            // Its peer wants no calls, and says so when that changes.
            Some(0) => 0,
            Some(limit) => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                self.waiting.len().div_ceil(limit)
            }
        }
    }
}

/// Whoever is within its share of a pool's streams.
struct WithinShare<'p> {
    streams: &'p Streams,
    capacity: usize,
    ample: bool,
}

impl Eligible for WithinShare<'_> {
    fn service(&self, service: u32) -> bool {
        self.ample || self.streams.admits_service(service, self.capacity)
    }

    fn caller(&self, caller: ConnKey) -> bool {
        self.ample || self.streams.admits_caller(caller, self.capacity)
    }
}

impl Pool {
    fn within_share(streams: &Streams, capacity: usize) -> WithinShare<'_> {
        WithinShare {
            streams,
            capacity,
            ample: streams.is_ample(capacity),
        }
    }

    /// Whether a call waits that another connection would help: not one that its share holds back.
    pub(super) fn has_eligible(&self, most: usize) -> bool {
        let who = Self::within_share(&self.streams, self.capacity(most));
        self.waiting.has_eligible(&who)
    }

    pub(super) fn next_eligible(&mut self, most: usize) -> Option<CallKey> {
        let capacity = self.capacity(most);
        let who = Self::within_share(&self.streams, capacity);
        self.waiting.next(&who)
    }
}
