//! Passive opens: SYNs that XDP leaves to the stack, the half-open queue, and the accept queue behind it.

use std::time::Duration;

use tcpguard_common::cookie::SynOptions;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::Options;

use super::script::{Offer, Script, modern, plain};
use super::{ADVERTISED, CLIENT_MAC, EPOCH, Family, SERVER_MAC, link};
use crate::wire::Incoming;
use crate::{Config, Cursor, FlowInfo, Instant, Received, Stack, StackDrop, State};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
/// How late a retransmission is at most: an eighth of the first timeout, and a step of the hand.
const LATE: Duration = Duration::from_millis(160);

/// A client whose SYN the stack has answered.
fn half_open(offer: Offer, config: Config) -> Script {
    let mut t = Script::syn_with(offer, config);
    assert_eq!(t.sends("S 0:0(0)"), Received::Consumed);
    t.expect("S. 0:0(0) ack 1");
    assert!(t.stack.is_half_open(&t.key()));
    t
}

/// The one half-open connection there is, as it is listed.
fn listed(t: &Script) -> FlowInfo {
    let listed: Vec<FlowInfo> = t.stack.flows(t.now).collect();
    assert_eq!(listed.len(), 1);
    listed[0]
}

#[test]
fn a_syn_is_answered_with_the_cookie_that_xdp_would_send_and_its_ack_is_adopted() {
    for family in [Family::V4, Family::V6] {
        for offer in [modern(), plain()] {
            let offer = Offer { family, ..offer };
            let mut t = half_open(offer, Config::default());
            // Script counts sequence numbers from that of XDP's cookie.
            let (_, _, window, options) = t.last.unwrap();
            assert_eq!(window, ADVERTISED.window);
            let mss = if family == Family::V4 { ADVERTISED.mss_v4 } else { ADVERTISED.mss_v6 };
            let tsval = options.timestamps.map(|(value, _)| value);
            // 4 ms units, from bit 14 on; all else is the same.
            let elapsed = t.cookie.tsval.map(|cookie| (tsval.unwrap().wrapping_sub(cookie)) >> 14);
            assert!(elapsed.is_none_or(|units| (4..=5).contains(&units)), "{elapsed:?}");
            assert_eq!(tsval.map(|value| value & 0x3fff), t.cookie.tsval.map(|value| value & 0x3fff));
            let expected = Options {
                mss: Some(mss),
                window_scale: offer.options.window_scale.map(|_| ADVERTISED.window_scale),
                sack_permitted: offer.options.sack_permitted,
                timestamps: tsval.zip(offer.options.timestamps),
                ..Options::default()
            };
            assert_eq!(options, expected);
            t.silent();
            assert!(t.events.is_empty(), "nobody is told of a SYN: {:?}", t.events);

            assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
            t.state(State::Established);
            assert!(!t.stack.is_half_open(&t.key()));
            let counters = t.stack.counters();
            assert_eq!(
                (counters.half_open_entered, counters.half_open_completed, counters.adopted),
                (1, 1, 1)
            );
            t.wait(100 * SECOND);
            t.silent();
        }
    }
}

/// A client without timestamps, for whom strictness makes a difference.
fn windows() -> Offer {
    let mut offer = modern();
    offer.options = SynOptions { window_scale: Some(8), timestamps: None, ..offer.options };
    offer
}

#[test]
fn a_strict_service_s_syn_is_answered_as_xdp_would_and_scales_no_window_and_selects_nothing() {
    for family in [Family::V4, Family::V6] {
        let mut t = Script::syn(Offer { family, ..windows() });
        t.set_strict(&[EPOCH]);
        t.next_strict_cookie(EPOCH);
        t.window = 60_000;
        t.sends("S 0:0(0)");
        // At XDP's number: Script counts from there.
        t.expect("S. 0:0(0) ack 1");
        let (.., options) = t.last.unwrap();
        assert!(options.mss.is_some() && options.window_scale.is_none() && !options.sack_permitted);
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
        t.state(State::Established);
        assert_eq!(t.stack.counters().half_open_completed, 1);
        // What it would have acknowledged selectively it does not.
        t.sends("P. 11:21(10) ack 1");
        t.expect(". 1:1(0) ack 1");
    }
}

