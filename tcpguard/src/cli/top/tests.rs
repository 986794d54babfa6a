//! The live picture on terminals of several sizes, and what keys do to it.

use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::model::{Action, Model, Page, Reading};
use super::view;
use crate::control::protocol::{
    Attack, AttackPrefix, EngineName, Flow, Flows, Keys, ReasonCount, ServiceCount, Stats, Status, Tunable,
};

fn attack() -> Attack {
    let from = AttackPrefix { prefix: "198.51.100.0/24".into(), samples: 9, permille: 991 };
    Attack {
        number: 1,
        service: "192.0.2.1:443".parse().unwrap(),
        kind: "syn-flood".into(),
        began_ms: 1_700_000_000_000,
        ended_ms: None,
        rate: 1_200_000,
        peak: 1_300_000,
        total: 9,
        sampled: 9,
        sources_seen: 9,
        sources_at_least: 36,
        prefixes: vec![from],
    }
}

/// The second reading of a service that was sent so many SYNs since the first.
fn reading(time_ms: u64, syns: u64, attacks: Vec<Attack>) -> Reading {
    let reason = |name: &str, outcome: &str, total| ReasonCount {
        name: name.into(),
        outcome: outcome.into(),
        help: String::new(),
        total,
        per_cpu: vec![total],
        dry_run: 0,
    };
    let service = ServiceCount {
        listen: "192.0.2.1:443".parse().unwrap(),
        mode: "auto".into(),
        state: Some("cookies".into()),
        syns,
        cookies_sent: syns,
        stateful: 0,
        acks_valid: syns / 5,
        acks_invalid: 6,
        redirected: 5,
        reset: 4,
        dropped: 3,
        passed: 2,
    };
    let status = Status {
        daemon_version: "1".into(),
        pid: 1,
        uptime_ms: 61_000,
        phase: "armed".into(),
        generation: 1,
        epoch: 1,
        keys: Keys::default(),
        interfaces: Vec::new(),
        services: Vec::new(),
        attacks,
        engines: Vec::new(),
        limits: Vec::new(),
        unconfirmed_ms: None,
    };
    let stats = Stats {
        time_ms,
        uptime_ms: 61_000,
        reasons: vec![reason("cookie-sent", "answered", syns), reason("reply-budget", "dropped", syns / 2)],
        services: vec![service],
        dry_run: Vec::new(),
        states: [("ESTABLISHED".to_owned(), 4321), ("TIME_WAIT".to_owned(), 17)].into(),
        totals: [("stack".to_owned(), [("adopted".to_owned(), syns / 4)].into())].into(),
        engines: Vec::new(),
        left_out: Vec::new(),
    };
    let tunables = ["time-wait", "retries"].map(|name| Tunable {
        services: None,
        name: name.into(),
        unit: "ms".into(),
        choices: Vec::new(),
        value: 30_000,
        default: 60_000,
        min: 100,
        max: 600_000,
        help: format!("What {name} does."),
        cost: format!("What {name} takes."),
    });
    Reading { status, stats, tunables: tunables.into() }
}

fn model(attacks: Vec<Attack>) -> Model {
    let mut model = Model::default();
    model.take(reading(1000, 0, Vec::new()));
    model.take(reading(2000, 1000, attacks));
    model
}

fn press(model: &mut Model, code: KeyCode) -> Action {
    model.key(KeyEvent::new(code, KeyModifiers::NONE))
}

fn screen(model: &Model, size: (u16, u16), colours: bool) -> TestBackend {
    let mut terminal = Terminal::new(TestBackend::new(size.0, size.1)).unwrap();
    terminal.draw(|frame| view::draw(frame, model, colours)).unwrap();
    terminal.backend().clone()
}

#[test]
fn each_page_has_what_it_promises_on_eighty_by_twenty_four() {
    let mut model = model(vec![attack()]);
    for (key, expected) in [
        (
            '1',
            &[
                "SYNs/s 1000",
                "cookies/s 1000",
                "valid ACKs/s 200",
                "invalid ACKs/s 0",
                "reply-budget",
                "500/s",
                "█",
            ][..],
        ),
        ('2', &["LISTEN", "1000/s", "ESTABLISHED 4321", "TIME_WAIT 17", "FIN_WAIT_2 0", "250/s", "2MSL"]),
        ('3', &["192.0.2.1:443", "auto cookies", "198.51.100.0/24", "99.1%", "SENDS MOST"]),
        (
            '4',
            &["time-wait*", "30s", "1m", "100ms to 10m", "What time-wait does. Costs: What time-wait takes."],
        ),
    ] {
        assert_eq!(press(&mut model, KeyCode::Char(key)), Action::None);
        let text = screen(&model, (80, 24), true).to_string();
        for expected in
            ["under attack: 192.0.2.1:443: syn-flood", "+ sources", "armed for 1m1s"].iter().chain(expected)
        {
            assert!(text.contains(expected), "{expected} is missing on page {key}\n{text}");
        }
    }
}

