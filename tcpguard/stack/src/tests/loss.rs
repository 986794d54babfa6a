//! Losses, windows and timers, seen from the sending side.

use std::time::Duration;

use tcpguard_common::seq::Seq;

use super::script::{Script, modern, plain};
use super::{CLIENT_MAC, SERVER_MAC, link};
use crate::{Config, Error, Event, State};

const SECOND: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(2);

#[track_caller]
fn about(actual: Duration, expected: Duration) {
    assert!(actual >= expected && actual <= expected + TICK, "{actual:?} instead of {expected:?}");
}

#[test]
fn retransmissions_back_off_one_two_four_seconds() {
    let mut t = Script::established(plain());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    for seconds in [1, 2, 4, 8, 16] {
        let waited = t.wait_for_output("P. 1:101(100) ack 1");
        about(waited, seconds * SECOND);
    }
    t.sends(". 1:1(0) ack 101");
    t.silent();
    assert_eq!(t.stack.counters().retransmitted, 5);
    // A measured round trip ends the back-off.
    t.server_sends(101, 100);
    t.expect("P. 101:201(100) ack 1");
    t.wait(SECOND / 10);
    t.sends(". 1:1(0) ack 201");
    t.server_sends(201, 100);
    t.expect("P. 201:301(100) ack 1");
    let waited = t.wait_for_output("P. 201:301(100) ack 1");
    about(waited, 3 * SECOND / 10);
}

#[test]
fn a_path_slower_than_the_first_timeout_does_not_have_everything_sent_twice() {
    let mut t = Script::established(plain());
    for from in (1..1001).step_by(100) {
        t.server_sends(from, 100);
        while t.next_sent().is_some() {}
        for _ in 0..15 {
            t.wait(SECOND / 10);
            while t.next_sent().is_some() {}
        }
        t.sends(&format!(". 1:1(0) ack {}", from + 100));
        t.silent();
    }
    assert_eq!(t.stack.counters().retransmitted, 1);
}

#[test]
fn a_timestamp_echo_ends_the_back_off_even_for_repeated_data() {
    let mut offer = modern();
    offer.options.sack_permitted = false;
    let mut t = Script::established(offer);
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    for _ in 0..4 {
        t.wait_for_output("P. 1:101(100) ack 1");
    }
    t.wait(SECOND / 50);
    t.sends(". 1:1(0) ack 101");
    t.server_sends(101, 100);
    t.expect("P. 101:201(100) ack 1");
    let waited = t.wait_for_output("P. 101:201(100) ack 1");
    assert!(waited < SECOND / 2, "{waited:?}");
}

#[test]
fn a_probe_lowers_the_window_only_when_an_ack_beyond_it_shows_that_it_was_needed() {
    for needed in [false, true] {
        let mut t = Script::established(modern());
        t.server_sends(1, 100);
        t.expect("P. 1:101(100) ack 1");
        t.wait_for_output("P. 1:101(100) ack 1");
        assert_eq!(t.stack.counters().tail_loss_probes, 1);
        // The original's acknowledgement, as far as anybody can tell.
        t.sends(". 1:1(0) ack 101");
        if !needed {
            t.sends(". 1:1(0) ack 101 sack 1:101");
        }
        t.server_sends(101, 100_000);
        let mut sent = 0;
        while t.next_sent().is_some() {
            sent += 1;
        }
        assert!(sent >= 10, "{sent}");
        t.sends(". 1:1(0) ack 1549");
        assert_eq!(t.next_sent().is_some(), !needed);
    }
}

#[test]
fn the_initial_timeout_is_tunable_while_connections_exist() {
    let mut t = Script::established(plain());
    t.stack.set_config(t.now, Config { initial_rto: 3 * SECOND, ..Config::default() });
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    let waited = t.wait_for_output("P. 1:101(100) ack 1");
    about(waited, 3 * SECOND);
}

