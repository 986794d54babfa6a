//! The daemon and its command line on a veth link: every verb, for people and for programs; what it refuses; how it
//! ends and what it leaves. Needs root.

mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::setup::*;
use support::wait_for;
use xtask::lab::{GUARD_ADDRESS, GUARD_INTERFACE};

#[test]
fn every_verb_answers_for_people_and_for_programs() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let open = setup.connect()?;
    for _ in 0..5 {
        setup.fetch()?;
    }

    let status = setup.json(&["status"])?;
    assert_eq!(status["phase"], "armed");
    assert_eq!(status["interfaces"][0]["name"], GUARD_INTERFACE);
    assert_eq!(status["interfaces"][0]["queues"], 2);
    assert_eq!(status["services"][0]["listen"], SERVICE.to_string());
    // veth has no other.
    assert_eq!(status["interfaces"][0]["af_xdp"], "copy");
    let text = setup.text(&["status"])?;
    assert!(
        text.contains("interface guard0") && text.contains("native XDP, AF_XDP copy, queues 2"),
        "{text}"
    );

    assert!(setup.answered()? >= 6);
    assert!(setup.reason("ack-valid")? >= 6);
    let stats = setup.json(&["stats"])?;
    assert!(stats["totals"]["stack"]["adopted"].as_u64() >= Some(6), "{}", stats["totals"]);
    assert_eq!(stats["totals"]["service"]["backend-refused"], 0);
    assert_eq!(stats["engines"].as_array().map(Vec::len), Some(2));
    for reason in stats["reasons"].as_array().context("no reasons")? {
        let sum: u64 =
            reason["per_cpu"].as_array().context("no CPUs")?.iter().filter_map(Value::as_u64).sum();
        assert_eq!(reason["total"], sum);
    }
    let service = &stats["services"][0];
    assert_eq!(service["listen"], SERVICE.to_string());
    assert_eq!((&service["syns"], &service["stateful"]), (&6.into(), &6.into()), "{service}");
    assert_eq!((&service["acks_valid"], &service["dropped"]), (&6.into(), &0.into()), "{service}");
    assert!(service["redirected"].as_u64() > Some(12), "{service}");
    let text = setup.text(&["stats", "--per-cpu"])?;
    assert!(text.contains("SERVICE") && text.contains("ACK-INVALID"), "{text}");
    assert!(text.contains("syn-stateful") && text.contains("CPU1") && text.contains("RATE/s"), "{text}");
    assert!(!text.contains("bad-flags") && setup.text(&["stats", "--all"])?.contains("bad-flags"));

    let flows = setup.json(&["flows"])?;
    assert_eq!(flows["states"]["ESTABLISHED"], 1, "{flows}");
    assert_eq!(flows["states"]["TIME_WAIT"], 5, "{flows}");
    assert_eq!(flows["total"], 6);
    let established = setup.json(&["flows", "--state", "established"])?;
    assert_eq!(established["flows"].as_array().map(Vec::len), Some(1));
    assert_eq!(established["flows"][0]["peer"], open.local_addr()?.to_string());
    assert_eq!(established["flows"][0]["service"], SERVICE.to_string());
    let text = setup.text(&["flows"])?;
    assert_eq!(text.lines().count(), 7, "{text}");
    assert!(text.lines().next().is_some_and(|header| header.starts_with("STATE")), "{text}");
    let output = setup.ask(&["flows", "--limit", "2"])?;
    assert_eq!(String::from_utf8(output.stdout)?.lines().count(), 3);
    assert!(String::from_utf8(output.stderr)?.contains("4 more not listed"));

    assert!(setup.text(&["tune"])?.lines().count() > 5);
    assert!(setup.text(&["tune", "time-wait"])?.contains("1m"));
    let one = setup.json(&["tune", "time-wait"])?;
    assert_eq!(one["tunables"][0]["value"], 60_000);
    Ok(())
}

