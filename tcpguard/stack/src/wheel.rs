//! A hierarchical timer wheel with one deadline per connection. Arming later than armed already is free: the
//! owner looks at its real deadline when the wheel calls, and arms again. So is having no deadline any more: whoever was
//! answered in time stays in the wheel, marked, and is not called.
//!
//! A slot of the wheel is a row of blocks that name its members, not a list through the members themselves: of a million
//! connections each lies in memory that no cache holds, and a list has the processor wait for one before it knows the next.

use super::time::Instant;

/// One tick is 2^20 ns, about a millisecond.
const TICK_BITS: u32 = 20;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
const LEVELS: usize = 5;
/// Deadlines further away (12 days) are called early, found unripe, and armed again.
const MAX_DELTA: u64 = (1 << (SLOT_BITS * LEVELS as u32)) - 1;
const NIL: u32 = u32::MAX;

/// A connection's place in the wheel. There is one for each connection: packed, it takes two bytes less.
#[derive(Clone, Copy, Debug)]
#[repr(C, packed(2))]
struct Node {
    /// The low bits of the tick it is armed for.
    tick: u32,
    /// The block that names it, and where in that.
    seat: Seat,
    /// Level and slot, with [`CANCELLED`] if it is not to be called; [`UNARMED`] when in none.
    place: u16,
}

const UNARMED: u16 = u16::MAX;
const CANCELLED: u16 = 1 << 15;

impl Node {
    fn is_armed(&self) -> bool {
        self.place != UNARMED
    }

    /// Of one that is armed.
    fn is_cancelled(&self) -> bool {
        self.place & CANCELLED != 0
    }

    /// The slot of one that is armed.
    fn slot(&self) -> usize {
        usize::from(self.place & !CANCELLED)
    }
}

/// Members of a slot: with the next block they fill a cache line.
const MEMBERS: usize = 15;

/// Some of a slot's members, and the block with others.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Block {
    members: [u32; MEMBERS],
    next: u32,
}

/// Where a member is named: the number of the block above four bits.
#[derive(Clone, Copy, Debug)]
struct Seat(u32);

impl Seat {
    fn new(block: u32, member: usize) -> Self {
        Self(block << 4 | member as u32)
    }

    fn block(self) -> usize {
        (self.0 >> 4) as usize
    }

    fn member(self) -> usize {
        self.0 as usize & 15
    }
}

/// A slot of the wheel: a row of blocks, of which all but the first are full.
#[derive(Clone, Copy, Debug)]
struct Slot {
    first: u32,
    /// Members in the first block.
    len: usize,
}

impl Slot {
    const EMPTY: Self = Self { first: NIL, len: 0 };

    fn is_empty(&self) -> bool {
        self.first == NIL
    }
}

/// Timers for the connections of one arena, by index.
#[derive(Debug)]
pub(crate) struct Wheel {
    nodes: Vec<Node>,
    blocks: Vec<Block>,
    /// The first block that names nobody.
    spare: u32,
    /// Level by level.
    slots: [Slot; LEVELS * SLOTS],
    occupied: [u64; LEVELS],
    /// Every tick before this one has been handled.
    cursor: u64,
}

