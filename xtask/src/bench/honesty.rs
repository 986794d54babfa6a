//! Whether the guard does its job at all: a defence that answers every SYN alike, or takes every ACK, would win any benchmark.
//! A client of ours sends segments of its own making to the guard of a lab and looks at what comes back, and the guard's own
//! counters say what it made of them. How fast it is does not matter here.

use std::io::{Read as _, Write as _};
use std::marker::PhantomData;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::Socket;
use tcpguard_common::cookie::{Clock, Strictness, SynOptions, encode, validate};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{AnySegment, Buffer, Family, Flags, Options, Segment, Vlan, parse};
use tcpguard_common::seq::Seq;

use super::defence;
use crate::build::Artifacts;
use crate::lab::{
    CLIENT_INTERFACE, FAR_MAC, GUARD_ADDRESS, GUARD_ADDRESS_V6, GUARD_MAC, Instead, Lab, LabConfig, StandIn,
    packet_socket,
};

/// Where a guard is asked.
pub const PORT: u16 = 80;
/// How often the guard changes its key here: as often as it can.
const PERIOD: Duration = Duration::from_secs(2);
/// The client's initial sequence number.
const ISN: u32 = 0x0b5e_55ed;
/// The clock of its timestamps.
const TSVAL: u32 = 77;
/// ACKs with random numbers.
const GUESSES: u16 = 200;
/// All that an epoch's two bits tell apart.
const EPOCHS: u32 = 4;
/// What nobody must have as a key, though a map has it that nobody wrote to.
const ZEROES: [u64; 2] = [0; 2];
/// A key that a guard may have: with it, what is [forged](forged) must be taken.
const KNOWN: [u64; 2] = [0, 1];
/// Between two looks at the same thing.
const PAUSE: Duration = Duration::from_millis(20);
/// After so long nobody answers a SYN any more.
const SILENCE: Duration = Duration::from_millis(200);
/// From the end of a network header to the TCP checksum.
const CHECKSUM_AT: usize = 16;

/// How long what somebody does is waited for, at most.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// An answer to a SYN.
    pub answer: Duration,
    /// A verdict on every ACK that was sent.
    pub verdict: Duration,
    /// Another key.
    pub key: Duration,
}

impl Patience {
    /// Far longer than a guard takes on a busy machine.
    pub const WITH_A_GUARD: Self = Self {
        answer: Duration::from_secs(5),
        verdict: Duration::from_secs(5),
        key: Duration::from_secs(4 * PERIOD.as_secs()),
    };
    /// Of whom nothing is expected.
    const WITHOUT: Self =
        Self { answer: Duration::from_millis(100), verdict: Duration::ZERO, key: Duration::ZERO };
}

/// ACKs on which a guard has decided so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    /// Those that opened connections.
    pub taken: u64,
    /// Those that opened none.
    pub refused: u64,
}

/// What a guard did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Conduct {
    /// Sequence numbers of two SYN-ACKs to one SYN while one key was in force.
    pub same_key: [Option<u32>; 2],
    /// Of one a key later.
    pub next_key: Option<u32>,
    /// Of one to another client.
    pub other_client: Option<u32>,
    /// SYN-ACKs with a wrong checksum, or that acknowledge or echo what was not sent.
    pub wrong: u32,
    /// SYN-ACKs without an option that the SYN offered: the segment size, selective acknowledgments or the window scale.
    pub lacking: u32,
    /// Whether a SYN with a wrong checksum was answered.
    pub wrong_syn: bool,
    /// Connections that ACKs with random numbers opened.
    pub guessed: u64,
    /// Connections that ACKs of cookies made with a key of zeroes opened.
    pub zero_key: u64,
    /// Connections that acknowledging its own SYN-ACKs opened, of one.
    pub completed: u64,
}

