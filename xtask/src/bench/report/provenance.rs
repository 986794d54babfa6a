//! Whether reports may be read as one measurement: made of one commit's sources, on one machine, in full, behind defences that
//! serve while nothing happens, and every suite of it measured. What stands against that is said on the page and in the summary,
//! before any figure.

use std::collections::BTreeMap;

use serde_json::Value;

use super::words::day;
use super::{distinct, number, rows, string};
use crate::bench::figures::{median, sorted};

/// What the host may take of the processors' time, as a share, before it is told.
const STOLEN: f64 = 0.02;

/// Sentences, none if nothing stands against it.
pub(super) fn doubts(reports: &[Value]) -> Vec<String> {
    let mut doubts: Vec<_> = reports.iter().filter_map(failure).collect();
    let measured: Vec<_> = reports.iter().filter(|report| has_figures(report)).collect();
    let commits = by(&measured, commit);
    let dirty = || commits.iter().filter(|(commit, _)| commit.ends_with("-dirty"));
    for (commit, suites) in dirty() {
        doubts.push(format!("Measured of sources that no commit has ({commit}): {}.", suites.join(", ")));
    }
    if let Some(suites) = commits.get("") {
        doubts.push(format!("Nobody knows of which commit: {}.", suites.join(", ")));
    }
    if commits.len() > 1 {
        doubts.push(format!("Measured of different commits: {}.", listed(&commits)));
    }
    let machines = by(&measured, machine);
    if machines.len() > 1 {
        doubts.push(format!("Measured on different machines: {}.", listed(&machines)));
    }
    let quick = |report: &&&Value| string(report, "command").split(' ').any(|word| word == "--quick");
    let quick: Vec<_> = measured.iter().filter(quick).map(|report| string(report, "suite")).collect();
    if !quick.is_empty() {
        doubts.push(format!("A few short rounds (--quick): {}.", quick.join(", ")));
    }
    let stolen: Vec<_> =
        measured.iter().filter_map(|report| Some((report["stolen"].as_f64()?, report))).collect();
    if stolen.iter().any(|(share, _)| *share > STOLEN) {
        let told: Vec<_> = stolen
            .iter()
            .map(|(share, report)| format!("{:.1} % ({})", share * 100.0, string(report, "suite")))
            .collect();
        doubts.push(format!(
            "Of the processors' time, the host of this virtual machine took {}.",
            told.join(", ")
        ));
    }
    doubts.extend(idle(rows(reports, "goodput")).into_iter().map(|(topology, who)| {
        format!(
            "goodput, {topology}: without a flood {who} serves less than half of what the others do. Its figures are about how \
             it is set up, not about floods."
        )
    }));
    doubts
}

/// Whether a report is about more than that its suite failed.
pub(super) fn has_figures(report: &Value) -> bool {
    report["failed"].is_null() || report["rows"].as_array().is_some_and(|rows| !rows.is_empty())
}

/// That a suite failed, with what else there is of it.
fn failure(report: &Value) -> Option<String> {
    // Of an error that quotes what it was given: a list has lines of its own.
    let why = report["failed"].as_str()?.split_whitespace().collect::<Vec<_>>().join(" ");
    let (suite, day) = (string(report, "suite"), day(report));
    let held = match has_figures(report) {
        true => format!("Its figures are older ones, of {day}."),
        false => "There are no figures of it.".to_owned(),
    };
    Some(format!("FAILED: {suite}. {held} It says: {why}"))
}

/// The defences that serve less than half of the median even in the calm, with the topology: they are not measured, but how they
/// were set up.
pub(super) fn idle(goodput: &[Value]) -> Vec<(String, String)> {
    let mut idle = Vec::new();
    for topology in distinct(goodput, "topology") {
        let calm = goodput.iter().filter(|row| {
            row["topology"] == topology && row["name"] == "short_conn" && row["asked_pps"] == 0
        });
        let middle = median(&sorted(calm.clone().map(|row| number(row, "median"))));
        let slow = calm.filter(|row| number(row, "median") < middle / 2.0);
        idle.extend(slow.map(|row| (topology.to_owned(), string(row, "contestant").to_owned())));
    }
    idle
}

/// The commit of the sources, `-dirty` after it where they were changed; empty if it is not known.
fn commit(report: &Value) -> String {
    let version = report["machine"]["software"]["tcpguard"].as_str().unwrap_or_default();
    version.split_once(' ').map_or_else(String::new, |(_, commit)| commit.to_owned())
}

