//! Calls that wait for the endpoints of their service: the first calls to a service that this proxy has not subscribed
//! to. The control side is notified once, fetches the endpoints and installs a new table; then the calls continue in
//! order. Their number per service is limited, and each waits within its deadline. Calls to subscribed services never
//! wait here.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use heddle_proto::Reason;
use rustc_hash::FxHashMap;

use super::owner::Exchange;
use super::state::Phase;
use super::waiting_places::{NoPlace, WaitingPlaces};
use crate::caller::CallerKey;
use crate::failure::Failure;
use crate::keys::CallKey;
use crate::observe::Report;
use crate::route::{RouteTable, Service};
use crate::timers::Timer;

/// A wait ends before the deadline, so that the caller still gets the reason: by this part of the remaining time, ...
const MARGIN_PART: u32 = 10;
/// ... but at most by this.
const LONGEST_MARGIN: Duration = Duration::from_millis(100);

/// Waiting calls by the full name of the service that they wait for.
#[derive(Debug, Default)]
pub(super) struct EndpointWaits {
    by_service: FxHashMap<Arc<str>, WaitingPlaces>,
    count: usize,
}

impl EndpointWaits {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    /// At most `bound` calls to one service may wait, of which one caller may have its share.
    fn push(
        &mut self,
        service: &Arc<str>,
        call: CallKey,
        caller: CallerKey,
        bound: usize,
    ) -> Result<(), NoPlace> {
        let calls = self.by_service.entry(Arc::clone(service)).or_default();
        let placed = calls.push(call, caller, bound);
        match placed {
            Ok(()) => self.count += 1,
            Err(_) if calls.len() == 0 => drop(self.by_service.remove(service)),
            Err(_) => {}
        }
        placed
    }

    pub(super) fn remove(&mut self, service: &str, call: CallKey) {
        let Some(calls) = self.by_service.get_mut(service) else {
            return;
        };
        if calls.remove(call) {
            self.count -= 1;
        }
        if calls.len() == 0 {
            self.by_service.remove(service);
        }
    }

    /// The services for which calls wait.
    fn services(&self) -> Vec<Arc<str>> {
        self.by_service.keys().cloned().collect()
    }

    /// Removes and returns the calls that need not wait any longer by this table.
    fn take(&mut self, table: &RouteTable) -> Vec<CallKey> {
        let mut free = Vec::new();
        self.by_service.retain(|name, calls| {
            let waits = table
                .service(name)
                .is_some_and(|service| must_wait(service));
            if !waits {
                free.extend(calls.take());
            }
            waits
        });
        self.count -= free.len();
        free
    }
}

/// No usable endpoint is known, and there may be some on other nodes.
fn must_wait(service: &Service) -> bool {
    !service.endpoints_known && service.candidates.is_empty()
}

impl Exchange {
    /// A service was called whose endpoints are not known yet: asks the control side to fetch them. False if the
    /// control side's queue is full.
    fn request_endpoints(&mut self, service: &Service) -> bool {
        if self.requested.contains(&service.name) {
            return true;
        }
        let service = Arc::clone(&service.name);
        let report = Report::ServiceWanted {
            service: Arc::clone(&service),
        };
        let requested = self.reports.try_send(report).is_ok();
        if requested {
            self.requested.insert(service);
        }
        requested
    }

    /// Whether a call to this service can continue with the current table; if not, it has been parked or answered.
    pub(super) fn has_endpoints(&mut self, key: CallKey, service: &Arc<Service>) -> bool {
        let requested = self.request_endpoints(service);
        if !must_wait(service) {
            return true;
        }
        self.park_call(key, service, requested);
        false
    }

    /// Several services claim the path, and it is not known yet which of them have instances.
    pub(super) fn await_claims(&mut self, key: CallKey, services: &[Arc<Service>]) {
        let mut first = None;
        for service in services.iter().filter(|service| !service.endpoints_known) {
            let requested = self.request_endpoints(service);
            first.get_or_insert((service, requested));
        }
        if let Some((service, requested)) = first {
            self.park_call(key, service, requested);
        }
    }

    /// Makes a call wait for the endpoints of a service.
    pub(super) fn wait_for_endpoints(&mut self, key: CallKey, service: &Arc<Service>) {
        let requested = self.request_endpoints(service);
        self.park_call(key, service, requested);
    }

    fn park_call(&mut self, key: CallKey, service: &Arc<Service>, requested: bool) {
        let bound = self.options().pending_calls;
        let Some(call) = self.calls.get(key) else {
            return;
        };
        let placed = match requested {
            true => {
                self.admission
                    .for_endpoints
                    .push(&service.name, key, call.account.caller, bound)
            }
            false => Err(NoPlace::Full { bound }),
        };
        if let Err(no_place) = placed {
            self.count(no_place.counter());
            let node = &self.options().node;
            let why = match requested {
                true => format!("{} for its endpoints", no_place.text()),
                false => "too many services were called for the first time at once".to_owned(),
            };
            let text = format!(
                "{} is not known yet on node {node}, and {why}",
                service.name
            );
            return self.fail(key, &Failure::new(Reason::Overloaded, text));
        }
        if let Some(call) = self.calls.get_mut(key) {
            call.service = Some(Arc::clone(service));
            call.phase = Phase::Endpoints;
        }
        self.start_wait(key);
    }

