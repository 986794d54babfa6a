//! Segments that mean harm or come out of place: windows hold, nothing panics, answers are throttled.

use std::time::Duration;

use tcpguard_common::packet::Options;
use tcpguard_common::seq::Seq;

use super::script::{CLIENT, Offer, Script, modern, plain};
use super::{Rng, stream};
use crate::stack::wire::Outgoing;
use crate::stack::{Config, Error, Received, State};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn segments_out_of_order_are_sacked_and_delivered_in_order() {
    let mut t = Script::established(modern());
    t.sends("P. 1001:2001(1000) ack 1");
    t.expect(". 1:1(0) ack 1 sack 1001:2001");
    t.sends("P. 3001:4001(1000) ack 1");
    t.expect(". 1:1(0) ack 1 sack 3001:4001,1001:2001");
    t.sends("P. 1:1001(1000) ack 1");
    t.expect(". 1:1(0) ack 2001 sack 3001:4001");
    t.server_reads(1, 2000);
    t.sends("P. 2001:3001(1000) ack 1");
    t.expect(". 1:1(0) ack 4001");
    t.server_reads(2001, 2000);
}

#[test]
fn a_peer_without_sack_gets_one_duplicate_ack_for_each_segment_behind_a_hole() {
    let mut t = Script::established(plain());
    for from in [1001, 2001, 3001] {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
    }
    for _ in 0..3 {
        t.expect(". 1:1(0) ack 1");
    }
    t.silent();
    t.sends("P. 1:1001(1000) ack 1");
    t.expect(". 1:1(0) ack 4001");
}

#[test]
fn overlapping_segments_deliver_every_byte_once() {
    let mut t = Script::established(modern());
    t.sends("P. 500:1500(1000) ack 1");
    t.sends("P. 1000:2500(1500) ack 1");
    t.sends("P. 1:700(699) ack 1");
    t.sends("P. 600:3000(2400) ack 1");
    while t.next_sent().is_some() {}
    t.server_reads(1, 2999);
}

#[test]
fn sequence_numbers_wrap() {
    let offer = Offer { isn: u32::MAX - 2000, ..modern() };
    let mut t = Script::established(offer);
    t.sends("P. 2001:3001(1000) ack 1");
    t.expect(". 1:1(0) ack 1 sack 2001:3001");
    t.sends("P. 1:1001(1000) ack 1");
    t.sends("P. 1001:2001(1000) ack 1");
    t.expect(". 1:1(0) ack 3001");
    t.server_reads(1, 3000);
    for from in (3001..900_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
        while t.next_sent().is_some() {}
        t.server_reads(from as u64, 1000);
    }
}

#[test]
fn data_beyond_the_promised_window_is_cut_off() {
    let config = Config { recv_buffer: 60_000, ..Config::default() };
    let mut t = Script::established_with(modern(), config);
    t.sends("P. 59001:60401(1400) ack 1");
    t.expect(". 1:1(0) ack 1 sack 59001:60001");
    t.sends("P. 70001:71001(1000) ack 1");
    t.expect(". 1:1(0) ack 1 sack 59001:60001");
    assert_eq!(t.stack.counters().out_of_window, 1);
}

#[test]
fn an_ack_of_what_was_never_sent_is_challenged_and_so_is_a_syn() {
    let mut t = Script::established(modern());
    t.sends(". 1:1(0) ack 100");
    t.expect(". 1:1(0) ack 1");
    t.sends("S. 1:1(0) ack 1");
    t.expect(". 1:1(0) ack 1");
    t.sends("S 1:1(0)");
    t.expect(". 1:1(0) ack 1");
    t.sends("P. 1:11(10) ack 4000000000");
    t.expect(". 1:1(0) ack 1");
    t.state(State::Established);
    let mut data = [0; 20];
    assert_eq!(t.stack.recv(t.now, t.conn(), &mut data), Err(Error::WouldBlock), "blind data is not taken");
    assert_eq!(t.stack.counters().challenge_acks, 4);
}

#[test]
fn challenges_are_throttled_per_connection() {
    let mut t = Script::established(modern());
    let mut answers = 0;
    for _ in 0..100 {
        t.sends("S. 1:1(0) ack 1");
        answers += u32::from(t.next_sent().is_some());
    }
    assert_eq!(answers, 10);
    assert_eq!(t.stack.counters().challenge_acks_throttled, 90);
    t.wait(SECOND);
    t.sends("S. 1:1(0) ack 1");
    t.expect(". 1:1(0) ack 1");
}

