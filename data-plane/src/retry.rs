//! How long to wait before the control side tries again: doubling, bounded, with jitter, so that a thousand proxies do
//! not come back in one moment. No clock and no timer comes in here.

use std::time::Duration;

use rand::Rng as _;

/// Doubles from `first` to `last`.
#[derive(Clone, Debug)]
pub struct Retry {
    first: Duration,
    last: Duration,
    next: Duration,
}

impl Retry {
    #[must_use]
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self {
            first,
            last,
            next: first,
        }
    }

    /// The next wait.
    pub fn wait(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.last);
        jittered(wait, 0.6..1.0)
    }

    /// It worked: begin anew next time.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

/// `span` times a random factor of the range.
#[must_use]
pub fn jittered(span: Duration, factor: std::ops::Range<f64>) -> Duration {
    span.mul_f64(rand::rng().random_range(factor))
}

/// The control planes of `--control` in turn, for ever. Begins anywhere in the list, so that not all proxies begin with
/// the first.
#[derive(Debug)]
pub struct Rotation<'a> {
    urls: &'a [String],
    next: usize,
}

impl<'a> Rotation<'a> {
    /// `None` where there is none to ask.
    #[must_use]
    pub fn new(urls: &'a [String]) -> Option<Self> {
        let next = (!urls.is_empty()).then(|| rand::rng().random_range(0..urls.len()))?;
        Some(Self { urls, next })
    }

    /// The one to try now.
    pub fn take(&mut self) -> &'a str {
        let url = self.urls.get(self.next).map_or("", String::as_str);
        self.next = (self.next + 1) % self.urls.len();
        url
    }
}

#[cfg(test)]
mod tests {
    use super::Rotation;

    #[test]
    fn all_are_tried_in_turn() {
        assert!(Rotation::new(&[]).is_none());
        let urls = ["a", "b", "c"].map(str::to_owned);
        let mut rotation = Rotation::new(&urls).unwrap();
        let taken: Vec<&str> = (0..6).map(|_| rotation.take()).collect();
        assert_eq!(taken[..3], taken[3..]);
        let mut once = taken[..3].to_vec();
        once.sort_unstable();
        assert_eq!(once, urls);
    }
}
