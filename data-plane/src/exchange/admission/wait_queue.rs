//! Places of calls that wait for one thing (a table, endpoints, a stream). Their number is limited, and one caller
//! connection can only have its share of them, so that a flooding caller leaves places to others. Takes calls with
//! their connections; refuses those beyond the limit or their share.

use crate::caller::CallerKey;
use crate::keys::CallKey;
use crate::observe::Counter;
use crate::policy::Shares;

/// Why a call got no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::exchange) enum NoPlace {
    /// All `bound` places are taken.
    Full { bound: usize },
    /// The caller's connection has used up its share.
    Share { own: usize, bound: usize },
}

impl NoPlace {
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
                "{own} calls of the caller's connection already wait, its share of {bound} places"
            ),
        }
    }
}

/// Whether `caller` may have one more of `bound` places.
pub(in crate::exchange) fn place(
    taken: &Shares<CallerKey>,
    caller: CallerKey,
    bound: usize,
) -> Result<(), NoPlace> {
    if taken.total() >= bound {
        return Err(NoPlace::Full { bound });
    }
    match taken.admits(&caller, bound) {
        true => Ok(()),
        false => Err(NoPlace::Share {
            own: taken.used(&caller),
            bound,
        }),
    }
}

/// Waiting calls in order of arrival. Bounded by the `bound` given to [`WaitingPlaces::push`].
#[derive(Debug, Default)]
pub(in crate::exchange) struct WaitingPlaces {
    calls: Vec<(CallKey, CallerKey)>,
    taken: Shares<CallerKey>,
}

impl WaitingPlaces {
    pub(in crate::exchange) fn len(&self) -> usize {
        self.calls.len()
    }

    pub(in crate::exchange) fn push(
        &mut self,
        call: CallKey,
        caller: CallerKey,
        bound: usize,
    ) -> Result<(), NoPlace> {
        place(&self.taken, caller, bound)?;
        self.calls.push((call, caller));
        self.taken.add(&caller, 1);
        Ok(())
    }

    /// Removes a waiting call; false if it did not wait here.
    pub(in crate::exchange) fn remove(&mut self, call: CallKey) -> bool {
        let Some(at) = self.calls.iter().position(|(other, _)| *other == call) else {
            return false;
        };
        let (_, caller) = self.calls.remove(at);
        self.taken.sub(&caller, 1);
        true
    }

    /// Removes and returns all calls.
    pub(in crate::exchange) fn take(&mut self) -> Vec<CallKey> {
        let calls = std::mem::take(self).calls;
        calls.into_iter().map(|(call, _)| call).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn one_caller_leaves_places_to_others() {
        let mut places = WaitingPlaces::default();
        let [flood, other] = [1, 2].map(|caller| ConnKey::unpack(caller).into());
        let mut calls = (1..).map(CallKey::unpack);
        let first = CallKey::unpack(1);
        let mut refused = None;
        while refused.is_none() {
            refused = places.push(calls.next().unwrap(), flood, 10).err();
        }
        assert_eq!(refused, Some(NoPlace::Share { own: 8, bound: 10 }));
        assert_eq!(places.push(calls.next().unwrap(), other, 10), Ok(()));
        assert!(places.remove(first) && !places.remove(first));
        let third = ConnKey::unpack(3).into();
        for _ in 0..2 {
            assert_eq!(places.push(calls.next().unwrap(), third, 10), Ok(()));
        }
        let full = places.push(calls.next().unwrap(), other, 10);
        assert_eq!(full, Err(NoPlace::Full { bound: 10 }));
        assert_eq!(places.take().len(), 10);
        assert_eq!((places.len(), places.taken.total()), (0, 0));
    }
}
