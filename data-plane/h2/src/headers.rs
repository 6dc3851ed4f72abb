//! Whether a decoded header list is a valid request, response or trailer section (RFC 9113 §8.2,
//! §8.3; RFC 8441 for `:protocol`). A list comes in, what the machine must know of it goes out, or
//! what is wrong with it. Sizes are judged before (HPACK), meaning after (the shell): neither may
//! come in.

use crate::Fields;

/// What is wrong with a list: the stream ends with PROTOCOL_ERROR (§8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// What the machine must know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) content_length: Option<u64>,
}

/// What the machine must know of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_length: Option<u64>,
}

/// Pseudo-header fields of a request as they are met.
#[derive(Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    scheme: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    path: Option<&'a [u8]>,
    protocol: Option<&'a [u8]>,
}

/// What regular fields say of the message.
#[derive(Default)]
struct Regular<'a> {
    content_length: Option<u64>,
    host: Option<&'a [u8]>,
}

pub(crate) fn request(fields: &Fields, connect_protocol: bool) -> Result<Request, Malformed> {
    let mut pseudo = Pseudo::default();
    let mut regular = Regular::default();
    let mut any_regular = false;
    for field in fields.iter() {
        if field.name.first() == Some(&b':') {
            if any_regular {
                return Err(LATE_PSEUDO);
            }
            let place = match field.name {
                b":method" => &mut pseudo.method,
                b":scheme" => &mut pseudo.scheme,
                b":authority" => &mut pseudo.authority,
                b":path" => &mut pseudo.path,
                b":protocol" if connect_protocol => &mut pseudo.protocol,
                _ => return Err(Malformed("unknown pseudo-header field in a request")),
            };
            if place.replace(field.value).is_some() {
                return Err(Malformed("pseudo-header field stands twice"));
            }
            if !is_value(field.value) {
                return Err(BAD_VALUE);
            }
        } else {
            any_regular = true;
            regular.take(field.name, field.value)?;
        }
    }
    pseudo.check()?;
    if let (Some(authority), Some(host)) = (pseudo.authority, regular.host)
        && !authority.eq_ignore_ascii_case(host)
    {
        return Err(Malformed("host differs from :authority"));
    }
    Ok(Request {
        content_length: regular.content_length,
    })
}

impl Pseudo<'_> {
    fn check(&self) -> Result<(), Malformed> {
        let method = self.method.ok_or(Malformed("request without :method"))?;
        if method.is_empty() || !method.iter().all(|&byte| is_token(byte)) {
            return Err(Malformed(":method is not a token"));
        }
        if let Some(authority) = self.authority
            && authority.iter().any(|byte| b"@/ ".contains(byte))
        {
            return Err(Malformed(
                ":authority holds user information, a path or a space",
            ));
        }
        let connect = method == b"CONNECT";
        if connect && self.protocol.is_none() {
            // §8.5: a plain CONNECT names its target and nothing else.
            return match (self.scheme, self.path, self.authority) {
                (None, None, Some([_, ..])) => Ok(()),
                _ => Err(Malformed("CONNECT must have :authority alone")),
            };
        }
        if !connect && self.protocol.is_some() {
            return Err(Malformed(":protocol without CONNECT"));
        }
        match self.scheme {
            Some([first, rest @ ..]) if first.is_ascii_alphabetic() && is_scheme(rest) => {}
            _ => return Err(Malformed("request without a valid :scheme")),
        }
        match self.path {
            Some([b'/', rest @ ..]) if is_path(rest) => Ok(()),
            Some(b"*") if method == b"OPTIONS" => Ok(()),
            _ => Err(Malformed("request without a valid :path")),
        }
    }
}

pub(crate) fn response(fields: &Fields) -> Result<Response, Malformed> {
    let mut status = None;
    let mut regular = Regular::default();
    let mut any_regular = false;
    for field in fields.iter() {
        if field.name.first() == Some(&b':') {
            if any_regular {
                return Err(LATE_PSEUDO);
            }
            if field.name != b":status" {
                return Err(Malformed("unknown pseudo-header field in a response"));
            }
            if status.replace(parse_status(field.value)?).is_some() {
                return Err(Malformed("pseudo-header field stands twice"));
            }
        } else {
            any_regular = true;
            regular.take(field.name, field.value)?;
        }
    }
    Ok(Response {
        status: status.ok_or(Malformed("response without :status"))?,
        content_length: regular.content_length,
    })
}