/// XDP hands the ACK of a tuple in TIME_WAIT on as such, and the stack finds that its cookie is valid.
#[test]
fn handshakes_out_of_time_wait_count_as_valid_everywhere() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    for round in 0..3 {
        let socket = setup.lab.client().enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 4444).into())?;
            socket.connect_timeout(&SERVICE.into(), SOON)?;
            std::io::Result::Ok(socket)
        })??;
        let mut stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(SOON))?;
        write!(stream, "GET /small HTTP/1.0\r\n\r\n")?;
        stream.read_to_end(&mut Vec::new())?;
        drop(stream);
        wait_for("TIME_WAIT", SOON, || setup.state("TIME_WAIT").is_ok_and(|count| count == 1));
        let stats = setup.json(&["stats"])?;
        assert_eq!(stats["totals"]["stack"]["reincarnated"], round, "{}", stats["totals"]["stack"]);
        assert_eq!(stats["services"][0]["acks_valid"], round + 1, "{}", stats["services"][0]);
    }
    assert_eq!(setup.reason("ack-valid")?, 1, "the others were judged by the stack");
    Ok(())
}

#[test]
fn stats_watches_until_interrupted_and_ends_quietly_with_its_reader() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let mut command = Command::new(BINARY);
    command.args(["stats", "--watch", "0.1", "--json", "--control"]).arg(setup.control());
    let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut seen = Vec::new();
    let mut stdout = watch.stdout.take().context("no pipe")?;
    while seen.iter().filter(|&&byte| byte == b'\n').count() < 3 {
        let mut buffer = [0; 4096];
        let read = stdout.read(&mut buffer)?;
        ensure!(read > 0, "it ended by itself");
        seen.extend_from_slice(&buffer[..read]);
    }
    drop(stdout);
    let output = watch.wait_with_output()?;
    assert_eq!((output.status.code(), output.stderr.as_slice()), (Some(0), &b""[..]));
    Ok(())
}

#[test]
fn a_tuned_value_takes_effect_at_once_on_what_is_there() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&["--set", "time-wait=5m"])?;
    setup.fetch()?;
    eventually("TIME_WAIT", || Ok(setup.state("TIME_WAIT")? == 1))?;
    assert_eq!(setup.text(&["tune", "time-wait", "200ms"])?, "time-wait: 5m -> 200ms\n");
    eventually("the flow that was there already is gone", || Ok(setup.state("TIME_WAIT")? == 0))?;

    let tuned = setup.json(&["tune", "cookie-period", "2s"])?;
    assert_eq!((&tuned["old"], &tuned["new"]), (&60_000.into(), &2_000.into()));
    let epoch = || setup.json(&["status"])?["epoch"].as_u64().context("no epoch");
    let (before, asked) = (epoch()?, Instant::now());
    // Handshakes go on while the keys turn over.
    while asked.elapsed() < Duration::from_secs(5) {
        setup.fetch()?;
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(epoch()? >= before + 2, "{before} then {}", epoch()?);
    assert_eq!(setup.reason("ack-invalid")?, 0);
    Ok(())
}

#[test]
fn a_bad_change_is_refused_and_changes_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let before = setup.text(&["tune"])?;
    for (arguments, why) in [
        (&["tune", "nonsense", "1s"][..], "unknown tunable"),
        (&["tune", "time-wait", "1h"], "out of range"),
        (&["tune", "time-wait", "30"], "a duration looks like"),
        (&["tune", "retries", "0"], "out of range"),
        // In range by itself; only the daemon knows what it contradicts.
        (&["tune", "min-rto", "1m"], "above max-rto"),
    ] {
        if arguments[1] == "min-rto" {
            setup.text(&["tune", "max-rto", "2s"])?;
        }
        let said = one_line(&setup.ask(arguments)?, 2)?;
        assert!(said.contains(why), "{said}");
    }
    setup.text(&["tune", "max-rto", "1m"])?;
    assert_eq!(setup.text(&["tune"])?, before);
    Ok(())
}

