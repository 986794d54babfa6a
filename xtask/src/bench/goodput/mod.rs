//! `cargo xtask bench goodput`: what clients of a web server get while the flood against it grows, behind each defence in turn,
//! beside two oracles that know where the flood comes from. Clients, flood, defence and server share this machine's cores, so
//! that whoever spends less on the flood leaves more to the clients. All are flooded alike, and rounds in which the guard and the
//! oracles did not take as much of it do not count.

mod contestant;

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde::Serialize;

use super::figures::{Report, by_turns, edge, median, sorted};
use super::http::Http;
use super::probe::{Attempts, PATIENCE, Probes};
use crate::build::Artifacts;
use crate::client::Page;
use crate::lab::{FloodSpec, GUARD_ADDRESS, Lab, LabConfig};
pub use contestant::{Contestant, Topology};
use contestant::{PAGE, PORT, Standing};

/// Connections that are open at a time.
const CONNECTIONS: u32 = 64;
/// Addresses that clients have. From one of them, tens of thousands of connections within seconds would meet what defences
/// and kernels keep of earlier ones from the same ports.
const ADDRESSES: u8 = 40;
const SECOND: Duration = Duration::from_secs(1);
/// How often a client repeats a SYN before it gives up, after fifteen seconds: longer than anything is measured for.
const SYN_RETRIES: &str = "3";
/// The hardest step, in percent of the least that the guard and both oracles take of all that the generator makes. So
/// far from the edge, all of them take all of it.
const HARDEST: f64 = 75.0;
/// How far apart the floods of one round may be, as a factor, for what they left to clients to be compared.
const ALIKE: f64 = 1.05;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Turns of each contestant.
    pub rounds: usize,
    /// Turns at most of those that are compared with each other, at steps where fewer than `rounds` count.
    pub most: usize,
    /// How long requests are sent before anything counts, so that pools and tables get their size.
    pub warm_up: Duration,
    /// How long requests are sent, of each kind at each step.
    pub time: Duration,
    /// How hard the flood is, in percent of the hardest in which defences are compared.
    pub steps: &'static [u8],
    /// Whether there is another step, as hard as the generator makes it.
    pub full_rate: bool,
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self = Self {
        rounds: 5,
        most: 10,
        warm_up: SECOND,
        time: Duration::from_secs(2),
        steps: &[0, 10, 40, 100],
        full_rate: true,
    };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self =
        Self { rounds: 2, most: 3, warm_up: SECOND, time: SECOND, steps: &[0, 30, 100], full_rate: false };
}

/// One row: one kind of requests behind one defence at one step of the flood. Its figures are those of the rounds that count;
/// not a number where those are fewer than the rounds that an effort has.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// `short_conn` or `keepalive`.
    pub name: &'static str,
    /// The defence.
    pub contestant: &'static str,
    /// `direct` or `proxied`.
    pub topology: &'static str,
    /// What answers: `responder`, which is tcpguard's own, or `nginx`, which `haproxy` or `tcpguard` may stand in front of, as
    /// in `haproxy, nginx`. Rates of different servers are no comparison of defences.
    pub server: &'static str,
    /// `requests/s`.
    pub unit: &'static str,
    /// Median of the rounds that count.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
    /// Of every round; not a number of those that do not count.
    pub samples: super::figures::Samples,
    /// Frames a second that were asked for; 0 for no flood. At full rate the most that was taken when that was tried.
    pub asked_pps: u64,
    /// Whether the flood was as hard as the generator makes it. What defences leave of the cores then decides how hard that is,
    /// so that all rounds count and nothing is compared.
    pub full_rate: bool,
    /// Frames a second that the guarded interface took, median of all rounds, whether they count or not.
    pub delivered_pps: f64,
    /// Requests of the load that were answered, all rounds together, likewise.
    pub requests: u64,
    /// Connections of the load that were refused or reset, and wrong answers, likewise.
    pub errors: u64,
    /// Requests that were sent beside the load, 200 a second, whether others were answered or not, likewise.
    pub attempts: u64,
    /// Those of them that were not served: refused, reset, wrongly answered, or without the answer's last byte after three
    /// seconds.
    pub failed: u64,
    /// How long half of the attempts took at most, microseconds; of all rounds that count. For short connections that is from
    /// connect() to the answer's last byte, for kept ones from when a request was due; 3 000 000 for one that failed.
    pub p50_us: f64,
    /// How long 99 in 100 took at most.
    pub p99_us: f64,
    /// How long 999 in 1000 took at most.
    pub p999_us: f64,
    /// Median of the ratios to the figure of the same guard with the flood's network denied, of rounds in which the floods of
    /// both oracles and of this contestant were alike; nothing when there are none.
    pub of_deny: Option<f64>,
    /// Likewise to the guard behind a reflector.
    pub of_reflect: Option<f64>,
    /// Median of the ratios of a round's p99 to that of `oracle_deny`.
    pub p99_of_deny: Option<f64>,
    /// Rounds in all.
    pub rounds: usize,
    /// Those that do not count: in which the floods that reached the guard and the oracles differ by more than 5 %. Of what is
    /// not compared with each other, all count.
    pub discarded: usize,
    /// Whether enough rounds count for figures.
    pub enough: bool,
}

