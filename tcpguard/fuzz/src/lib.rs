//! The bodies of the fuzz targets, from where the unit tests of `tcpguard` have them too. The stack is compiled into this
//! crate by itself: the daemon around it needs an eBPF toolchain. To run a target, with new findings going to the first
//! folder:
//!
//! ```text
//! cd tcpguard && mkdir -p fuzz/corpus/segments
//! RUSTC_BOOTSTRAP=1 cargo fuzz run segments fuzz/corpus/segments fuzz/seeds/segments -- -max_total_time=600
//! ```

#[path = "../../src/stack/fuzz.rs"]
mod fuzz;
#[path = "../../src/stack/mod.rs"]
pub mod stack;

/// A program of segments, calls and pauses for one connection.
pub fn segments(data: &[u8]) {
    fuzz::segments(data);
}
