//! Tunables of the stack, set while connections live.

use std::time::Duration;

use tcpguard_common::packet::Flags;

use super::client::{Client, Sent};
use crate::stack::{ConnId, Error, Received, StackDrop, State};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const PORT: u16 = 40_000;
/// An hour: longer than anything that these tests wait for.
const LONG: Duration = Duration::from_secs(3600);

/// When segments left, in milliseconds, to ten of them: timers go off a tick late.
fn times(sent: &[(Duration, Sent)]) -> Vec<u128> {
    sent.iter().map(|(after, _)| after.as_millis() / 10 * 10).collect()
}

/// A connection from `port` whose server has closed and whose client has answered with these control bits.
fn closed(client: &mut Client, port: u16, answer: Flags) {
    let conn = client.connect(port);
    client.stack.close(client.now, conn);
    assert_eq!(client.sent().len(), 1, "the server's FIN");
    client.send(port, answer, 1, 2);
    client.sent();
}

/// A connection with so many bytes on their way to the client, which says nothing any more.
fn unacknowledged(client: &mut Client, bytes: usize) -> ConnId {
    let conn = client.connect(PORT);
    assert_eq!(client.stack.send(client.now, conn, &vec![7; bytes]), Ok(bytes));
    assert!(!client.sent().is_empty());
    conn
}

#[test]
pub(super) fn a_time_wait_ends_when_the_tunable_says() {
    let mut client = Client::new(&[("time-wait", "5m")]);
    closed(&mut client, PORT, Flags::FIN | Flags::ACK);
    client.wait(100 * SECOND);
    assert_eq!(client.state(PORT), Some(State::TimeWait));
    client.tune(&[("time-wait", "2m")]);
    client.wait(19 * SECOND);
    assert_eq!(client.state(PORT), Some(State::TimeWait));
    client.wait(2 * SECOND);
    assert_eq!(client.state(PORT), None);
}

#[test]
pub(super) fn time_waits_beyond_the_limit_make_room() {
    let mut client = Client::new(&[]);
    (0..100).for_each(|more| closed(&mut client, PORT + more, Flags::FIN | Flags::ACK));
    assert_eq!(client.stack.time_wait_count(), 100);
    client.tune(&[("time-wait-limit", "8")]);
    (100..120).for_each(|more| closed(&mut client, PORT + more, Flags::FIN | Flags::ACK));
    assert!(client.stack.time_wait_count() <= 8, "{}", client.stack.time_wait_count());
    assert!(client.stack.counters().time_wait_evicted >= 112);
}

#[test]
pub(super) fn a_fin_wait_2_ends_when_the_tunable_says() {
    let mut client = Client::new(&[]);
    closed(&mut client, PORT, Flags::ACK);
    assert_eq!(client.state(PORT), Some(State::FinWait2));
    client.tune(&[("fin-wait-2", "5s")]);
    client.wait(4 * SECOND);
    assert_eq!(client.state(PORT), Some(State::FinWait2));
    client.wait(2 * SECOND);
    assert_eq!(client.state(PORT), None);
}

#[test]
pub(super) fn orphans_beyond_the_limit_are_reset() {
    let mut client = Client::new(&[]);
    (0..20).for_each(|more| closed(&mut client, PORT + more, Flags::ACK));
    assert_eq!(client.stack.counters().orphans_reset, 0);
    client.tune(&[("orphan-limit", "16")]);
    let reset: Vec<_> = client.wait(MS).iter().map(|(_, sent)| (sent.port, sent.flags)).collect();
    assert!(reset.iter().all(|(_, flags)| flags.contains(Flags::RST)));
    assert_eq!(reset.iter().map(|(port, _)| port - PORT).collect::<Vec<_>>(), [0, 1, 2, 3]);
}

#[test]
pub(super) fn a_last_ack_that_nobody_answers_is_given_up_after_orphan_retries() {
    for (value, expected) in [("2", 2), ("6", 6)] {
        let mut client = Client::new(&[]);
        let conn = client.connect(PORT);
        client.send(PORT, Flags::FIN | Flags::ACK, 1, 1);
        client.stack.close(client.now, conn);
        client.sent();
        assert_eq!(client.state(PORT), Some(State::LastAck));
        client.tune(&[("orphan-retries", value)]);
        let sent = client.wait(LONG);
        assert_eq!(sent.iter().filter(|(_, sent)| sent.flags.contains(Flags::FIN)).count(), expected);
        assert_eq!(client.state(PORT), None);
    }
}

