//! The end of a connection (RFC 9113 §6.8): a graceful one, by this side, or by an error of the peer.
//! Live streams finish, or are dropped.

use std::time::{Duration, Instant};

use crate::connection::{Connection, DRAIN_PING};
use crate::error::{ConnectionError, ErrorCode};
use crate::frame::MAX_31;
use crate::message::Block;

/// How long the second GOAWAY of a drain waits for a client that does not answer the PING.
const DRAIN_NOTICE: Duration = Duration::from_secs(1);
/// Debug data of a GOAWAY is truncated to this length.
const DEBUG_BYTES: usize = 256;

impl Connection {
    /// Starts a graceful shutdown (§6.8). A server sends GOAWAY 2^31-1 and a PING, accepts streams
    /// until the client has seen them, and then sends the last accepted stream id. A client only
    /// opens no more streams. Live streams finish.
    pub fn drain(&mut self, now: Instant) {
        self.now = now;
        if self.goaway_sent.is_some() || self.failed.is_some() {
            return;
        }
        if self.is_server {
            self.send_goaway(MAX_31, ErrorCode::NO_ERROR, &[]);
            self.output.ping(DRAIN_PING);
            self.drain_until = Some(now + DRAIN_NOTICE);
        } else {
            self.send_goaway(0, ErrorCode::NO_ERROR, &[]);
        }
    }

    /// The client has seen the first GOAWAY of a drain: the streams so far are the last.
    pub(crate) fn finish_drain(&mut self) {
        if self.drain_until.take().is_some() {
            self.send_goaway(self.last_id, ErrorCode::NO_ERROR, &[]);
        }
    }

    /// Sends GOAWAY now. With NO_ERROR live streams may still finish; with any other code the
    /// connection is over, and the application flushes the output and closes.
    pub fn close(&mut self, code: ErrorCode, debug: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        self.drain_until = None;
        self.send_goaway(
            self.last_id,
            code,
            debug.get(..DEBUG_BYTES).unwrap_or(debug),
        );
        if code != ErrorCode::NO_ERROR {
            self.failed = Some(ConnectionError::new(code, "closed by this side"));
            self.drop_all();
        }
    }

    /// The peer caused a connection error: send GOAWAY, and drop all streams.
    pub(crate) fn fail(&mut self, error: ConnectionError) {
        self.drain_until = None;
        self.send_goaway(self.last_id, error.code, error.reason.as_bytes());
        self.failed = Some(error);
        self.drop_all();
    }

    fn send_goaway(&mut self, last: u32, code: ErrorCode, debug: &[u8]) {
        // The last id may decrease, never increase (§6.8).
        let last = self.goaway_sent.map_or(last, |sent| sent.min(last));
        self.goaway_sent = Some(last);
        self.output.goaway(last, code, debug);
    }

    fn drop_all(&mut self) {
        self.streams.clear();
        self.pool.clear();
        self.reports.clear();
        self.pending_bytes = 0;
        self.unprocessed_above = None;
        self.partial = Vec::new();
        self.block = Block::default();
    }
}