#[test]
fn a_peer_that_never_answers_is_given_up_after_the_configured_retries() {
    let mut t = Script::established_with(plain(), Config { retries: 3, ..Config::default() });
    let id = t.conn();
    t.server_sends(1, 100);
    let mut sent = Vec::new();
    for _ in 0..60 {
        sent.extend(t.drain());
        t.wait(SECOND);
    }
    let last = sent.pop();
    assert_eq!(sent, ["P. 1:101(100) ack 1"; 4]);
    // Should it be there after all, it is told.
    assert_eq!(last.as_deref(), Some("R. 101:101(0) ack 1"));
    t.gone();
    assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::TimedOut) }));
    assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Err(Error::TimedOut));
    t.stack.close(t.now, id);
    assert_eq!((t.stack.connection_count(), t.stack.buffered_bytes()), (0, 0));
}

/// An active open whose SYN was sent again so many times before it was answered.
fn opened_after(repeats: u32) -> Script {
    let mut t = Script::syn(plain());
    let (client, server) = (t.key().peer_addr(), t.key().local_addr());
    t.conn = t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).ok();
    t.next_sent().unwrap();
    t.cookie.isn = t.last.unwrap().0.0;
    for _ in 0..repeats {
        t.wait_for_output("S 0:0(0)");
    }
    t.wait(10 * TICK);
    t.sends("S. 0:0(0) ack 1");
    t.expect(". 1:1(0) ack 1");
    t
}

/// RFC 6298 §5.7.
#[test]
fn after_a_repeated_syn_data_has_three_seconds() {
    let first_timeout = |config: Config, repeats: u32| {
        let mut t = opened_after(repeats);
        t.stack.set_config(t.now, config);
        t.server_sends(1, 100);
        t.expect("P. 1:101(100) ack 1");
        t.wait_for_output("P. 1:101(100) ack 1")
    };
    about(first_timeout(Config::default(), 1), 3 * SECOND);
    about(first_timeout(Config { initial_rto: 5 * SECOND, ..Config::default() }, 1), 5 * SECOND);
    about(first_timeout(Config::default(), 0), Duration::from_millis(220));
}

/// RFC 6928 §2: one that was lost may be chance.
#[test]
fn more_than_one_repeated_syn_makes_the_initial_window_one_segment() {
    for (repeats, segments) in [(0, 10), (1, 10), (2, 1), (3, 1)] {
        let mut t = opened_after(repeats);
        t.server_sends(1, 50_000);
        assert_eq!(t.drain().len(), segments, "after {repeats} repetitions");
    }
}

#[test]
fn the_initial_window_is_ten_segments() {
    let mut t = Script::established(modern());
    t.server_sends(1, 100_000);
    for segment in 0..10 {
        let from = 1 + segment * 1448;
        let push = if segment % 2 == 1 { "P" } else { "" };
        t.expect(&format!("{push}. {from}:{}(1448) ack 1", from + 1448));
    }
    t.silent();
    // Two segments acknowledged: two for the room, two for slow start.
    t.sends(". 1:1(0) ack 2897");
    for segment in 10..14 {
        let from = 1 + segment * 1448;
        let push = if segment % 2 == 1 { "P" } else { "" };
        t.expect(&format!("{push}. {from}:{}(1448) ack 1", from + 1448));
    }
    t.silent();
}

#[test]
fn a_hole_shown_by_sack_is_repaired_at_once() {
    let mut t = Script::established(modern());
    t.server_sends(1, 14_480);
    while t.next_sent().is_some() {}
    t.wait(20 * TICK);
    t.tsval += 40;
    t.sends(". 1:1(0) ack 1 sack 1449:5793");
    t.expect(". 1:1449(1448) ack 1");
    t.silent();
    t.sends(". 1:1(0) ack 5793");
    t.silent();
    assert_eq!(t.stack.counters().fast_recoveries, 1);
    assert_eq!(t.stack.counters().timeouts, 0);
    t.sends(". 1:1(0) ack 14481");
    t.silent();
}

