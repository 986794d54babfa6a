//! Runs one row at a time, and what it is compared with right after it.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, ProgramArray, XskMap};
use aya::programs::{ProgramFd, ProgramInfo, TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, Pod};
use socket2::{Domain, Socket, Type};
use tcpguard_common::bench::{Rewrite, name};
use tcpguard_common::filter::{ALLOW, DENY, MAX_FILTERS};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::map::EpochSlot;

use super::frames::{Kind, Sources, rewrite};
use super::guard::{self, Guard, Tables, check};
use super::rows::{self, ALLOWED, Contestant, DENIED, DROP, FEW, KNOWN, Spec, TX, Version};
use super::{Effort, Objects, Peer, Run, answer};
use crate::bench::machine;

/// `AF_XDP`.
pub(super) const AF_XDP: i32 = 44;
/// Flows that a row may add to a table before they are removed again.
const MOST_NEW: u32 = 16_384;
/// Packets before those that count: what other rows left in the caches is not what a row is about.
pub(super) const WARM_UP: u32 = 2000;

/// Everything loaded and filled.
pub(super) struct Contest {
    bench: Ebpf,
    hot: Guard,
    cold: Guard,
    denying: Guard,
    listing: Guard,
    peers: Vec<Loaded>,
    effort: Effort,
    slot: EpochSlot,
    /// Keeps its places in the maps taken.
    _socket: Socket,
}

impl Contest {
    pub(super) fn new(objects: Objects<'_>, peers: &[Peer], effort: Effort) -> Result<Self> {
        // Never bound: all that the programs ask is whether there is one.
        let socket = Socket::new(Domain::from(AF_XDP), Type::RAW, None).context("an AF_XDP socket")?;
        let slot = guard::epoch()?;
        let mut hot = Guard::load(objects.guard, &socket)?;
        fill(&mut hot, slot, FEW)?;
        let mut cold = Guard::load(objects.guard, &socket)?;
        fill(&mut cold, slot, effort.flows.into())?;
        let mut denying = Guard::load(objects.guard, &socket)?;
        denying.list(&[(u32::from(DENIED) << 24, 8, DENY)])?;
        let mut listing = Guard::load(objects.guard, &socket)?;
        listing.list(&full_list())?;
        let peers = peers.iter().map(Loaded::open).collect::<Result<_>>()?;
        let bench = load(objects.bench, &socket)?;
        Ok(Self { bench, hot, cold, denying, listing, peers, effort, slot, _socket: socket })
    }

    /// One run of a row and one of its null.
    pub(super) fn time(&mut self, row: &Spec) -> Result<Run> {
        match row.version {
            Version::V4 => self.time_family::<V4>(row),
            Version::V6 => self.time_family::<V6>(row),
        }
    }

    fn time_family<A: Tables>(&mut self, row: &Spec) -> Result<Run>
    where
        FlowKey<A>: Pod,
    {
        let count = row.sources.count.min(self.known_to(row));
        let rewrite = rewrite::<A>(row.kind, Sources { count, ..row.sources }, self.slot);
        let packets = match row.kind {
            Kind::AckOfCookie => self.effort.packets.min(MOST_NEW),
            _ => self.effort.packets,
        };
        rewrite_as(&mut self.bench, rewrite)?;
        let first = self.position()?;
        self.run(row.contestant, packets.min(WARM_UP))?;
        let before = self.counters(row.contestant)?;
        let (verdict, time) = self.run(row.contestant, packets)?;
        if verdict != row.verdict {
            bail!("verdict {verdict}, expected {}", row.verdict);
        }
        let after = self.counters(row.contestant)?;
        check(&before, &after, row.reason, packets)?;
        if row.kind == Kind::AckOfCookie {
            let numbers = first..self.position()?;
            let guard = if row.contestant == Contestant::Cold { &mut self.cold } else { &mut self.hot };
            guard.forget::<A>(&rewrite, numbers)?;
        }
        let (verdict, null) = self.run(Contestant::Null, packets)?;
        if verdict != DROP {
            bail!("the frame could not be made");
        }
        if row.verdict == TX {
            let next = self.program(row.contestant)?;
            let ours = !matches!(row.contestant, Contestant::Peer(_));
            look::<A>(&mut self.bench, &next, &rewrite, ours.then_some(self.slot))?;
        }
        Ok(Run { row: time, null })
    }

    /// How many flows there are in the table of a row.
    fn known_to(&self, row: &Spec) -> u64 {
        if row.contestant == Contestant::Cold && row.sources.network == KNOWN {
            self.effort.flows.into()
        } else {
            u64::MAX
        }
    }

