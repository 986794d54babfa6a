//! How the live picture looks. It changes nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, SparklineBar, Table};

use crate::control::protocol::{Attack, ServiceCount, Stats};

use super::super::events::unit;
use super::super::output::age;
use super::super::tune::shown;
use super::diagram;
use super::model::{Model, Page, Rates, Reading};

/// What an attack, and what nothing in particular, is drawn in.
struct Palette {
    alarm: Style,
    calm: Style,
}

impl Palette {
    fn new(colours: bool) -> Self {
        if colours {
            let alarm = Style::new().fg(Color::White).bg(Color::Red).add_modifier(Modifier::BOLD);
            Self { alarm, calm: Style::new().fg(Color::Green) }
        } else {
            Self { alarm: Style::new().add_modifier(Modifier::REVERSED | Modifier::BOLD), calm: Style::new() }
        }
    }

    fn bar(&self, attacked: bool) -> Style {
        match (attacked, self.calm.fg) {
            (true, Some(_)) => Style::new().fg(Color::Red),
            (_, _) => self.calm,
        }
    }
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, model: &Model, colours: bool) {
    let palette = Palette::new(colours);
    let [title, alarm, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Min(1),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let Some(last) = model.last() else { return };
    frame.render_widget(headline(model, last), title);
    frame.render_widget(alarm_line(model, last, &palette), alarm);
    match model.page() {
        Page::Rates => rates(frame, body, model, last, &palette),
        Page::States => states(frame, body, model, last),
        Page::Services => services(frame, body, model, last),
        Page::Tunables => tunables(frame, body, model),
    }
    frame.render_widget(foot_line(model), foot);
}

fn headline<'a>(model: &Model, last: &Reading) -> Line<'a> {
    let interfaces: Vec<_> = last.status.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let mut spans: Vec<Span<'_>> = vec![
        "tcpguard ".bold(),
        format!("{} {} for {}", interfaces.join(","), last.status.phase, age(last.status.uptime_ms)).into(),
        "   ".into(),
    ];
    for (number, page) in (1..).zip(Page::ALL) {
        let name = format!(" {number} {} ", page.name());
        spans.push(if page == model.page() { name.reversed() } else { name.into() });
    }
    Line::from(spans)
}

/// What is wrong, or that nothing is.
fn alarm_line<'a>(model: &Model, last: &Reading, palette: &Palette) -> Line<'a> {
    if let Some(why) = model.lost() {
        return Line::from(why.to_owned()).style(palette.alarm);
    }
    match last.status.attacks.as_slice() {
        [] => Line::from("no attack").style(palette.calm),
        attacks => {
            let more = attacks.len() - 1;
            let more = if more > 0 { format!(" (and {more} more)") } else { String::new() };
            Line::from(format!("{}{more}", alarm(&attacks[0]))).style(palette.alarm)
        }
    }
}

/// As much of an attack as fits one line of eighty columns.
fn alarm(attack: &Attack) -> String {
    let Attack { service, kind, rate, peak, sources_at_least, .. } = attack;
    let unit = unit(kind);
    format!("under attack: {service}: {kind} {rate}{unit}, peak {peak}{unit}, {sources_at_least}+ sources")
}

fn foot_line<'a>(model: &Model) -> Line<'a> {
    if let Some(typed) = model.typed() {
        return Line::from(format!("new value: {typed}_   Enter sets it, Esc leaves it"));
    }
    match model.said() {
        "" => Line::from("q ends, Tab next page, arrows choose, Enter edits a tunable").dim(),
        said => Line::from(said.to_owned()).bold(),
    }
}

