//! Which services' endpoints this proxy subscribes to: those that its callers use and those that are configured, no
//! others. Input: uses, answers and times. Output: names to subscribe to and to unsubscribe from. Pure: no stream, no
//! clock (`now` is a parameter), no endpoints.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::observe::load::Use;

/// Services whose endpoints are fetched without a call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Prefetch {
    #[default]
    None,
    /// These, by full name, whether they exist yet or not.
    Named(BTreeSet<String>),
    /// Every service of the mesh.
    All,
}

/// When a fetch counts as timed out: the callers that waited for it have given up.
pub const FETCH_TIMEOUT: Duration = Duration::from_secs(5);
/// The most names that a control plane accepts from one client.
const MAX_SERVICES: usize = 50_000;
/// How often unused services are looked for within the time after which they are dropped; ...
const CHECKS_PER_IDLE: u32 = 10;
/// ... the interval is at least this long ...
const MIN_CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// ... and at most this long.
const MAX_CHECK_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    /// Fetched since this time; not counted as timed out yet.
    Awaited(Instant),
    /// Counted as timed out; an answer may still come.
    Late,
    /// Answered, with endpoints or without.
    Come,
}

#[derive(Clone, Debug)]
struct Demanded {
    used: Instant,
    /// Its use when it was last looked at.
    seen: Use,
    answer: Answer,
}

/// Fetches that ended, since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fetches {
    pub ok: u64,
    pub timed_out: u64,
}

/// See the module documentation.
#[derive(Clone, Debug)]
pub struct Demand {
    prefetch: Prefetch,
    idle: Duration,
    services: BTreeMap<String, Demanded>,
    fetches: Fetches,
}

impl Demand {
    /// `idle`: a service is dropped when nobody has used it for this long.
    #[must_use]
    pub fn new(prefetch: Prefetch, idle: Duration, now: Instant) -> Self {
        let mut demand = Self {
            prefetch,
            idle,
            services: BTreeMap::new(),
            fetches: Fetches::default(),
        };
        if let Prefetch::Named(names) = demand.prefetch.clone() {
            for name in names {
                demand.want(&name, now);
            }
        }
        demand
    }

    /// Records a use of a service. Returns true if it is new and must be subscribed to.
    pub fn want(&mut self, name: &str, now: Instant) -> bool {
        if let Some(demanded) = self.services.get_mut(name) {
            demanded.used = now;
            if demanded.answer == Answer::Late {
                demanded.answer = Answer::Awaited(now);
            }
            return false;
        }
        if self.services.len() >= MAX_SERVICES {
            return false;
        }
        let demanded = Demanded {
            used: now,
            seen: Use::default(),
            answer: Answer::Awaited(now),
        };
        self.services.insert(name.to_owned(), demanded);
        true
    }

    /// The service was in use when the state was saved, and its endpoints were restored: it counts as used and answered
    /// now.
    pub fn restore(&mut self, name: &str, now: Instant) {
        self.want(name, now);
        if let Some(demanded) = self.services.get_mut(name) {
            demanded.answer = Answer::Come;
        }
    }