    fn position(&self) -> Result<u64> {
        position(&self.bench)
    }

    /// The counters of the guard in question; none of other programs.
    fn counters(&self, contestant: Contestant) -> Result<Vec<u64>> {
        match contestant {
            Contestant::Hot => self.hot.counters(),
            Contestant::Cold => self.cold.counters(),
            Contestant::Denying => self.denying.counters(),
            Contestant::Listing => self.listing.counters(),
            Contestant::Null | Contestant::Redirect | Contestant::Peer(_) => Ok(Vec::new()),
        }
    }

    /// Runs a program on `packets` frames: the verdict on the last, and nanoseconds per packet.
    fn run(&mut self, contestant: Contestant, packets: u32) -> Result<(u32, f64)> {
        let next = self.program(contestant)?;
        run(&mut self.bench, &next, packets)
    }

    /// The peers' tags, in their order.
    pub(super) fn tags(&self) -> Result<Vec<String>> {
        self.peers.iter().map(Loaded::tag).collect()
    }

    fn program(&self, contestant: Contestant) -> Result<ProgramFd> {
        Ok(match contestant {
            Contestant::Null => null(&self.bench)?,
            Contestant::Redirect => program(&self.bench, name::REDIRECT)?.fd()?.try_clone()?,
            Contestant::Hot => self.hot.program()?,
            Contestant::Cold => self.cold.program()?,
            Contestant::Denying => self.denying.program()?,
            Contestant::Listing => self.listing.program()?,
            Contestant::Peer(index) => self.peers.get(index).context("no such peer")?.program()?,
        })
    }
}

/// Fails unless every peer does what its rows say. Tables take longer to fill.
pub(super) fn try_out(objects: Objects<'_>, peers: &[Peer]) -> Result<()> {
    const PACKETS: u32 = 100;
    let loaded = peers.iter().map(Loaded::open).collect::<Result<Vec<_>>>()?;
    let socket = Socket::new(Domain::from(AF_XDP), Type::RAW, None).context("an AF_XDP socket")?;
    let (mut bench, slot) = (load(objects.bench, &socket)?, guard::epoch()?);
    for Spec { name, contestant, kind, sources, verdict: expected, .. } in rows::all(peers) {
        let Contestant::Peer(index) = contestant else { continue };
        let (how, program) = (rewrite::<V4>(kind, sources, slot), loaded[index].program()?);
        rewrite_as(&mut bench, how)?;
        let (verdict, _) = run(&mut bench, &program, PACKETS)?;
        ensure!(verdict == expected, "row {name}: verdict {verdict}, expected {expected}");
        if expected == TX {
            look::<V4>(&mut bench, &program, &how, None).with_context(|| format!("row {name}"))?;
        }
    }
    Ok(())
}

/// Makes the next runs rewrite frames so.
pub(super) fn rewrite_as(bench: &mut Ebpf, how: Rewrite) -> Result<()> {
    Ok(Array::<_, Rewrite>::try_from(bench.map_mut(name::CONFIG).context(name::CONFIG)?)?.set(0, how, 0)?)
}

/// Runs a program on `packets` frames: the verdict on the last, and nanoseconds per packet.
pub(super) fn run(bench: &mut Ebpf, next: &ProgramFd, packets: u32) -> Result<(u32, f64)> {
    let (verdict, time, _) = run_into(bench, next, packets, &mut [])?;
    Ok((verdict, time))
}

/// Runs a program once more and looks at what it answers; see [`answer::check`].
fn look<A: Tables>(
    bench: &mut Ebpf,
    next: &ProgramFd,
    rewrite: &Rewrite,
    slot: Option<EpochSlot>,
) -> Result<()> {
    let mut frame = [0; 2048];
    let number = rewrite.number(position(bench)?);
    let (_, _, len) = run_into(bench, next, 1, &mut frame)?;
    let answer = frame.get(..len).context("an answer longer than any frame")?;
    answer::check::<A>(answer, rewrite, number, slot).context("what it sends back")
}

fn position(bench: &Ebpf) -> Result<u64> {
    let map = Array::<_, u64>::try_from(bench.map(name::POSITION).context(name::POSITION)?)?;
    Ok(map.get(&0, 0)?)
}

