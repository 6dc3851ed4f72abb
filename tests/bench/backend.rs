//! Two echo servers in one process, as two instances of a service. Each call is answered with its own message and OK.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Instant;

use heddle_h2::{Connection, Event, Fields, Kind, StreamId};
use mio::net::TcpListener;
use mio::{Events, Interest, Poll, Token};

use crate::call::{response, trailers};
use crate::wire::{READ_BUFFER, Wire, config};

const LISTENERS: usize = 2;

/// Serves until it is killed; prints its addresses once it listens.
pub(crate) fn serve() -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut listeners = Vec::new();
    for at in 0..LISTENERS {
        let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
        poll.registry()
            .register(&mut listener, Token(at), Interest::READABLE)?;
        listeners.push(listener);
    }
    println!(
        "bench-backend ready: one {}, two {}",
        listeners[0].local_addr()?,
        listeners[1].local_addr()?
    );
    let mut wires: Vec<Option<(Wire, Bodies)>> = Vec::new();
    let replies = Replies {
        response: response(),
        trailers: trailers(),
    };
    let (mut buffer, mut fields) = (vec![0; READ_BUFFER], Fields::new());
    let mut events = Events::with_capacity(256);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            let at = event.token().0;
            if let Some(listener) = listeners.get(at) {
                accept(listener, &poll, &mut wires)?;
                continue;
            }
            let place = &mut wires[at - LISTENERS];
            let Some((wire, bodies)) = place else {
                continue;
            };
            let open = wire.read(&mut buffer, &mut fields, |machine, event, _| {
                bodies.on_event(machine, event, &replies);
            });
            if !matches!(open, Ok(true)) || wire.flush().is_err() {
                *place = None;
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    wires: &mut Vec<Option<(Wire, Bodies)>>,
) -> anyhow::Result<()> {
    while let Ok((socket, _)) = listener.accept() {
        let at = wires
            .iter()
            .position(Option::is_none)
            .unwrap_or(wires.len());
        let machine = Connection::server(config(), Instant::now());
        let mut wire = Wire::new(socket, machine, poll.registry(), at + LISTENERS)?;
        wire.flush()?;
        let made = Some((wire, Bodies::default()));
        match wires.get_mut(at) {
            Some(place) => *place = made,
            None => wires.push(made),
        }
    }
    Ok(())
}

struct Replies {
    response: Fields,
    trailers: Fields,
}

/// The requests of one connection that have not ended, at index token minus one.
#[derive(Default)]
struct Bodies {
    open: Vec<Vec<u8>>,
    free: Vec<usize>,
}

impl Bodies {
    fn on_event(&mut self, machine: &mut Connection, event: Event<'_>, replies: &Replies) {
        match event {
            Event::Headers {
                stream,
                kind: Kind::Request,
                end_stream,
                ..
            } => {
                let at = self.free.pop().unwrap_or(self.open.len());
                if at == self.open.len() {
                    self.open.push(Vec::new());
                }
                machine.set_token(stream, at as u64 + 1);
                if end_stream {
                    self.answer(machine, stream, at, replies);
                }
            }
            Event::Data {
                stream,
                token,
                data,
                end_stream,
            } => {
                let at = slot(token);
                self.open[at].extend_from_slice(data);
                machine.release(stream, data.len());
                if end_stream {
                    self.answer(machine, stream, at, replies);
                }
            }
            Event::Headers {
                stream,
                token,
                end_stream: true,
                ..
            } => self.answer(machine, stream, slot(token), replies),
            Event::Reset { token, .. } if token > 0 => self.forget(slot(token)),
            _ => {}
        }
    }

    /// A stream that is gone meanwhile needs no answer.
    fn answer(&mut self, machine: &mut Connection, stream: StreamId, at: usize, replies: &Replies) {
        machine.set_token(stream, 0);
        if machine.headers(stream, &replies.response, false).is_ok() {
            let _ = machine.data(stream, &self.open[at], false);
            let _ = machine.headers(stream, &replies.trailers, true);
        }
        self.forget(at);
    }

    fn forget(&mut self, at: usize) {
        self.open[at].clear();
        self.free.push(at);
    }
}

fn slot(token: u64) -> usize {
    usize::try_from(token).expect("a token of ours") - 1
}
