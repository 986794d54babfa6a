//! Every way to end: either side first, both at once, halves, resets, TIME_WAIT.

use std::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::{Flags, Options};
use tcpguard_common::seq::Seq;

use super::script::{CLIENT, Script, modern, plain};
use super::{EPOCH, Family, stream};
use crate::wire::Outgoing;
use crate::{Config, Error, Event, Received, StackDrop, State};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn the_server_closes_first_and_waits_two_msl() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.shutdown(t.now, id).unwrap();
    t.expect("F. 1:1(0) ack 1");
    t.state(State::FinWait1);
    t.sends(". 1:1(0) ack 2");
    t.state(State::FinWait2);
    assert!(t.stack.fin_acked(id) && t.events.contains(&Event::FinAcked(id)));
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    t.state(State::TimeWait);
    assert!(t.events.contains(&Event::Closed { conn: id, error: None }));
    assert!(t.events.contains(&Event::TimeWaitEntered { key: t.key() }));
    assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Ok(0));
    t.stack.close(t.now, id);
    assert_eq!((t.stack.connection_count(), t.stack.time_wait_count()), (0, 1));
    t.wait(59 * SECOND);
    t.state(State::TimeWait);
    t.wait(SECOND);
    t.gone();
    t.wait(10 * SECOND);
    assert!(t.events.contains(&Event::TimeWaitExpired { key: t.key() }));
    assert_eq!(t.stack.time_wait_count(), 0);
    assert_eq!(t.stack.poll_timeout(), None, "nothing is left to do");
    let counted = t.stack.counters();
    assert_eq!((counted.fin_wait_1_entered, counted.fin_wait_2_entered, counted.closing_entered), (1, 1, 0));
    assert_eq!((counted.time_wait_entered, counted.time_wait_expired), (1, 1));
    assert_eq!((counted.close_wait_entered, counted.last_ack_entered, counted.last_ack_left), (0, 0, 0));
}

#[test]
fn the_client_closes_first_and_nothing_stays() {
    for family in [Family::V4, Family::V6] {
        let mut t = Script::established(super::script::Offer { family, ..plain() });
        let id = t.conn();
        t.sends("F. 1:1(0) ack 1");
        t.expect(". 1:1(0) ack 2");
        t.state(State::CloseWait);
        assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Ok(0));
        t.stack.close(t.now, id);
        t.expect("F. 1:1(0) ack 2");
        t.state(State::LastAck);
        t.sends(". 2:2(0) ack 2");
        t.gone();
        assert!(t.events.contains(&Event::FlowReleased { key: t.key() }));
        assert_eq!(t.stack.connection_count(), 0);
        assert_eq!(t.stack.poll_timeout(), None);
        let counted = t.stack.counters();
        assert_eq!((counted.close_wait_entered, counted.last_ack_entered, counted.last_ack_left), (1, 1, 1));
        assert_eq!(
            (counted.fin_wait_1_entered, counted.closing_entered, counted.time_wait_entered),
            (0, 0, 0)
        );
    }
}

#[test]
fn both_close_at_once() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.shutdown(t.now, id).unwrap();
    t.expect("F. 1:1(0) ack 1");
    // Sent before our FIN arrived there.
    t.sends("F. 1:1(0) ack 1");
    t.state(State::Closing);
    t.expect(". 2:2(0) ack 2");
    t.sends(". 2:2(0) ack 2");
    t.state(State::TimeWait);
    t.silent();
    let counted = t.stack.counters();
    assert_eq!((counted.fin_wait_1_entered, counted.fin_wait_2_entered, counted.closing_entered), (1, 0, 1));
}

#[test]
fn a_fin_that_acknowledges_ours_goes_straight_to_time_wait() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.server_sends(1, 10);
    t.stack.close(t.now, id);
    t.expect("FP. 1:11(10) ack 1");
    t.sends("F. 1:1(0) ack 12");
    t.expect(". 12:12(0) ack 2");
    t.state(State::TimeWait);
    assert_eq!(t.stack.connection_count(), 0);
}

