//! heddle-h2 as client or server of the plan: a small I/O loop that reads, writes, sends and
//! releases in random order and sizes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use heddle_h2::{Config, Connection, ErrorCode, Event, Fields, Kind, StreamId};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use crate::plan::{Call, End, Half, Header, Plan, Random, Role, Seen, body, by_name};

#[allow(
    clippy::disallowed_methods,
    reason = "the shell is where the machine's time comes from"
)]
fn now() -> Instant {
    Instant::now()
}

/// Plays the plan's calls on our side; what was seen of the other side's halves.
pub(crate) async fn drive(plan: &Plan, role: Role, pipe: DuplexStream) -> Vec<Seen> {
    let config = Config {
        stream_window: plan.our_window,
        output_high_water: plan.our_high_water,
        max_concurrent_streams: plan.max_streams,
        ..Config::default()
    };
    let machine = match role {
        Role::Client => Connection::client(config, now()),
        Role::Server => Connection::server(config, now()),
    };
    let mut shell = Shell {
        machine,
        role,
        random: Random::new(plan.seed ^ 0x0c5e),
        streams: vec![Stream::default(); plan.calls.len()],
        unreleased: Vec::new(),
        fields: Fields::new(),
        may_open: plan.max_streams >= 100 && plan.their_window >= 65_535,
        plan,
    };
    let (mut reader, mut writer) = tokio::io::split(pipe);
    let mut buffer = vec![0; plan.pipe.piece.max(2)];
    loop {
        shell.send_some();
        shell.count_drained();
        if shell.is_over() {
            break;
        }
        let size = shell.random.below(1..buffer.len());
        let wanted = shell.random.below(1..plan.pipe.piece + 1);
        let output = shell.machine.output();
        let output = &output[..wanted.min(output.len())];
        let nothing = output.is_empty();
        tokio::select! {
            read = reader.read(&mut buffer[..size]) => match read {
                Ok(read @ 1..) => shell.take(&buffer[..read]),
                _ => break,
            },
            written = writer.write(output), if !nothing => {
                // The pipe may have gone while we had something to say: reading tells.
                let written = written.unwrap_or(output.len());
                shell.machine.advance(written);
            }
            () = tokio::time::sleep(Duration::from_micros(100)) => shell.release_all(),
        }
    }
    // Whatever the other side still has to say finds an open pipe.
    let _ = writer.shutdown().await;
    while let Ok(1..) = reader.read(&mut buffer).await {}
    shell.assert_quiet();
    shell
        .streams
        .into_iter()
        .map(|stream| stream.seen)
        .collect()
}

/// Our side of one call.
#[derive(Clone, Debug, Default)]
struct Stream {
    id: Option<StreamId>,
    seen: Seen,
    steps: VecDeque<Step>,
    /// Our half has not begun: the request is not open, or the response waits.
    waits: bool,
    /// No more may be sent: our half has ended, or the stream was reset.
    sent: bool,
    /// DATA and lists given to the connection that have not gone into its output.
    queued: usize,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Informational,
    Headers { end: bool },
    Data { start: usize, len: usize, end: bool },
    Trailers,
    Reset(u32),
}

fn steps(half: &Half) -> VecDeque<Step> {
    let mut steps: VecDeque<Step> = (0..half.informational)
        .map(|_| Step::Informational)
        .collect();
    let trailers = half.trailers.is_some();
    let pieces = half.reset.map_or(half.pieces.len(), |(after, _)| after);
    let ends_with = |last: bool| last && half.reset.is_none() && !trailers;
    steps.push_back(Step::Headers {
        end: ends_with(half.pieces.is_empty()),
    });
    let mut start = 0;
    for (nth, &len) in half.pieces.iter().take(pieces).enumerate() {
        steps.push_back(Step::Data {
            start,
            len,
            end: ends_with(nth + 1 == half.pieces.len()),
        });
        start += len;
    }
    match half.reset {
        Some((_, code)) => steps.push_back(Step::Reset(code)),
        None if trailers => steps.push_back(Step::Trailers),
        None => {}
    }
    steps
}

struct Shell<'p> {
    machine: Connection,
    role: Role,
    random: Random,
    streams: Vec<Stream>,
    /// DATA that was received and not released.
    unreleased: Vec<(StreamId, usize)>,
    fields: Fields,
    /// Whether we know what the server takes, or it takes no less than clients may assume. The
    /// `h2` crate calls late frames on streams that it refused an error, and gives no window for
    /// what it had passed on before its smaller one came into force.
    may_open: bool,
    plan: &'p Plan,
}

