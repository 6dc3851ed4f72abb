//! Which instances of a service changed: who keeps something per instance looks at those again and at no others, so that
//! its work goes by what changed and not by the size of the service. In come places, out goes a bounded set of them.

use std::{collections::BTreeSet, sync::Arc};

/// Where an instance of a service is: its node and its id there.
pub type Place = (Arc<str>, Arc<str>);

/// Most places that are named one by one. Beyond it the whole service is looked at again: a reader that does not look
/// for long must not collect the names of all instances that ever came and went.
const MAX_PLACES: usize = 4_096;

/// The instances of one service that changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    These(BTreeSet<Place>),
    All,
}

impl Default for Touched {
    fn default() -> Self {
        Self::These(BTreeSet::new())
    }
}

impl Touched {
    pub(super) fn insert(&mut self, place: Place) {
        if let Self::These(places) = self {
            places.insert(place);
            self.bound();
        }
    }

    /// Adds what changed later.
    pub fn merge(&mut self, later: Self) {
        match (&mut *self, later) {
            (Self::These(places), Self::These(mut more)) => {
                if more.len() > places.len() {
                    std::mem::swap(places, &mut more);
                }
                places.extend(more);
                self.bound();
            }
            (Self::All, _) | (_, Self::All) => *self = Self::All,
        }
    }

    fn bound(&mut self) {
        if matches!(self, Self::These(places) if places.len() > MAX_PLACES) {
            *self = Self::All;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_places_become_the_whole_service() {
        let place = |number: usize| ("a".into(), number.to_string().into());
        let mut touched = Touched::default();
        for number in 0..MAX_PLACES {
            touched.insert(place(number));
        }
        assert!(matches!(&touched, Touched::These(places) if places.len() == MAX_PLACES));
        let mut more = Touched::default();
        more.merge(touched.clone());
        assert_eq!(more, touched);
        more.merge(Touched::These([place(MAX_PLACES)].into()));
        assert_eq!(more, Touched::All);
    }
}
