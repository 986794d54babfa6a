//! What an engine owes the rest of the system: the flow table kept true, an earlier daemon's peers told, frames of other
//! engines passed on, and an end in order. Not how it walks over the table.

use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::map::Flow;
use tcpguard_common::reason::Reason;
use tcpguard_common::seq::Seq;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

use super::world::{CLIENT_MAC, Host, PORT, SERVICE, World, eventually};
use super::{echo, exchange, on_one_thread, pair, pair_with, pattern, read_all};
use crate::config::Tunables;
use crate::engine::flows::{Claim, Ownership};
use crate::engine::net::now;
use crate::engine::{Exchange, SharedTables as _, TcpListener};
use crate::stack::{Link, Origin, State};

/// Two engines of one daemon.
pub(super) fn engines(world: &Rc<World>) -> [Host; 2] {
    let exchange = Exchange::new(2);
    [0, 1].map(|queue| world.guard(queue, exchange.clone(), Tunables::default()))
}

/// What XDP knows of the flow from that port.
pub(super) fn entry(world: &World, port: u16) -> Flow {
    world.flows.borrow()[&key(port)]
}

/// A connection from port 5000 that the server closes first: its end waits out 2MSL, without an entry.
async fn wait_out(world: &World, client: &Host, listener: &TcpListener) {
    let mut stream = client.connect_from(5000).await.unwrap();
    let (mut accepted, _) = listener.accept().await;
    assert!(world.flows.borrow().contains_key(&key(5000)));
    accepted.shutdown().await.unwrap();
    assert!(read_all(&mut stream).await.unwrap().is_empty());
    drop(stream);
    assert!(read_all(&mut accepted).await.unwrap().is_empty());
    eventually("entry deleted", || world.flows.borrow().is_empty()).await;
}

pub(super) fn key(port: u16) -> AnyFlowKey {
    let peer = format!("10.0.0.2:{port}").parse().unwrap();
    AnyFlowKey::new(peer, format!("10.0.0.1:{PORT}").parse().unwrap()).unwrap()
}

#[test]
fn time_wait_trades_the_flow_entry_for_a_fingerprint_until_it_expires() {
    on_one_thread(async {
        let tunables = Tunables { time_wait: Duration::from_millis(400), ..Tunables::default() };
        let (world, guard, client) = pair_with(tunables);
        let listener = guard.listen();
        wait_out(&world, &client, &listener).await;
        assert_eq!(world.fingerprints.borrow().len(), 1);
        let flows = guard.handle.flows(|_| true, 10).await.unwrap();
        assert_eq!(flows.len(), 1);
        assert_eq!((flows[0].key, flows[0].state), (key(5000), State::TimeWait));
        assert_eq!(guard.handle.stats().await.unwrap().time_wait, 1);
        eventually("fingerprint cleared", || world.fingerprints.borrow().is_empty()).await;
        assert!(guard.handle.flows(|_| true, 10).await.unwrap().is_empty());
    });
}

#[test]
fn a_client_that_closes_first_leaves_nothing_behind() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        let (accepted, _) = listener.accept().await;
        stream.shutdown().await.unwrap();
        echo(accepted).await.unwrap();
        assert!(read_all(&mut stream).await.unwrap().is_empty());
        eventually("entry deleted", || world.flows.borrow().is_empty()).await;
        assert!(world.fingerprints.borrow().is_empty());
        assert!(guard.handle.flows(|_| true, 10).await.unwrap().is_empty());
    });
}

#[test]
fn a_tuple_that_comes_back_out_of_time_wait_is_known_to_xdp_again() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        wait_out(&world, &client, &listener).await;

        let mut stream = client.connect_from(5000).await.unwrap();
        let (accepted, _) = listener.accept().await;
        spawn_local(async move { echo(accepted).await.unwrap() });
        for round in 0..3 {
            stream.write_all(&[round]).await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap(), round);
        }
        let entry = entry(&world, 5000);
        assert_eq!((entry.owner, entry.generation, entry.peer_mac), (0, 1, CLIENT_MAC));
        assert!(entry.seq != 0 && entry.ack != 0, "a later daemon tells the flow by its numbers");
        assert!(world.fingerprints.borrow().is_empty());
        assert_eq!(guard.handle.stats().await.unwrap().flows.reinserted, 1);
    });
}

