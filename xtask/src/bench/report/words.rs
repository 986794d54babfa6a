//! The sentences that page and summary begin with, made of the figures.

use std::collections::BTreeSet;

use serde_json::Value;

use super::claims::{Verdict, claims};
use super::plot::short;
use super::{distinct, hardest, number, plain, provenance, rows, string, topologies};

/// Who stands behind the names in plots and tables.
pub(super) const CONTESTANTS: [(&str, &str); 15] = [
    (
        "tcpguard",
        "This project: cookies by XDP, connections by its own TCP stack, relayed to a server or answered by a built-in responder.",
    ),
    ("none", "The kernel without cookies: what a flood does to a host that nobody guards."),
    (
        "syncookies",
        "The kernel's SYN cookies once a queue is full (net.ipv4.tcp_syncookies = 1), with HAProxy before nginx where it says proxied.",
    ),
    ("syncookies_1", "The kernel's SYN cookies once a queue is full (net.ipv4.tcp_syncookies = 1)."),
    ("syncookies_2", "The kernel's SYN cookies, always (net.ipv4.tcp_syncookies = 2)."),
    ("synproxy", "synproxy of nftables before a kernel server."),
    ("oracle_deny", "tcpguard that is told which network the flood comes from, and drops it unseen."),
    (
        "oracle_reflect",
        "tcpguard behind a program that knows the flood and sends it back: the way back of an answer, and nothing of its making.",
    ),
    ("xdp_drop", "An XDP program that drops every frame: the generator's ceiling, and the floor of cost."),
    (
        "xdp_tx",
        "An XDP program that swaps addresses and sends every frame back: the least that an answer costs.",
    ),
    (
        "xdp_synproxy",
        "The kernel's sample xdp_synproxy: XDP with the kernel's own cookies and connection tracking. Nobody serves behind it here.",
    ),
    ("xdpcookie", "An independent XDP program with cookies, highpps/xdpcookie."),
    ("haproxy", "HAProxy on the same link as tcpguard."),
    (
        "haproxy_offload",
        "HAProxy on a link of its own, with the segmentation offload that a veth loses with XDP.",
    ),
    ("direct", "The server with nothing before it."),
];

/// When and where it was measured, and how that is to be read.
pub(super) fn measured(reports: &[Value]) -> String {
    let days: BTreeSet<&str> = reports.iter().map(day).collect();
    format!(
        "Measured {} on {}{}. Contestants take turns in every round, and every ratio is of figures of one round. Generator, link, \
         guard, server and clients share the machine: ratios say more than rates.",
        Vec::from_iter(days).join(" and "),
        machines(reports),
        version(reports)
    )
}

/// Of which sources, if they were the same for all.
fn version(reports: &[Value]) -> String {
    let of = |report: &Value| report["machine"]["software"]["tcpguard"].as_str().map(ToOwned::to_owned);
    let versions: BTreeSet<_> = reports.iter().map(of).collect();
    match Vec::from_iter(versions).as_slice() {
        [Some(version)] => format!(", tcpguard {version}"),
        _ => String::new(),
    }
}

pub(super) fn day(report: &Value) -> &str {
    string(report, "measured").split('T').next().unwrap_or_default()
}

/// Which programs the names in a suite's command stand for, to put after it; nothing where there are none, or nobody asked.
pub(super) fn peers(report: &Value) -> String {
    let tags = report["peers"].as_object().into_iter().flatten();
    let tags: Vec<_> = tags.map(|(name, tag)| format!("{name} {}", plain(tag))).collect();
    if tags.is_empty() { String::new() } else { format!(", by the kernel's tag: {}", tags.join(", ")) }
}

/// Where it was measured: the machine, or each with the suites that it measured.
fn machines(reports: &[Value]) -> String {
    let of = |report: &Value| {
        let machine = &report["machine"];
        let (cpu, cores, kernel) =
            (string(machine, "cpu"), plain(&machine["cores"]), string(machine, "kernel"));
        (cpu.to_owned(), format!("{cores} cores, kernel {kernel}"))
    };
    let mut machines: Vec<_> = reports.iter().map(of).collect();
    let mut seen = BTreeSet::new();
    machines.retain(|machine| seen.insert(machine.clone()));
    let alone = machines.len() == 1;
    let says = machines.iter().map(|machine| {
        let suites =
            reports.iter().filter(|report| of(report) == *machine).map(|report| string(report, "suite"));
        let suites = if alone { String::new() } else { format!(": {}", Vec::from_iter(suites).join(", ")) };
        format!("{} ({}{suites})", machine.0, machine.1)
    });
    says.collect::<Vec<_>>().join(" and on ")
}