#[test]
fn a_hostile_client_disturbs_neither_the_daemon_nor_others() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon(&[])?;
    let connect = || std::os::unix::net::UnixStream::connect(setup.control());
    let _silent = (0..8).map(|_| connect()).collect::<std::io::Result<Vec<_>>>()?;
    let mut endless = connect()?;
    // The daemon hangs up long before the end.
    assert!(endless.write_all(&vec![b'{'; 100 << 20]).is_err());
    let mut half = connect()?;
    half.write_all(b"{\"v\":1,\"op\":\"tune\",\"name\":\"time-wait\",\"value\":\"1s\"")?;
    half.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    half.read_to_string(&mut answer)?;
    assert!(answer.contains("cut short"), "{answer}");
    // One asks and never reads: nobody listens to it in the end, and nothing piles up.
    let mut deaf = connect()?;
    deaf.set_write_timeout(Some(Duration::from_secs(1)))?;
    let questions = b"{\"v\":1,\"op\":\"stats\"}\n".repeat(1000);
    assert!((0..1000).any(|_| deaf.write_all(&questions).is_err()), "a million questions were taken");
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 60_000);
    setup.fetch()?;
    assert!(daemon.ended()?.is_none());
    Ok(())
}

#[test]
fn a_second_daemon_is_refused_whatever_it_has_of_its_own() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    let (link, pins) = (setup.link()?, setup.pins());
    let other_control = setup.lab.dir().join("other.sock");
    let said = setup.refused(&setup.arguments(), 1)?;
    assert!(said.contains("another daemon"), "{said}");
    let mut own = setup.replaced("--control", &other_control.display().to_string())?;
    let said = setup.refused(&own, 1)?;
    assert!(said.contains("another tcpguard is running"), "{said}");
    let pin_dir = own.iter().position(|argument| argument == "--pin-dir").context("no --pin-dir")?;
    own[pin_dir + 1] += "-other";
    let said = setup.refused(&own, 1)?;
    assert!(said.contains("already guarded"), "{said}");

    assert!(!other_control.exists());
    assert_eq!((setup.link()?, setup.pins()), (link, pins));
    setup.fetch()
}

#[test]
fn what_is_refused_leaves_the_machine_as_it_was() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let with =
        |more: &[&str]| [setup.arguments(), more.iter().map(|&more| more.to_owned()).collect()].concat();
    let secret = setup.lab.dir().join("secret");
    std::fs::write(&secret, "not a secret")?;
    let secret = secret.display().to_string();
    let metrics = |listen: &str| -> Result<Vec<String>> {
        let file = setup.lab.dir().join(format!("{listen}.toml"));
        std::fs::write(&file, format!("[metrics]\nlisten = \"{listen}\"\n"))?;
        Ok(with(&["--config", &file.display().to_string()]))
    };
    let holder = setup.lab.guard().enter(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))??;
    let taken = holder.local_addr()?.to_string();
    // What may be otherwise a moment later has another exit code: a service manager tries again.
    for (arguments, why, code) in [
        (with(&["-i", "no-such-if0"]), "no-such-if0", 1),
        (metrics("192.0.2.99:9100")?, "192.0.2.99:9100: Cannot assign requested address", 1),
        (metrics(&taken)?, "Address already in use", 1),
        (with(&["-i", "lo"]), "not an Ethernet", 2),
        (with(&["-i", GUARD_INTERFACE]), "twice", 2),
        (with(&["--set", "time-wait=1h"]), "out of range", 2),
        (with(&["--group", "no-such-group"]), "no-such-group", 2),
        (with(&["--secret-file", &secret]), "secret", 2),
        (with(&["--queues", "7"]), "queues", 2),
        (setup.replaced("--pin-dir", "/tmp")?, "not on a BPF file system", 2),
        (setup.replaced("--control", "/etc/passwd")?, "not a socket", 2),
    ] {
        let said = setup.refused(&arguments, code)?;
        assert!(said.contains(why), "{arguments:?}: {said}");
        assert_eq!(setup.link()?, before, "{arguments:?}");
        assert_eq!(setup.pins(), 0, "{arguments:?}");
        assert!(!setup.control().exists(), "{arguments:?}");
    }
    Ok(())
}

