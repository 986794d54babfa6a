//! The decision against the reference, over the truth table and a million frames of every kind.

use super::super::table::cases;
use super::super::table::generator::{FRAMES, Generator, LANES, lanes, worlds};
use super::compare;
use std::thread;
use std::vec::Vec;
use tcpguard_common::reason::Reason;

/// What the frames follow from that the kernel does not take, for their lengths.
const SEED: u64 = 0x6c6f_6e67;
/// Nanoseconds from frame to frame; odd, so that the time in a cookie takes every value.
const A_FEW_SECONDS: u64 = 2_654_435_761;
/// Bytes behind each frame, so that answers may grow.
const ROOM: usize = 64;

#[test]
fn every_row_of_the_table_agrees_with_the_reference() {
    for case in cases::all() {
        let agreed = compare(&case.world, &case.frame, ROOM);
        assert_eq!(agreed, Ok(case.reason), "{}", case.name);
    }
}

#[test]
fn a_million_frames_are_judged_and_answered_as_the_reference_says() {
    let any_length = Generator::new(SEED, 0..=9000);
    let counts: Vec<[usize; Reason::COUNT + 1]> = thread::scope(|scope| {
        let lanes: Vec<_> = lanes()
            .chain([any_length])
            .map(|generator| scope.spawn(move || run(generator, FRAMES / LANES)))
            .collect();
        lanes
            .into_iter()
            .map(|lane| lane.join().unwrap_or_else(|said| std::panic::resume_unwind(said)))
            .collect()
    });
    let total = |index: usize| counts.iter().map(|counts| counts[index]).sum::<usize>();
    for &reason in Reason::ALL {
        // Every answer to a full table fits in place of what it answers, see the decision's own tests.
        let reachable = reason != Reason::RefusedSilently;
        assert_eq!(total(reason as usize) > FRAMES / 20_000, reachable, "{}", reason.name());
    }
    assert!(total(Reason::COUNT) > FRAMES / 100, "frames that are nothing to us");
}

/// How often each reason was given for one lane's frames, and at the end how often none.
fn run(mut generator: Generator, frames: usize) -> [usize; Reason::COUNT + 1] {
    let mut counts = [0; Reason::COUNT + 1];
    for (share, mut world) in worlds() {
        for index in 0..frames * share / 100 {
            let frame = generator.frame();
            world.now += A_FEW_SECONDS;
            // Now and then there is no room to grow.
            let room = if index % 64 == 0 { index / 64 % 5 } else { ROOM };
            match compare(&world, &frame, room) {
                Ok(reason) => counts[reason.map_or(Reason::COUNT, |reason| reason as usize)] += 1,
                Err(difference) => panic!("room {room}: {difference}"),
            }
        }
    }
    counts
}