#[test]
fn a_half_open_connection_keeps_its_layout_when_its_service_becomes_strict_or_ceases_to_be() {
    for strict in [false, true] {
        let mut t = Script::syn(windows());
        let (now, next): (&[u32], &[u32]) = if strict { (&[EPOCH], &[]) } else { (&[], &[EPOCH + 1]) };
        t.set_strict(now);
        if strict {
            t.next_strict_cookie(EPOCH);
        }
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.set_epoch(EPOCH + 1, false);
        t.set_strict(&[now, next].concat());
        // Sent again, it is the same cookie, with the same options.
        t.wait_for_output("S. 0:0(0) ack 1");
        let (.., options) = t.last.unwrap();
        assert_eq!((options.window_scale.is_some(), options.sack_permitted), (!strict, !strict));
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
        t.state(State::Established);
    }
}

#[test]
fn a_syn_ack_is_sent_again_after_1_2_4_8_and_16_seconds_and_then_forgotten() {
    for offer in [modern(), plain()] {
        let mut t = half_open(offer, Config::default());
        let start = t.now;
        let mut due = Duration::ZERO;
        for doublings in 0..5 {
            due += SECOND * (1 << doublings);
            assert_eq!(listed(&t).syn_ack_retransmits, Some(doublings));
            t.wait_for_output("S. 0:0(0) ack 1");
            let after = t.now - start;
            assert!(due <= after && after <= due + LATE, "{after:?} instead of {due:?}");
        }
        let left = listed(&t);
        assert_eq!((left.state, left.syn_ack_retransmits), (State::SynReceived, Some(5)));
        t.wait(start + 63 * SECOND - t.now - Duration::from_millis(1));
        assert_eq!(t.stack.half_open_count(), 1);
        t.wait(LATE);
        t.silent();
        assert_eq!(t.stack.half_open_count(), 0);
        let counters = t.stack.counters();
        assert_eq!((counters.syn_acks_retransmitted, counters.half_open_timed_out), (5, 1));
        assert_eq!(t.stack.poll_timeout(), None, "nothing is left to wait for");
    }
}

/// They were counted as sent, and what found no room among the answers that wait was lost.
#[test]
fn syn_acks_of_thousands_of_clients_that_are_due_at_once_are_all_sent_again() {
    const CLIENTS: u16 = 5000;
    /// What leaves in one turn of an engine.
    const TURN: usize = 256;
    let mut t = Script::syn_with(modern(), Config::default());
    for port in 1..=CLIENTS {
        t.next_client(port, EPOCH);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
    }
    let mut sent = 0;
    for _ in 0..2 * SECOND.as_millis() {
        t.wait(MS);
        sent += (0..TURN).map_while(|_| t.stack.poll_transmit(t.now, &mut [0; 2000])).count();
    }
    let counters = t.stack.counters();
    assert_eq!((sent, counters.replies_dropped), (usize::from(CLIENTS), 0));
    assert_eq!(counters.syn_acks_retransmitted, u64::from(CLIENTS));
}

#[test]
fn first_timeout_and_count_are_tunables_that_apply_to_what_is_there() {
    let config = Config { syn_timeout: SECOND / 10, syn_ack_retries: 2, ..Config::default() };
    let mut t = half_open(modern(), Config::default());
    t.stack.set_config(t.now, config);
    let start = t.now;
    for milliseconds in [100, 300] {
        t.wait_for_output("S. 0:0(0) ack 1");
        let due = Duration::from_millis(milliseconds);
        assert!(due <= t.now - start && t.now - start <= due + LATE, "{:?}", t.now - start);
    }
    t.wait(SECOND / 2);
    t.silent();
    assert_eq!(t.stack.half_open_count(), 0);
}

#[test]
fn the_first_round_trip_is_measured_from_the_syn_ack_that_was_answered() {
    let mut t = half_open(modern(), Config::default());
    t.wait_for_output("S. 0:0(0) ack 1");
    t.wait(Duration::from_millis(30));
    t.sends(". 1:1(0) ack 1");
    let rtt = t.stack.info(t.now, t.conn()).and_then(|info| info.rtt).expect("a round trip");
    assert!((25..=35).contains(&rtt.as_millis()), "{rtt:?}");
}

#[test]
fn the_timestamp_clock_goes_on_from_when_the_syn_ack_left() {
    let mut t = half_open(modern(), Config::default());
    let answered = t.last.and_then(|(.., options)| options.timestamps).expect("timestamps").0;
    t.wait(Duration::from_millis(300));
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 1");
    let sent = t.last.and_then(|(.., options)| options.timestamps).expect("timestamps").0;
    assert!((290..=300).contains(&sent.wrapping_sub(answered)), "{}", sent.wrapping_sub(answered));
}

