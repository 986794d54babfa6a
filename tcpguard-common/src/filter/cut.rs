//! Cuts a family's addresses into spans. XDP only reads what comes out: it has no memory to take from an
//! allocator.

extern crate alloc;

use alloc::vec::Vec;

use super::{HEADS, Head, Point};

/// One prefix of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The first address, as a number.
    pub start: u128,
    /// How many of its bits count, at most [`Point::BITS`].
    pub len: u8,
    /// Which rule it is, from 1.
    pub rule: u32,
    /// As [`super::FilterRule::expires`].
    pub expires: u64,
}

/// A family's addresses, cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line<A: Point> {
    /// [`HEADS`] of them.
    pub heads: Vec<Head>,
    /// Sorted by where they start; the first starts at 0.
    pub spans: Vec<A::Span>,
    /// For each entry, in their order, [`super::FilterRule::next`].
    pub next: Vec<u32>,
}

impl<A: Point> Line<A> {
    /// Cuts the line for `entries`, which are sorted by start and then length, without repetition and without bits
    /// beyond the length.
    pub fn cut(entries: &[Entry]) -> Self {
        let mut cuts = Cuts { cuts: Vec::new() };
        cuts.push(0, 0);
        let mut next = Vec::with_capacity(entries.len());
        // The entries around the present address, the widest first: prefixes are nested or apart.
        let mut around: Vec<(usize, u128)> = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            while around.last().is_some_and(|&(_, last)| last < entry.start) {
                cuts.leave::<A>(&mut around, entries);
            }
            let survivor = around.iter().rev().find(|(outer, _)| outlives(&entries[*outer], entry));
            next.push(survivor.map_or(0, |&(outer, _)| entries[outer].rule));
            cuts.push(entry.start, entry.rule);
            around.push((index, last::<A>(entry.start, entry.len)));
        }
        while !around.is_empty() {
            cuts.leave::<A>(&mut around, entries);
        }
        let spans = cuts.cuts.iter().map(|&(start, rule)| A::span(start, rule)).collect();
        Self { heads: heads::<A>(&cuts.cuts), spans, next }
    }
}

fn outlives(outer: &Entry, inner: &Entry) -> bool {
    inner.expires != 0 && (outer.expires == 0 || outer.expires > inner.expires)
}

/// The last address of a prefix.
fn last<A: Point>(start: u128, len: u8) -> u128 {
    let host_bits = u32::from(A::BITS.saturating_sub(len));
    start | 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1)
}

/// Where spans start, and whose they are.
struct Cuts {
    cuts: Vec<(u128, u32)>,
}

impl Cuts {
    fn push(&mut self, start: u128, rule: u32) {
        // A wider prefix that starts at the same address has none of it.
        if self.cuts.last().is_some_and(|&(before, _)| before == start) {
            self.cuts.pop();
        }
        if self.cuts.last().is_none_or(|&(_, before)| before != rule) {
            self.cuts.push((start, rule));
        }
    }

    /// Behind the innermost prefix the one around it goes on.
    fn leave<A: Point>(&mut self, around: &mut Vec<(usize, u128)>, entries: &[Entry]) {
        let Some((_, last)) = around.pop() else { return };
        let outer = around.last().map_or(0, |&(outer, _)| entries[outer].rule);
        // Nothing lies behind the last address of all.
        if last != self::last::<A>(0, 0) {
            self.push(last + 1, outer);
        }
    }
}

fn heads<A: Point>(cuts: &[(u128, u32)]) -> Vec<Head> {
    let shift = u32::from(A::BITS) - HEADS.ilog2();
    let mut within = 0;
    (0..HEADS)
        .map(|head| {
            let start = u128::from(head) << shift;
            while cuts.get(within + 1).is_some_and(|&(next, _)| next <= start) {
                within += 1;
            }
            let behind = &cuts[within + 1..];
            let inside = behind.partition_point(|&(next, _)| next >> shift == u128::from(head));
            match inside {
                0 => Head { first: cuts[within].1, spans: 0 },
                _ => Head { first: within as u32, spans: inside as u32 + 1 },
            }
        })
        .collect()
}
