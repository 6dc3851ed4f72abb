//! Decides when nodes whose lease lapsed are removed, and whether they are dead or the control plane was cut off from
//! them. Pure: `now` is passed in and is monotonic. A decision is repeated until the view shows that it was carried out.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::registry::options::ExpiryOptions;

/// A decision that was not carried out after this time is repeated.
const RETRY_PAUSE: Duration = Duration::from_secs(2);

/// The decision on a node whose lease lapsed, and the cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Remove {
        node: Arc<str>,
        cause: String,
        /// Its process was stopped on purpose: this is no failure.
        stopped: bool,
    },
    Suspect {
        node: Arc<str>,
        cause: String,
    },
    /// Records how long the node has been suspect, for the next leader.
    Note {
        node: Arc<str>,
        suspect_for: Duration,
    },
}

#[derive(Debug)]
struct Lapsed {
    /// Its process was stopped on purpose: it was not cut off, whatever other nodes lapsed.
    stopped: bool,
    suspect: bool,
    since: Instant,
    /// When the next decision is due.
    due: Instant,
    /// When a suspect node is removed.
    ends: Instant,
}

#[derive(Debug)]
pub(crate) struct Expiry {
    options: ExpiryOptions,
    ttl: Duration,
    /// How long a lapsed node waits for overdue nodes to lapse too: nodes renew at different times within one interval.
    settle: Duration,
    alive: BTreeSet<Arc<str>>,
    lapsed: BTreeMap<Arc<str>, Lapsed>,
    /// The lapses of the last TTL.
    recent: VecDeque<(Instant, Arc<str>)>,
    /// No decision is made before this time.
    held_until: Option<Instant>,
}

impl Expiry {
    pub(crate) fn new(options: ExpiryOptions, ttl: Duration, renew_interval: Duration) -> Self {
        Self {
            options,
            ttl,
            settle: renew_interval.min(ttl),
            alive: BTreeSet::new(),
            lapsed: BTreeMap::new(),
            recent: VecDeque::new(),
            held_until: None,
        }
    }

    /// Makes no decision before `until`: this leader is new, or the store did not answer. Lapses of the last TTL and
    /// those until then count as lapses at `until`, that is, together. Older lapses do not count.
    pub(crate) fn hold(&mut self, until: Instant, now: Instant) {
        if self.held_until.is_some_and(|held| held >= until) {
            return;
        }
        self.forget(now);
        self.held_until = Some(until);
        for (at, _) in &mut self.recent {
            *at = until;
        }
        for lapsed in self.lapsed.values_mut() {
            lapsed.due = lapsed.due.max(until);
        }
    }

    /// The node has its lease.
    pub(crate) fn on_alive(&mut self, node: &Arc<str>) {
        self.alive.insert(Arc::clone(node));
        self.lapsed.remove(node);
        self.recent.retain(|(_, name)| name != node);
    }

    /// The node has no lease, and that is not recorded yet. `suspect` is how long it has been suspect, if it is.
    pub(crate) fn on_lapsed(&mut self, node: &Arc<str>, suspect: Option<Duration>, now: Instant) {
        let was_alive = self.alive.remove(node);
        let found_at = self.held_until.map_or(now, |held| now.max(held));
        let known = self.lapsed.get(node).map(|lapsed| lapsed.suspect);
        if known == Some(suspect.is_some()) {
            return;
        }
        if known.is_none() && (was_alive || suspect.is_none()) {
            self.recent.push_back((found_at, Arc::clone(node)));
        }
        // A suspect node's time passes even while no decisions are made.
        let left = suspect.map(|spent| self.options.suspect_for.saturating_sub(spent));
        let ends = now + left.unwrap_or_default();
        let due = ends.min(now + note_every(&self.options)).max(found_at);
        let lapsed = Lapsed {
            stopped: false,
            suspect: suspect.is_some(),
            since: found_at,
            due,
            ends,
        };
        self.lapsed.insert(Arc::clone(node), lapsed);
    }