#[test]
fn only_a_reset_at_rcv_nxt_ends_it_and_one_elsewhere_in_the_window_is_challenged() {
    for offer in [modern(), plain()] {
        let mut t = half_open(offer, Config::default());
        for outside in ["R 0:0(0)", "R 900000:900000(0)"] {
            assert_eq!(t.sends(outside), Received::Consumed);
            t.silent();
        }
        assert_eq!(t.sends("R 2:2(0)"), Received::Consumed);
        t.expect(". 1:1(0) ack 1");
        let (_, _, window, options) = t.last.unwrap();
        let shift = offer.options.window_scale.map_or(0, |_| ADVERTISED.window_scale);
        assert_eq!(window, ADVERTISED.window >> shift, "it promises what the SYN-ACK did, and is scaled");
        assert_eq!(options.timestamps.is_some(), offer.options.timestamps.is_some());
        assert_eq!(t.stack.half_open_count(), 1);
        // What a host that never sent the SYN answers to the SYN-ACK.
        assert_eq!(t.sends("R 1:1(0)"), Received::Consumed);
        t.silent();
        assert_eq!((t.stack.half_open_count(), t.stack.counters().half_open_reset), (0, 1));
        assert!(matches!(t.sends("R 1:1(0)"), Received::Unknown(_)));
        t.wait(100 * SECOND);
        t.silent();
    }
}

#[test]
fn a_syn_that_comes_again_is_answered_again_and_starts_no_clock_afresh() {
    let mut t = half_open(modern(), Config::default());
    let start = t.now;
    t.wait(SECOND / 2);
    t.offer.options.timestamps = Some(5500);
    t.tsval = 5500;
    t.sends("S 0:0(0)");
    t.expect("S. 0:0(0) ack 1");
    let (.., options) = t.last.unwrap();
    assert_eq!(options.timestamps.map(|(_, echo)| echo), Some(5500));
    t.wait_for_output("S. 0:0(0) ack 1");
    assert!(t.now - start <= SECOND + LATE);
    let (.., options) = t.last.unwrap();
    assert_eq!(options.timestamps.map(|(_, echo)| echo), Some(5500), "the latest is echoed");
    let counters = t.stack.counters();
    assert_eq!((counters.half_open_entered, counters.syns_repeated), (1, 1));
}

/// Linux drops options from the last retransmissions of its SYN. A client that was rebooted has another ISN.
#[test]
fn another_syn_of_the_same_flow_takes_the_place_of_the_first() {
    for change in
        [|offer: &mut Offer| offer.isn ^= 0x5555, |offer: &mut Offer| offer.options = plain().options]
    {
        let mut t = half_open(modern(), Config::default());
        let first = t.frame(". 1:1(0) ack 1");
        t.wait(SECOND / 2);
        change(&mut t.offer);
        t.next_cookie(EPOCH);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        assert_eq!((t.stack.half_open_count(), t.stack.counters().syns_repeated), (1, 0));
        assert!(listed(&t).age < SECOND / 100);
        // Its cookie is a proof all the same.
        assert_eq!(t.stack.handle_frame(t.now, &first), Received::Consumed);
        t.state(State::Established);
    }
}

#[test]
fn a_syn_that_offers_ecn_is_answered_with_ece_where_the_cookie_has_room_for_it() {
    for (offer, ecn) in [(modern(), true), (plain(), false)] {
        let mut t = Script::syn(Offer { options: SynOptions { ecn, ..offer.options }, ..offer });
        t.sends("SEW 0:0(0)");
        let answer = t.next_sent().expect("a SYN-ACK");
        assert_eq!(answer.contains('E'), ecn, "{answer}");
        assert!(answer.ends_with("0:0(0) ack 1"), "XDP's cookie says the same: {answer}");
        // What is sent again is the same.
        assert_eq!(t.stack.half_open_count(), 1);
        t.wait_for_output(&answer);
        t.sends(". 1:1(0) ack 1");
        t.state(State::Established);
    }
}

#[test]
fn data_on_a_syn_waits_for_the_handshake_and_data_on_the_third_ack_is_delivered() {
    let mut t = Script::syn(modern());
    t.sends("SP 0:10(10)");
    t.expect("S. 0:0(0) ack 1");
    t.silent();
    assert!(t.events.is_empty(), "nothing to read before the handshake is complete: {:?}", t.events);
    t.sends("P. 1:11(10) ack 1");
    t.state(State::Established);
    t.expect(". 1:1(0) ack 11");
    t.server_reads(1, 10);
}

