//! All connections of one worker: the registration of their sockets, which ones to flush or read again, their timers
//! and their counts. Takes sockets; gives connections by key. The meaning of their bytes does not belong here.

use std::collections::VecDeque;
use std::io;
use std::time::{Duration, Instant};

use heddle_h2::{Config, Connection, StreamId};
use mio::{Registry, Token};

use super::accepted::{AcceptOptions, Accepted};
use super::conn::{Conn, Side};
use super::idlest::ByListener;
use super::opened::Opened;
use super::transport::Transport;
use crate::arena::Arena;
use crate::caller::Role;
use crate::keys::{CallKey, ConnKey, ConnKind};
use crate::timers::{Timer, Timers};

#[derive(Debug)]
pub(crate) struct Connections {
    arena: Arena<ConnKind, Conn>,
    registry: Registry,
    /// Connections with output, each once.
    to_flush: Vec<ConnKey>,
    /// Connections with more input than one turn takes, each once.
    to_read: Vec<ConnKey>,
    by_listener: ByListener,
    /// Connections that keep memory for bytes to come, the one that was noted first in front.
    spare: VecDeque<ConnKey>,
}

/// Empty buffers up to this size are kept by every connection.
const SPARE_BYTES: usize = 4 * 1024;
/// Most connections that keep larger ones. Each has at most some 256 KiB of output and eight queues of 64 KiB.
const SPARE_CONNECTIONS: usize = 128;

impl Connections {
    pub(crate) fn new(registry: Registry) -> Self {
        Self {
            arena: Arena::default(),
            registry,
            to_flush: Vec::new(),
            to_read: Vec::new(),
            by_listener: ByListener::default(),
            spare: VecDeque::new(),
        }
    }

