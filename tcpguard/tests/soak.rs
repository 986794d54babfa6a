//! A short soak: two minutes of every sort of client and a pulsing flood leave nothing behind. `cargo xtask soak` does the
//! same for as long as wanted; `cargo xtask test` runs this one while the other integration tests are built. Needs root.

use std::time::Duration;

use xtask::build::Artifacts;

#[test]
fn after_mixed_clients_and_a_pulsing_flood_everything_is_as_it_was() {
    let built = Artifacts {
        daemon: env!("CARGO_BIN_EXE_tcpguard").into(),
        lab_object: concat!(env!("OUT_DIR"), "/tcpguard-lab").into(),
    };
    let report =
        xtask::soak::soak(&built, Duration::from_secs(120)).unwrap_or_else(|error| panic!("{error:#}"));
    assert!(report.starts_with("served: "), "{report}");
}
