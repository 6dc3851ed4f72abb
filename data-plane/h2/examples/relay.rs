//! A relay in memory, for counting instructions: callers and a backend are machines too, but only
//! what `relay_turn` does is of interest.
//!
//! ```text
//! cargo build --release -p heddle-h2 --example relay
//! valgrind --tool=callgrind --collect-atstart=no '--toggle-collect=*relay_turn*' \
//!     target/release/examples/relay 20000 plain
//! ```
//!
//! Arguments: calls, `plain` or `rich` headers, callers, streams of each, bytes of each message.

use std::time::Instant;

use heddle_h2::{Config, Connection, Event, Fields, Kind, StreamId};

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize, or: usize| args.get(at).and_then(|n| n.parse().ok()).unwrap_or(or);
    let rich = args.get(1).is_some_and(|kind| kind == "rich");
    let mut bench = Bench::new(number(2, 8), number(3, 32), number(4, 128), rich);
    bench.run(1000);
    let (before, calls) = (bench.done, number(0, 20_000));
    #[allow(clippy::disallowed_methods)] // this is the application: it may look at the clock
    let start = Instant::now();
    bench.run(calls);
    let done = bench.done - before;
    #[allow(clippy::print_stdout)]
    {
        let each = start.elapsed().as_nanos() / done.max(1) as u128;
        println!("{done} calls, {each} ns each with both ends");
    }
}

/// One caller and its connection's other end in the relay.
struct Caller {
    conn: Connection,
    relay: Connection,
    /// Streams that came to an end and are to be opened again.
    idle: usize,
}

struct Bench {
    now: Instant,
    callers: Vec<Caller>,
    upstream: Connection,
    backend: Connection,
    /// Where the calls of `upstream` came from, by stream id / 2.
    routes: Vec<(usize, StreamId)>,
    /// Where the calls of each caller went to, by stream id / 2.
    back: Vec<Vec<StreamId>>,
    request: Fields,
    response: Fields,
    trailers: Fields,
    message: Vec<u8>,
    fields: Fields,
    done: usize,
    rich: bool,
    opened: u64,
}

fn list(pairs: &[(&str, &str)]) -> Fields {
    let mut fields = Fields::new();
    for (name, value) in pairs {
        fields.push(name.as_bytes(), value.as_bytes());
    }
    fields
}

impl Bench {
    #[allow(clippy::disallowed_methods)] // this is the application
    fn new(callers: usize, streams: usize, bytes: usize, rich: bool) -> Self {
        let now = Instant::now();
        let mut request = list(&[
            (":method", "POST"),
            (":scheme", "http"),
            (":path", "/echo.Echo/Unary"),
            (":authority", "echo"),
            ("content-type", "application/grpc"),
            ("user-agent", "grpc-go/1.80.0"),
            ("te", "trailers"),
        ]);
        if rich {
            let token = format!("Bearer {}", "abcDEF0123456789_-".repeat(15));
            request.push(b"grpc-timeout", b"999");
            request.push(b"traceparent", b"");
            request.push(b"authorization", token.as_bytes());
        }
        let caller = || Caller {
            conn: Connection::client(Config::default(), now),
            relay: Connection::server(Config::default(), now),
            idle: streams,
        };
        Self {
            now,
            callers: (0..callers).map(|_| caller()).collect(),
            upstream: Connection::client(Config::default(), now),
            backend: Connection::server(Config::default(), now),
            routes: Vec::new(),
            back: vec![Vec::new(); callers],
            request,
            response: list(&[(":status", "200"), ("content-type", "application/grpc")]),
            trailers: list(&[("grpc-status", "0"), ("grpc-message", "")]),
            message: vec![b'm'; bytes],
            fields: Fields::new(),
            done: 0,
            rich,
            opened: 0,
        }
    }

    fn run(&mut self, calls: usize) {
        if self.done == 0 {
            // Settings first: the backend's limit of streams must be known.
            for _ in 0..3 {
                self.turn();
            }
        }
        let until = self.done + calls;
        while self.done < until {
            self.call();
            self.turn();
        }
    }

    fn turn(&mut self) {
        let callers = self.callers.iter_mut();
        let requests: Vec<Vec<u8>> = callers.map(|caller| written(&mut caller.conn)).collect();
        let replies = written(&mut self.backend);
        let (up, down) = self.relay_turn(&requests, &replies);
        self.serve(&up);
        self.finish(&down);
    }

