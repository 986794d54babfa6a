//! Verbs that ask and change a running daemon, for people and for programs, beyond what `daemon` tests. Needs root.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::{SERVICE, Setup, eventually, one_line};
use tcpguard::control::client::Client;
use tcpguard::control::protocol::{Reply, Request};
use tcpguard_common::packet::Flags;
use tcpguard_common::seq::Seq;
use xtask::lab::GUARD_INTERFACE;

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

fn hex(frame: &[u8]) -> String {
    frame.iter().map(|byte| format!("{byte:02x}")).collect()
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
fn a_tunable_is_saved_with_the_files_comments_and_the_file_read_again_keeps_every_flow() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon_from_file("[tunables] # Timers.\nretries = 8 # Enough.\n")?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let name = file.display();
    let mut open = setup.keep_alive()?;

    let said = setup.text(&["tune", "retries", "9", "--save"])?;
    assert_eq!(said, format!("retries: 8 -> 9, saved in {name}\n"));
    assert_eq!(setup.json(&["tune", "time-wait", "30s", "--save"])?["saved"], name.to_string());
    let text = std::fs::read_to_string(&file)?;
    assert!(text.ends_with("[tunables] # Timers.\nretries = 9 # Enough.\ntime-wait = \"30s\"\n"), "{text}");
    // What contradicts the file is neither set nor saved.
    let edited = text.clone() + "max-rto = \"5s\"\n";
    std::fs::write(&file, &edited)?;
    let said = one_line(&setup.ask(&["tune", "min-rto", "6s", "--save"])?, 2)?;
    assert!(said.contains("min-rto 6s is above max-rto 5s; nothing was changed"), "{said}");
    assert_eq!(setup.json(&["tune", "min-rto"])?["tunables"][0]["value"], 200);
    assert_eq!(std::fs::read_to_string(&file)?, edited);

    setup.text(&["tune", "time-wait", "10s"])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    std::fs::write(&file, format!("{text}[filters]\ndeny = [\"198.51.100.0/24\"]\n"))?;
    let said = setup.text(&["reload"])?;
    let expected =
        format!("{name}: in force\ntime-wait: 10s -> 30s\nfilters: 1 added, 1 removed, 1 in force\n");
    assert_eq!(said, expected);
    assert_eq!(setup.json(&["filters"])?["filters"][0]["prefix"], "198.51.100.0/24");
    assert_eq!(setup.json(&["reload"])?["tunables"], serde_json::json!([]));

    // A file that is no good, or that takes a restart, changes nothing; SIGHUP says so in the log.
    let before = setup.text(&["config"])?;
    for (more, why) in [
        ("time-wait = 1\n", "a duration looks like"),
        ("[[interface]]\nname = \"guard9\"\n", "interface changed, which takes a restart"),
        ("[filters]\ndeny = [\"10.0.0.1/8\"]\n", "bits beyond its length"),
    ] {
        std::fs::write(&file, format!("{}{more}", text.replace("time-wait = \"30s\"\n", "")))?;
        let said = one_line(&setup.ask(&["reload"])?, 2)?;
        assert!(said.contains(why) && said.contains(&name.to_string()), "{said}");
        assert_eq!(setup.text(&["config"])?, before);
    }
    daemon.signal(rustix::process::Signal::HUP)?;
    eventually("the log says so", || Ok(setup.said().contains("SIGHUP: nothing was changed")))?;
    std::fs::write(&file, text.replace("retries = 9", "retries = 10"))?;
    daemon.signal(rustix::process::Signal::HUP)?;
    eventually("the file is in force", || {
        Ok(setup.json(&["tune", "retries"])?["tunables"][0]["value"] == 10)
    })?;
    std::io::Write::write_all(&mut open, b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    std::io::Read::read_to_end(&mut open, &mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "the flow was lost");
    setup.fetch()
}

#[test]
fn keys_are_rotated_without_breaking_a_handshake() -> Result<()> {
    let setup = Setup::new()?;
    let secret = setup.lab.dir().join("secret");
    let daemon =
        setup.daemon(&["--set", "cookie-period=4s", "--secret-file", &secret.display().to_string()])?;
    let said = one_line(&setup.ask(&["keys", "rotate"])?, 2)?;
    assert!(said.contains("still the secret that is in use"), "{said}");
    let raw = RawPort::open(&setup.lab, Ipv4Addr::new(10, 77, 0, 99));
    // The epoch may change between the SYN and the new secret: then once more.
    let (begun, rotated) = loop {
        let epoch = setup.json(&["status"])?["epoch"].as_u64().context("no epoch")?;
        let port = 40000 + (epoch % 1000) as u16;
        let begun = raw.syn(port, SERVICE.port(), 7, linux_options()).context("no SYN-ACK")?;
        std::fs::write(&secret, format!("{epoch:064x}"))?;
        let rotated = setup.json(&["keys", "rotate"])?;
        assert!(rotated["from_ms"].as_u64() <= Some(4000), "{rotated}");
        if rotated["epoch"] == epoch + 1 {
            break (begun, rotated);
        }
    };
    eventually("the epoch comes", || {
        Ok(setup.json(&["status"])?["epoch"].as_u64() >= rotated["epoch"].as_u64())
    })?;
    // Begun with the old secret, ended under the new one.
    raw.send(&raw.frame(begun.port, begun.to_port, &begun.ack(b"")));
    eventually("the handshake is whole", || Ok(setup.reason("ack-valid")? == 1))?;
    setup.fetch()?;
    assert_eq!(setup.reason("ack-invalid")?, 0);
    drop(daemon);
    let _daemon = setup.daemon(&[])?;
    let said = setup.text(&["keys", "rotate"])?;
    assert!(said.starts_with("new secret from epoch ") && said.contains("old cookies valid for "), "{said}");
    Ok(())
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

/// What an echoing service does with a question.
fn echoed(stream: &mut TcpStream, question: &[u8]) -> Result<()> {
    stream.write_all(question)?;
    let mut answer = vec![0; question.len()];
    stream.read_exact(&mut answer)?;
    ensure!(answer == question, "{answer:?}");
    Ok(())
}

/// Whether the other side resets the connection before it says anything more.
fn is_reset(stream: &mut TcpStream) -> Result<bool> {
    match stream.read(&mut [0; 1]) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(true),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(false),
    }
}

#[test]
fn services_come_change_and_go_while_connections_live() -> Result<()> {
    const ECHO: SocketAddrV4 = SocketAddrV4::new(*SERVICE.ip(), 81);
    let setup = Setup::new()?;
    let _daemon = setup.daemon_from_file("[tunables] # Timers.\nservice-flows = 2\n")?;
    let file = setup.lab.dir().join("tcpguard.toml");
    let original = std::fs::read_to_string(&file)?;
    let mut kept = setup.keep_alive()?;
    let echo = ECHO.to_string();

    let said = setup.text(&[
        "services",
        "add",
        &format!("{ECHO}=respond:echo,stateful"),
        "idle_time=1h",
        "--save",
    ])?;
    assert_eq!(said, format!("service {ECHO}: added, saved in {}\n", file.display()));
    let written = std::fs::read_to_string(&file)?;
    assert!(written.contains("[tunables] # Timers.") && written.contains("idle_time = \"1h\""), "{written}");
    let remembered = setup.reason("syn-stateful")?;
    let mut open = setup.connect_to(ECHO)?;
    echoed(&mut open, b"hello")?;
    assert_eq!(setup.reason("syn-stateful")?, remembered + 1);
    let services = setup.json(&["services"])?["services"].take();
    assert_eq!((&services[1]["listen"], &services[1]["respond"]), (&echo.clone().into(), &"echo".into()));
    let text = setup.text(&["services"])?;
    assert!(text.contains(&format!("{ECHO}  stateful  -")) && text.ends_with("respond:echo\n"), "{text}");

    // New connections get what it says now, open ones keep what they have.
    let changed = setup.json(&["services", "set", &echo, "respond=discard", "mode=cookie"])?;
    assert_eq!(changed["changed"], serde_json::json!([echo]));
    echoed(&mut open, b"still here")?;
    let mut discarded = setup.connect_to(ECHO)?;
    discarded.write_all(b"into the void")?;
    discarded.shutdown(std::net::Shutdown::Write)?;
    assert_eq!(discarded.read(&mut [0; 1])?, 0, "nothing comes back");
    assert_eq!(setup.text(&["services", "set", &echo, "mode=cookie"])?, "nothing changed\n");

    for (arguments, why) in [
        (&["services", "add", &format!("{ECHO}=respond:echo")][..], "given twice"),
        (&["services", "set", &echo, "max_connections=0"], "not within 1 to"),
        (&["services", "set", &echo, "respond="], "neither a backend nor a responder"),
        (&["services", "set", "10.77.0.1:99", "mode=off"], "no service 10.77.0.1:99"),
        (&["services", "del", "10.77.0.1:99"], "no service 10.77.0.1:99"),
    ] {
        let said = one_line(&setup.ask(arguments)?, 2)?;
        assert!(said.contains(why), "{said}");
    }
    eventually("one flow is left", || Ok(setup.json(&["flows", "--service", &echo])?["total"] == 1))?;

    // Taken out, its port is the host's, and who was connected knows at once.
    let said = setup.text(&["services", "del", &echo, "--save"])?;
    assert_eq!(said, format!("service {ECHO}: removed, connections reset: 1, saved in {}\n", file.display()));
    assert!(is_reset(&mut open)?);
    assert_eq!(std::fs::read_to_string(&file)?, original);
    let refused = setup.lab.client().enter(|| TcpStream::connect(ECHO))?.err().context("connected")?;
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);

    // Put in again, it has as many flows as it may have, and no more.
    // With cookies, for a refused handshake leaves nothing then.
    setup.text(&["services", "add", &format!("{ECHO}=respond:echo,cookie")])?;
    // One that was reset is remembered for a while, and counted.
    let mut streams = Vec::new();
    eventually("there is room for two flows", || {
        let Ok(mut stream) = setup.lab.client().enter(|| TcpStream::connect(ECHO))? else {
            return Ok(false);
        };
        let admitted = echoed(&mut stream, b"counted").is_ok();
        streams.extend(admitted.then_some(stream));
        Ok(streams.len() == 2)
    })?;
    // The reset may come before the client knows that it is connected.
    let third = setup.lab.client().enter(|| TcpStream::connect(ECHO))?;
    assert!(third.is_err() || is_reset(&mut third?)?, "a third flow of two");

    // Of the one that nobody touched, nothing was lost.
    kept.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    kept.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "the flow was lost");
    // What only the daemon knows goes when the file is read again.
    let said = setup.text(&["reload"])?;
    assert!(said.ends_with(&format!("service {ECHO}: removed, connections reset: 2\n")), "{said}");
    let said = one_line(&setup.ask(&["services", "del", &SERVICE.to_string()])?, 2)?;
    assert!(said.contains("nothing to protect"), "{said}");
    setup.fetch()
}

