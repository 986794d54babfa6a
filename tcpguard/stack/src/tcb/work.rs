//! What a connection needs only while it has work: something in flight, an acknowledgement owed, a window closed to it.
//! The many that rest do without.

use core::ops::{Deref, DerefMut};

use tcpguard_common::seq::Seq;

use super::frto::Frto;
use super::undo::Undo;
use super::{Config, Error, Instant};
use crate::congestion::{CongestionControl, Cubic, Reduction};
use crate::pressure::Pace;
use crate::spares::Spares;

/// Whether losses are being repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recovery {
    None,
    /// Noticed by acknowledgements, until `recover` is acknowledged.
    Fast,
    /// Noticed by timeout, until `recover` is acknowledged.
    Timeout,
}

/// What the retransmission timer is for. They exclude each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Retransmit {
    Off,
    /// RFC 6298.
    Timeout,
    /// Tail loss probe (RFC 8985 §7).
    Probe,
    /// Something may turn out lost by then (RFC 8985 §6.3).
    Reordering,
    /// Zero window, or one too small to bother with (RFC 9293 §3.8.6.1, §3.8.6.2.1).
    Persist,
}

/// Timers, and the repair of losses.
#[derive(Debug)]
pub(super) struct Work {
    pub(super) retransmit: Retransmit,
    pub(super) retransmit_at: Instant,
    /// When the retransmission timer was last started afresh.
    pub(super) rto_base: Instant,
    /// Since when what is out, or waits for a window, is not acknowledged.
    pub(super) unacked_since: Instant,
    /// How the peer takes that.
    pub(super) pace: Pace,
    pub(super) retries: u8,
    /// Why nothing is acknowledged, if the network said so.
    pub(super) trouble: Option<Error>,
    /// Keepalive probes sent since the peer was last heard, and when the next one is due, or the end.
    pub(super) keepalives: u8,
    pub(super) keepalive_at: Instant,
    /// A keepalive probe is due.
    pub(super) keepalive: bool,
    pub(super) recovery: Recovery,
    pub(super) recover: Seq,
    /// The next retransmission leaves whatever the window says.
    pub(super) force: bool,
    /// A tail loss probe is due.
    pub(super) probe: bool,
    /// A probe was sent; an acknowledgement of everything up to here tells what it was good for.
    pub(super) probed: Option<Seq>,
    /// That probe repeated old data.
    pub(super) probe_repeated: bool,
    /// The persist timer fired.
    pub(super) persist: bool,
    /// When the wait for a tail loss probe began (RFC 8985 §7.2).
    pub(super) probe_base: Instant,
    /// A needless retransmission was reported; until this is acknowledged, further ones belong to the same round trip
    /// (RACK.dsack_round).
    pub(super) dsack_round: Option<Seq>,
    /// The window was reduced for an echoed mark; acknowledgements up to here are of the same window of data.
    pub(super) ecn_until: Option<Seq>,
    /// When another segment may count as lost (RFC 8985 §6.2).
    pub(super) reorder_at: Instant,
    /// When a delayed acknowledgement leaves.
    pub(super) ack_at: Instant,
    /// Where the peer's FIN is, if it came before the data in front of it.
    pub(super) peer_fin: Option<Seq>,
    /// Data that came twice, to be reported (RFC 2883).
    pub(super) dsack: Option<(Seq, Seq)>,
    cubic: Cubic,
    pub(super) reduction: Reduction,
    /// How to take the last reduction back, should it have been needless.
    pub(super) undo: Option<Undo>,
    /// How often that was done while losses were repaired, since what left before this sequence number.
    pub(super) undone: (u8, Seq),
    /// The most that was in flight since what left then was acknowledged, and up to where that is. How much of the congestion
    /// window is used shows when something leaves: acknowledgements come several at a time.
    pub(super) used: (u32, Seq),
    /// Segments of new data that left in a row since one was marked with PSH or no more could leave.
    pub(super) row: u8,
    /// Whether the last timeout is being looked into.
    pub(super) frto: Frto,
}

impl Work {
    const NONE: Self = Self {
        retransmit: Retransmit::Off,
        retransmit_at: Instant::NEVER,
        rto_base: Instant(0),
        unacked_since: Instant(0),
        pace: Pace::NONE,
        retries: 0,
        trouble: None,
        keepalives: 0,
        keepalive_at: Instant::NEVER,
        keepalive: false,
        recovery: Recovery::None,
        recover: Seq(0),
        force: false,
        probe: false,
        probed: None,
        probe_repeated: false,
        persist: false,
        probe_base: Instant(0),
        dsack_round: None,
        ecn_until: None,
        reorder_at: Instant::NEVER,
        ack_at: Instant::NEVER,
        peer_fin: None,
        dsack: None,
        cubic: Cubic::NEW,
        reduction: Reduction::NONE,
        undo: None,
        undone: (0, Seq(0)),
        used: (0, Seq(0)),
        row: 0,
        frto: Frto::Off,
    };

    /// Whether nothing of it matters any more: without the retransmission timer nothing is in flight.
    fn is_done(&self) -> bool {
        self.retransmit == Retransmit::Off
            && !self.persist
            && self.keepalives == 0
            && !self.ack_at.is_set()
            && !self.pace.is_set()
            && self.probed.is_none()
            && self.peer_fin.is_none()
            && self.dsack.is_none()
    }
}

/// A connection's work, if it has any: looks like none until somebody writes to it.
#[derive(Debug, Default)]
pub(super) struct MaybeWork(Option<Box<Work>>);

impl MaybeWork {
    /// What CUBIC remembers, if that is in force.
    pub(super) fn cubic(&mut self, config: &Config) -> Option<&mut Cubic> {
        (config.congestion_control == CongestionControl::Cubic).then(|| &mut self.deref_mut().cubic)
    }

    /// Takes memory from where others left it, if there is some. To be called where a connection at rest is about to get work:
    /// its first is then no allocation.
    pub(super) fn prepare(&mut self, spare: &mut Spares<Work>) {
        if self.0.is_none() {
            self.0 = spare.take();
        }
    }

    /// Forgets the work if it is done, and leaves its memory to others.
    pub(super) fn rest(&mut self, spare: &mut Spares<Work>) {
        if let Some(work) = self.0.take_if(|work| work.is_done()) {
            leave(work, spare);
        }
    }

    #[cfg(test)]
    pub(super) fn is_none(&self) -> bool {
        self.0.is_none()
    }

    /// Forgets the work, whatever there is left of it.
    pub(super) fn clear(&mut self, spare: &mut Spares<Work>) {
        if let Some(work) = self.0.take() {
            leave(work, spare);
        }
    }

    /// Begins anew.
    pub(super) fn reset(&mut self) {
        if let Some(work) = &mut self.0 {
            **work = Work::NONE;
        }
    }
}

/// Leaves a connection's memory to others, with nothing of it to be done.
fn leave(mut work: Box<Work>, spare: &mut Spares<Work>) {
    *work = Work::NONE;
    spare.give(work);
}

impl Deref for MaybeWork {
    type Target = Work;

    fn deref(&self) -> &Work {
        self.0.as_deref().unwrap_or(const { &Work::NONE })
    }
}

impl DerefMut for MaybeWork {
    fn deref_mut(&mut self) -> &mut Work {
        self.0.get_or_insert_with(|| Box::new(Work::NONE))
    }
}