#[test]
fn a_new_daemon_resets_the_old_ones_clients_whether_they_speak_or_not() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let mut talker = client.connect().await;
        let (mut first, _) = listener.accept().await;
        let mut listening = client.connect().await;
        let (mut second, _) = listener.accept().await;
        second.write_all(b"220").await.unwrap();
        listening.read_exact(&mut [0; 3]).await.unwrap();
        let mut silent = client.connect().await;
        let (third, _) = listener.accept().await;
        talker.write_all(b"hello").await.unwrap();
        first.read_exact(&mut [0; 5]).await.unwrap();
        // As a SIGKILL does: nobody is told anything.
        guard.task.abort();
        std::mem::forget((first, second, third, listener));
        world.next_generation();
        let guard = world.guard(0, Exchange::new(1), Tunables::default());
        let listener = guard.listen();
        talker.write_all(b"still there?").await.unwrap();
        for stream in [&mut talker, &mut listening, &mut silent] {
            assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        let stats = guard.handle.stats().await.unwrap();
        assert_eq!(stats.frames.old_generation_resets, 3);
        assert_eq!(stats.net.accepted, 0, "a cookie does not bring back what an earlier daemon had");
        // And it serves.
        let mut stream = client.connect().await;
        let (accepted, _) = listener.accept().await;
        spawn_local(async move { echo(accepted).await.unwrap() });
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
    });
}

#[test]
fn frames_that_arrive_at_another_engine_reach_their_owner() {
    on_one_thread(async {
        let world = World::new(3);
        let exchange = Exchange::new(3);
        let guards: Vec<_> =
            (0..3).map(|queue| world.guard(queue, exchange.clone(), Tunables::default())).collect();
        let client = world.client();
        for guard in &guards {
            let listener = guard.listen();
            spawn_local(async move {
                loop {
                    let (accepted, _) = listener.accept().await;
                    spawn_local(async move { echo(accepted).await.unwrap() });
                }
            });
        }
        let mut streams = Vec::new();
        for queue in 0..3 {
            world.steer.set(queue);
            streams.push(client.connect().await);
            eventually("adopted", || world.flows.borrow().len() == streams.len()).await;
        }
        // Every flow changes its queue with every round.
        let sent = pattern(20_000);
        for round in 0..6_u32 {
            for (index, stream) in streams.iter_mut().enumerate() {
                world.steer.set((round + index as u32) % 3);
                stream.write_all(&sent).await.unwrap();
                let mut received = vec![0; sent.len()];
                stream.read_exact(&mut received).await.unwrap();
                assert!(received == sent);
            }
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            world.steer.set((index as u32 + 1) % 3);
            stream.shutdown().await.unwrap();
            assert!(read_all(stream).await.unwrap().is_empty());
        }
        eventually("entries deleted", || world.flows.borrow().is_empty()).await;
        let (mut out, mut taken) = (0, 0);
        for guard in &guards {
            let stats = guard.handle.stats().await.unwrap();
            assert_eq!(stats.net.accepted, 1, "each flow has one owner");
            assert_eq!(stats.frames.forward_lost, 0);
            out += stats.frames.forwarded_out;
            taken += stats.frames.forwarded_in;
        }
        assert!(out > 0 && out == taken, "{out} out, {taken} in");
    });
}