#[test]
fn what_a_cookie_rounds_down_is_taken_from_the_queue_where_it_is_remembered() {
    let learnt = |mss, window_scale, stateful| {
        let options = SynOptions { mss: Some(mss), window_scale: Some(window_scale), ..plain().options };
        let offer = Offer { options, ..plain() };
        let mut t = if stateful {
            half_open(offer, Config::default())
        } else {
            Script::syn_with(offer, Config::default())
        };
        t.sends(". 1:1(0) ack 1");
        let view = t.stack.view(t.conn()).expect("a connection");
        (view.mss, view.snd_shift)
    };
    assert_eq!(learnt(1000, 3, true), (1000, 3));
    assert_eq!(learnt(1000, 3, false), (536, 2));
    assert_eq!(learnt(100, 3, true), (536, 3), "no smaller than what a cookie says at least");
}

#[test]
fn segments_that_prove_nothing_change_nothing() {
    let mut t = half_open(modern(), Config::default());
    let key = t.key();
    for segment in [". 1:1(0) ack 2", "P. 1:11(10) ack 900", "F 1:1(0)", "- 1:1(0)", "S. 0:0(0) ack 1"] {
        assert_eq!(t.sends(segment), Received::Unknown(key), "{segment}");
        t.silent();
        assert!(t.stack.is_half_open(&key));
    }
    t.sends(". 1:1(0) ack 1");
    t.state(State::Established);
}

#[test]
fn a_full_queue_forgets_the_oldest_and_breaks_no_handshake() {
    const LIMIT: u16 = 8;
    let config = Config { max_half_open: LIMIT.into(), ..Config::default() };
    let mut t = Script::syn_with(modern(), config);
    let mut acks = Vec::new();
    for port in 1..=3 * LIMIT {
        t.next_client(port, EPOCH);
        t.wait(Duration::from_millis(5));
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        acks.push(t.frame(". 1:1(0) ack 1"));
        assert_eq!(t.stack.half_open_count(), usize::from(port.min(LIMIT)));
    }
    assert_eq!(t.stack.counters().half_open_evicted, u64::from(2 * LIMIT));
    assert!((t.stack.half_open_level() - 1.0).abs() < 1e-9);
    for ack in acks {
        assert_eq!(t.stack.handle_frame(t.now, &ack), Received::Consumed);
    }
    assert_eq!(t.stack.connection_count(), usize::from(3 * LIMIT));
    assert_eq!((t.stack.half_open_count(), t.stack.counters().half_open_completed), (0, LIMIT.into()));
}

#[test]
fn an_entry_is_no_older_than_the_key_that_xdp_would_accept_its_ack_by() {
    for (offer, epoch, second_half, lives) in [
        (modern(), EPOCH + 1, true, true),
        (modern(), EPOCH + 2, false, false),
        (plain(), EPOCH + 1, false, true),
        // Without timestamps an odd neighbour is the next epoch by now.
        (plain(), EPOCH + 1, true, false),
    ] {
        let mut t = half_open(offer, Config::default());
        t.set_epoch(epoch, second_half);
        t.wait(SECOND + LATE);
        assert_eq!(t.stack.is_half_open(&t.key()), lives, "{epoch} {second_half}");
        assert_eq!(t.next_sent().is_some(), lives);
        // The SYN comes again, and is answered with what will be accepted.
        if !lives {
            t.next_cookie(epoch);
        }
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.sends(". 1:1(0) ack 1");
        t.state(State::Established);
    }
}

#[test]
fn without_a_key_or_a_listener_no_syn_is_answered() {
    let mut t = Script::syn(modern());
    t.set_epoch(EPOCH + 2, false);
    t.stack.set_epochs(&super::epochs(EPOCH - 10), super::clock(EPOCH, false));
    assert_eq!(t.sends("S 0:0(0)"), Received::Dropped(StackDrop::NoKey));
    t.set_epoch(EPOCH, false);
    t.stack.unlisten(None, 80);
    assert_eq!(t.sends("S 0:0(0)"), Received::Dropped(StackDrop::NoListener));
    t.silent();
    assert_eq!(t.stack.half_open_count(), 0);

    let mut t = half_open(modern(), Config::default());
    t.stack.unlisten(None, 80);
    t.wait(SECOND + LATE);
    t.silent();
    assert_eq!(t.stack.half_open_count(), 0, "forgotten with its listener");
}

