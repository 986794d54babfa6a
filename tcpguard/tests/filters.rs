//! Filter lists through the command line, in front of a daemon that guards. Needs root.

mod support;

use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use support::setup::{SERVICE, Setup, eventually, one_line};
use xtask::lab::{FloodSpec, GUARD_ADDRESS};

#[test]
fn a_denied_client_cannot_connect_others_can_and_it_can_again_once_it_is_deleted() -> Result<()> {
    let setup = Setup::with_clients(2)?;
    let [other, denied] = setup.lab.client_addresses()[..] else { panic!("not two clients") };
    let list = setup.lab.dir().join("list");
    std::fs::write(&list, format!("# One\nallow {other}\n"))?;
    let daemon =
        setup.daemon_from_file(&format!("[filters]\ndeny = [\"10.77.0.0/24\"]\nfiles = [{list:?}]\n"))?;
    let kind = |knocked: std::io::Result<()>| knocked.err().map(|error| error.kind());
    let timed_out = Some(std::io::ErrorKind::TimedOut);
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    assert_eq!(kind(setup.knock(other)?), None);
    assert!(setup.reason("filter-deny")? >= 1);
    assert_eq!(setup.hits("10.77.0.0/24")?, setup.reason("filter-deny")?);
    assert!(setup.hits(&format!("{other}/32"))? >= 2, "SYN and ACK");
    let text = setup.text(&["filters"])?;
    assert!(text.starts_with("ACTION  PREFIX") && text.lines().count() == 3, "{text}");

    assert_eq!(setup.text(&["filters", "del", "10.77.0.0/24"])?, "0 added, 1 removed, 1 in force\n");
    assert_eq!(kind(setup.knock(denied)?), None);
    let added = setup.text(&["filters", "add", "deny", &denied.to_string(), "--expires", "1500ms"])?;
    assert_eq!(added, "1 added, 0 removed, 2 in force\n");
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    eventually("it expires", || Ok(setup.knock(denied)?.is_ok()))?;
    eventually("it is forgotten", || Ok(setup.said().contains("forgot expired filters")))?;
    assert_eq!(setup.json(&["filters"])?["total"], 1);

    // A list survives the daemon, and dies with the next one's configuration.
    setup.text(&["filters", "add", "deny", &denied.to_string()])?;
    setup.text(&["tune", "exit-grace", "0s"])?;
    let before = setup.reason("filter-deny")?;
    daemon.kill()?;
    eventually("the host refuses others", || {
        Ok(kind(setup.knock(other)?) == Some(std::io::ErrorKind::ConnectionRefused))
    })?;
    assert_eq!(kind(setup.knock(denied)?), timed_out);
    let _daemon = setup.daemon(&["--max-flows", "4096"])?;
    assert!(setup.reason("filter-deny")? > before);
    assert_eq!(setup.json(&["filters"])?["total"], 0);
    assert_eq!(kind(setup.knock(denied)?), None);

    // Nobody locks himself out by accident.
    let port = SERVICE.port().to_string();
    let session = format!("{other} 50000 {GUARD_ADDRESS} {port}");
    let ssh = [("SSH_CONNECTION", session.as_str())];
    let said = one_line(&setup.feed(&["filters", "add", "deny", "10.0.0.0/8"], b"", &ssh)?, 2)?;
    assert!(said.contains("--force"), "{said}");
    let said = one_line(&setup.feed(&["filters", "load", "-"], b"192.0.2.1\n0.0.0.0/0\n", &ssh)?, 2)?;
    assert!(said.contains("--force"), "{said}");
    assert_eq!(setup.json(&["filters"])?["total"], 0);
    let elsewhere = [("SSH_CONNECTION", "10.77.0.9 50000 10.77.0.1 22")];
    assert!(setup.feed(&["filters", "add", "deny", "10.77.0.9"], b"", &elsewhere)?.status.success());
    assert!(setup.feed(&["filters", "add", "deny", "10.0.0.0/8", "--force"], b"", &ssh)?.status.success());
    assert_eq!(kind(setup.knock(other)?), timed_out);
    Ok(())
}

