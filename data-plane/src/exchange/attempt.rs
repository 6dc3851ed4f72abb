//! One attempt of a call: picks an endpoint, finds a connection or waits for one, and sends what has arrived of the
//! request. Takes a routed call; gives an upstream stream, a place in a queue or a failure.

use std::io::Write as _;
use std::sync::Arc;
use std::time::Duration;

use heddle_h2::OpenError;
use heddle_proto::Reason;

use super::deadline::{self, GRPC_TIMEOUT};
use super::headers::{CALL, CALLER, FROM, TO};
use super::owner::Exchange;
use super::state::{Attempt, Call, Phase};
use crate::balance::ewma::PeakEwma;
use crate::balance::pick::pick;
use crate::balance::{Endpoint, Target};
use crate::caller::Role;
use crate::connection::Conn;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey, PoolKey};
use crate::observe::Counter;
use crate::upstream::dial::Dial;
use crate::upstream::pool::Pool;

/// Longest time that a call waits for the next dial of an address that failed. If it is longer, the call fails at once.
const LONGEST_DIAL_WAIT: Duration = Duration::from_millis(250);

impl Exchange {
    /// Begins the first attempt of a call whose service is known.
    pub(super) fn begin_attempts(&mut self, key: CallKey) {
        let now = self.now;
        if let Some(call) = self.calls.get_mut(key) {
            if let Some(service) = &call.service {
                let state = self.services.of(&service.name, now);
                state.budget.deposit(now);
                call.account.service = state.number();
            }
            let timer = call.wait_timer.take();
            self.unset(timer);
        }
        self.begin_attempt(key);
    }

    /// Health and reflection: the control side answers, over this worker's own connection to it.
    pub(super) fn attempt_internal(&mut self, key: CallKey) {
        if let Some(pool) = self.pools.pool_for(Dial::Internal) {
            self.send_or_wait(key, pool);
        }
    }

    /// Picks an endpoint and sends the call there, or makes it wait for a connection.
    pub(super) fn begin_attempt(&mut self, key: CallKey) {
        // A copy that is written back below, since picking borrows all of `self`.
        let mut rng = self.rng.clone();
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let Some(service) = call.service.clone() else {
            return self.attempt_internal(key);
        };
        let role = call.role;
        let picked = match role {
            Role::Outbound => self.pick_outbound(call, |n| rand::Rng::random_range(&mut rng, 0..n)),
            Role::Inbound => self.pick_inbound(call),
        };
        self.rng = rng;
        let Some(endpoint) = picked else {
            if !service.endpoints_known && role == Role::Outbound {
                return self.wait_for_endpoints(key, &service);
            }
            let none = self.no_endpoint_error(key, &service);
            let last = self
                .calls
                .get_mut(key)
                .and_then(|call| call.last_failure.take());
            let failure = match last {
                // What happened to the call, not what became of the wish to try it again.
                Some(last) => {
                    last.with_note(&format!("it could not be tried again: {}", none.message))
                }
                None => none,
            };
            return self.fail(key, &failure);
        };
        let Some(pool) = self.pools.pool_of(&endpoint) else {
            return;
        };
        if role == Role::Outbound && self.passive.has_ejected() {
            let random = self.random();
            self.passive.chosen(endpoint.uid, self.now, random);
        }
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if let Some(load) = self.pools.load_mut(endpoint.uid) {
            let (metrics, at) = (&self.metrics, &endpoint);
            let reported = || metrics.load(&service.name, &at.region, &at.zone);
            load.begin((role == Role::Outbound).then_some(reported));
        }
        call.endpoint = Some(endpoint);
        call.charged = true;
        call.waits_since = None;
        self.send_or_wait(key, pool);
    }

    /// P2C over all usable endpoints. Less suitable ones are taken only if there is no better one, in this order: those
    /// that failed in this call, those that are ejected, those that cannot be dialled now.
    fn pick_outbound(
        &self,
        call: &Call,
        mut below: impl FnMut(u64) -> u64,
    ) -> Option<Arc<Endpoint>> {
        let service = call.service.as_ref()?;
        let reachable = |endpoint: &Endpoint| self.cost_in_reach(endpoint);
        let admitted = |endpoint: &Endpoint| {
            let standing = self.passive.availability(endpoint.uid, self.now);
            reachable(endpoint).and_then(|cost| standing.cost(cost))
        };
        let fresh = |endpoint: &Endpoint| {
            let failed = call.tried.contains(&endpoint.uid);
            if failed { None } else { admitted(endpoint) }
        };
        let any = |endpoint: &Endpoint| Some(self.cost(endpoint));
        let candidates = &service.candidates;
        pick(candidates, self.now, fresh, &mut below)
            .or_else(|| pick(candidates, self.now, admitted, &mut below))
            .or_else(|| pick(candidates, self.now, reachable, &mut below))
            .or_else(|| pick(candidates, self.now, any, &mut below))
            .cloned()
    }

    /// The instance that the caller's proxy chose, otherwise another local instance of the service.
    fn pick_inbound(&self, call: &Call) -> Option<Arc<Endpoint>> {
        let service = call.service.as_ref()?;
        let fresh = |e: &&Arc<Endpoint>| !call.tried.contains(&e.uid);
        let mut locals = service.locals.iter().filter(fresh);
        let chosen = locals.clone().find(|e| Some(e.uid) == call.wanted);
        let cost = |e: &&Arc<Endpoint>| self.cost(e);
        let other = || locals.by_ref().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        chosen.or_else(other).cloned()
    }

