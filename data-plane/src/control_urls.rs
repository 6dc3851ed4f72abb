//! The control planes: the order in which they are tried, and how one is dialled. When to try again is decided elsewhere.

use std::time::Duration;

use heddle_proto::error_text::with_causes;
use rand::{Rng as _, seq::SliceRandom as _};
use tonic::transport::{Channel, Endpoint};

/// The control planes of `--control` in random order; all are tried before any is tried again. Random, so that the
/// clients of a lost replica spread over all others: in a fixed order one replica would get all of them.
#[derive(Debug)]
pub struct Rotation<'a> {
    urls: Vec<&'a str>,
    next: usize,
}

impl<'a> Rotation<'a> {
    /// `None` if there are no URLs.
    #[must_use]
    pub fn new(urls: &'a [String]) -> Option<Self> {
        let mut urls: Vec<&str> = urls.iter().map(String::as_str).collect();
        urls.shuffle(&mut rand::rng());
        (!urls.is_empty()).then_some(Self { urls, next: 0 })
    }

    /// The URL to try now. Never the last one again, if there is another.
    pub fn take(&mut self) -> &'a str {
        if self.next == self.urls.len() {
            self.next = 0;
            let last = self.urls.last().copied();
            self.urls.shuffle(&mut rand::rng());
            if self.urls.first().copied() == last {
                let end = self.urls.len() - 1;
                let other = rand::rng().random_range(end.min(1)..=end);
                self.urls.swap(0, other);
            }
        }
        let url = self.urls.get(self.next).copied().unwrap_or_default();
        self.next += 1;
        url
    }
}

/// After two seconds of silence a ping is sent, which must be answered within three: a replica that is cut off without
/// a connection reset is left within five seconds.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(2);
const PING_TIMEOUT: Duration = Duration::from_secs(3);

/// Connects to a replica of the control plane, for the xDS stream and for the node session.
///
/// # Errors
/// The reason, for people.
pub async fn dial(url: &str) -> Result<Channel, String> {
    Endpoint::from_shared(url.to_owned())
        .map_err(|e| e.to_string())?
        .connect_timeout(Duration::from_secs(2))
        .tcp_nodelay(true)
        .http2_keep_alive_interval(SILENCE_TIMEOUT)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
        // Descriptors of 4 MiB and full answers with thousands of endpoints fit into the window.
        .initial_stream_window_size(4 * 1024 * 1024)
        .initial_connection_window_size(16 * 1024 * 1024)
        .connect()
        .await
        .map_err(|e| with_causes(&e))
}

#[cfg(test)]
mod tests {
    use super::Rotation;

    #[test]
    fn all_are_tried_before_any_is_tried_again_and_none_twice_running() {
        assert!(Rotation::new(&[]).is_none());
        let urls = ["a", "b", "c"].map(str::to_owned);
        for _ in 0..50 {
            let mut rotation = Rotation::new(&urls).unwrap();
            let taken: Vec<&str> = (0..9).map(|_| rotation.take()).collect();
            assert!(taken.windows(2).all(|two| two[0] != two[1]), "{taken:?}");
            for round in taken.chunks(3) {
                let mut round = round.to_vec();
                round.sort_unstable();
                assert_eq!(round, urls);
            }
        }
        let one = ["a".to_owned()];
        let mut rotation = Rotation::new(&one).unwrap();
        assert_eq!([rotation.take(), rotation.take()], ["a", "a"]);
    }

    #[test]
    fn those_that_lose_a_replica_spread_evenly_over_the_others() {
        let urls = ["a", "b", "c"].map(str::to_owned);
        let mut after_a = [0, 0];
        for _ in 0..3000 {
            let mut rotation = Rotation::new(&urls).unwrap();
            // Each client is on some replica; `a` is the one that is lost.
            while rotation.take() != "a" {}
            after_a[usize::from(rotation.take() == "c")] += 1;
        }
        let [b, c]: [i32; 2] = after_a;
        assert!((b - c).abs() < 400, "{b} to b, {c} to c");
    }
}
