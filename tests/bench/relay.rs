//! A byte relay, the lower bound for every proxy: one backend connection per client connection, bytes copied both ways.
//! One thread, one epoll, no parsing.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};

use mio::net::{TcpListener, TcpStream};
use mio::{Events, Interest, Poll, Token};

const LISTENER: Token = Token(usize::MAX);

/// One side of a pair; the index of its partner differs in the lowest bit.
struct Side {
    socket: TcpStream,
    /// Bytes that the socket has not accepted yet.
    waiting: Vec<u8>,
    open: bool,
}

/// Relays to the backends in turn until it is killed; prints its address once it listens.
pub(crate) fn serve(to: &[SocketAddr]) -> anyhow::Result<()> {
    let mut poll = Poll::new()?;
    let mut listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    poll.registry()
        .register(&mut listener, LISTENER, Interest::READABLE)?;
    println!("bench-relay ready: listen {}", listener.local_addr()?);
    let mut sides: Vec<Option<Side>> = Vec::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut events = Events::with_capacity(256);
    loop {
        poll.poll(&mut events, None)?;
        for event in &events {
            if event.token() == LISTENER {
                accept(&listener, &poll, to, &mut sides)?;
                continue;
            }
            let at = event.token().0;
            let alive =
                carry(&mut sides, at, &mut buffer) && carry(&mut sides, at ^ 1, &mut buffer);
            if !alive {
                (sides[at], sides[at ^ 1]) = (None, None);
            }
        }
    }
}

fn accept(
    listener: &TcpListener,
    poll: &Poll,
    to: &[SocketAddr],
    sides: &mut Vec<Option<Side>>,
) -> anyhow::Result<()> {
    while let Ok((near, _)) = listener.accept() {
        let far = TcpStream::connect(to[sides.len() / 2 % to.len()])?;
        for mut socket in [near, far] {
            let _ = socket.set_nodelay(true);
            let both = Interest::READABLE | Interest::WRITABLE;
            poll.registry()
                .register(&mut socket, Token(sides.len()), both)?;
            sides.push(Some(Side {
                socket,
                waiting: Vec::new(),
                open: true,
            }));
        }
    }
    Ok(())
}

/// Copies bytes from side `at` to its partner. False if the pair must be closed.
fn carry(sides: &mut [Option<Side>], at: usize, buffer: &mut [u8]) -> bool {
    let (low, high) = sides.split_at_mut(at | 1);
    let (Some(Some(first)), Some(Some(second))) = (low.last_mut(), high.first_mut()) else {
        return true;
    };
    let (from, to) = if at & 1 == 0 {
        (first, second)
    } else {
        (second, first)
    };
    loop {
        if !to.waiting.is_empty() {
            match to.socket.write(&to.waiting) {
                Ok(written) => drop(to.waiting.drain(..written)),
                // The kernel reports "not connected" until the connection to the backend is established.
                Err(error) if is_later(error.kind()) => return true,
                Err(_) => return false,
            }
            if !to.waiting.is_empty() {
                return true;
            }
        }
        if !from.open {
            return false;
        }
        match from.socket.read(buffer) {
            Ok(0) => {
                from.open = false;
                return false;
            }
            Ok(read) => {
                let written = match to.socket.write(&buffer[..read]) {
                    Ok(written) => written,
                    Err(error) if is_later(error.kind()) => 0,
                    Err(_) => return false,
                };
                to.waiting.extend_from_slice(&buffer[written..read]);
                if written == read && read < buffer.len() {
                    return true;
                }
            }
            Err(error) if is_later(error.kind()) => return true,
            Err(_) => return false,
        }
    }
}

fn is_later(kind: ErrorKind) -> bool {
    matches!(
        kind,
        ErrorKind::WouldBlock | ErrorKind::NotConnected | ErrorKind::Interrupted
    )
}
