//! A worker's state of each service besides the table: its retry budget, what its calls have buffered, and the number
//! under which its calls are accounted. Takes names from the table and `now`; makes no decisions.

use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::policy::RetryBudget;
use crate::policy::buffers::ServiceCharge;

/// Thousandths of a retry per second that a service may always use on a node, however few calls it has.
const RETRIES_PER_NODE: u64 = 10_000;

#[derive(Debug)]
pub(in crate::exchange) struct ServiceState {
    pub(in crate::exchange) budget: RetryBudget,
    pub(in crate::exchange) buffered: ServiceCharge,
    /// Identifies the service in accounts; never reused.
    number: u32,
}

impl ServiceState {
    pub(in crate::exchange) fn number(&self) -> u32 {
        self.number
    }
}

/// The services that this worker's calls went to.
#[derive(Debug)]
pub(in crate::exchange) struct Services {
    by_name: FxHashMap<Arc<str>, ServiceState>,
    /// Last number given to a service.
    numbered: u32,
    /// See [`RetryBudget::new`].
    retries_per_second: u64,
}

impl Services {
    /// The retry budget is per node: each worker gets an equal part of its constant rate.
    pub(in crate::exchange) fn new(workers: usize) -> Self {
        let workers = u64::try_from(workers).unwrap_or(1).max(1);
        Self {
            by_name: FxHashMap::default(),
            numbered: 0,
            retries_per_second: RETRIES_PER_NODE / workers,
        }
    }

    /// The state of a service, created at its first call.
    pub(in crate::exchange) fn of(&mut self, name: &Arc<str>, now: Instant) -> &mut ServiceState {
        let (numbered, rate) = (&mut self.numbered, self.retries_per_second);
        self.by_name.entry(Arc::clone(name)).or_insert_with(|| {
            *numbered = numbered.wrapping_add(1).max(1);
            ServiceState {
                budget: RetryBudget::new(rate, now),
                buffered: ServiceCharge::default(),
                number: *numbered,
            }
        })
    }

    pub(in crate::exchange) fn get(&self, name: &str) -> Option<&ServiceState> {
        self.by_name.get(name)
    }

    pub(in crate::exchange) fn get_mut(&mut self, name: &str) -> Option<&mut ServiceState> {
        self.by_name.get_mut(name)
    }

    /// Removes services that are not known any more, except those whose calls have buffered bytes.
    pub(in crate::exchange) fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.by_name
            .retain(|name, state| !state.buffered.is_empty() || known(name));
    }
}
