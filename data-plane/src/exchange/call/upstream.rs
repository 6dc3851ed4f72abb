//! The endpoint of a call, the stream of its current attempt there, and what is queued for the server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::StreamId;

use super::queued::Queued;
use crate::balance::Endpoint;
use crate::keys::{ConnKey, PoolKey};

/// The stream of an attempt. A plain value: changes of the current attempt are made by methods of [`Upstream`].
#[derive(Clone, Copy, Debug)]
pub(in crate::exchange) struct Attempt {
    pub(in crate::exchange) conn: ConnKey,
    pub(in crate::exchange) stream: StreamId,
    /// Index in the list of calls of the connection.
    pub(in crate::exchange) slot: usize,
    pub(in crate::exchange) started: Instant,
    /// Request bytes that this attempt has written.
    pub(in crate::exchange) written: usize,
    pub(in crate::exchange) pool: PoolKey,
    /// The stream is charged to the call's account in that pool.
    pub(in crate::exchange) charged: bool,
    /// The peer is another proxy.
    pub(in crate::exchange) link: bool,
}

#[derive(Debug)]
pub(in crate::exchange) struct Upstream {
    /// Endpoint of the current or last attempt.
    endpoint: Option<Arc<Endpoint>>,
    /// The call is counted in the endpoint's load.
    in_load: bool,
    attempt: Option<Attempt>,
    /// Bytes queued for the server in the HTTP/2 state machine of its connection.
    queued: Queued,
}

impl Upstream {
    #[inline]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            endpoint: None,
            in_load: false,
            attempt: None,
            queued: Queued::new(now),
        }
    }

    // ---- endpoint

    #[inline]
    pub(in crate::exchange) fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.endpoint.as_ref()
    }

    /// The endpoint was chosen, and the call is counted in its load.
    #[inline]
    pub(in crate::exchange) fn choose(&mut self, endpoint: Arc<Endpoint>) {
        self.endpoint = Some(endpoint);
        self.in_load = true;
    }

    /// The call is no longer counted in the load of the returned endpoint.
    #[inline]
    pub(in crate::exchange) fn leave_load(&mut self) -> Option<u64> {
        let counted = std::mem::take(&mut self.in_load);
        let endpoint = self.endpoint.as_ref().filter(|_| counted)?;
        Some(endpoint.uid)
    }

    pub(in crate::exchange) fn leave_endpoint(&mut self) -> Option<u64> {
        self.endpoint.take().map(|endpoint| endpoint.uid)
    }

    // ---- attempt

    #[inline]
    pub(super) fn begin(&mut self, attempt: Attempt) {
        self.attempt = Some(attempt);
    }

    #[inline]
    pub(in crate::exchange) fn attempt(&self) -> Option<Attempt> {
        self.attempt
    }

    /// Whether this is the stream of the current attempt.
    #[inline]
    pub(in crate::exchange) fn is_on(&self, conn: ConnKey, stream: StreamId) -> bool {
        let attempt = self.attempt.as_ref();
        attempt.is_some_and(|attempt| attempt.conn == conn && attempt.stream == stream)
    }

    /// Ends the attempt, and discards what is queued for the server. Returns the attempt and whether anything was queued.
    #[inline]
    pub(in crate::exchange) fn end(&mut self) -> (Option<Attempt>, bool) {
        let queued = !self.queued.is_empty();
        self.queued.clear();
        (self.attempt.take(), queued)
    }

    /// Its stream is no longer charged in the pool; true if it was.
    pub(in crate::exchange) fn uncharge(&mut self) -> bool {
        let attempt = self.attempt.as_mut();
        attempt.is_some_and(|attempt| std::mem::take(&mut attempt.charged))
    }

    /// The call has another index in the list of calls of the connection.
    #[inline]
    pub(in crate::exchange) fn move_to_slot(&mut self, slot: usize) {
        if let Some(attempt) = &mut self.attempt {
            attempt.slot = slot;
        }
    }

    /// Request bytes that the current attempt has written.
    #[inline]
    pub(in crate::exchange) fn written(&self) -> usize {
        self.attempt.as_ref().map_or(0, |attempt| attempt.written)
    }

    #[inline]
    pub(in crate::exchange) fn add_written(&mut self, bytes: usize) {
        if let Some(attempt) = &mut self.attempt {
            attempt.written += bytes;
        }
    }

    // ---- what is queued for the server

    #[inline]
    pub(in crate::exchange) fn queue(&mut self, bytes: usize, now: Instant) {
        self.queued.add(bytes, now);
    }

    /// The server took queued bytes.
    #[inline]
    pub(in crate::exchange) fn take_queued(&mut self, bytes: usize, now: Instant) {
        self.queued.take(bytes, now);
    }

    #[inline]
    pub(in crate::exchange) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    #[inline]
    pub(in crate::exchange) fn queued_bytes(&self) -> usize {
        self.queued.bytes()
    }

    /// Whether the server takes too little.
    pub(in crate::exchange) fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        self.queued.is_stalled(now, limit)
    }
}
