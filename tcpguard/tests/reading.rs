//! Verbs that read, as an operator needs them in a bad hour: what is about to run out, what came since a moment of one's own
//! choice, what would become of a packet, what is in force, what would keep a guard from starting, and lines that the journal
//! understands. Needs root.

mod support;

use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::{BINARY, SERVICE, Setup, eventually, one_line};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use xtask::lab::{FloodSpec, GUARD_INTERFACE};

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

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What stands in a packet's way to a service, as it is explained.
fn place_explained(setup: &Setup, frame: &[u8]) -> Result<Value> {
    let said = setup.json(&["explain", "--packet", &hex(frame)])?;
    let steps = said["steps"].as_array().context("no steps")?;
    let place = steps.iter().find(|step| step["step"] == "service place");
    place.map(|step| step["found"].clone()).with_context(|| format!("no service place: {said}"))
}

/// What a test compares: the verdict, and what was asked on the way to it.
fn explained(setup: &Setup, frame: &[u8]) -> Result<(Value, Vec<String>)> {
    let mut said = setup.json(&["explain", "--packet", &hex(frame)])?;
    let steps = said["steps"].as_array().context("no steps")?.iter();
    let steps = steps.map(|step| step["step"].as_str().unwrap_or_default().to_owned()).collect();
    Ok((said["reason"].take(), steps))
}

#[test]
fn a_packet_is_explained_as_it_would_be_judged_and_nothing_changes() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.text(&["mode", &SERVICE.to_string(), "cookie"])?;
    let raw = RawPort::open(&setup.lab, Ipv4Addr::new(10, 77, 0, 99));
    let to = SERVICE.port();
    let syn = raw.frame(
        40000,
        to,
        &Outgoing { seq: Seq(7), flags: Flags::SYN, options: linux_options(), ..Outgoing::default() },
    );
    let counted = || -> Result<Value> { Ok(setup.json(&["stats"])?["reasons"].take()) };
    let before = counted()?;

    let (reason, steps) = explained(&setup, &syn)?;
    assert_eq!(reason, "cookie-sent");
    let expected =
        ["interface", "ports", "service place", "engine", "engine's socket", "cookie key", "reply budget"];
    assert_eq!(steps, expected);
    // Services are called what they are now. It used to be what they were when the daemon started, and unknown if added since.
    assert_eq!(place_explained(&setup, &syn)?, format!("{SERVICE} (cookie)"));
    let added = format!("{}:81", SERVICE.ip());
    setup.text(&["services", "add", &format!("{added}=respond:echo")])?;
    let other = Outgoing { seq: Seq(7), flags: Flags::SYN, options: linux_options(), ..Outgoing::default() };
    let other = raw.frame(40000, 81, &other);
    assert_eq!(place_explained(&setup, &other)?, format!("{added} (auto)"));
    setup.text(&["services", "set", &added, "mode=stateful"])?;
    assert_eq!(place_explained(&setup, &other)?, format!("{added} (stateful)"));
    assert_eq!(place_explained(&setup, &syn)?, format!("{SERVICE} (cookie)"));
    setup.text(&["services", "del", &added])?;
    let text = setup.text(&["explain", "--packet", &hex(&syn)])?;
    let first = "10.77.0.99:40000 > 10.77.0.1:80 SYN seq 7 ack 0 win 64240 len 0 mss 1460 wscale 7 sackOK TS val 16711680 ecr 0, 74 bytes\non guard0 queue 0\n\nASKED";
    assert!(text.starts_with(first), "{text}");
    assert!(
        text.contains("\nanswered (cookie-sent): SYN answered with")
            && text.contains("\nanswer: 10.77.0.1:80 > 10.77.0.99:40000 SYN+ACK"),
        "{text}"
    );
    // Half of the budget is this queue's, and the explained one is off it.
    assert!(text.contains("24999 SYN-ACKs left"), "{text}");
    assert_eq!(counted()?, before, "an explanation was counted");

    // A real handshake; its ACK is explained before it is sent, and after.
    let handshake = raw.syn(40000, to, 7, linux_options()).context("no SYN-ACK")?;
    let ack = handshake.ack(b"");
    let forged = Outgoing { ack: ack.ack + 1, options: ack.options, ..handshake.ack(b"") };
    let (ack, forged) = (raw.frame(40000, to, &ack), raw.frame(40000, to, &forged));
    let (reason, steps) = explained(&setup, &ack)?;
    assert_eq!(reason, "ack-valid");
    assert!(
        steps.contains(&"TIME_WAIT".to_owned()) && steps.contains(&"verified sources".to_owned()),
        "{steps:?}"
    );
    assert_eq!(explained(&setup, &forged)?.0, "ack-invalid");
    assert_eq!(setup.reason("ack-valid")? + setup.reason("ack-invalid")?, 0);
    assert_eq!(setup.json(&["flows"])?["total"], 0);
    raw.send(&ack);
    eventually("the flow is there", || Ok(setup.state("ESTABLISHED")? == 1))?;
    assert_eq!(explained(&setup, &ack)?.0, "flow-known");

    setup.text(&["filters", "add", "deny", "10.77.0.64/26"])?;
    let (reason, steps) = explained(&setup, &syn)?;
    assert_eq!(reason, "filter-deny");
    assert_eq!(steps.last().map(String::as_str), Some("filter"));
    assert_eq!(setup.hits("10.77.0.64/26")?, 0, "an explanation was counted as a hit");

    let elsewhere = raw.frame(40000, 81, &Outgoing { flags: Flags::SYN, ..Outgoing::default() });
    let (reason, steps) = explained(&setup, &elsewhere)?;
    assert_eq!((reason, steps.last().map(String::as_str)), (Value::Null, Some("not ours")));
    for (arguments, why) in [
        (&["explain", "--packet", "0g"][..], "hexadecimal"),
        (&["explain", "--packet", ""], "hexadecimal"),
        (&["explain", "--packet", "00", "-i", "eth9"], "eth9 is not guarded"),
    ] {
        let said = one_line(&setup.ask(arguments)?, 2)?;
        assert!(said.contains(why), "{said}");
    }

    let capture = setup.lab.dir().join("capture.pcap");
    let mut bytes = vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0];
    for frame in [&syn, &forged, &elsewhere] {
        let len = u32::try_from(frame.len())?.to_le_bytes();
        bytes.extend([&[0; 8][..], &len, &len, frame].concat());
    }
    std::fs::write(&capture, bytes)?;
    let text = setup.text(&["explain", "--pcap", &capture.display().to_string()])?;
    let verdicts: Vec<_> =
        text.lines().map(|line| line.split_whitespace().take(3).collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(
        verdicts,
        ["1 dropped (filter-deny)", "2 dropped (filter-deny)", "3 passed 10.77.0.99:40000"],
        "{text}"
    );
    Ok(())
}

