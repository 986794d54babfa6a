//! An engine's walks over the flow table: first segments that were lost are made good, also in a full table, and an
//! earlier daemon's entries go in the end.

use std::rc::Rc;
use std::time::Duration;

use tcpguard_common::map::Flow;
use tcpguard_common::seq::Seq;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

use super::duties::{engines, entry, key};
use super::world::{MemoryTables, World, eventually};
use super::{on_one_thread, pair, pair_with, read_all};
use crate::config::Tunables;
use crate::engine::Exchange;
use crate::engine::flows::{Offer, Ownership, Swept};
use crate::engine::net::now;
use crate::stack::{Instant, Link, Origin};

/// There may be entries without a connection.
const UNSETTLED: fn(usize, Instant) -> bool = |_, _| false;

#[test]
fn a_server_that_speaks_first_speaks_even_if_the_clients_ack_is_lost() {
    on_one_thread(async {
        let (world, guard, client) = pair();
        let listener = guard.listen();
        spawn_local(async move {
            loop {
                let (mut accepted, _) = listener.accept().await;
                accepted.write_all(b"220 ready").await.unwrap();
                accepted.shutdown().await.unwrap();
            }
        });
        world.lose.set(1);
        let mut stream = client.connect().await;
        assert_eq!(read_all(&mut stream).await.unwrap(), b"220 ready");
        let flows = guard.handle.stats().await.unwrap().flows;
        assert_eq!(flows.swept, 1);
        assert!(flows.hurried_slices > 0, "the loss was counted, and nobody asked");
    });
}

#[test]
fn a_forwarded_segment_makes_good_the_loss_of_the_first() {
    on_one_thread(async {
        let world = World::new(2);
        let [first, second] = engines(&world);
        let client = world.client();
        let (listener, _other) = (first.listen(), second.listen());
        // The acknowledgement of the SYN-ACK and the first data: the last that carry the cookie.
        world.lose.set(2);
        let mut stream = client.connect().await;
        eventually("the entry", || world.flows.borrow().len() == 1).await;
        stream.write_all(b"one ").await.unwrap();
        eventually("both lost", || world.lose.get() == 0).await;
        world.steer.set(1);
        stream.write_all(b"two").await.unwrap();
        let (mut accepted, _) = listener.accept().await;
        let mut received = [0; 7];
        accepted.read_exact(&mut received).await.unwrap();
        assert_eq!(&received, b"one two");
        let (first, second) = (first.handle.stats().await.unwrap(), second.handle.stats().await.unwrap());
        assert_eq!((first.flows.swept, second.net.accepted), (1, 0), "it was dropped");
    });
}

/// It is a client that says nothing itself: nobody but the sweep would ever bring it in.
#[test]
fn a_client_that_a_full_accept_queue_ignored_comes_in_as_soon_as_there_is_room() {
    on_one_thread(async {
        let (world, guard, client) = pair_with(Tunables { accept_backlog: 1, ..Tunables::default() });
        let listener = guard.listen();
        let first = client.connect_from(5000).await.unwrap();
        eventually("accepted", || world.flows.borrow().len() == 1).await;
        let mut second = client.connect_from(5001).await.unwrap();
        // Longer than a sweep takes to come by: the entry must survive it.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        let stats = guard.handle.stats().await.unwrap();
        assert!(stats.stack.backlog_full >= 2, "the ACK, and the sweep: {}", stats.stack.backlog_full);
        assert_eq!((stats.connections, stats.net.accepted, stats.flows.refused), (1, 1, 0));
        assert!(world.flows.borrow().contains_key(&key(5001)));
        let (accepted, _) = listener.accept().await;
        let (mut late, peer) = listener.accept().await;
        assert_eq!(peer.port(), 5001);
        late.write_all(b"220 ready").await.unwrap();
        let mut said = [0; 9];
        second.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"220 ready");
        drop((first, accepted));
    });
}

/// Sweeps a table for so long, each slice when it is due: how many slices there were, and when an entry of that port was
/// first offered for adoption.
fn sweep_for(
    flows: &mut Ownership<MemoryTables>,
    from: Instant,
    time: Duration,
    port: u16,
) -> (u64, Option<Duration>) {
    sweep_while(flows, from, time, port, UNSETTLED)
}

