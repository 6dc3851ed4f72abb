//! The attempts of a call so far, by which its retries are limited.

use crate::failure::Failure;

#[derive(Debug, Default)]
pub(in crate::exchange) struct History {
    /// Including attempts that found no connection.
    attempts: u32,
    /// How many of them failed after the application may have seen the call.
    seen: u32,
    /// Endpoints that failed in this call.
    tried: Vec<u64>,
    /// How often it was retried on an endpoint that had already failed, because there was no other.
    repeats: u32,
    /// How the last attempt failed that the application may have seen: what the caller gets if no other is made.
    last_failure: Option<Box<Failure>>,
}

impl History {
    #[inline]
    pub(in crate::exchange) fn attempts(&self) -> u32 {
        self.attempts
    }

    #[inline]
    pub(in crate::exchange) fn count_attempt(&mut self) {
        self.attempts += 1;
    }

    /// How many attempts failed after the application may have seen the call.
    pub(in crate::exchange) fn seen(&self) -> u32 {
        self.seen
    }

    /// An attempt failed that the application may have seen, and another one is made.
    pub(in crate::exchange) fn note_seen(&mut self, failure: Failure) {
        self.seen += 1;
        self.last_failure = Some(Box::new(failure));
    }

    /// How the last attempt failed that the application may have seen.
    pub(in crate::exchange) fn take_failure(&mut self) -> Option<Failure> {
        self.last_failure.take().map(|failure| *failure)
    }

    #[inline]
    pub(in crate::exchange) fn has_tried(&self, endpoint: u64) -> bool {
        self.tried.contains(&endpoint)
    }

    pub(in crate::exchange) fn note_tried(&mut self, endpoint: u64) {
        if !self.has_tried(endpoint) {
            self.tried.push(endpoint);
        }
    }

    /// How often it was retried on an endpoint that had already failed.
    pub(in crate::exchange) fn repeats(&self) -> u32 {
        self.repeats
    }

    pub(in crate::exchange) fn count_repeat(&mut self) {
        self.repeats += 1;
    }
}
