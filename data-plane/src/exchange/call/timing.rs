//! The times of a call: its start, its deadline, and the timers of its deadline and of its current wait.

use std::time::{Duration, Instant};

use crate::timers::TimerId;

/// A cancel near the deadline counts as the deadline: within a tenth of the call's time, ...
const NEAR_PART: u32 = 10;
/// ... plus a little for the time that the request took to get here.
const NEAR: Duration = Duration::from_millis(5);

#[derive(Debug)]
pub(in crate::exchange) struct Timing {
    started: Instant,
    deadline: Option<Instant>,
    deadline_timer: Option<TimerId>,
    wait_timer: Option<TimerId>,
    /// Since when the current attempt has been waiting for a stream.
    stream_wait: Option<Instant>,
}

impl Timing {
    #[inline]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            started: now,
            deadline: None,
            deadline_timer: None,
            wait_timer: None,
            stream_wait: None,
        }
    }

    #[inline]
    pub(in crate::exchange) fn started(&self) -> Instant {
        self.started
    }

    #[inline]
    pub(in crate::exchange) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    #[inline]
    pub(in crate::exchange) fn set_deadline(&mut self, at: Instant, timer: TimerId) {
        self.deadline = Some(at);
        self.deadline_timer = Some(timer);
    }

    /// Whether a cancel now is that of the deadline: clients enforce it themselves, and start to count slightly before the
    /// proxy.
    pub(in crate::exchange) fn is_near_deadline(&self, now: Instant) -> bool {
        self.deadline.is_some_and(|at| {
            let whole = at.saturating_duration_since(self.started);
            at.saturating_duration_since(now) <= whole / NEAR_PART + NEAR
        })
    }

    /// The deadline's timer has fired.
    pub(in crate::exchange) fn on_deadline(&mut self) {
        self.deadline_timer = None;
    }

    // ---- waits

    pub(in crate::exchange) fn has_wait_timer(&self) -> bool {
        self.wait_timer.is_some()
    }

    /// A wait begins. Returns the timer of the previous one, to be unset.
    pub(in crate::exchange) fn begin_wait(&mut self, timer: TimerId) -> Option<TimerId> {
        self.wait_timer.replace(timer)
    }

    /// A wait has ended. Returns its timer, to be unset unless it has fired.
    #[inline]
    pub(in crate::exchange) fn end_wait(&mut self) -> Option<TimerId> {
        self.wait_timer.take()
    }

    /// The start of the current attempt's first wait for a stream: `now` if it has not waited before.
    pub(super) fn stream_wait_since(&mut self, now: Instant) -> Instant {
        *self.stream_wait.get_or_insert(now)
    }

    /// Another attempt begins, which has not waited for a stream.
    #[inline]
    pub(in crate::exchange) fn reset_stream_wait(&mut self) {
        self.stream_wait = None;
    }

    /// The call has ended. Returns the timers that are set.
    #[inline]
    pub(in crate::exchange) fn end(&mut self) -> [Option<TimerId>; 2] {
        [self.deadline_timer.take(), self.wait_timer.take()]
    }
}
