//! `cargo xtask test`: format, lints, unit and property tests, and integration tests in network namespaces, of which the soak
//! runs while all others are built. Nothing is skipped in silence; cargo's own results come last.

use std::io::{self, Write as _};
use std::process::{Command, Output};
use std::thread::{self, JoinHandle};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::setup::{self, Purpose};
use crate::{build, tool};

/// Set for the tests by `--long`.
pub const LONG: &str = "TCPGUARD_TEST_LONG";

/// The one test of `soak`.
const SOAK: &str = "after_mixed_clients_and_a_pulsing_flood_everything_is_as_it_was";

/// Check format and lints, run every test
#[derive(Args, Clone, Debug)]
pub struct TestArgs {
    /// Scale the heavy tests up
    #[arg(long)]
    long: bool,
    /// Run only tests whose names contain one of these; format and lints are then left out
    filter: Vec<String>,
}

/// The verb. Goes on past failures, and names them at the end.
pub fn run(args: &TestArgs) -> Result<()> {
    let root = tool::is_root();
    setup::ensure(if root { Purpose::Everything } else { Purpose::Lint })?;
    let mut failed = Vec::new();
    for Step { name, mut command, meanwhile } in steps(args, root) {
        let meanwhile = meanwhile.and_then(|test| {
            let started = Meanwhile::start(test, args.long).inspect_err(|error| eprintln!("test: {error:#}"));
            failed.extend(started.is_err().then_some(test));
            started.ok()
        });
        eprintln!("test: {name}\n    $ {}", tool::line(&command));
        command.current_dir(build::workspace());
        if args.long {
            command.env(LONG, "1");
        }
        if !command.status()?.success() {
            failed.push(name);
        }
        if let Some(meanwhile) = meanwhile {
            failed.extend(meanwhile.finish()?);
        }
    }
    failed.extend(left_out(root));
    if failed.is_empty() { Ok(()) } else { bail!("failed:\n  {}", failed.join("\n  ")) }
}

/// What is done one after the other.
struct Step {
    name: &'static str,
    command: Command,
    /// An integration test that runs at the same time.
    meanwhile: Option<&'static str>,
}

impl Step {
    fn new(name: &'static str, command: Command) -> Self {
        Self { name, command, meanwhile: None }
    }
}

/// An integration test beside something else. What it says comes when it is over, in one piece.
struct Meanwhile {
    test: &'static str,
    thread: JoinHandle<io::Result<Output>>,
}

impl Meanwhile {
    fn start(test: &'static str, long: bool) -> Result<Self> {
        eprintln!("test: {test}, and meanwhile what comes next");
        let mut command = Command::new(build::integration_test(test)?);
        command.current_dir(build::workspace().join("tcpguard"));
        if long {
            command.env(LONG, "1");
        }
        Ok(Self { test, thread: thread::spawn(move || command.output()) })
    }

    /// Waits for it; its name if it failed.
    fn finish(self) -> Result<Option<&'static str>> {
        eprintln!("test: waiting for {}", self.test);
        let ended = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        let output = ended.with_context(|| format!("running {}", self.test))?;
        io::stdout().write_all(&output.stdout)?;
        io::stderr().write_all(&output.stderr)?;
        Ok((!output.status.success()).then_some(self.test))
    }
}

fn steps(args: &TestArgs, root: bool) -> Vec<Step> {
    let mut steps = Vec::new();
    if args.filter.is_empty() {
        steps.push(Step::new("format", cargo(["fmt", "--all", "--check"])));
        steps.push(Step::new("lints", lints()));
        steps.push(Step::new("lints of the eBPF programs", ebpf_lints()));
    } else {
        eprintln!("test: only {}; format and lints are left out", args.filter.join(", "));
    }
    let soaks = root && args.filter.is_empty();
    if soaks {
        // It lasts two minutes and measures nothing: a compiler beside it is one more thing to bear.
        let build = cargo(["test", "--no-run", "--lib", "--bins", "--test", "*"]);
        steps.push(Step { meanwhile: Some("soak"), ..Step::new("tests are built", build) });
    }
    if args.filter.is_empty() {
        // Each once: what is never run is not known to work.
        steps.push(Step::new("micro-benchmarks", cargo(["test", "--bench", "*"])));
    }
    let mut units = cargo(["test", "--no-fail-fast", "--lib", "--bins", "--"]);
    steps.push(Step::new("unit and property tests", with_filters(&mut units, args)));
    if root {
        // Tests run them, but cargo builds none for a test.
        steps.push(Step::new("examples", cargo(["build", "--examples"])));
        // They share two cores: side by side they would measure each other.
        let mut whole = cargo(["test", "--no-fail-fast", "--test", "*", "--", "--test-threads=1"]);
        if soaks {
            whole.args(["--skip", SOAK]);
        }
        steps.push(Step::new("integration tests", with_filters(&mut whole, args)));
    }
    steps
}

