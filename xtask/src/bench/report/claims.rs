//! What the figures are held against: a line for each target, with what was measured of it and whether that is enough. It shows
//! what is missed as plainly as what is met, and says so where a target was not measured.

use serde_json::Value;

use super::{counts, number, rows, topologies};

const MILLION: u64 = 1_000_000;

/// One target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Claim {
    /// What is measured, in words.
    pub(super) says: String,
    unit: Unit,
    bound: Bound,
    /// Nothing if it was not measured.
    measured: Option<f64>,
    /// Steps of a flood of which nothing could be said.
    open: usize,
}

/// What came of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Met,
    Missed,
    /// Not measured, or not at every step, and not missed where it was.
    Open,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unit {
    Nanoseconds,
    Bytes,
    /// Of two figures of one round.
    Ratio,
    /// Of a whole, of which hardly anything may be missing.
    Share,
    Count,
}

impl Unit {
    fn text(self, value: f64) -> String {
        match self {
            Self::Nanoseconds => format!("{value:.0} ns"),
            Self::Bytes => format!("{value:.0} bytes"),
            Self::Ratio => format!("{value:.2}"),
            Self::Share => format!("{value:.4}"),
            Self::Count => format!("{value:.0}"),
        }
    }
}

impl Claim {
    fn new(says: impl Into<String>, unit: Unit, bound: Bound, measured: Option<f64>) -> Self {
        let measured = measured.filter(|measured| measured.is_finite());
        Self { says: says.into(), unit, bound, measured, open: 0 }
    }

    pub(super) fn verdict(&self) -> Verdict {
        let Some(measured) = self.measured else { return Verdict::Open };
        let holds = match self.bound {
            Bound::AtMost(most) => measured <= most,
            Bound::AtLeast(least) => measured >= least,
        };
        match (holds, self.open) {
            (false, _) => Verdict::Missed,
            (true, 0) => Verdict::Met,
            (true, _) => Verdict::Open,
        }
    }

    /// What came of it, in words.
    pub(super) fn word(&self) -> &'static str {
        match self.verdict() {
            Verdict::Met => "met",
            Verdict::Missed => "not met",
            Verdict::Open => "not measured",
        }
    }

    /// The target as one reads it.
    pub(super) fn target(&self) -> String {
        match self.bound {
            Bound::AtMost(0.0) => "none".to_owned(),
            Bound::AtMost(most) => format!("at most {}", self.unit.text(most)),
            Bound::AtLeast(least) => format!("at least {}", self.unit.text(least)),
        }
    }

    /// What was measured, as one reads it.
    pub(super) fn measured(&self) -> String {
        let Some(measured) = self.measured else { return "–".to_owned() };
        let figure = self.unit.text(measured);
        match self.open {
            0 => figure,
            1 => format!("{figure}, without one step"),
            open => format!("{figure}, without {open} steps"),
        }
    }
}

/// Every target whose suite is among the reports.
pub(super) fn claims(reports: &[Value]) -> Vec<Claim> {
    /// The claims about a suite's rows.
    type Judge = fn(&[Value]) -> Vec<Claim>;
    let suites: [(&str, Judge); 6] = [
        ("program", program),
        ("flood", flood),
        ("goodput", goodput),
        ("proxy", proxy),
        ("stack", stack),
        ("control", control),
    ];
    let measured = suites.into_iter().map(|(suite, claims)| (rows(reports, suite), claims));
    measured.filter(|(rows, _)| !rows.is_empty()).flat_map(|(rows, claims)| claims(rows)).collect()
}

/// The row of that name that tcpguard has.
fn own<'a>(rows: &'a [Value], name: &str) -> Option<&'a Value> {
    rows.iter().find(|row| row["name"] == name && row["contestant"] == "tcpguard")
}

/// A column of a row, if it has a number there.
fn cell(row: Option<&Value>, key: &str) -> Option<f64> {
    row?[key].as_f64()
}