#[test]
fn without_privileges_one_line_says_what_is_missing() -> Result<()> {
    let setup = Setup::new()?;
    let mut command = setup.lab.guard().command("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--", BINARY]);
    let said = one_line(&command.args(setup.arguments()).output()?, 2)?;
    assert!(said.contains("no permission") || said.contains("ermission denied"), "{said}");
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn sigterm_drains_resets_the_rest_and_leaves_nothing() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let mut daemon = setup.daemon(&["--set", "drain-time=1s"])?;
    assert!(setup.pins() > 0 && setup.link()?.contains("xdp"));
    let mut idle = setup.keep_alive()?;
    eventually("established", || Ok(setup.state("ESTABLISHED")? == 1))?;

    daemon.signal(Signal::TERM)?;
    eventually("draining", || Ok(setup.json(&["status"])?["phase"] == "draining"))?;
    let status = daemon.wait(SOON).with_context(|| setup.said())?;
    assert_eq!(status.code(), Some(0), "{}", setup.said());
    let error = idle.read(&mut [0; 100]).err().context("the connection ended in order")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(setup.pins(), 0);
    assert!(!setup.control().exists());
    assert_eq!(setup.link()?, before);
    let said = setup.said();
    assert!(said.contains("guarding guard0 (native XDP, queues 2)") && said.contains("ready"), "{said}");
    Ok(())
}

#[test]
fn connections_may_finish_for_as_long_as_drain_time_says_now() -> Result<()> {
    let setup = Setup::new()?;
    let mut daemon = setup.daemon(&["--set", "drain-time=0s"])?;
    let mut stream = setup.keep_alive()?;
    setup.text(&["tune", "drain-time", "1m"])?;
    daemon.signal(Signal::TERM)?;
    eventually("draining", || Ok(setup.json(&["status"])?["phase"] == "draining"))?;
    stream.write_all(b"GET /small HTTP/1.1\r\nHost: x\r\n\r\n")?;
    assert!(stream.read(&mut [0; 100])? > 0, "reset instead of being waited for");
    drop(stream);
    let status = daemon.wait(SOON).with_context(|| setup.said())?;
    assert_eq!(status.code(), Some(0), "{}", setup.said());
    Ok(())
}

#[test]
fn after_sigkill_protection_stays_and_a_fresh_run_takes_over() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon(&[])?;
    setup.fetch()?;
    let mut orphan = setup.keep_alive()?;
    let (counted, pins) = (setup.answered()?, setup.pins());
    daemon.kill()?;
    assert!(setup.link()?.contains("xdp") && setup.pins() == pins);
    // The host is reachable: what is not protected never depended on the daemon.
    let other = SocketAddrV4::new(GUARD_ADDRESS, 22);
    let _listener = setup.lab.guard().enter(|| TcpListener::bind(other))??;
    setup.lab.client().enter(|| TcpStream::connect_timeout(&other.into(), SOON))??;

    let daemon = setup.daemon(&[])?;
    assert_eq!(setup.json(&["status"])?["generation"], 2);
    assert!(setup.said().contains("taken over"), "{}", setup.said());
    setup.fetch()?;
    assert!(setup.answered()? > counted);
    // A peer of the dead daemon's learns at its next word that the connection is gone.
    orphan.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let error = orphan.read(&mut [0; 100]).err().context("somebody answered")?;
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn a_dead_daemons_ports_are_silent_for_the_grace_and_then_left_to_the_host_or_dropped() -> Result<()> {
    let setup = Setup::new()?;
    let knock = || -> Result<std::io::Result<TcpStream>> {
        let connect = || TcpStream::connect_timeout(&SERVICE.into(), Duration::from_millis(300));
        setup.lab.client().enter(connect)
    };
    let kind = |knocked: std::io::Result<TcpStream>| knocked.err().map(|error| error.kind());
    // A tuned grace counts, not only a configured one.
    let daemon = setup.daemon(&["--set", "exit-grace=1m"])?;
    setup.text(&["tune", "exit-grace", "2s"])?;
    daemon.kill()?;
    assert_eq!(kind(knock()?), Some(std::io::ErrorKind::TimedOut));
    eventually("the host refuses", || Ok(kind(knock()?) == Some(std::io::ErrorKind::ConnectionRefused)))?;

    let daemon = setup.daemon(&["--set", "exit-grace=0s", "--on-daemon-exit", "drop"])?;
    setup.fetch()?;
    let dropped = setup.reason("exit-drop")?;
    daemon.kill()?;
    std::thread::sleep(Duration::from_millis(1500));
    assert_eq!(kind(knock()?), Some(std::io::ErrorKind::TimedOut));
    let _daemon = setup.daemon(&[])?;
    assert!(setup.reason("exit-drop")? > dropped, "{}", setup.text(&["stats"])?);
    Ok(())
}

