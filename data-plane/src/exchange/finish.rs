//! Ends of calls: failures of the proxy, cancels on both sides, and the one `Outcome` of each call. Takes a call; after
//! this only its counts remain.

use std::mem::take;
use std::time::Duration;

use heddle_proto::{Reason, status_code::is_error};

use super::caller_stream::{CallerStream, FailureForm};
use super::owner::Exchange;
use super::state::{Phase, ResponseProgress};
use crate::caller::Role;
use crate::failure::{Failure, FailureContext};
use crate::keys::CallKey;
use crate::observe::Outcome;

/// gRPC's CANCELLED.
const CANCELLED: u8 = 1;

impl Exchange {
    /// Ends a call with a failure of the proxy: trailers-only, or trailers if headers have been sent.
    pub(super) fn fail(&mut self, key: CallKey, failure: &Failure) {
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
        self.account(key);
        self.finish_if_done(key);
    }

    /// Completes a call whose response has ended and whose last bytes have left the HTTP/2 state machine's queue.
    pub(super) fn finish_if_done(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if call.phase == Phase::Finishing && call.down_queued.is_empty() {
            self.complete(key);
        }
    }

    /// Ends a call that can no longer be sent a failure: the caller is cut off.
    pub(super) fn reset_call(&mut self, key: CallKey, why: &str) {
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
    pub(super) fn abandon(&mut self, key: CallKey) {
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

    /// Removes a call from every queue and list in which it waits.
    fn leave_waiting(&mut self, key: CallKey) {
        self.dequeue(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let timer = call.wait_timer.take();
        match (call.phase, &call.service) {
            (Phase::Table, _) => drop(self.admission.for_table.remove(key)),
            (Phase::Endpoints, Some(service)) => {
                self.admission.for_endpoints.remove(&service.name, key);
            }
            _ => {}
        }
        self.unset(timer);
    }

    /// Cancels the current attempt if its server has not ended it.
    pub(super) fn cancel_attempt(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let Some(up) = call.up else {
            return self.detach_upstream(key);
        };
        let over =
            call.phase == Phase::Finishing && call.request_ended && call.up_queued.is_empty();
        if !over {
            self.cancel_upstream(key);
        }
        self.detach_upstream(key);
        self.after_stream(up.conn);
    }

    /// Detaches a call from its attempt, and so from the connection's list and the endpoint's load.
    pub(super) fn detach_upstream(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let account = call.account;
        let queued = !call.up_queued.is_empty();
        call.up_queued.clear();
        let up = call.up.take();
        if take(&mut call.charged)
            && let Some(load) = call
                .endpoint
                .as_ref()
                .and_then(|e| self.pools.load_mut(e.uid))
        {
            let took = up.map_or(Duration::ZERO, |up| {
                self.now.saturating_duration_since(up.started)
            });
            let ok = call.status.is_some_and(|status| !is_error(status));
            // Only the caller's proxy reports load; otherwise each call over two proxies would count twice.
            load.end((call.role == Role::Outbound).then_some((ok, took)));
        }
        if queued {
            self.account(key);
        }
        let Some(up) = up else { return };
        if up.charged {
            self.pools.give_stream(up.pool, account);
        }
        let Some(conn) = self.conns.get_mut(up.conn) else {
            return;
        };
        let moved = conn.remove_call(key, up.slot).flatten();
        let moved = moved
            .and_then(|moved| self.calls.get_mut(moved))
            .and_then(|call| call.up.as_mut());
        if let Some(moved) = moved {
            moved.slot = up.slot;
        }
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
}
