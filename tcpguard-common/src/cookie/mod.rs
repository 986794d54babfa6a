//! The cookie: a connection's handshake state inside the initial sequence number of the SYN-ACK, and in its
//! timestamp when the client offers timestamps. Encodes, validates, derives keys; owns no key, map or clock.
//!
//! ```text
//! with timestamps      ISN    [ MAC 32                                                            ]
//!                      TSval  [ epoch 2 | time 16 | MSS 3 | window scale 4 | SACK 1 | ECN 1 | MAC 5 ]
//! without timestamps   ISN    [ epoch 1 | MSS 2 | window scale 3 | SACK 1 | MAC 25                 ]
//! strict, without      ISN    [ epoch 1 | MSS 2 | MAC 29                                          ]
//! ```
//!
//! The MAC covers addresses, ports, the client's ISN, every option bit and the epoch bits, which layout it is, and
//! the family. The time is outside: it serves the first RTT sample and nothing else.
//!
//! It is SipHash-1-3, where the kernel's cookies are SipHash-2-4; keys are made with the latter. What its designers expect of
//! SipHash they expect of two rounds a word and four at the end, and Linux says of fewer rounds that they are for hash
//! tables. So what speaks for them here is written down:
//!
//! - Guessing is far easier than any attack has to be: of 64 bits 25 to 37 are shown, and 2^25 ACKs without timestamps contain a
//!   cookie however many rounds made it.
//! - An attacker sees cookies for as long as a key is accepted, two periods, two minutes by default and two hours at most, and no
//!   more of them than he gets SYNs answered: some 2^27 in two minutes at a million a second.
//! - Published attacks need more than that, and whole outputs. Collisions inside the compression of SipHash-1-x were differences
//!   of a probability of 2^-167 first (Dobraunig, Mendel and Schläffer, "Differential Cryptanalysis of SipHash", SAC 2014), and
//!   have improved since (Sasaki et al., "Forgery Attacks on SipHash", ACISP 2025: forgeries for 1-1, 1-0 and 2-0, none for 1-3).
//!   Keys were recovered of SipHash-2-1, where three rounds follow the last word, in 2^83 (He and Yu, "Cryptanalysis of
//!   Reduced-Round SipHash", 2019); here four follow it.
//! - It pays: four rounds of ten, over IPv6 seven of sixteen, that every SYN and every ACK of a flood would have to wait for: a
//!   seventh of all instructions that a bad ACK takes.
//!
//! Should one of these cease to be so, `mac_of_flow` is the place, and [`LAYOUT`] is to change with it.

mod inspect;
mod strict;
mod table;

use crate::flow::FlowKey;
use crate::map::{EPOCH_SLOTS, EpochSlot};
use crate::packet::{Family, Flags, Options};
use crate::siphash::sip24;

pub use inspect::{Inspection, Validity, inspect};
pub use strict::Strictness;

/// The version of the layouts above and of what the MAC is; part of every key.
pub const LAYOUT: u8 = 2;

/// What a client's SYN offered, as far as a cookie can remember it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size; absent means [`Family::DEFAULT_MSS`].
    pub mss: Option<u16>,
    /// Window shift.
    pub window_scale: Option<u8>,
    /// Whether it takes selective acknowledgments.
    pub sack_permitted: bool,
    /// TSval, when it offers timestamps.
    pub timestamps: Option<u32>,
    /// Whether the connection is to use ECN; not remembered without timestamps.
    pub ecn: bool,
}

impl SynOptions {
    /// What a SYN with these control bits and options offers. ECN by ECE and CWR (RFC 3168 §6.1.1), where a cookie has room
    /// for it: beside timestamps.
    pub fn offered(flags: Flags, options: &Options) -> Self {
        Self {
            mss: options.mss,
            window_scale: options.window_scale,
            sack_permitted: options.sack_permitted,
            timestamps: options.timestamps.map(|(value, _)| value),
            ecn: flags.contains(Flags::ECE | Flags::CWR) && options.timestamps.is_some(),
        }
    }
}

