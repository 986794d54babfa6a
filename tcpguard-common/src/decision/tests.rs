//! The truth table on the host, and what a table cannot say.

mod clock;
mod hostile;

use super::table::acks::valid_ack;
use super::table::cases::{self, Case};
use super::table::check::check;
use super::table::frames::{LINUX, Spec};
use super::table::world::{EPOCH, Place, ROUTER, Traced, World};
use super::{Env as _, Verdict, decide};
use crate::flow::{FlowKey, V4, V6};
use crate::map::{FLOW_TIMESTAMPS, Flow};
use crate::packet::{Buffer, Frame, FrameMut};
use crate::reason::Reason;
use crate::sketch::Rate;
use proptest::prelude::*;
use std::collections::HashSet;
use std::vec;
use std::vec::Vec;

/// Decides as the driver would have it: with room to grow behind the frame.
fn run(world: &World, frame: &[u8]) -> (Verdict, Vec<u8>) {
    let mut bytes = [frame, &[0xdd; 64]].concat();
    let mut buffer = Buffer::new(&mut bytes, frame.len());
    let verdict = decide(&mut buffer, world);
    (verdict, buffer.frame().to_vec())
}

#[test]
fn every_row_of_the_table_holds() {
    let cases = cases::all();
    assert!(cases.len() > 1000, "the table shrank to {} rows", cases.len());
    hold(&cases);
}

/// Runs rows of the table.
fn hold(cases: &[Case]) {
    let mut failures = vec![];
    for case in cases {
        let world = case.world.clone();
        let (verdict, out) = run(&world, &case.frame);
        let flows = world.flows_v4.borrow().len() + world.flows_v6.borrow().len();
        failures.extend(check(case, verdict, &out, flows).err());
        let counted = world.counted.borrow().clone();
        if counted != Vec::from_iter(case.reason) {
            failures.push(std::format!("{}: counted {counted:?} for {:?}", case.name, case.reason));
        }
    }
    assert!(
        failures.is_empty(),
        "{} of {}:\n{}",
        failures.len(),
        cases.len(),
        failures[..failures.len().min(5)].join("\n")
    );
}

#[test]
fn every_reason_but_the_unreachable_one_is_in_the_table() {
    let cases = cases::all();
    for &reason in Reason::ALL {
        // A test of its own below.
        let unreachable = reason == Reason::RefusedSilently;
        assert_eq!(cases.iter().any(|case| case.reason == Some(reason)), !unreachable, "{}", reason.name());
    }
}

/// A frame is kept before it is turned into its answer, and recorded under the reason that is counted.
#[test]
fn watched_segments_are_recorded_under_their_reason_and_unwatched_ones_are_not() {
    for case in cases::all() {
        for reasons in [0, 1] {
            let mut world = case.world.clone();
            world.settings.trace.reasons = reasons;
            let (verdict, _) = run(&world, &case.frame);
            let expected = case.reason.filter(|_| reasons != 0).map_or(vec![], |reason| {
                let Some(Traced::Arrival(service)) = world.traced.borrow().first().copied() else {
                    panic!("{}", case.name)
                };
                vec![Traced::Arrival(service), Traced::Verdict(reason, verdict == Verdict::Transmit)]
            });
            assert_eq!(*world.traced.borrow(), expected, "{}", case.name);
        }
    }
}

fn remembers<A: Place>() {
    for stamped in [true, false] {
        let world = World::new();
        let tags = vec![[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]];
        let spec = Spec { tags, ..valid_ack::<A>(EPOCH, stamped) };
        assert_eq!(run(&world, &spec.frame()).0, Verdict::Redirect(world.engine));
        let flow = A::flows(&world).borrow()[&spec.flow()];
        let echo = spec.options.get(8..12).map_or(0, |echo| u32::from_be_bytes(echo.try_into().unwrap()));
        let expected = Flow {
            created: world.now(),
            generation: 7,
            owner: world.engine,
            seq: spec.seq,
            ack: spec.ack,
            tsval: if stamped { 100 } else { 0 },
            tsecr: echo,
            window: 0xfaf0,
            flags: if stamped { FLOW_TIMESTAMPS } else { 0 },
            peer_mac: ROUTER,
            vlan_count: 2,
            pad: 0,
            vlan: [[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]],
        };
        assert_eq!(flow, expected);
    }
}

