//! `cargo xtask setup`: takes a machine with rustup's stable toolchain to a working eBPF build and a lab. Every step
//! is a need with a check, a reason and the commands that meet it; what is there already is not touched.

mod debian;
mod needs;

use std::fmt::Write as _;

use anyhow::{Result, bail};
use clap::{Args, ValueEnum};

use needs::{Means, Need};

/// The rustup toolchain made of Debian's packages. `tcpguard/build` knows the name.
pub const DEBIAN_TOOLCHAIN: &str = "tcpguard-ebpf";

/// Prepare this machine: eBPF toolchain, linker, and the tools the lab uses
#[derive(Args, Clone, Debug, Default)]
pub struct SetupArgs {
    /// Only say what is missing; exit code 1 if anything is
    #[arg(long)]
    check: bool,
    /// Where the sources of `core` for the eBPF target come from [default: rustup, and Debian when that fails]
    #[arg(long, value_enum)]
    core_sources: Option<CoreSources>,
}

/// The two ways to the sources of `core`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum CoreSources {
    /// rustup's rust-src component
    Rustup,
    /// Debian's rustc-web and rust-web-src, unpacked beside the user's files
    Debian,
}

/// What a verb is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Compile everything, the eBPF programs included.
    Build,
    /// Also make a Debian package.
    Package,
    /// Also check format and lints.
    Lint,
    /// Also run a lab.
    Lab,
    /// Also what a lab's guard is compared with.
    Bench,
    /// All of it.
    Everything,
}

/// The verb.
pub fn run(args: &SetupArgs) -> Result<()> {
    let missing = missing(Purpose::Everything, args.core_sources);
    if missing.is_empty() {
        eprintln!("setup: everything is in place");
        return Ok(());
    }
    if args.check {
        let mut text = String::from("missing:");
        for need in &missing {
            write!(text, "\n  {} ({})", need.name, need.why)?;
        }
        bail!("{text}\n`cargo xtask setup` installs it");
    }
    meet(&missing)?;
    eprintln!("setup: done");
    Ok(())
}

/// Meets what `purpose` needs; quick when everything is there.
pub fn ensure(purpose: Purpose) -> Result<()> {
    let missing = missing(purpose, None);
    if missing.is_empty() { Ok(()) } else { meet(&missing) }
}

pub(crate) use needs::{ebpf_rustc, linker_llvm_version};

/// Whether the toolchain in use can build eBPF programs by itself.
pub fn has_core_sources() -> bool {
    needs::sysroot(None).is_some_and(|root| needs::has_core(&root))
}

fn missing(purpose: Purpose, sources: Option<CoreSources>) -> Vec<Need> {
    let mut needs = needs::of(purpose, sources);
    needs.retain(|need| !(need.met)());
    needs
}

/// Meets the needs in order. Without root, first says what only root can do.
fn meet(missing: &[Need]) -> Result<()> {
    if !crate::tool::is_root() {
        let commands = as_root(missing);
        if !commands.is_empty() {
            let list = commands.join("\n  sudo ");
            bail!("this needs root once. Run\n  sudo {list}\nand then the same command again");
        }
    }
    let (packages, rest): (Vec<_>, Vec<_>) =
        missing.iter().partition(|need| matches!(need.means, Means::Packages(_)));
    for (index, need) in packages.iter().chain(&rest).enumerate() {
        eprintln!("setup {}/{}: {}: {}", index + 1, missing.len(), need.name, need.why);
    }
    debian::install(&packages_of(&packages))?;
    for need in rest {
        eprintln!("setup: {}", need.name);
        match &need.means {
            Means::Packages(_) => unreachable!("partitioned above"),
            Means::Work(work) => work()?,
            Means::RootWork { work, .. } => work()?,
        }
    }
    match missing.iter().find(|need| !(need.met)()) {
        Some(need) => bail!("{} is still missing after its installation", need.name),
        None => Ok(()),
    }
}

/// What root would type to meet the needs that are root's.
fn as_root(missing: &[Need]) -> Vec<String> {
    let packages = packages_of(&missing.iter().collect::<Vec<_>>());
    let install = (!packages.is_empty()).then(|| debian::install_command(&packages));
    let others = missing.iter().filter_map(|need| match &need.means {
        Means::RootWork { command, .. } => Some((*command).to_owned()),
        Means::Packages(_) | Means::Work(_) => None,
    });
    install.into_iter().chain(others).collect()
}

/// The packages of all needs, for one run of apt.
fn packages_of(needs: &[&Need]) -> Vec<String> {
    let mut packages: Vec<String> = Vec::new();
    for need in needs {
        let Means::Packages(wanted) = &need.means else { continue };
        packages
            .extend(wanted.iter().filter(|package| !packages.contains(package)).cloned().collect::<Vec<_>>());
    }
    packages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn need(means: Means) -> Need {
        Need { name: String::new(), why: "", met: Box::new(|| false), means }
    }

    #[test]
    fn root_is_told_one_apt_command_and_each_other_one() {
        let packages = |names: &[&str]| Means::Packages(names.iter().map(|&name| name.to_owned()).collect());
        let missing = [
            need(packages(&["a", "b"])),
            need(Means::Work(Box::new(|| Ok(())))),
            need(packages(&["b", "c"])),
            need(Means::RootWork { command: "mount x", work: || Ok(()) }),
        ];
        assert_eq!(as_root(&missing), ["apt-get install --no-install-recommends a b c", "mount x"]);
        assert!(as_root(&missing[1..2]).is_empty());
    }
}