#[test]
fn in_time_wait_a_newer_syn_is_answered_and_the_entry_stays_until_its_ack() {
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        t.stack.shutdown(t.now, t.conn()).unwrap();
        t.expect("F. 1:1(0) ack 1");
        t.sends("F. 1:1(0) ack 2");
        t.expect(". 2:2(0) ack 2");
        t.state(State::TimeWait);
        t.wait(SECOND);
        // An old duplicate.
        t.sends("S 0:0(0)");
        t.expect(". 2:2(0) ack 2");
        assert_eq!(t.stack.half_open_count(), 0);
        // A flood of newer ones: nothing is ended or hijacked.
        for isn in 1..=50 {
            t.offer.isn += isn * 1000;
            t.tsval += 100;
            t.offer.options.timestamps = t.offer.options.timestamps.map(|_| t.tsval);
            t.next_cookie(EPOCH);
            t.sends("S 0:0(0)");
            t.expect("S. 0:0(0) ack 1");
            t.state(State::TimeWait);
        }
        assert_eq!(t.stack.half_open_count(), 1);
        t.sends(". 1:1(0) ack 1");
        t.state(State::Established);
        assert_eq!((t.stack.time_wait_count(), t.stack.half_open_count()), (0, 0));
    }
}

/// A connection in TIME_WAIT whose flow another client behind the same address translator opens anew: neither its timestamp
/// nor its sequence number is later.
fn taken_over_by_a_slower_clock(offer: Offer) -> Script {
    let mut t = Script::established(offer);
    let opened = t.now;
    t.wait(10 * MS);
    t.stack.shutdown(t.now, t.conn()).unwrap();
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    t.offer.isn -= 1_000_000;
    t.tsval = t.tsval.wrapping_sub(1000);
    t.offer.options.timestamps = t.offer.options.timestamps.map(|_| t.tsval);
    // Its cookie is from before, as long as no other is made.
    let now = std::mem::replace(&mut t.now, opened);
    t.next_cookie(EPOCH);
    t.now = now;
    t
}

/// What is sent now acknowledges nothing of the client's, which therefore does not echo its timestamp (RFC 7323 §4.3).
fn is_no_news(t: &mut Script) {
    let echo = t.tsecr;
    while t.next_sent().is_some() {}
    t.tsecr = echo;
}

#[test]
fn in_time_wait_a_reset_that_answers_our_challenge_has_the_next_syn_answered_and_ends_nothing() {
    for offer in [modern(), plain()] {
        let mut t = taken_over_by_a_slower_clock(offer);
        let rcv_nxt = 1_000_002;
        for reset in ["R 2:2(0)", &format!("R {}:{0}(0)", rcv_nxt - 1), &format!("R {}:{0}(0)", rcv_nxt + 1)]
        {
            t.sends("S 0:0(0)");
            let challenge = t.next_sent().expect("a challenge");
            assert!(challenge.starts_with('.'), "{challenge}");
            t.sends(reset);
            assert_eq!(t.stack.half_open_count(), 0, "{reset} is not of that connection");
            t.wait(200 * MS);
        }
        t.sends(&format!("R {rcv_nxt}:{rcv_nxt}(0)"));
        t.state(State::TimeWait);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.state(State::TimeWait);
        // Who cannot know the answer gets no further.
        let cookie = t.cookie;
        t.cookie.isn += 1;
        t.sends("P. 1:11(10) ack 1");
        is_no_news(&mut t);
        t.state(State::TimeWait);
        t.cookie = cookie;
        t.sends("P. 1:11(10) ack 1");
        t.state(State::Established);
        t.server_reads(1, 10);
        assert_eq!((t.stack.time_wait_count(), t.stack.half_open_count()), (0, 0));
        assert_eq!(t.stack.counters().reincarnated, 1);
    }
}

/// In cookie mode, with a server that speaks first, this ACK is all that the client ever says.
#[test]
fn in_time_wait_a_handshake_that_began_after_it_is_believed_at_once() {
    let mut t = taken_over_by_a_slower_clock(modern());
    t.wait(10 * MS);
    t.next_cookie(EPOCH);
    t.sends(". 1:1(0) ack 1");
    t.state(State::Established);
    assert_eq!((t.stack.time_wait_count(), t.stack.counters().reincarnated), (0, 1));
}

#[test]
fn in_time_wait_a_reset_is_seen_behind_a_spoofed_syn_that_is_half_open() {
    for offer in [modern(), plain()] {
        let mut t = taken_over_by_a_slower_clock(offer);
        let (client, cookie, tsval) = (t.offer, t.cookie, t.tsval);
        t.offer.isn += 10_000_000;
        t.tsval = t.tsval.wrapping_add(100_000);
        t.offer.options.timestamps = t.offer.options.timestamps.map(|_| t.tsval);
        t.next_cookie(EPOCH);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        let listed: Vec<State> = t.stack.flows(t.now).map(|flow| flow.state).collect();
        assert!(listed.contains(&State::SynReceived) && listed.contains(&State::TimeWait), "{listed:?}");
        (t.offer, t.cookie, t.tsval) = (client, cookie, tsval);
        t.sends("S 0:0(0)");
        let challenge = t.next_sent().expect("a challenge");
        assert!(challenge.starts_with('.'), "{challenge}");
        t.sends("R 1000002:1000002(0)");
        while t.next_sent().is_some() {}
        t.next_cookie(EPOCH);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.sends(". 1:1(0) ack 1");
        t.state(State::Established);
    }
}