#[test]
fn while_a_loss_is_repaired_new_data_leaves_from_the_beginning() {
    const MSS: u32 = 1448;
    let mut t = Script::established(modern());
    let sent = |t: &mut Script| core::iter::from_fn(|| t.next_sent()).count();
    t.server_sends(1, 400_000);
    assert_eq!(sent(&mut t), 10);
    t.wait(TICK);
    // Two round trips of slow start: forty segments are in flight.
    for segment in 1..=30 {
        t.sends(&format!(". 1:1(0) ack {}", 1 + MSS * segment));
        assert_eq!(sent(&mut t), 2);
    }
    t.wait(TICK);
    let lost = 1 + MSS * 30;
    let mut left = Vec::new();
    for arrived in 1..=20 {
        t.sends(&format!(". 1:1(0) ack {lost} sack {}:{}", lost + MSS, lost + MSS * (1 + arrived)));
        left.push(sent(&mut t));
    }
    // Limited transmit twice, the repair, and then one for two (RFC 6937) rather than none for half a round trip.
    assert_eq!(left[..3], [1, 1, 1]);
    let after: usize = left[3..].iter().sum();
    assert!((6..=9).contains(&after), "{left:?}");
    assert!(left[3..].iter().all(|&count| count <= 1), "{left:?}");
}

#[test]
fn a_lost_retransmission_is_noticed_without_a_timeout() {
    let mut t = Script::established(modern());
    t.server_sends(1, 28_960);
    while t.next_sent().is_some() {}
    t.wait(10 * TICK);
    t.tsval += 20;
    t.sends(". 1:1(0) ack 1 sack 1449:8689");
    t.expect(". 1:1449(1448) ack 1");
    // More leaves behind the repair as the window allows.
    while t.next_sent().is_some() {}
    t.wait(10 * TICK);
    t.sends(". 1:1(0) ack 1 sack 1449:14481");
    while t.next_sent().is_some() {}
    t.wait(10 * TICK);
    // Data sent after the repair arrived; the repair did not.
    t.sends(". 1:1(0) ack 1 sack 1449:15929");
    t.expect(". 1:1449(1448) ack 1");
    assert_eq!(t.stack.counters().timeouts, 0);
}

#[test]
fn three_duplicates_mean_loss_to_a_peer_without_sack_and_partial_acks_show_the_next_hole() {
    let mut t = Script::established(plain());
    t.server_sends(1, 14_600);
    while t.next_sent().is_some() {}
    t.sends(". 1:1(0) ack 1");
    t.sends(". 1:1(0) ack 1");
    t.silent();
    t.sends(". 1:1(0) ack 1");
    t.expect(". 1:1461(1460) ack 1");
    t.silent();
    t.sends(". 1:1(0) ack 2921");
    t.expect(". 2921:4381(1460) ack 1");
    t.sends(". 1:1(0) ack 14601");
    t.silent();
    assert_eq!((t.stack.counters().fast_recoveries, t.stack.counters().timeouts), (1, 0));
}

#[test]
fn limited_transmit_keeps_the_acks_coming() {
    let mut t = Script::established(plain());
    t.server_sends(1, 100_000);
    while t.next_sent().is_some() {}
    t.sends(". 1:1(0) ack 1");
    t.expect(". 14601:16061(1460) ack 1");
    t.silent();
    t.sends(". 1:1(0) ack 1");
    t.expect(". 16061:17521(1460) ack 1");
    t.silent();
}

#[test]
fn a_lost_tail_is_probed_before_the_timeout() {
    let mut t = Script::established(modern());
    t.server_sends(1, 2896);
    while t.next_sent().is_some() {}
    let waited = t.wait_for_output("P. 1449:2897(1448) ack 1");
    assert!(waited < Duration::from_millis(100), "{waited:?}");
    assert_eq!((t.stack.counters().tail_loss_probes, t.stack.counters().timeouts), (1, 0));
    // The probe shows that the first segment is missing.
    t.sends(". 1:1(0) ack 1 sack 1449:2897");
    let waited = t.wait_for_output(". 1:1449(1448) ack 1");
    assert!(waited < Duration::from_millis(50), "{waited:?}");
    t.sends(". 1:1(0) ack 2897");
    t.silent();
}

