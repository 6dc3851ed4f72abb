//! Durations as people write them, in options and files.

use std::time::Duration;

/// Parses `500ms`, `60s`, `2m`, `1h`, or a bare number of seconds; fractions are allowed.
#[must_use]
pub fn parse_duration(word: &str) -> Option<Duration> {
    let word = word.trim();
    let split = word
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(word.len());
    let (number, unit) = word.split_at(split);
    let number: f64 = number.parse().ok()?;
    let factor = match unit.trim() {
        "ms" => 0.001,
        "s" | "" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * factor).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (word, expect) in [
            ("60s", Some(60_000)),
            ("500ms", Some(500)),
            ("2m", Some(120_000)),
            ("1.5s", Some(1500)),
            ("3", Some(3000)),
            ("", None),
            ("s", None),
            ("1x", None),
            ("-1s", None),
        ] {
            assert_eq!(
                parse_duration(word).map(|d| d.as_millis()),
                expect,
                "{word}"
            );
        }
    }
}
