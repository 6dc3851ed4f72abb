//! Ends of connections: lost, faulty and idle ones. Every call of the connection is ended or retried.

use heddle_h2::{ConnectionError, ErrorCode};
use rustc_hash::FxHashSet;

use super::caller_input::CallerEnd;
use super::owner::Exchange;
use crate::keys::ConnKey;
use crate::observe::Counter;

impl Exchange {
    /// A connection is lost: nothing more can be read or written.
    pub(super) fn lose(&mut self, key: ConnKey, why: &str) {
        let Some(mut conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.admission.buffers.forget_conn(conn.buffered());
        let calls = conn.take_calls();
        let Some(opened) = conn.opened() else {
            self.count(Counter::ClosedDownstream);
            for call in calls {
                self.on_caller_end(call, CallerEnd::Cancelled);
            }
            return;
        };
        self.count(Counter::ClosedUpstream);
        let goaway = opened.goaway();
        // A GOAWAY with an error, not only a drain.
        let fault = goaway.filter(|code| *code != ErrorCode::NO_ERROR);
        let with_fault = fault.map(|code| format!("{why}, and sent GOAWAY with {code}"));
        let why = with_fault.as_deref().unwrap_or(why);
        let drained = goaway == Some(ErrorCode::NO_ERROR);
        self.on_upstream_lost(key, &mut conn, why);
        for call in calls {
            self.on_connection_lost(call, key, why, drained);
        }
    }

    /// The peer violated HTTP/2; the GOAWAY to it is already in the output.
    pub(super) fn on_protocol_error(&mut self, key: ConnKey, error: ConnectionError) {
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
            return self.open_failed(key, &format!("it violated HTTP/2: {error}"), false);
        }
        let calls = conn.take_calls();
        let pool = conn.pool();
        tracing::debug!(%peer, %error, "closing a connection that violated HTTP/2");
        self.begin_close(key);
        match pool {
            None => {
                self.count(Counter::ProtocolErrorsDownstream);
                for call in calls {
                    self.on_caller_end(call, CallerEnd::Cancelled);
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
    pub(super) fn refuse_http1(&mut self, key: ConnKey) {
        self.count(Counter::Http1Refused);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.refuse_http1(self.now);
        }
        self.rearm(key);
    }

    /// A connection's timer is due.
    pub(super) fn on_conn_timer(&mut self, key: ConnKey) {
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

    /// Removes endpoints that no table names any more, and closes connections that only they used.
    pub(super) fn sweep_upstream(&mut self) {
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
