//! The choice of an endpoint for one attempt: the candidates in order of preference, and the failure if there is none.
//! How endpoints are compared is in `balance`.

use std::sync::Arc;
use std::time::Instant;

use heddle_proto::Reason;
use rand::Rng as _;
use rand::rngs::SmallRng;

use crate::balance::ewma::PeakEwma;
use crate::balance::passive::{Availability, PassiveHealth};
use crate::balance::pick::pick;
use crate::balance::{Endpoint, Target};
use crate::caller::Role;
use crate::exchange::call::Call;
use crate::exchange::owner::Exchange;
use crate::failure::Failure;
use crate::keys::CallKey;
use crate::route::Service;
use crate::upstream::Pools;

/// Chooses endpoints by their loads and their passive health.
pub(super) struct Picker<'e> {
    pools: &'e Pools,
    passive: &'e PassiveHealth,
    now: Instant,
}

impl<'e> Picker<'e> {
    #[inline]
    pub(super) fn new(pools: &'e Pools, passive: &'e PassiveHealth, now: Instant) -> Self {
        Self {
            pools,
            passive,
            now,
        }
    }

    /// The endpoint of the next attempt of a call; `None` if there is none.
    #[inline]
    pub(super) fn pick(&self, call: &Call, rng: &mut SmallRng) -> Option<Arc<Endpoint>> {
        match call.role() {
            Role::Outbound => self.pick_outbound(call, |n| rng.random_range(0..n)),
            Role::Inbound => self.pick_inbound(call),
        }
    }

    /// P2C over all usable endpoints. Less suitable ones are taken only if there is no better one, in this order: those
    /// that failed in this call, those that are ejected, those that cannot be dialled now.
    fn pick_outbound(
        &self,
        call: &Call,
        mut below: impl FnMut(u64) -> u64,
    ) -> Option<Arc<Endpoint>> {
        let service = call.route.service()?;
        let reachable = |endpoint: &Endpoint| self.cost_in_reach(endpoint);
        let admitted = |endpoint: &Endpoint| {
            let standing = self.passive.availability(endpoint.uid, self.now);
            reachable(endpoint).and_then(|cost| standing.cost(cost))
        };
        let fresh = |endpoint: &Endpoint| {
            let failed = call.history.has_tried(endpoint.uid);
            if failed { None } else { admitted(endpoint) }
        };
        let any = |endpoint: &Endpoint| Some(self.cost(endpoint));
        let candidates = &service.candidates;
        pick(candidates, self.now, fresh, &mut below)
            .or_else(|| pick(candidates, self.now, admitted, &mut below))
            .or_else(|| pick(candidates, self.now, reachable, &mut below))
            .or_else(|| pick(candidates, self.now, any, &mut below))
            .cloned()
    }

    /// The instance that the caller's proxy chose, otherwise another local instance of the service.
    fn pick_inbound(&self, call: &Call) -> Option<Arc<Endpoint>> {
        let service = call.route.service()?;
        let fresh = |e: &&Arc<Endpoint>| !call.history.has_tried(e.uid);
        let mut locals = service.locals.iter().filter(fresh);
        let chosen = locals.clone().find(|e| Some(e.uid) == call.route.wanted());
        let cost = |e: &&Arc<Endpoint>| self.cost(e);
        let other = || locals.by_ref().min_by(|a, b| cost(a).total_cmp(&cost(b)));
        chosen.or_else(other).cloned()
    }

    fn cost(&self, endpoint: &Endpoint) -> f64 {
        let weight = endpoint.weight;
        match self.pools.load(endpoint.uid) {
            Some(load) => load.cost(weight, self.now),
            None => PeakEwma::default().cost(0, weight, self.now),
        }
    }

    /// The cost of one more call, if the endpoint can be dialled now.
    fn cost_in_reach(&self, endpoint: &Endpoint) -> Option<f64> {
        let Some(load) = self.pools.load(endpoint.uid) else {
            return Some(PeakEwma::default().cost(0, endpoint.weight, self.now));
        };
        let unreachable = self.pools.is_unreachable(load);
        (!unreachable).then(|| load.cost(endpoint.weight, self.now))
    }

    /// Whether an endpoint is neither ejected nor at an address that failed and has had no connection since. Its pool
    /// keeps dialling.
    pub(super) fn is_in_reach(&self, uid: u64) -> bool {
        let ejected = self.passive.availability(uid, self.now) == Availability::Out;
        let load = self.pools.load(uid);
        !ejected && !load.is_some_and(|load| self.pools.is_unreachable(load))
    }
}

impl Exchange {
    /// No endpoint could be picked: the call waits for those of its service if they are not known, otherwise it fails.
    #[cold]
    pub(super) fn on_no_endpoint(&mut self, key: CallKey, service: &Arc<Service>) {
        let Some(call) = self.calls.get_mut(key) else {
            return;
        };
        if !service.endpoints_known && call.role() == Role::Outbound {
            return self.wait_for_endpoints(key, service);
        }
        let last = call.history.take_failure();
        let none = self.no_endpoint_error(key, service);
        let failure = match last {
            // What happened to the call, not that it could not be tried again.
            Some(last) => last.with_note(&format!("it could not be tried again: {}", none.message)),
            None => none,
        };
        self.fail(key, &failure);
    }

    /// The failure of a call for which no endpoint could be picked.
    fn no_endpoint_error(&self, key: CallKey, service: &Service) -> Failure {
        let name = &service.name;
        let inbound = self
            .calls
            .get(key)
            .is_some_and(|call| call.role() == Role::Inbound);
        let all = service.endpoints.endpoints.iter();
        // Inbound forwards calls only to instances of this node.
        let own = |e: &&Arc<Endpoint>| !inbound || matches!(e.target, Target::Local(_));
        let here = match inbound {
            true => format!(" on node {}", self.table.node()),
            false => String::new(),
        };
        let failure = match all.filter(own).count() {
            0 => Failure::new(Reason::NoEndpoints, format!("{name} has no instance{here}")),
            1 => {
                let text = format!("{name} has 1 instance{here}, and it is unhealthy or draining");
                Failure::new(Reason::NoHealthyEndpoints, text)
            }
            count => {
                let text =
                    format!("{name} has {count} instances{here}, and none of them takes calls");
                Failure::new(Reason::NoHealthyEndpoints, text)
            }
        };
        self.mark_unprocessed(key, failure)
    }
}
