//! RACK-TLP (RFC 8985): how long a hole is waited for, what a timeout gives up, and when the tail is probed.

use std::time::Duration;

use super::script::{Script, modern};
use crate::{Config, Instant};

const MS: Duration = Duration::from_millis(1);
const MSS: u32 = 1448;

/// A client 40 ms away that has ten segments of ours in flight to it, the first of which has just arrived after the second.
fn reordered() -> Script {
    let mut t = Script::established(modern());
    send(&mut t, 1, 10);
    pass(&mut t, 40);
    t.sends(&format!(". 1:1(0) ack 1 sack {}:{}", 1 + MSS, 1 + 2 * MSS));
    t.silent();
    t.sends(&format!(". 1:1(0) ack {}", 1 + 2 * MSS));
    t
}

/// The next segments of the server's stream leave.
fn send(t: &mut Script, from: u32, segments: u32) {
    t.server_sends(from.into(), (segments * MSS) as usize);
    while t.next_sent().is_some() {}
}

fn pass(t: &mut Script, millis: u32) {
    t.wait(millis * MS);
    t.tsval += millis;
}

/// The segment at `from` is late and the one behind it is not: after how long it is repeated, with the round trip of 40 ms.
fn patience(t: &mut Script, from: u32) -> Duration {
    t.sends(&format!(". 1:1(0) ack {from} sack {}:{}", from + MSS, from + 2 * MSS));
    let waited = t.wait_for_output(&format!(". {from}:{}({MSS}) ack 1", from + MSS));
    t.tsval += waited.as_millis() as u32;
    waited
}

#[track_caller]
fn about(actual: Duration, expected: Duration) {
    assert!(actual >= expected && actual <= expected + 2 * MS, "{actual:?} instead of {expected:?}");
}

#[test]
fn a_repair_that_was_reported_needless_makes_the_next_hole_wait_longer() {
    let mut t = reordered();
    let hole = 1 + 2 * MSS;
    about(patience(&mut t, hole), 10 * MS);
    // The original was only late: a duplicate (RFC 2883).
    let end = hole + 2 * MSS;
    t.sends(&format!(". 1:1(0) ack {end} sack {hole}:{}", hole + MSS));
    // Another report of the same round trip counts as one with the first.
    t.sends(&format!(". 1:1(0) ack {end} sack {hole}:{}", hole + MSS));
    t.sends(&format!(". 1:1(0) ack {}", 1 + 10 * MSS));
    send(&mut t, 1 + 10 * MSS, 4);
    pass(&mut t, 40);
    about(patience(&mut t, 1 + 10 * MSS), 20 * MS);
}

#[test]
fn a_needless_tail_loss_probe_is_no_reason_to_wait_longer() {
    let mut t = reordered();
    t.sends(&format!(". 1:1(0) ack {}", 1 + 10 * MSS));
    let tail = 1 + 10 * MSS;
    send(&mut t, tail, 2);
    t.wait_for_output(&format!("P. {}:{}({MSS}) ack 1", tail + MSS, tail + 2 * MSS));
    t.tsval += 200;
    t.sends(&format!(". 1:1(0) ack {0} sack {1}:{0}", tail + 2 * MSS, tail + MSS));
    let next = tail + 2 * MSS;
    send(&mut t, next, 4);
    pass(&mut t, 40);
    about(patience(&mut t, next), 10 * MS);
}

#[test]
fn a_path_that_never_reordered_does_not_learn_from_duplicates() {
    let mut t = Script::established(modern());
    send(&mut t, 1, 10);
    pass(&mut t, 40);
    about(patience(&mut t, 1), 10 * MS);
    let next = 1 + 10 * MSS;
    t.sends(&format!(". 1:1(0) ack {next} sack 1:{}", 1 + MSS));
    send(&mut t, next, 4);
    pass(&mut t, 40);
    about(patience(&mut t, next), 10 * MS);
}

#[test]
fn what_time_alone_shows_to_be_lost_does_not_leave_again_in_one_go() {
    let mut t = Script::established(modern());
    send(&mut t, 1, 10);
    pass(&mut t, 40);
    t.sends(&format!(". 1:1(0) ack 1 sack {}:{}", 1 + 7 * MSS, 1 + 8 * MSS));
    t.wait_for_output(&format!(". 1:{}({MSS}) ack 1", 1 + MSS));
    t.silent();
    pass(&mut t, 2);
    t.sends(&format!(". 1:1(0) ack 1 sack {}:{}", 1 + 7 * MSS, 1 + 9 * MSS));
    assert_eq!(t.drain(), [format!(". {}:{}({MSS}) ack 1", 1 + MSS, 1 + 2 * MSS)]);
}

