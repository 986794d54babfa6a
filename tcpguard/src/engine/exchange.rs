//! Frames between engines: a flow's segments can arrive on another queue than its owner's, since kernel clients
//! change theirs on retransmission. Bounded, and a full queue loses the frame as a full ring would. A hostile client can
//! have all its segments come to the wrong queue, so that each queue has its memory from the start.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use crate::stack::{ClosedFlows, Instant};

/// Frames that may wait for one engine. A receive ring holds thousands; this is the exception's exception.
const DEPTH: usize = 1024;

/// Bytes of each: the largest frame that a UMEM has.
const SLOT: usize = 4096;

/// An entry that is older than a removal may have been struck out with it, and sweeps leave out an entry's first second.
const STRUCK_OUT: Duration = Duration::from_secs(2);

/// A received Ethernet frame that came by way of another engine.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded<'a> {
    /// The whole frame.
    pub(crate) frame: &'a [u8],
    /// Whom its sender meant.
    pub(crate) addressee: Addressee,
}

/// Whom a frame on its way to another engine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Addressee {
    /// The receiver: the flow table names it as the owner.
    Owner,
    /// Whoever has the flow in TIME_WAIT, if the receiver does.
    Holder,
}

/// The engines of one daemon, by XSKMAP index. Clones are the same exchange.
#[derive(Clone, Debug)]
pub struct Exchange {
    engines: Arc<RwLock<HashMap<u32, Arc<Queue>>>>,
    expected: usize,
    closed_flows: ClosedFlows,
    /// When one of them last removed entries from the flow table, nanoseconds of the stack's time; 0 for never.
    removed: Arc<AtomicU64>,
}

/// What became of a frame offered to another engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// It is in the owner's queue.
    Queued,
    /// The owner's queue is full, or the frame larger than any that a ring has.
    Full,
    /// No such engine.
    NoEngine,
}

impl Exchange {
    /// An exchange that `engines` engines will join, one for each queue of each interface. With more than one, an
    /// engine asks the flow table before it adopts a connection.
    pub fn new(engines: usize) -> Self {
        let random = || RandomState::new().hash_one(());
        Self {
            engines: Arc::default(),
            expected: engines,
            closed_flows: ClosedFlows::new([random(), random()]),
            removed: Arc::default(),
        }
    }

    /// The memory of closed flows that all of them share.
    pub(crate) fn closed_flows(&self) -> ClosedFlows {
        self.closed_flows.clone()
    }

    /// Whether no other engine can own a flow.
    pub(crate) fn is_alone(&self) -> bool {
        self.expected <= 1
    }

    /// Announces an engine, until what its frames come out of is dropped.
    pub(crate) fn join(&self, engine: u32) -> Inbox {
        let queue = Arc::new(Queue::new());
        self.write().insert(engine, Arc::clone(&queue));
        Inbox { exchange: self.clone(), engine, queue, hand: Box::new([0; SLOT]) }
    }

    /// Offers a copy of `frame` to `engine`, which owns its flow.
    pub(crate) fn forward(&self, engine: u32, frame: &[u8]) -> Handover {
        self.read().get(&engine).map_or(Handover::NoEngine, |queue| queue.offer(frame, Addressee::Owner))
    }

    /// Offers a copy of `frame` to every engine but `except`, for the one that has its flow in TIME_WAIT; how many
    /// took it.
    pub(crate) fn broadcast(&self, except: u32, frame: &[u8]) -> usize {
        let engines = self.read();
        let others = engines.iter().filter(|(engine, _)| **engine != except);
        others.filter(|(_, queue)| queue.offer(frame, Addressee::Holder) == Handover::Queued).count()
    }

    /// Whether `engine` is the one that answers for flows whose owner has no engine any more.
    pub(crate) fn is_first(&self, engine: u32) -> bool {
        self.read().keys().min() == Some(&engine)
    }

