//! Empty: it exists so that cargo rebuilds `tcpguard` when this crate's sources change.
#![no_std]