/// What the SYN-ACK carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cookie {
    /// The initial sequence number.
    pub isn: u32,
    /// TSval, for a client that offered timestamps.
    pub tsval: Option<u32>,
    /// Whether it is in the strict layout.
    pub strict: bool,
}

impl Cookie {
    /// The options of the SYN-ACK that carries it in answer to a SYN that offered `syn`: MSS, and of the others exactly
    /// those that were offered, as far as the cookie remembers them.
    #[inline(always)]
    pub fn options<A: Family>(&self, slot: &EpochSlot, syn: &SynOptions) -> Options {
        Options {
            mss: Some(if A::VERSION == 4 { slot.mss_v4 } else { slot.mss_v6 }),
            window_scale: syn.window_scale.filter(|_| !self.strict).map(|_| slot.window_scale),
            sack_permitted: syn.sack_permitted && !self.strict,
            timestamps: self.tsval.zip(syn.timestamps),
            ..Options::default()
        }
    }
}

/// What a valid cookie says about the connection it opens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepted {
    /// The client's MSS, rounded down to what the cookie can express.
    pub mss: u16,
    /// The client's window shift, rounded down likewise; `None` when windows are not scaled in either direction.
    pub window_scale: Option<u8>,
    /// Whether the client takes selective acknowledgments.
    pub sack_permitted: bool,
    /// Whether both sides use timestamps.
    pub timestamps: bool,
    /// Whether both sides use ECN.
    pub ecn: bool,
    /// Whether the cookie is in the strict layout.
    pub strict: bool,
    /// When the SYN-ACK left, in units of 2^22 ns modulo 2^16; see [`rtt_sample`]. Not authenticated.
    pub sent: Option<u16>,
    /// What we advertised: the slot of the cookie's epoch.
    pub slot: EpochSlot,
}

/// Which epochs are acceptable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Clock {
    /// The epoch now: wall clock divided by the cookie period.
    pub epoch: u32,
    /// Whether its second half has begun.
    pub second_half: bool,
    /// How many epochs more than the current one and its neighbours to accept: 0 in XDP; 1 in the stack, so that
    /// what XDP let through still holds when a tick falls between the two checks.
    pub extra: u32,
}

/// Where the keys are.
pub trait Epochs {
    /// The slot of exactly this epoch, if it is there and [usable](EpochSlot::is_usable).
    fn slot(&self, epoch: u32) -> Option<&EpochSlot>;
}

impl Epochs for [EpochSlot; EPOCH_SLOTS as usize] {
    fn slot(&self, epoch: u32) -> Option<&EpochSlot> {
        self.get((epoch % EPOCH_SLOTS) as usize).filter(|slot| slot.is_usable(epoch))
    }
}

impl EpochSlot {
    /// Whether this is the slot of `epoch`, written, with a key, and in this code's layout.
    #[inline(always)]
    pub fn is_usable(&self, epoch: u32) -> bool {
        self.valid == 1 && self.epoch == epoch && self.layout == LAYOUT && self.key != [0; 2]
    }

    /// The slot of `epoch`, from the master secret and what SYN-ACKs of that epoch are to advertise. `None` for
    /// an all-zero secret and for a zero window.
    pub fn derive(master: [u64; 2], epoch: u32, advertised: &Advertised) -> Option<Self> {
        let Advertised { mss_v4, mss_v6, window, window_scale } = *advertised;
        let key = derive_key(master, epoch, advertised);
        let slot = Self { key, epoch, valid: 1, mss_v4, mss_v6, window, window_scale, layout: LAYOUT };
        (master != [0; 2] && window != 0 && slot.is_usable(epoch)).then_some(slot)
    }
}

