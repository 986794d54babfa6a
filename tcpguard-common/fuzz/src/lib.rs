//! The bodies of the fuzz targets, from where the unit tests of `tcpguard-common` have them too. To run one, with new
//! findings going to the first folder:
//!
//! ```text
//! cd tcpguard-common && mkdir -p fuzz/corpus/decision
//! RUSTC_BOOTSTRAP=1 cargo fuzz run decision fuzz/corpus/decision fuzz/seeds/decision -- -max_total_time=600
//! ```

#[expect(dead_code, reason = "the unit tests use more of it")]
#[path = "../../src/decision"]
mod decision {
    pub(crate) mod reference;
    pub(crate) mod table;
}
#[path = "../../src/fuzz.rs"]
mod fuzz;

/// A frame, as it comes from the wire.
pub fn parser(data: &[u8]) {
    fuzz::parser(data);
}

/// The options of a segment.
pub fn options(data: &[u8]) {
    fuzz::options(data);
}

/// A flow, an offer and an echo.
pub fn cookie(data: &[u8]) {
    fuzz::cookie(data);
}

/// A world and a frame.
pub fn decision(data: &[u8]) {
    fuzz::decision(data);
}
