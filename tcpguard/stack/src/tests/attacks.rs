//! What a peer might try to get more than its share, or to confuse: each attempt, and what comes of it.

use std::time::Duration;

use tcpguard_common::cookie::{Strictness, encode};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::EPOCH_SLOTS;
use tcpguard_common::packet::{Flags, Options};
use tcpguard_common::seq::Seq;

use super::script::{CLIENT, Offer, Script, modern, plain};
use super::{CLIENT_MAC, EPOCH, SERVER_MAC, START, epochs, link, stream};
use crate::wire::Outgoing;
use crate::{Config, Error, State};

const SECOND: Duration = Duration::from_secs(1);
const MSS: u32 = 1460;

/// A segment with bytes that are not the client's stream.
fn other_bytes(t: &mut Script, at: u32, data: &[u8]) {
    let options =
        Options { timestamps: t.offer.options.timestamps.map(|_| (t.tsval, t.tsecr)), ..Options::default() };
    let (seq, ack) = (Seq(t.offer.isn) + at, Seq(t.cookie.isn) + 1);
    let segment = Outgoing { seq, ack, flags: Flags::ACK | Flags::PSH, window: t.window, options };
    let frame = t.write(segment, data);
    t.stack.handle_frame(t.now, &frame);
}

#[test]
fn acknowledging_in_small_parts_does_not_open_the_window_faster() {
    let left = |parts: u32| {
        let mut t = Script::established(plain());
        t.server_sends(1, 200_000);
        assert_eq!(t.drain().len(), 10);
        // One segment, whole or a few bytes at a time.
        let left: usize = (1..=parts)
            .map(|part| {
                t.sends(&format!(". 1:1(0) ack {}", 1 + MSS * part / parts));
                t.drain().len()
            })
            .sum();
        left
    };
    assert_eq!((left(1), left(100), left(MSS)), (2, 2, 2));
}

#[test]
fn acknowledging_a_repair_in_small_parts_has_it_repeated_once() {
    let mut t = Script::established(plain());
    t.server_sends(1, 200_000);
    assert_eq!(t.drain().len(), 10);
    for _ in 0..3 {
        t.sends(". 1:1(0) ack 1");
        t.drain();
    }
    for (acked, repeated) in [(0, 1), (MSS, 2), (3 * MSS, 3)] {
        for part in 1..100 {
            t.sends(&format!(". 1:1(0) ack {}", 1 + acked + part));
            t.drain();
        }
        assert_eq!(t.stack.counters().retransmitted, repeated);
    }
}

#[test]
fn acknowledging_what_is_still_to_be_sent_gains_nothing() {
    let mut t = Script::established(plain());
    t.server_sends(1, 200_000);
    assert_eq!(t.drain().len(), 10);
    for ahead in 11..=40 {
        t.sends(&format!(". 1:1(0) ack {}", 1 + ahead * MSS));
    }
    let answers = t.drain();
    assert!(answers.iter().all(|answer| answer == ". 14601:14601(0) ack 1"), "{answers:?}");
    t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
    assert_eq!(t.drain().len(), 2, "as if nothing had been said");
}

#[test]
fn two_ends_that_disagree_do_not_challenge_each_other_for_ever() {
    let mut t = Script::established(modern());
    let mut answers = 0;
    // A peer that has lost its place answers every acknowledgement of ours with one that fits nowhere.
    for _ in 0..10_000 {
        t.sends(". 1:1(0) ack 500000");
        answers += t.drain().len();
        t.wait(Duration::from_millis(1));
        t.tsval += 1;
    }
    assert!(answers <= 110, "{answers} in ten seconds");
    t.state(State::Established);
}

#[test]
fn overlapping_bytes_that_differ_never_change_what_was_delivered_or_acknowledged() {
    let mut t = Script::established(modern());
    t.sends("P. 1:101(100) ack 1");
    other_bytes(&mut t, 1, &[0xee; 100]);
    other_bytes(&mut t, 51, &[0xee; 100]);
    t.drain();
    let mut data = [0; 200];
    assert_eq!(t.stack.recv(t.now, t.conn(), &mut data), Ok(150));
    assert_eq!(data[..100], stream(CLIENT, 1, 100));
    assert_eq!(data[100..150], [0xee; 50], "new bytes are as they came");
}