#[test]
fn after_our_fin_the_client_may_send_as_long_as_it_likes() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.shutdown(t.now, id).unwrap();
    t.expect("F. 1:1(0) ack 1");
    t.sends(". 1:1(0) ack 2");
    t.wait(600 * SECOND);
    t.state(State::FinWait2);
    t.tsval += 600_000;
    for from in (1..5001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 2", from + 1000));
        t.expect(&format!(". 2:2(0) ack {}", from + 1000));
        t.server_reads(from as u64, 1000);
    }
    assert_eq!(t.stack.send(t.now, id, b"late"), Err(Error::NotWritable));
    t.sends("F. 5001:5001(0) ack 2");
    t.state(State::TimeWait);
}

#[test]
fn after_the_clients_fin_we_may_send_as_long_as_we_like() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.sends("F. 1:1(0) ack 1");
    t.expect(". 1:1(0) ack 2");
    t.wait(600 * SECOND);
    t.state(State::CloseWait);
    t.tsval += 600_000;
    t.server_sends(1, 3000);
    t.expect(". 1:1449(1448) ack 2");
    t.expect("P. 1449:2897(1448) ack 2");
    t.expect("P. 2897:3001(104) ack 2");
    t.sends(". 2:2(0) ack 3001");
    t.stack.shutdown(t.now, id).unwrap();
    t.expect("F. 3001:3001(0) ack 2");
    t.sends(". 2:2(0) ack 3002");
    t.gone();
    assert!(t.events.contains(&Event::Closed { conn: id, error: None }));
}

#[test]
fn an_orphan_in_fin_wait_2_lasts_only_as_long_as_the_tunable() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends(". 1:1(0) ack 2");
    t.wait(59 * SECOND);
    t.state(State::FinWait2);
    t.wait(2 * SECOND);
    t.gone();
    // What the peer may still send meets nobody: it is told.
    t.expect("R. 2:2(0) ack 1");
    assert_eq!(t.stack.counters().fin_wait_2_expired, 1);
    assert_eq!(t.stack.connection_count(), 0);
}

#[test]
fn a_tuned_fin_wait_2_applies_at_once_to_connections_already_there() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends(". 1:1(0) ack 2");
    t.wait(10 * SECOND);
    t.stack.set_config(t.now, Config { fin_wait_2: 12 * SECOND, ..Config::default() });
    t.wait(SECOND);
    t.state(State::FinWait2);
    t.wait(2 * SECOND);
    t.gone();
}

#[test]
fn a_last_ack_that_nobody_answers_ends() {
    let mut t = Script::established(plain());
    let id = t.conn();
    t.sends("F. 1:1(0) ack 1");
    t.stack.close(t.now, id);
    t.state(State::LastAck);
    let mut sent = Vec::new();
    for _ in 0..600 {
        sent.extend(t.drain());
        t.wait(SECOND);
    }
    t.gone();
    let last = sent.pop();
    assert_eq!(sent, vec!["F. 1:1(0) ack 2"; 1 + usize::from(Config::default().orphan_retries)]);
    assert_eq!(last.as_deref(), Some("R. 2:2(0) ack 2"));
    assert_eq!(t.stack.counters().timed_out, 1);
}

/// With each byte the count of retries begins anew: it stayed for as long as its peer had bytes to acknowledge.
#[test]
fn an_orphan_whose_peer_takes_a_byte_now_and_then_is_given_up_and_one_that_gets_on_is_not() {
    for (closes_first, taken) in [(true, 1), (true, 1460), (false, 1), (false, 1460)] {
        let mut t = Script::established(plain());
        let (id, rcv_nxt) = (t.conn(), if closes_first { 1 } else { 2 });
        t.server_sends(1, 100_000);
        if !closes_first {
            t.sends("F. 1:1(0) ack 1");
        }
        t.stack.close(t.now, id);
        t.drain();
        let mut acknowledged = 1;
        let mut go_on = |t: &mut Script, times| {
            for _ in 0..times {
                t.wait(30 * SECOND);
                t.drain();
                acknowledged += taken;
                t.sends(&format!(". {rcv_nxt}:{rcv_nxt}(0) ack {acknowledged}"));
                t.drain();
            }
        };
        // 1, 2, 4 … 64 and twice 120 seconds are eight retransmissions, and the wait for an answer to the last.
        go_on(&mut t, 12);
        t.state(if closes_first { State::FinWait1 } else { State::LastAck });
        go_on(&mut t, 2);
        let is_gone = t.stack.flow_state(t.now, &t.key()).is_none();
        assert_eq!((is_gone, t.stack.counters().timed_out), (taken == 1, u64::from(taken == 1)));
        assert_eq!(t.stack.buffered_bytes() == 0, is_gone);
    }
}

