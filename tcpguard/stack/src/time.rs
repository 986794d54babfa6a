//! Points in time as the caller's clock gives them. The stack has no clock of its own.

use core::ops::{Add, AddAssign, Sub};
use core::time::Duration;

/// A point in time: nanoseconds of `CLOCK_MONOTONIC` (XDP stamps cookies from the same clock), or of whatever
/// clock a test runs on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Instant(pub u64);

impl Instant {
    /// Later than everything: a deadline that is not set.
    pub const NEVER: Self = Self(u64::MAX);

    /// How long after `earlier`; zero when it is not.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Whole milliseconds.
    pub(crate) fn millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Whether this is an actual point in time rather than [`Self::NEVER`].
    pub(crate) fn is_set(self) -> bool {
        self != Self::NEVER
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// Saturates: an absurd timeout is a deadline never reached.
    fn add(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
    }
}

impl AddAssign<Duration> for Instant {
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub for Instant {
    type Output = Duration;

    fn sub(self, earlier: Self) -> Duration {
        self.since(earlier)
    }
}
