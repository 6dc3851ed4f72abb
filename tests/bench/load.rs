//! The load generator: a number of connections with a number of concurrent calls each; a finished call is followed by
//! the next. Each response is checked completely; a wrong or missing one ends the benchmark.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use heddle_h2::{Connection, Event, Fields, Kind};
use mio::net::TcpStream;
use mio::{Events, Poll};

use crate::call::{Requests, is_response, is_trailers};
use crate::options::Shape;
use crate::wire::{READ_BUFFER, Wire, config};

/// When a peer that sends nothing counts as stuck.
const STUCK: Duration = Duration::from_secs(20);

pub(crate) struct Load {
    poll: Poll,
    wires: Vec<(Wire, InFlight)>,
    requests: Requests,
    buffer: Vec<u8>,
    fields: Fields,
    tally: Tally,
}

/// The calls of one connection, by token.
struct InFlight {
    calls: Vec<Call>,
    dirty: bool,
}

#[derive(Clone, Copy)]
struct Call {
    number: u64,
    started: Instant,
    answered: bool,
    received: usize,
}

/// What was recorded since the last measurement.
#[derive(Default)]
struct Tally {
    next: u64,
    latencies: Vec<Duration>,
    fault: Option<String>,
    stopping: bool,
    in_flight: usize,
}

/// One measurement.
pub(crate) struct Sample {
    pub(crate) elapsed: Duration,
    /// The latencies of the calls that ended, sorted.
    pub(crate) latencies: Vec<Duration>,
}

impl Load {
    /// Connects and starts the first calls.
    pub(crate) fn start(to: SocketAddr, shape: Shape) -> anyhow::Result<Self> {
        let poll = Poll::new()?;
        let requests = Requests::new(&to.to_string(), shape.bytes, shape.realistic);
        let mut wires = Vec::new();
        let now = Instant::now();
        for at in 0..shape.connections {
            let socket = std::net::TcpStream::connect(to)
                .with_context(|| format!("cannot connect to {to}"))?;
            socket.set_nonblocking(true)?;
            let socket = TcpStream::from_std(socket);
            let wire = Wire::new(
                socket,
                Connection::client(config(), now),
                poll.registry(),
                at,
            )?;
            let call = Call {
                number: 0,
                started: now,
                answered: false,
                received: 0,
            };
            wires.push((
                wire,
                InFlight {
                    calls: vec![call; shape.streams],
                    dirty: true,
                },
            ));
        }
        let (buffer, fields, tally) = (vec![0; READ_BUFFER], Fields::new(), Tally::default());
        let mut load = Self {
            poll,
            wires,
            requests,
            buffer,
            fields,
            tally,
        };
        for (wire, in_flight) in &mut load.wires {
            for token in 0..in_flight.calls.len() {
                begin(
                    &mut wire.machine,
                    in_flight,
                    token,
                    now,
                    &mut load.requests,
                    &mut load.tally,
                );
            }
        }
        Ok(load)
    }

    /// Keeps up the load for `window`; calls in flight at its end are not waited for.
    pub(crate) fn run_for(&mut self, window: Duration) -> anyhow::Result<Sample> {
        self.tally.latencies.clear();
        let begun = Instant::now();
        while begun.elapsed() < window {
            self.turn()?;
        }
        let elapsed = begun.elapsed();
        let mut latencies = std::mem::take(&mut self.tally.latencies);
        latencies.sort_unstable();
        Ok(Sample { elapsed, latencies })
    }

    /// Keeps up the load until this many calls have ended.
    pub(crate) fn run_calls(&mut self, calls: usize) -> anyhow::Result<()> {
        self.tally.latencies.clear();
        while self.tally.latencies.len() < calls {
            self.turn()?;
        }
        Ok(())
    }

    /// Starts no more calls and waits for those in flight.
    pub(crate) fn finish(mut self) -> anyhow::Result<()> {
        self.tally.stopping = true;
        while self.tally.in_flight > 0 {
            self.turn()?;
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        for (wire, in_flight) in self
            .wires
            .iter_mut()
            .filter(|(_, in_flight)| in_flight.dirty)
        {
            wire.flush()?;
            in_flight.dirty = false;
        }
        let mut events = Events::with_capacity(128);
        self.poll.poll(&mut events, Some(STUCK))?;
        if events.is_empty() {
            bail!("{} calls got no answer for {STUCK:?}", self.tally.in_flight);
        }
        let now = Instant::now();
        for event in &events {
            let (wire, in_flight) = &mut self.wires[event.token().0];
            let (requests, tally) = (&mut self.requests, &mut self.tally);
            let open = wire.read(
                &mut self.buffer,
                &mut self.fields,
                |machine, event, fields| {
                    on_event(machine, event, fields, in_flight, now, requests, tally);
                },
            )?;
            in_flight.dirty = true;
            if let Some(fault) = self.tally.fault.take() {
                bail!(fault);
            }
            if !open {
                bail!("a connection was closed with calls under way");
            }
        }
        Ok(())
    }
}

fn begin(
    machine: &mut Connection,
    in_flight: &mut InFlight,
    token: usize,
    now: Instant,
    requests: &mut Requests,
    tally: &mut Tally,
) {
    tally.next += 1;
    let number = tally.next;
    in_flight.calls[token] = Call {
        number,
        started: now,
        answered: false,
        received: 0,
    };
    let opened = machine.open(requests.fields(number), token as u64, false);
    let sent = match opened {
        Ok(stream) => machine
            .data(stream, requests.message(number), true)
            .map_err(|gone| format!("{gone:?}")),
        Err(error) => Err(format!("{error:?}")),
    };
    match sent {
        Ok(_) => tally.in_flight += 1,
        Err(why) => tally.fault = Some(format!("a call could not be started: {why}")),
    }
}

fn on_event(
    machine: &mut Connection,
    event: Event<'_>,
    fields: &Fields,
    in_flight: &mut InFlight,
    now: Instant,
    requests: &mut Requests,
    tally: &mut Tally,
) {
    let (token, right, ended) = match event {
        Event::Headers {
            token,
            kind,
            end_stream,
            ..
        } => {
            let call = &mut in_flight.calls[slot(token)];
            let right = match kind {
                Kind::Response => {
                    !end_stream
                        && is_response(fields)
                        && !std::mem::replace(&mut call.answered, true)
                }
                Kind::Trailers => {
                    call.answered && call.received == requests.message_len() && is_trailers(fields)
                }
                Kind::Request | Kind::Informational => false,
            };
            (token, right, end_stream)
        }
        Event::Data {
            stream,
            token,
            data,
            end_stream,
        } => {
            let call = &mut in_flight.calls[slot(token)];
            let right = requests.is_piece(call.number, call.received, data) && !end_stream;
            call.received += data.len();
            machine.release(stream, data.len());
            (token, right, end_stream)
        }
        Event::PingAck(_) | Event::Settings => return,
        Event::TooLarge { token, .. } | Event::Reset { token, .. } => (token, false, false),
        Event::GoAway { code, .. } => {
            tally.fault = Some(format!("the connection ends with {code}"));
            return;
        }
    };
    if !right {
        tally.fault = Some(format!("a wrong reply: {event:?}, headers {fields:?}"));
    } else if ended {
        tally.in_flight -= 1;
        tally
            .latencies
            .push(now - in_flight.calls[slot(token)].started);
        if !tally.stopping {
            begin(machine, in_flight, slot(token), now, requests, tally);
        }
    }
}

fn slot(token: u64) -> usize {
    usize::try_from(token).expect("a token of ours")
}