#[test]
fn a_retransmitted_fin_is_acknowledged_and_restarts_two_msl() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    t.wait(50 * SECOND);
    t.tsval += 50_000;
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    assert_eq!(t.stack.counters().time_wait_restarted, 1);
    t.wait(50 * SECOND);
    t.state(State::TimeWait);
    t.wait(11 * SECOND);
    t.gone();
}

#[test]
fn time_wait_is_not_assassinated() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    // RFC 1337: a reset, exactly where it would hit.
    t.sends("R. 2:2(0) ack 2");
    t.state(State::TimeWait);
    t.silent();
    // Old data is acknowledged and goes nowhere.
    t.sends("P. 1:100(99) ack 1");
    t.expect(". 2:2(0) ack 2");
    t.state(State::TimeWait);
    // The stray acknowledgement of a late segment is not answered: no loop.
    t.sends(". 2:2(0) ack 2");
    t.silent();
}

/// RFC 9293 §3.10.7.4: where the sequence number fits, a segment without ACK is dropped; where it does not, it is acknowledged,
/// but it is no retransmission of ours to restart 2MSL for: a FIN has ACK.
#[test]
fn in_time_wait_what_acknowledges_nothing_is_dropped_and_prolongs_nothing() {
    let mut t = Script::established(modern());
    t.stack.close(t.now, t.conn());
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    for segment in ["P 2:12(10)", "F 2:2(0)", "FPU 2:2(0)", "- 2:2(0)", "P 1:12(11)", "P 60000:60010(10)"] {
        t.wait(SECOND);
        t.sends(segment);
        assert_eq!(t.next_sent(), None, "{segment}");
    }
    for segment in ["F 1:1(0)", "P 1:2(1)", "- 1:1(0)", "P 900000:900010(10)"] {
        t.wait(SECOND);
        t.sends(segment);
        t.expect(". 2:2(0) ack 2");
    }
    assert_eq!(t.stack.counters().time_wait_restarted, 0);
    t.wait(50 * SECOND);
    t.gone();
}

#[test]
fn a_tuned_two_msl_applies_at_once_to_entries_already_there() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    t.wait(5 * SECOND);
    t.state(State::TimeWait);
    let flows: Vec<_> = t.stack.flows(t.now).collect();
    assert_eq!((flows.len(), flows[0].state, flows[0].service), (1, State::TimeWait, Some(7)));
    assert_eq!(flows[0].timer.unwrap().as_secs(), 55);
    t.stack.set_config(t.now, Config { time_wait: 3 * SECOND, ..Config::default() });
    t.gone();
    assert_eq!(t.stack.flows(t.now).count(), 0);
}

#[test]
fn a_newer_cookie_reuses_a_flow_in_time_wait_and_a_replayed_one_does_not() {
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        let replay = t.frame("P. 1:1(0) ack 1");
        let id = t.conn();
        t.stack.close(t.now, id);
        t.expect("F. 1:1(0) ack 1");
        t.sends("F. 1:1(0) ack 2");
        t.expect(". 2:2(0) ack 2");
        assert_eq!(t.stack.handle_frame(t.now, &replay), Received::Consumed);
        t.expect(". 2:2(0) ack 2");
        t.state(State::TimeWait);
        t.wait(SECOND);
        t.offer.isn += 100_000;
        t.tsval += 1000;
        t.next_cookie(EPOCH);
        t.sends("P. 1:11(10) ack 1");
        t.state(State::Established);
        t.server_reads(1, 10);
        assert!(t.events.contains(&Event::TimeWaitExpired { key: t.key() }));
        // The old incarnation's segments are old duplicates now.
        t.stack.handle_frame(t.now, &replay);
        t.state(State::Established);
        assert_eq!(t.stack.connection_count(), 1);
    }
}

