//! `tcpguard top` in a real terminal: tmux runs it, types into it, and says what is on its screen. Needs root.

mod support;

#[path = "verbs/snapshot.rs"]
mod snapshot;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use snapshot::lasting;
use support::setup::{BACKEND_PORT, BINARY, SERVICE, Setup, eventually, one_line};
use xtask::lab::{FloodSpec, Terminal};

/// What people have had since the VT100.
const SIZE: (u16, u16) = (80, 24);

/// Waits until this is on the screen.
fn shows(terminal: &Terminal, what: &str) -> Result<()> {
    let mut last = String::new();
    let found = eventually(what, || {
        last = terminal.screen()?;
        Ok(last.contains(what))
    });
    found.with_context(|| last.clone())
}

/// The screen once nothing on it changes but times and rates: a page may be looked at while it is drawn.
fn settled(terminal: &Terminal) -> Result<String> {
    let mut screen = terminal.screen()?;
    eventually("the page is drawn", || {
        std::thread::sleep(Duration::from_millis(100));
        let before = std::mem::replace(&mut screen, terminal.screen()?);
        Ok(lasting(&before) == lasting(&screen))
    })?;
    Ok(screen)
}

#[test]
fn top_shows_an_attack_states_services_and_tunables_and_ends_on_q() -> Result<()> {
    let mut setup = Setup::new()?;
    let daemon = setup.daemon(&["--set", "attack-syns=500", "--set", "attack-calm-time=1s"])?;
    let refused = one_line(&setup.ask(&["top"])?, 2)?;
    ensure!(refused.contains("needs a terminal"), "{refused}");
    let kept = setup.keep_alive()?;
    let ended = setup.lab.dir().join("ended");
    let (control, ended_at) = (setup.control().display().to_string(), ended.display().to_string());
    let top = format!("{BINARY} --control {control} top --interval 0.2; echo $? > {ended_at}");
    let terminal = Terminal::run(&setup.lab.dir(), SIZE, &top)?;
    shows(&terminal, "no attack")?;
    // Each page while nothing comes, as it stands on the screen: the headline's times apart, to the blank.
    for (key, name, last) in
        [("1", "top-rates", "DROPPED"), ("2", "top-states", "RST: 0/s"), ("3", "top-services", "10.77.0.2:")]
    {
        terminal.press(&[key])?;
        shows(&terminal, last)?;
        let screen = settled(&terminal)?;
        let (headline, rest) = screen.split_once('\n').context("an empty screen")?;
        let rest = if key == "3" { lasting(rest) } else { rest.to_owned() };
        snapshot::check(name, &(lasting(headline) + &rest))?;
    }
    terminal.press(&["1"])?;
    let flood = setup.lab.flood(SERVICE.port(), FloodSpec { rate: 5000, ..FloodSpec::default() })?;
    shows(&terminal, &format!("under attack: {SERVICE}: syn-flood "))?;
    ensure!(terminal.painted()?.contains("\x1b["), "colours");
    terminal.press(&["2"])?;
    shows(&terminal, "ESTABLISHED 1")?;
    terminal.press(&["Tab"])?;
    shows(&terminal, "SENDS MOST")?;
    shows(&terminal, "10.77.0.2:")?;
    terminal.press(&["4"])?;
    shows(&terminal, "time-wait")?;
    terminal.press(&["Enter", "7s", "Enter"])?;
    shows(&terminal, "time-wait: 1m -> 7s")?;
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 7000);
    terminal.press(&["Enter", "7h", "Enter"])?;
    shows(&terminal, "out of range")?;
    flood.stop()?;
    shows(&terminal, "no attack")?;
    for line in terminal.screen()?.lines() {
        ensure!(line.chars().count() <= 80, "{line}");
    }
    terminal.press(&["q"])?;
    eventually("it ends", || Ok(std::fs::read_to_string(&ended).is_ok_and(|code| code == "0\n")))?;
    drop((terminal, kept));

    // Without colours, and after the daemon has gone.
    let top = format!("NO_COLOR=1 {BINARY} --control {control} top --interval 0.2");
    let terminal = Terminal::run(&setup.lab.dir(), SIZE, &top)?;
    shows(&terminal, "no attack")?;
    let drawn = terminal.painted()?;
    // The terminal's own colours are none of ours.
    let chosen = drawn.replace("\x1b[39m", "").replace("\x1b[49m", "");
    ensure!(!chosen.contains("\x1b[3") && !chosen.contains("\x1b[4"), "{drawn:?}");
    drop(daemon);
    shows(&terminal, "no daemon answers there")?;
    terminal.press(&["q"])
}

/// What stands on the screen behind this, up to a blank.
fn behind<'a>(screen: &'a str, what: &str) -> &'a str {
    screen.split_once(what).and_then(|(_, after)| after.split_whitespace().next()).unwrap_or_default()
}

