//! What connections cost while they rest, and how much of the buffers' memory they may have when they work.

use std::time::Duration;

use tcpguard_common::seq::Seq;

use super::script::{Script, modern};
use super::{ADVERTISED, EPOCH, Family};
use crate::Config;
use crate::ahead::{FEW, flow};
use crate::tcb::Tcb;
use crate::wire::hash;

#[test]
fn a_connection_at_rest_costs_256_bytes_at_most_all_told() {
    const CONNECTIONS: usize = 100_000;
    let mut t = Script::syn_with(modern(), Config::default());
    for family in [Family::V4, Family::V6] {
        t.offer.family = family;
        for port in 1..=(CONNECTIONS / 2) as u16 {
            t.next_client(port, EPOCH);
            t.sends(". 1:1(0) ack 1");
            let id = t.conn();
            // A request and its answer: every connection had work, and a timer.
            t.sends("P. 1:11(10) ack 1");
            assert_eq!(t.stack.recv(t.now, id, &mut [0; 100]), Ok(10));
            assert_eq!(t.stack.send(t.now, id, &[0; 10]), Ok(10));
            while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
            t.sends(". 11:11(0) ack 11");
            t.events.clear();
        }
    }
    let stack = &t.stack;
    assert_eq!((stack.connection_count(), stack.buffered_bytes()), (CONNECTIONS, 0));
    assert!(stack.connections.iter().all(Tcb::is_at_rest));
    let bytes = stack.connections.bytes() + stack.index.bytes() + stack.wheel.bytes();
    assert!(bytes <= 256 * CONNECTIONS, "{} a connection", bytes / CONNECTIONS);
}

/// The acknowledgement of just what a tail loss probe repeated leaves open what it was good for. That used to be remembered until
/// the next one, by every idle connection whose peer acknowledges late.
#[test]
fn a_connection_at_rest_does_not_keep_what_a_tail_loss_probe_was_for() {
    let mut t = Script::established(modern());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    t.wait_for_output("P. 1:101(100) ack 1");
    assert_eq!(t.stack.counters().tail_loss_probes, 1);
    t.sends(". 1:1(0) ack 101");
    let at_rest = |t: &Script| t.stack.connections.iter().all(Tcb::is_at_rest);
    assert!(!at_rest(&t), "the next acknowledgement may tell");
    t.wait(Duration::from_secs(1));
    assert!(at_rest(&t));
}

#[test]
fn a_timer_that_is_not_needed_any_more_calls_nobody() {
    let mut t = Script::established(modern());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    t.sends(". 1:1(0) ack 101");
    assert!(t.stack.poll_timeout().is_some(), "the retransmission timer stays where it is");
    assert_eq!(t.stack.wheel.pop_due(t.now + Duration::from_secs(10)), None);
    // It is as good as new: what leaves next is probed for and repeated in time.
    t.wait(Duration::from_secs(10));
    t.server_sends(101, 100);
    t.expect("P. 101:201(100) ack 1");
    t.sends(". 1:1(0) ack 201");
    t.server_sends(201, 100);
    t.expect("P. 201:301(100) ack 1");
    assert!(t.wait_for_output("P. 201:301(100) ack 1") < Duration::from_secs(1));
}

#[test]
fn what_a_segment_will_touch_is_found_by_its_headers_alone() {
    for family in [Family::V4, Family::V6] {
        let mut offer = modern();
        offer.family = family;
        let t = Script::established(offer);
        let (frame, key) = (t.frame("P. 1:11(10) ack 1"), t.key());
        assert_eq!(flow(&frame), Some(key));
        assert_eq!(t.stack.index.likely(hash(t.stack.hash_key, &key)), Some(t.conn().index));
        // Cut anywhere, it is nobody's.
        for len in 0..38 {
            assert_eq!(flow(&frame[..len]), None);
        }
    }
}

/// A stack with more connections than go without a look ahead; each belongs to a port.
fn crowd() -> Script {
    let mut t = Script::syn(modern());
    for port in 1..=FEW as u16 + 10 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
    }
    t
}

