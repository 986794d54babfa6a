//! How long a silent peer is believed to be there: keepalive, the user timeout, and the limits R1 and R2.

use std::time::Duration;

use super::script::{Script, modern, plain};
use crate::{Config, Error, Event, State};

const SECOND: Duration = Duration::from_secs(1);

/// Everything the stack sends in so many seconds, with the second in which it left.
fn sent_within(t: &mut Script, seconds: u32) -> Vec<(u64, String)> {
    let start = t.now;
    let mut sent = Vec::new();
    let end = start + seconds * SECOND;
    while t.now < end {
        while let Some(segment) = t.next_sent() {
            sent.push(((t.now - start).as_secs(), segment));
        }
        let next = t.stack.poll_timeout().unwrap_or(end).max(t.now).min(end);
        t.wait(next - t.now);
    }
    sent
}

fn keepalive() -> Config {
    Config {
        keepalive_time: 60 * SECOND,
        keepalive_interval: 10 * SECOND,
        keepalive_probes: 3,
        ..Config::default()
    }
}

/// The last news counts from the end of its second.
fn about_a_minute(waited: Duration) -> bool {
    waited >= 60 * SECOND && waited <= 61 * SECOND + Duration::from_millis(2)
}

#[track_caller]
fn timed_out(t: &mut Script) {
    t.gone();
    let id = t.conn();
    assert!(t.events.contains(&Event::Closed { conn: id, error: Some(Error::TimedOut) }));
    assert_eq!(t.stack.recv(t.now, id, &mut [0; 8]), Err(Error::TimedOut));
}

#[test]
fn nobody_is_asked_whether_it_is_there_unless_that_was_asked_for() {
    let mut t = Script::established(modern());
    assert_eq!(sent_within(&mut t, 100_000), []);
    t.state(State::Established);
}

#[test]
fn a_silent_peer_is_probed_and_given_up_with_a_reset() {
    let mut t = Script::established_with(plain(), keepalive());
    let sent = sent_within(&mut t, 200);
    let probe = ". 0:0(0) ack 1".to_owned();
    let (last, probes) = sent.split_last().unwrap();
    let times: Vec<u64> = probes.iter().map(|(at, _)| *at).collect();
    assert!(probes.iter().all(|(_, segment)| *segment == probe), "{sent:?}");
    let first = times[0];
    assert!((60..=61).contains(&first) && times == [first, first + 10, first + 20], "{times:?}");
    assert_eq!(*last, (first + 30, "R. 1:1(0) ack 1".to_owned()));
    timed_out(&mut t);
    assert_eq!((t.stack.counters().keepalive_probes, t.stack.counters().keepalive_expired), (3, 1));
}

#[test]
fn a_peer_that_answers_is_asked_again_only_after_the_whole_time() {
    let mut t = Script::established_with(modern(), keepalive());
    for _ in 0..20 {
        let waited = t.wait_for_output(". 0:0(0) ack 1");
        assert!(about_a_minute(waited), "{waited:?}");
        t.tsval += waited.as_millis() as u32;
        t.sends(". 1:1(0) ack 1");
        t.silent();
    }
    t.state(State::Established);
    assert_eq!(t.stack.counters().keepalive_probes, 20);
}

#[test]
fn data_in_either_direction_puts_the_question_off() {
    let mut t = Script::established_with(modern(), keepalive());
    for from in (1..20_u32).step_by(2) {
        t.wait(50 * SECOND);
        t.tsval += 50_000;
        t.sends(&format!("P. {from}:{}(1) ack {from}", from + 1));
        t.server_sends(from.into(), 2);
        while t.next_sent().is_some() {}
        t.sends(&format!("P. {}:{}(1) ack {}", from + 1, from + 2, from + 2));
        while t.next_sent().is_some() {}
    }
    assert_eq!(t.stack.counters().keepalive_probes, 0);
}

#[test]
fn an_unanswered_probe_does_not_hold_up_data() {
    let mut t = Script::established_with(plain(), keepalive());
    t.wait_for_output(". 0:0(0) ack 1");
    t.server_sends(1, 10);
    t.expect("P. 1:11(10) ack 1");
    // From here on its retransmission asks.
    assert!(sent_within(&mut t, 30).iter().all(|(_, segment)| segment == "P. 1:11(10) ack 1"));
    t.sends(". 1:1(0) ack 11");
    let waited = t.wait_for_output(". 10:10(0) ack 1");
    assert!(about_a_minute(waited), "{waited:?}");
}

#[test]
fn keepalive_reaches_connections_that_are_there_already_and_leaves_them_again() {
    let mut t = Script::established(plain());
    t.wait(1000 * SECOND);
    t.stack.set_config(t.now, keepalive());
    t.wait(SECOND);
    t.expect(". 0:0(0) ack 1");
    t.stack.set_config(t.now, Config::default());
    assert_eq!(sent_within(&mut t, 10_000), []);
    t.state(State::Established);
}

#[test]
fn the_user_timeout_ends_a_connection_whose_data_is_not_acknowledged() {
    let config = Config { user_timeout: 20 * SECOND, retries: 1, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    // Idle time does not count.
    t.wait(100 * SECOND);
    t.server_sends(1, 100);
    let sent = sent_within(&mut t, 40);
    // Not the count of retries but time ends it: 0, 1, 3, 7 and 15 seconds.
    assert_eq!(sent.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 1, 3, 7, 15, 20]);
    assert_eq!(sent[5].1, "R. 101:101(0) ack 1");
    timed_out(&mut t);
    assert_eq!(t.stack.counters().timed_out, 1);
}

#[test]
fn progress_puts_the_user_timeout_off() {
    let config = Config { user_timeout: 20 * SECOND, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    t.server_sends(1, 1000);
    t.expect("P. 1:1001(1000) ack 1");
    for acked in (101..=901).step_by(100) {
        sent_within(&mut t, 15);
        t.sends(&format!(". 1:1(0) ack {acked}"));
    }
    t.state(State::Established);
    sent_within(&mut t, 21);
    timed_out(&mut t);
}

#[test]
fn a_closed_window_outlasts_the_user_timeout_as_long_as_its_probes_are_answered() {
    let config = Config { user_timeout: 10 * SECOND, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 10);
    for _ in 0..12 {
        t.wait_for_output(". 0:0(0) ack 1");
        t.sends(". 1:1(0) ack 1");
        t.silent();
    }
    t.state(State::Established);
    t.wait_for_output(". 0:0(0) ack 1");
    sent_within(&mut t, 11);
    timed_out(&mut t);
}

#[test]
fn three_retransmissions_are_counted_as_a_path_in_trouble() {
    let mut t = Script::established(plain());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    for expected in [0, 0, 1, 1] {
        t.wait_for_output("P. 1:101(100) ack 1");
        assert_eq!(t.stack.counters().retries_r1, expected);
    }
}
