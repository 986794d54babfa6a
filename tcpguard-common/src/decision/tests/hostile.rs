//! What a hostile peer may send, by name: of the table's rows those that are about it, and what becomes of all of them. The
//! same rows run against the program in the kernel with the rest of the table.

use super::super::table::cases::{self, Case};
use super::hold;
use crate::reason::Reason;
use std::vec::Vec;

/// Runs the rows whose names `concerns` picks, of which there are at least so many for each family that has any, and none
/// with another reason than these.
fn rows(least: usize, reasons: &[Option<Reason>], concerns: impl Fn(&str) -> bool) -> Vec<Case> {
    let cases: Vec<Case> = cases::all().into_iter().filter(|case| concerns(&case.name)).collect();
    let (v4, v6): (Vec<&Case>, Vec<&Case>) = cases.iter().partition(|case| case.name.starts_with("IPv4"));
    assert!(!cases.is_empty(), "no rows");
    for family in [v4, v6].iter().filter(|family| !family.is_empty()) {
        assert!(family.len() >= least, "{} rows like {}", family.len(), family[0].name);
    }
    for case in &cases {
        assert!(reasons.contains(&case.reason), "{}: {:?}", case.name, case.reason);
    }
    hold(&cases);
    cases
}

/// The same where there must be rows of both families.
fn both(least: usize, reasons: &[Option<Reason>], concerns: impl Fn(&str) -> bool) -> Vec<Case> {
    let cases = rows(least, reasons, concerns);
    for family in ["IPv4", "IPv6"] {
        assert!(cases.iter().any(|case| case.name.starts_with(family)), "no rows of {family}");
    }
    cases
}

const BAD_OPTIONS: [Option<Reason>; 1] = [Some(Reason::BadOptions)];

fn is_option(name: &str) -> bool {
    name.contains(" with option ") || name.contains(" with an option ")
}

#[test]
fn an_option_of_length_0() {
    both(17, &BAD_OPTIONS, |name| is_option(name) && name.contains(" of length 0"));
}

#[test]
fn an_option_of_length_1() {
    both(17, &BAD_OPTIONS, |name| is_option(name) && name.ends_with(" of length 1"));
}

#[test]
fn an_option_that_overruns_the_header() {
    let overruns =
        [" of length 9", " of length 41", " of length 255", " past the header", " before its length"];
    let overrun = |name: &str| overruns.iter().any(|end| name.ends_with(end));
    both(60, &BAD_OPTIONS, |name| (is_option(name) && overrun(name)) || name.contains(" of the last byte"));
}

#[test]
fn forty_nops() {
    both(2, &[Some(Reason::CookieSent), Some(Reason::AckInvalid)], |name| name.contains("40 NOPs"));
}

#[test]
fn options_that_come_twice() {
    let reasons = [Reason::CookieSent, Reason::AckValid, Reason::AckInvalid].map(Some);
    both(3, &reasons, |name| name.contains("option twice") || name.contains("the right timestamps"));
}

#[test]
fn a_window_scale_over_14() {
    both(242, &[Some(Reason::CookieSent)], |name| name.contains("window shift o"));
}

#[test]
fn an_mss_of_0_and_of_1() {
    let small = [Some(Reason::CookieSentSmallMss)];
    both(4, &small, |name| name.ends_with(" MSS 0") || name.ends_with(" MSS 1"));
}

#[test]
fn a_data_offset_below_5() {
    let below = |name: &str| name.contains(" data offset ") && !name.contains("past the end");
    both(5, &[Some(Reason::BadDataOffset)], below);
}

#[test]
fn a_data_offset_past_the_end() {
    let past = |name: &str| name.contains(" data offset ") && name.contains("past the end");
    both(10, &[Some(Reason::BadDataOffset)], past);
}

/// Nobody can tell where such a datagram goes; the host drops it.
#[test]
fn an_ipv4_header_length_below_5() {
    rows(5, &[None], |name| name.starts_with("IPv4 header length "));
}

#[test]
fn a_total_length_that_lies_either_way() {
    use Reason::{BadDataOffset, BadLength, CookieSent, SynBadChecksum, Truncated};
    let reasons = [BadLength, BadDataOffset, CookieSent, SynBadChecksum, Truncated].map(Some);
    let announced = both(50, &reasons, |name| {
        name.contains(" announced, ") || name.starts_with("IPv4 length ") || name.starts_with("IPv6 length ")
    });
    for reason in [BadLength, Truncated] {
        assert!(
            announced.iter().filter(|case| case.reason == Some(reason)).count() > 40,
            "{}",
            reason.name()
        );
    }
}