    /// Starts a call's wait for the control plane. The time counts from the first wait, even if tables change in
    /// between.
    pub(super) fn start_wait(&mut self, key: CallKey) {
        let now = self.now;
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if call.wait_timer.is_none() {
            let until = end_of_wait(now, call.policy.ready_timeout, call.deadline);
            call.wait_timer = Some(self.timers.set(until, Timer::Wait(key)));
        }
    }

    /// A new table has arrived: continues the calls that have what they waited for. Even a table that is not ready may
    /// be enough, since this node's own instances are in the first one.
    pub(super) fn resume_waiting(&mut self) {
        for call in self.admission.for_table.take() {
            self.guard_call(call, |worker| worker.route_call(call));
        }
        self.requested.clear();
        if self.admission.for_endpoints.len() == 0 {
            return;
        }
        let table = self.table();
        let free = self.admission.for_endpoints.take(&table);
        for call in free {
            self.guard_call(call, |exchange| exchange.route_call(call));
        }
        // The remaining services were requested under an older table, so they are requested again.
        let waiting = self.admission.for_endpoints.services();
        for name in waiting {
            if let Some(service) = table.service(&name) {
                self.request_endpoints(service);
            }
        }
    }

    /// These services have not been called for a long time: drops their counters.
    pub(crate) fn forget(&mut self, services: &HashSet<Arc<str>>) {
        self.recorder.forget(services);
        self.services.retain(|name| !services.contains(name));
        for load in self.pools.loads_mut() {
            load.forget(|service| services.contains(service));
        }
    }

    /// The failure of a call that has waited too long for endpoints.
    pub(super) fn no_endpoints_yet(&self, key: CallKey) -> Failure {
        let node = &self.options().node;
        let call = self.calls.get(key);
        let service = call.and_then(|call| call.service_name()).unwrap_or("it");
        let text = format!(
            "the control plane has not answered the proxy on node {node}, which has requested the \
             endpoints of {service} since its first call"
        );
        Failure::new(Reason::NotReady, text)
    }
}

/// The end of a wait of at most `longest`, for a call with this deadline.
fn end_of_wait(now: Instant, longest: Duration, deadline: Option<Instant>) -> Instant {
    let end = now + longest;
    let Some(deadline) = deadline else {
        return end;
    };
    let margin = deadline.saturating_duration_since(now) / MARGIN_PART;
    end.min(
        deadline
            .checked_sub(margin.min(LONGEST_MARGIN))
            .unwrap_or(now),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::ConnKey;

    #[test]
    fn a_wait_ends_a_little_before_the_deadline() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        for (deadline, expect) in [
            (None, 5000),
            (Some(60_000), 5000),
            (Some(5001), 4901),
            (Some(2000), 1900),
            (Some(100), 90),
            (Some(0), 0),
        ] {
            let end = end_of_wait(now, ms(5000), deadline.map(|d| now + ms(d)));
            assert_eq!(end, now + ms(expect), "{deadline:?}");
        }
    }

    #[test]
    fn calls_wait_until_their_service_is_held_gone_or_has_an_own_instance() {
        let mut parked = EndpointWaits::default();
        let names: [Arc<str>; 2] = ["a.default".into(), "b.default".into()];
        let calls = [1, 2, 3, 4].map(CallKey::unpack);
        for (call, name) in calls.iter().zip([0, 0, 0, 1]) {
            let caller = ConnKey::unpack(call.pack()).into();
            assert_eq!(parked.push(&names[name], *call, caller, 3), Ok(()));
        }
        let (fifth, caller) = (CallKey::unpack(5), ConnKey::unpack(5).into());
        assert_eq!(
            parked.push(&names[0], fifth, caller, 3),
            Err(NoPlace::Full { bound: 3 })
        );
        parked.remove("a.default", calls[1]);
        assert_eq!(parked.len(), 3);
        let table = |held: &[(&str, bool)]| {
            let mut builder = RouteTable::builder("n", &[]);
            for (name, held) in held {
                let mut service = Service::new(name, "default");
                service.endpoints_known = *held;
                builder.service(service);
            }
            builder.build()
        };
        assert!(
            parked
                .take(&table(&[("a", false), ("b", false)]))
                .is_empty()
        );
        let free = parked.take(&table(&[("a", true), ("b", false)]));
        assert_eq!(free, [calls[0], calls[2]], "in the order they came");
        assert_eq!(parked.take(&table(&[("a", true)])), [calls[3]], "b is gone");
        assert_eq!(parked.len(), 0);
    }
}