    pub(crate) fn get(&self, key: ConnKey) -> Option<&Conn> {
        self.arena.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: ConnKey) -> Option<&mut Conn> {
        self.arena.get_mut(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (ConnKey, &Conn)> {
        self.arena.iter()
    }

    /// The keys of all connections, for loops that change them.
    pub(crate) fn keys(&self) -> Vec<ConnKey> {
        self.arena.keys()
    }

    /// Number of accepted connections.
    pub(crate) fn accepted(&self) -> usize {
        self.accepted_by(Role::Outbound) + self.accepted_by(Role::Inbound)
    }

    /// Number of connections that a listener has accepted.
    pub(crate) fn accepted_by(&self, role: Role) -> usize {
        self.by_listener.open(role)
    }

    /// Number of opened connections.
    pub(crate) fn opened(&self) -> usize {
        self.arena.len().saturating_sub(self.accepted())
    }

    // ---- start and end

    /// Makes a connection of an accepted socket.
    pub(crate) fn accept(
        &mut self,
        transport: Transport,
        options: AcceptOptions,
        now: Instant,
    ) -> io::Result<ConnKey> {
        let role = options.caller.role;
        let h2 = Connection::server(config(options.low_memory), now);
        let side = Side::Accepted(Accepted::new(options, now));
        let key = self.insert(transport, h2, side, now)?;
        self.by_listener.add(role, key, now, &mut self.arena);
        Ok(key)
    }

    /// Makes a connection of a socket that is being connected.
    pub(crate) fn open(
        &mut self,
        transport: Transport,
        opened: Opened,
        low_memory: bool,
        now: Instant,
    ) -> io::Result<ConnKey> {
        let config = Config {
            header_block_bytes: SERVER_BLOCK_BYTES,
            ..config(low_memory)
        };
        let h2 = Connection::client(config, now);
        self.insert(transport, h2, Side::Opened(opened), now)
    }

    fn insert(
        &mut self,
        mut transport: Transport,
        h2: Connection,
        side: Side,
        now: Instant,
    ) -> io::Result<ConnKey> {
        let registry = &self.registry;
        let mut registered = Ok(());
        let key = self.arena.insert_with(|key: ConnKey| {
            let token = Token(usize::try_from(key.pack()).unwrap_or(0));
            registered = transport.register(registry, token);
            Conn::new(transport, h2, side, now)
        });
        let key = key.ok_or_else(|| io::Error::other("too many connections"))?;
        if let Err(error) = registered {
            self.arena.remove(key);
            return Err(error);
        }
        Ok(key)
    }

    /// Removes a connection; its socket is closed when it is dropped.
    pub(crate) fn remove(&mut self, key: ConnKey, timers: &mut Timers) -> Option<Conn> {
        let mut conn = self.arena.remove(key)?;
        conn.transport_mut().deregister(&self.registry);
        if let Some((_, timer)) = conn.timer {
            timers.unset(timer);
        }
        if let Some(role) = conn.role() {
            self.by_listener.remove(role);
        }
        Some(conn)
    }

    /// The connection of a listener to close first; `None` if all have calls in flight.
    pub(crate) fn idlest(&mut self, role: Role) -> Option<ConnKey> {
        self.by_listener.idlest(role, &mut self.arena)
    }

    /// Whether to log again that a listener is full.
    pub(crate) fn may_log_full(&mut self, role: Role, now: Instant) -> bool {
        self.by_listener.may_log(role, now)
    }

    /// Removes an ended call from its caller's connection. Returns the call that now has its index.
    pub(crate) fn end_call(
        &mut self,
        key: ConnKey,
        call: CallKey,
        index: usize,
        now: Instant,
    ) -> Option<CallKey> {
        let conn = self.arena.get_mut(key)?;
        let moved = conn.remove_call(call, index)?;
        self.by_listener.on_call_end(key, conn, now);
        moved
    }

    // ---- work of this turn

    /// Marks a connection to be flushed at the end of the turn.
    pub(crate) fn mark_to_flush(&mut self, key: ConnKey) {
        if let Some(conn) = self.arena.get_mut(key)
            && !conn.to_flush
        {
            conn.to_flush = true;
            self.to_flush.push(key);
        }
    }

    /// Swaps the list of connections to flush with the empty `round`; false if there are none.
    pub(crate) fn take_to_flush(&mut self, round: &mut Vec<ConnKey>) -> bool {
        std::mem::swap(&mut self.to_flush, round);
        !round.is_empty()
    }

    /// Unmarks a connection of the round before it is flushed; false if it is closed or was unmarked.
    pub(crate) fn begin_flush(&mut self, key: ConnKey) -> bool {
        let conn = self.arena.get_mut(key);
        conn.is_some_and(|conn| std::mem::take(&mut conn.to_flush))
    }

    /// Marks a connection to be read again in the next turn.
    pub(crate) fn mark_to_read(&mut self, key: ConnKey) {
        if let Some(conn) = self.arena.get_mut(key)
            && !conn.to_read
        {
            conn.to_read = true;
            self.to_read.push(key);
        }
    }

    /// Whether a connection is to be read again in the next turn.
    pub(crate) fn has_to_read(&self) -> bool {
        !self.to_read.is_empty()
    }

    /// Takes the connections to read again in this turn.
    pub(crate) fn take_to_read(&mut self) -> Vec<ConnKey> {
        let keys = std::mem::take(&mut self.to_read);
        for key in &keys {
            if let Some(conn) = self.arena.get_mut(*key) {
                conn.to_read = false;
            }
        }
        keys
    }

    /// Marks all connections to be read and flushed: events may have been lost.
    pub(crate) fn mark_all(&mut self) {
        self.to_read.clear();
        self.to_flush.clear();
        for key in self.arena.keys() {
            if let Some(conn) = self.arena.get_mut(key) {
                (conn.to_read, conn.to_flush, conn.blocked) = (false, false, false);
            }
            self.mark_to_read(key);
            self.mark_to_flush(key);
        }
    }

    #[cfg(test)]
    pub(crate) fn marked(&self) -> (&[ConnKey], &[ConnKey]) {
        (&self.to_read, &self.to_flush)
    }

    /// Bytes of a stream have been forwarded: its sender may send more.
    pub(crate) fn release(&mut self, key: ConnKey, stream: StreamId, bytes: usize) {
        if bytes == 0 {
            return;
        }
        if let Some(conn) = self.arena.get_mut(key) {
            conn.release(stream, bytes);
        }
        self.mark_to_flush(key);
    }

    /// Begins to close a connection; its remaining output is still written.
    pub(crate) fn begin_close(&mut self, key: ConnKey, now: Instant) {
        if let Some(conn) = self.arena.get_mut(key) {
            conn.begin_close(now);
        }
        self.mark_to_flush(key);
    }

    /// Sets a connection's timer to its next due time, if that is earlier than the current one.
    pub(crate) fn rearm(
        &mut self,
        key: ConnKey,
        timers: &mut Timers,
        (idle, keepalive_timeout): (Duration, Duration),
    ) {
        let Some(conn) = self.arena.get_mut(key) else {
            return;
        };
        let Some(at) = conn.deadline(idle, keepalive_timeout) else {
            return;
        };
        match conn.timer {
            Some((set, _)) if set <= at => {}
            old => {
                conn.timer = Some((at, timers.set(at, Timer::Conn(key))));
                if let Some((_, id)) = old {
                    timers.unset(id);
                }
            }
        }
    }

    /// A connection's timer has fired; false if nothing is due yet.
    pub(crate) fn on_timer(
        &mut self,
        key: ConnKey,
        now: Instant,
        (idle, keepalive_timeout): (Duration, Duration),
    ) -> bool {
        let Some(conn) = self.arena.get_mut(key) else {
            return false;
        };
        conn.timer = None;
        conn.deadline(idle, keepalive_timeout)
            .is_some_and(|at| at <= now)
    }

    /// Switches the saving of memory on or off for all connections.
    /// A connection was written to. Only so many keep large empty buffers: beyond that, those that have kept them longest
    /// release them.
    #[inline]
    pub(crate) fn limit_spare(&mut self, key: ConnKey) {
        if let Some(conn) = self.arena.get_mut(key)
            && conn.begins_to_keep_spare(SPARE_BYTES)
        {
            self.keep_spare(key);
        }
    }

    #[cold]
    fn keep_spare(&mut self, key: ConnKey) {
        self.spare.push_back(key);
        if self.spare.len() > SPARE_CONNECTIONS
            && let Some(oldest) = self.spare.pop_front()
            && let Some(conn) = self.arena.get_mut(oldest)
        {
            conn.release_spare();
        }
    }

    pub(crate) fn set_low_memory(&mut self, low_memory: bool) {
        for key in self.arena.keys() {
            if let Some(conn) = self.arena.get_mut(key) {
                conn.set_low_memory(low_memory);
            }
        }
    }
}

/// A header list of a server that is too large is decoded and discarded up to this size, since calls of many callers share
/// the connection. What a caller sends is limited more strictly: its connection is its own.
const SERVER_BLOCK_BYTES: usize = 16 * 1024 * 1024;

fn config(low_memory: bool) -> Config {
    Config {
        low_memory,
        ..Config::default()
    }
}
