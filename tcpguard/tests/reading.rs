//! Verbs that read, as an operator needs them in a bad hour: what is about to run out, what came since a moment of one's own
//! choice, and lines that the journal understands. Needs root.

mod support;

use std::os::unix::fs::MetadataExt as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::setup::{BINARY, SERVICE, Setup, eventually, one_line};
use xtask::lab::FloodSpec;

/// A row of what `status` says is bounded.
fn limit(status: &Value, name: &str) -> Result<Value> {
    let limits = status["limits"].as_array().context("no limits")?;
    limits.iter().find(|limit| limit["name"] == name).cloned().with_context(|| format!("no {name}: {status}"))
}

#[test]
fn status_says_how_old_the_keys_are_and_what_is_about_to_run_out() -> Result<()> {
    let mut setup = Setup::new()?;
    let _daemon =
        setup.daemon_from_file("queues = 2\n[tunables]\ncookie-period = \"2m\"\nservice-flows = 5\n")?;
    let status = setup.json(&["status"])?;
    let keys = &status["keys"];
    let millis = |name: &str| keys[name].as_u64().context("not a number");
    // Both are read at one moment.
    assert_eq!(millis("age_ms")?.max(1) / 120_001, 0, "{keys}");
    ensure!(millis("next_ms")? <= 120_000 && millis("secret_age_ms")? < 60_000, "{keys}");
    assert_eq!((millis("period_ms")?, &keys["secret_file"]), (120_000, &Value::Null));
    for engine in status["engines"].as_array().context("no engines")? {
        assert_eq!((&engine["turns"], &engine["pressed"]), (&true.into(), &false.into()), "{engine}");
        ensure!(engine["turned_ms"].as_u64() < Some(1000), "{engine}");
    }
    let near = |status: &Value| {
        status["limits"].as_array().is_some_and(|all| all.iter().any(|row| row["near"] == true))
    };
    ensure!(!near(&status), "{status}");
    let text = setup.text(&["status"])?;
    ensure!(text.contains("\ncookie key ") && text.contains("(each for 2m), secret random, "), "{text}");
    ensure!(text.contains("\nlimits: nothing is nearly full"), "{text}");
    for name in [
        "flow-table-ipv6",
        "accept-queue",
        "send-memory",
        "receive-memory",
        "orphans",
        "descriptors",
        "filters",
    ] {
        assert_eq!(limit(&status, name)?["used"], 0, "{name}");
    }

    // Each by what fills it: connections, connections of the server's closing, and SYNs that nobody acknowledges.
    setup.text(&["services", "set", &SERVICE.to_string(), "max_connections=5"])?;
    let open: Vec<_> = (0..4).map(|_| setup.keep_alive()).collect::<Result<_>>()?;
    let status = setup.json(&["status"])?;
    for name in ["service-connections", "service-flows"] {
        let row = limit(&status, name)?;
        let expected = (&4.into(), &5.into(), &800.into(), &true.into(), &SERVICE.to_string().into());
        assert_eq!(
            (&row["used"], &row["limit"], &row["permille"], &row["near"], &row["of"]),
            expected,
            "{row}"
        );
    }
    assert_eq!(limit(&status, "flow-table-ipv4")?["used"], 4);
    assert_eq!(limit(&status, "descriptors")?["used"], 4);
    let text = setup.text(&["status"])?;
    let expected = format!(
        "nearly full: service-connections of {SERVICE} (4 of 5, 80.0%); tcpguard services set {SERVICE} max_connections=N"
    );
    ensure!(text.contains(&expected), "{text}");
    drop(open);
    setup.text(&["services", "set", &SERVICE.to_string(), "max_connections="])?;
    setup.text(&["tune", "service-flows", "0"])?;

    setup.text(&["tune", "time-wait-limit", "8"])?;
    for _ in 0..24 {
        setup.fetch()?;
    }
    setup.text(&["tune", "half-open-limit", "8"])?;
    let flood = FloodSpec { rate: 500, total: Some(100), ..FloodSpec::default() };
    setup.lab.flood(SERVICE.port(), flood)?.finish()?;
    eventually("both are full", || {
        let status = setup.json(&["status"])?;
        let full = |name| Ok::<_, anyhow::Error>(limit(&status, name)?["near"] == true);
        Ok(full("half-open-ipv4")? && full("time-wait-ipv4")? && !full("half-open-ipv6")?)
    })?;
    let text = setup.text(&["status"])?;
    let said = |name: &str, remedy: &str| {
        let line =
            text.lines().find(|line| line.starts_with(&format!("nearly full: {name} of guard0 queue ")));
        line.is_some_and(|line| line.contains(" of 8, ") && line.contains(remedy))
    };
    ensure!(said("half-open-ipv4", "tcpguard tune half-open-limit N"), "{text}");
    ensure!(said("time-wait-ipv4", "tcpguard tune time-wait-limit N"), "{text}");
    let table = setup.text(&["status", "--limits"])?;
    ensure!(table.lines().count() > 10 && table.starts_with("LIMIT "), "{table}");

    let rotated = setup.json(&["status"])?["keys"]["secret_age_ms"].as_u64();
    std::thread::sleep(Duration::from_millis(50));
    setup.text(&["keys", "rotate"])?;
    ensure!(setup.json(&["status"])?["keys"]["secret_age_ms"].as_u64() < rotated, "the secret is no younger");
    Ok(())
}