#[test]
pub(super) fn an_acknowledgment_waits_for_as_long_as_delayed_ack() {
    for (value, expected) in [("20ms", 20), ("300ms", 300)] {
        let mut client = Client::new(&[]);
        client.connect(PORT);
        client.tune(&[("delayed-ack", value)]);
        // The first ones are acknowledged at once.
        let late = (0..100).find(|&byte| {
            client.send_byte(PORT, 1 + byte);
            client.sent().is_empty()
        });
        assert!(late.is_some(), "none waits");
        assert_eq!(times(&client.wait(SECOND)), [expected]);
    }
}

#[test]
pub(super) fn the_first_retransmission_comes_after_the_initial_rto() {
    for (value, expected) in [("300ms", 300), ("2s", 2000)] {
        let mut client = Client::new(&[]);
        client.tune(&[("initial-rto", value)]);
        unacknowledged(&mut client, 100);
        assert_eq!(times(&client.wait(LONG))[0], expected);
    }
}

#[test]
pub(super) fn no_retransmission_comes_sooner_than_the_minimum() {
    for (value, expected) in [("50ms", 50), ("3s", 3000)] {
        let mut client = Client::new(&[]);
        let conn = unacknowledged(&mut client, 100);
        // A round trip of a millisecond.
        client.wait(MS);
        client.send(PORT, Flags::ACK, 1, 101);
        client.tune(&[("min-rto", value)]);
        client.wait(MS);
        assert_eq!(client.stack.send(client.now, conn, &[7; 100]), Ok(100));
        assert_eq!(client.sent().len(), 1);
        let first = times(&client.wait(LONG))[0];
        assert!((expected..expected + 20).contains(&first), "{first} ms with a minimum of {value}");
    }
}

#[test]
pub(super) fn retransmissions_back_off_to_the_maximum_and_no_further() {
    let mut client = Client::new(&[]);
    client.tune(&[("max-rto", "4s"), ("retries", "6")]);
    unacknowledged(&mut client, 100);
    assert_eq!(times(&client.wait(LONG))[..6], [1000, 3000, 7000, 11_000, 15_000, 19_000]);
}

#[test]
pub(super) fn data_is_sent_again_as_often_as_the_tunable_says() {
    for (value, expected) in [("2", 2), ("5", 5)] {
        let mut client = Client::new(&[]);
        unacknowledged(&mut client, 100);
        client.tune(&[("retries", value)]);
        let sent = client.wait(LONG);
        let copies =
            sent.iter().filter(|(_, sent)| sent.seq == 1 && !sent.flags.contains(Flags::RST)).count();
        assert_eq!(copies, expected, "{sent:?}");
        assert!(matches!(client.closed[..], [(_, Some(Error::TimedOut))]), "{:?}", client.closed);
    }
}

#[test]
pub(super) fn unacknowledged_data_ends_a_connection_after_the_user_timeout() {
    let mut client = Client::new(&[]);
    unacknowledged(&mut client, 100);
    client.tune(&[("user-timeout", "10s")]);
    client.wait(9 * SECOND);
    assert_eq!(client.closed, []);
    let sent = client.wait(2 * SECOND);
    assert!(matches!(client.closed[..], [(_, Some(Error::TimedOut))]), "{:?}", client.closed);
    assert!(sent.iter().any(|(_, sent)| sent.flags.contains(Flags::RST)), "{sent:?}");
}

#[test]
pub(super) fn a_closed_window_ends_a_connection_after_zero_window() {
    let mut client = Client::new(&[]);
    client.window = 0;
    let conn = client.connect(PORT);
    assert_eq!(client.stack.send(client.now, conn, &[7; 100]), Ok(100));
    let answer_for = |client: &mut Client, seconds: u64| {
        for _ in 0..seconds {
            for _ in client.wait(SECOND) {
                client.send(PORT, Flags::ACK, 1, 1);
            }
        }
    };
    answer_for(&mut client, 3590);
    assert_eq!(client.closed, []);
    client.tune(&[("zero-window", "0s")]);
    answer_for(&mut client, 3600);
    assert_eq!(client.closed, []);
    client.tune(&[("zero-window", "2h1m")]);
    answer_for(&mut client, 60);
    assert_eq!(client.closed, []);
    answer_for(&mut client, 120);
    assert!(matches!(client.closed[..], [(_, Some(Error::TimedOut))]), "{:?}", client.closed);
}

#[test]
pub(super) fn a_silent_client_is_asked_after_keepalive_time() {
    let mut client = Client::new(&[]);
    client.connect(PORT);
    assert_eq!(client.wait(LONG), []);
    client.tune(&[("keepalive-time", "2h")]);
    let sent = client.wait(LONG + 2 * SECOND);
    // To a second: an hour had passed already.
    assert!(matches!(sent[..], [(after, sent)] if after + SECOND >= LONG && sent.seq == 0), "{sent:?}");
}

