//! The options of SYNs as operating systems send them, and those that must answer each, byte by byte.

use super::frames::{LINUX, MACOS, WINDOWS};

/// One system's SYN.
pub(crate) struct System {
    pub(crate) name: &'static str,
    /// The options of its SYN; every TSval is 99.
    pub(crate) offer: &'static [u8],
    /// The options of the SYN-ACK, but for what the cookie chooses: zeros stand for the MSS (bytes 2 and 3) and for the
    /// TSval (bytes 8 to 11, if there are that many before the window scale).
    pub(crate) answer: &'static [u8],
}

const ALL: &[u8] = &[2, 4, 0, 0, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 99, 1, 3, 3, 9];
const NO_TIMESTAMPS: &[u8] = &[2, 4, 0, 0, 1, 1, 4, 2, 1, 3, 3, 9];

pub(crate) const SYSTEMS: &[System] = &[
    System { name: "Linux", offer: LINUX, answer: ALL },
    System {
        name: "Linux without timestamps",
        offer: &[2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 7],
        answer: NO_TIMESTAMPS,
    },
    System {
        name: "Linux without SACK",
        offer: &[2, 4, 5, 180, 1, 1, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7],
        answer: &[2, 4, 0, 0, 1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 99, 1, 3, 3, 9],
    },
    System {
        name: "Linux without window scale",
        offer: &[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0],
        answer: &[2, 4, 0, 0, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 99],
    },
    System {
        name: "Linux that asks for a TCP Fast Open cookie",
        offer: &[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7, 34, 2, 1, 1],
        answer: ALL,
    },
    System {
        name: "Linux that has a TCP Fast Open cookie",
        offer: &[
            2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7, 34, 10, 1, 2, 3, 4, 5, 6, 7, 8,
            1, 1,
        ],
        answer: ALL,
    },
    System {
        name: "Linux that offers MPTCP",
        offer: &[2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 7, 30, 4, 1, 1],
        answer: ALL,
    },
    System {
        name: "Android on a mobile network",
        offer: &[2, 4, 5, 120, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 3, 3, 9],
        answer: ALL,
    },
    System { name: "Windows", offer: WINDOWS, answer: NO_TIMESTAMPS },
    System {
        name: "Windows with timestamps",
        offer: &[2, 4, 5, 180, 1, 3, 3, 8, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0],
        answer: ALL,
    },
    System {
        name: "Windows without window scale",
        offer: &[2, 4, 5, 180, 1, 1, 4, 2],
        answer: &[2, 4, 0, 0, 1, 1, 4, 2],
    },
    System { name: "macOS and iOS", offer: MACOS, answer: ALL },
    System {
        name: "iOS that offers MPTCP",
        offer: &[2, 4, 5, 180, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 4, 2, 30, 4, 1, 1, 0, 0],
        answer: ALL,
    },
    System {
        name: "FreeBSD",
        offer: &[2, 4, 5, 180, 1, 3, 3, 6, 4, 2, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0],
        answer: ALL,
    },
    System {
        name: "OpenBSD",
        offer: &[2, 4, 5, 180, 1, 1, 4, 2, 1, 3, 3, 6, 1, 1, 8, 10, 0, 0, 0, 99, 0, 0, 0, 0],
        answer: ALL,
    },
    System { name: "a small stack with MSS alone", offer: &[2, 4, 5, 100], answer: &[2, 4, 0, 0] },
];