#[test]
fn a_remembered_flow_holds_all_that_adopting_it_takes() {
    remembers::<V4>();
    remembers::<V6>();
}

#[test]
fn a_syn_ack_that_does_not_fit_behind_the_frame_is_dropped_and_counted() {
    let world = World::new();
    let mut bytes = Spec::<V4>::syn(&[3, 3, 7, 4, 2, 0, 0, 0]).frame();
    let len = bytes.len();
    assert_eq!(decide(&mut Buffer::new(&mut bytes, len), &world), Verdict::Drop);
    assert_eq!(*world.counted.borrow(), [Reason::SynUnanswerable]);
}

#[test]
fn a_heartbeat_goes_stale_and_its_grace_ends_to_the_nanosecond() {
    // The heartbeat is 0, so that the time is its age.
    let stopped = World { beating: false, now: 1_000_000, ..World::new() };
    for (stale_after, exit_grace, reason) in [
        (1_000_001, 0, Reason::CookieSent),
        (1_000_000, 0, Reason::CookieSent),
        (999_999, 1, Reason::Grace),
        (999_999, 0, Reason::ExitDrop),
        (999_000, 1001, Reason::Grace),
        (999_000, 1000, Reason::Grace),
        (999_000, 999, Reason::ExitDrop),
        (0, u64::MAX, Reason::Grace),
        (u64::MAX, u64::MAX, Reason::CookieSent),
    ] {
        let mut world = stopped.clone();
        (world.settings.stale_after, world.settings.exit_grace) = (stale_after, exit_grace);
        run(&world, &Spec::<V4>::syn(LINUX).frame());
        assert_eq!(*world.counted.borrow(), [reason], "stale after {stale_after}, grace {exit_grace}");
    }
}

fn both_budgets_are_spent_on_a_verified_address<A: Place>() {
    let mut world = World::new();
    world.settings.limits.replies = Rate::new(10, 7, 1);
    world.settings.limits.verified_replies = Rate::new(10, 5, 1);
    world.verify(A::CLIENT, world.now);
    for _ in 0..2 {
        for _ in 0..100 {
            run(&world, &Spec::<A>::syn(LINUX).frame());
        }
        let counted = world.counted.take();
        let count = |reason| counted.iter().filter(|&&counted| counted == reason).count();
        assert_eq!((count(Reason::CookieSent), count(Reason::ReplyBudgetVerified)), (12, 88));
        world.now += 1_000_000_000;
    }
}

/// That is the most that a victim hears: each of the rates, by who spoofs just that address.
#[test]
fn a_prefix_is_sent_both_rates_where_a_verified_address_is_spoofed() {
    both_budgets_are_spent_on_a_verified_address::<V4>();
    both_budgets_are_spent_on_a_verified_address::<V6>();
}

/// As native XDP has it without multi-buffer support; longer frames only the host can have.
#[test]
fn the_longest_syn_that_is_answered_has_4096_bytes_of_tcp() {
    for (len, reason) in
        [(4095, Reason::CookieSent), (4096, Reason::CookieSent), (4097, Reason::SynUnanswerable)]
    {
        let world = World::new();
        let data = vec![0x3c; len - 20 - LINUX.len()];
        let v4 = Spec::<V4> { data: data.clone(), ..Spec::syn(LINUX) };
        let v6 = Spec::<V6> { data, ..Spec::syn(LINUX) };
        run(&world, &v4.frame());
        run(&world, &v6.frame());
        assert_eq!(*world.counted.borrow(), [reason; 2], "{len} bytes");
    }
}

/// A frame whose driver has no room for another length.
struct Stiff<'a>(Buffer<'a>);

impl Frame for Stiff<'_> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset)
    }
}

impl FrameMut for Stiff<'_> {
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()> {
        self.0.store(offset, bytes)
    }

    fn resize(&mut self, _len: usize) -> Option<()> {
        None
    }
}

