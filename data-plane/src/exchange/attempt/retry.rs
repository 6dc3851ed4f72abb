//! Retries. Takes a failed attempt; gives another attempt or the failure. A call is retried only before it is
//! committed. If the application cannot have seen it, its method does not matter (on inbound it stays on the node's
//! instances). Otherwise only the caller's proxy retries, only idempotent methods, and within the service's retry
//! budget.

use std::time::Duration;

use heddle_pacing::doubled;
use heddle_proto::Reason;

use super::pick::Picker;
use crate::balance::passive::End;
use crate::balance::{Endpoint, Target};
use crate::caller::Role;
use crate::exchange::call::{Call, Phase};
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;
use crate::route::Service;
use crate::route::authority::split_path;
use crate::timers::Timer;
use crate::upstream::load::Load;

/// How often a call is retried on endpoints that already failed in it, if there are no others.
const REPEATS: u32 = 2;
/// An idempotent call may reach the application this many times, so that a call that crashes its server does not crash
/// all instances. Attempts that the application cannot have seen do not count.
const IDEMPOTENT_ATTEMPTS: u32 = 3;
/// The first backoff before an endpoint that failed in this call is tried again, and the longest one; it doubles.
const FIRST_BACKOFF: Duration = Duration::from_millis(20);
const LONGEST_BACKOFF: Duration = Duration::from_millis(320);

impl Exchange {
    /// The call's connection was lost. `drained`: its server had sent GOAWAY, and the call lasted longer than the
    /// server waited.
    pub(in crate::exchange) fn on_connection_lost(
        &mut self,
        key: CallKey,
        conn: ConnKey,
        why: &str,
        drained: bool,
    ) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if call.phase() == Phase::Finishing {
            return self.detach_upstream(key);
        }
        let target = call.peer_name();
        let endpoint = call.upstream.endpoint();
        let was_stopped = endpoint.is_some_and(|endpoint| {
            let load = self.pools.load(endpoint.uid);
            // The end of a link says nothing about the instance behind it.
            matches!(endpoint.target, Target::Local(_)) && load.is_some_and(Load::is_draining)
        });
        let failure = if was_stopped {
            let text = format!(
                "{target} was told to stop, and ended with the call still on it: the call took longer than its stop \
                 timeout, or it did not wait for its calls"
            );
            Failure::new(Reason::Draining, text)
        } else if drained {
            let text = format!("{target} is stopping, and closed the connection of this call");
            Failure::new(Reason::Draining, text)
        } else {
            self.unanswered(key, End::Lost);
            let text = format!("the connection to {target} broke during the call: {why}");
            Failure::new(Reason::ConnectionLost, text)
        };
        self.attempt_failed(key, conn, &failure);
    }

    /// An attempt failed that may have reached the application.
    pub(in crate::exchange) fn attempt_failed(
        &mut self,
        key: CallKey,
        conn: ConnKey,
        failure: &Failure,
    ) {
        self.detach_upstream(key);
        self.after_stream(conn);
        self.refresh_service(key);
        // The server's code sent an answer that violates HTTP/2: another attempt would give the same.
        if failure.reason != Reason::ProtocolError && self.can_retry_idempotent(key) {
            let now = self.now;
            let name = self
                .calls
                .get(key)
                .and_then(|call| call.route.service())
                .map(|s| s.name.clone());
            if name.is_some_and(|name| self.admission.take_retry(&name, now)) {
                self.count(Counter::RetriesIdempotent);
                if let Some(call) = self.calls.get_mut(key) {
                    call.history.note_seen(failure.clone());
                }
                return self.retry(key);
            }
            self.count(Counter::BoundRetryBudget);
            let text = format!(
                "{}; it was not tried again: the retry budget of the service is used up",
                failure.message
            );
            return self.fail(key, &Failure::new(Reason::RetryBudgetExhausted, text));
        }
        self.fail(key, failure);
    }

    /// An attempt failed without the application having seen it. An instance that refused it (REFUSED_STREAM, or a
    /// GOAWAY with a lower stream id) may accept it on its next connection, so the call is retried until its deadline.
    /// A call without a deadline has a limited number of attempts, since a server may refuse everything.
    pub(in crate::exchange) fn retry_safe(
        &mut self,
        key: CallKey,
        conn: ConnKey,
        failure: Failure,
    ) {
        self.detach_upstream(key);
        self.after_stream(conn);
        self.retry_or_fail(key, failure);
    }

    /// Updates the call's service to the latest table for the next attempt.
    pub(in crate::exchange) fn refresh_service(&mut self, key: CallKey) {
        if let Some(call) = self.calls.get_mut(key) {
            call.route.refresh(&self.table);
        }
    }

    /// No connection could be made for the attempt.
    pub(super) fn dial_failed(&mut self, key: CallKey, failure: Failure) {
        self.detach_upstream(key);
        if let Some(call) = self.calls.get_mut(key) {
            // A failed dial counts as an attempt; otherwise a dead service would be dialled forever.
            call.history.count_attempt();
        }
        self.retry_or_fail(key, failure);
    }

    fn retry_or_fail(&mut self, key: CallKey, failure: Failure) {
        self.refresh_service(key);
        if !self.can_retry_unseen(key, failure.reason) {
            let failure = self.mark_unprocessed(key, failure);
            return self.fail(key, &failure);
        }
        self.count(Counter::RetriesSafe);
        let refused_first = failure.reason == Reason::UpstreamReset
            && self
                .calls
                .get(key)
                .is_some_and(|call| call.role() == Role::Outbound && call.history.repeats() == 0);
        match refused_first {
            true => self.retry_at_once(key),
            false => self.retry(key),
        }
    }

    /// Whether a call that failed for this reason, unseen by the application, may be retried.
    pub(in crate::exchange) fn can_retry_unseen(&self, key: CallKey, reason: Reason) -> bool {
        let Some(call) = self.calls.get(key).filter(|call| call.can_replay()) else {
            return false;
        };
        let refused = reason == Reason::UpstreamReset && call.role() == Role::Outbound;
        if refused && call.timing.deadline().is_some() {
            return true;
        }
        call.history.attempts() < call.route.policy().max_attempts
            && (refused || has_next_endpoint(call))
    }

    fn can_retry_safe(&self, key: CallKey) -> bool {
        let Some(call) = self.calls.get(key) else {
            return false;
        };
        call.can_replay()
            && call.history.attempts() < call.route.policy().max_attempts
            && has_next_endpoint(call)
    }

    /// Whether a call that another proxy refused may be retried. If that proxy was overloaded, only on another instance
    /// and within the retry budget: at the same proxy the call would only wait again and add to the load.
    pub(in crate::exchange) fn may_retry_refused(&mut self, key: CallKey, reason: Reason) -> bool {
        if reason != Reason::Overloaded {
            return true;
        }
        let now = self.now;
        let Some(call) = self.calls.get(key).filter(|call| has_fresh(call, |_| true)) else {
            return false;
        };
        let name = call.route.service().map(|service| service.name.clone());
        let affords = name.is_some_and(|name| self.admission.take_retry(&name, now));
        if !affords {
            self.count(Counter::BoundRetryBudget);
        }
        affords
    }

    /// Whether a call whose current attempt the application may have seen may be retried.
    pub(in crate::exchange) fn can_retry_idempotent(&self, key: CallKey) -> bool {
        let Some(call) = self.calls.get(key).filter(|call| {
            call.role() == Role::Outbound && call.history.seen() + 1 < IDEMPOTENT_ATTEMPTS
        }) else {
            return false;
        };
        let Some(service) = call.route.service().filter(|_| self.can_retry_safe(key)) else {
            return false;
        };
        let method = split_path(call.request.path());
        method.is_some_and(|(proto_service, method)| service.is_idempotent(proto_service, method))
    }

    /// Whether the next attempt would use an endpoint that has not failed in this call and can be dialled now.
    fn has_fresh_in_reach(&self, key: CallKey) -> bool {
        let Some(call) = self.calls.get(key) else {
            return false;
        };
        match call.role() {
            Role::Outbound => {
                let picker = Picker::new(&self.pools, &self.passive, self.now);
                has_fresh(call, |uid| picker.is_in_reach(uid))
            }
            // Inbound does not wait for a better instance; the caller's proxy does.
            Role::Inbound => has_fresh(call, |_| true),
        }
    }

    /// Retries a call after its first refusal by an instance, without a backoff. So it is ahead of later calls in the
    /// queue for the instance's next connection.
    fn retry_at_once(&mut self, key: CallKey) {
        if let Some(call) = self.calls.get_mut(key) {
            leave_endpoint(call);
            call.history.count_repeat();
        }
        self.begin_attempt(key);
    }

    /// Retries the call: at once on an endpoint that has not failed in this call, otherwise after a backoff.
    fn retry(&mut self, key: CallKey) {
        let random = self.random();
        let fresh = self.has_fresh_in_reach(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        leave_endpoint(call);
        if fresh {
            return self.begin_attempt(key);
        }
        // This node's own instances failed, but there may be others elsewhere.
        if let Some(service) = call
            .route
            .service()
            .cloned()
            .filter(|s| may_get_endpoints(call.role(), s))
        {
            return self.wait_for_endpoints(key, &service);
        }
        let backoff = doubled(FIRST_BACKOFF, call.history.repeats(), LONGEST_BACKOFF);
        call.history.count_repeat();
        let at = self.now + backoff.mul_f64(0.5 + random / 2.0);
        call.timing
            .begin_wait(self.timers.set(at, Timer::Wait(key)));
    }
}

