//! The page: a few sentences, plots, targets, then every figure, in one file that needs nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde_json::Value;

use super::claims::{Claim, Verdict, claims};
use super::plot::escape;
use super::plots::{Chapter, Plot, chapters, further};
use super::{distinct, plain, provenance, rows, string, words};

/// All of it.
pub(super) fn html(reports: &[Value]) -> String {
    let mut out = String::from(HEAD);
    let (chapters, further) = (chapters(reports), further(reports));
    header(&mut out, reports);
    let heads = chapters.iter().map(|chapter| (chapter.id, chapter.title));
    let suites = reports.iter().map(|report| (string(report, "suite"), string(report, "suite")));
    let fixed = [("targets", "targets"), (further.id, "more")].into_iter();
    out += "<nav>";
    for (id, title) in
        heads.chain(fixed).chain(suites).chain([("words", "who is who"), ("machine", "machine and versions")])
    {
        let _ = write!(out, "<a href=\"#{}\">{}</a> ", escape(id), escape(title));
    }
    out += "</nav>\n<main>\n";
    for chapter in &chapters {
        put(&mut out, chapter);
    }
    out += &targets(&claims(reports));
    put(&mut out, &further);
    for report in reports {
        let suite = escape(string(report, "suite"));
        let _ = writeln!(
            out,
            "<section id=\"{suite}\"><h2>{suite}</h2><p>{} {}{} by <code>{}</code>{}</p>",
            if provenance::has_figures(report) { "Measured until" } else { "Failed at" },
            escape(string(report, "measured")),
            report["seconds"]
                .as_u64()
                .map_or_else(String::new, |seconds| format!(", {} min", seconds.div_ceil(60))),
            escape(string(report, "command")),
            escape(&words::peers(report))
        );
        out += &table(report["rows"].as_array().map_or(&[], Vec::as_slice));
        out += "</section>\n";
    }
    glossary(&mut out, reports);
    machines(&mut out, reports);
    out + "</main></body></html>\n"
}

/// When and where, the sentences, and what stands against them.
fn header(out: &mut String, reports: &[Value]) {
    *out += "<header><h1>tcpguard, measured</h1>\n";
    if !reports.is_empty() {
        let _ = writeln!(out, "<p class=\"when\">{}</p>", escape(&words::measured(reports)));
        let _ = writeln!(out, "<p>{}</p>", escape(&words::opening(reports).join(" ")));
    }
    let doubts = provenance::doubts(reports);
    if !doubts.is_empty() {
        *out += "<div class=\"doubts\" role=\"alert\"><strong>Doubts about these figures</strong><ul>\n";
        for doubt in doubts {
            let _ = writeln!(out, "<li>{}</li>", escape(&doubt));
        }
        *out += "</ul></div>\n";
    }
    *out += "</header>\n";
}

fn put(out: &mut String, Chapter { id, title, plots }: &Chapter) {
    if plots.is_empty() {
        return;
    }
    let _ = writeln!(out, "<h2 id=\"{id}\">{}</h2>", escape(title));
    for Plot { name, says, svg } in plots {
        let says = escape(says);
        let _ = writeln!(
            out,
            "<figure id=\"plot-{name}\"><div class=\"plot\">{svg}</div><figcaption>{says}</figcaption></figure>"
        );
    }
}

/// What the figures are held against; nothing if none of it was measured.
fn targets(claims: &[Claim]) -> String {
    if claims.is_empty() {
        return String::new();
    }
    let mut out = String::from(
        "<section id=\"targets\"><h2>Targets</h2><div class=\"table\"><table><thead><tr><th></th><th>measured</th><th>target</th>\
         <th></th></tr></thead><tbody>\n",
    );
    for claim in claims {
        let class = match claim.verdict() {
            Verdict::Met => "met",
            Verdict::Missed => "missed",
            Verdict::Open => "open",
        };
        let word = claim.word();
        let [says, measured, target] = [claim.says.as_str(), &claim.measured(), &claim.target()].map(escape);
        let _ = writeln!(
            out,
            "<tr><td class=\"says\">{says}</td><td class=\"n\">{measured}</td><td class=\"n\">{target}</td><td class=\"{class}\">{word}</td></tr>"
        );
    }
    out + "</tbody></table></div></section>\n"
}

/// Every figure of a suite: a column for each key of any of its rows, but for those of single rounds.
fn table(rows: &[Value]) -> String {
    const ROUNDS: &str = "samples";
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if key != ROUNDS && !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    // What it is before what it came to.
    const FIRST: [&str; 9] =
        ["name", "contestant", "topology", "n", "asked_pps", "unit", "median", "min", "max"];
    columns.sort_by_key(|column| FIRST.iter().position(|first| first == column).unwrap_or(FIRST.len()));
    let mut out = String::new();
    if rows.iter().any(|row| row[ROUNDS].is_array()) {
        out += "<p>What every round came to: <code>samples</code> in figures.json.</p>";
    }
    out += "<div class=\"table\"><table><thead><tr>";
    for column in &columns {
        let _ = write!(out, "<th>{}</th>", escape(column));
    }
    out += "</tr></thead><tbody>\n";
    for row in rows {
        out += "<tr>";
        for column in &columns {
            let class = if row[*column].is_number() { " class=\"n\"" } else { "" };
            let _ = write!(out, "<td{class}>{}</td>", escape(&plain(&row[*column])));
        }
        out += "</tr>\n";
    }
    out + "</tbody></table></div>\n"
}

