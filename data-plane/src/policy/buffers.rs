//! The memory that one worker buffers: its limit, and the charges to those who use it. Everything counts: requests that
//! are kept, and bytes in connections that wait to be written or for the rest of a frame. They are charged to each
//! call's caller connection and service; whoever exceeds its share of the limit (`share.rs`) may not add more. Takes
//! amounts; gives charges and answers. Calls and connections, and what is done about them, do not belong here.

use std::sync::Arc;
use std::time::Duration;

use super::share::{within_group_share, within_share};

/// Charges of a service are updated in steps of this size, so that small calls need not look it up.
const SERVICE_STEP: usize = 4 * 1024;
/// Those charged less than this may exceed their share, from a reserve of an eighth above the limit, so that many
/// callers that do not read cannot block others.
const NEWCOMER_BYTES: usize = 16 * 1024;
const RESERVE: usize = 8;
/// By how much the time in which a receiver must take something is shorter when the limit is reached.
const STALL_FASTER: u32 = 6;

/// Whose share is used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OverShare {
    Worker,
    Caller,
    Service,
}

/// Whether a charge is that of one user or of a group of users, which gets a larger share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sharer {
    User,
    Group,
}

/// What one call has buffered now.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Amounts {
    /// In the call itself.
    pub(crate) kept: usize,
    /// In the connection to its server.
    pub(crate) for_server: usize,
    /// In the connection to its caller.
    pub(crate) for_caller: usize,
}

/// What has been charged for a call.
#[derive(Debug, Default)]
pub(crate) struct CallCharge {
    /// To the worker: what the call itself keeps. The rest is charged for the connections.
    kept: usize,
    /// To the caller's connection, besides what is queued in it.
    caller: usize,
    service: Option<(Arc<str>, usize)>,
}

/// What is charged to a connection.
#[derive(Debug, Default)]
pub(crate) struct ConnCharge {
    /// What its calls have buffered elsewhere, if it is a caller's connection.
    calls: usize,
    /// What is queued in it, when last counted.
    own: usize,
}

impl ConnCharge {
    pub(crate) fn bytes(&self) -> usize {
        self.calls + self.own
    }
}

/// What is charged to a service; inexact by a few KiB for each of its calls.
#[derive(Debug, Default)]
pub(crate) struct ServiceCharge {
    bytes: usize,
}

