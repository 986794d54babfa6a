//! What breaks beside the guard, or runs out in it: each time clients are told at once, what happened is counted, and
//! service comes back by itself. Needs root.

mod support;

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::iter;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use serde_json::Value;
use socket2::SockRef;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::{self, Setup};
use support::stuck::Stuck;
use support::{Guarded, assert_same, lab_object, wait_for};
use tcpguard_common::packet::Flags;
use xtask::lab::{FloodSpec, GUARD_ADDRESS, GUARD_INTERFACE, LabConfig};
use xtask::soak::ENDS;

const BACKEND: &str = "127.0.0.1:9000";
/// The service with [`BACKEND`] behind it, and the one that discards.
const RELAYED: u16 = 81;
const DISCARD: u16 = 82;
/// One that only some tests have.
const ECHO: u16 = 83;
const SOON: Duration = Duration::from_secs(30);

fn guarded(more: &[&str]) -> Guarded {
    let relayed = format!("{GUARD_ADDRESS}:{RELAYED}={BACKEND}");
    let discard = format!("{GUARD_ADDRESS}:{DISCARD}=respond:discard");
    let arguments = [&["--protect", &relayed, "--protect", &discard], more].concat();
    Guarded::up(LabConfig::new(lab_object()), &arguments)
}

/// Stops the daemon. Signals take a moment: none of its threads runs any more when this returns.
fn stop(guarded: &mut Guarded) {
    guarded.daemon().signal(Signal::STOP).expect("stopping the daemon");
    let tasks = format!("/proc/{}/task", guarded.daemon().child().id());
    wait_for("all threads to be stopped", SOON, || {
        std::fs::read_dir(&tasks).expect("the daemon's threads").all(|task| {
            let stat = std::fs::read_to_string(task.expect("a thread").path().join("stat"));
            stat.is_ok_and(|stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T')))
        })
    });
}

fn connect(guarded: &Guarded, port: u16) -> io::Result<TcpStream> {
    let connect = || TcpStream::connect_timeout(&(GUARD_ADDRESS, port).into(), SOON);
    let stream = guarded.lab.client().enter(connect).expect("the client's namespace")?;
    stream.set_read_timeout(Some(SOON))?;
    Ok(stream)
}

fn count(guarded: &Guarded, group: &str, name: &str) -> u64 {
    let stats = guarded.json(&["stats"]);
    stats["totals"][group][name].as_u64().unwrap_or_else(|| panic!("no counter {group} {name}"))
}

/// Every frame is somewhere, and none is with the kernel that should not be.
fn check_frames(guarded: &Guarded) {
    wait_for("every frame accounted for", SOON, || {
        let frames = |name: &str| count(guarded, "ring", name);
        let held: u64 = ["free", "fill", "rx", "tx", "completion"].into_iter().map(frames).sum();
        held == frames("frames")
    });
}

/// A backend that answers each byte with `y`, and can be killed.
struct Server {
    killed: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Server {
    fn start(guarded: &Guarded) -> Self {
        let listener = guarded.listen(BACKEND);
        listener.set_nonblocking(true).expect("a listener that can be given up");
        let killed = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&killed);
        Self { killed, thread: thread::spawn(move || Self::serve(&listener, &over)) }
    }

    fn serve(listener: &TcpListener, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((mut stream, _)) => {
                    stream.set_nonblocking(false).expect("a blocking stream");
                    // What goes wrong here, the client notices.
                    let _ = stream.read(&mut [0]).and_then(|_| stream.write_all(b"y"));
                }
                Err(_) => thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    fn kill(self) {
        self.killed.store(true, Ordering::Relaxed);
        self.thread.join().expect("the server");
    }
}

/// Asks once; whether there was an answer. What is no answer must be a reset or an end.
fn ask(guarded: &Guarded) -> bool {
    let mut answer = [0];
    let mut asked = || -> io::Result<usize> {
        let mut stream = connect(guarded, RELAYED)?;
        stream.write_all(b"x")?;
        stream.read(&mut answer)
    };
    match asked() {
        Ok(read) => read == 1,
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => false,
        Err(error) => panic!("neither an answer nor a reset: {error}"),
    }
}

#[test]
fn a_backend_killed_and_restarted_under_load_costs_only_who_came_meanwhile() {
    let guarded = guarded(&[]);
    let server = Server::start(&guarded);
    assert!(ask(&guarded));
    let (answered, unanswered) = (AtomicU64::new(0), AtomicU64::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    let counter = if ask(&guarded) { &answered } else { &unanswered };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let more_than = |counter: &AtomicU64, what: &str| {
            let before = counter.load(Ordering::Relaxed);
            wait_for(what, SOON, || counter.load(Ordering::Relaxed) > before + 20);
        };
        more_than(&answered, "requests under way");
        server.kill();
        more_than(&unanswered, "requests that find no backend");
        let server = Server::start(&guarded);
        more_than(&answered, "requests to the restarted backend");
        over.store(true, Ordering::Relaxed);
        server
    })
    .kill();
    // Each ended for one reason, and no client without an answer is missing among them.
    // A backend that dies between a handshake and its being noticed resets what was about to be connected: `backend-error`.
    let ends =
        ["finished", "client-failed", "backend-failed", "client-silent", "backend-refused", "backend-error"];
    let counted = |name: &str| count(&guarded, "service", name);
    wait_for("every end counted", SOON, || {
        counted("accepted") == ends.iter().map(|end| counted(end)).sum::<u64>()
    });
    assert_eq!(counted("accepted"), 1 + answered.into_inner() + unanswered.load(Ordering::Relaxed));
    assert!(counted("backend-refused") > 0 && counted("backend-refused") <= unanswered.into_inner());
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
}

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

/// The server speaks first and the client's only segment is gone: nobody but the sweep of the flow table will ever bring the
/// connection in.
#[test]
fn a_first_segment_that_a_full_ring_lost_is_made_good_by_the_sweep() {
    const FLOOD: usize = 20_000;
    const GREETING: &[u8] = b"220 ready\r\n";
    let greeting = format!("{GUARD_ADDRESS}:{ECHO}={BACKEND},cookie");
    let mut guarded = Guarded::up(
        LabConfig::new(lab_object()),
        &["--protect", &greeting, "--protect", &format!("{GUARD_ADDRESS}:{DISCARD}=respond:discard")],
    );
    let listener = guarded.listen(BACKEND);
    thread::spawn(move || {
        let mut clients = Vec::new();
        for mut client in listener.incoming().flatten() {
            // What goes wrong here, the client notices.
            let _ = client.write_all(GREETING);
            clients.push(client);
        }
    });
    let raw = RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let flooder = raw.syn(50_000, DISCARD, 7, linux_options()).expect("a SYN-ACK");
    let flood = raw.frame(50_000, DISCARD, &flooder.ack(b""));
    raw.send(&flood);
    wait_for("the connection", SOON, || guarded.flows(Some("ESTABLISHED")).len() == 1);
    let victim = raw.syn(50_001, ECHO, 7, linux_options()).expect("a SYN-ACK");

    // The ring fills while nobody empties it. Beyond a second XDP would take the daemon for dead.
    loop {
        guarded.daemon().signal(Signal::STOP).expect("stopping the daemon");
        let start = Instant::now();
        (0..FLOOD).for_each(|_| raw.try_send(&flood));
        if start.elapsed() < Duration::from_millis(800) {
            break;
        }
        guarded.daemon().signal(Signal::CONT).expect("letting it go on");
        thread::sleep(Duration::from_millis(500));
    }
    raw.send(&raw.frame(victim.port, ECHO, &victim.ack(b"")));
    thread::sleep(Duration::from_millis(50));
    guarded.daemon().signal(Signal::CONT).expect("letting it go on");
    let heard = iter::from_fn(|| raw.receive(ECHO, victim.port, SOON))
        .map(|(segment, frame)| frame[segment.payload].to_vec())
        .find(|data| !data.is_empty());
    assert_eq!(heard.as_deref(), Some(GREETING));
    assert_eq!(count(&guarded, "flow-table", "swept"), 1, "the segment was not lost");
    assert!(count(&guarded, "flow-table", "hurried-slices") > 0, "the loss was counted, and nobody asked");
}

#[test]
fn a_full_flow_map_resets_newcomers_and_takes_them_again_once_there_is_room() {
    const FLOWS: usize = 1024;
    more_descriptors();
    let guarded = guarded(&["--max-flows", &FLOWS.to_string()]);
    let mut held = Vec::new();
    let mut refused = 0;
    while refused < 5 {
        assert!(held.len() <= 2 * FLOWS, "the map never fills up");
        // The reset may be there before the connection is looked at, or come after it.
        let Ok(mut stream) = connect(&guarded, DISCARD) else {
            refused += 1;
            continue;
        };
        stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => held.push(stream),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => refused += 1,
            other => panic!("neither silence nor a reset: {other:?}"),
        }
    }
    assert!(held.len() >= FLOWS - 1, "{} connections fill a map for {FLOWS}", held.len());
    assert!(guarded.reason("flow-map-full") >= refused, "{:?}", guarded.reasons());
    // Those that are in are served as before.
    for stream in &mut held {
        stream.write_all(b"x").expect("sending");
    }
    drop(held);
    wait_for("room", SOON, || count(&guarded, "engine", "connections") == 0);
    wait_for("newcomers are let in", SOON, || {
        let Ok(mut stream) = connect(&guarded, DISCARD) else { return false };
        stream.write_all(b"x").and_then(|()| stream.shutdown(Shutdown::Write)).is_ok()
            && stream.read(&mut [0]).is_ok_and(|read| read == 0)
    });
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

/// For tests that hold both ends of many connections.
fn more_descriptors() {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).expect("more descriptors");
}

