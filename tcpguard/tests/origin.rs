//! Where the XDP program comes from on machines that differ in what they have: a part of the build script.

#[path = "../build/origin.rs"]
mod origin;

use std::ffi::OsString;
use std::fs;

use origin::{Origin, TOOLCHAIN, UNUSED, take_checked_in};

/// An environment with these variables alone.
fn environment(variables: &[(&'static str, OsString)]) -> impl Fn(&str) -> Option<OsString> + Copy {
    move |name| variables.iter().find(|(variable, _)| *variable == name).map(|(_, value)| value.clone())
}

#[test]
fn the_program_that_is_checked_in_is_taken_where_there_is_nothing_to_build_another_with_and_nowhere_else() {
    let dir = std::env::temp_dir().join(format!("tcpguard-origin-{}", std::process::id()));
    let (empty, with_linker) = (dir.join("empty"), dir.join("bin"));
    for directory in [&empty, &with_linker] {
        fs::create_dir_all(directory).unwrap();
    }
    let path = |paths: &[&std::path::PathBuf]| ("PATH", std::env::join_paths(paths).unwrap());
    let without = [path(&[&empty]), ("CARGO_CFG_TARGET_ENDIAN", "little".into())];
    let without = environment(&without);
    let missing = Some("bpf-linker");
    assert_eq!(Origin::new(without), Origin::CheckedIn { missing });
    assert_eq!(Origin::new(environment(&[])), Origin::CheckedIn { missing });
    fs::write(with_linker.join("bpf-linker"), "").unwrap();
    let with = [path(&[&empty, &with_linker])];
    assert_ne!(Origin::new(environment(&with)), Origin::CheckedIn { missing });
    // Whoever names a toolchain has what it takes; whoever runs nothing needs none.
    let chosen = [path(&[&empty]), (TOOLCHAIN, "nightly".into())];
    assert_eq!(Origin::new(environment(&chosen)), Origin::Sources("nightly".to_owned()));
    let unused = [path(&[&with_linker]), (TOOLCHAIN, "nightly".into()), (UNUSED, "1".into())];
    assert_eq!(Origin::new(environment(&unused)), Origin::CheckedIn { missing: None });

    let program = dir.join("tcpguard-xdp");
    let said = take_checked_in(missing, without, &program).unwrap();
    assert!(fs::read(&program).unwrap() == include_bytes!("../dist/tcpguard-xdp.o"));
    assert!(said.iter().any(|line| line.starts_with("cargo:warning=there is no bpf-linker here: taking")));
    assert!(said.iter().any(|line| line == "cargo:rerun-if-env-changed=PATH"), "{said:?}");
    let said = take_checked_in(None, environment(&[]), &program).unwrap();
    assert!(said.iter().all(|line| !line.contains("warning")), "{said:?}");
    // It would not run there.
    let big = [("CARGO_CFG_TARGET_ENDIAN", "big".into())];
    let refused = take_checked_in(missing, environment(&big), &program).unwrap_err().to_string();
    assert!(refused.contains("little-endian"), "{refused}");
    fs::remove_dir_all(dir).unwrap();
}
