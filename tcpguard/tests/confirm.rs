//! Changes on probation: what `--confirm` of each verb takes back when nobody confirms it in time, and what stays. Needs root.

mod support;

use std::io::Write as _;
use std::net::SocketAddrV4;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use support::setup::{BINARY, SERVICE, Setup, echoed, eventually, one_line};
use support::stuck::Stuck;
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Fault, Reply, Request};
use xtask::lab::GUARD_INTERFACE;

/// A configuration without the times that its filters have left: those are others at each look.
fn without_times(config: &str) -> String {
    let mut lines = config.split(" expires ");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |said, rest| said + rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()))
}

fn on_probation(seconds: u64, change: Request) -> Request {
    Request::OnProbation { seconds, change: Box::new(change) }
}

fn retries(value: &str, save: bool) -> Request {
    Request::Tune { service: None, name: Some("retries".into()), value: Some(value.into()), save }
}

#[test]
fn what_nobody_confirms_is_taken_back_even_if_its_client_died() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let spare = SocketAddrV4::new(*SERVICE.ip(), 82);
    let mut daemon = setup.daemon(&["--protect", &format!("{spare}=respond:echo")])?;
    let said = one_line(&setup.ask(&["confirm"])?, 2)?;
    assert!(said.contains("nothing waits"), "{said}");
    setup.text(&["filters", "add", "deny", "192.0.2.0/24", "--expires", "1h"])?;
    let state = || setup.text(&["config"]).map(|text| without_times(&text));
    let is_as = |before: &str| Ok::<_, anyhow::Error>(state()? == before);
    let before = state()?;
    ensure!(before.contains("192.0.2.0/24"), "{before}");

    // Each verb, its client long gone when the time is over.
    let own = ["--service", &SERVICE.to_string()];
    let list = setup.lab.dir().join("list");
    std::fs::write(&list, "203.0.113.0/24\nallow 2001:db8::/32\n")?;
    let changes: [&[&str]; 12] = [
        &["tune", "time-wait", "7s"],
        &["services", "add", &format!("{echo}=respond:echo")],
        &["services", "del", &spare.to_string()],
        &["mode", &SERVICE.to_string(), "stateful"],
        &["filters", "add", "deny", "198.51.100.0/24"],
        &["filters", "del", "192.0.2.0/24"],
        &["filters", "load", "--replace", &list.display().to_string()],
        &["filters", "flush"],
        &["services", "set", &SERVICE.to_string(), "max_connections=7"],
        &["dry-run", &SERVICE.to_string(), "on"],
        &["tune", "retries", "3", own[0], own[1]],
        &["tune", "--preset", "attack", "--yes"],
    ];
    for change in changes {
        let output = setup.ask(&[change, &["--confirm", "1"]].concat())?;
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        assert_eq!(said, "tcpguard: taken back in 1s unless `tcpguard confirm` follows\n");
        assert!(!is_as(&before)?, "{change:?} changed nothing");
        eventually("it is taken back", || is_as(&before))?;
    }
    assert_eq!(setup.json(&["filters"])?["total"], 1);
    assert!(setup.said().contains("not confirmed in time"), "{}", setup.said());
    // What was taken out serves again.
    echoed(&mut setup.connect_to(spare)?, b"back again")?;

    // A client that dies before it hears of its change.
    let mut socket = std::os::unix::net::UnixStream::connect(setup.control())?;
    socket.write_all(&on_probation(1, retries("3", false)).to_line())?;
    drop(socket);
    eventually("it is made all the same", || Ok(!is_as(&before)?))?;
    eventually("it is taken back all the same", || is_as(&before))?;

    // Two changes go back together, and the longer time counts.
    setup.text(&["tune", "time-wait", "7s", "--confirm", "600"])?;
    setup.text(&["mode", &SERVICE.to_string(), "stateful", "--confirm", "1"])?;
    let status = setup.text(&["status"])?;
    assert!(status.contains("unless `tcpguard confirm` follows"), "{status}");
    assert!(setup.json(&["status"])?["unconfirmed_ms"].as_u64() > Some(500_000));
    assert_eq!(setup.json(&["confirm"])?["confirmed"], true);
    let kept = state()?;
    assert!(kept.contains("\"7s\"") && kept.contains("\"stateful\"") && !is_as(&before)?, "{kept}");
    assert!(setup.json(&["status"])?["unconfirmed_ms"].is_null());

    // What could not be taken back, or would be in the file, is no change to confirm.
    let client = Client::new(&setup.control());
    for change in [Request::KeysRotate {}, on_probation(1, retries("3", false)), retries("3", true)] {
        let Reply::Error(refusal) = client.ask(&on_probation(1, change.clone()))? else {
            anyhow::bail!("{change:?}")
        };
        assert_eq!(refusal.kind, Fault::BadInput, "{refusal:?}");
    }
    assert_eq!(state()?, kept);

    // A change that is refused leaves nothing to confirm.
    one_line(&setup.ask(&["services", "del", "10.77.0.1:99", "--confirm", "600"])?, 2)?;
    one_line(&setup.ask(&["confirm"])?, 2)?;
    setup.fetch()?;

    // A start that nobody confirms ends in order.
    daemon.signal(rustix::process::Signal::TERM)?;
    eventually("the daemon ends", || Ok(daemon.ended()?.is_some()))?;
    let mut daemon = setup.daemon(&["--confirm", "2", "--set", "drain-time=0s"])?;
    eventually("it ends", || Ok(daemon.ended()?.is_some_and(|status| status.success())))?;
    assert_eq!(setup.pins(), 0);
    assert!(!setup.link()?.contains("xdp"), "{}", setup.link()?);
    let mut daemon = setup.daemon(&["--confirm", "600"])?;
    setup.text(&["confirm"])?;
    assert!(setup.json(&["status"])?["unconfirmed_ms"].is_null());
    assert!(daemon.ended()?.is_none());
    Ok(())
}