#[test]
pub(super) fn questions_are_an_interval_apart() {
    let mut client = Client::new(&[("keepalive-time", "10s")]);
    client.connect(PORT);
    client.tune(&[("keepalive-interval", "20s")]);
    let asked = times(&client.wait(60 * SECOND));
    assert_eq!(asked.windows(2).map(|pair| pair[1] - pair[0]).collect::<Vec<_>>(), [20_000, 20_000]);
}

#[test]
pub(super) fn as_many_questions_are_asked_as_the_tunable_says() {
    let mut client = Client::new(&[("keepalive-time", "10s"), ("keepalive-interval", "1s")]);
    client.connect(PORT);
    client.tune(&[("keepalive-probes", "4")]);
    let sent = client.wait(LONG);
    let (resets, asked): (Vec<_>, Vec<_>) =
        sent.iter().copied().partition(|(_, sent)| sent.flags.contains(Flags::RST));
    assert_eq!((asked.len(), resets.len()), (4, 1), "{sent:?}");
    assert!(matches!(client.closed[..], [(_, Some(Error::TimedOut))]), "{:?}", client.closed);
}

#[test]
pub(super) fn a_loss_leaves_half_a_window_to_newreno_and_more_to_cubic() {
    let left = |value| {
        let mut client = Client::new(&[("initial-rto", "1s")]);
        client.tune(&[("congestion-control", value)]);
        let conn = unacknowledged(&mut client, 10 * 1460);
        // Three duplicates of an acknowledgment: the first segment is lost.
        for _ in 0..3 {
            client.send(PORT, Flags::ACK, 1, 1);
        }
        assert_eq!(client.sent()[0].seq, 1, "what is lost is sent again");
        client.stack.view(conn).unwrap().ssthresh.unwrap()
    };
    // RFC 5681 §3.1 and RFC 9438 §4.6.
    assert_eq!((left("newreno"), left("cubic")), (5 * 1460, 7 * 1460));
}

#[test]
pub(super) fn a_syn_ack_is_sent_again_after_syn_timeout() {
    for (value, expected) in [("200ms", [200, 600, 1400]), ("3s", [3000, 9000, 21_000])] {
        let mut client = Client::new(&[]);
        client.syn(PORT);
        assert_eq!(client.sent().len(), 1);
        client.tune(&[("syn-timeout", value), ("syn-ack-retries", "3")]);
        let sent = client.wait(50 * SECOND);
        assert!(sent.iter().all(|(_, sent)| sent.flags == Flags::SYN | Flags::ACK));
        let late = times(&sent).iter().zip(expected).map(|(at, due)| at - due).collect::<Vec<_>>();
        assert!(late.len() == 3 && late.iter().all(|&late| late <= 200), "{:?}", times(&sent));
    }
}

#[test]
pub(super) fn a_syn_ack_is_sent_again_as_often_as_the_tunable_says() {
    for (value, expected) in [("0", 0), ("2", 2), ("4", 4)] {
        let mut client = Client::new(&[]);
        client.syn(PORT);
        client.sent();
        client.tune(&[("syn-ack-retries", value)]);
        assert_eq!(client.wait(100 * SECOND).len(), expected);
        assert_eq!((client.stack.half_open_count(), client.stack.counters().half_open_timed_out), (0, 1));
    }
}

#[test]
pub(super) fn half_open_connections_beyond_the_limit_make_room() {
    let mut client = Client::new(&[]);
    for more in 0..100 {
        client.syn(PORT + more);
    }
    assert_eq!(client.stack.half_open_count(), 100);
    client.tune(&[("half-open-limit", "8")]);
    assert!(client.stack.half_open_count() <= 8, "{}", client.stack.half_open_count());
    for more in 100..120 {
        client.syn(PORT + more);
    }
    assert!(client.stack.half_open_count() <= 8, "{}", client.stack.half_open_count());
}

#[test]
pub(super) fn connections_beyond_the_backlog_wait_or_are_reset() {
    let mut client = Client::new(&[]);
    for port in PORT..PORT + 5 {
        client.acknowledge(port).unwrap();
    }
    client.tune(&[("accept-backlog", "5")]);
    assert_eq!(client.acknowledge(PORT + 5), Err(Received::Dropped(StackDrop::BacklogFull)));
    assert_eq!(client.sent(), []);
    client.tune(&[("accept-overflow", "reset")]);
    assert!(client.acknowledge(PORT + 6).is_err());
    let sent = client.sent();
    assert!(
        matches!(sent[..], [sent] if sent.port == PORT + 6 && sent.flags.contains(Flags::RST)),
        "{sent:?}"
    );
    client.tune(&[("accept-backlog", "6")]);
    client.acknowledge(PORT + 7).unwrap();
}
