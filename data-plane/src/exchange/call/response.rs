//! The response of a call: how much of it was sent to the caller, what of it is still queued, and the outcome that it
//! gives.

use std::time::{Duration, Instant};

use heddle_proto::Reason;

use super::queued::Queued;
use crate::observe::outcome::grpc_status_of_http;

/// gRPC's CANCELLED.
pub(in crate::exchange) const CANCELLED: u8 = 1;
/// gRPC's UNKNOWN: a gRPC response without a status.
const UNKNOWN: u8 = 2;

/// What has been sent of the response to the caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum ResponseProgress {
    Nothing,
    Headers,
    All,
}

#[derive(Debug)]
pub(in crate::exchange) struct Response {
    progress: ResponseProgress,
    /// Bytes queued for the caller in the HTTP/2 state machine of its connection.
    queued: Queued,
    http_status: u16,
    /// Set by the response or by a failure.
    status: Option<u8>,
    reason: Option<Reason>,
}

impl Response {
    #[inline]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            progress: ResponseProgress::Nothing,
            queued: Queued::new(now),
            http_status: 0,
            status: None,
            reason: None,
        }
    }

    // ---- progress

    #[inline]
    pub(in crate::exchange) fn progress(&self) -> ResponseProgress {
        self.progress
    }

    /// Whether the caller has been sent anything but 1xx.
    #[inline]
    pub(in crate::exchange) fn has_begun(&self) -> bool {
        self.progress != ResponseProgress::Nothing
    }

    /// Whether its headers have been sent, and more may follow.
    #[inline]
    pub(in crate::exchange) fn is_open(&self) -> bool {
        self.progress == ResponseProgress::Headers
    }

    /// Whether nothing can be added to it.
    #[inline]
    pub(in crate::exchange) fn is_complete(&self) -> bool {
        self.progress == ResponseProgress::All
    }

    /// Its headers have arrived, which are all of it if there is a status.
    #[inline]
    pub(in crate::exchange) fn receive_headers(
        &mut self,
        http_status: u16,
        status: Option<u8>,
        reason: Option<Reason>,
    ) {
        self.http_status = http_status;
        if status.is_some() {
            self.status = status;
        }
        self.reason = reason;
    }

    #[inline]
    pub(in crate::exchange) fn receive_trailers(
        &mut self,
        status: Option<u8>,
        reason: Option<Reason>,
    ) {
        (self.status, self.reason) = (status, reason);
    }

    #[inline]
    pub(in crate::exchange) fn open(&mut self) {
        self.progress = ResponseProgress::Headers;
    }

    /// All of it has been given to the caller's connection. Without grpc-status the HTTP status is used; a gRPC response
    /// with status 200 but without grpc-status is UNKNOWN.
    #[inline]
    pub(in crate::exchange) fn complete(&mut self, grpc: bool) {
        self.progress = ResponseProgress::All;
        if self.status.is_none() {
            self.status = Some(match grpc && self.http_status == 200 {
                true => UNKNOWN,
                false => grpc_status_of_http(self.http_status),
            });
        }
    }

    /// A failure of the proxy is its end.
    pub(in crate::exchange) fn complete_with(&mut self, status: u8, reason: Reason) {
        self.progress = ResponseProgress::All;
        self.set_outcome(status, Some(reason));
    }

    // ---- outcome

    pub(in crate::exchange) fn set_outcome(&mut self, status: u8, reason: Option<Reason>) {
        self.status = Some(status);
        if reason.is_some() {
            self.reason = reason;
        }
    }

    #[inline]
    pub(in crate::exchange) fn status(&self) -> Option<u8> {
        self.status
    }

    #[inline]
    pub(in crate::exchange) fn reason(&self) -> Option<Reason> {
        self.reason
    }

    // ---- what is queued for the caller

    #[inline]
    pub(in crate::exchange) fn queue(&mut self, bytes: usize, now: Instant) {
        self.queued.add(bytes, now);
    }

    /// The caller took queued bytes.
    #[inline]
    pub(in crate::exchange) fn take_queued(&mut self, bytes: usize, now: Instant) {
        self.queued.take(bytes, now);
    }

    /// Queued bytes were discarded.
    pub(in crate::exchange) fn discard_queued(&mut self, bytes: usize) {
        self.queued.discard(bytes);
    }

    /// All queued bytes were discarded.
    pub(in crate::exchange) fn clear_queued(&mut self) {
        self.queued.clear();
    }

    #[inline]
    pub(in crate::exchange) fn has_queued(&self) -> bool {
        !self.queued.is_empty()
    }

    #[inline]
    pub(super) fn queued_bytes(&self) -> usize {
        self.queued.bytes()
    }

    /// Whether the caller takes too little.
    pub(in crate::exchange) fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        self.queued.is_stalled(now, limit)
    }
}
