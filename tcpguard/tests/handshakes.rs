//! What forgers, replayers and slow clients send, frame by frame.

mod support;

use std::time::{Duration, Instant};

use serde_json::Value;
use support::raw::{Handshake, Outgoing, RawPort, linux_options};
use support::{Guarded, PORT, lab_object, wait_for};
use tcpguard_common::packet::{Flags, Options};
use tcpguard_common::seq::Seq;
use xtask::lab::{FloodSpec, LabConfig};

const REQUEST: &[u8] = b"GET /hello HTTP/1.1\r\nHost: guard\r\nConnection: close\r\n\r\n";
const CLIENT: [u8; 4] = [10, 77, 0, 99];
const SHORT: Duration = Duration::from_millis(500);
const SOON: Duration = Duration::from_secs(10);

fn guarded_with_hello() -> (Guarded, RawPort) {
    let guarded = Guarded::simple();
    guarded.answer_with_cookies();
    guarded.backend.file("hello", 5).expect("a file");
    let raw = RawPort::open(&guarded.lab, CLIENT.into());
    (guarded, raw)
}

/// Runs one whole request over `port` and closes it from our side after the server's FIN.
fn whole_request(raw: &RawPort, port: u16, options: Options) -> (Vec<u8>, Vec<u8>) {
    let handshake = raw.syn(port, PORT, 1000, options).expect("a SYN-ACK");
    let bare = raw.frame(port, PORT, &handshake.ack(b""));
    let first_data = raw.frame(port, PORT, &handshake.ack(REQUEST));
    raw.send(&bare);
    raw.send(&first_data);
    let mut next = handshake.syn_ack.tcp.seq + 1;
    let mut fin_acked = false;
    while !fin_acked {
        let (segment, _) = raw.receive(PORT, port, Duration::from_secs(3)).expect("the server's answer");
        assert!(!segment.tcp.flags.contains(Flags::RST), "reset in mid-flight");
        if segment.tcp.seq != next {
            continue;
        }
        next += segment.payload.len() as u32;
        let fin = segment.tcp.flags.contains(Flags::FIN);
        if fin {
            next += 1;
        }
        if !segment.payload.is_empty() || fin {
            let flags = if fin { Flags(Flags::ACK.0 | Flags::FIN.0) } else { Flags::ACK };
            let seq = handshake.next + REQUEST.len() as u32;
            let options = handshake.options();
            raw.send(&raw.frame(port, PORT, &Outgoing { seq, ack: next, flags, options, data: b"" }));
        }
        fin_acked = fin;
    }
    (bare, first_data)
}

#[test]
fn a_forged_ack_is_dropped_and_counted() {
    let (guarded, raw) = guarded_with_hello();
    let before = guarded.reason("ack-invalid");
    for guess in 0..1000_u32 {
        for timestamps in [None, Some((7, guess.rotate_left(13)))] {
            let options = Options { timestamps, ..Options::default() };
            let forged = Outgoing {
                seq: Seq(guess),
                ack: Seq(guess.wrapping_mul(2_654_435_761)),
                flags: Flags::ACK,
                options,
                data: REQUEST,
            };
            raw.send(&raw.frame(50_000, PORT, &forged));
        }
    }
    wait_for("2000 refusals", Duration::from_secs(5), || guarded.reason("ack-invalid") == before + 2000);
    assert!(raw.receive(PORT, 50_000, SHORT).is_none(), "a forged ACK was answered");
    assert_eq!(guarded.flows(None).len(), 0);
}

#[test]
fn an_ack_or_first_data_segment_replayed_after_the_close_does_not_reopen_the_flow() {
    for options in [linux_options(), Options { timestamps: None, ..linux_options() }] {
        let (guarded, raw) = guarded_with_hello();
        let (bare, first_data) = whole_request(&raw, 50_001, options);
        wait_for("the flow to end", Duration::from_secs(5), || guarded.flows(Some("ESTABLISHED")).is_empty());
        // Both while the flow is remembered as closed, and after TIME_WAIT (if any) is over.
        for over in [false, true] {
            if over {
                guarded.tune("time-wait", "100ms");
                wait_for("TIME_WAIT to be over", SOON, || guarded.flows(None).is_empty());
            }
            for frame in [&bare, &first_data] {
                raw.send(frame);
            }
            while let Some((answer, _)) = raw.receive(PORT, 50_001, SHORT) {
                assert!(answer.payload.is_empty(), "the request was repeated");
            }
            let open: Vec<_> =
                guarded.flows(None).into_iter().filter(|flow| flow["state"] != "TIME_WAIT").collect();
            assert!(open.is_empty(), "reopened: {open:?}");
        }
    }
}