/// More than the transmit ring holds, written while nothing can leave.
#[test]
fn out_of_frames_to_send_answers_wait_and_all_of_them_arrive() {
    const CLIENTS: u8 = 250;
    /// What a connection may send unacknowledged at first: ten segments.
    const ANSWER: usize = 14_600;
    /// Connections that each client has.
    const EACH: usize = 2;
    more_descriptors();
    let guarded = guarded(&[]);
    let listener = guarded.listen(BACKEND);
    let open = || {
        let client = connect(&guarded, RELAYED).expect("a connection");
        (client, listener.accept().expect("the relayed connection").0)
    };
    let mut pairs: Vec<_> = (0..CLIENTS)
        .flat_map(|number| (0..EACH).map(move |_| number))
        .map(|number| (number, open()))
        .collect();
    let link =
        |state| guarded.lab.guard().ip(&format!("link set {GUARD_INTERFACE} {state}")).expect("a link");
    link("down");
    for (number, (_, server)) in &mut pairs {
        server.write_all(&[*number; ANSWER]).expect("answering");
    }
    wait_for("every frame to be queued", SOON, || count(&guarded, "ring", "free") == 0);
    link("up");
    for (number, (client, _)) in &mut pairs {
        let mut answer = [0; ANSWER];
        client.read_exact(&mut answer).expect("an answer");
        assert!(answer.iter().all(|byte| byte == number), "somebody else's answer");
    }
    let answered = pairs.len() * ANSWER;
    assert_eq!(count(&guarded, "service", "bytes-to-client"), answered as u64);
    drop((pairs, listener));
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
    let server = Server::start(&guarded);
    wait_for("service to be restored", SOON, || ask(&guarded));
    server.kill();
}