#[test]
fn a_probe_that_could_not_leave_before_the_ack_came_does_not_leave_at_all() {
    let mut t = Script::established(modern());
    t.server_sends(1, 2896);
    while t.next_sent().is_some() {}
    // The timer fires, and there is no room to send.
    t.wait(SECOND / 15);
    assert_eq!(t.stack.counters().tail_loss_probes, 1);
    t.sends(". 1:1(0) ack 1449");
    t.silent();
    t.sends(". 1:1(0) ack 2897");
    assert_eq!(t.stack.counters().retransmitted, 0);
    // Nor does the acknowledgement of later data look like a repaired loss.
    t.server_sends(2897, 100_000);
    while t.next_sent().is_some() {}
    t.sends(". 1:1(0) ack 4345");
    assert!(t.next_sent().is_some(), "the window has not been lowered");
}

#[test]
fn a_closed_window_is_probed_and_reopens() {
    let mut t = Script::syn(plain());
    t.window = 1000;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 5000);
    t.expect(". 1:1001(1000) ack 1");
    t.window = 0;
    t.sends(". 1:1(0) ack 1001");
    t.silent();
    let mut intervals = Vec::new();
    for _ in 0..4 {
        intervals.push(t.wait_for_output(". 1000:1000(0) ack 1").as_millis());
        t.sends(". 1:1(0) ack 1001");
        t.silent();
    }
    assert!(intervals.windows(2).all(|pair| pair[1] > pair[0] + pair[0] / 2), "{intervals:?}");
    t.state(State::Established);
    t.window = 65_000;
    t.sends(". 1:1(0) ack 1001");
    t.expect(". 1001:2461(1460) ack 1");
    t.expect(". 2461:3921(1460) ack 1");
    t.expect("P. 3921:5001(1080) ack 1");
}

#[test]
fn data_queued_into_a_closed_window_is_probed_too() {
    let mut t = Script::established(plain());
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 10);
    t.silent();
    let waited = t.wait_for_output(". 0:0(0) ack 1");
    about(waited, SECOND);
    t.window = 100;
    t.sends(". 1:1(0) ack 1");
    t.expect("P. 1:11(10) ack 1");
}

#[test]
fn a_sliver_of_window_is_not_used() {
    let mut t = Script::established(plain());
    t.window = 10_000;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 20_000);
    while t.next_sent().is_some() {}
    t.window = 100;
    t.sends(". 1:1(0) ack 8761");
    t.silent();
    // When nothing else moves, the persist timer uses it after all.
    t.wait_for_output(". 8761:8861(100) ack 1");
}

#[test]
fn reading_opens_a_window_that_was_shut() {
    let mut t = Script::established_with(modern(), Config { recv_buffer: 64_000, ..Config::default() });
    for from in (1..64_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
        while t.next_sent().is_some() {}
    }
    assert!(t.last.unwrap().2 <= 1, "shut, but for what scaling rounds up");
    // A window probe is answered.
    t.sends(". 64000:64000(0) ack 1");
    t.expect(". 1:1(0) ack 64001");
    t.server_reads(1, 1000);
    t.silent();
    for from in (1001..32_001).step_by(1000) {
        t.server_reads(from, 1000);
    }
    t.expect(". 1:1(0) ack 64001");
    assert!(t.last.unwrap().2 > 200);
}