#[test]
fn a_service_that_would_cut_off_its_own_operator_takes_force() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let session = [("SSH_CONNECTION", "10.77.0.2 50000 10.77.0.1 22")];
    let ask = |arguments: &[&str]| setup.feed(arguments, b"", &session);
    let add = ["services", "add", "0.0.0.0:22=respond:echo"];
    let said = one_line(&ask(&add)?, 2)?;
    assert!(said.contains("your own session from 10.77.0.2") && said.contains("--force"), "{said}");
    assert!(ask(&["services", "add", "0.0.0.0:23=respond:echo"])?.status.success());
    assert!(ask(&["services", "add", "0.0.0.0:22=off"])?.status.success());
    let set = ["services", "set", "0.0.0.0:22", "mode=cookie", "respond=echo"];
    one_line(&ask(&set)?, 2)?;
    assert!(ask(&[&set[..], &["--force"]].concat())?.status.success());
    // From now on the session runs through the guard: it must not be taken away either.
    for change in [&["services", "del", "0.0.0.0:22"][..], &["mode", "0.0.0.0:22", "off"]] {
        let said = one_line(&ask(change)?, 2)?;
        assert!(said.contains("your own session"), "{said}");
        assert!(setup.json(&["services"])?["services"].as_array().context("no list")?.len() == 3);
    }
    // In dry run the host would have the session: guarding it in earnest cuts it off, not the other way round.
    assert!(ask(&["dry-run", "0.0.0.0:22", "on"])?.status.success());
    let said = one_line(&ask(&["dry-run", "0.0.0.0:22", "off"])?, 2)?;
    assert!(said.contains("your own session"), "{said}");
    assert!(ask(&["dry-run", "0.0.0.0:22", "off", "--force"])?.status.success());
    let mut own = setup.connect_to(SocketAddrV4::new(*SERVICE.ip(), 22))?;
    echoed(&mut own, b"that is me")?;
    // Nor is it among those that are killed.
    let session = own.local_addr()?;
    let session = [("SSH_CONNECTION", format!("{} {} 10.77.0.1 22", session.ip(), session.port()))];
    let session = [(session[0].0, session[0].1.as_str())];
    let output = setup.feed(&["flows", "--kill", "--all"], b"", &session)?;
    assert_eq!(String::from_utf8(output.stdout)?, "0 reset\n");
    echoed(&mut own, b"still me")?;
    assert_eq!(setup.text(&["flows", "--kill", "--all", "--force"])?, "1 reset\n");
    assert!(is_reset(&mut own)?);
    Ok(())
}

