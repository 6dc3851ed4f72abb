use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Step {
    /// Keys to put or, if false, to delete in one transaction.
    Txn(Vec<(u8, bool)>),
    Revoke(usize),
    Publish,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (0..8_u8, proptest::bool::weighted(0.7));
    proptest::collection::vec(
        prop_oneof![
            6 => proptest::collection::vec(change, 1..4).prop_map(Step::Txn),
            1 => (0..4_usize).prop_map(Step::Revoke),
            3 => Just(Step::Publish),
        ],
        1..50,
    )
}

fn key(n: u8) -> String {
    format!("{}/{n}", if n.is_multiple_of(2) { "even" } else { "odd" })
}

/// The machine, and the simplest possible store as a reference: a list of all its states.
struct Pair {
    machine: Machine,
    leases: Vec<LeaseId>,
    states: BTreeMap<Revision, Vec<KeyValue>>,
}

impl Pair {
    fn new() -> Self {
        let now = Instant::now();
        let mut machine = Machine::new(Saved::default(), 100, now);
        let leases = (0..4)
            .map(|_| machine.grant(Duration::from_secs(60), now))
            .collect();
        Self {
            machine,
            leases,
            states: BTreeMap::from([(Revision(1), Vec::new())]),
        }
    }

    fn step(&mut self, n: usize, step: Step) {
        let changes = match step {
            Step::Txn(changes) => {
                let lease = self.leases.get(n % 6).copied();
                let unique: BTreeMap<u8, bool> = changes.into_iter().collect();
                let then = unique.into_iter().map(|(name, put)| {
                    let (key, value) = (key(name).into(), n.to_string().into());
                    if put {
                        Op::Put { key, value, lease }
                    } else {
                        Op::Delete { key }
                    }
                });
                let txn = Txn {
                    then: then.collect(),
                    ..Txn::default()
                };
                self.machine.txn(&txn).unwrap().1
            }
            Step::Revoke(n) if n < self.leases.len() => {
                let lease = self.leases.remove(n);
                self.machine.revoke(lease).unwrap()
            }
            Step::Revoke(_) => None,
            Step::Publish => {
                self.machine.publish();
                None
            }
        };
        if let Some(changes) = changes {
            let last = self.states.last_key_value().map(|(_, state)| state.clone());
            let mut state: BTreeMap<Arc<str>, KeyValue> = last
                .unwrap()
                .into_iter()
                .map(|item| (Arc::clone(&item.key), item))
                .collect();
            for event in changes.events.iter() {
                let before = match &event.now {
                    Some(now) => state.insert(Arc::clone(&event.key), now.clone()),
                    None => state.remove(&event.key),
                };
                assert_eq!(before, event.before);
            }
            self.states
                .insert(changes.revision, state.into_values().collect());
        }
    }

    fn check(&self) {
        let published = self.machine.history().published();
        for (revision, state) in &self.states {
            if *revision > published {
                let unseen = self.machine.range("", Some(*revision), false).unwrap_err();
                assert!(matches!(unseen, StoreError::Future { .. }));
                continue;
            }
            for prefix in ["", "even/", "odd/", "odd/3"] {
                let range = self.machine.range(prefix, Some(*revision), false).unwrap();
                let wanted = state.iter().filter(|item| item.key.starts_with(prefix));
                assert!(range.items.iter().eq(wanted), "{prefix} at {revision}");
            }
        }
        let now = &self.states[&published];
        for n in 0..8 {
            let wanted = now.iter().find(|item| *item.key == *key(n));
            assert_eq!(self.machine.get(&key(n)).as_ref(), wanted);
        }
    }

    /// What a watcher builds from the state at `from` and all later changes.
    fn watched(&self, from: Revision, prefix: &str, limit: usize) -> Vec<KeyValue> {
        let start = self.machine.range(prefix, Some(from), false).unwrap().items;
        let mut state: BTreeMap<Arc<str>, KeyValue> = start
            .into_iter()
            .map(|item| (Arc::clone(&item.key), item))
            .collect();
        let mut next = from.next();
        loop {
            let (changes, after) = self.machine.history().watch(prefix, next, limit).unwrap();
            for event in changes.iter().flat_map(|changes| changes.events.iter()) {
                assert!(event.key.starts_with(prefix));
                match &event.now {
                    Some(now) => state.insert(Arc::clone(&event.key), now.clone()),
                    None => state.remove(&event.key),
                };
            }
            if after > self.machine.history().published() {
                return state.into_values().collect();
            }
            assert!(after > next, "it goes on");
            next = after;
        }
    }
}

proptest! {
    #[test]
    fn every_published_state_can_be_read_and_watched_and_no_other(steps in steps()) {
        let mut pair = Pair::new();
        for (n, step) in steps.into_iter().enumerate() {
            pair.step(n, step);
            pair.check();
        }
        pair.machine.publish();
        pair.check();
        let now = &pair.states[&pair.machine.history().published()];
        for from in pair.states.keys() {
            for prefix in ["", "even/"] {
                let wanted = now.iter().filter(|item| item.key.starts_with(prefix));
                for limit in [1, 3, 1000] {
                    prop_assert!(pair.watched(*from, prefix, limit).iter().eq(wanted.clone()));
                }
            }
        }
    }
}

#[test]
fn what_is_over_the_bound_is_compacted_but_never_what_is_not_published() {
    let mut machine = Machine::new(Saved::default(), 100, Instant::now());
    machine.set_max_history(3);
    let put = |machine: &mut Machine| {
        let txn = Txn {
            then: vec![Op::put("a", "x")],
            ..Txn::default()
        };
        machine.txn(&txn).unwrap();
    };
    for _ in 0..10 {
        put(&mut machine);
    }
    assert!(
        machine
            .range("", Some(Revision(1)), false)
            .unwrap()
            .items
            .is_empty()
    );
    machine.publish();
    let error = machine.range("", Some(Revision(7)), false).unwrap_err();
    assert_eq!(
        error,
        StoreError::Compacted {
            requested: Revision(7),
            first: Revision(8)
        }
    );
    assert!(machine.range("", Some(Revision(8)), false).is_ok());
    assert!(machine.history().watch("", Revision(9), 10).is_ok());
    assert!(machine.history().watch("", Revision(8), 10).is_err());
}
