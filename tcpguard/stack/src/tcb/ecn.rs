//! Explicit congestion notification (RFC 3168): the network's marks are echoed to the peer until it has reacted, and the
//! peer's echoes are obeyed like losses, without the loss.

use tcpguard_common::packet::Flags;

use super::{Incoming, Recovery, Shared, State, Tcb};

/// What a connection knows of ECN: one byte, because marks outlive every transfer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Ecn(u8);

impl Ecn {
    /// Both ends agreed on it.
    pub(super) const CAPABLE: Self = Self(1);
    /// A mark came in, and the peer has not said yet that it reacted: our acknowledgements carry ECE.
    const ECHO: Self = Self(2);
    /// Our window was reduced, and the peer does not know yet: our next data carries CWR.
    const REDUCED: Self = Self(4);
    /// The two bits of the network header that say that a mark may be set (ECT(0), RFC 3168 §5).
    pub(super) const TRANSPORT: u8 = 0b10;

    pub(super) fn is_capable(self) -> bool {
        self.has(Self::CAPABLE)
    }

    fn has(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    fn set(&mut self, other: Self, on: bool) {
        self.0 = if on { self.0 | other.0 } else { self.0 & !other.0 };
    }

    /// ECE on whatever acknowledges, as long as a mark is to be echoed.
    pub(super) fn echo(self) -> Flags {
        if self.has(Self::ECHO) { Flags::ECE } else { Flags(0) }
    }

    /// CWR on the first new data after the window was reduced.
    pub(super) fn take_reduced(&mut self) -> Flags {
        let reduced = self.has(Self::REDUCED);
        self.set(Self::REDUCED, false);
        if reduced { Flags::CWR } else { Flags(0) }
    }
}

impl Tcb {
    /// Our SYN offers ECN, and so does the peer's answer (RFC 3168 §6.1.1).
    pub(super) fn agree_on_ecn(&mut self, segment: &Incoming<'_>, shared: &Shared) {
        let agreed = segment.has(Flags::ECE) && !segment.has(Flags::CWR);
        if shared.config.ecn && agreed && segment.has(Flags::ACK) && self.state == State::SynSent {
            self.ecn = Ecn::CAPABLE;
        }
    }

    /// What the network and the peer say about our receiving (RFC 3168 §6.1.3): a mark is echoed from now on, until data
    /// with CWR comes. A first mark is not kept from the peer by a delayed acknowledgement.
    pub(super) fn take_mark(&mut self, segment: &Incoming<'_>, shared: &mut Shared) {
        if !self.ecn.is_capable() || segment.data.is_empty() {
            return;
        }
        if segment.has(Flags::CWR) {
            self.ecn.set(Ecn::ECHO, false);
        }
        if segment.marked {
            shared.counters.congestion_marks += 1;
            if !self.ecn.has(Ecn::ECHO) {
                self.ecn.set(Ecn::ECHO, true);
                self.quick_acks = self.quick_acks.max(1);
            }
        }
    }

    /// The peer echoes a mark: the window is reduced as after a loss, once for each window of data (RFC 3168 §6.1.2), and
    /// not while losses have it reduced anyway.
    pub(super) fn heed_echo(&mut self, segment: &Incoming<'_>, flight: u32, shared: &mut Shared) {
        let echo = self.ecn.is_capable() && segment.has(Flags::ECE) && flight > 0;
        let same_window = self.work.ecn_until.is_some_and(|until| segment.ack.at_or_before(until));
        if !echo || same_window || self.work.recovery != Recovery::None {
            return;
        }
        shared.counters.ecn_reductions += 1;
        self.congestion.on_loss(flight, self.mss.into(), self.work.cubic(shared.config_of(self.service())));
        self.work.ecn_until = Some(self.snd_nxt);
        self.forget_window();
        self.note_reduced();
    }

    /// Whatever reduced the window, the peer is told.
    pub(super) fn note_reduced(&mut self) {
        if self.ecn.is_capable() {
            self.ecn.set(Ecn::REDUCED, true);
        }
    }
}