/// Cookies make up for the half-open queue, and what the accept queue has no room for comes again.
#[test]
fn full_half_open_and_accept_queues_cost_nobody_a_connection() {
    const HANDSHAKES: u16 = 40;
    const HALF_OPEN: u64 = 16;
    let echo = format!("{GUARD_ADDRESS}:{ECHO}=respond:echo,stateful");
    let half_open = format!("half-open-limit={HALF_OPEN}");
    let mut guarded = guarded(&["--protect", &echo, "--set", &half_open, "--set", "accept-backlog=1"]);
    let raw = RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let syn = |port| raw.syn(port, ECHO, 7, linux_options()).expect("a SYN-ACK");
    let handshakes: Vec<_> = (50_000..50_000 + HANDSHAKES).map(syn).collect();
    let all = u64::from(HANDSHAKES);
    assert_eq!(
        (guarded.stack("half-open-entered"), guarded.stack("half-open-evicted")),
        (all, all - HALF_OPEN)
    );

    // Every ACK in one turn of the engine, before the service can take a single connection.
    stop(&mut guarded);
    for handshake in &handshakes {
        raw.send(&raw.frame(handshake.port, ECHO, &handshake.ack(b"")));
    }
    guarded.daemon().signal(Signal::CONT).expect("letting it go on");
    wait_for("the queue to be full", SOON, || guarded.stack("backlog-full") > 0);
    for handshake in &handshakes {
        raw.send(&raw.frame(handshake.port, ECHO, &handshake.ack(b"x")));
        let heard = iter::from_fn(|| raw.receive(ECHO, handshake.port, SOON))
            .map(|(segment, frame)| frame[segment.payload].to_vec())
            .find(|data| !data.is_empty());
        assert_eq!(heard.as_deref(), Some(&b"x"[..]), "port {}", handshake.port);
    }
    assert_eq!(guarded.flows(Some("ESTABLISHED")).len() as u64, all);
    assert_eq!((count(&guarded, "service", "accepted"), guarded.stack("resets-out")), (all, 0));
    let ends =
        ["completed", "evicted", "timed-out", "reset"].map(|end| guarded.stack(&format!("half-open-{end}")));
    assert_eq!(ends.iter().sum::<u64>(), all, "{ends:?}");
    let server = Server::start(&guarded);
    assert!(ask(&guarded), "service is not restored");
    server.kill();
}

