//! Numbers as JSON text.

use std::io::Write;

use crate::wire::low8;

pub(super) fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

pub(super) fn signed(out: &mut Vec<u8>, value: i64) {
    if value < 0 {
        out.push(b'-');
    }
    unsigned(out, value.unsigned_abs());
}

pub(super) fn unsigned(out: &mut Vec<u8>, mut value: u64) {
    if value < 10 {
        out.push(b'0' + low8(value));
        return;
    }
    let mut digits = [0; 20];
    let mut at = digits.len();
    while value > 0 {
        at -= 1;
        digits[at] = b'0' + low8(value % 10);
        value /= 10;
    }
    out.extend_from_slice(&digits[at..]);
}

/// The number with at least so many digits, as times have them.
pub(super) fn padded(out: &mut Vec<u8>, value: u64, width: usize) {
    let start = out.len();
    unsigned(out, value);
    let missing = width.saturating_sub(out.len() - start);
    out.splice(start..start, std::iter::repeat_n(b'0', missing));
}

/// The shortest text that reads back as the same number.
pub(super) fn double(out: &mut Vec<u8>, value: f64) {
    if !value.is_finite() {
        return no_number(out, value);
    }
    // writing to a Vec does not fail
    let _ = write!(out, "{value:?}");
    if out.ends_with(b".0") {
        out.truncate(out.len() - 2);
    }
}

pub(super) fn float(out: &mut Vec<u8>, value: f32) {
    if !value.is_finite() {
        return no_number(out, f64::from(value));
    }
    let _ = write!(out, "{value:?}");
    if out.ends_with(b".0") {
        out.truncate(out.len() - 2);
    }
}

fn no_number(out: &mut Vec<u8>, value: f64) {
    let text: &[u8] = match value {
        value if value.is_nan() => b"\"NaN\"",
        value if value > 0.0 => b"\"Infinity\"",
        _ => b"\"-Infinity\"",
    };
    out.extend_from_slice(text);
}
