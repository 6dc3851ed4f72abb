//! The slab, its map and its queues compared with plain collections.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::pair::response;
use crate::stream::{Pending, Stream};
use crate::streams::{End, Ring, Streams};

#[derive(Clone, Debug)]
enum Step {
    Insert(u32),
    Remove(usize),
    /// Something to write comes, or nothing is left.
    Place(usize, Option<Ring>),
    Rotate,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        // Ids that lie close together, and ids that fall on few buckets of the map.
        4 => prop_oneof![0..400u32, (0..40u32).prop_map(|n| n << 16)].prop_map(Step::Insert),
        3 => any::<usize>().prop_map(Step::Remove),
        4 => (any::<usize>(), prop_oneof![Just(None), Just(Some(Ring::Lists)), Just(Some(Ring::Data))])
            .prop_map(|(which, ring)| Step::Place(which, ring)),
        1 => Just(Step::Rotate),
    ]
}

proptest! {
    #[test]
    fn behaves_as_a_map_and_a_queue(steps in prop::collection::vec(step(), 1..300)) {
        let mut streams = Streams::new();
        let mut map = BTreeMap::new();
        let mut rings: [VecDeque<u32>; 2] = Default::default();
        for step in steps {
            let pick = |which: usize| {
                let id = map.keys().nth(which.checked_rem(map.len())?)?;
                Some(*id)
            };
            match step {
                Step::Insert(n) => {
                    let id = n * 2 + 1;
                    if map.insert(id, u64::from(n)).is_none() {
                        streams.insert(Stream::new(id, u64::from(n), 10, 0));
                    }
                }
                Step::Remove(which) => {
                    let Some(id) = pick(which) else { continue };
                    let token = streams.remove(id, End::Known).map(|removed| removed.token);
                    prop_assert_eq!(token, map.remove(&id));
                    for ring in &mut rings {
                        ring.retain(|other| *other != id);
                    }
                    prop_assert_eq!(streams.ended(id), Some(End::Known));
                }
                Step::Place(which, to) => {
                    let Some(id) = pick(which) else { continue };
                    let slot = streams.slot(id).unwrap();
                    let stays = to.is_some_and(|to| rings[to as usize].contains(&id));
                    let mut pending = Box::<Pending>::default();
                    match to {
                        Some(Ring::Lists) => drop(pending.set_head(&response(), false)),
                        Some(Ring::Data) => pending.push(b"x"),
                        None => {}
                    }
                    streams.at(slot).unwrap().pending = to.map(|_| pending);
                    streams.update_ready(slot);
                    if !stays {
                        for ring in &mut rings {
                            ring.retain(|other| *other != id);
                        }
                        if let Some(to) = to {
                            rings[to as usize].push_back(id);
                        }
                    }
                }
                Step::Rotate => {
                    streams.rotate();
                    let [_, data] = &mut rings;
                    if !data.is_empty() {
                        data.rotate_left(1);
                    }
                }
            }
            prop_assert_eq!(streams.live(), map.len());
            let mut next = |data| streams.next_ready(data).map(|slot| streams.at(slot).unwrap().id);
            let [lists, frames] = [&rings[0], &rings[1]].map(|ring| ring.front().copied());
            prop_assert_eq!(next(false), lists);
            let both = [next(true), next(true)];
            let expect = [lists.or(frames), frames.or(lists)];
            prop_assert!(both == expect || both == [expect[1], expect[0]], "{both:?}");
            prop_assert_eq!(streams.any_ready(), lists.or(frames).is_some());
            prop_assert_eq!(streams.any_list_ready(), lists.is_some());
            for (id, token) in &map {
                prop_assert_eq!(streams.get(*id).map(|stream| stream.token), Some(*token));
            }
            prop_assert!(streams.get(100_001).is_none());
        }
    }
}
