//! Connections come from cookies, once.

use std::time::Duration;

use super::script::{Script, answer, modern, plain};
use super::{EPOCH, Family};
use crate::{Config, Error, Event, Received, StackDrop, State};

#[test]
fn a_bare_ack_with_a_valid_cookie_is_an_established_connection() {
    for family in [Family::V4, Family::V6] {
        for offer in [modern(), plain()] {
            let mut t = Script::syn(super::script::Offer { family, ..offer });
            assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
            t.state(State::Established);
            t.silent();
            let key = t.key();
            let incoming = Event::Incoming { conn: t.conn(), key, service: 7 };
            assert_eq!(t.events, [Event::FlowAdopted { key }, incoming]);
            t.sends("P. 1:101(100) ack 1");
            t.expect(". 1:1(0) ack 101");
            t.server_reads(1, 100);
            t.server_sends(1, 50);
            t.expect("P. 1:51(50) ack 101");
        }
    }
}

/// XDP let it through a tick ago, by what was so then: at the end of an epoch, at the end of its half, with one layout before the
/// change and another after it.
#[test]
fn the_stack_accepts_each_epochs_layout_for_as_long_as_the_epoch_and_not_the_other() {
    let entered = [EPOCH, EPOCH + 1, EPOCH + 2, EPOCH + 3];
    for (issued, strict, at, adopted) in [
        (EPOCH - 1, false, (EPOCH, false), true),
        (EPOCH - 1, true, (EPOCH, false), false),
        (EPOCH - 1, false, (EPOCH, true), true),
        (EPOCH - 1, false, (EPOCH + 1, false), true),
        (EPOCH - 1, false, (EPOCH + 1, true), true),
        (EPOCH - 1, false, (EPOCH + 2, false), false),
        (EPOCH, true, (EPOCH, true), true),
        (EPOCH, false, (EPOCH, true), false),
        (EPOCH, true, (EPOCH + 2, true), true),
        (EPOCH, true, (EPOCH + 3, false), false),
    ] {
        for offer in [plain(), modern()] {
            let stamped = offer.options.timestamps.is_some();
            let mut t = Script::syn(offer);
            if strict {
                t.next_strict_cookie(issued)
            } else {
                t.next_cookie(issued)
            }
            t.set_epoch(at.0, at.1);
            // The daemon gives the slot of what is not accepted any more to the next epoch.
            let held = entered.into_iter().filter(|epoch| (at.0 - 2..=at.0 + 1).contains(epoch));
            t.set_strict(&held.collect::<Vec<_>>());
            t.sends(". 1:1(0) ack 1");
            // With timestamps only time counts.
            let alive = issued + 2 >= at.0;
            assert_eq!(
                t.conn.is_some(),
                if stamped { alive } else { adopted },
                "{issued} {strict} at {at:?}"
            );
        }
    }
}

#[test]
fn data_that_overtook_the_bare_ack_is_adopted_and_delivered() {
    let mut t = Script::syn(modern());
    t.sends("P. 1:101(100) ack 1");
    t.state(State::Established);
    t.expect(". 1:1(0) ack 101");
    // The bare ACK comes after it: old, and harmless.
    t.sends(". 1:1(0) ack 1");
    assert_eq!(t.stack.counters().adopted, 1);
    t.server_reads(1, 100);
}

#[test]
fn a_first_segment_with_data_and_fin_is_adopted_in_close_wait() {
    let mut t = Script::syn(modern());
    t.sends("PF. 1:101(100) ack 1");
    t.state(State::CloseWait);
    t.expect(". 1:1(0) ack 102");
    t.server_reads(1, 100);
    assert_eq!(t.stack.recv(t.now, t.conn(), &mut [0; 8]), Ok(0), "then the end");
}

#[test]
fn duplicates_of_the_first_ack_change_nothing() {
    let mut t = Script::established(modern());
    for _ in 0..3 {
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
        t.silent();
    }
    t.sends("P. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    t.sends("P. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11 sack 1:11");
    assert_eq!(t.stack.counters().adopted, 1);
    assert_eq!(t.stack.connection_count(), 1);
    t.server_reads(1, 10);
}

#[test]
fn a_cookie_that_is_not_ours_is_unknown() {
    let mut t = Script::syn(modern());
    t.cookie.isn ^= 1;
    assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Unknown(t.key()));
    t.gone();
    t.silent();
    assert!(t.events.is_empty());
}

