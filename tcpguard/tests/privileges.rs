//! What a daemon that guards may still do: no more than its engines need, which is enough for all that is asked of it until
//! it ends. Needs root.

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::setup::*;
use xtask::lab::{CLIENT_INTERFACE, GUARD_INTERFACE};

/// `CAP_NET_RAW` alone.
const NET_RAW: u64 = 1 << 13;
/// The lines of a `/proc/…/status` that say what somebody may do, inherit and become.
const MAY: [&str; 5] = ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:", "NoNewPrivs:"];

/// What a thread may do, in the order of [`MAY`].
fn may(status: &str) -> Result<[u64; 5]> {
    let mut masks = [0; 5];
    for (mask, name) in masks.iter_mut().zip(MAY) {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no such line")?;
        *mask = u64::from_str_radix(line.trim(), 16)?;
    }
    Ok(masks)
}

/// Engines may connect from other addresses, everybody else may do nothing that root may not leave behind.
fn assert_reduced(process: u32) -> Result<()> {
    let mut engines = 0;
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let thread = thread?.path();
        let name = fs::read_to_string(thread.join("comm"))?;
        let is_engine = name.starts_with(GUARD_INTERFACE);
        engines += u32::from(is_engine);
        let kept = if is_engine { NET_RAW } else { 0 };
        let held = may(&fs::read_to_string(thread.join("status"))?)?;
        assert_eq!(held, [0, kept, kept, 0, 1], "{}", name.trim_end());
    }
    assert_eq!(engines, 2);
    Ok(())
}

/// Has answers of the backend, which go to the clients themselves, come to the guard.
fn route_answers_back(setup: &Setup) -> Result<()> {
    let guard = setup.lab.guard();
    let sport = BACKEND_PORT.to_string();
    guard.output(
        "ip",
        &["rule", "add", "from", "127.0.0.1", "ipproto", "tcp", "sport", &sport, "lookup", "100"],
    )?;
    guard.output("ip", &["route", "add", "local", "default", "dev", "lo", "table", "100"])?;
    Ok(())
}

#[test]
fn a_daemon_that_guards_holds_next_to_no_privileges_and_does_all_that_is_asked_of_it() -> Result<()> {
    let setup = Setup::new()?;
    let (before, service) = (setup.link()?, SERVICE.to_string());
    let heard = setup.lab.dir().join("heard");
    let hook = format!("grep -E '^(Cap|NoNew)' /proc/self/status > {}", heard.display());
    let daemon = setup.daemon_from_file(&format!(
        "[events]\nhook = [\"/bin/sh\", \"-c\", {hook:?}]\n\
         [tunables]\nattack-connections = 1\nattack-calm-time = \"1s\"\n"
    ))?;
    assert_reduced(daemon.id())?;
    setup.fetch()?;

    setup.text(&["tune", "time-wait", "30s", "--save"])?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let text = fs::read_to_string(&file)?;
    ensure!(text.contains("time-wait = \"30s\""), "{text}");
    fs::write(&file, text.replace("30s", "20s"))?;
    setup.text(&["reload"])?;
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 20_000);

    // A socket with an address that is not this host's, in an engine.
    route_answers_back(&setup)?;
    setup.text(&["services", "set", &service, "source=client"])?;
    setup.fetch()?;
    let echo = "10.77.0.1:90";
    setup.text(&["services", "add", &format!("{echo}=respond:echo"), "--save"])?;
    setup.connect_to("10.77.0.1:90".parse::<std::net::SocketAddr>()?)?;
    setup.text(&["services", "del", echo, "--save"])?;
    for mode in ["cookie", "off", "stateful", "auto"] {
        setup.text(&["mode", &service, mode])?;
    }
    setup.text(&["dry-run", &service, "on"])?;
    setup.text(&["dry-run", &service, "off"])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24", "--confirm", "60"])?;
    setup.text(&["confirm"])?;
    let list = setup.lab.dir().join("list");
    fs::write(&list, "192.0.2.0/25\n198.51.100.0/24\n")?;
    setup.text(&["filters", "load", "--replace", &list.display().to_string()])?;
    setup.text(&["filters", "del", "198.51.100.0/24"])?;
    setup.text(&["keys", "rotate"])?;
    let mut open = setup.keep_alive()?;
    setup.text(&["flows", "--state", "established", "--kill"])?;
    assert!(std::io::Read::read(&mut open, &mut [0]).is_err(), "it was not killed");
    setup.text(&["explain", "--packet", &"00".repeat(60)])?;
    let capture = setup.lab.dir().join("capture.pcapng");
    std::thread::scope(|scope| {
        let shown =
            scope.spawn(|| setup.text(&["monitor", "--count", "5", "-w", &capture.display().to_string()]));
        while !shown.is_finished() {
            setup.fetch()?;
        }
        shown.join().expect("the monitor").map(drop)
    })?;
    for verb in ["status", "stats", "flows", "events", "config", "services", "filters"] {
        setup.json(&[verb])?;
    }

    // What changes on the interface, and a program that hears of an attack and may do no more than its daemon.
    let said = |what: &str| eventually(what, || Ok(setup.said().contains(what)));
    let guard = setup.lab.guard();
    setup.lab.client().ip(&format!("link set {CLIENT_INTERFACE} mtu 1300"))?;
    guard.ip(&format!("link set {GUARD_INTERFACE} mtu 1300"))?;
    said("the MTU changed from 1500 to 1300")?;
    guard.ip(&format!("link set {GUARD_INTERFACE} down\nlink set {GUARD_INTERFACE} up"))?;
    eventually("the hook", || {
        setup.fetch()?;
        Ok(fs::read_to_string(&heard).is_ok_and(|heard| heard.contains("NoNewPrivs")))
    })?;
    assert_eq!(may(&fs::read_to_string(&heard)?)?, [0, 0, 0, 0, 1], "the hook");
    assert_reduced(daemon.id())?;

    assert_eq!(daemon.stop(Duration::from_secs(60))?.code(), Some(0), "{}", setup.said());
    guard.ip(&format!("link set {GUARD_INTERFACE} mtu 1500"))?;
    assert_eq!((setup.pins(), setup.link()?), (0, before));
    assert!(!setup.control().exists());
    Ok(())
}