fn rates(frame: &mut Frame<'_>, area: Rect, model: &Model, last: &Reading, palette: &Palette) {
    let [syns, cookies, acks, drops] =
        Layout::vertical([Constraint::Fill(1), Constraint::Fill(1), Constraint::Fill(1), Constraint::Min(8)])
            .areas(area);
    plot(frame, syns, "SYNs/s", model, palette, |rates| rates.syns);
    plot(frame, cookies, "cookies/s", model, palette, |rates| rates.cookies);
    plot(frame, acks, "valid ACKs/s", model, palette, |rates| rates.acks_valid);
    let dropped = last.stats.reasons.iter().filter(|reason| reason.outcome == "dropped" && reason.total > 0);
    let mut rows: Vec<_> = dropped
        .map(|reason| {
            let total = |stats: &Stats| {
                stats.reasons.iter().find(|other| other.name == reason.name).map_or(0, |other| other.total)
            };
            (model.rate(total), reason)
        })
        .collect();
    rows.sort_by_key(|(rate, reason)| (u64::MAX - rate, u64::MAX - reason.total));
    let rows = rows
        .into_iter()
        .map(|(rate, reason)| Row::new([reason.name.clone(), format!("{rate}/s"), reason.total.to_string()]));
    let widths = [Constraint::Length(24), Constraint::Length(14), Constraint::Length(20)];
    let table = Table::new(rows, widths).header(Row::new(["DROPPED", "RATE", "TOTAL"]).bold());
    frame.render_widget(table, drops);
}

/// One rate over time, the newest at the right.
fn plot(
    frame: &mut Frame<'_>,
    area: Rect,
    name: &'static str,
    model: &Model,
    palette: &Palette,
    value: impl Fn(&Rates) -> u64,
) {
    let history = model.history();
    let now = history.back().map_or(0, &value);
    let most = history.iter().map(&value).max().unwrap_or(0);
    let title =
        Line::from(vec![format!("{name} ").into(), now.to_string().bold(), format!("  most {most}").dim()]);
    let block = Block::new().title(title);
    let inner = block.inner(area);
    frame.render_widget(block, area);
    let shown = history.iter().skip(history.len().saturating_sub(inner.width.into()));
    let bars = shown.map(|rates| SparklineBar::from(value(rates)).style(Some(palette.bar(rates.attacked))));
    frame.render_widget(Sparkline::default().data(bars.collect::<Vec<_>>()).bar_set(NINE_LEVELS), inner);
}

fn states(frame: &mut Frame<'_>, area: Rect, model: &Model, last: &Reading) {
    let reason = |name: &'static str| {
        model.rate(move |stats| {
            stats.reasons.iter().find(|reason| reason.name == name).map_or(0, |reason| reason.total)
        })
    };
    let stack = |name: &'static str| {
        model.rate(move |stats| {
            stats.totals.get("stack").and_then(|stack| stack.get(name)).copied().unwrap_or(0)
        })
    };
    let number = |name: &str| {
        let rate = match name {
            "cookies" => reason("cookie-sent"),
            "remembered" => reason("syn-stateful"),
            "adopted" => stack("adopted"),
            "completed" => stack("half-open-completed"),
            "entered" => stack("time-wait-entered"),
            "resets" => stack("resets-in") + stack("resets-out"),
            state => return last.stats.states.get(state).copied().unwrap_or(0).to_string(),
        };
        format!("{rate}/s")
    };
    let lines: Vec<_> = diagram::lines(number).into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines), area);
}

