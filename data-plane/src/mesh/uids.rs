//! Numbers for endpoints: the same (service, node, id, target) has the same number in every table, so that what the
//! workers know of it (load, connections) goes on. Pure; what is long gone is forgotten, and its number never reused.

use std::collections::HashMap;

use crate::balance::endpoints::Target;

/// Forgotten ones are kept up to this many beyond twice the present ones: an instance that comes back soon is known.
const SPARE: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Uids {
    known: HashMap<(String, String, String, Target), (u64, u64)>,
    next: u64,
    round: u64,
}

impl Uids {
    /// A new table begins.
    pub(super) fn begin(&mut self) {
        self.round += 1;
    }

    /// The number of one endpoint.
    pub(super) fn get(&mut self, service: &str, node: &str, id: &str, target: Target) -> u64 {
        let key = (service.to_owned(), node.to_owned(), id.to_owned(), target);
        let round = self.round;
        let next = &mut self.next;
        let entry = self.known.entry(key).or_insert_with(|| {
            *next += 1;
            (*next, round)
        });
        entry.1 = round;
        entry.0
    }

    /// The table is made of `present` endpoints.
    pub(super) fn end(&mut self, present: usize) {
        if self.known.len() > present * 2 + SPARE {
            let round = self.round;
            self.known.retain(|_, (_, last)| *last == round);
        }
    }
}
