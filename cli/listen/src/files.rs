//! Divides the process's file limit among listeners: each gets its share of connections, so that none can take the
//! descriptors of another. Input: numbers. Output: numbers.

/// The limit of connections on each of `times` sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionLimit {
    pub bound: usize,
    pub times: usize,
}

/// The limits, reduced if they would take more than three quarters of `files`: the rest is for files and for
/// connections that the process opens itself. The largest limits are cut first; a small listener keeps what it requested.
#[must_use]
pub fn within_files(files: usize, limits: &[ConnectionLimit]) -> Vec<usize> {
    let budget = files - files / 4;
    let takes = |cap: usize| {
        let each = limits
            .iter()
            .map(|of| of.bound.min(cap).saturating_mul(of.times));
        each.fold(0_usize, usize::saturating_add)
    };
    let largest = limits.iter().map(|of| of.bound).max().unwrap_or(0);
    // Finds the highest cap that fits.
    let (mut fits, mut too_much) = (0, largest.saturating_add(1));
    while too_much - fits > 1 {
        let middle = fits + (too_much - fits) / 2;
        match takes(middle) <= budget {
            true => fits = middle,
            false => too_much = middle,
        }
    }
    limits.iter().map(|of| of.bound.min(fits).max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bounds_are_cut_and_small_ones_stay() {
        let limits = [(10_000, 2), (10_000, 2), (4096, 1), (256, 1)]
            .map(|(bound, times)| ConnectionLimit { bound, times });
        for (files, expect) in [
            (1_000_000, [10_000, 10_000, 4096, 256]),
            (20_000, [2948, 2948, 2948, 256]),
            (1024, [128, 128, 128, 128]),
            (8, [1, 1, 1, 1]),
        ] {
            let bounds = within_files(files, &limits);
            let taken: usize = bounds.iter().zip(&limits).map(|(b, of)| b * of.times).sum();
            assert!(taken <= files, "{files}: {bounds:?}");
            assert_eq!(bounds, expect, "{files}");
        }
    }
}