fn services(frame: &mut Frame<'_>, area: Rect, model: &Model, last: &Reading) {
    let count = u16::try_from(last.stats.services.len()).unwrap_or(u16::MAX);
    let prefixes: Vec<_> = last
        .status
        .attacks
        .iter()
        .flat_map(|attack| attack.prefixes.iter().map(move |from| (attack, from)))
        .collect();
    let attackers = if prefixes.is_empty() { 0 } else { 2 + prefixes.len().min(5) as u16 };
    let [table, from, flows] = Layout::vertical([
        Constraint::Length(count.saturating_add(2).min(area.height / 2)),
        Constraint::Length(attackers),
        Constraint::Min(3),
    ])
    .areas(area);
    let rows = last.stats.services.iter().map(|service| {
        let rate = |number: fn(&ServiceCount) -> u64| {
            let rate = model.rate(|stats| {
                stats.services.iter().find(|other| other.listen == service.listen).map_or(0, number)
            });
            format!("{rate}/s")
        };
        let state = service
            .state
            .as_ref()
            .map_or_else(|| service.mode.clone(), |state| format!("{} {state}", service.mode));
        Row::new([
            service.listen.to_string(),
            state,
            rate(|service| service.syns),
            rate(|service| service.cookies_sent),
            rate(|service| service.acks_valid),
            rate(|service| service.acks_invalid),
            rate(|service| service.dropped),
        ])
    });
    let widths = [Constraint::Fill(2), Constraint::Length(12)].into_iter().chain([Constraint::Fill(1); 5]);
    let header = Row::new(["SERVICE", "MODE", "SYN", "COOKIE", "VALID", "INVALID", "DROPPED"]).bold();
    frame.render_widget(Table::new(rows, widths).header(header), table);
    let rows = prefixes.iter().map(|(attack, prefix)| {
        let (percent, tenth) = (prefix.permille / 10, prefix.permille % 10);
        Row::new([
            prefix.prefix.clone(),
            format!("{percent}.{tenth}%"),
            attack.kind.clone(),
            attack.service.to_string(),
        ])
    });
    let header = Row::new(["ATTACKED FROM", "SHARE", "KIND", "SERVICE"]).bold();
    frame.render_widget(Table::new(rows, [Constraint::Fill(1); 4]).header(header), from);
    let listed = model.flows().map(|flows| flows.flows.as_slice()).unwrap_or_default();
    let rows = listed.iter().filter(|flow| flow.bytes_in > 0).map(|flow| {
        let service = flow.service.map_or_else(|| flow.local.to_string(), |service| service.to_string());
        let cells = [
            flow.peer.to_string(),
            flow.bytes_in.to_string(),
            flow.bytes_out.to_string(),
            flow.state.to_string(),
            service,
        ];
        Row::new(cells)
    });
    let header = Row::new(["SENDS MOST", "IN", "OUT", "STATE", "SERVICE"]).bold();
    let widths = [
        Constraint::Fill(3),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(12),
        Constraint::Fill(2),
    ];
    frame.render_widget(Table::new(rows, widths).header(header), flows);
}

fn tunables(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    let [list, help] = Layout::vertical([Constraint::Min(3), Constraint::Length(4)]).areas(area);
    let room = usize::from(list.height.saturating_sub(1)).max(1);
    let first = model.chosen().saturating_sub(room - 1);
    let rows = model.tunables().iter().enumerate().skip(first).take(room).map(|(place, tunable)| {
        let shown = |number| Cell::from(shown(&tunable.name, number));
        let changed = if tunable.value == tunable.default { "" } else { "*" };
        let range = match tunable.choices.as_slice() {
            [] => Cell::from(format!(
                "{} to {}",
                self::shown(&tunable.name, tunable.min),
                self::shown(&tunable.name, tunable.max)
            )),
            choices => Cell::from(choices.join(", ")),
        };
        let row = Row::new([
            Cell::from(format!("{}{changed}", tunable.name)),
            shown(tunable.value),
            shown(tunable.default),
            range,
        ]);
        if place == model.chosen() { row.reversed() } else { row }
    });
    let widths =
        [Constraint::Length(24), Constraint::Length(12), Constraint::Length(12), Constraint::Fill(1)];
    let header = Row::new(["TUNABLE", "CURRENT", "DEFAULT", "RANGE"]).bold();
    frame.render_widget(Table::new(rows, widths).header(header), list);
    if let Some(tunable) = model.tunables().get(model.chosen()) {
        let text = Paragraph::new(tunable.help.clone()).wrap(ratatui::widgets::Wrap { trim: true });
        frame.render_widget(text, help);
    }
}
