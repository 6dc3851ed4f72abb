//! One connection against frames written by hand. Its answers are shown as one line per frame, so
//! that a test reads like the exchange.

use std::time::{Duration, Instant};

use super::pair::{Seen, Side, epoch};
use crate::frame::{Head, PREFACE, flag, kind};
use crate::hpack::{Decoder, Encoder, Limits};
use crate::{Config, Connection, ErrorCode, Fields};

pub(super) const ES: u8 = flag::END_STREAM;
pub(super) const EH: u8 = flag::END_HEADERS;
pub(super) const PADDED: u8 = flag::PADDED;

/// A frame as bytes.
pub(super) fn raw(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let head = Head {
        len: u32::try_from(payload.len()).unwrap(),
        kind,
        flags,
        stream,
    };
    let mut bytes = head.to_bytes().to_vec();
    // The reserved bit is kept when a test sets it.
    bytes[5] |= (stream >> 24) as u8 & 0x80;
    bytes.extend_from_slice(payload);
    bytes
}

pub(super) fn data(stream: u32, bytes: &[u8], flags: u8) -> Vec<u8> {
    raw(kind::DATA, flags, stream, bytes)
}

pub(super) fn rst(stream: u32, code: ErrorCode) -> Vec<u8> {
    raw(kind::RST_STREAM, 0, stream, &code.0.to_be_bytes())
}

pub(super) fn window_update(stream: u32, by: u32) -> Vec<u8> {
    raw(kind::WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

pub(super) fn ping(payload: &[u8; 8]) -> Vec<u8> {
    raw(kind::PING, 0, 0, payload)
}

pub(super) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (id, value) in values {
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&value.to_be_bytes());
    }
    raw(kind::SETTINGS, 0, 0, &payload)
}

pub(super) fn settings_ack() -> Vec<u8> {
    raw(kind::SETTINGS, flag::ACK, 0, &[])
}

pub(super) fn goaway(last: u32, code: ErrorCode, debug: &[u8]) -> Vec<u8> {
    let payload = [&last.to_be_bytes(), &code.0.to_be_bytes(), debug].concat();
    raw(kind::GOAWAY, 0, 0, &payload)
}

/// The connection under test, and the other end as a script.
pub(super) struct Script {
    pub(super) side: Side,
    pub(super) now: Instant,
    encoder: Encoder,
    decoder: Decoder,
    /// The header lists that the connection sent, in order.
    pub(super) lists: Vec<Fields>,
}

impl Script {
    /// A server whose client has sent its preface and acknowledged.
    pub(super) fn server() -> Self {
        Self::server_with(Config::default())
    }

    pub(super) fn server_with(config: Config) -> Self {
        let mut script = Self::server_before_hello(config);
        script.send(&[PREFACE.to_vec(), settings(&[]), settings_ack()]);
        script.hello_done()
    }

    pub(super) fn server_before_hello(config: Config) -> Self {
        let now = epoch();
        Self::of(Connection::server(config, now), now)
    }

    /// A client whose server has sent its preface and acknowledged.
    pub(super) fn client() -> Self {
        Self::client_with(Config::default())
    }

    pub(super) fn client_with(config: Config) -> Self {
        let mut script = Self::client_before_hello(config);
        script.send(&[settings(&[]), settings_ack()]);
        script.hello_done()
    }

    pub(super) fn client_before_hello(config: Config) -> Self {
        let now = epoch();
        Self::of(Connection::client(config, now), now)
    }

    fn hello_done(mut self) -> Self {
        self.answers();
        self.side.seen.clear();
        self
    }

    fn of(conn: Connection, now: Instant) -> Self {
        Self {
            side: Side::new(conn),
            now,
            encoder: Encoder::new(),
            decoder: Decoder::new(4096),
            lists: Vec::new(),
        }
    }

    /// A HEADERS frame of that list.
    pub(super) fn headers(&mut self, stream: u32, fields: &Fields, flags: u8) -> Vec<u8> {
        let block = self.block(fields);
        raw(kind::HEADERS, flags | EH, stream, &block)
    }

    pub(super) fn block(&mut self, fields: &Fields) -> Vec<u8> {
        let mut block = Vec::new();
        self.encoder.encode(fields, &mut block);
        block
    }

    /// The connection reads these frames at once; returns what it saw.
    pub(super) fn send(&mut self, frames: &[Vec<u8>]) -> Vec<Seen> {
        let _ = self.side.take(&frames.concat(), self.now);
        self.side.news()
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let _ = self.side.conn.on_deadline(self.now);
    }

    /// What the connection wrote since the last call, one line a frame.
    pub(super) fn answers(&mut self) -> Vec<String> {
        let bytes = self.side.give(usize::MAX);
        let mut rest = bytes.strip_prefix(PREFACE).unwrap_or(&bytes);
        let mut lines = Vec::new();
        while let Some((head, tail)) = rest.split_first_chunk::<9>() {
            let head = Head::parse(head);
            let (payload, tail) = tail.split_at(head.len as usize);
            rest = tail;
            lines.push(self.line(&head, payload));
        }
        assert!(rest.is_empty(), "output ends inside a frame");
        lines
    }

    fn line(&mut self, head: &Head, payload: &[u8]) -> String {
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        let id = head.stream;
        let es = if head.has(ES) { " ES" } else { "" };
        match head.kind {
            kind::DATA => format!("DATA {id} {}{es}", payload.len()),
            kind::HEADERS => {
                assert!(head.has(EH), "split blocks are tested apart");
                let mut list = Fields::new();
                let limits = Limits {
                    list_bytes: 1 << 20,
                    fields: 1000,
                    discarded_bytes: 1 << 20,
                };
                self.decoder.decode(payload, limits, &mut list).unwrap();
                self.lists.push(list);
                format!("HEADERS {id}{es}")
            }
            kind::RST_STREAM => format!("RST {id} {}", ErrorCode(number(0))),
            kind::SETTINGS if head.has(flag::ACK) => "SETTINGS ACK".into(),
            kind::SETTINGS => "SETTINGS".into(),
            kind::PING if head.has(flag::ACK) => "PING ACK".into(),
            kind::PING => format!("PING {}", String::from_utf8_lossy(payload)),
            kind::GOAWAY => format!("GOAWAY {} {}", number(0), ErrorCode(number(4))),
            kind::WINDOW_UPDATE => format!("WINDOW {id} {}", number(0)),
            other => format!("frame {other} on {id}"),
        }
    }
}
