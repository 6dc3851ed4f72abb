//! Sends a call to the endpoint that was chosen: finds a connection with room, edits the headers for the next hop and
//! sends what has arrived of the request. Takes a call and a pool; gives an upstream stream, or makes the call wait.

use std::io::Write as _;
use std::time::Duration;

use heddle_h2::OpenError;
use heddle_proto::Reason;

use crate::connection::Conn;
use crate::exchange::call::{Attempt, Call};
use crate::exchange::headers::grpc_timeout::{self, GRPC_TIMEOUT};
use crate::exchange::headers::{self, CALL, CALLER, FROM, TO};
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey, PoolKey};
use crate::observe::Counter;
use crate::upstream::pool::Pool;

/// Longest time that a call waits for the next dial of an address that failed. If it is longer, the call fails at once.
const LONGEST_DIAL_WAIT: Duration = Duration::from_millis(250);

impl Exchange {
    pub(super) fn send_or_wait(&mut self, key: CallKey, pool: PoolKey) {
        let Some(account) = self.calls.get(key).map(Call::account) else {
            return;
        };
        match self.pools.stream_for(account, pool, &self.conns) {
            Some(conn) => self.send_attempt(key, conn),
            None if self.is_unreachable_for_long(pool) => {
                let pool = self.pools.get(pool);
                let why = pool.and_then(Pool::last_error).unwrap_or_default();
                let target = self
                    .calls
                    .get(key)
                    .map(Call::target_name)
                    .unwrap_or_default();
                let to = pool.map(|pool| pool.dial().name()).unwrap_or_default();
                let text = format!("{target}: connecting to {to} failed recently: {why}");
                let failure = self.mark_unprocessed(key, Failure::new(Reason::ConnectFailed, text));
                self.fail(key, &failure);
            }
            None => self.wait_for_stream(key, pool),
        }
    }

    /// Whether the next dial is so far away that the call should fail now.
    fn is_unreachable_for_long(&self, pool: PoolKey) -> bool {
        let soon = self.now + LONGEST_DIAL_WAIT;
        let pool = self.pools.get(pool);
        pool.is_some_and(|pool| pool.is_unreachable_for_long(soon))
    }

    /// Opens the stream and sends what has arrived of the request.
    pub(super) fn send_attempt(&mut self, key: CallKey, conn_key: ConnKey) {
        let now = self.now;
        let link = self.is_link(conn_key);
        self.edit_request(key, link);
        let bound = self.replay_bound(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let Some(conn) = self.conns.get_mut(conn_key) else {
            return;
        };
        let Some(pool) = conn.pool() else {
            return;
        };
        let trailers = call.request.trailers().is_some();
        let body = !call.request.body().is_empty();
        let end = call.request.has_ended() && !trailers;
        let stream = match conn.open(call.request.fields(), key.pack(), end && !body) {
            Ok(stream) => stream,
            Err(error) => return self.open_refused(key, conn_key, error),
        };
        let slot = conn.add_call(key);
        self.pools.take_stream(pool, call.account());
        let mut written = 0;
        if body {
            let body = call.request.body();
            written = conn.data(stream, body, end).unwrap_or(0);
            call.upstream.queue(body.len() - written, now);
        }
        if let Some(trailers) = call.request.trailers() {
            let queued = conn.headers(stream, trailers, true).unwrap_or(0);
            call.upstream.queue(queued, now);
        }
        call.begin_attempt(Attempt {
            conn: conn_key,
            stream,
            slot,
            started: now,
            written,
            pool,
            charged: true,
            link,
        });
        if call.commit_if_over(bound) {
            self.metrics.counters.add(Counter::BoundReplay);
        }
        self.update_charges(key);
        self.mark_dirty(conn_key);
        self.credit_request(key);
    }

    /// The stream was taken by another call in the meantime: the call waits in its pool again.
    fn open_refused(&mut self, key: CallKey, conn: ConnKey, error: OpenError) {
        let Some(pool) = self.conns.get(conn).and_then(Conn::pool) else {
            return;
        };
        if error != OpenError::Full {
            self.leave_pool(pool, conn);
            if let Some(opened) = self.conns.get_mut(conn).and_then(|conn| conn.opened_mut()) {
                opened.leave();
            }
        }
        self.enqueue(key, pool);
    }

    fn is_link(&self, conn: ConnKey) -> bool {
        self.conns.get(conn).is_some_and(Conn::is_link)
    }

    /// How many bytes of a request may be kept for a retry: none once its caller or its service exceeds its share.
    #[inline]
    pub(super) fn replay_bound(&self, key: CallKey) -> usize {
        match self.over_share(key) {
            Some(_) => 0,
            None => self
                .calls
                .get(key)
                .map_or(0, |call| call.route.policy().replay_bytes),
        }
    }

    /// Sets the headers that the next hop needs: the scheme, `te: trailers` for gRPC, the remaining deadline, and on a
    /// link the caller's node and the instance.
    fn edit_request(&mut self, key: CallKey, link: bool) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (grpc, caller, id) = (call.request.is_grpc(), call.caller(), *call.id());
        let request = call.request.fields_mut();
        // All hops are plaintext today, whatever scheme the caller used.
        if request.scheme().is_some_and(|scheme| scheme != b"http") {
            request.set(b":scheme", b"http");
        }
        // Without it gRPC servers assume a proxy on the way that drops trailers, and some refuse the call.
        if grpc && request.get(b"te") != Some(b"trailers") {
            request.set(b"te", b"trailers");
        }
        if let Some(deadline) = call.timing.deadline() {
            grpc_timeout::render(deadline.saturating_duration_since(now), &mut self.text);
            request.set(GRPC_TIMEOUT, &self.text);
        }
        if !link {
            if call.history.attempts() > 0 {
                headers::strip(request);
            }
            return;
        }
        let (Some(service), Some(endpoint)) = (call.route.service(), call.upstream.endpoint())
        else {
            return;
        };
        self.text.clear();
        for part in [
            &*service.namespace,
            "/",
            &*service.service,
            "/",
            &*endpoint.id,
        ] {
            self.text.extend_from_slice(part.as_bytes());
        }
        request.set(TO, &self.text);
        self.text.clear();
        self.text.extend_from_slice(b"node/");
        self.text.extend_from_slice(self.options.node.as_bytes());
        request.set(FROM, &self.text);
        self.text.clear();
        // Writing to memory does not fail. Counted from 1, since 0 means that there is no number.
        let _ = write!(self.text, "{}", caller.index().wrapping_add(1));
        request.set(CALLER, &self.text);
        request.set(CALL, id.text().as_str().as_bytes());
    }
}
