//! The queue of calls that wait for one thing (a table, endpoints, a stream). Its length is limited, and one caller
//! connection can only have its share of it, so that a flooding caller leaves room for others. Takes calls with their
//! callers; refuses those beyond the limit or their share.

use crate::caller::CallerKey;
use crate::keys::CallKey;
use crate::observe::Counter;
use crate::policy::Shares;

/// Why a call may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum QueueFull {
    /// As many calls wait as may.
    Full { bound: usize },
    /// The caller's connection has used up its share.
    Share { own: usize, bound: usize },
}

impl QueueFull {
    pub(in crate::exchange) fn counter(self) -> Counter {
        match self {
            Self::Full { .. } => Counter::BoundPending,
            Self::Share { .. } => Counter::BoundPendingShare,
        }
    }

    /// For messages: `1024 calls already wait`.
    pub(in crate::exchange) fn text(self) -> String {
        match self {
            Self::Full { bound } => format!("{bound} calls already wait"),
            Self::Share { own, bound } => format!(
                "{own} calls of the caller's connection already wait, its share of the {bound} that may wait"
            ),
        }
    }
}

/// Whether one more call of `caller` may wait, if at most `bound` may.
pub(super) fn may_wait(
    waiting: &Shares<CallerKey>,
    caller: CallerKey,
    bound: usize,
) -> Result<(), QueueFull> {
    if waiting.total() >= bound {
        return Err(QueueFull::Full { bound });
    }
    match waiting.admits(&caller, bound) {
        true => Ok(()),
        false => Err(QueueFull::Share {
            own: waiting.used(&caller),
            bound,
        }),
    }
}

/// Waiting calls in order of arrival. Bounded by the `bound` given to [`WaitQueue::push`].
#[derive(Debug, Default)]
pub(super) struct WaitQueue {
    calls: Vec<(CallKey, CallerKey)>,
    by_caller: Shares<CallerKey>,
}

impl WaitQueue {
    pub(super) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(super) fn push(
        &mut self,
        call: CallKey,
        caller: CallerKey,
        bound: usize,
    ) -> Result<(), QueueFull> {
        may_wait(&self.by_caller, caller, bound)?;
        self.calls.push((call, caller));
        self.by_caller.add(&caller, 1);
        Ok(())
    }

    /// Removes a waiting call; false if it did not wait here.
    pub(super) fn remove(&mut self, call: CallKey) -> bool {
        let Some(at) = self.calls.iter().position(|(other, _)| *other == call) else {
            return false;
        };
        let (_, caller) = self.calls.remove(at);
        self.by_caller.sub(&caller, 1);
        true
    }

    /// Removes and returns all calls.
    pub(super) fn take(&mut self) -> Vec<CallKey> {
        let calls = std::mem::take(self).calls;
        calls.into_iter().map(|(call, _)| call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn one_caller_leaves_room_for_others() {
        let mut queue = WaitQueue::default();
        let [flood, other] = [1, 2].map(|caller| ConnKey::unpack(caller).into());
        let mut calls = (1..).map(CallKey::unpack);
        let first = CallKey::unpack(1);
        let mut refused = None;
        while refused.is_none() {
            refused = queue.push(calls.next().unwrap(), flood, 10).err();
        }
        assert_eq!(refused, Some(QueueFull::Share { own: 8, bound: 10 }));
        assert_eq!(queue.push(calls.next().unwrap(), other, 10), Ok(()));
        assert!(queue.remove(first) && !queue.remove(first));
        let third = ConnKey::unpack(3).into();
        for _ in 0..2 {
            assert_eq!(queue.push(calls.next().unwrap(), third, 10), Ok(()));
        }
        let full = queue.push(calls.next().unwrap(), other, 10);
        assert_eq!(full, Err(QueueFull::Full { bound: 10 }));
        assert_eq!(queue.take().len(), 10);
        assert_eq!((queue.len(), queue.by_caller.total()), (0, 0));
    }
}
