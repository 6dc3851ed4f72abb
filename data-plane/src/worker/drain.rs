//! The drain of a worker: it accepts nothing more, sends GOAWAY to every caller, lets calls finish, and ends those that
//! have not finished when the drain timeout is over. Nothing is decided here about calls that end in time.

use std::time::{Duration, Instant};

use heddle_h2::ErrorCode;
use heddle_proto::Reason;

use super::turn::Worker;
use crate::failure::Failure;
use crate::keys::ConnKey;
use crate::timers::Timer;

/// How often it is looked whether a drain is done, when no event tells.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// How far the drain of a worker has come.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// When calls are ended, once it has begun.
    over_at: Option<Instant>,
    done: bool,
    /// A timer runs that looks whether it is done.
    check_set: bool,
}

impl Drain {
    pub(super) fn is_on(&self) -> bool {
        self.over_at.is_some()
    }

    #[cfg(test)]
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// The timer has fired; the turn itself looks.
    pub(super) fn on_check(&mut self) {
        self.check_set = false;
    }

    /// Whether calls are to be ended that were not before `now`.
    pub(super) fn is_overdue(&self, now: Instant) -> bool {
        self.over_at.is_some_and(|over| over <= now) && !self.done
    }
}

impl Worker {
    /// Stops accepting, sends GOAWAY on every connection and lets calls finish.
    pub(super) fn begin_drain(&mut self) {
        if self.drain.is_on() {
            return;
        }
        self.close_listeners();
        let exchange = &mut self.exchange;
        let over = exchange.now + exchange.options().drain_timeout;
        self.drain.over_at = Some(over);
        exchange.timers.set(over, Timer::DrainOver);
        for key in exchange.conns.keys() {
            exchange.send_goaway(key);
        }
    }

    /// A connection that was accepted before the drain, and comes to its worker after that has begun.
    pub(super) fn on_accepted_while_draining(&mut self, key: ConnKey) {
        if self.drain.is_on() {
            self.exchange.send_goaway(key);
        }
        // It was passed on before the other worker knew of the drain: its calls are still to be carried.
        if std::mem::take(&mut self.drain.done) {
            let drained = &self.shared.drained;
            drained.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    /// Notes when no call is left and none can come any more.
    pub(super) fn check_drained(&mut self) {
        if self.drain.done {
            return;
        }
        let exchange = &mut self.exchange;
        let now = exchange.now;
        let mut conns = exchange.conns.iter();
        if exchange.calls.len() == 0 && conns.all(|(_, conn)| conn.is_drained(now)) {
            self.drain.done = true;
            self.shared.drained.send_modify(|count| *count += 1);
        } else if !std::mem::replace(&mut self.drain.check_set, true) {
            exchange.timers.set(now + CHECK_EVERY, Timer::Drain);
        }
    }

    /// The drain timeout is over: what is left ends with DRAINING.
    pub(super) fn cut_drained(&mut self) {
        let exchange = &mut self.exchange;
        let node = exchange.options().node.clone();
        let text = format!("node {node} is stopping, and its drain timeout has passed");
        for call in exchange.calls.keys() {
            exchange.fail(call, &Failure::new(Reason::Draining, text.clone()));
            // Whoever does not take its last bytes by now does not get them.
            exchange.abandon(call);
        }
        for key in exchange.conns.keys() {
            if let Some(conn) = exchange
                .conns
                .get_mut(key)
                .filter(|conn| conn.is_accepted())
            {
                conn.goodbye(ErrorCode::NO_ERROR, b"drained");
                exchange.begin_close(key);
            }
        }
    }
}
