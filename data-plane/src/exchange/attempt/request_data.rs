//! Forwards the body of a request on the current attempt. It is also kept for a retry, up to the limit.

use crate::exchange::call::Attempt;
use crate::exchange::owner::Exchange;
use crate::keys::CallKey;
use crate::observe::Counter;

impl Exchange {
    /// Forwards a part of the request on the current attempt.
    pub(in crate::exchange) fn send_request_data(
        &mut self,
        key: CallKey,
        up: Attempt,
        data: &[u8],
        end: bool,
    ) {
        let (bound, now) = (self.replay_bound(key), self.now);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (before, down) = (
            call.request.body().len() + call.upstream.queued_bytes(),
            call.down(),
        );
        if call.keep_sent(data, bound) {
            self.metrics.counters.add(Counter::BoundReplay);
        }
        let sent = self
            .conns
            .get_mut(up.conn)
            .map(|conn| conn.data(up.stream, data, end));
        let discarded = match sent {
            Some(Ok(sent)) => {
                call.upstream.add_written(sent);
                call.upstream.queue(data.len() - sent, now);
                false
            }
            // The server takes no more of the request: the rest is discarded.
            _ => {
                call.request.credit_discarded(data.len());
                true
            }
        };
        let grown = call.request.body().len() + call.upstream.queued_bytes() > before;
        self.update_charges(key);
        self.mark_dirty(up.conn);
        if grown && let Some(over) = self.over_share(key) {
            return self.overload(key, over);
        }
        match discarded {
            true => self.credit_caller(down, data.len()),
            false => self.credit_request(key),
        }
    }
}
