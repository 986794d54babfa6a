//! The far end of the guard's link: sees every frame the guard sends, judges the answers to spoofed addresses and
//! keeps them from the kernel behind it. And the programs of links without a guard.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray, ProgramArray, XskMap};
use aya::programs::links::{FdLink, PinnedLink};
use aya::programs::xdp::XdpLink;
use aya::programs::{ProgramFd, Xdp, XdpMode, loaded_programs};
use tcpguard_common::lab::{FloodConfig, Received, name};

use super::{GUARD_INTERFACE, Lab, Namespace, index};

/// The attached receiver. It detaches when dropped, unless it was [pinned](Self::pin).
#[derive(Debug)]
pub struct Verifier {
    ebpf: Ebpf,
    link: Option<aya::programs::xdp::XdpLinkId>,
}

/// What the receiver has seen since it was attached.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrivals([u64; Received::ALL.len()]);

impl Arrivals {
    /// Frames of one kind.
    pub fn of(&self, kind: Received) -> u64 {
        self.0[kind as usize]
    }

    /// SYN-ACKs to real and spoofed addresses, right or wrong.
    pub fn syn_acks(&self) -> u64 {
        self.of(Received::SynAck) + self.of(Received::SpoofedSynAck) + self.wrong()
    }

    /// SYN-ACKs to spoofed addresses with anything wrong in them.
    pub fn wrong(&self) -> u64 {
        use Received::{SpoofedBadAck, SpoofedBadChecksum, SpoofedBadOptions};
        [SpoofedBadChecksum, SpoofedBadAck, SpoofedBadOptions].into_iter().map(|kind| self.of(kind)).sum()
    }
}

impl Verifier {
    pub(super) fn attach(
        object: &Path,
        namespace: &Namespace,
        ifindex: u32,
        config: &FloodConfig,
    ) -> Result<Self> {
        let ebpf = Ebpf::load_file(object).with_context(|| format!("loading {}", object.display()))?;
        let mut verifier = Self { ebpf, link: None };
        verifier.expect(config)?;
        let program: &mut Xdp =
            verifier.ebpf.program_mut(name::VERIFY).context("no program verify")?.try_into()?;
        program.load().context("loading the receiver's program")?;
        let link = namespace.enter(|| program.attach_to_if_index(ifindex, XdpMode::Driver))??;
        verifier.link = Some(link);
        Ok(verifier)
    }

    /// Tells it which flood the answers belong to.
    pub(super) fn expect(&mut self, config: &FloodConfig) -> Result<()> {
        let mut map =
            Array::<_, FloodConfig>::try_from(self.ebpf.map_mut(name::CONFIG).context("no map CONFIG")?)?;
        Ok(map.set(0, config, 0)?)
    }

    /// Keeps it attached beyond this process.
    pub(super) fn pin(&mut self, path: &Path) -> Result<()> {
        let Some(id) = self.link.take() else { return Ok(()) };
        let program: &mut Xdp =
            self.ebpf.program_mut(name::VERIFY).context("no program verify")?.try_into()?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(path).with_context(|| format!("pinning {}", path.display()))?;
        Ok(())
    }

    /// Pins the map of those who take what would be passed.
    pub(super) fn pin_takers(&self, path: &Path) -> Result<()> {
        let map = XskMap::try_from(self.ebpf.map(name::TAKERS).context("no map TAKERS")?)?;
        map.pin(path).with_context(|| format!("pinning {}", path.display()))
    }

    /// The counters, all CPUs together.
    pub fn arrivals(&self) -> Result<Arrivals> {
        let map = PerCpuArray::<_, u64>::try_from(self.ebpf.map(name::RECEIVED).context("no map RECEIVED")?)?;
        let mut arrivals = Arrivals::default();
        for kind in Received::ALL {
            arrivals.0[kind as usize] = map.get(&(kind as u32), 0)?.iter().sum();
        }
        Ok(arrivals)
    }
}

/// What a program that stands in for the guard does with every frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instead {
    /// Leaves it to the kernel.
    Pass,
    /// Sends TCP segments back where they came from.
    Reflect,
    /// Drops it.
    Drop,
}

/// A program on the guard's interface, standing in for the guard: a veth takes live frames and XDP_TX only while its
/// receiving end has a program.
#[derive(Debug)]
pub struct StandIn {
    _ebpf: Ebpf,
}

impl StandIn {
    /// Attaches it until it is dropped.
    pub fn attach(lab: &Lab, instead: Instead) -> Result<Self> {
        let name = match instead {
            Instead::Pass => name::PASS,
            Instead::Reflect => name::REFLECT,
            Instead::Drop => name::DISCARD,
        };
        let object = &lab.config.object;
        let mut ebpf = Ebpf::load_file(object).with_context(|| format!("loading {}", object.display()))?;
        let program: &mut Xdp =
            ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?;
        program.load().with_context(|| format!("loading the program {name}"))?;
        let ifindex = index(lab.guard(), GUARD_INTERFACE)?;
        lab.guard().enter(|| program.attach_to_if_index(ifindex, XdpMode::Driver))??;
        Ok(Self { _ebpf: ebpf })
    }
}

/// A program before the guard's, in its link: it sends back what comes from the spoofed network, and leaves the rest to the
/// guard. What a guard could do at best that knew the attacker.
#[derive(Debug)]
pub struct Sieve {
    _ebpf: Ebpf,
}

impl Sieve {
    /// Puts it into the pinned link of the guard that runs on the lab's guarded host, for as long as that guard does.
    pub fn insert(lab: &Lab, spec: &super::FloodSpec) -> Result<Self> {
        let object = &lab.config.object;
        let mut ebpf = Ebpf::load_file(object).with_context(|| format!("loading {}", object.display()))?;
        let (far, interface) = super::far_end(&lab.client, lab.router.as_ref());
        let aim = super::aim(object, far, interface, 0, super::target(false, 0));
        Array::<_, FloodConfig>::try_from(ebpf.map_mut(name::CONFIG).context("no map CONFIG")?)?.set(
            0,
            aim.config(spec),
            0,
        )?;
        let link: FdLink = PinnedLink::from_pin(guard_link(lab)?)?.into();
        let guard = program_of(&link)?;
        let program: &mut Xdp = ebpf.program_mut(name::SIFT).context("no program sift")?.try_into()?;
        program.load().context("loading the program sift")?;
        ProgramArray::try_from(ebpf.map_mut(name::NEXT).context("no map NEXT")?)?
            .set(0, &guard, 0)
            .context("putting the guard's program behind the sieve")?;
        let program: &mut Xdp = ebpf.program_mut(name::SIFT).context("no program sift")?.try_into()?;
        program
            .attach_to_link(XdpLink::try_from(link)?)
            .context("putting the sieve into the guard's link")?;
        Ok(Self { _ebpf: ebpf })
    }
}

/// The pin of the guard's link: the only one whose name starts as those of links do.
fn guard_link(lab: &Lab) -> Result<PathBuf> {
    let entries = std::fs::read_dir(lab.pin_dir()).context("the guard's pins")?;
    let mut links = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with("xdp_"));
    Ok(links.next().context("the guard pinned no link")?.path())
}

/// The program that a link runs.
fn program_of(link: &FdLink) -> Result<ProgramFd> {
    let id = link.info()?.program_id();
    let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
    Ok(program.context("the link's program is gone")?.fd()?)
}