#[test]
fn a_corrupted_segment_is_dropped_and_counted() {
    let mut t = Script::syn(modern());
    let mut frame = t.frame("P. 1:101(100) ack 1");
    let last = frame.len() - 1;
    frame[last] ^= 0x10;
    assert_eq!(t.stack.handle_frame(t.now, &frame), Received::Dropped(StackDrop::Checksum));
    assert_eq!(t.stack.counters().bad_checksum, 1);
    t.gone();
}

#[test]
fn rotation_between_syn_ack_and_ack_breaks_no_handshake() {
    for offer in [modern(), plain()] {
        for (epoch, second_half) in [(EPOCH + 1, false), (EPOCH + 1, true)] {
            let mut t = Script::syn(offer);
            t.set_epoch(epoch, second_half);
            assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed, "{offer:?} {second_half}");
        }
        // A machine of the same fleet whose clock is ahead.
        let mut t = Script::syn(offer);
        t.next_cookie(EPOCH + 1);
        t.set_epoch(EPOCH, true);
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
    }
}

#[test]
fn a_cookie_of_an_epoch_long_past_is_refused() {
    for offer in [modern(), plain()] {
        let mut t = Script::syn(offer);
        t.set_epoch(EPOCH + 3, false);
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Unknown(t.key()));
    }
}

#[test]
fn the_window_promised_in_the_syn_ack_is_honoured_and_scaled_afterwards() {
    let mut t = Script::syn_with(modern(), Config { recv_buffer: 10_000, ..Config::default() });
    t.sends(". 1:1(0) ack 1");
    // Beyond the buffer's limit, inside the 60000 promised: taken.
    for from in (1..59_000).step_by(1000) {
        t.sends(&format!(". {from}:{}(1000) ack 1", from + 1000));
    }
    while t.next_sent().is_some() {}
    let (_, ack, window, _) = t.last.unwrap();
    assert_eq!(ack.distance(tcpguard_common::seq::Seq(t.offer.isn)), 59_001);
    assert_eq!(u32::from(window) << 7, 896, "what is left of the promise, less what the scale cuts off");
    assert_eq!(t.stack.counters().no_buffer, 0);
}

#[test]
fn the_handshake_round_trip_gives_the_first_timeout() {
    let t = Script::established(modern());
    let info = t.stack.info(t.now, t.conn()).unwrap();
    let rtt = info.rtt.unwrap();
    assert!((15..25).contains(&rtt.as_millis()), "{rtt:?}");
    let mut t = Script::established(plain());
    assert_eq!(t.stack.info(t.now, t.conn()).unwrap().rtt, None);
    t.silent();
}

#[test]
fn the_round_trip_of_a_swept_flow_ends_when_its_segment_arrived() {
    let mut t = Script::syn(modern());
    let flow = t.flow(1, 1);
    t.wait(Duration::from_secs(2));
    assert_eq!(t.stack.adopt_swept(t.now, t.key(), &flow, super::SERVER_MAC), Received::Consumed);
    let rtt = t.stack.flows(t.now).next().unwrap().rtt.unwrap();
    assert!((15..25).contains(&rtt.as_millis()), "{rtt:?}");
}

#[test]
fn a_first_segment_with_data_tells_no_round_trip() {
    let mut t = Script::syn(modern());
    t.sends("P. 1:101(100) ack 1");
    assert_eq!(t.stack.info(t.now, t.conn()).unwrap().rtt, None);
}

#[test]
fn a_flow_whose_frame_was_lost_is_adopted_from_the_table() {
    for offer in [modern(), plain()] {
        let mut t = Script::syn(offer);
        let flow = t.flow(1, 1);
        assert_eq!(t.stack.adopt_swept(t.now, t.key(), &flow, super::SERVER_MAC), Received::Consumed);
        assert_eq!(t.stack.adopt_swept(t.now, t.key(), &flow, super::SERVER_MAC), Received::Consumed);
        assert_eq!(t.stack.counters().adopted_swept, 1);
        while let Some(event) = t.stack.poll_event() {
            if let Event::Incoming { conn, .. } = event {
                t.conn = Some(conn);
            }
        }
        t.server_sends(1, 20);
        t.expect("P. 1:21(20) ack 1");
    }
}

