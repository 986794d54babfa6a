//! Explicit congestion notification (RFC 3168) on connections whose cookie carried it.

use std::time::Duration;

use super::network::{Network, Plan, Weather};
use super::script::{Offer, Script, modern};
use super::{Family, Rng};
use crate::Config;

const MSS: u32 = 1448;
const CAPABLE: u8 = 0b10;
const MARKED: u8 = 0b11;

/// A client that asked for ECN.
fn offer() -> Offer {
    let mut offer = modern();
    offer.options.ecn = true;
    offer
}

#[test]
fn new_data_may_be_marked_and_nothing_else() {
    let mut t = Script::established(offer());
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    assert_eq!(t.last_ecn, CAPABLE);
    t.wait_for_output("P. 1:101(100) ack 1");
    assert_eq!(t.last_ecn, 0, "a retransmission");
    t.sends("P. 1:11(10) ack 101");
    t.expect(". 101:101(0) ack 11");
    assert_eq!(t.last_ecn, 0, "an acknowledgement");
}

#[test]
fn a_syn_that_the_stack_answers_gets_it_as_well() {
    let mut t = Script::syn(offer());
    t.sends("SEW 0:0(0)");
    t.expect("S.E 0:0(0) ack 1");
    t.wait(Duration::from_secs(2));
    t.expect("S.E 0:0(0) ack 1");
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100);
    t.expect("P. 1:101(100) ack 1");
    assert_eq!(t.last_ecn, CAPABLE);
    // Without timestamps nothing could remember it.
    let mut t = Script::syn(super::script::plain());
    t.sends("SEW 0:0(0)");
    t.expect("S. 0:0(0) ack 1");
}

#[test]
fn without_an_agreement_nothing_is_markable_echoed_or_heeded() {
    let mut t = Script::established(modern());
    t.ecn = MARKED;
    t.sends("PEW. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    t.server_sends(1, 100_000);
    assert_eq!(t.drain().len(), 10);
    assert_eq!(t.last_ecn, 0);
    t.sends(&format!(".E 11:11(0) ack {}", 1 + MSS));
    assert_eq!(t.drain().len(), 2, "slow start goes on");
    assert_eq!((t.stack.counters().congestion_marks, t.stack.counters().ecn_reductions), (0, 0));
}

#[test]
fn a_mark_is_echoed_until_the_peer_says_that_it_has_reacted() {
    let mut t = Script::established(offer());
    // Delayed acknowledgements, from here on.
    for from in (1..20_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
        t.drain();
    }
    t.ecn = MARKED;
    t.sends("P. 20001:20011(10) ack 1");
    t.expect(".E 1:1(0) ack 20011");
    t.ecn = CAPABLE;
    t.sends("P. 20011:20021(10) ack 1");
    t.wait_for_output(".E 1:1(0) ack 20021");
    t.server_sends(1, 10);
    t.expect("P.E 1:11(10) ack 20021");
    t.sends("P.W 20021:20031(10) ack 11");
    t.wait_for_output(". 11:11(0) ack 20031");
    // Marked again on the very segment that says so.
    t.ecn = MARKED;
    t.sends("P.W 20031:20041(10) ack 11");
    t.expect(".E 11:11(0) ack 20041");
    assert_eq!(t.stack.counters().congestion_marks, 2);
}

#[test]
fn an_echo_reduces_the_window_once_for_each_window_of_data_and_the_peer_is_told() {
    let mut t = Script::established(offer());
    t.server_sends(1, 200_000);
    assert_eq!(t.drain().len(), 10);
    t.sends(&format!(".E 1:1(0) ack {}", 1 + MSS));
    // From ten segments to five: four more acknowledgements pass until one leaves for each.
    let mut sent = Vec::new();
    for segment in 2..=10 {
        t.sends(&format!(".E 1:1(0) ack {}", 1 + segment * MSS));
        sent.push(t.drain());
    }
    assert_eq!(t.stack.counters().ecn_reductions, 1);
    assert!(sent[..4].iter().all(Vec::is_empty), "{sent:?}");
    let mut left = sent[4..].iter().flatten();
    assert_eq!(left.next(), Some(&format!(".W {}:{}({MSS}) ack 1", 1 + 10 * MSS, 1 + 11 * MSS)));
    assert!(left.all(|segment| !segment.contains('W')), "told once: {sent:?}");
    assert_eq!((t.stack.counters().retransmitted, t.stack.counters().fast_recoveries), (0, 0));
    // The next window is another matter.
    t.sends(&format!(".E 1:1(0) ack {}", 1 + 11 * MSS));
    assert_eq!(t.stack.counters().ecn_reductions, 2);
}

#[test]
fn an_echo_while_losses_are_repaired_reduces_nothing_more() {
    let mut t = Script::established(offer());
    t.server_sends(1, 14_480);
    t.drain();
    t.sends(&format!(".E 1:1(0) ack 1 sack {}:{}", 1 + MSS, 1 + 4 * MSS));
    t.drain();
    assert_eq!((t.stack.counters().fast_recoveries, t.stack.counters().ecn_reductions), (1, 0));
    t.sends(&format!(". 1:1(0) ack {}", 1 + 10 * MSS));
    t.server_sends(1 + 10 * u64::from(MSS), 10);
    // The reduction is told, whatever its reason.
    t.expect(&format!("P.W {}:{}(10) ack 1", 1 + 10 * MSS, 11 + 10 * MSS));
}

#[test]
fn a_network_that_marks_instead_of_dropping_slows_senders_down_without_a_retransmission() {
    let mut reductions = 0;
    for seed in 0..10 {
        let mut rng = Rng(seed);
        let family = if rng.chance(500) { Family::V4 } else { Family::V6 };
        let delay = Duration::from_millis(1 + rng.below(30));
        let weather = Weather { delay, mark: rng.below(100), ..Weather::default() };
        let config = Config { ecn: true, ..Config::default() };
        let mut network = Network::new(seed, family, weather, config);
        let plan = Plan { send: 300_000, receive: 300_000, answers: false, slow: None };
        network.open(5000, plan, plan);
        assert!(network.run(), "seed {seed}");
        assert!(network.finished.iter().all(|(_, error)| error.is_none()), "seed {seed}");
        let counters = [network.client.counters(), network.server.counters()];
        assert!(counters.iter().all(|counters| counters.retransmitted == 0), "seed {seed}");
        reductions += counters.iter().map(|counters| counters.ecn_reductions).sum::<u64>();
        network.drain();
    }
    assert!(reductions > 20, "{reductions}");
}

#[test]
fn a_syn_that_was_lost_is_repeated_without_the_offer() {
    let config = Config { ecn: true, ..Config::default() };
    let mut t = Script::syn_with(offer(), config);
    let (client, server) = (t.key().peer_addr(), t.key().local_addr());
    let link = super::link(super::SERVER_MAC, super::CLIENT_MAC);
    t.stack.connect(t.now, server, client, link).unwrap();
    let first = t.next_sent().unwrap();
    assert!(first.starts_with("SEW "), "{first}");
    t.wait(Duration::from_secs(2));
    let second = t.next_sent().unwrap();
    assert!(second.starts_with("S "), "{second}");
}
