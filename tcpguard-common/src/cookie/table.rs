//! What a few bits can say about an MSS or a window shift. Values round down, so that we never send more than
//! the client asked for.

use crate::packet::Family;

// Which values are worth an entry follows from what SYNs were measured to announce: S. Alcock and R. Nelson, "An Analysis
// of TCP Maximum Segment Sizes" (University of Waikato, 2011), after which Linux chose its table (net/ipv4/syncookies.c). Over
// IPv4 they saw 1460 most, in 30 to 46 % of SYNs; 1300 to 1349 in 15 to 20 %; 537 to 1299 in less than 1.5 %, less than 536 in
// 0.2 %, more than 1460 in 0.04 %. So most entries lie from 1300 to 1460, where a path with one more header is told from another, and none
// above, although the interface may carry more.

/// IPv4, three bits. 536 is what no option means (RFC 9293 §3.7.1); 1220 is IPv6's minimum, which tunnels clamp
/// to; 1300 and 1360 cover VPNs (WireGuard over mobile networks, IPsec, 1400-byte overlays); 1400 common clamps
/// (1440-byte MTU); 1436 GRE over Ethernet; 1452 PPPoE; 1460 Ethernet.
const STAMPED_V4: [u16; 8] = [536, 1220, 1300, 1360, 1400, 1436, 1452, 1460];
/// IPv6, three bits. 1220 is both the default and the least a path can have (RFC 8200 §5); the others as over
/// IPv4, less the 20 bytes the header is longer; 1420 is a 6in4 tunnel.
const STAMPED_V6: [u16; 8] = [1220, 1280, 1340, 1380, 1400, 1420, 1432, 1440];
/// IPv4, two bits: Linux's choice from measured SYNs (net/ipv4/syncookies.c), but 1436 for 1440, so that GRE's
/// clients do not fall to 1300.
const BARE_V4: [u16; 4] = [536, 1300, 1436, 1460];
/// IPv6, two bits.
const BARE_V6: [u16; 4] = [1220, 1360, 1420, 1440];

/// Window shifts in three bits, the eighth code standing for none: no scaling, and what Windows (8), Linux (7),
/// Apple (6) and small receivers (2, 4) offer; 10 stands for every larger one, which is still a 64 MB window.
pub(super) const BARE_SCALE: [u8; 7] = [0, 2, 4, 6, 7, 8, 10];

#[inline(always)]
pub(super) fn stamped_mss<A: Family>() -> &'static [u16; 8] {
    if A::VERSION == 4 { &STAMPED_V4 } else { &STAMPED_V6 }
}

#[inline(always)]
pub(super) fn bare_mss<A: Family>() -> &'static [u16; 4] {
    if A::VERSION == 4 { &BARE_V4 } else { &BARE_V6 }
}

/// The index of the greatest entry that is at most `value`; 0 when none is.
#[inline(always)]
pub(super) fn floor<T: Copy + PartialOrd, const N: usize>(table: &[T; N], value: T) -> u32 {
    // Counting keeps it free of branches.
    table.iter().skip(1).map(|&entry| u32::from(entry <= value)).sum()
}

/// The entry at `index`, or the first when there is none.
#[inline(always)]
pub(super) fn at<T: Copy, const N: usize>(table: &[T; N], index: u32) -> T {
    table.get(index as usize).copied().unwrap_or(table[0])
}