impl Conduct {
    /// What is wrong with it; nothing if it did its job.
    pub fn faults(&self) -> Vec<&'static str> {
        let Self {
            same_key,
            next_key,
            other_client,
            wrong,
            lacking,
            wrong_syn,
            guessed,
            zero_key,
            completed,
        } = *self;
        let mut faults = Vec::new();
        let mut fault = |is_so: bool, what| faults.extend(is_so.then_some(what));
        fault(
            same_key.contains(&None) || next_key.is_none() || other_client.is_none(),
            "a SYN was not answered",
        );
        fault(wrong > 0, "a SYN-ACK was wrong");
        fault(lacking > 0, "a SYN-ACK lacked an option that was offered");
        fault(wrong_syn, "a SYN with a wrong checksum was answered");
        fault(same_key[0] != same_key[1], "one SYN was answered differently while one key was in force");
        fault(next_key == same_key[0], "a change of key changed no answer");
        fault(other_client == same_key[0], "two clients were answered alike");
        fault(guessed > 0, "an ACK with random numbers was taken");
        fault(zero_key > 0, "an ACK made with a key of zeroes was taken");
        fault(completed != 1, "a client that acknowledged its SYN-ACK was not connected");
        faults
    }
}

/// Fails unless tcpguard does its job over both families.
pub fn check(built: &Artifacts) -> Result<()> {
    let lab = Lab::up(LabConfig::new(&built.lab_object))?;
    lab.ipv6()?;
    let protect = [GUARD_ADDRESS.to_string(), format!("[{GUARD_ADDRESS_V6}]")]
        .map(|address| format!("{address}:{PORT}=respond:discard,cookie"));
    let period = format!("cookie-period={}s", PERIOD.as_secs());
    let arguments = ["--protect", &protect[0], "--protect", &protect[1], "--set", &period];
    let mut daemon = defence::tcpguard(&lab, built, &arguments)?;
    let conducts = conducts(&lab, Patience::WITH_A_GUARD, &mut || {
        let numbers = daemon.numbers()?;
        Ok(Verdicts { taken: numbers.acks_accepted, refused: numbers.acks_refused })
    })?;
    daemon.stop()?;
    for (family, conduct) in conducts {
        let faults = conduct.faults();
        ensure!(
            faults.is_empty(),
            "tcpguard does not do its job over {family}: {}: {conduct:?}",
            faults.join("; ")
        );
    }
    Ok(())
}

