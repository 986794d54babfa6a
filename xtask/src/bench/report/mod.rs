//! What is published: the page, its plots and its tables, made of the same JSON that is written for machines, so that a page can
//! be made of figures that were measured before. It measures nothing.

mod claims;
mod page;
mod plot;
mod plots;
mod provenance;
mod summary;
mod words;

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The figures, as the page's tables leave them out: of every round.
const FIGURES: &str = "figures.json";

/// Writes the page into `dir`, and beside it each plot (`NAME.svg`), the main tables (`summary.md`) and all figures
/// (`figures.json`), in place of those of a report that lay there before. What stands against reading it as one measurement is
/// written at the top of page and summary, and returned.
pub fn write(dir: &Path, reports: &[Value]) -> Result<Vec<String>> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let reports = latest(reports);
    let files = files(&reports)?;
    for (name, content) in &files {
        let path = dir.join(name);
        fs::write(&path, content).with_context(|| format!("writing {}", path.display()))?;
    }
    for plot in plots::NAMES.map(|name| format!("{name}.svg")) {
        if files.iter().all(|(name, _)| *name != plot) {
            remove(&dir.join(plot))?;
        }
    }
    Ok(provenance::doubts(&reports))
}

/// A plot of a report that lay here before, if there is one: beside this report it would pass for this one's.
fn remove(plot: &Path) -> Result<()> {
    match fs::remove_file(plot) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", plot.display()))
        }
        _ => Ok(()),
    }
}

/// Names and contents of all files.
fn files(reports: &[Value]) -> Result<Vec<(String, String)>> {
    let further = plots::further(reports);
    let plots = plots::chapters(reports).into_iter().chain([further]).flat_map(|chapter| chapter.plots);
    let mut files: Vec<_> = plots.map(|plot| (format!("{}.svg", plot.name), plot.svg)).collect();
    files.push(("index.html".to_owned(), page::html(reports)));
    files.push(("summary.md".to_owned(), summary::markdown(reports)));
    files.push((FIGURES.to_owned(), serde_json::to_string_pretty(reports)? + "\n"));
    Ok(files)
}

/// The last report of each suite, its command without what only the machine knows that it was given on. A suite that failed
/// since keeps the figures from before, and has the failure told.
fn latest(reports: &[Value]) -> Vec<Value> {
    let same = |at: usize| move |other: &&Value| other["suite"] == reports[at]["suite"];
    let again = |at: usize| reports[at + 1..].iter().any(|other| same(at)(&other));
    let plain = |at: usize| {
        let last = &reports[at];
        let mut held = reports[..=at].iter().filter(same(at));
        let mut report = held.rfind(|report| provenance::has_figures(report)).unwrap_or(last).clone();
        if let Some(why) = last.get("failed") {
            report["failed"] = why.clone();
        }
        if let Some(command) = report["command"].as_str() {
            report["command"] = anywhere(command).into();
        }
        if report["suite"] == "program" {
            name_sample(&mut report);
        }
        report
    };
    (0..reports.len()).filter(|&at| !again(at)).map(plain).collect()
}

