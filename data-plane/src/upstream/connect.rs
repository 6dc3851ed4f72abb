//! Dials an address and brings a connection to the point where it takes calls: socket, settings, and on a link the
//! Hello. A pool comes in; a ready connection or a failure with its reason goes back to it.

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use heddle_h2::Fields;
use heddle_proto::Reason;
use heddle_proto::link::v1::{HelloRequest, HelloResponse};
use prost::Message as _;

use super::link::{HELLO_PATH, VERSION, frame, unframe};
use super::pool::Dial;
use crate::connection::{Conn, HELLO, OpenState, Opened, Transport};
use crate::failure::Failure;
use crate::keys::{ConnKey, PoolKey};
use crate::observe::Counter;
use crate::observe::Report;
use crate::timers::Timer;
use crate::worker::Worker;

/// How long a connection to a local instance may be silent while it has calls. gRPC servers by default close
/// connections that ping more often than every five minutes; a dead local process closes its socket anyway.
const LOCAL_KEEPALIVE: Duration = Duration::from_secs(330);

impl Worker {
    /// Starts to open one more connection of a pool.
    pub(crate) fn connect(&mut self, pool_key: PoolKey) {
        let Some(pool) = self.pools.arena.get_mut(pool_key) else {
            return;
        };
        let dial = pool.dial.clone();
        pool.opening += 1;
        self.count(Counter::Connects);
        let transport = match &dial {
            Dial::Local(address) | Dial::Node(address, _) => {
                mio::net::TcpStream::connect(*address).map(Transport::Tcp)
            }
            Dial::Internal => self.connect_internal(),
        };
        let transport = match transport {
            Ok(transport) => transport,
            Err(error) => return self.connect_failed(pool_key, &error.to_string(), false),
        };
        transport.set_options();
        if let Err(error) = self.add_connection(pool_key, &dial, transport) {
            self.connect_failed(pool_key, &error.to_string(), false);
        }
    }

    fn add_connection(
        &mut self,
        pool_key: PoolKey,
        dial: &Dial,
        transport: Transport,
    ) -> io::Result<()> {
        let now = self.now;
        let keepalive = match dial.is_link() {
            true => self.options().keepalive_interval,
            false => LOCAL_KEEPALIVE,
        };
        let until = now + self.options().connect_timeout;
        let opened = Opened::new(pool_key, dial.is_link(), keepalive, until, now);
        let key = self.conns.open(transport, opened, !self.growing, now)?;
        if let Some(pool) = self.pools.arena.get_mut(pool_key) {
            pool.conns.push(key);
        }
        self.rearm(key);
        Ok(())
    }

