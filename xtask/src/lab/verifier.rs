//! The far end of the guard's link: sees every frame the guard sends, judges the answers to spoofed addresses and
//! keeps them from the kernel behind it. And the programs of links without a guard.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use aya::programs::{Xdp, XdpMode};
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
        let link: aya::programs::links::FdLink = program.take_link(id)?.try_into()?;
        link.pin(path).with_context(|| format!("pinning {}", path.display()))?;
        Ok(())
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
