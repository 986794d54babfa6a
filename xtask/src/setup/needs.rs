//! What has to be there, how to tell, and how to get it. In the order in which it is got: each may build on those
//! before it.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::{CoreSources, DEBIAN_TOOLCHAIN, Purpose, debian, has_core_sources};
use crate::{progress, tool};

/// The linker's release that is known to work with aya 0.14's objects.
const LINKER: &str = "0.13.0";
/// What reads the Debian metadata in `tcpguard/Cargo.toml`.
const PACKAGER: &str = "3.8.0";

pub(super) struct Need {
    pub(super) name: String,
    pub(super) why: &'static str,
    pub(super) met: Box<dyn Fn() -> bool>,
    pub(super) means: Means,
}

pub(super) enum Means {
    /// Debian packages: root's business.
    Packages(Vec<String>),
    /// Something a user may do.
    Work(Box<dyn Fn() -> Result<()>>),
    /// Something only root may do, and the command for it.
    RootWork { command: &'static str, work: fn() -> Result<()> },
}

/// The needs of a purpose, met or not.
pub(super) fn of(purpose: Purpose, sources: Option<CoreSources>) -> Vec<Need> {
    let mut needs = vec![core_sources(sources), libraries(), linker()];
    if matches!(purpose, Purpose::Lint | Purpose::Everything) {
        needs.push(component("rustfmt", "cargo-fmt", "`cargo xtask test` checks the format"));
        needs.push(component("clippy", "cargo-clippy", "`cargo xtask test` checks lints"));
    }
    if matches!(purpose, Purpose::Lab | Purpose::Bench | Purpose::Everything) {
        needs.extend(LAB_TOOLS.map(lab_tool));
        needs.push(bpffs());
    }
    if matches!(purpose, Purpose::Bench | Purpose::Everything) {
        needs.extend(BENCH_TOOLS.map(lab_tool));
    }
    if matches!(purpose, Purpose::Package | Purpose::Everything) {
        needs.push(lab_tool(("xz", "xz-utils", "cargo-deb compresses with it")));
        needs.push(packager());
    }
    if purpose == Purpose::Everything {
        needs.extend(TEST_TOOLS.map(lab_tool));
    }
    needs
}

const LAB_TOOLS: [(&str, &str, &str); 9] = [
    ("ip", "iproute2", "the lab is made of network namespaces"),
    ("nft", "nftables", "the lab's router loses packets, and tests count them"),
    ("ethtool", "ethtool", "the lab switches checksum offload off, as on a real wire"),
    ("nginx", "nginx-light", "the web server the lab protects"),
    ("curl", "curl", "the HTTP client of the integration tests"),
    ("ping", "iputils-ping", "tests prove that what is not protected still works"),
    ("nsenter", "util-linux", "processes of the lab start inside its namespaces"),
    ("setpriv", "util-linux", "processes of the lab end with it"),
    ("tmux", "tmux", "the terminal in which a test drives the live view"),
];

const BENCH_TOOLS: [(&str, &str, &str); 2] = [
    ("haproxy", "haproxy", "the proxy that benchmarks compare with"),
    ("wrk", "wrk", "the HTTP client of the benchmarks"),
];

const TEST_TOOLS: [(&str, &str, &str); 4] = [
    (
        "chromium-headless-shell",
        "chromium-headless-shell",
        "a test renders the benchmarks' page in a browser",
    ),
    ("iperf3", "iperf3", "a client and server of its own protocol for the integration tests"),
    ("openssl", "openssl", "tests make a certificate for the web server"),
    ("systemd-analyze", "systemd", "judges the unit"),
];

fn lab_tool((program, package, why): (&'static str, &'static str, &'static str)) -> Need {
    Need {
        name: program.to_owned(),
        why,
        met: Box::new(move || tool::exists(program)),
        means: Means::Packages(vec![package.to_owned()]),
    }
}

fn component(name: &'static str, program: &'static str, why: &'static str) -> Need {
    Need {
        name: name.to_owned(),
        why,
        met: Box::new(move || sysroot(None).is_some_and(|root| root.join("bin").join(program).is_file())),
        means: Means::Work(Box::new(move || rustup_component(name))),
    }
}

fn core_sources(sources: Option<CoreSources>) -> Need {
    Need {
        name: "the sources of Rust's core library".to_owned(),
        why: "no compiled core exists for the eBPF target, so that the build compiles its own",
        met: Box::new(move || match sources {
            None => ebpf_sysroot().is_some(),
            Some(CoreSources::Rustup) => has_core_sources(),
            Some(CoreSources::Debian) => sysroot(Some(DEBIAN_TOOLCHAIN)).is_some_and(|root| has_core(&root)),
        }),
        means: Means::Work(Box::new(move || match sources {
            Some(CoreSources::Rustup) => rustup_component("rust-src"),
            Some(CoreSources::Debian) => debian::toolchain(DEBIAN_TOOLCHAIN),
            None => rustup_component("rust-src").or_else(|error| {
                eprintln!("    {error:#}");
                eprintln!(
                    "    rustup could not provide them; taking Debian's compiler and its sources instead"
                );
                debian::toolchain(DEBIAN_TOOLCHAIN)
            }),
        })),
    }
}

/// Only the linker's build needs them; once it is there, they are not asked for.
fn libraries() -> Need {
    Need {
        name: format!("LLVM {}'s libraries", llvm_major().unwrap_or_default()),
        why: "bpf-linker must read what this rustc's LLVM writes",
        met: Box::new(|| linker_fits() || has_libraries()),
        means: Means::Packages(llvm_packages()),
    }
}

fn has_libraries() -> bool {
    llvm_prefix().join("bin/llvm-config").is_file()
}

fn llvm_packages() -> Vec<String> {
    let major = llvm_major().unwrap_or_default();
    let versioned = [format!("llvm-{major}-dev"), format!("libpolly-{major}-dev")].into_iter();
    versioned.chain(["libzstd-dev", "zlib1g-dev", "g++"].map(str::to_owned)).collect()
}

fn linker() -> Need {
    Need {
        name: format!("bpf-linker {LINKER}"),
        why: "links eBPF objects; compiling it takes a minute or two",
        met: Box::new(linker_fits),
        means: Means::Work(Box::new(|| {
            // The compiler may be another than when the libraries were chosen: its sources come first.
            if !has_libraries() {
                debian::install(&llvm_packages())?;
            }
            let mut install = cargo();
            install.args(["install", "bpf-linker", "--version", LINKER, "--locked", "--force"]);
            install.args(["--no-default-features", "--features"]);
            install.arg(format!("llvm-{}", llvm_major().context("no LLVM version in `rustc -vV`")?));
            progress::run(install.env("LLVM_PREFIX", llvm_prefix()))
        })),
    }
}

fn packager() -> Need {
    Need {
        name: format!("cargo-deb {PACKAGER}"),
        why: "makes the Debian package; compiling it takes a minute",
        met: Box::new(|| tool::exists("cargo-deb")),
        means: Means::Work(Box::new(|| {
            let mut install = cargo();
            install.args([
                "install",
                "cargo-deb",
                "--version",
                PACKAGER,
                "--locked",
                "--no-default-features",
            ]);
            progress::run(&mut install)
        })),
    }
}

fn bpffs() -> Need {
    Need {
        name: "bpffs".to_owned(),
        why: "the daemon pins its programs under /sys/fs/bpf, so that protection survives it",
        met: Box::new(|| crate::lab::bpffs_is_mounted().unwrap_or(false)),
        means: Means::RootWork { command: "mount -t bpf bpf /sys/fs/bpf", work: crate::lab::mount_bpffs },
    }
}

fn rustup_component(name: &str) -> Result<()> {
    if !tool::exists("rustup") {
        bail!("rustup is missing: see https://rustup.rs");
    }
    let mut add = Command::new("rustup");
    add.args(["component", "add", name]);
    progress::run(&mut add)
}

/// Where the toolchain that can build eBPF has its libraries: this one's, or Debian's.
fn ebpf_sysroot() -> Option<PathBuf> {
    [None, Some(DEBIAN_TOOLCHAIN)].into_iter().filter_map(sysroot).find(|root| has_core(root))
}

pub(super) fn has_core(sysroot: &Path) -> bool {
    sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}

/// The sysroot of the toolchain in use, or of a named one.
pub(super) fn sysroot(toolchain: Option<&str>) -> Option<PathBuf> {
    let said = match toolchain {
        None => tool::output("rustc", ["--print", "sysroot"]),
        Some(name) => tool::output("rustup", ["run", name, "rustc", "--print", "sysroot"]),
    };
    Some(PathBuf::from(said.ok()?.trim()))
}

fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// Whether the linker on the path is recent enough, and understands this compiler's LLVM.
fn linker_fits() -> bool {
    let version = tool::output("bpf-linker", ["--version"]).ok().and_then(|said| version_of(&said));
    let Some(wanted) = llvm_major() else { return false };
    version >= version_of(LINKER) && linker_llvm().is_none_or(|major| major >= wanted)
}

/// The LLVM the linker is linked to; `None` when it brings its own.
fn linker_llvm() -> Option<u32> {
    let dirs = std::env::split_paths(&std::env::var_os("PATH")?).collect::<Vec<_>>();
    let linker = dirs.into_iter().map(|dir| dir.join("bpf-linker")).find(|path| path.is_file())?;
    shared_llvm(&tool::output("ldd", [linker]).ok()?)
}

fn shared_llvm(ldd: &str) -> Option<u32> {
    let name = ldd.lines().find_map(|line| line.trim().strip_prefix("libLLVM"))?;
    name.split(|c: char| !c.is_ascii_digit()).find_map(|digits| digits.parse().ok())
}

/// The major version of the LLVM in the compiler that builds the eBPF programs.
fn llvm_major() -> Option<u32> {
    llvm_version(&ebpf_rustc().ok()?)
}

/// What the compiler that builds the eBPF programs says of itself.
pub(crate) fn ebpf_rustc() -> Result<String> {
    let ours = sysroot(None).is_none_or(|root| has_core(&root));
    let debian = || tool::output("rustup", ["run", DEBIAN_TOOLCHAIN, "rustc", "-vV"]).ok();
    let said = if ours { None } else { debian() };
    said.map_or_else(|| tool::output("rustc", ["-vV"]), Ok)
}

/// The version of the LLVM that the linker is linked to, as far as it can be told.
pub(crate) fn linker_llvm_version() -> String {
    let Some(major) = linker_llvm() else { return "its own".to_owned() };
    let said = tool::output(&format!("/usr/lib/llvm-{major}/bin/llvm-config"), ["--version"]);
    said.map_or_else(|_| major.to_string(), |version| version.trim().to_owned())
}

fn llvm_version(rustc: &str) -> Option<u32> {
    let version = rustc.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.trim().parse().ok()
}

/// Debian's directory of that LLVM.
fn llvm_prefix() -> PathBuf {
    PathBuf::from(format!("/usr/lib/llvm-{}", llvm_major().unwrap_or_default()))
}

/// The first three numbers of a version line.
fn version_of(said: &str) -> Option<[u32; 3]> {
    let word = said.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()))?;
    let mut numbers = word.split(['.', '-', '+']).map(str::parse);
    Some([numbers.next()?.ok()?, numbers.next()?.ok()?, numbers.next()?.ok()?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_compiler_is_read_from_its_version() {
        let said =
            "rustc 1.95.0 (59807616e 2026-04-14)\nhost: x86_64-unknown-linux-gnu\nLLVM version: 22.1.2\n";
        assert_eq!(llvm_version(said), Some(22));
        assert_eq!(llvm_version("rustc 1.95.0"), None);
    }

    #[test]
    fn the_llvm_of_a_linker_is_read_from_its_libraries() {
        let debian = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f01f7c00000)\n";
        assert_eq!(shared_llvm(debian), Some(22));
        assert_eq!(shared_llvm("\tlibLLVM-19.so.1 => /usr/lib/libLLVM-19.so.1 (0x0)\n"), Some(19));
        assert_eq!(shared_llvm("\tlibc.so.6 => /lib/libc.so.6 (0x0)\n"), None);
    }

    #[test]
    fn versions_compare_as_numbers() {
        assert!(version_of("bpf-linker 0.13.0") >= version_of(LINKER));
        assert!(version_of("bpf-linker 0.9.15") < version_of(LINKER));
        assert!(version_of("no such thing").is_none());
    }
}
