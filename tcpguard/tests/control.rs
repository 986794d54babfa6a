//! Verbs that ask and change a running daemon, for people and for programs, beyond what `daemon` tests. Needs root.

mod support;

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use serde_json::Value;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::{SERVICE, Setup, eventually, one_line};
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