#[test]
fn a_probe_with_data_of_a_closed_window_is_answered_and_no_duplicate_ack() {
    let mut t = Script::established_with(plain(), Config { recv_buffer: 60_000, ..Config::default() });
    for from in (1..60_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
        while t.next_sent().is_some() {}
    }
    assert_eq!(t.last.unwrap().2, 0, "shut");
    t.server_sends(1, 14_600);
    while t.next_sent().is_some() {}
    for _ in 0..4 {
        t.sends("P. 60001:60002(1) ack 1");
        t.expect(". 14601:14601(0) ack 60001");
        assert_eq!(t.last.unwrap().2, 0);
        t.silent();
    }
    assert_eq!(t.stack.counters().fast_recoveries, 0);
    t.server_reads(1, 60_000);
    t.expect(". 14601:14601(0) ack 60001");
    t.sends("P. 60001:60002(1) ack 14601");
    t.server_reads(60_001, 1);
}

#[test]
fn small_data_is_acknowledged_late_and_every_second_segment_at_once() {
    let mut t = Script::established(modern());
    for from in (1..20_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
        while t.next_sent().is_some() {}
    }
    t.wait(SECOND);
    while t.next_sent().is_some() {}
    t.sends("P. 20001:20101(100) ack 1");
    t.silent();
    let waited = t.wait_for_output(". 1:1(0) ack 20101");
    about(waited, Duration::from_millis(40));
    t.sends(". 20101:21101(1000) ack 1");
    t.silent();
    t.sends(". 21101:22101(1000) ack 1");
    t.expect(". 1:1(0) ack 22101");
    // An answer takes the acknowledgement along.
    t.sends("P. 22101:22111(10) ack 1");
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 22111");
    t.wait(SECOND);
    t.expect("P. 1:11(10) ack 22111");
}

#[test]
fn a_burst_is_acknowledged_once() {
    let mut t = Script::established(modern());
    for from in (1..20_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
    }
    t.expect(". 1:1(0) ack 20001");
    t.silent();
}

#[test]
fn nagle_holds_back_small_segments_only_while_others_are_in_flight() {
    let mut t = Script::established_with(modern(), Config { nagle: true, ..Config::default() });
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 1");
    t.server_sends(11, 10);
    t.server_sends(21, 10);
    t.silent();
    t.sends(". 1:1(0) ack 11");
    t.expect("P. 11:31(20) ack 1");
    let mut t = Script::established(modern());
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 1");
    t.server_sends(11, 10);
    t.expect("P. 11:21(10) ack 1");
}

#[test]
fn segments_respect_the_peers_mss_and_our_mtu() {
    let mut offer = plain();
    offer.options.mss = Some(1000);
    let mut t = Script::established(offer);
    t.server_sends(1, 3000);
    let first = t.next_sent().unwrap();
    let len: usize = first.split_once('(').unwrap().1.split_once(')').unwrap().0.parse().unwrap();
    assert!((536..=1000).contains(&len), "{first}");
    let mut t = Script::established_with(plain(), Config { mtu: 1000, ..Config::default() });
    t.server_sends(1, 3000);
    t.expect(". 1:961(960) ack 1");
}

#[test]
fn a_full_send_buffer_says_when_it_has_room_again() {
    let mut t = Script::established_with(modern(), Config { send_buffer: 20_000, ..Config::default() });
    let id = t.conn();
    let data = super::stream(super::script::SERVER, 1, 30_000);
    assert_eq!(t.stack.send(t.now, id, &data), Ok(20_000));
    assert_eq!(t.stack.send(t.now, id, &data[20_000..]), Err(Error::WouldBlock));
    while t.next_sent().is_some() {}
    t.sends(". 1:1(0) ack 1449");
    assert!(!t.events.contains(&Event::Writable(id)), "not for every segment");
    t.sends(". 1:1(0) ack 5793");
    assert!(t.events.contains(&Event::Writable(id)));
    assert_eq!(t.stack.send(t.now, id, &data[20_000..]), Ok(5792));
}

