//! What a stranger reads first, as Markdown for documents beside which the plots lie: what each defence made of a flood, then
//! which targets are met, then by which commands it was measured. Every other figure is on the page.

use std::fmt::Write as _;

use serde_json::Value;

use super::claims::{Claim, Verdict, claims};
use super::plot::short;
use super::words::{day, measured, opening, peers};
use super::{distinct, hardest, number, plain, provenance, rows, string, topologies};

/// All of it.
pub(super) fn markdown(reports: &[Value]) -> String {
    let mut out = String::new();
    if !reports.is_empty() {
        let _ = writeln!(out, "{}\n", measured(reports));
        let _ = writeln!(out, "{}\n", opening(reports).join(" "));
    }
    let doubts = provenance::doubts(reports);
    if !doubts.is_empty() {
        out += "> **Doubts about these figures**\n>\n";
        for doubt in doubts {
            let _ = writeln!(out, "> - {doubt}");
        }
        out.push('\n');
    }
    goodput(&mut out, rows(reports, "goodput"));
    program(&mut out, rows(reports, "program"));
    flood(&mut out, rows(reports, "flood"));
    scale(&mut out, rows(reports, "scale"));
    targets(&mut out, &claims(reports));
    proxy(&mut out, rows(reports, "proxy"));
    out += "Measured by:\n\n";
    for report in reports {
        let of = report["machine"]["software"]["tcpguard"].as_str().unwrap_or("an unknown version");
        let (suite, command) = (string(report, "suite"), string(report, "command"));
        let failed = if provenance::has_figures(report) { "" } else { " (failed)" };
        let _ =
            writeln!(out, "- {suite}{failed}, {}, tcpguard {of}: `{command}`{}", day(report), peers(report));
    }
    out
}

/// A number as a table shows it.
fn cell(value: f64, text: impl FnOnce(f64) -> String) -> String {
    if value.is_finite() { text(value) } else { "–".to_owned() }
}

fn targets(out: &mut String, claims: &[Claim]) {
    if claims.is_empty() {
        return;
    }
    *out += "| | measured | target | |\n|---|---|---|---|\n";
    for claim in claims {
        let stress = if claim.verdict() == Verdict::Missed { "**" } else { "" };
        let verdict = format!("{stress}{}{stress}", claim.word());
        let _ = writeln!(out, "| {} | {} | {} | {verdict} |", claim.says, claim.measured(), claim.target());
    }
    *out += "\nOf all rates of a flood the worst counts. An oracle is the same guard that need not judge the flood, because it is told \
             where it comes from, or because another program sends it back before.\n\n";
}

/// What clients got in the hardest flood that all had alike.
fn goodput(out: &mut String, of: &[Value]) {
    for topology in topologies(of) {
        let short_conn = of.iter().filter(|row| row["topology"] == topology && row["name"] == "short_conn");
        let most = hardest(of, topology).unwrap_or_default();
        let set_up = match topology {
            "proxied" => "Proxied: nginx behind HAProxy, or behind tcpguard's relay.",
            _ => "Direct: tcpguard answers by its built-in responder, and the others by nginx.",
        };
        let _ = writeln!(
            out,
            "{set_up}\n\n![requests a second against the flood, {topology}](goodput-{topology}-short_conn.svg)\n\n\
             | {topology}, requests/s, each on a connection of its own | calm | {} frames/s asked for | frames/s taken | of the \
             oracle that denies | of the one that reflects | failed | p99 |\n|---|---|---|---|---|---|---|---|",
            short(most)
        );
        for who in distinct(of, "contestant") {
            let mut rows = short_conn.clone().filter(|row| row["contestant"] == who);
            let Some(calm) = rows.clone().find(|row| row["asked_pps"] == 0) else { continue };
            let Some(hard) = rows.find(|row| number(row, "asked_pps") == most) else { continue };
            let _ = writeln!(
                out,
                "| {who} | {} | {} | {} | {} | {} | {} | {} |",
                cell(number(calm, "median"), |rate| format!("{rate:.0}")),
                cell(number(hard, "median"), |rate| format!("{rate:.0}")),
                cell(number(hard, "delivered_pps"), short),
                cell(number(hard, "of_deny"), |ratio| format!("{ratio:.2}")),
                cell(number(hard, "of_reflect"), |ratio| format!("{ratio:.2}")),
                failed(hard),
                cell(number(hard, "p99_us"), |micros| format!("{:.1} ms", micros / 1000.0)),
            );
        }
        let full = short_conn.filter(|row| row["full_rate"] == true).map(|row| {
            format!(
                "{} {:.0} (took {}, failed {})",
                string(row, "contestant"),
                number(row, "median"),
                short(number(row, "delivered_pps")),
                failed(row)
            )
        });
        let full: Vec<_> = full.collect();
        if !full.is_empty() {
            let _ = write!(
                out,
                "\nAs hard as the generator makes it, each takes what it can, and nothing is compared. Requests/s: {}.\n",
                full.join(", ")
            );
        }
        out.push('\n');
    }
}

