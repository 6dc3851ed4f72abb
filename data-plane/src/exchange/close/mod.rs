//! Ends of connections: lost, faulty and idle ones. Every call of the connection is ended or retried.

mod panics;

use heddle_h2::{ConnectionError, ErrorCode};
use heddle_proto::Reason;

use crate::balance::passive::End;
use crate::connection::Conn;
use crate::exchange::finish::caller_end::CallerEnd;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// A connection is lost: nothing more can be read or written.
    pub(in crate::exchange) fn lose(&mut self, key: ConnKey, why: &str) {
        let Some(mut conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.admission.discharge_conn(conn.buffered());
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
    pub(in crate::exchange) fn on_protocol_error(&mut self, key: ConnKey, error: ConnectionError) {
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
    pub(in crate::exchange) fn refuse_http1(&mut self, key: ConnKey) {
        self.count(Counter::Http1Refused);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.refuse_http1(self.now);
        }
        self.rearm(key);
    }

    /// A connection was lost: its pool dials again if needed, and the agent is notified.
    fn on_upstream_lost(&mut self, key: ConnKey, conn: &mut Conn, why: &str) {
        let charged = conn.uncharge_cancels();
        let broken = !conn.is_ending();
        let Some(opened) = conn.opened() else { return };
        let pool_key = opened.pool();
        self.leave_pool(pool_key, key);
        for account in charged {
            self.pools.give_stream(pool_key, account);
        }
        if !opened.is_ready() {
            // It was never ready, so the waiting calls must be notified. The connection has been removed already.
            return self.connect_failed(pool_key, why, false);
        }
        let report = broken && !opened.is_leaving();
        if report {
            self.pools.report_lost(pool_key);
        }
        self.pools.mark_runnable(pool_key);
    }

    /// The server violated HTTP/2 while a call was on the connection.
    fn on_server_broke(&mut self, call: CallKey, conn: ConnKey, error: &str) {
        let Some(found) = self.calls.get(call) else {
            return;
        };
        let text = format!("{} violated HTTP/2: {error}", found.peer_name());
        self.unanswered(call, End::Lost);
        self.attempt_failed(call, conn, &Failure::new(Reason::ProtocolError, text));
    }
}
