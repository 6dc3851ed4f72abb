//! The order in which control planes are tried. Clocks and timers do not belong here.

use rand::{Rng as _, seq::SliceRandom as _};

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
