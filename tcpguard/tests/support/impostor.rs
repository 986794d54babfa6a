//! Guards that cheat, each a thread with a packet socket on the guarded interface of a lab: whom nobody must take for a guard.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use socket2::Socket;
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{AnySegment, Buffer, Family, Flags, Options, Segment, parse};
use tcpguard_common::seq::Seq;
use xtask::bench::honesty::{PORT, Verdicts};
use xtask::lab::{GUARD_INTERFACE, Lab, packet_socket};

/// How often an impostor that does not answer everybody alike changes its answers.
pub(crate) const PERIOD: Duration = Duration::from_secs(1);

/// In what way it does not do the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cheat {
    /// In none, as far as anybody can see who does not know how it comes by its answers.
    Nothing,
    /// One answer for everybody, and every ACK is a connection.
    FixedReply,
    /// It takes no ACK.
    TakesNothing,
    /// Its answers have a wrong TCP checksum.
    WrongChecksum,
    /// It does not look at the checksums of others.
    AnyChecksum,
    /// Its answers do not say what size of segment it takes.
    NoSegmentSize,
    /// Its answers do not say that it takes selective acknowledgments.
    NoSelectiveAcknowledgments,
    /// Its answers do not say by how much it scales its window.
    NoWindowScale,
}

/// A guard that cheats, until this is dropped.
pub(crate) struct Impostor {
    counts: Arc<Counts>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Counts {
    taken: AtomicU64,
    refused: AtomicU64,
}

impl Impostor {
    pub(crate) fn start(lab: &Lab, cheat: Cheat) -> Result<Self> {
        let socket = lab.guard().enter(|| packet_socket(GUARD_INTERFACE))??;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        let (counts, stop) = (Arc::<Counts>::default(), Arc::<AtomicBool>::default());
        let work = Work { socket, cheat, start: Instant::now(), counts: Arc::clone(&counts) };
        let end = Arc::clone(&stop);
        let body = move || {
            while !end.load(Ordering::Relaxed) {
                work.meet_next();
            }
        };
        let thread = thread::Builder::new().name("impostor".into()).spawn(body)?;
        Ok(Self { counts, stop, thread: Some(thread) })
    }

    pub(crate) fn verdicts(&self) -> Verdicts {
        let Counts { taken, refused } = &*self.counts;
        Verdicts { taken: taken.load(Ordering::Relaxed), refused: refused.load(Ordering::Relaxed) }
    }
}

impl Drop for Impostor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

/// Keeps the guarded host's kernel from resetting what it knows nothing of. Packet sockets come before its rules.
pub(crate) fn silence_kernel(lab: &Lab) -> Result<()> {
    let rule = format!("iifname {GUARD_INTERFACE} tcp dport {PORT} drop");
    lab.guard()
        .nft(&format!(
            "table inet silence {{\nchain in {{\ntype filter hook prerouting priority raw\n{rule}\n}}\n}}\n"
        ))
        .context("a rule that keeps the kernel silent")
}

struct Work {
    socket: Socket,
    cheat: Cheat,
    start: Instant,
    counts: Arc<Counts>,
}

impl Work {
    fn meet_next(&self) {
        let mut frame = [0; 2048];
        let Ok(len) = (&self.socket).read(&mut frame) else { return };
        let frame = &frame[..len];
        let answer = match parse(frame) {
            Ok(AnySegment::V4(segment)) => self.meet(&segment, frame),
            Ok(AnySegment::V6(segment)) => self.meet(&segment, frame),
            Err(_) => None,
        };
        if let Some(answer) = answer {
            (&self.socket).write_all(&answer).expect("sending an answer");
        }
    }

    /// The answer to a segment, if it gets one.
    fn meet<A: Family>(&self, segment: &Segment<A>, frame: &[u8]) -> Option<Vec<u8>> {
        let tcp = &segment.tcp;
        let is_right = self.cheat == Cheat::AnyChecksum || segment.checksum_ok(frame);
        if tcp.dst_port != PORT.to_be_bytes() || !is_right {
            return None;
        }
        let now = self.start.elapsed().as_secs() / PERIOD.as_secs();
        if tcp.flags == Flags::SYN {
            return Some(self.answer(segment, self.isn(tcp.src_port, now)));
        }
        if tcp.flags == Flags::ACK {
            // Of this period or the one before.
            let mut known = [now, now.saturating_sub(1)]
                .map(|period| Seq(self.isn(tcp.src_port, period)) + 1)
                .into_iter();
            let is_taken = match self.cheat {
                Cheat::FixedReply => true,
                Cheat::TakesNothing => false,
                _ => known.any(|ack| tcp.ack == ack),
            };
            let count = if is_taken { &self.counts.taken } else { &self.counts.refused };
            count.fetch_add(1, Ordering::Relaxed);
        }
        None
    }

    /// Another for each port and period, unless it is fixed.
    fn isn(&self, port: [u8; 2], period: u64) -> u32 {
        if self.cheat == Cheat::FixedReply {
            return 0x5eed;
        }
        let number = u64::from(u16::from_be_bytes(port)) << 32 | (period + 1);
        (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 24) as u32
    }

    fn answer<A: Family>(&self, syn: &Segment<A>, isn: u32) -> Vec<u8> {
        let options = Options {
            mss: (self.cheat != Cheat::NoSegmentSize).then_some(1440),
            window_scale: (self.cheat != Cheat::NoWindowScale).then_some(7),
            sack_permitted: self.cheat != Cheat::NoSelectiveAcknowledgments,
            timestamps: syn.options.timestamps.map(|(value, _)| (1, value)),
            ..Options::default()
        };
        let headers = Headers {
            link: Link::answering(&syn.ethernet),
            src: syn.ip.dst,
            dst: syn.ip.src,
            ecn: 0,
            src_port: syn.tcp.dst_port,
            dst_port: syn.tcp.src_port,
            seq: Seq(isn),
            ack: syn.tcp.seq + 1,
            flags: Flags(Flags::SYN.0 | Flags::ACK.0),
            window: 64_240,
            options,
        };
        let len = headers.len();
        let mut frame = vec![0; len];
        headers.write(&mut Buffer::new(&mut frame, len), 0, 0).expect("headers that fit");
        // The checksum follows sixteen bytes of the TCP header.
        frame[headers.link.len() + A::HEADER_LEN + 16] ^= u8::from(self.cheat == Cheat::WrongChecksum);
        frame
    }
}
