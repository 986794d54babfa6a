//! The bodies of the fuzz targets, from where the unit tests of `tcpguard-stack` have them too. To run a target, with new
//! findings going to the first folder:
//!
//! ```text
//! cd tcpguard/stack && mkdir -p fuzz/corpus/segments
//! RUSTC_BOOTSTRAP=1 cargo fuzz run segments fuzz/corpus/segments fuzz/seeds/segments -- -max_total_time=600
//! ```

#[path = "../../src/fuzz.rs"]
mod fuzz;

// What those bodies know from where they are at home.
use tcpguard_stack::{Config, CongestionControl, ConnId, Event, Instant, Stack};

/// A program of segments, calls and pauses for one connection.
pub fn segments(data: &[u8]) {
    fuzz::segments(data);
}
