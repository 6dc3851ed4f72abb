//! A caller ends its call before the answer: it cancels it, loses its connection or violates its protocol.

use heddle_proto::Reason;

use crate::exchange::call::ResponseProgress;
use crate::exchange::owner::Exchange;
use crate::keys::CallKey;

/// gRPC's CANCELLED.
pub(in crate::exchange) const CANCELLED: u8 = 1;

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
        if call.sent != ResponseProgress::All || !call.down_queued.is_empty() {
            match how {
                CallerEnd::Cancelled => {
                    call.status = Some(CANCELLED);
                    self.given_up(key);
                }
                CallerEnd::BrokeProtocol => {
                    call.status = Some(Reason::ProtocolError.grpc_status());
                    call.reason = Some(Reason::ProtocolError);
                }
            }
        }
        self.abandon(key);
    }
}