/// What is left of the earlier incarnation in the network comes while the next one is at work, right where its window is: PAWS
/// tells it apart, or that its sequence numbers lie before the new ones (RFC 7323 §5, RFC 9293 §3.4.3). That its ACK is of other
/// sequence numbers of ours is chance: here some of it has one that fits.
#[test]
fn old_duplicates_never_reach_the_connection_that_reuses_their_flow() {
    const ACK: Flags = Flags::ACK;
    let pieces =
        [(ACK | Flags::PSH, 1, 100), (ACK | Flags::PSH, 51, 50), (ACK | Flags::FIN, 101, 0), (ACK, 101, 0)];
    for offer in [modern(), plain()] {
        let mut t = Script::established(offer);
        t.sends("P. 1:101(100) ack 1");
        t.server_reads(1, 100);
        let (isn, tsval, reset) = (Seq(t.offer.isn), t.tsval, t.frame("R. 101:101(0) ack 2"));
        let acknowledged = Seq(t.cookie.isn) + 1;
        let id = t.conn();
        t.stack.close(t.now, id);
        while t.next_sent().is_some() {}
        t.sends("F. 101:101(0) ack 2");
        while t.next_sent().is_some() {}
        t.state(State::TimeWait);
        t.wait(SECOND);
        // With timestamps sequence numbers may begin below the old ones: all of those are in the new window then.
        let stamped = offer.options.timestamps.is_some();
        t.offer.isn = if stamped { t.offer.isn - 20 } else { t.offer.isn + 102 };
        t.tsval += 1000;
        t.next_cookie(EPOCH);
        t.sends(". 1:1(0) ack 1");
        t.state(State::Established);
        for ack in [acknowledged, Seq(t.cookie.isn) + 1] {
            for &(flags, from, len) in &pieces {
                let timestamps = stamped.then_some((tsval, t.tsecr));
                let options = Options { timestamps, ..Options::default() };
                let old = Outgoing { seq: isn + from, ack, flags, window: t.window, options };
                let frame = t.write(old, &stream(CLIENT, from.into(), len));
                t.stack.handle_frame(t.now, &frame);
                t.stack.handle_frame(t.now, &reset);
                while t.next_sent().is_some() {}
                t.state(State::Established);
            }
        }
        let conn = t.conn();
        assert_eq!(t.stack.recv(t.now, conn, &mut [0; 500]), Err(Error::WouldBlock));
        t.sends("P. 1:201(200) ack 1");
        t.server_reads(1, 200);
        assert_eq!(t.stack.recv(t.now, conn, &mut [0; 500]), Err(Error::WouldBlock));
        assert_eq!(t.stack.counters().paws_dropped, if stamped { 8 } else { 0 });
    }
}

#[test]
fn a_reset_at_rcv_nxt_ends_the_connection_and_what_arrived_can_be_read() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.sends("P. 1:101(100) ack 1");
    t.sends("R 101:101(0)");
    t.gone();
    assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::Reset) }));
    t.server_reads(1, 100);
    assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Err(Error::Reset));
    assert_eq!(t.stack.send(t.now, id, b"x"), Err(Error::Reset));
    t.silent();
    t.stack.close(t.now, id);
    assert_eq!(t.stack.connection_count(), 0);
}

#[test]
fn a_reset_before_our_fin_is_acknowledged_is_told_to_the_application() {
    for state in [State::LastAck, State::Closing] {
        let mut t = Script::established(modern());
        let id = t.conn();
        if state == State::Closing {
            t.stack.shutdown(t.now, id).unwrap();
        }
        t.sends("F. 1:1(0) ack 1");
        t.stack.shutdown(t.now, id).unwrap();
        while t.next_sent().is_some() {}
        t.state(state);
        t.sends("R. 2:2(0) ack 1");
        t.gone();
        assert!(!t.stack.fin_acked(id));
        assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::Reset) }));
        t.stack.close(t.now, id);
        assert_eq!(t.stack.connection_count(), 0);
    }
}

