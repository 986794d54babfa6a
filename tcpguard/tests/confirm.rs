//! Changes on probation: what `--confirm` of each verb takes back when nobody confirms it in time, and what stays. Needs root.

mod support;

use std::io::Write as _;
use std::net::SocketAddrV4;

use anyhow::{Result, ensure};
use support::setup::{SERVICE, Setup, echoed, eventually, one_line};
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Reply, Request};

/// A configuration without the times that its filters have left: those are others at each look.
fn without_times(config: &str) -> String {
    let mut lines = config.split(" expires ");
    let first = lines.next().unwrap_or_default().to_owned();
    lines.fold(first, |said, rest| said + rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric()))
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
    let client = Client::new(&setup.control());
    let Reply::Held(_) = client.ask(&Request::Hold { seconds: 1 })? else { anyhow::bail!("not held") };
    let tune =
        Request::Tune { service: None, name: Some("retries".into()), value: Some("3".into()), save: false };
    let mut socket = std::os::unix::net::UnixStream::connect(setup.control())?;
    socket.write_all(&tune.to_line())?;
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
