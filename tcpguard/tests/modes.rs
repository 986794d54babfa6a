//! Services that remember SYNs while it is calm, and answer with cookies in a flood of them.

mod support;

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV4, TcpStream};
use std::time::Duration;

use serde_json::Value;
use support::raw::{Outgoing, RawPort, linux_options};
use support::{Guarded, PORT, lab_object, wait_for};
use tcpguard_common::packet::{Flags, Options};
use xtask::lab::{FloodSpec, GUARD_ADDRESS, LabConfig};

const SOON: Duration = Duration::from_secs(20);
const BANNER_PORT: u16 = 25;
const BANNER: &[u8] = b"220 at your service\r\n";
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";
const CLIENT: [u8; 4] = [10, 77, 0, 99];

fn service(port: u16) -> SocketAddr {
    SocketAddrV4::new(GUARD_ADDRESS, port).into()
}

fn set_mode(guarded: &Guarded, port: u16, mode: &str) {
    let output = guarded.cli(&["mode", &service(port).to_string(), mode]);
    assert!(output.status.success(), "mode: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the first service does at present.
fn state(guarded: &Guarded) -> Value {
    guarded.json(&["status"])["services"][0]["state"].clone()
}

fn half_open(guarded: &Guarded) -> (u64, Vec<Value>) {
    let listed = guarded.json(&["flows", "--half-open"]);
    (listed["total"].as_u64().expect("a total"), listed["flows"].as_array().expect("flows").clone())
}

/// A guarded service whose server speaks first.
fn guarded_banner() -> Guarded {
    let protect = format!("{}=127.0.0.1:2525,auto", service(BANNER_PORT));
    let guarded = Guarded::up(LabConfig::new(lab_object()), &["--protect", &protect]);
    let listener = guarded.listen("127.0.0.1:2525");
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let Ok(mut client) = client else { return };
            std::thread::spawn(move || {
                let _gone = client.write_all(BANNER);
                // Until the client closes.
                let _end = client.read(&mut [0; 1]);
            });
        }
    });
    guarded
}

/// A kernel client whose last ACK of the handshake is lost.
fn connect_without_last_ack(guarded: &Guarded) -> TcpStream {
    let client = guarded.lab.client();
    let lossy = format!(
        "table ip lossy {{ chain out {{ type filter hook output priority 0;
         tcp dport {BANNER_PORT} tcp flags & (syn | ack) == ack drop; }}\n}}\n"
    );
    client.nft(&lossy).expect("a rule that loses ACKs");
    let connected = client.enter(|| TcpStream::connect(service(BANNER_PORT)));
    let stream = connected.expect("entering the client's namespace").expect("a SYN-ACK");
    std::thread::sleep(Duration::from_millis(300));
    stream
}

#[test]
fn a_client_whose_last_ack_was_lost_gets_its_banner_because_the_syn_ack_is_sent_again() {
    let guarded = guarded_banner();
    let mut stream = connect_without_last_ack(&guarded);
    let (total, flows) = half_open(&guarded);
    assert_eq!((total, &flows[0]["state"]), (1, &Value::from("SYN_RCVD")), "{flows:?}");
    guarded.lab.client().nft("delete table ip lossy").expect("no more losses");
    stream.set_read_timeout(Some(SOON)).expect("a timeout");
    let mut banner = vec![0; BANNER.len()];
    stream.read_exact(&mut banner).expect("the banner");
    assert_eq!(banner, BANNER);
    assert!(guarded.stack("syn-acks-retransmitted") >= 1);
    assert_eq!((guarded.stack("half-open-completed"), half_open(&guarded).0), (1, 0));

    // With cookies alone nobody would ever have sent it again: that is what remembering is for.
    set_mode(&guarded, BANNER_PORT, "cookie");
    let mut stream = connect_without_last_ack(&guarded);
    guarded.lab.client().nft("delete table ip lossy").expect("no more losses");
    stream.set_read_timeout(Some(Duration::from_secs(4))).expect("a timeout");
    assert_eq!(stream.read(&mut banner).expect_err("silence").kind(), ErrorKind::WouldBlock);
}