#[test]
fn a_row_of_segments_ends_with_push_and_of_repetitions_only_the_end_of_all_that_was_queued() {
    let mut t = Script::established(modern());
    t.server_sends(1, 14_480 + 1448 + 10);
    // Ten may leave, in rows of two: of what a millisecond of twenty takes there would be fewer.
    let sent = t.drain();
    let pushed: Vec<bool> = sent.iter().map(|segment| segment.starts_with('P')).collect();
    assert_eq!(pushed, [false, true].repeat(5));
    t.wait(SECOND / 50);
    t.sends(". 1:1(0) ack 1449");
    t.expect(". 14481:15929(1448) ack 1");
    // The end of all that is queued is pushed.
    t.expect("P. 15929:15939(10) ack 1");
    t.sends(". 1:1(0) ack 1449 sack 2897:14481");
    assert_eq!(t.drain(), [". 1449:2897(1448) ack 1"]);
    t.sends(". 1:1(0) ack 15929");
    t.wait_for_output("P. 15929:15939(10) ack 1");
}

#[test]
fn a_block_that_tells_nothing_new_does_not_put_a_tail_loss_probe_off() {
    const RTT: Duration = Duration::from_millis(20);
    let mut t = Script::established(modern());
    t.server_sends(1, 3000);
    assert_eq!(t.drain().len(), 3);
    let probed = |t: &mut Script| {
        let sent = t.now;
        while t.stack.counters().tail_loss_probes == 0 {
            let next = t.stack.poll_timeout().expect("a timer");
            t.wait(next - t.now);
        }
        t.now - sent
    };
    t.wait(RTT);
    // The last byte alone, of a segment that is not whole.
    t.sends(". 1:1(0) ack 1 sack 3000:3001");
    assert!(probed(&mut t) < 2 * RTT);
}

/// A round trip later everything that is out is acknowledged, segment by segment but all at once; the congestion window then.
fn round_trip(t: &mut Script) -> u32 {
    t.wait(SECOND / 50);
    let view = t.stack.view(t.conn()).expect("a connection");
    let at = |seq: Seq| seq.distance(Seq(t.cookie.isn));
    for ack in (at(view.snd_una) + 1448..=at(view.snd_nxt)).step_by(1448) {
        t.sends(&format!(". 1:1(0) ack {ack}"));
    }
    t.drain();
    t.stack.view(t.conn()).expect("a connection").cwnd
}

#[test]
fn a_window_that_is_used_grows_though_acknowledgements_come_many_at_a_time() {
    let mut t = Script::established(modern());
    t.server_sends(1, 400_000);
    assert_eq!(t.drain().len(), 10);
    t.wait(SECOND / 50);
    for last in 2..=10 {
        t.sends(&format!(". 1:1(0) ack 1 sack 1449:{}", 1 + 1448 * last));
        t.drain();
    }
    let reduced = round_trip(&mut t);
    assert!(reduced < 8 * 1460);
    // A segment for each window, in congestion avoidance.
    let grown = (0..4).map(|_| round_trip(&mut t)).last();
    assert!(grown.is_some_and(|grown| grown >= reduced + 3 * 1460), "{grown:?} after {reduced}");
}

#[test]
fn what_was_known_to_have_arrived_does_not_open_the_window_again() {
    for (mut offer, duplicates) in [
        (modern(), [". 1:1(0) ack 1 sack 1461:2921", ". 1:1(0) ack 1 sack 1461:4381"]),
        (plain(), [". 1:1(0) ack 1"; 2]),
    ] {
        offer.options.timestamps = None;
        let mss = 1460;
        let mut t = Script::established(offer);
        t.server_sends(1, 50_000);
        assert_eq!(t.drain().len(), 10);
        t.wait(SECOND / 50);
        for duplicate in duplicates {
            t.sends(duplicate);
            t.drain();
        }
        // Three segments, two of which came before the first.
        t.sends(". 1:1(0) ack 4381");
        assert_eq!(t.stack.view(t.conn()).map(|view| view.cwnd), Some(11 * mss));
    }
}
