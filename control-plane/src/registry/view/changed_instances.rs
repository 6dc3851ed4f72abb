//! The changed instances of a service, as a bounded set of their ids. A reader that keeps data per instance updates
//! only these, so that its work depends on the size of the change and not of the service.

use std::{collections::BTreeSet, sync::Arc};

/// Identifies an instance of a service: its node and its id there.
pub type InstanceId = (Arc<str>, Arc<str>);

/// The most ids in a set. Beyond it, the whole service counts as changed: a reader that does not read for a long time
/// must not collect the ids of all instances that ever existed.
const MAX_IDS: usize = 4_096;

/// The instances of one service that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChangedInstances {
    These(BTreeSet<InstanceId>),
    All,
}

impl Default for ChangedInstances {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl ChangedInstances {
    pub(super) fn insert(&mut self, id: InstanceId) {
        if let Self::These(ids) = self {
            ids.insert(id);
            self.bound();
        }
    }

    /// Adds later changes.
    pub fn merge(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::These(ids), Self::These(mut more)) => {
                if more.len() > ids.len() {
                    std::mem::swap(ids, &mut more);
                }
                ids.extend(more);
                self.bound();
            }
            (Self::All, _) | (_, Self::All) => *self = Self::All,
        }
    }

    fn bound(&mut self) {
        if matches!(self, Self::These(ids) if ids.len() > MAX_IDS) {
            *self = Self::All;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_places_become_the_whole_service() {
        let id = |number: usize| ("a".into(), number.to_string().into());
        let mut changed = ChangedInstances::default();
        for number in 0..MAX_IDS {
            changed.insert(id(number));
        }
        assert!(matches!(&changed, ChangedInstances::These(ids) if ids.len() == MAX_IDS));
        let mut more = ChangedInstances::default();
        more.merge(changed.clone());
        assert_eq!(more, changed);
        more.merge(ChangedInstances::These([id(MAX_IDS)].into()));
        assert_eq!(more, ChangedInstances::All);
    }
}