/// Who stands behind a name, of those that were measured.
fn glossary(out: &mut String, reports: &[Value]) {
    let measured: BTreeSet<_> = reports
        .iter()
        .flat_map(|report| distinct(rows(reports, string(report, "suite")), "contestant"))
        .collect();
    *out += "<section id=\"words\"><h2>Who is who</h2><dl>\n";
    for (who, what) in words::CONTESTANTS.iter().filter(|(who, _)| measured.contains(who)) {
        let _ = writeln!(out, "<dt><code>{}</code></dt><dd>{}</dd>", escape(who), escape(what));
    }
    *out += "</dl></section>\n";
}

/// What every suite was measured on: once where it is the same.
fn machines(out: &mut String, reports: &[Value]) {
    *out += "<section id=\"machine\"><h2>Machine and versions</h2>\n";
    let mut machines: Vec<(&Value, Vec<&str>)> = Vec::new();
    for report in reports {
        let (machine, suite) = (&report["machine"], string(report, "suite"));
        match machines.iter_mut().find(|(known, _)| *known == machine) {
            Some((_, suites)) => suites.push(suite),
            None => machines.push((machine, vec![suite])),
        }
    }
    for (machine, suites) in machines {
        let _ = write!(out, "<h3>{}</h3><dl>", escape(&suites.join(", ")));
        let own = machine.as_object().into_iter().flatten().filter(|(key, _)| *key != "software");
        let software = machine["software"].as_object().into_iter().flatten();
        for (key, value) in own.chain(software) {
            let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(key), escape(&plain(value)));
        }
        *out += "</dl>\n";
    }
    *out += "</section>\n";
}

const HEAD: &str = r##"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tcpguard, measured</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #f1f3f5; margin: 0 }
header, nav, main { max-width: 1500px; margin: 0 auto; padding: 0 20px }
header p { max-width: 90ch; margin: 6px 0 } header .when { color: #495057; font-size: 13px }
h1 { margin: 28px 0 4px } h2 { margin: 0 0 4px } h3 { margin: 12px 0 4px }
main > h2 { grid-column: 1 / -1; margin: 18px 0 -6px }
nav { padding-top: 6px; padding-bottom: 12px } nav a { margin-right: 14px; color: #0a58ca; display: inline-block }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(600px, 100%), 1fr)); gap: 18px; align-items: start }
figure, section { background: #fff; border: 1px solid #dee2e6; border-radius: 6px; margin: 0; padding: 10px 12px; min-width: 0 }
figcaption, section p { color: #495057; font-size: 13px; margin: 4px 6px }
section { grid-column: 1 / -1; padding: 16px }
.doubts { background: #fff4e6; border: 2px solid #d9480f; border-radius: 6px; padding: 10px 14px; margin: 10px 0; max-width: 90ch }
.doubts ul { margin: 4px 0; padding-left: 20px }
.plot, .table { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: 3px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid #e9ecef } td.says { white-space: normal }
thead th { background: #f8f9fa } td.n { text-align: right; font-variant-numeric: tabular-nums }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; font-size: 13px } dt { color: #495057 } dd { margin: 0; overflow-wrap: anywhere }
svg { width: 100%; min-width: 540px; height: auto; display: block }
.met { color: #2b8a3e } .missed { color: #c92a2a; font-weight: 600 } .open { color: #868e96 }
</style></head><body>
"##;

#[cfg(test)]
mod tests {
    use super::super::tests::reports;
    use super::*;
    use serde_json::json;

    #[test]
    fn the_page_has_every_figure_and_needs_nothing_else() {
        let page = html(&reports());
        for needed in [
            "A&lt;B",
            "6.18",
            "2026-01-02T03:04:05Z",
            "cargo xtask bench",
            "30000",
            "3.25",
            "<svg",
            "id=\"control\"",
        ] {
            assert!(page.contains(needed), "{needed}");
        }
        for foreign in ["<script", "<link", "<img", "@import", "url("] {
            assert!(!page.contains(foreign), "{foreign}");
        }
        assert_eq!(page.matches("http").count(), page.matches("http://www.w3.org/2000/svg").count());
    }

    #[test]
    fn a_stranger_reads_sentences_then_plots_then_targets_then_figures() {
        let page = html(&reports());
        let places = [
            "class=\"when\">Measured 2026-01-02",
            "plot-goodput-",
            "plot-flood-",
            "plot-scale-",
            "<section id=\"targets\"",
            "plot-latency-",
            "<section id=\"goodput\"",
        ]
        .map(|what| page.find(what).unwrap_or_else(|| panic!("no {what}")));
        assert!(places.is_sorted(), "{places:?}");
    }

    #[test]
    fn what_stands_against_the_figures_comes_before_them() {
        let mut reports = reports();
        assert!(!html(&reports).contains("role=\"alert\""));
        reports[1]["machine"]["software"]["tcpguard"] = json!("0.1.0 abc-dirty");
        let page = html(&reports);
        assert!(page.find("abc-dirty").unwrap() < page.find("<svg").unwrap());
        assert!(page.contains("role=\"alert\""));
    }

    #[test]
    fn figures_of_single_rounds_are_left_to_the_json() {
        let table = table(&[json!({"name": "x", "median": 2.0, "samples": [1.25, 3.5]})]);
        assert!(table.contains("figures.json") && !table.contains("1.25"), "{table}");
    }
}