/// What the guard of a lab that has IPv6 does over each family. Asked for its `verdicts`, it says how many there were so far.
pub fn conducts(
    lab: &Lab,
    patience: Patience,
    verdicts: &mut impl FnMut() -> Result<Verdicts>,
) -> Result<[(&'static str, Conduct); 2]> {
    let v4 = observe::<V4>(lab, patience, verdicts)?;
    Ok([("IPv4", v4), ("IPv6", observe::<V6>(lab, patience, verdicts)?)])
}

/// What a program that only sends frames back does: nothing of it.
pub fn reflector(built: &Artifacts) -> Result<Conduct> {
    let lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let _program = StandIn::attach(&lab, Instead::Reflect)?;
    observe::<V4>(&lab, Patience::WITHOUT, &mut || Ok(Verdicts::default()))
}

/// Where the client is and whom it speaks to.
trait Ends: Family {
    /// The client: nobody's address, so that no kernel meddles.
    const CLIENT: Self;
    const GUARD: Self;
    /// A segment, if it is of this family.
    fn segment(any: AnySegment) -> Option<Segment<Self>>;
}

impl Ends for V4 {
    const CLIENT: Self = Self([10, 77, 0, 200]);
    const GUARD: Self = Self(GUARD_ADDRESS.octets());

    fn segment(any: AnySegment) -> Option<Segment<Self>> {
        if let AnySegment::V4(segment) = any { Some(segment) } else { None }
    }
}

impl Ends for V6 {
    const CLIENT: Self = Self([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0]);
    const GUARD: Self = Self(GUARD_ADDRESS_V6.octets());

    fn segment(any: AnySegment) -> Option<Segment<Self>> {
        if let AnySegment::V6(segment) = any { Some(segment) } else { None }
    }
}

/// Sends it what an honest client and an attacker would.
fn observe<A: Ends>(
    lab: &Lab,
    patience: Patience,
    verdicts: &mut impl FnMut() -> Result<Verdicts>,
) -> Result<Conduct> {
    let mut client = Client::<A>::new(lab, patience.answer)?;
    let mut conduct = Conduct::default();
    // Two answers of one key, which may change in between: then the second and third are of one.
    let (mut first, mut second) = (client.ask(1)?, client.ask(1)?);
    if first != second {
        (first, second) = (second, client.ask(1)?);
    }
    conduct.same_key = [first, second].map(|answer| answer.map(|answer| answer.seq));
    // The right one of the same port comes after it, so that it is one bit that makes the difference.
    conduct.wrong_syn = client.ask_wrongly(2)?;
    conduct.other_client = client.ask(2)?.map(|answer| answer.seq);

    let before = verdicts()?;
    let mut random = 0x9e37_79b9u32;
    for port in 0..GUESSES {
        random = random.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        client.acknowledge(1000 + port, Answer { seq: random, tsval: Some(random.rotate_left(9)) })?;
    }
    conduct.guessed = taken(verdicts, before, u64::from(GUESSES), patience)?;

    let before = verdicts()?;
    for (epoch, port) in (0..EPOCHS).zip(5000..) {
        ensure!(
            would_open::<A>(KNOWN, epoch, port),
            "an ACK made with a known key is not what a guard takes"
        );
        client.acknowledge(port, forged::<A>(ZEROES, epoch, port))?;
    }
    conduct.zero_key = taken(verdicts, before, u64::from(EPOCHS), patience)?;

    let before = verdicts()?;
    if let Some(answer) = client.ask(6000)? {
        client.acknowledge(6000, answer)?;
    }
    conduct.completed = taken(verdicts, before, 1, patience)?;

    let deadline = Instant::now() + patience.key;
    conduct.next_key = loop {
        let answer = client.ask(1)?.map(|answer| answer.seq);
        if answer != conduct.same_key[0] || Instant::now() >= deadline {
            break answer;
        }
        std::thread::sleep(PAUSE);
    };
    (conduct.wrong, conduct.lacking) = (client.wrong, client.lacking);
    Ok(conduct)
}

/// Connections that were opened since `before`, once there is a verdict on so many ACKs.
fn taken(
    verdicts: &mut impl FnMut() -> Result<Verdicts>,
    before: Verdicts,
    acks: u64,
    patience: Patience,
) -> Result<u64> {
    let deadline = Instant::now() + patience.verdict;
    loop {
        let now = verdicts()?;
        let (taken, refused) = (now.taken - before.taken, now.refused - before.refused);
        if taken + refused >= acks || Instant::now() >= deadline {
            return Ok(taken);
        }
        std::thread::sleep(PAUSE);
    }
}

fn slot(key: [u64; 2], epoch: u32) -> EpochSlot {
    EpochSlot {
        key,
        epoch,
        valid: 1,
        mss_v4: 1460,
        mss_v6: 1440,
        window: 64_240,
        window_scale: 9,
        layout: tcpguard_common::cookie::LAYOUT,
    }
}

/// What a guard with this key would have answered in an epoch with these two bits.
fn forged<A: Ends>(key: [u64; 2], epoch: u32, port: u16) -> Answer {
    let syn = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(TSVAL),
        ecn: false,
    };
    let cookie = encode(&slot(key, epoch), Strictness::NEVER, &flow::<A>(port), ISN, &syn, 0);
    Answer { seq: cookie.isn, tsval: cookie.tsval }
}

