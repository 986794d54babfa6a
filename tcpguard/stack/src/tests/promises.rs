//! What an observer in the middle can hold against two ends: nothing is acknowledged that was not sent, acknowledgements do
//! not go back, and a promised window is not withdrawn. And how to make an end break its promises, to see that it is noticed.

use std::collections::BTreeMap;

use tcpguard_common::packet::{AnySegment, Family, Flags, Segment, Tcp, checksum, parse};
use tcpguard_common::seq::Seq;

/// One end of a connection, by its ports: its own first.
type Ports = ([u8; 2], [u8; 2]);

#[derive(Clone, Copy, Debug)]
struct Side {
    /// Behind the last sequence number sent.
    next: Seq,
    acked: Option<Seq>,
    edge: Option<Seq>,
    /// From its SYN.
    shift: Option<u8>,
}

/// The promises of both ends of every connection on the link.
#[derive(Debug, Default)]
pub(super) struct Promises {
    sides: BTreeMap<Ports, Side>,
}

impl Promises {
    /// A frame leaves an end; what is wrong with it.
    pub(super) fn observe(&mut self, frame: &[u8]) -> Result<(), String> {
        match parse(frame) {
            Ok(AnySegment::V4(segment)) => self.observe_segment(&segment),
            Ok(AnySegment::V6(segment)) => self.observe_segment(&segment),
            Err(error) => Err(format!("a malformed segment: {error:?}")),
        }
    }

    fn observe_segment<A: Family>(&mut self, segment: &Segment<A>) -> Result<(), String> {
        let Segment {
            tcp: Tcp { src_port, dst_port, seq, ack, flags, window, .. }, options, payload, ..
        } = segment;
        if flags.contains(Flags::RST) {
            return Ok(());
        }
        let (own, other) = ((*src_port, *dst_port), (*dst_port, *src_port));
        let syn = flags.contains(Flags::SYN);
        let len = payload.len() as u32 + u32::from(syn) + u32::from(flags.contains(Flags::FIN));
        if syn && self.sides.get(&own).is_none_or(|side| side.next.before(*seq + 1)) {
            let side = Side { next: *seq, acked: None, edge: None, shift: options.window_scale };
            self.sides.insert(own, side);
        }
        let peer = self.sides.get(&other).copied();
        let Some(side) = self.sides.get_mut(&own) else { return Err("data before a SYN".into()) };
        side.next = side.next.max(*seq + len);
        if !flags.contains(Flags::ACK) {
            return Ok(());
        }
        let Some(peer) = peer else { return Err("an acknowledgement before a SYN".into()) };
        if ack.after(peer.next) {
            return Err(format!("{ack:?} acknowledged, and sent only up to {:?}", peer.next));
        }
        if let Some(before) = side.acked.filter(|before| ack.before(*before)) {
            return Err(format!("{ack:?} acknowledged after {before:?}"));
        }
        side.acked = Some(*ack);
        let shift = if syn { 0 } else { side.shift.filter(|_| peer.shift.is_some()).unwrap_or(0).min(14) };
        let edge = *ack + (u32::from(*window) << shift);
        // What scaling cuts off is no withdrawal.
        let unit = 1 << side.shift.unwrap_or(0);
        match side.edge {
            Some(promised) if (edge + unit).before(promised) => {
                return Err(format!("window withdrawn from {promised:?} to {edge:?}"));
            }
            Some(promised) => side.edge = Some(promised.max(edge)),
            None => side.edge = Some(edge),
        }
        Ok(())
    }
}

/// What a broken stack would have sent instead of a frame.
pub(super) type Sabotage = fn(&mut [u8]);

/// It acknowledges one byte too many.
pub(super) fn acknowledge_too_much(frame: &mut [u8]) {
    change(frame, |tcp, flags| {
        if !flags.intersects(Flags::SYN | Flags::RST) {
            let ack = u32::from_be_bytes([tcp[8], tcp[9], tcp[10], tcp[11]]);
            tcp[8..12].copy_from_slice(&ack.wrapping_add(1).to_be_bytes());
        }
    });
}

/// It takes back what its SYN-ACK offered.
pub(super) fn withdraw_windows(frame: &mut [u8]) {
    change(frame, |tcp, flags| {
        if !flags.intersects(Flags::SYN | Flags::RST) {
            tcp[14..16].fill(0);
        }
    });
}

/// It mixes bytes up.
pub(super) fn send_wrong_bytes(frame: &mut [u8]) {
    change(frame, |tcp, _| {
        let data = usize::from(tcp[12] >> 4) * 4;
        if tcp.len() > data + 10 {
            tcp.swap(data, data + 9);
        }
    });
}

/// It forgets its FIN.
pub(super) fn never_close(frame: &mut [u8]) {
    change(frame, |tcp, _| tcp[13] &= !Flags::FIN.0);
}

/// Changes the TCP part of a frame and makes its checksum right again.
fn change(frame: &mut [u8], mut how: impl FnMut(&mut [u8], Flags)) {
    let (l4, pseudo, flags) = match parse(&*frame) {
        Ok(AnySegment::V4(segment)) => sealed(&segment),
        Ok(AnySegment::V6(segment)) => sealed(&segment),
        Err(error) => panic!("{error:?}"),
    };
    let tcp = &mut frame[l4..];
    how(tcp, flags);
    tcp[Tcp::CHECKSUM..Tcp::CHECKSUM + 2].fill(0);
    let sum = checksum::finish(pseudo + checksum::sum(tcp));
    tcp[Tcp::CHECKSUM..Tcp::CHECKSUM + 2].copy_from_slice(&sum);
}

fn sealed<A: Family>(segment: &Segment<A>) -> (usize, u64, Flags) {
    let pseudo = checksum::pseudo(segment.ip.src, segment.ip.dst, segment.ip.l4_len);
    (segment.ip.l4, pseudo, segment.tcp.flags)
}
