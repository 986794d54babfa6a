//! Verbs that change what a running daemon serves: services, flows and keys, for people and for programs. Needs root.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::process::Command;

use anyhow::{Context as _, Result};
use support::raw::{RawPort, linux_options};
use support::setup::{BINARY, SERVICE, Setup, echoed, eventually, is_reset, one_line};
use tcpguard_common::packet::Flags;

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
        (&["services", "add", &format!("{ECHO}=respond:echo")][..], "already; `tcpguard services set"),
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
fn services_that_are_changed_at_the_same_moment_all_are() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let control = setup.control();
    let add = |port: u16| {
        ["services".to_owned(), "add".to_owned(), format!("{}:{port}=respond:echo", SERVICE.ip())]
    };
    let mode = ["mode".to_owned(), SERVICE.to_string(), "cookie".to_owned()];
    let changes: Vec<[String; 3]> = (5001..5009).map(add).chain([mode]).collect();
    let begun = changes
        .iter()
        .map(|change| Command::new(BINARY).args(change).arg("--control").arg(&control).spawn())
        .collect::<Result<Vec<_>, _>>()?;
    for mut change in begun {
        assert!(change.wait()?.success());
    }
    let services = setup.json(&["services"])?["services"].take();
    let listens =
        services.as_array().context("no list")?.iter().filter_map(|service| service["listen"].as_str());
    let mut ports: Vec<_> = listens.filter_map(|listen| listen.rsplit(':').next()).collect();
    ports.sort_unstable();
    assert_eq!(ports, ["5001", "5002", "5003", "5004", "5005", "5006", "5007", "5008", "80"]);
    let first = services
        .as_array()
        .and_then(|all| all.iter().find(|service| service["listen"] == SERVICE.to_string()));
    assert_eq!(first.context("it is gone")?["mode"], "cookie");
    Ok(())
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

/// As under sudo, which passes no such variable on: it used to be as if nobody had a session to lose.
#[test]
fn a_session_that_only_a_parent_knows_of_is_not_cut_off_either() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    // A shell by the name of sshd, below which nothing else is looked at.
    let sshd = setup.lab.dir().join("sshd");
    std::fs::copy("/bin/sh", &sshd)?;
    let script = "/usr/bin/env -i \"$@\"; exit $?";
    let below = |named: &str, arguments: &[&str]| -> Result<std::process::Output> {
        let parent = format!("{named} /bin/sh -c '{script}' sh \"$@\"; exit $?");
        let mut command = Command::new(&sshd);
        command.env_clear().args(["-c", &parent, "sshd", BINARY]).args(arguments);
        Ok(command.arg("--control").arg(setup.control()).output()?)
    };
    let port = |port: u16| format!("0.0.0.0:{port}=respond:echo");
    let named = "SSH_CONNECTION='fe80::2%eth0 50000 10.77.0.1 22'";
    let said = one_line(&below(named, &["services", "add", &port(22)])?, 2)?;
    assert!(said.contains("your own session from fe80::2 ") && said.contains("--force"), "{said}");
    assert!(below(named, &["services", "add", &port(23)])?.status.success());
    assert!(below(named, &["services", "add", &port(22), "--force"])?.status.success());
    let said = one_line(&below(named, &["services", "del", "0.0.0.0:22"])?, 2)?;
    assert!(said.contains("your own session"), "{said}");
    // There is one, and nobody says which.
    let unnamed = ["filters", "add", "deny", "192.0.2.0/24"];
    let said = one_line(&below("", &unnamed)?, 2)?;
    assert!(said.contains("SSH_CONNECTION is missing") && said.contains("--force"), "{said}");
    assert!(below("", &[&unnamed[..], &["--force"]].concat())?.status.success());
    assert!(below("", &["filters"])?.status.success());
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
