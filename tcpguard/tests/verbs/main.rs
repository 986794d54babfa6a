//! Every verb against a live daemon, for people and for programs: what it prints is held against a snapshot, and its JSON
//! against the schema that is handed out for it. Needs root.

#[path = "../support/mod.rs"]
mod support;

mod schema;
mod snapshot;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use schema::{Schema, has_exact_numbers};
use serde_json::Value;
use snapshot::lasting;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::{BINARY, SERVICE, Setup, eventually};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use xtask::lab::FloodSpec;

/// A daemon, and which schemas its answers were held against.
struct Stage {
    setup: Setup,
    checked: RefCell<BTreeSet<String>>,
}

impl Stage {
    /// What a verb says to people, without what only this machine has.
    fn says(&self, arguments: &[&str]) -> Result<String> {
        Ok(self.anywhere(&self.setup.text(arguments)?))
    }

    fn anywhere(&self, said: &str) -> String {
        let lab = self.setup.lab.dir().display().to_string();
        let pins = self.setup.lab.pin_dir().display().to_string();
        said.replace(&pins, "PINS").replace(&lab, "LAB")
    }

    /// A verb that says the same each time.
    fn exact(&self, name: &str, arguments: &[&str]) -> Result<()> {
        snapshot::check(name, &self.says(arguments)?)
    }

    /// A verb of whose answer this lasts.
    fn part(&self, name: &str, arguments: &[&str], part: impl Fn(&str) -> String) -> Result<()> {
        snapshot::check(name, &part(&self.says(arguments)?))
    }

    /// What a verb says to programs.
    fn json(&self, form: &str, arguments: &[&str]) -> Result<Value> {
        let said = self.setup.text(&[arguments, &["--json"]].concat())?;
        let mut last = Value::Null;
        for line in said.lines() {
            last = self.line(form, line)?;
        }
        Ok(last)
    }

    /// Holds one line against a schema.
    fn line(&self, form: &str, line: &str) -> Result<Value> {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        Schema::named(form)?.check(&value).with_context(|| format!("{form}: {value}"))?;
        // That file has values as people write them.
        if form != "config" {
            has_exact_numbers(&value).with_context(|| form.to_owned())?;
        }
        self.checked.borrow_mut().insert(form.to_owned());
        Ok(value)
    }

    /// The first line that a verb prints which goes on for ever, while something happens.
    fn first_line(&self, arguments: &[&str], happens: impl Fn() -> Result<()>) -> Result<String> {
        let mut command = Command::new(BINARY);
        command.args(arguments).arg("--control").arg(self.setup.control()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no pipe")?).lines();
        let reader = std::thread::spawn(move || lines.next());
        while !reader.is_finished() {
            happens()?;
        }
        child.kill()?;
        child.wait()?;
        Ok(reader.join().ok().flatten().context("it said nothing")??)
    }
}

/// The lines that begin with one of these, or with nothing but capitals: a table's head.
fn lines<'a>(said: &'a str, kept: &[&str]) -> String {
    let is_head = |line: &str| {
        let word = line.split(' ').next().unwrap_or_default();
        let is_capital = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
        word.len() > 2 && word.starts_with(|c: char| c.is_ascii_uppercase()) && word.chars().all(is_capital)
    };
    let keeps = |line: &&'a str| is_head(line) || kept.iter().any(|kept| line.starts_with(kept));
    said.lines().filter(keeps).map(|line| line.to_owned() + "\n").collect()
}

/// Whatever `stats` prints a number for, `explain` knows.
fn every_count_is_explained(setup: &Setup, explained: &Value) -> Result<()> {
    let names = |of: &str, key: &str| -> Result<BTreeSet<String>> {
        let entries = explained[of].as_array().with_context(|| format!("no {of}"))?;
        Ok(entries.iter().filter_map(|entry| Some(entry[key].as_str()?.to_owned())).collect())
    };
    let (reasons, counters, groups) =
        (names("reasons", "name")?, names("counters", "name")?, names("counters", "group")?);
    let stats = setup.json(&["stats", "--all"])?;
    let rows = stats["reasons"].as_array().context("no reasons")?;
    for row in rows {
        ensure!(row["name"].as_str().is_some_and(|name| reasons.contains(name)), "{row}");
    }
    let totals = stats["totals"].as_object().context("no totals")?;
    ensure!(totals.contains_key("ring"), "{totals:?}");
    for (group, counted) in totals {
        ensure!(groups.contains(group), "nothing of group {group} is explained");
        for name in counted.as_object().context("no counters")?.keys() {
            ensure!(counters.contains(name), "{group} {name} is not explained");
        }
    }
    let text = setup.text(&["stats", "--all"])?;
    let head = text.lines().find(|line| line.starts_with("SERVICE ")).context("no table of services")?;
    for column in head.split_whitespace().skip(2) {
        ensure!(counters.contains(column), "column {column} is not explained");
    }
    Ok(())
}