/// What SYN-ACKs advertise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advertised {
    /// MSS offered over IPv4, bytes.
    pub mss_v4: u16,
    /// MSS offered over IPv6, bytes.
    pub mss_v6: u16,
    /// The window field of the SYN-ACK, which is never scaled (RFC 7323 §2.2). Not 0.
    pub window: u16,
    /// Our window shift, 0–14.
    pub window_scale: u8,
}

/// The key of one epoch: a PRF of the master secret over the epoch number and what is advertised, so that two
/// machines that share the secret but advertise different things do not accept each other's promises.
pub fn derive_key(master: [u64; 2], epoch: u32, advertised: &Advertised) -> [u64; 2] {
    let Advertised { mss_v4, mss_v6, window: _, window_scale } = *advertised;
    let promise = u64::from(mss_v4) | u64::from(mss_v6) << 16 | u64::from(window_scale) << 32;
    let half = |label: u64| sip24(master, [u64::from(epoch), promise], u64::from(LAYOUT) | label << 8);
    [half(0), half(1)]
}

/// The cookie for a SYN. `slot` is that of the current epoch, `coarse_ns` the monotonic clock.
#[inline(always)]
pub fn encode<A: Family>(
    slot: &EpochSlot,
    strictness: Strictness,
    flow: &FlowKey<A>,
    client_isn: u32,
    syn: &SynOptions,
    coarse_ns: u64,
) -> Cookie {
    let layout = Layout::new(syn.timestamps.is_some(), strictness.at(slot.epoch));
    let bits = match layout {
        Layout::Stamped => stamped_bits::<A>(slot, syn),
        Layout::Bare { strict } => bare_bits::<A>(slot, syn) & !bare::mac(strict).mask(),
    };
    // One for all layouts: most of the code is in it.
    let mac = mac(slot, flow, client_isn, bits, layout);
    match layout {
        Layout::Stamped => {
            let time = stamped::TIME.put((coarse_ns >> TIME_SHIFT) as u32);
            let tsval = bits | time | stamped::MAC.put((mac >> 32) as u32);
            Cookie { isn: mac as u32, tsval: Some(tsval), strict: false }
        }
        Layout::Bare { strict } => {
            Cookie { isn: bits | bare::mac(strict).put(mac as u32), tsval: None, strict }
        }
    }
}

#[inline(always)]
fn stamped_bits<A: Family>(slot: &EpochSlot, syn: &SynOptions) -> u32 {
    let mss = syn.mss.unwrap_or(A::DEFAULT_MSS);
    let scale = syn.window_scale.map_or(stamped::NO_SCALE, |shift| u32::from(shift.min(14)));
    stamped::EPOCH.put(slot.epoch)
        | stamped::MSS.put(table::floor(table::stamped_mss::<A>(), mss))
        | stamped::SCALE.put(scale)
        | stamped::SACK.put(u32::from(syn.sack_permitted))
        | stamped::ECN.put(u32::from(syn.ecn))
}

#[inline(always)]
fn bare_bits<A: Family>(slot: &EpochSlot, syn: &SynOptions) -> u32 {
    let mss = syn.mss.unwrap_or(A::DEFAULT_MSS);
    let scale = syn.window_scale.map_or(bare::NO_SCALE, |shift| table::floor(&table::BARE_SCALE, shift));
    bare::EPOCH.put(slot.epoch)
        | bare::MSS.put(table::floor(table::bare_mss::<A>(), mss))
        | bare::SCALE.put(scale)
        | bare::SACK.put(u32::from(syn.sack_permitted))
}

/// Whether a SYN's MSS lies below what a cookie can express, so that segments may exceed what it asked for.
#[inline(always)]
pub fn mss_is_small<A: Family>(mss: Option<u16>) -> bool {
    mss.is_some_and(|mss| mss < A::DEFAULT_MSS)
}