#[test]
fn in_time_wait_a_completed_handshake_is_believed_without_a_later_clock_after_a_second() {
    for offer in [modern(), plain()] {
        // XDP answered the SYN itself.
        let mut t = taken_over_by_a_slower_clock(offer);
        t.wait(900 * MS);
        t.sends("P. 1:11(10) ack 1");
        t.state(State::TimeWait);
        assert_eq!(t.stack.counters().incarnations_refused, 1);
        is_no_news(&mut t);
        t.wait(100 * MS);
        t.sends("P. 1:11(10) ack 1");
        t.state(State::Established);
        t.server_reads(1, 10);
        assert_eq!((t.stack.time_wait_count(), t.stack.counters().reincarnated), (0, 1));
    }
}

#[test]
fn a_syn_to_a_live_connection_is_challenged_and_enters_no_queue() {
    let mut t = Script::established(modern());
    t.sends("S 0:0(0)");
    t.expect(". 1:1(0) ack 1");
    assert_eq!(t.stack.half_open_count(), 0);
}

/// RFC 6528 §3: a clock of 4 µs, and an offset that differs from flow to flow, address family and secret.
#[test]
fn active_opens_begin_where_a_clock_and_a_secret_of_the_flow_say() {
    let isn = |secret: u64, wait: Duration, family: Family, port: u16| {
        let mut stack = Stack::new(Instant(1_000_000_000), Config::default(), secret);
        let now = Instant(1_000_000_000) + wait;
        let (client, server) = (family.client(port), family.server());
        stack.connect(now, server, client, link(SERVER_MAC, CLIENT_MAC)).unwrap();
        let mut frame = vec![0; 2000];
        let len = stack.poll_transmit(now, &mut frame).expect("a SYN");
        Incoming::parse(&frame[..len]).expect("well-formed").seq
    };
    let first = isn(1, Duration::ZERO, Family::V4, 40_000);
    assert_eq!(isn(1, Duration::ZERO, Family::V4, 40_000), first, "nothing else decides");
    for seconds in [1, 60, 3600] {
        let later = isn(1, Duration::from_secs(seconds), Family::V4, 40_000);
        assert_eq!(later.distance(first), (seconds * 250_000) as u32, "{seconds} s");
    }
    let mut flows: Vec<u32> =
        (40_000..41_000).map(|port| isn(1, Duration::ZERO, Family::V4, port).0).collect();
    flows.extend((40_000..41_000).map(|port| isn(1, Duration::ZERO, Family::V6, port).0));
    flows.extend((40_000..41_000).map(|port| isn(2, Duration::ZERO, Family::V4, port).0));
    for bit in 0..32 {
        let set = flows.iter().filter(|&&isn| isn >> bit & 1 != 0).count();
        assert!((1300..1700).contains(&set), "bit {bit} is set in {set} of 3000");
    }
    flows.sort_unstable();
    flows.dedup();
    assert!(flows.len() > 2990, "{}", flows.len());
}

#[test]
fn an_active_open_of_the_same_flow_ends_the_half_open_one() {
    let mut t = half_open(modern(), Config::default());
    let (client, server) = (t.key().peer_addr(), t.key().local_addr());
    t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).unwrap();
    assert_eq!(t.stack.half_open_count(), 0);
}

#[test]
fn half_open_connections_are_listed_and_counted_once() {
    let mut t = half_open(modern(), Config::default());
    t.wait(SECOND / 2);
    let info = listed(&t);
    assert_eq!((info.key, info.state, info.service), (t.key(), State::SynReceived, Some(7)));
    assert_eq!((info.age, info.syn_ack_retransmits), (SECOND / 2, Some(0)));
    assert_eq!(info.timer, Some(SECOND / 2));
    for port in 1..200 {
        t.offer.family = if port % 2 == 0 { Family::V4 } else { Family::V6 };
        t.next_client(port, EPOCH);
        t.sends("S 0:0(0)");
    }
    let mut seen: Vec<AnyFlowKey> = Vec::new();
    let mut next = Some(Cursor::START);
    while let Some(cursor) = next {
        next = t.stack.survey(t.now, cursor, 100, |info| seen.push(info.key));
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 200);
    let mut counts = [0; State::ALL.len()];
    assert_eq!(t.stack.count_states(0, 100, &mut counts), None);
    assert_eq!(counts[State::SynReceived as usize], 200);
}