/// One with the longest address, and as much as there can be.
fn worst() -> Attack {
    Attack {
        service: "[2001:db8:1111:2222:3333:4444:5555:6666]:65535".parse().unwrap(),
        kind: "connection-flood".into(),
        rate: 1_250_000,
        peak: 999_999_999,
        sources_at_least: 134_399,
        ..attack()
    }
}

/// The line of alarms.
fn banner(attacks: Vec<Attack>, width: u16) -> String {
    let model = model(attacks);
    screen(&model, (width, 24), true)
        .to_string()
        .lines()
        .nth(1)
        .unwrap()
        .trim_matches('"')
        .trim_end()
        .to_owned()
}

#[test]
fn what_is_under_attack_by_what_and_how_many_more_fits_a_line() {
    assert_eq!(
        banner(vec![Attack { rate: 1_250_000, peak: 1_309_999, sources_at_least: 134_399, ..attack() }], 80),
        "under attack: 192.0.2.1:443: syn-flood 1.25M/s, peak 1.3M/s, 134k+ sources"
    );
    // The number of sources and of further attacks used to be cut off, without a mark.
    assert_eq!(
        banner(vec![worst(), attack(), attack()], 80),
        "under attack (+2): [2001:d…]:65535: connection-flood 1.25M/s, peak 999M/s, 134k…"
    );
    assert_eq!(
        banner(vec![worst(), attack()], 100),
        "under attack (+1): [2001:db8:111…5:6666]:65535: connection-flood 1.25M/s, peak 999M/s, 134k+ sources"
    );
    assert!(banner(vec![worst()], 130).contains(&format!("under attack: {}: connection", worst().service)));
    assert_eq!(banner(vec![attack()], 12), "under attac…");
}

#[test]
fn an_address_that_is_too_long_for_its_column_is_cut_in_its_middle_and_marked() {
    let with = |listen: &str| {
        let attack = Attack { service: listen.parse().unwrap(), rate: 1_250_000, ..attack() };
        let mut last = reading(2000, 1_250_000, vec![attack]);
        last.stats.services[0].listen = listen.parse().unwrap();
        let mut before = reading(1000, 0, Vec::new());
        before.stats.services = last.stats.services.clone();
        before.stats.services[0].syns = 0;
        let mut model = Model::default();
        model.take(before);
        model.take(last);
        model.take_flows(Flows {
            total: 1,
            states: [].into(),
            services: Vec::new(),
            flows: vec![Flow {
                state: "ESTABLISHED".into(),
                local: listen.parse().unwrap(),
                peer: "[2001:db8:7777:2222:3333:4444:5555:6666]:51000".parse().unwrap(),
                service: Some(listen.parse().unwrap()),
                age_ms: 1,
                bytes_in: 123_456_789,
                bytes_out: 7,
                recv_queued: 0,
                send_queued: 0,
                rtt_us: None,
                timer_ms: None,
                syn_ack_retransmits: None,
                interface: "eth0".into(),
                queue: 0,
            }],
            left_out: Vec::new(),
        });
        press(&mut model, KeyCode::Char('3'));
        [80, 160].map(|width| screen(&model, (width, 24), true).to_string())
    };
    // It used to be shown without its end, 192.168.100.200:8.
    let [text, _] = with("192.168.100.200:8443");
    assert_eq!(text.matches("192.168.100.200:8443").count(), 4, "{text}");
    assert!(text.contains(" 1.25M/s ") && text.contains(" 123M "), "{text}");
    let long = "[2001:db8:1111:2222:3333:4444:5555:6666]:65535";
    let [text, wide] = with(long);
    assert!(!text.contains(long) && wide.matches(long).count() == 4, "{text}\n{wide}");
    for line in text.lines().filter(|line| line.contains("[2001:")) {
        assert!(line.contains('…'), "{line}\n{text}");
    }
}

