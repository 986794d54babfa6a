//! What one sees while the demo runs: a live view on a terminal, a line a second elsewhere.

use std::collections::VecDeque;
use std::io::IsTerminal as _;
use std::time::Duration;

use anyhow::Result;
use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize as _};
use ratatui::text::Line;
use ratatui::widgets::{Block, Row, Sparkline, Table};
use ratatui::{Frame, symbols};

use super::record::{Phase, Tally};
use super::report::{Sample, millis, short, states};

/// Readings kept for the plots: as many as the widest terminal shows.
const KEPT: usize = 300;

/// Either way of showing.
pub(super) enum View {
    Terminal(Box<Live>),
    Plain,
}

/// The live view's terminal and memory.
pub(super) struct Live {
    terminal: DefaultTerminal,
    end: Option<Duration>,
    history: VecDeque<Sample>,
    totals: Option<[Tally; 2]>,
}

impl View {
    /// The live view on a terminal, unless `plain`.
    pub(super) fn new(plain: bool, end: Option<Duration>) -> Self {
        if plain || !std::io::stdout().is_terminal() || !std::io::stdin().is_terminal() {
            return Self::Plain;
        }
        let live = Live { terminal: ratatui::init(), end, history: VecDeque::new(), totals: None };
        Self::Terminal(Box::new(live))
    }

    /// Waits a moment, and says whether somebody asked to end.
    pub(super) fn wants_to_quit(&mut self, wait: Duration) -> Result<bool> {
        let Self::Terminal(live) = self else {
            std::thread::sleep(wait);
            return Ok(false);
        };
        if !event::poll(wait)? {
            return Ok(false);
        }
        match event::read()? {
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                let control = key.modifiers.contains(KeyModifiers::CONTROL);
                Ok(matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)
                    || control && key.code == KeyCode::Char('c'))
            }
            Event::Resize(..) => live.draw().map(|()| false),
            _ => Ok(false),
        }
    }

    /// Shows one more reading.
    pub(super) fn show(&mut self, sample: &Sample, totals: [Tally; 2]) -> Result<()> {
        let Self::Terminal(live) = self else {
            println!("{}", sample.line());
            return Ok(());
        };
        if live.history.len() == KEPT {
            live.history.pop_front();
        }
        live.history.push_back(sample.clone());
        live.totals = Some(totals);
        live.draw()
    }
}