#[test]
fn a_router_is_heard_by_the_engine_of_the_flow_whichever_queue_its_complaints_come_to() {
    on_one_thread(async {
        for queue in [0, 1] {
            let world = World::new(2);
            let [first, second] = engines(&world);
            let client = world.client();
            let (listener, _other) = (first.listen(), second.listen());
            let mut stream = client.connect().await;
            let (mut accepted, _) = listener.accept().await;
            world.narrow.set(1300);
            world.steer.set(queue);
            let sent = pattern(100_000);
            let sending = sent.clone();
            spawn_local(async move {
                accepted.write_all(&sending).await.unwrap();
                accepted.shutdown().await.unwrap();
            });
            assert!(read_all(&mut stream).await.unwrap() == sent);
            let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
            assert_eq!((first.stack.mtu_lowered, first.stack.timeouts), (1, 0));
            assert!(first.stack.icmp_heard > 0 && world.count(Reason::IcmpTooBig) > 0);
            assert_eq!(second.frames.forwarded_out > 0, queue == 1);
            assert_eq!(second.stack.icmp_heard, 0);
        }
    });
}

#[test]
fn a_moved_upload_loses_nothing_between_engines() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = Rc::new(world.client());
        let (listener, _other) = (first.listen(), second.listen());
        // More flows than may be looked up in one turn, each with bursts of its own.
        let mut transfers = Vec::new();
        for index in 0..40 {
            let stream = client.connect().await;
            let (accepted, _) = listener.accept().await;
            transfers.push((stream, accepted, pattern(200_000 + index)));
        }
        world.steer.set(1);
        let transfers = transfers.into_iter().map(|(stream, accepted, sent)| {
            spawn_local(async move {
                let echoed = spawn_local(async move { echo(accepted).await.unwrap() });
                assert!(exchange(stream, &sent).await == sent);
                echoed.await.unwrap();
            })
        });
        for transfer in transfers.collect::<Vec<_>>() {
            transfer.await.unwrap();
        }
        let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
        assert_eq!((first.net.accepted, second.net.accepted), (40, 0));
        assert!(second.frames.misses > 40 * 100, "{} segments moved", second.frames.misses);
        assert_eq!(
            (second.frames.misses_dropped, second.frames.forward_lost, second.frames.orphans),
            (0, 0, 0)
        );
    });
}

#[test]
fn the_first_data_segment_at_another_queue_is_not_adopted_twice() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = world.client();
        let (listener, _other) = (first.listen(), second.listen());
        let mut stream = client.connect().await;
        let (mut accepted, _) = listener.accept().await;
        // It still carries the cookie: only the flow table says whose it is.
        world.steer.set(1);
        stream.write_all(b"first").await.unwrap();
        let mut read = [0; 5];
        accepted.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"first");
        assert_eq!(second.handle.stats().await.unwrap().connections, 0);
    });
}

#[test]
fn a_tuple_that_lives_again_under_a_new_daemon_has_the_new_ones_entry() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let stream = client.connect_from(5000).await.unwrap();
        let (accepted, _) = listener.accept().await;
        let old = entry(&world, 5000);
        guard.task.abort();
        std::mem::forget((accepted, listener));
        world.next_generation();
        let guard = world.guard(0, Exchange::new(1), Tunables::default());
        let listener = guard.listen();
        // Its reset is lost, so that only the handshake tells that the peer has begun anew.
        world.lose.set(1);
        stream.abort();
        eventually("lost", || world.lose.get() == 0).await;
        let mut stream = client.connect_from(5000).await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        eventually("entry replaced", || entry(&world, 5000).generation == 2).await;
        let new = entry(&world, 5000);
        assert_eq!((new.owner, new.peer_mac), (0, CLIENT_MAC));
        assert!(new.seq != old.seq && new.ack != old.ack, "the numbers are the dead connection's");
        accepted.write_all(b"220").await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        assert_eq!(guard.handle.stats().await.unwrap().frames.old_generation_resets, 0);
    });
}

