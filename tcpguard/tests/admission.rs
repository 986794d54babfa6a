//! How many connections a source and a service may have, and that every one of them is counted exactly once.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use aya::maps::MapData;
use socket2::{Domain, Socket, Type};
use support::{Guarded, PORT, lab_object, wait_for};
use tcpguard_common::map::{SERVICE_IDS, SOURCE_PLACES, name};
use xtask::lab::{GUARD_ADDRESS, LabConfig};

const SOON: Duration = Duration::from_secs(10);
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\n\r\n";
const LAST_REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";
const OTHER_PORT: u16 = 81;

/// A guard of two services with one backend, whose client has two addresses.
fn guarded_for_two() -> (Guarded, [Ipv4Addr; 2]) {
    let other = format!("{GUARD_ADDRESS}:{OTHER_PORT}=127.0.0.1:{}", support::BACKEND_PORT);
    let config = LabConfig { client_addresses: 2, ..LabConfig::new(lab_object()) };
    let guarded = Guarded::up(config, &["--protect", &other]);
    guarded.backend.file("hello", 5).expect("a file");
    let addresses = guarded.lab.client_addresses();
    (guarded, [addresses[0], addresses[1]])
}

/// A connection over which a request was answered; `None` when it was reset instead.
fn open(guarded: &Guarded, from: Ipv4Addr, port: u16) -> Option<TcpStream> {
    let connect = || {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        socket.bind(&SocketAddr::from((from, 0)).into())?;
        socket.connect(&SocketAddr::from((GUARD_ADDRESS, port)).into())?;
        Ok::<_, std::io::Error>(TcpStream::from(socket))
    };
    // The SYN-ACK says nothing yet: a refusal shows itself afterwards, if only a moment.
    let exchange = || -> std::io::Result<TcpStream> {
        let mut stream = guarded.lab.client().enter(connect).expect("the client's namespace")?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(REQUEST)?;
        assert!(stream.read(&mut [0; 512])? > 0, "closed instead of answered or reset");
        Ok(stream)
    };
    match exchange() {
        Ok(stream) => Some(stream),
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => None,
        Err(error) => panic!("neither answered nor reset: {error}"),
    }
}

/// So many connections were refused for this reason: a segment of each, or two where the request left before the reset came.
fn assert_refused(guarded: &Guarded, reason: &str, connections: u64) {
    let segments = guarded.reason(reason);
    assert!((connections..=2 * connections).contains(&segments), "{segments} segments of {connections}");
}

