//! The accounts to which streams of a pool are charged: each caller connection, and on a link, which carries the calls
//! to all services of its node, also each service. Takes counts; says who may have another stream. The rule is in
//! `policy::share`.

use crate::caller::{Account, CallerKey};
use crate::policy::Shares;

/// Whose share of the streams is used up, and how many streams it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    Caller(usize),
    Service(usize),
}

/// The streams of one pool that are in use, including those whose cancel waits.
#[derive(Debug)]
pub(crate) struct Streams {
    callers: Shares<CallerKey>,
    /// Only if several services share the pool.
    services: Option<Shares<u32>>,
}

impl Streams {
    pub(crate) fn new(has_services: bool) -> Self {
        Self {
            callers: Shares::default(),
            services: has_services.then(Shares::default),
        }
    }

    /// Number of streams in use.
    #[cfg(test)]
    pub(crate) fn in_use(&self) -> usize {
        self.callers.total()
    }

    pub(crate) fn take(&mut self, account: Account) {
        self.callers.add(&account.caller, 1);
        if let Some(services) = &mut self.services {
            services.add(&account.service, 1);
        }
    }

    pub(crate) fn give(&mut self, account: Account) {
        self.callers.sub(&account.caller, 1);
        if let Some(services) = &mut self.services {
            services.sub(&account.service, 1);
        }
    }

    /// Whether nobody can exceed its share, so that no account needs to be looked up: nearly always.
    #[inline]
    pub(crate) fn is_ample(&self, bound: usize) -> bool {
        // Even a single user of all streams in use would be within its share.
        crate::policy::within_share(self.callers.total(), self.callers.total(), bound)
    }

    pub(crate) fn admits_service(&self, service: u32, bound: usize) -> bool {
        let services = self.services.as_ref();
        services.is_none_or(|services| services.admits_group(&service, bound))
    }

    pub(crate) fn admits_caller(&self, caller: CallerKey, bound: usize) -> bool {
        self.callers.admits(&caller, bound)
    }

    /// Why an account may not take another of `bound` streams; `None` if it may.
    pub(crate) fn over(&self, account: Account, bound: usize) -> Option<Over> {
        if self.is_ample(bound) {
            return None;
        }
        if !self.admits_service(account.service, bound) {
            let services = self.services.as_ref();
            return Some(Over::Service(
                services.map_or(0, |services| services.used(&account.service)),
            ));
        }
        let caller = &account.caller;
        (!self.callers.admits(caller, bound)).then(|| Over::Caller(self.callers.used(caller)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    fn account(service: u32, caller: u64) -> Account {
        Account {
            service,
            caller: ConnKey::unpack(caller).into(),
        }
    }

    /// Takes streams for an account until it may not have another.
    fn fill(streams: &mut Streams, account: Account, bound: usize) -> Over {
        loop {
            match streams.over(account, bound) {
                None => streams.take(account),
                Some(over) => return over,
            }
        }
    }

    #[test]
    fn one_caller_and_one_service_each_leave_room_for_others() {
        let mut streams = Streams::new(true);
        assert_eq!(
            fill(&mut streams, account(1, 1), 1000),
            Over::Caller(800),
            "a caller alone"
        );
        let mut caller = 2;
        while let Over::Caller(_) = fill(&mut streams, account(1, caller), 1000) {
            caller += 1;
        }
        let used = streams.in_use();
        assert!((900..950).contains(&used), "the service's share: {used}");
        assert_eq!(streams.over(account(2, 9), 1000), None, "another service");
        for _ in 0..800 {
            streams.give(account(1, 1));
        }
        assert_eq!(streams.over(account(1, 1), 1000), None);
    }

    #[test]
    fn an_instance_is_not_kept_free_for_other_services() {
        let mut streams = Streams::new(false);
        for caller in 1..200 {
            fill(&mut streams, account(1, caller), 1000);
        }
        assert!(streams.in_use() > 990, "{}", streams.in_use());
    }

    #[test]
    fn few_streams_are_all_used() {
        for bound in 1..=4 {
            let mut streams = Streams::new(true);
            fill(&mut streams, account(1, 1), bound);
            assert_eq!(streams.in_use(), bound);
        }
    }
}