    /// Whether a sweep over the flow table, which has so many entries, would find nothing: all of them are accounted for. The
    /// last whole sweep began at `covered`. While one engine removes a flow's entry and strikes it out, the next incarnation
    /// may come to another one's queue, and its entry be struck out as well: the sweep has then to show it to XDP.
    pub(crate) fn is_settled(&self, entries: usize, covered: Instant) -> bool {
        self.flows() == entries && (self.is_alone() || self.removed() + STRUCK_OUT <= covered)
    }

    /// How many entries of the flow table all engines together account for, as each said last.
    pub(crate) fn flows(&self) -> usize {
        self.read().values().map(|queue| queue.flows.load(Ordering::Relaxed)).sum()
    }

    /// An engine has removed entries from the flow table.
    pub(crate) fn note_removal(&self, now: Instant) {
        self.removed.store(now.0, Ordering::Relaxed);
    }

    /// When one last did.
    pub(crate) fn removed(&self) -> Instant {
        Instant(self.removed.load(Ordering::Relaxed))
    }

    /// Whether `engine` runs.
    pub(crate) fn contains(&self, engine: u32) -> bool {
        self.read().contains_key(&engine)
    }

    // A panic elsewhere while the lock was held cannot leave this map half-changed, so poison is ignored.

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<u32, Arc<Queue>>> {
        self.engines.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<u32, Arc<Queue>>> {
        self.engines.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What frames for one engine come out of. Dropped, it withdraws the engine.
#[derive(Debug)]
pub(crate) struct Inbox {
    exchange: Exchange,
    engine: u32,
    queue: Arc<Queue>,
    /// The frame that was taken last: while it is judged, others may use its slot.
    hand: Box<[u8; SLOT]>,
}

impl Inbox {
    /// Says how many entries of the flow table the engine accounts for.
    pub(crate) fn tell_flows(&self, flows: usize) {
        self.queue.flows.store(flows, Ordering::Relaxed);
    }

    /// The next frame, if there is one.
    pub(crate) fn take(&mut self) -> Option<Forwarded<'_>> {
        let Self { queue, hand, .. } = self;
        let mut frames = queue.lock();
        let Waiting { slot, len, addressee } = frames.waiting.pop_front()?;
        hand[..len].copy_from_slice(&frames.slots[slot][..len]);
        frames.free.push(slot);
        Some(Forwarded { frame: &hand[..len], addressee })
    }

    /// Ready while there is a frame.
    pub(crate) fn poll_ready(&mut self, cx: &Context<'_>) -> Poll<()> {
        let mut frames = self.queue.lock();
        if !frames.waiting.is_empty() {
            return Poll::Ready(());
        }
        frames.receiver = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        let mut engines = self.exchange.write();
        // Another may have taken its place.
        if engines.get(&self.engine).is_some_and(|queue| Arc::ptr_eq(queue, &self.queue)) {
            engines.remove(&self.engine);
        }
    }
}

/// The frames that wait for one engine, and what it says of itself.
#[derive(Debug)]
struct Queue {
    frames: Mutex<Frames>,
    /// Entries of the flow table that it accounts for.
    flows: AtomicUsize,
}

#[derive(Debug)]
struct Frames {
    /// All zero at first: the system hands out such memory untouched, so that a slot costs nothing until it is used.
    slots: Vec<[u8; SLOT]>,
    /// Slots without a frame, the one that was used last on top: what is forwarded now and then needs but one.
    free: Vec<usize>,
    waiting: VecDeque<Waiting>,
    /// Who waits for a frame.
    receiver: Option<Waker>,
}

/// A frame in a slot.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    slot: usize,
    len: usize,
    addressee: Addressee,
}

impl Queue {
    fn new() -> Self {
        let frames = Mutex::new(Frames {
            slots: vec![[0; SLOT]; DEPTH],
            free: (0..DEPTH).collect(),
            waiting: VecDeque::with_capacity(DEPTH),
            receiver: None,
        });
        Self { frames, flows: AtomicUsize::default() }
    }

    fn offer(&self, frame: &[u8], addressee: Addressee) -> Handover {
        let len = frame.len();
        if len > SLOT {
            return Handover::Full;
        }
        let mut frames = self.lock();
        let Some(slot) = frames.free.pop() else { return Handover::Full };
        frames.slots[slot][..len].copy_from_slice(frame);
        frames.waiting.push_back(Waiting { slot, len, addressee });
        let receiver = frames.receiver.take();
        drop(frames);
        if let Some(receiver) = receiver {
            receiver.wake();
        }
        Handover::Queued
    }