#[test]
fn a_view_has_a_zero_point_of_its_own_and_the_daemon_counts_on() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let state = setup.lab.dir().join("state");
    let view = |arguments: &[&str]| {
        let mut command = Command::new(BINARY);
        command.arg("stats").args(arguments).arg("--control").arg(setup.control());
        command.env("XDG_STATE_HOME", &state).output().context("running tcpguard")
    };
    let json = |arguments: &[&str]| -> Result<Value> {
        let output = view(&[arguments, &["--json"]].concat())?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let counts = |stats: &Value| -> Result<[Value; 3]> {
        let reasons = stats["reasons"].as_array().context("no reasons")?;
        let valid = reasons.iter().find(|reason| reason["name"] == "ack-valid").context("no such reason")?;
        Ok([&valid["total"], &stats["services"][0]["syns"], &stats["totals"]["stack"]["adopted"]]
            .map(Value::clone))
    };
    let said = one_line(&view(&["--since-reset"])?, 2)?;
    ensure!(said.contains("no zero point yet: `tcpguard stats --reset-view` sets one"), "{said}");
    setup.fetch()?;
    setup.fetch()?;
    let reset = json(&["--reset-view"])?;
    assert_eq!(counts(&reset)?, [0, 0, 0].map(Value::from));
    ensure!(reset["since_ms"].as_u64() > Some(0));
    setup.fetch()?;
    let since = json(&["--since-reset"])?;
    assert_eq!(counts(&since)?, [1, 1, 1].map(Value::from));
    // Amounts are what there is, whatever one counts from.
    assert_eq!((&since["states"]["TIME_WAIT"], &since["since_ms"]), (&3.into(), &reset["since_ms"]));
    let all = json(&[])?;
    assert_eq!((counts(&all)?, &all["since_ms"]), ([3, 3, 3].map(Value::from), &Value::Null));
    let text = String::from_utf8(view(&["--since-reset"])?.stdout)?;
    ensure!(text.lines().next().is_some_and(|line| line.contains(", counted since 20")), "{text}");
    // Whoever has a home of his own has a view of his own.
    let said =
        one_line(&setup.feed(&["stats", "--since-reset"], b"", &[("XDG_STATE_HOME", "/nonexistent")])?, 2)?;
    ensure!(said.contains("no zero point yet"), "{said}");
    Ok(())
}

#[test]
fn what_the_daemon_says_to_the_journal_has_priorities_and_leaves_time_to_it() -> Result<()> {
    let setup = Setup::new()?;
    let stream = |log: &std::fs::Metadata| format!("{}:{}", log.dev(), log.ino());
    let journal = stream(&std::fs::File::create(setup.log())?.metadata()?);
    let mut command = setup.lab.guard().command(BINARY);
    command.args(setup.arguments()).args(["--log", "debug"]).env("JOURNAL_STREAM", &journal);
    let daemon = setup.start(&mut command)?;
    setup.text(&["tune", "time-wait", "30s"])?;
    daemon.stop(Duration::from_secs(20))?;
    let said = setup.said();
    let is_for_journal = |line: &str| {
        let digit = line.strip_prefix('<').and_then(|line| line.split_once('>'));
        digit.is_some_and(|(digit, text)| matches!(digit, "3" | "4" | "6" | "7") && !text.starts_with("20"))
    };
    ensure!(said.lines().count() > 2 && said.lines().all(is_for_journal), "{said}");
    ensure!(said.contains("<6>guarding guard0") && said.contains("<6>time-wait: 1m -> 30s"), "{said}");
    ensure!(!said.contains('\x1b'), "{said}");

    // A daemon that does not start says why with the priority of an error; elsewhere than in the journal without any.
    let refused = |stream: &str| -> Result<String> {
        let said = setup.lab.dir().join("refused.log");
        let file = std::fs::File::create(&said)?;
        let stream =
            stream.replace("HERE", &format!("{}:{}", file.metadata()?.dev(), file.metadata()?.ino()));
        let mut command = Command::new(BINARY);
        command.args(["run", "-i", "lo"]).env("JOURNAL_STREAM", stream).stderr(file);
        ensure!(command.status()?.code() == Some(2));
        Ok(std::fs::read_to_string(said)?)
    };
    ensure!(refused("HERE")?.starts_with("<3>tcpguard: "), "{}", refused("HERE")?);
    ensure!(refused(&journal)?.starts_with("tcpguard: "), "{}", refused(&journal)?);
    Ok(())
}
