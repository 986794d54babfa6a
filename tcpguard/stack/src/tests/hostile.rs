//! Segments that mean harm or come out of place: windows hold, nothing panics, answers are throttled.

use std::time::Duration;

use tcpguard_common::packet::Options;
use tcpguard_common::seq::Seq;

use super::script::{CLIENT, Offer, Script, modern, plain};
use super::{EPOCH, Rng, stream};
use crate::wire::Outgoing;
use crate::{Config, Error, Event, Received, State};

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
fn guesses_at_a_live_flow_are_limited() {
    for flow in [modern(), plain()] {
        let mut t = Script::established(flow);
        let alive = t.conn();
        // Without timestamps the cookie has fewer bits to guess, whatever the flow uses.
        t.offer = Offer { isn: t.offer.isn + 1_000_000, ..plain() };
        t.next_cookie(EPOCH);
        let right = t.cookie;
        for guess in 1..=1000 {
            t.cookie.isn = right.isn.wrapping_add(guess);
            t.sends(". 1:1(0) ack 1");
        }
        t.cookie = right;
        t.sends(". 1:1(0) ack 1");
        assert_eq!((t.conn(), t.stack.counters().reincarnated), (alive, 0), "the 1001st guess of a second");
        assert_eq!(t.stack.counters().challenge_acks_throttled, 991);
        // The client that has really begun anew sends again.
        t.wait(SECOND);
        t.sends("P. 1:11(10) ack 1");
        assert_eq!(t.stack.counters().reincarnated, 1);
        t.server_reads(1, 10);
    }
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
fn the_timestamp_of_a_segment_that_begins_with_old_data_is_echoed() {
    let mut t = Script::established(modern());
    t.sends("P. 1:101(100) ack 1");
    // Not acknowledged yet, so it is the same data once more, and some.
    t.tsval += 7;
    t.sends("P. 1:201(200) ack 1");
    t.expect(". 1:1(0) ack 201");
    assert_eq!(t.last.unwrap().3.timestamps.unwrap().1, t.tsval, "RFC 7323 §4.3, rule 2");
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

/// Blocks that overlap each other, repeat each other, or cover part of a segment count each byte once, and no byte that they leave
/// out: what is lost is sent again, and only that.
#[test]
fn overlapping_sack_blocks_count_no_byte_twice_and_none_too_many() {
    let mut t = Script::established(modern());
    t.server_sends(1, 1448 * 6);
    let sent: Vec<String> = std::iter::from_fn(|| t.next_sent()).collect();
    assert_eq!(sent.len(), 6);
    // The first and the fourth are missing; of the sixth, one byte.
    t.sends(". 1:1(0) ack 1 sack 1449:4345,1449:2897,2000:4345");
    t.sends(". 1:1(0) ack 1 sack 5793:8688,5793:7241,6000:8000");
    t.sends(". 1:1(0) ack 1 sack 5793:8688,1449:4345,4000:4345");
    let mut again = Vec::new();
    for (acknowledged, times) in [("1 sack 1449:4345,5793:8688", 8), ("7241 sack 7241:8688", 40)] {
        for _ in 0..times {
            t.wait(SECOND / 8);
            again.extend(std::iter::from_fn(|| t.next_sent()));
            t.sends(&format!(". 1:1(0) ack {acknowledged}"));
        }
    }
    let missing = |from: u64| format!(" {from}:{}(1448) ack 1", from + 1448);
    for from in [1, 4345, 7241] {
        assert!(again.iter().any(|segment| segment.ends_with(&missing(from))), "{from}: {again:?}");
    }
    for from in [1449, 2897, 5793] {
        assert!(!again.iter().any(|segment| segment.ends_with(&missing(from))), "{from}: {again:?}");
    }
    t.sends(". 1:1(0) ack 8689");
    t.silent();
    t.server_sends(8689, 10);
    t.expect("P. 8689:8699(10) ack 1");
}

#[test]
fn a_peer_that_goes_back_on_its_sack_gets_everything_again() {
    let mut t = Script::established(modern());
    t.server_sends(1, 4344);
    for _ in 0..3 {
        t.next_sent().unwrap();
    }
    t.sends(". 1:1(0) ack 1 sack 1449:4345");
    t.wait_for_output(". 1:1449(1448) ack 1");
    // It takes the first segment and forgets the others.
    t.sends(". 1:1(0) ack 1449");
    let mut sent = Vec::new();
    for _ in 0..20 {
        t.wait(SECOND);
        while let Some(segment) = t.next_sent() {
            sent.push(segment);
        }
    }
    assert!(sent.iter().any(|segment| segment == ". 1449:2897(1448) ack 1"), "{sent:?}");
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
    // The last eighth is for those that hold little.
    assert_eq!(t.stack.buffered_bytes(), 7 * 4096);
    let (_, ack, ..) = t.last.unwrap();
    let acked = u64::from(ack.distance(Seq(t.offer.isn))) - 1;
    assert_eq!(acked, 7 * 4096);
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
    t.next_client(40_001, EPOCH);
    t.sends(". 1:1(0) ack 1");
    t.sends("P. 5000:5100(100) ack 1");
    assert_eq!(t.stack.buffered_bytes(), 8 * 4096);
    // Nobody was found a moment ago, and nobody is looked for.
    t.sends("P. 9000:9100(100) ack 1");
    t.wait(Duration::from_millis(1));
    // Anybody could have sent these.
    for blind in
        ["P. 900000:900100(100) ack 1", "P. 1:101(100) ack 90000", "P 1:101(100)", "S. 1:101(100) ack 1"]
    {
        t.sends(blind);
    }
    assert_eq!(t.stack.counters().reclaimed, 0);
    t.sends("P. 1:101(100) ack 1");
    t.server_reads(1, 100);
    assert_eq!((t.stack.counters().reclaimed, t.stack.counters().no_buffer), (1, 3));
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
    t.server_reads(1, 20_000);
    t.next_client(40_001, EPOCH);
    t.sends("P. 1:101(100) ack 1");
    t.expect(". 1:1(0) ack 101");
    let tight = u32::from(t.last.unwrap().2) << 7;
    assert!((60_000..66_000).contains(&tight), "{tight}");
}

/// The client sends `[from, to)` of its stream, and hears what the stack makes of it.
fn uploads(t: &mut Script, from: u32, to: u32) {
    for at in (from..to).step_by(1000) {
        let end = (at + 1000).min(to);
        t.sends(&format!("P. {at}:{end}({}) ack 1", end - at));
        while t.next_sent().is_some() {}
    }
}

/// Another client, which sends the first `len` bytes of its stream.
fn uploader(t: &mut Script, port: u16, len: u32) -> crate::ConnId {
    t.next_client(port, EPOCH);
    t.sends(". 1:1(0) ack 1");
    uploads(t, 1, 1 + len);
    t.conn()
}

#[test]
fn a_full_receive_pool_of_what_nobody_reads_leaves_room_for_a_newcomer_and_is_emptied() {
    const POOL: usize = 4 << 20;
    const HOARD: u32 = 500_000;
    const HOARDERS: u16 = 16;
    let mut t = Script::syn_with(modern(), Config { recv_pool: POOL, ..Config::default() });
    // Twice as much as there is was promised while there was plenty.
    let hoarders: Vec<_> = (1..=HOARDERS).map(|port| uploader(&mut t, port, 100)).collect();
    for port in 1..=HOARDERS {
        t.next_client(port, EPOCH);
        uploads(&mut t, 101, HOARD);
    }
    assert!(t.stack.counters().no_buffer > 0);
    let held = t.stack.buffered_bytes();
    assert!((POOL / 4 * 3..POOL / 16 * 15).contains(&held), "{held}");
    // A request of some kilobytes is taken, and answered.
    let newcomer = uploader(&mut t, 1000, 8000);
    t.server_reads(1, 8000);
    // In its time, nobody is reset.
    t.wait(29 * SECOND);
    uploads(&mut t, 8001, 9001);
    t.server_reads(8001, 1000);
    assert_eq!((t.stack.counters().unread_reset, t.stack.connection_count()), (0, 17));
    // Then as many are as make memory one that is not short, and those first that hold most of it.
    t.wait(2 * SECOND);
    for from in (9001..29_001).step_by(1000) {
        uploads(&mut t, from, from + 1000);
        t.server_reads(from.into(), 1000);
    }
    let is_reset = |t: &Script, id| t.stack.info(t.now, id).is_none_or(|flow| flow.state == State::Closed);
    let reset: Vec<_> = hoarders.iter().copied().filter(|&id| is_reset(&t, id)).collect();
    assert_eq!(t.stack.counters().unread_reset, reset.len() as u64);
    assert!((1..=3).contains(&reset.len()), "{reset:?}");
    assert!(t.stack.buffered_bytes() < POOL / 4 * 3 && !is_reset(&t, newcomer));
    for id in reset {
        assert_eq!(t.stack.recv(t.now, id, &mut [0; 10]), Err(Error::Unread), "not a stream with a hole");
    }
    for (port, &id) in (1..).zip(&hoarders) {
        t.offer.port = port;
        assert_eq!(t.stack.remembers_reset(&t.key()), is_reset(&t, id), "client {port}");
    }
}

#[test]
fn who_reads_on_is_not_reset_while_receive_memory_is_short_and_who_reads_a_little_now_and_then_is() {
    let mut t = Script::syn_with(modern(), Config { recv_pool: 64 * 4096, ..Config::default() });
    let (reads_on, dribbles) = (uploader(&mut t, 1, 150_000), uploader(&mut t, 2, 60_000));
    assert_eq!(t.stack.buffered_bytes(), 52 * 4096);
    t.wait(29 * SECOND);
    for (id, read) in [(reads_on, 16 << 10), (dribbles, 1000)] {
        assert_eq!(t.stack.recv(t.now, id, &mut vec![0; read]), Ok(read));
    }
    t.wait(2 * SECOND);
    uploader(&mut t, 3, 100);
    assert_eq!(t.stack.counters().unread_reset, 1);
    assert_eq!(t.stack.recv(t.now, dribbles, &mut [0; 10]), Err(Error::Unread));
    assert_eq!(t.stack.recv(t.now, reads_on, &mut [0; 10]), Ok(10));
}

/// Each held less than anybody is reset for, so that for a whole stall time nobody was taken in.
#[test]
fn many_that_hold_little_keep_nobody_out_for_longer_than_a_quarter_of_the_stall_time() {
    const POOL: usize = 4 << 20;
    let mut t = Script::syn_with(modern(), Config { recv_pool: POOL, ..Config::default() });
    for port in 1..=400 {
        uploader(&mut t, port, 12_000);
    }
    assert_eq!(t.stack.buffered_bytes(), POOL);
    let newcomer = uploader(&mut t, 1000, 100);
    assert_eq!(t.stack.recv(t.now, newcomer, &mut [0; 10]), Err(Error::WouldBlock), "nothing is left");
    t.wait(7 * SECOND);
    uploads(&mut t, 1, 101);
    assert_eq!(t.stack.counters().unread_reset, 0);
    t.wait(SECOND);
    uploads(&mut t, 1, 101);
    t.server_reads(1, 100);
    assert!((1..=64).contains(&t.stack.counters().unread_reset));
}

#[test]
fn nobody_is_reset_for_what_is_not_read_with_memory_to_spare() {
    let mut t = Script::syn_with(modern(), Config { recv_pool: 1 << 20, ..Config::default() });
    uploader(&mut t, 1, 400_000);
    t.wait(3600 * SECOND);
    uploader(&mut t, 2, 100);
    assert_eq!((t.stack.counters().unread_reset, t.stack.connection_count()), (0, 2));
}

#[test]
fn writers_that_found_the_pool_empty_are_woken_when_it_is_not() {
    let mut t = Script::established_with(modern(), Config { send_pool: 4096, ..Config::default() });
    let first = t.conn();
    t.server_sends(1, 4096);
    t.next_client(40_001, EPOCH);
    t.sends(". 1:1(0) ack 1");
    let second = t.conn();
    assert_eq!(t.stack.send(t.now, second, b"x"), Err(Error::WouldBlock));
    t.stack.abort(t.now, first);
    t.sends(". 1:1(0) ack 1");
    assert!(t.events.contains(&Event::Writable(second)));
    assert_eq!(t.stack.send(t.now, second, b"x"), Ok(1));
}

#[test]
fn readers_with_closed_windows_leave_memory_to_whoever_comes_next() {
    const POOL: usize = 4 << 20;
    let mut t = Script::syn_with(modern(), Config { send_pool: POOL, ..Config::default() });
    let data = vec![0; 100_000];
    for port in 1..=200 {
        t.window = 0;
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        let sent = t.stack.send(t.now, id, &data).unwrap();
        assert!(sent >= 4096, "client {port} got {sent}");
        assert_eq!(t.stack.send(t.now, id, &data), Err(Error::WouldBlock));
    }
    assert!(t.stack.buffered_bytes() < POOL);
}

#[test]
fn peers_that_keep_their_windows_closed_are_reset_while_memory_is_short_the_longest_stalled_first() {
    let config = Config { send_pool: 64 * 4096, ..Config::default() };
    let mut t = Script::syn_with(modern(), config);
    for port in 1..=60 {
        t.window = 0;
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        t.stack.send(t.now, id, &[0; 4096]).unwrap();
        t.wait(SECOND / 100);
    }
    t.wait(29 * SECOND);
    assert_eq!((t.stack.counters().stalls_reset, t.stack.connection_count()), (0, 60));
    t.wait(2 * SECOND);
    // As many as make the pool one that is not short.
    assert_eq!((t.stack.counters().stalls_reset, t.stack.buffered_bytes()), (4, 56 * 4096));
    for port in 1..=60 {
        t.offer.port = port;
        assert_eq!(t.stack.flow_state(t.now, &t.key()).is_none(), port <= 4, "client {port}");
        assert_eq!(t.stack.remembers_reset(&t.key()), port <= 4, "with a reset");
    }
    // Memory is short again: who takes a byte now and then is as bad as who takes none, who takes more is not.
    let ports = [5, 6];
    for (port, acked) in ports.into_iter().zip([20, 2000]) {
        t.window = 1000;
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
        t.window = 0;
        t.sends(&format!(". 1:1(0) ack {acked}"));
    }
    for port in 61..=65 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        t.stack.send(t.now, id, &[0; 4096]).unwrap();
    }
    t.wait(SECOND);
    let gone = ports.map(|port| {
        t.offer.port = port;
        t.stack.flow_state(t.now, &t.key()).is_none()
    });
    assert_eq!(gone, [true, false]);
}

/// Sixty clients for each of whom a chunk waits, of 64 that there are. In each of so many seconds they acknowledge up to what
/// `acknowledges` says.
fn sixty_that(seconds: u32, acknowledges: impl Fn(u32) -> Option<u32>) -> Script {
    let mut t = Script::syn_with(modern(), Config { send_pool: 64 * 4096, ..Config::default() });
    let discard = |t: &mut Script| while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {};
    for port in 1..=60 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        t.stack.send(t.now, id, &[0; 4096]).unwrap();
        discard(&mut t);
    }
    for second in 1..=seconds {
        t.wait(SECOND);
        discard(&mut t);
        for port in (1..=60).filter(|_| acknowledges(second).is_some()) {
            t.next_client(port, EPOCH);
            t.sends(&format!(". 1:1(0) ack {}", 1 + acknowledges(second).unwrap_or(0)));
        }
    }
    t
}

