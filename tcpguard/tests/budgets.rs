//! What spoofers and greedy clients can use up, and what not.

mod support;

use std::net::Ipv4Addr;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use support::raw::{Outgoing, RawPort, linux_options};
use support::{Guarded, PORT, assert_same, lab_object, wait_for};
use tcpguard_common::flow::V6;
use tcpguard_common::packet::Flags;
use xtask::lab::{FloodSpec, Kind, LabConfig, Received};

/// SYN-ACKs a second, and at once, that a prefix may be sent in these tests: far below every flood.
const RATE: u32 = 500;
const SPOOFED_SYNS: u64 = 200_000;
const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";

fn guarded_with_a_small_budget() -> Guarded {
    let guarded = Guarded::simple();
    guarded.answer_with_cookies();
    guarded.tune("verified-reply-rate", &RATE.to_string());
    guarded.tune("reply-rate", &RATE.to_string());
    guarded.tune("reply-burst", &RATE.to_string());
    guarded
}

fn flood_from(network: Ipv4Addr, len: u8) -> FloodSpec {
    FloodSpec { rate: 50_000, total: Some(SPOOFED_SYNS), sources: (network, len), ..FloodSpec::default() }
}

/// Fetches every file on a connection of its own and compares it.
fn download(guarded: &Guarded, names: &[String], into: &Path) {
    guarded.download(names, into);
    for name in names {
        assert_same(&guarded.backend.root().join(name), &into.join(name));
    }
}

#[test]
fn a_spoofed_prefix_hears_no_more_than_its_budget_while_every_other_client_is_served() {
    let mut guarded = guarded_with_a_small_budget();
    let names: Vec<String> = (0..100).map(|index| format!("file{index}")).collect();
    for name in &names {
        guarded.backend.file(name, 20_000).expect("a file");
    }
    let before = guarded.reasons();
    let start = Instant::now();
    let flood = guarded.lab.flood(PORT, flood_from(Ipv4Addr::new(198, 18, 5, 0), 24)).expect("a flood");
    let into = guarded.lab.dir().join("downloads");
    download(&guarded, &names, &into);
    let delivered = flood.finish().expect("the flood ends by itself").delivered();
    // Whatever was still in the driver's ring is decided by now.
    std::thread::sleep(Duration::from_millis(500));
    let after = guarded.reasons();
    let seconds = start.elapsed().as_secs() + 1;

    let counted = |reason: &str| after[reason] - before[reason];
    let allowed = u64::from(RATE) * (seconds + 1);
    let heard =
        guarded.lab.verifier().arrivals().expect("the receiver's counters").of(Received::SpoofedSynAck);
    assert!(heard <= allowed, "{heard} SYN-ACKs to the victim in {seconds} s");
    assert!(heard > 0, "a budget, not a ban");
    assert!(counted("reply-budget") + allowed >= delivered, "{} of {delivered}", counted("reply-budget"));
    assert_eq!(counted("reply-budget-verified"), 0);
}

