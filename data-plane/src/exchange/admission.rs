//! Admission: the one step between routing and the choice of an endpoint, where a call is let on or refused. It owns
//! what callers share: the memory that the worker buffers, and the places of calls that wait. A call whose caller and,
//! unless the proxy answers it itself, whose service are known comes in; leave to go on or a failure goes out. Rate
//! limits and authorisation belong here; where a call goes and what it is told by its server do not.

use rustc_hash::FxHashMap;

use super::owner::Exchange;
use super::parked::EndpointWaits;
use super::waiting_places::{NoPlace, WaitingPlaces, place};
use crate::caller::Account;
use crate::keys::{CallKey, ConnKey};
use crate::policy::Shares;
use crate::policy::buffers::{Buffers, OverShare};

/// What the callers of one worker share.
#[derive(Debug)]
pub(crate) struct Admission {
    pub(crate) buffers: Buffers,
    /// Calls waiting for the first table.
    pub(super) for_table: WaitingPlaces,
    /// Calls waiting for the endpoints of their service.
    pub(super) for_endpoints: EndpointWaits,
    for_streams: StreamPlaces,
}

/// Places of calls that wait for a stream, by service and there by caller; none is kept without a waiting call.
#[derive(Debug, Default)]
struct StreamPlaces {
    by_service: FxHashMap<u32, Shares<ConnKey>>,
    taken: usize,
}

impl Admission {
    pub(crate) fn new(bytes: usize) -> Self {
        Self {
            buffers: Buffers::new(bytes),
            for_table: WaitingPlaces::default(),
            for_endpoints: EndpointWaits::default(),
            for_streams: StreamPlaces::default(),
        }
    }

    /// How many calls wait for a table or for endpoints.
    pub(crate) fn waiting_for_state(&self) -> usize {
        self.for_table.len() + self.for_endpoints.len()
    }

    /// How many calls wait for a stream.
    pub(crate) fn waiting_for_streams(&self) -> usize {
        self.for_streams.taken
    }

    /// Whether one more call of this account may wait for a stream, where `bound` calls of a service may.
    pub(crate) fn has_place_for_stream(
        &self,
        account: Account,
        bound: usize,
    ) -> Result<(), NoPlace> {
        match self.for_streams.by_service.get(&account.service) {
            Some(taken) => place(taken, account.caller, bound),
            None => place(&Shares::default(), account.caller, bound),
        }
    }

    /// A call waits for a stream. One that had a place before and lost its stream again gets one over the bound.
    pub(crate) fn take_place_for_stream(&mut self, account: Account) {
        let places = self.for_streams.by_service.entry(account.service);
        places.or_default().add(&account.caller, 1);
        self.for_streams.taken += 1;
    }

    /// It does not wait any more.
    pub(crate) fn leave_place_for_stream(&mut self, account: Account) {
        let places = &mut self.for_streams;
        places.taken = places.taken.saturating_sub(1);
        if let Some(of_service) = places.by_service.get_mut(&account.service) {
            of_service.sub(&account.caller, 1);
            if of_service.total() == 0 {
                places.by_service.remove(&account.service);
            }
        }
    }
}

impl Exchange {
    /// Whether a routed call may go on: its caller's connection and its service are within their shares of the worker's
    /// memory. False if it is answered.
    #[inline]
    pub(super) fn admit_call(&mut self, key: CallKey) -> bool {
        match self.over_share(key) {
            None => true,
            Some(over) => self.refuse_over_share(key, over),
        }
    }

    #[cold]
    fn refuse_over_share(&mut self, key: CallKey, over: OverShare) -> bool {
        let failure = self.mark_unprocessed(key, self.overloaded(key, over));
        self.fail(key, &failure);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_caller_leaves_places_for_streams_to_others_and_none_is_kept_for_nothing() {
        let mut admission = Admission::new(1 << 20);
        let account = |service, caller| Account {
            service,
            caller: ConnKey::unpack(caller),
        };
        let flood = account(1, 1);
        while admission.has_place_for_stream(flood, 10).is_ok() {
            admission.take_place_for_stream(flood);
        }
        assert_eq!(admission.waiting_for_streams(), 8);
        assert_eq!(
            admission.has_place_for_stream(flood, 10),
            Err(NoPlace::Share { own: 8, bound: 10 })
        );
        assert_eq!(admission.has_place_for_stream(account(1, 2), 10), Ok(()));
        assert_eq!(
            admission.has_place_for_stream(account(2, 1), 10),
            Ok(()),
            "places are counted by service"
        );
        for _ in 0..8 {
            admission.leave_place_for_stream(flood);
        }
        assert_eq!(admission.waiting_for_streams(), 0);
        assert!(admission.for_streams.by_service.is_empty());
    }
}