/// Judges an ACK: `client_isn` is SEG.SEQ − 1, `cookie` SEG.ACK − 1, `tsecr` that of its timestamps option. With
/// the option only the first layout is tried, without it only the one that the service's cookies of that epoch have.
#[inline(always)]
pub fn validate<A: Family>(
    epochs: &(impl Epochs + ?Sized),
    clock: &Clock,
    strictness: Strictness,
    flow: &FlowKey<A>,
    client_isn: u32,
    cookie: u32,
    tsecr: Option<u32>,
) -> Option<Accepted> {
    let now = clock.epoch;
    let (next, previous) = (now.wrapping_add(1), now.wrapping_sub(1));
    let (first, second) = match tsecr {
        Some(tsecr) => match now.wrapping_sub(stamped::EPOCH.get(tsecr)) & 3 {
            0 => (now, None),
            1 => (previous, None),
            3 => (next, None),
            _ if clock.extra > 0 => (now.wrapping_sub(2), None),
            _ => return None,
        },
        None => match (bare::EPOCH.get(cookie) == now & 1, clock.second_half) {
            (true, _) => (now, Some(now.wrapping_sub(2))),
            (false, true) => (next, Some(previous)),
            (false, false) => (previous, Some(next)),
        },
    };
    let check = |epoch| accept(epochs.slot(epoch)?, strictness.at(epoch), flow, client_isn, cookie, tsecr);
    let accepted = check(first);
    if accepted.is_none() && clock.extra > 0 { check(second?) } else { accepted }
}

#[inline(always)]
fn accept<A: Family>(
    slot: &EpochSlot,
    strict: bool,
    flow: &FlowKey<A>,
    client_isn: u32,
    cookie: u32,
    tsecr: Option<u32>,
) -> Option<Accepted> {
    let bits = match tsecr {
        Some(tsecr) => tsecr & !(stamped::TIME.mask() | stamped::MAC.mask()),
        None => cookie & !bare::mac(strict).mask(),
    };
    let layout = Layout::new(tsecr.is_some(), strict);
    // One for all layouts, as above.
    let mac = mac(slot, flow, client_isn, bits, layout);
    match tsecr {
        Some(tsecr) => {
            let rest = stamped::MAC.put((mac >> 32) as u32);
            let holds = mac as u32 == cookie && rest == tsecr & stamped::MAC.mask();
            holds.then(|| accepted_stamped::<A>(slot, tsecr))
        }
        None => {
            let field = bare::mac(strict);
            let holds = field.put(mac as u32) == cookie & field.mask();
            holds.then(|| accepted_bare::<A>(slot, cookie, strict))
        }
    }
}

#[inline(always)]
fn accepted_stamped<A: Family>(slot: &EpochSlot, tsecr: u32) -> Accepted {
    let scale = stamped::SCALE.get(tsecr);
    Accepted {
        mss: table::at(table::stamped_mss::<A>(), stamped::MSS.get(tsecr)),
        window_scale: (scale != stamped::NO_SCALE).then_some(scale as u8),
        sack_permitted: stamped::SACK.get(tsecr) == 1,
        timestamps: true,
        ecn: stamped::ECN.get(tsecr) == 1,
        strict: false,
        sent: Some(stamped::TIME.get(tsecr) as u16),
        slot: *slot,
    }
}

#[inline(always)]
fn accepted_bare<A: Family>(slot: &EpochSlot, cookie: u32, strict: bool) -> Accepted {
    let scale = bare::SCALE.get(cookie);
    let scaled = scale != bare::NO_SCALE && !strict;
    Accepted {
        mss: table::at(table::bare_mss::<A>(), bare::MSS.get(cookie)),
        window_scale: scaled.then(|| table::at(&table::BARE_SCALE, scale)),
        sack_permitted: bare::SACK.get(cookie) == 1 && !strict,
        timestamps: false,
        ecn: false,
        strict,
        sent: None,
        slot: *slot,
    }
}

const TIME_SHIFT: u32 = 22;

