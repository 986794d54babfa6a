//! What the filter lists look like in the maps: the source addresses of a family as one line, cut where prefixes begin
//! and end, so that the longest match is one search in a sorted array. The search is the decision's; cutting the line
//! is `cut`'s, in userspace.
//!
//! There are two banks of everything. XDP reads the one that [`Settings::filters`](crate::map::Settings::filters) names,
//! the daemon fills the other and then names that: each packet sees one list, whole.

#[cfg(not(target_arch = "bpf"))]
mod cut;

use crate::flow::{Address, V4, V6};

#[cfg(not(target_arch = "bpf"))]
pub use cut::{Entry, Line};

/// Prefixes in one list, both families together.
pub const MAX_FILTERS: u32 = 100_000;
/// Banks of each table.
pub const BANKS: u32 = 2;
/// Heads of one family in one bank: one for each value of an address's first 16 bits.
pub const HEADS: u32 = 1 << 16;
/// Spans of one family in one bank: `n` prefixes cut a line into at most `2n + 1`.
pub const SPANS: u32 = 2 * MAX_FILTERS + 1;
/// Rules in one bank. Rule 0 is none.
pub const RULES: u32 = MAX_FILTERS + 1;
/// Hit counters that lie in one map value.
pub const HITS_PER_BLOCK: u32 = 1024;
/// Blocks of hit counters in one bank.
pub const HIT_BLOCKS: u32 = RULES.div_ceil(HITS_PER_BLOCK);

/// Set in [`Settings::filters`](crate::map::Settings::filters) while the list has IPv4 prefixes.
pub const LISTED_V4: u32 = 1;
/// Set in it while the list has IPv6 prefixes.
pub const LISTED_V6: u32 = 2;
/// Set in it while the second bank is the one to read.
pub const SECOND_BANK: u32 = 4;

/// The bank that a value of [`Settings::filters`](crate::map::Settings::filters) names, below [`BANKS`].
#[inline(always)]
pub const fn bank(filters: u32) -> u32 {
    (filters / SECOND_BANK) & 1
}

/// Segments from there are dropped.
pub const DENY: u32 = 0;
/// Segments from there are spared the budgets, and nothing else.
pub const ALLOW: u32 = 1;

/// All addresses that share their first 16 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Head {
    /// The rule of all of them if `spans` is 0; otherwise the index in its bank of the span that the first of them
    /// lies in.
    pub first: u32,
    /// How many spans they lie in, unless that is one.
    pub spans: u32,
}

/// IPv4 addresses from `start` to the next span's, all of one rule. Host order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpanV4 {
    /// The first address.
    pub start: u32,
    /// The rule that is the longest match there, or 0.
    pub rule: u32,
}

/// As [`SpanV4`], for IPv6.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct SpanV6 {
    /// The first half of the first address.
    pub high: u64,
    /// Its second half.
    pub low: u64,
    /// The rule that is the longest match there, or 0.
    pub rule: u64,
}

/// What one prefix says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FilterRule {
    /// `CLOCK_MONOTONIC_COARSE` nanoseconds from which on it says nothing; 0 for never.
    pub expires: u64,
    /// [`DENY`] or [`ALLOW`].
    pub action: u32,
    /// Who speaks after `expires`: the longest prefix around this one that lives longer, or 0.
    pub next: u32,
}

impl FilterRule {
    /// Whether it still says something.
    #[inline(always)]
    pub const fn is_alive(&self, now: u64) -> bool {
        self.expires == 0 || now < self.expires
    }
}

/// An address as a point on its family's line.
pub trait Point: Address {
    /// How long an address is, bits.
    const BITS: u8;
    /// Set in [`Settings::filters`](crate::map::Settings::filters) while the list has prefixes of this family.
    const LISTED: u32;
    /// The family's spans in the map.
    type Span: Copy + Default + core::fmt::Debug;

    /// Its first 16 bits.
    fn head(self) -> u32;
    /// Whether the span starts here or before.
    fn is_from(self, span: &Self::Span) -> bool;
    /// The rule of a span.
    fn rule(span: &Self::Span) -> u32;
    /// The span from the address of this number on.
    fn span(start: u128, rule: u32) -> Self::Span;
}

impl Point for V4 {
    const BITS: u8 = 32;
    const LISTED: u32 = LISTED_V4;
    type Span = SpanV4;

    #[inline(always)]
    fn head(self) -> u32 {
        u32::from_be_bytes(self.0) >> 16
    }

    #[inline(always)]
    fn is_from(self, span: &SpanV4) -> bool {
        span.start <= u32::from_be_bytes(self.0)
    }

    #[inline(always)]
    fn rule(span: &SpanV4) -> u32 {
        span.rule
    }

    fn span(start: u128, rule: u32) -> SpanV4 {
        SpanV4 { start: start as u32, rule }
    }
}

impl Point for V6 {
    const BITS: u8 = 128;
    const LISTED: u32 = LISTED_V6;
    type Span = SpanV6;

    #[inline(always)]
    fn head(self) -> u32 {
        u32::from(u16::from_be_bytes([self.0[0], self.0[1]]))
    }

    #[inline(always)]
    fn is_from(self, span: &SpanV6) -> bool {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = self.0;
        let high = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        span.high < high || span.high == high && span.low <= u64::from_be_bytes([i, j, k, l, m, n, o, p])
    }

    #[inline(always)]
    fn rule(span: &SpanV6) -> u32 {
        span.rule as u32
    }

    fn span(start: u128, rule: u32) -> SpanV6 {
        SpanV6 { high: (start >> 64) as u64, low: start as u64, rule: rule.into() }
    }
}

#[cfg(feature = "user")]
mod pod {
    // SAFETY: `#[repr(C)]`, integers only, without padding (asserted in the tests below).
    unsafe impl aya::Pod for super::Head {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SpanV4 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::SpanV6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::FilterRule {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::mem::size_of;

    #[test]
    fn map_values_have_no_padding() {
        assert_eq!(size_of::<Head>(), 2 * 4);
        assert_eq!(size_of::<SpanV4>(), 2 * 4);
        assert_eq!(size_of::<SpanV6>(), 3 * 8);
        assert_eq!(size_of::<FilterRule>(), 8 + 2 * 4);
    }

    #[test]
    fn the_flags_and_the_bank_are_apart() {
        for filters in 0..4 {
            assert_eq!((bank(filters), bank(filters | SECOND_BANK)), (0, 1));
        }
    }
}
