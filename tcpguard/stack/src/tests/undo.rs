//! Losses that were none: what was taken for lost arrives after all, and the window is what it was.

use std::time::Duration;

use tcpguard_common::seq::Seq;

use super::script::{Offer, Script, modern, plain};

const MS: Duration = Duration::from_millis(1);
const MSS: u32 = 1460;

/// A client without timestamps.
fn silent_on_time() -> Offer {
    let mut offer = modern();
    offer.options.timestamps = None;
    offer
}

/// A client 20 ms away to whom the first ten segments left, until their timeout; the timestamp on them.
fn timed_out() -> (Script, u32) {
    let mut t = Script::established(modern());
    t.server_sends(1, 100_000);
    t.drain();
    let original = t.tsecr;
    let mut sent = Vec::new();
    while t.stack.counters().timeouts == 0 {
        let next = t.stack.poll_timeout().expect("a timer");
        t.wait(next - t.now);
        sent = t.drain();
    }
    assert_eq!(sent, [". 1:1449(1448) ack 1"]);
    (t, original)
}

#[test]
fn a_timeout_is_taken_back_when_the_first_copy_is_echoed() {
    let (mut t, original) = timed_out();
    t.tsecr = original;
    t.sends(". 1:1(0) ack 1449");
    let sent = t.drain();
    // What is still on its way does not leave again, and there is room for as much as before.
    assert!(!sent.is_empty() && sent.iter().all(|segment| segment.starts_with(". 1")), "{sent:?}");
    assert_eq!((t.stack.counters().reductions_undone, t.stack.counters().retransmitted), (1, 1));
}

#[test]
fn a_timeout_is_not_taken_back_when_the_repetition_is_echoed() {
    let (mut t, original) = timed_out();
    t.sends(". 1:1(0) ack 1449");
    assert_eq!(t.drain()[0], ". 1449:2897(1448) ack 1");
    // Later ones tell nothing any more.
    t.tsecr = original;
    t.sends(". 1:1(0) ack 2897");
    assert_eq!(t.stack.counters().reductions_undone, 0);
}

/// A client without timestamps to whom two of ten segments left again: the first and the third.
fn repaired() -> Script {
    let mut t = Script::established(silent_on_time());
    t.server_sends(1, 400_000);
    assert_eq!(t.drain().len(), 10);
    t.wait(20 * MS);
    let mut sent = Vec::new();
    for last in 4..=10 {
        let (second, third, fourth) = (1 + MSS, 1 + 2 * MSS, 1 + 3 * MSS);
        t.sends(&format!(". 1:1(0) ack 1 sack {fourth}:{},{second}:{third}", 1 + last * MSS));
        sent.extend(t.drain());
    }
    let repeated = |from: u32| sent.contains(&format!(". {from}:{}({MSS}) ack 1", from + MSS));
    assert!(repeated(1) && repeated(1 + 2 * MSS), "{sent:?}");
    assert_eq!(t.stack.counters().retransmitted, 2);
    t
}

#[test]
fn a_repair_is_taken_back_once_all_of_it_is_reported_as_duplicate() {
    let mut t = repaired();
    let all = 1 + 10 * MSS;
    t.sends(&format!(". 1:1(0) ack {all} sack 1:{}", 1 + MSS));
    t.drain();
    assert_eq!(t.stack.counters().reductions_undone, 0, "the other may have been needed");
    t.sends(&format!(". 1:1(0) ack {all} sack {}:{}", 1 + 2 * MSS, 1 + 3 * MSS));
    assert_eq!(t.stack.counters().reductions_undone, 1);
    // Little more than half the window was left.
    assert!(t.drain().len() >= 3);
}

#[test]
fn duplicates_that_we_did_not_cause_take_nothing_back() {
    let mut t = repaired();
    let all = 1 + 10 * MSS;
    t.sends(&format!(". 1:1(0) ack {all} sack 1:{}", 1 + MSS));
    // News and no report, inverted, and empty.
    for block in [format!("{all}:{}", all + MSS), format!("{}:1", 1 + MSS), "5:5".to_owned()] {
        t.sends(&format!(". 1:1(0) ack {all} sack {block}"));
    }
    assert_eq!(t.stack.counters().reductions_undone, 0);
}

#[test]
fn a_loss_that_arrives_before_anything_left_again_is_none() {
    let mut t = Script::established(silent_on_time());
    t.server_sends(1, 100_000);
    t.drain();
    t.wait(20 * MS);
    let all = 1 + 10 * MSS;
    t.sends(&format!(". 1:1(0) ack 1 sack {}:{all}", 1 + MSS));
    assert_eq!(t.stack.counters().fast_recoveries, 1);
    t.sends(&format!(". 1:1(0) ack {all}"));
    assert_eq!((t.stack.counters().reductions_undone, t.stack.counters().retransmitted), (1, 0));
    assert!(t.drain().len() >= 10);
}

