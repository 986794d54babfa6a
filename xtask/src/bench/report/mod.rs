//! The page: what all suites measured, as plots and as tables with every figure, in one file that needs nothing else. Made of
//! the same JSON that is written for machines, so that a page can be made of figures that were measured before. It measures
//! nothing.

mod claims;
mod plot;
mod summary;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

use claims::{Claim, Verdict};
use plot::{Bars, Lines, Point, Scale, Series, escape, short};

/// What one plot is called in files, what it says in words, and what it shows.
struct Plot {
    name: String,
    says: &'static str,
    svg: String,
}

/// Writes the page into `dir`, and beside it each plot (`NAME.svg`), the main tables (`summary.md`) and all figures
/// (`figures.json`).
pub fn write(dir: &Path, reports: &[Value]) -> Result<()> {
    let put = |name: &str, content: String| {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))
    };
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let reports = latest(reports);
    for plot in plots(&reports) {
        put(&format!("{}.svg", plot.name), plot.svg)?;
    }
    put("index.html", page(&reports))?;
    put("summary.md", summary::markdown(&reports))?;
    put("figures.json", serde_json::to_string_pretty(&reports)? + "\n")
}

/// The last report of each suite, its command without what only the machine knows that it was given on.
fn latest(reports: &[Value]) -> Vec<Value> {
    let again = |at: usize| reports[at + 1..].iter().any(|other| other["suite"] == reports[at]["suite"]);
    let plain = |at: usize| {
        let mut report = reports[at].clone();
        if let Some(command) = report["command"].as_str() {
            report["command"] = anywhere(command).into();
        }
        report
    };
    (0..reports.len()).filter(|&at| !again(at)).map(plain).collect()
}

/// A command without the files that it reads and writes figures in, and with those of peers but not their directories.
fn anywhere(command: &str) -> String {
    let (mut kept, mut words) = (Vec::new(), command.split(' '));
    while let Some(word) = words.next() {
        if ["--json", "--report", "--from"].contains(&word) {
            words.next();
            continue;
        }
        let (name, path) = word.split_once('=').map_or(("", word), |(name, path)| (name, path));
        let file = path.rsplit('/').next().unwrap_or_default();
        kept.push(if name.is_empty() { file.to_owned() } else { format!("{name}={file}") });
    }
    kept.join(" ")
}

/// The rows of a suite.
fn rows<'a>(reports: &'a [Value], suite: &str) -> &'a [Value] {
    let report = reports.iter().find(|report| report["suite"] == suite);
    report.and_then(|report| report["rows"].as_array()).map_or(&[], Vec::as_slice)
}

fn string<'a>(row: &'a Value, key: &str) -> &'a str {
    row[key].as_str().unwrap_or_default()
}

fn number(row: &Value, key: &str) -> f64 {
    row[key].as_f64().unwrap_or(f64::NAN)
}

/// The values of a column, each once, in the order in which they come.
fn distinct<'a>(rows: &'a [Value], key: &str) -> Vec<&'a str> {
    let mut seen = BTreeSet::new();
    rows.iter().map(|row| string(row, key)).filter(|value| seen.insert(*value)).collect()
}

fn plots(reports: &[Value]) -> Vec<Plot> {
    let mut plots = Vec::new();
    plots.extend(goodput(rows(reports, "goodput")));
    plots.extend(flood(rows(reports, "flood")));
    plots.extend(program(rows(reports, "program")));
    plots.extend(proxy(rows(reports, "proxy")));
    plots.extend(stack(rows(reports, "stack")));
    plots.extend(scale(rows(reports, "scale")));
    plots
}