#[test]
fn a_reset_elsewhere_in_the_window_is_challenged_and_outside_ignored() {
    let mut t = Script::established(modern());
    t.sends("R 2:2(0)");
    t.expect(". 1:1(0) ack 1");
    t.sends("R 5000:5000(0)");
    t.expect(". 1:1(0) ack 1");
    t.sends("R 0:0(0)");
    t.silent();
    t.sends("R 900000:900000(0)");
    t.silent();
    t.state(State::Established);
}

#[test]
fn a_reset_of_a_connection_with_timestamps_has_them_too() {
    let mut t = Script::established(modern());
    t.stack.abort(t.now, t.conn());
    t.expect("R. 1:1(0) ack 1");
    let (_, _, _, options) = t.last.expect("the reset");
    assert_eq!(options.timestamps.map(|(_, echo)| echo), t.offer.options.timestamps);
}

#[test]
fn abort_sends_a_reset_in_every_open_state() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 1");
    t.stack.abort(t.now, id);
    t.expect("R. 11:11(0) ack 1");
    t.gone();
    assert_eq!(t.stack.connection_count(), 0);
    let mut t = Script::established(modern());
    t.sends("F. 1:1(0) ack 1");
    t.expect(". 1:1(0) ack 2");
    let id = t.conn();
    t.stack.abort(t.now, id);
    t.expect("R. 1:1(0) ack 2");
    t.gone();
}

#[test]
fn a_lost_reset_is_repeated_when_the_peer_goes_on_and_forgotten_after_a_while() {
    let mut t = Script::established(modern());
    let id = t.conn();
    let released = Event::FlowReleased { key: t.key() };
    t.stack.abort(t.now, id);
    t.expect("R. 1:1(0) ack 1");
    for _ in 0..3 {
        t.wait(SECOND);
        assert_eq!(t.sends("P. 1:11(10) ack 1"), Received::Consumed);
        t.expect("R 1:1(0)");
        // A burst is one question.
        t.sends("P. 11:21(10) ack 1");
        t.sends("F. 21:21(0) ack 1");
        t.silent();
    }
    assert_eq!(t.stack.counters().resets_repeated, 3);
    assert!(!t.events.contains(&released), "XDP must go on handing its segments over");
    t.wait(2 * SECOND);
    assert!(t.events.contains(&released));
    assert_eq!(t.sends("P. 1:11(10) ack 1"), Received::Dropped(StackDrop::Replay));
    assert_eq!(t.sends("P. 11:21(10) ack 1"), Received::Unknown(t.key()));
    t.silent();
    assert_eq!(t.stack.poll_timeout(), None);
}

#[test]
fn a_peer_that_challenges_our_reset_is_told_again_where_it_is() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    t.stack.abort(t.now, id);
    t.expect("R. 101:101(0) ack 1");
    // The data was lost: to the peer our reset lies in the window, and not at its edge (RFC 5961 §3.2).
    t.sends(". 1:1(0) ack 1");
    t.expect("R 1:1(0)");
}

#[test]
fn only_the_peer_of_a_reset_connection_is_answered() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    t.stack.abort(t.now, id);
    t.expect("R. 101:101(0) ack 1");
    for forged in [". 7:7(0) ack 0", ". 7:7(0) ack 102", "P 1:11(10)", "R 1:1(0)", "R. 1:1(0) ack 1"] {
        assert_eq!(t.sends(forged), Received::Consumed);
        t.silent();
    }
    t.sends("P. 11:21(10) ack 50");
    t.expect("R 50:50(0)");
}

#[test]
fn a_new_connection_ends_the_memory_of_a_reset() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.abort(t.now, id);
    t.expect("R. 1:1(0) ack 1");
    t.offer.isn += 100_000;
    t.next_cookie(EPOCH);
    t.sends("P. 1:11(10) ack 1");
    t.state(State::Established);
    t.expect(". 1:1(0) ack 11");
    t.wait(60 * SECOND);
    t.state(State::Established);
    assert!(!t.events.contains(&Event::FlowReleased { key: t.key() }));
    assert!(!t.stack.remembers_reset(&t.key()));
}