#[test]
fn a_cookie_two_periods_old_is_refused_and_one_period_old_is_not() {
    let (guarded, raw) = guarded_with_hello();
    guarded.tune("cookie-period", "2s");
    // The change takes effect with the next epoch; the old period's slots must be gone.
    std::thread::sleep(Duration::from_secs(5));
    let epoch = || guarded.json(&["status"])["epoch"].as_u64().expect("an epoch");
    // A SYN-ACK, and the epoch it was made in.
    let syn = |port, options| {
        loop {
            let before = epoch();
            let handshake = raw.syn(port, PORT, 5, options).expect("a SYN-ACK");
            if epoch() == before {
                return (handshake, before);
            }
        }
    };
    // Ports of their own: a flow that is never acknowledged goes on retransmitting.
    let bare = Options { timestamps: None, ..linux_options() };
    // Without timestamps a cookie is good for half of the next epoch only: it goes first.
    let young = [(50_004, bare), (50_002, linux_options())].map(|(port, options)| syn(port, options));
    let old = [(50_005, bare), (50_003, linux_options())].map(|(port, options)| syn(port, options));
    for (young, made) in young {
        wait_for("the next epoch", SOON, || epoch() == made + 1);
        raw.send(&raw.frame(young.port, PORT, &young.ack(REQUEST)));
        let answer = std::iter::from_fn(|| raw.receive(PORT, young.port, SOON))
            .find(|(segment, _)| !segment.payload.is_empty() || segment.tcp.flags.contains(Flags::RST));
        let (answer, _) = answer.expect("an answer: else a rotation broke a handshake in flight");
        assert!(!answer.tcp.flags.contains(Flags::RST), "a cookie of the previous epoch was reset");
    }
    for (old, made) in old {
        wait_for("the epoch after the next", SOON, || epoch() >= made + 2);
        let before = guarded.reason("ack-invalid");
        raw.send(&raw.frame(old.port, PORT, &old.ack(REQUEST)));
        assert!(raw.receive(PORT, old.port, SHORT).is_none(), "an expired cookie was accepted");
        assert_eq!(guarded.reason("ack-invalid"), before + 1);
    }
}

#[test]
fn syn_acks_seen_equal_cookies_counted_and_every_segment_has_one_reason() {
    let (mut guarded, raw) = guarded_with_hello();
    let before: u64 = guarded.reasons().values().sum();
    let cookies_before = guarded.reason("cookie-sent");
    let arrivals_before = guarded.lab.verifier().arrivals().expect("the receiver's counters");
    const FRAMES: u64 = 400_000;
    let spec = FloodSpec { rate: 300_000, total: Some(FRAMES), ..FloodSpec::default() };
    let flood = guarded.lab.flood(PORT, spec).expect("a flood").finish().expect("the flood ends by itself");
    // Our own frames: one of each kind that the decision tells apart.
    let mut sent = 0;
    for flags in 0..=255_u8 {
        let segment = Outgoing { seq: Seq(9), ack: Seq(9), flags: Flags(flags), ..Outgoing::default() };
        raw.send(&raw.frame(50_010, PORT, &segment));
        sent += 1;
    }
    // A port that is not protected is counted nowhere.
    raw.send(&raw.frame(50_011, 9, &Outgoing { flags: Flags::SYN, ..Outgoing::default() }));
    let expected = flood.delivered() + sent;
    let counted = || guarded.reasons().values().sum::<u64>() - before;
    wait_for("every frame to be counted", Duration::from_secs(10), || counted() >= expected);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(counted(), expected, "a frame without a reason, or with two");

    let cookies = guarded.reason("cookie-sent") - cookies_before;
    let arrivals = guarded.lab.verifier().arrivals().expect("the receiver's counters");
    let seen = arrivals.syn_acks() - arrivals_before.syn_acks();
    assert_eq!(arrivals.wrong(), 0, "a SYN-ACK with a wrong checksum, number or option");
    let lost = guarded.transmit_drops();
    assert_eq!(seen, cookies - lost, "{cookies} cookies sent, {lost} dropped by the driver");
    assert!(cookies >= flood.delivered());
}

