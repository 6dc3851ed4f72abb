//! The slab, its map and its ring against plain collections.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use crate::stream::Stream;
use crate::streams::{End, Streams};

#[derive(Clone, Debug)]
enum Step {
    Insert(u32),
    Remove(usize),
    Ready(usize),
    Unready(usize),
    Rotate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Ids that lie close together, and ids that fall on few places of the map.
        4 => prop_oneof![0..400u32, (0..40u32).prop_map(|n| n << 16)].prop_map(Step::Insert),
        3 => any::<usize>().prop_map(Step::Remove),
        3 => any::<usize>().prop_map(Step::Ready),
        1 => any::<usize>().prop_map(Step::Unready),
        1 => Just(Step::Rotate),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_map_and_a_queue(steps in prop::collection::vec(step(), 1..300)) {
        let mut streams = Streams::new();
        let mut map = BTreeMap::new();
        let mut ring = VecDeque::new();
        for step in steps {
            let pick = |which: usize| {
                let id = map.keys().nth(which.checked_rem(map.len())?)?;
                Some(*id)
            };
            match step {
                Step::Insert(n) => {
                    let id = n * 2 + 1;
                    if map.insert(id, u64::from(n)).is_none() {
                        streams.insert(Stream::new(id, u64::from(n), 0, 0));
                    }
                }
                Step::Remove(which) => {
                    let Some(id) = pick(which) else { continue };
                    let token = streams.remove(id, End::Known).map(|removed| removed.token);
                    prop_assert_eq!(token, map.remove(&id));
                    ring.retain(|other| *other != id);
                    prop_assert_eq!(streams.ended(id), Some(End::Known));
                }
                Step::Ready(which) => {
                    let Some(id) = pick(which) else { continue };
                    streams.make_ready(streams.slot(id).unwrap());
                    if !ring.contains(&id) {
                        ring.push_back(id);
                    }
                }
                Step::Unready(which) => {
                    let Some(id) = pick(which) else { continue };
                    streams.unready(streams.slot(id).unwrap());
                    ring.retain(|other| *other != id);
                }
                Step::Rotate => {
                    streams.rotate();
                    if !ring.is_empty() {
                        ring.rotate_left(1);
                    }
                }
            }
            prop_assert_eq!(streams.live(), map.len());
            let first = streams.first_ready().map(|slot| streams.at(slot).unwrap().id);
            prop_assert_eq!(first, ring.front().copied());
            for (id, token) in &map {
                prop_assert_eq!(streams.get(*id).map(|stream| stream.token), Some(*token));
            }
            prop_assert!(streams.get(100_001).is_none());
        }
    }
}