/// The options of setpriv(1) that leave somebody what the unit leaves the daemon.
fn of_unit() -> Result<Vec<String>> {
    let unit = include_str!("../dist/tcpguard.service");
    ensure!(unit.lines().any(|line| line == "NoNewPrivileges=yes"));
    let names = unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = names.context("no bounding set")?.split_whitespace();
    let added = names.map(|name| format!(",+{}", name.trim_start_matches("CAP_").to_lowercase()));
    let set = format!("--bounding-set=-all{}", added.collect::<String>());
    Ok(vec!["--no-new-privs".to_owned(), set])
}

#[test]
fn what_the_unit_leaves_the_daemon_is_enough_to_start_to_take_over_and_to_detach() -> Result<()> {
    const NOBODY: &str = "65534";
    let setup = Setup::new()?;
    let (before, service) = (setup.link()?, SERVICE.to_string());
    let start = || {
        let mut command = setup.lab.guard().command("setpriv");
        command.args(of_unit()?).arg(BINARY).args(setup.arguments()).args(["--group", NOBODY]);
        setup.start(&mut command)
    };
    route_answers_back(&setup)?;
    let daemon = start()?;
    assert_reduced(daemon.id())?;
    assert_eq!(fs::metadata(setup.control())?.gid().to_string(), NOBODY);
    setup.fetch()?;
    let mut orphan = setup.keep_alive()?;
    daemon.kill()?;
    assert!(setup.link()?.contains("xdp"));

    let daemon = start()?;
    assert!(setup.said().contains("taken over"), "{}", setup.said());
    assert_reduced(daemon.id())?;
    assert!(is_reset(&mut orphan)?, "nobody told the dead daemon's client");
    setup.text(&["services", "set", &service, "source=client"])?;
    setup.fetch()?;
    assert_eq!(daemon.stop(Duration::from_secs(60))?.code(), Some(0), "{}", setup.said());
    assert_eq!((setup.pins(), setup.link()?), (0, before));
    let said = setup.said();
    assert!(!said.contains("WARN") && !said.contains("ERROR"), "{said}");
    Ok(())
}