impl Shell<'_> {
    fn our_half<'c>(&self, call: &'c Call) -> &'c Half {
        match self.role {
            Role::Client => &call.request,
            Role::Server => &call.response,
        }
    }

    /// The client is done with the connection when every call has ended both ways; the server
    /// waits for the client to go.
    fn is_over(&self) -> bool {
        let ended = |stream: &Stream| match stream.seen.end {
            End::Open => false,
            End::Complete => stream.sent && stream.queued == 0,
            End::Reset(_) => true,
        };
        self.role == Role::Client
            && self
                .streams
                .iter()
                .all(|stream| ended(stream) || stream.is_given_up())
            && self.machine.output().is_empty()
    }

    fn send_some(&mut self) {
        let calls = &self.plan.calls;
        for (nth, call) in calls.iter().enumerate() {
            if self.role == Role::Client && self.streams[nth].id.is_none() {
                self.open(nth, call);
            } else if self.random.one_in(2) {
                self.step(nth, call);
            }
        }
    }

    fn open(&mut self, nth: usize, call: &Call) {
        if !self.may_open || self.random.one_in(2) {
            return;
        }
        let mut fields = Fields::new();
        fields.push(b":method", b"POST");
        fields.push(b":scheme", b"http");
        fields.push(b":path", call.path.as_bytes());
        fields.push(b":authority", b"echo.default");
        push_all(&mut fields, &call.request.headers);
        let mut steps = steps(&call.request);
        let Some(Step::Headers { end }) = steps.pop_front() else {
            panic!("headers come first")
        };
        let waits = !self.machine.has_output_room();
        if let Ok(id) = self.machine.open(&fields, nth as u64 + 1, end) {
            let stream = &mut self.streams[nth];
            stream.queued += if waits { fields.memory_bytes() } else { 0 };
            (stream.id, stream.steps, stream.sent) = (Some(id), steps, end);
        }
    }

    fn step(&mut self, nth: usize, call: &Call) {
        let Some(id) = self.streams[nth].id else {
            return;
        };
        if self.streams[nth].sent || self.streams[nth].waits || self.streams[nth].queued > 100_000 {
            return;
        }
        let Some(step) = self.streams[nth].steps.pop_front() else {
            return;
        };
        let mut fields = Fields::new();
        let half = self.our_half(call);
        let queued = match step {
            Step::Informational => {
                fields.push(b":status", b"103");
                self.machine.headers(id, &fields, false)
            }
            Step::Headers { end } => {
                fields.push(b":status", b"200");
                push_all(&mut fields, &half.headers);
                self.streams[nth].sent = end;
                self.machine.headers(id, &fields, end)
            }
            Step::Data { start, len, end } => {
                self.streams[nth].sent = end;
                let data = body(nth, start..start + len);
                self.machine.data(id, &data, end).map(|now| len - now)
            }
            Step::Trailers => {
                push_all(&mut fields, half.trailers.as_deref().unwrap_or_default());
                self.streams[nth].sent = true;
                self.machine.headers(id, &fields, true)
            }
            Step::Reset(code) => {
                self.machine.reset(id, ErrorCode(code));
                self.streams[nth].given_up();
                Ok(0)
            }
        };
        let stream = &mut self.streams[nth];
        match queued {
            Ok(queued) => stream.queued += queued,
            // Only a stream that is over may refuse.
            Err(_) => {
                let over = !matches!(stream.seen.end, End::Open);
                assert!(over, "call {nth}: {step:?} was refused on a living stream");
                stream.sent = true;
            }
        }
    }

    fn count_drained(&mut self) {
        while let Some(drained) = self.machine.poll_drained() {
            let nth = usize::try_from(drained.token).expect("a token of ours") - 1;
            let stream = &mut self.streams[nth];
            if stream.id != Some(drained.stream)
                || !matches!(stream.seen.end, End::Open | End::Complete)
                || stream.is_given_up()
            {
                continue;
            }
            stream.queued = stream
                .queued
                .checked_sub(drained.bytes + drained.list_bytes)
                .expect("no more than queued");
        }
    }

    fn take(&mut self, mut input: &[u8]) {
        let mut fields = std::mem::take(&mut self.fields);
        let at = now();
        while let Some(event) = self
            .machine
            .recv(&mut input, &mut fields, at)
            .expect("legal")
        {
            self.on_event(event, &fields);
        }
        assert!(input.is_empty(), "input was left over");
        self.fields = fields;
    }

    fn on_event(&mut self, event: Event<'_>, fields: &Fields) {
        match event {
            Event::Headers {
                stream,
                token,
                kind,
                end_stream,
            } => {
                self.on_headers(stream, token, kind, fields);
                self.on_end(stream, end_stream);
            }
            Event::Data {
                stream,
                data,
                end_stream,
                ..
            } => {
                let nth = self.nth(stream);
                self.streams[nth].seen.body.extend_from_slice(data);
                if self.random.one_in(3) {
                    self.unreleased.push((stream, data.len()));
                } else {
                    self.machine.release(stream, data.len());
                }
                self.on_end(stream, end_stream);
            }
            Event::Reset { stream, code, .. } => {
                let nth = self.nth(stream);
                self.streams[nth].seen.end = End::Reset(code.0);
                self.streams[nth].sent = true;
            }
            Event::TooLarge { .. } => panic!("no list is too large"),
            Event::GoAway { code, .. } => assert_eq!(code, ErrorCode::NO_ERROR),
            Event::Settings => self.may_open = true,
            Event::PingAck(_) => {}
        }
    }

    fn nth(&self, stream: StreamId) -> usize {
        let found = self
            .streams
            .iter()
            .position(|known| known.id == Some(stream));
        found.expect("a stream that we know")
    }

    fn on_headers(&mut self, stream: StreamId, token: u64, kind: Kind, fields: &Fields) {
        let regular = fields.iter().filter(|field| field.name[0] != b':');
        let text = |bytes| std::str::from_utf8(bytes).expect("text");
        let seen = by_name(regular.map(|field| (text(field.name), text(field.value))));
        let sensitive = fields
            .iter()
            .filter(|field| field.sensitive)
            .map(|f| text(f.name).to_string());
        let sensitive = sensitive.collect();
        if kind == Kind::Request {
            let nth: usize = text(fields.get(b"x-call").expect("our header"))
                .parse()
                .expect("number");
            self.machine.set_token(stream, nth as u64 + 1);
            let call = &self.plan.calls[nth];
            let mine = &mut self.streams[nth];
            (mine.id, mine.steps, mine.waits) = (Some(stream), steps(&call.response), !call.early);
            if let Some((0, code)) = call.response.reset {
                mine.steps = call.response_cut_short(code);
            }
        } else {
            assert_eq!(token, self.nth(stream) as u64 + 1);
        }
        let nth = self.nth(stream);
        let mine = &mut self.streams[nth].seen;
        match kind {
            Kind::Informational => mine.informational += 1,
            Kind::Trailers => mine.trailers = Some(seen),
            Kind::Request | Kind::Response => {
                let first = if kind == Kind::Request {
                    fields.path()
                } else {
                    fields.get(b":status")
                };
                mine.first = text(first.expect("valid")).to_string();
                mine.headers = Some(seen);
                mine.sensitive = Some(sensitive);
            }
        }
    }

    fn on_end(&mut self, stream: StreamId, end_stream: bool) {
        if end_stream {
            let nth = self.nth(stream);
            self.streams[nth].seen.end = End::Complete;
            self.streams[nth].waits = false;
        }
    }

    /// Nothing has moved for a while: what was not released may be what the other side waits for.
    fn release_all(&mut self) {
        for (stream, bytes) in std::mem::take(&mut self.unreleased) {
            self.machine.release(stream, bytes);
        }
    }

    /// With all calls over, the connection holds nothing of them.
    fn assert_quiet(&mut self) {
        let unread = self
            .plan
            .calls
            .iter()
            .any(|call| call.request.reset.is_some() || call.response.reset.is_some());
        assert!(
            unread || self.machine.live_streams() == 0,
            "{} live",
            self.machine.live_streams()
        );
        assert!(unread || self.machine.queued_bytes() == self.machine.output().len());
    }
}

impl Stream {
    /// We have reset it: whatever else comes of it does not count.
    fn given_up(&mut self) {
        (self.sent, self.queued) = (true, 0);
        self.steps.clear();
        self.steps.push_back(Step::Reset(0));
    }

    fn is_given_up(&self) -> bool {
        self.sent && matches!(self.steps.front(), Some(Step::Reset(0)))
    }
}

impl Call {
    /// A reset in place of the response.
    fn response_cut_short(&self, code: u32) -> VecDeque<Step> {
        let early = (0..self.response.informational).map(|_| Step::Informational);
        early.chain([Step::Reset(code)]).collect()
    }
}

fn push_all(fields: &mut Fields, headers: &[Header]) {
    for (name, value, sensitive) in headers {
        match sensitive {
            true => fields.push_sensitive(name.as_bytes(), value.as_bytes()),
            false => fields.push(name.as_bytes(), value.as_bytes()),
        }
    }
}