#[test]
fn the_configuration_in_force_is_a_file_that_check_finds_good() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("queues = 2\n[tunables]\nretries = 8\n")?;
    setup.text(&["tune", "time-wait", "30s"])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    setup.text(&["filters", "add", "allow", "2001:db8::7", "--expires", "1h"])?;

    let text = setup.text(&["config"])?;
    let json = setup.json(&["config"])?;
    let config = &json["config"];
    assert_eq!(config["interface"][0]["name"], GUARD_INTERFACE);
    assert_eq!(config["interface"][0]["queues"], 2);
    assert_eq!(config["service"][0]["listen"], SERVICE.to_string());
    assert_eq!(config["control"]["socket"], setup.control().display().to_string());
    assert_eq!(
        (&config["tunables"]["time-wait"], &config["tunables"]["retries"]),
        (&"30s".into(), &8.into())
    );
    assert_eq!(config["tunables"]["min-rto"], "200ms");
    assert_eq!(config["filters"]["deny"][0], "deny 192.0.2.0/24");
    let allowed = config["filters"]["allow"][0].as_str().context("no filter")?;
    assert!(allowed.starts_with("allow 2001:db8::7/128 expires 59m"), "{allowed}");
    assert!(text.contains("\n[tunables]\n") && text.contains("\ntime-wait = \"30s\"\n"), "{text}");

    let output = setup.feed(&["check", "-"], text.as_bytes(), &[])?;
    let said = String::from_utf8(output.stdout)?;
    let good = "standard input: good (interfaces 1, services 1, filters 2, tunables changed 2)\n";
    assert_eq!((output.status.code(), said.as_str()), (Some(0), good));
    Ok(())
}

