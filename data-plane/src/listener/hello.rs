//! The first stream of a link, answered on the worker itself: both sides say their version, node and incarnation.
//! The request's bytes come in, one response goes out. No calls are routed here.

use heddle_h2::{Fields, StreamId};
use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use prost::Message as _;

use crate::connection::Accepted;
use crate::keys::ConnKey;
use crate::upstream::link::{HELLO_PATH, VERSION, frame, unframe};
use crate::worker::Worker;

/// Longest Hello that is taken.
const HELLO_BYTES: usize = 64 * 1024;
/// gRPC's FAILED_PRECONDITION, INVALID_ARGUMENT and RESOURCE_EXHAUSTED.
const NO_COMMON_VERSION: &str = "9";
const INVALID: &str = "3";
const TOO_LARGE: &str = "8";

impl Worker {
    /// Whether a request on inbound is a Hello; if so, it is taken.
    pub(crate) fn begin_hello(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        end: bool,
        fields: &Fields,
    ) -> bool {
        if fields.path() != Some(HELLO_PATH) {
            return false;
        }
        let until = self.now + self.options().handshake_timeout;
        let Some(found) = self.conns.get_mut(conn) else {
            return true;
        };
        found.begin_hello(stream, until);
        if end {
            self.answer_hello(conn, stream);
        }
        true
    }

    pub(crate) fn on_hello_data(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        data: &[u8],
        end: bool,
    ) {
        self.release(conn, stream, data.len());
        let accepted = self.conns.get_mut(conn).and_then(|c| c.accepted_mut());
        match accepted.and_then(|accepted| accepted.push_hello(stream, data, HELLO_BYTES)) {
            Some(true) if end => self.answer_hello(conn, stream),
            Some(true) | None => {}
            Some(false) => self.refuse_hello(conn, stream, TOO_LARGE, "the Hello is over 64 KiB"),
        }
    }

    fn answer_hello(&mut self, conn: ConnKey, stream: StreamId) {
        let accepted = self.conns.get_mut(conn).and_then(|c| c.accepted_mut());
        let Some(bytes) = accepted.and_then(Accepted::take_hello) else {
            return;
        };
        let Some(hello) = unframe(&bytes).and_then(|message| HelloRequest::decode(message).ok())
        else {
            return self.refuse_hello(conn, stream, INVALID, "this is not one HelloRequest");
        };
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            let text = format!(
                "node {} speaks versions {} to {} of the link, and this proxy speaks {VERSION}: upgrade the older one",
                hello.node, hello.min_version, hello.max_version
            );
            return self.refuse_hello(conn, stream, NO_COMMON_VERSION, &text);
        }
        let answer = HelloResponse {
            version: VERSION,
            node: self.options().node.clone(),
            incarnation: self.options().incarnation.clone(),
        };
        self.reply.clear();
        self.reply.push(b":status", b"200");
        self.reply.push(b"content-type", b"application/grpc");
        if let Some(found) = self.conns.get_mut(conn) {
            let sent = found.headers(stream, &self.reply, false);
            let sent = sent.and_then(|_| found.data(stream, &frame(&answer), false));
            self.reply.clear();
            self.reply.push(b"grpc-status", b"0");
            // A link that was reset meanwhile is gone: nobody waits for the answer.
            let _ = sent.and_then(|_| found.headers(stream, &self.reply, true));
        }
        self.mark_dirty(conn);
    }

    fn refuse_hello(&mut self, conn: ConnKey, stream: StreamId, status: &str, text: &str) {
        self.reply.clear();
        self.reply.push(b":status", b"200");
        self.reply.push(b"content-type", b"application/grpc");
        self.reply.push(b"grpc-status", status.as_bytes());
        self.reply.push(
            b"grpc-message",
            crate::failure::percent_encode(text).as_bytes(),
        );
        let now = self.now;
        if let Some(found) = self.conns.get_mut(conn) {
            let _ = found.headers(stream, &self.reply, true);
            found.linger_on(stream, now);
        }
        self.mark_dirty(conn);
    }
}
