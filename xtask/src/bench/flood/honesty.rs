//! Whether the guard does its job at all: a defence that answers every SYN alike, or takes every ACK, would win any benchmark.
//! A client of ours sends segments of its own making to the guard of a lab and looks at what comes back, and the guard's own
//! counters say what it made of them. How fast it is does not matter here.

use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::Socket;
use tcpguard_common::cookie::{Strictness, SynOptions, encode};
use tcpguard_common::flow::{FlowKey, V4};
use tcpguard_common::map::EpochSlot;
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{Buffer, Flags, Options, Vlan, checksum};
use tcpguard_common::seq::Seq;

use super::super::defence;
use crate::build::Artifacts;
use crate::lab::{
    CLIENT_INTERFACE, FAR_MAC, GUARD_ADDRESS, GUARD_MAC, Instead, Lab, LabConfig, StandIn, packet_socket,
};

const PORT: u16 = 80;
/// How often the guard changes its key here: as often as it can.
const PERIOD: Duration = Duration::from_secs(2);
/// The client: nobody's address, so that no kernel meddles.
const CLIENT: V4 = V4([10, 77, 0, 200]);
/// Its initial sequence number.
const ISN: u32 = 0x0b5e_55ed;
/// The clock of its timestamps.
const TSVAL: u32 = 77;
/// ACKs with random numbers.
const GUESSES: u16 = 200;
/// All that an epoch's two bits tell apart.
const EPOCHS: u32 = 4;
/// Between two looks at the same thing.
const PAUSE: Duration = Duration::from_millis(20);

/// How long what somebody does is waited for, at most.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// An answer to a SYN.
    answer: Duration,
    /// A verdict on every ACK that was sent.
    verdict: Duration,
    /// Another key.
    key: Duration,
}