/// No driver is known to refuse to shorten a frame, and a reset is never longer than what it answers: the truth table, which
/// the kernel runs too, cannot have this reason.
#[test]
fn a_reset_that_cannot_be_written_is_dropped_and_counted() {
    let world = World::new();
    let spec = valid_ack::<V4>(EPOCH, true);
    for port in 1..=world.max_flows as u16 {
        let flow = FlowKey { peer_port: port.to_be_bytes(), ..spec.flow() };
        world.flows_v4.borrow_mut().insert(flow, Flow::default());
    }
    let mut bytes = spec.frame();
    let len = bytes.len();
    assert_eq!(decide(&mut Stiff(Buffer::new(&mut bytes, len)), &world), Verdict::Drop);
    assert_eq!(*world.counted.borrow(), [Reason::RefusedSilently]);
    assert_eq!(bytes, spec.frame());
}

/// Bits of a frame from byte `at`, `len` bytes.
fn bits(at: usize, len: usize) -> impl Iterator<Item = usize> {
    8 * at..8 * (at + len)
}

fn opens_with_a_bit_flipped<A: Place>(stamped: bool) {
    let spec = valid_ack::<A>(EPOCH, stamped);
    let whole = spec.frame();
    let (l3, l4) = (spec.l3(), spec.l4());
    let network = if A::VERSION == 4 { bits(l3, 20) } else { bits(l3 + 8, 32) };
    // TSecr but for its 16 bits of time; the option's kind and length.
    let epoch_options_and_mac = (0..32).filter(|bit| !(2..18).contains(bit)).map(|bit| 8 * (l4 + 28) + bit);
    let option = bits(l4 + 22, 2).chain(epoch_options_and_mac).filter(|_| stamped);
    // Ports, sequence and acknowledgment numbers.
    let covered: HashSet<usize> = network.chain(bits(l4, 12)).chain(option).collect();
    for bit in 0..8 * whole.len() {
        let mut frame = whole.clone();
        // From the left, as diagrams count.
        frame[bit / 8] ^= 0x80 >> (bit % 8);
        if bit / 8 >= l4 {
            // Whoever forges a segment makes its checksum right.
            spec.fix(&mut frame);
        }
        let world = World::new();
        run(&world, &frame);
        let opened = *world.counted.borrow() == [Reason::AckValid];
        assert_eq!(opened, A::flows(&world).borrow().len() == 1);
        assert!(!(opened && covered.contains(&bit)), "IPv{} bit {bit} of {frame:02x?}", A::VERSION);
        let is_time = stamped && (8 * (l4 + 28) + 2..8 * (l4 + 28) + 18).contains(&bit);
        assert!(opened || !is_time, "IPv{} bit {bit}: the time is not covered", A::VERSION);
    }
}

#[test]
fn no_bit_that_a_cookie_covers_can_be_flipped_on_the_wire() {
    for stamped in [true, false] {
        opens_with_a_bit_flipped::<V4>(stamped);
        opens_with_a_bit_flipped::<V6>(stamped);
    }
}

#[test]
fn answering_a_syn_ack_of_ours_is_not_a_loop() {
    let world = World::new();
    let (verdict, answer) = run(&world, &Spec::<V4>::syn(LINUX).frame());
    assert_eq!(verdict, Verdict::Transmit);
    assert_eq!(run(&world, &answer).0, Verdict::Pass);
}

proptest! {
    #[test]
    fn any_bytes_get_a_verdict_and_at_most_one_reason(
        base in 0..8usize,
        edits in prop::collection::vec((0..200usize, any::<u8>()), 0..6),
        cut in 0..200usize,
        noise in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let mut frame = match base {
            0 => noise,
            1 => Spec::<V6>::syn(LINUX).frame(),
            2 => valid_ack::<V4>(EPOCH, true).frame(),
            3 => valid_ack::<V6>(EPOCH, false).frame(),
            _ => Spec::<V4>::syn(LINUX).frame(),
        };
        for (at, value) in edits {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(cut.max(1));
        let world = World::new();
        let (verdict, out) = run(&world, &frame);
        prop_assert!(world.counted.borrow().len() <= 1);
        prop_assert!(verdict == Verdict::Transmit || out == frame);
    }
}