#[test]
fn an_old_timestamp_is_refused_and_so_is_a_missing_one() {
    let mut t = Script::established(modern());
    t.tsval += 100;
    t.sends("P. 1:11(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    t.tsval -= 50;
    t.sends("P. 11:21(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    t.tsval = t.tsval.wrapping_sub(1 << 30);
    t.sends("P. 11:21(10) ack 1");
    t.expect(". 1:1(0) ack 11");
    assert_eq!(t.stack.counters().paws_dropped, 2);
    let segment = Outgoing {
        seq: Seq(t.offer.isn) + 11,
        ack: Seq(t.cookie.isn) + 1,
        flags: tcpguard_common::packet::Flags::ACK,
        window: 1000,
        options: Options::default(),
    };
    let frame = t.write(segment, &stream(CLIENT, 11, 10));
    assert_eq!(t.stack.handle_frame(t.now, &frame), Received::Consumed);
    assert_eq!(t.stack.counters().paws_dropped, 3);
    t.server_reads(1, 10);
}

#[test]
fn nonsense_in_sack_blocks_is_ignored() {
    let mut t = Script::established(modern());
    t.server_sends(1, 4000);
    for _ in 0..3 {
        t.next_sent().unwrap();
    }
    // Above SND.NXT, inverted, below SND.UNA, empty.
    t.sends(". 1:1(0) ack 1 sack 1449:90000,2897:1449");
    t.sends(". 1:1(0) ack 1 sack 4000000000:1,5:5");
    t.silent();
    assert_eq!(t.stack.counters().retransmitted, 0);
    t.sends(". 1:1(0) ack 4001");
    t.silent();
    t.server_sends(4001, 10);
    t.expect("P. 4001:4011(10) ack 1");
}

#[test]
fn a_peer_that_goes_back_on_its_sack_gets_everything_again() {
    let mut t = Script::established(modern());
    t.server_sends(1, 4344);
    for _ in 0..3 {
        t.next_sent().unwrap();
    }
    t.sends(". 1:1(0) ack 1 sack 1449:4345");
    t.wait_for_output(". 1:1449(1448) ack 1".replace(". ", "P. ").as_str());
    // It takes the first segment and forgets the others.
    t.sends(". 1:1(0) ack 1449");
    let mut sent = Vec::new();
    for _ in 0..20 {
        t.wait(SECOND);
        while let Some(segment) = t.next_sent() {
            sent.push(segment);
        }
    }
    assert!(sent.iter().any(|segment| segment == "P. 1449:2897(1448) ack 1"), "{sent:?}");
    t.sends(". 1:1(0) ack 4345");
    t.silent();
}

#[test]
fn an_empty_pool_drops_unacknowledged_and_recovers() {
    let config = Config { recv_pool: 8 * 4096, ..Config::default() };
    let mut t = Script::established_with(modern(), config);
    for from in (1..50_001).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
    }
    while t.next_sent().is_some() {}
    assert!(t.stack.counters().no_buffer > 0);
    assert_eq!(t.stack.buffered_bytes(), 8 * 4096);
    let (_, ack, ..) = t.last.unwrap();
    let acked = u64::from(ack.distance(Seq(t.offer.isn))) - 1;
    assert_eq!(acked, 8 * 4096);
    t.server_reads(1, acked as usize);
    t.sends(&format!("P. {}:{}(1000) ack 1", acked + 1, acked + 1001));
    while t.next_sent().is_some() {}
    t.server_reads(acked + 1, 1000);
    assert_eq!(t.stack.buffered_bytes(), 0);
}

#[test]
fn data_behind_holes_gives_way_when_memory_is_short() {
    let mut t = Script::established_with(modern(), Config { recv_pool: 8 * 4096, ..Config::default() });
    let hoarder = t.conn();
    for from in (5000..40_000).step_by(4096) {
        t.sends(&format!(". {from}:{}(1) ack 1", from + 1));
    }
    while t.next_sent().is_some() {}
    assert_eq!(t.stack.buffered_bytes(), 8 * 4096);
    t.offer.port = 40_001;
    t.cookie = super::script::answer(&t.offer, super::EPOCH, t.now);
    t.tsecr = t.cookie.tsval.unwrap();
    t.sends(". 1:1(0) ack 1");
    t.sends("P. 1:101(100) ack 1");
    t.server_reads(1, 100);
    assert_eq!((t.stack.counters().reclaimed, t.stack.counters().no_buffer), (1, 1));
    assert!(t.stack.info(t.now, hoarder).is_some());
}

#[test]
fn windows_shrink_as_the_pool_fills() {
    let mut t = Script::established_with(modern(), Config { recv_pool: 16 * 4096, ..Config::default() });
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 101");
    let calm = u32::from(t.last.unwrap().2) << 7;
    assert!(calm > 500_000, "{calm}");
    for from in (101..60_101).step_by(1000) {
        t.sends(&format!("P. {from}:{}(1000) ack 1", from + 1000));
    }
    while t.next_sent().is_some() {}
    t.server_reads(1, 30_000);
    t.offer.port = 40_001;
    t.cookie = super::script::answer(&t.offer, super::EPOCH, t.now);
    t.tsecr = t.cookie.tsval.unwrap();
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 101");
    let tight = u32::from(t.last.unwrap().2) << 7;
    assert!((60_000..66_000).contains(&tight), "{tight}");
}

#[test]
fn writers_that_found_the_pool_empty_are_woken_when_it_is_not() {
    let mut t = Script::established_with(modern(), Config { send_pool: 4096, ..Config::default() });
    let first = t.conn();
    t.server_sends(1, 4096);
    (t.offer.port, t.window) = (40_001, 1000);
    t.cookie = super::script::answer(&t.offer, super::EPOCH, t.now);
    t.tsecr = t.cookie.tsval.unwrap();
    t.sends(". 1:1(0) ack 1");
    let second = t.conn();
    assert_eq!(t.stack.send(t.now, second, b"x"), Err(Error::WouldBlock));
    t.stack.abort(t.now, first);
    t.sends(". 1:1(0) ack 1");
    assert!(t.events.contains(&crate::stack::Event::Writable(second)));
    assert_eq!(t.stack.send(t.now, second, b"x"), Ok(1));
}

#[test]
fn one_byte_segments_behind_holes_are_bounded() {
    let mut t = Script::established(modern());
    for from in (3..2000).step_by(2) {
        t.sends(&format!(". {from}:{}(1) ack 1", from + 1));
        while t.next_sent().is_some() {}
    }
    assert!(t.stack.counters().no_buffer > 800);
    t.sends(". 1:3(2) ack 1");
    while t.next_sent().is_some() {}
    t.server_reads(1, 3);
    t.state(State::Established);
}

#[test]
fn noise_on_every_field_neither_panics_nor_gets_in() {
    for seed in 0..300 {
        let mut rng = Rng(seed);
        let mut t = Script::established(if rng.chance(500) { modern() } else { plain() });
        let mut sent = 0;
        for step in 0..200 {
            if rng.chance(100) {
                let id = t.conn();
                let len = rng.below(5000) as usize;
                let _ = t
                    .stack
                    .send(t.now, id, &stream(super::script::SERVER, 1 + sent, len))
                    .map(|n| sent += n as u64);
            }
            if step == 150 && rng.chance(300) {
                let id = t.conn();
                let _ = t.stack.shutdown(t.now, id);
            }
            let near = |rng: &mut Rng| match rng.below(4) {
                0 => rng.next() as u32,
                1 => 1,
                _ => (rng.below(20_000) as u32).wrapping_sub(5_000),
            };
            let mut options = Options::default();
            if rng.chance(800) {
                options.timestamps =
                    t.offer.options.timestamps.map(|_| (t.tsval.wrapping_add(near(&mut rng)), t.tsecr));
            }
            for _ in 0..rng.below(3) {
                options.sack.push(Seq(t.cookie.isn) + near(&mut rng), Seq(t.cookie.isn) + near(&mut rng));
            }
            let segment = Outgoing {
                seq: Seq(t.offer.isn) + near(&mut rng),
                ack: Seq(t.cookie.isn) + near(&mut rng),
                flags: tcpguard_common::packet::Flags(rng.next() as u8),
                window: rng.next() as u16,
                options,
            };
            let len = rng.below(1400) as usize;
            let frame = t.write(segment, &vec![0; len]);
            t.stack.handle_frame(t.now, &frame);
            let mut out = [0; 2000];
            for _ in 0..rng.below(8) {
                let _ = t.stack.poll_transmit(t.now, &mut out);
            }
            t.wait(Duration::from_millis(rng.below(300)));
            if rng.chance(200) {
                let id = t.conn();
                let _ = t.stack.recv(t.now, id, &mut out);
            }
        }
        let id = t.conn();
        t.stack.abort(t.now, id);
        t.wait(300 * SECOND);
        assert_eq!((t.stack.connection_count(), t.stack.buffered_bytes()), (0, 0), "seed {seed}");
    }
}
