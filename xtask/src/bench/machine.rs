//! The machine that figures belong to, and how busy it is.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context as _, Result};
use aya::programs::ProgramInfo;
use serde::Serialize;

use crate::{build, tool};

/// What stands beside the figures of a report.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Machine {
    /// As `/proc/cpuinfo` names it.
    pub cpu: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// Memory in all, bytes.
    pub memory: u64,
    /// What the kernel says of each flaw of the CPU that it has.
    pub mitigations: String,
    /// `/sys/kernel/mm/transparent_hugepage/enabled`, the choice in brackets.
    pub huge_pages: String,
    /// What sets the clock's frequency; empty where nobody says, as in a virtual machine.
    pub frequency_driver: String,
    /// Versions of what took part, by name, as each says it.
    pub software: BTreeMap<&'static str, String>,
}

impl Machine {
    /// This one. What it does not say is left empty.
    pub fn here() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name").to_owned(),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory: kilobytes(field(&read("/proc/meminfo"), "MemTotal")) * 1024,
            mitigations: mitigations(Path::new("/sys/devices/system/cpu/vulnerabilities")),
            huge_pages: read("/sys/kernel/mm/transparent_hugepage/enabled").trim().to_owned(),
            frequency_driver: read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_driver").trim().to_owned(),
            software: software(),
        }
    }
}

/// One line of all files of `dir`, in order, but those of what does not affect this CPU.
fn mitigations(dir: &Path) -> String {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut said: Vec<_> = files
        .filter_map(|file| Some((file.file_name(), std::fs::read_to_string(file.path()).ok()?)))
        .filter(|(_, says)| says.trim() != "Not affected")
        .map(|(flaw, says)| format!("{}: {}", flaw.to_string_lossy(), says.trim()))
        .collect();
    said.sort();
    said.join("; ")
}

/// What each program that takes part says of its version, and which sources this was compiled from. What is not there is left
/// out.
fn software() -> BTreeMap<&'static str, String> {
    const PROGRAMS: [(&str, &[&str]); 10] = [
        ("rustc", &["-V"]),
        ("bpf-linker", &["--version"]),
        ("llvm-config-22", &["--version"]),
        ("bpftool", &["version"]),
        ("curl", &["--version"]),
        ("nginx", &["-v"]),
        ("haproxy", &["-v"]),
        ("wrk", &["-v"]),
        ("nft", &["-v"]),
        ("ip", &["-V"]),
    ];
    let mut versions: BTreeMap<_, _> = PROGRAMS
        .into_iter()
        .filter_map(|(program, args)| {
            let said = Command::new(program).args(args).output().ok()?;
            // Some say it on one stream, some on the other, and some fail when asked.
            let said = [said.stdout, said.stderr].concat();
            let line = String::from_utf8_lossy(&said).lines().next()?.trim().to_owned();
            Some((program, line))
        })
        .collect();
    versions.insert("tcpguard", sources().to_owned());
    versions
}

/// The version and commit of tcpguard's sources as they were when this was first asked: before anything is built of them.
pub(super) fn sources() -> &'static str {
    static SOURCES: OnceLock<String> = OnceLock::new();
    SOURCES.get_or_init(|| {
        let workspace = build::workspace();
        let said =
            tool::output("git", ["-C", &workspace.to_string_lossy(), "describe", "--always", "--dirty"]);
        format!("{} {}", env!("CARGO_PKG_VERSION"), said.unwrap_or_default().trim()).trim().to_owned()
    })
}

/// What the kernel calls a program's instructions, as bpftool shows it: a digest, the same wherever this kernel loads the same
/// ones. A file's or a pin's name does not say which program it is.
pub(super) fn tag(program: &ProgramInfo) -> String {
    format!("{:016x}", program.tag())
}

/// The time, UTC, as RFC 3339 writes it; empty if nobody knows.
pub(super) fn date() -> String {
    tool::output("date", ["-u", "+%Y-%m-%dT%H:%M:%SZ"]).map(|said| said.trim().to_owned()).unwrap_or_default()
}

