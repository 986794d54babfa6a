//! The demo's numbers in words: one second of it, and the verdict at its end.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, bail};

use super::daemon::Numbers;
use super::record::{Phase, Tally};
use crate::lab::{Arrivals, FloodCounters, Received};

/// One reading: what happened since the one before.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) phase: Phase,
    /// Since the demo began.
    pub(super) at: Duration,
    pub(super) window: Option<Tally>,
    /// Answered requests a second.
    pub(super) requests: u64,
    pub(super) numbers: Numbers,
    /// The same as `numbers`, a second.
    pub(super) rates: Numbers,
}

impl Default for Sample {
    fn default() -> Self {
        let (numbers, rates) = Default::default();
        Self { phase: Phase::Calm, at: Duration::ZERO, window: None, requests: 0, numbers, rates }
    }
}

impl Sample {
    pub(super) fn new(
        phase: Phase,
        at: Duration,
        over: Duration,
        numbers: Numbers,
        window: Tally,
        before: &Self,
    ) -> Self {
        let rate = |now: u64, then: u64| per_second(now.saturating_sub(then), over);
        let old = &before.numbers;
        let rates = Numbers {
            syns: rate(numbers.syns, old.syns),
            cookies: rate(numbers.cookies, old.cookies),
            remembered: rate(numbers.remembered, old.remembered),
            acks_accepted: rate(numbers.acks_accepted, old.acks_accepted),
            acks_refused: rate(numbers.acks_refused, old.acks_refused),
            states: Vec::new(),
        };
        let requests = per_second(window.answered(), over);
        Self { phase, at, window: Some(window), requests, numbers, rates }
    }

    /// The reading as a line of text.
    pub(super) fn line(&self) -> String {
        let quantile = |q| millis(self.window.as_ref().and_then(|window| window.quantile(q)));
        let failed = self.window.as_ref().map_or(0, Tally::failed);
        let flood = if self.phase == Phase::Flood { "FLOOD" } else { "calm " };
        let Numbers { syns, cookies, acks_accepted, acks_refused, .. } = &self.rates;
        let rates = [syns, cookies, acks_accepted, acks_refused].map(|&rate| short(rate));
        format!(
            "{:>4} s  {flood}  {:>6} req/s  p50 {}  p99 {}  failed {failed}  SYNs {}/s  cookies {}/s  ACKs +{}/s -{}/s  {}",
            self.at.as_secs(),
            self.requests,
            quantile(0.5),
            quantile(0.99),
            rates[0],
            rates[1],
            rates[2],
            rates[3],
            states(&self.numbers),
        )
    }
}

/// How it went.
pub(super) struct Verdict {
    pub(super) calm: Tally,
    pub(super) flood: Tally,
    /// Time spent calm and under flood.
    pub(super) spent: [Duration; 2],
    pub(super) numbers: Numbers,
    pub(super) flooded: FloodCounters,
    pub(super) arrivals: Arrivals,
    pub(super) failures: Vec<String>,
}

impl Verdict {
    /// The table at the end.
    pub(super) fn table(&self) -> String {
        let mut text = String::new();
        let mut row = |name: &str, calm: String, flood: String| {
            let _ = writeln!(text, "{name:<24}{calm:>14}{flood:>14}");
        };
        let [calm, flood] = [&self.calm, &self.flood];
        row("", "calm".to_owned(), "under flood".to_owned());
        row("requests answered", calm.answered().to_string(), flood.answered().to_string());
        row("requests/s", self.rate(Phase::Calm).to_string(), self.rate(Phase::Flood).to_string());
        for (name, q) in [("latency p50", 0.5), ("latency p99", 0.99), ("latency max", 1.0)] {
            row(name, millis(calm.quantile(q)), millis(flood.quantile(q)));
        }
        row("requests failed", calm.failed().to_string(), flood.failed().to_string());
        text.push('\n');
        for (name, count) in self.counts() {
            let _ = writeln!(text, "{name:<38}{count:>14}");
        }
        text
    }

