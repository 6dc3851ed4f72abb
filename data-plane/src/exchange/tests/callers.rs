//! Issue 10, F3: calls of a caller that does not speak HTTP/2, to a server that does.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;

use heddle_h2::{Config, Connection, Event, Fields, Kind, StreamId};
use tokio::sync::mpsc;

use super::memory_caller::{Answer, MemoryCaller};
use super::*;
use crate::exchange::call::CallerStreamId;
use crate::exchange::finish::caller_end::CallerEnd;
use crate::keys::CallKey;

/// An exchange whose caller is in memory, with the server that answers the proxy's own services.
struct Pair {
    exchange: Exchange,
    conn: ConnKey,
    _socket: UnixStream,
    internal: mpsc::Receiver<UnixStream>,
    server: Option<(UnixStream, Connection)>,
    /// What the server received.
    seen: Vec<Seen>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    Request(StreamId),
    Data(Vec<u8>, bool),
    Trailers,
    Reset,
}

impl Pair {
    fn new() -> Self {
        let (hand, internal) = mpsc::channel(1);
        let mut exchange = exchange_of(WorkerOptions::default(), hand);
        let (ours, theirs) = socket();
        Self {
            conn: accept(&mut exchange, ours),
            exchange,
            _socket: theirs,
            internal,
            server: None,
            seen: Vec::new(),
        }
    }

    /// Begins a call to the proxy's own services; the server gets it.
    fn call(&mut self) -> (MemoryCaller, CallKey) {
        let caller = MemoryCaller::new();
        let mut request = Fields::new();
        for (name, value) in [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/grpc.health.v1.Health/Watch"),
            (":authority", "localhost"),
            ("content-type", "application/grpc"),
        ] {
            request.push(name.as_bytes(), value.as_bytes());
        }
        let stream = CallerStreamId::Memory(caller.0);
        let (conn, exchange) = (self.conn, &mut self.exchange);
        exchange.on_request(conn, stream, false, &mut request);
        let call = caller.inbox().call.unwrap();
        self.run();
        (caller, call)
    }

    /// Moves bytes between the exchange and the server until neither has any.
    fn run(&mut self) {
        loop {
            for key in self.exchange.conns.keys() {
                self.exchange.read(key, &mut [0; 64 * 1024]);
            }
            self.exchange.flush_all();
            if let Ok(socket) = self.internal.try_recv() {
                let h2 = Connection::server(Config::default(), self.exchange.now);
                self.server = Some((socket, h2));
            }
            if !self.serve() {
                return;
            }
        }
    }

    /// Whether the server received or sent anything.
    fn serve(&mut self) -> bool {
        let Some((socket, h2)) = &mut self.server else {
            return false;
        };
        let mut buffer = [0; 64 * 1024];
        let len = match socket.read(&mut buffer) {
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        };
        let (mut bytes, mut fields) = (&buffer[..len], Fields::new());
        while let Some(event) = h2.recv(&mut bytes, &mut fields, self.exchange.now).unwrap() {
            let seen = match event {
                Event::Headers {
                    stream,
                    kind: Kind::Request,
                    ..
                } => Seen::Request(stream),
                Event::Headers { .. } => Seen::Trailers,
                Event::Data {
                    stream,
                    data,
                    end_stream,
                    ..
                } => {
                    let seen = Seen::Data(data.to_vec(), end_stream);
                    h2.release(stream, data.len());
                    seen
                }
                Event::Reset { .. } => Seen::Reset,
                _ => continue,
            };
            self.seen.push(seen);
        }
        let written = match socket.write(h2.output()) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        };
        h2.advance(written);
        len + written > 0
    }

    fn server(&mut self) -> &mut Connection {
        &mut self.server.as_mut().unwrap().1
    }

    /// The stream of the last request.
    fn stream(&self) -> StreamId {
        let requests = self.seen.iter().rev();
        let mut requests = requests.filter_map(|seen| match seen {
            Seen::Request(stream) => Some(*stream),
            _ => None,
        });
        requests.next().unwrap()
    }
}

fn list(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in pairs {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

#[test]
fn a_caller_without_http2_sends_a_request_and_gets_its_answer() {
    let mut pair = Pair::new();
    let (caller, call) = pair.call();
    assert!(pair.exchange.on_request_data(call, b"abc", false));
    pair.exchange
        .on_request_trailers(call, &mut list(&[("done", "yes")]));
    pair.run();
    let stream = pair.stream();
    let sent = [
        Seen::Request(stream),
        Seen::Data(b"abc".to_vec(), false),
        Seen::Trailers,
    ];
    assert_eq!(pair.seen, sent);
    assert_eq!(
        caller.inbox().credit,
        3,
        "what was written may be sent again"
    );

    let server = pair.server();
    let head = list(&[(":status", "200"), ("content-type", "application/grpc")]);
    server.headers(stream, &head, false).unwrap();
    server.data(stream, b"defg", false).unwrap();
    server
        .headers(stream, &list(&[("grpc-status", "0")]), true)
        .unwrap();
    pair.run();
    let answer = [
        Answer::Headers(200, false),
        Answer::Data(b"defg".to_vec(), false),
        Answer::Trailers,
    ];
    assert_eq!(caller.inbox().answers, answer);
    assert_eq!(pair.exchange.calls.len(), 0, "the call has ended");
}

#[test]
fn a_call_lasts_until_its_slow_caller_has_taken_all() {
    let mut pair = Pair::new();
    let (caller, call) = pair.call();
    caller.be_slow();
    pair.exchange.on_request_data(call, b"", true);
    pair.run();
    let stream = pair.stream();
    // As much as the server may send without credit.
    let window = vec![0; 1 << 20];
    let server = pair.server();
    server
        .headers(stream, &list(&[(":status", "200")]), false)
        .unwrap();
    let sent = server.data(stream, &window, true).unwrap();
    assert!(sent < window.len(), "flow control has a bound");
    pair.run();
    let received = |caller: MemoryCaller| -> usize {
        let answers = caller.inbox().answers.into_iter();
        let sizes = answers.map(|answer| match answer {
            Answer::Data(data, _) => data.len(),
            _ => 0,
        });
        sizes.sum()
    };
    let first = received(caller);
    assert!(first < window.len(), "the server waits for the caller");
    let mut taken = 0;
    while taken < window.len() {
        let fresh = received(caller) - taken;
        assert!(fresh > 0, "credit reaches the server: {taken}");
        assert_eq!(pair.exchange.calls.len(), 1);
        pair.exchange.on_caller_took(call, fresh, fresh);
        taken += fresh;
        pair.run();
    }
    assert_eq!(pair.exchange.calls.len(), 0, "the call has ended");
}

#[test]
fn a_caller_without_http2_cancels_and_gets_failures() {
    let mut pair = Pair::new();
    let (caller, call) = pair.call();
    pair.exchange.on_caller_end(call, CallerEnd::Cancelled);
    pair.exchange
        .begin_turn(pair.exchange.now + SECOND, &mut []);
    while let Some(timer) = pair.exchange.next_timer() {
        pair.exchange.on_timer(timer);
    }
    pair.run();
    assert_eq!(pair.seen.last(), Some(&Seen::Reset));
    assert_eq!(caller.inbox().answers, [], "it gets no answer");
    assert!(
        !pair.exchange.on_request_data(call, b"late", false),
        "what comes later is not used"
    );

    let (caller, call) = pair.call();
    pair.exchange.on_request_trailers_too_large(call);
    assert_eq!(
        caller.inbox().answers,
        [Answer::Failure("REQUEST_TOO_LARGE")]
    );
}
