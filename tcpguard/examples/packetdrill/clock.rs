//! Virtual time. It stands still but for being told to move, so that a script's minutes pass in microseconds and every
//! run is the same.

use std::time::Duration;

use tcpguard::stack::Instant;

/// When it starts: long after zero, as a machine that has been up for a while.
const START: Instant = Instant(1_000_000_000_000);

/// The clock of one run.
#[derive(Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// What every look at the clock costs: packetdrill spins until it shows a certain time.
    pub(crate) const TICK: Duration = Duration::from_micros(1);

    pub(crate) fn new() -> Self {
        Self(START)
    }

    pub(crate) fn now(&self) -> Instant {
        self.0
    }

    /// Microseconds, as `gettimeofday` tells them and packets are stamped with.
    pub(crate) fn micros(&self) -> i64 {
        (self.0.0 / 1000) as i64
    }

    /// It is `time` now, or later already.
    pub(crate) fn advance_to(&mut self, time: Instant) {
        self.0 = self.0.max(time);
    }
}
