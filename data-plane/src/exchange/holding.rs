//! Who holds the worker's memory. All that the worker buffers counts toward `held_bytes`: requests that are kept, and
//! what waits in the machines of connections to be written or for the rest of a frame. It is charged to the caller's
//! connection and to the service of each call, and whoever is over its share of the bound (`policy/share.rs`) has its
//! own calls ended with OVERLOADED; others go on. What calls hold comes in, who must give way goes out; what is sent
//! and when is decided elsewhere.
//!
//! A connection of the outbound listener is one caller; an inbound one is a link, which carries many callers to many
//! services. So the caller is the single user and the service the group on outbound, and the other way round on
//! inbound: one service's slow reader elsewhere does not have the link's other services refused.

use std::sync::Arc;

use heddle_proto::Reason;

use super::owner::Exchange;
use super::queued::MIN_TAKEN;
use super::state::{Call, Sent};
use crate::caller::Role;
use crate::connection::Conn;
use crate::failure::Failure;
use crate::keys::{CallKey, ConnKey};
use crate::observe::Counter;
use crate::policy::{within_group_share, within_share};

/// A service is charged in steps of so much, so that small calls need not look it up.
const SERVICE_STEP: usize = 4 * 1024;
/// Who holds less than this is let in over its share, from a reserve of an eighth on top of the bound: however many do
/// not read, others go on.
const NEWCOMER_BYTES: usize = 16 * 1024;
const RESERVE: usize = 8;
/// A connection may bring so much of an unfinished frame or header block without being asked.
const PARTIAL_BYTES: usize = 32 * 1024;

/// What has been charged for a call so far.
#[derive(Debug, Default)]
pub(crate) struct Accounted {
    /// Of the worker: what the call itself keeps. The rest is counted where it waits.
    kept: usize,
    /// Of the caller's connection, beside what waits in its own machine.
    caller: usize,
    service: Option<(Arc<str>, usize)>,
}

impl Accounted {
    /// What a new call is charged for, which keeps its request's headers only. A service is charged once it is known.
    pub(crate) fn of_new(kept: usize) -> Self {
        Self {
            kept,
            caller: kept,
            service: None,
        }
    }
}

/// Whose share is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Worker,
    Caller,
    Service,
}

impl Exchange {
    /// Brings the books up to date with what a call holds now.
    pub(crate) fn account(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let kept = call.kept();
        let caller = kept + call.up_queued.bytes();
        let all = caller + call.down_queued.bytes();
        self.held = (self.held + kept).saturating_sub(call.accounted.kept);
        call.accounted.kept = kept;
        let before = std::mem::replace(&mut call.accounted.caller, caller);
        let stale = match &call.accounted.service {
            Some((_, before)) => before.abs_diff(all) >= SERVICE_STEP,
            None => all >= SERVICE_STEP,
        };
        let down = call.down.conn;
        if caller != before
            && let Some(conn) = self.conns.get_mut(down)
        {
            conn.charge(before, caller);
        }
        if stale {
            self.charge_service(key, all);
        }
    }

    /// Charges a call that has been made just now.
    pub(crate) fn charge_new(&mut self, caller: ConnKey, kept: usize) {
        self.held += kept;
        if let Some(conn) = self.conns.get_mut(caller) {
            conn.charge(0, kept);
        }
    }