/// How many of how many; nothing where it is not known of how many, for then nobody looked for those without an answer.
fn failed(row: &Value) -> String {
    match &row["attempts"] {
        Value::Null => "–".to_owned(),
        attempts => format!("{} of {}", plain(&row["failed"]), plain(attempts)),
    }
}

/// What came of floods as fast as the machine makes them.
fn flood(out: &mut String, of: &[Value]) {
    if of.is_empty() {
        return;
    }
    let contestants = distinct(of, "contestant");
    let _ = writeln!(
        out,
        "![right answers in a flood](flood-answers.svg)\n\n| a second, at full rate | {} |",
        contestants.join(" | ")
    );
    let _ = writeln!(out, "|---|{}", "---|".repeat(contestants.len()));
    for name in distinct(of, "name") {
        let row = |who: &str| {
            let mut rows = of.iter().filter(|row| row["name"] == name && row["asked_pps"] == 0);
            rows.find(|row| row["contestant"] == who)
        };
        let figure = |who: &&str| row(who).map_or_else(String::new, |row| cell(number(row, "median"), short));
        let figures: Vec<_> = contestants.iter().map(figure).collect();
        let unit = contestants.iter().find_map(|who| row(who)).map_or("", |row| string(row, "unit"));
        let what = match unit {
            "answers/s" => "right answers",
            "handshakes/s" => "handshakes completed",
            _ => "frames taken",
        };
        let _ = writeln!(out, "| `{name}`, {what} | {} |", figures.join(" | "));
    }
    let clients = |who: &&str| {
        let own = of.iter().filter(|row| row["contestant"] == **who && row["asked_pps"] == 0);
        let sum = |key: &str| own.clone().filter_map(|row| row[key].as_u64()).sum::<u64>();
        if sum("tried") == 0 { String::new() } else { format!("{} of {}", sum("connected"), sum("tried")) }
    };
    let clients: Vec<_> = contestants.iter().map(clients).collect();
    let _ = writeln!(out, "| real clients connected meanwhile | {} |", clients.join(" | "));
    if of.iter().any(|row| row["cpu_over_drop_ns"].is_number()) {
        *out += "\n![CPU time of the guarded host for a frame](flood-cost.svg)\n";
    }
    out.push('\n');
}

/// What the program takes for the packets that peers were measured with, too.
fn program(out: &mut String, of: &[Value]) {
    let peers: Vec<_> =
        distinct(of, "contestant").into_iter().filter(|who| !["tcpguard", "null"].contains(who)).collect();
    if of.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "![what the XDP program takes for a packet](program-hot.svg)\n\n| nanoseconds a packet over the null | tcpguard |{}",
        peers.iter().map(|peer| format!(" {peer} |")).collect::<String>()
    );
    let _ = writeln!(out, "|---|---|{}", "---|".repeat(peers.len()));
    for name in ["syn_v4_ts", "syn_v6_ts", "ack_invalid_v4", "ack_invalid_v6", "flow_hit_v4", "flow_hit_v6"] {
        let over = |name: &str| {
            let row = of.iter().find(|row| row["name"] == name);
            row.map_or_else(String::new, |row| cell(number(row, "over_null"), |ns| format!("{ns:.0}")))
        };
        let figures: Vec<_> =
            peers.iter().map(|peer| format!(" {} |", over(&format!("{peer}/{name}")))).collect();
        let _ = writeln!(out, "| `{name}` | {} |{}", over(name), figures.concat());
    }
    out.push('\n');
}

/// The relay beside HAProxy.
fn proxy(out: &mut String, of: &[Value]) {
    if of.is_empty() {
        return;
    }
    *out += "![the relay beside HAProxy](proxy.svg)\n\n| relay, no flood | tcpguard | HAProxy | of HAProxy | of no relay | HAProxy, \
             its link with segmentation offload |\n|---|---|---|---|---|---|\n";
    for name in distinct(of, "name") {
        let row = |who: &str| of.iter().find(|row| row["name"] == name && row["contestant"] == who);
        let (Some(own), Some(haproxy)) = (row("tcpguard"), row("haproxy")) else { continue };
        let offload = row("haproxy_offload").unwrap_or(&Value::Null);
        let figure = |row: &Value| {
            cell(number(row, "median"), |figure| format!("{} {}", short(figure), string(row, "unit")))
        };
        let ratio = |key: &str| cell(number(own, key), |ratio| format!("{ratio:.2}"));
        let _ = writeln!(
            out,
            "| `{name}` | {} | {} | {} | {} | {} |",
            figure(own),
            figure(haproxy),
            ratio("of_haproxy"),
            ratio("of_direct"),
            figure(offload)
        );
    }
    out.push('\n');
}