/// What clients get, and how long they wait, against the flood.
fn goodput(rows: &[Value]) -> Vec<Plot> {
    const KINDS: [(&str, &str); 2] =
        [("short_conn", "a connection for each request"), ("keepalive", "requests on 64 connections")];
    let mut plots = Vec::new();
    for topology in distinct(rows, "topology") {
        for (name, kind) in KINDS {
            let of: Vec<_> = rows
                .iter()
                .filter(|row| row["topology"] == topology && row["name"] == name)
                .cloned()
                .collect();
            let lines = |key: &str, spread: bool| -> Vec<Series> {
                let series = |who: &str| Series {
                    name: who.to_owned(),
                    points: of
                        .iter()
                        .filter(|row| row["contestant"] == who)
                        .map(|row| Point {
                            x: number(row, "asked_pps"),
                            y: number(row, key),
                            spread: if spread {
                                (number(row, "min"), number(row, "max"))
                            } else {
                                (f64::NAN, f64::NAN)
                            },
                        })
                        .collect(),
                };
                distinct(&of, "contestant").into_iter().map(series).collect()
            };
            let x = ("flood, frames a second", Scale::Linear);
            plots.push(Plot {
                name: format!("goodput-{topology}-{name}"),
                says: "Requests a second that clients get: median of the rounds that count, with the least and the most. The flood is \
                       what the generator was told to make; the kernel's defences take a part of it (delivered_pps in the \
                       table).",
                svg: Lines {
                    title: format!("Goodput under a SYN flood, {topology}: {kind}"),
                    x,
                    y: ("requests/s", Scale::Linear),
                    series: lines("median", true),
                }
                .svg(),
            });
            // Who is served nobody has no latency.
            let mut waits = lines("p99_us", false);
            for series in &mut waits {
                series.points.retain(|point| point.y > 0.0);
            }
            plots.push(Plot {
                name: format!("latency-{topology}-{name}"),
                says: "How long 99 in 100 of the requests took at most.",
                svg: Lines {
                    title: format!("p99 latency, {topology}: {kind}"),
                    x,
                    y: ("us", Scale::Log),
                    series: waits,
                }
                .svg(),
            });
        }
    }
    plots
}

/// How many right answers come back, and what a frame costs.
fn flood(rows: &[Value]) -> Vec<Plot> {
    if rows.is_empty() {
        return Vec::new();
    }
    let full: Vec<_> = rows.iter().filter(|row| row["asked_pps"] == 0).cloned().collect();
    let group = |flood: &str| {
        let of = || full.iter().filter(|row| row["name"] == flood);
        let bars = of().map(|row| (string(row, "contestant").to_owned(), number(row, "median"))).collect();
        (format!("{flood}, {}", of().next().map_or("", |row| string(row, "unit"))), bars)
    };
    let groups = distinct(&full, "name").into_iter().map(group).collect();
    // At rates that were taken whole: other rows have no such figure.
    let mut costs: Vec<(String, Vec<_>)> = Vec::new();
    for row in rows.iter().filter(|row| row["cpu_ns"].is_number()) {
        let name = format!("{}, {} a second", string(row, "name"), short(number(row, "asked_pps")));
        let bar = (string(row, "contestant").to_owned(), number(row, "cpu_ns"));
        match costs.iter_mut().find(|(group, _)| *group == name) {
            Some((_, bars)) => bars.push(bar),
            None => costs.push((name, vec![bar])),
        }
    }
    vec![
        Plot {
            name: "flood-rate".to_owned(),
            says: "What comes of a flood as fast as the machine makes frames: answers found right at the far end, handshakes \
                   that a botnet completed, or frames taken. xdp_tx only swaps addresses, xdp_drop does nothing. The \
                   kernel's synproxy drops nearly every SYN over IPv6: it takes their checksums for IPv4's, where no driver \
                   has verified them.",
            svg: Bars { title: "A flood at full rate".to_owned(), unit: "a second", groups }.svg(),
        },
        Plot {
            name: "flood-cost".to_owned(),
            says: "CPU time of the guarded host for each frame, from the driver's queue to that of the other end, at rates that \
                   were taken whole. xdp_drop is the floor.",
            svg: Bars { title: "What a frame costs the guarded host".to_owned(), unit: "ns", groups: costs }
                .svg(),
        },
    ]
}

/// What the program costs.
fn program(rows: &[Value]) -> Vec<Plot> {
    if rows.is_empty() {
        return Vec::new();
    }
    let measured = rows.iter().filter(|row| row["contestant"] != "null");
    let bars = |cold: bool| {
        let of = measured.clone().filter(|row| string(row, "name").ends_with("_cold") == cold);
        let name = |row: &Value| match string(row, "contestant") {
            "tcpguard" => format!("tcpguard/{}", string(row, "name")),
            _ => string(row, "name").to_owned(),
        };
        of.map(|row| (name(row), number(row, "over_null"))).collect()
    };
    let groups = vec![
        ("Tables in the cache".to_owned(), bars(false)),
        ("Beside a million flows".to_owned(), bars(true)),
    ];
    vec![Plot {
        name: "program".to_owned(),
        says: "The XDP program by itself, without a driver, over a program that does nothing with the same frames.",
        svg: Bars { title: "What the XDP program takes for a packet".to_owned(), unit: "ns", groups }.svg(),
    }]
}

