//! The drain of a worker: it stops accepting, sends GOAWAY to every caller, lets calls finish, and has those ended that
//! have not finished by the drain timeout. Calls and connections are in `exchange`.

use std::time::{Duration, Instant};

use super::turn::Worker;
use crate::keys::ConnKey;
use crate::timers::Timer;

/// How often to check whether a drain is complete if there are no events.
const CHECK_EVERY: Duration = Duration::from_millis(20);

/// Progress of a worker's drain.
#[derive(Debug, Default)]
pub(super) struct Drain {
    /// When the remaining calls are ended; set when the drain begins.
    over_at: Option<Instant>,
    done: bool,
    /// The timer of the next check is set.
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

    /// The timer of the check has fired; the turn itself does the check.
    pub(super) fn on_check(&mut self) {
        self.check_set = false;
    }

    /// Whether the drain timeout had passed by `now` and calls still have to be ended.
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
        let over = exchange.now() + exchange.options().drain_timeout;
        self.drain.over_at = Some(over);
        exchange.set_timer(over, Timer::DrainOver);
        exchange.send_goaways();
    }

    /// A connection was accepted before the drain, and reached this worker after the drain had begun.
    pub(super) fn on_accepted_while_draining(&mut self, key: ConnKey) {
        if self.drain.is_on() {
            self.exchange.send_goaway(key);
        }
        // Another worker passed it on before it knew of the drain: its calls must still be handled.
        if std::mem::take(&mut self.drain.done) {
            let drained = &self.shared.drained;
            drained.send_modify(|count| *count = count.saturating_sub(1));
        }
    }

    /// Checks whether no call is left and no new one can arrive.
    pub(super) fn check_drained(&mut self) {
        if self.drain.done {
            return;
        }
        let exchange = &mut self.exchange;
        if exchange.is_drained() {
            self.drain.done = true;
            self.shared.drained.send_modify(|count| *count += 1);
        } else if !std::mem::replace(&mut self.drain.check_set, true) {
            exchange.set_timer(exchange.now() + CHECK_EVERY, Timer::Drain);
        }
    }
}