#[test]
fn detach_removes_what_a_killed_daemon_left_and_refuses_while_one_runs() -> Result<()> {
    let setup = Setup::new()?;
    let before = setup.link()?;
    let metrics = setup.lab.dir().join("metrics.sock");
    let file = setup.lab.dir().join("metrics.toml");
    std::fs::write(&file, format!("[metrics]\nlisten = \"unix:{}\"\n", metrics.display()))?;
    let config = ["--config", &file.display().to_string()].map(str::to_owned);
    let detach = || -> Result<Output> {
        let mut command = setup.lab.guard().command(BINARY);
        command.args(["detach", "--pin-dir"]).arg(setup.lab.pin_dir()).arg("--control").arg(setup.control());
        Ok(command.args(&config).output()?)
    };
    let namespace = setup.lab.guard().enter(|| std::fs::metadata("/proc/thread-self/ns/net"))??.ino();
    let locks = || -> Result<usize> {
        let names = std::fs::read_dir("/run/tcpguard")?.map(|entry| Ok(entry?.file_name()));
        let names = names.collect::<Result<Vec<_>>>()?;
        let ours = format!("{namespace}-");
        Ok(names.iter().filter(|name| name.to_string_lossy().starts_with(&ours)).count())
    };
    let daemon = setup.daemon(&config.each_ref().map(String::as_str))?;
    let said = one_line(&detach()?, 1)?;
    assert!(said.contains("another tcpguard is running"), "{said}");
    setup.fetch()?;
    assert!(locks()? == 1 && metrics.exists());
    daemon.kill()?;
    assert!(setup.link()?.contains("xdp") && setup.control().exists() && metrics.exists());
    let output = detach()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let said = String::from_utf8(output.stdout)?;
    let removed = format!("removed {}, where nobody listened", setup.control().display());
    assert!(said.starts_with("detached") && said.contains(&removed), "{said}");
    assert!(said.contains(&format!("removed {}, where nobody listened", metrics.display())), "{said}");
    assert_eq!((setup.pins(), setup.link()?), (0, before));
    assert!(!setup.control().exists() && !metrics.exists());
    assert_eq!(locks()?, 0);
    let again = String::from_utf8(detach()?.stdout)?;
    assert!(again.starts_with("nothing was pinned") && again.lines().count() == 1, "{again}");
    Ok(())
}

#[test]
fn a_configuration_file_says_the_same_as_arguments() -> Result<()> {
    let setup = Setup::new()?;
    let daemon = setup.daemon_from_file("queues = 2\n[tunables]\ntime-wait = \"7s\"\n")?;
    setup.fetch()?;
    assert_eq!(setup.json(&["tune", "time-wait"])?["tunables"][0]["value"], 7_000);
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    Ok(())
}

#[test]
fn one_daemon_guards_several_interfaces_each_in_its_own_mode() -> Result<()> {
    let setup = Setup::new()?;
    let guard = setup.lab.guard();
    let second = setup.second_link()?;
    let daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    for _ in 0..3 {
        setup.fetch()?;
        setup.fetch_from(second)?;
    }
    // A client's last acknowledgement may still be on its way.
    let deadline = Instant::now() + SOON;
    let flows = loop {
        let flows = setup.json(&["flows"])?;
        if flows["states"]["TIME_WAIT"] == 6 && flows["total"] == 6 {
            break flows;
        }
        ensure!(Instant::now() < deadline, "not six flows in TIME_WAIT: {flows}");
        std::thread::sleep(Duration::from_millis(50));
    };
    let from = |name: &str, service: SocketAddrV4| {
        let flows = flows["flows"].as_array().into_iter().flatten();
        flows.filter(|flow| flow["interface"] == name && flow["service"] == service.to_string()).count()
    };
    assert_eq!((from(GUARD_INTERFACE, SERVICE), from("guard1", second)), (3, 3), "{flows}");
    assert_eq!(setup.json(&["status"])?["interfaces"][1]["mode"], "generic");
    assert!(guard.output("ip", &["link", "show", "dev", "guard1"])?.contains("xdpgeneric"));
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert!(!guard.output("ip", &["link", "show", "dev", "guard1"])?.contains("xdp"));
    Ok(())
}