/// What this process was called with, as one would type it.
pub(super) fn command() -> String {
    let words = std::env::args().skip(1).map(|word| tool::quote(&word));
    ["cargo xtask".to_owned()].into_iter().chain(words).collect::<Vec<_>>().join(" ")
}

/// The value of the first line `name: value`.
fn field<'a>(text: &'a str, name: &str) -> &'a str {
    let mut pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs.find(|(key, _)| key.trim() == name).map_or("", |(_, value)| value.trim())
}

fn kilobytes(value: &str) -> u64 {
    value.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// What became of the processors' time since the machine started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticks {
    /// Time in which something would have run here and the host ran something else.
    stolen: u64,
    all: u64,
}

impl Ticks {
    /// Until now.
    pub(super) fn now() -> Result<Self> {
        Self::of(&std::fs::read_to_string("/proc/stat")?).context("no line `cpu` in /proc/stat")
    }

    /// Share of the time since `before` that the host took, 0 to 1, to four digits.
    pub(super) fn stolen_since(self, before: Self) -> f64 {
        let all = self.all.saturating_sub(before.all).max(1);
        (self.stolen.saturating_sub(before.stolen) as f64 / all as f64 * 1e4).round() / 1e4
    }

    /// All columns of proc(5) but those that are counted in others already.
    fn of(text: &str) -> Option<Self> {
        let [user, nice, system, idle, iowait, irq, softirq, stolen] = columns(text)?;
        Some(Self { stolen, all: user + nice + system + idle + iowait + irq + softirq + stolen })
    }
}

/// The first columns of the line of all cores in `/proc/stat`.
fn columns(text: &str) -> Option<[u64; 8]> {
    let columns = text.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let columns: Vec<u64> = columns.split_whitespace().map_while(|column| column.parse().ok()).collect();
    columns.first_chunk().copied()
}

/// CPU time that all cores together spent on anything since the machine started, interrupts included, in steps of 10 ms.
pub(super) fn busy() -> Result<Duration> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let ticks = busy_ticks(&text).context("no line `cpu` in /proc/stat")?;
    Ok(Duration::from_secs(ticks) / u32::try_from(rustix::param::clock_ticks_per_second())?)
}

/// All columns of proc(5) but idle, iowait, steal and those that are counted in others already.
fn busy_ticks(text: &str) -> Option<u64> {
    let [user, nice, system, _idle, _iowait, irq, softirq, _stolen] = columns(text)?;
    Some(user + nice + system + irq + softirq)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_waiting_and_stolen_time_is_not_busy() {
        let text = "cpu  1 2 4 1000 2000 8 16 4000 8000 0\ncpu0 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(text), Some(31));
        assert_eq!(busy_ticks("cpu0 1 2 3 4 5 6 7\n"), None);
    }

    #[test]
    fn what_the_host_took_is_a_share_of_all_time() {
        let at = |text| Ticks::of(text).unwrap();
        let (before, after) =
            (at("cpu  1 2 4 1000 2000 8 16 100 7 7\n"), at("cpu  2 2 4 1009 2010 8 16 120 9 9\n"));
        assert_eq!(after.stolen_since(before), 0.5);
        assert_eq!(before.stolen_since(before), 0.0);
        assert_eq!(Ticks::of("cpu  1 2 3\n"), None);
    }

    #[test]
    fn only_what_affects_the_cpu_is_told() {
        let dir = std::env::temp_dir().join(format!("tcpguard-mitigations-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        for (flaw, says) in
            [("spectre_v2", "Mitigation: Retpolines\n"), ("mds", "Not affected\n"), ("bhi", "Vulnerable\n")]
        {
            std::fs::write(dir.join(flaw), says).unwrap();
        }
        let said = mitigations(&dir);
        std::fs::remove_dir_all(&dir).unwrap();
        assert_eq!(said, "bhi: Vulnerable; spectre_v2: Mitigation: Retpolines");
        assert_eq!(mitigations(&dir), "");
    }

    #[test]
    fn this_machine_has_a_kernel_and_memory() {
        let machine = Machine::here();
        assert!(!machine.kernel.is_empty() && machine.cores > 0 && machine.memory > 1 << 20, "{machine:?}");
    }
}
