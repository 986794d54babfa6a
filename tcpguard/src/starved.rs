//! Tests of what happens when descriptors run out. The limit is the process's: such a test runs in one of its own.

use std::fs::File;
use std::process::Command;

/// Set in the process that has few descriptors.
const MARK: &str = "TCPGUARD_TEST_STARVED";

/// Whether this process has few descriptors. If not, the test called `name` (with its module) has just run in one that
/// has.
///
/// # Panics
/// When the test failed there.
pub(crate) fn is_starved(name: &str) -> bool {
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let mut child = Command::new("prlimit");
    child.arg("--nofile=64:64").arg(std::env::current_exe().unwrap()).args(["--exact", name]);
    let output = child.env(MARK, "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

/// All descriptors there are, until it is dropped.
pub(crate) fn hoard() -> Vec<File> {
    let hoard: Vec<_> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!hoard.is_empty(), "there were none");
    hoard
}