    #[cold]
    fn charge_service(&mut self, key: CallKey, bytes: usize) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let name = call.service.as_ref().map(|service| &service.name);
        let new = name.map(|name| (Arc::clone(name), bytes));
        let old = std::mem::replace(&mut call.accounted.service, new.clone());
        self.discharge_service(old);
        if let Some((name, bytes)) = new {
            self.services.of(&name, self.now).held += bytes;
        }
    }

    fn discharge_service(&mut self, charged: Option<(Arc<str>, usize)>) {
        let Some((name, bytes)) = charged else {
            return;
        };
        if let Some(state) = self.services.get_mut(&name) {
            state.held = state.held.saturating_sub(bytes);
        }
    }

    /// A call has ended: nothing is charged for it any more.
    pub(crate) fn discharge(&mut self, key: CallKey) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        let charged = std::mem::take(&mut call.accounted);
        self.held = self.held.saturating_sub(charged.kept);
        if let Some(conn) = self.conns.get_mut(call.down.conn) {
            conn.charge(charged.caller, 0);
        }
        self.discharge_service(charged.service);
    }

    /// Counts what waits in a connection's machine.
    pub(crate) fn count_machine(&mut self, key: ConnKey) {
        let Some(conn) = self.conns.get_mut(key) else {
            return;
        };
        let Some((before, now)) = conn.measure_machine() else {
            return;
        };
        self.held = (self.held + now).saturating_sub(before);
        if conn.partial_bytes() > PARTIAL_BYTES
            && conn.is_accepted()
            && self.over_share_of_conn(key).is_some()
        {
            self.count(Counter::BoundCallerShare);
            self.lose(
                key,
                "its unfinished header block is over its share of the proxy's buffers",
            );
        }
    }

    /// A connection is gone, and what waited in its machine.
    pub(crate) fn forget_machine(&mut self, bytes: usize) {
        self.held = self.held.saturating_sub(bytes);
    }

    /// Below half of the bound nobody can be over a share of it.
    #[inline]
    fn is_far_from_full(&self) -> bool {
        self.held <= self.options().held_bytes / 2
    }

    /// Whether a caller's connection holds more than its share.
    pub(crate) fn over_share_of_conn(&self, key: ConnKey) -> Option<Over> {
        if self.is_far_from_full() {
            return None;
        }
        let (total, bound) = (self.held, self.options().held_bytes);
        if total >= bound + bound / RESERVE {
            return Some(Over::Worker);
        }
        let conn = self.conns.get(key)?;
        let used = conn.held_bytes();
        if used < NEWCOMER_BYTES {
            return None;
        }
        let within = match conn.role() {
            Some(Role::Outbound) => within_share(used, total, bound),
            Some(Role::Inbound) | None => within_group_share(used, total, bound),
        };
        (!within).then_some(Over::Caller)
    }

    /// Whether the calls of a service hold more than its share.
    fn over_share_of_service(&self, role: Role, name: &str) -> Option<Over> {
        let (total, bound) = (self.held, self.options().held_bytes);
        let used = self.services.get(name).map_or(0, |state| state.held);
        if used < NEWCOMER_BYTES {
            return None;
        }
        let within = match role {
            Role::Outbound => within_group_share(used, total, bound),
            Role::Inbound => within_share(used, total, bound),
        };
        (!within).then_some(Over::Service)
    }

    /// Whether a call may hold no more, and for whose sake. Asked several times in each call.
    #[inline]
    pub(crate) fn over_share(&self, key: CallKey) -> Option<Over> {
        match self.is_far_from_full() {
            true => None,
            false => self.over_share_when_full(key),
        }
    }

    #[cold]
    fn over_share_when_full(&self, key: CallKey) -> Option<Over> {
        let call = self.calls.get(key)?;
        let caller = self.over_share_of_conn(call.down.conn);
        caller.or_else(|| self.over_share_of_service(call.role, call.service_name()?))
    }

    /// The same before more waits for the caller. What it has not been offered yet is no fault of a caller that reads:
    /// it is written first.
    #[inline]
    pub(crate) fn over_share_after_writing(
        &mut self,
        key: CallKey,
        caller: ConnKey,
    ) -> Option<Over> {
        match self.is_far_from_full() {
            true => None,
            false => self.over_share_when_written(key, caller),
        }
    }

    #[cold]
    fn over_share_when_written(&mut self, key: CallKey, caller: ConnKey) -> Option<Over> {
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

    /// Why a call cannot be taken, or not go on; counted.
    pub(crate) fn overloaded(&self, key: CallKey, over: Over) -> Failure {
        let (counter, who) = match over {
            Over::Worker => (
                Counter::BoundMemory,
                "all calls together hold all".to_owned(),
            ),
            Over::Caller => {
                let role = self.calls.get(key).map(|call| call.role);
                let who = match role {
                    Some(Role::Inbound) => "the calls of this link hold more than its share",
                    _ => "the calls of this connection hold more than its share",
                };
                (Counter::BoundCallerShare, who.to_owned())
            }
            Over::Service => {
                let service = self.calls.get(key).and_then(Call::service_name);
                let service = service.unwrap_or("the service");
                let who = format!("the calls to {service} hold more than their share");
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

    /// Ends a call that would hold more than a share allows. What waits for the caller is thrown away, since the
    /// failure would have to wait behind it.
    pub(crate) fn overload(&mut self, key: CallKey, over: Over) {
        let failure = self.overloaded(key, over);
        self.fail_now(key, &failure);
    }

    fn fail_now(&mut self, key: CallKey, failure: &Failure) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.sent == Sent::All {
            // Its end is queued already, and nothing can be added.
            return self.cut(key, &failure.message);
        }
        if let Some(conn) = self.conns.get_mut(call.down.conn) {
            let discarded = conn.discard(call.down.stream);
            call.down_queued.discard(discarded);
        }
        self.fail(key, failure);
    }

    /// While the worker holds much: gives up callers that do not read, and ends calls whose receiver takes too little,
    /// of those that hold most first and no more than needed.
    pub(crate) fn cut_stalled(&mut self) {
        if self.is_far_from_full() {
            return;
        }
        let (now, limit) = (self.now, self.options().stall_timeout);
        let mut conns = Vec::new();
        for (key, conn) in self.conns.iter() {
            let stalled = conn
                .stalled_since()
                .is_some_and(|since| now >= since + limit);
            // A link that does not read at all is given up by its keep-alive.
            let caller = conn.role() == Some(Role::Outbound);
            if stalled && caller && !conn.is_ending() {
                conns.push((conn.held_bytes(), key));
            }
        }
        conns.sort_unstable_by_key(|(used, _)| std::cmp::Reverse(*used));
        for (_, key) in conns {
            if self.is_far_from_full() {
                return;
            }
            self.count(Counter::BoundStall);
            self.lose(
                key,
                "it has read next to nothing for long, and the proxy's buffers are nearly full",
            );
        }
        let mut calls = Vec::new();
        for (key, call) in self.calls.iter() {
            let stalled = |queued: &super::queued::Queued| queued.is_stalled(now, limit);
            if stalled(&call.down_queued) || stalled(&call.up_queued) {
                let conn = self.conns.get(call.down.conn);
                let used = conn.map_or(0, Conn::held_bytes);
                let up = call.up.map(|up| up.conn);
                calls.push((used, key, [Some(call.down.conn), up]));
            }
        }
        calls.sort_unstable_by_key(|(used, ..)| std::cmp::Reverse(*used));
        for (_, key, conns) in calls {
            if self.is_far_from_full() {
                return;
            }
            self.count(Counter::BoundStall);
            let failure = self.stalled(key);
            self.fail_now(key, &failure);
            // What that has freed counts before the next one goes.
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
