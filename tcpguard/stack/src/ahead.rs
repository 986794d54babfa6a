//! What a burst of segments or timers will touch, read before the first of them is handled. Beside a million connections each
//! segment finds its slot of the index, then its connection, in memory that no cache holds. One segment after the other such
//! waits add up; read in rows that do not depend on each other, the processor waits for many at once. Where a connection was found
//! is remembered until its segment is handled; nothing else changes.

use core::hint::black_box;

use tcpguard_common::flow::{AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::packet::{Ethernet, Family, Frame as _};

use super::table::Placed as _;
use super::tcb::Tcb;
use super::wire::hash;
use super::{ConnId, Stack};

/// Most frames that are looked at in one call, and timers that are handled in one go.
pub(super) const AHEAD: usize = 64;
/// So many connections the second-level cache holds: they need no help.
pub(super) const FEW: u32 = 4096;

/// Where the connections of a burst's segments are by what the index shows, in the order of its frames.
#[derive(Debug)]
pub(super) struct Ahead {
    places: [Option<u32>; AHEAD],
    next: usize,
}

impl Ahead {
    pub(super) const NOTHING: Self = Self { places: [None; AHEAD], next: AHEAD };

    /// Where the connection of the next frame probably is.
    pub(super) fn take(&mut self) -> Option<u32> {
        let place = *self.places.get(self.next)?;
        self.next += 1;
        place
    }
}

impl Stack {
    /// To be shown frames that [`Self::handle_frame`] is about to be given, up to 64 of them: makes that cheaper, and nothing
    /// else. It costs least when they come in this order.
    pub fn look_ahead<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        self.ahead = Ahead::NOTHING;
        if self.connections.len() <= FEW {
            return;
        }
        let mut hashes = [None; AHEAD];
        for (place, frame) in hashes.iter_mut().zip(frames) {
            *place = flow(frame).map(|key| hash(self.hash_key, &key));
        }
        // Each search waits for its place: all of those are on their way before the first search begins.
        black_box(hashes.iter().flatten().fold(0, |read, &hash| read ^ self.index.touch(hash)));
        let places = hashes.map(|hash| self.index.likely(hash?));
        self.touch(places.into_iter().flatten());
        self.ahead = Ahead { places, next: 0 };
    }

    /// The connection of a flow, which is probably the one at `likely`.
    pub(super) fn find_at(&self, likely: Option<u32>, key: &AnyFlowKey) -> Option<ConnId> {
        let is_it = |tcb: &&Tcb| tcb.attached && tcb.key == *key;
        let found = likely.and_then(|index| self.connections.at(index)).filter(is_it);
        found.map(Tcb::id).or_else(|| self.find(key))
    }

    /// The same for connections whose timers are about to be handled.
    pub(super) fn look_ahead_at(&self, due: &[u32]) {
        if self.connections.len() > FEW {
            self.touch(due.iter().copied());
        }
    }

    fn touch(&self, indices: impl Iterator<Item = u32>) {
        let touched = |index| self.connections.at(index).map_or(0, Tcb::touch) ^ self.wheel.touch(index);
        black_box(indices.map(touched).fold(0, |read, word| read ^ word));
    }
}

/// The flow of a frame, if it is a TCP segment without anything unusual in front.
pub(crate) fn flow(frame: &[u8]) -> Option<AnyFlowKey> {
    let ethernet = Ethernet::parse(frame)?;
    match ethernet.ether_type {
        <V4 as Family>::ETHER_TYPE => flow_of::<V4>(frame, ethernet.l3),
        <V6 as Family>::ETHER_TYPE => flow_of::<V6>(frame, ethernet.l3),
        _ => None,
    }
}

fn flow_of<A: Family>(frame: &[u8], l3: usize) -> Option<AnyFlowKey> {
    let ip = A::parse_plain(frame, l3)?;
    let ports = l3 + ip.header_len;
    let (peer_port, local_port) = (frame.load(ports)?, frame.load(ports + 2)?);
    Some(A::any_key(FlowKey { peer: ip.src, local: ip.dst, peer_port, local_port }))
}
