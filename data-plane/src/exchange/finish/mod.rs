//! Ends of calls: failures of the proxy, cancels on both sides, and the one `Outcome` of each call. Takes a call; after
//! this only its counts remain.

pub(in crate::exchange) mod caller_end;
mod overload;

use std::mem::take;

use heddle_proto::Reason;

use crate::caller::Role;
use crate::exchange::answer::{CallerStream, FailureForm};
use crate::exchange::call::{Phase, ResponseProgress};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;
use crate::observe::Outcome;

/// gRPC's CANCELLED.
pub(in crate::exchange) const CANCELLED: u8 = 1;

impl Exchange {
    /// Ends a call with a failure of the proxy: trailers-only, or trailers if headers have been sent.
    pub(in crate::exchange) fn fail(&mut self, key: CallKey, failure: &Failure) {
        self.leave_waiting(key);
        self.cancel_attempt(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent == ResponseProgress::All {
            return;
        }
        let id = call.id.text();
        tracing::debug!(call = id.as_str(), rule = ?call.rule, %failure, "a call failed in the proxy");
        let context = FailureContext {
            call: id.as_str(),
            node: &self.options.node,
            service: call.service.as_ref().map(|service| &*service.name),
            link: call.role == Role::Inbound,
        };
        let down = call.down;
        let Some(mut caller) = CallerStream::of(&mut self.conns, down) else {
            return self.complete(key);
        };
        match caller.fail(failure, context, &FailureForm::of(call), &mut self.reply) {
            Some(queued) => call.down_queued.add(queued, self.now),
            None => call.down_queued.clear(),
        }
        call.sent = ResponseProgress::All;
        call.phase = Phase::Finishing;
        call.status = Some(failure.status());
        call.reason = Some(failure.reason);
        self.mark_dirty(down.conn);
        self.update_charges(key);
        self.finish_if_done(key);
    }

    /// Completes a call whose response has ended and whose last bytes have left the HTTP/2 state machine's queue.
    pub(in crate::exchange) fn finish_if_done(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if call.phase == Phase::Finishing && call.down_queued.is_empty() {
            self.complete(key);
        }
    }

    /// Ends a call that can no longer be sent a failure: the caller is cut off.
    fn reset_call(&mut self, key: CallKey, why: &str) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        tracing::debug!(call = call.id.text().as_str(), why, "a call was cut off");
        call.status = Some(Reason::Overloaded.grpc_status());
        call.reason = Some(Reason::Overloaded);
        let down = call.down;
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
    fn complete(&mut self, key: CallKey) {
        self.cancel_attempt(key);
        let now = self.now;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if !call.request_ended {
            let down = call.down;
            let rest = call.received.saturating_sub(call.credited);
            if let Some(mut caller) = CallerStream::of(&mut self.conns, down) {
                caller.ignore_rest(now);
            }
            self.credit_caller(down, rest);
            self.rearm(down.conn);
        }
        self.remove(key);
    }

    /// The end of a call: records its one outcome and removes it.
    fn remove(&mut self, key: CallKey) {
        self.discharge(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (request, replay) = (take(&mut call.request), take(&mut call.replay));
        let (down, timers) = (call.down, [call.deadline_timer, call.wait_timer]);
        let path = request.path().unwrap_or_default();
        self.recorder.record(&Outcome {
            role: call.role,
            service: call.service_name().unwrap_or("unknown"),
            method: path.strip_prefix(b"/").unwrap_or(path),
            status: call.status.unwrap_or(CANCELLED),
            reason: call.reason,
            attempts: call.attempts,
            duration: self.now.saturating_duration_since(call.started),
            endpoint: call.endpoint.as_ref().map(|endpoint| endpoint.uid),
        });
        self.calls.end(key, request, replay);
        for timer in timers {
            self.unset(timer);
        }
        let moved = self.conns.end_call(down.conn, key, down.slot, self.now);
        if let Some(moved) = moved.and_then(|moved| self.calls.get_mut(moved)) {
            moved.down.slot = down.slot;
        }
    }

    /// Marks a failure that happened before the application can have seen the call, so that the caller's proxy may try
    /// another instance.
    pub(in crate::exchange) fn mark_unprocessed(&self, key: CallKey, failure: Failure) -> Failure {
        match self.calls.get(key).map(|call| call.role) {
            Some(Role::Inbound) => failure.unprocessed(),
            _ => failure,
        }
    }
}
