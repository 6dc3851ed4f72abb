//! Numbers for endpoints. The same (service, node, id, target) has the same number in every table, so that the workers
//! keep its state (load, connections). Pure; endpoints that are long gone are forgotten, and their numbers are never
//! reused.

use std::collections::{HashMap, HashSet};

use crate::balance::endpoints::Target;

/// Absent endpoints are kept until this many more than twice the present ones are known, so that an instance that
/// returns soon keeps its number.
const SPARE: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Uids {
    known: HashMap<(String, String, String, Target), u64>,
    next: u64,
}

impl Uids {
    /// The number of an endpoint.
    pub(super) fn get(&mut self, service: &str, node: &str, id: &str, target: Target) -> u64 {
        let key = (service.to_owned(), node.to_owned(), id.to_owned(), target);
        let next = &mut self.next;
        *self.known.entry(key).or_insert_with(|| {
            *next += 1;
            *next
        })
    }

    /// Called after a table with `count` endpoints: forgets the absent ones if there are too many.
    pub(super) fn prune(&mut self, count: usize, present: impl Iterator<Item = u64>) {
        if self.known.len() > count * 2 + SPARE {
            let present: HashSet<u64> = present.collect();
            self.known.retain(|_, uid| present.contains(uid));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SPARE, Target, Uids};

    #[test]
    fn numbers_stay_while_present_and_are_never_used_twice() {
        let mut uids = Uids::default();
        let target = |port: u16| Target::Local(([127, 0, 0, 1], port).into());
        let first = uids.get("s", "n", "i", target(1));
        assert_eq!(uids.get("s", "n", "i", target(1)), first);
        assert_ne!(
            uids.get("s", "n", "i", target(2)),
            first,
            "another address is another endpoint"
        );
        for i in 0..=SPARE {
            uids.get("s", "n", &i.to_string(), target(1));
        }
        uids.prune(1, std::iter::once(first));
        assert_eq!(uids.known.len(), 1);
        assert_eq!(uids.get("s", "n", "i", target(1)), first);
        let again = uids.get("s", "n", "0", target(1));
        assert!(again > SPARE as u64, "{again} was used before");
    }
}
