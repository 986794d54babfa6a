use std::time::Duration;

use proptest::prelude::*;
use tcpguard_common::cookie::{Advertised, Clock, Cookie, Strictness, SynOptions, encode, validate};
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::{EpochSlot, Settings};

use super::{HOLD, KeyError, KeySchedule, Now, index};
use crate::dataplane::MasterSecret;

const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 65535, window_scale: 7 };
const FLOW: FlowKey<V4> =
    FlowKey { peer: V4([10, 0, 0, 2]), local: V4([10, 0, 0, 1]), peer_port: [4, 1], local_port: [0, 80] };
const MINUTE: Duration = Duration::from_secs(60);
/// In the first second of an epoch of a minute.
const START: u64 = 1_800_000_000;

fn secret(byte: u8) -> MasterSecret {
    MasterSecret::new([byte; 32])
}

/// Both clocks, which tests move together or apart.
#[derive(Clone, Copy, Debug)]
struct Clocks(Now);

impl Clocks {
    fn start() -> Self {
        Self(Now { wall: Duration::from_secs(START), monotonic: Duration::from_secs(1000) })
    }

    fn pass(&mut self, time: Duration) -> Now {
        self.0.wall += time;
        self.0.monotonic += time;
        self.0
    }

    fn step(&mut self, seconds: i64) -> Now {
        self.0.wall = Duration::from_secs(self.0.wall.as_secs().saturating_add_signed(seconds));
        self.0
    }
}

fn schedule(clocks: Clocks) -> KeySchedule {
    KeySchedule::new(secret(7), MINUTE, ADVERTISED, clocks.0).unwrap()
}

fn syn(timestamps: bool) -> SynOptions {
    SynOptions { mss: Some(1460), timestamps: timestamps.then_some(1), ..SynOptions::default() }
}

fn issue(schedule: &KeySchedule, timestamps: bool) -> Cookie {
    let slot = schedule.slots()[index(schedule.clock().epoch)];
    encode(&slot, Strictness::NEVER, &FLOW, 99, &syn(timestamps), 0)
}

fn accepts(schedule: &KeySchedule, cookie: &Cookie) -> bool {
    accepts_with(schedule, cookie, schedule.clock())
}

fn accepts_with(schedule: &KeySchedule, cookie: &Cookie, clock: Clock) -> bool {
    validate(&schedule.slots(), &clock, Strictness::NEVER, &FLOW, 99, cookie.isn, cookie.tsval).is_some()
}

#[test]
fn epochs_follow_the_wall_clock_and_a_cookie_outlives_its_epoch_by_one() {
    let mut clocks = Clocks::start();
    let mut schedule = schedule(clocks);
    assert_eq!(schedule.clock().epoch, (START / 60) as u32);
    clocks.pass(Duration::from_secs(59));
    schedule.poll(clocks.0);
    assert!(schedule.clock().second_half);
    let cookies = [true, false].map(|timestamps| issue(&schedule, timestamps));
    assert!(schedule.poll(clocks.pass(Duration::from_secs(1))));
    assert_eq!(schedule.clock(), Clock { epoch: (START / 60) as u32 + 1, second_half: false, extra: 0 });
    assert!(cookies.iter().all(|cookie| accepts(&schedule, cookie)));
    schedule.poll(clocks.pass(MINUTE));
    assert!(!cookies.iter().any(|cookie| accepts(&schedule, cookie)), "two periods old");
    assert!(
        accepts_with(&schedule, &cookies[0], Clock { extra: 1, ..schedule.clock() }),
        "the stack's extra epoch"
    );
}

#[test]
fn machines_with_one_secret_accept_each_others_cookies_across_a_skewed_boundary() {
    let mut clocks = Clocks::start();
    clocks.pass(Duration::from_secs(59));
    let mut ours = schedule(clocks);
    ours.poll(clocks.0);
    let mut theirs_clocks = clocks;
    let theirs = schedule(Clocks(theirs_clocks.pass(Duration::from_secs(2))));
    for timestamps in [true, false] {
        assert!(accepts(&ours, &issue(&theirs, timestamps)), "they are in the next epoch");
        assert!(accepts(&theirs, &issue(&ours, timestamps)), "we are in the previous one");
    }
    let stranger = KeySchedule::new(secret(8), MINUTE, ADVERTISED, clocks.0).unwrap();
    assert!(!accepts(&ours, &issue(&stranger, true)));
}