/// How long the guard waits with the second copy of an answer whose first copy nobody acknowledges.
fn until_sent_again(raw: &RawPort, port: u16) -> Duration {
    // Without timestamps the handshake tells no round trip: nothing but the tunable is known.
    let options = Options { timestamps: None, ..linux_options() };
    let handshake = raw.syn(port, PORT, 1000, options).expect("a SYN-ACK");
    raw.send(&raw.frame(port, PORT, &handshake.ack(REQUEST)));
    let mut first = None;
    loop {
        let (segment, _) = raw.receive(PORT, port, Duration::from_secs(20)).expect("an answer");
        match first {
            _ if segment.payload.is_empty() => {}
            None => first = Some((segment.tcp.seq, Instant::now())),
            Some((seq, at)) if segment.tcp.seq == seq => return at.elapsed(),
            Some(_) => {}
        }
    }
}

#[test]
fn a_tuned_initial_rto_decides_when_unacknowledged_data_is_sent_again() {
    let (guarded, raw) = guarded_with_hello();
    guarded.tune("min-rto", "10ms");
    guarded.tune("initial-rto", "100ms");
    let soon = until_sent_again(&raw, 50_020);
    guarded.tune("initial-rto", "2s");
    let late = until_sent_again(&raw, 50_021);
    assert!(late > 2 * soon, "{soon:?} with 100ms, {late:?} with 2s");
}

/// What `tcpguard cookie decode` says, which has to be no error.
fn decoded(guarded: &Guarded, segment: &[&str]) -> Value {
    guarded.json(&[&["cookie", "decode"], segment].concat())
}

#[test]
fn a_captured_cookie_is_explained_by_the_live_keys() {
    let (guarded, raw) = guarded_with_hello();
    let (client, guard) = (format!("{}:50030", raw.addr), guarded.address().to_string());
    for timestamps in [Some((1, 0)), None] {
        let options = Options { mss: Some(1400), window_scale: Some(4), timestamps, ..linux_options() };
        let handshake = raw.syn(50_030, PORT, 1000, options).expect("a SYN-ACK");
        let (seq, ack) = (handshake.syn_ack.tcp.seq, handshake.syn_ack.tcp.ack.0.to_string());
        let stamp = handshake.syn_ack.options.timestamps.map(|(tsval, _)| tsval.to_string());
        let stamped = |name| stamp.iter().flat_map(move |stamp| [name, stamp.as_str()]);
        let (isn, cookie) = (seq.0.to_string(), format!("{:#x}", (seq + 1).0));

        let syn_ack = ["--syn-ack", &guard, &client, "--seq", &isn, "--ack", &ack];
        let sent = decoded(&guarded, &syn_ack.into_iter().chain(stamped("--tsval")).collect::<Vec<_>>());
        assert_eq!(sent["validity"], "valid", "{sent}");
        assert_eq!(sent["epoch"], sent["current_epoch"], "{sent}");
        let layout = if timestamps.is_some() { "timestamps" } else { "no-timestamps" };
        assert_eq!((&sent["layout"], &sent["window_scale"]), (&layout.into(), &4.into()), "{sent}");
        // Without timestamps there are fewer to choose from.
        let mss = if timestamps.is_some() { 1400 } else { 1300 };
        assert_eq!((&sent["mss"], &sent["sack_permitted"]), (&mss.into(), &true.into()), "{sent}");
        assert_eq!(sent["age_ms"].is_u64(), timestamps.is_some(), "{sent}");

        let answer = [&client, &guard, "--seq", ack.as_str(), "--ack", cookie.as_str()];
        let answer: Vec<_> = answer.into_iter().chain(stamped("--tsecr")).collect();
        let answered = decoded(&guarded, &answer);
        assert_eq!((&answered["validity"], &answered["epoch"]), (&sent["validity"], &sent["epoch"]));
        let other = format!("{}:50031", raw.addr);
        let forged: Vec<_> = answer.iter().map(|&part| if part == client { &other } else { part }).collect();
        let forged = decoded(&guarded, &forged);
        assert_eq!((&forged["validity"], &forged["epoch"]), (&"wrong".into(), &Value::Null));

        let shown = guarded.cli(&[&["cookie", "decode"], &answer[..]].concat());
        let text = String::from_utf8_lossy(&shown.stdout);
        assert!(shown.status.success() && text.starts_with("cookie       valid\n"), "{text}");
    }
    let mixed = guarded.cli(&["cookie", "decode", &client, "[2001:db8::1]:80", "--seq", "1", "--ack", "2"]);
    assert_eq!(mixed.status.code(), Some(2));
}

/// Whether a request that acknowledges the SYN-ACK is answered, or refused as a forgery.
fn is_served(guarded: &Guarded, raw: &RawPort, handshake: &Handshake) -> bool {
    let refused = guarded.reason("ack-invalid");
    raw.send(&raw.frame(handshake.port, PORT, &handshake.ack(REQUEST)));
    let mut served = false;
    wait_for("an answer or a refusal", SOON, || {
        let heard = raw.receive(PORT, handshake.port, Duration::from_millis(50));
        served = heard.is_some_and(|(segment, _)| !segment.payload.is_empty());
        served || guarded.reason("ack-invalid") > refused
    });
    served
}