#[test]
fn connections_beyond_the_room_for_resets_are_aborted_later() {
    let mut t = Script::syn(modern());
    for port in 1000..4000 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
    }
    let mut reset = 0;
    let mut slices = 0;
    loop {
        slices += 1;
        let left = t.stack.abort_some(t.now, 2000);
        while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {
            reset += 1;
        }
        assert_eq!(left, 3000 - reset, "none ends without its reset");
        if left == 0 {
            break;
        }
    }
    assert_eq!(slices, 3, "1024 each at most");
}

#[test]
fn closing_with_unread_data_resets() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 101");
    t.stack.close(t.now, id);
    t.expect("R. 1:1(0) ack 101");
    t.gone();
    assert_eq!((t.stack.connection_count(), t.stack.buffered_bytes()), (0, 0));
}

#[test]
fn closing_with_unread_data_resets_whoever_closed_before() {
    for state in [State::LastAck, State::Closing, State::FinWait1] {
        let mut t = Script::established(modern());
        let id = t.conn();
        if state == State::Closing {
            t.stack.shutdown(t.now, id).unwrap();
        }
        let fin = if state == State::FinWait1 { "P." } else { "PF." };
        t.sends(&format!("{fin} 1:101(100) ack 1"));
        t.stack.shutdown(t.now, id).unwrap();
        while t.next_sent().is_some() {}
        t.state(state);
        t.stack.close(t.now, id);
        let ack = if state == State::FinWait1 { 101 } else { 102 };
        t.expect(&format!("R. 2:2(0) ack {ack}"));
        t.gone();
        assert_eq!((t.stack.connection_count(), t.stack.buffered_bytes()), (0, 0));
    }
}

#[test]
fn time_wait_answers_old_duplicates_only_so_often() {
    let mut t = Script::established(modern());
    let id = t.conn();
    t.stack.close(t.now, id);
    t.expect("F. 1:1(0) ack 1");
    t.sends("F. 1:1(0) ack 2");
    t.expect(". 2:2(0) ack 2");
    let (mut data, mut fins) = (0, 0);
    for _ in 0..1000 {
        t.sends("P. 1:100(99) ack 1");
        data += u32::from(t.next_sent().is_some());
        t.wait(SECOND / 1000);
    }
    for _ in 0..1000 {
        t.sends("F. 1:1(0) ack 2");
        fins += u32::from(t.next_sent().is_some());
        t.wait(SECOND / 1000);
    }
    assert!((7..=9).contains(&data) && (7..=9).contains(&fins), "{data}, {fins}");
    assert_eq!(t.stack.counters().time_wait_throttled, u64::from(2000 - data - fins));
    t.wait(59 * SECOND);
    t.state(State::TimeWait);
    t.wait(SECOND);
    t.gone();
}

#[test]
fn tunables_reach_many_connections_a_slice_at_a_time() {
    let mut t = Script::syn(modern());
    for port in 1..=3000 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        t.stack.close(t.now, id);
        while t.next_sent().is_some() {}
        t.sends(". 1:1(0) ack 2");
    }
    t.stack.set_config(t.now, Config { fin_wait_2: SECOND, ..Config::default() });
    assert_eq!(t.stack.retune_next, Some(1024), "the others with the next calls");
    assert!(t.stack.poll_timeout().unwrap() <= t.now);
    t.wait(2 * SECOND);
    assert_eq!((t.stack.connection_count(), t.stack.counters().fin_wait_2_expired), (0, 3000));
    // Their resets are remembered for a moment.
    t.wait(10 * SECOND);
    assert_eq!(t.stack.poll_timeout(), None);
}

#[test]
fn data_for_an_application_that_is_gone_is_reset_where_the_peer_is() {
    // Nothing of ours is lost; what the peer knows of ours is on its way; and it says so behind a later segment.
    for (acks, reset) in [(&[102][..], 102), (&[1], 1), (&[51], 51), (&[102, 1], 102)] {
        let mut t = Script::established(modern());
        let id = t.conn();
        t.server_sends(1, 100);
        t.stack.close(t.now, id);
        t.expect("FP. 1:101(100) ack 1");
        let (last, before) = acks.split_last().unwrap();
        for ack in before {
            t.sends(&format!(". 1:1(0) ack {ack}"));
        }
        t.sends(&format!("P. 1:101(100) ack {last}"));
        t.expect(&format!("R {reset}:{reset}(0)"));
        t.gone();
        assert_eq!((t.stack.connection_count(), t.stack.buffered_bytes()), (0, 0));
    }
}