#[test]
fn a_removed_interface_ends_the_daemon_once_what_the_others_have_is_drained() -> Result<()> {
    let setup = Setup::new()?;
    let guard = setup.lab.guard();
    let second = setup.second_link()?;
    let mut daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    setup.fetch_from(second)?;
    let mut open = setup.keep_alive()?;
    guard.ip("link del guard1")?;
    // Nothing is sent on that interface any more: it must be noticed all the same.
    eventually("draining", || Ok(setup.said().contains("draining what other interfaces have")))?;
    assert_eq!(setup.json(&["status"])?["phase"], "draining");
    open.write_all(b"GET /small HTTP/1.0\r\n\r\n")?;
    let mut answer = Vec::new();
    open.read_to_end(&mut answer)?;
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(daemon.wait(SOON)?.code(), Some(1));
    let said = setup.said();
    assert!(said.lines().last().is_some_and(|line| line.contains("interface guard1 is gone")), "{said}");
    // The other interface is left to on_daemon_exit, as after a kill, and to the next daemon.
    assert!(setup.link()?.contains("xdp"));
    let daemon = setup.daemon(&[])?;
    assert!(setup.said().contains("taken over"), "{}", setup.said());
    setup.fetch()?;
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    assert_eq!(setup.pins(), 0);
    Ok(())
}

#[test]
fn an_ipv6_service_is_guarded_relayed_listed_and_counted_like_any() -> Result<()> {
    let setup = Setup::new()?;
    setup.lab.guard().ip("addr add fd77::1/64 dev guard0 nodad")?;
    setup.lab.client().ip("addr add fd77::2/64 dev client0 nodad")?;
    let service: SocketAddr = "[fd77::1]:80".parse()?;
    let _daemon = setup.daemon(&["--protect", &format!("{service}=127.0.0.1:{BACKEND_PORT}")])?;
    setup.backend.file("large", 3_000_000)?;
    let answered = setup.answered()?;
    let body = setup.download(service, "large")?;
    assert!(body == std::fs::read(setup.backend.root().join("large"))?, "{} bytes", body.len());
    let open = setup.connect_to(service)?;

    eventually("both listed", || Ok(setup.json(&["flows"])?["total"] == 2))?;
    let listed = setup.json(&["flows", "--state", "established"])?;
    let flow = &listed["flows"][0];
    assert_eq!(flow["local"], service.to_string());
    assert_eq!(flow["service"], service.to_string());
    assert_eq!(flow["peer"], open.local_addr()?.to_string());
    assert_eq!(setup.state("TIME_WAIT")?, 1);
    assert!(setup.text(&["flows"])?.contains("[fd77::2]:"));
    assert_eq!(setup.answered()?, answered + 2);
    assert_eq!(setup.reason("ack-valid")?, 2);
    let stats = setup.json(&["stats"])?;
    assert!(stats["totals"]["service"]["bytes-to-client"].as_u64() > Some(3_000_000), "{stats}");
    // And the other family beside it.
    setup.fetch()?;
    Ok(())
}