/// A kind of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Work {
    /// A connection for each request.
    ShortConn,
    /// Requests on connections that stay.
    Keepalive,
}

impl Work {
    const ALL: [Self; 2] = [Self::ShortConn, Self::Keepalive];

    fn name(self) -> &'static str {
        match self {
            Self::ShortConn => "short_conn",
            Self::Keepalive => "keepalive",
        }
    }
}

/// What one kind of requests behind one defence at one step came to.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    delivered_pps: f64,
    rate: f64,
    requests: u64,
    errors: u64,
    attempts: Attempts,
}

/// What one contestant came to in one round: by step, then by kind of requests; nothing at steps that it was not asked for.
type Turn = Vec<Option<[Outcome; Work::ALL.len()]>>;
/// One round, by contestant.
type Round = Vec<Turn>;

/// How hard a flood is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    /// Frames a second, by kind of requests.
    asked: Rates,
    /// Whether as many are asked for as can be made, whatever `asked` says.
    full_rate: bool,
}

impl Step {
    fn rate(&self, work: usize) -> u64 {
        if self.full_rate { u64::MAX } else { self.asked[work] }
    }
}

/// The guard and both oracles in one round, at one step and with one kind of requests; nothing if they had none.
fn compared(round: &Round, step: usize, work: usize) -> Option<[&Outcome; 3]> {
    let [guard, deny, reflect] =
        Contestant::COMPARED.map(|who| round[who][step].as_ref().map(|outcomes| &outcomes[work]));
    Some([guard?, deny?, reflect?])
}

/// The steps at which too few rounds count.
fn lacking(rounds: &[Round], steps: &[Step], enough: usize) -> Vec<usize> {
    let counting = |step: usize, work: usize| {
        let turns = rounds.iter().filter_map(|round| compared(round, step, work));
        turns.filter(alike).count()
    };
    let lacks = |step: usize| (0..Work::ALL.len()).any(|work| counting(step, work) < enough);
    (0..steps.len()).filter(|&step| !steps[step].full_rate && lacks(step)).collect()
}

