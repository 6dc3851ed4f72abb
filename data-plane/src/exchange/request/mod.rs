//! The start of a call: its headers are read, checked and cleaned, then it is routed and admitted. Takes request
//! headers; the call then begins its first attempt, waits for a table or endpoints, or fails with a reason.

mod input;
mod route;
mod waits;

use heddle_h2::Fields;
use heddle_proto::Reason;

use crate::caller::{Account, Role};
use crate::exchange::answer::CallerStream;
use crate::exchange::call::{
    Call, CallId, CallerStreamId, Downstream, Phase, Queued, ResponseProgress,
};
use crate::exchange::headers::grpc_timeout::{self, GRPC_TIMEOUT};
use crate::exchange::headers::{self, CALL};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, Fault};
use crate::keys::{CallKey, ConnKey};
use crate::policy::buffers::CallCharge;
use crate::timers::Timer;

impl Exchange {
    /// Creates the call and moves its headers into it.
    fn new_call(
        &mut self,
        conn: ConnKey,
        stream: CallerStreamId,
        end: bool,
        fields: &mut Fields,
    ) -> Option<CallKey> {
        let found = self.conns.get_mut(conn)?;
        let role = found.role()?;
        let (mut request, replay) = self.calls.take_buffers();
        std::mem::swap(&mut request, fields);
        let given = match role {
            Role::Inbound => request.get(CALL).and_then(CallId::parse),
            Role::Outbound => None,
        };
        let id = given.unwrap_or_else(|| CallId::New(rand::Rng::random(&mut self.rng)));
        let grpc = headers::is_grpc(request.get(b"content-type"));
        let (now, kept) = (self.now, request.memory_bytes());
        let policy = self.options.policy();
        let slot = found.calls().len();
        let key = self.calls.insert_with(|| Call {
            role,
            phase: Phase::Backoff,
            down: Downstream { conn, stream, slot },
            up: None,
            grpc,
            id,
            request,
            replay,
            request_trailers: None,
            request_ended: end,
            received: 0,
            credited: 0,
            sent: ResponseProgress::Nothing,
            service: None,
            rule: None,
            policy,
            account: Account {
                service: 0,
                caller: conn.into(),
            },
            endpoint: None,
            wanted: None,
            attempts: 0,
            seen: 0,
            charged: false,
            tried: Vec::new(),
            repeats: 0,
            last_failure: None,
            down_queued: Queued::new(now),
            up_queued: Queued::new(now),
            charge: CallCharge::default(),
            started: now,
            deadline: None,
            deadline_timer: None,
            wait_timer: None,
            waits_since: None,
            status: None,
            http_status: 0,
            reason: None,
        })?;
        if let Some(call) = self.calls.get_mut(key) {
            call.charge = self.admission.charge_new(found.buffered_mut(), kept);
        }
        found.begin_call(key);
        CallerStream::on(found, stream).begin(key);
        Some(key)
    }

    /// Reads `grpc-timeout`. If it is invalid or zero, answers the call and returns false.
    fn start_deadline(&mut self, key: CallKey) -> bool {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key).filter(|call| call.grpc) else {
            return true;
        };
        let Some(value) = call.request.get(GRPC_TIMEOUT) else {
            return true;
        };
        let Some(timeout) = grpc_timeout::parse(value) else {
            let value = String::from_utf8_lossy(value);
            let text = format!(
                "grpc-timeout {value:?} is not one to eight digits and a unit of H, M, S, m, u, n"
            );
            self.fail(
                key,
                &Failure::new(Reason::ProtocolError, text).by(Fault::Caller),
            );
            return false;
        };
        if timeout.is_zero() {
            // Sent by clients whose deadline passed meanwhile. A timer could fire too late: an answer could arrive
            // before its next tick.
            let text = "the caller's deadline had passed when the call arrived";
            self.fail(key, &Failure::new(Reason::DeadlineExceeded, text));
            return false;
        }
        // A deadline beyond the clock's range counts as none.
        call.deadline = now.checked_add(timeout);
        if let Some(at) = call.deadline {
            call.deadline_timer = Some(self.timers.set(at, Timer::Deadline(key)));
        }
        true
    }
}

fn too_large_headers(what: &str) -> Failure {
    let text = format!("the {what} exceeds 32 KiB or 256 fields (decoded): send less metadata");
    Failure::new(Reason::RequestTooLarge, text).by(Fault::CallerHeaders)
}
