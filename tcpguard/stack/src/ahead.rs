//! What a burst of segments or timers will touch, read before the first of them is handled. Beside a million connections each
//! segment finds its slot of the index, then its connection, in memory that no cache holds. One segment after the other such
//! waits add up; read in rows that do not depend on each other, the processor waits for many at once. Changes nothing.

use core::hint::black_box;

use tcpguard_common::flow::{AnyFlowKey, FlowKey, V4, V6};
use tcpguard_common::packet::{Ethernet, Family, Frame as _};

use super::Stack;
use super::tcb::Tcb;
use super::wire::hash;

/// Most frames that are looked at in one call, and timers that are handled in one go.
pub(super) const AHEAD: usize = 64;
/// So many connections the second-level cache holds: they need no help.
const FEW: u32 = 4096;

impl Stack {
    /// To be shown frames that [`Self::handle_frame`] is about to be given, up to 64 of them: makes that cheaper, and nothing
    /// else.
    pub fn look_ahead<'a>(&self, frames: impl IntoIterator<Item = &'a [u8]>) {
        if self.connections.len() <= FEW {
            return;
        }
        let mut hashes = [0; AHEAD];
        let mut count = 0;
        for (place, key) in hashes.iter_mut().zip(frames.into_iter().filter_map(flow)) {
            *place = hash(self.hash_key, &key);
            count += 1;
        }
        let mut indices = [None; AHEAD];
        for (index, &hash) in indices.iter_mut().zip(&hashes[..count]) {
            *index = self.index.likely(hash);
        }
        self.touch(indices.into_iter().flatten());
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
