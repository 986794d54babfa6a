//! Keeps a warning that the network can cause from being written more than now and then. It does not write it.

use std::time::{Duration, Instant};

/// Lets one of many like events through in each interval, and counts the others.
#[derive(Debug)]
pub struct Throttle {
    interval: Duration,
    last: Option<Instant>,
    withheld: u64,
}

impl Throttle {
    /// Lets the first event through.
    pub fn new(interval: Duration) -> Self {
        Self { interval, last: None, withheld: 0 }
    }

    /// An event happens: `Some` when it may be written, with how many there were since the last one written, this
    /// one included.
    pub fn event(&mut self, now: Instant) -> Option<u64> {
        self.withheld += 1;
        if self.last.is_some_and(|last| now.duration_since(last) < self.interval) {
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.withheld))
    }
}

#[cfg(test)]
mod tests {
    use super::Throttle;
    use std::time::{Duration, Instant};

    #[test]
    fn one_event_an_interval_speaks_for_all() {
        let (mut throttle, start) = (Throttle::new(Duration::from_secs(10)), Instant::now());
        assert_eq!(throttle.event(start), Some(1));
        for second in 1..10 {
            assert_eq!(throttle.event(start + Duration::from_secs(second)), None);
        }
        assert_eq!(throttle.event(start + Duration::from_secs(10)), Some(10));
        assert_eq!(throttle.event(start + Duration::from_secs(30)), Some(1));
    }
}
