//! Admission: the one step between routing and the choice of an endpoint that accepts or refuses a call. It owns what
//! callers share: the worker's buffer memory and the places of waiting calls. Takes a call whose caller is known, and
//! whose service is known unless the proxy answers the call itself; gives permission or a failure. A call without a
//! route never gets here: it fails with NO_ROUTE even if its caller is over its share. Rate limits and authorization
//! belong here; routing and responses do not.

mod endpoint_waits;
pub(in crate::exchange) mod services;
mod wait_queue;

use endpoint_waits::EndpointWaits;
pub(in crate::exchange) use endpoint_waits::must_wait;
pub(in crate::exchange) use wait_queue::NoPlace;
use wait_queue::{WaitingPlaces, place};

use rustc_hash::FxHashMap;

use crate::caller::{Account, Caller, CallerKey, Role};
use crate::policy::Shares;
use crate::policy::buffers::{Buffers, ConnCharge, OverShare, ServiceCharge, Sharer};

/// What the callers of one worker share.
#[derive(Debug)]
pub(in crate::exchange) struct Admission {
    pub(in crate::exchange) buffers: Buffers,
    /// Calls waiting for the first table.
    pub(in crate::exchange) for_table: WaitingPlaces,
    /// Calls waiting for the endpoints of their service.
    pub(in crate::exchange) for_endpoints: EndpointWaits,
    for_streams: StreamPlaces,
}

/// Places of calls that wait for a stream, by service and within it by caller. Entries without waiting calls are
/// removed.
#[derive(Debug, Default)]
struct StreamPlaces {
    by_service: FxHashMap<u32, Shares<CallerKey>>,
    taken: usize,
}

impl Admission {
    pub(in crate::exchange) fn new(bytes: usize) -> Self {
        Self {
            buffers: Buffers::new(bytes),
            for_table: WaitingPlaces::default(),
            for_endpoints: EndpointWaits::default(),
            for_streams: StreamPlaces::default(),
        }
    }

    /// Number of calls that wait for a table or for endpoints.
    pub(in crate::exchange) fn waiting_for_state(&self) -> usize {
        self.for_table.len() + self.for_endpoints.len()
    }

    /// Number of calls that wait for a stream.
    pub(in crate::exchange) fn waiting_for_streams(&self) -> usize {
        self.for_streams.taken
    }

    /// Whether one more call of this account may wait for a stream, if at most `bound` calls of a service may wait.
    pub(in crate::exchange) fn has_place_for_stream(
        &self,
        account: Account,
        bound: usize,
    ) -> Result<(), NoPlace> {
        match self.for_streams.by_service.get(&account.service) {
            Some(taken) => place(taken, account.caller, bound),
            None => place(&Shares::default(), account.caller, bound),
        }
    }

    /// A call starts to wait for a stream. A call that loses its stream again gets a place even beyond the bound.
    pub(in crate::exchange) fn take_place_for_stream(&mut self, account: Account) {
        let places = self.for_streams.by_service.entry(account.service);
        places.or_default().add(&account.caller, 1);
        self.for_streams.taken += 1;
    }

    /// A call stops waiting for a stream.
    pub(in crate::exchange) fn leave_place_for_stream(&mut self, account: Account) {
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

/// As what a caller's connection and a service share the buffers: (connection, service).
///
/// A connection of the outbound listener is one caller. An inbound connection is a link, which carries the calls of many
/// callers to many services. So on outbound the caller is the user and the service is the group; on inbound it is the
/// other way round, so that a slow reader of one service does not make the link's other services fail.
fn sharers(caller: &Caller) -> (Sharer, Sharer) {
    match caller.role {
        Role::Outbound => (Sharer::User, Sharer::Group),
        Role::Inbound => (Sharer::Group, Sharer::User),
    }
}

impl Admission {
    /// Whether a caller's connection has buffered more than its share.
    pub(in crate::exchange) fn over_caller(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
    ) -> Option<OverShare> {
        let (as_a, _) = sharers(caller);
        self.buffers.over_caller(of_caller, as_a)
    }

    /// Whether the caller or the service of a call has buffered more than its share.
    pub(in crate::exchange) fn over_share(
        &self,
        caller: &Caller,
        of_caller: &ConnCharge,
        of_service: Option<&ServiceCharge>,
    ) -> Option<OverShare> {
        let (_, as_a) = sharers(caller);
        self.over_caller(caller, of_caller)
            .or_else(|| self.buffers.over_service(of_service?, as_a))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn one_caller_leaves_places_for_streams_to_others_and_none_is_kept_for_nothing() {
        let mut admission = Admission::new(1 << 20);
        let account = |service, caller| Account {
            service,
            caller: ConnKey::unpack(caller).into(),
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