#[test]
fn every_edge_of_the_diagram_has_what_went_along_it_and_nothing_is_counted_twice() {
    let mut before = reading(1000, 0, Vec::new());
    let mut now = reading(2000, 1000, Vec::new());
    let counted = [
        // Seven of the adopted were remembered half-open connections.
        ("adopted", 27),
        ("half-open-completed", 7),
        ("fin-wait-1-entered", 31),
        ("close-wait-entered", 32),
        ("fin-wait-2-entered", 33),
        ("closing-entered", 34),
        ("last-ack-entered", 35),
        ("last-ack-left", 36),
        ("time-wait-entered", 37),
        ("time-wait-expired", 38),
        ("resets-in", 40),
        ("resets-out", 1),
    ];
    let group = |times: u64| -> std::collections::BTreeMap<String, u64> {
        counted.iter().map(|&(name, count)| (name.to_owned(), count * times)).collect()
    };
    before.stats.totals = [("stack".to_owned(), group(1))].into();
    now.stats.totals = [("stack".to_owned(), group(2))].into();
    // Whatever their MSS: the reason that most of them have is not all of them.
    (now.stats.services[0].cookies_sent, now.stats.services[0].stateful) = (12_345, 8);
    let mut model = Model::default();
    model.take(before);
    model.take(now);
    press(&mut model, KeyCode::Char('2'));
    let text = screen(&model, (80, 24), true).to_string();
    for edge in [
        "12.3k/s ",
        " 8/s ",
        " 20/s ",
        "ACK: 7/s ",
        "close: 31/s ",
        "FIN: 32/s ",
        "v 33/s ",
        "v 34/s ",
        "v 35/s ",
        "36/s ",
        "v 37/s ",
        "2MSL 38/s ",
        "RST: 41/s ",
    ] {
        assert_eq!(text.matches(edge).count(), 1, "{edge}\n{text}");
    }
}

#[test]
fn forged_acks_are_drawn_as_well() {
    let mut model = Model::default();
    let mut now = reading(2000, 0, Vec::new());
    now.stats.services[0].acks_invalid = 600_006;
    model.take(reading(1000, 0, Vec::new()));
    model.take(now);
    let text = screen(&model, (80, 24), true).to_string();
    assert!(text.contains("invalid ACKs/s 600000  most 600000") && text.contains('█'), "{text}");
}

#[test]
fn the_help_of_a_tunable_is_there_to_its_last_word_with_what_it_costs() {
    let mut last = reading(2000, 0, Vec::new());
    let tunables = crate::config::TUNABLES.iter().map(|tunable| Tunable {
        services: None,
        name: tunable.name.into(),
        unit: tunable.unit.name().into(),
        choices: Vec::new(),
        value: tunable.default,
        default: tunable.default,
        min: tunable.min,
        max: tunable.max,
        help: tunable.help.trim().into(),
        cost: tunable.cost.trim().into(),
    });
    last.tunables = tunables.collect();
    let mut model = Model::default();
    model.take(last);
    press(&mut model, KeyCode::Char('4'));
    for tunable in crate::config::TUNABLES {
        let drawn = screen(&model, (80, 24), true);
        let rows = drawn.to_string();
        let words: Vec<_> = rows.split(['"', '\n', ' ']).filter(|word| !word.is_empty()).collect();
        let shown = words.join(" ");
        let all = format!("{} Costs: {}", tunable.help, tunable.cost);
        let all = all.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(shown.contains(&all), "{}: {all}\n{rows}", tunable.name);
        assert!(
            shown.contains(&format!(" {} ", tunable.name)),
            "{} is not in the list\n{rows}",
            tunable.name
        );
        press(&mut model, KeyCode::Down);
    }
}

#[test]
fn no_size_makes_it_panic() {
    let mut model = model(vec![worst(), attack()]);
    for key in '1'..='4' {
        press(&mut model, KeyCode::Char(key));
        for size in [(1, 1), (10, 3), (80, 24), (20, 60), (300, 100)] {
            screen(&model, size, true);
        }
    }
    screen(&Model::default(), (80, 24), true);
}

#[test]
fn without_colours_there_are_none_and_an_attack_still_stands_out() {
    let mut model = model(vec![attack()]);
    for key in '1'..='4' {
        press(&mut model, KeyCode::Char(key));
        let drawn = screen(&model, (80, 24), false);
        let plain = |colour: Color| colour == Color::Reset;
        assert!(drawn.buffer().content().iter().all(|cell| plain(cell.fg) && plain(cell.bg)));
        assert!(drawn.buffer()[(0, 1)].modifier.contains(ratatui::style::Modifier::REVERSED));
    }
    assert!(screen(&model, (80, 24), true).buffer().content().iter().any(|cell| cell.bg == Color::Red));
}