/// Measures all contestants in both topologies, all of them in turn, `effort.rounds` times, and goes on with those that are
/// compared where floods were not alike. Fails when the guard serves nobody.
pub fn measure(built: &Artifacts, effort: Effort, mut progress: impl FnMut(&str)) -> Result<Report<Row>> {
    let mut asked: Vec<Vec<Step>> = Vec::new();
    for topology in Topology::ALL {
        let [limit, most] = limits(built, topology, effort)?;
        progress(&format!("the hardest flood, {}: {limit:?} frames a second", topology.name()));
        let step = |&percent: &u8| limit.map(|limit| limit * u64::from(percent) / 100);
        let compared = effort.steps.iter().map(step).map(|asked| Step { asked, full_rate: false });
        asked.push(
            compared.chain(effort.full_rate.then_some(Step { asked: most, full_rate: true })).collect(),
        );
    }
    let mut rounds: [Vec<Round>; Topology::ALL.len()] = Default::default();
    for number in 0..effort.most.max(effort.rounds) {
        for ((topology, asked), rounds) in Topology::ALL.into_iter().zip(&asked).zip(&mut rounds) {
            let further = number >= effort.rounds;
            let all = || (0..asked.len()).collect();
            let steps = if further { lacking(rounds, asked, effort.rounds) } else { all() };
            if steps.is_empty() {
                continue;
            }
            let of = if further { format!("at most {}", effort.most) } else { effort.rounds.to_string() };
            let round = format!("round {} of {of}: {}", number + 1, topology.name());
            let mut say = |who: &str| progress(&format!("{round} {who}"));
            let course = Course { built, topology, asked, steps: &steps, effort, number };
            rounds.push(course.run(further, &mut say)?);
        }
    }
    let mut rows = Vec::new();
    for ((topology, asked), rounds) in Topology::ALL.into_iter().zip(&asked).zip(&rounds) {
        for (work, kind) in Work::ALL.into_iter().enumerate() {
            for (at, step) in asked.iter().enumerate() {
                for (who, contestant) in Contestant::ALL.into_iter().enumerate() {
                    let turns = rounds.iter().filter_map(|round| turn(round, who, (at, step), work));
                    let turns: Vec<_> = turns.collect();
                    rows.push(summary(kind, contestant, topology, step, &turns, effort.rounds));
                }
            }
        }
    }
    Ok(Report::new("goodput", rows))
}

/// The hardest step in which defences are compared, by kind of requests, and the most that any of these took of a flood as hard
/// as the generator makes it. The first is a part of what the slowest took: what is asked for beyond that gets through to nobody,
/// and takes the clients' time.
fn limits(built: &Artifacts, topology: Topology, effort: Effort) -> Result<[Rates; 2]> {
    let full = [Step { asked: Rates::default(), full_rate: true }];
    let course = Course { built, topology, asked: &full, steps: &[0], effort, number: 0 };
    let (mut least, mut most) = ([f64::INFINITY; Work::ALL.len()], [0.0f64; Work::ALL.len()]);
    for who in Contestant::COMPARED {
        let turn = course.turn(Contestant::ALL[who]).context("trying how much it takes")?;
        let outcomes = turn.into_iter().next().flatten().context("no outcome")?;
        for (work, outcome) in outcomes.into_iter().enumerate() {
            least[work] = least[work].min(outcome.delivered_pps);
            most[work] = most[work].max(outcome.delivered_pps);
        }
    }
    Ok([least.map(|least| (least * HARDEST / 100.0) as u64), most.map(|most| most as u64)])
}

/// Frames a second, by kind of requests.
type Rates = [u64; Work::ALL.len()];

/// What one round in one topology is about.
struct Course<'a> {
    built: &'a Artifacts,
    topology: Topology,
    /// Of every step.
    asked: &'a [Step],
    /// The steps in question.
    steps: &'a [usize],
    effort: Effort,
    number: usize,
}

impl Course<'_> {
    /// Every contestant in turn, or only those that are compared.
    fn run(&self, only_compared: bool, progress: &mut impl FnMut(&str)) -> Result<Round> {
        by_turns(Contestant::ALL.len(), self.number, |who| {
            let contestant = Contestant::ALL[who];
            if only_compared && !contestant.is_guard() {
                return Ok(vec![None; self.asked.len()]);
            }
            progress(contestant.name());
            let turn = self.turn(contestant);
            turn.with_context(|| format!("measuring {} {}", self.topology.name(), contestant.name()))
        })
    }

    /// One contestant in a lab of its own, at every step.
    fn turn(&self, contestant: Contestant) -> Result<Turn> {
        let config = LabConfig { client_addresses: ADDRESSES, ..LabConfig::new(&self.built.lab_object) };
        let mut lab = Lab::up(config)?;
        lab.client().sysctl(&[("net/ipv4/tcp_syn_retries", SYN_RETRIES)])?;
        // A kernel without cookies keeps a part of its queue for whom it knows. These are strangers.
        lab.guard().sysctl(&[("net/ipv4/tcp_no_metrics_save", "1")])?;
        let _sources = lab.take_turns()?;
        let standing = Standing::up(contestant, self.topology, &lab, self.built)?;
        if self.effort.warm_up > Duration::ZERO {
            Http::new(&lab, server()).requests(false, CONNECTIONS, self.effort.warm_up)?;
        }
        let mut turn = vec![None; self.asked.len()];
        for &step in self.steps {
            let mut outcomes: [Outcome; Work::ALL.len()] = Default::default();
            for (work, outcome) in outcomes.iter_mut().enumerate() {
                let (rate, kind) = (self.asked[step].rate(work), Work::ALL[work]);
                *outcome = run(&mut lab, kind, rate, self.effort.time, self.number)
                    .with_context(|| format!("{} at {rate} frames a second", kind.name()))?;
                ensure!(contestant != Contestant::Tcpguard || outcome.requests > 0, "nobody was served");
            }
            turn[step] = Some(outcomes);
        }
        standing.down()?;
        Ok(turn)
    }
}