/// What the XDP program costs a packet.
fn program(rows: &[Value]) -> Vec<Claim> {
    use Bound::{AtLeast, AtMost};
    let over = |name: &str| cell(own(rows, name), "over_null");
    let redirect = cell(rows.iter().find(|row| row["name"] == "null_redirect"), "over_null");
    let hit = over("flow_hit_v4").zip(redirect).map(|(hit, redirect)| hit - redirect);
    let peer = rows.iter().find(|row| row["name"] == "xdp_synproxy/syn_v4_ts");
    // Of reports without ratios inside rounds, that of the medians.
    let of_medians = || Some(cell(peer, "over_null")? / over("syn_v4_ts")?);
    let times = cell(peer, "of_tcpguard").or_else(of_medians);
    let cost = |what: &str, most: f64, measured| {
        let says = format!("{what}: cost to the XDP program, over one that does nothing");
        Claim::new(says, Unit::Nanoseconds, AtMost(most), measured)
    };
    vec![
        cost("A SYN that is answered with a cookie", 60.0, over("syn_v4_ts")),
        Claim::new(
            "A SYN answered by the kernel's xdp_synproxy: cost, of tcpguard's",
            Unit::Ratio,
            AtLeast(3.0),
            times,
        ),
        cost("A bad ACK", 45.0, over("ack_invalid_v4")),
        cost("A segment of a known flow, before it is redirected", 30.0, hit),
    ]
}

/// What comes back in a flood.
fn flood(rows: &[Value]) -> Vec<Claim> {
    let full: Vec<_> = rows.iter().filter(|row| row["asked_pps"] == 0).cloned().collect();
    let mut claims = Vec::new();
    for (name, family) in [("syn_v4", "IPv4"), ("syn_v6", "IPv6")] {
        let row = own(&full, name);
        let of_medians = || Some(cell(row, "median")? / cell(row, "delivered_pps")?);
        let answered = cell(row, "answered").or_else(of_medians);
        // More than all of them says that they were not counted right.
        let answered = answered.filter(|share| *share < 1.001);
        let says = format!("SYNs answered in a full flood over {family}, but for what the driver drops");
        claims.push(Claim::new(says, Unit::Share, Bound::AtLeast(0.9999), answered));
        let says = format!(
            "Right answers in a full flood over {family}, of what a program sends back that does nothing else"
        );
        claims.push(Claim::new(says, Unit::Ratio, Bound::AtLeast(0.85), cell(row, "of_xdp_tx")));
    }
    claims
}

/// What real clients get while a flood grows: the worst step counts.
fn goodput(rows: &[Value]) -> Vec<Claim> {
    let mut claims = Vec::new();
    for topology in topologies(rows) {
        let steps: Vec<_> = rows
            .iter()
            .filter(|row| row["contestant"] == "tcpguard" && row["name"] == "short_conn")
            .filter(|row| {
                row["topology"] == topology && number(row, "asked_pps") > 0.0 && row["full_rate"] != true
            })
            .collect();
        if steps.is_empty() {
            continue;
        }
        let counted: Vec<_> = steps.iter().filter(|row| counts(rows, row)).collect();
        let says = |what: &str| format!("Short connections under a flood, {topology}: {what}");
        let worst = |key: &str, bound: Bound, what: &str| {
            let known: Vec<_> = counted.iter().filter_map(|row| cell(Some(**row), key)).collect();
            let worst = match bound {
                Bound::AtMost(_) => known.iter().copied().reduce(f64::max),
                Bound::AtLeast(_) => known.iter().copied().reduce(f64::min),
            };
            Claim { open: steps.len() - known.len(), ..Claim::new(says(what), Unit::Ratio, bound, worst) }
        };
        let (least, most) = (Bound::AtLeast(0.95), Bound::AtMost(2.0));
        // Where it is not said of how many, nobody looked for those that are never answered, nor timed a handshake.
        let of_all = steps.iter().all(|row| number(row, "attempts") > 0.0);
        let p99 = worst("p99_of_deny", most, "p99 of the time they take, of the first oracle's");
        let p99 = Claim { measured: p99.measured.filter(|_| of_all), ..p99 };
        let failed = || steps.iter().map(|row| number(row, "failed") + number(row, "errors")).sum();
        let failed = Claim::new(says("failed"), Unit::Count, Bound::AtMost(0.0), of_all.then(failed));
        claims.extend([
            worst("of_deny", least, "requests, of an oracle's that denies the flood"),
            worst("of_reflect", least, "requests, of an oracle's that sends the flood back"),
            p99,
            Claim { open: steps.len() - counted.len(), ..failed },
        ]);
    }
    claims
}

