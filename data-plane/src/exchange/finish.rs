//! Ends of calls: answers that the proxy makes itself, cancels either way, and the one `Outcome` of each call. What
//! is known of the call comes in; after this nothing of it is left but its counts.

use std::mem::take;
use std::time::Duration;

use heddle_h2::{ErrorCode, Fields, Initiator};
use heddle_proto::{Reason, status_code::is_error};

use super::owner::Exchange;
use super::state::{Call, Phase, Sent};
use crate::caller::Role;
use crate::connection::Conn;
use crate::failure::{self, Failure, Place};
use crate::keys::CallKey;
use crate::observe::Outcome;

/// gRPC's CANCELLED.
const CANCELLED: u8 = 1;

impl Exchange {
    /// Ends a call with a failure made here: trailers-only, or trailers if headers have gone.
    pub(crate) fn fail(&mut self, key: CallKey, failure: &Failure) {
        self.leave_waiting(key);
        self.cancel_attempt(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent == Sent::All {
            return;
        }
        let id = call.id.text();
        tracing::debug!(call = id.as_str(), %failure, "a call failed in the proxy");
        let place = Place {
            call: id.as_str(),
            node: &self.options.node,
            service: call.service.as_ref().map(|service| &*service.name),
            link: call.role == Role::Inbound,
        };
        let down = call.down;
        let Some(conn) = self.conns.get_mut(down.conn) else {
            return self.complete(key);
        };
        match tell(conn, call, failure, place, &mut self.reply) {
            Some(queued) => call.down_queued.add(queued, self.now),
            None => call.down_queued.clear(),
        }
        call.sent = Sent::All;
        call.phase = Phase::Finishing;
        call.status = Some(failure.status());
        call.reason = Some(failure.reason);
        self.mark_dirty(down.conn);
        self.account(key);
        self.finish_if_done(key);
    }

    /// Completes a call whose response has ended and whose last bytes have left the machine's queue.
    pub(crate) fn finish_if_done(&mut self, key: CallKey) {
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if call.phase == Phase::Finishing && call.down_queued.is_empty() {
            self.complete(key);
        }
    }

    /// The caller reset its stream, or our machine did for a fault of the caller's.
    pub(crate) fn on_caller_reset(&mut self, key: CallKey, by: Initiator) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent != Sent::All || !call.down_queued.is_empty() {
            match by {
                Initiator::Remote => {
                    call.status = Some(CANCELLED);
                    self.given_up(key);
                }
                Initiator::Local => {
                    call.status = Some(Reason::ProtocolError.grpc_status());
                    call.reason = Some(Reason::ProtocolError);
                }
            }
        }
        self.abandon(key);
    }

    /// The caller's connection is gone.
    pub(crate) fn on_caller_gone(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent != Sent::All || !call.down_queued.is_empty() {
            call.status = Some(CANCELLED);
            self.given_up(key);
        }
        self.abandon(key);
    }

    /// Ends a call that takes too long to be told so: both streams are reset.
    pub(crate) fn cut(&mut self, key: CallKey, why: &str) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        tracing::debug!(call = call.id.text().as_str(), why, "a call was cut");
        call.status = Some(Reason::Overloaded.grpc_status());
        call.reason = Some(Reason::Overloaded);
        let down = call.down;
        self.reset(down.conn, down.stream, ErrorCode::CANCEL);
        self.abandon(key);
    }

    /// Ends a call about which the caller need not be told.
    pub(crate) fn abandon(&mut self, key: CallKey) {
        self.leave_waiting(key);
        self.cancel_attempt(key);
        self.remove(key);
    }

    /// The response has left; what still comes of the request is thrown away.
    fn complete(&mut self, key: CallKey) {
        self.cancel_attempt(key);
        let now = self.now;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if !call.request_ended {
            let down = call.down;
            if let Some(conn) = self.conns.get_mut(down.conn) {
                conn.linger_on(down.stream, now);
            }
            let rest = call.received.saturating_sub(call.credited);
            self.release(down.conn, down.stream, rest);
            self.rearm(down.conn);
        }
        self.remove(key);
    }

    /// Takes a call out of every queue and list it waits in.
    fn leave_waiting(&mut self, key: CallKey) {
        self.dequeue(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let timer = call.wait_timer.take();
        match (call.phase, &call.service) {
            (Phase::Table, _) => drop(self.tableless.remove(key)),
            (Phase::Endpoints, Some(service)) => self.parked.remove(&service.name, key),
            _ => {}
        }
        self.unset(timer);
    }

    /// Cancels the present attempt if its server has not ended it.
    pub(crate) fn cancel_attempt(&mut self, key: CallKey) {
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

    /// Unties a call from its attempt: from the connection's list and the endpoint's load.
    pub(crate) fn detach_upstream(&mut self, key: CallKey) {
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
            load.pending = load.pending.saturating_sub(1);
            // Only the caller's proxy reports it, or each call over two hops would be two.
            if let Some(reported) = load
                .reported
                .as_ref()
                .filter(|_| call.role == Role::Outbound)
            {
                let took = up.map_or(Duration::ZERO, |up| {
                    self.now.saturating_duration_since(up.started)
                });
                let ok = call.status.is_some_and(|status| !is_error(status));
                reported.end(ok, took);
            }
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

    /// The end of a call: its one outcome, and nothing left of it.
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
        self.calls.discard(key);
        for timer in timers {
            self.unset(timer);
        }
        let moved = self.conns.end_call(down.conn, key, down.slot, self.now);
        if let Some(moved) = moved.and_then(|moved| self.calls.get_mut(moved)) {
            moved.down.slot = down.slot;
        }
        self.give_spare(request, replay);
    }
}

/// Puts a failure into the caller's machine and says how much of it waits there; `None` if the stream was reset, with
/// all that waited. A stream that the caller has reset meanwhile takes nothing, and nobody waits for it.
fn tell(
    conn: &mut Conn,
    call: &Call,
    failure: &Failure,
    place: Place<'_>,
    reply: &mut Fields,
) -> Option<usize> {
    let stream = call.down.stream;
    match (call.grpc, call.sent) {
        (true, sent) => {
            let content_type = call.request.get(b"content-type");
            match sent {
                Sent::Nothing => failure::trailers_only(
                    failure,
                    place,
                    content_type.unwrap_or(b"application/grpc"),
                    reply,
                ),
                _ => failure::trailers(failure, place, reply),
            }
            failure::fit(conn.peer_header_list_bytes(), reply);
            Some(conn.headers(stream, reply, true).unwrap_or(0))
        }
        (false, Sent::Nothing) => {
            failure::http_headers(failure, place, reply);
            if call.request.method() == Some(b"HEAD") {
                return Some(conn.headers(stream, reply, true).unwrap_or(0));
            }
            let body = failure::http_body(failure, place);
            let Ok(head) = conn.headers(stream, reply, false) else {
                return Some(0);
            };
            let sent = conn.data(stream, body.as_bytes(), true);
            Some(head + sent.map_or(0, |sent| body.len() - sent))
        }
        // Plain HTTP has no other way to say that the rest will not come. What waited in the machine goes with the
        // stream, and no progress tells of it.
        (false, _) => {
            let code = match failure.status() {
                CANCELLED => ErrorCode::CANCEL,
                _ => ErrorCode::INTERNAL_ERROR,
            };
            conn.reset(stream, code);
            None
        }
    }
}
