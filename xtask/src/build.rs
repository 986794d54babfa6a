//! Builds tcpguard and says where cargo put the daemon and the lab's eBPF object.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::setup::{self, Purpose};

/// What a build leaves.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Artifacts {
    /// The `tcpguard` binary.
    pub daemon: PathBuf,
    /// The lab's eBPF object.
    pub lab_object: PathBuf,
}

/// The option by which tests show what they were built with.
#[derive(Args, Clone, Debug)]
pub struct Built {
    /// This daemon and this lab object, instead of building them: for tests
    #[arg(long, hide = true, num_args = 2, value_names = ["DAEMON", "LAB_OBJECT"])]
    artifacts: Option<Vec<PathBuf>>,
}

impl Built {
    /// What was given, or else what [`release`] builds.
    pub fn or_release(&self, purpose: Purpose) -> Result<Artifacts> {
        match self.artifacts.as_deref() {
            Some([daemon, object]) => Ok(Artifacts { daemon: daemon.clone(), lab_object: object.clone() }),
            _ => release(purpose),
        }
    }
}

impl Artifacts {
    /// The eBPF object called `name`: cargo puts all of them into one directory.
    pub fn object(&self, name: &str) -> PathBuf {
        self.lab_object.with_file_name(name)
    }
}

/// Meets what `purpose` needs, then builds; cargo's own progress goes to standard error.
pub fn release(purpose: Purpose) -> Result<Artifacts> {
    let lines = build(purpose, "tcpguard", &["--release"])?;
    artifacts(lines.iter().map(String::as_str))
}

/// Likewise as tests have it, without what makes the daemon fast; the eBPF objects are the same.
pub fn debug(purpose: Purpose) -> Result<Artifacts> {
    let lines = build(purpose, "tcpguard", &[])?;
    artifacts(lines.iter().map(String::as_str))
}

/// Likewise builds an example of `package`; where it is.
pub fn release_example(package: &str, name: &str, purpose: Purpose) -> Result<PathBuf> {
    let lines = build(purpose, package, &["--release", "--example", name])?;
    executable(lines.iter().map(String::as_str), name)
}

/// Likewise the daemon with an example of its package, and where that is. What only examples need changes how others are built:
/// after the daemon alone, most of it would be built again.
pub fn release_with_example(name: &str, purpose: Purpose) -> Result<(Artifacts, PathBuf)> {
    let lines = build(purpose, "tcpguard", &["--release", "--bins", "--example", name])?;
    let messages = || lines.iter().map(String::as_str);
    Ok((artifacts(messages())?, executable(messages(), name)?))
}

/// Builds an integration test, with what all of them are built with; where it is.
pub fn integration_test(name: &str) -> Result<PathBuf> {
    let lines = messages(&["test", "--no-run", "--test", name])?;
    executable(lines.iter().map(String::as_str), name)
}

/// Builds `package`; cargo's messages.
fn build(purpose: Purpose, package: &str, args: &[&str]) -> Result<Vec<String>> {
    setup::ensure(purpose)?;
    let profile = if args.contains(&"--release") { "release" } else { "debug" };
    eprintln!("building {package} ({profile})");
    messages(&[&["build", "--package", package], args].concat())
}

/// Has cargo do something, its own progress on standard error; its messages.
fn messages(args: &[&str]) -> Result<Vec<String>> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args).arg("--message-format=json-render-diagnostics").current_dir(workspace());
    let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("running cargo")?;
    let messages = BufReader::new(child.stdout.take().context("cargo's output is not a pipe")?);
    let lines = messages.lines().collect::<Result<Vec<_>, _>>()?;
    if !child.wait()?.success() {
        bail!("the build failed");
    }
    Ok(lines)
}

/// The root of the workspace this was compiled from.
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new(".")).to_owned()
}

/// Reads cargo's messages: the binary, and the output directory of the build script of the same package.
fn artifacts<'a>(messages: impl Iterator<Item = &'a str>) -> Result<Artifacts> {
    let mut binary = None;
    let mut out_dirs = Vec::new();
    for message in messages.filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
        let package = message["package_id"].as_str().unwrap_or_default().to_owned();
        match message["reason"].as_str() {
            Some("build-script-executed") => out_dirs.push((package, message["out_dir"].clone())),
            Some("compiler-artifact") if message["target"]["name"] == "tcpguard" => {
                if let Some(path) = message["executable"].as_str() {
                    binary = Some((package, PathBuf::from(path)));
                }
            }
            _ => {}
        }
    }
    let (package, daemon) = binary.context("cargo reported no tcpguard binary")?;
    let out_dir = out_dirs.iter().find(|(id, _)| *id == package).and_then(|(_, dir)| dir.as_str());
    let lab_object = PathBuf::from(out_dir.context("cargo reported no output of tcpguard's build script")?);
    Ok(Artifacts { daemon, lab_object: lab_object.join("tcpguard-lab") })
}

/// Reads cargo's messages: the executable of a target.
fn executable<'a>(messages: impl Iterator<Item = &'a str>, target: &str) -> Result<PathBuf> {
    let messages = messages.filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let mut built = messages.filter(|message| message["target"]["name"] == target);
    let path = built.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    path.with_context(|| format!("cargo reported no {target}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn binary_and_object_come_from_the_same_package() {
        let messages = [
            r#"{"reason":"build-script-executed","package_id":"registry+x#libc@0.2","out_dir":"/t/libc/out"}"#,
            r#"{"reason":"build-script-executed","package_id":"path+file:///p#tcpguard","out_dir":"/t/tcpguard/out"}"#,
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p#tcpguard","target":{"name":"tcpguard"},"executable":null}"#,
            r#"{"reason":"compiler-artifact","package_id":"path+file:///p#tcpguard","target":{"name":"tcpguard"},"executable":"/t/tcpguard"}"#,
            "not json",
            r#"{"reason":"build-finished","success":true}"#,
        ];
        let expected =
            Artifacts { daemon: "/t/tcpguard".into(), lab_object: "/t/tcpguard/out/tcpguard-lab".into() };
        assert_eq!(artifacts(messages.into_iter()).unwrap(), expected);
        assert_eq!(expected.object("tcpguard-xdp"), Path::new("/t/tcpguard/out/tcpguard-xdp"));
        assert!(artifacts(messages[..2].iter().copied()).is_err());
        assert_eq!(executable(messages.into_iter(), "tcpguard").unwrap(), Path::new("/t/tcpguard"));
        assert!(executable(messages.into_iter(), "tcp").is_err());
    }
}
