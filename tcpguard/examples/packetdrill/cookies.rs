//! XDP's part of a passive open: the SYN-ACK whose sequence number is a cookie, and the keys that it and the stack share.
//! What is not XDP's, adopting the connection, is the stack's.

use tcpguard::stack::{Config, Instant, Stack};
use tcpguard_common::cookie::{Advertised, Clock, Strictness, SynOptions, encode};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{AnySegment, Buffer, Family, Flags, Segment};
use tcpguard_common::seq::Seq;

/// Nobody attacks a script.
const MASTER: [u64; 2] = [0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210];
/// The cookie period, nanoseconds.
const PERIOD: u64 = 60_000_000_000;
/// More than any SYN-ACK.
const MAX_FRAME: usize = 128;

/// The keys of the epochs around now.
#[derive(Debug)]
pub(crate) struct Cookies {
    advertised: Advertised,
    slots: [EpochSlot; EPOCH_SLOTS as usize],
    /// Half periods since the clock's zero.
    half: u64,
}

impl Cookies {
    /// No keys yet.
    pub(crate) fn new(config: &Config) -> Self {
        Self { advertised: advertised(config), slots: Default::default(), half: 0 }
    }

    /// Other things are offered with the next [`Self::turn`].
    pub(crate) fn advertise(&mut self, config: &Config) {
        (self.advertised, self.half) = (advertised(config), 0);
    }

    /// Tells the stack the keys, if it is time for other ones.
    pub(crate) fn turn(&mut self, now: Instant, stack: &mut Stack) {
        let half = now.0 / (PERIOD / 2);
        if half == self.half {
            return;
        }
        self.half = half;
        let epoch = (half / 2) as u32;
        for number in epoch - 2..=epoch + 1 {
            if let Some(slot) = EpochSlot::derive(MASTER, number, &self.advertised) {
                self.slots[(number % EPOCH_SLOTS) as usize] = slot;
            }
        }
        stack.set_epochs(&self.slots, Clock { epoch, second_half: half % 2 == 1, extra: 1 });
    }

    /// The frame that answers a SYN.
    pub(crate) fn answer(&self, now: Instant, syn: &AnySegment) -> Option<Vec<u8>> {
        match syn {
            AnySegment::V4(segment) => self.answer_segment(now, segment),
            AnySegment::V6(segment) => self.answer_segment(now, segment),
        }
    }

    fn answer_segment<A: Family>(&self, now: Instant, syn: &Segment<A>) -> Option<Vec<u8>> {
        let slot = &self.slots[(self.half / 2 % u64::from(EPOCH_SLOTS)) as usize];
        let (flow, offered) = (syn.key(), SynOptions::offered(syn.tcp.flags, &syn.options));
        let cookie = encode(slot, Strictness::NEVER, &flow, syn.tcp.seq.0, &offered, now.0);
        let headers = Headers {
            link: Link::answering(&syn.ethernet),
            src: flow.local,
            dst: flow.peer,
            ecn: 0,
            src_port: flow.local_port,
            dst_port: flow.peer_port,
            seq: Seq(cookie.isn),
            ack: syn.tcp.seq + 1,
            flags: Flags::SYN | Flags::ACK | if offered.ecn { Flags::ECE } else { Flags(0) },
            window: slot.window,
            options: cookie.options::<A>(slot, &offered),
        };
        let mut frame = vec![0; MAX_FRAME];
        let len = headers.len();
        headers.write(&mut Buffer::new(&mut frame, len), 0, 0)?;
        frame.truncate(len);
        Some(frame)
    }
}

/// What the stack would offer by itself.
fn advertised(config: &Config) -> Advertised {
    Advertised {
        mss_v4: config.mtu - 40,
        mss_v6: config.mtu - 60,
        window: u16::try_from(config.recv_buffer).unwrap_or(u16::MAX),
        window_scale: config.window_scale,
    }
}