    fn counts(&self) -> [(&'static str, u64); 9] {
        [
            ("spoofed SYNs on the wire", self.flooded.delivered()),
            ("  refused by the receiving ring", self.flooded.refused),
            ("SYNs that reached the guard", self.numbers.syns),
            ("  answered with a cookie", self.numbers.cookies),
            ("  remembered and answered", self.numbers.remembered),
            ("SYN-ACKs to spoofed addresses, right", self.arrivals.of(Received::SpoofedSynAck)),
            ("  wrong", self.arrivals.wrong()),
            ("ACKs accepted", self.numbers.acks_accepted),
            ("ACKs refused", self.numbers.acks_refused),
        ]
    }

    fn rate(&self, phase: Phase) -> u64 {
        let tally = if phase == Phase::Calm { &self.calm } else { &self.flood };
        per_second(tally.answered(), self.spent[phase as usize])
    }

    /// An error with the reason unless everything went well.
    pub(super) fn judge(&self) -> Result<()> {
        let failed = self.calm.failed() + self.flood.failed();
        if failed > 0 {
            bail!("{failed} client requests failed; the first: {}", self.failures.join("; "));
        }
        if self.calm.answered() + self.flood.answered() == 0 {
            bail!("no client request was answered");
        }
        if self.arrivals.wrong() > 0 {
            bail!("{} SYN-ACKs were wrong in checksum, acknowledgement or options", self.arrivals.wrong());
        }
        let (arrived, right) = (self.flooded.delivered(), self.arrivals.of(Received::SpoofedSynAck));
        if self.flooded.generated > 0 && arrived == 0 {
            bail!("the flood did not reach the guard: nothing was proven");
        }
        // A few answers may be lost on their way back to the verifier.
        if right < arrived - arrived / 10 {
            bail!("of {arrived} spoofed SYNs only {right} were answered");
        }
        Ok(())
    }
}

/// A duration in milliseconds, in six columns.
pub(super) fn millis(duration: Option<Duration>) -> String {
    match duration.map(|duration| duration.as_secs_f64() * 1e3) {
        None => "     -".to_owned(),
        Some(ms) if ms < 100.0 => format!("{ms:>4.1} ms"),
        Some(ms) => format!("{ms:>4.0} ms"),
    }
}

/// A count in at most six characters: three digits and a prefix.
pub(super) fn short(count: u64) -> String {
    let value = count as f64;
    match count {
        0..1_000 => count.to_string(),
        1_000..10_000 => format!("{:.2} k", value / 1e3),
        10_000..100_000 => format!("{:.1} k", value / 1e3),
        100_000..1_000_000 => format!("{:.0} k", value / 1e3),
        1_000_000..10_000_000 => format!("{:.2} M", value / 1e6),
        10_000_000..100_000_000 => format!("{:.1} M", value / 1e6),
        _ => format!("{:.0} M", value / 1e6),
    }
}

/// Flows by state, in one line.
pub(super) fn states(numbers: &Numbers) -> String {
    let states: Vec<_> = numbers.states.iter().map(|(name, count)| format!("{name} {count}")).collect();
    if states.is_empty() { "no flows".to_owned() } else { states.join("  ") }
}

fn per_second(count: u64, over: Duration) -> u64 {
    if over.is_zero() { 0 } else { (count as f64 / over.as_secs_f64()).round() as u64 }
}

#[cfg(test)]
mod tests {
    use super::super::record::Record;
    use super::*;
    use anyhow::anyhow;

    fn verdict(failures: u32) -> Verdict {
        let mut record = Record::new().unwrap();
        record.add(Duration::from_millis(1), Ok(()));
        record.enter(Phase::Flood);
        for _ in 0..failures {
            record.add(Duration::from_secs(1), Err(anyhow!("connection reset")));
        }
        Verdict {
            calm: record.of(Phase::Calm).clone(),
            flood: record.of(Phase::Flood).clone(),
            spent: [Duration::from_secs(1); 2],
            numbers: Numbers::default(),
            flooded: FloodCounters::default(),
            arrivals: Arrivals::default(),
            failures: record.failures().to_vec(),
        }
    }

    #[test]
    fn one_failed_request_fails_the_demo_and_is_named() {
        assert!(verdict(0).judge().is_ok());
        let error = verdict(1).judge().unwrap_err().to_string();
        assert_eq!(error, "1 client requests failed; the first: connection reset");
    }

    #[test]
    fn a_flood_that_did_not_arrive_or_was_not_answered_fails_the_demo() {
        let flooded = |generated, refused| FloodCounters { generated, refused, ..FloodCounters::default() };
        let error = |flooded| Verdict { flooded, ..verdict(0) }.judge().unwrap_err().to_string();
        assert_eq!(error(flooded(10, 10)), "the flood did not reach the guard: nothing was proven");
        assert_eq!(error(flooded(10, 0)), "of 10 spoofed SYNs only 0 were answered");
    }

    #[test]
    fn the_table_fits_eighty_columns() {
        assert!(verdict(2).table().lines().all(|line| line.chars().count() <= 80));
    }

    #[test]
    fn counts_keep_three_digits() {
        let pairs = [(0, "0"), (999, "999"), (1_234, "1.23 k"), (99_949, "99.9 k"), (1_995_000, "2.00 M")];
        for (count, text) in pairs {
            assert_eq!(short(count), text);
        }
    }

    #[test]
    fn rates_are_differences_over_the_time_between() {
        let then = Sample { numbers: Numbers { syns: 1_000, ..Numbers::default() }, ..Sample::default() };
        let now = Numbers { syns: 4_000, ..Numbers::default() };
        let window = Record::new().unwrap().take_window();
        let second = Duration::from_millis(1_500);
        assert_eq!(Sample::new(Phase::Flood, second, second, now, window, &then).rates.syns, 2_000);
    }
}
