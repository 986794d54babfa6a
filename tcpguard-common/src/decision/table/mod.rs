//! The decision's truth table: a world, frames, and what must become of them. Run on the host by this crate's unit
//! tests, and against the program in the kernel by `tcpguard/tests/verdicts.rs`, which includes this directory.

pub(crate) mod acks;
pub(crate) mod cases;
pub(crate) mod check;
mod complaints;
mod dry_run;
pub(crate) mod filters;
pub(crate) mod frames;
pub(crate) mod generator;
mod hostile;
mod syns;
pub(crate) mod systems;
pub(crate) mod world;
