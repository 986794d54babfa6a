//! ICMP errors: path MTU discovery, and how little else they can do to a connection.

use std::time::Duration;

use super::router::{TOO_BIG_V4, complaint};
use super::script::{Script, modern, plain};
use super::{CLIENT_MAC, Family, SERVER_MAC, link};
use crate::{Config, Error, Event, Received, StackDrop, State};

const SECOND: Duration = Duration::from_secs(1);
/// Type and code.
const TOO_BIG_V6: (u8, u8) = (2, 0);
const PORT_UNREACHABLE: (u8, u8) = (3, 3);
const HOST_UNREACHABLE: (u8, u8) = (3, 1);

/// The frames the stack sends now.
fn frames(t: &mut Script) -> Vec<Vec<u8>> {
    let mut buffer = [0; 2000];
    core::iter::from_fn(|| {
        let len = t.stack.poll_transmit(t.now, &mut buffer)?;
        Some(buffer[..len].to_vec())
    })
    .collect()
}

fn receive(t: &mut Script, frame: &[u8]) -> Received {
    t.stack.handle_frame(t.now, frame)
}

#[test]
fn what_did_not_fit_leaves_again_in_smaller_segments_and_the_window_stays() {
    for (family, kind, headers) in [(Family::V4, TOO_BIG_V4, 40), (Family::V6, TOO_BIG_V6, 60)] {
        let mut t = Script::established(super::script::Offer { family, ..plain() });
        t.server_sends(1, 5000);
        let sent = frames(&mut t);
        assert_eq!(receive(&mut t, &complaint(&sent[0], kind, 1300)), Received::Consumed);
        let most = 1300 - headers;
        let again = t.drain();
        assert_eq!(again[0], format!(". 1:{}({most}) ack 1", 1 + most));
        let len = |text: &String| text.split_once('(').unwrap().1.split_once(')').unwrap().0.parse().unwrap();
        let lens: Vec<usize> = again.iter().map(len).collect();
        assert!(lens.iter().all(|&len| len <= most), "{again:?}");
        let too_long = sent.iter().map(|frame| frame.len() - 14 - headers).filter(|&len| len > most);
        assert_eq!(lens.iter().sum::<usize>(), too_long.sum::<usize>(), "{again:?}");
        // Later data is as small, and as much of it is in flight as if nothing had been lost.
        t.sends(". 1:1(0) ack 5001");
        t.server_sends(5001, 100_000);
        let next = t.drain();
        assert!(next.len() >= 10 && next.iter().all(|text| len(text) <= most), "{next:?}");
        let counters = t.stack.counters();
        assert_eq!((counters.mtu_lowered, counters.fast_recoveries, counters.timeouts), (1, 0, 0));
    }
}

#[test]
fn an_mtu_below_what_any_path_has_is_not_believed() {
    for (family, kind, least) in [(Family::V4, TOO_BIG_V4, 552 - 40), (Family::V6, TOO_BIG_V6, 1280 - 60)] {
        for mtu in [0, 1, 68, 500] {
            let mut t = Script::established(super::script::Offer { family, ..plain() });
            t.server_sends(1, 1460);
            let sent = frames(&mut t);
            receive(&mut t, &complaint(&sent[0], kind, mtu));
            assert_eq!(t.drain()[0], format!(". 1:{}({least}) ack 1", 1 + least));
        }
    }
}

#[test]
fn however_many_errors_are_forged_the_mtu_falls_once_for_each_byte_at_most() {
    let mut t = Script::established(plain());
    t.server_sends(1, 5000);
    let sent = frames(&mut t);
    for _ in 0..2 {
        for mtu in (0..1500).rev() {
            assert_eq!(receive(&mut t, &complaint(&sent[0], TOO_BIG_V4, mtu)), Received::Consumed);
        }
        assert_eq!(t.stack.counters().mtu_lowered, 1500 - 552);
    }
    assert_eq!(t.drain()[0], ". 1:513(512) ack 1");
}

#[test]
fn an_mtu_that_is_no_smaller_changes_nothing() {
    let mut t = Script::established(plain());
    t.server_sends(1, 1460);
    let sent = frames(&mut t);
    for mtu in [1500, 9000, 65_535] {
        receive(&mut t, &complaint(&sent[0], TOO_BIG_V4, mtu));
        t.silent();
    }
    assert_eq!(t.stack.counters().mtu_lowered, 0);
}

