//! A client and a server connection joined in memory on virtual time, with what each received as
//! plain values. The bytes may be split anywhere.

use std::time::{Duration, Instant};

use crate::{
    Config, Connection, ConnectionError, Drained, ErrorCode, Event, Fields, Initiator, Kind,
    StreamId,
};

/// An event with its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Headers {
        stream: u32,
        token: u64,
        kind: Kind,
        end: bool,
        fields: Vec<(String, String)>,
    },
    TooLarge {
        stream: u32,
        kind: Kind,
        end: bool,
    },
    Data {
        stream: u32,
        bytes: Vec<u8>,
        end: bool,
    },
    Reset {
        stream: u32,
        code: ErrorCode,
        unprocessed: bool,
        by: Initiator,
    },
    GoAway {
        code: ErrorCode,
        debug: Vec<u8>,
    },
    PingAck([u8; 8]),
    Settings,
    Error(ErrorCode),
}

/// The beginning of virtual time.
#[allow(clippy::disallowed_methods)] // there is no other way to an Instant; only differences count
pub(super) fn epoch() -> Instant {
    Instant::now()
}

/// A list from pairs.
pub(super) fn list(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in pairs {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

/// A gRPC-like request.
pub(super) fn request() -> Fields {
    list(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/echo.Echo/Unary"),
        (":authority", "echo"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ])
}

pub(super) fn response() -> Fields {
    list(&[(":status", "200"), ("content-type", "application/grpc")])
}

pub(super) fn trailers() -> Fields {
    list(&[("grpc-status", "0"), ("grpc-message", "")])
}

/// One connection and what it saw.
pub(super) struct Side {
    pub(super) conn: Connection,
    pub(super) fields: Fields,
    pub(super) seen: Vec<Seen>,
    pub(super) drained: Vec<Drained>,
    /// Everything that it wrote, if kept.
    pub(super) wrote: Option<Vec<u8>>,
    /// Release DATA as soon as it comes.
    pub(super) releases: bool,
}

impl Side {
    pub(super) fn new(conn: Connection) -> Self {
        Self {
            conn,
            fields: Fields::new(),
            seen: Vec::new(),
            drained: Vec::new(),
            wrote: None,
            releases: true,
        }
    }

    /// Takes bytes; keeps what comes of them.
    pub(super) fn take(&mut self, mut bytes: &[u8], now: Instant) -> Result<(), ConnectionError> {
        loop {
            match self.conn.recv(&mut bytes, &mut self.fields, now) {
                Ok(Some(event)) => {
                    if let Event::Data { stream, data, .. } = event
                        && self.releases
                    {
                        self.conn.release(stream, data.len());
                    }
                    self.seen.push(see(event, &self.fields));
                }
                Ok(None) => {
                    assert!(bytes.is_empty(), "recv leaves input behind");
                    break;
                }
                Err(error) => {
                    if self.seen.last() != Some(&Seen::Error(error.code)) {
                        self.seen.push(Seen::Error(error.code));
                    }
                    return Err(error);
                }
            }
        }
        self.poll();
        Ok(())
    }

    pub(super) fn poll(&mut self) {
        while let Some(drained) = self.conn.poll_drained() {
            self.drained.push(drained);
        }
    }

    /// Takes up to `max` bytes of output.
    pub(super) fn give(&mut self, max: usize) -> Vec<u8> {
        let out = self.conn.output();
        let bytes = out[..out.len().min(max)].to_vec();
        self.conn.advance(bytes.len());
        self.poll();
        if let Some(wrote) = &mut self.wrote {
            wrote.extend_from_slice(&bytes);
        }
        bytes
    }

    /// What was seen since the last call, without Settings.
    pub(super) fn news(&mut self) -> Vec<Seen> {
        let mut seen = std::mem::take(&mut self.seen);
        seen.retain(|seen| *seen != Seen::Settings);
        seen
    }

    pub(super) fn drained_bytes(&self) -> usize {
        self.drained.iter().map(|drained| drained.bytes).sum()
    }
}

pub(super) fn see(event: Event<'_>, fields: &Fields) -> Seen {
    match event {
        Event::Headers {
            stream,
            token,
            kind,
            end_stream,
        } => Seen::Headers {
            stream: stream.get(),
            token,
            kind,
            end: end_stream,
            fields: pairs(fields),
        },
        Event::TooLarge {
            stream,
            kind,
            end_stream,
            ..
        } => Seen::TooLarge {
            stream: stream.get(),
            kind,
            end: end_stream,
        },
        Event::Data {
            stream,
            data,
            end_stream,
            ..
        } => Seen::Data {
            stream: stream.get(),
            bytes: data.to_vec(),
            end: end_stream,
        },
        Event::Reset {
            stream,
            code,
            unprocessed,
            by,
            ..
        } => Seen::Reset {
            stream: stream.get(),
            code,
            unprocessed,
            by,
        },
        Event::GoAway { code, debug } => Seen::GoAway {
            code,
            debug: debug.to_vec(),
        },
        Event::PingAck(payload) => Seen::PingAck(payload),
        Event::Settings => Seen::Settings,
    }
}

pub(super) fn pairs(fields: &Fields) -> Vec<(String, String)> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    fields
        .iter()
        .map(|field| (text(field.name), text(field.value)))
        .collect()
}

/// Client and server.
pub(super) struct Pair {
    pub(super) client: Side,
    pub(super) server: Side,
    pub(super) now: Instant,
}

impl Pair {
    /// Joined, with settings exchanged.
    pub(super) fn new() -> Self {
        let mut pair = Self::with(Config::default(), Config::default());
        pair.run();
        pair
    }

    /// Joined, nothing exchanged yet.
    pub(super) fn with(client: Config, server: Config) -> Self {
        let now = epoch();
        Self {
            client: Side::new(Connection::client(client, now)),
            server: Side::new(Connection::server(server, now)),
            now,
        }
    }

    /// Moves up to `max` bytes each way; false if there were none.
    pub(super) fn step(&mut self, max: usize) -> bool {
        let up = self.client.give(max);
        let down = self.server.give(max);
        let moved = !up.is_empty() || !down.is_empty();
        let _ = self.server.take(&up, self.now);
        let _ = self.client.take(&down, self.now);
        moved
    }

    /// Moves bytes until there are none.
    pub(super) fn run(&mut self) {
        for _ in 0..100_000 {
            if !self.step(usize::MAX) {
                return;
            }
        }
        panic!("the two never fall silent");
    }

    pub(super) fn pass(&mut self, time: Duration) {
        self.now += time;
        let _ = self.client.conn.on_deadline(self.now);
        let _ = self.server.conn.on_deadline(self.now);
    }

    /// Opens a stream and lets the server see it.
    pub(super) fn open(&mut self, end: bool) -> StreamId {
        let stream = self.client.conn.open(&request(), 7, end).unwrap();
        self.run();
        stream
    }
}