#[test]
fn a_dead_daemons_client_whose_reset_was_lost_gets_another() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let mut stream = client.connect().await;
        let (mut accepted, _) = listener.accept().await;
        stream.write_all(b"request").await.unwrap();
        accepted.read_exact(&mut [0; 7]).await.unwrap();
        guard.task.abort();
        std::mem::forget((accepted, listener));
        world.next_generation();
        let guard = world.guard(0, Exchange::new(1), Tunables::default());
        world.lose_sent.set(1);
        stream.write_all(b"still there?").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(world.lose_sent.get(), 0, "the first reset was sent");
        let stats = guard.handle.stats().await.unwrap();
        assert_eq!((stats.frames.old_generation_resets, world.flows.borrow().len()), (2, 1));
    });
}

#[test]
fn a_fingerprint_that_takes_another_one_s_place_is_counted() {
    let world = World::new(1);
    let mut flows = Ownership::new(world.tables(), 0, 1, now());
    flows.time_wait(now(), key(5000));
    flows.time_wait(now(), key(5000));
    assert_eq!(flows.counters.fingerprints_displaced, 0);
    let words = world.fingerprints.borrow().clone();
    words.into_keys().for_each(|bucket| world.fingerprints.borrow_mut().entry(bucket).or_default()[0] ^= 1);
    flows.time_wait(now(), key(5000));
    assert_eq!(flows.counters.fingerprints_displaced, 1);
}

#[test]
fn segments_of_a_dead_daemons_flow_cause_few_resets() {
    let world = World::new(1);
    let start = now();
    let mut flows = Ownership::new(world.tables(), 0, 2, start);
    let second = Duration::from_secs(1);
    let resets = (0..10_000).filter(|&step| flows.may_reset(start + second * step / 10_000, key(5000)));
    assert_eq!(resets.count(), 10);
}

#[test]
fn a_reused_tuples_first_segment_is_not_adopted_by_the_next_daemon() {
    for was_alive in [false, true] {
        on_one_thread(async move {
            let (world, guard, client) = pair();
            let listener = guard.listen();
            if was_alive {
                let stream = client.connect_from(5000).await.unwrap();
                std::mem::forget(listener.accept().await);
                world.lose.set(1);
                stream.abort();
                eventually("the client's reset lost", || world.lose.get() == 0).await;
            } else {
                wait_out(&world, &client, &listener).await;
            }
            let mut stream = client.connect_from(5000).await.unwrap();
            let (accepted, _) = listener.accept().await;
            let stats = guard.handle.stats().await.unwrap();
            assert_eq!((stats.stack.reincarnated, stats.reincarnated), (1, vec![(SERVICE, 1)]));
            world.lose.set(1);
            stream.write_all(b"request").await.unwrap();
            eventually("the request lost", || world.lose.get() == 0).await;
            guard.task.abort();
            std::mem::forget((accepted, listener));
            world.next_generation();
            let guard = world.guard(0, Exchange::new(1), Tunables::default());
            let _listener = guard.listen();
            // For all that the next daemon knows, the request was heard and only its answer was lost.
            assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            assert_eq!(guard.handle.stats().await.unwrap().net.accepted, 0);
        });
    }
}

#[test]
fn a_flow_whose_entry_vanished_before_its_adoption_is_known_to_xdp_again() {
    on_one_thread(async {
        let world = World::new(2);
        let guards = engines(&world);
        let client = world.client();
        let (listener, _other) = (guards[0].listen(), guards[1].listen());
        world.forget.set(1);
        let mut stream = client.connect_from(5000).await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        // From here on no segment of the client's carries the cookie.
        accepted.write_all(b"220").await.unwrap();
        stream.read_exact(&mut [0; 3]).await.unwrap();
        let entry = entry(&world, 5000);
        assert_eq!((entry.owner, entry.generation, entry.peer_mac), (0, 1, CLIENT_MAC));
        stream.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read_u8().await.unwrap(), b'x');
        assert_eq!(world.count(Reason::AckInvalid), 0);
    });
}

