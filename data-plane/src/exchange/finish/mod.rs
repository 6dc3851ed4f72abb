//! Ends of calls: failures of the proxy, cancels on both sides, and the one `Outcome` of each call. Takes a call; after
//! this only its counts remain.

pub(in crate::exchange) mod caller_end;
mod overload;

use heddle_proto::Reason;

use crate::caller::Role;
use crate::exchange::answer::{CallerStream, FailureForm};
use crate::exchange::call::{CANCELLED, Call};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;
use crate::observe::Outcome;

impl Exchange {
    /// Ends a call with a failure of the proxy: trailers-only, or trailers if headers have been sent.
    pub(in crate::exchange) fn fail(&mut self, key: CallKey, failure: &Failure) {
        self.leave_waiting(key);
        self.cancel_attempt(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.response.is_complete() {
            return;
        }
        let id = call.id().text();
        tracing::debug!(call = id.as_str(), rule = ?call.route.rule(), %failure, "a call failed in the proxy");
        let context = FailureContext {
            call: id.as_str(),
            node: &self.options.node,
            service: call.route.service_name(),
            link: call.role() == Role::Inbound,
        };
        let down = call.down();
        let Some(mut caller) = CallerStream::of(&mut self.conns, down) else {
            return self.complete(key);
        };
        match caller.fail(failure, context, &FailureForm::of(call), &mut self.reply) {
            Some(queued) => call.response.queue(queued, self.now),
            None => call.response.clear_queued(),
        }
        call.response
            .complete_with(failure.status(), failure.reason);
        call.begin_finish();
        self.mark_dirty(down.conn);
        self.update_charges(key);
        self.finish_if_done(key);
    }

    /// Completes a call whose response has ended and whose last bytes have left the HTTP/2 state machine's queue.
    pub(in crate::exchange) fn finish_if_done(&mut self, key: CallKey) {
        if self.calls.get(key).is_some_and(Call::is_done) {
            self.complete(key);
        }
    }

    /// Ends a call that can no longer be sent a failure: the caller is cut off.
    fn reset_call(&mut self, key: CallKey, why: &str) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        tracing::debug!(call = call.id().text().as_str(), why, "a call was cut off");
        let reason = Reason::Overloaded;
        call.response
            .set_outcome(reason.grpc_status(), Some(reason));
        let down = call.down();
        if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
            caller.cut();
        }
        self.mark_dirty(down.conn);
        self.abandon(key);
    }

    /// Ends a call whose caller needs no answer.
    pub(in crate::exchange) fn abandon(&mut self, key: CallKey) {
        self.leave_waiting(key);
        self.cancel_attempt(key);
        self.remove(key);
    }

    /// The response has been written; the rest of the request is discarded.
    pub(in crate::exchange) fn complete(&mut self, key: CallKey) {
        self.cancel_attempt(key);
        let now = self.now;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if !call.request.has_ended() {
            let down = call.down();
            let rest = call.request.uncredited();
            if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
                caller.ignore_rest(now);
            }
            self.credit_caller(down, rest);
            self.rearm(down.conn);
        }
        self.remove(key);
    }

    /// The end of a call: records its one outcome and removes it.
    pub(in crate::exchange) fn remove(&mut self, key: CallKey) {
        self.discharge(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (down, slot, timers) = (call.down(), call.slot(), call.timing.end());
        let path = call.request.path();
        self.recorder.record(&Outcome {
            role: call.role(),
            service: call.route.service_name().unwrap_or("unknown"),
            method: path.strip_prefix(b"/").unwrap_or(path),
            status: call.response.status().unwrap_or(CANCELLED),
            reason: call.response.reason(),
            attempts: call.history.attempts(),
            duration: self.now.saturating_duration_since(call.timing.started()),
            endpoint: call.upstream.endpoint().map(|endpoint| endpoint.uid),
        });
        self.calls.end(key);
        for timer in timers {
            self.unset(timer);
        }
        let moved = self.conns.end_call(down.conn, key, slot, self.now);
        if let Some(moved) = moved.and_then(|moved| self.calls.get_mut(moved)) {
            moved.move_to_slot(slot);
        }
    }

    /// Marks a failure that happened before the application can have seen the call, so that the caller's proxy may try
    /// another instance.
    pub(in crate::exchange) fn mark_unprocessed(&self, key: CallKey, failure: Failure) -> Failure {
        match self.calls.get(key).map(Call::role) {
            Some(Role::Inbound) => failure.unprocessed(),
            _ => failure,
        }
    }
}