#[test]
fn a_replayed_first_segment_does_not_open_a_closed_flow_again() {
    for first in [". 1:1(0) ack 1", "P. 1:101(100) ack 1"] {
        let mut t = Script::syn(modern());
        let replay = t.frame(first);
        let flow = t.flow(1, 1);
        t.sends(first);
        let id = t.conn();
        t.stack.abort(t.now, id);
        while t.next_sent().is_some() {}
        t.gone();
        t.wait(Duration::from_secs(5));
        assert_eq!(t.stack.handle_frame(t.now, &replay), Received::Dropped(StackDrop::Replay));
        assert!(matches!(
            t.stack.adopt_swept(t.now, t.key(), &flow, super::SERVER_MAC),
            Received::Dropped(StackDrop::Replay)
        ));
        t.silent();
        assert_eq!(t.stack.counters().replays_refused, 2);
        assert_eq!(t.stack.connection_count(), 0);
        // Once the cookie has expired nothing needs to be remembered.
        t.set_epoch(EPOCH + 4, false);
        assert_eq!(t.stack.handle_frame(t.now, &replay), Received::Unknown(t.key()));
    }
}

#[test]
fn a_full_memory_of_closed_flows_refuses_data_but_not_bare_acks() {
    let config = Config { max_closed_flows: 1, ..Config::default() };
    let mut t = Script::syn_with(modern(), config);
    t.sends(". 1:1(0) ack 1");
    let id = t.conn();
    t.stack.abort(t.now, id);
    while t.next_sent().is_some() {}
    t.next_client(40_001, EPOCH);
    assert_eq!(t.sends("P. 1:101(100) ack 1"), Received::Dropped(StackDrop::ReplayTableFull));
    t.expect("R. 1:1(0) ack 1");
    assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
}

#[test]
fn a_full_memory_of_closed_flows_gives_up_the_oldest_epoch_and_refuses_its_cookies() {
    let mut t = Script::syn_with(modern(), Config { max_closed_flows: 1, ..Config::default() });
    let replay = t.frame("P. 1:101(100) ack 1");
    let end = |t: &mut Script| {
        t.sends("P. 1:101(100) ack 1");
        t.state(State::Established);
        t.sends("R 101:101(0)");
        let id = t.conn();
        t.stack.close(t.now, id);
    };
    end(&mut t);
    t.set_epoch(EPOCH + 1, false);
    t.next_client(40_001, EPOCH + 1);
    end(&mut t);
    assert_eq!(t.stack.counters().replay_epochs_forgotten, 1);
    assert_eq!(t.stack.handle_frame(t.now, &replay), Received::Dropped(StackDrop::ReplayTableFull));
    // Nothing tells it from a client whose handshake took that long, which tries again.
    assert!(t.next_sent().unwrap().starts_with("R. "));
    assert_eq!(t.stack.connection_count(), 0);
    // The present epoch alone fills it.
    t.next_client(40_002, EPOCH + 1);
    assert_eq!(t.sends("P. 1:101(100) ack 1"), Received::Dropped(StackDrop::ReplayTableFull));
    assert_eq!(t.stack.counters().replay_table_full, 2);
}

#[test]
fn a_full_table_and_a_port_without_listener_answer_with_a_reset() {
    let mut t = Script::syn_with(modern(), Config { max_connections: 0, ..Config::default() });
    assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Dropped(StackDrop::TableFull));
    t.expect("R. 1:1(0) ack 1");
    assert_eq!(t.events, [Event::FlowReleased { key: t.key() }]);
    let mut t = Script::syn(modern());
    t.stack.unlisten(None, 80);
    assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Dropped(StackDrop::NoListener));
    t.expect("R. 1:1(0) ack 1");
}

#[test]
fn with_several_engines_adoption_waits_for_the_owner_to_be_known() {
    let mut t = Script::syn_with(modern(), Config { adopt_at_once: false, ..Config::default() });
    let frame = t.frame("P. 1:11(10) ack 1");
    assert_eq!(t.stack.handle_frame(t.now, &frame), Received::Adoptable(t.key()));
    t.gone();
    assert_eq!(t.stack.adopt(t.now, &frame), Received::Consumed);
    t.state(State::Established);
}

