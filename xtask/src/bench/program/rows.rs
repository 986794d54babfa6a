//! The table of rows: which frames, run by which program, and what must become of them.

use tcpguard_common::reason::Reason;

use super::Peer;
use super::frames::{Kind, Sources};

/// XDP verdicts, as the kernel numbers them.
pub(super) const DROP: u32 = 1;
pub(super) const PASS: u32 = 2;
pub(super) const TX: u32 = 3;
pub(super) const REDIRECT: u32 = 4;

/// First byte of the sources whose flows are in a table.
pub(super) const KNOWN: u8 = 11;
/// First byte of all other sources.
pub(super) const STRANGERS: u8 = 12;
/// First byte of the sources that are denied where anybody is.
pub(super) const DENIED: u8 = 13;
/// First byte of sources of which some are allowed, in a full list.
pub(super) const ALLOWED: u8 = 14;
/// Flows that a hot row knows: their entries stay in the first-level cache.
pub(super) const FEW: u64 = 64;
/// Strangers of a row whose frames' numbers repeat.
pub(super) const HOT_STRANGERS: u64 = 256;
/// Sources of a row in which hardly any comes twice.
pub(super) const MANY: u64 = 1 << 24;

/// An IP version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    V4,
    V6,
}

/// Which program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Contestant {
    /// Nothing.
    Null,
    /// Nothing but the redirect.
    Redirect,
    /// The guard that knows [`FEW`] flows.
    Hot,
    /// The guard with a full table.
    Cold,
    /// The guard that denies one network.
    Denying,
    /// The guard with full filter lists.
    Listing,
    /// A peer, by its number.
    Peer(usize),
}

/// One row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) name: String,
    pub(super) contestant: Contestant,
    pub(super) version: Version,
    pub(super) kind: Kind,
    pub(super) sources: Sources,
    /// The verdict on every packet.
    pub(super) verdict: u32,
    /// What the guard counts every packet under.
    pub(super) reason: Option<Reason>,
}

/// Every row, in the order of the table.
pub(super) fn all(peers: &[Peer]) -> Vec<Spec> {
    use Contestant::{Cold, Denying, Hot, Listing, Null, Redirect};
    use Version::{V4, V6};
    let row = |name: &str, contestant, version, kind, (network, count), verdict, reason| Spec {
        name: name.to_owned(),
        contestant,
        version,
        kind,
        sources: Sources { network, count },
        verdict,
        reason,
    };
    let (many, repeating, new) = ((STRANGERS, MANY), (STRANGERS, HOT_STRANGERS), (STRANGERS, 0));
    // All of those in the table that are in question: the contest knows how many there are.
    let (few, full) = ((KNOWN, FEW), (KNOWN, u64::MAX));
    let (sent, valid) = (Some(Reason::CookieSent), Some(Reason::AckValid));
    let (invalid, known) = (Some(Reason::AckInvalid), Some(Reason::FlowKnown));
    let (stamped, bare, cookie) = (Kind::Ack, Kind::AckWithoutStamps, Kind::AckOfCookie);
    let mut rows = vec![
        row("null", Null, V4, Kind::Syn, many, DROP, None),
        row("null_redirect", Redirect, V4, stamped, few, REDIRECT, None),
        row("pass_unprotected", Hot, V4, Kind::SynElsewhere, many, PASS, None),
        row("syn_v4_ts", Hot, V4, Kind::Syn, many, TX, sent),
        row("syn_v4_nots", Hot, V4, Kind::SynWithoutStamps, many, TX, sent),
        row("syn_v6_ts", Hot, V6, Kind::Syn, many, TX, sent),
        row("syn_v4_data", Hot, V4, Kind::SynWithData, many, TX, sent),
        row("ack_valid_new", Hot, V4, cookie, new, REDIRECT, valid),
        row("ack_invalid_v4", Hot, V4, stamped, repeating, DROP, invalid),
        row("ack_invalid_v4_nots", Hot, V4, bare, repeating, DROP, invalid),
        row("ack_invalid_v6", Hot, V6, stamped, repeating, DROP, invalid),
        row("ack_invalid_v4_spread", Hot, V4, stamped, many, DROP, invalid),
        row("ack_invalid_v6_spread", Hot, V6, stamped, many, DROP, invalid),
        row("flow_hit_v4", Hot, V4, stamped, few, REDIRECT, known),
        row("flow_hit_v6", Hot, V6, stamped, few, REDIRECT, known),
        row("filter_deny", Denying, V4, Kind::Syn, (DENIED, MANY), DROP, Some(Reason::FilterDeny)),
        row("filter_deny_full", Listing, V4, Kind::Syn, (DENIED, MANY), DROP, Some(Reason::FilterDeny)),
        row("filter_none_full", Listing, V4, stamped, repeating, DROP, invalid),
        row("filter_near_full", Listing, V4, stamped, (ALLOWED, MANY), DROP, invalid),
        row("syn_v4_ts_cold", Cold, V4, Kind::Syn, many, TX, sent),
        row("syn_v4_nots_cold", Cold, V4, Kind::SynWithoutStamps, many, TX, sent),
        row("syn_v6_ts_cold", Cold, V6, Kind::Syn, many, TX, sent),
        row("ack_valid_new_cold", Cold, V4, cookie, new, REDIRECT, valid),
        row("ack_invalid_v4_cold", Cold, V4, stamped, many, DROP, invalid),
        row("ack_invalid_v6_cold", Cold, V6, stamped, many, DROP, invalid),
        row("flow_hit_v4_cold", Cold, V4, stamped, full, REDIRECT, known),
        row("flow_hit_v6_cold", Cold, V6, stamped, full, REDIRECT, known),
    ];
    for (index, Peer { name, object: _ }) in peers.iter().enumerate() {
        let peer = Contestant::Peer(index);
        rows.push(row(&format!("{name}/syn_v4_ts"), peer, V4, Kind::Syn, many, TX, None));
        rows.push(row(&format!("{name}/ack_invalid_v4"), peer, V4, stamped, repeating, DROP, None));
    }
    rows
}
