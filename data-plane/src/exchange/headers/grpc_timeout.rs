//! Converts `grpc-timeout` from its wire form to a duration and back. Strict as in the gRPC protocol: one to eight
//! digits and a unit. Does not read a clock.

use std::time::Duration;

/// The header's name.
pub(in crate::exchange) const GRPC_TIMEOUT: &[u8] = b"grpc-timeout";

/// `TimeoutValue TimeoutUnit`, or `None` if it is anything else.
#[must_use]
pub(in crate::exchange) fn parse(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !(1..=8).contains(&digits.len()) || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits
        .iter()
        .fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Writes the finest unit that fits in eight digits; never zero, which some servers take for "none".
pub(in crate::exchange) fn render(left: Duration, out: &mut Vec<u8>) {
    const MAX: u64 = 99_999_999;
    let secs = left.as_secs();
    let fraction =
        |per_second: u64, part: u32| secs.saturating_mul(per_second).saturating_add(part.into());
    let (number, unit) = match fraction(1_000_000, left.subsec_micros()) {
        micros @ ..=MAX => (micros, b'u'),
        _ => match fraction(1_000, left.subsec_millis()) {
            millis @ ..=MAX => (millis, b'm'),
            _ => coarse(secs, MAX),
        },
    };
    let mut digits = [0u8; 8];
    // Eight digits fit in 32 bits, for which division is cheapest.
    let mut number = u32::try_from(number.max(1)).unwrap_or(u32::MAX);
    let mut at = digits.len();
    while number > 0 && at > 0 {
        at -= 1;
        if let (Some(digit), Ok(value)) = (digits.get_mut(at), u8::try_from(number % 10)) {
            *digit = b'0' + value;
        }
        number /= 10;
    }
    out.clear();
    out.extend_from_slice(digits.get(at..).unwrap_or_default());
    out.push(unit);
}

#[cold]
fn coarse(secs: u64, most: u64) -> (u64, u8) {
    let units = [(secs, b'S'), (secs / 60, b'M'), (secs / 3600, b'H')];
    let fits = units.into_iter().find(|(n, _)| *n <= most);
    fits.unwrap_or((most, b'H'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn eight_digits_and_a_unit() {
        for (text, expect) in [
            ("1S", Some(Duration::from_secs(1))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("0n", Some(Duration::ZERO)),
            ("5M", Some(Duration::from_secs(300))),
            ("250m", Some(Duration::from_millis(250))),
            ("7u", Some(Duration::from_micros(7))),
            ("999999999S", None),
            ("S", None),
            ("", None),
            ("1", None),
            ("1s", None),
            ("-1S", None),
            ("+1S", None),
            ("1 S", None),
            ("1.5S", None),
            ("1SS", None),
        ] {
            assert_eq!(parse(text.as_bytes()), expect, "{text}");
        }
    }

    fn rendered(left: Duration) -> String {
        let mut out = Vec::new();
        render(left, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_is_left_is_written_as_finely_as_fits() {
        for (left, expect) in [
            (Duration::from_millis(1500), "1500000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(200_000), "200000S"),
            (Duration::ZERO, "1u"),
            (Duration::from_nanos(1), "1u"),
            (Duration::MAX, "99999999H"),
        ] {
            assert_eq!(rendered(left), expect);
        }
    }

    proptest! {
        #[test]
        fn passes_on_no_more_than_is_left(us in 1u64..10_000_000_000_000) {
            let left = Duration::from_micros(us);
            let passed = parse(rendered(left).as_bytes()).unwrap();
            prop_assert!(passed <= left && passed >= left - left / 1000 - Duration::from_micros(1));
        }

        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..12)) {
            let _ = parse(&bytes);
        }
    }
}