/// The same of a table that is settled while that is said of it.
fn sweep_while(
    flows: &mut Ownership<MemoryTables>,
    from: Instant,
    time: Duration,
    port: u16,
    is_settled: impl Fn(usize, Instant) -> bool,
) -> (u64, Option<Duration>) {
    let (mut slices, mut offered) = (0, None);
    while flows.deadline() < from + time {
        let now = flows.deadline();
        slices += 1;
        flows.sweep(
            now,
            &is_settled,
            |_| false,
            |_, found, _| {
                assert_eq!(found, key(port));
                offered.get_or_insert(now.since(from));
                Swept::Known
            },
        );
    }
    (slices, offered)
}

#[test]
fn a_first_segment_lost_beside_a_million_flows_is_made_good_in_seconds_and_calm_sweeps_cost_little() {
    const MINUTE: Duration = Duration::from_secs(60);
    let world = World::new(1);
    let mut start = Instant(1 << 40);
    let mut flows = Ownership::new(world.tables(), 0, 1, start);
    world.crowd.set(1_000_000);
    let slices_of_a_sweep = 1_000_000 / 512 + 2;
    // Wherever the walk is when frames are lost.
    for already in [0, 9, 19].map(Duration::from_secs) {
        sweep_for(&mut flows, start, already, 5000);
        start += already;
        let before = flows.counters.hurried_slices;
        let lost = Flow { created: start.0, generation: 1, ..Flow::default() };
        world.flows.borrow_mut().insert(key(5000), lost);
        flows.note_loss(start + Duration::from_millis(100));
        let (slices, offered) = sweep_for(&mut flows, start, MINUTE, 5000);
        let offered = offered.expect("an offer");
        assert!((1..10).contains(&offered.as_secs()), "after {already:?}: {offered:?}");
        let hurried = flows.counters.hurried_slices - before;
        // What was under way, one that began too soon, and one more.
        assert!(hurried <= 3 * slices_of_a_sweep, "after {already:?}: {hurried} slices");
        assert!(slices - hurried <= 6000, "after {already:?}: {slices} slices");
        start += MINUTE;
        world.flows.borrow_mut().clear();
    }
    let before = flows.counters.hurried_slices;
    let (slices, _) = sweep_for(&mut flows, start, MINUTE, 5000);
    assert!(slices <= 6000, "{slices} slices in a calm minute");
    assert_eq!(flows.counters.hurried_slices, before);
}

/// It used to take a tenth of a processor to look through a million flows of which nothing was to be found.
#[test]
fn a_million_flows_that_all_have_connections_are_swept_slowly_and_one_that_has_none_is_found_as_soon_as_ever()
{
    let world = World::new(1);
    let start = Instant(1 << 40);
    let mut flows = Ownership::new(world.tables(), 0, 1, start);
    world.crowd.set(1_000_000);
    let mut after = start;
    let mut sweep_for = |seconds| {
        let time = Duration::from_secs(seconds);
        let swept = sweep_while(&mut flows, after, time, 5000, |entries, _| entries == 1_000_000);
        after += time;
        swept
    };
    let (first, _) = sweep_for(22);
    assert!(first >= 1_000_000 / 512, "an earlier daemon's entries are looked for first: {first} slices");
    for _ in 0..3 {
        let (slices, _) = sweep_for(60);
        assert!((300..=601).contains(&slices), "{slices} slices in a minute");
    }
    let lost = Flow { created: (start + Duration::from_secs(202)).0, generation: 1, ..Flow::default() };
    world.flows.borrow_mut().insert(key(5000), lost);
    let (slices, offered) = sweep_for(60);
    assert!(offered.is_some_and(|offered| offered.as_secs() <= 21), "{offered:?}");
    assert!(slices > 5000, "{slices} slices");
    // It was adopted: every entry has its connection again.
    world.flows.borrow_mut().clear();
    let (slices, _) = sweep_for(60);
    assert!(slices <= 601, "{slices} slices");
}