/// The flows that XDP counts: those of all services, and twice those of all sources, which have two rows.
fn counted(guarded: &Guarded) -> (i64, i64) {
    let sum = |name: &str, places: u32| -> i64 {
        let map = MapData::from_pin(guarded.lab.pin_dir().join(name)).expect("a pinned map");
        let (len, fd) = (places as usize * size_of::<i64>(), map.fd().as_fd().as_raw_fd());
        // SAFETY: a fresh mapping at an address of the kernel's choice, of the size that the map has.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, fd, 0) };
        assert_ne!(base, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
        // SAFETY: `places` aligned words, which are only ever changed atomically.
        let counts = unsafe { std::slice::from_raw_parts(base.cast::<AtomicI64>(), places as usize) };
        let sum = counts.iter().map(|count| count.load(Ordering::Relaxed)).sum();
        // SAFETY: mapped above; nothing refers to it any more.
        unsafe { libc::munmap(base, len) };
        sum
    };
    (sum(name::SERVICE_FLOWS, SERVICE_IDS), sum(name::SOURCE_FLOWS, 2 * SOURCE_PLACES))
}

fn entries(guarded: &Guarded) -> usize {
    guarded.flows(None).iter().filter(|flow| flow["state"] != "TIME_WAIT").count()
}

#[test]
fn one_connection_more_than_a_source_may_have_is_reset_until_another_closes() {
    let (guarded, [greedy, other]) = guarded_for_two();
    guarded.tune("source-flows", "3");
    let mut streams: Vec<_> =
        (0..3).map(|_| open(&guarded, greedy, PORT).expect("within the limit")).collect();
    assert!(open(&guarded, greedy, PORT).is_none(), "over the limit");
    assert!(open(&guarded, greedy, OTHER_PORT).is_none(), "a source is limited over all services");
    assert_refused(&guarded, "admission-source-flows", 2);
    let _other = open(&guarded, other, PORT).expect("another source has its own limit");

    streams.pop();
    wait_for("the connection to be gone", SOON, || counted(&guarded) == (3, 6));
    streams.push(open(&guarded, greedy, PORT).expect("one closed"));
    assert!(open(&guarded, greedy, PORT).is_none(), "at the limit again");
    guarded.tune("source-flows", "0");
    streams.push(open(&guarded, greedy, PORT).expect("no limit"));
    for stream in &mut streams {
        stream.write_all(REQUEST).expect("an open connection");
        assert!(stream.read(&mut [0; 512]).expect("an answer") > 0, "a refusal harmed an open connection");
    }
}

#[test]
fn one_connection_more_than_a_service_may_have_is_reset_until_another_closes() {
    let (guarded, [one, two]) = guarded_for_two();
    guarded.tune("service-flows", "2");
    let mut streams =
        vec![open(&guarded, one, PORT).expect("the first"), open(&guarded, two, PORT).expect("the second")];
    assert!(open(&guarded, one, PORT).is_none(), "over the limit");
    assert_refused(&guarded, "admission-service", 1);
    let _other = open(&guarded, one, OTHER_PORT).expect("another service has its own count");
    streams.pop();
    wait_for("the connection to be gone", SOON, || counted(&guarded) == (2, 4));
    streams.push(open(&guarded, one, PORT).expect("one closed"));
}

#[test]
fn a_source_opens_connections_no_faster_than_it_may() {
    let (guarded, [hasty, other]) = guarded_for_two();
    guarded.tune("source-burst", "3");
    guarded.tune("source-rate", "1");
    let start = Instant::now();
    let opened: Vec<_> = (0..10).filter_map(|_| open(&guarded, hasty, PORT)).collect();
    let allowed = 3 + start.elapsed().as_secs() + 1;
    assert!(opened.len() >= 3, "only {} of a burst of 3", opened.len());
    assert!(opened.len() as u64 <= allowed, "{} connections, {allowed} allowed", opened.len());
    assert_refused(&guarded, "admission-source-rate", 10 - opened.len() as u64);
    assert!(open(&guarded, other, PORT).is_some(), "another source pays for itself");
}

#[test]
fn every_flow_is_counted_once_whoever_closes_it_and_after_a_kill_too() {
    let (mut guarded, [one, two]) = guarded_for_two();
    assert_eq!(counted(&guarded), (0, 0));
    // Some close here, some there, some by a reset.
    for round in 0..3 {
        let mut streams: Vec<_> = (0..10).map(|_| open(&guarded, one, PORT).expect("a connection")).collect();
        assert_eq!(counted(&guarded), (10, 20), "round {round}");
        for stream in &mut streams[..4] {
            stream.write_all(LAST_REQUEST).expect("sending a request");
            stream.read_to_end(&mut Vec::new()).expect("an answer and the server's FIN");
        }
        for stream in streams.drain(8..) {
            let socket = Socket::from(stream);
            socket.set_linger(Some(Duration::ZERO)).expect("a reset on close");
        }
        drop(streams);
        wait_for("nothing but TIME_WAIT", SOON, || entries(&guarded) == 0);
        wait_for("every flow to be counted off", SOON, || counted(&guarded) == (0, 0));
    }
    assert!(!guarded.flows(Some("TIME_WAIT")).is_empty());

    let streams: Vec<_> = (0..5).map(|_| open(&guarded, one, PORT).expect("a connection")).collect();
    let others: Vec<_> = (0..4).map(|_| open(&guarded, two, OTHER_PORT).expect("a connection")).collect();
    assert_eq!(counted(&guarded), (9, 18));
    guarded.take_daemon().kill().expect("killing the daemon");
    assert_eq!(counted(&guarded), (9, 18));
    guarded.start_daemon();
    // Nobody's connections any more: their peers are reset, and come again.
    assert_eq!(counted(&guarded), (0, 0), "counted anew");
    let fresh = open(&guarded, one, PORT).expect("a connection");
    assert_eq!(counted(&guarded), (1, 2));
    wait_for("the old daemon's entries to go", Duration::from_secs(20), || entries(&guarded) == 1);
    assert_eq!(counted(&guarded), (1, 2), "what was not counted is not counted off");
    drop(fresh);
    wait_for("the new connection to be counted off", SOON, || counted(&guarded) == (0, 0));
    drop((streams, others));
}