/// More than the receive ring and the fill ring hold, sent while nobody empties the one and fills the other.
#[test]
fn out_of_frames_the_kernel_drops_what_comes_until_the_engine_gives_them_back() {
    let mut guarded = guarded(&["--set", "flow-rate=1000"]);
    let raw = RawPort::open(&guarded.lab, [10, 77, 0, 99].into());
    let handshake = raw.syn(50_000, DISCARD, 7, linux_options()).expect("a SYN-ACK");
    let acknowledgement = raw.frame(50_000, DISCARD, &handshake.ack(b""));
    raw.send(&acknowledgement);
    wait_for("the connection", SOON, || count(&guarded, "engine", "connections") == 1);
    let dropped = |guarded: &Guarded| count(guarded, "ring", "rx-fill-ring-empty");
    assert_eq!(dropped(&guarded), 0);
    wait_for("the kernel to run out of frames", SOON, || {
        guarded.daemon().signal(Signal::STOP).expect("stopping the daemon");
        // In a moment XDP will hold the heartbeat for stale, and redirect nothing more.
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            (0..100).for_each(|_| raw.try_send(&acknowledgement));
        }
        guarded.daemon().signal(Signal::CONT).expect("letting it go on");
        dropped(&guarded) > 0
    });
    check_frames(&guarded);
    let server = Server::start(&guarded);
    wait_for("service to be restored", SOON, || ask(&guarded));
    server.kill();
    assert_eq!(guarded.flows(Some("ESTABLISHED")).len(), 1, "the flow whose frames were lost");
}

#[test]
fn a_full_time_wait_table_forgets_old_ones_and_delays_nobody() {
    const LIMIT: u64 = 64;
    let guarded = guarded(&["--set", "time-wait-limit=100"]);
    guarded.backend.file("page", 100).expect("a page");
    let fetch = |times: usize| {
        let url = guarded.url("page");
        let requests: Vec<_> = (0..times).flat_map(|_| ["--output", "/dev/null", &url]).collect();
        // HTTP/1.0: the server closes first, but for a client that is quicker now and then.
        let output = guarded.curl(&[&["--http1.0"], &requests[..]].concat());
        assert!(output.status.success(), "curl: {}", String::from_utf8_lossy(&output.stderr));
    };
    let waiting = || count(&guarded, "engine", "time-wait");
    let evicted = || guarded.stack("time-wait-evicted");
    let all_over = || count(&guarded, "engine", "connections") == 0;
    fetch(150);
    wait_for("every connection to end", SOON, all_over);
    let entered = guarded.stack("time-wait-entered");
    assert_eq!((waiting(), evicted()), (100, entered - 100));
    guarded.tune("time-wait-limit", &LIMIT.to_string());
    wait_for("the smaller limit to hold", SOON, || waiting() == LIMIT);
    assert_eq!(evicted(), entered - LIMIT);
    fetch(200);
    wait_for("every connection to end", SOON, all_over);
    let entered = guarded.stack("time-wait-entered");
    assert_eq!((waiting(), evicted()), (LIMIT, entered - LIMIT));
    assert_eq!(guarded.flows(Some("TIME_WAIT")).len() as u64, LIMIT);
    guarded.tune("time-wait", "100ms");
    wait_for("the rest to end", SOON, || waiting() == 0);
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
    let flood = guarded.lab.flood(support::PORT, flood).expect("a flood");
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

/// Every connection is over, its end was counted once, and what it took was given back.
fn check_ends(guarded: &Guarded) {
    wait_for("no connection left", SOON, || count(guarded, "engine", "connections") == 0);
    wait_for("every end counted", SOON, || {
        count(guarded, "service", "accepted")
            == ENDS.iter().map(|end| count(guarded, "service", end)).sum::<u64>()
    });
    assert_eq!(held(guarded), []);
    check_frames(guarded);
}

/// Connections of [`RELAYED`]'s backend that one side holds up: the kind, and how many.
fn held(guarded: &Guarded) -> Vec<(String, u64)> {
    let status = guarded.json(&["status"]);
    let service = format!("{GUARD_ADDRESS}:{RELAYED}");
    let services = status["services"].as_array().expect("services");
    let service = services.iter().find(|known| known["listen"] == service.as_str()).expect("the service");
    let held = service["backends"][0]["held"].as_array().expect("what is held up");
    let entry = |held: &Value| {
        let state = held["state"].as_str().expect("a kind").to_owned();
        (state, held["connections"].as_u64().expect("a count"))
    };
    held.iter().map(entry).collect()
}

/// What a [`Moody`] backend does, by the first byte that it is sent.
const ANSWER: &[u8] = b"x";
const IGNORE: &[u8] = b"i";
const TELL: &[u8] = b"t";

/// A backend that answers some, never reads again from others, and tells others without end. Its kernel keeps little.
struct Moody;

impl Moody {
    fn start(guarded: &Guarded) {
        let listener = guarded.listen(BACKEND);
        let small = SockRef::from(&listener);
        small.set_recv_buffer_size(32 << 10).expect("a small buffer");
        small.set_send_buffer_size(32 << 10).expect("a small buffer");
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || Self::serve(stream));
            }
        });
    }

    /// What goes wrong here, the client notices.
    fn serve(mut stream: TcpStream) -> io::Result<()> {
        let mut mood = [0];
        stream.read_exact(&mut mood)?;
        match &mood[..] {
            // Until a reset.
            IGNORE => {
                while stream.peek(&mut [0]).is_ok() {
                    thread::sleep(Duration::from_millis(50));
                }
            }
            TELL => loop {
                stream.write_all(&[0x5a; 4096])?;
            },
            ANSWER => stream.write_all(b"y")?,
            other => panic!("no mood is {other:?}"),
        }
        Ok(())
    }
}

