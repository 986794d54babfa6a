//! What must hold of a scoreboard at any time, and what an acknowledgement may cost.

use std::collections::BTreeSet;

use super::segment::Sums;
use super::{Duration, Flags, InFlight, Instant, MAX_SEGMENTS, Patience, Reordering, Scoreboard, Seq};
use crate::tests::Rng;

const LEN: u32 = 1000;
const MS: Duration = Duration::from_millis(1);

impl Scoreboard {
    pub(crate) fn check(&self, una: Seq, nxt: Seq) {
        let mut seq = una;
        let mut sums = Sums::default();
        for (index, segment) in self.segments.iter().enumerate() {
            assert_eq!(segment.seq, seq, "segments in flight are contiguous");
            assert!(!(segment.sacked && (segment.lost || segment.resent)));
            assert!(index >= self.settled || !segment.is_first_copy(), "settled, and still on its way");
            seq = segment.end();
            sums.add(segment);
        }
        assert_eq!(seq, nxt, "and reach SND.NXT");
        assert_eq!(sums, self.sums);
        let repairs: BTreeSet<_> =
            self.segments.iter().filter(|segment| segment.awaits_repair()).map(InFlight::place).collect();
        let repeats: BTreeSet<_> =
            self.segments.iter().filter(|segment| segment.is_repeat()).map(InFlight::turn).collect();
        assert_eq!((&repairs, &repeats), (&self.repairs, &self.repeats));
        let mut behind = 0;
        for segment in self.segments.iter().rev().filter(|_| self.sums.sacked > 0) {
            assert!(!segment.sacked || usize::from(segment.run) <= behind, "passes over what is not held");
            behind = if segment.sacked { behind + 1 } else { 0 };
        }
    }
}

/// A scoreboard with so many segments in flight that left at once, and where each begins.
fn full(segments: usize) -> (Scoreboard, impl Fn(usize) -> Seq + Copy) {
    let mut board = Scoreboard::default();
    let at = |segment: usize| Seq(u32::MAX - 5 * LEN) + segment as u32 * LEN;
    (0..segments).for_each(|segment| board.sent(at(segment), LEN, Flags(0), Instant(1)));
    (board, at)
}

fn patience(recovering: bool) -> Patience {
    Patience { reordering: Reordering::default(), smoothed: Some(20 * MS), recovering }
}

#[test]
fn blocks_that_are_known_cost_nothing_of_however_many_segments_they_are() {
    let (mut board, at) = full(MAX_SEGMENTS);
    let bounds = (at(0), at(MAX_SEGMENTS));
    let told = board.selectively_acknowledge(&[(at(1), at(MAX_SEGMENTS))], bounds, Instant(2));
    assert_eq!(told.delivered, (MAX_SEGMENTS as u32 - 1) * LEN);
    for from in 1..500 {
        let parts = [(at(from), at(MAX_SEGMENTS)), (at(1), at(from + 1)), (at(from), at(from + 500))];
        assert_eq!(board.selectively_acknowledge(&parts, bounds, Instant(3)).delivered, 0);
    }
    // Each segment once when it arrived, once more when the first such block came, and two or three for each block.
    assert!(board.looked_at <= 2 * MAX_SEGMENTS as u64 + 500 * 3 * 3, "{}", board.looked_at);
    // Whoever goes back on a block may repeat it.
    board.acknowledge(at(1), Instant(4));
    board.mark_all_lost();
    let told = board.selectively_acknowledge(&[(at(1), at(3))], (at(1), at(MAX_SEGMENTS)), Instant(5));
    assert_eq!(told.delivered, 2 * LEN);
}

/// A peer that was sent as much as ever may be in flight, and what its acknowledgements may say: SND.UNA and the blocks of
/// the `n`th one.
type Attack = fn(n: usize) -> (usize, Vec<(usize, usize)>);