#[test]
fn a_reload_that_nobody_confirms_is_taken_back_whole() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("[tunables]\nretries = 8\n")?;
    let config = || setup.text(&["config"]);
    let before = config()?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let text = std::fs::read_to_string(&file)?;
    let service = SocketAddrV4::new(*SERVICE.ip(), 81);
    let added =
        format!("[[service]]\nlisten = \"{service}\"\nrespond = \"echo\"\ntunables = {{ retries = 2 }}\n");
    let filters = "[filters]\ndeny = [\"192.0.2.0/24\"]\n";
    std::fs::write(&file, text.replace("retries = 8", "retries = 9") + &added + filters)?;
    let said = setup.ask(&["reload", "--confirm", "1"])?;
    assert!(said.status.success(), "{said:?}");
    let changed = config()?;
    for line in ["retries = 9", "retries = 2", &service.to_string(), "deny 192.0.2.0/24"] {
        ensure!(changed.contains(line) && !before.contains(line), "{line}: {changed}");
    }
    eventually("all of it is taken back", || Ok(config()? == before))?;
    setup.text(&["reload", "--confirm", "60"])?;
    setup.text(&["confirm"])?;
    assert_eq!(config()?, changed);
    setup.fetch()
}

/// A verb that is still at it when this returns.
fn begun(setup: &Setup, arguments: &[&str]) -> Result<Child> {
    let mut command = Command::new(BINARY);
    command.args(arguments).arg("--control").arg(setup.control());
    Ok(command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// The time used to begin before there was anything to take back, and be over when there was.
#[test]
fn a_change_that_takes_longer_than_its_time_has_all_of_it_once_it_is_in_force() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("")?;
    let total = || setup.json(&["filters"])?["total"].as_u64().context("no total");
    let mut load = begun(&setup, &["filters", "load", "-", "--replace", "--confirm", "1"])?;
    sleep(Duration::from_millis(1500));
    load.stdin.take().context("no pipe")?.write_all(b"192.0.2.0/24\n")?;
    assert!(load.wait()?.success());
    assert_eq!(total()?, 1);
    eventually("the list is taken back", || Ok(total()? == 0))?;

    // A file that takes as long to read.
    let (file, list) = (setup.lab.dir().join("tcpguard.toml"), setup.lab.dir().join("list"));
    ensure!(Command::new("mkfifo").arg(&list).status()?.success());
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{text}[filters]\nfiles = [{list:?}]\n[tunables]\nretries = 3\n"))?;
    let retries = || setup.json(&["tune", "retries"])?["tunables"][0]["value"].as_u64().context("no value");
    let before = retries()?;
    let mut reload = begun(&setup, &["reload", "--confirm", "1"])?;
    sleep(Duration::from_millis(1500));
    // Nobody waits for the disk with it.
    setup.text(&["mode", &SERVICE.to_string(), "cookie"])?;
    std::fs::write(&list, "192.0.2.0/24\n198.51.100.0/24\n")?;
    assert!(reload.wait()?.success());
    assert_eq!((total()?, retries()?), (2, 3));
    eventually("all of it is taken back", || Ok((total()?, retries()?) == (0, before)))
}

/// Its probation used to end with it, and the rest of it used to be left out.
#[test]
fn a_change_that_fails_half_way_is_taken_back_too_and_made_as_far_as_it_can_be() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let daemon = setup.daemon(&["--protect", &format!("{echo}=respond:echo")])?;
    let before = setup.text(&["config"])?;
    echoed(&mut setup.connect_to(echo)?, b"before")?;
    let stuck = Stuck::thread(daemon.id(), &format!("{GUARD_INTERFACE}/0"));
    let said = setup.ask(&["services", "del", &echo.to_string(), "--confirm", "1"])?;
    let said = one_line(&said, 1)?;
    assert!(
        said.contains("part of the change may be in force") && said.contains("taken back in 1s"),
        "{said}"
    );
    let names = || setup.text(&["config"]).map(|config| config.contains(&echo.to_string()));
    ensure!(!names()?, "not as far as it could be");
    // The engine is waited for again.
    drop(stuck);
    eventually("it is put back", || Ok(setup.text(&["config"])? == before))?;
    // On each engine.
    for _ in 0..16 {
        echoed(&mut setup.connect_to(echo)?, b"and after")?;
    }
    assert!(setup.json(&["status"])?["unconfirmed_ms"].is_null());
    setup.fetch()
}

