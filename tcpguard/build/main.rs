//! Puts the eBPF objects into `OUT_DIR`: the XDP program's and the lab's, built through aya-build, or, on a machine that has
//! nothing to build them with, the XDP program alone as it is checked in. It installs nothing: `cargo xtask setup` does.
#![expect(clippy::print_stdout, reason = "it is how a build script speaks to cargo")]

mod strip;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

/// The program that the daemon loads.
const PROGRAM: &str = "tcpguard-xdp";
/// Set where nobody will run what is built: the program that is checked in does as well, and takes no time.
const UNUSED: &str = "TCPGUARD_EBPF_UNUSED";
/// The same, as `cargo xtask object` left it.
const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/tcpguard-xdp.o");

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-env-changed=TCPGUARD_EBPF_TOOLCHAIN");
    println!("cargo:rerun-if-env-changed={UNUSED}");
    let program = PathBuf::from(env::var_os("OUT_DIR").context("cargo says no OUT_DIR")?).join(PROGRAM);
    if env::var_os(UNUSED).is_some() {
        return copy_checked_in(&program);
    }
    match toolchain() {
        Ok(toolchain) => {
            println!("cargo:rerun-if-changed=../tcpguard-ebpf");
            println!("cargo:rerun-if-changed=../tcpguard-common/src");
            build(&toolchain)?;
            strip::debug_info(&program).context("removing the debug information of the XDP program")
        }
        Err(missing) => take_checked_in(missing, &program),
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

/// The toolchain in use, unless it lacks the sources of `core` and setup made another that has them. The error is what this
/// machine lacks for any.
fn toolchain() -> Result<String, &'static str> {
    const MADE_BY_SETUP: &str = "tcpguard-ebpf";
    if let Ok(chosen) = env::var("TCPGUARD_EBPF_TOOLCHAIN") {
        return Ok(chosen);
    }
    let path = env::var_os("PATH").unwrap_or_default();
    if !env::split_paths(&path).any(|dir| dir.join("bpf-linker").is_file()) {
        return Err("bpf-linker");
    }
    let in_use = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    let mut candidates = [in_use, MADE_BY_SETUP.to_owned()].into_iter();
    candidates.find(|name| has_core_sources(name)).ok_or("source of Rust's core library")
}

/// Whether they are in the sysroot of that toolchain; where there is no rustup, of the only one.
fn has_core_sources(toolchain: &str) -> bool {
    let sysroot = Command::new("rustup").args(["run", toolchain, "rustc", "--print", "sysroot"]).output();
    let sysroot = sysroot.or_else(|_| {
        Command::new(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
            .args(["--print", "sysroot"])
            .output()
    });
    let Ok(output) = sysroot else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}

fn take_checked_in(missing: &str, program: &Path) -> anyhow::Result<()> {
    anyhow::ensure!(
        env::var("CARGO_CFG_TARGET_ENDIAN").is_ok_and(|endian| endian == "little"),
        "there is no {missing} here, and the XDP program that is checked in is little-endian; `cargo xtask setup` installs \
         what building another needs"
    );
    println!(
        "cargo:warning=there is no {missing} here: taking the XDP program that is checked in, and none for labs; `cargo xtask \
         setup` installs what building them needs"
    );
    // What is missing may be there the next time.
    println!("cargo:rerun-if-env-changed=PATH");
    if let Some(home) = env::var_os("CARGO_HOME") {
        println!("cargo:rerun-if-changed={}", Path::new(&home).join("bin").display());
    }
    copy_checked_in(program)
}

fn copy_checked_in(program: &Path) -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed={CHECKED_IN}");
    fs::copy(CHECKED_IN, program).with_context(|| format!("copying {CHECKED_IN}"))?;
    Ok(())
}
