//! What a worker knows of each service beside the table: its retry budget, what its calls have buffered,
//! and the number that its calls are accounted by. Names from the table and `now` come in; nothing is decided here.

use std::sync::Arc;
use std::time::Instant;

use rustc_hash::FxHashMap;

use crate::policy::RetryBudget;
use crate::policy::buffers::ServiceCharge;

/// Thousandths of a retry per second that a service has on a node, whatever its calls.
const RETRIES_PER_NODE: u64 = 10_000;

#[derive(Debug)]
pub(crate) struct ServiceState {
    pub(crate) budget: RetryBudget,
    pub(crate) buffered: ServiceCharge,
    /// By which its calls are accounted; never given again.
    number: u32,
}

impl ServiceState {
    pub(crate) fn number(&self) -> u32 {
        self.number
    }
}

/// The services that this worker's calls went to.
#[derive(Debug)]
pub(crate) struct Services {
    by_name: FxHashMap<Arc<str>, ServiceState>,
    /// How many have been given a number.
    numbered: u32,
    /// See [`RetryBudget::new`].
    retries_per_second: u64,
}

impl Services {
    /// The budget is per node: each of so many workers has its share of the steady part.
    pub(crate) fn new(workers: usize) -> Self {
        let workers = u64::try_from(workers).unwrap_or(1).max(1);
        Self {
            by_name: FxHashMap::default(),
            numbered: 0,
            retries_per_second: RETRIES_PER_NODE / workers,
        }
    }

    /// The state of a service, made at its first call.
    pub(crate) fn of(&mut self, name: &Arc<str>, now: Instant) -> &mut ServiceState {
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

    pub(crate) fn get(&self, name: &str) -> Option<&ServiceState> {
        self.by_name.get(name)
    }

    pub(crate) fn get_mut(&mut self, name: &str) -> Option<&mut ServiceState> {
        self.by_name.get_mut(name)
    }

    /// Forgets services that are not known any more; those whose calls hold memory go later.
    pub(crate) fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.by_name
            .retain(|name, state| !state.buffered.is_empty() || known(name));
    }
}
