//! Issue 10, F2: an accepted connection whose transport has a handshake, and whose reads may have to write first.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::connection::scripted::{ANSWER, HELLO, RENEWAL, Script, Scripted};

/// Preface and empty SETTINGS of a client, and a PING.
const PREFACE: &[u8] =
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x08\x06\0\0\0\0\0pingping";

struct Accepted {
    exchange: Exchange,
    conn: ConnKey,
    client: UnixStream,
    script: Arc<Script>,
}

impl Accepted {
    fn new() -> Self {
        let mut exchange = exchange();
        let (ours, client) = socket();
        client.set_nonblocking(true).unwrap();
        let script = Arc::new(Script::default());
        let socket = mio::net::UnixStream::from_std(ours);
        let transport = Transport::Scripted(Scripted::new(socket, Arc::clone(&script)));
        let conn = exchange.accept(Role::Outbound, transport).unwrap();
        Self {
            exchange,
            conn,
            client,
            script,
        }
    }

    /// The client sends bytes, and the event loop reports them.
    fn send(&mut self, bytes: &[u8]) {
        self.client.write_all(bytes).unwrap();
        self.read();
    }

    fn read(&mut self) {
        self.exchange.read(self.conn, &mut [0; 4096]);
        self.exchange.flush_all();
    }

    fn set_room(&mut self, has_room: bool) {
        self.script.has_room.store(has_room, Ordering::Relaxed);
        if has_room {
            match self.exchange.on_writable(self.conn) {
                true => self.exchange.read(self.conn, &mut [0; 4096]),
                false => drop(self.exchange.advance_handshake(self.conn)),
            }
            self.exchange.flush_all();
        }
    }

    /// What the client has received.
    fn received(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.client.read_to_end(&mut bytes) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
        bytes
    }

    fn is_open(&self) -> bool {
        self.exchange.conns.get(self.conn).is_some()
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_accepted_connection_carries_its_protocol_after_the_handshake() {
    let mut accepted = Accepted::new();
    accepted.read();
    assert_eq!(accepted.received(), b"", "nothing before the handshake");
    accepted.send(&[HELLO]);
    assert_eq!(accepted.received(), b"", "the answer waits for room");
    accepted.set_room(true);
    assert_eq!(accepted.received(), [ANSWER], "no protocol was sniffed yet");
    accepted.send(PREFACE);
    let received = accepted.received();
    assert!(contains(&received, b"pingping"), "{received:?}");
}

#[test]
fn a_read_that_has_to_write_goes_on_when_there_is_room() {
    let mut accepted = Accepted::new();
    accepted.set_room(true);
    accepted.send(&[HELLO]);
    assert_eq!(accepted.received(), [ANSWER]);
    accepted.set_room(false);
    accepted.script.renews.store(true, Ordering::Relaxed);
    accepted.send(PREFACE);
    assert_eq!(accepted.received(), b"");
    assert!(accepted.is_open());
    accepted.set_room(true);
    let received = accepted.received();
    assert_eq!(received.first(), Some(&RENEWAL), "written by the read");
    assert!(contains(&received, b"pingping"), "{received:?}");
}

#[test]
fn what_the_transport_took_is_written_even_if_nothing_follows() {
    let mut accepted = Accepted::new();
    accepted.set_room(true);
    accepted.send(&[HELLO]);
    accepted.send(PREFACE);
    accepted.received();
    accepted.set_room(false);
    // The answer to a PING, which the transport takes and cannot write.
    accepted.send(b"\0\0\x08\x06\0\0\0\0\0pongpong");
    assert_eq!(accepted.received(), b"");
    accepted.set_room(true);
    assert!(contains(&accepted.received(), b"pongpong"));
}

#[test]
fn a_failed_handshake_closes_the_connection() {
    let mut accepted = Accepted::new();
    accepted.send(b"x");
    assert!(!accepted.is_open());
    assert_eq!(accepted.exchange.conns.accepted(), 0);
    assert_eq!(accepted.client.read(&mut [0]).unwrap(), 0, "it is closed");
}
