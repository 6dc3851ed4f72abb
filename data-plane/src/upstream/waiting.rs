//! The calls that wait for a stream of one pool, in round-robin order: first by service, then by caller within a
//! service, then in order of arrival. So a flood of calls delays only its own caller. Takes calls with their accounts;
//! asks the pool, which knows the shares, who may be served. Connections and timers do not belong here.

use std::collections::VecDeque;

use rustc_hash::FxHashMap;

use crate::caller::{Account, CallerKey};
use crate::keys::CallKey;

/// The waiting calls of one pool. Bounded for each service (`pending_calls`).
#[derive(Debug, Default)]
pub(crate) struct Waiting {
    services: FxHashMap<u32, Service>,
    /// Services with waiting calls, in the order of their turns.
    turns: VecDeque<u32>,
    len: usize,
}

/// The waiting calls of one service; removed when it has none.
#[derive(Debug, Default)]
struct Service {
    callers: FxHashMap<CallerKey, VecDeque<CallKey>>,
    /// Callers with waiting calls, in the order of their turns.
    turns: VecDeque<CallerKey>,
}

/// Who may be served now.
pub(crate) trait Eligible {
    fn service(&self, service: u32) -> bool;
    fn caller(&self, caller: CallerKey) -> bool;
}

/// Everyone may be served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AdmitAll;

impl Eligible for AdmitAll {
    fn service(&self, _: u32) -> bool {
        true
    }

    fn caller(&self, _: CallerKey) -> bool {
        true
    }
}

impl Waiting {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Adds a call after the others of its caller.
    pub(crate) fn push(&mut self, account: Account, call: CallKey) {
        let turns = &mut self.turns;
        let service = self.services.entry(account.service).or_insert_with(|| {
            turns.push_back(account.service);
            Service::default()
        });
        let turns = &mut service.turns;
        let calls = service.callers.entry(account.caller).or_insert_with(|| {
            turns.push_back(account.caller);
            VecDeque::new()
        });
        calls.push_back(call);
        self.len += 1;
    }

    /// Removes a call that no longer waits. Searches the calls of its caller.
    pub(crate) fn remove(&mut self, account: Account, call: CallKey) {
        let Some(service) = self.services.get_mut(&account.service) else {
            return;
        };
        let Some(calls) = service.callers.get_mut(&account.caller) else {
            return;
        };
        let Some(at) = calls.iter().position(|other| *other == call) else {
            return;
        };
        calls.remove(at);
        self.len -= 1;
        if calls.is_empty() {
            service.callers.remove(&account.caller);
            service.turns.retain(|other| *other != account.caller);
        }
        if service.callers.is_empty() {
            self.services.remove(&account.service);
            self.turns.retain(|other| *other != account.service);
        }
    }

    /// Whether there is a call that may be served.
    pub(crate) fn has_eligible(&self, who: &impl Eligible) -> bool {
        self.turns.iter().any(|key| {
            let service = self.services.get(key);
            who.service(*key)
                && service.is_some_and(|s| s.turns.iter().any(|caller| who.caller(*caller)))
        })
    }

    /// Takes the next call in turn. Those who may not be served lose their turn.
    pub(crate) fn next(&mut self, who: &impl Eligible) -> Option<CallKey> {
        for _ in 0..self.turns.len() {
            let key = self.turns.pop_front()?;
            let Some(service) = self.services.get_mut(&key) else {
                continue;
            };
            let call = match who.service(key) {
                true => service.next(who),
                false => None,
            };
            match service.callers.is_empty() {
                true => drop(self.services.remove(&key)),
                false => self.turns.push_back(key),
            }
            if call.is_some() {
                self.len -= 1;
                return call;
            }
        }
        None
    }
}

impl Service {
    fn next(&mut self, who: &impl Eligible) -> Option<CallKey> {
        for _ in 0..self.turns.len() {
            let caller = self.turns.pop_front()?;
            let Some(calls) = self.callers.get_mut(&caller) else {
                continue;
            };
            let call = match who.caller(caller) {
                true => calls.pop_front(),
                false => None,
            };
            match calls.is_empty() {
                true => drop(self.callers.remove(&caller)),
                false => self.turns.push_back(caller),
            }
            if call.is_some() {
                return call;
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Key;
    use crate::keys::ConnKey;

    fn account(service: u32, caller: u64) -> Account {
        Account {
            service,
            caller: ConnKey::unpack(caller).into(),
        }
    }

    /// Calls are numbered by service, caller and order.
    fn call(service: u32, caller: u64, order: u64) -> CallKey {
        CallKey::unpack(u64::from(service) * 10_000 + caller * 100 + order)
    }

    fn filled(groups: &[(u32, u64, u64)]) -> Waiting {
        let mut waiting = Waiting::default();
        for (service, caller, count) in groups {
            for order in 0..*count {
                waiting.push(account(*service, *caller), call(*service, *caller, order));
            }
        }
        waiting
    }

    fn served(waiting: &mut Waiting, who: &impl Eligible, count: usize) -> Vec<u64> {
        (0..count)
            .map_while(|_| waiting.next(who))
            .map(Key::pack)
            .collect()
    }

    #[test]
    fn a_flood_stands_behind_nobody_but_its_own_caller() {
        let mut waiting = filled(&[(1, 1, 50), (1, 2, 2), (1, 3, 1), (2, 1, 2)]);
        assert_eq!(waiting.len(), 55);
        let order = served(&mut waiting, &AdmitAll, 8);
        assert_eq!(
            order,
            [
                10_100, 20_100, 10_200, 20_101, 10_300, 10_101, 10_201, 10_102
            ]
        );
        assert_eq!(served(&mut waiting, &AdmitAll, 99).len(), 47);
        assert!(waiting.is_empty() && waiting.services.is_empty() && waiting.turns.is_empty());
    }

    struct Not(u32, u64);

    impl Eligible for Not {
        fn service(&self, service: u32) -> bool {
            service != self.0
        }

        fn caller(&self, caller: CallerKey) -> bool {
            caller != ConnKey::unpack(self.1).into()
        }
    }

    #[test]
    fn who_may_not_be_served_holds_up_nobody() {
        let mut waiting = filled(&[(1, 1, 2), (2, 7, 2), (2, 2, 2)]);
        let who = Not(1, 7);
        assert!(waiting.has_eligible(&who));
        assert_eq!(served(&mut waiting, &who, 9), [20_200, 20_201]);
        assert!(!waiting.has_eligible(&who));
        assert_eq!(waiting.len(), 4);
        assert_eq!(
            served(&mut waiting, &AdmitAll, 9),
            [10_100, 20_700, 10_101, 20_701]
        );
    }

    #[test]
    fn who_has_left_is_not_served() {
        let mut waiting = filled(&[(1, 1, 3), (1, 2, 1), (2, 1, 1)]);
        for (service, caller, order) in [(1, 1, 1), (1, 2, 0), (2, 1, 0), (2, 1, 0), (9, 9, 9)] {
            waiting.remove(account(service, caller), call(service, caller, order));
        }
        assert_eq!(waiting.len(), 2);
        assert_eq!(served(&mut waiting, &AdmitAll, 9), [10_100, 10_102]);
        assert!(waiting.is_empty() && waiting.turns.is_empty());
    }
}