#[test]
fn an_urgent_pointer_past_the_end_is_data_like_any_other() {
    for urgent in [0, 1, 10, 11, 500, u16::MAX] {
        let mut t = Script::established(modern());
        let mut frame = t.frame("PU. 1:11(10) ack 1");
        let at = 14 + 20 + 18;
        let old = u32::from(u16::from_be_bytes([frame[at - 2], frame[at - 1]]));
        frame[at..at + 2].copy_from_slice(&urgent.to_be_bytes());
        // RFC 1624: the checksum follows the field, which was 0.
        let sum = (!old & 0xffff) + u32::from(urgent);
        let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
        frame[at - 2..at].copy_from_slice(&sum.to_be_bytes());
        t.stack.handle_frame(t.now, &frame);
        t.server_reads(1, 10);
        t.sends("P. 11:21(10) ack 1");
        t.server_reads(11, 10);
    }
}

#[test]
fn a_timestamp_that_goes_back_by_half_its_range_is_refused() {
    let mut t = Script::established(modern());
    t.sends("P. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    for back in [1 << 31, (1 << 31) - 1, (1 << 31) + 1] {
        let good = t.tsval;
        t.tsval = good.wrapping_sub(back);
        let before = t.stack.counters().paws_dropped;
        t.sends("P. 11:21(10) ack 1");
        // One more than half the range is as good as forward: nobody can tell (RFC 7323 §5.2).
        let forward = back > 1 << 31;
        assert_eq!(t.stack.counters().paws_dropped - before, u64::from(!forward), "{back}");
        t.drain();
        if forward {
            t.server_reads(1, 20);
        } else {
            t.tsval = good;
        }
    }
}

/// A client whose SYN is answered with an initial sequence number a little after `start`.
fn answered_near(start: u32) -> Offer {
    let mut offer = modern();
    let slot = epochs(EPOCH)[EPOCH as usize % EPOCH_SLOTS as usize];
    let key = AnyFlowKey::new(offer.family.client(offer.port), offer.family.server());
    let Some(AnyFlowKey::V4(key)) = key else { panic!("IPv4") };
    while encode(&slot, Strictness::NEVER, &key, offer.isn, &offer.options, START.0).isn.wrapping_sub(start)
        > 7_000
    {
        offer.isn += 1;
    }
    offer
}

#[test]
fn sequence_numbers_pass_the_middle_and_the_end_of_their_range_in_both_directions() {
    for point in [1u32 << 31, 0] {
        let start = point.wrapping_sub(8_000);
        let mut t = Script::established(Offer { isn: start, ..modern() });
        for from in (1..20_001).step_by(1000) {
            t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
            t.drain();
            t.server_reads(from as u64, 1000);
        }
        t.sends("F. 20001:20001(0) ack 1");
        t.drain();
        t.state(State::CloseWait);
        // Ours are cookies: some client's SYN is answered with one that lies there.
        let mut t = Script::established(answered_near(start));
        for from in (1..40_001).step_by(2000) {
            t.server_sends(from, 2000);
            // The first of two is lost.
            let next = from + 2000;
            assert_eq!(t.drain().len(), 2);
            t.sends(&format!(". 1:1(0) ack {from} sack {}:{next}", from + 1448));
            t.wait_for_output(&format!(". {from}:{}(1448) ack 1", from + 1448));
            t.sends(&format!(". 1:1(0) ack {next}"));
        }
        assert_eq!(t.stack.counters().timeouts, 0);
    }
}

#[test]
fn an_mss_of_nothing_or_one_byte_does_not_make_us_send_crumbs() {
    for mss in [0, 1, 63] {
        let mut offer = plain();
        offer.options.mss = Some(mss);
        let mut t = Script::established(offer);
        t.server_sends(1, 536);
        t.expect("P. 1:537(536) ack 1");
        // Nor does a server that we open a connection to.
        let mut t = Script::syn(plain());
        let (client, server) = (t.key().peer_addr(), t.key().local_addr());
        let id = t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).unwrap();
        t.next_sent().unwrap();
        t.cookie.isn = t.last.unwrap().0.0;
        let options = Options { mss: Some(mss), ..Options::default() };
        let (seq, ack) = (Seq(t.offer.isn), Seq(t.cookie.isn) + 1);
        let answer = Outgoing { seq, ack, flags: Flags::SYN | Flags::ACK, window: 60_000, options };
        let frame = t.write(answer, &[]);
        t.stack.handle_frame(t.now, &frame);
        t.expect(". 1:1(0) ack 1");
        assert_eq!(t.stack.send(t.now, id, &stream(super::script::SERVER, 1, 64)), Ok(64));
        t.expect("P. 1:65(64) ack 1");
    }
}

