//! Forwards bodies in both directions, with end-to-end flow control: bytes from one side are credited to it only when
//! the other side's HTTP/2 state machine has written them. Takes DATA and progress; gives DATA and credit.

use heddle_h2::StreamId;

use crate::exchange::answer::CallerStream;
use crate::exchange::owner::Exchange;
use crate::keys::{CallKey, ConnKey};

impl Exchange {
    pub(in crate::exchange) fn on_response_data(
        &mut self,
        conn: ConnKey,
        stream: StreamId,
        key: CallKey,
        data: &[u8],
        end: bool,
    ) {
        // The call has ended, and the stream's cancel waits for the rate limit. Without credit the server stops
        // sending.
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if !call.upstream.is_on(conn, stream) || !call.response.is_open() {
            return self.release(conn, stream, data.len());
        }
        let down = call.down();
        let caller = CallerStream::of(&mut self.conns, down);
        let Some(queued) = caller.and_then(|mut caller| caller.data(data, end)) else {
            return self.release(conn, stream, data.len());
        };
        if queued > 0 {
            call.response.queue(queued, self.now);
        }
        self.mark_dirty(down.conn);
        self.release(conn, stream, data.len() - queued);
        if queued > 0 {
            self.update_charges(key);
        }
        if let Some(over) = self.over_share_after_writing(key, down.conn) {
            return self.overload(key, over);
        }
        if end {
            // Plain HTTP, or a server that omitted the trailers: forwarded as it is.
            self.response_ended(key);
        }
    }
}
