//! What the clients saw: latencies and failures, for the current second and for each phase of the demo.

use std::time::Duration;

use anyhow::Result;
use hdrhistogram::Histogram;

/// Failures whose text is kept.
const KEPT: usize = 5;

/// Whether the flood was on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Calm,
    Flood,
}

/// Latencies and failures.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    /// Microseconds.
    latency: Histogram<u32>,
    failed: u64,
}

impl Tally {
    fn new() -> Result<Self> {
        // One microsecond to a minute, three significant digits.
        Ok(Self { latency: Histogram::new_with_bounds(1, 60_000_000, 3)?, failed: 0 })
    }

    pub(super) fn answered(&self) -> u64 {
        self.latency.len()
    }

    pub(super) fn failed(&self) -> u64 {
        self.failed
    }

    /// A quantile of the latencies; `None` without any.
    pub(super) fn quantile(&self, q: f64) -> Option<Duration> {
        (self.answered() > 0).then(|| Duration::from_micros(self.latency.value_at_quantile(q)))
    }

    fn add(&mut self, latency: Duration, ok: bool) {
        if ok {
            self.latency.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
        } else {
            self.failed += 1;
        }
    }

    fn clear(&mut self) {
        self.latency.reset();
        self.failed = 0;
    }
}

/// Everything recorded.
#[derive(Debug)]
pub(super) struct Record {
    phase: Phase,
    window: Tally,
    calm: Tally,
    flood: Tally,
    failures: Vec<String>,
}

impl Record {
    pub(super) fn new() -> Result<Self> {
        let tally = Tally::new()?;
        let (window, calm, flood) = (tally.clone(), tally.clone(), tally);
        Ok(Self { phase: Phase::Calm, window, calm, flood, failures: Vec::new() })
    }

    /// Adds one request that ended now.
    pub(super) fn add(&mut self, latency: Duration, outcome: Result<()>) {
        let ok = outcome.is_ok();
        if let Err(error) = outcome
            && self.failures.len() < KEPT
        {
            self.failures.push(format!("{error:#}"));
        }
        self.window.add(latency, ok);
        match self.phase {
            Phase::Calm => self.calm.add(latency, ok),
            Phase::Flood => self.flood.add(latency, ok),
        }
    }

    /// Requests that end from now on belong to `phase`.
    pub(super) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// What came in since the last call.
    pub(super) fn take_window(&mut self) -> Tally {
        let window = self.window.clone();
        self.window.clear();
        window
    }

    pub(super) fn of(&self, phase: Phase) -> &Tally {
        match phase {
            Phase::Calm => &self.calm,
            Phase::Flood => &self.flood,
        }
    }

    /// The first failures.
    pub(super) fn failures(&self) -> &[String] {
        &self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn requests_count_for_the_phase_they_end_in() -> Result<()> {
        let mut record = Record::new()?;
        record.add(Duration::from_millis(1), Ok(()));
        record.enter(Phase::Flood);
        record.add(Duration::from_millis(5), Ok(()));
        record.add(Duration::from_secs(10), Err(anyhow!("no answer")));
        assert_eq!((record.of(Phase::Calm).answered(), record.of(Phase::Calm).failed()), (1, 0));
        assert_eq!((record.of(Phase::Flood).answered(), record.of(Phase::Flood).failed()), (1, 1));
        assert_eq!(record.failures(), ["no answer"]);
        Ok(())
    }

    #[test]
    fn a_window_is_taken_once() -> Result<()> {
        let mut record = Record::new()?;
        record.add(Duration::from_millis(3), Ok(()));
        let window = record.take_window();
        assert_eq!(window.answered(), 1);
        assert!(window.quantile(0.5).unwrap().abs_diff(Duration::from_millis(3)) < Duration::from_micros(10));
        assert_eq!(record.take_window().quantile(0.5), None);
        Ok(())
    }
}