#[test]
fn a_tunable_is_chosen_edited_and_set_with_the_keyboard() {
    let mut model = model(Vec::new());
    press(&mut model, KeyCode::Char('4'));
    assert_eq!(model.page(), Page::Tunables);
    for code in [
        KeyCode::Down,
        KeyCode::Down,
        KeyCode::Enter,
        KeyCode::Char('9'),
        KeyCode::Char('q'),
        KeyCode::Backspace,
    ] {
        assert_eq!(press(&mut model, code), Action::None);
    }
    assert!(screen(&model, (80, 24), true).to_string().contains("new value: 9_"));
    let tune = Action::Tune { name: "retries".into(), value: "9".into() };
    assert_eq!(press(&mut model, KeyCode::Enter), tune);
    model.say("retries: 15 -> 9".into());
    assert!(screen(&model, (80, 24), true).to_string().contains("retries: 15 -> 9"));
    // What was typed and left is not set.
    for code in [KeyCode::Enter, KeyCode::Char('1'), KeyCode::Esc, KeyCode::Enter, KeyCode::Enter] {
        assert_eq!(press(&mut model, code), Action::None);
    }
    assert_eq!(press(&mut model, KeyCode::Char('q')), Action::Quit);
    assert_eq!(model.key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL)), Action::Quit);
}

#[test]
fn a_daemon_that_is_gone_is_said_until_it_is_back() {
    let mut model = model(Vec::new());
    model.lose("no daemon answers there".into());
    assert!(screen(&model, (80, 24), true).to_string().contains("no daemon answers there"));
    model.take(reading(500, 3, Vec::new()));
    let text = screen(&model, (80, 24), true).to_string();
    assert!(text.contains("no attack") && text.contains("SYNs/s 0"), "{text}");
}

#[test]
fn a_daemon_that_does_not_answer_is_said_once_a_second() {
    use std::time::Duration;
    let mut model = model(Vec::new());
    let miss = |model: &mut Model, ms| model.miss(Duration::from_millis(ms));
    assert_eq!([3000, 3100, 4000].map(|ms| miss(&mut model, ms)), [true, false, true]);
    let text = screen(&model, (80, 24), true).to_string();
    assert!(text.contains("the daemon has not answered for 4s; q ends"), "{text}");
    model.take(reading(3000, 3, Vec::new()));
    assert!(screen(&model, (80, 24), true).to_string().contains("no attack"));
}

#[test]
fn an_engine_that_is_left_out_or_comes_back_makes_no_rate() {
    let mut model = model(Vec::new());
    let adopted = |stats: &Stats| stats.totals["stack"]["adopted"];
    assert_eq!(model.rate(adopted), 250);
    let mut left_out = reading(3000, 9000, Vec::new());
    left_out.stats.left_out = vec![EngineName { interface: "eth0".into(), queue: 1 }];
    model.take(left_out);
    assert_eq!(model.rate(adopted), 0);
    let text = screen(&model, (80, 24), true).to_string();
    assert!(text.contains("eth0 queue 1 stands still"), "{text}");
    model.take(reading(4000, 10_000, Vec::new()));
    assert_eq!(model.rate(adopted), 0);
    model.take(reading(5000, 11_000, Vec::new()));
    assert_eq!(model.rate(adopted), 250);
}

/// What is written to it, for others to see.
#[derive(Clone, Default)]
struct Written(std::rc::Rc<std::cell::RefCell<Vec<u8>>>);

impl std::io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_frame_is_one_update_of_the_terminal() {
    let written = Written::default();
    let backend = ratatui::backend::CrosstermBackend::new(written.clone());
    let viewport = ratatui::Viewport::Fixed(ratatui::layout::Rect::new(0, 0, 20, 2));
    let options = ratatui::TerminalOptions { viewport };
    let mut terminal = Terminal::with_options(backend, options).unwrap();
    super::draw_whole(&mut terminal, |frame| frame.render_widget("content", frame.area())).unwrap();
    let bytes = written.0.take();
    let text = String::from_utf8(bytes).unwrap();
    assert!(text.starts_with("\x1b[?2026h") && text.ends_with("\x1b[?2026l"), "{text:?}");
    assert!(text.contains("content"), "{text:?}");
}
