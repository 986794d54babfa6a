//! What all suites do with what they measured: medians, and JSON.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Error, Result};
use serde::Serialize;

use super::machine::{self, Machine};

/// What a suite measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report<Row> {
    /// Which suite.
    pub suite: String,
    /// Of the rows' layout.
    pub version: u32,
    /// When, UTC (RFC 3339).
    pub measured: String,
    /// By which command.
    pub command: String,
    /// Where it was measured.
    pub machine: Machine,
    /// Of programs that were given: by their names, the [tags](machine::tag) of what was measured.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub peers: BTreeMap<String, String>,
    /// Why there are no rows, of a suite that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
    /// In the order of the table.
    pub rows: Vec<Row>,
}

impl<Row> Report<Row> {
    /// Of this machine.
    pub(super) fn new(suite: &str, rows: Vec<Row>) -> Self {
        Self {
            suite: suite.to_owned(),
            version: 1,
            measured: machine::date(),
            command: machine::command(),
            machine: Machine::here(),
            peers: BTreeMap::new(),
            failed: None,
            rows,
        }
    }
}

impl Report<()> {
    /// Of a suite that could not be measured.
    pub(super) fn failed(suite: &str, why: &Error) -> Self {
        Self { failed: Some(format!("{why:#}")), ..Self::new(suite, Vec::new()) }
    }
}

/// What a row's figure came to in every round, in the order of the rounds, so that rows of one suite can be compared inside a
/// round by whoever reads them. Not a number (`null`) where a round does not count.
pub(super) type Samples = Vec<f64>;

/// What each of so many contestants does in a round, in their own order. Each round starts with the next of them: who comes first
/// meets a machine that is colder or less tired, and it must not always be the same.
pub(super) fn by_turns<T>(
    contestants: usize,
    round: usize,
    run: impl FnMut(usize) -> Result<T>,
) -> Result<Vec<T>> {
    let first = round.checked_rem(contestants).unwrap_or_default();
    let mut done: Vec<T> = (first..contestants).chain(0..first).map(run).collect::<Result<_>>()?;
    done.rotate_right(first);
    Ok(done)
}

/// The values in order.
pub(super) fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values
}

/// Of sorted values; not a number if there are none.
pub(super) fn median(values: &[f64]) -> f64 {
    let middle = |at: usize| values.get(at).copied().unwrap_or(f64::NAN);
    let half = values.len() / 2;
    if values.len().is_multiple_of(2) {
        (middle(half.wrapping_sub(1)) + middle(half)) / 2.0
    } else {
        middle(half)
    }
}

/// The first or last of sorted values; not a number if there are none.
pub(super) fn edge(value: Option<&f64>) -> f64 {
    value.copied().unwrap_or(f64::NAN)
}

/// Writes a report, or several, to `file`, whole or not at all.
pub(super) fn write_json(file: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    let part = file.with_added_extension("part");
    std::fs::write(&part, text + "\n").with_context(|| format!("writing {}", part.display()))?;
    std::fs::rename(&part, file).with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_starts_with_the_next_and_ends_in_the_same_order() {
        let mut ran = Vec::new();
        let mut round = |round| {
            by_turns(3, round, |who| {
                ran.push(who);
                Ok(who * 10)
            })
        };
        assert!(
            [0, 1, 2, 3].map(&mut round).into_iter().all(|done| done.is_ok_and(|done| done == [0, 10, 20]))
        );
        assert_eq!(ran, [0, 1, 2, 1, 2, 0, 2, 0, 1, 0, 1, 2]);
        assert!(by_turns(0, 5, |_| Ok(())).is_ok_and(|done| done.is_empty()));
        assert!(by_turns(2, 1, |who| if who == 1 { anyhow::bail!("it fails") } else { Ok(()) }).is_err());
    }

    #[test]
    fn the_median_is_the_middle_or_half_way_between_the_two_in_the_middle() {
        assert_eq!(median(&sorted([4.0, 1.0, 9.0].into_iter())), 4.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