#[test]
fn a_burst_that_was_looked_at_ahead_is_handled_as_any_other() {
    let (mut t, mut plainly, mut backwards) = (crowd(), crowd(), crowd());
    let (known, stranger) = (t.conn(), 50_000);
    let mut frame_of = |port: u16, segment: &str| {
        t.next_client(port, EPOCH);
        t.frame(segment)
    };
    let burst = [
        frame_of(FEW as u16 + 10, "P. 1:11(10) ack 1"),
        frame_of(2, "R. 1:1(0) ack 1"),
        // Of a connection that has just ended, and of one that has just begun.
        frame_of(2, "P. 1:11(10) ack 1"),
        frame_of(stranger, ". 1:1(0) ack 1"),
        frame_of(stranger, "P. 1:11(10) ack 1"),
        vec![0xff; 60],
        frame_of(3, "P. 1:11(10) ack 1"),
        frame_of(FEW as u16 + 10, "P. 11:21(10) ack 1"),
    ];
    t.stack.look_ahead(burst.iter().map(Vec::as_slice));
    assert_eq!(t.stack.ahead.take(), Some(known.index), "found");
    t.stack.look_ahead(burst.iter().map(Vec::as_slice));
    backwards.stack.look_ahead(burst.iter().rev().map(Vec::as_slice));
    for frame in &burst {
        let became = plainly.stack.handle_frame(plainly.now, frame);
        assert_eq!(t.stack.handle_frame(t.now, frame), became);
        assert_eq!(backwards.stack.handle_frame(backwards.now, frame), became);
    }
    let totals = |t: &Script| format!("{:?}", t.stack.counters());
    assert_eq!((totals(&t), totals(&backwards)), (totals(&plainly), totals(&plainly)));
    assert_eq!(t.stack.info(t.now, known).map(|flow| flow.bytes_in), Some(20));
    // Beyond the burst nothing is known ahead.
    assert_eq!(t.stack.ahead.take(), None);
}

/// The peer sends all that it may in each round trip, and the application reads it at once if it `reads`; the largest window
/// offered.
fn offered(rounds: u64, reads: bool) -> u32 {
    const RTT: Duration = Duration::from_millis(10);
    let mut t = Script::established(modern());
    let (mut from, mut largest) = (1, 0);
    for _ in 0..rounds {
        let until = from + u64::from(largest).max(60_000);
        while from + 1000 <= until {
            t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
            if reads {
                t.server_reads(from, 1000);
            }
            while t.next_sent().is_some() {}
            from += 1000;
        }
        largest =
            largest.max(t.last.map_or(0, |(_, _, window, _)| u32::from(window) << ADVERTISED.window_scale));
        t.wait(RTT);
    }
    largest
}

#[test]
fn a_window_grows_for_a_peer_that_uses_it_and_an_application_that_reads() {
    // What scaling would cut off is rounded up.
    let about =
        |window: u32, expected: u32| (expected..expected + (1 << ADVERTISED.window_scale)).contains(&window);
    let most = Config::default().recv_buffer;
    assert!(about(offered(10, true), most));
    assert!(offered(1, true) < most / 4);
    assert!(offered(10, false) < most / 4);
}

#[test]
fn only_a_connection_with_a_large_congestion_window_may_hold_much_for_sending() {
    const ROUND: u32 = 400_000;
    let mut t = Script::syn(modern());
    t.window = 65_000;
    t.sends(". 1:1(0) ack 1");
    let id = t.conn();
    assert_eq!(t.stack.send_room(id), Ok(512 << 10));
    for from in (1..8 * ROUND).step_by(ROUND as usize) {
        t.server_sends(from.into(), ROUND as usize);
        // As much at a time as the congestion window lets go.
        while t.next_sent().is_some() {
            while t.next_sent().is_some() {}
            let next = t.stack.view(id).unwrap().snd_nxt;
            t.sends(&format!(". 1:1(0) ack {}", next.distance(Seq(t.cookie.isn))));
        }
    }
    assert!(t.stack.send_room(id).is_ok_and(|room| room > 512 << 10));
}