/// Services have rates only if something came within the quarter of a second that they are over.
fn without_rates(said: &str) -> String {
    let sections = said.split("\n\n").filter(|section| !section.starts_with("EACH SECOND"));
    sections.collect::<Vec<_>>().join("\n\n")
}

/// What stands in the first column.
fn first_column(said: &str) -> String {
    let rows = said.lines().take_while(|line| !line.is_empty());
    rows.map(|line| line.split("  ").next().unwrap_or_default().to_owned() + "\n").collect()
}

/// Which addresses a flood is from is random, and how many are told.
fn without_sources(said: &str) -> String {
    let line = |line: &str| {
        let known = line.split(", from ").next().unwrap_or_default();
        known.split("  >=").next().unwrap_or_default().to_owned() + "\n"
    };
    lasting(said).lines().map(line).collect()
}

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_verb_prints_what_its_snapshot_has_and_json_that_its_schema_describes() -> Result<()> {
    let mut stage = Stage { setup: Setup::new()?, checked: RefCell::default() };
    let setup = &stage.setup;
    let mut daemon = setup.daemon_from_file("queues = 2\n[events] # Nobody hears of them.\n")?;
    let service = SERVICE.to_string();
    let banner: String = setup.said().lines().filter(|line| line.contains("guarding ")).collect();
    snapshot::check("run", &lasting(&banner))?;
    let _open = setup.keep_alive()?;
    for _ in 0..3 {
        setup.fetch()?;
    }
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;

    // What there is.
    stage.part("status", &["status"], |said| {
        let said = said.split(", most so ").next().unwrap_or_default();
        lasting(said)
    })?;
    stage.part("status-limits", &["status", "--limits"], |said| lasting(&first_column(said)))?;
    stage.json("status", &["status"])?;
    let rows = ["up ", "syn-stateful", "ack-valid", "bad-flags", "10.77.", "stack  adopted"];
    stage.part("stats", &["stats", "--all"], |said| lines(&lasting(&without_rates(said)), &rows))?;
    stage.json("stats", &["stats"])?;
    stage.part("flows", &["flows", "--state", "established"], lasting)?;
    stage.part("flows-time-wait", &["flows", "--time-wait"], lasting)?;
    stage.json("flows", &["flows", "--sort", "age"])?;
    stage.exact("services", &["services"])?;
    stage.json("services", &["services"])?;
    stage.exact("filters", &["filters"])?;
    stage.json("filters", &["filters"])?;
    stage.exact("mode", &["mode"])?;
    stage.json("mode", &["mode"])?;
    stage.part("tune", &["tune"], |said| lines(&lasting(said), &["NAME", "time-wait ", "strict "]))?;
    stage.exact("tune-one", &["tune", "time-wait"])?;
    stage.json("tune", &["tune"])?;
    stage
        .part("config", &["config"], |said| said.split("[tunables]").next().unwrap_or_default().to_owned())?;
    stage.json("config", &["config"])?;
    stage.exact("explain-reason", &["explain", "ack-invalid"])?;
    stage.exact("explain-counter", &["explain", "no-buffer"])?;
    stage.part("explain", &["explain"], |said| {
        lines(&lasting(said), &["REASON", "ack-invalid", "cookie-sent ", "COUNTER", "no-buffer"])
    })?;
    every_count_is_explained(setup, &stage.json("explain", &["explain"])?)?;
    let file = setup.lab.dir().join("tcpguard.toml").display().to_string();
    stage.exact("check", &["check", &file])?;
    stage.json("check", &["check", &file])?;
    stage.exact("schema", &["schema"])?;
    stage.part("features", &["features"], first_column)?;
    stage.json("features", &["features"])?;

    // What is bad depends on the machine.
    let doctor = |more: &[&str]| -> Result<String> {
        let mut command = setup.lab.guard().command(BINARY);
        Ok(String::from_utf8(command.args(["doctor", "--config", &file]).args(more).output()?.stdout)?)
    };
    snapshot::check("doctor", &first_column(&doctor(&[])?))?;
    stage.line("doctor", doctor(&["--json"])?.trim_end())?;

    // Packets.
    let raw = RawPort::open(&setup.lab, Ipv4Addr::new(10, 77, 0, 99));
    let syn = Outgoing { seq: Seq(7), flags: Flags::SYN, options: linux_options(), ..Outgoing::default() };
    let syn = hex(&raw.frame(40_000, SERVICE.port(), &syn));
    stage.part("explain-packet", &["explain", "--packet", &syn], lasting)?;
    stage.json("explain-packet", &["explain", "--packet", &syn])?;
    let segment = ["cookie", "decode", "10.77.0.99:40000", &service, "--seq", "8", "--ack", "78"];
    stage.part("cookie-decode", &segment, lasting)?;
    stage.json("cookie-decode", &segment)?;
    let monitor = ["monitor", "--reason", "syn-stateful"];
    snapshot::check("monitor", &lasting(&stage.first_line(&monitor, || setup.fetch())?))?;
    let line = stage.first_line(&[&monitor[..], &["--json"]].concat(), || setup.fetch())?;
    stage.line("monitor", &line)?;

    // What changes.
    stage.exact("tune-set", &["tune", "time-wait", "30s"])?;
    stage.json("tune-set", &["tune", "time-wait", "40s", "--save"])?;
    stage.exact("tune-preset", &["tune", "--preset", "attack"])?;
    stage.json("tune-preset", &["tune", "--preset", "attack", "--yes"])?;
    stage.exact("mode-set", &["mode", &service, "stateful"])?;
    stage.json("mode-set", &["mode", &service, "auto"])?;
    stage.exact("dry-run", &["dry-run", &service, "on"])?;
    stage.json("dry-run", &["dry-run", &service, "off"])?;
    stage.exact("services-add", &["services", "add", "10.77.0.1:81=respond:echo"])?;
    stage.exact("services-set", &["services", "set", "10.77.0.1:81", "max_connections=10"])?;
    stage.exact("services-del", &["services", "del", "10.77.0.1:81"])?;
    stage.json("services-change", &["services", "add", "10.77.0.1:82=respond:echo"])?;
    stage.json("services-change", &["services", "del", "10.77.0.1:82"])?;
    stage.exact("filters-add", &["filters", "add", "allow", "198.51.100.7", "--expires", "1h"])?;
    stage.exact("filters-del", &["filters", "del", "198.51.100.7"])?;
    let list = setup.lab.dir().join("list").display().to_string();
    std::fs::write(&list, "203.0.113.0/24\nallow 2001:db8::/32\n")?;
    stage.exact("filters-load", &["filters", "load", &list])?;
    stage.json("filters-change", &["filters", "load", "--replace", &list])?;
    stage.exact("filters-flush", &["filters", "flush", "allow"])?;
    stage.exact("flows-kill", &["flows", "--kill", "--peer", "203.0.113.9"])?;
    stage.json("flows-kill", &["flows", "--kill", "--peer", "203.0.113.9"])?;
    stage.part("keys-rotate", &["keys", "rotate"], lasting)?;
    stage.json("keys-rotate", &["keys", "rotate"])?;
    stage.exact("reload", &["reload"])?;
    stage.json("reload", &["reload"])?;
    setup.text(&["tune", "time-wait", "30s", "--confirm", "60"])?;
    stage.part("status-unconfirmed", &["status"], |said| lasting(&lines(said, &["not confirmed"])))?;
    stage.exact("confirm", &["confirm"])?;
    setup.text(&["tune", "time-wait", "40s", "--confirm", "60"])?;
    stage.json("confirm", &["confirm"])?;

    // An attack.
    stage.exact("events-none", &["events"])?;
    setup.text(&["tune", "attack-syns", "200"])?;
    let flood = stage.setup.lab.flood(SERVICE.port(), FloodSpec { rate: 5000, ..FloodSpec::default() })?;
    eventually("it is noticed, and where it is from", || {
        let events = stage.json("events", &["events"])?;
        Ok(events["ongoing"][0]["prefixes"].as_array().is_some_and(|prefixes| !prefixes.is_empty()))
    })?;
    stage.part("events", &["events"], without_sources)?;
    stage.part("status-attacked", &["status"], |said| without_sources(&lines(said, &["under attack"])))?;
    ensure!(!stage.json("status", &["status"])?["attacks"][0]["prefixes"][0].is_null());
    let follow = ["events", "--follow"];
    let wait = || {
        std::thread::sleep(std::time::Duration::from_millis(20));
        Ok(())
    };
    snapshot::check("events-follow", &without_sources(&stage.first_line(&follow, wait)?))?;
    stage.line("events-follow", &stage.first_line(&[&follow[..], &["--json"]].concat(), wait)?)?;
    flood.stop()?;

    // What a killed daemon leaves.
    daemon.child().kill()?;
    daemon.child().wait()?;
    let pins = stage.setup.lab.pin_dir().display().to_string();
    let detach = ["detach", "--pin-dir", &pins];
    stage.exact("detach", &detach)?;
    assert_eq!(stage.json("detach", &detach)?["detached"], false);

    let all: BTreeSet<String> = Schema::names()?.into_iter().collect();
    let unchecked: Vec<_> = all.difference(&stage.checked.borrow()).cloned().collect();
    ensure!(unchecked.is_empty(), "no output was held against {unchecked:?}");
    Ok(())
}