#[test]
fn flows_are_found_sorted_counted_and_reset() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let _daemon = setup.daemon(&["--protect", &format!("{echo}=respond:echo")])?;
    setup.fetch()?;
    let mut streams = Vec::new();
    for length in [10usize, 30, 20] {
        let mut stream = setup.connect_to(echo)?;
        echoed(&mut stream, &vec![7; length])?;
        streams.push(stream);
        // Engines tell the ages of their flows one after the other.
        std::thread::sleep(std::time::Duration::from_millis(300));
    }
    let kept = setup.keep_alive()?;
    let listed = |arguments: &[&str]| -> Result<Vec<u64>> {
        let flows = setup.json(&[&["flows"], arguments].concat())?;
        let flows = flows["flows"].as_array().context("no flows")?;
        Ok(flows.iter().filter_map(|flow| flow["bytes_in"].as_u64()).collect())
    };
    let service = echo.to_string();
    assert_eq!(listed(&["--service", &service, "--sort", "in"])?, [30, 20, 10]);
    assert_eq!(listed(&["--service", &service, "--sort", "age", "--limit", "2"])?, [10, 30]);
    let peer = streams[2].local_addr()?;
    assert_eq!(listed(&["--peer", &peer.to_string()])?, [20]);
    assert_eq!(listed(&["--peer", &format!("{}/31", peer.ip()), "--local", "10.77.0.0/24"])?.len(), 5);
    assert_eq!(listed(&["--peer", "::/0"])?.len(), 0);
    assert_eq!(listed(&["--older-than", "1h"])?.len(), 0);
    assert_eq!(listed(&["--younger-than", "1h", "--state", "established"])?.len(), 4);
    let summary = setup.json(&["flows", "--summary", "--service", &service])?;
    let counts = |field: &str| summary["services"][0][field].as_u64();
    assert_eq!((counts("flows"), counts("bytes_in"), counts("bytes_out")), (Some(3), Some(60), Some(60)));
    let text = setup.text(&["flows", "--time-wait"])?;
    let lines: Vec<_> = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    assert_eq!(lines[0][..2], ["SERVICE", "FLOWS"]);
    assert_eq!(lines[1][..2], [SERVICE.to_string().as_str(), "1"], "{text}");

    let said = one_line(&setup.ask(&["flows", "--kill"])?, 2)?;
    assert!(said.contains("--all"), "{said}");
    assert_eq!(setup.text(&["flows", "--peer", &peer.to_string(), "--kill"])?, "1 reset\n");
    assert!(is_reset(&mut streams[2])?);
    echoed(&mut streams[0], b"not meant")?;
    assert_eq!(setup.json(&["flows", "--kill", "--service", &service])?["killed"], 2);
    assert!(is_reset(&mut streams[0])? && is_reset(&mut streams[1])?);
    // TIME_WAIT is nobody's connection.
    assert_eq!(setup.text(&["flows", "--kill", "--all"])?, "1 reset\n");
    let mut kept = kept;
    assert!(is_reset(&mut kept)?);
    assert_eq!(setup.state("TIME_WAIT")?, 1);

    // A client whose SYN was answered takes itself for connected: it has to hear of it.
    setup.text(&["mode", &service, "stateful"])?;
    let raw = RawPort::open(&setup.lab, Ipv4Addr::new(10, 77, 0, 99));
    let handshake = raw.syn(40000, echo.port(), 7, linux_options()).context("no SYN-ACK")?;
    assert_eq!(setup.text(&["flows", "--half-open", "--kill"])?, "1 reset\n");
    let (reset, _) =
        raw.receive(echo.port(), 40000, std::time::Duration::from_secs(5)).context("no reset")?;
    assert!(reset.tcp.flags.contains(Flags::RST), "{reset:?}");
    assert_eq!((reset.tcp.seq, reset.tcp.ack), (handshake.syn_ack.tcp.seq + 1, handshake.next));
    assert_eq!(setup.state("SYN_RCVD")?, 0);
    setup.fetch()
}

