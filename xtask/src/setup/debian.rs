//! Debian's side of the setup: packages, and a compiler with its sources made of packages that are only unpacked.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::{progress, tool};

const POLICY: &str = "/usr/sbin/policy-rc.d";
/// Tells our policy from an administrator's.
const POLICY_TEXT: &str = "#!/bin/sh\n# Left by tcpguard's setup while it installs packages; remove it if you read this.\nexit 101\n";

/// What root would type to install `packages`.
pub(super) fn install_command(packages: &[String]) -> String {
    format!("apt-get install --no-install-recommends {}", packages.join(" "))
}

/// Installs packages without starting the services among them.
pub(super) fn install(packages: &[String]) -> Result<()> {
    if packages.is_empty() {
        return Ok(());
    }
    if !tool::exists("apt-get") {
        bail!("this is not Debian: install what its packages {} hold, then try again", packages.join(", "));
    }
    if !tool::is_root() {
        bail!("this needs root. Run\n  sudo {}\nand then the same command again", install_command(packages));
    }
    let _policy = Policy::deny_services()?;
    progress::run(apt().arg("update"))?;
    progress::run(apt().args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages))
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    apt.env("DEBIAN_FRONTEND", "noninteractive");
    apt
}

/// Keeps packages from starting their services: the lab starts its own web server, in its own namespace. A policy
/// that is already there is the administrator's, and stays.
struct Policy(bool);

impl Policy {
    fn deny_services() -> Result<Self> {
        let ours = fs::read_to_string(POLICY).is_ok_and(|text| text == POLICY_TEXT);
        if Path::new(POLICY).exists() && !ours {
            return Ok(Self(false));
        }
        eprintln!("    {POLICY} for the time being, so that no service is started");
        fs::write(POLICY, POLICY_TEXT).with_context(|| format!("writing {POLICY}"))?;
        let policy = Self(true);
        fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755))?;
        Ok(policy)
    }
}

impl Drop for Policy {
    fn drop(&mut self) {
        if self.0 {
            let _ = fs::remove_file(POLICY);
        }
    }
}

/// Makes a rustup toolchain of Debian's compiler and its sources. The packages are unpacked into a directory of the
/// user's, not installed: they conflict with a packaged rustup, and would put a second `rustc` on the path. The
/// user's cargo drives this compiler as well as any.
pub(super) fn toolchain(name: &str) -> Result<()> {
    if !tool::exists("apt-get") || !tool::exists("dpkg") {
        bail!("this is not Debian: its packages cannot be had here");
    }
    let dir = data_dir()?.join(name);
    let packages = dir.join("packages");
    tool::fresh_dir(&packages)?;
    if tool::is_root() {
        progress::run(apt().arg("update"))?;
    }
    let library = dependency("libstd-rust-web-dev", "libstd-rust-web-")?;
    let llvm = dependency(&library, "libllvm")?;
    if tool::output("dpkg", ["-s", &llvm]).is_err() {
        install(&[llvm])?;
    }
    let names = ["rustc-web", "libstd-rust-web-dev", &library, "rust-web-src"];
    progress::run(apt().arg("download").args(names).current_dir(&packages))?;
    for package in fs::read_dir(&packages)?.flatten() {
        progress::run(Command::new("dpkg").arg("-x").arg(package.path()).arg(&dir))?;
    }
    fs::remove_dir_all(&packages)?;
    arrange(&dir.join("usr"))?;
    progress::run(Command::new("rustup").args(["toolchain", "link", name]).arg(dir.join("usr")))
}

/// Gives the unpacked tree the shape rustup expects: libraries in `lib`, a cargo in `bin`. Of the sources only those
/// of the library are kept: the compiler's own are half a gigabyte.
fn arrange(root: &Path) -> Result<()> {
    let lib = root.join("lib");
    for dir in
        fs::read_dir(&lib)?.flatten().filter(|entry| entry.file_name().to_string_lossy().contains("-linux-"))
    {
        for library in fs::read_dir(dir.path())?.flatten() {
            fs::rename(library.path(), lib.join(library.file_name()))?;
        }
    }
    let sources = fs::canonicalize(lib.join("rustlib/src/rust")).context("where are the sources?")?;
    for entry in fs::read_dir(sources)?.flatten().filter(|entry| entry.file_name() != "library") {
        let path = entry.path();
        if path.is_dir() { fs::remove_dir_all(path)? } else { fs::remove_file(path)? }
    }
    let cargo = tool::output("rustup", ["which", "cargo"]).context("where is cargo?")?;
    symlink(cargo.trim(), root.join("bin/cargo")).context("linking cargo")
}

/// The dependency of a package whose name starts so and goes on with a version.
fn dependency(package: &str, prefix: &str) -> Result<String> {
    let said = tool::output("apt-cache", ["depends", package])
        .with_context(|| format!("Debian's {package} is not available: is `apt-get update` needed?"))?;
    versioned(&said, prefix).with_context(|| format!("{package} depends on no {prefix}*"))
}

fn versioned(depends: &str, prefix: &str) -> Option<String> {
    let names = depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: "));
    let mut names = names.filter(|name| {
        name.strip_prefix(prefix).is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
    });
    names.next().map(str::to_owned)
}

/// Where a user's programs keep what they could fetch again but would rather not (XDG base directories).
fn data_dir() -> Result<PathBuf> {
    if let Some(dir) = std::env::var_os("XDG_DATA_HOME").filter(|dir| !dir.is_empty()) {
        return Ok(PathBuf::from(dir).join("tcpguard"));
    }
    let home = std::env::home_dir().context("no home directory")?;
    Ok(home.join(".local/share/tcpguard"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_versioned_dependency_is_found_among_the_others() {
        let said = "libstd-rust-web-dev\n  Depends: libstd-rust-web-1.96\n  Conflicts: <rustup>\n";
        assert_eq!(versioned(said, "libstd-rust-web-").as_deref(), Some("libstd-rust-web-1.96"));
        assert_eq!(
            versioned("x\n  Depends: libllvm-dev\n  Depends: libllvm22\n", "libllvm").as_deref(),
            Some("libllvm22")
        );
    }
}
