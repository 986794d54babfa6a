//! `tcpguard top`: a live picture of the guard on a terminal. Here are its terminal and its clock; what is remembered is
//! `model`'s, and what it looks like `view`'s.

mod diagram;
mod model;
#[cfg(test)]
mod tests;
mod view;

use std::io::{self, IsTerminal as _, Write};
use std::time::{Duration, Instant};

use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::event::{self, Event, KeyEventKind};
use ratatui::crossterm::terminal::{BeginSynchronizedUpdate, EndSynchronizedUpdate};
use ratatui::crossterm::{execute, queue};
use ratatui::{DefaultTerminal, Frame};

use crate::control::client::Client;
use crate::control::protocol::{Flows, Reply, Request, Sort, Which};

use super::stats::interval;
use super::{Failure, ask, unexpected};
use model::{Action, Model, Page, Reading};

/// Listing flows walks all of them: so much more rarely than the rest is read.
const FLOWS_EVERY: Duration = Duration::from_secs(5);
/// Flows that are listed.
const FLOWS: u32 = 10;

#[derive(clap::Args)]
#[command(after_help = "\
Pages: 1 rates and drops, 2 flows by state, 3 services and who sends, 4 tunables. Tab goes to the next one, q ends.
On the page of tunables the arrow keys choose one, Enter edits it, and Enter again sets it, at once, as `tcpguard tune` does.
Colours are left out when NO_COLOR is set.

Examples:
  tcpguard top
  tcpguard top --interval 0.5")]
pub(super) struct Args {
    /// Seconds between two readings
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = interval)]
    interval: Duration,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    if !io::stdout().is_terminal() || !io::stdin().is_terminal() {
        let why = "top needs a terminal; `tcpguard stats --watch` does without one";
        return Err(Failure::BadInput(why.to_owned()));
    }
    let mut model = Model::default();
    // What is wrong from the beginning is better said than drawn.
    model.take(read(client)?);
    let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut terminal = Terminal(ratatui::init());
    live(args, client, &mut terminal.0, &mut model, colours)
}

/// Gives the terminal back however this ends.
struct Terminal(DefaultTerminal);

impl Drop for Terminal {
    fn drop(&mut self) {
        ratatui::restore();
    }
}

fn live(
    args: &Args,
    client: &Client,
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    colours: bool,
) -> Result<(), Failure> {
    let (mut next, mut listed) = (Instant::now() + args.interval, None::<Instant>);
    loop {
        draw_whole(terminal, |frame| view::draw(frame, model, colours))?;
        let wait = next.saturating_duration_since(Instant::now());
        if event::poll(wait)? {
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match model.key(key) {
                    Action::None => {}
                    Action::Quit => return Ok(()),
                    Action::Tune { name, value } => tune(client, model, name, value),
                },
                _ => {}
            }
        }
        if Instant::now() >= next {
            match read(client) {
                Ok(reading) => model.take(reading),
                Err(failure) => model.lose(failure.message()),
            }
            next = Instant::now() + args.interval;
        }
        let is_due = listed.is_none_or(|listed| listed.elapsed() >= FLOWS_EVERY);
        if model.page() == Page::Services && is_due {
            listed = Some(Instant::now());
            match flows(client) {
                Ok(flows) => model.take_flows(flows),
                Err(failure) => model.lose(failure.message()),
            }
        }
    }
}

/// Draws a frame that is not seen before it is whole, on terminals that know synchronized updates (DEC mode 2026); others
/// pass over a mode that they do not know.
fn draw_whole<W: Write>(
    terminal: &mut ratatui::Terminal<CrosstermBackend<W>>,
    draw: impl FnOnce(&mut Frame<'_>),
) -> io::Result<()> {
    queue!(terminal.backend_mut(), BeginSynchronizedUpdate)?;
    let drawn = terminal.draw(draw).map(drop);
    // Even then: the terminal would wait for the rest.
    execute!(terminal.backend_mut(), EndSynchronizedUpdate)?;
    drawn
}

fn read(client: &Client) -> Result<Reading, Failure> {
    let Reply::Status(status) = ask(client, &Request::Status {})? else { return Err(unexpected()) };
    let Reply::Stats(stats) = ask(client, &Request::Stats {})? else { return Err(unexpected()) };
    let tune = Request::Tune { service: None, name: None, value: None, save: false };
    let Reply::Tunables(rows) = ask(client, &tune)? else { return Err(unexpected()) };
    Ok(Reading { status, stats, tunables: rows.tunables })
}

fn flows(client: &Client) -> Result<Flows, Failure> {
    let request = Request::Flows { which: Which::default(), sort: Some(Sort::In), limit: FLOWS };
    match ask(client, &request)? {
        Reply::Flows(flows) => Ok(flows),
        _ => Err(unexpected()),
    }
}

fn tune(client: &Client, model: &mut Model, name: String, value: String) {
    let request = Request::Tune { service: None, name: Some(name), value: Some(value), save: false };
    match ask(client, &request) {
        Ok(Reply::Tuned(tuned)) => model.say(super::tune::change(&tuned)),
        Ok(_) => model.say(unexpected().message()),
        Err(failure) => model.say(failure.message()),
    }
    // The list shows what holds now.
    if let Ok(reading) = read(client) {
        model.take(reading);
    }
}