#[test]
fn a_tuple_that_comes_back_at_another_queue_goes_to_the_engine_that_has_it_in_time_wait() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = world.client();
        let (listener, _other) = (first.listen(), second.listen());
        wait_out(&world, &client, &listener).await;
        world.steer.set(1);
        let mut stream = client.connect_from(5000).await.unwrap();
        let (accepted, _) = listener.accept().await;
        spawn_local(async move { echo(accepted).await.unwrap() });
        stream.write_all(b"x").await.unwrap();
        assert_eq!(stream.read_u8().await.unwrap(), b'x');
        let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
        assert_eq!((first.stack.reincarnated, first.time_wait), (1, 0), "RFC 6191 was not asked");
        assert_eq!(second.net.accepted, 0);
        assert_eq!(entry(&world, 5000).owner, 0);
    });
}

#[test]
fn a_handshake_that_another_engine_finishes_is_no_longer_half_open() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = world.client();
        let (listener, _other) = (first.listen(), second.listen());
        wait_out(&world, &client, &listener).await;
        // The second engine remembers the SYN, the first has the tuple in TIME_WAIT.
        world.stateful.set(true);
        world.steer.set(1);
        let _stream = client.connect_from(5000).await.unwrap();
        let (_accepted, _) = listener.accept().await;
        let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
        assert_eq!((first.stack.reincarnated, second.stack.half_open_entered), (1, 1));
        assert_eq!((second.stack.half_open_completed, second.half_open), (1, 0));
    });
}

#[test]
fn a_tuple_reused_out_of_time_wait_at_another_queue_has_one_connection() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = world.client();
        let (listener, other) = (first.listen(), second.listen());
        wait_out(&world, &client, &listener).await;
        // Its place was taken by another flow's: XDP takes the next handshake for a stranger's.
        world.fingerprints.borrow_mut().clear();
        world.steer.set(1);
        let mut stream = client.connect_from(5000).await.unwrap();
        let (mut accepted, _) = other.accept().await;
        // The first data still carries the cookie, the second does not.
        world.steer.set(0);
        for round in 0..2 {
            stream.write_all(&[round]).await.unwrap();
            assert_eq!(accepted.read_u8().await.unwrap(), round);
            accepted.write_all(b"x").await.unwrap();
            stream.read_u8().await.unwrap();
        }
        let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
        assert_eq!((first.net.accepted, second.net.accepted), (1, 1), "the request ran twice");
        assert_eq!((first.frames.orphans, second.frames.forwarded_in > 1), (0, true));
        assert_eq!(entry(&world, 5000).owner, 1);
    });
}

#[test]
fn an_engine_adopts_nothing_in_place_of_one_that_is_too_busy_to_answer() {
    on_one_thread(async {
        let world = World::new(2);
        let exchange = Exchange::new(2);
        // An engine that has the flow in TIME_WAIT, and whose queue is full.
        let _inbox = exchange.join(0);
        while exchange.broadcast(1, b"") > 0 {}
        world.tables().set_fingerprint(&key(5000));
        let guard = world.guard(1, exchange, Tunables::default());
        world.steer.set(1);
        let client = world.client();
        let _stream = client.connect_from(5000).await.unwrap();
        eventually("the handshake's end", || world.count(Reason::TimeWait) > 0).await;
        // A turn of the engine tells its numbers before it looks at its ring.
        guard.handle.stats().await.unwrap();
        let stats = guard.handle.stats().await.unwrap();
        assert_eq!((stats.connections, stats.frames.forward_lost, stats.frames.orphans), (0, 1, 0));
    });
}

#[test]
fn an_entry_is_not_deleted_before_a_new_incarnations_takes_its_place() {
    let world = World::new(2);
    let mut flows = Ownership::new(world.tables(), 0, 1, now());
    let (now, key, link) = (now(), key(5000), Link { dst: CLIENT_MAC, ..Link::default() });
    let old = Origin { link, seq: Seq(1), ack: Seq(2) };
    flows.insert(now, key, &old);
    assert!(matches!(flows.claim(&key), Claim::Mine(_)));
    flows.released(now, key);
    assert_eq!(flows.claim(&key), Claim::Missing);
    assert_eq!(entry(&world, 5000).owner, 0, "XDP made one for another queue");
    flows.adopted(now, key, || Some(Origin { seq: Seq(3), ..old }));
    flows.delete_due(now + Duration::from_secs(1));
    assert_eq!((entry(&world, 5000).seq, flows.counters.deleted), (3, 0));
    assert!(matches!(flows.claim(&key), Claim::Mine(_)));
}

