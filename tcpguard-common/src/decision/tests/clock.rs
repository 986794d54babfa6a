//! The decision by a clock that stands still between two ticks, and that one CPU may read a tick later than another.

use super::super::table::acks::valid_ack;
use super::super::table::frames::{LINUX, Spec};
use super::super::table::world::{EPOCH, Place, World};
use super::run;
use crate::flow::{V4, V6};
use crate::map::heartbeat;
use crate::reason::Reason;
use crate::sketch::Rate;
use std::vec::Vec;

/// Timer ticks of 1000, 250 and 100 Hz, nanoseconds.
const TICKS: [u64; 3] = [1_000_000, 4_000_000, 10_000_000];
const SECOND: u64 = 1_000_000_000;

/// A budget that segments draw on, and what it says of those within it.
struct Budget {
    world: World,
    frame: Vec<u8>,
    granted: Reason,
}

impl Budget {
    /// How many of so many segments are granted now.
    fn granted(&self, segments: usize) -> usize {
        (0..segments).for_each(|_| drop(run(&self.world, &self.frame)));
        let counted = self.world.counted.take();
        self.world.served.take();
        counted.into_iter().filter(|&reason| reason == self.granted).count()
    }
}

/// Replies to a prefix, SYNs for the stack, and segments of a flow under pressure.
fn budgets<A: Place>(rate: Rate) -> [Budget; 3] {
    let syn = Spec::<A>::syn(LINUX).frame();
    let mut replies = World::new();
    replies.settings.limits.replies = rate;
    let mut stateful = World::new();
    stateful.make_stateful();
    stateful.settings.limits.stateful = rate;
    let ack = valid_ack::<A>(EPOCH, true);
    let mut pace = World { pressed: true, ..World::new() };
    pace.know(ack.flow());
    pace.settings.limits.flows = rate;
    [
        Budget { world: replies, frame: syn.clone(), granted: Reason::CookieSent },
        Budget { world: stateful, frame: syn, granted: Reason::SynStateful },
        Budget { world: pace, frame: ack.frame(), granted: Reason::FlowKnown },
    ]
}

fn all_budgets(rate: Rate) -> impl Iterator<Item = Budget> {
    budgets::<V4>(rate).into_iter().chain(budgets::<V6>(rate))
}

#[test]
fn while_the_clock_stands_still_a_budget_is_its_burst_however_many_ask() {
    for budget in all_budgets(Rate::new(1_000_000, 50, 1)) {
        assert_eq!(budget.granted(10_000), 50, "{}", budget.granted.name());
        assert_eq!(budget.granted(10_000), 0, "{}", budget.granted.name());
    }
}

/// At every rate whose burst lasts a tick.
#[test]
fn a_clock_that_moves_by_ticks_gives_back_every_token_and_no_more() {
    for tick in TICKS {
        for per_second in [7, 333, 5000] {
            let rate = Rate::new(per_second, 100, 1);
            for mut budget in all_budgets(rate) {
                let ticks = SECOND / tick;
                let granted: usize = (0..=ticks)
                    .map(|_| {
                        let granted = budget.granted(150);
                        budget.world.now += tick;
                        granted
                    })
                    .sum();
                let due = 100 + ticks * tick / rate.interval;
                assert_eq!(granted as u64, due, "{per_second} a second in ticks of {tick} ns");
            }
        }
    }
}

/// Where the burst is less than what comes back in a tick, it is what there is of each tick.
#[test]
fn no_tick_gives_more_than_the_burst() {
    for tick in TICKS {
        for mut budget in all_budgets(Rate::new(1_000_000, 3, 1)) {
            for _ in 0..20 {
                assert_eq!(budget.granted(100), 3, "in ticks of {tick} ns");
                budget.world.now += tick;
            }
        }
    }
}

#[test]
fn a_cpu_whose_clock_is_a_tick_behind_grants_nothing_twice() {
    for tick in TICKS {
        let rate = Rate::new(1000, 50, 1);
        for mut budget in all_budgets(rate) {
            let mut granted = 0;
            for step in 0..200 {
                // The one is in the next tick already, the other not yet.
                budget.world.now += tick;
                granted += budget.granted(60);
                budget.world.now -= tick;
                granted += budget.granted(60);
                budget.world.now += tick;
                let due = 50 + step * tick / rate.interval;
                assert!(granted as u64 <= due, "{granted} of {due} in ticks of {tick} ns");
            }
            assert!(granted > 50, "{granted}");
        }
    }
}

fn verified_by_a_later_clock<A: Place>() {
    let mut world = World::new();
    world.settings.limits.verified_for = 600 * SECOND;
    // Times of verified sources count in 2^30 ns: the tick between the two clocks is where one ends.
    let boundary = ((world.now >> 30) + 1) << 30;
    world.now = boundary - 1;
    world.verify(A::CLIENT, boundary);
    world.spend_replies(A::CLIENT, false);
    run(&world, &Spec::<A>::syn(LINUX).frame());
    assert_eq!(*world.counted.borrow(), [Reason::CookieSent]);
}

#[test]
fn a_source_that_was_verified_a_tick_from_now_is_verified() {
    verified_by_a_later_clock::<V4>();
    verified_by_a_later_clock::<V6>();
}

/// Engines write what the precise clock says, which is ahead of the coarse one.
#[test]
fn a_heartbeat_ahead_of_the_clock_is_fresh_and_stays_so_while_the_clock_stands_still() {
    let mut world = World::new();
    world.settings.stale_after = SECOND;
    world.last_beat = Some(heartbeat(world.now + TICKS[2], false));
    let syn = Spec::<V4>::syn(LINUX).frame();
    (0..10_000).for_each(|_| drop(run(&world, &syn)));
    assert_eq!(world.counted.take(), [Reason::CookieSent; 10_000]);
}

#[test]
fn a_heartbeat_goes_stale_in_the_first_tick_that_is_beyond_its_time_and_its_grace_likewise() {
    for tick in TICKS {
        let mut world = World::new();
        (world.settings.stale_after, world.settings.exit_grace) = (SECOND, 3 * SECOND);
        // The engine stopped somewhere in the middle of a tick.
        let beat = (world.now + tick / 2) & !1;
        world.last_beat = Some(beat);
        let syn = Spec::<V4>::syn(LINUX).frame();
        for _ in 0..=5 * SECOND / tick {
            for _ in 0..3 {
                run(&world, &syn);
                let reason = match world.now.saturating_sub(beat) {
                    0..=SECOND => Reason::CookieSent,
                    age if age <= 4 * SECOND => Reason::Grace,
                    _ => Reason::ExitDrop,
                };
                assert_eq!(world.counted.take(), [reason], "in ticks of {tick} ns");
            }
            world.now += tick;
        }
    }
}