    /// Like `on_lapsed`, for a node whose process was stopped on purpose: it does not count towards a mass lapse.
    pub(crate) fn on_left(&mut self, node: &Arc<str>, now: Instant) {
        self.alive.remove(node);
        self.recent.retain(|(_, name)| name != node);
        let found_at = self.held_until.map_or(now, |held| now.max(held));
        self.lapsed.entry(Arc::clone(node)).or_insert(Lapsed {
            stopped: true,
            suspect: false,
            since: found_at,
            due: found_at,
            ends: now,
        });
    }

    /// The node has no lease, and nothing is left to do about it.
    pub(crate) fn on_gone(&mut self, node: &Arc<str>) {
        self.alive.remove(node);
        self.lapsed.remove(node);
    }

    /// When the next decision is due, if nothing else happens.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.lapsed.values().map(|lapsed| lapsed.due).min()
    }

    /// The decisions that are due. `overdue_nodes` counts the nodes that are known to have missed a heartbeat but still have
    /// their lease. If they could make this a mass lapse, a lapsed node waits a short time for them. It is called only
    /// if a node could wait.
    pub(crate) fn decisions(
        &mut self,
        now: Instant,
        overdue_nodes: impl FnOnce() -> usize,
    ) -> Vec<Decision> {
        self.forget(now);
        let (gone, mesh) = (self.recent.len(), self.mesh());
        let mass = self.is_mass(gone);
        let settle = self.settle;
        let waits =
            |lapsed: &Lapsed| !lapsed.suspect && !lapsed.stopped && now < lapsed.since + settle;
        if !mass && self.lapsed.values().any(waits) && self.is_mass(gone + overdue_nodes()) {
            for lapsed in self.lapsed.values_mut().filter(|it| waits(it)) {
                lapsed.due = lapsed
                    .due
                    .max((now + settle / 8).min(lapsed.since + settle));
            }
        }
        let ttl = self.ttl;
        let (suspect_for, note_every) = (self.options.suspect_for, note_every(&self.options));
        let due = self
            .lapsed
            .iter_mut()
            .filter(|(_, lapsed)| lapsed.due <= now);
        due.map(|(node, lapsed)| {
            lapsed.due = now + RETRY_PAUSE;
            let node = Arc::clone(node);
            if lapsed.stopped {
                let cause = "its proxy was stopped and has not come back".to_owned();
                return Decision::Remove {
                    node,
                    cause,
                    stopped: true,
                };
            }
            match (lapsed.suspect, mass) {
                (true, _) if now < lapsed.ends => {
                    lapsed.due = lapsed.ends.min(now + note_every);
                    let left = lapsed.ends - now;
                    let suspect_for = suspect_for.saturating_sub(left);
                    Decision::Note { node, suspect_for }
                }
                (true, _) => Decision::Remove {
                    node,
                    cause: format!("it was suspect for {suspect_for:?} and did not come back"),
                    stopped: false,
                },
                (false, true) => Decision::Suspect {
                    node,
                    cause: format!(
                        "the leases of {gone} of {mesh} nodes expired within {ttl:?}: the control \
                         plane was probably cut off"
                    ),
                },
                (false, false) => Decision::Remove {
                    node,
                    cause: format!("its lease expired: no heartbeat for {ttl:?}"),
                    stopped: false,
                },
            }
        })
        .collect()
    }

    /// Drops lapses that are more than a TTL old: they do not count towards a mass lapse.
    fn forget(&mut self, now: Instant) {
        let is_recent = |at: Instant| now.saturating_duration_since(at) <= self.ttl;
        while self.recent.front().is_some_and(|(at, _)| !is_recent(*at)) {
            self.recent.pop_front();
        }
    }

    /// The number of nodes before the recent lapses.
    fn mesh(&self) -> usize {
        self.alive.len() + self.recent.len()
    }

    fn is_mass(&self, gone: usize) -> bool {
        gone >= self.options.mass_nodes && gone * 100 >= self.mesh() * self.options.mass_percent
    }
}

/// How often the time for which a node has been suspect is recorded.
fn note_every(options: &ExpiryOptions) -> Duration {
    options.suspect_for / 20
}

#[cfg(test)]
mod tests;