fn machine(report: &Value) -> String {
    let machine = &report["machine"];
    format!("{}, kernel {}", string(machine, "cpu"), string(machine, "kernel"))
}

/// Suites by what is said of them.
fn by(reports: &[&Value], of: fn(&Value) -> String) -> BTreeMap<String, Vec<String>> {
    let mut suites: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for report in reports {
        suites.entry(of(report)).or_default().push(string(report, "suite").to_owned());
    }
    suites
}

fn listed(suites: &BTreeMap<String, Vec<String>>) -> String {
    let name = |of: &str| if of.is_empty() { "an unknown one".to_owned() } else { of.to_owned() };
    let each = suites.iter().map(|(of, suites)| format!("{} ({})", name(of), suites.join(", ")));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(suite: &str, cpu: &str, tcpguard: &str) -> Value {
        json!({"suite": suite, "command": "cargo xtask bench", "rows": [],
            "machine": {"cpu": cpu, "kernel": "6.18", "software": {"tcpguard": tcpguard}}})
    }

    #[test]
    fn one_clean_commit_on_one_machine_is_above_doubt() {
        let reports = ["flood", "scale"].map(|suite| report(suite, "A", "0.1.0 abc"));
        assert_eq!(doubts(&reports), [""; 0]);
    }

    #[test]
    fn sources_that_no_commit_has_other_commits_and_other_machines_are_told() {
        let reports = [
            report("flood", "A", "0.1.0 abc-dirty"),
            report("scale", "B", "0.1.0 abc"),
            report("stack", "B", "0.1.0"),
        ];
        assert_eq!(
            doubts(&reports),
            [
                "Measured of sources that no commit has (abc-dirty): flood.",
                "Nobody knows of which commit: stack.",
                "Measured of different commits: an unknown one (stack); abc (scale); abc-dirty (flood).",
                "Measured on different machines: A, kernel 6.18 (flood); B, kernel 6.18 (scale, stack).",
            ]
        );
    }

    #[test]
    fn a_few_short_rounds_are_told() {
        let mut quick = report("flood", "A", "0.1.0 abc");
        quick["command"] = json!("cargo xtask bench flood --quick");
        assert_eq!(doubts(&[quick]), ["A few short rounds (--quick): flood."]);
    }

    #[test]
    fn a_suite_that_failed_is_told_first_and_nothing_else_is_said_of_it_if_it_has_no_figures() {
        let mut failed = report("flood", "B", "0.1.0 def-dirty");
        (failed["measured"], failed["failed"]) = (json!("2026-01-02T03:04:05Z"), json!("no link:\n  eth0"));
        (failed["command"], failed["stolen"]) = (json!("cargo xtask bench --quick"), json!(0.5));
        let measured = report("scale", "A", "0.1.0 abc");
        assert_eq!(
            doubts(&[measured.clone(), failed.clone()]),
            ["FAILED: flood. There are no figures of it. It says: no link: eth0"]
        );
        failed["rows"] = json!([{"median": 1}]);
        let told = doubts(&[measured, failed]);
        assert_eq!(
            told[0],
            "FAILED: flood. Its figures are older ones, of 2026-01-02. It says: no link: eth0"
        );
        assert!(told.contains(&"A few short rounds (--quick): flood.".to_owned()), "{told:?}");
    }

    #[test]
    fn time_that_the_host_took_is_told_of_all_suites_once_it_is_much_of_one() {
        let of = |suite, stolen: f64| {
            let mut report = report(suite, "A", "0.1.0 abc");
            report["stolen"] = json!(stolen);
            report
        };
        assert_eq!(doubts(&[of("flood", 0.019), of("stack", 0.0)]), [""; 0]);
        assert_eq!(
            doubts(&[of("flood", 0.0512), of("stack", 0.004), report("scale", "A", "0.1.0 abc")]),
            ["Of the processors' time, the host of this virtual machine took 5.1 % (flood), 0.4 % (stack)."]
        );
    }

    #[test]
    fn a_defence_that_hardly_serves_without_a_flood_is_told() {
        let row = |who: &str, median: f64| json!({"name": "short_conn", "contestant": who, "topology": "direct", "asked_pps": 0, "median": median});
        let mut goodput = report("goodput", "A", "0.1.0 abc");
        goodput["rows"] = json!([row("tcpguard", 100.0), row("synproxy", 40.0), row("none", 90.0)]);
        let told = doubts(&[goodput]);
        assert!(
            told.len() == 1 && told[0].contains("without a flood synproxy serves less than half"),
            "{told:?}"
        );
    }
}