/// Ends the attempt on the call's endpoint; the next one prefers another endpoint.
fn leave_endpoint(call: &mut Call) {
    call.back_off();
    if let Some(failed) = call.upstream.leave_endpoint() {
        call.history.note_tried(failed);
    }
}

/// Whether there is an endpoint for a retry.
fn has_next_endpoint(call: &Call) -> bool {
    let patient = call.role() == Role::Outbound && call.history.repeats() < REPEATS;
    let unheld = call
        .route
        .service()
        .is_some_and(|s| may_get_endpoints(call.role(), s));
    patient || unheld || has_fresh(call, |_| true)
}

/// Whether more endpoints of the service may still arrive.
fn may_get_endpoints(role: Role, service: &Service) -> bool {
    role == Role::Outbound && !service.endpoints_known
}

/// Whether an endpoint for which `also` is true has not failed in this call. Inbound uses only its own node's
/// endpoints.
fn has_fresh(call: &Call, also: impl Fn(u64) -> bool) -> bool {
    let failed = call.upstream.endpoint().map(|endpoint| endpoint.uid);
    let fresh = |e: &Endpoint| Some(e.uid) != failed && !call.history.has_tried(e.uid);
    let local =
        |e: &Endpoint| call.role() == Role::Outbound || matches!(e.target, Target::Local(_));
    let all = call
        .route
        .service()
        .into_iter()
        .flat_map(|service| &service.endpoints.endpoints);
    all.into_iter()
        .any(|e| e.health.usable() && local(e) && fresh(e) && also(e.uid))
}
