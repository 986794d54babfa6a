//! The XDP program twice: as the sources make it, and as it is checked in for machines that cannot build it.

use std::env::{current_exe, var_os};
use std::process::Command;

static BUILT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/tcpguard-xdp"));
static CHECKED_IN: &[u8] = aya::include_bytes_aligned!("../../dist/tcpguard-xdp.o");
/// What built that, a line each.
const BUILT_BY: &str = include_str!("../../dist/tcpguard-xdp.versions");
/// Has this suite judge what is checked in, whatever its value.
const OF_CHECKED_IN: &str = "TCPGUARD_VERDICTS_OF_CHECKED_IN";

/// The program to judge.
pub(super) fn object() -> &'static [u8] {
    if var_os(OF_CHECKED_IN).is_some() { CHECKED_IN } else { BUILT }
}

/// Another compiler or linker makes other bytes: they must then judge alike.
#[test]
fn the_program_that_is_checked_in_is_the_one_that_the_sources_make() {
    const REMEDY: &str = "`cargo xtask object` makes dist/tcpguard-xdp.o anew";
    if xtask::object::versions().expect("what builds eBPF programs here") == BUILT_BY {
        assert!(CHECKED_IN == BUILT, "it is another one: {REMEDY}");
        return;
    }
    let mut suite = Command::new(current_exe().expect("this program"));
    suite.args(["--test-threads=1", "--skip", "the_program_that_is_checked_in"]).env(OF_CHECKED_IN, "1");
    let output = suite.output().expect("this suite");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "it judges otherwise: {REMEDY}\n{said}");
}
