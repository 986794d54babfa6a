//! How verbs write: aligned tables for people, versioned JSON for programs. No colour.

use std::borrow::Cow;
use std::io::{self, IsTerminal as _, Write};
use std::time::Duration;

use ratatui::crossterm::terminal;
use serde::Serialize;

use crate::config::duration;
use crate::config::shown::{brief, printable};
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

    /// Adds a row. One cell for each column; what a terminal would obey is escaped.
    pub(super) fn row(&mut self, cells: Vec<String>) {
        let cells = cells.into_iter().map(|cell| match printable(&cell) {
            Cow::Borrowed(_) => cell,
            Cow::Owned(escaped) => escaped,
        });
        self.rows.push(cells.collect());
    }

    /// Whether there is nothing under the header.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        self.write_columns(out, &self.widths(), 0..self.align.len())
    }

    /// Writes it for a terminal of so many columns, if it is one: texts in the last column are broken between words, and
    /// numbers that find no room come in a block of their own, beside the first column again.
    pub(super) fn write_within(&self, out: &mut impl Write, columns: Option<usize>) -> io::Result<()> {
        let (widths, last) = (self.widths(), self.align.len() - 1);
        let Some(columns) = columns.filter(|&columns| total(&widths) > columns) else {
            return self.write(out);
        };
        let indent = total(&widths[..last]) + GAP.len();
        if let (Align::Left, true) = (self.align[last], indent + LEAST_TEXT <= columns) {
            return self.broken(last, columns - indent).write(out);
        }
        let mut start = 1;
        while start <= last {
            let fits = |end: &usize| widths[0] + GAP.len() + total(&widths[start..*end]) <= columns;
            let end = (start + 1..=last + 1).take_while(fits).last().unwrap_or(start + 1);
            if start > 1 {
                writeln!(out)?;
            }
            self.write_columns(out, &widths, std::iter::once(0).chain(start..end))?;
            start = end;
        }
        Ok(())
    }

    /// How wide each column is.
    fn widths(&self) -> Vec<usize> {
        let mut widths = vec![0; self.align.len()];
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.len());
            }
        }
        widths
    }

    /// The same with the texts of one column in lines of `room` bytes at most, as far as words allow.
    fn broken(&self, column: usize, room: usize) -> Self {
        let mut rows = Vec::new();
        for row in &self.rows {
            let mut lines = vec![String::new()];
            for word in row[column].split(' ') {
                match lines.last_mut() {
                    Some(line) if line.is_empty() => line.push_str(word),
                    Some(line) if line.len() + 1 + word.len() <= room => {
                        line.push(' ');
                        line.push_str(word);
                    }
                    _ => lines.push(word.to_owned()),
                }
            }
            for (at, line) in lines.into_iter().enumerate() {
                let mut cells = if at == 0 { row.clone() } else { vec![String::new(); row.len()] };
                cells[column] = line;
                rows.push(cells);
            }
        }
        Self { align: self.align.clone(), rows }
    }

    fn write_columns(
        &self,
        out: &mut impl Write,
        widths: &[usize],
        columns: impl Iterator<Item = usize> + Clone,
    ) -> io::Result<()> {
        for row in &self.rows {
            let cells = columns.clone().map(|at| match (&row[at], widths[at], self.align[at]) {
                (cell, width, Align::Left) => format!("{cell:<width$}"),
                (cell, width, Align::Right) => format!("{cell:>width$}"),
            });
            writeln!(out, "{}", cells.collect::<Vec<_>>().join(GAP).trim_end())?;
        }
        Ok(())
    }
}

/// Between two columns.
const GAP: &str = "  ";
/// A column of texts is never made narrower than this.
const LEAST_TEXT: usize = 24;

/// What columns take, the gaps between them included.
fn total(widths: &[usize]) -> usize {
    widths.iter().sum::<usize>() + GAP.len() * widths.len().saturating_sub(1)
}

/// How many columns the terminal has that standard output goes to; none if it goes elsewhere.
pub(super) fn terminal_columns() -> Option<usize> {
    let columns = io::stdout().is_terminal().then(terminal::size)?.ok()?.0;
    (columns > 0).then_some(columns.into())
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

/// The message without its line breaks, so that a log holds one line for it, what a terminal would obey escaped, and not its
/// whole length if it quotes something long.
pub(super) fn one_line(message: &str) -> String {
    let line = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    brief(&printable(&line))
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
    fn nothing_in_a_table_or_a_message_is_obeyed_by_a_terminal() {
        let mut table = Table::new(&[("PATH", Align::Left)]);
        table.row(vec!["unix:/run/\u{1b}]0;title\u{7}".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "PATH\nunix:/run/\\u{1b}]0;title\\u{7}\n");
        assert_eq!(one_line("no `\u{1b}[2J`\n  there"), "no `\\u{1b}[2J`; there");
        assert!(one_line(&"x".repeat(1 << 20)).len() < 1000);
    }

    fn within(table: &Table, columns: usize) -> String {
        let mut out = Vec::new();
        table.write_within(&mut out, Some(columns)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn texts_are_broken_between_words_where_a_terminal_ends() {
        let mut table = Table::new(&[("NAME", Align::Left), ("MEANING", Align::Left)]);
        table.row(vec!["a".into(), "some words that take more room than there is".into()]);
        table.row(vec!["b".into(), "few".into()]);
        assert_eq!(
            within(&table, 32),
            "NAME  MEANING\na     some words that take more\n      room than there is\nb     few\n"
        );
        assert_eq!(within(&table, 80).lines().count(), 3);
    }

    #[test]
    fn numbers_that_find_no_room_stand_below_beside_the_first_column() {
        let names = ["SERVICE", "ONE", "TWO", "THREE"];
        let mut table = Table::new(&names.map(|name| (name, Align::Right)));
        table.row(vec!["192.0.2.1:80".into(), "1".into(), "2".into(), "3".into()]);
        assert_eq!(
            within(&table, 24),
            "     SERVICE  ONE  TWO\n192.0.2.1:80    1    2\n\n     SERVICE  THREE\n192.0.2.1:80      3\n"
        );
        assert_eq!(within(&table, 1).lines().filter(|line| !line.is_empty()).count(), 6, "each by itself");
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