#[test]
fn only_root_and_the_sockets_group_may_ask_the_daemon() -> Result<()> {
    const NOBODY: u32 = 65534;
    let setup = Setup::new()?;
    let ask = || -> Result<Output> {
        let mut command = Command::new(BINARY);
        command.args(["status", "--control"]).arg(setup.control()).uid(NOBODY).gid(NOBODY);
        Ok(command.output()?)
    };
    let daemon = setup.daemon(&[])?;
    let said = one_line(&ask()?, 2)?;
    assert!(said.contains("permission denied"), "{said}");
    assert_eq!(daemon.stop(SOON)?.code(), Some(0));
    let _daemon = setup.daemon(&["--group", &NOBODY.to_string()])?;
    let output = ask()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

#[test]
fn clients_that_take_every_descriptor_they_can_do_not_keep_the_operator_out() -> Result<()> {
    let setup = Setup::new()?;
    let with_limit = |limit: u32| {
        let mut command = setup.lab.guard().command("prlimit");
        command.arg(format!("--nofile={limit}:{limit}")).arg(BINARY).args(setup.arguments());
        command
    };
    let said = one_line(&with_limit(80).output()?, 2)?;
    assert!(said.contains("a limit of 80 descriptors leaves none for connections"), "{said}");
    assert_eq!(setup.pins(), 0);

    let _daemon = setup.start(&mut with_limit(256))?;
    assert!(setup.said().contains("few descriptors"), "{}", setup.said());
    // A reset may be there before the connection is looked at.
    let held: Vec<_> = (0..300).filter_map(|_| setup.connect().ok()).collect();
    let count = |name: &str| -> Result<u64> {
        let stats = setup.json(&["stats"])?;
        stats["totals"]["service"][name].as_u64().context("no such counter")
    };
    eventually("none left", || Ok(count("connected")? + count("exhausted")? == 300))?;
    assert!(count("connected")? > 0 && count("exhausted")? > 0);
    assert_eq!(setup.text(&["tune", "time-wait", "30s"])?, "time-wait: 1m -> 30s\n");
    drop(held);
    eventually("room again", || Ok(setup.fetch().is_ok()))?;
    Ok(())
}

/// How many descriptors a process may have: now, and what it may raise that to.
fn descriptors(process: u32) -> Result<[u64; 2]> {
    let limits = std::fs::read_to_string(format!("/proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).context("no limit")?;
    let mut numbers = line.split_whitespace();
    let mut next = || -> Result<u64> { Ok(numbers.next().context("no number")?.parse()?) };
    Ok([next()?, next()?])
}

#[test]
fn the_limit_of_descriptors_is_raised_to_what_services_may_have_or_what_is_missing_is_said() -> Result<()> {
    const MISSING: &str = "fewer descriptors than the services may have connections";
    let setup = Setup::new()?;
    let file = setup.lab.dir().join("limits.toml");
    let write = |most: &str| {
        let service = "[[service]]\nlisten = \"10.77.0.1:90\"\nbackend = \"127.0.0.1:9\"\n";
        std::fs::write(&file, format!("{service}{most}"))
    };
    // Those of a unit: none that raises a hard limit.
    let limited = |limits: &str, more: &[&str]| {
        let mut command = setup.lab.guard().command("prlimit");
        command.arg(format!("--nofile={limits}")).args(more).arg(BINARY).args(setup.arguments());
        command.arg("--config").arg(&file);
        setup.start(&mut command)
    };
    let unprivileged = ["setpriv", "--bounding-set=-sys_resource"];
    let times = || setup.said().matches(MISSING).count();

    write("")?;
    let daemon = limited("256:4096", &unprivileged)?;
    assert_eq!((descriptors(daemon.id())?, times()), ([4096; 2], 0), "{}", setup.said());
    // Services that may have more than there are, by a verb and by the file, and ones that may not.
    setup.text(&["services", "set", "10.77.0.1:90", "max_connections=3000"])?;
    assert_eq!(times(), 0, "{}", setup.said());
    setup.text(&["services", "set", "10.77.0.1:90", "max_connections=5000"])?;
    assert_eq!(times(), 1, "{}", setup.said());
    setup.text(&["services", "set", "10.77.0.1:90", "max_connections=4500"])?;
    write("max_connections = 4400\n")?;
    setup.text(&["reload"])?;
    assert_eq!(times(), 1, "there are no more than before");
    write("max_connections = 6000\n")?;
    setup.text(&["reload"])?;
    assert_eq!(times(), 2, "{}", setup.said());
    assert!(daemon.stop(SOON)?.success());

    let daemon = limited("256:256", &unprivileged)?;
    assert_eq!((descriptors(daemon.id())?, times()), ([256; 2], 3), "{}", setup.said());
    assert!(daemon.stop(SOON)?.success());
    // Whether the tests may raise a hard limit is the machine's business.
    let raises = ["--nofile=256:256", "prlimit", "--nofile=512:512", "true"];
    if Command::new("prlimit").args(raises).output()?.status.success() {
        let daemon = limited("256:256", &[])?;
        assert!(descriptors(daemon.id())?[0] > 6000 && times() == 3, "{}", setup.said());
    }
    Ok(())
}

#[test]
fn a_service_manager_hears_when_the_daemon_is_ready_as_long_as_it_lives_and_when_it_stops() -> Result<()> {
    let setup = Setup::new()?;
    let path = setup.lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path)?;
    manager.set_read_timeout(Some(SOON))?;
    let hear = || -> Result<String> {
        let mut message = [0; 1000];
        let len = manager.recv(&mut message).context("nothing is heard")?;
        Ok(String::from_utf8(message[..len].to_vec())?)
    };
    let mut command = setup.lab.guard().command(BINARY);
    command.args(setup.arguments()).args(["--set", "drain-time=5m"]);
    command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let daemon = setup.start(&mut command)?;
    let ready = hear()?;
    assert!(ready.starts_with("READY=1\nSTATUS=guarding guard0 ("), "{ready}");
    for _ in 0..3 {
        assert_eq!(hear()?, "WATCHDOG=1");
    }
    // Stopped, it is not heard of: that is what the watchdog is for.
    daemon.signal(Signal::STOP)?;
    manager.set_read_timeout(Some(Duration::from_millis(1500)))?;
    while hear().is_ok() {}
    daemon.signal(Signal::CONT)?;
    manager.set_read_timeout(Some(SOON))?;
    assert_eq!(hear()?, "WATCHDOG=1");
    daemon.signal(Signal::TERM)?;
    let last = std::iter::repeat_with(hear).find(|said| !matches!(said.as_deref(), Ok("WATCHDOG=1")));
    // Longer than any patience that the manager has of its own.
    let expected = "STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=310000000";
    assert_eq!(last.context("the end of all messages")??, expected);
    Ok(())
}

/// Turns that the engine of the first queue has made.
fn turns(setup: &Setup) -> Result<u64> {
    let stats = setup.json(&["stats"])?;
    stats["engines"][0]["counters"]["engine"]["turns"].as_u64().context("no counter")
}

/// CPU time that all threads of a process have taken.
fn cpu_time(process: u32) -> Result<Duration> {
    /// What /proc counts in, on every architecture.
    const TICK: Duration = Duration::from_millis(10);
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no name")?;
    // In user space and in the kernel.
    let ticks = fields.split(' ').skip(11).take(2).map(|field| Ok(field.parse::<u32>()?));
    Ok(TICK * ticks.sum::<Result<u32>>()?)
}

#[test]
fn an_idle_engine_sleeps_unless_it_is_to_poll_and_stays_on_its_cpu() -> Result<()> {
    let setup = Setup::new()?;
    // Each second ten turns for the heartbeat, and a few for keys and questions.
    let idle = setup.daemon_from_file("cpus = [1, 0]\n")?;
    let before = turns(&setup)?;
    let took = cpu_time(idle.id())?;
    std::thread::sleep(Duration::from_secs(2));
    let took = cpu_time(idle.id())? - took;
    let slept = turns(&setup)? - before;
    assert!(took < Duration::from_millis(100), "{took:?} of CPU time in two seconds of nothing");
    assert!(slept < 200, "{slept} turns in two seconds of nothing");
    let mut placed = Vec::new();
    for task in std::fs::read_dir(format!("/proc/{}/task", idle.id()))? {
        let status = std::fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        if let Some(name) = field("Name:").filter(|name| name.starts_with("guard0/")) {
            placed.push((name.to_owned(), field("Cpus_allowed_list:").context("no CPUs")?.to_owned()));
        }
    }
    placed.sort();
    let expected = [("guard0/0", "1"), ("guard0/1", "0")];
    assert_eq!(placed, expected.map(|(name, cpu)| (name.to_owned(), cpu.to_owned())));
    assert!(idle.stop(SOON)?.success());
    let busy = setup.daemon_from_file("busy_poll = true\n")?;
    let before = turns(&setup)?;
    eventually("turns without a reason", || Ok(turns(&setup)? - before > 100 * slept))?;
    setup.fetch()?;
    assert!(busy.stop(SOON)?.success());
    let refused =
        setup.daemon_from_file("cpus = [1023]\n").map(drop).expect_err("it runs on a CPU that is not there");
    assert!(format!("{refused:#}").contains("cannot run on CPU 1023"), "{refused:#}");
    Ok(())
}
