//! Services that somebody forges ACKs at become strict by themselves, and cease to be; no handshake notices.

mod support;

use std::time::Duration;

use serde_json::Value;
use support::raw::{Handshake, Outgoing, RawPort, linux_options};
use support::{Guarded, PORT, lab_object};
use tcpguard_common::packet::{Flags, Options};
use tcpguard_common::seq::Seq;
use xtask::lab::LabConfig;

const SOON: Duration = Duration::from_secs(5);
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";
const CLIENT: [u8; 4] = [10, 77, 0, 99];
/// More changes of mind than any run of this test has.
const PATIENCE: u16 = 2000;

/// A service whose epochs are short, and that a few forged ACKs make strict.
fn guarded() -> (Guarded, RawPort) {
    let arguments = ["cookie-period=6s", "strict-rate=1", "strict-calm-time=1s"];
    let arguments: Vec<_> = arguments.into_iter().flat_map(|value| ["--set", value]).collect();
    let guarded = Guarded::up(LabConfig::new(lab_object()), &arguments);
    guarded.answer_with_cookies();
    guarded.backend.file("hello", 5).expect("a file");
    let raw = RawPort::open(&guarded.lab, CLIENT.into());
    (guarded, raw)
}

/// A SYN as Windows sends it by default, answered.
fn windows(raw: &RawPort, port: u16) -> Handshake {
    let options = Options { timestamps: None, window_scale: Some(8), ..linux_options() };
    raw.syn(port, PORT, 5, options).expect("a SYN-ACK")
}

fn is_strict(handshake: &Handshake) -> bool {
    let Options { mss, window_scale, sack_permitted, timestamps, .. } = handshake.syn_ack.options;
    assert!(mss.is_some() && timestamps.is_none());
    assert_eq!(window_scale.is_some(), sack_permitted, "both or neither");
    !sack_permitted
}

/// Whether a request that acknowledges the SYN-ACK is answered.
fn is_served(raw: &RawPort, handshake: &Handshake) -> bool {
    raw.send(&raw.frame(handshake.port, PORT, &handshake.ack(REQUEST)));
    std::iter::from_fn(|| raw.receive(PORT, handshake.port, SOON))
        .find(|(segment, _)| !segment.payload.is_empty() || segment.tcp.flags.contains(Flags::RST))
        .is_some_and(|(segment, _)| !segment.tcp.flags.contains(Flags::RST))
}

/// Whether the service's cookies are strict, as the daemon has it.
fn said(guarded: &Guarded) -> Value {
    guarded.json(&["mode"])["services"][0]["strict"].clone()
}

/// Begins one handshake after the other from `port` on until the SYN-ACKs say what the service has become; the last one that
/// was begun before.
fn last_before(raw: &RawPort, port: u16, becomes_strict: bool) -> Handshake {
    let mut last = None;
    for port in (port..).take(PATIENCE.into()) {
        let handshake = windows(raw, port);
        if is_strict(&handshake) == becomes_strict {
            return last.expect("one from before the change");
        }
        last = Some(handshake);
        std::thread::sleep(Duration::from_millis(20));
    }
    panic!("strict: still not {becomes_strict}");
}

#[test]
fn forged_acks_make_a_service_strict_until_it_is_calm_and_every_handshake_begun_ends() {
    let (guarded, raw) = guarded();
    assert_eq!(said(&guarded), "no");
    let first = windows(&raw, 20_000);
    assert!(!is_strict(&first) && is_served(&raw, &first));

    for guess in 0..200 {
        let (ack, flags) = (Seq(guess << 20), Flags::ACK);
        raw.send(&raw.frame(1000 + guess as u16, PORT, &Outgoing { ack, flags, ..Outgoing::default() }));
    }
    let before = last_before(&raw, 21_000, true);
    assert!(is_served(&raw, &before), "begun before the service became strict");
    let strict = windows(&raw, 25_000);
    assert!(is_strict(&strict) && is_served(&raw, &strict), "29 bits and no option but MSS");
    let stamped = raw.syn(25_001, PORT, 5, linux_options()).expect("a SYN-ACK");
    assert_eq!(stamped.syn_ack.options.window_scale.is_some(), stamped.syn_ack.options.sack_permitted);
    assert!(stamped.syn_ack.options.sack_permitted, "nothing changes with timestamps");
    assert!(is_served(&raw, &stamped));

    let before = last_before(&raw, 30_000, false);
    assert!(is_served(&raw, &before), "begun while the service was strict");
    let calm = windows(&raw, 35_000);
    assert!(!is_strict(&calm) && is_served(&raw, &calm));
    assert_eq!(said(&guarded), "no");
    assert_eq!(guarded.reason("ack-invalid"), 200);
    let log = std::fs::read_to_string(guarded.lab.dir().join("daemon.log")).expect("the daemon's log");
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("forged ACKs"), count("no more forged ACKs")), (2, 1), "{log}");
}

#[test]
fn strict_is_set_while_running_and_goes_on_with_the_next_daemon() {
    let (mut guarded, raw) = guarded();
    guarded.tune("strict", "always");
    let before = last_before(&raw, 21_000, true);
    assert!(is_served(&raw, &before));
    assert_eq!(said(&guarded), "yes");
    let text = String::from_utf8(guarded.cli(&["status"]).stdout).expect("text");
    assert!(text.contains(", strict cookies: yes"), "{text}");

    let begun = windows(&raw, 25_000);
    let (client, guard) = (format!("{}:25000", raw.addr), guarded.address().to_string());
    let (seq, ack) = (begun.next.0.to_string(), (begun.syn_ack.tcp.seq + 1).0.to_string());
    let decoded = guarded.json(&["cookie", "decode", &client, &guard, "--seq", &seq, "--ack", &ack]);
    assert_eq!((&decoded["layout"], &decoded["validity"]), (&"strict".into(), &"valid".into()));
    guarded.take_daemon().kill().expect("killing the daemon");
    guarded.start_daemon();
    // This one was told nothing of it but by the maps.
    assert!(is_served(&raw, &begun), "begun with a daemon that is gone");
}