#[test]
fn all_that_was_sent_before_an_acknowledged_repair_is_lost() {
    let mut t = Script::established(modern());
    send(&mut t, 1, 10);
    pass(&mut t, 40);
    // The first is missing; of those from the sixth on nothing is known yet.
    t.sends(&format!(". 1:1(0) ack 1 sack {}:{}", 1 + MSS, 1 + 5 * MSS));
    t.expect(&format!(". 1:{}({MSS}) ack 1", 1 + MSS));
    t.silent();
    pass(&mut t, 40);
    t.sends(&format!(". 1:1(0) ack {}", 1 + 5 * MSS));
    let repairs: Vec<String> = (5..10)
        .map(|segment| (if segment == 9 { "P" } else { "" }, 1 + segment * MSS))
        .map(|(push, from)| format!("{push}. {from}:{}({MSS}) ack 1", from + MSS))
        .collect();
    let mut repeated = t.drain();
    t.sends(&format!(". 1:1(0) ack {}", 1 + 6 * MSS));
    repeated.extend(t.drain());
    assert_eq!(repeated, repairs);
    assert_eq!(t.stack.counters().timeouts, 0);
}

#[test]
fn a_timeout_does_not_give_up_what_has_just_left() {
    let mut t = Script::established(modern());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    t.wait_for_output("P. 1:101(100) ack 1");
    assert_eq!(t.stack.counters().tail_loss_probes, 1);
    let timer = t.stack.info(t.now, t.conn()).unwrap().timer.unwrap();
    t.wait(timer - 5 * MS);
    t.server_sends(101, 100);
    t.expect("P. 101:201(100) ack 1");
    about(t.wait_for_output("P. 1:101(100) ack 1"), 5 * MS);
    assert_eq!(t.stack.counters().timeouts, 1);
    t.silent();
    // Its acknowledgement was on the way.
    t.sends(". 1:1(0) ack 201");
    t.silent();
}

#[test]
fn a_peer_that_sends_and_acknowledges_nothing_does_not_delay_the_probe() {
    let mut t = Script::established(modern());
    let start = t.now;
    send(&mut t, 1, 2);
    let probed = |t: &Script| t.stack.counters().tail_loss_probes > 0;
    for from in (1..200).step_by(10) {
        pass(&mut t, 5);
        if probed(&t) {
            break;
        }
        t.sends(&format!("P. {from}:{}(10) ack 1", from + 10));
    }
    // Twice the handshake's 20 ms and a little.
    assert!(probed(&t) && t.now - start <= 50 * MS, "{:?}", t.now - start);
}

#[test]
fn without_a_measured_round_trip_the_tail_is_probed_after_a_second() {
    let mut t = Script::syn_with(modern(), Config { initial_rto: 3000 * MS, ..Config::default() });
    t.sends("P. 1:11(10) ack 1");
    while t.next_sent().is_some() {}
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 11");
    about(t.wait_for_output("P. 1:101(100) ack 11"), 1000 * MS);
    assert_eq!(t.stack.counters().tail_loss_probes, 1);
}

#[test]
fn what_a_connection_learnt_of_reordering_outlives_a_pause() {
    let mut t = reordered();
    t.sends(&format!(". 1:1(0) ack {}", 1 + 10 * MSS));
    pass(&mut t, 5000);
    assert!(t.stack.poll_timeout().is_none_or(|at| at > Instant(t.now.0)), "at rest");
    let next = 1 + 10 * MSS;
    send(&mut t, next, 5);
    pass(&mut t, 40);
    // Three segments beyond a hole would mean loss at once on a path that never reordered.
    t.sends(&format!(". 1:1(0) ack {next} sack {}:{}", next + MSS, next + 4 * MSS));
    about(t.wait_for_output(&format!(". {next}:{}({MSS}) ack 1", next + MSS)), 10 * MS);
}

#[test]
fn several_blocks_of_one_acknowledgement_are_no_reordering() {
    let mut t = Script::established(modern());
    send(&mut t, 1, 10);
    pass(&mut t, 40);
    // The first, the third and the fifth are missing: the newest block comes first, and nothing overtook anything.
    let block = |segment: u32| format!("{}:{}", 1 + segment * MSS, 1 + (segment + 1) * MSS);
    let blocks = [block(5), block(3), block(1)].join(",");
    t.sends(&format!(". 1:1(0) ack 1 sack {blocks}"));
    t.expect(&format!(". 1:{}({MSS}) ack 1", 1 + MSS));
}