#[test]
fn established_flows_valid_acks_and_verified_clients_outlive_a_flood_in_their_own_prefix() {
    let mut guarded = guarded_with_a_small_budget();
    guarded.backend.file("hello", 5).expect("a file");
    guarded.backend.file("large", 60_000_000).expect("a file");
    // The client's address is verified by this.
    assert!(guarded.curl(&[&guarded.url("hello")]).status.success());
    let raw = RawPort::open(&guarded.lab, Ipv4Addr::new(10, 77, 0, 99));
    let pending: Vec<_> = (0..20)
        .map(|index| raw.syn(50_000 + index, PORT, 7, linux_options()).expect("a SYN-ACK before the flood"))
        .collect();
    let before = guarded.reasons();

    // The upper half of the clients' own /24.
    let endless = FloodSpec { total: None, ..flood_from(Ipv4Addr::new(10, 77, 0, 128), 25) };
    let flood = guarded.lab.flood(PORT, endless).expect("a flood");
    wait_for("the budget to be used up", Duration::from_secs(10), || {
        guarded.reason("reply-budget") > before["reply-budget"]
    });
    let into = guarded.lab.dir().join("downloads");
    download(&guarded, &["large".to_owned()], &into);
    for handshake in &pending {
        raw.send(&raw.frame(handshake.port, PORT, &handshake.ack(REQUEST)));
        let answer = raw.receive(PORT, handshake.port, Duration::from_secs(5));
        assert!(answer.is_some(), "a valid ACK was refused for a spoofer's SYNs");
    }
    for _ in 0..100 {
        let output = guarded.curl(&[&guarded.url("hello")]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    flood.stop().expect("the flood stops");
    let after = guarded.reasons();
    assert!(after["reply-budget"] > before["reply-budget"]);
    assert_eq!(after["ack-invalid"], before["ack-invalid"]);
    assert!(after["ack-valid"] - before["ack-valid"] >= 121);
}

/// Forgers get ever so many ACKs refused, and nobody else one.
#[test]
fn real_clients_complete_every_handshake_beside_a_flood_of_forged_acks() {
    const CONNECTIONS: usize = 200;
    let mut guarded = Guarded::simple();
    guarded.answer_with_cookies();
    let names: Vec<String> = (0..CONNECTIONS).map(|index| format!("file{index}")).collect();
    for name in &names {
        guarded.backend.file(name, 20_000).expect("a file");
    }
    let forged = FloodSpec { kind: Kind::Ack, total: None, ..flood_from(Ipv4Addr::new(198, 18, 0, 0), 16) };
    let flood = guarded.lab.flood(PORT, forged).expect("a flood");
    wait_for("forged ACKs", Duration::from_secs(10), || guarded.reason("ack-invalid") > 1000);
    let before = guarded.reasons();
    let into = guarded.lab.dir().join("downloads");
    download(&guarded, &names, &into);
    let after = guarded.reasons();
    flood.stop().expect("the flood stops");
    let counted = |reason: &str| after[reason] - before[reason];
    assert!(counted("ack-invalid") > 1000, "{} forged ACKs beside the clients", counted("ack-invalid"));
    assert_eq!(counted("ack-valid"), CONNECTIONS as u64, "each client's handshake, and none of a forger's");
}

#[test]
fn a_budget_is_tuned_while_it_runs() {
    let mut guarded = guarded_with_a_small_budget();
    guarded.tune("reply-burst", "5");
    guarded.tune("reply-rate", "1");
    let spec = || FloodSpec { total: Some(2000), ..flood_from(Ipv4Addr::new(198, 18, 5, 0), 24) };
    let heard_of = |guarded: &mut Guarded, before: u64| {
        guarded.lab.flood(PORT, spec()).expect("a flood").finish().expect("the flood ends by itself");
        std::thread::sleep(Duration::from_millis(300));
        guarded.reason("reply-budget") - before
    };
    let refused = heard_of(&mut guarded, 0);
    assert!(refused > 1500, "only {refused} refused");
    guarded.tune("reply-rate", "0");
    assert_eq!(heard_of(&mut guarded, refused), 0, "refused without a limit");
    // What was used up at one SYN-ACK a second must not count at another rate.
    guarded.tune("reply-burst", "100000");
    guarded.tune("reply-rate", "100000");
    assert_eq!(heard_of(&mut guarded, refused), 0, "an old debt was kept");
}

#[test]
fn a_real_connection_that_floods_its_own_tuple_takes_nothing_from_others() {
    let mut guarded = Guarded::simple();
    guarded.tune("flow-rate", "1000");
    guarded.tune("flow-burst", "100");
    let names: Vec<String> = (0..8).map(|index| format!("file{index}")).collect();
    for name in &names {
        guarded.backend.file(name, 2_000_000).expect("a file");
    }
    let raw = RawPort::open(&guarded.lab, Ipv4Addr::new(10, 77, 0, 99));
    let handshake = raw.syn(50_000, PORT, 7, linux_options()).expect("a SYN-ACK");
    let flood = raw.frame(50_000, PORT, &handshake.ack(b""));
    raw.send(&flood);
    wait_for("the connection", Duration::from_secs(5), || guarded.flows(Some("ESTABLISHED")).len() == 1);

    let into = guarded.lab.dir().join("downloads");
    let daemon = Pid::from_child(guarded.daemon().child());
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    (0..1000).for_each(|_| raw.try_send(&flood));
                }
            });
        }
        // While the engine does not turn, the flood fills its ring: what any machine does that is slower than a flood.
        let refused = || guarded.reason("flow-rate");
        let outcome = std::panic::catch_unwind(AssertUnwindSafe(|| {
            for round in 0..3 {
                let before = refused();
                kill_process(daemon, Signal::STOP).expect("stopping the daemon");
                std::thread::sleep(Duration::from_millis(300));
                kill_process(daemon, Signal::CONT).expect("going on");
                wait_for("the flood to be held back", Duration::from_secs(10), || refused() > before);
                download(&guarded, &names, &into.join(round.to_string()));
            }
        }));
        stop.store(true, Ordering::Relaxed);
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    // Others end what they have had, again if that was lost beside the flood; the flooder itself is only held back.
    wait_for("the others to be gone", Duration::from_secs(10), || {
        guarded.flows(Some("ESTABLISHED")).len() <= 1
    });
    assert_eq!(guarded.flows(Some("ESTABLISHED")).len(), 1);
}