const TICK: Duration = Duration::from_nanos(1);
/// The stack accepts one epoch more than XDP.
const STACK: u32 = 1;

/// A machine with one secret whose wall clock reads `wall`.
fn machine(byte: u8, wall: Duration) -> KeySchedule {
    let now = Now { wall, monotonic: Duration::from_secs(1000) };
    KeySchedule::new(secret(byte), MINUTE, ADVERTISED, now).unwrap()
}

/// Whether cookies of both layouts hold for XDP and for the stack: (stamped, bare) each.
fn held(schedule: &KeySchedule, [stamped, bare]: &[Cookie; 2]) -> [(bool, bool); 2] {
    [0, STACK].map(|extra| {
        let clock = Clock { extra, ..schedule.clock() };
        (accepts_with(schedule, stamped, clock), accepts_with(schedule, bare, clock))
    })
}

/// One schedule, polled one tick before every edge, at it and one tick after it. Cookies made in the first and in the last
/// tick of an epoch live and die alike: what counts is the epoch.
#[test]
fn cookies_live_and_die_to_the_tick_on_the_machine_that_made_them() {
    let mut clocks = Clocks::start();
    let mut schedule = schedule(clocks);
    let made = |schedule: &KeySchedule| [true, false].map(|timestamps| issue(schedule, timestamps));
    let mut cookies = vec![made(&schedule)];
    schedule.poll(clocks.pass(MINUTE - TICK));
    cookies.push(made(&schedule));
    assert_eq!(cookies[0], cookies[1]);
    // Half epochs after the first: whether the cookies still hold before it and from it on, for XDP and for the stack.
    let edges = [
        (2, [(true, true), (true, true)], [(true, true), (true, true)]),
        (3, [(true, true), (true, true)], [(true, false), (true, true)]),
        (4, [(true, false), (true, true)], [(false, false), (true, true)]),
        (6, [(false, false), (true, true)], [(false, false), (false, false)]),
    ];
    let mut now = MINUTE - TICK;
    for (halves, before, from) in edges {
        let edge = MINUTE / 2 * halves;
        for (at, expected) in [(edge - TICK, before), (edge, from), (edge + TICK, from)] {
            // Polled every second at least, as the daemon does it.
            while now < at {
                let step = (at - now).min(Duration::from_secs(1));
                schedule.poll(clocks.pass(step));
                now += step;
            }
            for cookies in &cookies {
                assert_eq!(held(&schedule, cookies), expected, "{at:?} after the epoch began");
            }
        }
    }
}

/// The same edges for a machine that was started at that moment, on both sides: one that lags accepts what is yet to come.
#[test]
fn cookies_live_and_die_to_the_tick_on_other_machines_of_a_fleet() {
    let start = Duration::from_secs(START);
    let cookies = [true, false].map(|timestamps| issue(&machine(7, start), timestamps));
    for (halves, before, from) in [
        (-2, (false, false), (true, false)),
        (-1, (true, false), (true, true)),
        (0, (true, true), (true, true)),
        (2, (true, true), (true, true)),
        (3, (true, true), (true, false)),
        (4, (true, false), (false, false)),
    ] {
        let edge = start.as_nanos().checked_add_signed(30_000_000_000 * halves).unwrap();
        let edge = Duration::from_nanos(edge as u64);
        for (at, expected) in [(edge - TICK, before), (edge, from), (edge + TICK, from)] {
            assert_eq!(held(&machine(7, at), &cookies)[0], expected, "{halves} halves, at {at:?}");
            assert_eq!(held(&machine(8, at), &cookies), [(false, false); 2], "another secret, at {at:?}");
        }
    }
}

/// Half a period of skew is what a fleet without timestamps can bear; with other secrets nothing is ever accepted.
#[test]
fn a_fleet_accepts_each_others_cookies_up_to_half_a_period_of_skew_and_strangers_never() {
    for at in (0..60_000).step_by(777) {
        let ours = machine(7, Duration::from_secs(START) + Duration::from_millis(at));
        for skew in (-30_000..=30_000).step_by(1500) {
            let millis = (START * 1000 + at).checked_add_signed(skew).unwrap();
            let (theirs, stranger) = (Duration::from_millis(millis), Duration::from_millis(millis));
            let (theirs, stranger) = (machine(7, theirs), machine(8, stranger));
            for timestamps in [true, false] {
                let cookies = [&ours, &theirs, &stranger].map(|machine| issue(machine, timestamps));
                assert!(accepts(&theirs, &cookies[0]), "{at} ms, skew {skew} ms");
                assert!(accepts(&ours, &cookies[1]), "{at} ms, skew {skew} ms");
                assert!(!accepts(&stranger, &cookies[0]) && !accepts(&stranger, &cookies[1]));
                assert!(!accepts(&ours, &cookies[2]) && !accepts(&theirs, &cookies[2]));
            }
        }
    }
}