/// The flood and the load last until the last attempt was answered or given up.
fn run(lab: &mut Lab, work: Work, rate: u64, time: Duration, round: usize) -> Result<Outcome> {
    let spec = FloodSpec { rate, seed: round as u64, ..FloodSpec::default() };
    let flood = (rate > 0).then(|| lab.flood(PORT, spec)).transpose()?;
    let longest = PATIENCE * 2 + time;
    let load = Http::new(lab, server()).start(work == Work::ShortConn, CONNECTIONS, longest)?;
    let page = Page { server: server(), path: "/page".to_owned(), expected: PAGE.into() };
    let attempts = Probes::start(lab.client(), page, work == Work::Keepalive, time)?.finish()?;
    let done = load.finish()?;
    let delivered_pps = flood.map_or(Ok(0.0), |flood| flood.stop().map(|counters| counters.rate()))?;
    let rate = done.requests as f64 / done.time.as_secs_f64();
    Ok(Outcome { delivered_pps, rate, requests: done.requests, errors: done.errors, attempts })
}

fn server() -> SocketAddr {
    SocketAddr::from((GUARD_ADDRESS, PORT))
}

/// Whether floods are so much alike that what they left to clients may be compared.
fn alike(turn: &[&Outcome; 3]) -> bool {
    let rates = sorted(turn.iter().map(|outcome| outcome.delivered_pps));
    edge(rates.last()) <= edge(rates.first()) * ALIKE
}

/// One contestant's part of a round.
#[derive(Clone, Copy, Debug)]
struct Part<'a> {
    own: &'a Outcome,
    /// The oracles', where the floods of all three were alike.
    oracles: Option<[&'a Outcome; 2]>,
    counts: bool,
}

/// What contestant number `who` had in a round at this step, which has this place, if it took part.
fn turn<'a>(round: &'a Round, who: usize, (at, step): (usize, &Step), work: usize) -> Option<Part<'a>> {
    let own = &round[who][at].as_ref()?[work];
    if step.full_rate {
        return Some(Part { own, oracles: None, counts: true });
    }
    let compared = compared(round, at, work);
    let oracles = compared.filter(|&[_, deny, reflect]| alike(&[own, deny, reflect]));
    let counts = !Contestant::COMPARED.contains(&who) || compared.is_some_and(|turns| alike(&turns));
    Some(Part { own, oracles: oracles.map(|[_, deny, reflect]| [deny, reflect]).filter(|_| counts), counts })
}

