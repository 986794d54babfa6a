//! What of the kernel the guard needs, and whether it is there: asked of the kernel, which loads the smallest program or makes
//! the smallest map of a kind.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};

/// One thing that a kernel may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Feature {
    /// What it is.
    pub name: &'static str,
    /// What the guard needs it for.
    pub purpose: &'static str,
    /// Whether it is there; the error is why nobody knows, lacking rights most likely.
    pub present: Result<bool, String>,
}

/// Asks the kernel about everything.
pub fn features() -> Vec<Feature> {
    let maps = [
        ("map hash", "services and flows", MapType::Hash),
        ("map array", "keys, settings and budgets", MapType::Array),
        ("map percpu-array", "counters", MapType::PerCpuArray),
        ("map ringbuf", "packets for monitors, and what XDP logs", MapType::RingBuf),
        ("map xskmap", "handing flows to the engines", MapType::XskMap),
    ];
    let program = Feature {
        name: "program xdp",
        purpose: "answering SYNs in the driver",
        present: is_program_supported(ProgramType::Xdp).map_err(|error| error.to_string()),
    };
    let map = |(name, purpose, kind): (&'static str, &'static str, MapType)| Feature {
        name,
        purpose,
        present: is_map_supported(kind).map_err(|error| error.to_string()),
    };
    let sockets = Feature {
        name: "af_xdp",
        purpose: "frames for the engines",
        present: std::fs::read_to_string("/proc/net/protocols")
            .map(|list| list.lines().any(|line| line.split_ascii_whitespace().next() == Some("XDP")))
            .map_err(|error| error.to_string()),
    };
    std::iter::once(program).chain(maps.map(map)).chain([sockets]).collect()
}
