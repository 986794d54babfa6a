//! `tcpguard top`: a live picture of the guard on a terminal. Here are its terminal and its clock; what is remembered is
//! `model`'s, what it looks like `view`'s, and no key waits for the daemon, of which `asker` takes care.

mod asker;
mod diagram;
mod model;
mod room;
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
use crate::control::protocol::{Flows, Reply, Request, Sort, Tuned, Which};
use crate::control::stand_back;

use super::stats::interval;
use super::{Failure, ask, unexpected};
use asker::Asker;
use model::{Action, Model, Page, Reading};

/// Listing flows walks all of them: so much more rarely than the rest is read.
const FLOWS_EVERY: Duration = Duration::from_secs(5);
/// How often it is looked whether the daemon has answered, while it is waited for.
const GLANCE: Duration = Duration::from_millis(50);
/// How long it may take before that is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// Flows that are listed.
const FLOWS: u32 = 10;

#[derive(clap::Args)]
#[command(after_help = "\
Pages: 1 rates and drops, 2 flows by state, 3 services and who sends, 4 tunables. Tab goes to the next one; q, Esc or Ctrl-C
ends, whether the daemon answers or not. The whole listing of flows is asked for on page 3 alone, every 5 s.
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
    // Reading all flows takes cores that engines want. Not being able to is no reason not to show them.
    let _ = stand_back();
    let client = client.clone();
    let mut asker = Asker::new(move |question| answer(&client, question))
        .map_err(|error| Failure::Failed(format!("no thread to ask the daemon: {error}")))?;
    let mut terminal = Terminal(ratatui::init());
    live(args, &mut asker, &mut terminal.0, &mut model, colours)
}

/// What is asked of the daemon.
enum Question {
    Reading,
    Flows,
    Tune { name: String, value: String },
}

/// What it says.
enum Answer {
    Reading(Result<Box<Reading>, Failure>),
    Flows(Result<Flows, Failure>),
    Tuned(Result<Tuned, Failure>),
}

fn answer(client: &Client, question: Question) -> Answer {
    match question {
        Question::Reading => Answer::Reading(read(client).map(Box::new)),
        Question::Flows => Answer::Flows(flows(client)),
        Question::Tune { name, value } => Answer::Tuned(tune(client, name, value)),
    }
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
    asker: &mut Asker<Question, Answer>,
    terminal: &mut DefaultTerminal,
    model: &mut Model,
    colours: bool,
) -> Result<(), Failure> {
    let (mut next, mut listed) = (Instant::now() + args.interval, None::<Instant>);
    let mut is_new = true;
    loop {
        if std::mem::take(&mut is_new) {
            draw_whole(terminal, |frame| view::draw(frame, model, colours))?;
        }
        let wait = asker.waits().map_or_else(|| next.saturating_duration_since(Instant::now()), |_| GLANCE);
        if event::poll(wait)? {
            is_new = true;
            match event::read()? {
                Event::Key(key) if key.kind == KeyEventKind::Press => match model.key(key) {
                    Action::None => {}
                    Action::Quit => return Ok(()),
                    // What waits would be set much later, when nobody expects it any more.
                    Action::Tune { .. } if asker.waits() >= Some(PATIENCE) => {
                        model.say("not set: the daemon does not answer".to_owned());
                    }
                    Action::Tune { name, value } => {
                        asker.ask(Question::Tune { name, value });
                        // The list shows what holds then.
                        asker.ask(Question::Reading);
                    }
                },
                _ => {}
            }
        }
        while let Some(answer) = asker.answer() {
            is_new = true;
            show(model, answer);
        }
        if let Some(waited) = asker.waits() {
            is_new |= waited >= PATIENCE && model.miss(waited);
            continue;
        }
        if Instant::now() >= next {
            asker.ask(Question::Reading);
            next = Instant::now() + args.interval;
        }
        let is_due = listed.is_none_or(|listed| listed.elapsed() >= FLOWS_EVERY);
        if model.page() == Page::Services && is_due {
            listed = Some(Instant::now());
            asker.ask(Question::Flows);
        }
    }
}

fn show(model: &mut Model, answer: Answer) {
    match answer {
        Answer::Reading(Ok(reading)) => model.take(*reading),
        Answer::Flows(Ok(flows)) => model.take_flows(flows),
        Answer::Reading(Err(failure)) | Answer::Flows(Err(failure)) => model.lose(failure.message()),
        Answer::Tuned(Ok(tuned)) => model.say(super::tune::change(&tuned)),
        Answer::Tuned(Err(failure)) => model.say(failure.message()),
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

fn tune(client: &Client, name: String, value: String) -> Result<Tuned, Failure> {
    let request = Request::Tune { service: None, name: Some(name), value: Some(value), save: false };
    match ask(client, &request)? {
        Reply::Tuned(tuned) => Ok(tuned),
        _ => Err(unexpected()),
    }
}
