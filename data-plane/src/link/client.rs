//! The opening side of a link's handshake: sends the Hello and checks the answer.

use std::time::Instant;

use heddle_h2::Fields;
use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use prost::Message as _;

use super::Identity;
use super::wire::{HELLO_PATH, VERSION, frame, unframe};
use crate::connection::{Conn, HELLO};

/// Longest answer to Hello that is read. Real answers are far smaller, and a longer one is invalid anyway.
pub(crate) const ANSWER_BYTES: usize = 16 * 1024;

/// Sends the Hello to `node`; the answer must be complete by `until`. The error says why it could not be sent.
pub(crate) fn send_hello(
    conn: &mut Conn,
    own: Identity<'_>,
    node: &str,
    until: Instant,
) -> Result<(), String> {
    let hello = HelloRequest {
        min_version: VERSION,
        max_version: VERSION,
        node: own.node.to_owned(),
        incarnation: own.incarnation.to_owned(),
        grants: Vec::new(),
    };
    let authority = format!("{node}.node.mesh");
    let mut request = Fields::new();
    for (name, value) in [
        (&b":method"[..], &b"POST"[..]),
        (b":scheme", b"http"),
        (b":path", HELLO_PATH),
        (b":authority", authority.as_bytes()),
        (b"content-type", b"application/grpc"),
        (b"te", b"trailers"),
    ] {
        request.push(name, value);
    }
    let stream = conn
        .open(&request, HELLO, false)
        .map_err(|error| error.to_string())?;
    conn.data(stream, &frame(&hello), true)
        .map_err(|gone| gone.to_string())?;
    if let Some(opened) = conn.opened_mut() {
        opened.await_hello(until);
    }
    Ok(())
}

/// Checks a complete answer and its `trailers`. The error says why the peer is not the proxy of `node`.
pub(crate) fn check_answer(bytes: &[u8], trailers: &Fields, node: &str) -> Result<(), String> {
    let answer = unframe(bytes).and_then(|message| HelloResponse::decode(message).ok());
    match answer {
        Some(answer) if answer.version != VERSION => Err(format!(
            "it speaks version {} of the link and this proxy {VERSION}",
            answer.version
        )),
        Some(answer) if answer.node != node => Err(format!(
            "it is node {}, not {node}: the address now belongs to another node",
            answer.node
        )),
        Some(_) => Ok(()),
        None => {
            let text = trailers
                .get(b"grpc-message")
                .unwrap_or(b"its answer to Hello is not that of a proxy");
            Err(String::from_utf8_lossy(text).into_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_expected_node_in_the_same_version_is_taken() {
        let answer = |version, node: &str| {
            frame(&HelloResponse {
                version,
                node: node.to_owned(),
                incarnation: "1".to_owned(),
            })
        };
        let mut refused = Fields::new();
        refused.push(b"grpc-message", b"upgrade the older one");
        for (bytes, trailers, expect) in [
            (answer(VERSION, "b"), Fields::new(), Ok(())),
            (
                answer(VERSION + 1, "b"),
                Fields::new(),
                Err("speaks version"),
            ),
            (
                answer(VERSION, "c"),
                Fields::new(),
                Err("belongs to another node"),
            ),
            (Vec::new(), refused, Err("upgrade the older one")),
            (Vec::new(), Fields::new(), Err("not that of a proxy")),
        ] {
            match (check_answer(&bytes, &trailers, "b"), expect) {
                (Ok(()), Ok(())) => {}
                (Err(text), Err(part)) => assert!(text.contains(part), "{text}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