    /// Takes the names of all services. With `Prefetch::All` exactly these are in demand; the ones dropped are
    /// returned.
    pub fn follow<'n>(
        &mut self,
        mesh: impl Iterator<Item = &'n String>,
        now: Instant,
    ) -> Vec<String> {
        if self.prefetch != Prefetch::All {
            return Vec::new();
        }
        let mesh: BTreeSet<&String> = mesh.collect();
        for name in &mesh {
            self.want(name, now);
        }
        let gone = |name: &&String| !mesh.contains(name);
        let gone: Vec<String> = self.services.keys().filter(gone).cloned().collect();
        self.services.retain(|name, _| mesh.contains(name));
        gone
    }

    /// The control plane has answered for a service.
    pub fn answered(&mut self, name: &str) {
        let Some(demanded) = self.services.get_mut(name) else {
            return;
        };
        if demanded.answer != Answer::Come {
            demanded.answer = Answer::Come;
            self.fetches.ok += 1;
        }
    }

    /// Whether its endpoints are in demand.
    #[must_use]
    pub fn wants(&self, name: &str) -> bool {
        self.services.contains_key(name)
    }

    /// All services in demand.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.services.keys()
    }

    /// The services in demand without a call.
    pub fn prefetched(&self) -> impl Iterator<Item = &String> {
        let chosen = |name: &&String| self.is_pinned(name);
        self.services.keys().filter(chosen)
    }

    #[must_use]
    pub fn prefetch(&self) -> &Prefetch {
        &self.prefetch
    }

    #[must_use]
    pub fn idle(&self) -> Duration {
        self.idle
    }

    fn is_pinned(&self, name: &str) -> bool {
        match &self.prefetch {
            Prefetch::None => false,
            Prefetch::Named(names) => names.contains(name),
            Prefetch::All => true,
        }
    }

    /// Counts the fetches that have timed out; returns true if there are new ones.
    pub fn count_late(&mut self, now: Instant) -> bool {
        let before = self.fetches.timed_out;
        for demanded in self.services.values_mut() {
            if let Answer::Awaited(since) = demanded.answer
                && now.saturating_duration_since(since) >= FETCH_TIMEOUT
            {
                demanded.answer = Answer::Late;
                self.fetches.timed_out += 1;
            }
        }
        self.fetches.timed_out > before
    }

    #[must_use]
    pub fn fetches(&self) -> Fetches {
        self.fetches
    }

    /// The interval between two looks for unused services.
    #[must_use]
    pub fn check_interval(&self) -> Duration {
        (self.idle / CHECKS_PER_IDLE).clamp(MIN_CHECK_INTERVAL, MAX_CHECK_INTERVAL)
    }

    /// Drops and returns the services that have not been used for `idle`; `uses` has what their callers did so far. A
    /// service whose fetch is not answered is kept, because calls may wait for it.
    pub fn drop_unused(&mut self, uses: &HashMap<Arc<str>, Use>, now: Instant) -> Vec<String> {
        for (name, demanded) in &mut self.services {
            let seen = uses.get(name.as_str()).copied().unwrap_or_default();
            if seen.in_progress > 0 || seen.ended != demanded.seen.ended {
                demanded.used = now;
            }
            demanded.seen = seen;
        }
        let unused = |demanded: &Demanded| {
            demanded.answer == Answer::Come
                && now.saturating_duration_since(demanded.used) >= self.idle
        };
        let gone: Vec<String> = self
            .services
            .iter()
            .filter(|(name, demanded)| unused(demanded) && !self.is_pinned(name))
            .map(|(name, _)| name.clone())
            .collect();
        for name in &gone {
            self.services.remove(name);
        }
        gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn uses(of: &[(&str, u64, u64)]) -> HashMap<Arc<str>, Use> {
        of.iter()
            .map(|&(name, ended, in_progress)| (name.into(), Use { ended, in_progress }))
            .collect()
    }

    #[test]
    fn a_service_is_subscribed_at_its_first_use_only() {
        let now = Instant::now();
        let mut demand = Demand::new(Prefetch::None, HOUR, now);
        assert_eq!(demand.names().count(), 0);
        assert!(demand.want("a.default", now));
        assert!(!demand.want("a.default", now));
        let mesh = names(&["a.default", "b.default"]);
        assert_eq!(demand.follow(mesh.iter(), now), Vec::<String>::new());
        assert!(demand.wants("a.default") && !demand.wants("b.default"));
    }

    #[test]
    fn prefetch_all_subscribes_to_the_whole_mesh_and_nothing_else() {
        let now = Instant::now();
        let mut demand = Demand::new(Prefetch::All, HOUR, now);
        let subscribed = |demand: &Demand| demand.names().cloned().collect::<Vec<_>>();
        let gone = demand.follow(names(&["a.x", "b.x"]).iter(), now);
        assert_eq!(
            (subscribed(&demand), gone),
            (vec!["a.x".into(), "b.x".into()], vec![])
        );
        let gone = demand.follow(names(&["b.x", "c.x"]).iter(), now);
        assert_eq!(
            (subscribed(&demand), gone),
            (vec!["b.x".into(), "c.x".into()], vec!["a.x".into()])
        );
        demand.answered("b.x");
        assert_eq!(
            demand.drop_unused(&uses(&[]), now + HOUR * 9),
            Vec::<String>::new()
        );
        assert_eq!(demand.prefetched().count(), 2);
    }

    #[test]
    fn what_is_called_stays_and_what_nobody_calls_for_the_time_goes() {
        let start = Instant::now();
        let at = |minutes: u64| start + Duration::from_secs(minutes * 60);
        let named = Prefetch::Named(names(&["pinned.x"]));
        let mut demand = Demand::new(named, HOUR, start);
        for name in ["called.x", "streamed.x", "unused.x", "unanswered.x"] {
            assert!(demand.want(name, at(0)));
        }
        for name in ["called.x", "streamed.x", "unused.x", "pinned.x"] {
            demand.answered(name);
        }
        let mut calls = 1;
        let mut check = |demand: &mut Demand, minute, called: bool| {
            calls += u64::from(called);
            let seen = uses(&[
                ("called.x", calls, 0),
                ("streamed.x", 0, 1),
                ("unused.x", 7, 0),
            ]);
            demand.drop_unused(&seen, at(minute))
        };
        // Its calls ended before this check.
        assert_eq!(check(&mut demand, 1, true), Vec::<String>::new());
        assert_eq!(check(&mut demand, 60, true), Vec::<String>::new());
        assert_eq!(check(&mut demand, 61, false), ["unused.x"]);
        assert_eq!(check(&mut demand, 119, false), Vec::<String>::new());
        assert_eq!(check(&mut demand, 120, false), ["called.x"]);
        let left: Vec<_> = demand.names().collect();
        assert_eq!(left, ["pinned.x", "streamed.x", "unanswered.x"]);
        // A new call fetches it again.
        assert!(demand.want("unused.x", at(121)));
    }

    #[test]
    fn counters_that_begin_anew_are_a_use() {
        let now = Instant::now();
        let mut demand = Demand::new(Prefetch::None, HOUR, now);
        demand.restore("a.x", now);
        demand.drop_unused(&uses(&[("a.x", 9, 0)]), now);
        let later = now + HOUR;
        assert_eq!(
            demand.drop_unused(&uses(&[("a.x", 2, 0)]), later),
            Vec::<String>::new()
        );
        assert_eq!(
            demand.drop_unused(&uses(&[("a.x", 2, 0)]), later + HOUR),
            ["a.x"]
        );
    }

    #[test]
    fn each_fetch_is_counted_once_in_time_or_late() {
        let now = Instant::now();
        let mut demand = Demand::new(Prefetch::None, HOUR, now);
        demand.restore("saved.x", now);
        demand.want("fast.x", now);
        demand.want("slow.x", now);
        demand.answered("fast.x");
        demand.answered("fast.x");
        assert!(!demand.count_late(now + FETCH_TIMEOUT / 2));
        assert!(demand.count_late(now + FETCH_TIMEOUT));
        assert!(!demand.count_late(now + FETCH_TIMEOUT * 2));
        assert_eq!(
            demand.fetches(),
            Fetches {
                ok: 1,
                timed_out: 1
            }
        );
        // The next call starts a new wait.
        demand.want("slow.x", now + FETCH_TIMEOUT * 3);
        assert!(demand.count_late(now + FETCH_TIMEOUT * 4));
        demand.answered("slow.x");
        assert_eq!(
            demand.fetches(),
            Fetches {
                ok: 2,
                timed_out: 2
            }
        );
    }

    #[test]
    fn looks_are_frequent_enough_and_never_hurried() {
        let check = |idle| Demand::new(Prefetch::None, idle, Instant::now()).check_interval();
        assert_eq!(check(HOUR), Duration::from_secs(60));
        assert_eq!(check(Duration::from_secs(10)), Duration::from_secs(1));
        assert_eq!(check(Duration::ZERO), Duration::from_millis(100));
    }
}
