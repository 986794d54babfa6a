//! How the live picture looks. It changes nothing.

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style, Stylize as _};
use ratatui::symbols::bar::NINE_LEVELS;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Sparkline, SparklineBar, Table};

use crate::control::protocol::{Attack, Flow, ServiceCount, Stats};

use super::super::events::unit;
use super::super::output::age;
use super::super::tune::shown;
use super::diagram;
use super::model::{Model, Page, Rates, Reading};
use super::room::{cut, cut_inside, share, short, wrapped};

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
    let width = usize::from(frame.area().width);
    frame.render_widget(headline(model, last, width), title);
    frame.render_widget(alarm_line(model, last, &palette, width), alarm);
    match model.page() {
        Page::Rates => rates(frame, body, model, last, &palette),
        Page::States => states(frame, body, model, last),
        Page::Services => services(frame, body, model, last),
        Page::Tunables => tunables(frame, body, model),
    }
    frame.render_widget(foot_line(model, width), foot);
}

fn headline<'a>(model: &Model, last: &Reading, width: usize) -> Line<'a> {
    const NAME: &str = "tcpguard ";
    const GAP: &str = "   ";
    let pages = (1..).zip(Page::ALL).map(|(number, page)| (page, format!(" {number} {} ", page.name())));
    let pages: Vec<_> = pages.collect();
    let taken = NAME.len() + GAP.len() + pages.iter().map(|(_, name)| name.len()).sum::<usize>();
    let interfaces: Vec<_> = last.status.interfaces.iter().map(|interface| interface.name.as_str()).collect();
    let state = format!(" {} for {}", last.status.phase, age(last.status.uptime_ms));
    let interfaces = cut(&interfaces.join(","), width.saturating_sub(taken + state.len()));
    let mut spans: Vec<Span<'_>> = vec![NAME.bold(), (interfaces + &state).into(), GAP.into()];
    for (page, name) in pages {
        spans.push(if page == model.page() { name.reversed() } else { name.into() });
    }
    Line::from(spans)
}

/// What is wrong, or that nothing is.
fn alarm_line<'a>(model: &Model, last: &Reading, palette: &Palette, width: usize) -> Line<'a> {
    if let Some(why) = model.lost() {
        return Line::from(cut(why, width)).style(palette.alarm);
    }
    let still = last.stats.left_out.iter().map(|engine| format!("{engine} stands still. "));
    let still: String = still.collect();
    match (still.as_str(), last.status.attacks.as_slice()) {
        ("", []) => Line::from("no attack").style(palette.calm),
        (still, []) => Line::from(cut(still, width)).style(palette.alarm),
        (still, attacks) => {
            let alarm = still.to_owned() + &alarm(attacks, width.saturating_sub(still.len()));
            Line::from(cut(&alarm, width)).style(palette.alarm)
        }
    }
}

/// The first of these attacks, in so many columns if the middle of its service's address can be spared for that, and how many
/// more there are.
fn alarm(attacks: &[Attack], width: usize) -> String {
    /// An address of which less is left tells nothing.
    const LEAST: usize = 15;
    let Some(Attack { service, kind, rate, peak, sources_at_least, .. }) = attacks.first() else {
        return String::new();
    };
    let more = match attacks.len() - 1 {
        0 => String::new(),
        more => format!(" (+{more})"),
    };
    let (service, unit) = (service.to_string(), unit(kind));
    let (rate, peak, sources) = (short(*rate), short(*peak), short(*sources_at_least));
    let (before, after) = (
        format!("under attack{more}: "),
        format!(": {kind} {rate}{unit}, peak {peak}{unit}, {sources}+ sources"),
    );
    let room = width.saturating_sub(before.len() + after.len()).max(LEAST);
    format!("{before}{}{after}", cut_inside(&service, room))
}