#[test]
fn an_answer_with_timestamps_that_we_did_not_offer_brings_none_about() {
    let mut t = Script::syn_with(plain(), Config { timestamps: false, ..Config::default() });
    let (client, server) = (t.key().peer_addr(), t.key().local_addr());
    t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).unwrap();
    t.next_sent().unwrap();
    let (isn, _, _, offered) = t.last.unwrap();
    assert_eq!((offered.timestamps, offered.sack_permitted), (None, true));
    t.cookie.isn = isn.0;
    let options = Options { timestamps: Some((1000, 0)), ..Options::default() };
    let flags = Flags::SYN | Flags::ACK;
    let answer = Outgoing { seq: Seq(t.offer.isn), ack: isn + 1, flags, window: 60_000, options };
    let frame = t.write(answer, &[]);
    t.stack.handle_frame(t.now, &frame);
    t.expect(". 1:1(0) ack 1");
    assert_eq!(t.last.unwrap().3.timestamps, None);
    // Nor are any missed later on.
    t.sends("P. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11");
}

#[test]
fn a_window_that_shrinks_below_what_is_in_flight_stops_new_data_and_no_repair() {
    let mut t = Script::established(plain());
    t.server_sends(1, 40_000);
    assert_eq!(t.drain().len(), 10);
    t.window = 3000;
    t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
    t.silent();
    // What is out already is repeated if need be, though it now lies beyond the window (RFC 9293 §3.8.6).
    t.wait_for_output(&format!(". {}:{}({MSS}) ack 1", 1 + MSS, 1 + 2 * MSS));
    t.window = 60_000;
    t.sends(&format!(". 1:1(0) ack {}", 1 + 10 * MSS));
    assert!(!t.drain().is_empty());
    t.state(State::Established);
}

#[test]
fn a_window_of_a_gigabyte_is_taken_as_it_is_and_no_larger() {
    // Shifts over 14 count as 14 (RFC 7323 §2.3).
    for shift in [14, 15, 255] {
        let mut offer = modern();
        offer.options.window_scale = Some(shift);
        offer.options.timestamps = Some(1);
        let mut t = Script::syn(offer);
        t.window = u16::MAX;
        t.sends(". 1:1(0) ack 1");
        let view = t.stack.view(t.conn()).expect("a connection");
        assert_eq!((view.snd_shift, view.snd_wnd), (14, u32::from(u16::MAX) << 14));
        t.server_sends(1, 100_000);
        assert_eq!(t.drain().len(), 10);
        // An acknowledgement as old as that window is no attack, one that is older is.
        for (ack, challenges) in [(1u32.wrapping_sub(view.snd_wnd), 0), (0u32.wrapping_sub(view.snd_wnd), 1)]
        {
            t.sends(&format!(". 1:1(0) ack {ack}"));
            assert_eq!(t.stack.counters().challenge_acks, challenges);
        }
    }
}

#[test]
fn a_peer_that_closes_its_window_and_falls_silent_is_given_up() {
    let mut t = Script::established_with(plain(), Config { retries: 4, ..Config::default() });
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100);
    t.wait(200 * SECOND);
    let sent = t.drain();
    assert_eq!(sent.last().map(String::as_str), Some("R. 1:1(0) ack 1"));
    t.gone();
    assert_eq!(t.stack.recv(t.now, t.conn(), &mut [0; 8]), Err(Error::TimedOut));
}

#[test]
fn one_byte_at_a_time_is_read_like_anything_else_and_bounded_in_memory() {
    let mut t = Script::established(modern());
    for from in 1..=5000u32 {
        t.sends(&format!("P. {from}:{}(1) ack 1", from + 1));
        t.drain();
    }
    // Two chunks, not one for each segment.
    assert!(t.stack.buffered_bytes() <= 16 << 10, "{}", t.stack.buffered_bytes());
    t.server_reads(1, 5000);
}
