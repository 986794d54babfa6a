//! Builds the eBPF objects (the XDP program and the lab's programs) into `OUT_DIR`, through aya-build.
//! It does not install what that needs: `cargo xtask setup` does.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../tcpguard-ebpf");
    println!("cargo:rerun-if-changed=../tcpguard-common/src");
    println!("cargo:rerun-if-env-changed=TCPGUARD_EBPF_TOOLCHAIN");
    // Building core for the bpf target needs an unstable cargo flag, which a stable toolchain unlocks by this
    // variable. It is set for the inner build alone, so that no other crate finds itself on a nightly.
    // Its progress would come out as this crate's warnings, again at every build: only diagnostics shall.
    for (name, value) in [("RUSTC_BOOTSTRAP", "1"), ("CARGO_TERM_QUIET", "true")] {
        // SAFETY: a build script's main thread, before any other thread exists.
        unsafe { std::env::set_var(name, value) };
    }
    let toolchain = toolchain();
    let root_dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../tcpguard-ebpf");
    let package = Package { name: "tcpguard-ebpf", root_dir, ..Default::default() };
    aya_build::build_ebpf([package], Toolchain::Custom(&toolchain))
        .context("the eBPF build failed; `cargo xtask setup` installs what it needs")
}

/// The toolchain in use, unless it lacks the sources of `core` and setup made another that has them.
fn toolchain() -> String {
    const MADE_BY_SETUP: &str = "tcpguard-ebpf";
    if let Ok(chosen) = std::env::var("TCPGUARD_EBPF_TOOLCHAIN") {
        return chosen;
    }
    let in_use = std::env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".to_owned());
    let candidates = [in_use.as_str(), MADE_BY_SETUP];
    candidates.into_iter().find(|name| has_core_sources(name)).unwrap_or(&in_use).to_owned()
}

fn has_core_sources(toolchain: &str) -> bool {
    let mut rustc = Command::new("rustup");
    rustc.args(["run", toolchain, "rustc", "--print", "sysroot"]);
    let Ok(output) = rustc.output() else { return false };
    let sysroot = PathBuf::from(String::from_utf8_lossy(&output.stdout).trim());
    output.status.success() && sysroot.join("lib/rustlib/src/rust/library/core/Cargo.toml").is_file()
}
