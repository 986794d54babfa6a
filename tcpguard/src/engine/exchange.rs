//! Frames between engines: a flow's segments can arrive on another queue than its owner's, since kernel clients
//! change theirs on retransmission. Bounded, and a full queue loses the frame as a full ring would.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, RwLock};

use tokio::sync::mpsc;

use crate::stack::ClosedFlows;

/// Frames that may wait for one engine. A receive ring holds thousands; this is the exception's exception.
const DEPTH: usize = 1024;

/// A received Ethernet frame on its way to another engine.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// The whole frame.
    pub(crate) frame: Box<[u8]>,
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
    engines: Arc<RwLock<HashMap<u32, mpsc::Sender<Forwarded>>>>,
    expected: usize,
    closed_flows: ClosedFlows,
}

/// What became of a frame offered to another engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Handover {
    /// It is in the owner's queue.
    Queued,
    /// The owner's queue is full.
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

    /// Announces an engine; its frames come out of the returned receiver.
    pub(crate) fn join(&self, engine: u32) -> mpsc::Receiver<Forwarded> {
        let (sender, receiver) = mpsc::channel(DEPTH);
        self.write().insert(engine, sender);
        receiver
    }

    /// Withdraws an engine.
    pub(crate) fn leave(&self, engine: u32) {
        self.write().remove(&engine);
    }

    /// Offers a copy of `frame` to `engine`, which owns its flow.
    pub(crate) fn forward(&self, engine: u32, frame: &[u8]) -> Handover {
        self.offer(engine, frame, Addressee::Owner)
    }

    /// Offers a copy of `frame` to every engine but `except`, for the one that has its flow in TIME_WAIT; how many
    /// took it.
    pub(crate) fn broadcast(&self, except: u32, frame: &[u8]) -> usize {
        let others: Vec<u32> = self.read().keys().copied().filter(|&engine| engine != except).collect();
        let offer = |engine| self.offer(engine, frame, Addressee::Holder);
        others.into_iter().filter(|&engine| offer(engine) == Handover::Queued).count()
    }

    fn offer(&self, engine: u32, frame: &[u8], addressee: Addressee) -> Handover {
        match self.read().get(&engine) {
            None => Handover::NoEngine,
            Some(sender) => match sender.try_reserve() {
                Ok(permit) => {
                    permit.send(Forwarded { frame: frame.into(), addressee });
                    Handover::Queued
                }
                Err(mpsc::error::TrySendError::Full(())) => Handover::Full,
                Err(mpsc::error::TrySendError::Closed(())) => Handover::NoEngine,
            },
        }
    }

    /// Whether `engine` is the one that answers for flows whose owner has no engine any more.
    pub(crate) fn is_first(&self, engine: u32) -> bool {
        self.read().keys().min() == Some(&engine)
    }

    /// Whether `engine` runs.
    pub(crate) fn contains(&self, engine: u32) -> bool {
        self.read().contains_key(&engine)
    }

    // A panic elsewhere while the lock was held cannot leave this map half-changed, so poison is ignored.

    fn read(&self) -> std::sync::RwLockReadGuard<'_, HashMap<u32, mpsc::Sender<Forwarded>>> {
        self.engines.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HashMap<u32, mpsc::Sender<Forwarded>>> {
        self.engines.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Addressee, DEPTH, Exchange, Handover};

    #[test]
    fn a_full_queue_loses_the_frame_and_a_missing_engine_is_told_apart() {
        let exchange = Exchange::new(3);
        let mut frames = exchange.join(3);
        assert_eq!(exchange.forward(4, b"x"), Handover::NoEngine);
        for _ in 0..DEPTH {
            assert_eq!(exchange.forward(3, b"frame"), Handover::Queued);
        }
        assert_eq!(exchange.forward(3, b"frame"), Handover::Full);
        let frame = frames.try_recv().unwrap();
        assert_eq!((frame.frame.as_ref(), frame.addressee), (&b"frame"[..], Addressee::Owner));
        exchange.leave(3);
        assert_eq!(exchange.forward(3, b"x"), Handover::NoEngine);
    }

    #[test]
    fn the_lowest_index_answers_for_strays_and_a_broadcast_spares_its_sender() {
        let exchange = Exchange::new(3);
        let (mut a, mut b, mut c) = (exchange.join(1), exchange.join(2), exchange.join(64));
        assert!(exchange.is_first(1) && !exchange.is_first(2));
        assert_eq!(exchange.broadcast(2, b"f"), 2);
        assert_eq!(a.try_recv().unwrap().addressee, Addressee::Holder);
        assert!(c.try_recv().is_ok() && b.try_recv().is_err());
    }
}
