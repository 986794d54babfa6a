//! What a flood came to, and the rows that are made of all rounds.

use serde::Serialize;

use super::Contestant;
use super::clients::Knocks;
use super::floods::Spec;
use crate::bench::figures::{Report, Samples, edge, median, sorted};
use crate::lab::Kind;

/// How much of the frames that were asked for a contestant must have taken in a round, for what they cost it to count.
pub const TAKEN: f64 = 0.95;

/// One row: one flood against one contestant.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Which flood, see the README.
    pub name: &'static str,
    /// The defence.
    pub contestant: String,
    /// `answers/s` (right SYN-ACKs at the far end), `handshakes/s` (connections that a botnet got) or `frames/s` (taken by the
    /// guarded interface).
    pub unit: &'static str,
    /// Median of all rounds.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every round.
    pub samples: Samples,
    /// Median of the ratios to the reflector's figure in the same round; nothing for handshakes, which a reflector does not
    /// complete.
    pub of_xdp_tx: Option<f64>,
    /// Right SYN-ACKs a second where the figure is another, repeated ones included, median; nothing where no SYNs are sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answers_pps: Option<f64>,
    /// Frames a second that were asked for; 0 for as many as possible.
    pub asked_pps: u64,
    /// Frames a second that the guarded interface took, median.
    pub delivered_pps: f64,
    /// Frames a second that left the guarded host and that the driver had no room for, median.
    pub dropped_pps: f64,
    /// Share of the SYNs that were answered, each counted once, without answers that the driver had no room for. Median; nothing
    /// where the frames of a flood want no answer.
    pub answered: Option<f64>,
    /// CPU time of the guarded host for each frame, from the driver's queue to that of the other end, nanoseconds: of the thread
    /// that handles its packets, and of the daemon. Median; there at fixed rates that were taken in most rounds, of these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns: Option<f64>,
    /// The least of a round.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns_min: Option<f64>,
    /// The most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_ns_max: Option<f64>,
    /// Median of the differences to what a program took in the same round that drops every frame.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_over_drop_ns: Option<f64>,
    /// SYN-ACKs with anything wrong in them, all rounds together.
    pub wrong: u64,
    /// Real clients that tried to connect meanwhile, all rounds together.
    pub tried: u64,
    /// Those that were connected within two seconds.
    pub connected: u64,
    /// Those whose connection was refused or reset; of the others nothing was heard.
    pub refused: u64,
}

/// What one flood against one contestant came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outcome {
    pub(super) delivered_pps: f64,
    /// Right ones, repeated ones included.
    pub(super) answers_pps: f64,
    /// The first one to each SYN.
    pub(super) first_pps: f64,
    /// Answers that the driver had no room for.
    pub(super) dropped_pps: f64,
    pub(super) handshakes_pps: f64,
    /// CPU time of the guarded host per frame, nanoseconds, where it is told apart.
    pub(super) cpu_ns: Option<f64>,
    pub(super) wrong: u64,
    pub(super) clients: Knocks,
}

/// Each turn is the contestant's outcome, the dropping program's and the reflector's, all of one round.
pub(super) fn summary(spec: &Spec, contestant: &Contestant, turns: &[[Outcome; 3]]) -> Row {
    let figure = |of: &Outcome| match spec.unit() {
        "answers/s" => of.first_pps,
        "handshakes/s" => of.handshakes_pps,
        _ => of.delivered_pps,
    };
    let middle = |value: &dyn Fn(&[Outcome; 3]) -> f64| median(&sorted(turns.iter().map(value)));
    let sum = |value: &dyn Fn(&Outcome) -> u64| turns.iter().map(|[own, ..]| value(own)).sum();
    let figures = sorted(turns.iter().map(|[own, ..]| figure(own)));
    let costs = costs(spec, turns);
    Row {
        name: spec.name,
        contestant: contestant.to_string(),
        unit: spec.unit(),
        median: median(&figures),
        min: edge(figures.first()),
        max: edge(figures.last()),
        samples: turns.iter().map(|[own, ..]| figure(own)).collect(),
        of_xdp_tx: (spec.unit() != "handshakes/s")
            .then(|| middle(&|[own, _, mirror]| figure(own) / figure(mirror))),
        answers_pps: (spec.kind == Kind::Syn && spec.unit() != "answers/s")
            .then(|| middle(&|[own, ..]| own.answers_pps)),
        answered: (spec.unit() == "answers/s").then(|| middle(&|[own, ..]| answered(own))),
        asked_pps: spec.rate,
        delivered_pps: middle(&|[own, ..]| own.delivered_pps),
        dropped_pps: middle(&|[own, ..]| own.dropped_pps),
        cpu_ns: costs.as_ref().map(|costs| median(&sorted(costs.iter().map(|cost| cost.own)))),
        cpu_ns_min: costs.as_ref().map(|costs| edge(sorted(costs.iter().map(|cost| cost.own)).first())),
        cpu_ns_max: costs.as_ref().map(|costs| edge(sorted(costs.iter().map(|cost| cost.own)).last())),
        cpu_over_drop_ns: costs.map(|costs| median(&sorted(costs.iter().map(|cost| cost.own - cost.drop)))),
        wrong: sum(&|own| own.wrong),
        tried: sum(&|own| own.clients.tried),
        connected: sum(&|own| own.clients.connected),
        refused: sum(&|own| own.clients.refused),
    }
}

/// Share of the SYNs that were answered. It is more than 1 by as much as there are repeated ones among the answers that the driver
/// had no room for: they take no SYN's place.
fn answered(of: &Outcome) -> f64 {
    of.first_pps / (of.delivered_pps - of.dropped_pps)
}

/// What a frame cost in one round, nanoseconds.
struct Cost {
    own: f64,
    drop: f64,
}