#[test]
fn a_change_of_what_is_advertised_waits_for_the_next_epoch() {
    let mut clocks = Clocks::start();
    let mut schedule = schedule(clocks);
    let cookie = issue(&schedule, true);
    schedule.set_advertised(Advertised { window_scale: 9, ..ADVERTISED }).unwrap();
    let current = |schedule: &KeySchedule| schedule.slots()[index(schedule.clock().epoch)];
    assert_eq!(current(&schedule).window_scale, 7);
    assert!(accepts(&schedule, &cookie));
    schedule.poll(clocks.pass(MINUTE));
    assert_eq!(current(&schedule).window_scale, 9);
    let accepted = validate(
        &schedule.slots(),
        &schedule.clock(),
        Strictness::NEVER,
        &FLOW,
        99,
        cookie.isn,
        cookie.tsval,
    )
    .unwrap();
    assert_eq!(accepted.slot.window_scale, 7, "the promise in flight is kept");
}

#[test]
fn a_changed_period_is_level_with_the_wall_clock_within_four_holds_and_breaks_no_handshake() {
    let mut clocks = Clocks::start();
    let mut schedule = schedule(clocks);
    clocks.pass(Duration::from_secs(20));
    schedule.poll(clocks.0);
    schedule.set_period(Duration::from_secs(40)).unwrap();
    let mut issued = Vec::new();
    for _ in 0..60 {
        issued.extend([true, false].map(|timestamps| (clocks.0.monotonic, issue(&schedule, timestamps))));
        schedule.poll(clocks.pass(Duration::from_secs(1)));
        for (at, cookie) in &issued {
            let age = clocks.0.monotonic - *at;
            assert!(age >= HOLD || accepts(&schedule, cookie), "{age:?} old");
        }
    }
    let fleet = KeySchedule::new(secret(7), Duration::from_secs(40), ADVERTISED, clocks.0).unwrap();
    assert!(accepts(&fleet, &issue(&schedule, true)));
    assert!(accepts(&schedule, &issue(&fleet, true)));
}

/// Whole hours are multiples of four minutes: the bits of the epoch stay the same, its key does not.
#[test]
fn any_step_of_the_clock_is_level_with_the_fleet_within_a_minute_and_breaks_no_handshake() {
    const HOUR: i64 = 3600;
    for (period, steps) in [
        (MINUTE, vec![HOUR, -HOUR, 240, -240, 24 * HOUR, 90, -90, 60, 120]),
        (60 * MINUTE, vec![4 * HOUR, -4 * HOUR, 24 * HOUR, -7 * HOUR]),
    ] {
        for (step, into) in steps.iter().flat_map(|step| [0, 1, 14, 31, 46, 58].map(|into| (*step, into))) {
            let mut clocks = Clocks::start();
            let mut schedule = KeySchedule::new(secret(7), period, ADVERTISED, clocks.0).unwrap();
            schedule.poll(clocks.pass(period));
            schedule.poll(clocks.pass(Duration::from_secs(into)));
            let what = format!("a step of {step} s, {into} s into an epoch of {period:?}");
            let issued = [true, false].map(|timestamps| (clocks.0.monotonic, issue(&schedule, timestamps)));
            clocks.step(step);
            let mut in_flight = issued.to_vec();
            for _ in 0..60 {
                schedule.poll(clocks.0);
                for (at, cookie) in &in_flight {
                    let age = clocks.0.monotonic - *at;
                    assert!(age >= HOLD || accepts(&schedule, cookie), "{what}: {age:?} old");
                }
                in_flight.extend([true, false].map(|kind| (clocks.0.monotonic, issue(&schedule, kind))));
                clocks.pass(Duration::from_secs(1));
            }
            schedule.poll(clocks.0);
            let fleet = KeySchedule::new(secret(7), period, ADVERTISED, clocks.0).unwrap();
            for timestamps in [true, false] {
                assert!(accepts(&fleet, &issue(&schedule, timestamps)), "{what}: ours");
                assert!(accepts(&schedule, &issue(&fleet, timestamps)), "{what}: theirs");
            }
        }
    }
}