#[test]
fn the_doctor_finds_what_would_keep_the_guard_from_starting() -> Result<()> {
    let setup = Setup::new()?;
    let examine = |arguments: &[&str]| -> Result<Output> {
        let mut command = setup.lab.guard().command(BINARY);
        Ok(command.arg("doctor").args(arguments).output()?)
    };
    let found = |output: &Output, check: &str| -> Result<Value> {
        let said: Value = serde_json::from_slice(&output.stdout)?;
        let findings = said["findings"].as_array().context("no findings")?;
        let finding = findings.iter().find(|finding| finding["check"] == check);
        finding.cloned().with_context(|| format!("no {check} in {said}"))
    };
    let output = examine(&["-i", GUARD_INTERFACE, "--json"])?;
    assert!(output.status.success(), "{output:?}");
    for (check, verdict) in [
        ("kernel", "good"),
        ("rights", "good"),
        ("feature program xdp", "good"),
        ("feature map ringbuf", "good"),
        ("feature map xskmap", "good"),
        ("feature af_xdp", "good"),
        (&format!("{GUARD_INTERFACE} driver"), "good"),
        (&format!("{GUARD_INTERFACE} XDP"), "good"),
        (&format!("{GUARD_INTERFACE} peer"), "note"),
    ] {
        assert_eq!(found(&output, check)?["verdict"], verdict, "{check}: {output:?}");
    }
    let text = String::from_utf8(examine(&["-i", GUARD_INTERFACE])?.stdout)?;
    assert!(text.starts_with("CHECK ") && text.contains(&format!("\n{GUARD_INTERFACE} driver")), "{text}");
    // What is only worth knowing has a remedy, too, and it is printed.
    for remedy in ["peer: at the other end: ethtool -K PEER tx off", "host: put what nftables did"] {
        assert!(text.contains(remedy), "{text}");
    }

    // Each of these keeps a daemon from starting.
    let file = setup.lab.dir().join("queues.toml");
    std::fs::write(
        &file,
        format!(
            "[[interface]]\nname = \"{GUARD_INTERFACE}\"\nqueues = 3\n\
             [[service]]\nlisten = \"{SERVICE}\"\nrespond = \"echo\"\n"
        ),
    )?;
    let output = examine(&["--config", &file.display().to_string(), "--json"])?;
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(found(&output, "configuration")?["verdict"], "good");
    let queues = found(&output, &format!("{GUARD_INTERFACE} queues"))?;
    assert_eq!(queues["verdict"], "bad");
    assert!(queues["found"].as_str().is_some_and(|found| found.starts_with("2 receive queues")), "{queues}");
    let output = examine(&["-i", "guard9", "--json"])?;
    assert_eq!(found(&output, "guard9 interface")?["verdict"], "bad");
    assert!(String::from_utf8(output.stderr)?.contains("checks are bad"));
    let bad = setup.lab.dir().join("bad.toml");
    std::fs::write(&bad, "[[interface]]\nname = \"guard0\"\n[[service]]\nlisten = 7\n")?;
    let output = examine(&["--config", &bad.display().to_string(), "--json"])?;
    let finding = found(&output, "configuration")?;
    assert_eq!(finding["verdict"], "bad");
    assert!(finding["found"].as_str().is_some_and(|found| found.contains("bad.toml:4")), "{finding}");

    // A typo in the hook used to be found by the first attack.
    let hook = setup.lab.dir().join("hook.toml");
    let (pins, control) = (setup.lab.pin_dir(), setup.control());
    std::fs::write(
        &hook,
        format!(
            "pin_dir = {pins:?}\n[control]\nsocket = {control:?}\n[[interface]]\nname = \"{GUARD_INTERFACE}\"\n\
             [[service]]\nlisten = \"{SERVICE}\"\nrespond = \"echo\"\n[events]\nhook = [\"/bin/no-such-hook\"]\n"
        ),
    )?;
    let path = hook.display().to_string();
    let output = examine(&["--config", &path, "--json"])?;
    assert_eq!(found(&output, "event hook")?["verdict"], "warning");
    let checked = Command::new(BINARY).args(["check", &path]).output()?;
    let said = String::from_utf8(checked.stderr)?;
    assert!(
        checked.status.success() && said.contains(&format!("{path}:10: hook: /bin/no-such-hook: ")),
        "{said}"
    );
    let daemon = setup.start(setup.lab.guard().command(BINARY).args(["run", "--config", &path]))?;
    assert!(setup.said().contains("hook: /bin/no-such-hook: "), "{}", setup.said());
    daemon.stop(Duration::from_secs(20))?;

    // Beside a daemon, which is not disturbed.
    let _daemon = setup.daemon(&[])?;
    let output = examine(&["-i", GUARD_INTERFACE, "--json"])?;
    let program = found(&output, &format!("{GUARD_INTERFACE} XDP"))?;
    assert_eq!(program["verdict"], "good", "{program}");
    assert!(program["found"].as_str().is_some_and(|found| found.contains("tcpguard")), "{program}");
    let features = setup.json(&["features"])?;
    assert_eq!(features["features"][0]["present"], true);
    assert!(setup.text(&["features"])?.contains("\nmap xskmap"));
    setup.fetch()
}

#[test]
fn a_protected_port_that_the_host_may_choose_as_a_source_is_warned_of() -> Result<()> {
    let setup = Setup::new()?;
    let service = format!("{}:40000=127.0.0.1:8080", SERVICE.ip());
    let daemon = setup.daemon(&["--protect", &service])?;
    assert!(setup.said().contains("add 40000 to net.ipv4.ip_local_reserved_ports"), "{}", setup.said());
    daemon.kill()?;
    std::fs::remove_file(setup.log())?;
    setup.lab.guard().output("sysctl", &["-w", "net.ipv4.ip_local_reserved_ports=40000"])?;
    let _daemon = setup.daemon(&["--protect", &service])?;
    assert!(!setup.said().contains("ip_local_reserved_ports"), "{}", setup.said());
    Ok(())
}