/// Of the rounds in which the contestant took what was asked for: what is left undone costs nothing. Nothing unless they are
/// more than half of them.
fn costs(spec: &Spec, turns: &[[Outcome; 3]]) -> Option<Vec<Cost>> {
    let cost = |[own, ground, _]: &[Outcome; 3]| {
        let taken = own.delivered_pps >= TAKEN * spec.rate as f64;
        Some(Cost { own: own.cpu_ns.filter(|_| taken)?, drop: ground.cpu_ns? })
    };
    let costs: Vec<_> = turns.iter().filter_map(cost).collect();
    (costs.len() > turns.len() / 2).then_some(costs)
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:14} {:>9}  {:13} {:>10} {:>10} {:>10} {:>9} {:>8} {:>16} {:>7} {:>11}",
        "flood",
        "asked",
        "contestant",
        "answers/s",
        "frames/s",
        "dropped/s",
        "of xdp_tx",
        "answered",
        "cpu ns",
        "wrong",
        "clients"
    );
    let share = |ratio: Option<f64>, digits: usize| {
        ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.digits$}"))
    };
    for row in &report.rows {
        let asked = if row.asked_pps == 0 { "full".to_owned() } else { row.asked_pps.to_string() };
        let answers = if row.unit == "frames/s" { row.answers_pps } else { Some(row.median) };
        let clients =
            if row.tried == 0 { "-".to_owned() } else { format!("{}/{}", row.connected, row.tried) };
        let cost = row.cpu_ns.zip(row.cpu_ns_min.zip(row.cpu_ns_max));
        let cost =
            cost.map_or_else(|| "-".to_owned(), |(ns, (min, max))| format!("{ns:.0} ({min:.0}-{max:.0})"));
        println!(
            "{:14} {asked:>9}  {:13} {:>10} {:>10.0} {:>10.0} {:>9} {:>8} {cost:>16} {:>7} {clients:>11}",
            row.name,
            row.contestant,
            share(answers, 0),
            row.delivered_pps,
            row.dropped_pps,
            share(row.of_xdp_tx, 2),
            share(row.answered, 4),
            row.wrong
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::floods::tests::of;
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let outcome = |first_pps| Outcome {
            delivered_pps: 120.0,
            answers_pps: 2.0 * first_pps,
            first_pps,
            dropped_pps: 20.0,
            clients: Knocks { tried: 3, connected: 1, refused: 1 },
            ..Outcome::default()
        };
        // A machine twice as fast in the second round.
        let turns =
            [[outcome(50.0), outcome(0.0), outcome(100.0)], [outcome(100.0), outcome(0.0), outcome(200.0)]];
        let row = summary(&of("syn_v4", 0), &Contestant::Tcpguard, &turns);
        assert_eq!((row.of_xdp_tx, row.answered, row.dropped_pps), (Some(0.5), Some(0.75), 20.0));
        assert_eq!((row.median, row.min, row.max, row.unit), (75.0, 50.0, 100.0, "answers/s"));
        assert_eq!((row.tried, row.connected, row.refused), (6, 2, 2));
    }

    #[test]
    fn a_cost_is_that_of_a_rate_which_was_taken_in_most_rounds() {
        let outcome = |delivered_pps, cpu_ns| Outcome { delivered_pps, cpu_ns, ..Outcome::default() };
        let of_round =
            |taken, own, ground| [outcome(taken, own), outcome(1000.0, ground), outcome(1000.0, Some(1.0))];
        let turns = [
            of_round(1000.0, Some(300.0), Some(200.0)),
            of_round(965.0, Some(160.0), Some(100.0)),
            of_round(1000.0, Some(200.0), Some(110.0)),
            of_round(940.0, Some(10.0), Some(10.0)),
        ];
        let spec = of("syn_v6", 1000);
        let row = summary(&spec, &Contestant::Tcpguard, &turns);
        assert_eq!((row.cpu_ns, row.cpu_ns_min, row.cpu_ns_max), (Some(200.0), Some(160.0), Some(300.0)));
        assert_eq!(row.cpu_over_drop_ns, Some(90.0));

        let behind = [turns[0], turns[3]];
        let row = serde_json::to_value(summary(&spec, &Contestant::Tcpguard, &behind)).expect("JSON");
        assert!(row["median"].is_number() && row.get("cpu_ns").is_none(), "{row}");
        let full = [of_round(1000.0, None, None)];
        let row =
            serde_json::to_value(summary(&of("syn_v4", 0), &Contestant::Tcpguard, &full)).expect("JSON");
        assert!(
            ["cpu_ns", "cpu_ns_min", "cpu_ns_max"].into_iter().all(|key| row.get(key).is_none()),
            "{row}"
        );
    }

    #[test]
    fn handshakes_are_not_compared_with_frames_that_are_sent_back() {
        let outcome =
            Outcome { handshakes_pps: 5.0, delivered_pps: 9.0, answers_pps: 2.0, ..Outcome::default() };
        let row = |name: &str| summary(&of(name, 0), &Contestant::Tcpguard, &[[outcome; 3]]);
        assert_eq!((row("handshake_v4").median, row("handshake_v4").of_xdp_tx), (5.0, None));
        assert_eq!((row("handshake_v4").answered, row("handshake_v4").answers_pps), (None, Some(2.0)));
        assert_eq!((row("ack_v4").median, row("ack_v4").of_xdp_tx), (9.0, Some(1.0)));
        assert_eq!((row("ack_v4").answered, row("ack_v4").answers_pps), (None, None));
        // Frames that are taken by not answering them are not all that counts.
        assert_eq!((row("one_tuple_v4").median, row("one_tuple_v4").answers_pps), (9.0, Some(2.0)));
    }
}
