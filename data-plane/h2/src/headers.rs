//! Checks that a decoded header list is a valid request, response or trailer section (RFC 9113
//! §8.2, §8.3; RFC 8441 for `:protocol`). Each field is classified by its bytes once, when a
//! literal is decoded, and the HPACK tables keep its [`FieldClass`]. Returns what the connection
//! must know of the list, or what is wrong with it. Sizes are checked before (HPACK), meaning after
//! (the application).

use crate::Fields;
use crate::fields::ClassifiedField;

/// What is wrong with a list: the stream ends with PROTOCOL_ERROR (§8.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

/// What a field is, by its own bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum FieldClass {
    /// Not classified yet.
    #[default]
    Unclassified,
    /// Valid in any list, without meaning for the connection.
    Ordinary,
    ContentLength,
    Host,
    Method,
    Scheme,
    Authority,
    Path,
    /// The path of OPTIONS for the server as a whole.
    Asterisk,
    Protocol,
    Status,
    /// Unknown, or with an invalid value.
    BadPseudo,
    BadName,
    BadValue,
    BadTe,
    /// Fields that HTTP/2 does not know (§8.2.2).
    ConnectionSpecific,
}

impl FieldClass {
    /// Classifies a field by all its bytes.
    pub(crate) const fn of(name: &[u8], value: &[u8]) -> Self {
        if let [b':', ..] = name {
            return Self::of_pseudo(name, value);
        }
        if name.is_empty() || !all_are(name, NAME) {
            return Self::BadName;
        }
        if !is_value(value) {
            return Self::BadValue;
        }
        match name {
            b"te" => match value {
                b"trailers" => Self::Ordinary,
                _ => Self::BadTe,
            },
            b"content-length" => Self::ContentLength,
            b"host" => Self::Host,
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding"
            | b"upgrade" => Self::ConnectionSpecific,
            _ => Self::Ordinary,
        }
    }

    const fn of_pseudo(name: &[u8], value: &[u8]) -> Self {
        match name {
            b":method" if all_are(value, TOKEN) && !value.is_empty() => Self::Method,
            b":scheme" if is_scheme(value) => Self::Scheme,
            b":authority" if all_are(value, AUTHORITY) => Self::Authority,
            b":path" => match value {
                [b'/', rest @ ..] if all_are(rest, PATH) => Self::Path,
                b"*" => Self::Asterisk,
                _ => Self::BadPseudo,
            },
            b":protocol" if all_are(value, TOKEN) && !value.is_empty() => Self::Protocol,
            b":status" => Self::Status,
            _ => Self::BadPseudo,
        }
    }

    fn is_pseudo(self) -> bool {
        matches!(
            self,
            Self::Method
                | Self::Scheme
                | Self::Authority
                | Self::Path
                | Self::Asterisk
                | Self::Protocol
                | Self::Status
                | Self::BadPseudo
        )
    }

    /// Why a list with this field is malformed, whatever the list is.
    #[cold]
    fn fault(self) -> Malformed {
        Malformed(match self {
            Self::BadName => "field name is empty or contains a byte that it may not",
            Self::BadTe => "te is not trailers",
            Self::ConnectionSpecific => "connection-specific field",
            Self::BadValue => {
                "field value contains NUL, CR or LF, or starts or ends with white space"
            }
            _ => {
                "pseudo-header field that comes late, is unknown, has an invalid value or belongs \
                 to another kind of header list"
            }
        })
    }
}

/// What the connection must know of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) content_length: Option<u64>,
}

/// What the connection must know of a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) content_length: Option<u64>,
}

/// The pseudo-header fields of a request found so far; all are valid.
#[derive(Default)]
struct Pseudo<'a> {
    method: Option<&'a [u8]>,
    authority: Option<&'a [u8]>,
    scheme: bool,
    path: bool,
    asterisk: bool,
    protocol: bool,
}

/// What regular fields say of the message.
#[derive(Default)]
struct Regular<'a> {
    content_length: Option<u64>,
    host: Option<&'a [u8]>,
}

pub(crate) fn request(fields: &Fields, connect_protocol: bool) -> Result<Request, Malformed> {
    let mut pseudo = Pseudo::default();
    let mut fields = fields.iter_classified();
    let regular = loop {
        let Some(field) = fields.next() else {
            break Regular::default();
        };
        let twice = match field.class() {
            FieldClass::Method => pseudo.method.replace(field.value()).is_some(),
            FieldClass::Authority => pseudo.authority.replace(field.value()).is_some(),
            FieldClass::Scheme => std::mem::replace(&mut pseudo.scheme, true),
            FieldClass::Path => std::mem::replace(&mut pseudo.path, true) || pseudo.asterisk,
            FieldClass::Asterisk => std::mem::replace(&mut pseudo.asterisk, true) || pseudo.path,
            FieldClass::Protocol if connect_protocol => {
                std::mem::replace(&mut pseudo.protocol, true)
            }
            class if class.is_pseudo() => return Err(class.fault()),
            _ => break regular(Some(field).into_iter().chain(fields))?,
        };
        if twice {
            return Err(TWICE);
        }
    };
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
    /// Checks that exactly the required ones are present (§8.3.1, §8.5, RFC 8441 §4).
    fn check(&self) -> Result<(), Malformed> {
        let method = self.method.ok_or(Malformed("request without :method"))?;
        if method == b"CONNECT" && !self.protocol {
            let alone = !self.scheme && !self.path && !self.asterisk;
            return match self.authority {
                Some([_, ..]) if alone => Ok(()),
                _ => Err(Malformed(
                    "CONNECT must have :authority and no other pseudo-header field",
                )),
            };
        }
        if self.protocol && method != b"CONNECT" {
            return Err(Malformed(":protocol without CONNECT"));
        }
        if !self.scheme {
            return Err(Malformed("request without :scheme"));
        }
        if self.path || (self.asterisk && method == b"OPTIONS") {
            return Ok(());
        }
        Err(Malformed("request without :path"))
    }
}

