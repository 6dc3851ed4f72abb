//! The calls of one worker, and the state of each: its phase, the request as far as it is kept for a retry, the response
//! as far as it was sent, its route, its current attempt and the earlier ones, its deadline and timers. Each group of
//! values that belong together is a type of its own, and only its methods change it. What happens to a call is in the
//! parts above.

mod calls;
mod history;
mod id;
mod queued;
mod replay;
mod request;
mod response;
mod route;
mod timing;
mod upstream;

use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_h2::StreamId;

pub(in crate::exchange) use calls::{Calls, NewCall};
pub(in crate::exchange) use id::CallId;
pub(in crate::exchange) use response::{CANCELLED, ResponseProgress};
pub(in crate::exchange) use upstream::Attempt;

use history::History;
use request::Request;
use response::Response;
use route::CallRoute;
use timing::Timing;
use upstream::Upstream;

use crate::balance::Target;
use crate::caller::{Account, CallerKey, Role};
use crate::keys::{ConnKey, PoolKey};
use crate::policy::buffers::{Amounts, CallCharge};
use crate::route::Service;

/// Progress of a call. It can be retried in every phase before `Committed`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum Phase {
    /// Waits for the first routing table.
    Table,
    /// Waits for the endpoints of its service.
    Endpoints,
    /// Waits in a pool for a connection with room.
    Pending(PoolKey),
    /// Waits before a retry.
    Backoff,
    /// Sent; no response yet.
    Attempting,
    /// Response headers have been forwarded, or the request has outgrown the replay buffer.
    Committed,
    /// The response has ended; its last bytes wait for the caller's window.
    Finishing,
}

/// The stream on which a call arrived, in the protocol of its caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum CallerStreamId {
    Http2(StreamId),
    #[cfg(test)]
    Memory(usize),
}

/// The caller's end of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) struct Downstream {
    pub(in crate::exchange) conn: ConnKey,
    pub(in crate::exchange) stream: CallerStreamId,
}

#[derive(Debug)]
pub(in crate::exchange) struct Call {
    role: Role,
    id: CallId,
    phase: Phase,
    down: Downstream,
    /// Index in the list of calls of the caller's connection.
    slot: usize,
    account: Account,
    pub(in crate::exchange) request: Request,
    pub(in crate::exchange) response: Response,
    pub(in crate::exchange) route: CallRoute,
    pub(in crate::exchange) upstream: Upstream,
    pub(in crate::exchange) history: History,
    pub(in crate::exchange) timing: Timing,
    /// What is charged for its buffered bytes.
    pub(in crate::exchange) charge: CallCharge,
}

impl Call {
    #[inline]
    pub(in crate::exchange) fn role(&self) -> Role {
        self.role
    }

    pub(in crate::exchange) fn id(&self) -> &CallId {
        &self.id
    }

    /// Its caller or its server has taken almost nothing for `limit` of what is queued for it.
    pub(in crate::exchange) fn is_stalled(&self, now: Instant, limit: Duration) -> bool {
        self.response.is_stalled(now, limit) || self.upstream.is_stalled(now, limit)
    }

    // ---- its caller

    #[inline]
    pub(in crate::exchange) fn down(&self) -> Downstream {
        self.down
    }

    /// The connection on which the call arrived.
    #[inline]
    pub(in crate::exchange) fn caller(&self) -> ConnKey {
        self.down.conn
    }

    /// Its index in the list of calls of the caller's connection.
    #[inline]
    pub(in crate::exchange) fn slot(&self) -> usize {
        self.slot
    }

    #[inline]
    pub(in crate::exchange) fn move_to_slot(&mut self, slot: usize) {
        self.slot = slot;
    }

    /// What its streams and waits are charged to.
    #[inline]
    pub(in crate::exchange) fn account(&self) -> Account {
        self.account
    }

    /// The caller is one of those behind the proxy that sent the call.
    #[inline]
    pub(in crate::exchange) fn set_caller(&mut self, caller: CallerKey) {
        self.account.caller = caller;
    }

    #[inline]
    pub(in crate::exchange) fn set_service_number(&mut self, number: u32) {
        self.account.service = number;
    }

    // ---- phases

    #[inline]
    pub(in crate::exchange) fn phase(&self) -> Phase {
        self.phase
    }

    pub(in crate::exchange) fn wait_for_table(&mut self) {
        self.phase = Phase::Table;
    }

