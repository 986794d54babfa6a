//! The clients: their flows, the cookies they were given, the frames they send.

use tcpguard_common::cookie::{Advertised, Clock, Cookie, Strictness, SynOptions, encode};
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{Buffer, Flags, Options, Vlan, checksum};
use tcpguard_common::seq::Seq;
use tcpguard_stack::{Config, Instant, Stack};

/// When everything happens: long after zero.
pub(crate) const START: Instant = Instant(1_000_000_000_000);
/// Frames handed in at once, as the engine takes them from a ring.
pub(crate) const BURST: usize = 64;
/// Room for a frame.
pub(crate) const FRAME: usize = 2048;
/// Bytes of data in a full segment with timestamps.
pub(crate) const DATA: usize = 1448;

const EPOCH: u32 = 1000;
const ADVERTISED: Advertised = Advertised { mss_v4: 1460, mss_v6: 1440, window: 60_000, window_scale: 7 };
const PORT: u16 = 80;
const SERVER: V4 = V4([192, 0, 2, 1]);
/// What a client of Linux offers.
const OFFER: SynOptions = SynOptions {
    mss: Some(1460),
    window_scale: Some(7),
    sack_permitted: true,
    timestamps: Some(TSVAL),
    ecn: false,
};
const TSVAL: u32 = 5000;
/// Every client's initial sequence number.
pub(crate) const ISN: Seq = Seq(0x1000_0000);

/// A stack that listens, and knows the key of the cookies.
pub(crate) fn stack(config: Config) -> Stack {
    let mut stack = Stack::new(START, config, 42);
    let (slots, clock) = keys();
    stack.set_epochs(&slots, clock);
    stack.listen(None, PORT, 0);
    stack
}

/// The keys of the cookies, and which epoch it is.
pub(crate) fn keys() -> ([EpochSlot; EPOCH_SLOTS as usize], Clock) {
    let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
    slots[(EPOCH % EPOCH_SLOTS) as usize] = slot();
    (slots, Clock { epoch: EPOCH, second_half: false, extra: 1 })
}

fn slot() -> EpochSlot {
    EpochSlot::derive([1, 2], EPOCH, &ADVERTISED).expect("a secret that is not zero")
}

/// The flow of the client with a number; 24 bits of it in network `network`.
pub(crate) fn flow(network: u8, number: u32) -> FlowKey<V4> {
    let [_, a, b, c] = number.to_be_bytes();
    let peer_port = (1024 + (number % 60_000) as u16).to_be_bytes();
    FlowKey { peer: V4([network, a, b, c]), local: SERVER, peer_port, local_port: PORT.to_be_bytes() }
}

/// The cookie that the answer to a client's SYN was.
pub(crate) fn cookie(flow: &FlowKey<V4>) -> Cookie {
    encode(&slot(), Strictness::NEVER, flow, ISN.0, &OFFER, START.0)
}

/// What a client sends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Segment {
    pub(crate) flags: Flags,
    pub(crate) seq: Seq,
    pub(crate) ack: Seq,
    /// TSecr.
    pub(crate) echo: u32,
}

/// Writes the frame of a segment with `data` into `frame`.
pub(crate) fn write(flow: &FlowKey<V4>, segment: Segment, data: &[u8], frame: &mut Vec<u8>) {
    let Segment { flags, seq, ack, echo } = segment;
    let is_syn = flags.contains(Flags::SYN);
    let options = Options {
        mss: OFFER.mss.filter(|_| is_syn),
        window_scale: OFFER.window_scale.filter(|_| is_syn),
        sack_permitted: is_syn,
        timestamps: Some((TSVAL, echo)),
        ..Options::default()
    };
    let headers = Headers {
        link: Link { dst: [2, 0, 0, 0, 0, 1], src: [2, 0, 0, 0, 0, 2], vlan: Vlan::default() },
        src: flow.peer,
        dst: flow.local,
        ecn: 0,
        src_port: flow.peer_port,
        dst_port: flow.local_port,
        seq,
        ack,
        flags,
        window: 60_000,
        options,
    };
    let len = headers.len() + data.len();
    frame.resize(len, 0);
    frame[headers.len()..].copy_from_slice(data);
    headers
        .write(&mut Buffer::new(frame, len), data.len(), checksum::sum(data))
        .expect("room for the headers");
}

/// Numbers without a pattern, the same in every run (SplitMix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((word >> 32) * u64::from(bound)) >> 32) as u32
    }
}