#[test]
fn the_same_number_under_another_period_has_another_key() {
    let at = |seconds| Now { wall: Duration::from_secs(seconds), monotonic: Duration::ZERO };
    let minute = KeySchedule::new(secret(7), MINUTE, ADVERTISED, at(60 * 1000)).unwrap();
    let hour = KeySchedule::new(secret(7), 60 * MINUTE, ADVERTISED, at(3600 * 1000)).unwrap();
    assert_eq!(minute.clock().epoch, hour.clock().epoch);
    assert_ne!(minute.slots(), hour.slots());
}

#[test]
fn a_small_step_back_is_waited_out() {
    let mut clocks = Clocks::start();
    let mut schedule = schedule(clocks);
    clocks.pass(Duration::from_secs(1));
    schedule.poll(clocks.0);
    let before = (schedule.slots(), schedule.clock());
    assert!(!schedule.poll(clocks.step(-5)));
    assert_eq!(before, (schedule.slots(), schedule.clock()));
    schedule.poll(clocks.pass(MINUTE));
    assert_eq!(
        (before.0, before.1.epoch),
        (schedule.slots(), schedule.clock().epoch),
        "the same minute again"
    );
}

#[test]
fn a_new_daemon_goes_on_with_the_keys_of_a_killed_one_even_with_another_secret() {
    let mut clocks = Clocks::start();
    let mut old = schedule(clocks);
    clocks.pass(Duration::from_secs(59));
    old.poll(clocks.0);
    let cookies = [true, false].map(|timestamps| issue(&old, timestamps));
    let settings = Settings { epoch: old.clock().epoch, ..Settings::default() };
    clocks.pass(Duration::from_secs(3));
    let silent = Duration::from_secs(3);
    let mut new =
        KeySchedule::resume(secret(9), MINUTE, ADVERTISED, clocks.0, &settings, &old.slots(), silent)
            .unwrap();
    new.poll(clocks.0);
    assert!(cookies.iter().all(|cookie| accepts(&new, cookie)));
    for _ in 0..30 {
        new.poll(clocks.pass(Duration::from_secs(1)));
        assert!(cookies.iter().all(|cookie| accepts(&new, cookie)));
    }
    for _ in 0..3 {
        new.poll(clocks.pass(MINUTE));
    }
    let fresh = KeySchedule::new(secret(9), MINUTE, ADVERTISED, clocks.0).unwrap();
    assert_eq!(new.slots(), fresh.slots(), "level with the wall clock, on the new secret");
}

#[test]
fn pins_without_a_current_epoch_are_not_resumed() {
    let clocks = Clocks::start();
    let fresh = schedule(clocks);
    let resume = |settings: Settings, epochs: [EpochSlot; 4]| {
        let silent = Duration::ZERO;
        KeySchedule::resume(secret(7), MINUTE, ADVERTISED, clocks.0, &settings, &epochs, silent).unwrap()
    };
    let empty = [EpochSlot::default(); 4];
    let other = Settings { epoch: 12345, ..Settings::default() };
    for resumed in [resume(Settings::default(), empty), resume(other, empty), resume(other, fresh.slots())] {
        assert_eq!((resumed.slots(), resumed.clock()), (fresh.slots(), fresh.clock()));
    }
}

#[test]
fn the_keys_of_a_daemon_long_dead_open_nothing_any_more() {
    let mut clocks = Clocks::start();
    let old = schedule(clocks);
    let cookies = [true, false].map(|timestamps| issue(&old, timestamps));
    let settings = Settings { epoch: old.clock().epoch, ..Settings::default() };
    let mut resume = |silent| {
        let now = clocks.pass(silent);
        KeySchedule::resume(secret(9), MINUTE, ADVERTISED, now, &settings, &old.slots(), silent).unwrap()
    };
    let soon = resume(2 * MINUTE);
    assert!(cookies.iter().all(|cookie| accepts(&soon, cookie)));
    let late = resume(2 * MINUTE + Duration::from_millis(1));
    assert!(!cookies.iter().any(|cookie| accepts_with(&late, cookie, Clock { extra: 1, ..late.clock() })));
    assert_eq!(late.slots(), KeySchedule::new(secret(9), MINUTE, ADVERTISED, clocks.0).unwrap().slots());
}