    pub(in crate::exchange) fn wait_for_endpoints(&mut self, service: &Arc<Service>) {
        self.route.set_service(Arc::clone(service));
        self.phase = Phase::Endpoints;
    }

    /// Waits for a stream of a pool. Returns since when: a call that lost its stream right after getting it keeps the
    /// start of its first wait.
    pub(in crate::exchange) fn wait_for_stream(&mut self, pool: PoolKey, now: Instant) -> Instant {
        self.phase = Phase::Pending(pool);
        self.timing.stream_wait_since(now)
    }

    /// Waits in no queue any more, and for no answer.
    #[inline]
    pub(in crate::exchange) fn back_off(&mut self) {
        self.phase = Phase::Backoff;
    }

    /// The request is sent on a stream.
    #[inline]
    pub(in crate::exchange) fn begin_attempt(&mut self, attempt: Attempt) {
        self.upstream.begin(attempt);
        self.history.count_attempt();
        self.phase = Phase::Attempting;
    }

    /// Keeps a part of the request that is sent on the current attempt, for a retry. True if the request exceeds `bound`
    /// now, which commits the call.
    #[inline]
    pub(in crate::exchange) fn keep_sent(&mut self, data: &[u8], bound: usize) -> bool {
        let over = self.phase == Phase::Attempting && !self.request.keep_within(data, bound);
        if over {
            self.phase = Phase::Committed;
        }
        over
    }

    /// Commits the call if more than `bound` of its request is kept; true if so.
    #[inline]
    pub(in crate::exchange) fn commit_if_over(&mut self, bound: usize) -> bool {
        let over = self.request.body().len() > bound;
        if over {
            self.request.drop_body();
            self.phase = Phase::Committed;
        }
        over
    }

    /// The response is forwarded from now on: the call cannot be retried.
    #[inline]
    pub(in crate::exchange) fn commit(&mut self) {
        self.request.drop_kept();
        self.phase = Phase::Committed;
    }

    /// The server has ended the call, or its response is complete.
    #[inline]
    pub(in crate::exchange) fn begin_finish(&mut self) {
        self.phase = Phase::Finishing;
    }

    /// Whether the response has ended and nothing of it is queued.
    #[inline]
    pub(in crate::exchange) fn is_done(&self) -> bool {
        self.phase == Phase::Finishing && !self.response.has_queued()
    }

    /// Whether the server has ended the stream of the attempt, so that there is nothing to cancel.
    #[inline]
    pub(in crate::exchange) fn is_over_upstream(&self) -> bool {
        self.phase == Phase::Finishing && self.is_all_sent()
    }

    /// Whether the whole request has arrived and is written to the server.
    #[inline]
    pub(in crate::exchange) fn is_all_sent(&self) -> bool {
        self.request.has_ended() && !self.upstream.has_queued()
    }

    /// Whether the call may still be retried.
    #[inline]
    pub(in crate::exchange) fn can_replay(&self) -> bool {
        let early = !matches!(self.phase, Phase::Committed | Phase::Finishing);
        early && !self.response.has_begun() && self.request.is_whole()
    }

    /// What the call has buffered, by place.
    #[inline]
    pub(in crate::exchange) fn buffered(&self) -> Amounts {
        Amounts {
            kept: self.request.kept_bytes(),
            for_server: self.upstream.queued_bytes(),
            for_caller: self.response.queued_bytes(),
        }
    }

    // ---- for messages

    /// `instance e1 of users.default on node b`.
    pub(in crate::exchange) fn target_name(&self) -> String {
        let service = self.route.service_name();
        let service = service.unwrap_or("the proxy's own services");
        match self.upstream.endpoint() {
            Some(endpoint) => format!(
                "instance {} of {service} on node {}",
                endpoint.id, endpoint.node
            ),
            None => service.to_owned(),
        }
    }

    /// For messages about the connection of the current attempt: the proxy of the other node, or the instance itself.
    pub(in crate::exchange) fn peer_name(&self) -> String {
        match (self.upstream.attempt(), self.upstream.endpoint()) {
            (Some(attempt), Some(endpoint)) if attempt.link => match endpoint.target {
                Target::Node(address) => {
                    format!("the proxy of node {} at {address}", endpoint.node)
                }
                Target::Local(_) => format!("the proxy of node {}", endpoint.node),
            },
            _ => self.target_name(),
        }
    }
}