fn scale(out: &mut String, of: &[Value]) {
    if !of.is_empty() {
        *out += "![memory against connections](scale-memory.svg)\n\n![cost of a segment against connections](scale-segment.svg)\n\n";
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::reports;
    use super::*;
    use serde_json::json;

    #[test]
    fn the_summary_says_when_and_where_and_what_came_of_the_hardest_flood() {
        let summary = markdown(&reports());
        assert!(
            summary.starts_with("Measured 2026-01-02 on A<B (2 cores, kernel 6.18), tcpguard 0.1.0 abc. "),
            "{summary}"
        );
        assert!(
            summary.contains("| tcpguard | 30000 | 30000 | 9k | – | – | 0 of 600 | 0.9 ms |"),
            "{summary}"
        );
        assert!(summary.contains("| `syn_v4`, right answers | 1M |"), "{summary}");
        assert!(
            summary.ends_with("- control, 2026-01-02, tcpguard 0.1.0 abc: `cargo xtask bench`\n"),
            "{summary}"
        );
    }

    #[test]
    fn a_command_that_names_peers_is_followed_by_which_programs_they_were() {
        let mut reports = reports();
        reports[4]["peers"] = json!({"a": "0123456789abcdef", "b": "00000000000000ff"});
        let told = "`cargo xtask bench`, by the kernel's tag: a 0123456789abcdef, b 00000000000000ff\n";
        assert!(markdown(&reports).ends_with(told), "{}", markdown(&reports));
    }

    #[test]
    fn a_suite_that_failed_is_not_among_those_that_were_measured() {
        let mut reports = reports();
        (reports[4]["failed"], reports[4]["rows"]) = (json!("no socket"), json!([]));
        let summary = markdown(&reports);
        assert!(
            summary.contains("> - FAILED: control. There are no figures of it. It says: no socket\n"),
            "{summary}"
        );
        assert!(summary.contains("\n- control (failed), 2026-01-02, "), "{summary}");
    }

    #[test]
    fn the_hardest_flood_of_the_table_is_one_that_all_had() {
        let mut reports = reports();
        let rows = reports[0]["rows"].as_array_mut().unwrap();
        let mut unlike = rows[1].clone();
        (unlike["asked_pps"], unlike["median"]) = (json!(20_000), Value::Null);
        rows.push(unlike);
        let summary = markdown(&reports);
        assert!(summary.contains("| calm | 9k frames/s asked for |"), "{summary}");
        assert!(summary.contains("| tcpguard | 30000 | 30000 | 9k |"), "{summary}");
    }

    #[test]
    fn a_flood_at_full_rate_is_told_and_neither_compared_nor_held_against_a_target() {
        let mut reports = reports();
        let before = markdown(&reports);
        let rows = reports[0]["rows"].as_array_mut().unwrap();
        let mut full = rows[1].clone();
        (full["asked_pps"], full["full_rate"], full["failed"]) = (json!(1_400_000), json!(true), json!(7));
        rows.push(full);
        let summary = markdown(&reports);
        assert!(summary.contains("Requests/s: tcpguard 30000 (took 9k, failed 7 of 600).\n"), "{summary}");
        let others = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
        };
        assert_eq!(others(&summary), others(&before));
    }

    #[test]
    fn the_summary_names_the_targets_that_are_not_met() {
        let row = |name: &str, over: f64| json!({"name": name, "contestant": "tcpguard", "over_null": over});
        let rows = json!([row("syn_v4_ts", 129.0), row("ack_invalid_v4", 40.0)]);
        let summary = markdown(&[json!({"suite": "program", "rows": rows})]);
        assert!(summary.contains("Of 4 targets 1 are met, 1 are missed and 2 not measured.\n"), "{summary}");
        assert!(summary.contains("| 129 ns | at most 60 ns | **not met** |"), "{summary}");
        assert!(summary.contains("| 40 ns | at most 45 ns | met |"), "{summary}");
        assert!(summary.contains("| – | at most 30 ns | not measured |"), "{summary}");
        assert!(summary.contains("| `syn_v4_ts` | 129 |\n"), "{summary}");
    }
}