/// What was done, what came of it where all had a proxy, and how many targets are met: three sentences at most.
pub(super) fn opening(reports: &[Value]) -> Vec<String> {
    let mut sentences = Vec::new();
    let goodput = rows(reports, "goodput");
    if !goodput.is_empty() {
        sentences.push(
            "Real clients ask a web server for pages while a flood of spoofed SYNs grows, behind tcpguard, behind the kernel's own \
             defences and behind none."
                .to_owned(),
        );
        sentences.extend(topologies(goodput).first().and_then(|topology| outcome(goodput, topology)));
    }
    let claims = claims(reports);
    if !claims.is_empty() {
        let count = |verdict| claims.iter().filter(|claim| claim.verdict() == verdict).count();
        let (missed, open) = (count(Verdict::Missed), count(Verdict::Open));
        let open = if open == 0 { String::new() } else { format!(" and {open} not measured") };
        sentences.push(format!(
            "Of {} targets {} are met, {missed} are missed{open}.",
            claims.len(),
            count(Verdict::Met)
        ));
    }
    sentences
}

/// Who served how many in the hardest flood of which all have figures.
fn outcome(goodput: &[Value], topology: &str) -> Option<String> {
    let asked = hardest(goodput, topology)?;
    let idle = provenance::idle(goodput);
    let figure = |who: &str| {
        let row = goodput.iter().find(|row| {
            row["topology"] == topology
                && row["name"] == "short_conn"
                && row["contestant"] == who
                && number(row, "asked_pps") == asked
        })?;
        let figure = number(row, "median");
        figure.is_finite().then_some(figure)
    };
    let own = figure("tcpguard")?;
    let counts = |who: &&str| {
        let idle = idle.iter().any(|(where_, idle)| where_ == topology && idle == who);
        *who != "tcpguard" && !who.starts_with("oracle") && !idle
    };
    let others = distinct(goodput, "contestant").into_iter().filter(counts);
    let others: Vec<_> = others
        .filter_map(|who| {
            let name = if who == "none" { "no defence" } else { who };
            Some(format!("{:.0} behind {name}", figure(who)?))
        })
        .collect();
    let set_up = match topology {
        "proxied" => "with HAProxy, or tcpguard's relay, before nginx",
        _ => "with tcpguard's responder, or nginx",
    };
    let beside = if others.is_empty() { String::new() } else { format!(", {}", others.join(", ")) };
    Some(format!(
        "With {} SYNs a second asked for, the hardest flood of which all have figures, {own:.0} requests a second are served behind \
         tcpguard{beside} ({set_up}; how much of it each takes stands below).",
        short(asked)
    ))
}

#[cfg(test)]
mod tests {
    use super::super::tests::reports;
    use super::*;
    use serde_json::json;

    #[test]
    fn suites_of_other_machines_are_not_taken_for_one_machines() {
        let mut reports = reports();
        reports[1]["machine"]["cpu"] = json!("B");
        reports[1]["measured"] = json!("2026-02-03T00:00:00Z");
        let says = "Measured 2026-01-02 and 2026-02-03 on A<B (2 cores, kernel 6.18: goodput, scale, stack, control) and on B (2 \
                    cores, kernel 6.18: flood), tcpguard 0.1.0 abc. ";
        assert!(measured(&reports).starts_with(says), "{}", measured(&reports));
    }

    #[test]
    fn the_opening_is_three_sentences_about_the_proxied_topology() {
        let row = |topology: &str, who: &str, asked: u64, median: f64| {
            json!({"name": "short_conn", "contestant": who, "topology": topology, "asked_pps": asked, "median": median,
                "rounds": 5, "discarded": 0})
        };
        let mut rows = Vec::new();
        for (topology, factor) in [("direct", 2.0), ("proxied", 1.0)] {
            for (who, calm) in
                [("tcpguard", 9000.0), ("syncookies", 8000.0), ("none", 7000.0), ("synproxy", 10.0)]
            {
                rows.push(row(topology, who, 0, calm * factor));
                rows.push(row(topology, who, 500_000, calm * factor / 2.0));
            }
            rows.push(row(topology, "oracle_deny", 500_000, 9.0));
        }
        let told = opening(&[json!({"suite": "goodput", "rows": rows})]);
        assert_eq!(told.len(), 3, "{told:?}");
        // Whoever hardly serves without a flood has no part in it, nor has an oracle.
        assert_eq!(
            told[1],
            "With 500k SYNs a second asked for, the hardest flood of which all have figures, 4500 requests a second are served \
             behind tcpguard, 4000 behind syncookies, 3500 behind no defence (with HAProxy, or tcpguard's relay, before nginx; how \
             much of it each takes stands below)."
        );
    }
}
