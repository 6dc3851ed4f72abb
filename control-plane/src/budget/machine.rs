//! How much memory the machine has, and the parsing of memory sizes.

use std::{fs, path::Path};

/// The minimum of `--client-memory`: the largest message of a node, with what is decoded from it, fits several times.
pub const MIN_MEMORY: usize = 128 << 20;

/// Half of what this process may use: of the machine's memory, or of the limit of its cgroup (v2, v1) if that is less.
#[must_use]
pub fn default_memory() -> usize {
    let read = |path: &str| fs::read_to_string(Path::new(path)).ok();
    let machine = read("/proc/meminfo").and_then(|text| total(&text));
    let own = read("/proc/self/cgroup").and_then(|text| {
        let path = text
            .lines()
            .find_map(|line| line.strip_prefix("0::"))?
            .trim();
        read(&format!("/sys/fs/cgroup{path}/memory.max"))
    });
    let cgroups = [
        own,
        read("/sys/fs/cgroup/memory.max"),
        read("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
    ];
    let limits = cgroups.into_iter().flatten();
    let limits = limits.filter_map(|text| text.trim().parse().ok());
    half(limits.chain(machine))
}

/// If nothing is known, half of 1 GiB.
fn half(known: impl Iterator<Item = u64>) -> usize {
    let least = known.min().unwrap_or(1 << 30);
    usize::try_from(least / 2)
        .unwrap_or(usize::MAX)
        .max(MIN_MEMORY)
}

fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// "512MiB", "2GiB"; at least 128 MiB.
pub fn parse_memory(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let shift = match text.get(digits.len()..) {
        Some("KiB") => Some(10),
        Some("MiB") => Some(20),
        Some("GiB") => Some(30),
        Some("" | "B") => Some(0),
        _ => None,
    };
    let number: Option<usize> = digits.parse().ok();
    let bytes = shift
        .zip(number)
        .and_then(|(shift, number)| number.checked_mul(1 << shift));
    bytes
        .filter(|bytes| *bytes >= MIN_MEMORY)
        .ok_or_else(|| "must be a size such as 512MiB or 2GiB, at least 128MiB".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        assert_eq!(parse_memory("512MiB"), Ok(512 << 20));
        assert_eq!(parse_memory("2GiB"), Ok(2 << 30));
        assert_eq!(parse_memory("134217728"), Ok(MIN_MEMORY));
        for wrong in [
            "",
            "MiB",
            "127MiB",
            "1GB",
            "-1GiB",
            "1.5GiB",
            "99999999999999GiB",
        ] {
            assert!(parse_memory(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_default_is_half_of_the_smallest_limit() {
        let meminfo = "MemTotal:        8000000 kB\nMemFree:  1 kB\n";
        assert_eq!(total(meminfo), Some(8_000_000 * 1024));
        assert_eq!(half([4 << 30, 8 << 30].into_iter()), 2 << 30);
        assert_eq!(half([1 << 20].into_iter()), MIN_MEMORY);
        assert_eq!(half(std::iter::empty()), 512 << 20);
        assert!(default_memory() >= MIN_MEMORY);
    }
}
