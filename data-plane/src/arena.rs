//! A slab with generational keys: the key of a removed value finds nothing, even if its slot is reused. Takes values,
//! gives keys. What the values are does not belong here.

use std::marker::PhantomData;

/// Identifies a value in an [`Arena`]. `T` marks the kind of value, so that keys of different arenas are not mixed up
/// and modules can use keys without knowing the values.
pub(crate) struct Key<T> {
    index: u32,
    generation: u32,
    of: PhantomData<fn() -> T>,
}

/// Greatest generation. Keeps packed keys below the numbers that are reserved for other uses.
const GENERATIONS: u32 = 0x7fff_ffff;

impl<T> Key<T> {
    /// The key as one number, for HTTP/2 tokens and timers. Never 0, since generations start at 1.
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// The number of the slot: no two values that exist at the same time have the same.
    pub(crate) fn index(self) -> u32 {
        self.index
    }

    /// The key of a packed number; a number that was never a key finds nothing.
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
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values of type `T` by keys of kind `K`.
#[derive(Debug)]
pub(crate) struct Arena<K, T> {
    of: PhantomData<fn() -> K>,
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    len: usize,
}

impl<K, T> Default for Arena<K, T> {
    fn default() -> Self {
        Self {
            of: PhantomData,
            slots: Vec::new(),
            free: Vec::new(),
            len: 0,
        }
    }
}

impl<K, T> Arena<K, T> {
    /// Inserts the value that `make` returns for its key. `None` if all 2^32 slots are in use.
    pub(crate) fn insert_with(&mut self, make: impl FnOnce(Key<K>) -> T) -> Option<Key<K>> {
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                let index = u32::try_from(self.slots.len()).ok()?;
                self.slots.push(Slot {
                    generation: 1,
                    value: None,
                });
                index
            }
        };
        let slot = self.slots.get_mut(index as usize)?;
        let key = Key {
            index,
            generation: slot.generation,
            of: PhantomData,
        };
        slot.value = Some(make(key));
        self.len += 1;
        Some(key)
    }

    pub(crate) fn get(&self, key: Key<K>) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.generation == key.generation {
            slot.value.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key<K>) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(crate) fn remove(&mut self, key: Key<K>) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        self.free(key);
        Some(value)
    }

    /// Removes a value without moving it out, which would be most of the work for a large one.
    pub(crate) fn discard(&mut self, key: Key<K>) {
        let Some(slot) = self.slots.get_mut(key.index as usize) else {
            return;
        };
        if slot.generation == key.generation && slot.value.is_some() {
            slot.value = None;
            self.free(key);
        }
    }

    fn free(&mut self, key: Key<K>) {
        let Some(slot) = self.slots.get_mut(key.index as usize) else {
            return;
        };
        slot.generation = if slot.generation >= GENERATIONS {
            1
        } else {
            slot.generation + 1
        };
        self.free.push(key.index);
        self.len -= 1;
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key<K>, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            let key = Key {
                index,
                generation: slot.generation,
                of: PhantomData,
            };
            slot.value.as_ref().map(|value| (key, value))
        })
    }

    /// The keys of all values, for loops that change the arena.
    pub(crate) fn keys(&self) -> Vec<Key<K>> {
        self.iter().map(|(key, _)| key).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_outlives_its_value_and_finds_nothing() {
        let mut arena: Arena<(), &str> = Arena::default();
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
