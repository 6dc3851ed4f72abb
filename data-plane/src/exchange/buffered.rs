//! Memory that calls and connections of a worker buffer. Keeps the charges of `policy/buffers.rs` up to date, and ends
//! calls that exceed a share with OVERLOADED, while others continue. Takes the buffered bytes; gives the calls to end.
//! Does not decide what is sent or when; who is over its share is decided by `admission`.

use std::sync::Arc;

use heddle_proto::Reason;

use super::caller_stream::CallerStream;
use super::owner::Exchange;
use super::queued::{MIN_TAKEN, Queued};
use super::state::{Call, ResponseProgress};
use crate::caller::Role;
use crate::connection::Conn;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;
use crate::policy::buffers::OverShare;

/// Bytes of an unfinished frame or header block that a connection may always have buffered.
const PARTIAL_BYTES: usize = 32 * 1024;

impl Exchange {
    /// Updates the charges to what a call has buffered now.
    pub(super) fn account(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let (now, caller) = (call.buffered(), call.caller());
        let conns = &mut self.conns;
        let buffers = &mut self.admission.buffers;
        let of_service = buffers.charge(&mut call.charge, now, move || {
            conns.get_mut(caller).map(Conn::buffered_mut)
        });
        if let Some(bytes) = of_service {
            self.charge_service(key, bytes);
        }
    }