/// The handshake's round trip in nanoseconds, from [`Accepted::sent`] and the coarse clock now. `None` unless it
/// lies between one unit of 2^22 ns and 3 s: the time is not authenticated, and it wraps.
pub fn rtt_sample(sent: u16, coarse_ns: u64) -> Option<u64> {
    const LONGEST: u64 = 3_000_000_000;
    let rtt = age(sent, coarse_ns);
    (rtt > 0 && rtt < LONGEST).then_some(rtt)
}

/// How long ago a SYN-ACK left, in nanoseconds modulo 2^38 (275 s), from [`Accepted::sent`] and the coarse clock of the machine
/// that sent it.
pub fn age(sent: u16, coarse_ns: u64) -> u64 {
    let units = ((coarse_ns >> TIME_SHIFT) as u16).wrapping_sub(sent);
    u64::from(units) << TIME_SHIFT
}

#[derive(Clone, Copy)]
enum Layout {
    Stamped,
    Bare { strict: bool },
}

impl Layout {
    #[inline(always)]
    fn new(stamped: bool, strict: bool) -> Self {
        if stamped { Self::Stamped } else { Self::Bare { strict } }
    }

    /// What the MAC knows it by.
    #[inline(always)]
    fn code(self) -> u64 {
        match self {
            Self::Bare { strict } => u64::from(strict) << 1,
            Self::Stamped => 1,
        }
    }
}

#[inline(always)]
fn mac<A: Family>(slot: &EpochSlot, flow: &FlowKey<A>, client_isn: u32, bits: u32, layout: Layout) -> u64 {
    let context = u64::from(slot.layout) | layout.code() << 8 | u64::from(A::VERSION) << 16;
    let mac = A::mac_of_flow(slot.key, flow, client_isn, u64::from(bits) | context << 32);
    // Short enough to be guessed.
    #[cfg(test)]
    let mac = tests::forgery::cut(mac);
    mac
}

/// A run of bits in a word.
struct Field {
    shift: u32,
    width: u32,
}

impl Field {
    const fn mask(&self) -> u32 {
        ((1 << self.width) - 1) << self.shift
    }

    /// The low bits of `value`, in place.
    #[inline(always)]
    const fn put(&self, value: u32) -> u32 {
        value << self.shift & self.mask()
    }

    #[inline(always)]
    const fn get(&self, word: u32) -> u32 {
        (word & self.mask()) >> self.shift
    }
}

/// TSval in the layout with timestamps.
mod stamped {
    use super::Field;
    pub(super) const EPOCH: Field = Field { shift: 30, width: 2 };
    pub(super) const TIME: Field = Field { shift: 14, width: 16 };
    pub(super) const MSS: Field = Field { shift: 11, width: 3 };
    pub(super) const SCALE: Field = Field { shift: 7, width: 4 };
    pub(super) const SACK: Field = Field { shift: 6, width: 1 };
    pub(super) const ECN: Field = Field { shift: 5, width: 1 };
    pub(super) const MAC: Field = Field { shift: 0, width: 5 };
    pub(super) const NO_SCALE: u32 = 15;
}

/// The ISN in the layouts without.
mod bare {
    use super::Field;
    pub(super) const EPOCH: Field = Field { shift: 31, width: 1 };
    pub(super) const MSS: Field = Field { shift: 29, width: 2 };
    pub(super) const SCALE: Field = Field { shift: 26, width: 3 };
    pub(super) const SACK: Field = Field { shift: 25, width: 1 };
    pub(super) const NO_SCALE: u32 = 7;

    /// In a strict cookie the MAC takes the place of window scale and SACK as well. Calculated, for BPF has no choice that is
    /// not a branch.
    #[inline(always)]
    pub(super) const fn mac(strict: bool) -> Field {
        Field { shift: 0, width: SACK.shift + (SACK.width + SCALE.width) * strict as u32 }
    }
}

#[cfg(test)]
mod tests;