#[test]
fn a_drain_waits_for_what_ends_and_resets_what_does_not() {
    on_one_thread(async {
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut brief = client.connect().await;
        let (accepted, _) = listener.accept().await;
        spawn_local(async move { echo(accepted).await.unwrap() });
        let mut endless = client.connect().await;
        let (_held, _) = listener.accept().await;
        let handle = guard.handle.clone();
        let drain = spawn_local(async move { handle.drain(Duration::from_millis(300)).await.unwrap() });
        tokio::time::sleep(Duration::from_millis(30)).await;
        // Nobody is admitted any more.
        let mut late = client.connect().await;
        assert_eq!(late.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        brief.write_all(b"x").await.unwrap();
        assert_eq!(brief.read_u8().await.unwrap(), b'x');
        brief.shutdown().await.unwrap();
        assert!(read_all(&mut brief).await.unwrap().is_empty());
        let report = drain.await.unwrap();
        assert_eq!((report.finished, report.reset), (1, 1));
        assert_eq!(endless.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(guard.handle.stats().await.unwrap().connections, 0);
    });
}

#[test]
fn a_drain_is_over_when_every_reset_has_left() {
    on_one_thread(async {
        const CONNECTIONS: usize = 3000;
        let (_world, guard, client) = pair();
        let listener = guard.listen();
        let mut streams = Vec::new();
        let mut held = Vec::new();
        for _ in 0..CONNECTIONS {
            streams.push(client.connect().await);
            held.push(listener.accept().await);
        }
        let report = guard.handle.drain(Duration::ZERO).await.unwrap();
        assert_eq!((report.finished, report.reset), (0, CONNECTIONS as u64));
        // As the daemon does next: nothing leaves any more.
        guard.task.abort();
        for stream in &mut streams {
            assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        }
        std::mem::forget(held);
    });
}

#[test]
fn a_client_whose_reset_was_lost_gets_another_when_it_speaks() {
    for engines in [1, 2] {
        on_one_thread(async move {
            let world = World::new(engines);
            let exchange = Exchange::new(engines as usize);
            let hosts: Vec<_> =
                (0..engines).map(|queue| world.guard(queue, exchange.clone(), Tunables::default())).collect();
            let client = world.client();
            let listener = hosts[0].listen();
            let mut stream = client.connect().await;
            let (mut accepted, _) = listener.accept().await;
            stream.write_all(b"request").await.unwrap();
            accepted.read_u8().await.unwrap();
            tokio::time::sleep(Duration::from_millis(100)).await;
            world.lose_sent.set(1);
            drop(accepted);
            // Longer than sweeps take: the entry must survive them.
            tokio::time::sleep(Duration::from_millis(2500)).await;
            assert_eq!(world.lose_sent.get(), 0, "the reset was sent");
            assert_eq!(world.flows.borrow().len(), 1);
            world.steer.set(engines - 1);
            stream.write_all(b"more").await.unwrap();
            assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
            let stats = hosts[0].handle.stats().await.unwrap();
            assert_eq!((stats.stack.resets_repeated, stats.flows.swept), (1, 0));
            eventually("entry deleted", || world.flows.borrow().is_empty()).await;
        });
    }
}

#[test]
fn a_request_that_is_reset_unheard_is_reset_again_at_whichever_queue_it_comes_back() {
    on_one_thread(async {
        let world = World::new(2);
        let exchange = Exchange::new(2);
        let hosts: Vec<_> =
            (0..2).map(|queue| world.guard(queue, exchange.clone(), Tunables::default())).collect();
        let client = world.client();
        let listener = hosts[0].listen();
        let mut stream = client.connect().await;
        let (accepted, _) = listener.accept().await;
        world.lose.set(1);
        stream.write_all(b"request").await.unwrap();
        tokio::task::yield_now().await;
        assert_eq!(world.lose.get(), 0, "the request was lost");
        hosts[0].net.with(|state| state.stack.abort_some(now(), 1));
        world.lose_sent.set(1);
        drop(accepted);
        // Kernel clients change their queue with a retransmission.
        world.steer.set(1);
        assert_eq!(stream.read_u8().await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(hosts[0].handle.stats().await.unwrap().stack.resets_repeated, 1);
        assert_eq!(hosts[1].handle.stats().await.unwrap().stack.replays_refused, 1);
    });
}

#[test]
fn numbers_agree_with_what_happened() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let client = Rc::new(client);
        let mut streams = Vec::new();
        let mut accepted = Vec::new();
        for _ in 0..50 {
            let mut stream = client.connect().await;
            let (mut other, _) = listener.accept().await;
            stream.write_all(&pattern(1000)).await.unwrap();
            other.read_exact(&mut [0; 1000]).await.unwrap();
            other.write_all(&pattern(3000)).await.unwrap();
            stream.read_exact(&mut [0; 3000]).await.unwrap();
            streams.push(stream);
            accepted.push(other);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        let flows = guard.handle.flows(|_| true, usize::MAX).await.unwrap();
        assert_eq!(flows.len(), 50);
        for flow in &flows {
            assert_eq!((flow.state, flow.service), (State::Established, Some(SERVICE)));
            assert_eq!((flow.bytes_in, flow.bytes_out), (1000, 3000));
        }
        assert_eq!(guard.handle.flows(|_| true, 7).await.unwrap().len(), 7);
        let one = guard.handle.flows(|flow| flow.key == key(40_010), 7).await.unwrap();
        assert_eq!(one.len(), 1);
        let states = guard.handle.states().await.unwrap();
        let established = states.iter().find(|(state, _)| *state == State::Established).unwrap();
        assert_eq!(established.1, 50);
        let stats = guard.handle.stats().await.unwrap();
        assert_eq!((stats.connections, stats.net.accepted), (50, 50));
        let redirected: u64 =
            [Reason::AckValid, Reason::FlowKnown].into_iter().map(|reason| world.count(reason)).sum();
        assert_eq!(stats.frames.received, redirected);
        assert_eq!((world.count(Reason::CookieSent), world.count(Reason::AckValid)), (50, 50));
    });
}

#[test]
fn a_flow_that_fills_the_ring_is_held_to_its_pace_and_others_are_not() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        let mut flooder = client.connect().await;
        let (_flooded, _) = listener.accept().await;
        let (mut other, mut accepted) = (client.connect().await, listener.accept().await.0);
        let flood = World::segment_of(flooder.local_addr().port());
        assert!(!world.is_under_pressure(0));
        (0..5000).for_each(|_| world.arrive(flood.clone()));
        assert_eq!(world.count(Reason::FlowRate), 0, "nobody has looked at the ring yet");
        eventually("pressure", || world.is_under_pressure(0)).await;
        (0..5000).for_each(|_| world.arrive(flood.clone()));
        assert!(world.count(Reason::FlowRate) > 4000, "{}", world.count(Reason::FlowRate));
        let refused = world.count(Reason::FlowRate);
        other.write_all(b"something").await.unwrap();
        accepted.read_exact(&mut [0; 9]).await.unwrap();
        assert_eq!(world.count(Reason::FlowRate), refused, "a segment of another flow");
        eventually("the end of pressure", || !world.is_under_pressure(0)).await;
        flooder.write_all(b"still open").await.unwrap();
        assert_eq!(world.count(Reason::FlowRate), refused);
    });
}