/// The relay beside HAProxy.
fn proxy(rows: &[Value]) -> Vec<Plot> {
    if rows.is_empty() {
        return Vec::new();
    }
    let group = |work: &str| {
        let of: Vec<_> = rows.iter().filter(|row| row["name"] == work).collect();
        let unit = of.first().map_or("", |row| string(row, "unit"));
        let bars = of.iter().map(|row| (string(row, "contestant").to_owned(), number(row, "of_haproxy")));
        (format!("{work}, {unit}"), bars.collect())
    };
    let groups = distinct(rows, "name").into_iter().map(group).collect();
    vec![Plot {
        name: "proxy".to_owned(),
        says: "The relay without a flood: ratios to HAProxy on the same kind of link, of the same round. Of `first_byte` less \
               is better.",
        svg: Bars { title: "The relay, as a ratio to HAProxy".to_owned(), unit: "HAProxy = 1", groups }.svg(),
    }]
}

/// What a segment takes beside so many connections.
fn stack(rows: &[Value]) -> Option<Plot> {
    const KINDS: [&str; 3] = ["segment_data", "segment_ack", "open_close"];
    let point = |row: &Value, kind: &str| {
        let many = string(row, "name").strip_prefix(kind)?.strip_prefix('_')?;
        let x = [("m", 1e6), ("k", 1e3)]
            .into_iter()
            .find_map(|(size, times)| Some(many.strip_suffix(size)?.parse::<f64>().ok()? * times))?;
        Some(Point { x, y: number(row, "median"), spread: (number(row, "min"), number(row, "max")) })
    };
    let series = KINDS.map(|kind| Series {
        name: kind.to_owned(),
        points: rows.iter().filter_map(|row| point(row, kind)).collect(),
    });
    let series: Vec<_> = series.into_iter().filter(|series| !series.points.is_empty()).collect();
    (!series.is_empty()).then(|| Plot {
        name: "stack-segment".to_owned(),
        says: "The stack by itself, in bursts: a full segment with its acknowledgement, an acknowledgement, and each segment of a \
               short connection. Median of all runs, with the least and the most.",
        svg: Lines {
            title: "What a segment costs the stack, against connections".to_owned(),
            x: ("connections", Scale::Log),
            y: ("ns", Scale::Linear),
            series,
        }
        .svg(),
    })
}

