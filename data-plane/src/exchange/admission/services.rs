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
struct ServiceState {
    budget: RetryBudget,
    buffered: ServiceCharge,
    /// Identifies the service in accounts; never reused.
    number: u32,
}

/// The services that this worker's calls went to.
#[derive(Debug)]
pub(super) struct Services {
    by_name: FxHashMap<Arc<str>, ServiceState>,
    /// Last number given to a service.
    numbered: u32,
    /// See [`RetryBudget::new`].
    retries_per_second: u64,
}

impl Services {
    /// The retry budget is per node: each worker gets an equal part of its constant rate.
    pub(super) fn new(workers: usize) -> Self {
        let workers = u64::try_from(workers).unwrap_or(1).max(1);
        Self {
            by_name: FxHashMap::default(),
            numbered: 0,
            retries_per_second: RETRIES_PER_NODE / workers,
        }
    }

    /// A call to a service begins. Returns the number under which it is charged.
    pub(super) fn begin_call(&mut self, name: &Arc<str>, now: Instant) -> u32 {
        let state = self.of(name, now);
        state.budget.deposit(now);
        state.number
    }

    /// Takes one retry from the budget of a service; false if it is used up.
    pub(super) fn take_retry(&mut self, name: &Arc<str>, now: Instant) -> bool {
        self.of(name, now).budget.withdraw(now)
    }

    /// What the calls of a service have buffered.
    pub(super) fn buffered(&self, name: &str) -> Option<&ServiceCharge> {
        Some(&self.by_name.get(name)?.buffered)
    }

    pub(super) fn charge(&mut self, name: &Arc<str>, bytes: usize, now: Instant) {
        self.of(name, now).buffered.add(bytes);
    }

    pub(super) fn discharge(&mut self, name: &str, bytes: usize) {
        if let Some(state) = self.by_name.get_mut(name) {
            state.buffered.sub(bytes);
        }
    }

    /// The state of a service, created at its first call.
    fn of(&mut self, name: &Arc<str>, now: Instant) -> &mut ServiceState {
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

    /// Removes services that are not known any more, except those whose calls have buffered bytes.
    pub(super) fn retain(&mut self, known: impl Fn(&str) -> bool) {
        self.by_name
            .retain(|name, state| !state.buffered.is_empty() || known(name));
    }
}