/// It used to be taken back without a word, after it had been saved at that.
#[test]
fn whoever_changes_something_beside_a_probation_is_told_and_saves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("[tunables]\nretries = 8\n")?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let written = std::fs::read_to_string(&file)?;
    let before = setup.text(&["config"])?;
    let left = || setup.json(&["status"])?["unconfirmed_ms"].as_u64().context("nothing to confirm");
    let service = SERVICE.to_string();
    setup.text(&["tune", "retries", "9", "--confirm", "6"])?;
    // Somebody else's change, which is not made: it neither ends that nor prolongs it.
    one_line(&setup.ask(&["filters", "del", "192.0.2.0/24", "--confirm", "600"])?, 2)?;
    assert!(left()? <= 6000);
    for change in [&["tune", "time-wait", "7s"][..], &["mode", &service, "cookie"], &["filters", "flush"]] {
        let output = setup.ask(change)?;
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr)?;
        ensure!(said.contains("not confirmed, and this one goes with it: taken back in "), "{said}");
    }
    let tuned = setup.json(&["tune", "time-wait", "8s"])?;
    ensure!(tuned["unconfirmed_ms"].as_u64().is_some_and(|left| left <= 6000), "{tuned}");
    for save in [
        &["tune", "time-wait", "9s", "--save"][..],
        &["tune", "retries", "3", "--service", &service, "--save"],
        &["services", "set", &service, "max_connections=7", "--save"],
    ] {
        let said = one_line(&setup.ask(save)?, 2)?;
        ensure!(said.contains("confirm first, then save"), "{said}");
    }
    eventually("everything is taken back", || Ok(setup.text(&["config"])? == before))?;
    assert_eq!(std::fs::read_to_string(&file)?, written);
    let saved = setup.ask(&["tune", "time-wait", "9s", "--save"])?;
    assert!(saved.status.success() && saved.stderr.is_empty(), "{saved:?}");
    // A second one joins, for as long as the longer of both is.
    setup.text(&["tune", "retries", "9", "--confirm", "600"])?;
    setup.text(&["mode", &service, "cookie", "--confirm", "1"])?;
    assert!(left()? > 500_000);
    setup.text(&["confirm"])?;
    assert!(setup.json(&["tune", "retries", "10"])?["unconfirmed_ms"].is_null());
    Ok(())
}
