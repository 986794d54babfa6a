//! The daemon itself stands still, is killed, and comes back.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::support::raw::{Outgoing, RawPort};
use super::support::setup::Setup;
use super::support::stuck::Stuck;
use super::support::{Guarded, PORT, lab_object, setup, wait_for};
use super::{
    DISCARD, ECHO, RELAYED, SOON, Server, ask, check_frames, connect, count, guarded, more_descriptors,
};
use rustix::process::Signal;
use serde_json::Value;
use tcpguard_common::packet::Flags;
use xtask::lab::{FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, LabConfig};

/// The peers' sending goes on while nobody takes frames off the ring, until the kernel has none left to fill.
#[test]
fn stopped_for_five_seconds_under_load_the_daemon_loses_frames_but_no_byte() {
    const UPLOADS: usize = 48;
    const EACH: usize = 3 << 20;
    let mut guarded = guarded(&["--on-daemon-exit", "drop", "--set", "exit-grace=1s"]);
    let block = vec![0x5a_u8; 64 << 10];
    let streams: Vec<_> = (0..UPLOADS).map(|_| connect(&guarded, DISCARD).expect("a connection")).collect();
    let started = Arc::new(AtomicU64::new(0));
    let uploads: Vec<_> = streams
        .into_iter()
        .map(|mut stream| {
            let (block, started) = (block.clone(), Arc::clone(&started));
            thread::spawn(move || {
                for sent in (0..EACH).step_by(block.len()) {
                    stream.write_all(&block).expect("sending");
                    started.fetch_add(u64::from(sent == 0), Ordering::Relaxed);
                }
                stream.shutdown(Shutdown::Write).expect("ending");
                stream.read(&mut [0]).expect("the guard's end")
            })
        })
        .collect();
    wait_for("every upload to be under way", SOON, || started.load(Ordering::Relaxed) == UPLOADS as u64);
    guarded.daemon().signal(Signal::STOP).expect("stopping the daemon");
    thread::sleep(Duration::from_secs(5));
    guarded.daemon().signal(Signal::CONT).expect("letting it go on");
    for upload in uploads {
        assert_eq!(upload.join().expect("an upload"), 0);
    }
    assert_eq!(count(&guarded, "service", "bytes-to-backend"), (UPLOADS * EACH) as u64);
    let lost = ["rx-dropped", "rx-ring-full", "rx-fill-ring-empty"].map(|name| count(&guarded, "ring", name));
    // Either the ring overflowed before the heartbeat was stale, or XDP dropped what came after.
    let refused = guarded.reason("grace") + guarded.reason("exit-drop");
    assert!(refused > 0, "nothing was refused while the daemon stood still; the ring lost {lost:?}");
    let server = Server::start(&guarded);
    assert!(ask(&guarded), "service is not restored");
    server.kill();
    check_frames(&guarded);
}

/// A configuration file that says nothing but where the metrics are, and that place.
fn metrics_file(name: &str) -> (PathBuf, PathBuf) {
    let base = std::env::temp_dir().join(format!("tcpguard-{name}-{}", std::process::id()));
    let (file, socket) = (base.with_extension("toml"), base.with_extension("sock"));
    let text = format!("[metrics]\nlisten = \"unix:{}\"\n", socket.display());
    std::fs::write(&file, text).expect("writing a configuration");
    (file, socket)
}

/// How long ago each engine turned, in seconds, as a scraper reads it.
fn heartbeat_ages(socket: &Path) -> Vec<f64> {
    let mut client = UnixStream::connect(socket).expect("the metrics' socket");
    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: guard\r\n\r\n").expect("asking");
    let mut text = String::new();
    client.read_to_string(&mut text).expect("an answer");
    let samples = text.lines().filter(|line| line.starts_with("tcpguard_engine_heartbeat_age_seconds{"));
    samples.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect()
}