/// A client without timestamps to whom ten segments left, and the first one again after a timeout.
fn timed_out_in_silence(offer: Offer) -> Script {
    let mut t = Script::established(offer);
    t.server_sends(1, 60_000);
    let mut left = t.drain().len();
    while t.stack.counters().timeouts == 0 {
        let next = t.stack.poll_timeout().expect("a timer");
        t.wait(next - t.now);
        left += t.drain().len();
    }
    // A tail loss probe, where there is SACK, is new data.
    assert_eq!(
        (left, t.stack.counters().retransmitted),
        (if offer.options.sack_permitted { 12 } else { 11 }, 1)
    );
    t
}

/// Whether everything that leaves now was never sent before.
fn sends_new_data(t: &mut Script) -> bool {
    let repeated = t.stack.counters().retransmitted;
    !t.drain().is_empty() && t.stack.counters().retransmitted == repeated
}

#[test]
fn without_timestamps_a_timeout_is_taken_back_when_what_was_not_repeated_is_acknowledged() {
    for offer in [plain(), silent_on_time()] {
        let mut t = timed_out_in_silence(offer);
        t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
        // Nothing is repeated before it is clear that something is missing.
        assert!(sends_new_data(&mut t));
        t.sends(&format!(". 1:1(0) ack {}", 1 + 2 * MSS));
        assert_eq!((t.stack.counters().reductions_undone, t.stack.counters().retransmitted), (1, 1));
        t.sends(&format!(". 1:1(0) ack {}", 1 + 6 * MSS));
        assert!(sends_new_data(&mut t));
        // There is as much room as before: for ten segments, and those that were acknowledged since.
        assert!(t.stack.view(t.conn()).is_some_and(|view| view.cwnd >= 10 * MSS));
    }
}

#[test]
fn without_timestamps_a_timeout_is_not_taken_back_when_something_is_missing() {
    let mut t = timed_out_in_silence(plain());
    t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
    assert!(sends_new_data(&mut t));
    t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
    assert_eq!(t.drain()[0], format!(". {}:{}({MSS}) ack 1", 1 + MSS, 1 + 2 * MSS));
    for acked in 2..=10 {
        t.sends(&format!(". 1:1(0) ack {}", 1 + acked * MSS));
        t.drain();
    }
    assert_eq!(t.stack.counters().reductions_undone, 0);
}

#[test]
fn without_timestamps_a_timeout_is_not_looked_into_twice_and_not_without_new_data() {
    let mut twice = timed_out_in_silence(plain());
    twice.wait_for_output(&format!(". 1:{}({MSS}) ack 1", 1 + MSS));
    let mut idle = Script::established(plain());
    idle.server_sends(1, 10 * MSS as usize);
    assert_eq!(idle.drain().len(), 10);
    idle.wait_for_output(&format!(". 1:{}({MSS}) ack 1", 1 + MSS));
    for mut t in [twice, idle] {
        t.sends(&format!(". 1:1(0) ack {}", 1 + MSS));
        assert_eq!(t.drain()[0], format!(". {}:{}({MSS}) ack 1", 1 + MSS, 1 + 2 * MSS));
        t.sends(&format!(". 1:1(0) ack {}", 1 + 3 * MSS));
        assert_eq!(t.stack.counters().reductions_undone, 0);
    }
}

/// The end of what is in flight has arrived, and then small parts of the beginning do: the first copies of them, whatever
/// left again meanwhile.
fn arrives_in_small_parts(t: &mut Script) {
    const FULL: u32 = 1448;
    let isn = Seq(t.cookie.isn);
    let view = t.stack.view(t.conn()).expect("a connection");
    let (una, nxt) = (view.snd_una.distance(isn), view.snd_nxt.distance(isn));
    let original = t.tsecr;
    t.wait(20 * MS);
    t.sends(&format!(". 1:1(0) ack {una} sack {}:{nxt}", nxt - FULL));
    t.wait(30 * MS);
    for part in 1..=10 {
        t.drain();
        t.tsecr = original;
        t.sends(&format!(". 1:1(0) ack {}", una + 100 * part));
    }
}

#[test]
fn what_was_lost_is_judged_anew_only_a_few_times_in_a_window_of_data() {
    let mut t = Script::established(modern());
    t.server_sends(1, 100_000);
    assert_eq!(t.drain().len(), 10);
    arrives_in_small_parts(&mut t);
    assert_eq!(t.stack.counters().reductions_undone, 4);
    // The next window is another matter.
    let sent = t.stack.view(t.conn()).expect("a connection").snd_nxt;
    t.sends(&format!(". 1:1(0) ack {}", sent.distance(Seq(t.cookie.isn))));
    t.drain();
    arrives_in_small_parts(&mut t);
    assert!(t.stack.counters().reductions_undone > 4);
}
