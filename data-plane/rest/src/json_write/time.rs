//! Timestamps, durations and field masks as JSON text.

use super::numbers;
use crate::fault::Fault;

/// 0001-01-01T00:00:00Z and 9999-12-31T23:59:59Z.
pub(crate) const TIMESTAMPS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;
/// 10,000 years.
pub(crate) const MAX_DURATION: u64 = 315_576_000_000;
pub(crate) const NANOS: u32 = 1_000_000_000;

pub(super) fn timestamp(out: &mut Vec<u8>, seconds: i64, nanos: i32) -> Result<(), Box<Fault>> {
    let nanos = u32::try_from(nanos).ok().filter(|nanos| *nanos < NANOS);
    let (true, Some(nanos)) = (TIMESTAMPS.contains(&seconds), nanos) else {
        return Err(Fault::new("is a timestamp outside of the years 1 to 9999"));
    };
    let (year, month, day) = civil(seconds.div_euclid(86_400));
    let second = seconds.rem_euclid(86_400).unsigned_abs();
    out.push(b'"');
    numbers::padded(out, year, 4);
    out.push(b'-');
    numbers::padded(out, month, 2);
    out.push(b'-');
    numbers::padded(out, day, 2);
    out.push(b'T');
    numbers::padded(out, second / 3600, 2);
    out.push(b':');
    numbers::padded(out, second / 60 % 60, 2);
    out.push(b':');
    numbers::padded(out, second % 60, 2);
    fraction(out, nanos);
    out.extend_from_slice(b"Z\"");
    Ok(())
}

pub(super) fn duration(out: &mut Vec<u8>, seconds: i64, nanos: i32) -> Result<(), Box<Fault>> {
    let far = seconds.unsigned_abs() > MAX_DURATION || nanos.unsigned_abs() >= NANOS;
    if far || (seconds > 0 && nanos < 0) || (seconds < 0 && nanos > 0) {
        return Err(Fault::new(
            "is a duration out of range, or its parts differ in sign",
        ));
    }
    out.push(b'"');
    if seconds < 0 || nanos < 0 {
        out.push(b'-');
    }
    numbers::unsigned(out, seconds.unsigned_abs());
    fraction(out, nanos.unsigned_abs());
    out.extend_from_slice(b"s\"");
    Ok(())
}

/// 0, 3, 6 or 9 digits.
fn fraction(out: &mut Vec<u8>, nanos: u32) {
    let (value, width) = match nanos {
        0 => return,
        nanos if nanos.is_multiple_of(1_000_000) => (nanos / 1_000_000, 3),
        nanos if nanos.is_multiple_of(1000) => (nanos / 1000, 6),
        nanos => (nanos, 9),
    };
    out.push(b'.');
    numbers::padded(out, u64::from(value), width);
}

/// Year, month and day of a day counted from 1970-01-01, in the years 1 to 9999. Source: Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms", `civil_from_days`.
fn civil(days: i64) -> (u64, u64, u64) {
    // from 0000-03-01, so positive
    let days = (days + 719_468).unsigned_abs();
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 {
        shifted + 3
    } else {
        shifted - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

/// Appends a path of a field mask in lowerCamelCase; a path that would not read back is a fault.
pub(super) fn mask_path(out: &mut Vec<u8>, path: &str) -> Result<(), Box<Fault>> {
    let fault = || Fault::new("has a path that does not survive lowerCamelCase");
    let mut bytes = path.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'_' => match bytes.next() {
                Some(next @ b'a'..=b'z') => out.push(next.to_ascii_uppercase()),
                _ => return Err(fault()),
            },
            b'a'..=b'z' | b'0'..=b'9' | b'.' => out.push(byte),
            _ => return Err(fault()),
        }
    }
    Ok(())
}
