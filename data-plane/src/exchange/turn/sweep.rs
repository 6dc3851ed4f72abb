//! The sweep, every few seconds: removes endpoints that are gone, and ends calls and connections whose receivers take too
//! little while the buffers are nearly full.

use heddle_proto::Reason;
use rustc_hash::FxHashSet;

use crate::caller::Role;
use crate::connection::MIN_TAKEN;
use crate::exchange::call::Call;
use crate::exchange::owner::{Exchange, SWEEP_EVERY};
use crate::failure::Failure;
use crate::keys::CallKey;
use crate::observe::Counter;
use crate::timers::Timer;

impl Exchange {
    /// While the buffers are more than half full: closes callers that do not read, then ends calls whose receiver reads
    /// too little. Those that have buffered most come first, and no more are ended than needed.
    fn end_stalled(&mut self) {
        if self.admission.is_far_from_full() {
            return;
        }
        let (now, limit) = (self.now, self.options().stall_timeout);
        let mut conns = Vec::new();
        for (key, conn) in self.conns.iter() {
            let stalled = conn
                .stalled_since()
                .is_some_and(|since| now >= since + limit);
            // A link that does not read at all is closed by its keep-alive.
            let caller = conn.role() == Some(Role::Outbound);
            if stalled && caller && !conn.is_ending() {
                conns.push((conn.buffered().bytes(), key));
            }
        }
        conns.sort_unstable_by_key(|(used, _)| std::cmp::Reverse(*used));
        for (_, key) in conns {
            if self.admission.is_far_from_full() {
                return;
            }
            self.count(Counter::BoundStall);
            self.lose(
                key,
                "it has read almost nothing for a long time, and the proxy's buffers are nearly \
                 full",
            );
        }
        let mut calls = Vec::new();
        for (key, call) in self.calls.iter() {
            if call.response.is_stalled(now, limit) || call.upstream.is_stalled(now, limit) {
                let conn = self.conns.get(call.caller());
                let used = conn.map_or(0, |conn| conn.buffered().bytes());
                let up = call.upstream.attempt().map(|up| up.conn);
                calls.push((used, key, [Some(call.caller()), up]));
            }
        }
        calls.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, key, conns) in calls {
            if self.admission.is_far_from_full() {
                return;
            }
            self.count(Counter::BoundStall);
            let failure = self.stalled(key);
            self.fail_now(key, &failure);
            // Counts what this has freed before the next call is ended.
            for conn in conns.into_iter().flatten() {
                self.count_machine(conn);
            }
        }
    }

    fn stalled(&self, key: CallKey) -> Failure {
        let (limit, node) = (self.options().stall_timeout, &self.options().node);
        let call = self.calls.get(key);
        let late = call.filter(|call| call.upstream.is_stalled(self.now, limit));
        let who = late.map_or_else(|| "the caller".to_owned(), Call::target_name);
        let text = format!(
            "{who} took less than {} KiB of this call in {} s while the proxy on node {node} buffered more than half of the \
             {} MiB that a worker may buffer",
            MIN_TAKEN >> 10,
            limit.as_secs(),
            self.options().buffered_bytes >> 20,
        );
        Failure::new(Reason::Overloaded, text)
    }

    /// Removes endpoints that no table names any more, and closes connections that only they used.
    pub(in crate::exchange) fn sweep_upstream(&mut self) {
        if self.pools.is_swept() {
            return;
        }
        let table = self.table();
        let endpoints = table.services().flat_map(|s| &s.endpoints.endpoints);
        let known: FxHashSet<u64> = endpoints.map(|e| e.uid).collect();
        for conn in self.pools.sweep(&known, &self.conns) {
            self.retire(conn);
        }
        self.pools.end_sweep(&known, &mut self.timers);
        self.passive.retain(|uid| known.contains(&uid));
        self.admission
            .retain_services(|name| table.service(name).is_some());
    }

    /// Removes endpoints that are gone, and ends stalled calls.
    pub(super) fn sweep(&mut self) {
        // Set before the work, which may panic.
        self.timers.set(self.now + SWEEP_EVERY, Timer::Sweep);
        self.contain(Self::sweep_upstream);
        self.contain(Self::end_stalled);
    }
}