pub(crate) fn trailers(fields: &Fields) -> Result<(), Malformed> {
    let mut regular = Regular::default();
    for field in fields.iter() {
        if field.name.first() == Some(&b':') {
            return Err(Malformed("pseudo-header field in trailers"));
        }
        regular.take(field.name, field.value)?;
    }
    Ok(())
}

impl<'a> Regular<'a> {
    /// One regular field: name, value, and whether HTTP/2 knows no such field (§8.2.2).
    #[inline]
    fn take(&mut self, name: &[u8], value: &'a [u8]) -> Result<(), Malformed> {
        if !is_name(name) {
            return Err(Malformed(
                "field name is empty or holds a byte that it may not",
            ));
        }
        if !is_value(value) {
            return Err(BAD_VALUE);
        }
        match name {
            b"te" if value != b"trailers" => {
                return Err(Malformed("te is something else than trailers"));
            }
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => {
                return Err(Malformed("connection-specific field"));
            }
            b"content-length" => {
                let length = parse_length(value)?;
                if self.content_length.replace(length).is_some() {
                    return Err(Malformed("content-length stands twice"));
                }
            }
            b"host" if self.host.replace(value).is_some() => {
                return Err(Malformed("host stands twice"));
            }
            _ => {}
        }
        Ok(())
    }
}

const LATE_PSEUDO: Malformed = Malformed("pseudo-header field after a regular one");
const BAD_VALUE: Malformed =
    Malformed("field value holds NUL, CR or LF, or starts or ends with white space");

fn parse_status(value: &[u8]) -> Result<u16, Malformed> {
    match value {
        [a @ b'1'..=b'9', b @ b'0'..=b'9', c @ b'0'..=b'9'] => {
            let digit = |ascii: u8| u16::from(ascii - b'0');
            Ok(digit(*a) * 100 + digit(*b) * 10 + digit(*c))
        }
        _ => Err(Malformed(":status is not three digits")),
    }
}

fn parse_length(value: &[u8]) -> Result<u64, Malformed> {
    let bad = Malformed("content-length is not a number");
    if value.is_empty() || value.len() > 19 {
        return Err(bad);
    }
    value.iter().try_fold(0u64, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + u64::from(byte - b'0')),
        _ => Err(bad),
    })
}

/// Which bytes may stand in what: bit 0 a field name (§8.2.1), bit 1 a token (RFC 9110 §5.6.2).
const BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let b = byte as u8;
        let name = b > 0x20 && b < 0x7f && !b.is_ascii_uppercase() && b != b':';
        let token = b.is_ascii_alphanumeric()
            || matches!(
                b,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        table[byte] = name as u8 | (token as u8) << 1;
        byte += 1;
    }
    table
};

#[inline]
fn is_name(name: &[u8]) -> bool {
    !name.is_empty() && name.iter().all(|&byte| BYTES[usize::from(byte)] & 1 != 0)
}

fn is_token(byte: u8) -> bool {
    BYTES[usize::from(byte)] & 2 != 0
}

fn is_scheme(rest: &[u8]) -> bool {
    rest.iter()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(byte))
}

fn is_path(rest: &[u8]) -> bool {
    rest.iter()
        .all(|&byte| byte > 0x20 && byte != 0x7f && byte != b'#')
}

/// No NUL, CR or LF, no white space at the edges (§8.2.1). Eight bytes at a time: nearly no value
/// holds a byte below 0x20 at all.
#[inline]
fn is_value(value: &[u8]) -> bool {
    let white = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    if white(value.first()) || white(value.last()) {
        return false;
    }
    const ONES: u64 = u64::MAX / 255;
    let (words, rest) = value.as_chunks::<8>();
    let low = words.iter().fold(0u64, |low, word| {
        let word = u64::from_le_bytes(*word);
        low | (word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80))
    });
    let low = low != 0 || rest.iter().any(|&byte| byte < 0x20);
    !low || !value.iter().any(|byte| matches!(byte, 0 | b'\r' | b'\n'))
}