fn foot_line<'a>(model: &Model, width: usize) -> Line<'a> {
    if let Some(typed) = model.typed() {
        return Line::from(format!("new value: {typed}_   Enter sets it, Esc leaves it"));
    }
    match model.said() {
        "" => Line::from("q ends, Tab next page, arrows choose, Enter edits a tunable").dim(),
        said => Line::from(cut(said, width)).bold(),
    }
}

fn rates(frame: &mut Frame<'_>, area: Rect, model: &Model, last: &Reading, palette: &Palette) {
    let plots = [Constraint::Fill(1); 4].into_iter();
    let [syns, cookies, acks, forged, drops] =
        Layout::vertical(plots.chain([Constraint::Min(7)])).areas(area);
    plot(frame, syns, "SYNs/s", model, palette, |rates| rates.syns);
    plot(frame, cookies, "cookies/s", model, palette, |rates| rates.cookies);
    plot(frame, acks, "valid ACKs/s", model, palette, |rates| rates.acks_valid);
    plot(frame, forged, "invalid ACKs/s", model, palette, |rates| rates.acks_invalid);
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
    fn stack(stats: &Stats, name: &str) -> u64 {
        stats.totals.get("stack").and_then(|stack| stack.get(name)).copied().unwrap_or(0)
    }
    fn sum(stats: &Stats, number: fn(&ServiceCount) -> u64) -> u64 {
        stats.services.iter().map(number).sum()
    }
    let number = |name: &str| {
        let rate = match name {
            "cookies" => model.rate(|stats| sum(stats, |service| service.cookies_sent)),
            "remembered" => model.rate(|stats| sum(stats, |service| service.stateful)),
            // Connections of remembered SYNs are among the adopted; theirs is another edge.
            "adopted" => model
                .rate(|stats| stack(stats, "adopted").saturating_sub(stack(stats, "half-open-completed"))),
            "completed" => model.rate(|stats| stack(stats, "half-open-completed")),
            "closed" => model.rate(|stats| stack(stats, "fin-wait-1-entered")),
            "closed-by-peer" => model.rate(|stats| stack(stats, "close-wait-entered")),
            "fin-acked" => model.rate(|stats| stack(stats, "fin-wait-2-entered")),
            "both" => model.rate(|stats| stack(stats, "closing-entered")),
            "answered" => model.rate(|stats| stack(stats, "last-ack-entered")),
            "finished" => model.rate(|stats| stack(stats, "last-ack-left")),
            "entered" => model.rate(|stats| stack(stats, "time-wait-entered")),
            "expired" => model.rate(|stats| stack(stats, "time-wait-expired")),
            "resets" => model.rate(|stats| stack(stats, "resets-in") + stack(stats, "resets-out")),
            state => return short(last.stats.states.get(state).copied().unwrap_or(0)),
        };
        format!("{}/s", short(rate))
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
    let width = usize::from(area.width);
    frame.render_widget(service_table(model, last, width), table);
    let wide = prefixes.iter().map(|(_, from)| from.prefix.len()).max().unwrap_or(0);
    // What the shares, the kinds and the columns' distances take, the service has not.
    let room = width.saturating_sub(wide.max(13) + 6 + 16 + 3);
    let rows = prefixes.iter().map(|(attack, prefix)| {
        let (percent, tenth) = (prefix.permille / 10, prefix.permille % 10);
        Row::new([
            prefix.prefix.clone(),
            format!("{percent}.{tenth}%"),
            attack.kind.clone(),
            cut_inside(&attack.service.to_string(), room),
        ])
    });
    let widths = [column(wide.max(13)), column(6), column(16), Constraint::Fill(1)];
    let header = Row::new(["ATTACKED FROM", "SHARE", "KIND", "SERVICE"]).bold();
    frame.render_widget(Table::new(rows, widths).header(header), from);
    frame.render_widget(senders(model, width), flows);
}

fn column(width: usize) -> Constraint {
    Constraint::Length(u16::try_from(width).unwrap_or(u16::MAX))
}

/// What comes to each service, and what becomes of it.
fn service_table<'a>(model: &Model, last: &Reading, width: usize) -> Table<'a> {
    const MODE: usize = 12;
    const RATES: [&str; 5] = ["SYN", "COOKIE", "VALID", "INVALID", "DROPPED"];
    /// The longest of a rate and a name.
    const RATE: usize = 7;
    let services = &last.stats.services;
    let wide = services.iter().map(|service| service.listen.to_string().len()).max().unwrap_or(0).max(7);
    let room = wide.min(width.saturating_sub(MODE + RATES.len() * RATE + RATES.len() + 1)).max(1);
    let rows = services.iter().map(move |service| {
        let rate = |number: fn(&ServiceCount) -> u64| {
            let rate = model.rate(|stats| {
                stats.services.iter().find(|other| other.listen == service.listen).map_or(0, number)
            });
            format!("{}/s", short(rate))
        };
        let state = service
            .state
            .as_ref()
            .map_or_else(|| service.mode.clone(), |state| format!("{} {state}", service.mode));
        Row::new([
            cut_inside(&service.listen.to_string(), room),
            state,
            rate(|service| service.syns),
            rate(|service| service.cookies_sent),
            rate(|service| service.acks_valid),
            rate(|service| service.acks_invalid),
            rate(|service| service.dropped),
        ])
    });
    let rows: Vec<_> = rows.collect();
    let widths = [column(room), column(MODE)].into_iter().chain([column(RATE); RATES.len()]);
    let header = Row::new(["SERVICE", "MODE"].into_iter().chain(RATES)).bold();
    Table::new(rows, widths).header(header)
}

/// Who sends most.
fn senders<'a>(model: &Model, width: usize) -> Table<'a> {
    const BYTES: usize = 6;
    const STATE: usize = 12;
    let listed = model.flows().map(|flows| flows.flows.as_slice()).unwrap_or_default();
    let rows = listed.iter().filter(|flow| flow.bytes_in > 0).map(|flow| {
        let service = flow.service.map_or_else(|| flow.local.to_string(), |service| service.to_string());
        (flow.peer.to_string(), service, flow)
    });
    let rows: Vec<_> = rows.collect();
    let longest = |text: fn(&(String, String, &Flow)) -> usize| rows.iter().map(text).max().unwrap_or(0);
    let wanted = [longest(|row| row.0.len()).max(10), longest(|row| row.1.len()).max(7)];
    let [peer, service] = share(width.saturating_sub(2 * BYTES + STATE + 4), wanted);
    let rows = rows.iter().map(|(from, to, flow)| {
        Row::new([
            cut_inside(from, peer),
            short(flow.bytes_in),
            short(flow.bytes_out),
            flow.state.to_string(),
            cut_inside(to, service),
        ])
    });
    let rows: Vec<_> = rows.collect();
    let widths = [column(peer), column(BYTES), column(BYTES), column(STATE), column(service)];
    let header = Row::new(["SENDS MOST", "IN", "OUT", "STATE", "SERVICE"]).bold();
    Table::new(rows, widths).header(header)
}

fn tunables(frame: &mut Frame<'_>, area: Rect, model: &Model) {
    /// Lines that the list keeps, whatever there is to say of one of its rows; and those that this has at least.
    const LIST: u16 = 4;
    const HELP: u16 = 4;
    let most = usize::from(area.height.saturating_sub(LIST));
    let words = model.tunables().get(model.chosen()).map(|tunable| {
        let costs = if tunable.cost.is_empty() { String::new() } else { format!(" Costs: {}", tunable.cost) };
        wrapped(&format!("{}{costs}", tunable.help), area.width.into(), most)
    });
    let words = words.unwrap_or_default();
    let lines = u16::try_from(words.len()).unwrap_or(u16::MAX).max(HELP);
    let [list, help] = Layout::vertical([Constraint::Min(3), Constraint::Length(lines)]).areas(area);
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
    frame.render_widget(Paragraph::new(words.into_iter().map(Line::from).collect::<Vec<_>>()), help);
}
