//! The cookie from its description alone, over the crate `siphasher`: what to send, and whether an echo holds.

use core::hash::Hasher as _;

use super::{EpochSlot, key_bytes};
use siphasher::sip::SipHasher13;
use tcpguard_common::flow::AnyFlowKey;

/// What a cookie remembers of a SYN.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Offer {
    pub(crate) mss: Option<u16>,
    pub(crate) shift: Option<u8>,
    pub(crate) sack: bool,
    pub(crate) stamped: bool,
    /// Remembered with timestamps only.
    pub(crate) ecn: bool,
    /// Whether it is a strict service's: without timestamps it then remembers the MSS alone.
    pub(crate) strict: bool,
}

impl Offer {
    /// As much of it as goes into the cookie.
    fn remembered(self) -> Self {
        let plain = self.strict && !self.stamped;
        Self { shift: self.shift.filter(|_| !plain), sack: self.sack && !plain, strict: plain, ..self }
    }
}

const LAYOUT_VERSION: u8 = 2;
const BARE: u8 = 0;
const STAMPED: u8 = 1;
const STRICT: u8 = 2;
const STAMPED_V4: &[u16] = &[536, 1220, 1300, 1360, 1400, 1436, 1452, 1460];
const STAMPED_V6: &[u16] = &[1220, 1280, 1340, 1380, 1400, 1420, 1432, 1440];
const BARE_V4: &[u16] = &[536, 1300, 1436, 1460];
const BARE_V6: &[u16] = &[1220, 1360, 1420, 1440];
const BARE_SHIFTS: &[u8] = &[0, 2, 4, 6, 7, 8, 10];

/// Where the last entry that is not above `value` stands; the first if all are above.
fn down<T: PartialOrd>(table: &[T], value: T) -> u32 {
    table.iter().rposition(|entry| *entry <= value).unwrap_or(0) as u32
}

/// The sequence number and the TSval of the SYN-ACK.
pub(crate) fn issue(
    slot: &EpochSlot,
    flow: &AnyFlowKey,
    client_isn: u32,
    offer: &Offer,
    now: u64,
) -> (u32, Option<u32>) {
    let v4 = matches!(flow, AnyFlowKey::V4(_));
    let offer = offer.remembered();
    let mss = offer.mss.unwrap_or(if v4 { 536 } else { 1220 });
    let sack = u32::from(offer.sack);
    if offer.stamped {
        let mss = down(if v4 { STAMPED_V4 } else { STAMPED_V6 }, mss);
        let shift = offer.shift.map_or(15, |shift| u32::from(shift.min(14)));
        // Epoch 2, time 16, MSS 3, window scale 4, SACK 1, ECN 1, MAC 5.
        let ecn = u32::from(offer.ecn) * (1 << 5);
        let bits = slot.epoch % 4 * (1 << 30) + mss * (1 << 11) + shift * (1 << 7) + sack * (1 << 6) + ecn;
        let time = (now / (1 << 22) % (1 << 16)) as u32;
        let mac = mac(slot, flow, client_isn, bits, STAMPED);
        (mac as u32, Some(bits + time * (1 << 14) + ((mac >> 32) % 32) as u32))
    } else if offer.strict {
        let mss = down(if v4 { BARE_V4 } else { BARE_V6 }, mss);
        // Epoch 1, MSS 2, MAC 29.
        let bits = slot.epoch % 2 * (1 << 31) + mss * (1 << 29);
        (bits + (mac(slot, flow, client_isn, bits, STRICT) % (1 << 29)) as u32, None)
    } else {
        let mss = down(if v4 { BARE_V4 } else { BARE_V6 }, mss);
        let shift = offer.shift.map_or(7, |shift| down(BARE_SHIFTS, shift));
        // Epoch 1, MSS 2, window scale 3, SACK 1, MAC 25.
        let bits = slot.epoch % 2 * (1 << 31) + mss * (1 << 29) + shift * (1 << 26) + sack * (1 << 25);
        (bits + (mac(slot, flow, client_isn, bits, BARE) % (1 << 25)) as u32, None)
    }
}

/// Whether the echo of a cookie is one that some epoch now acceptable has made, at a service that is strict in those epochs
/// whose last two bits' bit is set.
pub(crate) fn holds(
    slots: &[EpochSlot],
    (now, second_half): (u32, bool),
    strict: u16,
    flow: &AnyFlowKey,
    client_isn: u32,
    isn: u32,
    tsecr: Option<u32>,
) -> bool {
    let (previous, next) = (now.wrapping_sub(1), now.wrapping_add(1));
    match tsecr {
        Some(tsecr) => [previous, now, next].into_iter().any(|epoch| {
            let bits = tsecr & (0b11 << 30 | 0x1ff << 5);
            let made = |slot| mac(slot, flow, client_isn, bits, STAMPED);
            epoch % 4 == tsecr >> 30
                && slot(slots, epoch).is_some_and(|slot| {
                    made(slot) as u32 == isn && (made(slot) >> 32) as u32 % 32 == tsecr % 32
                })
        }),
        None => [now, if second_half { next } else { previous }].into_iter().any(|epoch| {
            let (width, kind) = if strict & 1 << (epoch % 4) == 0 { (25, BARE) } else { (29, STRICT) };
            let (bits, guess) = (isn >> width << width, isn % (1 << width));
            let made = |slot| mac(slot, flow, client_isn, bits, kind);
            epoch % 2 == isn >> 31
                && slot(slots, epoch).is_some_and(|slot| made(slot) % (1 << width) == u64::from(guess))
        }),
    }
}

/// The slot of an epoch, if it has a key in a layout we know.
pub(super) fn slot(slots: &[EpochSlot], epoch: u32) -> Option<&EpochSlot> {
    let written = |slot: &&EpochSlot| slot.valid == 1 && slot.layout == LAYOUT_VERSION && slot.key != [0, 0];
    slots.iter().filter(written).find(|slot| slot.epoch == epoch)
}

/// SipHash-1-3 over the flow as on the wire, the client's ISN, the encoded bits, and what kind of cookie it is.
fn mac(slot: &EpochSlot, flow: &AnyFlowKey, client_isn: u32, bits: u32, kind: u8) -> u64 {
    let (family, key) = key_bytes(flow);
    let mut hasher = SipHasher13::new_with_keys(slot.key[0], slot.key[1]);
    hasher.write(&key);
    hasher.write(&client_isn.to_le_bytes());
    hasher.write(&bits.to_le_bytes());
    hasher.write(&[slot.layout, kind, family]);
    hasher.finish()
}