/// Whether the ACK that is forged with a key opens a connection where a guard has that key: what must not be taken is only worth
/// a look if nothing but its key is wrong.
fn would_open<A: Ends>(key: [u64; 2], epoch: u32, port: u16) -> bool {
    let mut epochs = [EpochSlot::default(); EPOCH_SLOTS as usize];
    epochs[(epoch % EPOCH_SLOTS) as usize] = slot(key, epoch);
    let frame = acknowledgement::<A>(port, forged::<A>(key, epoch, port));
    let segment = frame.and_then(|frame| {
        let segment = A::segment(parse(&frame[..]).ok()?)?;
        segment.checksum_ok(&frame).then_some(segment)
    });
    segment.is_some_and(|segment| {
        let (seq, ack) = (segment.tcp.seq.0.wrapping_sub(1), segment.tcp.ack.0.wrapping_sub(1));
        let echo = segment.options.timestamps.map(|(_, echo)| echo);
        let clock = Clock { epoch, ..Clock::default() };
        validate(&epochs, &clock, Strictness::NEVER, &segment.key(), seq, ack, echo).is_some()
    })
}

fn flow<A: Ends>(port: u16) -> FlowKey<A> {
    FlowKey {
        peer: A::CLIENT,
        local: A::GUARD,
        peer_port: port.to_be_bytes(),
        local_port: PORT.to_be_bytes(),
    }
}

/// What a SYN-ACK said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Answer {
    seq: u32,
    tsval: Option<u32>,
}

/// A whole frame, without data.
fn frame<A: Ends>(port: u16, flags: Flags, seq: u32, ack: u32, options: Options) -> Option<Vec<u8>> {
    let FlowKey { peer, local, peer_port, local_port } = flow::<A>(port);
    let headers = Headers {
        link: Link { dst: GUARD_MAC, src: FAR_MAC, vlan: Vlan::default() },
        src: peer,
        dst: local,
        ecn: 0,
        src_port: peer_port,
        dst_port: local_port,
        seq: Seq(seq),
        ack: Seq(ack),
        flags,
        window: 64_240,
        options,
    };
    let len = headers.len();
    let mut frame = vec![0; len];
    headers.write(&mut Buffer::new(&mut frame, len), 0, 0)?;
    Some(frame)
}

/// The first segment of a handshake: the same each time.
fn syn<A: Ends>(port: u16) -> Option<Vec<u8>> {
    let options = Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some((TSVAL, 0)),
        ..Options::default()
    };
    frame::<A>(port, Flags::SYN, ISN, 0, options)
}

/// The last segment of a handshake.
fn acknowledgement<A: Ends>(port: u16, answer: Answer) -> Option<Vec<u8>> {
    let timestamps = answer.tsval.map(|echo| (TSVAL, echo));
    let options = Options { timestamps, ..Options::default() };
    frame::<A>(port, Flags::ACK, ISN.wrapping_add(1), answer.seq.wrapping_add(1), options)
}

/// Sends segments of its own making.
struct Client<A> {
    socket: Socket,
    /// How long an answer may take.
    patience: Duration,
    wrong: u32,
    lacking: u32,
    family: PhantomData<A>,
}