/// What a stuck engine has is lost to nobody: it is dropped as long as nothing moves, and peers send it again.
#[test]
fn an_engine_that_stands_still_holds_up_its_own_clients_alone_and_answers_no_syn() {
    const SYNS: u16 = 40;
    let echo = format!("{GUARD_ADDRESS}:{ECHO}=respond:echo,cookie");
    let (file, metrics) = metrics_file("still");
    let file = file.display().to_string();
    let arguments =
        ["--config", &file, "--protect", &echo, "--on-daemon-exit", "drop", "--set", "exit-grace=1s"];
    let mut guarded = Guarded::up(LabConfig { queues: 2, ..LabConfig::new(lab_object()) }, &arguments);
    let raw = RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let is_answered = |port: u16| {
        let syn = Outgoing { flags: Flags::SYN, ..Outgoing::default() };
        raw.send(&raw.frame(port, ECHO, &syn));
        raw.receive(ECHO, port, Duration::from_millis(200)).is_some()
    };
    let echoed = |stream: &mut TcpStream| stream.read_exact(&mut [0]).is_ok();
    let mut streams: Vec<_> = (0..24).map(|_| connect(&guarded, ECHO).expect("a connection")).collect();
    for stream in &mut streams {
        stream.write_all(b"x").expect("sending");
        assert!(echoed(stream));
    }
    let flows = guarded.flows(Some("ESTABLISHED"));
    let of_stuck = |stream: &TcpStream| {
        let peer = stream.local_addr().expect("an address").to_string();
        let flow = flows.iter().find(|flow| flow["peer"] == peer.as_str()).expect("a flow");
        flow["queue"] == 0
    };
    let (mut held, mut others): (Vec<_>, Vec<_>) = streams.into_iter().partition(of_stuck);
    assert!(!held.is_empty() && !others.is_empty(), "all on one queue");

    let process = guarded.daemon().child().id();
    let stuck = Stuck::thread(process, &format!("{GUARD_INTERFACE}/0"));
    thread::sleep(Duration::from_millis(1500));
    for stream in held.iter_mut().chain(&mut others) {
        stream.write_all(b"y").expect("sending");
    }
    assert!(others.iter_mut().all(echoed), "the other engine serves its clients");
    let silent: Vec<u16> = (20_000..20_000 + SYNS).filter(|&port| !is_answered(port)).collect();
    assert!(!silent.is_empty(), "a SYN was answered that nobody would have served");
    assert!(silent.len() < usize::from(SYNS), "no SYN was answered for the other engine");
    // Nor does it hold up whoever asks how things are.
    let status = guarded.cli(&["status"]);
    assert!(status.status.success());
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(said.contains(&format!("engine {GUARD_INTERFACE} queue 0 STANDS STILL for ")), "{said}");
    assert!(!said.contains(&format!("engine {GUARD_INTERFACE} queue 1 STANDS")), "{said}");
    // What it counts and has is left out; what XDP counts is not its own, and the other engine's is there. It used to take all
    // of that away, after five seconds.
    let asked = Instant::now();
    let stats = guarded.json(&["stats"]);
    let left_out = serde_json::json!([{ "interface": GUARD_INTERFACE, "queue": 0 }]);
    assert_eq!(stats["left_out"], left_out);
    assert!(stats["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()));
    let engines = stats["engines"].as_array().expect("engines");
    assert_eq!((engines.len(), &engines[0]["queue"]), (1, &1.into()));
    assert_eq!(stats["states"]["ESTABLISHED"], others.len());
    let flows = guarded.json(&["flows"]);
    assert_eq!((&flows["left_out"], &flows["total"]), (&left_out, &others.len().into()));
    for verb in ["stats", "flows"] {
        let said = guarded.cli(&[verb]);
        let text =
            [said.stdout, said.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
        assert!(text.contains(&format!("left out: {GUARD_INTERFACE} queue 0, which stands still")), "{text}");
    }
    let ages = heartbeat_ages(&metrics);
    assert!(ages.len() == 2 && ages[0] > 1.0 && ages[1] < 1.0, "{ages:?}");
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    drop(stuck);
    assert!(held.iter_mut().all(echoed), "what was lost was not sent again, or not taken");
    wait_for("its SYNs to be answered again", SOON, || silent.iter().all(|&port| is_answered(port)));
    let reasons = guarded.reasons();
    assert!(reasons["grace"] + reasons["exit-drop"] >= silent.len() as u64);
    assert_eq!(guarded.flows(Some("ESTABLISHED")).len(), held.len() + others.len());
    assert_eq!(guarded.json(&["stats"])["left_out"], Value::Null);
    std::fs::remove_file(file).expect("removing the configuration");
}

/// Nor is a service manager told that all is well: that is how it comes to start another daemon.
#[test]
fn the_watchdog_hears_nothing_while_one_engine_stands_still() {
    let setup = Setup::new().expect("a lab");
    let path = setup.lab.dir().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    let hear = |patience| -> io::Result<String> {
        manager.set_read_timeout(Some(patience))?;
        let mut message = [0; 1000];
        let len = manager.recv(&mut message)?;
        Ok(String::from_utf8_lossy(&message[..len]).into_owned())
    };
    let mut command = setup.lab.guard().command(setup::BINARY);
    command.args(setup.arguments()).env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "1000000");
    let daemon = setup.start(&mut command).expect("a daemon");
    assert!(hear(SOON).expect("a word").starts_with("READY=1"));
    assert_eq!(hear(SOON).expect("another"), "WATCHDOG=1");

    let stuck = Stuck::thread(daemon.id(), &format!("{GUARD_INTERFACE}/0"));
    // What was on its way.
    thread::sleep(Duration::from_millis(300));
    while hear(Duration::from_millis(1)).is_ok() {}
    // As long as half a dozen would take.
    let heard = hear(Duration::from_millis(1500));
    assert!(heard.is_err(), "{heard:?}");
    drop(stuck);
    assert_eq!(hear(SOON).expect("a word"), "WATCHDOG=1");
    assert!(daemon.stop(SOON).expect("its end").success());
}

/// Its peers learn of the death within a second or two, and come again at once: what they had must not keep them out.
#[test]
fn clients_that_a_killed_daemon_had_are_all_let_in_by_the_next_one() {
    const FLOWS: usize = 1024;
    // More than half of the map, and of what the service may have.
    const CLIENTS: usize = 640;
    const SERVICE: usize = 700;
    more_descriptors();
    let service_flows = format!("service-flows={SERVICE}");
    let mut guarded = guarded(&["--max-flows", &FLOWS.to_string(), "--set", &service_flows]);
    let mut held: Vec<_> = (0..CLIENTS).map(|_| connect(&guarded, DISCARD).expect("a connection")).collect();
    wait_for("every connection", SOON, || count(&guarded, "engine", "connections") == CLIENTS as u64);
    guarded.take_daemon().kill().expect("killing the daemon");
    guarded.start_daemon();
    let begun = Instant::now();
    for stream in &mut held {
        let end = stream.read(&mut [0]).expect_err("a reset");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset, "{end}");
        *stream = connect(&guarded, DISCARD).expect("a connection to the next daemon");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "they were told after {:?}", begun.elapsed());
    for mut stream in held {
        stream.write_all(b"x").and_then(|()| stream.shutdown(Shutdown::Write)).expect("sending");
        assert_eq!(stream.read(&mut [0]).expect("the guard's end"), 0);
    }
    let refused =
        ["flow-map-full", "admission-service", "admission-source-flows"].map(|name| guarded.reason(name));
    assert_eq!(refused, [0; 3]);
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    wait_for("the old entries to be gone", SOON, || {
        // One whose client came again from the same port gave way to that.
        count(&guarded, "flow-table", "old-generation") >= CLIENTS as u64 * 9 / 10
    });
    check_frames(&guarded);
}

/// Asks again and again, as an impatient client does, until there is an answer or it is `over`. How long that took since
/// `begun`, and how many attempts failed.
fn keep_trying(begun: Instant, over: &AtomicBool) -> Option<(Duration, u64)> {
    let tried = || -> io::Result<()> {
        let address = (GUARD_ADDRESS, RELAYED).into();
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_millis(250))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    };
    let mut failed = 0;
    while !over.load(Ordering::Relaxed) {
        if tried().is_ok() {
            return Some((begun.elapsed(), failed));
        }
        failed += 1;
    }
    None
}