/// Everywhere else `synproxy` is nftables'. Of `program` it was once a name for the kernel's XDP sample.
fn name_sample(program: &mut Value) {
    for row in
        program["rows"].as_array_mut().into_iter().flatten().filter(|row| row["contestant"] == "synproxy")
    {
        row["contestant"] = "xdp_synproxy".into();
        row["name"] = format!("xdp_{}", string(row, "name")).into();
    }
    let command = string(program, "command").replace("--peer synproxy=", "--peer xdp_synproxy=");
    program["command"] = command.into();
    if let Some(peers) = program.get_mut("peers").and_then(Value::as_object_mut)
        && let Some(tag) = peers.remove("synproxy")
    {
        peers.insert("xdp_synproxy".to_owned(), tag);
    }
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

/// The topologies of `goodput`, the one first in which every contestant has a proxy before the same server.
fn topologies(goodput: &[Value]) -> Vec<&str> {
    let mut topologies = distinct(goodput, "topology");
    topologies.sort_by_key(|topology| *topology != "proxied");
    topologies
}

/// Whether enough rounds count of a row of `goodput`: as it says itself, else as many as there are of a row that needed no
/// further ones. Where rounds were not written down, all count.
fn counts(goodput: &[Value], row: &Value) -> bool {
    if let Some(enough) = row["enough"].as_bool() {
        return enough;
    }
    let alike = goodput.iter().filter(|other| ["topology", "name"].iter().all(|key| other[key] == row[key]));
    let enough = alike.map(|other| number(other, "rounds")).fold(f64::INFINITY, f64::min);
    let counting = number(row, "rounds") - number(row, "discarded");
    counting.is_nan() || counting >= enough
}

/// The hardest flood of short connections, frames a second, of which all contestants have figures; else the hardest. Not the one
/// at full rate, of which each takes what it can.
fn hardest(goodput: &[Value], topology: &str) -> Option<f64> {
    let of = || {
        let alike = goodput.iter().filter(|row| row["full_rate"] != true);
        alike.filter(|row| row["topology"] == topology && row["name"] == "short_conn")
    };
    let asked = |row: &Value| number(row, "asked_pps");
    let lacks = |row: &Value| !number(row, "median").is_finite() || !counts(goodput, row);
    let lacking = |step: f64| of().any(|row| asked(row) == step && lacks(row));
    let whole = of().map(asked).filter(|step| !lacking(*step)).reduce(f64::max);
    whole.or_else(|| of().map(asked).reduce(f64::max))
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    pub(super) fn reports() -> Vec<Value> {
        let machine = json!({"cpu": "A<B", "cores": 2, "kernel": "6.18", "memory": 8u64 << 30, "software": {"rustc": "1.95", "tcpguard": "0.1.0 abc"}});
        let report = |suite: &str, rows: Value| json!({"suite": suite, "version": 1, "measured": "2026-01-02T03:04:05Z", "command": "cargo xtask bench", "machine": machine, "rows": rows});
        let goodput = |who: &str, asked: u64, of: Option<f64>| {
            json!({"name": "short_conn", "contestant": who, "topology": "direct", "unit": "requests/s", "median": 30_000.5,
                "min": 29_000.0, "max": 31_000.0, "asked_pps": asked, "delivered_pps": asked, "attempts": 600, "failed": 0, "p99_us": 900.0, "of_deny": of})
        };
        vec![
            report("goodput", json!([goodput("tcpguard", 0, Some(1.0)), goodput("tcpguard", 9_000, None)])),
            report(
                "flood",
                json!([{"name": "syn_v4", "contestant": "tcpguard", "unit": "answers/s", "median": 1e6, "cpu_ns": 250.0, "asked_pps": 0}]),
            ),
            report(
                "scale",
                json!([{"name": "bytes_stack", "contestant": "tcpguard", "unit": "bytes", "n": 1000, "median": 1e6, "min": 1e6, "max": 1e6}]),
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
    fn of_a_suite_that_was_measured_again_the_last_report_counts() {
        let report = |suite: &str, number: u32| json!({"suite": suite, "number": number});
        let reports = [report("flood", 1), report("scale", 2), report("flood", 3)];
        assert_eq!(latest(&reports), [report("scale", 2), report("flood", 3)]);
        assert!(latest(&[]).is_empty());
    }

    #[test]
    fn a_suite_that_failed_since_keeps_its_figures_until_it_is_measured_again() {
        let report =
            |suite: &str, number: u32| json!({"suite": suite, "number": number, "rows": [{"median": 1}]});
        let failed = |suite: &str| json!({"suite": suite, "failed": "no link", "rows": []});
        let held = json!({"suite": "flood", "number": 1, "failed": "no link", "rows": [{"median": 1}]});
        let told = latest(&[report("flood", 1), failed("scale"), failed("flood")]);
        assert_eq!(told, [failed("scale"), held.clone()]);
        let again = |second| latest(&[held.clone(), second]);
        assert_eq!(
            (again(failed("flood")), again(report("flood", 2))),
            (vec![held.clone()], vec![report("flood", 2)])
        );
    }

    #[test]
    fn plots_of_the_report_before_go_and_what_is_not_of_a_report_stays() {
        let dir = std::env::temp_dir().join(format!("tcpguard-report-{}", std::process::id()));
        write(&dir, &reports()).unwrap();
        fs::write(dir.join("mine.svg"), "").unwrap();
        let there = |name: &str| dir.join(name).exists();
        assert!(there("goodput-direct-short_conn.svg") && there("flood-answers.svg"));
        write(&dir, &reports()[1..]).unwrap();
        let left = ["goodput-direct-short_conn.svg", "flood-answers.svg", "mine.svg"].map(there);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(left, [false, true, true]);
    }

    #[test]
    fn a_command_is_shown_as_anybody_could_type_it() {
        let typed = "cargo xtask bench flood --quick --xdp-synproxy /home/me/kern.o --json /tmp/x.json --peer a=/sys/b";
        assert_eq!(anywhere(typed), "cargo xtask bench flood --quick --xdp-synproxy kern.o --peer a=b");
    }

    #[test]
    fn the_kernels_sample_is_called_the_same_everywhere() {
        let row = |name: &str, who: &str| json!({"name": name, "contestant": who});
        let report = json!({"suite": "program", "command": "x --peer synproxy=a --peer xdpcookie=b",
            "peers": {"synproxy": "1", "xdpcookie": "2"}, "rows": [row("synproxy/syn_v4_ts", "synproxy"), row("xdpcookie/syn_v4_ts", "xdpcookie")]});
        let [told] = &latest(&[report])[..] else { panic!("one report") };
        assert_eq!(told["command"], "x --peer xdp_synproxy=a --peer xdpcookie=b");
        assert_eq!(told["peers"], json!({"xdp_synproxy": "1", "xdpcookie": "2"}));
        assert_eq!(told["rows"][0], row("xdp_synproxy/syn_v4_ts", "xdp_synproxy"));
        assert_eq!(told["rows"][1], row("xdpcookie/syn_v4_ts", "xdpcookie"));
    }

    #[test]
    fn the_readme_says_of_the_published_figures_when_where_and_what() {
        let text = |name: &str| fs::read_to_string(crate::build::workspace().join(name)).unwrap();
        let (readme, summary) = (text("README.md").replace('\n', " "), text("docs/bench/summary.md"));
        let (measured, _) = summary.split_once(". Contestants").expect("when and where");
        assert!(readme.contains(measured), "README.md lacks: {measured}");
        let table = summary
            .lines()
            .skip_while(|line| !line.starts_with("| proxied"))
            .take_while(|line| line.starts_with('|'));
        for line in table {
            assert!(readme.contains(line), "README.md lacks: {line}");
        }
    }

    #[test]
    fn what_is_published_is_what_this_makes_of_the_figures_beside_it() {
        let dir = crate::build::workspace().join("docs/bench");
        let text = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
        let reports: Vec<Value> = serde_json::from_str(&text(FIGURES)).unwrap();
        let files = files(&latest(&reports)).unwrap();
        let stale: Vec<_> =
            files.iter().filter(|(name, made)| text(name) != *made).map(|(name, _)| name).collect();
        assert!(
            stale.is_empty(),
            "{stale:?} are not what `cargo xtask bench --from docs/bench/{FIGURES} --report docs/bench` makes"
        );
        let known = |name: &str| name.strip_suffix(".svg").is_none_or(|plot| plots::NAMES.contains(&plot));
        assert!(files.iter().all(|(name, _)| known(name)), "a plot that nobody would remove again");
        let names: BTreeSet<_> = files.into_iter().map(|(name, _)| name).collect();
        let there = fs::read_dir(&dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
        assert_eq!(there.collect::<BTreeSet<_>>(), names);
    }
}
