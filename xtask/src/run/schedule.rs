//! When the demo floods: calm first, then flood and calm in turn.

use std::time::Duration;

use super::record::Phase;

/// The demo's timetable.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    calm: Duration,
    flood: Duration,
    end: Option<Duration>,
}

impl Schedule {
    /// Calm for 5 s, flood for 10 s, and so on; a demo shorter than that is divided 1 : 2 : 1.
    pub(super) fn new(seconds: Option<u64>) -> Self {
        let end = seconds.map(Duration::from_secs);
        let calm = end.map_or(Duration::MAX, |end| end / 4).min(Duration::from_secs(5));
        Self { calm, flood: calm * 2, end }
    }

    /// What should be going on; `None` when it is over.
    pub(super) fn at(&self, elapsed: Duration) -> Option<Phase> {
        if self.end.is_some_and(|end| elapsed >= end) {
            return None;
        }
        let cycle = (self.calm + self.flood).as_nanos().max(1);
        let within = elapsed.as_nanos() % cycle;
        Some(if within < self.calm.as_nanos() { Phase::Calm } else { Phase::Flood })
    }

    /// When it is over.
    pub(super) fn end(&self) -> Option<Duration> {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn phases(seconds: u64) -> Vec<Phase> {
        let schedule = Schedule::new(Some(seconds));
        (0..seconds).map_while(|second| schedule.at(Duration::from_secs(second))).collect()
    }

    #[test]
    fn twenty_seconds_are_calm_flood_and_calm_again() {
        use Phase::{Calm, Flood};
        assert_eq!(phases(20), [[Calm; 5], [Flood; 5], [Flood; 5], [Calm; 5]].concat());
        assert_eq!(phases(8), [Calm, Calm, Flood, Flood, Flood, Flood, Calm, Calm]);
    }

    #[test]
    fn an_endless_demo_does_not_end() {
        let schedule = Schedule::new(None);
        assert_eq!(schedule.at(Duration::from_secs(5_000_000)), Some(Phase::Flood));
        assert_eq!(Schedule::new(Some(20)).at(Duration::from_secs(20)), None);
    }
}