const ATTACKS: [(&str, Attack); 6] = [
    ("one segment more in one block", |n| (0, vec![(1, n + 2)])),
    ("one segment more from the far end", |n| (0, vec![(MAX_SEGMENTS - 1 - n, MAX_SEGMENTS)])),
    ("every other segment", |n| (0, vec![(2 * n + 1, 2 * n + 2)])),
    ("every other segment from the far end", |n| {
        let right = MAX_SEGMENTS.saturating_sub(2 * n);
        (0, vec![(right.saturating_sub(1), right)])
    }),
    ("every other segment, then what lies between", |n| match n.checked_sub(MAX_SEGMENTS / 2 - 1) {
        None => (0, vec![(2 * n + 1, 2 * n + 2)]),
        Some(n) => (0, vec![(1, 2 * n + 3)]),
    }),
    ("the last segment, and then the first ones one by one", |n| (n, vec![(MAX_SEGMENTS - 1, MAX_SEGMENTS)])),
];

#[test]
fn news_of_however_many_segments_cost_a_few_looks_at_each() {
    for (name, attack) in ATTACKS {
        let (mut board, at) = full(MAX_SEGMENTS);
        let (mut now, mut repeated) = (Instant(1) + 20 * MS, 0);
        for n in 0..MAX_SEGMENTS - 2 {
            let (una, blocks) = attack(n);
            let blocks: Vec<_> = blocks
                .into_iter()
                .filter(|&(left, right)| left < right && right <= MAX_SEGMENTS)
                .map(|(left, right)| (at(left), at(right)))
                .collect();
            board.acknowledge(at(una), now);
            board.selectively_acknowledge(&blocks, (at(una), at(MAX_SEGMENTS)), now);
            board.detect_losses(now, &patience(true));
            // As much leaves again as PRR lets leave, some of it to be lost again.
            if let Some(lost) = board.next_lost() {
                board.retransmitted(lost.seq, lost.len, now);
                repeated += 1;
            }
            now += MS / 10;
        }
        // When it arrives, when it is judged, when it is passed over: each segment, each copy of it and each block.
        let copies = (MAX_SEGMENTS + repeated) as u64;
        let blocks = 2 * MAX_SEGMENTS as u64;
        assert!(board.looked_at <= 4 * (copies + blocks), "{name}: {} looks", board.looked_at);
        let una = attack(MAX_SEGMENTS - 3).0;
        board.check(at(una), at(MAX_SEGMENTS));
    }
}

/// Timeouts of a connection are at least the least timeout apart, and ever further as long as nothing is acknowledged.
#[test]
fn a_timeout_looks_at_each_segment_once_however_many_have_left_again() {
    let (mut board, at) = full(MAX_SEGMENTS);
    for timeout in 1..=10 {
        let now = Instant(1) + 200 * MS * timeout;
        let before = board.looked_at;
        board.mark_timed_out(now, &patience(false));
        assert_eq!(board.looked_at - before, MAX_SEGMENTS as u64);
        for segment in 0..MAX_SEGMENTS / 2 {
            board.retransmitted(at(segment), LEN, now);
        }
        board.check(at(0), at(MAX_SEGMENTS));
    }
}

/// Each message once had everything sorted anew.
#[test]
fn forged_messages_that_the_path_is_narrower_mark_only_what_has_left_since_the_last_one() {
    let (mut board, at) = full(MAX_SEGMENTS);
    let row = |board: &mut Scoreboard| (500..900).rev().for_each(|most| board.mark_longer_lost(most));
    row(&mut board);
    assert_eq!(board.looked_at, MAX_SEGMENTS as u64);
    board.retransmitted(at(0), LEN, Instant(2));
    board.retransmitted(at(7), 500, Instant(2));
    row(&mut board);
    assert_eq!(board.looked_at, MAX_SEGMENTS as u64 + 1, "one left again as long as it was");
    board.check(at(0), at(MAX_SEGMENTS));
}

#[test]
fn a_first_copy_that_arrives_late_is_a_reason_to_wait_for_others_that_left_with_it() {
    let (mut board, at) = full(10);
    let sent = Instant(1);
    let bounds = (at(0), at(10));
    board.selectively_acknowledge(&[(at(1), at(3)), (at(8), at(9))], bounds, sent + 10 * MS);
    assert!(board.detect_losses(sent + 10 * MS, &patience(true)).0);
    board.retransmitted(at(0), LEN, sent + 10 * MS);
    // The repetition has arrived, and so has the fourth segment, after the ninth. The tenth may yet come.
    let now = sent + 22 * MS;
    assert!(board.acknowledge(at(4), now).reordered);
    let mut reordering = Reordering::default();
    reordering.see();
    let patience = Patience { reordering, ..patience(true) };
    assert_eq!(board.detect_losses(now, &patience), (false, Some(now + 10 * MS / 4)));
}

