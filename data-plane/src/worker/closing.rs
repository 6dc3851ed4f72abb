//! Ends of connections and of the worker's own life: broken and wrong connections, connection timers, drain.
//! Every call on a connection that ends is told here; none is forgotten.

use std::time::Duration;

use heddle_h2::{ConnectionError, ErrorCode};
use heddle_proto::Reason;

use super::state::Worker;
use crate::failure::Failure;
use crate::keys::ConnKey;
use crate::observe::Counter;
use crate::timers::Timer;

/// How often it is looked whether a drain is done, when no event tells.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

impl Worker {
    /// A connection is gone: nothing more can be read or written.
    pub(crate) fn lose(&mut self, key: ConnKey, why: &str) {
        let Some(mut conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.forget_machine(conn.machine_bytes());
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
        // It said more than that it drains.
        let fault = goaway.filter(|code| *code != ErrorCode::NO_ERROR);
        let with_fault = fault.map(|code| format!("{why}, and said GOAWAY with {code}"));
        let why = with_fault.as_deref().unwrap_or(why);
        let drained = goaway == Some(ErrorCode::NO_ERROR);
        self.on_upstream_lost(key, &mut conn, why);
        for call in calls {
            self.on_connection_lost(call, key, why, drained);
        }
    }

    /// The peer broke HTTP/2: its GOAWAY is in the output.
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

    /// Answers HTTP/1.x and closes.
    pub(crate) fn refuse_http1(&mut self, key: ConnKey) {
        self.count(Counter::Http1Refused);
        if let Some(conn) = self.conns.get_mut(key) {
            conn.refuse_http1(self.now);
        }
        self.rearm(key);
    }

    /// Something is due on a connection.
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

    /// Stops accepting, says goodbye on every connection and lets calls finish.
    pub(crate) fn begin_drain(&mut self) {
        if self.draining.is_some() {
            return;
        }
        self.close_listeners();
        let over = self.now + self.options().drain_timeout;
        self.draining = Some(over);
        self.timers.set(over, Timer::DrainOver);
        for key in self.conns.keys() {
            self.say_goodbye(key);
        }
    }

    /// GOAWAY on a downstream connection.
    pub(crate) fn say_goodbye(&mut self, key: ConnKey) {
        let now = self.now;
        let conn = self.conns.get_mut(key);
        if conn.is_some_and(|conn| conn.begin_drain(now)) {
            self.mark_dirty(key);
        }
    }

    /// Whether no call is left and none can come any more.
    pub(crate) fn check_drained(&mut self) {
        if self.drained {
            return;
        }
        let now = self.now;
        if self.calls.len() == 0 && self.conns.iter().all(|(_, conn)| conn.is_drained(now)) {
            self.drained = true;
            self.shared.drained.send_modify(|count| *count += 1);
        } else if !self.drain_look {
            self.drain_look = true;
            self.timers.set(self.now + DRAIN_LOOK, Timer::Drain);
        }
    }

    /// The drain timeout is over: what is left ends with DRAINING.
    pub(crate) fn cut_drained(&mut self) {
        let node = self.options().node.clone();
        let text = format!("node {node} is stopping, and its drain timeout has passed");
        for call in self.calls.keys() {
            self.fail(call, &Failure::new(Reason::Draining, text.clone()));
            // Whoever does not take its last bytes by now does not get them.
            self.abandon(call);
        }
        for key in self.conns.keys() {
            if let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.is_accepted()) {
                conn.goodbye(ErrorCode::NO_ERROR, b"drained");
                self.begin_close(key);
            }
        }
    }
}