/// Like [`run`]; puts the last frame where there is room, and says how long it is.
fn run_into(bench: &mut Ebpf, next: &ProgramFd, packets: u32, out: &mut [u8]) -> Result<(u32, f64, usize)> {
    ProgramArray::try_from(bench.map_mut(name::NEXT).context(name::NEXT)?)?
        .set(0, next, 0)
        .context("putting the program behind the one that makes frames")?;
    let frame = [0; tcpguard_common::bench::TEMPLATE_LEN];
    let data_out = (!out.is_empty()).then_some(out);
    let options =
        TestRunOptions { data_in: Some(&frame), data_out, repeat: packets, ..TestRunOptions::new() };
    let outcome = program(bench, name::REWRITE)?.test_run(options).context("BPF_PROG_RUN")?;
    Ok((outcome.return_value, outcome.duration.as_nanos() as f64, outcome.data_size_out as usize))
}

/// The program that does nothing.
pub(super) fn null(bench: &Ebpf) -> Result<ProgramFd> {
    Ok(program(bench, name::NULL)?.fd()?.try_clone()?)
}

/// As many prefixes as a list can have: every /24 of a network that is denied, and allowed hosts all over another.
fn full_list() -> Vec<(u32, u8, u32)> {
    let denied = (0..1 << 16).map(|index: u32| (u32::from(DENIED) << 24 | index << 8, 24, DENY));
    let hosts = (1 << 16..MAX_FILTERS).map(|index: u32| index.wrapping_mul(0x9e_3779) & 0xff_ffff);
    let allowed = hosts.map(|host| (u32::from(ALLOWED) << 24 | host, 32, ALLOW));
    let mut list: Vec<_> = denied.chain(allowed).collect();
    list.sort_unstable();
    list
}

/// Makes a guard know `count` flows of each family.
fn fill(guard: &mut Guard, slot: EpochSlot, count: u64) -> Result<()> {
    let sources = Sources { network: KNOWN, count };
    guard.know::<V4>(&rewrite::<V4>(Kind::Ack, sources, slot), count)?;
    guard.know::<V6>(&rewrite::<V6>(Kind::Ack, sources, slot), count)
}

/// The programs that make frames, and those that do nothing with them.
pub(super) fn load(object: &Path, socket: &Socket) -> Result<Ebpf> {
    let failed = || format!("loading {}", object.display());
    let mut ebpf = Ebpf::load_file(object).with_context(failed)?;
    for name in [name::REWRITE, name::NULL, name::REDIRECT] {
        let program: &mut Xdp = ebpf.program_mut(name).with_context(failed)?.try_into()?;
        program.load().with_context(failed)?;
    }
    let mut target = XskMap::try_from(ebpf.map_mut(name::TARGET).context(name::TARGET)?)?;
    target.set(0, socket.as_raw_fd(), 0)?;
    Ok(ebpf)
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// Another program, ready to run.
enum Loaded {
    /// With the program's name.
    Object(Box<Ebpf>, String),
    /// With its tag.
    Pinned(ProgramFd, String),
}

impl Loaded {
    fn open(peer: &Peer) -> Result<Self> {
        let failed = || format!("peer {}: {}", peer.name, peer.object.display());
        if !is_elf(&peer.object) {
            let pinned = ProgramInfo::from_pin(&peer.object).with_context(failed)?;
            return Ok(Self::Pinned(pinned.fd().with_context(failed)?, machine::tag(&pinned)));
        }
        let mut ebpf = Ebpf::load_file(&peer.object).with_context(failed)?;
        let first = ebpf.programs_mut().find_map(|(name, program)| {
            let name = name.to_owned();
            <&mut Xdp>::try_from(program).ok().map(|program| (name, program))
        });
        let (name, program) = first.context("no XDP program in it").with_context(failed)?;
        program.load().with_context(failed)?;
        Ok(Self::Object(Box::new(ebpf), name))
    }

    fn program(&self) -> Result<ProgramFd> {
        let fd = match self {
            Self::Object(ebpf, name) => program(ebpf, name)?.fd()?,
            Self::Pinned(fd, _) => fd,
        };
        Ok(fd.try_clone()?)
    }

    fn tag(&self) -> Result<String> {
        Ok(match self {
            Self::Object(ebpf, name) => machine::tag(&program(ebpf, name)?.info()?),
            Self::Pinned(_, tag) => tag.clone(),
        })
    }
}

/// A pinned program cannot be opened as a file.
fn is_elf(path: &Path) -> bool {
    let mut magic = [0; 4];
    File::open(path).and_then(|mut file| file.read_exact(&mut magic)).is_ok() && magic == *b"\x7fELF"
}
