//! Ends of connections and of the worker's own life: broken and wrong connections, connection timers, drain.
//! Every call on a connection that ends is told here; none is forgotten.

use std::time::Duration;

use heddle_h2::{ConnectionError, ErrorCode};
use heddle_proto::Reason;

use super::conn::{ConnKey, Ending, Side, UpState};
use super::state::{Timer, Worker};
use crate::failure::Failure;
use crate::listener::http1;
use crate::observe::Counter;

/// How often it is looked whether a drain is done, when no event tells.
const DRAIN_LOOK: Duration = Duration::from_millis(20);
/// How long a connection that has shown nothing may keep a drain open: it may have been accepted a moment ago, with
/// its first call still unread.
const FIRST_BYTES: Duration = Duration::from_secs(1);

impl Worker {
    /// A connection is gone: nothing more can be read or written.
    pub(crate) fn lose(&mut self, key: ConnKey, why: &str) {
        let Some(mut conn) = self.conns.remove(key) else {
            return;
        };
        conn.transport.deregister(self.poll.registry());
        self.unset(conn.timer.map(|(_, id)| id));
        self.forget_machine(conn.machine);
        let calls = std::mem::take(&mut conn.calls);
        match &mut conn.side {
            Side::Down(down) => {
                self.downstream = self.downstream.saturating_sub(1);
                self.places.left(down.role);
                self.count(Counter::ClosedDownstream);
                for call in calls {
                    self.on_caller_gone(call);
                }
            }
            Side::Up(up) => {
                self.count(Counter::ClosedUpstream);
                let broken = conn.ending == Ending::No;
                // More than goodbye.
                let fault = up.goaway.filter(|code| *code != ErrorCode::NO_ERROR);
                let told = fault.map(|code| format!("{why}, and said GOAWAY with {code}"));
                let why = told.as_deref().unwrap_or(why);
                let drained = up.goaway == Some(ErrorCode::NO_ERROR);
                self.on_upstream_lost(key, up, broken, why);
                for call in calls {
                    self.on_connection_lost(call, key, why, drained);
                }
            }
        }
    }

    /// The peer broke HTTP/2: its GOAWAY is in the output.
    pub(crate) fn on_protocol_error(&mut self, key: ConnKey, error: ConnectionError) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        if conn.ending != Ending::No {
            return;
        }
        let peer = conn.transport.peer();
        match error.code {
            ErrorCode::ENHANCE_YOUR_CALM => self.metrics.counters.add(Counter::BoundFloods),
            ErrorCode::SETTINGS_TIMEOUT => self.metrics.counters.add(Counter::BoundHandshake),
            _ => {}
        }
        if conn
            .up()
            .is_some_and(|up| !matches!(up.state, UpState::Ready))
        {
            self.count(Counter::ProtocolErrorsUpstream);
            return self.open_failed(key, &format!("it broke HTTP/2: {error}"), false);
        }
        let calls = std::mem::take(&mut conn.calls);
        let pool = conn.up().map(|up| up.pool);
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
        let until = self.now + super::conn::CLOSE_TIME;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        // A new socket's buffer has room for it; if not, the caller sees a closed connection.
        let _ = conn.transport.write(http1::ANSWER);
        conn.transport.shutdown_write();
        conn.ending = Ending::Wait(until);
        self.rearm(key);
    }

    /// Something is due on a connection.
    pub(crate) fn on_conn_timer(&mut self, key: ConnKey) {
        let (idle, keepalive) = (
            self.options().upstream_idle,
            self.options().keepalive_timeout,
        );
        let now = self.now;
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        conn.timer = None;
        if conn.deadline(idle, keepalive).is_none_or(|at| at > now) {
            return self.rearm(key);
        }
        if conn.ending != Ending::No {
            return self.lose(key, "it was not closed in time");
        }
        while let Some((_, stream)) = conn.linger.pop_front_if(|(until, _)| *until <= now) {
            conn.h2.reset(stream, ErrorCode::NO_ERROR);
        }
        if conn.h2.deadline().is_some_and(|at| at <= now)
            && let Err(error) = conn.h2.on_deadline(now)
        {
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
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(down) = conn.down_mut() else { return };
        if !down.goodbye {
            down.goodbye = true;
            conn.h2.drain(now);
            self.mark_dirty(key);
        }
    }

    /// Whether no call is left and none can come any more.
    pub(crate) fn check_drained(&mut self) {
        if self.drained {
            return;
        }
        let now = self.now;
        let quiet = |conn: &super::conn::Conn| match conn.down() {
            None => true,
            Some(down) => {
                let said = down.goodbye && !conn.h2.is_drain_open();
                let idle = conn.h2.live_streams() == 0 || conn.ending != Ending::No;
                let told =
                    (said || conn.ending != Ending::No) && idle && conn.h2.output().is_empty();
                told || conn.is_unknown() && now >= conn.last_read + FIRST_BYTES
            }
        };
        if self.calls.len() == 0 && self.conns.iter().all(|(_, conn)| quiet(conn)) {
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
            if let Some(conn) = self.conns.get_mut(key).filter(|conn| conn.down().is_some()) {
                conn.h2.close(ErrorCode::NO_ERROR, b"drained");
                self.begin_close(key);
            }
        }
    }
}
