//! Opens the connections of a pool: dials, connects, waits for the server's settings, and on a link for the answer to
//! its Hello. Takes a pool; returns a ready connection to it, or a failure with its reason.

use std::io;

use heddle_h2::Fields;
use heddle_proto::Reason;

use super::owner::Exchange;
use super::state::Call;
use crate::connection::{Conn, OpenState};
use crate::failure::Failure;
use crate::keys::{ConnKey, PoolKey};
use crate::link::{Identity, client};
use crate::observe::Counter;
use crate::upstream::dial::Dial;
use crate::upstream::pool::Pool;
use crate::upstream::pools::{DialFailed, Io, Pools};

impl Exchange {
    /// The pools and what they need to work.
    pub(super) fn pools_io(&mut self) -> (&mut Pools, Io<'_>) {
        let io = Io {
            conns: &mut self.conns,
            timers: &mut self.timers,
            now: self.now,
            frugal: !self.growing,
        };
        (&mut self.pools, io)
    }

    pub(super) fn dial_if_needed(&mut self, pool: PoolKey) {
        let (pools, io) = self.pools_io();
        let failed = pools.dial_if_needed(pool, io);
        self.fail_waiting(failed);
    }

    pub(super) fn on_pool_timer(&mut self, pool: PoolKey) {
        let (pools, io) = self.pools_io();
        let failed = pools.on_timer(pool, io);
        self.fail_waiting(failed);
    }

    pub(super) fn connect_failed(&mut self, pool: PoolKey, why: &str, refused: bool) {
        let (pools, io) = self.pools_io();
        let failed = pools.on_dial_failed(pool, why, refused, io);
        self.fail_waiting(failed);
    }

    /// A pool has no connection, and the dial for which its calls waited has failed.
    pub(super) fn fail_waiting(&mut self, failed: Option<DialFailed>) {
        let Some(DialFailed { pool: key, why }) = failed else {
            return;
        };
        let Some(name) = self.pools.get(key).map(|pool| pool.dial().name()) else {
            return;
        };
        while let Some(call) = self.pools.next_waiting(key) {
            self.leave_place(call);
            let target = self.calls.get(call).map(Call::target_name);
            let target = target.unwrap_or_default();
            let text = format!("{target}: no connection to {name}: {why}");
            self.dial_failed(call, Failure::new(Reason::ConnectFailed, text));
        }
    }

    /// The socket is readable or writable while it is being connected.
    pub(super) fn on_connecting(&mut self, key: ConnKey) {
        let until = self.pools.ready_by(self.now);
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

    /// The server's settings have arrived: a link sends its Hello, other connections are ready.
    pub(super) fn on_settings(&mut self, key: ConnKey) {
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
                self.pools.note_limit(pool, key, &self.conns);
                self.pools.mark_runnable(pool);
            }
        }
    }

    fn say_hello(&mut self, key: ConnKey, until: std::time::Instant) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let pool = conn.pool().and_then(|pool| self.pools.get(pool));
        let Some(Dial::Node(_, node)) = pool.map(Pool::dial) else {
            return;
        };
        let own = Identity {
            node: &self.options.node,
            incarnation: &self.options.incarnation,
        };
        match client::send_hello(conn, own, node, until) {
            Ok(()) => self.mark_dirty(key),
            Err(why) => self.open_failed(key, &why, false),
        }
    }

    /// A part of the answer to our Hello.
    pub(super) fn on_hello_answer(&mut self, key: ConnKey, data: &[u8]) {
        let opened = self.conns.get_mut(key).and_then(|conn| conn.opened_mut());
        if let Some(opened) = opened {
            opened.push_hello(data, client::ANSWER_BYTES);
        }
    }

    /// The answer to our Hello is complete, with the trailers in `fields`.
    pub(super) fn on_hello_end(&mut self, key: ConnKey, fields: &Fields) {
        let Some(opened) = self.conns.get(key).and_then(|conn| conn.opened()) else {
            return;
        };
        let OpenState::Hello(_, bytes) = opened.state() else {
            return;
        };
        let dial = self.pools.get(opened.pool()).map(Pool::dial);
        let Some(Dial::Node(_, expected)) = dial else {
            return;
        };
        match client::check_answer(bytes, fields, expected) {
            Ok(()) => self.ready(key),
            Err(why) => self.open_failed(key, &why, false),
        }
    }

    fn ready(&mut self, key: ConnKey) {
        let Some(pool) = self.conns.get(key).and_then(Conn::pool) else {
            return;
        };
        let (pools, io) = self.pools_io();
        pools.on_ready(pool, key, io);
    }

    /// A connection failed before it was ready.
    pub(super) fn open_failed(&mut self, key: ConnKey, why: &str, refused: bool) {
        let Some(conn) = self.conns.remove(key, &mut self.timers) else {
            return;
        };
        self.admission.buffers.forget_conn(conn.buffered());
        self.count(Counter::ClosedUpstream);
        if let Some(pool) = conn.pool() {
            self.leave_pool(pool, key);
            self.connect_failed(pool, why, refused);
        }
    }
}