#[test]
fn a_hundred_thousand_filters_are_replaced_under_a_flood_and_no_denied_packet_passes() -> Result<()> {
    let mut setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    // The flood's network, cut up differently in each list, among prefixes of which each list has its own.
    let list = |round: u32| {
        let (cut, other) = if round.is_multiple_of(2) { (16, 0x2000_0000) } else { (20, 0x3000_0000) };
        let networks = 0..1 << (cut - 15);
        let denied = networks
            .map(|index: u32| format!("{}/{cut}\n", Ipv4Addr::from_bits(0xc612_0000 | index << (32 - cut))));
        let rest = 99_900 - (1 << (cut - 15));
        let others = (0..rest).map(|index| match index % 2 {
            0 => format!("deny {}\n", Ipv4Addr::from_bits(other | index << 5)),
            _ => format!("allow 2001:db8:{:x}:{:x}::/64 expires 1h\n", index >> 8, index & 0xff),
        });
        denied.chain(others).chain(["198.18.0.0/15\n".to_owned()]).collect::<String>()
    };
    let load = |setup: &Setup, round: u32| {
        setup.feed(&["filters", "load", "--replace", "-"], list(round).as_bytes(), &[])
    };
    let first = load(&setup, 0)?;
    assert!(first.status.success(), "{}", String::from_utf8_lossy(&first.stderr));
    let total = setup.json(&["filters", "--limit", "0"])?["total"].as_u64().context("no total")?;
    assert!(total > 99_000, "{total}");
    assert_eq!(setup.json(&["filters", "--limit", "3"])?["filters"].as_array().map(Vec::len), Some(3));

    let flood = setup.lab.flood(SERVICE.port(), FloodSpec { rate: 50_000, ..FloodSpec::default() })?;
    for round in 1..=6 {
        let output = load(&setup, round)?;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        setup.fetch()?;
    }
    // Those that are added and deleted one by one are replaced no less.
    for _ in 0..5 {
        setup.text(&["filters", "add", "allow", "192.0.2.7"])?;
        setup.text(&["filters", "del", "192.0.2.7"])?;
    }
    let flood = flood.stop()?;
    assert!(flood.delivered() > 10_000, "{flood:?}");
    assert_eq!(setup.reason("filter-deny")?, flood.delivered());
    assert_eq!(setup.answered()?, 6, "one for each fetch");
    Ok(())
}

#[test]
fn a_bad_change_of_the_filters_is_refused_and_changes_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.text(&["filters", "add", "deny", "192.0.2.0/24"])?;
    setup.text(&["filters", "add", "allow", "2001:db8::/32"])?;
    let before = setup.text(&["filters"])?;
    let many =
        |count: u32| (0..count).map(|host| format!("{}\n", Ipv4Addr::from_bits(host))).collect::<String>();
    let (too_many, too_many_more) = (many(100_001), many(99_999));
    for (arguments, input, why) in [
        (&["filters", "add", "allow", "192.0.2.0/24"][..], "", "both denied and allowed"),
        (&["filters", "del", "192.0.2.0/25"], "", "not on the lists"),
        (&["filters", "load", "-"], "10.0.0.0/8\ndeny 2001:db8::/32\n", "both denied and allowed"),
        (&["filters", "load", "--replace", "-"], "10.0.0.0/8\n10.0.0.1/8\n", "standard input:2"),
        (&["filters", "load", "--replace", "-"], &too_many, "more than 100000 filters"),
        // Fits by itself; only the daemon knows with what it does not.
        (&["filters", "load", "-"], &too_many_more, "more than 100000 filters"),
    ] {
        let said = one_line(&setup.feed(arguments, input.as_bytes(), &[])?, 2)?;
        assert!(said.contains(why), "{arguments:?}: {said}");
    }
    // A part of a list that is never followed by the rest does nothing; one with nonsense in it is refused.
    let ask = |line: &str| -> Result<String> {
        let mut client = std::os::unix::net::UnixStream::connect(setup.control())?;
        client.write_all(line.as_bytes())?;
        client.shutdown(std::net::Shutdown::Write)?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let part = |load: u32, filters: &str, last: bool| {
        format!(
            "{{\"v\":1,\"op\":\"filters-load\",\"load\":{load},\"filters\":[{filters}],\"last\":{last},\"replace\":true}}\n"
        )
    };
    assert!(ask(&part(1, "\"deny ::/0\"", false))?.contains("filters-part"));
    assert!(ask(&part(2, "\"::/0\"", true))?.contains("bad-input"));
    for load in 10..13 {
        assert!(ask(&part(load, "", false))?.contains("filters-part"));
    }
    assert!(ask(&part(20, "", false))?.contains("being loaded already"));
    assert_eq!(setup.text(&["filters"])?, before);
    assert_eq!(setup.text(&["filters", "flush", "allow"])?, "0 added, 1 removed, 1 in force\n");
    assert_eq!(setup.text(&["filters", "flush"])?, "0 added, 1 removed, 0 in force\n");
    Ok(())
}