    #[cold]
    fn charge_service(&mut self, key: CallKey, bytes: usize) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let name = call.service.as_ref().map(|service| &service.name);
        let new = name.map(|name| (Arc::clone(name), bytes));
        let old = call.charge.set_service(new.clone());
        self.discharge_service(old);
        if let Some((name, bytes)) = new {
            self.services.of(&name, self.now).buffered.add(bytes);
        }
    }

    fn discharge_service(&mut self, charged: Option<(Arc<str>, usize)>) {
        if let Some((name, bytes)) = charged
            && let Some(state) = self.services.get_mut(&name)
        {
            state.buffered.sub(bytes);
        }
    }

    /// A call has ended: removes its charges.
    pub(super) fn discharge(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let caller = self.conns.get_mut(call.down.conn);
        let caller = caller.map(Conn::buffered_mut);
        let of_service = self.admission.buffers.end(&mut call.charge, caller);
        self.discharge_service(of_service);
    }

    /// Charges a connection for the bytes in its HTTP/2 state machine.
    pub(super) fn count_machine(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let (partial, now) = (conn.partial_bytes(), conn.waiting_bytes());
        let buffers = &mut self.admission.buffers;
        let changed = buffers.charge_conn(conn.buffered_mut(), now);
        if changed
            && partial > PARTIAL_BYTES
            && conn.is_accepted()
            && self.over_share_of_conn(key).is_some()
        {
            self.count(Counter::BoundCallerShare);
            self.lose(
                key,
                "its unfinished header block exceeds its share of the proxy's buffers",
            );
        }
    }

    /// Whether a caller's connection has buffered more than its share.
    pub(super) fn over_share_of_conn(&self, key: ConnKey) -> Option<OverShare> {
        let conn = self.conns.get(key)?;
        self.admission.over_caller(conn.caller()?, conn.buffered())
    }

    /// Whether a call may buffer no more, and whose share is used up. Called several times per call.
    #[inline]
    pub(super) fn over_share(&self, key: CallKey) -> Option<OverShare> {
        match self.admission.buffers.is_far_from_full() {
            true => None,
            false => self.over_share_when_full(key),
        }
    }

    #[cold]
    fn over_share_when_full(&self, key: CallKey) -> Option<OverShare> {
        let call = self.calls.get(key)?;
        let conn = self.conns.get(call.down.conn)?;
        let service = call.service_name().and_then(|name| self.services.get(name));
        let of_service = service.map(|service| &service.buffered);
        let admission = &self.admission;
        admission.over_share(conn.caller()?, conn.buffered(), of_service)
    }

    /// Like `over_share`, before more is queued for the caller. Writes what is queued first: a caller that reads is not
    /// at fault for bytes that were never written to it.
    #[inline]
    pub(super) fn over_share_after_writing(
        &mut self,
        key: CallKey,
        caller: ConnKey,
    ) -> Option<OverShare> {
        match self.admission.buffers.is_far_from_full() {
            true => None,
            false => self.over_share_when_written(key, caller),
        }
    }

    #[cold]
    fn over_share_when_written(&mut self, key: CallKey, caller: ConnKey) -> Option<OverShare> {
        self.count_machine(caller);
        self.over_share(key)?;
        if self
            .conns
            .get(caller)
            .is_some_and(|conn| !conn.is_blocked())
        {
            self.flush(caller);
        }
        self.over_share(key)
    }

    /// The failure of a call that is refused or ended because a share is used up; counted.
    pub(super) fn overloaded(&self, key: CallKey, over: OverShare) -> Failure {
        let (counter, who) = match over {
            OverShare::Worker => (
                Counter::BoundMemory,
                "all calls together hold all".to_owned(),
            ),
            OverShare::Caller => {
                let role = self.calls.get(key).map(|call| call.role);
                let who = match role {
                    Some(Role::Inbound) => {
                        "the calls of this link have buffered more than its share"
                    }
                    _ => "the calls of this connection have buffered more than its share",
                };
                (Counter::BoundCallerShare, who.to_owned())
            }
            OverShare::Service => {
                let service = self.calls.get(key).and_then(Call::service_name);
                let service = service.unwrap_or("the service");
                let who = format!("the calls to {service} have buffered more than their share");
                (Counter::BoundServiceShare, who)
            }
        };
        self.count(counter);
        let (node, mib) = (&self.options().node, self.options().held_bytes >> 20);
        let text = format!(
            "{who} of the {mib} MiB that a worker of the proxy on node {node} may buffer for receivers that have not \
             taken them yet"
        );
        Failure::new(Reason::Overloaded, text)
    }

    /// Ends a call that would buffer more than a share allows. Discards what is queued for the caller, since the
    /// failure would have to wait behind it.
    pub(super) fn overload(&mut self, key: CallKey, over: OverShare) {
        let failure = self.overloaded(key, over);
        self.fail_now(key, &failure);
    }

    fn fail_now(&mut self, key: CallKey, failure: &Failure) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent == ResponseProgress::All {
            // The end of the response is already queued, so nothing can be added.
            return self.reset_call(key, &failure.message);
        }
        if let Some(mut caller) = CallerStream::of(&mut self.conns, call.down) {
            call.down_queued.discard(caller.discard());
        }
        self.fail(key, failure);
    }

    /// While the buffers are more than half full: closes callers that do not read, then ends calls whose receiver reads
    /// too little. Those that have buffered most come first, and no more are ended than needed.
    pub(super) fn end_stalled(&mut self) {
        if self.admission.buffers.is_far_from_full() {
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
            if self.admission.buffers.is_far_from_full() {
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
            let stalled = |queued: &Queued| queued.is_stalled(now, limit);
            if stalled(&call.down_queued) || stalled(&call.up_queued) {
                let conn = self.conns.get(call.down.conn);
                let used = conn.map_or(0, |conn| conn.buffered().bytes());
                let up = call.up.map(|up| up.conn);
                calls.push((used, key, [Some(call.down.conn), up]));
            }
        }
        calls.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, key, conns) in calls {
            if self.admission.buffers.is_far_from_full() {
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
        let late = call.filter(|call| call.up_queued.is_stalled(self.now, limit));
        let who = late.map_or_else(|| "the caller".to_owned(), Call::target_name);
        let text = format!(
            "{who} took less than {} KiB of this call in {} s while the proxy on node {node} held more than half of the \
             {} MiB that a worker may buffer",
            MIN_TAKEN >> 10,
            limit.as_secs(),
            self.options().held_bytes >> 20,
        );
        Failure::new(Reason::Overloaded, text)
    }
}
