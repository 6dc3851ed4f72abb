//! Percent escapes (RFC 3986 §2.1) in segments of a path: check, normal form, decoding. Pure.

/// What is wrong with an escape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EscapeFault {
    /// `%` without two hexadecimal digits.
    Malformed,
    /// `%00`.
    Nul,
}

/// The bytes of a text; escapes are one item, with their value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Item {
    Byte(u8),
    Escape(u8),
}

fn items(text: &[u8]) -> impl Iterator<Item = Result<Item, EscapeFault>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let (first, after) = rest.split_first()?;
        rest = after;
        if *first != b'%' {
            return Some(Ok(Item::Byte(*first)));
        }
        let value = after
            .split_first_chunk::<2>()
            .and_then(|([high, low], after)| Some((hex(*high)? << 4 | hex(*low)?, after)));
        let Some((value, after)) = value else {
            // The iteration ends here: nothing after a malformed escape is looked at.
            rest = &[];
            return Some(Err(EscapeFault::Malformed));
        };
        rest = after;
        match value {
            0 => Some(Err(EscapeFault::Nul)),
            value => Some(Ok(Item::Escape(value))),
        }
    })
}

fn hex(digit: u8) -> Option<u8> {
    let value = char::from(digit).to_digit(16)?;
    u8::try_from(value).ok()
}

/// Whether a byte means the same with and without its escape (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Checks all escapes.
pub(super) fn check(segment: &[u8]) -> Result<(), EscapeFault> {
    items(segment).try_for_each(|item| item.map(|_| ()))
}

/// Whether the decoded segment is `.` or `..`.
pub(super) fn is_dot_segment(segment: &[u8]) -> bool {
    // `..` is at most six bytes long with its escapes.
    if segment.len() > 6 {
        return false;
    }
    let mut dots = 0;
    for item in items(segment) {
        match item {
            Ok(Item::Byte(b'.') | Item::Escape(b'.')) => dots += 1,
            _ => return false,
        }
    }
    matches!(dots, 1 | 2)
}

/// The form in which literals are compared: escapes of unreserved characters decoded, other escapes in upper case, bytes
/// beyond ASCII escaped. `None` if an escape is malformed or NUL.
pub(super) fn normal(segment: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(segment.len());
    for item in items(segment) {
        match item.ok()? {
            Item::Byte(byte) if byte.is_ascii() => out.push(byte),
            Item::Escape(byte) if is_unreserved(byte) => out.push(byte),
            Item::Byte(byte) | Item::Escape(byte) => {
                const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
                let digit = |value: u8| DIGITS.get(usize::from(value)).copied();
                out.push(b'%');
                out.extend(digit(byte >> 4));
                out.extend(digit(byte & 0xf));
            }
        }
    }
    Some(out)
}

/// Appends the decoded segment. With `keep_slash`, escapes of `/` stay as they are written.
pub(super) fn decode(segment: &[u8], keep_slash: bool, out: &mut Vec<u8>) {
    let mut at = 0;
    // The escapes were checked when the path was read.
    for item in items(segment).filter_map(Result::ok) {
        match item {
            Item::Byte(byte) => {
                out.push(byte);
                at += 1;
            }
            Item::Escape(b'/') if keep_slash => {
                out.extend_from_slice(segment.get(at..at + 3).unwrap_or_default());
                at += 3;
            }
            Item::Escape(byte) => {
                out.push(byte);
                at += 3;
            }
        }
    }
}