#[test]
fn whether_all_is_settled_is_asked_with_the_beginning_of_the_last_whole_sweep() {
    let world = World::new(1);
    let start = Instant(1 << 40);
    let mut flows = Ownership::new(world.tables(), 0, 1, start);
    world.crowd.set(2000);
    let (mut slices, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let now = flows.deadline();
        slices.push(now);
        let is_settled = |entries, covered| {
            asked.push(covered);
            entries == 1
        };
        flows.sweep(now, is_settled, |_| false, |_, _, _| Swept::Known);
    }
    // Four slices and what is left are a sweep. Nobody asks during the first.
    assert_eq!(asked[..4], [slices[0]; 4]);
    assert_eq!(asked[5..9], [slices[5]; 4]);
    assert_eq!(asked[10..14], [slices[10]; 4]);
}

#[test]
fn engines_account_for_every_entry_except_of_flows_whose_first_segment_was_lost() {
    on_one_thread(async {
        let (world, exchange) = (World::new(1), Exchange::new(1));
        let guard = world.guard(0, exchange.clone(), Tunables::default());
        let (client, listener) = (world.client(), guard.listen());
        let counted = || (exchange.flows(), world.flows.borrow().len());
        let open = async || {
            let stream = client.connect().await;
            (stream, listener.accept().await.0)
        };
        let [ours, closed, theirs] = [open().await, open().await, open().await];
        eventually("three connections", || counted() == (3, 3)).await;
        // The entry of a flow that we reset stays as long as that is remembered.
        ours.1.abort();
        eventually("a reset", || {
            exchange.flows() == 3 && guard.net.with(|state| state.stack.connection_count()) == 2
        })
        .await;
        assert_eq!(counted(), (3, 3));
        theirs.0.abort();
        eventually("a reset", || world.flows.borrow().len() == 2).await;
        eventually("its account", || counted() == (2, 2)).await;
        drop(closed.1);
        drop(closed.0);
        eventually("TIME_WAIT", || world.flows.borrow().len() == 1).await;
        eventually("its account", || counted() == (1, 1)).await;
        assert!(exchange.removed() > Instant(0));
        world.lose.set(1);
        let _lost = client.connect().await;
        eventually("an entry", || world.flows.borrow().len() == 2).await;
        assert_eq!(counted(), (1, 2));
        eventually("the sweep", || counted() == (2, 2)).await;
    });
}

#[test]
fn losses_without_end_make_sweeps_hurry_at_a_bounded_rate_and_no_longer_than_they_last() {
    let world = World::new(1);
    let start = Instant(1 << 40);
    let mut flows = Ownership::new(world.tables(), 0, 1, start);
    world.crowd.set(100_000);
    let seconds = Duration::from_secs;
    for tenths in 0..100 {
        let now = start + Duration::from_millis(100 * tenths);
        flows.note_loss(now);
        sweep_for(&mut flows, now, Duration::from_millis(100), 5000);
    }
    let during = flows.counters.hurried_slices;
    assert!((1000..=5000).contains(&during), "{during} slices in ten seconds");
    sweep_for(&mut flows, start + seconds(10), seconds(5), 5000);
    let after = flows.counters.hurried_slices;
    assert!(after > during, "the last of the losses has yet to be made good");
    sweep_for(&mut flows, start + seconds(15), seconds(60), 5000);
    assert_eq!(flows.counters.hurried_slices, after, "it was");
}

#[test]
fn an_engine_that_cannot_read_the_flow_table_goes_on_asking_for_old_entries() {
    let world = World::new(1);
    let start = now();
    let [mut old, mut mine] = [1, 2].map(|generation| Ownership::new(world.tables(), 0, generation, start));
    old.insert(start, key(5000), &origin());
    let mut sweep = |second| {
        mine.sweep(start + Duration::from_secs(second), UNSETTLED, |_| false, |_, _, _| Swept::Refused);
        (mine.old_generation_possible(), mine.counters.scan_errors)
    };
    world.unreadable.set(true);
    assert_eq!((sweep(2), sweep(4)), ((true, 1), (true, 2)));
    world.unreadable.set(false);
    assert_eq!((sweep(6), sweep(70)), ((true, 2), (true, 2)));
    assert_eq!(sweep(80), (false, 2), "there is none");
}

fn origin() -> Origin {
    Origin { link: Link::default(), seq: Seq(1), ack: Seq(2) }
}