impl ServiceCharge {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.bytes += bytes;
    }

    pub(crate) fn sub(&mut self, bytes: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// Everything that the worker buffers.
#[derive(Debug)]
pub(crate) struct Buffers {
    bound: usize,
    total: usize,
}

impl Buffers {
    pub(crate) fn new(bound: usize) -> Self {
        Self { bound, total: 0 }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Up to half of the limit nobody can exceed a share.
    #[inline]
    pub(crate) fn is_far_from_full(&self) -> bool {
        self.total <= self.bound / 2
    }

    /// How long a receiver may take almost nothing: `most` while half of the limit is in use, a sixth of it when all is,
    /// in between in proportion. Unlimited below. So the idlest make room before others are refused.
    pub(crate) fn stall_limit(&self, most: Duration) -> Option<Duration> {
        if self.is_far_from_full() {
            return None;
        }
        let half = self.bound / 2;
        let above = (self.total - half).min(half);
        // In thousandths, which fit whatever the sizes are.
        let thousandths = u32::try_from(above.saturating_mul(1000) / half.max(1)).unwrap_or(1000);
        let shorter = most / STALL_FASTER * (STALL_FASTER - 1) / 1000 * thousandths.min(1000);
        Some(most - shorter)
    }

    /// At most a quarter of the limit is in use.
    pub(crate) fn is_nearly_empty(&self) -> bool {
        self.total <= self.bound / 4
    }

    /// Charges a new call for its request's headers. Its service is charged once it is known.
    pub(crate) fn charge_new(&mut self, caller: &mut ConnCharge, kept: usize) -> CallCharge {
        self.total += kept;
        caller.calls += kept;
        CallCharge {
            kept,
            caller: kept,
            service: None,
        }
    }

    /// Updates the charge of a call to what it has buffered now. Calls `caller` only if the caller's part has changed.
    /// Returns the new charge of the service, if that differs by at least a step.
    #[inline]
    pub(crate) fn charge<'c>(
        &mut self,
        call: &mut CallCharge,
        now: Amounts,
        caller: impl FnOnce() -> Option<&'c mut ConnCharge>,
    ) -> Option<usize> {
        let bytes = now.kept + now.for_server;
        self.total = (self.total + now.kept).saturating_sub(call.kept);
        call.kept = now.kept;
        let before = std::mem::replace(&mut call.caller, bytes);
        if bytes != before
            && let Some(caller) = caller()
        {
            caller.calls = (caller.calls + bytes).saturating_sub(before);
        }
        let all = bytes + now.for_caller;
        let stale = match &call.service {
            Some((_, before)) => before.abs_diff(all) >= SERVICE_STEP,
            None => all >= SERVICE_STEP,
        };
        stale.then_some(all)
    }

    /// Ends the charge of a call. Returns what is still charged to its service.
    pub(crate) fn end(
        &mut self,
        call: &mut CallCharge,
        caller: Option<&mut ConnCharge>,
    ) -> Option<(Arc<str>, usize)> {
        let charge = std::mem::take(call);
        self.total = self.total.saturating_sub(charge.kept);
        if let Some(caller) = caller {
            caller.calls = caller.calls.saturating_sub(charge.caller);
        }
        charge.service
    }

    /// Charges a connection for what is queued in it now; false if that has not changed.
    pub(crate) fn charge_conn(&mut self, conn: &mut ConnCharge, bytes: usize) -> bool {
        if conn.own == bytes {
            return false;
        }
        self.total = (self.total + bytes).saturating_sub(conn.own);
        conn.own = bytes;
        true
    }

    /// Removes the charge of a closed connection.
    pub(crate) fn forget_conn(&mut self, conn: &ConnCharge) {
        self.total = self.total.saturating_sub(conn.own);
    }

    /// Whether a caller's connection exceeds its share.
    pub(crate) fn over_caller(&self, caller: &ConnCharge, as_a: Sharer) -> Option<OverShare> {
        if self.is_far_from_full() {
            return None;
        }
        if self.total >= self.bound + self.bound / RESERVE {
            return Some(OverShare::Worker);
        }
        self.is_over(caller.bytes(), as_a)
            .then_some(OverShare::Caller)
    }

    /// Whether the calls of a service exceed its share.
    pub(crate) fn over_service(&self, service: &ServiceCharge, as_a: Sharer) -> Option<OverShare> {
        let over = !self.is_far_from_full() && self.is_over(service.bytes, as_a);
        over.then_some(OverShare::Service)
    }

    fn is_over(&self, used: usize, as_a: Sharer) -> bool {
        let within = match as_a {
            Sharer::User => within_share(used, self.total, self.bound),
            Sharer::Group => within_group_share(used, self.total, self.bound),
        };
        used >= NEWCOMER_BYTES && !within
    }

    #[cfg(test)]
    pub(crate) fn fill_half(&mut self) {
        self.total = self.bound / 2 + 1;
    }
}

impl CallCharge {
    /// Sets the service that is charged and the amount. Returns the previous ones.
    pub(crate) fn set_service(
        &mut self,
        service: Option<(Arc<str>, usize)>,
    ) -> Option<(Arc<str>, usize)> {
        std::mem::replace(&mut self.service, service)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn what_a_call_has_buffered_is_charged_once_and_given_back_whole() {
        let (mut buffers, mut caller) = (Buffers::new(MIB), ConnCharge::default());
        let mut call = buffers.charge_new(&mut caller, 300);
        let now = Amounts {
            kept: 1_000,
            for_server: 200,
            for_caller: 50,
        };
        assert_eq!(buffers.charge(&mut call, now, || Some(&mut caller)), None);
        assert_eq!((buffers.total(), caller.bytes()), (1_000, 1_200));
        // What is queued in a connection is charged there, for the worker.
        buffers.charge_conn(&mut caller, 70);
        assert_eq!((buffers.total(), caller.bytes()), (1_070, 1_270));
        let more = Amounts {
            for_caller: SERVICE_STEP,
            ..now
        };
        let of_service =
            buffers.charge(&mut call, more, || panic!("nothing changes for the caller"));
        assert_eq!(of_service, Some(1_200 + SERVICE_STEP));
        assert_eq!(call.set_service(Some(("a".into(), 9))), None);
        let left = buffers.end(&mut call, Some(&mut caller));
        assert_eq!(left, Some(("a".into(), 9)));
        buffers.forget_conn(&caller);
        assert_eq!((buffers.total(), caller.calls), (0, 0));
    }

    #[test]
    fn a_newcomer_is_admitted_from_the_reserve_until_that_is_used_up() {
        let mut buffers = Buffers::new(MIB);
        let (mut greedy, small) = (ConnCharge::default(), ConnCharge::default());
        buffers.charge_conn(&mut greedy, MIB);
        assert_eq!(
            buffers.over_caller(&greedy, Sharer::User),
            Some(OverShare::Caller)
        );
        assert_eq!(buffers.over_caller(&small, Sharer::User), None);
        buffers.charge_conn(&mut greedy, MIB + MIB / RESERVE);
        assert_eq!(
            buffers.over_caller(&small, Sharer::User),
            Some(OverShare::Worker)
        );
        buffers.charge_conn(&mut greedy, MIB / 2);
        assert_eq!(buffers.over_caller(&greedy, Sharer::User), None);
    }

    #[test]
    fn the_fuller_the_buffers_the_sooner_a_receiver_that_takes_nothing_must_go() {
        let (mut buffers, mut conn) = (Buffers::new(MIB), ConnCharge::default());
        let limit = |buffers: &Buffers| {
            let limit = buffers.stall_limit(Duration::from_secs(30));
            limit.map(|limit| limit.as_secs())
        };
        for (eighths, expected) in [(4, None), (6, Some(17)), (8, Some(5)), (9, Some(5))] {
            buffers.charge_conn(&mut conn, MIB / 8 * eighths);
            assert_eq!(limit(&buffers), expected, "{eighths} eighths");
        }
        assert!(buffers.stall_limit(Duration::MAX).is_some(), "no overflow");
    }

    #[test]
    fn a_group_gets_a_larger_share_than_a_user() {
        let (mut buffers, mut conn) = (Buffers::new(MIB), ConnCharge::default());
        buffers.charge_conn(&mut conn, MIB * 9 / 10);
        let mut service = ServiceCharge::default();
        service.add(conn.bytes());
        assert_eq!(
            buffers.over_service(&service, Sharer::User),
            Some(OverShare::Service)
        );
        assert_eq!(buffers.over_service(&service, Sharer::Group), None);
    }
}
