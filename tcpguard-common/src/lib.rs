//! What tcpguard's XDP program and its userspace must agree on, compiled for both: the packet parser, the
//! cookie, the map types, the table of verdict reasons, and the decision itself.
//!
//! Nothing here touches a map, a clock or packet memory by itself: those come in through the traits of
//! [`decision`] and [`packet`], so that the same code runs in XDP, in host tests, and behind `tcpguard explain`.
#![no_std]
#![forbid(unsafe_op_in_unsafe_fn)]

// The decision's truth table is compiled here and in `tcpguard`'s tests, under one name.
#[cfg(test)]
extern crate self as tcpguard_common;
#[cfg(test)]
extern crate std;

pub mod bench;
pub mod cookie;
pub mod decision;
pub mod filter;
pub mod fingerprint;
pub mod flow;
#[cfg(test)]
mod fuzz;
pub mod hash;
pub mod known;
pub mod lab;
pub mod map;
pub mod packet;
pub mod reason;
pub mod seq;
mod siphash;
pub mod sketch;
pub mod trace;
