//! Ends of connections: lost, faulty and idle ones, and those whose handling panics. Every call of the connection is
//! ended or retried.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use heddle_h2::{ConnectionError, ErrorCode, Fields};

use rustc_hash::FxHashSet;

use super::owner::Exchange;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// A connection is lost: nothing more can be read or written.
    pub(crate) fn lose(&mut self, key: ConnKey, why: &str) {
        let Some(mut conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.admission.buffers.forget_conn(conn.buffered());
        let calls = conn.take_calls();
        let Some(opened) = conn.opened() else {
            self.count(Counter::ClosedDownstream);
            for call in calls {
                self.on_caller_gone(call);
            }
            return;
        };
        self.count(Counter::ClosedUpstream);
        let goaway = opened.goaway();
        // A GOAWAY with an error, not only a drain.
        let fault = goaway.filter(|code| *code != ErrorCode::NO_ERROR);
        let with_fault = fault.map(|code| format!("{why}, and said GOAWAY with {code}"));
        let why = with_fault.as_deref().unwrap_or(why);
        let drained = goaway == Some(ErrorCode::NO_ERROR);
        self.on_upstream_lost(key, &mut conn, why);
        for call in calls {
            self.on_connection_lost(call, key, why, drained);
        }
    }

    /// The peer violated HTTP/2; the GOAWAY to it is already in the output.
    pub(crate) fn on_protocol_error(&mut self, key: ConnKey, error: ConnectionError) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return;
        }
        let peer = conn.peer();
        match error.code {
            ErrorCode::ENHANCE_YOUR_CALM => self.metrics.counters.add(Counter::BoundFloods),
            ErrorCode::SETTINGS_TIMEOUT => self.metrics.counters.add(Counter::BoundHandshake),
            _ => {}
        }
        if conn.opened().is_some_and(|opened| !opened.is_ready()) {
            self.count(Counter::ProtocolErrorsUpstream);
            return self.open_failed(key, &format!("it broke HTTP/2: {error}"), false);
        }
        let calls = conn.take_calls();
        let pool = conn.pool();
        tracing::debug!(%peer, %error, "closing a connection that broke HTTP/2");
        self.begin_close(key);
        match pool {
            None => {
                self.count(Counter::ProtocolErrorsDownstream);
                for call in calls {
                    self.on_caller_gone(call);
                }
            }
            Some(pool) => {
                self.count(Counter::ProtocolErrorsUpstream);
                self.leave_pool(pool, key);
                for call in calls {
                    self.on_server_broke(call, key, &error.to_string());
                }
            }
        }
    }

    /// Answers HTTP/1.x and closes the connection.
    pub(crate) fn refuse_http1(&mut self, key: ConnKey) {
        self.count(Counter::Http1Refused);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.refuse_http1(self.now);
        }
        self.rearm(key);
    }

    /// A connection's timer is due.
    pub(crate) fn on_conn_timer(&mut self, key: ConnKey) {
        let (now, times) = (self.now, self.times());
        if !self.conns.on_timer(key, now, times) {
            return self.rearm(key);
        }
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.is_ending() {
            return self.lose(key, "it was not closed in time");
        }
        conn.end_lingering(now);
        if let Err(error) = conn.check_protocol(now) {
            self.count(Counter::BoundHandshake);
            self.on_protocol_error(key, error);
            return self.rearm(key);
        }
        self.on_upstream_timer(key);
        self.on_downstream_timer(key);
        self.mark_dirty(key);
        self.rearm(key);
    }

    /// Runs `work` that belongs to no connection; if it panics, the rest of the turn continues.
    pub(crate) fn contain(&mut self, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_err() {
            self.count(Counter::Panics);
        }
    }

    /// Runs `work` for a call; if it panics, its caller's connection is closed.
    pub(crate) fn guard_call(&mut self, call: CallKey, work: impl FnOnce(&mut Self)) {
        if let Some(conn) = self.calls.get(call).map(|call| call.down.conn) {
            self.guard(conn, work);
        }
    }

    /// Runs `work` for a connection; if it panics, only that connection is closed.
    pub(crate) fn guard(&mut self, key: ConnKey, work: impl FnOnce(&mut Self)) {
        if catch_unwind(AssertUnwindSafe(|| work(self))).is_ok() {
            return;
        }
        self.count(Counter::Panics);
        // `work` may have taken the buffer and not returned it.
        self.fields = Fields::new();
        let closed = catch_unwind(AssertUnwindSafe(|| {
            self.lose(key, "handling it failed inside the proxy");
        }));
        if closed.is_err() {
            tracing::error!("closing a connection after a panic panicked; it is dropped");
            if let Some(conn) = self.conns.remove(key, &mut self.timers) {
                self.admission.buffers.forget_conn(conn.buffered());
            }
        }
    }

    /// Sends a drain's GOAWAY on an accepted connection.
    pub(crate) fn send_goaway(&mut self, key: ConnKey) {
        let now = self.now;
        let conn = self.conns.get_mut(key);
        if conn.is_some_and(|conn| conn.begin_drain(now)) {
            self.mark_dirty(key);
        }
    }

    /// After a panic outside of any connection: all connections and pools are checked again.
    pub(crate) fn recover(&mut self, after: Duration) {
        self.count(Counter::Panics);
        self.fields = Fields::new();
        self.conns.mark_all();
        let at = self.now + after;
        self.pools.recover(&mut self.timers, at);
    }

    /// Removes endpoints that no table names any more, and closes connections that only they used.
    pub(crate) fn sweep_upstream(&mut self) {
        if self.pools.is_swept() {
            return;
        }
        let table = self.table();
        let endpoints = table.services().flat_map(|s| &s.endpoints.endpoints);
        let known: FxHashSet<u64> = endpoints.map(|e| e.uid).collect();
        for conn in self.pools.sweep(&known, &self.conns) {
            self.retire(conn);
        }
        self.pools.end_sweep(&known, &mut self.timers);
        self.passive.retain(|uid| known.contains(&uid));
        self.services.retain(|name| table.service(name).is_some());
    }
}
