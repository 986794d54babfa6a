//! The attacker: spoofed frames out of the client's side of the link, through `BPF_PROG_RUN` with live frames. A
//! thread paces batches of them; the frames themselves are made in the kernel.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, PerCpuArray};
use aya::programs::{ProgramError, TestRun as _, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use tcpguard_common::lab::{FloodConfig, TEMPLATE_LEN, TEMPLATES, Template, name};

use super::template::{Kind, Macs, templates};
use super::{Namespace, link_errors};

/// Frames the kernel makes before it hands them to the driver: its default, and a quarter of a veth ring.
const BATCH: u32 = 64;
/// Frames in one system call, at most: half of a veth ring, which is emptied when the call ends. Longer calls make
/// more frames and deliver fewer.
const CALL: u64 = 128;

/// How long after a flood the page pools of its calls are gone. One whose frames were on their way when its call ended is looked
/// at again after a second (`DEFER_TIME` in the kernel's net/core/page_pool.c), and each that goes walks through all that are
/// there, as each new call does: thousands of them, which gather while frames wait for a thread, leave a flood that follows a
/// tenth of its rate.
pub const RELEASE: Duration = Duration::from_millis(1500);

/// What to send.
#[derive(Clone, Copy, Debug)]
pub struct FloodSpec {
    /// The kind of frame.
    pub kind: Kind,
    /// Frames a second; 0 for as many as the machine makes.
    pub rate: u64,
    /// Stop once the link has taken this many frames.
    pub total: Option<u64>,
    /// The network the sources are drawn from: address and prefix length. Over IPv6 the same bits stand behind
    /// [`V6_PREFIX`](tcpguard_common::lab::V6_PREFIX).
    pub sources: (Ipv4Addr, u8),
    /// The port of every source; `None` for random ones.
    pub port: Option<u16>,
    /// Where the sequence of sources starts: the same seed sends the same frames.
    pub seed: u64,
    /// Over IPv6, against [`super::GUARD_ADDRESS_V6`].
    pub ipv6: bool,
    /// The sources acknowledge what they are answered, as a botnet with addresses of its own would. Over IPv4 only.
    pub complete: bool,
}

impl Default for FloodSpec {
    /// An endless flood of 100 000 SYNs a second from 198.18.0.0/15, the network set aside for benchmarks.
    fn default() -> Self {
        Self {
            kind: Kind::Syn,
            rate: 100_000,
            total: None,
            sources: super::SPOOFED,
            port: None,
            seed: 0,
            ipv6: false,
            complete: false,
        }
    }
}

/// How far a flood is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FloodCounters {
    /// Frames made.
    pub generated: u64,
    /// Those the receiving end's ring had no room for. Counted when the flood ends.
    pub refused: u64,
    /// How long frames were made, without what it took to get ready. Known when the flood ends.
    pub elapsed: Duration,
}

impl FloodCounters {
    /// Frames that arrived at the guard's driver.
    pub fn delivered(&self) -> u64 {
        self.generated - self.refused
    }

    /// How many of them a second; none in no time.
    pub fn rate(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.delivered() as f64 / self.elapsed.as_secs_f64() }
    }
}

/// A running flood. Dropping it stops it.
#[derive(Debug)]
pub struct Flood {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<FloodCounters>>>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    generated: AtomicU64,
}

/// Where a flood leaves and what it is aimed at.
pub(super) struct Aim<'a> {
    pub(super) object: PathBuf,
    pub(super) from: &'a Namespace,
    pub(super) interface: &'static str,
    pub(super) ifindex: u32,
    pub(super) macs: Macs,
    pub(super) target: SocketAddr,
}

impl Aim<'_> {
    /// The map value that makes generator and receiver agree.
    pub(super) fn config(&self, spec: &FloodSpec) -> FloodConfig {
        let blank =
            Template { words: [0; _], ip_sum: 0, tcp_sum: 0, len: 0, tsval: 0, random_ack: 0, pad: 0 };
        let used = templates(spec.kind, self.macs, self.target);
        let mut template = [blank; TEMPLATES as usize];
        template[..used.len()].copy_from_slice(&used);
        // Of random ports those from 1024 on.
        let (port, port_mask) = spec.port.map_or((0x0400, 0xffff), |port| (port, 0));
        let netmask = u32::MAX.checked_shl(32 - u32::from(spec.sources.1)).unwrap_or(0);
        FloodConfig {
            key: 0x7463_7067_7561_7264,
            seed: spec.seed,
            budget: spec.total.map_or(u64::MAX, |total| total.saturating_mul(2).max(1 << 20)),
            ifindex: self.ifindex,
            count: used.len() as u32,
            network: u32::from(spec.sources.0) & netmask,
            netmask,
            port: port.into(),
            port_mask,
            version: if spec.ipv6 { 6 } else { 4 },
            complete: spec.complete.into(),
            template,
        }
    }
}

impl Flood {
    pub(super) fn start(aim: &Aim<'_>, spec: FloodSpec) -> Result<Self> {
        let mut generator = Generator::load(&aim.object, &aim.config(&spec))?;
        let parked = super::index(aim.from, super::PARKING)?;
        aim.from.enter(|| generator.park(parked))??;
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let (namespace, interface) = (aim.from.alias(), aim.interface);
        let body = move || {
            let before = link_errors(&namespace, interface)?;
            let errors = || Ok::<_, anyhow::Error>(link_errors(&namespace, interface)? - before);
            pace(&generator, &spec, &theirs, errors)
        };
        Ok(Self { shared, thread: Some(aim.from.spawn("flood", body)?) })
    }

