//! Builds the examples that tests run: whoever runs one test alone has not built them.

use std::path::PathBuf;
use std::process::Command;

/// Builds an example of the workspace in the profile of this test; the directory it is in. No package is named: for one of
/// them alone its dependencies would have other features, and be built once more than `cargo build --examples` has.
pub(crate) fn build(name: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("this test's path");
    let profile = exe.parent().and_then(|deps| deps.parent()).expect("the directory of the profile");
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--example", name]);
    cargo.current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    if profile.ends_with("release") {
        cargo.arg("--release");
    }
    cargo.arg("--target-dir").arg(profile.parent().expect("the target directory"));
    assert!(cargo.status().expect("running cargo").success(), "the example {name} does not build");
    profile.join("examples")
}
