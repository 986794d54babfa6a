//! `cargo xtask deb`: a Debian package of the daemon with its unit, manual, completions and configuration. What goes where
//! stands in `tcpguard/Cargo.toml`; the maintainer's scripts are cargo-deb's.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, progress, tool};

/// Each shell, and the file in which it looks for what completes `tcpguard`.
const COMPLETIONS: [(&str, &str); 3] =
    [("bash", "tcpguard"), ("zsh", "_tcpguard"), ("fish", "tcpguard.fish")];

/// Make a Debian package
#[derive(Args, Clone, Debug)]
pub struct DebArgs {
    /// The directory in which it is made
    #[arg(long, value_name = "DIR", default_value = "target/debian")]
    output: PathBuf,
}

/// The verb.
pub fn run(args: &DebArgs) -> Result<()> {
    setup::ensure(Purpose::Package)?;
    let daemon = build::release(Purpose::Package)?.daemon;
    // Nobody debugs a packaged program with what the release profile keeps for measurements.
    println!("{}", package(&daemon, &args.output, &["--strip"])?.display());
    Ok(())
}

/// Makes a package of `daemon` in `output`, by cargo-deb with these further `arguments`; where it is.
///
/// # Errors
/// Whatever the daemon or cargo-deb fails with.
pub fn package(daemon: &Path, output: &Path, arguments: &[&str]) -> Result<PathBuf> {
    fs::create_dir_all(output).with_context(|| format!("making {}", output.display()))?;
    let output = fs::canonicalize(output)?;
    // What cargo-deb takes for cargo's own directory, whatever profile the daemon is of.
    let stage = output.join("stage");
    let package = output.join("tcpguard.deb");
    let made = fill(&stage.join("release"), daemon).and_then(|()| pack(&stage, &package, arguments));
    let cleared = fs::remove_dir_all(&stage).with_context(|| format!("removing {}", stage.display()));
    made.and(cleared)?;
    Ok(package)
}

/// Has cargo-deb make `package` of what is in `stage`.
fn pack(stage: &Path, package: &Path, arguments: &[&str]) -> Result<()> {
    let mut deb = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    deb.args(["deb", "--package", "tcpguard", "--no-build", "--output"]).arg(package).args(arguments);
    progress::run(deb.env("CARGO_TARGET_DIR", stage).current_dir(build::workspace()))
}

/// Puts the daemon into `dir`, and beside it what it says of itself.
fn fill(dir: &Path, daemon: &Path) -> Result<()> {
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for fresh in [&man, &completions] {
        tool::fresh_dir(fresh)?;
    }
    fs::copy(daemon, dir.join("tcpguard")).with_context(|| format!("copying {}", daemon.display()))?;
    let daemon = &*daemon.to_string_lossy();
    tool::run(daemon, ["man", "--directory", &man.to_string_lossy()])?;
    // cargo-deb leaves alone what it takes for cargo's own.
    let pages = fs::read_dir(&man)?.map(|page| Ok(page?.path())).collect::<Result<Vec<_>>>()?;
    tool::run("gzip", [OsStr::new("-9n")].into_iter().chain(pages.iter().map(|page| page.as_os_str())))?;
    for (shell, file) in COMPLETIONS {
        fs::write(completions.join(file), tool::output(daemon, ["completions", shell])?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_but_the_error_is_left_of_a_package_that_could_not_be_made() {
        let dir = std::env::temp_dir().join(format!("tcpguard-deb-{}", std::process::id()));
        // It says nothing of itself, and what cannot be staged cannot be packed.
        package(Path::new("/bin/false"), &dir, &[]).unwrap_err();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        // It says all that is wanted; cargo-deb then has no such variant.
        package(Path::new("/bin/true"), &dir, &["--variant", "none-of-ours"]).unwrap_err();
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        fs::remove_dir(dir).unwrap();
    }
}
