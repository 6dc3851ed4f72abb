//! A caller ends its call before the answer: it cancels it, loses its connection or violates its protocol.

use heddle_proto::Reason;

use crate::balance::passive::End;
use crate::exchange::call::CANCELLED;
use crate::exchange::owner::Exchange;
use crate::keys::CallKey;

/// How a caller ends a call before its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum CallerEnd {
    /// It cancelled the call, or its connection is lost.
    Cancelled,
    /// It violated its protocol.
    BrokeProtocol,
}

impl Exchange {
    /// The caller ends the call: it gets no answer any more.
    pub(in crate::exchange) fn on_caller_end(&mut self, key: CallKey, how: CallerEnd) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if !call.response.is_complete() || call.response.has_queued() {
            match how {
                CallerEnd::Cancelled if call.timing.is_near_deadline(self.now) => {
                    let reason = Reason::DeadlineExceeded;
                    call.response
                        .set_outcome(reason.grpc_status(), Some(reason));
                    self.unanswered(key, End::Deadline);
                }
                CallerEnd::Cancelled => {
                    call.response.set_outcome(CANCELLED, None);
                    self.unanswered(key, End::Cancelled);
                }
                CallerEnd::BrokeProtocol => {
                    let reason = Reason::ProtocolError;
                    call.response
                        .set_outcome(reason.grpc_status(), Some(reason));
                }
            }
        }
        self.abandon(key);
    }
}
