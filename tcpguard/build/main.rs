//! Puts the eBPF objects into `OUT_DIR`: the XDP program's and the lab's, built through aya-build, or, on a machine that has
//! nothing to build them with, the XDP program alone as it is checked in. It installs nothing: `cargo xtask setup` does.
#![expect(clippy::print_stdout, reason = "it is how a build script speaks to cargo")]

mod origin;
mod strip;

use std::env;
use std::path::PathBuf;

use anyhow::Context as _;
use aya_build::{Package, Toolchain};
use origin::{Origin, TOOLCHAIN, UNUSED, take_checked_in};

/// The program that the daemon loads.
const PROGRAM: &str = "tcpguard-xdp";

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-env-changed={TOOLCHAIN}");
    println!("cargo:rerun-if-env-changed={UNUSED}");
    let environment = |name: &str| env::var_os(name);
    let program = PathBuf::from(env::var_os("OUT_DIR").context("cargo says no OUT_DIR")?).join(PROGRAM);
    match Origin::new(environment) {
        Origin::Sources(toolchain) => {
            println!("cargo:rerun-if-changed=../tcpguard-ebpf");
            println!("cargo:rerun-if-changed=../tcpguard-common/src");
            build(&toolchain)?;
            strip::debug_info(&program).context("removing the debug information of the XDP program")
        }
        Origin::CheckedIn { missing } => {
            take_checked_in(missing, environment, &program)?.iter().for_each(|line| println!("{line}"));
            Ok(())
        }
    }
}

fn build(toolchain: &str) -> anyhow::Result<()> {
    // For the inner build alone, so that no other crate finds itself on a nightly. Building core for the bpf target needs an
    // unstable cargo flag, which a stable toolchain unlocks by the first variable. The next two keep the machine's paths
    // out of the objects, which are then the same wherever they are built. Progress would come out as this crate's
    // warnings, again at every build: only diagnostics shall.
    for (name, value) in [
        ("RUSTC_BOOTSTRAP", "1"),
        ("CARGO_UNSTABLE_TRIM_PATHS", "true"),
        ("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all"),
        ("CARGO_TERM_QUIET", "true"),
    ] {
        // SAFETY: a build script's main thread, before any other thread exists.
        unsafe { env::set_var(name, value) };
    }
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tcpguard-ebpf");
    let package = Package { name: "tcpguard-ebpf", root_dir, ..Default::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(toolchain))
        .context("the eBPF build failed; `cargo xtask setup` installs what it needs")
}