#[test]
fn only_errors_about_what_is_in_flight_are_listened_to() {
    let mut t = Script::established(plain());
    t.server_sends(1, 2920);
    let sent = frames(&mut t);
    t.sends(". 1:1(0) ack 1461");
    // Acknowledged already.
    receive(&mut t, &complaint(&sent[0], TOO_BIG_V4, 600));
    // Never sent: what somebody who does not see the connection would have to guess.
    for guess in 1..=100u32 {
        let mut forged = sent[1].clone();
        forged[38..42].copy_from_slice(&guess.wrapping_mul(0x0271_8281).to_be_bytes());
        receive(&mut t, &complaint(&forged, TOO_BIG_V4, 600));
    }
    t.silent();
    assert_eq!((t.stack.counters().icmp_heard, t.stack.counters().icmp_ignored), (0, 101));
    receive(&mut t, &complaint(&sent[1], TOO_BIG_V4, 600));
    assert_eq!((t.stack.counters().icmp_heard, t.stack.counters().mtu_lowered), (1, 1));
}

#[test]
fn no_error_ends_an_established_connection_but_it_says_why_nothing_was_acknowledged() {
    let mut t = Script::established_with(plain(), Config { retries: 2, ..Config::default() });
    t.server_sends(1, 100);
    let sent = frames(&mut t);
    for kind in [PORT_UNREACHABLE, HOST_UNREACHABLE, (3, 2), (3, 13), (11, 0), (12, 0)] {
        receive(&mut t, &complaint(&sent[0], kind, 0));
        t.state(State::Established);
    }
    t.wait(60 * SECOND);
    t.drain();
    t.gone();
    let id = t.conn();
    assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::Unreachable) }));
    // An answer in between means that the trouble is over.
    let mut t = Script::established_with(plain(), Config { retries: 2, ..Config::default() });
    t.server_sends(1, 100);
    let sent = frames(&mut t);
    receive(&mut t, &complaint(&sent[0], HOST_UNREACHABLE, 0));
    t.sends(". 1:1(0) ack 51");
    t.wait(60 * SECOND);
    t.drain();
    let id = t.conn();
    assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::TimedOut) }));
}

#[test]
fn an_active_open_ends_at_once_when_nobody_can_be_reached() {
    let mut t = Script::syn(plain());
    let (client, server) = (t.key().peer_addr(), t.key().local_addr());
    let id = t.stack.connect(t.now, server, client, link(SERVER_MAC, CLIENT_MAC)).unwrap();
    let sent = frames(&mut t);
    receive(&mut t, &complaint(&sent[0], HOST_UNREACHABLE, 0));
    t.state(State::SynSent);
    receive(&mut t, &complaint(&sent[0], PORT_UNREACHABLE, 0));
    t.gone();
    assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Err(Error::Unreachable));
}

#[test]
fn malformed_errors_are_dropped() {
    for (family, kind) in [(Family::V4, TOO_BIG_V4), (Family::V6, TOO_BIG_V6)] {
        let mut t = Script::established(super::script::Offer { family, ..modern() });
        t.server_sends(1, 1448);
        let sent = frames(&mut t);
        let good = complaint(&sent[0], kind, 1290);
        for len in 0..good.len() {
            assert_eq!(receive(&mut t, &good[..len]), Received::Dropped(StackDrop::NotTcp), "{len} bytes");
        }
        // Every bit of the message is covered by a checksum, except for addresses that IPv4's does not protect.
        let message = if family == Family::V4 { 14 } else { 14 + 8 };
        for at in message..good.len() {
            let mut corrupt = good.clone();
            corrupt[at] ^= 0x11;
            receive(&mut t, &corrupt);
            assert_eq!(t.stack.counters().mtu_lowered, 0, "byte {at}");
        }
        assert_eq!(receive(&mut t, &good), Received::Consumed);
        assert_eq!(t.stack.counters().mtu_lowered, 1);
    }
}

#[test]
fn an_error_about_nobodys_flow_is_unknown() {
    let mut t = Script::established(plain());
    t.server_sends(1, 100);
    let mut sent = frames(&mut t);
    // The client's port.
    sent[0][36] ^= 1;
    assert!(matches!(receive(&mut t, &complaint(&sent[0], TOO_BIG_V4, 600)), Received::Unknown(_)));
}