#[test]
fn a_full_accept_queue_ignores_the_ack_or_resets_and_room_lets_the_next_one_in() {
    for reset_on_overflow in [false, true] {
        let config = Config { accept_backlog: 2, reset_on_overflow, ..Config::default() };
        let mut t = Script::syn_with(modern(), config);
        for port in 1..=2 {
            t.next_client(port, EPOCH);
            t.sends(". 1:1(0) ack 1");
            t.state(State::Established);
        }
        t.next_client(3, EPOCH);
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
        t.events.clear();
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Dropped(StackDrop::BacklogFull));
        assert_eq!(t.stack.counters().backlog_full, 1);
        assert!(t.stack.is_half_open(&t.key()));
        if reset_on_overflow {
            t.expect("R. 1:1(0) ack 1");
            assert_eq!(t.events.len(), 1, "XDP forgets it");
            continue;
        }
        t.silent();
        assert!(t.events.is_empty(), "XDP's entry stays, for the sweep to offer it again: {:?}", t.events);
        // The SYN-ACK is sent again, so the client's ACK comes again.
        t.wait_for_output("S. 0:0(0) ack 1");
        t.stack.accepted(7);
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
        t.state(State::Established);
    }
}

#[test]
fn a_swept_flow_waits_for_room_in_the_accept_queue_too() {
    let mut t = Script::syn_with(modern(), Config { accept_backlog: 1, ..Config::default() });
    t.sends(". 1:1(0) ack 1");
    t.next_client(2, EPOCH);
    let (key, flow) = (t.key(), t.flow(1, 1));
    let full = Received::Dropped(StackDrop::BacklogFull);
    assert_eq!(t.stack.adopt_swept(t.now, key, &flow, SERVER_MAC), full);
    t.silent();
    t.stack.accepted(7);
    assert_eq!(t.stack.adopt_swept(t.now, key, &flow, SERVER_MAC), Received::Consumed);
    t.state(State::Established);
}

/// It used to be told in whole seconds, and flows of one second could not be put in order.
#[test]
fn the_age_of_a_connection_is_known_to_a_sixteenth_of_a_second() {
    let mut t = Script::established(modern());
    for wait in [SECOND / 4, SECOND, SECOND * 3600] {
        let before = listed(&t).age;
        t.wait(wait);
        assert_eq!(listed(&t).age, before + wait);
    }
}

#[test]
fn without_timestamps_the_first_round_trip_is_that_of_a_syn_ack_which_was_sent_once() {
    for (again, measured) in [(false, true), (true, false)] {
        let mut t = half_open(windows(), Config::default());
        t.wait(30 * MS);
        if again {
            t.sends("S 0:0(0)");
            t.expect("S. 0:0(0) ack 1");
            t.wait(30 * MS);
        }
        t.sends(". 1:1(0) ack 1");
        let rtt = t.stack.info(t.now, t.conn()).and_then(|info| info.rtt);
        assert_eq!(rtt, measured.then_some(30 * MS));
    }
    // Nor does the answer to a retransmission tell a round trip.
    let mut t = half_open(windows(), Config::default());
    t.wait_for_output("S. 0:0(0) ack 1");
    t.wait(30 * MS);
    t.sends(". 1:1(0) ack 1");
    assert_eq!(t.stack.info(t.now, t.conn()).and_then(|info| info.rtt), None);
}

/// RFC 6298 §5.7. It was a second, the first timeout: a path that takes longer had everything sent twice.
#[test]
fn after_a_repeated_syn_ack_that_told_no_round_trip_data_has_three_seconds() {
    let repeated = |t: &mut Script| assert!(t.wait_for_output("S. 0:0(0) ack 1") >= SECOND);
    let asked_again = |t: &mut Script| {
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
    };
    let once = |_: &mut Script| {};
    let ways: [&dyn Fn(&mut Script); 3] = [&repeated, &asked_again, &once];
    for (way, milliseconds) in ways.into_iter().zip([3000, 3000, 210]) {
        let mut t = half_open(plain(), Config::default());
        way(&mut t);
        t.wait(10 * MS);
        t.sends(". 1:1(0) ack 1");
        t.server_sends(1, 100);
        t.expect("P. 1:101(100) ack 1");
        let waited = t.wait_for_output("P. 1:101(100) ack 1").as_millis();
        assert!((milliseconds..milliseconds + 5).contains(&waited), "{waited} ms");
    }
    // Nor is the tail probed for any sooner.
    let mut t = half_open(windows(), Config::default());
    repeated(&mut t);
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    assert!(t.wait_for_output("P. 1:101(100) ack 1") >= 3 * SECOND);
}