    /// Frames made so far.
    pub fn generated(&self) -> u64 {
        self.shared.generated.load(Ordering::Relaxed)
    }

    /// Whether it came to its end by itself.
    pub fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Waits until [`FloodSpec::total`] frames are delivered.
    pub fn finish(mut self) -> Result<FloodCounters> {
        self.join()
    }

    /// Lets it go on for a while, then stops it. Ends earlier if the flood does.
    pub fn run_for(self, time: Duration) -> Result<FloodCounters> {
        let deadline = Instant::now() + time;
        while Instant::now() < deadline && !self.is_finished() {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.stop()
    }

    /// Stops it now.
    pub fn stop(mut self) -> Result<FloodCounters> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.join()
    }

    fn join(&mut self) -> Result<FloodCounters> {
        let thread = self.thread.take().context("the flood was already joined")?;
        thread.join().map_err(|_| anyhow!("the flood's thread panicked"))?.context("the flood failed")
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Sends until told to stop, or until the link took `total` frames: what a full ring refused is sent anew.
fn pace(
    generator: &Generator,
    spec: &FloodSpec,
    shared: &Shared,
    errors: impl Fn() -> Result<u64>,
) -> Result<FloodCounters> {
    let start = Instant::now();
    let mut total = spec.total;
    let mut generated = 0;
    loop {
        let stopped = shared.stop.load(Ordering::Relaxed);
        if stopped || total.is_some_and(|total| generated >= total) {
            let elapsed = start.elapsed();
            let refused = errors()?;
            match spec.total {
                Some(asked) if !stopped && generated - refused < asked => total = Some(asked + refused),
                _ => return Ok(FloodCounters { generated, refused, elapsed }),
            }
        }
        let left = total.map_or(u64::MAX, |total| total - generated);
        let due = match spec.rate {
            0 => u64::MAX,
            rate => due(rate, start.elapsed()).saturating_sub(generated),
        };
        match due.min(left).min(CALL) {
            frames if frames < least(spec.rate).min(left) => std::thread::sleep(Duration::from_micros(200)),
            frames => generated += generator.send(frames)?,
        }
        shared.generated.store(generated, Ordering::Relaxed);
    }
}

/// Frames that a flood of `rate` should have made after `elapsed`.
fn due(rate: u64, elapsed: Duration) -> u64 {
    u64::try_from(u128::from(rate) * elapsed.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Frames that are worth a system call at a rate: what a millisecond asks for, and no more than the kernel makes at once. Each
/// call makes a page pool, which stays until [`RELEASE`] where frames are still on their way when the call ends.
fn least(rate: u64) -> u64 {
    (rate / 1000).clamp(1, BATCH.into())
}

struct Generator {
    ebpf: Ebpf,
}

impl Generator {
    fn load(object: &std::path::Path, config: &FloodConfig) -> Result<Self> {
        let mut ebpf = Ebpf::load_file(object).with_context(|| format!("loading {}", object.display()))?;
        let mut map =
            Array::<_, FloodConfig>::try_from(ebpf.map_mut(name::CONFIG).context("no map CONFIG")?)?;
        map.set(0, config, 0)?;
        let program: &mut Xdp = ebpf.program_mut(name::FLOOD).context("no program flood")?.try_into()?;
        program.load().context("loading the flood program")?;
        Ok(Self { ebpf })
    }

    /// Attaches the program where no packet ever comes. A program that is attached nowhere is patched into the
    /// kernel's XDP dispatcher, and out again, by every run, which takes two RCU grace periods: milliseconds.
    fn park(&mut self, ifindex: u32) -> Result<()> {
        let program: &mut Xdp = self.ebpf.program_mut(name::FLOOD).context("no program flood")?.try_into()?;
        program.attach_to_if_index(ifindex, XdpMode::Driver).context("parking the flood program")?;
        Ok(())
    }

    /// Sends up to `frames` frames and returns how many it made: a signal cuts a run short.
    fn send(&self, frames: u64) -> Result<u64> {
        let before = self.generated()?;
        let program: &Xdp = self.ebpf.program(name::FLOOD).context("no program flood")?.try_into()?;
        let frame = [0; TEMPLATE_LEN];
        let outcome = program.test_run(TestRunOptions {
            data_in: Some(&frame),
            repeat: u32::try_from(frames)?,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        });
        match outcome {
            Ok(_) => {}
            Err(ProgramError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error).context("BPF_PROG_RUN with live frames"),
        }
        Ok(self.generated()? - before)
    }

    fn generated(&self) -> Result<u64> {
        let map =
            PerCpuArray::<_, u64>::try_from(self.ebpf.map(name::GENERATED).context("no map GENERATED")?)?;
        let mut sum = 0;
        for index in 0..TEMPLATES {
            sum += map.get(&index, 0)?.iter().sum::<u64>();
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pace_follows_the_clock_and_does_not_overflow() {
        assert_eq!(due(300_000, Duration::from_millis(10)), 3_000);
        assert_eq!(due(1, Duration::from_millis(999)), 0);
        assert_eq!(due(u64::MAX, Duration::from_secs(100)), u64::MAX);
    }

    #[test]
    fn a_call_is_worth_a_millisecond_of_its_rate_or_a_batch() {
        assert_eq!([0, 1, 5_000, 100_000, u64::MAX].map(least), [1, 1, 5, 64, 64]);
    }

    #[test]
    fn the_rate_is_of_what_arrived_while_frames_were_made() {
        let counters = FloodCounters { generated: 500, refused: 100, elapsed: Duration::from_millis(200) };
        assert_eq!(counters.rate(), 2000.0);
        assert_eq!(FloodCounters::default().rate(), 0.0);
    }
}