    /// Callers open what is idle.
    fn call(&mut self) {
        for caller in &mut self.callers {
            while caller.idle > 0 && caller.conn.open_slots() > 0 {
                self.opened += 1;
                if self.rich {
                    let n = self.opened.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                    let trace = format!("00-{n:016x}{n:016x}-{n:016x}-01");
                    self.request.set(b"traceparent", trace.as_bytes());
                    let timeout = format!("{}u", 900_000 + n % 99_999);
                    self.request.set(b"grpc-timeout", timeout.as_bytes());
                }
                let Ok(stream) = caller.conn.open(&self.request, 0, false) else {
                    return;
                };
                let _ = caller.conn.data(stream, &self.message, true);
                caller.idle -= 1;
            }
        }
    }

    /// What a relay does in one turn of its loop: reads everything, then flushes everything.
    #[inline(never)]
    fn relay_turn(&mut self, requests: &[Vec<u8>], replies: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
        for (at, bytes) in requests.iter().enumerate() {
            self.forward(at, bytes);
        }
        self.give_back(replies);
        let up = written(&mut self.upstream);
        let down = self
            .callers
            .iter_mut()
            .map(|caller| written(&mut caller.relay))
            .collect();
        (up, down)
    }

    fn forward(&mut self, at: usize, mut input: &[u8]) {
        let Some(caller) = self.callers.get_mut(at) else {
            return;
        };
        let (relay, back) = (&mut caller.relay, &mut self.back[at]);
        while let Ok(Some(event)) = relay.recv(&mut input, &mut self.fields, self.now) {
            match event {
                Event::Headers {
                    stream, end_stream, ..
                } => {
                    let opened = self.upstream.open(&self.fields, 0, end_stream);
                    let Ok(up) = opened else { continue };
                    set(&mut self.routes, up, (at, stream));
                    set(back, stream, up);
                }
                Event::Data {
                    stream,
                    data,
                    end_stream,
                    ..
                } => {
                    let up = back[stream.get() as usize / 2];
                    let sent = self.upstream.data(up, data, end_stream).unwrap_or(0);
                    relay.release(stream, sent);
                }
                _ => {}
            }
        }
    }

    fn give_back(&mut self, mut input: &[u8]) {
        let upstream = &mut self.upstream;
        while let Ok(Some(event)) = upstream.recv(&mut input, &mut self.fields, self.now) {
            match event {
                Event::Headers {
                    stream,
                    kind,
                    end_stream,
                    ..
                } => {
                    let (at, down) = self.routes[stream.get() as usize / 2];
                    let relay = &mut self.callers[at].relay;
                    let _ = relay.headers(down, &self.fields, end_stream);
                    if kind == Kind::Trailers {
                        self.done += 1;
                    }
                }
                Event::Data {
                    stream,
                    data,
                    end_stream,
                    ..
                } => {
                    let (at, down) = self.routes[stream.get() as usize / 2];
                    let relay = &mut self.callers[at].relay;
                    let sent = relay.data(down, data, end_stream).unwrap_or(0);
                    upstream.release(stream, sent);
                }
                _ => {}
            }
        }
        while let Some(drained) = upstream.poll_drained() {
            let (at, down) = self.routes[drained.stream.get() as usize / 2];
            self.callers[at].relay.release(down, drained.bytes);
        }
        for caller in &mut self.callers {
            while caller.relay.poll_drained().is_some() {}
        }
    }

    fn serve(&mut self, mut input: &[u8]) {
        let backend = &mut self.backend;
        while let Ok(Some(event)) = backend.recv(&mut input, &mut self.fields, self.now) {
            if let Event::Data {
                stream,
                data,
                end_stream,
                ..
            } = event
            {
                backend.release(stream, data.len());
                if end_stream {
                    let _ = backend.headers(stream, &self.response, false);
                    let _ = backend.data(stream, &self.message, false);
                    let _ = backend.headers(stream, &self.trailers, true);
                }
            }
        }
    }

    fn finish(&mut self, down: &[Vec<u8>]) {
        for (caller, mut bytes) in self.callers.iter_mut().zip(down.iter().map(Vec::as_slice)) {
            let conn = &mut caller.conn;
            while let Ok(Some(event)) = conn.recv(&mut bytes, &mut self.fields, self.now) {
                match event {
                    Event::Data { stream, data, .. } => conn.release(stream, data.len()),
                    Event::Headers {
                        kind: Kind::Trailers,
                        ..
                    } => caller.idle += 1,
                    _ => {}
                }
            }
        }
    }
}

fn set<T: Copy>(table: &mut Vec<T>, stream: StreamId, value: T) {
    let at = stream.get() as usize / 2;
    if at >= table.len() {
        table.resize(at + 1, value);
    }
    table[at] = value;
}

fn written(conn: &mut Connection) -> Vec<u8> {
    let bytes = conn.output().to_vec();
    conn.advance(bytes.len());
    bytes
}
