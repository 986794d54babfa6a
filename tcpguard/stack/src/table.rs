//! Where connections live: an arena whose entries never move, and an index from the hash of a flow key to them.
//! Neither knows what a connection is.

use super::event::ConnId;

/// Entries per page. Growing adds a page and moves nothing.
const PAGE: usize = 512;

/// What knows its own place, so that the arena need not keep its generation beside it.
pub(crate) trait Placed {
    fn id(&self) -> ConnId;
    fn set_id(&mut self, id: ConnId);
}

/// A place of the arena: the generation that its next entry will have, or an entry.
#[derive(Debug)]
enum Slot<T> {
    Free(u32),
    Taken(T),
}

impl<T: Placed> Slot<T> {
    fn entry(&self) -> Option<&T> {
        match self {
            Self::Free(_) => None,
            Self::Taken(entry) => Some(entry),
        }
    }
}

/// Entries with stable indices; a generation tells the uses of an index apart.
#[derive(Debug)]
pub(crate) struct Arena<T> {
    pages: Vec<Vec<Slot<T>>>,
    free: Vec<u32>,
    len: u32,
    limit: u32,
}

impl<T: Placed> Arena<T> {
    pub(crate) fn new(limit: u32) -> Self {
        Self { pages: Vec::new(), free: Vec::new(), len: 0, limit }
    }

    pub(crate) fn len(&self) -> u32 {
        self.len
    }

    pub(crate) fn is_full(&self) -> bool {
        self.len >= self.limit
    }

    /// A place for `entry`; `None` when the limit is reached.
    pub(crate) fn insert(&mut self, mut entry: T) -> Option<ConnId> {
        if self.is_full() {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => self.push_slot(),
        };
        let slot = self.slot_mut(index)?;
        let Slot::Free(generation) = *slot else { return None };
        let id = ConnId { index, generation };
        entry.set_id(id);
        *slot = Slot::Taken(entry);
        self.len += 1;
        Some(id)
    }

    pub(crate) fn remove(&mut self, id: ConnId) {
        if self.get(id).is_some()
            && let Some(slot) = self.slot_mut(id.index)
        {
            *slot = Slot::Free(id.generation.wrapping_add(1));
            self.free.push(id.index);
            self.len -= 1;
        }
    }

    pub(crate) fn get(&self, id: ConnId) -> Option<&T> {
        self.at(id.index).filter(|entry| entry.id() == id)
    }

    pub(crate) fn get_mut(&mut self, id: ConnId) -> Option<&mut T> {
        match self.slot_mut(id.index)? {
            Slot::Taken(entry) if entry.id() == id => Some(entry),
            Slot::Taken(_) | Slot::Free(_) => None,
        }
    }

    /// The entry now at `index`.
    pub(crate) fn at(&self, index: u32) -> Option<&T> {
        self.slot(index)?.entry()
    }

    /// The identity of the entry now at `index`.
    pub(crate) fn id_at(&self, index: u32) -> Option<ConnId> {
        self.at(index).map(T::id)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pages.iter().flatten().filter_map(Slot::entry)
    }

    /// How many indices have ever been in use.
    pub(crate) fn slots(&self) -> u32 {
        match self.pages.last() {
            Some(page) => ((self.pages.len() - 1) * PAGE + page.len()) as u32,
            None => 0,
        }
    }

    /// Memory held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        let slots: usize = self.pages.iter().map(Vec::capacity).sum();
        slots * size_of::<Slot<T>>() + self.free.capacity() * size_of::<u32>()
    }

    fn push_slot(&mut self) -> u32 {
        if self.pages.last().is_none_or(|page| page.len() == PAGE) {
            self.pages.push(Vec::with_capacity(PAGE));
        }
        let pages = self.pages.len();
        let page = &mut self.pages[pages - 1];
        page.push(Slot::Free(0));
        ((pages - 1) * PAGE + page.len() - 1) as u32
    }

    fn slot(&self, index: u32) -> Option<&Slot<T>> {
        self.pages.get(index as usize / PAGE)?.get(index as usize % PAGE)
    }

    fn slot_mut(&mut self, index: u32) -> Option<&mut Slot<T>> {
        self.pages.get_mut(index as usize / PAGE)?.get_mut(index as usize % PAGE)
    }
}

/// An open-addressed index from hashes to arena indices. The hash must be keyed: whoever can choose addresses
/// must not be able to choose places.
#[derive(Debug)]
pub(crate) struct Index {
    /// The hash's low half above the arena index; [`EMPTY`] where free.
    slots: Vec<u64>,
    len: usize,
}

const EMPTY: u64 = u64::MAX;

impl Index {
    pub(crate) fn new() -> Self {
        Self { slots: vec![EMPTY; 1024], len: 0 }
    }

