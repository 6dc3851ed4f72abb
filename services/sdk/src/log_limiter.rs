//! Limits how often a repeated failure is logged. Pure: `now` is a parameter.

use std::time::{Duration, Instant};

/// Lets a message through when it differs from the last one, or 30 s after it.
#[derive(Debug, Default)]
pub(crate) struct LogLimiter {
    last: Option<(String, Instant)>,
}

impl LogLimiter {
    const PAUSE: Duration = Duration::from_secs(30);

    pub(crate) fn due(&mut self, message: &str, now: Instant) -> bool {
        let quiet = self
            .last
            .as_ref()
            .is_some_and(|(text, at)| text == message && now.duration_since(*at) < Self::PAUSE);
        if !quiet {
            self.last = Some((message.to_owned(), now));
        }
        !quiet
    }

    pub(crate) fn forget(&mut self) {
        self.last = None;
    }
}