#[test]
fn what_nobody_confirms_is_taken_back_even_if_its_client_died() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let mut daemon = setup.daemon(&[])?;
    let said = one_line(&setup.ask(&["confirm"])?, 2)?;
    assert!(said.contains("nothing waits"), "{said}");
    setup.text(&["filters", "add", "deny", "192.0.2.0/24", "--expires", "1h"])?;
    let state = || setup.text(&["config"]).map(|text| text.replace(" expires 59m59s", ""));
    let is_as = |before: &str| {
        // What is left of a filter's time is another at each look.
        let plain = |text: &str| {
            text.lines().filter(|line| !line.contains("192.0.2.0/24")).map(String::from).collect::<Vec<_>>()
        };
        Ok::<_, anyhow::Error>(plain(&state()?) == plain(before))
    };
    let before = state()?;

    // Each verb, its client long gone when the time is over.
    let own = ["--service", &SERVICE.to_string()];
    let changes: [&[&str]; 9] = [
        &["tune", "time-wait", "7s"],
        &["services", "add", &format!("{echo}=respond:echo")],
        &["mode", &SERVICE.to_string(), "stateful"],
        &["filters", "add", "deny", "198.51.100.0/24"],
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

    // A client that dies before it hears of its change.
    let client = Client::new(&setup.control());
    let Reply::Held(_) = client.ask(&Request::Hold { seconds: 1 })? else { anyhow::bail!("not held") };
    let tune = Request::Tune { name: Some("retries".into()), value: Some("3".into()), save: false };
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

#[test]
fn a_service_has_tunables_of_its_own_that_are_saved_shown_kept_and_taken_away() -> Result<()> {
    let setup = Setup::new()?;
    let echo = SocketAddrV4::new(*SERVICE.ip(), 81);
    let more = format!("[[service]]\nlisten = \"{echo}\" # Echo.\nrespond = \"echo\"\n");
    let _daemon = setup.daemon_from_file(&more)?;
    let (service, file) = (echo.to_string(), setup.lab.dir().join("tcpguard.toml"));
    let tune =
        |arguments: &[&str]| setup.text(&[&["tune"][..], arguments, &["--service", &service]].concat());
    let value = |of: &[&str]| -> Result<Option<u64>> {
        Ok(setup.json(&[&["tune", "retries"][..], of].concat())?["tunables"][0]["value"].as_u64())
    };
    let own = ["--service", service.as_str()];
    assert_eq!(tune(&["retries", "3"])?, format!("service {echo}: retries: 15 -> 3\n"));
    assert_eq!((value(&[])?, value(&own)?), (Some(15), Some(3)));
    assert_eq!(value(&["--service", &SERVICE.to_string()])?, Some(15), "another service's");
    let list = tune(&[])?;
    ensure!(list.contains(&format!("{echo} 3")) && !list.contains("time-wait "), "{list}");
    ensure!(setup.text(&["tune"])?.contains(&format!("{echo} 3")), "{}", setup.text(&["tune"])?);

    // What cannot be changes nothing.
    for (arguments, why) in [
        (&["time-wait", "3s"][..], "the same for all services"),
        (&["retries", "0"], "out of range"),
        (&["min-rto", "1m30s"], "out of range"),
    ] {
        let said = one_line(&setup.ask(&[&["tune"][..], arguments, &own].concat())?, 2)?;
        ensure!(said.contains(why), "{said}");
    }
    tune(&["max-rto", "2s"])?;
    let said = one_line(&setup.ask(&["tune", "min-rto", "3s"])?, 2)?;
    ensure!(said.contains(&format!("service {echo}: min-rto 3s is above max-rto 2s")), "{said}");
    let said = one_line(&setup.ask(&["tune", "retries", "3", "--service", "10.77.0.1:99"])?, 2)?;
    ensure!(said.contains("no service"), "{said}");

    // Saved or gone, as with all that a file says.
    setup.text(&["reload"])?;
    assert_eq!(value(&own)?, Some(15));
    let saved = tune(&["retries", "4", "--save"])?;
    ensure!(saved.ends_with(&format!("saved in {}\n", file.display())), "{saved}");
    setup.text(&["reload"])?;
    assert_eq!((value(&[])?, value(&own)?), (Some(15), Some(4)));
    let text = std::fs::read_to_string(&file)?;
    ensure!(text.contains("# Echo.") && text.contains("tunables = { retries = 4 }"), "{text}");
    let config = setup.json(&["config"])?;
    assert_eq!(config["config"]["service"][1]["tunables"]["retries"], 4);
    tune(&["retries", "inherit", "--save"])?;
    ensure!(!std::fs::read_to_string(&file)?.contains("retries"), "still in the file");
    assert_eq!(value(&own)?, Some(15));
    setup.fetch()
}

#[test]
fn a_preset_is_shown_first_and_then_set_whole() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let value = |name: &str| -> Result<Option<u64>> {
        Ok(setup.json(&["tune", name])?["tunables"][0]["value"].as_u64())
    };
    let shown = setup.text(&["tune", "--preset", "attack"])?;
    ensure!(
        shown.contains("stateful-rate: 5000 -> 0\n") && shown.contains("not changed yet: --yes"),
        "{shown}"
    );
    assert_eq!(value("stateful-rate")?, Some(5000));
    let done = setup.text(&["tune", "--preset", "attack", "--yes"])?;
    ensure!(done.contains("stateful-rate: 5000 -> 0\n") && !done.contains("not changed"), "{done}");
    assert_eq!((value("stateful-rate")?, value("fin-wait-2")?), (Some(0), Some(15_000)));
    let again = setup.json(&["tune", "--preset", "attack"])?;
    assert_eq!((&again["preset"], &again["applied"]), (&"attack".into(), &false.into()));
    assert_eq!(again["tuned"].as_array().context("no list")?.len(), 0);
    // Its values are judged together: one at a time the rate would be too much for the burst.
    setup.text(&["tune", "stateful-burst", "1"])?;
    setup.text(&["tune", "--preset", "calm", "--yes"])?;
    assert_eq!((value("stateful-rate")?, value("stateful-burst")?), (Some(5000), Some(5000)));
    setup.fetch()
}

#[test]
fn the_doctor_finds_what_would_keep_the_guard_from_starting() -> Result<()> {
    let setup = Setup::new()?;
    let examine = |arguments: &[&str]| -> Result<std::process::Output> {
        let mut command = setup.lab.guard().command(support::setup::BINARY);
        Ok(command.arg("doctor").args(arguments).output()?)
    };
    let found = |output: &std::process::Output, check: &str| -> Result<Value> {
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
