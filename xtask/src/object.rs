//! `cargo xtask object`: brings the XDP program that is checked in, for machines that cannot build it, up to date with the
//! sources, and notes what built it.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, tool};

/// What is checked in, within the workspace.
const OBJECT: &str = "tcpguard/dist/tcpguard-xdp.o";
const VERSIONS: &str = "tcpguard/dist/tcpguard-xdp.versions";

/// Build the checked-in XDP program anew, after a change of its sources or of what builds it
#[derive(Args, Clone, Debug)]
pub struct ObjectArgs {}

/// The verb.
pub fn run(_: &ObjectArgs) -> Result<()> {
    let built = fs::read(build::debug(Purpose::Build)?.object("tcpguard-xdp"))?;
    let (object, versions) = (build::workspace().join(OBJECT), build::workspace().join(VERSIONS));
    let before = fs::read(&object).unwrap_or_default();
    fs::write(&object, &built).with_context(|| format!("writing {OBJECT}"))?;
    fs::write(&versions, self::versions()?).with_context(|| format!("writing {VERSIONS}"))?;
    let what = if before == built { "was up to date" } else { "is another now" };
    eprintln!("object: {OBJECT} {what} ({} bytes)", built.len());
    Ok(())
}

/// What builds eBPF programs on this machine, a line each: where all of it is the same, so is every byte of what it builds.
///
/// # Errors
/// A compiler or linker that is not there.
pub fn versions() -> Result<String> {
    let rustc = setup::ebpf_rustc()?;
    let of = |name: &str| rustc.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let (release, host, llvm) = (rustc.lines().next(), of("host:"), of("LLVM version:"));
    ensure!(release.is_some() && host.is_some() && llvm.is_some(), "`rustc -vV` said: {rustc}");
    let linker = tool::output("bpf-linker", ["--version"])?;
    let lines = [
        release.unwrap_or_default().to_owned(),
        format!("host {}", host.unwrap_or_default()),
        format!("LLVM of rustc {}", llvm.unwrap_or_default()),
        linker.trim().to_owned(),
        format!("LLVM of bpf-linker {}", setup::linker_llvm_version()),
    ];
    Ok(lines.map(|line| line + "\n").concat())
}
