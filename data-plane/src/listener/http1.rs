//! Tells HTTP/1.1 from HTTP/2 by the first bytes, and answers it: outbound carries HTTP/2 until the runtime for
//! plain web traffic comes. Bytes in, a verdict out; pure.

/// The start of HTTP/2's preface: no HTTP/1.x request begins with it.
const PREFACE: &[u8] = b"PRI ";

/// The methods by which a request of HTTP/1.x is known. Any other word is no HTTP/1.x and gets what a broken preface
/// gets: a GOAWAY and the end of the connection (RFC 9113 §3.4).
const METHODS: &[&[u8]] = &[
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"PATCH ",
    b"DELETE ",
    b"CONNECT ",
    b"OPTIONS ",
    b"TRACE ",
    b"PROPFIND ",
];

/// What the first bytes of a connection have shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// So many bytes of the preface came and nothing else.
    Open(usize),
    /// It is HTTP/2, or so wrong that the HTTP/2 machine shall say so.
    Http2,
    /// It is HTTP/1.x.
    Http1,
}

impl Sniff {
    /// Takes the next bytes in. While it stays `Open` they are part of the preface and need not be kept.
    pub(crate) fn feed(self, bytes: &[u8]) -> Self {
        let Self::Open(seen) = self else { return self };
        let expected = PREFACE.get(seen..).unwrap_or_default();
        let same = expected
            .iter()
            .zip(bytes)
            .take_while(|(a, b)| a == b)
            .count();
        if seen + same == PREFACE.len() {
            return Self::Http2;
        }
        match bytes.get(same) {
            None => Self::Open(seen + same),
            Some(_) if begins_method(PREFACE.get(..seen).unwrap_or_default(), bytes) => Self::Http1,
            Some(_) => Self::Http2,
        }
    }

    /// The part of the preface that had come before the bytes that decided: the machine has not seen it.
    pub(crate) fn held_back(self) -> &'static [u8] {
        match self {
            Self::Open(seen) => PREFACE.get(..seen).unwrap_or_default(),
            Self::Http2 | Self::Http1 => &[],
        }
    }
}

/// As far as they go, do the bytes of both pieces begin like a request of HTTP/1.x?
fn begins_method(first: &[u8], rest: &[u8]) -> bool {
    METHODS.iter().any(|method| {
        let mut bytes = first.iter().chain(rest);
        method
            .iter()
            .all(|wanted| bytes.next().is_none_or(|byte| byte == wanted))
    })
}

/// The whole answer to an HTTP/1.x request.
pub(crate) const ANSWER: &[u8] = b"HTTP/1.1 505 HTTP Version Not Supported\r\n\
    content-type: text/plain; charset=utf-8\r\n\
    connection: close\r\n\
    heddle-reason: PROTOCOL_ERROR\r\n\
    content-length: 166\r\n\
    \r\n\
    PROTOCOL_ERROR: this listener of heddle-proxy takes HTTP/2 (h2c with prior knowledge), as gRPC \
    clients speak it; use a gRPC client, or: curl --http2-prior-knowledge\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    fn check(pieces: &[&[u8]], expect: Sniff) {
        let seen = pieces
            .iter()
            .fold(Sniff::Open(0), |sniff, piece| sniff.feed(piece));
        assert_eq!(seen, expect, "{pieces:?}");
    }

    #[test]
    fn the_preface_is_told_from_a_method() {
        check(&[b"PRI * HTTP/2.0\r\n"], Sniff::Http2);
        check(&[b"P", b"R", b"I", b" "], Sniff::Http2);
        check(&[b"PR"], Sniff::Open(2));
        check(&[b""], Sniff::Open(0));
        check(&[b"GET / HTTP/1.1\r\n"], Sniff::Http1);
        check(&[b"P", b"OST /"], Sniff::Http1);
        check(&[b"PR", b"OPFIND"], Sniff::Http1);
        check(&[b"PRIX"], Sniff::Http2);
        check(&[b"INVALID CONNECTION PREFACE\r\n"], Sniff::Http2);
        check(&[b"PO"], Sniff::Http1);
        check(&[b"\x16\x03\x01"], Sniff::Http2);
        check(&[b"get /"], Sniff::Http2);
    }

    #[test]
    fn the_answer_has_the_length_it_says() {
        let text = std::str::from_utf8(ANSWER).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}", body.len())),
            "{}",
            body.len()
        );
    }
}