/// Of a row that has figures when at least `enough` of these rounds count.
fn summary(
    work: Work,
    contestant: Contestant,
    topology: Topology,
    step: &Step,
    turns: &[Part<'_>],
    enough: usize,
) -> Row {
    let mut counting: Vec<_> = turns.iter().filter(|part| part.counts).collect();
    let discarded = turns.len() - counting.len();
    let enough = counting.len() >= enough;
    if !enough {
        counting.clear();
    }
    let ratio = |value: &dyn Fn(&Outcome, &[&Outcome; 2]) -> f64| {
        let ratios = counting.iter().filter_map(|part| Some(value(part.own, part.oracles.as_ref()?)));
        let ratios = sorted(ratios.filter(|ratio| ratio.is_finite()));
        (!ratios.is_empty()).then(|| median(&ratios))
    };
    let p99 = |of: &Outcome| of.attempts.quantile(990);
    let sum = |value: &dyn Fn(&Outcome) -> u64| turns.iter().map(|part| value(part.own)).sum();
    let figures = sorted(counting.iter().map(|part| part.own.rate));
    let attempts = Attempts::sum(counting.iter().map(|part| &part.own.attempts));
    Row {
        name: work.name(),
        contestant: contestant.name(),
        topology: topology.name(),
        server: topology.server(contestant),
        unit: "requests/s",
        median: median(&figures),
        min: edge(figures.first()),
        max: edge(figures.last()),
        samples: turns.iter().map(|part| if part.counts { part.own.rate } else { f64::NAN }).collect(),
        asked_pps: step.asked[work as usize],
        full_rate: step.full_rate,
        delivered_pps: median(&sorted(turns.iter().map(|part| part.own.delivered_pps))),
        requests: sum(&|own| own.requests),
        errors: sum(&|own| own.errors),
        attempts: sum(&|own| own.attempts.count()),
        failed: sum(&|own| own.attempts.failed()),
        p50_us: attempts.quantile(500),
        p99_us: attempts.quantile(990),
        p999_us: attempts.quantile(999),
        of_deny: ratio(&|own, [deny, _]| own.rate / deny.rate),
        of_reflect: ratio(&|own, [_, reflect]| own.rate / reflect.rate),
        p99_of_deny: ratio(&|own, [deny, _]| p99(own) / p99(deny)),
        rounds: turns.len(),
        discarded,
        enough,
    }
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:10} {:8} {:>9} {:>9}  {:14} {:>10} {:>7} {:>11} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9}",
        "goodput",
        "",
        "asked",
        "delivered",
        "contestant",
        "requests/s",
        "errors",
        "failed",
        "p50 us",
        "p99 us",
        "p99.9 us",
        "of deny",
        "of reflect",
        "discarded"
    );
    let share = |ratio: Option<f64>| ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}"));
    // Of rounds too few of which count, there is nothing to say.
    let whole = |value: f64| if value.is_nan() { "-".to_owned() } else { format!("{value:.0}") };
    for row in &report.rows {
        println!(
            "{:10} {:8} {:>9} {:>9}  {:14} {:>10} {:>7} {:>11} {:>9} {:>9} {:>9} {:>7} {:>10} {:>9}",
            row.name,
            row.topology,
            row.asked_pps,
            whole(row.delivered_pps),
            row.contestant,
            whole(row.median),
            row.errors,
            format!("{}/{}", row.failed, row.attempts),
            whole(row.p50_us),
            whole(row.p99_us),
            whole(row.p999_us),
            share(row.of_deny),
            share(row.of_reflect),
            format!("{}/{}", row.discarded, row.rounds)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: Step = Step { full_rate: true, ..STEP };
    const STEP: Step = Step { asked: [100; Work::ALL.len()], full_rate: false };

    fn outcome(delivered_pps: f64, rate: f64) -> Outcome {
        let attempts = Attempts::of(vec![Some(Duration::from_micros(7)), None]);
        Outcome { delivered_pps, rate, requests: 10, errors: 2, attempts }
    }

    /// A round with one step, of which only short connections matter: the guard, a kernel without a defence, both oracles.
    fn round(guard: Outcome, none: Outcome, deny: Outcome, reflect: Outcome) -> Round {
        Contestant::ALL
            .map(|contestant| match contestant {
                Contestant::Tcpguard => &guard,
                Contestant::OracleDeny => &deny,
                Contestant::OracleReflect => &reflect,
                _ => &none,
            })
            .map(|outcome| vec![Some([outcome.clone(), outcome.clone()])])
            .into()
    }

    fn row(who: Contestant, rounds: &[Round], enough: usize) -> Row {
        let number = Contestant::ALL.iter().position(|contestant| *contestant == who).unwrap();
        let turns: Vec<_> = rounds.iter().filter_map(|round| turn(round, number, (0, &STEP), 0)).collect();
        summary(Work::ShortConn, who, Topology::Direct, &STEP, &turns, enough)
    }

    #[test]
    fn rows_consist_of_rounds_whose_floods_differ_by_less_than_5_percent() {
        let none = outcome(50.0, 3.0);
        let rounds = [
            round(outcome(100.0, 90.0), none.clone(), outcome(104.0, 100.0), outcome(101.0, 45.0)),
            round(outcome(100.0, 10.0), none.clone(), outcome(106.0, 100.0), outcome(101.0, 100.0)),
            round(outcome(100.0, 10.0), none.clone(), outcome(101.0, 100.0), outcome(94.0, 100.0)),
        ];
        let guard = row(Contestant::Tcpguard, &rounds, 1);
        assert_eq!((guard.rounds, guard.discarded), (3, 2));
        assert_eq!((guard.of_deny, guard.of_reflect, guard.p99_of_deny), (Some(0.9), Some(2.0), Some(1.0)));
        assert_eq!((guard.median, guard.min, guard.max), (90.0, 90.0, 90.0));
        // A failure is one in any round.
        assert_eq!((guard.requests, guard.errors, guard.attempts, guard.failed), (30, 6, 6, 3));
        assert_eq!((guard.p50_us, guard.p99_us), (7.0, 3e6));
        let oracle = row(Contestant::OracleReflect, &rounds, 1);
        assert_eq!((oracle.median, oracle.of_reflect, oracle.discarded), (45.0, Some(1.0), 2));
        // Who cannot take the flood is not compared with who can, but what it got counts.
        let none = row(Contestant::None, &rounds, 1);
        assert_eq!((none.median, none.of_deny, none.rounds, none.discarded), (3.0, None, 3, 0));
    }

    #[test]
    fn without_enough_rounds_that_count_there_is_no_figure_but_what_all_took() {
        let any = outcome(100.0, 90.0);
        let good = round(any.clone(), any.clone(), any.clone(), any.clone());
        let bad = round(outcome(80.0, 90.0), any.clone(), any.clone(), any);
        let rounds = [good, bad.clone(), bad];
        let told = row(Contestant::Tcpguard, &rounds, 2);
        assert_eq!((told.of_deny, told.of_reflect, told.p99_of_deny), (None, None, None));
        assert!(told.median.is_nan() && told.min.is_nan() && told.p99_us.is_nan(), "{told:?}");
        assert_eq!((told.delivered_pps, told.attempts, told.failed), (80.0, 6, 3));
        assert_eq!((told.rounds, told.discarded, told.enough), (3, 2, false));
        let told = row(Contestant::Tcpguard, &rounds, 1);
        assert_eq!((told.of_deny, told.median, told.enough), (Some(1.0), 90.0, true));
    }

    #[test]
    fn rounds_without_a_flood_always_count() {
        let calm = outcome(0.0, 100.0);
        let rounds = [round(outcome(0.0, 90.0), calm.clone(), calm.clone(), calm)];
        let row = row(Contestant::Tcpguard, &rounds, 1);
        assert_eq!((row.of_deny, row.discarded), (Some(0.9), 0));
    }

    #[test]
    fn steps_go_on_until_enough_rounds_count() {
        let (slow, fast) = (outcome(90.0, 1.0), outcome(100.0, 1.0));
        let good = round(fast.clone(), slow.clone(), fast.clone(), fast.clone());
        let bad = round(slow.clone(), slow, fast.clone(), fast);
        assert_eq!(lacking(&[good.clone(), bad.clone()], &[STEP], 2), [0]);
        assert!(lacking(&[good.clone(), bad.clone(), good.clone()], &[STEP], 2).is_empty());
        // A step that a further round was not about.
        let further = good.iter().map(|turn| [&turn[..], &[None]].concat()).collect();
        assert_eq!(lacking(&[further], &[STEP; 2], 1), [1]);
        // At full rate no flood is like another, and none has to be.
        assert!(lacking(std::slice::from_ref(&bad), &[FULL], 1).is_empty());
        let part = turn(&bad, Contestant::COMPARED[0], (0, &FULL), 0).expect("it took part");
        assert!(part.counts && part.oracles.is_none());
    }

    #[test]
    fn those_that_are_compared_are_where_they_are_looked_for() {
        let compared = Contestant::COMPARED.map(|who| Contestant::ALL[who].name());
        assert_eq!(compared, ["tcpguard", "oracle_deny", "oracle_reflect"]);
        assert!(
            Contestant::ALL
                .iter()
                .enumerate()
                .all(|(who, contestant)| { contestant.is_guard() == Contestant::COMPARED.contains(&who) })
        );
    }
}
