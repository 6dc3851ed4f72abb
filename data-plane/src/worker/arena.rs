//! A slab whose keys are never mistaken: each carries the generation of its place, so that a key of something
//! that has ended finds nothing. Values come in, keys go out. Nothing else is known here.

use std::marker::PhantomData;

/// Where a value lies in an [`Arena`]; never found again once the value is gone.
pub(crate) struct Key<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

/// Generations stay below this, so that a packed key is below the numbers kept for other uses.
const GENERATIONS: u32 = 0x7fff_ffff;

impl<T> Key<T> {
    /// As one number: an HTTP/2 token or a timer's. Never 0 (generations start at 1).
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The key that was packed; one that was never given out finds nothing.
    pub(crate) fn unpack(packed: u64) -> Self {
        let index = u32::try_from(packed & 0xffff_ffff).unwrap_or(u32::MAX);
        let generation = u32::try_from(packed >> 32).unwrap_or(0);
        Self {
            index,
            generation,
            of: PhantomData,
        }
    }
}

impl<T> Clone for Key<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Key<T> {}
impl<T> PartialEq for Key<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.index, self.generation) == (other.index, other.generation)
    }
}
impl<T> Eq for Key<T> {}
impl<T> std::hash::Hash for Key<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.pack().hash(state);
    }
}
impl<T> std::fmt::Debug for Key<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.index, self.generation)
    }
}

#[derive(Debug)]
struct Place<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by key; places are used again.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    places: Vec<Place<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<T> Default for Arena<T> {
    fn default() -> Self {
        Self {
            places: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<T> Arena<T> {
    /// Puts in what `make` makes of its own key. `None` when all 2^32 places are taken.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key<T>) -> T) -> Option<Key<T>> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.places.len()).ok()?;
                self.places.push(Place {
                    generation: 1,
                    value: None,
                });
                index
            }
        };
        let place = self.places.get_mut(index as usize)?;
        let key = Key {
            index,
            generation: place.generation,
            of: PhantomData,
        };
        place.value = Some(make(key));
        self.len += 1;
        Some(key)
    }

    pub(crate) fn get(&self, key: Key<T>) -> Option<&T> {
        let place = self.places.get(key.index as usize)?;
        if place.generation == key.generation {
            place.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key<T>) -> Option<&mut T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation == key.generation {
            place.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: Key<T>) -> Option<T> {
        let place = self.places.get_mut(key.index as usize)?;
        if place.generation != key.generation {
            return None;
        }
        let value = place.value.take()?;
        self.free(key);
        Some(value)
    }

    /// Removes a value without moving it, which for a large one is most of the work.
    pub(crate) fn discard(&mut self, key: Key<T>) {
        let Some(place) = self.places.get_mut(key.index as usize) else {
            return;
        };
        if place.generation == key.generation && place.value.is_some() {
            place.value = None;
            self.free(key);
        }
    }

    fn free(&mut self, key: Key<T>) {
        let Some(place) = self.places.get_mut(key.index as usize) else {
            return;
        };
        place.generation = if place.generation >= GENERATIONS {
            1
        } else {
            place.generation + 1
        };
        self.free.push(key.index);
        self.len -= 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<T>, &T)> {
        self.places.iter().zip(0u32..).filter_map(|(place, index)| {
            let key = Key {
                index,
                generation: place.generation,
                of: PhantomData,
            };
            place.value.as_ref().map(|value| (key, value))
        })
    }

    /// The keys of all values, for loops that change the arena.
    pub(crate) fn keys(&self) -> Vec<Key<T>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_value_and_finds_nothing() {
        let mut arena = Arena::default();
        let old = arena.insert_with(|_| "old").unwrap();
        assert_eq!(arena.remove(old), Some("old"));
        let new = arena.insert_with(|_| "new").unwrap();
        assert_eq!((arena.get(old), arena.get(new)), (None, Some(&"new")));
        assert_eq!(arena.remove(old), None);
        assert_eq!(Key::unpack(new.pack()), new);
        assert!(new.pack() != 0);
        assert_eq!((arena.len(), arena.keys()), (1, vec![new]));
        arena.discard(old);
        assert_eq!(arena.get(new), Some(&"new"));
        arena.discard(new);
        assert_eq!((arena.len(), arena.get(new)), (0, None));
    }
}