/// One handshake of each layout, but for the last ACK.
fn half_handshakes(raw: &RawPort) -> [Handshake; 2] {
    let bare = Options { timestamps: None, ..linux_options() };
    [(50_030, linux_options()), (50_031, bare)]
        .map(|(port, options)| raw.syn(port, PORT, 5, options).expect("a SYN-ACK"))
}

#[test]
fn a_handshake_that_a_killed_daemon_began_ends_at_its_successor() {
    let (mut guarded, raw) = guarded_with_hello();
    let begun = half_handshakes(&raw);
    guarded.take_daemon().kill().expect("killing the daemon");
    guarded.start_daemon();
    let served = |handshake| is_served(&guarded, &raw, handshake);
    assert!(begun.iter().all(served), "the keys were not taken over");
}

#[test]
fn a_handshake_outlives_a_clean_restart_only_where_both_daemons_have_one_secret_file() {
    let (mut guarded, raw) = guarded_with_hello();
    let secret = guarded.lab.dir().join("secret").display().to_string();
    for shared in [false, true] {
        if shared {
            guarded.take_daemon().stop(SOON).expect("the daemon ends");
            guarded.extra = vec!["--secret-file".to_owned(), secret.clone()];
            guarded.start_daemon();
        }
        let begun = half_handshakes(&raw);
        guarded.take_daemon().stop(SOON).expect("the daemon ends");
        guarded.start_daemon();
        for handshake in &begun {
            assert_eq!(is_served(&guarded, &raw, handshake), shared, "a secret file: {shared}");
        }
    }
}

#[test]
fn a_flow_in_a_vlan_is_answered_served_closed_and_probed_in_it() {
    let (mut guarded, raw) = guarded_with_hello();
    // Whatever `raw` receives for its flows carries this tag.
    let raw = raw.tagged([0x81, 0, 0x60, 5]);
    for (port, options) in
        [(50_040, linux_options()), (50_041, Options { timestamps: None, ..linux_options() })]
    {
        whole_request(&raw, port, options);
    }
    let open = raw.syn(50_042, PORT, 5, linux_options()).expect("a SYN-ACK");
    raw.send(&raw.frame(open.port, PORT, &open.ack(b"GET /hello HTTP/1.1\r\n")));
    wait_for("the flow", SOON, || !guarded.flows(Some("ESTABLISHED")).is_empty());
    guarded.take_daemon().kill().expect("killing the daemon");
    while raw.receive(PORT, open.port, SHORT).is_some() {}
    guarded.start_daemon();
    let (probe, _) = raw.receive(PORT, open.port, SOON).expect("a probe");
    assert_eq!(probe.tcp.flags, Flags::ACK);
}

#[test]
fn a_full_flow_map_resets_newcomers_until_a_flow_ends() {
    const FLOWS: u16 = 1024;
    const DISCARD: u16 = 9;
    let arguments = ["--max-flows", "1024", "--protect", "10.77.0.1:9=respond:discard"];
    let guarded = Guarded::up(LabConfig::new(lab_object()), &arguments);
    let raw = RawPort::open(&guarded.lab, CLIENT.into());
    let open = |port: u16| {
        let handshake = raw.syn(port, DISCARD, 5, linux_options()).expect("a SYN-ACK");
        raw.send(&raw.frame(port, DISCARD, &handshake.ack(b"x")));
        let (answer, _) = raw.receive(DISCARD, port, SOON).expect("an answer");
        (handshake, answer)
    };
    let flows: Vec<_> = (0..FLOWS).map(|index| open(20_000 + index)).collect();
    assert!(flows.iter().all(|(_, answer)| answer.tcp.flags == Flags::ACK));
    let (handshake, reset) = open(30_000);
    assert_eq!((reset.tcp.flags, reset.tcp.seq), (Flags::RST, handshake.syn_ack.tcp.seq + 1));
    assert_eq!(guarded.reason("flow-map-full"), 1);

    let (first, _) = &flows[0];
    let (seq, options) = (first.next + 1, first.options());
    raw.send(&raw.frame(
        first.port,
        DISCARD,
        &Outgoing { seq, flags: Flags::RST, options, ..Outgoing::default() },
    ));
    wait_for("room", SOON, || {
        open(30_001 + (guarded.reason("flow-map-full") as u16)).1.tcp.flags == Flags::ACK
    });
}