    /// One end of a socket pair; the other goes to the control side, which serves health and reflection on it.
    fn connect_internal(&mut self) -> io::Result<Transport> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        theirs.set_nonblocking(true)?;
        self.shared.internal.try_send(theirs).map_err(|_| {
            io::Error::new(
                io::ErrorKind::ConnectionRefused,
                "the proxy's control side takes no connection now",
            )
        })?;
        Ok(Transport::Unix(mio::net::UnixStream::from_std(ours)))
    }

    /// The socket has something to say while it is being connected.
    pub(crate) fn on_connecting(&mut self, key: ConnKey) {
        let until = self.now + self.options().handshake_timeout.min(HANDSHAKE);
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        match conn.advance_handshake() {
            Ok(true) => {
                if let Some(opened) = conn.opened_mut() {
                    opened.await_settings(until);
                }
                self.mark_dirty(key);
            }
            Ok(false) => {}
            Err(error) => self.open_failed(
                key,
                &error.to_string(),
                error.kind() == io::ErrorKind::ConnectionRefused,
            ),
        }
    }

    /// The server's settings have come: a link says Hello, others are ready.
    pub(crate) fn on_settings(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(opened) = conn.opened() else { return };
        let pool = opened.pool();
        match *opened.state() {
            OpenState::Connecting(until) | OpenState::Settings(until) => match opened.is_link() {
                true => self.say_hello(key, until),
                false => self.ready(key),
            },
            OpenState::Hello(..) => {}
            OpenState::Ready => {
                self.note_limit(key, pool);
                self.mark_runnable(pool);
            }
        }
    }

    fn say_hello(&mut self, key: ConnKey, until: std::time::Instant) {
        let hello = HelloRequest {
            min_version: VERSION,
            max_version: VERSION,
            node: self.options().node.clone(),
            incarnation: self.options().incarnation.clone(),
            grants: Vec::new(),
        };
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some(pool) = conn.pool() else {
            return;
        };
        let node = match self.pools.arena.get(pool).map(|pool| &pool.dial) {
            Some(Dial::Node(_, node)) => format!("{node}.node.mesh"),
            _ => String::new(),
        };
        let mut request = Fields::new();
        for (name, value) in [
            (&b":method"[..], &b"POST"[..]),
            (b":scheme", b"http"),
            (b":path", HELLO_PATH),
            (b":authority", node.as_bytes()),
            (b"content-type", b"application/grpc"),
            (b"te", b"trailers"),
        ] {
            request.push(name, value);
        }
        let sent = match conn.open(&request, HELLO, false) {
            Ok(stream) => conn
                .data(stream, &frame(&hello), true)
                .map_err(|gone| gone.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match sent {
            Ok(_) => {
                if let Some(opened) = conn.opened_mut() {
                    opened.await_hello(until);
                }
                self.mark_dirty(key);
            }
            Err(error) => self.open_failed(key, &error, false),
        }
    }

    /// Bytes of the answer to our Hello.
    pub(crate) fn on_hello_answer(&mut self, key: ConnKey, data: &[u8]) {
        let opened = self.conns.get_mut(key).and_then(|conn| conn.opened_mut());
        if let Some(opened) = opened {
            opened.push_hello(data, HELLO_BYTES);
        }
    }

    /// The answer to our Hello is complete, with the trailers in `fields`.
    pub(crate) fn on_hello_end(&mut self, key: ConnKey, fields: &Fields) {
        let Some(opened) = self.conns.get(key).and_then(|conn| conn.opened()) else {
            return;
        };
        let OpenState::Hello(_, bytes) = opened.state() else {
            return;
        };
        let answer = unframe(bytes).and_then(|message| HelloResponse::decode(message).ok());
        let dial = self.pools.arena.get(opened.pool()).map(|pool| &pool.dial);
        let Some(Dial::Node(_, expected)) = dial else {
            return;
        };
        let wrong = match answer {
            Some(answer) if answer.version != VERSION => {
                format!(
                    "it speaks version {} of the link and this proxy {VERSION}",
                    answer.version
                )
            }
            Some(answer) if *answer.node != **expected => {
                format!(
                    "it is node {} and not {expected}: its address has changed hands",
                    answer.node
                )
            }
            Some(_) => return self.ready(key),
            None => {
                let text = fields
                    .get(b"grpc-message")
                    .unwrap_or(b"it did not answer Hello as a proxy does");
                String::from_utf8_lossy(text).into_owned()
            }
        };
        self.open_failed(key, &wrong, false);
    }

    fn ready(&mut self, key: ConnKey) {
        let now = self.now;
        let opened = self.conns.get_mut(key).and_then(|conn| conn.opened_mut());
        let Some(opened) = opened else { return };
        opened.become_ready(now);
        let pool_key = opened.pool();
        if let Some(pool) = self.pools.arena.get_mut(pool_key) {
            pool.opening = pool.opening.saturating_sub(1);
            pool.backoff.reset();
            pool.retry_at = None;
            pool.last_error = None;
        }
        self.note_limit(key, pool_key);
        self.mark_runnable(pool_key);
        self.rearm(key);
    }

    /// Keeps in the pool how many streams the peer allows on a connection.
    fn note_limit(&mut self, key: ConnKey, pool: PoolKey) {
        let limit = self.conns.get(key).map(Conn::stream_limit);
        if let Some(pool) = self.pools.arena.get_mut(pool) {
            pool.limit = limit;
        }
    }

    /// A connection that was not ready yet cannot be.
    pub(crate) fn open_failed(&mut self, key: ConnKey, why: &str, refused: bool) {
        let Some(conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.forget_machine(conn.machine_bytes());
        self.count(Counter::ClosedUpstream);
        if let Some(pool) = conn.pool() {
            self.leave_pool(pool, key);
            self.connect_failed(pool, why, refused);
        }
    }

    /// A dial has failed: wait before the next, and tell the calls that have no other connection.
    pub(crate) fn connect_failed(&mut self, key: PoolKey, why: &str, refused: bool) {
        self.count(Counter::ConnectFailures);
        let random = self.random();
        let now = self.now;
        let Some(pool) = self.pools.arena.get_mut(key) else {
            return;
        };
        pool.opening = pool.opening.saturating_sub(1);
        let at = now + pool.backoff.fail_with(random);
        pool.retry_at = Some(at);
        if pool.timer.is_none() {
            pool.timer = Some(self.timers.set(at, Timer::Pool(key)));
        }
        pool.last_error = Some(why.to_owned());
        let local = matches!(pool.dial, Dial::Local(_));
        let name = pool.dial.name();
        if refused && local {
            for uid in pool.uids.clone() {
                // A full channel means that the agent has much to do: its own checks find out too.
                let _ = self
                    .shared
                    .reports
                    .try_send(Report::EndpointRefused { uid });
            }
        }
        if self
            .pools
            .arena
            .get(key)
            .is_some_and(|pool| !pool.conns.is_empty())
        {
            return self.dial_if_needed(key);
        }
        while let Some(call) = self.next_waiting(key) {
            let target = self
                .calls
                .get(call)
                .map(crate::exchange::state::Call::target_name)
                .unwrap_or_default();
            let text = format!("{target}: no connection to {name}: {why}");
            self.dial_failed(call, Failure::new(Reason::ConnectFailed, text));
        }
    }
}

/// How long a server may take from accepting to its first settings (and to the answer to Hello). Far longer than
/// any living one takes; calls wait meanwhile.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Longest answer to Hello that is read.
const HELLO_BYTES: usize = 16 * 1024;
