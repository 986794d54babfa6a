//! What all suites do with what they measured: medians, and JSON.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::Serialize;

use super::machine::{self, Machine};

/// What a suite measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report<Row> {
    /// Which suite.
    pub suite: &'static str,
    /// Of the rows' layout.
    pub version: u32,
    /// When, UTC (RFC 3339).
    pub measured: String,
    /// By which command.
    pub command: String,
    /// Where it was measured.
    pub machine: Machine,
    /// In the order of the table.
    pub rows: Vec<Row>,
}

impl<Row> Report<Row> {
    /// Of this machine.
    pub(super) fn new(suite: &'static str, rows: Vec<Row>) -> Self {
        Self {
            suite,
            version: 1,
            measured: machine::date(),
            command: machine::command(),
            machine: Machine::here(),
            rows,
        }
    }
}

/// What a row's figure came to in every round, in the order of the rounds, so that rows of one suite can be compared inside a
/// round by whoever reads them. Not a number (`null`) where a round does not count.
pub(super) type Samples = Vec<f64>;

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

/// Writes a report, or several, to `file`.
pub(super) fn write_json(file: &Path, report: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(report)?;
    std::fs::write(file, text + "\n").with_context(|| format!("writing {}", file.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_or_half_way_between_the_two_in_the_middle() {
        assert_eq!(median(&sorted([4.0, 1.0, 9.0].into_iter())), 4.0);
        assert_eq!(median(&[1.0, 2.0, 4.0, 9.0]), 3.0);
        assert!(median(&[]).is_nan());
    }
}