/// The flow of a client.
fn flow(guarded: &Guarded, client: &TcpStream) -> Value {
    let peer = client.local_addr().expect("an address").to_string();
    let flows = guarded.flows(None);
    flows.into_iter().find(|flow| flow["peer"] == peer.as_str()).expect("its flow")
}

/// They kept a descriptor, buffers and a place in every table for ever, whether their clients were still there or not.
#[test]
fn clients_of_a_backend_that_never_reads_are_held_up_for_a_time_and_hold_up_nobody_else() {
    const EACH: u64 = 8;
    /// What the guard takes of a connection that nobody reads.
    const WINDOW: u64 = (4 << 20) + (16 << 10);
    let guarded = guarded(&[]);
    Moody::start(&guarded);
    let ignored = || {
        let mut client = connect(&guarded, RELAYED).expect("a connection");
        client.write_all(IGNORE).expect("sending");
        client
    };
    // These say what the kernels and the guard take between them, and close.
    let mut closed: Vec<_> = (0..EACH)
        .map(|_| {
            let client = ignored();
            let is_unread = || flow(&guarded, &client)["recv_queued"] != 0;
            let is_left = || {
                is_unread()
                    && [(); 3].iter().all(|()| {
                        thread::sleep(Duration::from_millis(30));
                        is_unread()
                    })
            };
            while !is_left() {
                (&client).write_all(&[0x5a; 32 << 10]).expect("sending");
                thread::sleep(Duration::from_millis(10));
            }
            client.shutdown(Shutdown::Write).expect("closing");
            client
        })
        .collect();
    // These say more than that.
    let mut open: Vec<_> = (0..EACH)
        .map(|_| {
            let mut client = ignored();
            client.set_write_timeout(Some(Duration::from_millis(500))).expect("a timeout");
            let full = iter::repeat_with(|| client.write(&[0x5a; 64 << 10])).find_map(Result::err);
            assert_eq!(full.expect("no end").kind(), ErrorKind::WouldBlock);
            client
        })
        .collect();
    let expected = [("close-wait".to_owned(), EACH), ("backend-stalled".to_owned(), EACH)];
    wait_for("all to be seen", SOON, || held(&guarded) == expected);
    assert_eq!(guarded.flows(Some("CLOSE_WAIT")).len() as u64, EACH);
    let unread: Vec<_> =
        guarded.flows(None).iter().map(|flow| flow["recv_queued"].as_u64().expect("bytes")).collect();
    assert!(unread.iter().all(|bytes| (1..=WINDOW).contains(bytes)), "{unread:?}");
    (0..5).for_each(|_| assert!(ask(&guarded), "others are not served"));
    assert_eq!(count(&guarded, "service", "backend-silent"), 0, "let go before their time");
    guarded.tune("close-wait", "2s");
    wait_for("those who had closed to be let go", SOON, || held(&guarded) == expected[1..]);
    guarded.tune("zero-window", "2s");
    wait_for("the others to be let go", SOON, || held(&guarded).is_empty());
    for client in closed.iter_mut().chain(&mut open) {
        assert_eq!(client.read(&mut [0]).expect_err("a reset").kind(), ErrorKind::ConnectionReset);
    }
    check_ends(&guarded);
    let counted = |name| count(&guarded, "service", name);
    assert_eq!((counted("accepted"), counted("backend-silent")), (2 * EACH + 5, 2 * EACH));
    assert_eq!(guarded.stack("unread-reset"), 0, "memory was short");
    assert!(ask(&guarded), "service is not restored");
}