    fn cost(&self, endpoint: &Endpoint) -> f64 {
        let weight = endpoint.weight;
        match self.pools.load(endpoint.uid) {
            Some(load) => load.cost(weight, self.now),
            None => PeakEwma::default().cost(0, weight, self.now),
        }
    }

    /// The cost of one more call, if the endpoint can be dialled now.
    fn cost_in_reach(&self, endpoint: &Endpoint) -> Option<f64> {
        let Some(load) = self.pools.load(endpoint.uid) else {
            return Some(PeakEwma::default().cost(0, endpoint.weight, self.now));
        };
        let unreachable = self.pools.is_unreachable(load);
        (!unreachable).then(|| load.cost(endpoint.weight, self.now))
    }

    /// Whether an endpoint's address failed and has had no connection since. Its pool keeps dialling.
    pub(super) fn is_unreachable(&self, uid: u64) -> bool {
        let load = self.pools.load(uid);
        load.is_some_and(|load| self.pools.is_unreachable(load))
    }

    /// The failure of a call for which no endpoint could be picked.
    fn no_endpoint_error(&self, key: CallKey, service: &crate::route::Service) -> Failure {
        let name = &service.name;
        let inbound = self
            .calls
            .get(key)
            .is_some_and(|call| call.role == Role::Inbound);
        let all = service.endpoints.endpoints.iter();
        // Inbound forwards calls only to instances of this node.
        let own = |e: &&Arc<Endpoint>| !inbound || matches!(e.target, Target::Local(_));
        let here = match inbound {
            true => format!(" on node {}", self.table.node()),
            false => String::new(),
        };
        let failure = match all.filter(own).count() {
            0 => Failure::new(Reason::NoEndpoints, format!("{name} has no instance{here}")),
            1 => {
                let text = format!("{name} has 1 instance{here}, and it is unhealthy or draining");
                Failure::new(Reason::NoHealthyEndpoints, text)
            }
            count => {
                let text =
                    format!("{name} has {count} instances{here}, and none of them takes calls");
                Failure::new(Reason::NoHealthyEndpoints, text)
            }
        };
        self.mark_unprocessed(key, failure)
    }

    fn send_or_wait(&mut self, key: CallKey, pool: PoolKey) {
        let Some(account) = self.calls.get(key).map(|call| call.account) else {
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
        let trailers = call.request_trailers.is_some();
        let body = call.replay.len() > 0;
        let end = call.request_ended && !trailers;
        let stream = match conn.open(&call.request, key.pack(), end && !body) {
            Ok(stream) => stream,
            Err(error) => return self.open_refused(key, conn_key, error),
        };
        let slot = conn.add_call(key);
        self.pools.take_stream(pool, call.account);
        let mut written = 0;
        if body {
            written = conn.data(stream, call.replay.bytes(), end).unwrap_or(0);
            call.up_queued.add(call.replay.len() - written, now);
        }
        if let Some(trailers) = &call.request_trailers {
            let queued = conn.headers(stream, trailers, true).unwrap_or(0);
            call.up_queued.add(queued, now);
        }
        call.up = Some(Attempt {
            conn: conn_key,
            stream,
            slot,
            started: now,
            written,
            pool,
            charged: true,
            link,
        });
        call.attempts += 1;
        call.phase = Phase::Attempting;
        if call.replay.len() > bound {
            call.replay.give_up();
            call.phase = Phase::Committed;
            self.metrics.counters.add(Counter::BoundReplay);
        }
        self.account(key);
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

    pub(super) fn is_link(&self, conn: ConnKey) -> bool {
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
                .map_or(0, |call| call.policy.replay_bytes),
        }
    }

    /// Sets the headers that the next hop needs: the scheme, `te: trailers` for gRPC, the remaining deadline, and on a
    /// link the caller's node and the instance.
    fn edit_request(&mut self, key: CallKey, link: bool) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        // All hops are plaintext today, whatever scheme the caller used.
        if call
            .request
            .scheme()
            .is_some_and(|scheme| scheme != b"http")
        {
            call.request.set(b":scheme", b"http");
        }
        // Without it gRPC servers assume a proxy on the way that drops trailers, and some refuse the call.
        if call.grpc && call.request.get(b"te") != Some(b"trailers") {
            call.request.set(b"te", b"trailers");
        }
        if let Some(deadline) = call.deadline {
            deadline::render(deadline.saturating_duration_since(now), &mut self.text);
            call.request.set(GRPC_TIMEOUT, &self.text);
        }
        if !link {
            if call.attempts > 0 {
                super::headers::strip(&mut call.request);
            }
            return;
        }
        let (Some(service), Some(endpoint)) = (&call.service, &call.endpoint) else {
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
        call.request.set(TO, &self.text);
        self.text.clear();
        self.text.extend_from_slice(b"node/");
        self.text.extend_from_slice(self.options.node.as_bytes());
        call.request.set(FROM, &self.text);
        self.text.clear();
        // Writing to memory does not fail. Counted from 1, since 0 means that there is no number.
        let _ = write!(self.text, "{}", call.down.conn.index().wrapping_add(1));
        call.request.set(CALLER, &self.text);
        call.request.set(CALL, call.id.text().as_str().as_bytes());
    }
}