/// Four periods and eight: the number then has the same bits, which used to keep the old key current.
#[test]
fn a_daemon_that_was_stopped_for_long_goes_on_with_fresh_keys() {
    for periods in [3, 4, 7, 8, 4000] {
        let mut clocks = Clocks::start();
        let mut stopped = schedule(clocks);
        let cookies = [true, false].map(|timestamps| issue(&stopped, timestamps));
        assert!(stopped.poll(clocks.pass(periods * MINUTE)));
        let open = |cookie| accepts_with(&stopped, cookie, Clock { extra: 1, ..stopped.clock() });
        assert!(!cookies.iter().any(open), "stopped for {periods} periods");
        let fresh = schedule(clocks);
        assert_eq!((stopped.slots(), stopped.clock()), (fresh.slots(), fresh.clock()));
    }
}

#[test]
fn parameters_out_of_range_are_refused_and_change_nothing() {
    let mut schedule = schedule(Clocks::start());
    let before = schedule.slots();
    for period in [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(25 * 3600)] {
        assert_eq!(schedule.set_period(period), Err(KeyError::Period(period)));
    }
    assert_eq!(schedule.set_advertised(Advertised { window: 0, ..ADVERTISED }), Err(KeyError::Window));
    let scale = Advertised { window_scale: 15, ..ADVERTISED };
    assert_eq!(schedule.set_advertised(scale), Err(KeyError::WindowScale(15)));
    assert_eq!((schedule.slots(), schedule.period()), (before, MINUTE));
}

#[derive(Clone, Debug)]
enum Event {
    Pass(u64),
    Step(i64),
    Period(u64),
    Advertise(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (1u64..20_000).prop_map(Event::Pass),
        1 => (-200_000i64..200_000).prop_map(Event::Step),
        1 => (2u64..600).prop_map(Event::Period),
        1 => (0u8..15).prop_map(Event::Advertise),
    ]
}

proptest! {
    /// Whatever clocks and operators do: four slots of consecutive numbers with four different keys, a number that goes
    /// up by one at most unless nobody looked for longer than a cookie lives, and no cookie that dies younger than the
    /// hold.
    #[test]
    fn no_two_live_slots_share_their_bits_and_no_young_cookie_dies(events in prop::collection::vec(event(), 1..80)) {
        let mut clocks = Clocks::start();
        let mut schedule = schedule(clocks);
        let mut issued: Vec<(Duration, Duration, Cookie)> = Vec::new();
        for event in events {
            // The hold of the epoch a cookie belongs to, and of the one after it.
            let hold = HOLD.min(schedule.period() / 2);
            issued.extend([true, false].map(|stamped| (clocks.0.monotonic, hold, issue(&schedule, stamped))));
            let (epoch, before) = (schedule.clock().epoch, clocks.0.monotonic);
            match event {
                Event::Pass(millis) => { clocks.pass(Duration::from_millis(millis)); }
                Event::Step(seconds) => { clocks.step(seconds); }
                Event::Period(seconds) => {
                    schedule.set_period(Duration::from_secs(seconds)).unwrap();
                    let hold = HOLD.min(schedule.period() / 2);
                    for cookie in &mut issued { cookie.1 = cookie.1.min(hold); }
                }
                Event::Advertise(window_scale) => {
                    schedule.set_advertised(Advertised { window_scale, ..ADVERTISED }).unwrap();
                }
            }
            schedule.poll(clocks.0);
            let moved = schedule.clock().epoch.wrapping_sub(epoch);
            let looked = clocks.0.monotonic - before <= 2 * schedule.period();
            prop_assert!(moved <= 1 || !looked, "moved by {moved}");
            let slots = schedule.slots();
            for offset in 0..4u32 {
                let epoch = schedule.clock().epoch.wrapping_sub(2).wrapping_add(offset);
                prop_assert!(slots[index(epoch)].is_usable(epoch));
                for other in &slots[..index(epoch)] {
                    prop_assert_ne!(other.key, slots[index(epoch)].key);
                }
            }
            for (at, hold, cookie) in &issued {
                let age = clocks.0.monotonic - *at;
                prop_assert!(age >= *hold || accepts(&schedule, cookie), "{age:?} old, hold {hold:?}");
            }
            issued.retain(|(at, hold, _)| clocks.0.monotonic - *at < *hold);
        }
    }
}
