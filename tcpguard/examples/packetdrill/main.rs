//! The stack as a shared library that packetdrill can drive (`--so_filename`): sockets that call straight into
//! [`tcpguard::stack`], a network of packets in memory, and a clock that only moves when it is told to.
//! `docs/PACKETDRILL.md` says how to run it and where it deliberately differs from Linux.
//!
//! The C interface and everything `unsafe` is in `table`. Not a socket layer to build on: it serves one script at a time.

mod address;
mod clock;
mod cookies;
mod errno;
mod files;
mod flags;
mod network;
mod options;
mod readiness;
mod shim;
mod sockets;
mod table;
mod trace;
mod world;
