//! Maps, rings, queues and tables that are full.

use std::io::{ErrorKind, Read as _, Write as _};
use std::iter;
use std::net::Shutdown;
use std::thread;
use std::time::{Duration, Instant};

use super::support::raw::{RawPort, linux_options};
use super::support::{Guarded, lab_object, wait_for};
use super::{
    BACKEND, DISCARD, ECHO, RELAYED, SOON, Server, ask, check_frames, connect, count, guarded,
    more_descriptors, stop,
};
use rustix::process::Signal;
use xtask::lab::{GUARD_ADDRESS, GUARD_INTERFACE, LabConfig};

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