impl Live {
    fn draw(&mut self) -> Result<()> {
        let Self { terminal, end, history, totals } = self;
        if let (Some(last), Some(totals)) = (history.back(), totals) {
            terminal.draw(|frame| draw(frame, history, last, totals, *end))?;
        }
        Ok(())
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn draw(
    frame: &mut Frame<'_>,
    history: &VecDeque<Sample>,
    last: &Sample,
    totals: &[Tally; 2],
    end: Option<Duration>,
) {
    let rows = Layout::vertical([
        Constraint::Length(1),
        Constraint::Min(3),
        Constraint::Min(3),
        Constraint::Min(3),
        Constraint::Length(7),
        Constraint::Length(6),
        Constraint::Length(1),
    ]);
    let [title, requests, latency, syns, clients, guard, flows] = rows.areas(frame.area());
    frame.render_widget(headline(last, end), title);
    let p99 = |sample: &Sample| sample.window.as_ref().and_then(|window| window.quantile(0.99));
    plot(frame, requests, "requests/s", short(last.requests), history, |sample| sample.requests);
    let in_micros = |sample: &Sample| p99(sample).map_or(0, |p99| p99.as_micros() as u64);
    plot(frame, latency, "p99", millis(p99(last)).trim().to_owned(), history, in_micros);
    plot(frame, syns, "SYNs/s", short(last.rates.syns), history, |sample| sample.rates.syns);
    frame.render_widget(client_table(last, totals), clients);
    frame.render_widget(guard_table(last), guard);
    frame.render_widget(Line::from(states(&last.numbers)).dim(), flows);
}

fn headline(last: &Sample, end: Option<Duration>) -> Line<'static> {
    let at = last.at.as_secs();
    let time = end.map_or_else(|| format!(" {at} s "), |end| format!(" {at}/{} s ", end.as_secs()));
    let flood = match last.phase {
        Phase::Flood => " SYN FLOOD ON ".on_red().white().bold(),
        Phase::Calm => " calm ".on_green().black().bold(),
    };
    Line::from(vec![" tcpguard ".bold(), flood, time.into(), " q ends".dim()])
}

/// One value over time, newest at the right; red where the flood was on.
fn plot(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &str,
    now: String,
    history: &VecDeque<Sample>,
    value: impl Fn(&Sample) -> u64,
) {
    let block = Block::new().title(Line::from(vec![format!("{name} ").into(), now.bold()]));
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let shown = history.iter().skip(history.len().saturating_sub(inner.width as usize));
    let bars = shown.map(|sample| {
        let color = if sample.phase == Phase::Flood { Color::Red } else { Color::Green };
        ratatui::widgets::SparklineBar::from(value(sample)).style(Some(Style::new().fg(color)))
    });
    let bars: Vec<_> = bars.collect();
    frame.render_widget(Sparkline::default().data(bars).bar_set(symbols::bar::NINE_LEVELS), inner);
}

fn client_table<'a>(last: &Sample, totals: &[Tally; 2]) -> Table<'a> {
    let columns = [last.window.as_ref(), Some(&totals[0]), Some(&totals[1])];
    let row = |name: &'static str, text: &dyn Fn(&Tally) -> String| {
        let cells = columns.map(|tally| tally.map_or_else(|| "-".to_owned(), text));
        Row::new([name.to_owned()].into_iter().chain(cells))
    };
    let rows = [
        row("answered", &|tally| tally.answered().to_string()),
        row("p50", &|tally| millis(tally.quantile(0.5))),
        row("p99", &|tally| millis(tally.quantile(0.99))),
        row("failed", &|tally| tally.failed().to_string()),
    ];
    Table::new(rows, [Constraint::Length(16); 4])
        .header(Row::new(["clients", "last second", "calm", "under flood"]).bold())
        .block(Block::new().title(" "))
}

fn guard_table<'a>(last: &Sample) -> Table<'a> {
    let (rates, totals) = (&last.rates, &last.numbers);
    let row = |name: &'static str, rate: u64, total: u64| {
        Row::new([name.to_owned(), format!("{}/s", short(rate)), short(total)])
    };
    let rows = [
        row("SYNs in", rates.syns, totals.syns),
        row("cookies out", rates.cookies, totals.cookies),
        row("ACKs accepted", rates.acks_accepted, totals.acks_accepted),
        row("ACKs refused", rates.acks_refused, totals.acks_refused),
    ];
    Table::new(rows, [Constraint::Length(16); 3]).header(Row::new(["guard", "now", "total"]).bold())
}

#[cfg(test)]
mod tests {
    use super::super::daemon::Numbers;
    use super::super::record::Record;
    use super::*;
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    #[test]
    fn everything_is_on_a_terminal_of_eighty_by_twenty_four() {
        let mut record = Record::new().unwrap();
        record.add(Duration::from_millis(2), Ok(()));
        let states = ["ESTABLISHED", "TIME_WAIT"].map(|name| (name.to_owned(), 12)).to_vec();
        let numbers = Numbers { syns: 1_000_000, cookies: 1_000_000, states, ..Numbers::default() };
        let second = Duration::from_secs(1);
        let sample =
            Sample::new(Phase::Flood, second, second, numbers, record.take_window(), &Sample::default());
        let totals = [Phase::Calm, Phase::Flood].map(|phase| record.of(phase).clone());
        let history: VecDeque<_> = std::iter::repeat_n(sample.clone(), 100).collect();
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        let end = Some(Duration::from_secs(20));
        terminal.draw(|frame| draw(frame, &history, &sample, &totals, end)).unwrap();
        let screen = terminal.backend().to_string();
        for text in [
            "SYN FLOOD ON",
            "1/20 s",
            "requests/s",
            "p50",
            "p99",
            "under flood",
            "failed",
            "SYNs in",
            "1.00 M",
            "cookies out",
            "ACKs accepted",
            "ACKs refused",
            "ESTABLISHED 12  TIME_WAIT 12",
            "█",
        ] {
            assert!(screen.contains(text), "{text} is missing in\n{screen}");
        }
    }
}
