//! The start of a call: its headers are read, checked and cleaned, then it is routed and admitted. Takes request
//! headers; the call then begins its first attempt, waits for a table or endpoints, or fails with a reason.

mod input;
mod route;
mod waits;

use heddle_h2::Fields;
use heddle_proto::Reason;

use crate::caller::Role;
use crate::exchange::answer::CallerStream;
use crate::exchange::call::{CallId, CallerStreamId, Downstream, NewCall};
use crate::exchange::headers::grpc_timeout::{self, GRPC_TIMEOUT};
use crate::exchange::headers::{self, CALL};
use crate::exchange::owner::Exchange;
use crate::failure::{Failure, Fault};
use crate::keys::{CallKey, ConnKey};
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
        let given = match role {
            Role::Inbound => fields.get(CALL).and_then(CallId::parse),
            Role::Outbound => None,
        };
        let kept = fields.memory_bytes();
        let new = NewCall {
            role,
            id: given.unwrap_or_else(|| CallId::New(rand::Rng::random(&mut self.rng))),
            down: Downstream { conn, stream },
            slot: found.calls().len(),
            grpc: headers::is_grpc(fields.get(b"content-type")),
            ended: end,
            policy: self.options.policy(),
            now: self.now,
        };
        let key = self.calls.insert(&new, fields)?;
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
        let Some(call) = self
            .calls
            .get_mut(key)
            .filter(|call| call.request.is_grpc())
        else {
            return true;
        };
        let Some(value) = call.request.fields().get(GRPC_TIMEOUT) else {
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
        if let Some(at) = now.checked_add(timeout) {
            let timer = self.timers.set(at, Timer::Deadline(key));
            call.timing.set_deadline(at, timer);
        }
        true
    }
}

fn too_large_headers(what: &str) -> Failure {
    let text = format!("the {what} exceeds 32 KiB or 256 fields (decoded): send less metadata");
    Failure::new(Reason::RequestTooLarge, text).by(Fault::CallerHeaders)
}
