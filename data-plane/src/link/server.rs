//! The accepting side of a link's handshake: receives the Hello and answers it on the worker itself.

use std::time::Instant;

use heddle_h2::{Fields, StreamId};
use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use prost::Message as _;

use super::Identity;
use super::wire::{HELLO_PATH, VERSION, frame, unframe};
use crate::connection::{Accepted, Conn};

/// Longest Hello that is accepted.
const HELLO_BYTES: usize = 64 * 1024;
/// gRPC's FAILED_PRECONDITION, INVALID_ARGUMENT and RESOURCE_EXHAUSTED.
const NO_COMMON_VERSION: &str = "9";
const INVALID: &str = "3";
const TOO_LARGE: &str = "8";

/// What is needed to answer.
#[derive(Debug)]
pub(crate) struct Answering<'a> {
    pub(crate) own: Identity<'a>,
    /// Lent for header lists.
    pub(crate) reply: &'a mut Fields,
    pub(crate) now: Instant,
}

/// Whether a request is a Hello.
pub(crate) fn is_hello(request: &Fields) -> bool {
    request.path() == Some(HELLO_PATH)
}

/// Bytes of the Hello on `stream` have arrived; `end` if it is complete.
pub(crate) fn on_data(
    conn: &mut Conn,
    stream: StreamId,
    data: &[u8],
    end: bool,
    answering: Answering<'_>,
) {
    let accepted = conn.accepted_mut();
    match accepted.and_then(|accepted| accepted.push_hello(stream, data, HELLO_BYTES)) {
        Some(true) if end => answer(conn, stream, answering),
        Some(true) | None => {}
        Some(false) => refuse(
            conn,
            stream,
            TOO_LARGE,
            "the Hello is over 64 KiB",
            answering,
        ),
    }
}

fn answer(conn: &mut Conn, stream: StreamId, answering: Answering<'_>) {
    let Some(bytes) = conn.accepted_mut().and_then(Accepted::take_hello) else {
        return;
    };
    let Some(hello) = unframe(&bytes).and_then(|message| HelloRequest::decode(message).ok()) else {
        let text = "the message is not a HelloRequest";
        return refuse(conn, stream, INVALID, text, answering);
    };
    if !(hello.min_version..=hello.max_version).contains(&VERSION) {
        let text = format!(
            "node {} speaks versions {} to {} of the link, and this proxy speaks {VERSION}: upgrade the older one",
            hello.node, hello.min_version, hello.max_version
        );
        return refuse(conn, stream, NO_COMMON_VERSION, &text, answering);
    }
    let Answering { own, reply, .. } = answering;
    if let Some(accepted) = conn.accepted_mut() {
        accepted.set_link();
    }
    let response = HelloResponse {
        version: VERSION,
        node: own.node.to_owned(),
        incarnation: own.incarnation.to_owned(),
    };
    begin_reply(reply);
    let sent = conn.headers(stream, reply, false);
    let sent = sent.and_then(|_| conn.data(stream, &frame(&response), false));
    reply.clear();
    reply.push(b"grpc-status", b"0");
    // If the stream was reset meanwhile, nobody waits for the answer.
    let _ = sent.and_then(|_| conn.headers(stream, reply, true));
}

fn refuse(
    conn: &mut Conn,
    stream: StreamId,
    status: &str,
    text: &str,
    Answering { reply, now, .. }: Answering<'_>,
) {
    begin_reply(reply);
    reply.push(b"grpc-status", status.as_bytes());
    reply.push(
        b"grpc-message",
        crate::failure::percent_encode(text).as_bytes(),
    );
    let _ = conn.headers(stream, reply, true);
    conn.linger_on(stream, now);
}

fn begin_reply(reply: &mut Fields) {
    reply.clear();
    reply.push(b":status", b"200");
    reply.push(b"content-type", b"application/grpc");
}
