//! The sweep, every few seconds: removes endpoints that are gone, and ends calls and connections whose receivers take too
//! little while the buffers are nearly full.

use std::time::Duration;

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
    /// too little. Those that have buffered most come first, and no more are ended than needed: what is freed makes the
    /// time longer that the next may take.
    fn end_stalled(&mut self) {
        self.close_stalled_callers();
        self.end_stalled_calls();
    }

    /// How long a receiver may take almost nothing; `None` while there is room for all.
    fn stall_limit(&self) -> Option<Duration> {
        self.admission.stall_limit(self.options().stall_timeout)
    }

    fn close_stalled_callers(&mut self) {
        let Some(limit) = self.stall_limit() else {
            return;
        };
        let mut conns = Vec::new();
        for (key, conn) in self.conns.iter() {
            let Some(since) = conn.stalled_since() else {
                continue;
            };
            let age = self.now.saturating_duration_since(since);
            // A link that does not read at all is closed by its keep-alive.
            let caller = conn.role() == Some(Role::Outbound);
            if age >= limit && caller && !conn.is_ending() {
                conns.push((conn.buffered().bytes(), age, key));
            }
        }
        conns.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, age, key) in conns {
            match self.stall_limit() {
                None => return,
                Some(limit) if age < limit => continue,
                Some(_) => {}
            }
            self.count(Counter::BoundStall);
            self.lose(
                key,
                "it has read almost nothing for a long time, and the proxy's buffers are nearly \
                 full",
            );
        }
    }

    fn end_stalled_calls(&mut self) {
        let Some(limit) = self.stall_limit() else {
            return;
        };
        let mut calls = Vec::new();
        for (key, call) in self.calls.iter() {
            if call.is_stalled(self.now, limit) {
                let conn = self.conns.get(call.caller());
                let used = conn.map_or(0, |conn| conn.buffered().bytes());
                let up = call.upstream.attempt().map(|up| up.conn);
                calls.push((used, key, [Some(call.caller()), up]));
            }
        }
        calls.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, key, conns) in calls {
            let Some(limit) = self.stall_limit() else {
                return;
            };
            let call = self.calls.get(key);
            if !call.is_some_and(|call| call.is_stalled(self.now, limit)) {
                continue;
            }
            self.count(Counter::BoundStall);
            let failure = self.stalled(key, limit);
            self.fail_now(key, &failure);
            // Counts what this has freed before the next call is ended.
            for conn in conns.into_iter().flatten() {
                self.count_machine(conn);
            }
        }
    }

    fn stalled(&self, key: CallKey, limit: Duration) -> Failure {
        let node = &self.options().node;
        let call = self.calls.get(key);
        let late = call.filter(|call| call.upstream.is_stalled(self.now, limit));
        let who = late.map_or_else(|| "the caller".to_owned(), Call::target_name);
        let text = format!(
            "{who} took less than {} KiB of this call in {} s while the proxy on node {node} buffered {} of the {} MiB \
             that a worker may buffer",
            MIN_TAKEN >> 10,
            limit.as_secs(),
            self.admission.buffered_bytes() >> 20,
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