/// What grows with connections, TIME_WAITs, services and filters.
fn scale(rows: &[Value]) -> Vec<Plot> {
    let lines = |names: &[&str]| -> Vec<Series> {
        let series = |name: &&str| Series {
            name: (*name).to_owned(),
            points: rows
                .iter()
                .filter(|row| row["name"] == **name)
                .map(|row| Point {
                    // A list without entries stands where it can be seen.
                    x: number(row, "n").max(1.0),
                    y: number(row, "median"),
                    spread: (number(row, "min"), number(row, "max")),
                })
                .collect(),
        };
        names.iter().map(series).filter(|series| !series.points.is_empty()).collect()
    };
    let plots: [(&str, &str, &str, &str, &[&str]); 5] = [
        (
            "scale-memory",
            "Memory against connections held",
            "bytes",
            "Of the whole process, of what it took for itself since it started, and of XDP's maps, which are made in full.",
            &["bytes_process", "bytes_anon", "bytes_maps", "bytes_process_time_wait"],
        ),
        (
            "scale-segment",
            "What a segment costs the daemon, against connections",
            "ns",
            "CPU time of the daemon for each segment in or out, of random connections.",
            &["segment"],
        ),
        (
            "scale-time",
            "Time to list and to expire",
            "ms",
            "Until `tcpguard flows` has listed them, 1 048 576 at most, and until the last TIME_WAIT is gone once its time is over.",
            &["list", "list_time_wait", "expire_time_wait"],
        ),
        (
            "scale-services",
            "What a packet costs, against services and queues",
            "ns",
            "The XDP program by itself, over a program that does nothing.",
            &["services_syn", "services_ack", "queues_syn", "queues_ack"],
        ),
        (
            "scale-filters",
            "What a packet costs, against prefixes on the filter lists",
            "ns",
            "Likewise: sources that are denied, that are on no list, and that are near listed ones.",
            &["filters_deny", "filters_none", "filters_near"],
        ),
    ];
    let plots =
        plots.into_iter().map(|(name, title, unit, says, names)| (name, title, unit, says, lines(names)));
    plots
        .filter(|(.., series)| !series.is_empty())
        .map(|(name, title, unit, says, series)| {
            let memory = unit == "bytes";
            let y = (unit, if memory || unit == "ms" { Scale::Log } else { Scale::Linear });
            let lines = Lines { title: title.to_owned(), x: ("how many", Scale::Log), y, series };
            Plot { name: name.to_owned(), says, svg: lines.svg() }
        })
        .collect()
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

/// The page.
fn page(reports: &[Value]) -> String {
    let mut out = String::from(HEAD);
    out += "<header><h1>tcpguard, measured</h1>\n";
    if !reports.is_empty() {
        let _ = writeln!(
            out,
            "<p>On {}. Contestants take turns in every round; every ratio is one of figures of the same round. Generator, link, \
             guard, server and clients share the machine: ratios say more than rates.</p>",
            escape(&machines(reports)),
        );
    }
    out += "</header>\n<nav><a href=\"#targets\">targets</a> ";
    for report in reports {
        let suite = escape(string(report, "suite"));
        let _ = write!(out, "<a href=\"#{suite}\">{suite}</a> ");
    }
    out += "<a href=\"#machine\">machine and versions</a></nav>\n<main>\n";
    out += &targets(&claims::claims(reports));
    for Plot { name, says, svg } in plots(reports) {
        let _ = writeln!(
            out,
            "<figure id=\"plot-{name}\">{svg}<figcaption>{}</figcaption></figure>",
            escape(says)
        );
    }
    for report in reports {
        let suite = escape(string(report, "suite"));
        let _ = writeln!(
            out,
            "<section id=\"{suite}\"><h2>{suite}</h2><p>Measured {} by <code>{}</code></p>",
            escape(string(report, "measured")),
            escape(string(report, "command"))
        );
        out += &table(report["rows"].as_array().map_or(&[], Vec::as_slice));
        out += "</section>\n";
    }
    out += "<section id=\"machine\"><h2>Machine and versions</h2>\n";
    for report in reports {
        let machine = &report["machine"];
        let _ = write!(out, "<h3>{}</h3><dl>", escape(string(report, "suite")));
        for (key, value) in machine.as_object().into_iter().flatten().filter(|(key, _)| *key != "software") {
            let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(key), escape(&plain(value)));
        }
        for (key, value) in machine["software"].as_object().into_iter().flatten() {
            let _ = write!(out, "<dt>{}</dt><dd>{}</dd>", escape(key), escape(&plain(value)));
        }
        out += "</dl>\n";
    }
    out + "</section>\n</main></body></html>\n"
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
            "<tr><td>{says}</td><td class=\"n\">{measured}</td><td class=\"n\">{target}</td><td class=\"{class}\">{word}</td></tr>"
        );
    }
    out + "</tbody></table></div></section>\n"
}

/// Every figure of a suite: a column for each key of any of its rows.
fn table(rows: &[Value]) -> String {
    let mut columns: Vec<&str> = Vec::new();
    for key in rows.iter().filter_map(Value::as_object).flat_map(|row| row.keys()) {
        if !columns.contains(&key.as_str()) {
            columns.push(key);
        }
    }
    // What it is before what it came to.
    const FIRST: [&str; 9] =
        ["name", "contestant", "topology", "n", "asked_pps", "unit", "median", "min", "max"];
    columns.sort_by_key(|column| FIRST.iter().position(|first| first == column).unwrap_or(FIRST.len()));
    let mut out = String::from("<div class=\"table\"><table><thead><tr>");
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

/// A value as a table shows it: with as many digits as mean something.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "–".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() && float.abs() < 10.0 => format!("{float:.2}"),
            Some(float) if number.is_f64() && float.abs() < 1000.0 => format!("{float:.1}"),
            Some(float) => format!("{float:.0}"),
            None => number.to_string(),
        },
        other => other.to_string(),
    }
}