/// What cannot run, which is a failure: nothing is skipped in silence.
fn left_out(root: bool) -> Option<&'static str> {
    (!root).then_some("integration tests: not run, they need root for network namespaces and XDP")
}

fn with_filters(command: &mut Command, args: &TestArgs) -> Command {
    command.args(&args.filter);
    std::mem::replace(command, Command::new("true"))
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(args);
    cargo
}

/// Clippy has build scripts of its own, and what they make is not run.
fn lints() -> Command {
    let mut lints = cargo(["clippy", "--all-targets", "--", "-D", "warnings"]);
    lints.env("TCPGUARD_EBPF_UNUSED", "1");
    lints
}

/// The eBPF crate compiles for its own target only, with flags that the other crates must not see. So does what it needs to
/// compile, once more, and none of it runs for long enough to be worth optimising.
fn ebpf_lints() -> Command {
    const UNOPTIMISED: &str = "profile.dev.package.\"*\".opt-level=0";
    let mut lints =
        cargo(["clippy", "--config", UNOPTIMISED, "--package", "tcpguard-ebpf", "--lib", "--bins"]);
    if !setup::has_core_sources() {
        // Debian's compiler has no clippy: there the compiler's own warnings have to do.
        eprintln!("test: this toolchain has no rust-src, so the eBPF programs are only checked, not linted");
        lints = Command::new("rustup");
        lints.args(["run", setup::DEBIAN_TOOLCHAIN, "cargo", "check", "--package", "tcpguard-ebpf"]);
        lints.args(["--lib", "--bins"]);
    }
    lints.args(["--target", "bpfel-unknown-none", "-Z", "build-std=core", "--target-dir"]);
    lints.arg(build::workspace().join("target/ebpf-lints"));
    let flags = format!("--cfg=bpf_target_arch=\"{}\"\u{1f}-Dwarnings", std::env::consts::ARCH);
    lints.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", flags);
    lints
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &[&str], root: bool) -> Vec<&'static str> {
        let args = TestArgs { long: false, filter: filter.iter().map(|&f| f.to_owned()).collect() };
        steps(&args, root).into_iter().map(|step| step.name).collect()
    }

    #[test]
    fn a_filter_leaves_out_what_has_no_tests_in_it() {
        assert_eq!(names(&["cookie"], true), ["unit and property tests", "examples", "integration tests"]);
        assert_eq!(names(&[], true).len(), 8);
    }

    #[test]
    fn without_root_the_integration_tests_are_not_among_the_steps() {
        assert!(!names(&[], false).contains(&"integration tests"));
        assert!(left_out(false).is_some_and(|why| why.starts_with("integration tests: not run")));
        assert_eq!(left_out(true), None);
    }

    #[test]
    fn filters_come_after_the_double_dash() {
        let args = TestArgs { long: false, filter: vec!["cookie".to_owned()] };
        for step in steps(&args, true).into_iter().filter(|step| step.name != "examples") {
            assert!(tool::line(&step.command).ends_with(" cookie"));
        }
    }

    #[test]
    fn the_soak_runs_once_beside_what_builds_the_others_or_where_it_is_asked_for() {
        let args = |filter: &[&str]| TestArgs {
            long: false,
            filter: filter.iter().map(|&word| word.to_owned()).collect(),
        };
        let with_soak = |filter: &[&str]| {
            let steps = steps(&args(filter), true);
            let beside = steps.iter().filter(|step| step.meanwhile == Some("soak")).count();
            let skipped = steps.iter().filter(|step| tool::line(&step.command).contains(SOAK)).count();
            (beside, skipped)
        };
        assert_eq!(with_soak(&[]), (1, 1));
        assert_eq!(with_soak(&["soak"]), (0, 0));
        assert!(include_str!("../../tcpguard/tests/soak.rs").contains(SOAK));
    }
}