#[test]
fn a_new_incarnation_replaces_the_old_one_only_with_a_newer_cookie() {
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        let old = t.conn();
        t.sends("P. 1:101(100) ack 1");
        t.expect(". 1:1(0) ack 101");
        // The client crashed, came back, and uses the same port.
        t.wait(Duration::from_secs(1));
        t.offer.isn += 1_000_000;
        t.tsval += 1000;
        t.next_cookie(EPOCH);
        assert_eq!(t.sends(". 1:1(0) ack 1"), Received::Consumed);
        assert_ne!(t.conn(), old);
        assert!(t.events.contains(&Event::Closed { conn: old, error: Some(Error::Reset) }));
        assert_eq!(t.stack.counters().reincarnated, 1);
        t.sends("P. 1:11(10) ack 1");
        t.server_reads(1, 10);
        let mut data = [0; 200];
        assert_eq!(t.stack.recv(t.now, old, &mut data), Ok(100), "what had arrived can still be read");
        assert_eq!(t.stack.recv(t.now, old, &mut data), Err(Error::Reset));
        t.stack.close(t.now, old);
        assert_eq!(t.stack.connection_count(), 1);
    }
}

#[test]
fn a_rebooted_client_whose_clock_starts_lower_is_believed_by_its_cookies_epoch() {
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        let old = t.conn();
        t.sends("P. 1:101(100) ack 1");
        t.expect(". 1:1(0) ack 101");
        // Neither its timestamp nor its sequence number is later.
        t.offer.isn -= 1_000_000;
        t.tsval = t.tsval.wrapping_sub(1000);
        // One epoch on, another machine's cookie may be older than that of the present connection.
        t.set_epoch(EPOCH + 2, false);
        t.next_cookie(EPOCH + 1);
        t.sends(". 1:1(0) ack 1");
        assert_eq!(t.conn(), old);
        while t.next_sent().is_some() {}
        t.next_cookie(EPOCH + 2);
        assert_eq!(t.sends("P. 1:11(10) ack 1"), Received::Consumed);
        assert!(t.events.contains(&Event::Closed { conn: old, error: Some(Error::Reset) }));
        t.server_reads(1, 10);
        assert_eq!((t.stack.counters().incarnations_refused, t.stack.counters().reincarnated), (1, 1));
    }
}

#[test]
fn a_replayed_cookie_of_a_later_epoch_does_not_end_a_connection() {
    let mut t = Script::syn(modern());
    let client = (t.offer, t.cookie, t.tsval, t.tsecr);
    // A connection of a later epoch was here and has closed.
    t.set_epoch(EPOCH + 2, false);
    t.offer.isn -= 1_000_000;
    t.tsval -= 1000;
    t.next_cookie(EPOCH + 2);
    let replay = t.frame("P. 1:11(10) ack 1");
    t.sends("P. 1:11(10) ack 1");
    t.sends("R 11:11(0)");
    t.gone();
    (t.offer, t.cookie, t.tsval, t.tsecr) = client;
    t.sends(". 1:1(0) ack 1");
    let alive = t.conn();
    while t.next_sent().is_some() {}
    t.stack.handle_frame(t.now, &replay);
    t.state(State::Established);
    assert_eq!(t.conn(), alive);
    assert_eq!((t.stack.counters().reincarnated, t.stack.counters().replays_refused), (0, 1));
}

#[test]
fn an_older_cookie_does_not_replace_a_newer_incarnation() {
    let mut t = Script::syn(modern());
    let mut old = t.offer;
    old.isn -= 500_000;
    let old_cookie = answer(&old, EPOCH, t.now);
    t.sends(". 1:1(0) ack 1");
    let new = (t.offer, t.cookie, t.tsval, t.tsecr, t.conn);
    (t.offer, t.cookie, t.tsval) = (old, old_cookie, t.tsval - 100);
    t.tsecr = old_cookie.tsval.unwrap();
    t.sends(". 1:1(0) ack 1");
    (t.offer, t.cookie, t.tsval, t.tsecr, _) = new;
    t.expect(". 1:1(0) ack 1");
    assert_eq!(t.conn, new.4);
    assert_eq!(t.stack.counters().incarnations_refused, 1);
}