/// Their windows are open all the time: they used to keep their memory until the last retry, and for ever with a byte now and
/// then.
#[test]
fn peers_that_acknowledge_next_to_nothing_are_reset_while_memory_is_short() {
    let reset = |t: &Script| (t.stack.counters().stalls_reset, t.stack.buffered_bytes());
    let silent = |seconds| sixty_that(seconds, |_| None);
    let trickle = |seconds| sixty_that(seconds, |second| second.is_multiple_of(5).then_some(second));
    assert_eq!((reset(&silent(29)), reset(&trickle(29))), ((0, 60 * 4096), (0, 60 * 4096)));
    // As many as make memory one that is not short.
    assert_eq!((reset(&silent(35)), reset(&trickle(35))), ((4, 56 * 4096), (4, 56 * 4096)));
    // Who takes a segment now and then goes on.
    let slow = sixty_that(45, |second| second.is_multiple_of(20).then_some(second * 75));
    assert_eq!(reset(&slow), (0, 60 * 4096));
}

#[test]
fn without_a_limit_a_window_stays_closed_for_as_long_as_it_wants_with_memory_to_spare() {
    let config = Config { zero_window: Duration::ZERO, ..Config::default() };
    let mut t = Script::established_with(modern(), config);
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 100_000);
    for _ in 0..7200 {
        t.wait(SECOND);
        while t.next_sent().is_some() {
            t.tsval += 1;
            t.sends(". 1:1(0) ack 1");
        }
    }
    t.state(State::Established);
    assert!(t.stack.counters().window_probes > 25);
}