/// Two engines of a daemon whose predecessor left the flow from port 5000 to the first of them.
fn successors(world: &Rc<World>, start: Instant) -> [Ownership<MemoryTables>; 2] {
    let owner = |engine, generation| Ownership::new(world.tables(), engine, generation, start);
    owner(0, 1).insert(start, key(5000), &origin());
    [owner(0, 2), owner(1, 2)]
}

/// XDP may make an entry just before its predecessor, removed by then, is struck out in front of the table.
#[test]
fn a_sweep_shows_xdp_the_entries_of_its_engine_and_no_others() {
    let world = World::new(2);
    let start = now();
    let [mut mine, mut other] = successors(&world, start);
    mine.insert(start, key(5001), &origin());
    other.insert(start, key(5002), &origin());
    mine.sweep(start + Duration::from_secs(2), UNSETTLED, |_| false, |_, _, _| Swept::Known);
    assert_eq!(*world.shown.borrow(), [key(5001)].into());
}

#[test]
fn an_old_entry_goes_in_the_end_and_never_one_that_took_its_place() {
    let world = World::new(2);
    let start = now();
    let [mut mine, mut other] = successors(&world, start);
    let mut sweep = |now| {
        mine.sweep(now, UNSETTLED, |_| false, |_, _, _| Swept::Refused);
        mine.delete_due(now);
        mine.counters.old_generation
    };
    assert_eq!((sweep(start + Duration::from_secs(59)), world.flows.borrow().len()), (0, 1));
    assert_eq!((sweep(start + Duration::from_secs(61)), world.flows.borrow().len()), (1, 0));
    other.insert(start, key(5000), &origin());
    sweep(start + Duration::from_secs(70));
    assert_eq!(entry(&world, 5000).owner, 1);
}

#[test]
fn an_old_entry_goes_some_seconds_after_its_peer_was_reset_and_at_once_where_room_is_short() {
    let world = World::new(2);
    let start = now();
    let [mut mine, _] = successors(&world, start);
    let left = |mine: &mut Ownership<MemoryTables>, after| {
        mine.delete_due(start + after);
        world.flows.borrow().len()
    };
    assert!(mine.may_reset(start, key(5000)));
    assert_eq!(left(&mut mine, Duration::from_millis(4999)), 1, "the reset may have been lost");
    assert!(mine.may_reset(start + Duration::from_secs(1), key(5000)), "nor is another refused");
    mine.sweep(start + Duration::from_millis(4500), UNSETTLED, |_| false, |_, _, _| Swept::Refused);
    assert_eq!(mine.deadline(), start + Duration::from_secs(5), "before the next sweep");
    assert_eq!(left(&mut mine, Duration::from_secs(5)), 0);
    assert_eq!(mine.counters.old_generation, 1);
    assert_eq!((left(&mut mine, Duration::from_secs(6)), mine.counters.old_generation), (0, 1));

    let [mut mine, mut other] = successors(&world, start);
    world.crowded.set(true);
    assert_eq!(left(&mut mine, Duration::ZERO), 1, "nobody was told");
    assert!(mine.may_reset(start, key(5000)));
    assert_eq!(left(&mut mine, Duration::ZERO), 0);
    // What took its place meanwhile stays.
    assert!(mine.may_reset(start + Duration::from_secs(1), key(5000)));
    other.insert(start, key(5000), &origin());
    assert_eq!(left(&mut mine, Duration::from_secs(10)), 1);
}

#[test]
fn an_old_entry_whose_peer_is_silent_goes_sooner_where_room_is_short_but_never_unprobed() {
    let world = World::new(2);
    let start = now();
    world.crowded.set(true);
    // However late the first sweep is.
    for (times, expected) in [([2, 4, 6], [(1, 1), (2, 1), (2, 0)]), ([6, 7, 9], [(1, 1), (1, 0), (1, 0)])] {
        let [mut mine, _] = successors(&world, start);
        let mut probes = 0;
        let mut sweep = |seconds| {
            mine.sweep(
                start + Duration::from_secs(seconds),
                UNSETTLED,
                |_| false,
                |what, _, _| {
                    probes += u32::from(what == Offer::Probe);
                    Swept::Refused
                },
            );
            (probes, world.flows.borrow().len())
        };
        assert_eq!(times.map(&mut sweep), expected);
    }
}
