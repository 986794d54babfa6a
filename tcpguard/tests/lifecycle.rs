//! How connections end, and what happens to them when the daemon does.

mod support;

use std::collections::BTreeSet;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData};
use serde_json::Value;
use socket2::{Domain, SockRef, Socket, Type};
use support::{Guarded, PORT, lab_object, wait_for};
use tcpguard_common::fingerprint::WAYS;
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::{self, Flow};
use xtask::lab::{GUARD_ADDRESS, LabConfig};

const BACKEND: &str = "127.0.0.1:8181";
const SOON: Duration = Duration::from_secs(30);
/// Longer than anything takes that happens by itself.
const A_WHILE: Duration = Duration::from_secs(1);
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";

fn guarded_with_hello() -> Guarded {
    let guarded = Guarded::simple();
    guarded.backend.file("hello", 5).expect("a file");
    guarded
}

/// Port 81 is guarded as well; whether anything listens behind it is the test's business.
fn guarded_with_port_81() -> Guarded {
    let other = format!("{GUARD_ADDRESS}:81={BACKEND}");
    Guarded::up(LabConfig::new(lab_object()), &["--protect", &other])
}

fn connect(guarded: &Guarded, port: u16) -> TcpStream {
    let stream = guarded
        .lab
        .client()
        .enter(|| TcpStream::connect((GUARD_ADDRESS, port)))
        .expect("the client's namespace")
        .expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a read timeout");
    stream
}

