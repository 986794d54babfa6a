//! What the live picture remembers: readings, the page that is shown, and what is being typed. It neither asks nor draws.

use std::collections::VecDeque;
use std::time::Duration;

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use crate::control::protocol::{Flows, Stats, Status, Tunable};

use super::super::output::rate;

/// Rates kept for the plots: as many as the widest terminal shows.
const KEPT: usize = 500;

/// What the daemon said at one moment.
pub(super) struct Reading {
    pub(super) status: Status,
    pub(super) stats: Stats,
    pub(super) tunables: Vec<Tunable>,
}

/// What is shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Page {
    #[default]
    Rates,
    States,
    Services,
    Tunables,
}

impl Page {
    pub(super) const ALL: [Self; 4] = [Self::Rates, Self::States, Self::Services, Self::Tunables];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rates => "rates",
            Self::States => "states",
            Self::Services => "services",
            Self::Tunables => "tunables",
        }
    }
}

/// What a key asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action {
    None,
    Quit,
    Tune { name: String, value: String },
}

/// Rates a second, all services together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Rates {
    pub(super) syns: u64,
    pub(super) cookies: u64,
    /// Handshakes that were finished.
    pub(super) acks_valid: u64,
    pub(super) acks_invalid: u64,
    /// Whether a service was under attack.
    pub(super) attacked: bool,
}

/// Everything.
#[derive(Default)]
pub(super) struct Model {
    last: Option<Reading>,
    before: Option<Stats>,
    history: VecDeque<Rates>,
    flows: Option<Flows>,
    page: Page,
    /// The tunable that is chosen, by its place.
    chosen: usize,
    /// What was typed for it so far.
    typed: Option<String>,
    /// What became of the last change.
    said: String,
    /// Why there is no reading any more.
    lost: Option<String>,
}

impl Model {
    /// Takes in a reading.
    pub(super) fn take(&mut self, reading: Reading) {
        if let Some(last) = self.last.take() {
            // What an engine counts that was left out before, or is now, came in no moment.
            self.before = Some(last.stats).filter(|before| before.left_out == reading.stats.left_out);
        }
        if let Some(before) = &self.before {
            if self.history.len() == KEPT {
                self.history.pop_front();
            }
            self.history.push_back(rates(before, &reading));
        }
        self.chosen = self.chosen.min(reading.tunables.len().saturating_sub(1));
        (self.last, self.lost) = (Some(reading), None);
    }

    /// Takes in who sends most.
    pub(super) fn take_flows(&mut self, flows: Flows) {
        self.flows = Some(flows);
    }

    /// There was no reading.
    pub(super) fn lose(&mut self, why: String) {
        self.lost = Some(why);
    }

    /// There is no answer for so long now. Whether that says anything new.
    pub(super) fn miss(&mut self, waited: Duration) -> bool {
        let why = format!("the daemon has not answered for {}s; q ends", waited.as_secs());
        self.lost.replace(why.clone()).is_none_or(|said| said != why)
    }

    /// Says something, until the next key.
    pub(super) fn say(&mut self, said: String) {
        self.said = said;
    }

    /// What a key does.
    pub(super) fn key(&mut self, key: KeyEvent) -> Action {
        if key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c') {
            return Action::Quit;
        }
        if self.typed.is_some() {
            return self.edit(key.code);
        }
        self.said.clear();
        let places = self.tunables().len();
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Action::Quit,
            KeyCode::Tab | KeyCode::Right => self.page = self.next(1),
            KeyCode::BackTab | KeyCode::Left => self.page = self.next(Page::ALL.len() - 1),
            KeyCode::Char(digit @ '1'..='4') => self.page = Page::ALL[digit as usize - '1' as usize],
            KeyCode::Down if self.page == Page::Tunables => {
                self.chosen = (self.chosen + 1).min(places.max(1) - 1)
            }
            KeyCode::Up if self.page == Page::Tunables => self.chosen = self.chosen.saturating_sub(1),
            KeyCode::Enter if self.page == Page::Tunables && places > 0 => self.typed = Some(String::new()),
            _ => {}
        }
        Action::None
    }

    fn edit(&mut self, code: KeyCode) -> Action {
        let Some(typed) = &mut self.typed else { return Action::None };
        match code {
            KeyCode::Esc => self.typed = None,
            KeyCode::Backspace => drop(typed.pop()),
            KeyCode::Char(c) if typed.len() < 32 => typed.push(c),
            KeyCode::Enter => {
                let value = self.typed.take().unwrap_or_default();
                if let Some(tunable) = self.tunables().get(self.chosen).filter(|_| !value.is_empty()) {
                    return Action::Tune { name: tunable.name.clone(), value };
                }
            }
            _ => {}
        }
        Action::None
    }

    fn next(&self, steps: usize) -> Page {
        Page::ALL[(self.page as usize + steps) % Page::ALL.len()]
    }

    pub(super) fn page(&self) -> Page {
        self.page
    }

    pub(super) fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }

    pub(super) fn history(&self) -> &VecDeque<Rates> {
        &self.history
    }

    pub(super) fn flows(&self) -> Option<&Flows> {
        self.flows.as_ref()
    }

    pub(super) fn tunables(&self) -> &[Tunable] {
        self.last.as_ref().map_or(&[], |last| &last.tunables)
    }

    pub(super) fn chosen(&self) -> usize {
        self.chosen
    }

    pub(super) fn typed(&self) -> Option<&str> {
        self.typed.as_deref()
    }

    pub(super) fn said(&self) -> &str {
        &self.said
    }

    pub(super) fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// How often a second one of the daemon's numbers grew, between the last two readings.
    pub(super) fn rate(&self, number: impl Fn(&Stats) -> u64) -> u64 {
        let (Some(before), Some(last)) = (&self.before, &self.last) else { return 0 };
        rate(number(before), number(&last.stats), elapsed(before, &last.stats))
    }
}

fn elapsed(before: &Stats, now: &Stats) -> u64 {
    now.time_ms.saturating_sub(before.time_ms)
}

/// Of a daemon that was started anew, nothing is known yet.
fn rates(before: &Stats, reading: &Reading) -> Rates {
    use crate::control::protocol::ServiceCount;
    let now = &reading.stats;
    let sum = |stats: &Stats, number: fn(&ServiceCount) -> u64| {
        stats.services.iter().chain(&stats.dry_run).map(number).sum::<u64>()
    };
    let of = |number| rate(sum(before, number), sum(now, number), elapsed(before, now));
    Rates {
        syns: of(|service| service.syns),
        cookies: of(|service| service.cookies_sent),
        acks_valid: of(|service| service.acks_valid),
        acks_invalid: of(|service| service.acks_invalid),
        attacked: !reading.status.attacks.is_empty(),
    }
}
