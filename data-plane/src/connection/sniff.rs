//! Distinguishes HTTP/1.1 from HTTP/2 by the first bytes of a connection, and has the answer to HTTP/1.1, which is not
//! supported yet. Takes bytes, gives the protocol; pure.

/// The start of HTTP/2's preface.
const PREFACE: &[u8] = b"PRI ";
/// What HTTP/1.x requests begin with. The HTTP/2 state machine rejects anything else.
const METHODS: [&[u8]; 9] = [
    b"GET ",
    b"HEAD ",
    b"POST ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"TRACE ",
    b"CONNECT ",
];
/// Length of the longest of them.
const LONGEST: usize = 8;

/// What the first bytes of a connection show about its protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sniff {
    /// These bytes can be the beginning of both.
    Open(Start),
    /// It is HTTP/2, or an unknown protocol, which the HTTP/2 state machine rejects.
    Http2,
    /// It is HTTP/1.x.
    Http1,
}

/// The bytes that arrived before the protocol was known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Start {
    bytes: [u8; LONGEST],
    len: usize,
}

impl Start {
    fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }
}

impl Sniff {
    /// Nothing has arrived yet.
    pub(crate) fn new() -> Self {
        Self::Open(Start::default())
    }

    /// Takes the next bytes, and keeps them while it stays `Open`.
    pub(crate) fn feed(self, bytes: &[u8]) -> Self {
        let Self::Open(mut start) = self else {
            return self;
        };
        for byte in bytes {
            let Some(next) = start.bytes.get_mut(start.len) else {
                return Self::Http2;
            };
            *next = *byte;
            start.len += 1;
            let seen = start.bytes();
            if METHODS.contains(&seen) {
                return Self::Http1;
            }
            let open = METHODS.iter().any(|method| method.starts_with(seen));
            if !open && (seen == PREFACE || !PREFACE.starts_with(seen)) {
                return Self::Http2;
            }
        }
        Self::Open(start)
    }

    /// The bytes that arrived before the protocol was known, which the HTTP/2 state machine has not seen.
    pub(crate) fn held_back(&self) -> &[u8] {
        match self {
            Self::Open(start) => start.bytes(),
            Self::Http2 | Self::Http1 => &[],
        }
    }
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

    fn check(pieces: &[&[u8]], expect: &str) {
        let seen = pieces
            .iter()
            .fold(Sniff::new(), |sniff, piece| sniff.feed(piece));
        let found = match seen {
            Sniff::Open(_) => std::str::from_utf8(seen.held_back()).unwrap(),
            Sniff::Http2 => "HTTP/2",
            Sniff::Http1 => "HTTP/1",
        };
        assert_eq!(found, expect, "{pieces:?}");
    }

    #[test]
    fn the_preface_is_told_from_a_method() {
        check(&[b"PRI * HTTP/2.0\r\n"], "HTTP/2");
        check(&[b"P", b"R", b"I", b" "], "HTTP/2");
        check(&[b"P", b"R"], "PR");
        check(&[b""], "");
        check(&[b"GET / HTTP/1.1\r\n"], "HTTP/1");
        check(&[b"P", b"OST", b" "], "HTTP/1");
        check(&[b"OPTIONS"], "OPTIONS");
        check(&[b"OPTIONS "], "HTTP/1");
        check(&[b"INVALID CONNECTION PREFACE"], "HTTP/2");
        check(&[b"PRIX"], "HTTP/2");
        check(&[b"\x16\x03\x01"], "HTTP/2");
        check(&[b"get /"], "HTTP/2");
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