/// RFC 6928 §2: one that was lost may be chance.
#[test]
fn more_than_one_repeated_syn_ack_makes_the_initial_window_one_segment() {
    for (repeats, segments) in [(0, 10), (1, 10), (2, 1), (4, 1)] {
        let mut t = half_open(modern(), Config::default());
        for _ in 0..repeats {
            t.wait_for_output("S. 0:0(0) ack 1");
        }
        t.sends(". 1:1(0) ack 1");
        t.server_sends(1, 100_000);
        assert_eq!(t.drain().len(), segments, "after {repeats} repetitions");
    }
    // A client that repeats its SYN does so for the same losses.
    let mut t = half_open(modern(), Config::default());
    for _ in 0..3 {
        t.sends("S 0:0(0)");
        t.expect("S. 0:0(0) ack 1");
    }
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100_000);
    assert_eq!(t.drain().len(), 10);
}

#[test]
fn a_flood_of_syns_at_a_time_wait_tuple_neither_ends_nor_hijacks_it() {
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        let id = t.conn();
        t.stack.close(t.now, id);
        t.expect("F. 1:1(0) ack 1");
        t.sends("F. 1:1(0) ack 2");
        t.expect(". 2:2(0) ack 2");
        let (client, cookie, tsval) = (t.offer, t.cookie, t.tsval);
        // All over sequence space and time, for half of 2MSL; then guesses at the cookies of the answers.
        for spoofed in 0..3000_u32 {
            t.offer.isn = spoofed.wrapping_mul(0x9e37_79b9);
            t.tsval = spoofed.wrapping_mul(0x85eb_ca6b);
            t.offer.options.timestamps = client.options.timestamps.map(|_| t.tsval);
            t.next_cookie(EPOCH);
            t.sends("S 0:0(0)");
            assert!(t.stack.half_open_count() <= 1);
            t.cookie.isn = t.cookie.isn.wrapping_add(1 + spoofed);
            t.sends("P. 1:11(10) ack 1");
            let mut answers = 0;
            while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {
                answers += 1;
            }
            assert!(answers <= 2, "more leaves than came");
            t.wait(10 * MS);
            while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
            t.state(State::TimeWait);
        }
        assert_eq!((t.stack.counters().adopted, t.stack.connection_count()), (1, 0));
        // To the client it is what it was: its FIN is acknowledged again, and 2MSL begins anew.
        (t.offer, t.cookie, t.tsval) = (client, cookie, tsval);
        t.sends("F. 1:1(0) ack 2");
        t.expect(". 2:2(0) ack 2");
        assert_eq!(t.stack.counters().time_wait_restarted, 1);
        t.wait(59 * SECOND);
        t.state(State::TimeWait);
        t.wait(2 * SECOND);
        t.gone();
    }
}

/// As `wrk` or a proxy's health checks do it: each finds the TIME_WAIT of the one before at its port.
#[test]
fn a_thousand_short_connections_from_eight_ports_follow_each_other_at_once() {
    const CONNECTIONS: u16 = 1000;
    for (offer, stateful) in [(modern(), true), (modern(), false), (plain(), true), (plain(), false)] {
        let mut t = Script::syn(offer);
        for number in 0..CONNECTIONS {
            t.wait(MS);
            // A client's timestamps and initial sequence numbers go on with its clock.
            t.tsval += 1;
            t.offer.options.timestamps = offer.options.timestamps.map(|_| t.tsval);
            t.offer.isn = t.offer.isn.wrapping_add(15_625);
            t.next_client(50_000 + number % 8, EPOCH);
            if stateful {
                t.sends("S 0:0(0)");
                t.expect("S. 0:0(0) ack 1");
            }
            t.conn = None;
            t.sends("P. 1:101(100) ack 1");
            assert!(t.conn.is_some(), "connection {number} was refused");
            t.server_reads(1, 100);
            t.server_sends(1, 1000);
            t.stack.close(t.now, t.conn());
            t.drain();
            t.sends("F. 101:101(0) ack 1002");
            t.expect(". 1002:1002(0) ack 102");
            t.state(State::TimeWait);
        }
        let counters = t.stack.counters();
        assert_eq!((counters.incarnations_refused, counters.replays_refused), (0, 0));
        assert_eq!((counters.adopted, counters.reincarnated), (1000, 1000 - 8));
        assert_eq!((t.stack.connection_count(), t.stack.time_wait_count()), (0, 8));
    }
}