impl Wheel {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            nodes: Vec::new(),
            blocks: Vec::new(),
            spare: NIL,
            slots: [Slot::EMPTY; LEVELS * SLOTS],
            occupied: [0; LEVELS],
            cursor: now.0 >> TICK_BITS,
        }
    }

    /// Makes sure that `index` is called at `deadline` or earlier, or not at all if that is [`Instant::NEVER`].
    pub(crate) fn arm(&mut self, index: u32, deadline: Instant) {
        if !deadline.is_set() {
            return self.cancel(index);
        }
        if self.nodes.len() <= index as usize {
            let empty = Node { tick: 0, seat: Seat(0), place: UNARMED };
            let more = index as usize + 1 - self.nodes.len();
            make_room(&mut self.nodes, more);
            self.nodes.resize(index as usize + 1, empty);
        }
        // Rounded up: a timer never fires before its time.
        let tick = (deadline.0.saturating_add((1 << TICK_BITS) - 1) >> TICK_BITS).max(self.cursor);
        let tick = tick.min(self.cursor + MAX_DELTA);
        let node = self.nodes[index as usize];
        if node.is_armed() {
            if self.tick_of(&node) <= tick {
                self.nodes[index as usize].place &= !CANCELLED;
                return;
            }
            self.remove(index);
        }
        self.add(index, tick);
    }

    /// Nothing is due for `index` any more. It stays where it is: whoever would take its place lies elsewhere in memory, and it
    /// may well be armed again before its time.
    fn cancel(&mut self, index: u32) {
        if let Some(node) = self.nodes.get_mut(index as usize).filter(|node| node.is_armed()) {
            node.place |= CANCELLED;
        }
    }

    /// Reads what arming `index` will read; what it says means nothing.
    pub(crate) fn touch(&self, index: u32) -> u32 {
        self.nodes.get(index as usize).map_or(0, |node| node.tick ^ u32::from(node.place))
    }

    /// Memory held.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.blocks.capacity() * size_of::<Block>()
    }

    /// Takes `index` out.
    pub(crate) fn disarm(&mut self, index: u32) {
        if self.nodes.get(index as usize).is_some_and(Node::is_armed) {
            self.remove(index);
        }
    }

    /// The next connection whose time has come, taken out of the wheel.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let target = now.0 >> TICK_BITS;
        loop {
            let slot = self.cursor as usize % SLOTS;
            while let Some(index) = self.pop(slot) {
                let node = &mut self.nodes[index as usize];
                let called = !node.is_cancelled();
                node.place = UNARMED;
                if called {
                    return Some(index);
                }
            }
            if self.cursor >= target {
                return None;
            }
            match self.next_tick() {
                Some(tick) if tick <= target => {
                    self.cursor = tick;
                    self.cascade();
                }
                _ => self.cursor = target,
            }
        }
    }

    /// When to call [`Self::pop_due`] next, at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        if !self.slots[self.cursor as usize % SLOTS].is_empty() {
            return Some(Instant(self.cursor << TICK_BITS));
        }
        self.next_tick().map(|tick| Instant(tick << TICK_BITS))
    }

    /// The next tick after the cursor at which a slot is due or a coarser slot must be spread out.
    fn next_tick(&self) -> Option<u64> {
        (0..LEVELS)
            .filter(|&level| self.occupied[level] != 0)
            .map(|level| {
                let shift = SLOT_BITS * level as u32;
                let here = self.cursor >> shift;
                let ahead =
                    self.occupied[level].rotate_right((here as u32 + 1) % SLOTS as u32).trailing_zeros();
                (here + 1 + u64::from(ahead)) << shift
            })
            .min()
    }

    /// Spreads the slots that begin at the cursor over the finer levels.
    fn cascade(&mut self) {
        for level in (1..LEVELS).rev() {
            let shift = SLOT_BITS * level as u32;
            if !self.cursor.is_multiple_of(1 << shift) {
                continue;
            }
            // Nobody goes back to where he comes from: that slot's next turn is a whole round away.
            let slot = level * SLOTS + (self.cursor >> shift) as usize % SLOTS;
            while let Some(index) = self.pop(slot) {
                let node = self.nodes[index as usize];
                if node.is_cancelled() {
                    self.nodes[index as usize].place = UNARMED;
                } else {
                    self.add(index, self.tick_of(&node));
                }
            }
        }
    }

    fn tick_of(&self, node: &Node) -> u64 {
        // Armed ticks lie less than 2^30 ahead of the cursor.
        self.cursor + u64::from(node.tick.wrapping_sub(self.cursor as u32))
    }

    /// Adds one that is in no slot.
    fn add(&mut self, index: u32, tick: u64) {
        let delta = tick - self.cursor;
        let level = if delta == 0 { 0 } else { (delta.ilog2() / SLOT_BITS) as usize };
        let slot = level * SLOTS + (tick >> (SLOT_BITS * level as u32)) as usize % SLOTS;
        let Slot { mut first, mut len } = self.slots[slot];
        if first == NIL || len == MEMBERS {
            (first, len) = (self.take_block(first), 0);
        }
        self.blocks[first as usize].members[len] = index;
        self.nodes[index as usize] =
            Node { tick: tick as u32, seat: Seat::new(first, len), place: slot as u16 };
        self.slots[slot] = Slot { first, len: len + 1 };
        self.occupied[level] |= 1 << (slot % SLOTS);
    }

    /// Takes one that is armed out of its slot, whose last member takes its seat.
    fn remove(&mut self, index: u32) {
        let node = self.nodes[index as usize];
        if let Some(last) = self.pop(node.slot()).filter(|&last| last != index) {
            self.blocks[node.seat.block()].members[node.seat.member()] = last;
            self.nodes[last as usize].seat = node.seat;
        }
        self.nodes[index as usize].place = UNARMED;
    }

    /// The last member of a slot, taken out of it. Its node is still to be told.
    fn pop(&mut self, slot: usize) -> Option<u32> {
        let Slot { first, len } = self.slots[slot];
        let block = self.blocks.get_mut(first as usize)?;
        let last = block.members[len - 1];
        if len > 1 {
            self.slots[slot].len = len - 1;
            return Some(last);
        }
        let next = core::mem::replace(&mut block.next, self.spare);
        self.spare = first;
        self.slots[slot] = if next == NIL { Slot::EMPTY } else { Slot { first: next, len: MEMBERS } };
        if next == NIL {
            self.occupied[slot / SLOTS] &= !(1 << (slot % SLOTS));
        }
        Some(last)
    }

    /// A block that names nobody, in front of `next`.
    fn take_block(&mut self, next: u32) -> u32 {
        let taken = self.spare;
        if let Some(block) = self.blocks.get_mut(taken as usize) {
            self.spare = core::mem::replace(&mut block.next, next);
            return taken;
        }
        make_room(&mut self.blocks, 1);
        self.blocks.push(Block { members: [NIL; MEMBERS], next });
        self.blocks.len() as u32 - 1
    }
}