/// The relay without a flood.
fn proxy(rows: &[Value]) -> Vec<Claim> {
    let of_haproxy = |name: &str, what: &str| {
        let says = format!("Requests relayed {what}, of HAProxy's");
        Claim::new(says, Unit::Ratio, Bound::AtLeast(1.0), cell(own(rows, name), "of_haproxy"))
    };
    let kinds = [("short_conn", "each on a connection of its own"), ("keepalive", "over 64 connections")];
    let aim = |claim: Claim| Claim {
        says: format!("{}: what is aimed at", claim.says),
        bound: Bound::AtLeast(1.25),
        ..claim
    };
    let claims = kinds.map(|(name, what)| of_haproxy(name, what));
    claims.iter().cloned().chain(claims.iter().cloned().map(aim)).collect()
}

/// What the stack takes for a connection, and for a segment beside many.
fn stack(rows: &[Value]) -> Vec<Claim> {
    let median = |name: &str| cell(own(rows, name), "median");
    let bytes = |name: &str, what: &str, most: f64| {
        Claim::new(format!("Memory of {what}"), Unit::Bytes, Bound::AtMost(most), median(name))
    };
    let grown = |kind: &str, what: &str| {
        let (few, many) = (format!("{kind}_1k"), format!("{kind}_1m"));
        let of_medians = || Some(median(&many)? / median(&few)?);
        let grown = cell(own(rows, &many), "of_fewest").or_else(of_medians);
        let says = format!("{what} beside a million connections, of its cost beside a thousand");
        Claim::new(says, Unit::Ratio, Bound::AtMost(1.5), grown)
    };
    vec![
        bytes("bytes_idle", "a connection at rest", 256.0),
        bytes("bytes_time_wait_v4", "a TIME_WAIT over IPv4, its table's slack included", 40.0),
        bytes("bytes_time_wait_v6", "a TIME_WAIT over IPv6", 64.0),
        bytes("bytes_half_open", "a half-open connection over IPv4", 64.0),
        bytes("bytes_half_open_v6", "a half-open connection over IPv6", 64.0),
        grown("segment_data", "A segment of data"),
        grown("segment_ack", "An acknowledgement"),
    ]
}