pub(crate) fn response(fields: &Fields) -> Result<Response, Malformed> {
    let mut fields = fields.iter_classified();
    let status = match fields.next() {
        Some(field) if field.class() == FieldClass::Status => parse_status(field.value())?,
        _ => return Err(Malformed("response does not start with :status")),
    };
    let regular = regular(fields)?;
    Ok(Response {
        status,
        content_length: regular.content_length,
    })
}

pub(crate) fn trailers(fields: &Fields) -> Result<(), Malformed> {
    regular(fields.iter_classified()).map(|_| ())
}

/// The rest of the list, all regular fields: a pseudo-header field is an error here.
#[inline]
fn regular<'a>(
    fields: impl Iterator<Item = ClassifiedField<'a>>,
) -> Result<Regular<'a>, Malformed> {
    let mut regular = Regular::default();
    for field in fields {
        match field.class() {
            FieldClass::Ordinary => {}
            FieldClass::ContentLength => {
                let length = parse_length(field.value())?;
                if regular.content_length.replace(length).is_some() {
                    return Err(TWICE);
                }
            }
            FieldClass::Host => {
                if regular.host.replace(field.value()).is_some() {
                    return Err(TWICE);
                }
            }
            fault => return Err(fault.fault()),
        }
    }
    Ok(regular)
}

const TWICE: Malformed = Malformed("field that may occur once occurs twice");

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

/// The bytes allowed in names (§8.2.1), tokens (RFC 9110 §5.6.2), paths (§8.3.1, no fragment),
/// authorities (no user information, no path) and schemes (RFC 3986 §3.1).
const NAME: u8 = 1;
const TOKEN: u8 = 2;
const PATH: u8 = 4;
const AUTHORITY: u8 = 8;
const SCHEME: u8 = 16;
static BYTES: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation)] // below 256
        let b = byte as u8;
        let visible = b > 0x20 && b != 0x7f;
        if visible && b < 0x7f && !b.is_ascii_uppercase() && b != b':' {
            table[byte] |= NAME;
        }
        if visible && b != b'#' {
            table[byte] |= PATH;
        }
        if visible && b != b'@' && b != b'/' {
            table[byte] |= AUTHORITY;
        }
        if b.is_ascii_alphanumeric() {
            table[byte] |= TOKEN | SCHEME;
        }
        if matches!(b, b'+' | b'-' | b'.') {
            table[byte] |= TOKEN | SCHEME;
        }
        if matches!(
            b,
            b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'^' | b'_' | b'`' | b'|' | b'~'
        ) {
            table[byte] |= TOKEN;
        }
        byte += 1;
    }
    table
};

#[inline]
const fn all_are(bytes: &[u8], class: u8) -> bool {
    let mut rest = bytes;
    let mut all = class;
    while let [first, tail @ ..] = rest {
        all &= BYTES[*first as usize];
        rest = tail;
    }
    all != 0
}

const fn is_scheme(scheme: &[u8]) -> bool {
    matches!(scheme, [first, ..] if first.is_ascii_alphabetic()) && all_are(scheme, SCHEME)
}

/// No NUL, CR or LF, no white space at the edges (§8.2.1). Eight bytes at a time: nearly no value
/// contains a byte below 0x20 at all.
#[inline]
const fn is_value(value: &[u8]) -> bool {
    if let [b' ' | b'\t', ..] | [.., b' ' | b'\t'] = value {
        return false;
    }
    const ONES: u64 = u64::MAX / 255;
    let (mut rest, mut low) = (value, 0);
    while let Some((word, tail)) = rest.split_first_chunk::<8>() {
        let word = u64::from_le_bytes(*word);
        low |= word.wrapping_sub(ONES * 0x20) & !word & (ONES * 0x80);
        rest = tail;
    }
    let mut low = low != 0;
    while let [first, tail @ ..] = rest {
        low |= *first < 0x20;
        rest = tail;
    }
    !low || has_no_break(value)
}

/// The rare value with a byte below 0x20: is it one that ends a line?
const fn has_no_break(value: &[u8]) -> bool {
    let mut rest = value;
    while let [first, tail @ ..] = rest {
        if matches!(*first, 0 | b'\r' | b'\n') {
            return false;
        }
        rest = tail;
    }
    true
}