/// Room for some `more`. Doubling would leave up to half of it unused.
fn make_room<T>(row: &mut Vec<T>, more: usize) {
    if row.capacity() - row.len() < more {
        row.reserve_exact(more + row.len() / 32);
    }
}

#[cfg(test)]
mod tests {
    use super::{Block, Instant, Node, TICK_BITS, Wheel};
    use proptest::prelude::*;

    const TICK: u64 = 1 << TICK_BITS;

    fn drain(wheel: &mut Wheel, now: u64) -> Vec<u32> {
        let mut due: Vec<u32> = core::iter::from_fn(|| wheel.pop_due(Instant(now))).collect();
        due.sort_unstable();
        due
    }

    #[test]
    fn timers_fire_in_their_tick_and_not_before() {
        let mut wheel = Wheel::new(Instant(12_345));
        wheel.arm(0, Instant(3 * TICK));
        wheel.arm(1, Instant(3 * TICK + 1));
        wheel.arm(2, Instant(100_000 * TICK));
        assert_eq!(drain(&mut wheel, 3 * TICK - 1), [0u32; 0]);
        assert_eq!(wheel.next_deadline(), Some(Instant(3 * TICK)));
        assert_eq!(drain(&mut wheel, 3 * TICK), [0]);
        assert_eq!(drain(&mut wheel, 4 * TICK), [1]);
        wheel.arm(2, Instant(200_000 * TICK));
        assert_eq!(drain(&mut wheel, 100_000 * TICK), [2], "arming later leaves the earlier call in place");
        assert_eq!(wheel.next_deadline(), None);
    }

