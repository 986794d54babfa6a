//! How verbs write: aligned tables for people, versioned JSON for programs. No colour.

use std::io::{self, Write};
use std::time::Duration;

use serde::Serialize;

use crate::config::duration;
use crate::control::protocol::Versioned;

/// How a column is aligned.
#[derive(Clone, Copy)]
pub(super) enum Align {
    Left,
    Right,
}

/// Rows under a header, as wide as they need to be.
pub(super) struct Table {
    align: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(columns: &[(&str, Align)]) -> Self {
        let header = columns.iter().map(|(name, _)| (*name).to_owned()).collect();
        Self { align: columns.iter().map(|&(_, align)| align).collect(), rows: vec![header] }
    }

    /// Adds a row. One cell for each column.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing under the header.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let mut widths = vec![0; self.align.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.len());
            }
        }
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, &width), align) in row.iter().zip(&widths).zip(&self.align) {
                let gap = if line.is_empty() { "" } else { "  " };
                line += &match align {
                    Align::Left => format!("{gap}{cell:<width$}"),
                    Align::Right => format!("{gap}{cell:>width$}"),
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// One line of JSON: the version beside the content.
pub(super) fn write_json(out: &mut impl Write, content: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Versioned::new(content))?;
    writeln!(out)?;
    out.flush()
}

/// An age or a timer: exact below a second, whole seconds above.
pub(super) fn age(ms: u64) -> String {
    let shown = if ms < 1000 { ms } else { ms - ms % 1000 };
    duration::format(Duration::from_millis(shown))
}

/// The time of the day in UTC, to microseconds, from nanoseconds since 1970.
pub(super) fn time_of_day(time_ns: u64) -> String {
    let (seconds, micros) = (time_ns / 1_000_000_000, time_ns / 1000 % 1_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    format!("{hours:02}:{minutes:02}:{:02}.{micros:06}", seconds % 60)
}

/// How often a second something happened, between two readings.
pub(super) fn rate(before: u64, now: u64, elapsed_ms: u64) -> u64 {
    let count = u128::from(now.saturating_sub(before));
    u64::try_from(count * 1000 / u128::from(elapsed_ms.max(1))).unwrap_or(u64::MAX)
}

/// The message without its line breaks, so that a log holds one line for it.
pub(super) fn one_line(message: &str) -> String {
    message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_and_leaves_no_trailing_blanks() {
        let mut table = Table::new(&[("NAME", Align::Left), ("N", Align::Right), ("END", Align::Left)]);
        assert!(table.is_empty());
        table.row(vec!["a".into(), "1000".into(), "x".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "NAME     N  END\na     1000  x\n");
    }

    #[test]
    fn rates_survive_a_restart_and_a_clock_that_stands() {
        assert_eq!(rate(100, 400, 500), 600);
        assert_eq!(rate(400, 100, 500), 0);
        assert_eq!(rate(0, 5, 0), 5000);
        assert_eq!(rate(0, u64::MAX, 1), u64::MAX);
    }

    #[test]
    fn ages_are_short() {
        assert_eq!(age(250), "250ms");
        assert_eq!(age(61_900), "1m1s");
    }
}