    /// The arena index under `hash` that `is_it` recognises.
    pub(crate) fn find(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<u32> {
        let at = self.position(hash, is_it)?;
        Some(self.slots[at] as u32)
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Reads where a search for `hash` begins; what it says means nothing.
    pub(crate) fn touch(&self, hash: u64) -> u64 {
        self.slots[hash as u32 as usize & self.mask()]
    }

    /// The arena index that is probably under `hash`, by what the slots show: nothing else is looked at.
    pub(crate) fn likely(&self, hash: u64) -> Option<u32> {
        let tagged = |at: usize| self.slots[at & self.mask()];
        let home = hash as u32 as usize;
        let slot = (home..home + 8).map(tagged).find(|slot| slot >> 32 == u64::from(hash as u32))?;
        (slot != EMPTY).then_some(slot as u32)
    }

    /// Adds an arena index that is not there yet.
    pub(crate) fn insert(&mut self, hash: u64, index: u32) {
        if (self.len + 1) * 8 > self.slots.len() * 7 {
            self.grow();
        }
        self.place(hash << 32 | u64::from(index));
        self.len += 1;
    }

    /// Takes an arena index out.
    pub(crate) fn remove(&mut self, hash: u64, index: u32) {
        let Some(mut hole) = self.position(hash, |found| found == index) else {
            debug_assert!(false, "an index that was never inserted");
            return;
        };
        self.len -= 1;
        // Closes the gap, so that no tombstones lengthen later searches.
        let mut next = hole;
        loop {
            next = (next + 1) & self.mask();
            let slot = self.slots[next];
            if slot == EMPTY {
                break;
            }
            let from_home = next.wrapping_sub(self.home(slot)) & self.mask();
            let from_hole = next.wrapping_sub(hole) & self.mask();
            if from_home >= from_hole {
                self.slots[hole] = slot;
                hole = next;
            }
        }
        self.slots[hole] = EMPTY;
    }

    /// Memory held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<u64>()
    }

    /// How many places the search for an arena index passes.
    #[cfg(test)]
    pub(crate) fn distance(&self, hash: u64, index: u32) -> Option<usize> {
        let at = self.position(hash, |found| found == index)?;
        Some(at.wrapping_sub(hash as u32 as usize) & self.mask())
    }

    fn position(&self, hash: u64, is_it: impl Fn(u32) -> bool) -> Option<usize> {
        let mut at = hash as u32 as usize & self.mask();
        loop {
            let slot = self.slots[at];
            if slot == EMPTY {
                return None;
            }
            if slot >> 32 == u64::from(hash as u32) && is_it(slot as u32) {
                return Some(at);
            }
            at = (at + 1) & self.mask();
        }
    }

    fn place(&mut self, slot: u64) {
        let mut at = self.home(slot);
        while self.slots[at] != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.slots[at] = slot;
    }

    fn grow(&mut self) {
        let larger = vec![EMPTY; self.slots.len() * 2];
        for slot in core::mem::replace(&mut self.slots, larger) {
            if slot != EMPTY {
                self.place(slot);
            }
        }
    }

    fn home(&self, slot: u64) -> usize {
        (slot >> 32) as usize & self.mask()
    }

    fn mask(&self) -> usize {
        self.slots.len() - 1
    }
}

#[cfg(test)]
mod tests {
    use super::{Arena, ConnId, Index, Placed};
    use proptest::prelude::*;
    use std::collections::HashMap;

    impl Placed for (char, ConnId) {
        fn id(&self) -> ConnId {
            self.1
        }

        fn set_id(&mut self, id: ConnId) {
            self.1 = id;
        }
    }

    const NOWHERE: ConnId = ConnId { index: u32::MAX, generation: 0 };

    #[test]
    fn an_old_id_does_not_reach_the_entry_that_took_its_place() {
        let mut arena = Arena::new(2);
        let first = arena.insert(('a', NOWHERE)).unwrap();
        arena.remove(first);
        assert_eq!((arena.len(), arena.get(first)), (0, None));
        let second = arena.insert(('b', NOWHERE)).unwrap();
        assert_eq!(first.index, second.index);
        arena.remove(first);
        assert_eq!((arena.get(first), arena.get(second)), (None, Some(&('b', second))));
        assert!(arena.insert(('c', NOWHERE)).is_some());
        assert!(arena.insert(('d', NOWHERE)).is_none(), "the limit holds");
    }

    proptest! {
        /// Few distinct hashes, so that searches collide and wrap.
        #[test]
        fn the_index_agrees_with_a_map(operations in prop::collection::vec((0u32..3000, any::<bool>()), 1..4000)) {
            let hash = |index: u32| u64::from(index % 37) * 29 + 1000;
            let mut index = Index::new();
            let mut model = HashMap::new();
            for (number, insert) in operations {
                let present = model.contains_key(&number);
                prop_assert_eq!(index.find(hash(number), |found| found == number).is_some(), present);
                if insert && !present {
                    index.insert(hash(number), number);
                    model.insert(number, ());
                } else if !insert && present {
                    index.remove(hash(number), number);
                    model.remove(&number);
                }
            }
            for number in 0..3000 {
                prop_assert_eq!(index.find(hash(number), |found| found == number).is_some(), model.contains_key(&number));
            }
        }
    }
}
