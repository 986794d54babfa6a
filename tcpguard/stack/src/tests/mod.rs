//! Tests of the whole stack: packet traces against one stack, and a deterministic network between two.

mod adoption;
mod attacks;
mod bulk;
mod closing;
mod collisions;
mod ecn;
mod hostile;
mod icmp;
mod loss;
mod memory;
mod network;
mod passive;
mod patience;
mod promises;
mod rack;
mod router;
mod script;
mod states;
mod undo;
mod usage;

use std::net::{IpAddr, SocketAddr};

use tcpguard_common::cookie::{Advertised, Clock};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::Vlan;

use super::{Instant, Link};

/// What the tests' SYN-ACKs advertise.
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 60_000, window_scale: 7 };
/// The epoch the tests start in.
const EPOCH: u32 = 1000;
const MASTER: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfeed_face_cafe_beef];

/// The keys as a daemon would write them during `epoch`: two before it to one after it.
fn epochs(epoch: u32) -> [EpochSlot; EPOCH_SLOTS as usize] {
    let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
    for number in epoch - 2..=epoch + 1 {
        slots[(number % EPOCH_SLOTS) as usize] = EpochSlot::derive(MASTER, number, &ADVERTISED).unwrap();
    }
    slots
}

fn clock(epoch: u32, second_half: bool) -> Clock {
    Clock { epoch, second_half, extra: 1 }
}

/// A time of day for tests to start at: long after the clock's zero.
const START: Instant = Instant(1_000_000_000_000);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn client(self, port: u16) -> SocketAddr {
        let ip: IpAddr = if self == Self::V4 { [10, 0, 0, 2].into() } else { "fd00::2".parse().unwrap() };
        SocketAddr::new(ip, port)
    }

    fn server(self) -> SocketAddr {
        let ip: IpAddr = if self == Self::V4 { [10, 0, 0, 1].into() } else { "fd00::1".parse().unwrap() };
        SocketAddr::new(ip, 80)
    }
}

const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

fn link(src: [u8; 6], dst: [u8; 6]) -> Link {
    Link { dst, src, vlan: Vlan::default() }
}

/// The bytes of a stream, so that any slice of it can be checked by where it lies.
fn stream_byte(label: u8, at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9) >> 11) as u8 ^ label ^ (at >> 16) as u8
}

fn stream(label: u8, from: u64, len: usize) -> Vec<u8> {
    (from..from + len as u64).map(|at| stream_byte(label, at)).collect()
}

/// Small, fast and the same everywhere (SplitMix64).
#[derive(Clone, Debug)]
pub(crate) struct Rng(pub(crate) u64);

impl Rng {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        super::mix(self.0)
    }

    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    /// True once in `per_mille` of 1000.
    fn chance(&mut self, per_mille: u64) -> bool {
        self.below(1000) < per_mille
    }
}
