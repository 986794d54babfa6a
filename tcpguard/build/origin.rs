//! Where the XDP program comes from: its sources, or, on a machine that has nothing to build them with, the object that is
//! checked in. It builds nothing. Also part of a test, which says what the environment is.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::Context as _;

/// Set where nobody will run what is built: the program that is checked in does as well, and takes no time.
pub(crate) const UNUSED: &str = "TCPGUARD_EBPF_UNUSED";
/// Names the toolchain to build with.
pub(crate) const TOOLCHAIN: &str = "TCPGUARD_EBPF_TOOLCHAIN";
/// The XDP program as `cargo xtask object` left it.
const CHECKED_IN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/dist/tcpguard-xdp.o");

/// Where from.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// Built by this toolchain.
    Sources(String),
    /// Taken as it is checked in, because this machine lacks something, or because nobody will run it.
    CheckedIn { missing: Option<&'static str> },
}

impl Origin {
    /// As the environment says, whose variables are asked for by name: the toolchain in use, unless it lacks the sources of
    /// `core` and setup made another that has them.
    pub(crate) fn new(environment: impl Fn(&str) -> Option<OsString>) -> Self {
        const MADE_BY_SETUP: &str = "tcpguard-ebpf";
        let text = |name| environment(name).and_then(|value| value.into_string().ok());
        if environment(UNUSED).is_some() {
            return Self::CheckedIn { missing: None };
        }
        if let Some(chosen) = text(TOOLCHAIN) {
            return Self::Sources(chosen);
        }
        let path = environment("PATH").unwrap_or_default();
        if !env::split_paths(&path).any(|dir| dir.join("bpf-linker").is_file()) {
            return Self::CheckedIn { missing: Some("bpf-linker") };
        }
        let in_use = text("RUSTUP_TOOLCHAIN").unwrap_or_else(|| "stable".to_owned());
        let mut candidates = [in_use, MADE_BY_SETUP.to_owned()].into_iter();
        match candidates.find(|name| has_core_sources(name)) {
            Some(toolchain) => Self::Sources(toolchain),
            None => Self::CheckedIn { missing: Some("source of Rust's core library") },
        }
    }
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

/// Puts the object that is checked in where `program` is expected. Returns what cargo is to be told, a line each.
///
/// # Errors
/// An object that cannot be copied, or that would not run where something is `missing` and the target is big-endian.
pub(crate) fn take_checked_in(
    missing: Option<&str>,
    environment: impl Fn(&str) -> Option<OsString>,
    program: &Path,
) -> anyhow::Result<Vec<String>> {
    let mut said = vec![format!("cargo:rerun-if-changed={CHECKED_IN}")];
    if let Some(missing) = missing {
        anyhow::ensure!(
            environment("CARGO_CFG_TARGET_ENDIAN").is_some_and(|endian| endian == "little"),
            "there is no {missing} here, and the XDP program that is checked in is little-endian; `cargo xtask setup` \
             installs what building another needs"
        );
        said.push(format!(
            "cargo:warning=there is no {missing} here: taking the XDP program that is checked in, and none for labs; \
             `cargo xtask setup` installs what building them needs"
        ));
        // What is missing may be there the next time.
        said.push("cargo:rerun-if-env-changed=PATH".to_owned());
        if let Some(home) = environment("CARGO_HOME") {
            said.push(format!("cargo:rerun-if-changed={}", Path::new(&home).join("bin").display()));
        }
    }
    fs::copy(CHECKED_IN, program).with_context(|| format!("copying {CHECKED_IN}"))?;
    Ok(said)
}