impl Patience {
    /// Far longer than a guard takes on a busy machine.
    const WITH_A_GUARD: Self = Self {
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
struct Verdicts {
    /// Those that opened connections.
    taken: u64,
    refused: u64,
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
        let Self { same_key, next_key, other_client, wrong, guessed, zero_key, completed } = *self;
        let mut faults = Vec::new();
        let mut fault = |is_so: bool, what| faults.extend(is_so.then_some(what));
        fault(
            same_key.contains(&None) || next_key.is_none() || other_client.is_none(),
            "a SYN was not answered",
        );
        fault(wrong > 0, "a SYN-ACK was wrong");
        fault(same_key[0] != same_key[1], "one SYN was answered differently while one key was in force");
        fault(next_key == same_key[0], "a change of key changed no answer");
        fault(other_client == same_key[0], "two clients were answered alike");
        fault(guessed > 0, "an ACK with random numbers was taken");
        fault(zero_key > 0, "an ACK made with a key of zeroes was taken");
        fault(completed != 1, "a client that acknowledged its SYN-ACK was not connected");
        faults
    }
}

/// Fails unless tcpguard does its job.
pub fn check(built: &Artifacts) -> Result<()> {
    let lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let protect = format!("{GUARD_ADDRESS}:{PORT}=respond:discard,cookie");
    let period = format!("cookie-period={}s", PERIOD.as_secs());
    let mut daemon = defence::tcpguard(&lab, built, &["--protect", &protect, "--set", &period])?;
    let verdicts = || {
        let numbers = daemon.numbers()?;
        Ok(Verdicts { taken: numbers.acks_accepted, refused: numbers.acks_refused })
    };
    let conduct = observe(&lab, Patience::WITH_A_GUARD, verdicts)?;
    daemon.stop()?;
    let faults = conduct.faults();
    ensure!(faults.is_empty(), "tcpguard does not do its job: {}: {conduct:?}", faults.join("; "));
    Ok(())
}

/// What a program that only sends frames back does: nothing of it.
pub fn reflector(built: &Artifacts) -> Result<Conduct> {
    let lab = Lab::up(LabConfig::new(&built.lab_object))?;
    let _program = StandIn::attach(&lab, Instead::Reflect)?;
    observe(&lab, Patience::WITHOUT, || Ok(Verdicts::default()))
}

/// Sends it what an honest client and an attacker would.
fn observe(lab: &Lab, patience: Patience, mut verdicts: impl FnMut() -> Result<Verdicts>) -> Result<Conduct> {
    let mut client = Client::new(lab, patience.answer)?;
    let mut conduct = Conduct::default();
    // Two answers of one key, which may change in between: then the second and third are of one.
    let (mut first, mut second) = (client.ask(1)?, client.ask(1)?);
    if first != second {
        (first, second) = (second, client.ask(1)?);
    }
    conduct.same_key = [first, second].map(|answer| answer.map(|answer| answer.seq));
    conduct.other_client = client.ask(2)?.map(|answer| answer.seq);

    let before = verdicts()?;
    let mut random = 0x9e37_79b9u32;
    for port in 0..GUESSES {
        random = random.wrapping_mul(0x0019_660d).wrapping_add(0x3c6e_f35f);
        client.acknowledge(1000 + port, Answer { seq: random, tsval: Some(random.rotate_left(9)) })?;
    }
    conduct.guessed = taken(&mut verdicts, before, u64::from(GUESSES), patience)?;

    let before = verdicts()?;
    for (epoch, port) in (0..EPOCHS).zip(5000..) {
        client.acknowledge(port, forged(epoch, port))?;
    }
    conduct.zero_key = taken(&mut verdicts, before, u64::from(EPOCHS), patience)?;

    let before = verdicts()?;
    if let Some(answer) = client.ask(6000)? {
        client.acknowledge(6000, answer)?;
    }
    conduct.completed = taken(&mut verdicts, before, 1, patience)?;

    let deadline = Instant::now() + patience.key;
    conduct.next_key = loop {
        let answer = client.ask(1)?.map(|answer| answer.seq);
        if answer != conduct.same_key[0] || Instant::now() >= deadline {
            break answer;
        }
        std::thread::sleep(PAUSE);
    };
    conduct.wrong = client.wrong;
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

/// What a guard whose keys are zeroes would have answered in an epoch with these two bits.
fn forged(epoch: u32, port: u16) -> Answer {
    let slot = EpochSlot {
        epoch,
        valid: 1,
        mss_v4: 1460,
        mss_v6: 1440,
        window: 64_240,
        window_scale: 9,
        layout: tcpguard_common::cookie::LAYOUT,
        ..EpochSlot::default()
    };
    let syn = SynOptions {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some(TSVAL),
        ecn: false,
    };
    let cookie = encode(&slot, Strictness::NEVER, &flow(port), ISN, &syn, 0);
    Answer { seq: cookie.isn, tsval: cookie.tsval }
}

fn flow(port: u16) -> FlowKey<V4> {
    FlowKey {
        peer: CLIENT,
        local: V4(GUARD_ADDRESS.octets()),
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

/// Sends segments of its own making.
struct Client {
    socket: Socket,
    /// How long an answer may take.
    patience: Duration,
    wrong: u32,
}

impl Client {
    fn new(lab: &Lab, patience: Duration) -> Result<Self> {
        let socket = lab.client().enter(|| packet_socket(CLIENT_INTERFACE))??;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        Ok(Self { socket, patience, wrong: 0 })
    }

    /// Sends the SYN of `port`: the same each time.
    fn ask(&mut self, port: u16) -> Result<Option<Answer>> {
        let options = Options {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some((TSVAL, 0)),
            ..Options::default()
        };
        self.send(port, Flags::SYN, ISN, 0, options)?;
        let deadline = Instant::now() + self.patience;
        let mut frame = [0; 2048];
        while Instant::now() < deadline {
            let Ok(len) = self.socket.read(&mut frame) else { continue };
            if let Some(answer) = self.read(&frame[..len], port) {
                return Ok(Some(answer));
            }
        }
        Ok(None)
    }

    fn acknowledge(&mut self, port: u16, answer: Answer) -> Result<()> {
        let timestamps = answer.tsval.map(|echo| (TSVAL, echo));
        let options = Options { timestamps, ..Options::default() };
        self.send(port, Flags::ACK, ISN.wrapping_add(1), answer.seq.wrapping_add(1), options)
    }

    fn send(&mut self, port: u16, flags: Flags, seq: u32, ack: u32, options: Options) -> Result<()> {
        let FlowKey { peer, local, peer_port, local_port } = flow(port);
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
        headers.write(&mut Buffer::new(&mut frame, len), 0, 0).context("room for the headers")?;
        self.socket.write_all(&frame).context("sending a segment")
    }

    /// Reads a SYN-ACK to the SYN of `port` out of a frame, if it is one, and judges it.
    fn read(&mut self, frame: &[u8], port: u16) -> Option<Answer> {
        const SYN_ACK: u8 = 0x12;
        let (ip, tcp) = (frame.get(14..34)?, frame.get(34..)?);
        let to_us = ip[0] == 0x45 && ip[9] == 6 && ip[16..20] == CLIENT.0;
        let header = usize::from(tcp.get(12)? >> 4) * 4;
        if !to_us
            || tcp.get(2..4)? != port.to_be_bytes()
            || tcp.get(13)? & 0x3f != SYN_ACK
            || tcp.len() < header
        {
            return None;
        }
        let word = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let tcp = &tcp[..usize::from(u16::from_be_bytes([ip[2], ip[3]])).saturating_sub(20).min(tcp.len())];
        let local = V4(GUARD_ADDRESS.octets());
        let sums = [checksum::sum(ip), checksum::sum(tcp) + checksum::pseudo(local, CLIENT, tcp.len())];
        let summed = sums.into_iter().all(checksum::holds);
        let stamps = stamps(tcp.get(20..header)?);
        let echoed = stamps.is_some_and(|(_, echo)| echo == TSVAL);
        self.wrong += u32::from(!summed || word(8)? != ISN.wrapping_add(1) || !echoed);
        Some(Answer { seq: word(4)?, tsval: stamps.map(|(tsval, _)| tsval) })
    }
}

/// TSval and TSecr among the options of a header.
fn stamps(options: &[u8]) -> Option<(u32, u32)> {
    let at = options.windows(2).position(|pair| pair == [8, 10])?;
    let word = |at: usize| Some(u32::from_be_bytes(options.get(at..at + 4)?.try_into().ok()?));
    Some((word(at + 2)?, word(at + 6)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HONEST: Conduct = Conduct {
        same_key: [Some(1), Some(1)],
        next_key: Some(2),
        other_client: Some(3),
        wrong: 0,
        guessed: 0,
        zero_key: 0,
        completed: 1,
    };

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