#[test]
fn a_flood_switches_auto_to_cookies_and_calm_switches_back_while_every_client_is_served() {
    let mut guarded = Guarded::simple();
    guarded.backend.file("hello", 5).expect("a file");
    guarded.tune("stateful-rate", "1000");
    guarded.tune("stateful-burst", "1000");
    guarded.tune("calm-time", "1s");
    let fetch = |guarded: &Guarded| {
        let output = guarded.curl(&[&guarded.url("hello")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    assert_eq!(state(&guarded), "calm");
    fetch(&guarded);
    let calm = guarded.reasons();
    assert_eq!((calm["syn-stateful"], calm["cookie-sent"]), (1, 0));

    let flood = FloodSpec { rate: 50_000, total: None, ..FloodSpec::default() };
    let flood = guarded.lab.flood(PORT, flood).expect("a flood");
    wait_for("cookies alone", SOON, || {
        fetch(&guarded);
        state(&guarded) == "cookies"
    });
    let (flooded, level) = (guarded.reasons(), guarded.stack("half-open-entered"));
    for _ in 0..20 {
        fetch(&guarded);
    }
    let later = guarded.reasons();
    assert!(later["cookie-sent"] > flooded["cookie-sent"]);
    assert_eq!(later["syn-stateful"], flooded["syn-stateful"], "nothing is left to the stack in a flood");
    assert_eq!(guarded.stack("half-open-entered"), level);
    assert_eq!(state(&guarded), "cookies");
    flood.stop().expect("the flood stops");

    wait_for("calm", SOON, || state(&guarded) == "calm");
    fetch(&guarded);
    assert!(guarded.reason("syn-stateful") > later["syn-stateful"]);
    let arrivals = guarded.lab.verifier().arrivals().expect("the receiver's counters");
    assert_eq!(arrivals.wrong(), 0, "a SYN-ACK with a wrong checksum, number or option");
    let said = std::fs::read_to_string(guarded.lab.dir().join("daemon.log")).expect("the daemon's log");
    let count = |what: &str| said.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("a flood of SYNs"), count("calm again")), (1, 1), "{said}");
    let text = guarded.cli(&["status"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains(", auto (calm)"));
}

#[test]
fn a_change_of_mode_breaks_no_handshake_under_way() {
    let guarded = Guarded::simple();
    guarded.backend.file("hello", 5).expect("a file");
    let raw = RawPort::open(&guarded.lab, CLIENT.into());
    let bare = Options { timestamps: None, ..linux_options() };
    let changes = [("stateful", "cookie"), ("cookie", "stateful"), ("auto", "cookie"), ("cookie", "auto")];
    for (index, (before, after)) in changes.into_iter().enumerate() {
        for (port, options) in [(50_000, linux_options()), (51_000, bare)] {
            let port = port + index as u16;
            set_mode(&guarded, PORT, before);
            let handshake = raw.syn(port, PORT, 7, options).expect("a SYN-ACK");
            set_mode(&guarded, PORT, after);
            raw.send(&raw.frame(port, PORT, &handshake.ack(REQUEST)));
            let answer = std::iter::from_fn(|| raw.receive(PORT, port, SOON))
                .find(|(segment, _)| !segment.payload.is_empty() || segment.tcp.flags.contains(Flags::RST));
            let (answer, _) = answer.expect("an answer");
            assert!(!answer.tcp.flags.contains(Flags::RST), "{before} -> {after} broke a handshake");
        }
    }
    assert_eq!(guarded.reason("ack-invalid"), 0);
    let refused = guarded.cli(&["mode", "10.77.0.1:81", "auto"]);
    assert_eq!(refused.status.code(), Some(2), "there is no such service");
}

#[test]
fn half_open_connections_are_listed_bounded_reset_and_forgotten() {
    const LIMIT: u64 = 64;
    let mut guarded = Guarded::simple();
    set_mode(&guarded, PORT, "stateful");
    guarded.tune("half-open-limit", &LIMIT.to_string());
    let raw = RawPort::open(&guarded.lab, CLIENT.into());
    let handshake = raw.syn(50_000, PORT, 7, linux_options()).expect("a SYN-ACK");
    let (total, flows) = half_open(&guarded);
    assert_eq!(total, 1);
    assert_eq!(flows[0]["peer"], "10.77.0.99:50000");
    assert_eq!(flows[0]["service"], service(PORT).to_string());
    // A SYN-ACK that nobody answers comes again.
    let (again, _) = raw.receive(PORT, 50_000, SOON).expect("the SYN-ACK once more");
    assert_eq!((again.tcp.seq, again.tcp.flags), (handshake.syn_ack.tcp.seq, handshake.syn_ack.tcp.flags));
    wait_for("a count", SOON, || half_open(&guarded).1[0]["syn_ack_retransmits"] == 1);
    let reset = Outgoing { seq: handshake.next, flags: Flags::RST, ..Outgoing::default() };
    raw.send(&raw.frame(50_000, PORT, &reset));
    wait_for("the reset to take it away", SOON, || half_open(&guarded).0 == 0);
    assert_eq!((guarded.reason("rst-stateful"), guarded.stack("half-open-reset")), (1, 1));

    let flood = FloodSpec { rate: 2000, total: Some(500), ..FloodSpec::default() };
    guarded.lab.flood(PORT, flood).expect("a flood").finish().expect("the flood ends by itself");
    wait_for("every SYN to be taken in", SOON, || guarded.stack("half-open-entered") == 501);
    let (total, flows) = half_open(&guarded);
    assert_eq!((total, flows.len() as u64), (LIMIT, LIMIT));
    assert!(flows.iter().all(|flow| flow["state"] == "SYN_RCVD"), "{flows:?}");
    assert_eq!(guarded.stack("half-open-evicted"), 500 - LIMIT);
    let text = guarded.cli(&["flows", "--half-open"]).stdout;
    assert_eq!(String::from_utf8_lossy(&text).lines().count() as u64, LIMIT + 1);
    guarded.tune("syn-ack-retries", "0");
    guarded.tune("syn-timeout", "100ms");
    wait_for("all of them to be forgotten", SOON, || half_open(&guarded).0 == 0);
    assert_eq!(guarded.stack("half-open-timed-out"), LIMIT);
}