/// The whole answer to [`REQUEST`]: the body's five bytes may come after the head.
fn read_answer(stream: &mut TcpStream) {
    let mut answer = Vec::new();
    let complete = |answer: &[u8]| {
        let head = answer.windows(4).position(|end| end == b"\r\n\r\n");
        head.is_some_and(|head| head + 4 + 5 == answer.len())
    };
    while !complete(&answer) {
        let mut bytes = [0; 512];
        let read = stream.read(&mut bytes).expect("an answer");
        assert!(read > 0, "no answer, but {}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&bytes[..read]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

/// A connection that the server closes first.
fn closed_by_server(guarded: &Guarded) {
    served_to_the_end(connect(guarded, PORT));
}

fn served_to_the_end(mut stream: TcpStream) {
    stream.write_all(LAST_REQUEST).expect("sending a request");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an answer and the server's FIN");
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
}

#[test]
fn a_server_side_close_leaves_time_wait_for_2msl_and_a_tuned_value_applies_at_once() {
    let guarded = guarded_with_hello();
    guarded.tune("time-wait", "60s");
    for _ in 0..3 {
        closed_by_server(&guarded);
    }
    wait_for("three TIME_WAITs", SOON, || guarded.flows(Some("TIME_WAIT")).len() == 3);
    wait_for("XDP to know them by their fingerprints", SOON, || remembered(&guarded) == (0, 3));
    std::thread::sleep(A_WHILE);
    assert_eq!(guarded.flows(Some("TIME_WAIT")).len(), 3, "ended before 2MSL");
    guarded.tune("time-wait", "1s");
    wait_for("the tuned 2MSL to end them", SOON, || guarded.flows(None).is_empty());
    closed_by_server(&guarded);
    wait_for("a short TIME_WAIT to end", SOON, || guarded.flows(None).is_empty());
    wait_for("XDP to forget them too", SOON, || remembered(&guarded) == (0, 0));
}

/// Clients behind one address translator use its ports one after the other, each with timestamps of its own. Here it is one
/// whose timestamps lose, or get, the offset that its kernel gives them: one of the two goes back in time.
#[test]
fn a_port_is_used_again_at_once_by_a_client_whose_clock_is_behind_whichever_answers_its_syn() {
    let guarded = guarded_with_hello();
    guarded.tune("time-wait", "10m");
    let service = format!("{GUARD_ADDRESS}:{PORT}");
    let open_from = |port: u16, clock: &str| {
        let client = guarded.lab.client();
        client.sysctl(&[("net/ipv4/tcp_timestamps", clock)]).expect("the clock is set");
        let stream = client.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.set_reuse_address(true)?;
            socket.set_read_timeout(Some(SOON))?;
            socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
            socket.connect_timeout(&guarded.address().into(), SOON)?;
            io::Result::Ok(TcpStream::from(socket))
        });
        stream.expect("the client's namespace").expect("a connection")
    };
    let mut port = 50_000;
    for mode in ["stateful", "cookie"] {
        assert!(guarded.cli(&["mode", &service, mode]).status.success());
        for (first, then) in [("1", "2"), ("2", "1")] {
            port += 1;
            served_to_the_end(open_from(port, first));
            wait_for("its TIME_WAIT", SOON, || guarded.flows(Some("TIME_WAIT")).iter().any(is_from(port)));
            served_to_the_end(open_from(port, then));
        }
    }
    assert_eq!(guarded.stack("reincarnated"), 4);
}

/// Short connections that the server closes first, one right after the other: each but the first of a port finds a TIME_WAIT where
/// it comes from.
#[test]
fn a_thousand_short_connections_from_eight_ports_are_served_one_after_the_other_in_either_mode() {
    const CONNECTIONS: u64 = 1000;
    let guarded = guarded_with_hello();
    guarded.tune("time-wait", "10m");
    let client = guarded.lab.client();
    client.sysctl(&[("net/ipv4/ip_local_port_range", "50000 50007")]).expect("eight ports");
    let service = format!("{GUARD_ADDRESS}:{PORT}");
    let mut ports = BTreeSet::new();
    for mode in ["stateful", "cookie"] {
        assert!(guarded.cli(&["mode", &service, mode]).status.success());
        let all = || {
            for number in 0..CONNECTIONS {
                let stream = TcpStream::connect((GUARD_ADDRESS, PORT));
                let stream = stream.unwrap_or_else(|error| panic!("{mode}, connection {number}: {error}"));
                stream.set_read_timeout(Some(SOON)).expect("a read timeout");
                ports.insert(stream.local_addr().expect("an address").port());
                served_to_the_end(stream);
            }
        };
        client.enter(all).expect("the client's namespace");
    }
    wait_for("the last TIME_WAIT", SOON, || guarded.stack("time-wait-entered") == 2 * CONNECTIONS);
    assert!(ports.len() <= 8, "{ports:?}");
    assert_eq!(guarded.stack("reincarnated"), 2 * CONNECTIONS - ports.len() as u64);
    assert_eq!((guarded.stack("incarnations-refused"), guarded.stack("replays-refused")), (0, 0));
}

fn is_from(port: u16) -> impl Fn(&Value) -> bool {
    move |flow| flow["peer"].as_str().is_some_and(|peer| peer.ends_with(&format!(":{port}")))
}

#[test]
fn a_client_that_closes_first_leaves_nothing_behind() {
    let guarded = guarded_with_hello();
    for _ in 0..3 {
        let mut stream = connect(&guarded, PORT);
        stream.write_all(REQUEST).expect("sending a request");
        read_answer(&mut stream);
        assert_eq!(guarded.flows(Some("ESTABLISHED")).len(), 1);
        drop(stream);
        wait_for("the flow to be gone", SOON, || guarded.flows(None).is_empty());
    }
    wait_for("XDP to forget them too", SOON, || remembered(&guarded) == (0, 0));
}

/// What XDP remembers, from the pinned maps themselves: flows, and fingerprints of TIME_WAITs.
fn remembered(guarded: &Guarded) -> (usize, usize) {
    let pinned = |name: &str| MapData::from_pin(guarded.lab.pin_dir().join(name)).expect("a pinned map");
    let flows = Map::HashMap(pinned(map::name::FLOWS_V4));
    let flows: HashMap<_, FlowKey<V4>, Flow> = flows.try_into().expect("a map of flows");
    let waiting = Map::Array(pinned(map::name::TIME_WAIT));
    let waiting: Array<_, [u32; WAYS as usize]> = waiting.try_into().expect("an array of fingerprints");
    let words = waiting.iter().flat_map(|bucket| bucket.expect("a bucket"));
    (flows.keys().count(), words.filter(|&word| word != 0).count())
}

#[test]
fn half_close_passes_through_in_both_directions_for_as_long_as_wanted() {
    let guarded = guarded_with_port_81();
    let listener = guarded.listen(BACKEND);
    // The client ends its direction first; the server answers a while later.
    let mut client = connect(&guarded, 81);
    client.write_all(b"question").expect("sending");
    client.shutdown(Shutdown::Write).expect("half-closing");
    let (mut server, _) = listener.accept().expect("the relayed connection");
    let mut question = String::new();
    server.read_to_string(&mut question).expect("the question and the client's FIN");
    assert_eq!(question, "question");
    std::thread::sleep(A_WHILE);
    server.write_all(b"answer").expect("answering");
    drop(server);
    let mut answer = String::new();
    client.read_to_string(&mut answer).expect("the answer and the server's FIN");
    assert_eq!(answer, "answer");
    // The server ends its direction first; the client goes on.
    let mut client = connect(&guarded, 81);
    client.write_all(b"a").expect("sending");
    let (mut server, _) = listener.accept().expect("the relayed connection");
    server.shutdown(Shutdown::Write).expect("half-closing");
    assert_eq!(client.read(&mut [0; 8]).expect("a read"), 0, "the server's FIN");
    std::thread::sleep(A_WHILE);
    client.write_all(b"bc").expect("sending after the server's FIN");
    drop(client);
    let mut rest = String::new();
    server.read_to_string(&mut rest).expect("the rest and the client's FIN");
    assert_eq!(rest, "abc");
}

#[test]
fn a_backend_that_does_not_read_stops_the_client_and_loses_nothing() {
    /// What the guard takes of a connection that nobody reads.
    const WINDOW: u64 = (4 << 20) + (16 << 10);
    /// That, as much in its kernel's socket, and the little that the others have.
    const MOST: usize = 10 << 20;
    let guarded = guarded_with_port_81();
    guarded.lab.guard().sysctl(&[("net/ipv4/tcp_wmem", "4096 16384 4194304")]).expect("a limit");
    let listener = guarded.listen(BACKEND);
    SockRef::from(&listener).set_recv_buffer_size(64 << 10).expect("a small buffer");
    let mut client = connect(&guarded, 81);
    SockRef::from(&client).set_send_buffer_size(64 << 10).expect("a small buffer");
    let (mut server, _) = listener.accept().expect("the relayed connection");
    client.set_write_timeout(Some(Duration::from_secs(3))).expect("a write timeout");
    let memory = guarded.memory();
    let block = vec![0x5a_u8; 1 << 20];
    let mut sent = 0;
    let stalled = loop {
        match client.write(&block) {
            Ok(len) => sent += len,
            Err(error) => break error.kind(),
        }
        assert!(sent <= MOST, "no back-pressure: {sent} bytes went nowhere");
    };
    assert_eq!(stalled, io::ErrorKind::WouldBlock);
    let unread = guarded.flows(Some("ESTABLISHED"))[0]["recv_queued"].as_u64().expect("bytes");
    assert!((1..=WINDOW).contains(&unread), "{unread} bytes");
    let more = guarded.memory().saturating_sub(memory);
    assert!(more <= 4 * WINDOW, "{more} bytes of memory for {unread}");
    let reader = std::thread::spawn(move || io::copy(&mut server, &mut io::sink()));
    drop(client);
    let received = reader.join().expect("the reader").expect("reading to the end");
    assert_eq!(received, sent as u64);
}

#[test]
fn a_refused_backend_answers_the_client_with_a_reset() {
    let guarded = guarded_with_port_81();
    // The reset may be there before the handshake is noticed.
    let asked = || TcpStream::connect((GUARD_ADDRESS, 81))?.read(&mut [0; 8]);
    let refused = guarded.lab.client().enter(asked).expect("the client's namespace");
    let error = refused.expect_err("a reset");
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    wait_for("the flow to be gone", SOON, || guarded.flows(None).is_empty());
}

#[test]
fn sigkill_leaves_the_machine_reachable_and_a_fresh_daemon_takes_over() {
    let mut guarded = guarded_with_hello();
    let mut survivor = connect(&guarded, PORT);
    survivor.write_all(REQUEST).expect("sending a request");
    read_answer(&mut survivor);
    guarded.take_daemon().kill().expect("killing the daemon");
    let ping = || guarded.lab.client().output("ping", &["-c", "1", "-W", "1", "10.77.0.1"]);
    ping().expect("the machine answers a ping after the daemon's death");
    guarded.start_daemon();
    closed_by_server(&guarded);
    // A connection of the dead daemon's is not left hanging.
    survivor.set_read_timeout(Some(Duration::from_secs(20))).expect("a read timeout");
    // The reset may come before the request.
    let end = survivor.write_all(REQUEST).and_then(|()| survivor.read(&mut [0; 512]));
    assert_eq!(end.expect_err("a reset").kind(), io::ErrorKind::ConnectionReset);
    wait_for("only what the fresh daemon knows", SOON, || guarded.flows(Some("ESTABLISHED")).is_empty());
}

#[test]
fn sigterm_detaches_and_leaves_no_trace() {
    let mut guarded = guarded_with_hello();
    closed_by_server(&guarded);
    let status = guarded.take_daemon().stop(Duration::from_secs(20)).expect("the daemon ends");
    assert!(status.success(), "{status}");
    let link = guarded.lab.guard().output("ip", &["link", "show", "dev", "guard0"]).expect("ip link");
    assert!(!link.contains("xdp"), "still attached: {link}");
    let pins = std::fs::read_dir(guarded.lab.pin_dir()).map_or(0, Iterator::count);
    assert_eq!(pins, 0, "pins were left behind");
    guarded.start_daemon();
    closed_by_server(&guarded);
}