#[test]
fn top_shows_several_attacks_long_addresses_and_what_goes_along_the_edges() -> Result<()> {
    const LONG: &str = "fd77:1111:2222:3333:4444:5555:6666:7777";
    let mut setup = Setup::new()?;
    setup.lab.guard().ip(&format!("addr add {LONG}/64 dev guard0 nodad"))?;
    setup.lab.client().ip("addr add fd77:1111:2222:3333::2/64 dev client0 nodad")?;
    let service: SocketAddr = format!("[{LONG}]:65535").parse()?;
    let _daemon = setup.daemon(&[
        "--protect",
        &format!("{service}=127.0.0.1:{BACKEND_PORT}"),
        "--set",
        "attack-syns=500",
        "--set",
        "attack-connections=1",
    ])?;
    let top = format!("{BINARY} --control {} top --interval 0.5", setup.control().display());
    let terminal = Terminal::run(&setup.lab.dir(), SIZE, &top)?;
    shows(&terminal, "no attack")?;
    terminal.press(&["2"])?;
    // The service remembers these SYNs, answers no cookie, and closes first.
    let is_some = |rate: &str| rate.ends_with("/s") && rate != "0/s";
    let mut screen = String::new();
    let edges = eventually("something goes along the edges", || {
        (0..5).try_for_each(|_| setup.fetch_from(service))?;
        screen = terminal.screen()?;
        // The number of the remembered stands in the line below, behind that of the cookies.
        let remembered = behind(&screen, "+---+    +---+");
        Ok([remembered, behind(&screen, "close: "), behind(&screen, "|        ACK: ")]
            .into_iter()
            .all(is_some))
    });
    edges.with_context(|| screen.clone())?;
    assert_eq!(behind(&screen, "ACK: valid         |            |"), "0/s", "{screen}");

    let flood = setup.lab.flood(SERVICE.port(), FloodSpec { rate: 5000, ..FloodSpec::default() })?;
    let banner = eventually("both attacks are on", || {
        (0..10).try_for_each(|_| setup.fetch_from(service))?;
        screen = terminal.screen()?;
        Ok(screen.contains("under attack (+1): "))
    });
    banner.with_context(|| screen.clone())?;
    terminal.press(&["3"])?;
    shows(&terminal, "SENDS MOST")?;
    shows(&terminal, "7777]:65535 ")?;
    screen = terminal.screen()?;
    for line in screen.lines().filter(|line| line.contains("[fd77")) {
        ensure!(line.contains('…') || line.contains(&service.to_string()), "{line}\n{screen}");
    }
    flood.stop().map(drop)
}

/// The process of the one `tcpguard top` that asks this daemon.
fn process_of(control: &str) -> Result<u32> {
    let processes = std::fs::read_dir("/proc")?.flatten();
    let mut numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let is_top = |number: &u32| {
        let line = std::fs::read(format!("/proc/{number}/cmdline")).unwrap_or_default();
        let words: Vec<_> = line.split(|&byte| byte == 0).collect();
        words[0] == BINARY.as_bytes() && words.contains(&&b"top"[..]) && words.contains(&control.as_bytes())
    };
    numbers.find(is_top).context("no such process")
}

/// The time that a process has had a CPU for so far, and how nice it is (proc_pid_stat(5)).
fn cpu_time(process: u32) -> Result<(Duration, i32)> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    let fields: Vec<&str> = fields.split(' ').collect();
    let ticks = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    // A tick is 10 ms in all that is told to programs.
    Ok((Duration::from_millis(10 * ticks), fields[16].parse()?))
}

/// In raw mode Ctrl-C is a key as well: it used to wait, as `q` and Esc did, for the daemon's answer, half a minute and more.
#[test]
fn top_costs_next_to_nothing_and_ends_on_a_key_while_the_daemon_does_not_answer() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon(&[])?;
    let _kept = setup.keep_alive()?;
    let ended = setup.lab.dir().join("ended");
    let (control, ended_at) = (setup.control().display().to_string(), ended.display().to_string());
    for key in ["q", "Escape", "C-c"] {
        let top = format!("{BINARY} --control {control} top; echo $? > {ended_at}");
        let terminal = Terminal::run(&setup.lab.dir(), SIZE, &top)?;
        shows(&terminal, "no attack")?;
        terminal.press(&["3"])?;
        shows(&terminal, "10.77.0.2:")?;
        if key == "q" {
            let process = process_of(&control)?;
            let ((before, _), time) = (cpu_time(process)?, Duration::from_secs(3));
            std::thread::sleep(time);
            let (after, nice) = cpu_time(process)?;
            ensure!(after - before < time / 10, "{:?} of {time:?}", after - before);
            ensure!(nice >= 10, "engines go before it: {nice}");
        }
        daemon.signal(Signal::STOP)?;
        shows(&terminal, "the daemon has not answered for ")?;
        let pressed = Instant::now();
        terminal.press(&[key])?;
        eventually("it ends", || Ok(std::fs::read_to_string(&ended).is_ok_and(|code| code == "0\n")))?;
        ensure!(pressed.elapsed() < Duration::from_secs(5), "{key}: after {:?}", pressed.elapsed());
        daemon.signal(Signal::CONT)?;
        std::fs::remove_file(&ended)?;
        drop(terminal);
        eventually("the daemon answers", || Ok(setup.ask(&["status"])?.status.success()))?;
    }
    Ok(())
}

#[test]
fn help_is_coloured_on_a_terminal_unless_no_color_is_set() -> Result<()> {
    let dir = std::env::temp_dir().join(format!("tcpguard-help-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    for (set, is_coloured) in [("NO_COLOR=", true), ("NO_COLOR=1", false)] {
        let terminal = Terminal::run(&dir, SIZE, &format!("{set} {BINARY} confirm --help; sleep 60"))?;
        shows(&terminal, "Examples:")?;
        let painted = terminal.painted()?;
        ensure!(painted.contains("\x1b[") == is_coloured, "{set}: {painted:?}");
    }
    Ok(std::fs::remove_dir_all(dir)?)
}