/// Also one that ends before the ports, or behind a chain of headers.
#[test]
fn tiny_fragments() {
    let reasons = [Reason::BadLength, Reason::Fragment, Reason::HeaderChain].map(Some);
    both(6, &reasons, |name| {
        let v4 = name.starts_with("IPv4 flags") && name.contains(" bytes at 0 of ");
        v4 || name.starts_with("IPv6 fragment of ") && name.contains(" at 0,")
    });
}

/// What is meant to overwrite the first fragment passes, for without that it comes to nothing.
#[test]
fn overlapping_fragments() {
    both(20, &[None], |name| {
        let v4 = name.starts_with("IPv4 flags") && name.contains(" bytes at ") && !name.contains(" at 0 of ");
        v4 || name.starts_with("IPv6 fragment of ") && !name.contains(" at 0,")
    });
}

#[test]
fn land() {
    let land = [" from the destination itself", " from the very socket it goes to"];
    both(4, &[Some(Reason::BadSource)], |name| land.iter().any(|end| name.ends_with(end)));
}

#[test]
fn port_0() {
    let zero = |name: &str| name.contains(" from port 0") || name.ends_with(" to a service on port 0");
    both(2, &[Some(Reason::BadPort)], zero);
    both(2, &[None], |name| name.ends_with(" to unprotected port 0"));
}

#[test]
fn a_broadcast_or_multicast_source() {
    let sources = [
        "broadcast MAC",
        "multicast MAC",
        "group MAC",
        "SYN from [255, 255, 255, 255]",
        "SYN from [224, 0, 0, 1]",
        "SYN from [239, 255, 255, 255]",
        "SYN from ff02::1",
    ];
    both(7, &[Some(Reason::BadSource)], |name| {
        name.contains(" from ") && sources.iter().any(|source| name.ends_with(source))
    });
}

#[test]
fn a_foreign_destination_mac() {
    let macs = [" to another MAC", " to a broadcast MAC", " to a multicast MAC"];
    both(5, &[None], |name| macs.iter().any(|mac| name.ends_with(mac)));
}

#[test]
fn all_256_combinations_of_flags_without_a_flow() {
    use Reason::{AckInvalid, BadFlags, CookieSent, NoFlow, NoFlowRst};
    let reasons = [AckInvalid, BadFlags, CookieSent, NoFlow, NoFlowRst].map(Some);
    let cases = both(256, &reasons, |name| name.contains(" flags ") && name.ends_with(" of an unknown flow"));
    assert_eq!(cases.len(), 512);
}

#[test]
fn ipv6_header_chains_to_the_bound() {
    let answered = [Some(Reason::CookieSent), Some(Reason::AckValid)];
    rows(84, &answered, |name| {
        name.contains(" behind ") && (1..=6).any(|count| name.contains(&std::format!(" behind {count} ")))
    });
}

#[test]
fn ipv6_header_chains_past_the_bound() {
    rows(42, &[Some(Reason::HeaderChain)], |name| {
        name.contains(" behind ") && (7..=9).any(|count| name.contains(&std::format!(" behind {count} ")))
    });
}

#[test]
fn triple_vlan_tags() {
    both(55, &[None], |name| name.contains(" with tags [[") || name.ends_with(" with three tags"));
}

/// Behind tags, IPv4 options and IPv6 extension headers, too.
#[test]
fn frames_truncated_at_every_byte_offset() {
    let cases = both(1000, &[None, Some(Reason::Truncated)], |name| name.contains(" cut to "));
    for family in ["IPv4", "IPv6"] {
        let mut cuts: Vec<(&str, usize)> = cases
            .iter()
            .filter(|case| case.name.starts_with(family))
            .filter_map(|case| case.name.rsplit_once(" cut to "))
            .map(|(what, len)| (what, len.parse().expect("a length")))
            .collect();
        cuts.sort_unstable();
        cuts.dedup();
        let kinds: Vec<&[(&str, usize)]> = cuts.chunk_by(|one, other| one.0 == other.0).collect();
        for kind in &kinds {
            assert_eq!(kind.len() - 1, kind[kind.len() - 1].1 - kind[0].1, "{family} {}", kind[0].0);
        }
        let whole = kinds.iter().filter(|kind| kind[0].1 == 0).count();
        let behind_options =
            kinds.iter().filter(|kind| kind[0].1 == 0 && !kind[0].0.contains(" 0 + ")).count();
        assert!(whole >= 15 && behind_options >= 6, "{family}: {whole}, {behind_options} behind options");
    }
}
