//! A server resets the stream of an attempt: the call is retried, or fails with the status of the code.

use heddle_h2::{ErrorCode, Initiator, StreamId};
use heddle_proto::Reason;

use crate::balance::passive::End;
use crate::exchange::call::Phase;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};

impl Exchange {
    pub(in crate::exchange) fn on_upstream_reset(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        code: ErrorCode,
        unprocessed: bool,
        by: Initiator,
    ) {
        if !self.is_current(key, conn, stream) {
            return;
        }
        let Some(call) = self.calls.get(key) else {
            return;
        };
        if call.phase() == Phase::Finishing {
            return;
        }
        let target = call.target_name();
        if unprocessed {
            let text = format!("{target} did not take the call ({code})");
            let failure = Failure::reset(ErrorCode::REFUSED_STREAM, text);
            return self.retry_safe(key, conn, failure);
        }
        // grpc-go resets the stream like this when the deadline has passed.
        if code == ErrorCode::CANCEL && by == Initiator::Remote && self.is_at_deadline(key) {
            self.unanswered(key, End::Deadline);
            self.detach_upstream(key);
            return self.deadline_at_server(key);
        }
        let peer = call.peer_name();
        self.unanswered(key, End::Reset);
        if by == Initiator::Local {
            let text = format!("the response of {target} violates HTTP/2 ({code})");
            return self.attempt_failed(key, conn, &Failure::new(Reason::ProtocolError, text));
        }
        // On a link that is the other proxy: it reports resets of the instance in headers.
        let text = format!("{peer} reset the call with {code}");
        let failure = Failure::reset(code, text);
        if code == ErrorCode::CANCEL {
            // The server cancelled the call; that is no request for another attempt.
            self.detach_upstream(key);
            return self.fail(key, &failure);
        }
        self.attempt_failed(key, conn, &failure);
    }
}