    #[test]
    fn an_earlier_deadline_moves_the_timer_and_disarming_removes_it() {
        let mut wheel = Wheel::new(Instant(0));
        wheel.arm(7, Instant(5_000 * TICK));
        wheel.arm(7, Instant(50 * TICK));
        wheel.arm(8, Instant(50 * TICK));
        wheel.disarm(8);
        assert_eq!(drain(&mut wheel, 50 * TICK), [7]);
        assert_eq!(drain(&mut wheel, 10_000 * TICK), [0u32; 0]);
    }

    #[test]
    fn what_is_not_due_any_more_is_not_called_and_may_be_armed_again() {
        // In the finest level, and where it is spread over finer ones on its way.
        for tick in [5, 50_000] {
            let mut wheel = Wheel::new(Instant(0));
            for index in 0..4 {
                wheel.arm(index, Instant(tick * TICK));
            }
            wheel.arm(0, Instant::NEVER);
            wheel.arm(1, Instant::NEVER);
            wheel.arm(2, Instant::NEVER);
            wheel.arm(1, Instant((tick + 1) * TICK));
            wheel.arm(2, Instant((tick - 1) * TICK));
            assert_eq!(drain(&mut wheel, (tick - 1) * TICK), [2]);
            assert_eq!(drain(&mut wheel, tick * TICK), [1, 3], "the earlier call stays in place");
            assert_eq!(wheel.next_deadline(), None);
            wheel.arm(0, Instant((tick + 2) * TICK));
            wheel.arm(7, Instant::NEVER);
            assert_eq!(drain(&mut wheel, 2 * tick * TICK), [0]);
        }
    }

    #[test]
    fn a_timer_takes_ten_bytes_and_a_slot_a_line_for_fifteen_of_them() {
        assert_eq!((size_of::<Node>(), size_of::<Block>()), (10, 64));
        let mut wheel = Wheel::new(Instant(0));
        for index in 0..15_000 {
            wheel.arm(index, Instant(50_000 * TICK));
        }
        assert_eq!(wheel.blocks.len(), 1000);
        // Whoever takes an empty seat is found in it.
        for index in (0..15_000).step_by(3) {
            wheel.disarm(index);
        }
        for index in (1..15_000).step_by(3) {
            wheel.arm(index, Instant(40_000 * TICK));
        }
        assert_eq!(drain(&mut wheel, 40_000 * TICK), (1..15_000).step_by(3).collect::<Vec<_>>());
        assert_eq!(drain(&mut wheel, 50_000 * TICK), (2..15_000).step_by(3).collect::<Vec<_>>());
        // The memory serves whoever comes next.
        for index in 0..15_000 {
            wheel.arm(index, Instant(60_000 * TICK));
        }
        assert_eq!(wheel.blocks.len(), 1000);
    }

    proptest! {
        /// Against the obvious model: a list of deadlines, some of which are given up.
        #[test]
        fn agrees_with_a_sorted_list(
            deadlines in prop::collection::vec((0u64..5_000_000, prop::bool::weighted(0.2)), 1..200),
            steps in prop::collection::vec(1u64..400_000, 1..60),
        ) {
            let mut wheel = Wheel::new(Instant(77 * TICK));
            let mut pending: Vec<(u64, u32)> = Vec::new();
            for (index, &(tick, cancelled)) in (0..).zip(&deadlines) {
                wheel.arm(index, Instant(tick * TICK));
                if cancelled {
                    wheel.arm(index, Instant::NEVER);
                } else {
                    pending.push((tick, index));
                }
            }
            let mut now = 77;
            for step in steps {
                now += step;
                let earliest = pending.iter().map(|&(tick, _)| tick.max(77)).min();
                if let Some(earliest) = earliest {
                    prop_assert!(wheel.next_deadline().is_some_and(|next| next.0 <= earliest * TICK));
                }
                let due = drain(&mut wheel, now * TICK);
                let mut expected: Vec<u32> =
                    pending.iter().filter(|(tick, _)| *tick <= now).map(|&(_, index)| index).collect();
                expected.sort_unstable();
                prop_assert_eq!(due, expected);
                pending.retain(|(tick, _)| *tick > now);
            }
        }
    }
}
