//! The number of calls that wait for a stream, by service and within it by caller. Their number per service is limited.
//! Which of them is next is decided by their pool.

use rustc_hash::FxHashMap;

use super::wait_queue::{QueueFull, may_wait};
use crate::caller::{Account, CallerKey};
use crate::policy::Shares;

/// Entries without waiting calls are removed.
#[derive(Debug, Default)]
pub(super) struct StreamWaits {
    by_service: FxHashMap<u32, Shares<CallerKey>>,
    count: usize,
}

impl StreamWaits {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// Whether one more call of this account may wait, if at most `bound` calls of a service may.
    pub(super) fn may_wait(&self, account: Account, bound: usize) -> Result<(), QueueFull> {
        match self.by_service.get(&account.service) {
            Some(waiting) => may_wait(waiting, account.caller, bound),
            None => may_wait(&Shares::default(), account.caller, bound),
        }
    }

    /// A call waits, even if it is beyond the limit.
    pub(super) fn add(&mut self, account: Account) {
        let waiting = self.by_service.entry(account.service);
        waiting.or_default().add(&account.caller, 1);
        self.count += 1;
    }

    pub(super) fn remove(&mut self, account: Account) {
        self.count = self.count.saturating_sub(1);
        if let Some(of_service) = self.by_service.get_mut(&account.service) {
            of_service.sub(&account.caller, 1);
            if of_service.total() == 0 {
                self.by_service.remove(&account.service);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn one_caller_leaves_room_for_others_and_nothing_is_kept_of_ended_waits() {
        let mut waits = StreamWaits::default();
        let account = |service, caller| Account {
            service,
            caller: ConnKey::unpack(caller).into(),
        };
        let flood = account(1, 1);
        while waits.may_wait(flood, 10).is_ok() {
            waits.add(flood);
        }
        assert_eq!(waits.len(), 8);
        assert_eq!(
            waits.may_wait(flood, 10),
            Err(QueueFull::Share { own: 8, bound: 10 })
        );
        assert_eq!(waits.may_wait(account(1, 2), 10), Ok(()));
        assert_eq!(
            waits.may_wait(account(2, 1), 10),
            Ok(()),
            "waiting calls are counted by service"
        );
        for _ in 0..8 {
            waits.remove(flood);
        }
        assert_eq!(waits.len(), 0);
        assert!(waits.by_service.is_empty());
    }
}