#[test]
fn a_fin_ahead_of_its_data_counts_once_the_hole_is_filled() {
    let mut t = Script::established(modern());
    t.sends("PF. 101:201(100) ack 1");
    t.expect(". 1:1(0) ack 1 sack 101:201");
    t.state(State::Established);
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 202");
    t.state(State::CloseWait);
    t.server_reads(1, 200);
}

#[test]
fn an_unknown_segment_is_answered_as_rfc_9293_says_when_asked() {
    let mut t = Script::syn(modern());
    let frame = t.frame("P. 500:510(10) ack 77");
    t.stack.reset_unknown(t.now, &frame);
    t.expect("R 77:77(0)");
    let frame = t.frame("P 500:510(10)");
    t.stack.reset_unknown(t.now, &frame);
    let sent = t.next_sent().unwrap();
    assert!(sent.starts_with("R. ") && sent.ends_with("ack 510"), "{sent}");
    let frame = t.frame("R 500:500(0)");
    t.stack.reset_unknown(t.now, &frame);
    t.silent();
}

/// Clients from these ports connect, and their applications leave at once; the flows.
fn leave(t: &mut Script, ports: core::ops::RangeInclusive<u16>) -> Vec<AnyFlowKey> {
    let leave = |port| {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        t.stack.close(t.now, id);
        while t.next_sent().is_some() {}
        t.wait(SECOND / 100);
        t.key()
    };
    ports.map(leave).collect()
}

#[test]
fn of_too_many_orphans_those_left_for_longest_are_reset() {
    let mut t = Script::syn_with(modern(), Config { max_orphans: 3, ..Config::default() });
    let flows = leave(&mut t, 1..=5);
    let state = |t: &Script, index: usize| t.stack.flow_state(t.now, &flows[index]);
    assert_eq!([state(&t, 0), state(&t, 1)], [None, None]);
    assert!((2..5).all(|index| state(&t, index) == Some(State::FinWait1)));
    assert_eq!((t.stack.counters().orphans_reset, t.stack.counters().resets_out), (2, 2));
    // One that closes as it should makes room for another.
    t.sends("F. 1:1(0) ack 2");
    assert_eq!((state(&t, 4), t.stack.orphans.count()), (Some(State::TimeWait), 2));
    leave(&mut t, 6..=6);
    assert_eq!((t.stack.counters().orphans_reset, t.stack.orphans.count()), (2, 3));
    // A lower limit applies to those already there.
    t.stack.set_config(t.now, Config { max_orphans: 1, ..Config::default() });
    assert!(t.stack.poll_timeout().unwrap() <= t.now);
    t.wait(SECOND / 100);
    assert_eq!((t.stack.counters().orphans_reset, t.stack.connection_count()), (4, 1));
    t.state(State::FinWait1);
}

#[test]
fn what_ends_at_once_or_has_an_application_is_no_orphan() {
    let mut t = Script::established_with(modern(), Config { max_orphans: 0, ..Config::default() });
    let id = t.conn();
    t.stack.abort(t.now, id);
    t.expect("R. 1:1(0) ack 1");
    t.stack.close(t.now, id);
    t.next_client(41_000, EPOCH);
    t.sends("F. 1:1(0) ack 1");
    t.stack.shutdown(t.now, t.conn()).unwrap();
    t.state(State::LastAck);
    assert_eq!((t.stack.orphans.count(), t.stack.counters().orphans_reset), (0, 0));
}

#[test]
fn more_orphans_than_there_is_room_for_resets_go_by_and_by() {
    let mut t = Script::syn_with(modern(), Config::default());
    leave(&mut t, 1..=2000);
    t.stack.set_config(t.now, Config { max_orphans: 16, ..Config::default() });
    while t.stack.poll_timeout().is_some_and(|due| due <= t.now) {
        t.stack.handle_timeout(t.now);
        while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
    }
    assert_eq!(t.stack.connection_count(), 16);
    assert_eq!(t.stack.counters().resets_out, 2000 - 16, "none ends without its reset");
}