#[test]
fn a_zero_window_stall_lasts_as_long_as_the_tunable_says_however_well_probes_are_answered() {
    let config = Config { zero_window: 300 * SECOND, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.server_sends(1, 10_000);
    for second in 0..299 {
        t.wait(SECOND);
        while let Some(probe) = t.next_sent() {
            assert_eq!(probe, ". 0:0(0) ack 1", "after {second} s");
            t.sends(". 1:1(0) ack 1");
        }
    }
    t.state(State::Established);
    t.wait(2 * SECOND);
    t.expect("R. 1:1(0) ack 1");
    t.gone();
    assert!(t.events.contains(&Event::Closed { conn: t.conn(), error: Some(Error::TimedOut) }));
    assert_eq!(t.stack.counters().zero_window_expired, 1);
}

/// Nothing but our FIN waits: its stall used to begin anew with every answer.
#[test]
fn a_fin_waits_no_longer_behind_a_closed_window_than_data_does() {
    let config = Config { zero_window: 300 * SECOND, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    t.server_sends(1, 100);
    t.drain();
    t.window = 0;
    t.sends(". 1:1(0) ack 101");
    t.stack.shutdown(t.now, t.conn()).unwrap();
    for second in 0..299 {
        t.wait(SECOND);
        while let Some(probe) = t.next_sent() {
            assert_eq!(probe, ". 100:100(0) ack 1", "after {second} s");
            t.sends(". 1:1(0) ack 101");
        }
    }
    t.state(State::FinWait1);
    t.wait(2 * SECOND);
    t.expect("R. 101:101(0) ack 1");
    t.gone();
    assert!(t.events.contains(&Event::Closed { conn: t.conn(), error: Some(Error::TimedOut) }));
    assert_eq!(t.stack.counters().zero_window_expired, 1);
}

#[test]
fn a_fin_that_waited_behind_a_closed_window_leaves_when_it_opens() {
    let mut t = Script::established(plain());
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.stack.shutdown(t.now, t.conn()).unwrap();
    t.wait_for_output(". 0:0(0) ack 1");
    t.window = 1000;
    t.sends(". 1:1(0) ack 1");
    t.expect("F. 1:1(0) ack 1");
    t.sends(". 1:1(0) ack 2");
    t.state(State::FinWait2);
    assert!(t.stack.connections.iter().all(crate::tcb::Tcb::is_at_rest), "and nothing of it stays");
}

/// A server whose client took back all it had promised once ten segments were on their way.
fn shut_over_flight(config: Config) -> Script {
    let mut t = Script::established_with(plain(), config);
    t.server_sends(1, 14_600);
    assert_eq!(t.drain().len(), 10);
    t.window = 0;
    t.sends(". 1:1(0) ack 1");
    t.silent();
    t
}

/// It used to be given up like one that says nothing. RFC 9293 §3.8.6: what is out already is repeated to a window that
/// shrank (SHLD-17), and whoever answers a closed window's probes keeps it (MUST-36).
#[test]
fn a_window_closed_over_data_in_flight_is_a_stall_as_long_as_the_peer_answers() {
    for user_timeout in [Duration::ZERO, 10 * SECOND] {
        let config = Config { retries: 3, user_timeout, zero_window: 300 * SECOND, ..Config::default() };
        let mut t = shut_over_flight(config);
        let mut repeated = 0;
        for second in 0..299 {
            t.wait(SECOND);
            for segment in t.drain() {
                assert!(segment.ends_with("(1460) ack 1"), "{segment} after {second} s");
                repeated += 1;
                t.sends(". 1:1(0) ack 1");
            }
        }
        assert!(repeated >= 5, "{repeated}");
        t.state(State::Established);
        t.wait(2 * SECOND);
        assert_eq!(t.drain().last().map(String::as_str), Some("R. 14601:14601(0) ack 1"));
        t.gone();
        assert!(t.events.contains(&Event::Closed { conn: t.conn(), error: Some(Error::TimedOut) }));
        assert_eq!((t.stack.counters().zero_window_expired, t.stack.counters().timed_out), (1, 0));
    }
}

#[test]
fn a_window_closed_over_data_in_flight_opens_again() {
    let mut t = shut_over_flight(Config { retries: 3, ..Config::default() });
    for _ in 0..100 {
        t.wait(10 * SECOND);
        while t.next_sent().is_some() {
            t.sends(". 1:1(0) ack 1");
        }
    }
    t.window = 60_000;
    for acknowledged in (1461..=14_601).step_by(1460) {
        t.sends(&format!(". 1:1(0) ack {acknowledged}"));
        t.drain();
    }
    t.server_sends(14_601, 10);
    t.expect("P. 14601:14611(10) ack 1");
}

#[test]
fn who_closes_a_window_over_data_in_flight_and_falls_silent_is_given_up() {
    for (user_timeout, seconds) in [(Duration::ZERO, 15), (8 * SECOND, 9)] {
        let mut t = shut_over_flight(Config { retries: 3, user_timeout, ..Config::default() });
        for _ in 0..seconds * 100 - 50 {
            t.wait(SECOND / 100);
            t.drain();
        }
        t.state(State::Established);
        t.wait(SECOND);
        t.gone();
        assert_eq!((t.stack.counters().zero_window_expired, t.stack.counters().timed_out), (0, 1));
    }
}

/// What it takes of a little that waits ends the stall: the next one has all its time.
#[test]
fn a_stall_that_ended_with_less_than_a_segment_is_not_held_against_the_next() {
    let config = Config { zero_window: 300 * SECOND, ..Config::default() };
    let mut t = Script::established_with(plain(), config);
    let closed = |t: &mut Script, from: u64, seconds: u64| {
        t.window = 0;
        t.sends(&format!(". 1:1(0) ack {from}"));
        t.server_sends(from, 10);
        for _ in 0..seconds {
            t.wait(SECOND);
            while t.next_sent().is_some() {
                t.sends(&format!(". 1:1(0) ack {from}"));
            }
        }
    };
    closed(&mut t, 1, 200);
    t.window = 1000;
    t.sends(". 1:1(0) ack 1");
    t.expect("P. 1:11(10) ack 1");
    t.sends(". 1:1(0) ack 11");
    closed(&mut t, 11, 200);
    t.state(State::Established);
    assert_eq!(t.stack.counters().zero_window_expired, 0);
}

#[test]
fn connections_that_waited_for_the_pool_and_went_are_not_remembered() {
    let mut t = Script::established_with(modern(), Config { send_pool: 4096, ..Config::default() });
    t.server_sends(1, 4096);
    for port in 1..=1000 {
        t.next_client(port, EPOCH);
        t.sends(". 1:1(0) ack 1");
        let id = t.conn();
        assert_eq!(t.stack.send(t.now, id, b"x"), Err(Error::WouldBlock));
        t.stack.abort(t.now, id);
    }
    assert_eq!(t.stack.connection_count(), 1);
    assert!(t.stack.shared.send_waiters.len() < 100, "{}", t.stack.shared.send_waiters.len());
}

#[test]
fn stalls_that_are_over_are_not_remembered() {
    let mut t = Script::established(modern());
    for round in 0..1000_u32 {
        t.window = 0;
        t.sends(&format!(". 1:1(0) ack {}", 1 + round * 2000));
        t.server_sends(u64::from(1 + round * 2000), 2000);
        t.wait(SECOND / 1000);
        t.window = 1000;
        t.sends(&format!(". 1:1(0) ack {}", 1 + round * 2000));
        while t.stack.poll_transmit(t.now, &mut [0; 2000]).is_some() {}
    }
    assert!(t.stack.stalls.len() < 100, "{}", t.stack.stalls.len());
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