/// SYNs, and those of them that are answered at once.
const SYNS: u16 = 1000;
const BURST: u16 = 20;

/// How many of [`SYNS`] frames are answered where a prefix is sent [`BURST`] SYN-ACKs at once, and one a second; and how
/// many may be.
fn answered(guarded: &Guarded, raw: &RawPort, syn: impl Fn(u16) -> Vec<u8>) -> (u64, u64) {
    guarded.tune("reply-rate", "1");
    guarded.tune("reply-burst", &BURST.to_string());
    let (before, start) = (guarded.reasons(), Instant::now());
    (0..SYNS).for_each(|index| raw.send(&syn(index)));
    let counted = |reason: &str| guarded.reason(reason) - before[reason];
    wait_for("every SYN to be counted", Duration::from_secs(20), || {
        counted("cookie-sent") + counted("reply-budget") == u64::from(SYNS)
    });
    (counted("cookie-sent"), u64::from(BURST) + start.elapsed().as_secs() + 1)
}

#[test]
fn receive_queues_share_the_budget_of_a_prefix() {
    let guarded = Guarded::up(LabConfig { queues: 2, ..LabConfig::new(lab_object()) }, &[]);
    guarded.answer_with_cookies();
    guarded.tune("verified-reply-rate", "1");
    let raw = RawPort::open(&guarded.lab, Ipv4Addr::new(10, 77, 0, 99));
    // The kernel chooses a queue by the ports.
    let syn = |index| raw.frame(20_000 + index, PORT, &Outgoing { flags: Flags::SYN, ..Outgoing::default() });
    let (answered, allowed) = answered(&guarded, &raw, syn);
    assert!((u64::from(BURST)..=allowed).contains(&answered), "{answered}, not {BURST} to {allowed}");
}

#[test]
fn an_ipv6_prefix_hears_no_more_than_its_budget_and_its_neighbour_is_answered() {
    let guarded =
        Guarded::up(LabConfig::new(lab_object()), &["--protect", "[fd77::1]:80=respond:discard,cookie"]);
    guarded.tune("verified-reply-rate", "1");
    let raw = RawPort::open(&guarded.lab, Ipv4Addr::new(10, 77, 0, 99));
    let syn = |site: [u8; 2], host: u16| {
        let mut src = [0; 16];
        (src[0], src[6], src[7]) = (0x20, site[0], site[1]);
        src[14..].copy_from_slice(&host.to_be_bytes());
        let mut dst = [0; 16];
        (dst[0], dst[1], dst[15]) = (0xfd, 0x77, 1);
        raw.between(V6(src), V6(dst), 20_000, PORT, &Outgoing { flags: Flags::SYN, ..Outgoing::default() })
    };
    // The eighth byte is beyond a /56.
    let (answered, allowed) = answered(&guarded, &raw, |index| syn([1, index as u8], index));
    assert!((u64::from(BURST)..=allowed).contains(&answered), "{answered}, not {BURST} to {allowed}");
    let before = guarded.reason("reply-budget");
    (0..BURST).for_each(|host| raw.send(&syn([2, 0], host)));
    wait_for("the neighbours' answers", Duration::from_secs(20), || {
        guarded.reason("cookie-sent") == answered + u64::from(BURST)
    });
    assert_eq!(guarded.reason("reply-budget"), before);
}