const HEAD: &str = r##"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>tcpguard, measured</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
body { font: 15px/1.5 system-ui, sans-serif; color: #212529; background: #f1f3f5; margin: 0 }
header, nav, main { max-width: 1500px; margin: 0 auto; padding: 0 20px }
header p { max-width: 90ch; color: #495057 }
h1 { margin: 28px 0 4px } h2 { margin: 0 0 4px } h3 { margin: 12px 0 4px }
nav { padding-bottom: 12px } nav a { margin-right: 14px; color: #0a58ca }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(600px, 100%), 1fr)); gap: 18px; align-items: start }
figure, section { background: #fff; border: 1px solid #dee2e6; border-radius: 6px; margin: 0; padding: 10px 12px }
figcaption, section p { color: #495057; font-size: 13px; margin: 4px 6px }
section { grid-column: 1 / -1; padding: 16px }
.table { overflow-x: auto } table { border-collapse: collapse; font-size: 13px }
th, td { padding: 3px 10px; text-align: left; white-space: nowrap; border-bottom: 1px solid #e9ecef }
thead th { background: #f8f9fa } td.n { text-align: right; font-variant-numeric: tabular-nums }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 16px; margin: 0; font-size: 13px } dt { color: #495057 } dd { margin: 0 }
svg { width: 100%; height: auto; display: block }
.met { color: #2b8a3e } .missed { color: #c92a2a; font-weight: 600 } .open { color: #868e96 }
</style></head><body>
"##;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn reports() -> Vec<Value> {
        let machine = json!({"cpu": "A<B", "cores": 2, "kernel": "6.18", "memory": 8u64 << 30, "software": {"rustc": "1.95"}});
        let report = |suite: &str, rows: Value| json!({"suite": suite, "version": 1, "measured": "2026-01-02T03:04:05Z", "command": "cargo xtask bench", "machine": machine, "rows": rows});
        let goodput = |who: &str, asked: u64, of: Option<f64>| {
            json!({"name": "short_conn", "contestant": who, "topology": "direct", "unit": "requests/s", "median": 30_000.5,
                "min": 29_000.0, "max": 31_000.0, "asked_pps": asked, "delivered_pps": asked, "failed": 0, "p99_us": 900.0, "of_deny": of})
        };
        vec![
            report("goodput", json!([goodput("tcpguard", 0, Some(1.0)), goodput("tcpguard", 9_000, None)])),
            report(
                "flood",
                json!([{"name": "syn_v4", "contestant": "tcpguard", "unit": "answers/s", "median": 1e6, "cpu_ns": 250.0, "asked_pps": 0}]),
            ),
            report(
                "scale",
                json!([{"name": "bytes_anon", "contestant": "tcpguard", "unit": "bytes", "n": 1000, "median": 1e6, "min": 1e6, "max": 1e6}]),
            ),
            report(
                "stack",
                json!([{"name": "segment_ack_1m", "contestant": "tcpguard", "unit": "ns", "median": 250.0, "min": 240.0, "max": 290.0}]),
            ),
            report(
                "control",
                json!([{"name": "stats", "contestant": "tcpguard", "unit": "us", "median": 3.25}]),
            ),
        ]
    }

    #[test]
    fn the_page_has_every_figure_and_needs_nothing_else() {
        let page = page(&reports());
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
    fn of_a_suite_that_was_measured_again_the_last_report_counts() {
        let report = |suite: &str, number: u32| json!({"suite": suite, "number": number});
        let reports = [report("flood", 1), report("scale", 2), report("flood", 3)];
        assert_eq!(latest(&reports), [report("scale", 2), report("flood", 3)]);
        assert!(latest(&[]).is_empty());
    }

    #[test]
    fn a_command_is_shown_as_anybody_could_type_it() {
        let typed = "cargo xtask bench flood --quick --xdp-synproxy /home/me/kern.o --json /tmp/x.json --peer a=/sys/b";
        assert_eq!(anywhere(typed), "cargo xtask bench flood --quick --xdp-synproxy kern.o --peer a=b");
    }

    #[test]
    fn a_suite_that_is_not_there_has_no_plots() {
        let names: Vec<_> = plots(&reports()).into_iter().map(|plot| plot.name).collect();
        assert_eq!(
            names,
            [
                "goodput-direct-short_conn",
                "latency-direct-short_conn",
                "goodput-direct-keepalive",
                "latency-direct-keepalive",
                "flood-rate",
                "flood-cost",
                "stack-segment",
                "scale-memory"
            ]
        );
    }
}
