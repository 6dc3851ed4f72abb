//! A call of the benchmark on the wire, for client and backend: headers, message, and the check of the response.

use heddle_h2::Fields;

/// The proto service that the backends implement; proxies route by it.
pub(crate) const PROTO_SERVICE: &str = "bench.Echo";
const PATH: &[u8] = b"/bench.Echo/Unary";

/// gRPC's message prefix: a flag and the length.
const PREFIX: usize = 5;
/// The position of the call's number in the message, so that replies cannot be confused.
const NUMBER: std::ops::Range<usize> = PREFIX..PREFIX + 8;

/// Makes requests that differ from call to call, as those of a real client do.
pub(crate) struct Requests {
    fields: Fields,
    realistic: bool,
    message: Vec<u8>,
}

impl Requests {
    pub(crate) fn new(authority: &str, bytes: usize, realistic: bool) -> Self {
        let mut fields = Fields::new();
        fields.push(b":method", b"POST");
        fields.push(b":scheme", b"http");
        fields.push(b":path", PATH);
        fields.push(b":authority", authority.as_bytes());
        fields.push(b"content-type", b"application/grpc");
        fields.push(b"user-agent", b"grpc-go/1.85.0");
        fields.push(b"te", b"trailers");
        if realistic {
            fields.push(b"grpc-timeout", b"5000000u");
            fields.push(b"traceparent", b"");
            // as long as a signed token with a few claims
            let token = "eyJhbGciOiJFUzI1NiIsInR5cCI6IkpXVCJ9"
                .chars()
                .cycle()
                .take(263)
                .collect::<String>();
            fields.push(b"authorization", format!("Bearer {token}").as_bytes());
        }
        let len = u32::try_from(bytes).expect("a message's length");
        let mut message = vec![0];
        message.extend(len.to_be_bytes());
        message.extend((0..bytes).map(|at| u8::try_from(at % 251).expect("below 251")));
        Self {
            fields,
            realistic,
            message,
        }
    }

    /// The headers of a call.
    pub(crate) fn fields(&mut self, number: u64) -> &Fields {
        if self.realistic {
            let trace = number.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let traceparent = format!("00-{trace:016x}{number:016x}-{trace:016x}-01");
            self.fields.set(b"traceparent", traceparent.as_bytes());
            let timeout = format!("{}u", 4_000_000 + trace % 1_000_000);
            self.fields.set(b"grpc-timeout", timeout.as_bytes());
        }
        &self.fields
    }

    /// The message of a call, which is also its reply.
    pub(crate) fn message(&mut self, number: u64) -> &[u8] {
        self.message[NUMBER].copy_from_slice(&number.to_be_bytes());
        &self.message
    }

    pub(crate) fn message_len(&self) -> usize {
        self.message.len()
    }

    /// Whether `piece` is the part of that call's message at offset `at`.
    pub(crate) fn is_piece(&mut self, number: u64, at: usize, piece: &[u8]) -> bool {
        self.message(number).get(at..at + piece.len()) == Some(piece)
    }
}

/// The headers of every reply.
pub(crate) fn response() -> Fields {
    let mut fields = Fields::new();
    fields.push(b":status", b"200");
    fields.push(b"content-type", b"application/grpc");
    fields
}

pub(crate) fn trailers() -> Fields {
    let mut fields = Fields::new();
    fields.push(b"grpc-status", b"0");
    fields.push(b"grpc-message", b"");
    fields
}

pub(crate) fn is_response(fields: &Fields) -> bool {
    fields.status() == Some(200) && fields.get(b"content-type") == Some(b"application/grpc")
}

pub(crate) fn is_trailers(fields: &Fields) -> bool {
    fields.get(b"grpc-status") == Some(b"0")
}