/// What RFC 8985 §6.2, step 5, says of every segment: which are lost, and until when to wait for the next.
fn asked_of_each(board: &Scoreboard, now: Instant, patience: &Patience) -> (Vec<Seq>, Option<Instant>) {
    let due = board.rack.rtt + board.reordering_window(patience);
    let candidates = board.segments.iter().filter(|segment| segment.is_on_its_way());
    let deadlines =
        candidates.filter_map(|segment| board.deadline(segment, due).map(|deadline| (segment.seq, deadline)));
    let (lost, waits): (Vec<_>, Vec<_>) = deadlines.partition(|&(_, deadline)| deadline <= now);
    (lost.into_iter().map(|(seq, _)| seq).collect(), waits.into_iter().map(|(_, deadline)| deadline).min())
}

#[test]
fn losses_are_those_that_are_found_by_asking_of_each_segment() {
    let mut lost_in_all = 0;
    for seed in 0..300 {
        let mut dice = Rng(seed);
        let (mut board, mut now) = (Scoreboard::default(), Instant(1));
        let mut una = Seq(u32::MAX - 9 * LEN);
        let mut nxt = una;
        for _ in 0..300 {
            let mut below = |bound: usize| dice.below(bound as u64) as usize;
            now += [Duration::ZERO, Duration::ZERO, MS, 7 * MS, 30 * MS][below(5)];
            let in_flight = board.segments.len();
            let edge = move |board: &Scoreboard, index: usize| {
                board.segments.get(index).map_or(nxt, |segment| segment.seq)
            };
            match below(16) {
                0..=4 => {
                    for _ in 0..below(8) {
                        board.sent(nxt, LEN, Flags(0), now);
                        nxt += LEN;
                    }
                }
                5..=8 => {
                    let left = below(in_flight);
                    let right = left + 1 + below(4);
                    let block = (edge(&board, left), edge(&board, right));
                    board.selectively_acknowledge(&[block], (una, nxt), now);
                }
                9 => {
                    let inside = [0, 0, LEN / 3][below(3)];
                    una = (edge(&board, below(in_flight.min(4) + 1)) + inside).min(nxt);
                    board.acknowledge(una, now);
                }
                10..=12 => {
                    for _ in 0..below(4) {
                        let Some(lost) = board.next_lost() else { break };
                        let len = if below(4) == 0 { lost.len.div_ceil(2) } else { lost.len };
                        board.retransmitted(lost.seq, len, now);
                    }
                }
                13 => {
                    if let Some(last) = board.last().filter(|last| !last.sacked) {
                        board.retransmitted(last.seq, last.len, now);
                    }
                }
                14 => match below(8) {
                    0 => board.mark_timed_out(now, &patience(false)),
                    1 => board.mark_longer_lost(LEN / 2),
                    2 => board.forget_order(),
                    _ => board.forgive(),
                },
                _ => {}
            }
            board.check(una, nxt);
            let patience = patience(below(2) == 0);
            let (expected, wait) = asked_of_each(&board, now, &patience);
            let before = board.repairs.clone();
            assert_eq!(board.detect_losses(now, &patience), (!expected.is_empty(), wait), "seed {seed}");
            let found: Vec<Seq> = board.repairs.difference(&before).map(|place| place.0).collect();
            assert_eq!(found, expected, "seed {seed}");
            assert_eq!(board.next_lost().map(|lost| lost.seq), first_to_repair(&board), "seed {seed}");
            lost_in_all += found.len();
        }
    }
    assert!(lost_in_all > 10_000, "only {lost_in_all} were lost");
}

fn first_to_repair(board: &Scoreboard) -> Option<Seq> {
    board.segments.iter().find(|segment| segment.lost && !segment.resent).map(|segment| segment.seq)
}
