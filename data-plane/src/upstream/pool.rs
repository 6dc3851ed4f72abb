//! One worker's connections to one address: as few as can carry the calls, and up to the limit while calls wait for a
//! stream. This file has the waiting calls and decides which of them may be served; `dialing` decides when to dial.

use std::time::{Duration, Instant};

use super::dial::Dial;
use super::stream_shares::Streams;
use super::waiting::{AdmitAll, Eligible, Waiting};
use crate::caller::CallerKey;
use crate::keys::{CallKey, ConnKey};
use crate::timers::TimerId;
use heddle_pacing::Backoff;

/// First and longest time between dials of an address that fails.
const FIRST_REDIAL: Duration = Duration::from_millis(50);
const LAST_REDIAL: Duration = Duration::from_secs(3);
/// Assumed limit of streams until the peer's settings arrive: the least that HTTP/2 recommends (RFC 9113 §6.5.2).
const UNKNOWN_LIMIT: u32 = 100;

#[derive(Debug)]
pub(crate) struct Pool {
    pub(super) dial: Dial,
    pub(super) conns: Vec<ConnKey>,
    /// Calls that wait for a stream.
    pub(super) waiting: Waiting,
    /// Streams in use, by account.
    pub(super) streams: Streams,
    /// The peer's latest limit of streams on a connection.
    pub(super) limit: Option<u32>,
    /// Connections that are not ready yet.
    pub(super) opening: usize,
    pub(super) backoff: Backoff,
    /// Earliest time of the next dial.
    pub(super) retry_at: Option<Instant>,
    pub(super) timer: Option<TimerId>,
    /// Endpoints at this address.
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

    /// The peer's latest limit of streams on a connection.
    pub(crate) fn limit(&self) -> Option<u32> {
        self.limit
    }

    pub(crate) fn connections(&self) -> &[ConnKey] {
        &self.conns
    }

    /// Number of ready connections.
    pub(crate) fn ready(&self) -> usize {
        self.conns.len().saturating_sub(self.opening)
    }

    /// Whether there is no connection, none is being opened, and the next dial is later than `soon`.
    pub(crate) fn is_unreachable_for_long(&self, soon: Instant) -> bool {
        self.is_unreachable() && self.opening == 0 && self.retry_at.is_some_and(|at| at > soon)
    }

    /// Whether no endpoint uses this address any more and no call waits.
    pub(super) fn is_unused(&self) -> bool {
        self.uids.is_empty() && self.waiting.is_empty() && self.dial != Dial::Internal
    }

    /// A connection has become ready: earlier failures no longer count.
    pub(super) fn on_ready(&mut self) {
        self.opening = self.opening.saturating_sub(1);
        self.backoff.reset();
        self.retry_at = None;
        self.last_error = None;
    }

    /// Takes the next waiting call, whatever its share.
    pub(super) fn next_of_all(&mut self) -> Option<CallKey> {
        self.waiting.next(&AdmitAll)
    }

    /// Whether the last dial failed and no connection is left.
    pub(crate) fn is_unreachable(&self) -> bool {
        !self.has_ready() && self.retry_at.is_some()
    }

    /// Whether there is a ready connection.
    pub(crate) fn has_ready(&self) -> bool {
        self.conns.len() > self.opening
    }

    /// How many streams the largest allowed number of connections can carry.
    pub(crate) fn capacity(&self, most_connections: usize) -> usize {
        let limit = usize::try_from(self.limit.unwrap_or(UNKNOWN_LIMIT)).unwrap_or(usize::MAX);
        most_connections.max(1).saturating_mul(limit)
    }

    /// How many connections may be in the process of opening for the waiting calls.
    pub(super) fn wanted(&self) -> usize {
        match self.limit {
            // Whether one is enough is known only once it has been opened.
            _ if self.conns.len() == self.opening => 1,
            None => 1,
            // The peer accepts no calls, and sends new settings when that changes.
            Some(0) => 0,
            Some(limit) => {
                let limit = usize::try_from(limit).unwrap_or(usize::MAX);
                self.waiting.len().div_ceil(limit)
            }
        }
    }
}

/// Those who are within their share of a pool's streams.
struct WithinShare<'p> {
    streams: &'p Streams,
    capacity: usize,
    ample: bool,
}

impl Eligible for WithinShare<'_> {
    fn service(&self, service: u32) -> bool {
        self.ample || self.streams.admits_service(service, self.capacity)
    }

    fn caller(&self, caller: CallerKey) -> bool {
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

    /// Whether a call waits for which another connection would help, so not one over its share.
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