#[test]
fn clients_that_never_read_are_held_to_zero_window_and_hold_up_nobody_else() {
    const CLIENTS: u64 = 16;
    /// What the guard keeps for a client.
    const WINDOW: u64 = (4 << 20) + (16 << 10);
    let guarded = guarded(&[]);
    Moody::start(&guarded);
    let mut stalled: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let mut client = connect(&guarded, RELAYED).expect("a connection");
            client.write_all(TELL).expect("sending");
            client
        })
        .collect();
    let expected = [("client-stalled".to_owned(), CLIENTS)];
    wait_for("all to be seen", SOON, || held(&guarded) == expected);
    let unsent: Vec<_> =
        guarded.flows(None).iter().map(|flow| flow["send_queued"].as_u64().expect("bytes")).collect();
    assert!(unsent.iter().all(|bytes| (1..=WINDOW).contains(bytes)), "{unsent:?}");
    (0..5).for_each(|_| assert!(ask(&guarded), "others are not served"));
    assert_eq!(count(&guarded, "service", "client-failed"), 0, "let go before their time");
    guarded.tune("zero-window", "2s");
    wait_for("them to be let go", SOON, || held(&guarded).is_empty());
    for client in &mut stalled {
        // What is in their kernel's buffer comes first, unless the reset has taken it away.
        let end = io::copy(client, &mut io::sink()).expect_err("a reset");
        assert_eq!(end.kind(), ErrorKind::ConnectionReset);
    }
    check_ends(&guarded);
    let counted = |name| count(&guarded, "service", name);
    assert_eq!((counted("accepted"), counted("client-failed")), (CLIENTS + 5, CLIENTS));
    assert_eq!((guarded.stack("zero-window-expired"), guarded.stack("stalls-reset")), (CLIENTS, 0));
    assert!(ask(&guarded), "service is not restored");
}

#[test]
fn a_transfer_outlives_its_links_going_down_and_up() {
    let guarded = guarded(&[]);
    guarded.backend.file("large", 60_000_000).expect("a file");
    let into = guarded.lab.dir().join("received");
    let (url, output) = (guarded.url("large"), into.display().to_string());
    thread::scope(|scope| {
        // Slow enough to be under way for a while on any machine.
        let transfer = scope.spawn(|| guarded.curl(&["--limit-rate", "20M", "--output", &output, &url]));
        let moved = || count(&guarded, "service", "bytes-to-client");
        wait_for("the transfer to be under way", SOON, || moved() > 10_000_000);
        let link = |state| guarded.lab.guard().ip(&format!("link set {GUARD_INTERFACE} {state}"));
        link("down").expect("a link that goes down");
        // Long enough for everything in flight to be lost, and for a retransmission or two.
        thread::sleep(Duration::from_millis(700));
        link("up").expect("a link that comes up");
        let transfer = transfer.join().expect("curl");
        assert!(transfer.status.success(), "curl: {}", String::from_utf8_lossy(&transfer.stderr));
    });
    assert_same(&into, &guarded.backend.root().join("large"));
    assert!(guarded.stack("retransmitted") > 0, "the link was never down");
    wait_for("no connection left", SOON, || count(&guarded, "engine", "connections") == 0);
    check_frames(&guarded);
}
