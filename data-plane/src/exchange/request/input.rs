//! What a caller sends, in the terms of its call: a request begins, its data and trailers arrive. Each protocol of callers
//! turns its events into these few methods (HTTP/2 in `events::caller`), and answers through `answer`. Nothing here
//! knows a protocol.

use heddle_h2::Fields;

use crate::exchange::call::{CallerStreamId, Phase};
use crate::exchange::headers;
use crate::exchange::owner::Exchange;
use crate::exchange::request::too_large_headers;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;

impl Exchange {
    /// A request begins: its headers have arrived, which are also its end if `end`. They are moved into the call.
    pub(in crate::exchange) fn on_request(
        &mut self,
        conn: ConnKey,
        stream: CallerStreamId,
        end: bool,
        fields: &mut Fields,
    ) {
        let Some(key) = self.new_call(conn, stream, end, fields) else {
            return;
        };
        if self.start_deadline(key) {
            self.route_call(key);
        }
    }

    /// A request begins whose headers are too large; `fields` has a part of them.
    pub(in crate::exchange) fn on_request_too_large(
        &mut self,
        conn: ConnKey,
        stream: CallerStreamId,
        end: bool,
        fields: &mut Fields,
    ) {
        self.count(Counter::BoundHeaders);
        let Some(key) = self.new_call(conn, stream, end, fields) else {
            return;
        };
        self.fail(key, &too_large_headers("request's header list"));
    }

    /// A part of the request's body has arrived. False if the call has ended: the data is not used.
    pub(in crate::exchange) fn on_request_data(
        &mut self,
        key: CallKey,
        data: &[u8],
        end: bool,
    ) -> bool {
        let Some(call) = self.calls.get_mut(key) else {
            return false;
        };
        call.request.receive(data.len(), end);
        match (call.upstream.attempt(), call.phase()) {
            (Some(up), Phase::Attempting | Phase::Committed) => {
                self.send_request_data(key, up, data, end);
            }
            (_, Phase::Table | Phase::Endpoints | Phase::Pending(_) | Phase::Backoff) => {
                // Not sent to a server yet: kept whatever its size, which the caller's window limits.
                call.request.keep(data);
                self.update_charges(key);
                if !data.is_empty()
                    && let Some(over) = self.over_share(key)
                {
                    self.overload(key, over);
                    return true;
                }
            }
            _ => {
                call.request.credit_discarded(data.len());
                let down = call.down();
                self.credit_caller(down, data.len());
            }
        }
        if end {
            self.finish_if_done(key);
        }
        true
    }

    /// The request's trailers have arrived, its end.
    pub(in crate::exchange) fn on_request_trailers(&mut self, key: CallKey, fields: &mut Fields) {
        let now = self.now;
        let over = self.over_share(key);
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        headers::strip(fields);
        let over = over.filter(|_| !call.response.is_complete());
        let keep = over.is_none() && call.can_replay();
        call.request.receive_trailers(fields, keep);
        if let Some(over) = over {
            return self.overload(key, over);
        }
        if let Some(up) = call.upstream.attempt() {
            if let Some(conn) = self.conns.get_mut(up.conn) {
                let queued = conn.headers(up.stream, fields, true).unwrap_or(0);
                call.upstream.queue(queued, now);
            }
            self.mark_dirty(up.conn);
        }
        self.update_charges(key);
        self.finish_if_done(key);
    }

    /// The request's trailers are too large.
    pub(in crate::exchange) fn on_request_trailers_too_large(&mut self, key: CallKey) {
        self.count(Counter::BoundHeaders);
        self.fail(key, &too_large_headers("list of the request's trailers"));
    }
}
