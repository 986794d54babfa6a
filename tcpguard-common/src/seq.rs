//! TCP sequence numbers: arithmetic modulo 2^32 (RFC 9293 §3.4). Not responsible for windows or their state.

use core::ops::{Add, AddAssign, Sub, SubAssign};

/// A TCP sequence number. Ordering is by serial number arithmetic: `a` is before `b` when the shortest way
/// from `a` to `b` goes up. It is not a total order, so there is no `Ord`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct Seq(pub u32);

impl Seq {
    /// `self < other`, modulo 2^32.
    #[inline(always)]
    pub const fn before(self, other: Self) -> bool {
        (self.0.wrapping_sub(other.0) as i32) < 0
    }

    /// `self > other`, modulo 2^32.
    #[inline(always)]
    pub const fn after(self, other: Self) -> bool {
        other.before(self)
    }

    /// `self <= other`, modulo 2^32.
    #[inline(always)]
    pub const fn at_or_before(self, other: Self) -> bool {
        !other.before(self)
    }

    /// `self >= other`, modulo 2^32.
    #[inline(always)]
    pub const fn at_or_after(self, other: Self) -> bool {
        !self.before(other)
    }

    /// How far `self` lies ahead of `earlier`, in bytes; meaningful only when it does.
    #[inline(always)]
    pub const fn distance(self, earlier: Self) -> u32 {
        self.0.wrapping_sub(earlier.0)
    }

    /// Whether `self` lies in `[start, start + len)`.
    #[inline(always)]
    pub const fn within(self, start: Self, len: u32) -> bool {
        self.distance(start) < len
    }

    /// The later of two sequence numbers.
    #[inline(always)]
    pub const fn max(self, other: Self) -> Self {
        if self.before(other) { other } else { self }
    }

    /// The earlier of two sequence numbers.
    #[inline(always)]
    pub const fn min(self, other: Self) -> Self {
        if other.before(self) { other } else { self }
    }
}

impl Add<u32> for Seq {
    type Output = Self;
    #[inline(always)]
    fn add(self, bytes: u32) -> Self {
        Self(self.0.wrapping_add(bytes))
    }
}

impl AddAssign<u32> for Seq {
    #[inline(always)]
    fn add_assign(&mut self, bytes: u32) {
        *self = *self + bytes;
    }
}

impl Sub<u32> for Seq {
    type Output = Self;
    #[inline(always)]
    fn sub(self, bytes: u32) -> Self {
        Self(self.0.wrapping_sub(bytes))
    }
}

impl SubAssign<u32> for Seq {
    #[inline(always)]
    fn sub_assign(&mut self, bytes: u32) {
        *self = *self - bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::Seq;

    #[test]
    fn order_survives_the_wrap_at_2_to_the_32() {
        let (low, high) = (Seq(u32::MAX - 1), Seq(3));
        assert!(low.before(high) && high.after(low));
        assert_eq!(high.distance(low), 5);
        assert_eq!(low + 5, high);
        assert_eq!(high - 5, low);
        assert_eq!(low.max(high), high);
        assert_eq!(low.min(high), low);
    }

    #[test]
    fn within_excludes_the_right_edge() {
        assert!(Seq(u32::MAX).within(Seq(u32::MAX), 1));
        assert!(!Seq(0).within(Seq(u32::MAX), 1));
        assert!(!Seq(u32::MAX - 1).within(Seq(u32::MAX), 10));
        assert!(!Seq(7).within(Seq(7), 0));
    }
}
