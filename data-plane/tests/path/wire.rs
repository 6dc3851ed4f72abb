//! Raw HTTP/2, for what no client library sends or shows: frames and field blocks as bytes, in the order of the wire.
//! Knows no nodes and no calls.

use std::net::SocketAddr;

use bytes::Bytes;
use heddle_h2::hpack::{Decoder, Limits, Outcome};
use heddle_h2::{ErrorCode, Fields};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::fixture::within;

const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = len[1..].to_vec();
    bytes.extend_from_slice(&[kind, flags]);
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

pub(crate) type Pair = (&'static str, &'static str);

/// A field block of literals without indexing (RFC 7541 §6.2.2): nothing is remembered, nothing is checked.
pub(crate) fn block(fields: &[Pair]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        for text in [name, value] {
            bytes.push(u8::try_from(text.len()).unwrap());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    bytes
}

/// What a caller of the echo service sends.
pub(crate) const CALL: [Pair; 6] = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", "/test.Echo/Put"),
    (":authority", "echo.default"),
    ("content-type", "application/grpc"),
    ("te", "trailers"),
];

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Bytes,
}

impl Frame {
    /// The error code of a RST_STREAM or a GOAWAY.
    pub(crate) fn code(&self) -> ErrorCode {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        ErrorCode(u32::from_be_bytes(
            self.payload[at..at + 4].try_into().unwrap(),
        ))
    }
}

/// One side of a connection.
pub(crate) struct Wire {
    socket: TcpStream,
    decoder: Decoder,
}

impl Wire {
    pub(crate) async fn connect(address: SocketAddr) -> Self {
        let mut wire = Self::over(TcpStream::connect(address).await.unwrap());
        wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat())
            .await;
        wire
    }

    /// The same with little room in the socket: what is not read stays with the peer.
    pub(crate) async fn connect_narrow(address: SocketAddr) -> Self {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut wire = Self::over(socket.connect(address).await.unwrap());
        wire.send(&[PREFACE, &frame(SETTINGS, 0, 0, &[])[..]].concat())
            .await;
        wire
    }

    pub(crate) async fn accept(listener: &TcpListener) -> Self {
        let (socket, _) = listener.accept().await.unwrap();
        let mut wire = Self::over(socket);
        let mut preface = [0; PREFACE.len()];
        wire.socket.read_exact(&mut preface).await.unwrap();
        assert_eq!(&preface, PREFACE);
        wire.send(&frame(SETTINGS, 0, 0, &[])).await;
        wire
    }

    fn over(socket: TcpStream) -> Self {
        Self {
            socket,
            decoder: Decoder::new(4096),
        }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).await.unwrap();
    }

    /// The next frame; `None` when the connection has ended. Settings and pings are answered on the way.
    pub(crate) async fn frame(&mut self) -> Option<Frame> {
        // Around the whole wait: pings never end.
        within(self.unbounded_frame()).await
    }

    async fn unbounded_frame(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.socket.read_exact(&mut head).await.ok()?;
            let [a, b, c, kind, flags, stream @ ..] = head;
            let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap();
            let mut payload = vec![0; len];
            self.socket.read_exact(&mut payload).await.ok()?;
            if matches!(kind, SETTINGS | PING) {
                if flags & ACK == 0 {
                    let kept = if kind == PING { &payload[..] } else { &[] };
                    self.send(&frame(kind, ACK, 0, kept)).await;
                }
                continue;
            }
            return Some(Frame {
                kind,
                flags,
                stream: u32::from_be_bytes(stream),
                payload: payload.into(),
            });
        }
    }

    pub(crate) fn decode(&mut self, frame: &Frame) -> Fields {
        assert_eq!(frame.flags, frame.flags & (END_STREAM | END_HEADERS));
        let mut fields = Fields::new();
        let limits = Limits {
            list_bytes: 1 << 14,
            fields: 100,
            discarded_bytes: 1 << 20,
        };
        let outcome = self.decoder.decode(&frame.payload, limits, &mut fields);
        assert!(matches!(outcome, Ok(Outcome::Complete)), "{outcome:?}");
        fields
    }
}