    /// Nothing that is done with the lock held can panic half-way, so poison is ignored here too.
    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Addressee, DEPTH, Exchange, Handover, SLOT};
    use crate::stack::Instant;

    #[test]
    fn a_full_queue_loses_the_frame_and_a_missing_engine_is_told_apart() {
        let exchange = Exchange::new(3);
        let mut inbox = exchange.join(3);
        assert_eq!(exchange.forward(4, b"x"), Handover::NoEngine);
        for _ in 0..DEPTH {
            assert_eq!(exchange.forward(3, b"frame"), Handover::Queued);
        }
        assert_eq!(exchange.forward(3, b"frame"), Handover::Full);
        let frame = inbox.take().unwrap();
        assert_eq!((frame.frame, frame.addressee), (&b"frame"[..], Addressee::Owner));
        assert_eq!(exchange.forward(3, &[0; SLOT + 1]), Handover::Full);
        assert_eq!(exchange.forward(3, &[0; SLOT]), Handover::Queued);
        drop(inbox);
        assert_eq!(exchange.forward(3, b"x"), Handover::NoEngine);
    }

    #[test]
    fn a_table_is_settled_when_its_entries_are_accounted_for_and_were_looked_at_since_others_were_removed() {
        let at = |seconds: u64| Instant(seconds * 1_000_000_000);
        let several = Exchange::new(2);
        let (first, second) = (several.join(0), several.join(1));
        first.tell_flows(3);
        second.tell_flows(2);
        assert!(
            several.is_settled(5, at(9)) && !several.is_settled(6, at(9)) && !several.is_settled(3, at(9))
        );
        several.note_removal(at(8));
        assert_eq!([9, 10, 11].map(|covered| several.is_settled(5, at(covered))), [false, true, true]);
        drop(second);
        assert!(several.is_settled(3, at(10)));
        // What comes after its own removal, an engine sees to without a sweep.
        let alone = Exchange::new(1);
        let only = alone.join(0);
        only.tell_flows(1);
        alone.note_removal(at(8));
        assert!(alone.is_settled(1, at(1)));
    }

    #[test]
    fn the_lowest_index_answers_for_strays_and_a_broadcast_spares_its_sender() {
        let exchange = Exchange::new(3);
        let (mut a, mut b, mut c) = (exchange.join(1), exchange.join(2), exchange.join(64));
        assert!(exchange.is_first(1) && !exchange.is_first(2));
        assert_eq!(exchange.broadcast(2, b"f"), 2);
        assert_eq!(a.take().unwrap().addressee, Addressee::Holder);
        assert!(c.take().is_some() && b.take().is_none());
    }

    #[test]
    fn frames_come_out_in_order_and_whole_whatever_their_slots_held_before() {
        let exchange = Exchange::new(2);
        let mut inbox = exchange.join(0);
        for round in 0..3 {
            let frame = |number: usize| vec![round; 1 + (number * 7919 + usize::from(round)) % 1514];
            // One that is taken while others wait leaves its slot to a later one.
            for number in 0..2 * DEPTH {
                assert_eq!(exchange.forward(0, &frame(number)), Handover::Queued);
                if let Some(taken) = number.checked_sub(DEPTH - 1) {
                    assert_eq!(inbox.take().unwrap().frame, frame(taken));
                }
            }
            for number in DEPTH + 1..2 * DEPTH {
                assert_eq!(inbox.take().unwrap().frame, frame(number));
            }
            assert!(inbox.take().is_none());
        }
    }

    #[test]
    fn an_engine_that_took_anothers_place_is_not_withdrawn_with_it() {
        let exchange = Exchange::new(2);
        let before = exchange.join(0);
        let mut inbox = exchange.join(0);
        drop(before);
        assert_eq!(exchange.forward(0, b"x"), Handover::Queued);
        assert!(inbox.take().is_some());
    }
}