impl<A: Ends> Client<A> {
    fn new(lab: &Lab, patience: Duration) -> Result<Self> {
        let socket = lab.client().enter(|| packet_socket(CLIENT_INTERFACE))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { socket, patience, wrong: 0, lacking: 0, family: PhantomData })
    }

    /// Sends the SYN of `port`.
    fn ask(&mut self, port: u16) -> Result<Option<Answer>> {
        self.send(syn::<A>(port))?;
        Ok(self.answer(port, self.patience))
    }

    /// Sends the SYN of `port` with one bit of its checksum wrong: whether it is answered.
    fn ask_wrongly(&mut self, port: u16) -> Result<bool> {
        let mut frame = syn::<A>(port);
        if let Some(frame) = &mut frame {
            frame[Link::default().len() + A::HEADER_LEN + CHECKSUM_AT] ^= 1;
        }
        self.send(frame)?;
        Ok(self.answer(port, SILENCE).is_some())
    }

    /// The next SYN-ACK to `port`, if it comes in time.
    fn answer(&mut self, port: u16, patience: Duration) -> Option<Answer> {
        let deadline = Instant::now() + patience;
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            let Ok(len) = self.socket.read(&mut frame) else { continue };
            if let Some(answer) = self.read(&frame[..len], port) {
                return Some(answer);
            }
        }
        None
    }

    fn acknowledge(&mut self, port: u16, answer: Answer) -> Result<()> {
        self.send(acknowledgement::<A>(port, answer))
    }

    fn send(&mut self, frame: Option<Vec<u8>>) -> Result<()> {
        self.socket.write_all(&frame.context("room for the headers")?).context("sending a segment")
    }

    /// Reads a SYN-ACK to the SYN of `port` out of a frame, if it is one, and judges it.
    fn read(&mut self, frame: &[u8], port: u16) -> Option<Answer> {
        let segment = A::segment(parse(frame).ok()?)?;
        let FlowKey { peer, local, peer_port, local_port } = flow::<A>(port);
        let (ip, tcp) = (&segment.ip, &segment.tcp);
        let to_us = ip.dst == peer && tcp.dst_port == peer_port;
        if !to_us || tcp.flags.0 & 0x3f != (Flags::SYN | Flags::ACK).0 {
            return None;
        }
        let stamps = segment.options.timestamps;
        let right = segment.checksum_ok(frame)
            && (ip.src, tcp.src_port) == (local, local_port)
            && tcp.ack.0 == ISN.wrapping_add(1)
            && stamps.is_some_and(|(_, echo)| echo == TSVAL);
        self.wrong += u32::from(!right);
        let Options { mss, window_scale, sack_permitted, .. } = segment.options;
        self.lacking += u32::from(mss.is_none() || window_scale.is_none() || !sack_permitted);
        Some(Answer { seq: tcp.seq.0, tsval: stamps.map(|(tsval, _)| tsval) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HONEST: Conduct = Conduct {
        same_key: [Some(1), Some(1)],
        next_key: Some(2),
        other_client: Some(3),
        wrong: 0,
        lacking: 0,
        wrong_syn: false,
        guessed: 0,
        zero_key: 0,
        completed: 1,
    };

    #[test]
    fn what_is_forged_opens_a_connection_where_its_key_is_in_force_and_never_with_zeroes() {
        for epoch in 0..EPOCHS {
            assert!(would_open::<V4>(KNOWN, epoch, 5000) && would_open::<V6>(KNOWN, epoch, 5000));
            assert!(!would_open::<V4>(ZEROES, epoch, 5000) && !would_open::<V6>(ZEROES, epoch, 5000));
        }
    }

    #[test]
    fn a_guard_that_does_its_job_has_no_faults() {
        assert!(HONEST.faults().is_empty());
    }

    #[test]
    fn each_way_of_not_doing_the_job_is_a_fault() {
        let cheats = [
            (Conduct { next_key: Some(1), ..HONEST }, "a change of key changed no answer"),
            (Conduct { other_client: Some(1), ..HONEST }, "two clients were answered alike"),
            (Conduct { wrong: 1, ..HONEST }, "a SYN-ACK was wrong"),
            (Conduct { lacking: 1, ..HONEST }, "a SYN-ACK lacked an option that was offered"),
            (Conduct { wrong_syn: true, ..HONEST }, "a SYN with a wrong checksum was answered"),
            (Conduct { guessed: 1, ..HONEST }, "an ACK with random numbers was taken"),
            (Conduct { zero_key: 1, ..HONEST }, "an ACK made with a key of zeroes was taken"),
            (Conduct { completed: 0, ..HONEST }, "a client that acknowledged its SYN-ACK was not connected"),
            (Conduct { next_key: None, ..HONEST }, "a SYN was not answered"),
        ];
        for (cheat, fault) in cheats {
            assert_eq!(cheat.faults(), [fault], "{cheat:?}");
        }
        let fixed = Conduct { next_key: Some(1), other_client: Some(1), ..HONEST };
        assert_eq!(fixed.faults().len(), 2);
    }
}