#[test]
fn killed_and_started_again_under_a_flood_the_daemon_serves_clients_that_keep_trying() {
    const CLIENTS: usize = 4;
    let mut guarded = guarded(&["--on-daemon-exit", "drop"]);
    let server = Server::start(&guarded);
    assert!(ask(&guarded));
    let flood = FloodSpec { rate: 100_000, total: None, ..FloodSpec::default() };
    let flood = guarded.lab.flood(PORT, flood).expect("a flood");
    wait_for("the flood to be under way", SOON, || flood.generated() > 50_000);
    let mut held = connect(&guarded, DISCARD).expect("a connection");
    wait_for("the connection", SOON, || count(&guarded, "engine", "connections") > 0);
    guarded.take_daemon().kill().expect("killing the daemon");
    let (killed, over) = (Instant::now(), Arc::new(AtomicBool::new(false)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let over = Arc::clone(&over);
            let client = move || Ok(keep_trying(killed, &over));
            guarded.lab.client().spawn("client", client).expect("a client")
        })
        .collect();
    guarded.start_daemon();
    let all_served = || clients.iter().all(JoinHandle::is_finished);
    wait_for("every client to be served", SOON, all_served);
    over.store(true, Ordering::Relaxed);
    let served = clients.into_iter().map(|client| client.join().expect("a client").expect("the namespace"));
    let served: Vec<_> = served.map(|client| client.expect("an answer")).collect();
    let (first, failed) = (served.iter().min(), served.iter().map(|client| client.1).sum::<u64>());
    let (first, _) = first.expect("clients");
    writeln!(io::stderr(), "the first good request came {first:?} after SIGKILL, after {failed} others")
        .expect("a line");
    // A client that spoke to the dead daemon is told.
    held.set_read_timeout(Some(SOON)).expect("a timeout");
    let end = held.write_all(b"x").and_then(|()| held.read(&mut [0]));
    assert_eq!(end.expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    (0..20).for_each(|_| assert!(ask(&guarded), "service is not restored"));
    assert!(!flood.is_finished(), "the flood ended early");
    flood.stop().expect("the flood ends");
    server.kill();
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
}