/// What the data path loses to whoever asks the daemon for much.
fn control(rows: &[Value]) -> Vec<Claim> {
    let listed =
        |row: &&Value| row["name"] == "forward" && row["contestant"] == "listing" && row["n"] == MILLION;
    let says = "Segments that are forwarded while a million flows are listed, of those otherwise";
    let kept = cell(rows.iter().find(listed), "ratio");
    vec![Claim::new(says, Unit::Ratio, Bound::AtLeast(0.95), kept)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn report(suite: &str, rows: Value) -> Value {
        json!({"suite": suite, "rows": rows})
    }

    /// Measured, target and verdict of the first target whose words begin so.
    fn line(claims: &[Claim], says: &str) -> (String, String, Verdict) {
        let claim = claims.iter().find(|claim| claim.says.starts_with(says));
        let claim = claim.unwrap_or_else(|| panic!("no {says} among {claims:?}"));
        (claim.measured(), claim.target(), claim.verdict())
    }

    fn expected(measured: &str, target: &str, verdict: Verdict) -> (String, String, Verdict) {
        (measured.to_owned(), target.to_owned(), verdict)
    }

    #[test]
    fn a_target_is_met_missed_or_open() {
        let claim = |bound, measured| Claim::new("", Unit::Ratio, bound, measured).verdict();
        assert_eq!(claim(Bound::AtMost(2.0), Some(2.0)), Verdict::Met);
        assert_eq!(claim(Bound::AtMost(2.0), Some(2.1)), Verdict::Missed);
        assert_eq!(claim(Bound::AtLeast(2.0), Some(2.0)), Verdict::Met);
        assert_eq!(claim(Bound::AtLeast(2.0), Some(1.9)), Verdict::Missed);
        assert_eq!(claim(Bound::AtLeast(2.0), None), Verdict::Open);
        assert_eq!(claim(Bound::AtLeast(2.0), Some(f64::NAN)), Verdict::Open);
    }

    #[test]
    fn packets_are_held_against_nanoseconds_over_the_null_and_the_kernels_program() {
        let row =
            |name: &str, who: &str, over: f64| json!({"name": name, "contestant": who, "over_null": over});
        let rows = json!([
            row("null_redirect", "null", 9.0),
            row("syn_v4_ts", "tcpguard", 130.0),
            row("ack_invalid_v4", "tcpguard", 45.0),
            row("flow_hit_v4", "tcpguard", 38.0),
            row("xdp_synproxy/syn_v4_ts", "xdp_synproxy", 390.0),
        ]);
        let told = claims(&[report("program", rows.clone())]);
        assert_eq!(line(&told, "A SYN"), expected("130 ns", "at most 60 ns", Verdict::Missed));
        assert_eq!(line(&told, "A SYN answered by"), expected("3.00", "at least 3.00", Verdict::Met));
        assert_eq!(line(&told, "A bad ACK"), expected("45 ns", "at most 45 ns", Verdict::Met));
        assert_eq!(line(&told, "A segment"), expected("29 ns", "at most 30 ns", Verdict::Met));
        // Ratios inside rounds go before that of the medians; without a peer there is none.
        let mut with = rows.clone();
        with[4]["of_tcpguard"] = json!(2.9);
        let told = claims(&[report("program", with)]);
        assert_eq!(line(&told, "A SYN answered by"), expected("2.90", "at least 3.00", Verdict::Missed));
        let without: Vec<_> = rows.as_array().unwrap()[..4].to_vec();
        let told = claims(&[report("program", without.into())]);
        assert_eq!(line(&told, "A SYN answered by"), expected("–", "at least 3.00", Verdict::Open));
    }

    #[test]
    fn of_a_growing_flood_the_worst_step_counts_and_one_without_a_ratio_is_told() {
        let row = |asked: u64, of: Option<f64>, failed: u64| {
            json!({"name": "short_conn", "contestant": "tcpguard", "topology": "direct", "asked_pps": asked,
                "of_deny": of, "of_reflect": of, "p99_of_deny": of, "failed": failed, "errors": 1, "attempts": 600})
        };
        let told = claims(&[report(
            "goodput",
            json!([row(0, Some(0.1), 0), row(9, Some(0.97), 0), row(99, Some(0.99), 2)]),
        )]);
        assert_eq!(
            line(&told, "Short connections under a flood, direct: requests, of an oracle's that denies"),
            expected("0.97", "at least 0.95", Verdict::Met)
        );
        assert_eq!(
            line(&told, "Short connections under a flood, direct: p99"),
            expected("0.99", "at most 2.00", Verdict::Met)
        );
        assert_eq!(
            line(&told, "Short connections under a flood, direct: failed"),
            expected("4", "none", Verdict::Missed)
        );
        let told = claims(&[report("goodput", json!([row(9, Some(0.97), 0), row(99, None, 0)]))]);
        assert_eq!(
            line(&told, "Short connections under a flood, direct: requests, of an oracle's that denies"),
            expected("0.97, without one step", "at least 0.95", Verdict::Open)
        );
        let told = claims(&[report("goodput", json!([row(9, Some(0.5), 0), row(99, None, 0)]))]);
        assert_eq!(
            line(&told, "Short connections under a flood, direct: requests, of an oracle's that denies").2,
            Verdict::Missed
        );
    }

    #[test]
    fn a_step_of_which_too_few_rounds_count_says_nothing() {
        let row = |asked: u64, of: f64, failed: u64, discarded: u64| {
            let rounds = if discarded == 0 { 5 } else { 10 };
            json!({"name": "short_conn", "contestant": "tcpguard", "topology": "direct", "asked_pps": asked, "of_deny": of,
                "of_reflect": of, "p99_of_deny": of, "failed": failed, "errors": 0, "attempts": 600, "rounds": rounds, "discarded": discarded})
        };
        let of = |what: &str, rows: Value| {
            line(
                &claims(&[report("goodput", rows)]),
                &format!("Short connections under a flood, direct: {what}"),
            )
        };
        let rows = json!([row(9, 0.97, 0, 0), row(99, 0.5, 0, 6)]);
        assert_eq!(
            of("requests, of an oracle's that denies", rows.clone()),
            expected("0.97, without one step", "at least 0.95", Verdict::Open)
        );
        assert_eq!(of("failed", rows), expected("0, without one step", "none", Verdict::Open));
        // Ten rounds of which five count are enough, and who failed has failed whether the round counts or not.
        let rows = json!([row(9, 0.97, 0, 0), row(99, 0.5, 0, 5)]);
        assert_eq!(of("requests, of an oracle's that denies", rows).2, Verdict::Missed);
        let rows = json!([row(9, 0.97, 0, 0), row(99, 0.5, 1, 10)]);
        assert_eq!(of("failed", rows), expected("1, without one step", "none", Verdict::Missed));
        // A count without those that it is of says nothing.
        let mut row = row(9, 0.97, 0, 0);
        row["attempts"] = Value::Null;
        assert_eq!(of("failed", json!([row])), expected("–", "none", Verdict::Open));
        assert_eq!(of("p99", json!([row])), expected("–", "at most 2.00", Verdict::Open));
        // Rows may say themselves whether enough rounds count.
        row["attempts"] = json!(600);
        assert_eq!(of("p99", json!([row])).2, Verdict::Met);
        row["enough"] = json!(false);
        assert_eq!(of("p99", json!([row])).2, Verdict::Open);
    }

    #[test]
    fn a_list_of_fewer_flows_than_a_million_says_nothing() {
        let row =
            |who: &str, n: u64, ratio| json!({"name": "forward", "contestant": who, "n": n, "ratio": ratio});
        for (n, verdict) in [(1_000_000, Verdict::Met), (10_000, Verdict::Open)] {
            let told =
                claims(&[report("control", json!([row("quiet", n, None), row("listing", n, Some(0.96))]))]);
            assert_eq!(line(&told, "Segments that are forwarded").2, verdict);
        }
    }

    #[test]
    fn floods_relay_and_stack_are_held_against_their_targets() {
        let flood = |name: &str, of: f64, answered: f64| {
            json!({"name": name, "contestant": "tcpguard", "asked_pps": 0, "median": 8.0, "delivered_pps": 8.0,
                "of_xdp_tx": of, "answered": answered})
        };
        let told = claims(&[
            report("flood", json!([flood("syn_v4", 0.86, 1.0), flood("syn_v6", 0.84, 0.9)])),
            report("proxy", json!([{"name": "keepalive", "contestant": "tcpguard", "of_haproxy": 1.15}])),
            report(
                "stack",
                json!([
                    {"name": "bytes_idle", "contestant": "tcpguard", "median": 254.9},
                    {"name": "segment_data_1k", "contestant": "tcpguard", "median": 100.0},
                    {"name": "segment_data_1m", "contestant": "tcpguard", "median": 160.0},
                ]),
            ),
        ]);
        let verdicts: Vec<_> = told.iter().map(Claim::verdict).collect();
        use Verdict::{Met, Missed, Open};
        // The flood's four, the relay's four, and the stack's seven.
        assert_eq!(
            verdicts,
            [Met, Met, Missed, Missed, Open, Met, Open, Missed, Met, Open, Open, Open, Open, Missed, Open]
        );
        assert_eq!(line(&told, "SYNs answered in a full flood over IPv6").0, "0.9000");
    }
}
