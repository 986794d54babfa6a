//! `cargo xtask bench flood`: a flooded host behind each defence in turn. How many right answers come back to the far end
//! of the link, beside a program that drops every frame and one that reflects it; and at rates that everybody takes, what a
//! frame costs the host's side. Real clients knock meanwhile. Not what a NIC can take: generator, link and guard share this
//! machine's cores.

mod contestant;
pub mod honesty;

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tcpguard_common::lab::Received;

use super::figures::{Report, edge, median, sorted};
use crate::build::Artifacts;
use crate::lab::{
    Arrivals, FloodSpec, GUARD_ADDRESS, GUARD_ADDRESS_V6, Kind, Lab, LabConfig, PacketThreads, RELEASE,
};
pub use contestant::Contestant;
use contestant::Standing;

/// Where clients and floods go.
const PORT: u16 = 80;
/// The client's end of the flow that is flooded with its own segments.
const KNOWN_PORT: u16 = 40_000;
/// How long a client waits for its connection: it may send its SYN twice.
const PATIENCE: Duration = Duration::from_secs(2);
/// How much of the frames that were asked for a contestant must have taken in a round, for what they cost it to count.
const TAKEN: f64 = 0.95;

/// How much to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Effort {
    /// Turns of each contestant.
    pub rounds: usize,
    /// How long each flood lasts.
    pub time: Duration,
    /// Frames a second of the SYN floods; 0 for as many as the machine makes.
    pub rates: &'static [u64],
}

impl Effort {
    /// Enough for figures.
    pub const FULL: Self = Self { rounds: 5, time: Duration::from_secs(2), rates: &[100_000, 200_000, 0] };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self = Self { rounds: 3, time: Duration::from_millis(700), rates: &[100_000, 0] };
}

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
    pub samples: super::figures::Samples,
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

/// A flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spec {
    name: &'static str,
    kind: Kind,
    sources: Sources,
    rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sources {
    /// Random ones from the network that is set aside for benchmarks.
    Spoofed,
    /// The same over IPv6.
    SpoofedV6,
    /// A botnet's own, which acknowledge what they are answered.
    Botnet,
    /// One address and port out of it.
    One,
    /// A connection that the client has.
    Known,
}

/// Every flood, in the order of the table: those of SYNs at each rate.
fn floods(rates: &[u64]) -> Vec<Spec> {
    let spec = |name, kind, sources, rate| Spec { name, kind, sources, rate };
    let families = [("syn_v4", Sources::Spoofed), ("syn_v6", Sources::SpoofedV6)];
    let mut floods: Vec<_> = families
        .into_iter()
        .flat_map(|(name, sources)| rates.iter().map(move |&rate| spec(name, Kind::Syn, sources, rate)))
        .collect();
    floods.extend([
        spec("one_tuple_v4", Kind::Syn, Sources::One, 0),
        spec("ack_v4", Kind::Ack, Sources::Spoofed, 0),
        spec("data_v4", Kind::Data, Sources::Spoofed, 0),
        spec("known_flow_v4", Kind::Ack, Sources::Known, 0),
        // The last one, because it leaves connections behind.
        spec("handshake_v4", Kind::Syn, Sources::Botnet, 0),
    ]);
    floods
}

impl Spec {
    /// What the figure counts.
    fn unit(&self) -> &'static str {
        match (self.kind, self.sources) {
            (Kind::Syn, Sources::Spoofed | Sources::SpoofedV6) => "answers/s",
            (Kind::Syn, Sources::Botnet) => "handshakes/s",
            _ => "frames/s",
        }
    }

    /// Whether a contestant does what the row says: where connections are made, who does not serve has no part.
    fn admits(&self, contestant: &Contestant) -> bool {
        contestant.serves() || !matches!(self.sources, Sources::Botnet | Sources::Known)
    }

    /// Where real clients go meanwhile.
    fn server(&self) -> SocketAddr {
        match self.sources {
            Sources::SpoofedV6 => SocketAddr::from((GUARD_ADDRESS_V6, PORT)),
            Sources::Spoofed | Sources::Botnet | Sources::One | Sources::Known => {
                SocketAddr::from((GUARD_ADDRESS, PORT))
            }
        }
    }

    /// `number` is another one for each flood of a lab, so that none repeats what one before it sent.
    fn flood(&self, lab: &Lab, number: usize) -> FloodSpec {
        let client = lab.client_addresses().first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let (sources, port) = match self.sources {
            Sources::Spoofed | Sources::SpoofedV6 | Sources::Botnet => (FloodSpec::default().sources, None),
            Sources::One => ((Ipv4Addr::new(198, 18, 0, 1), 32), Some(KNOWN_PORT)),
            Sources::Known => ((client, 32), Some(KNOWN_PORT)),
        };
        FloodSpec {
            kind: self.kind,
            rate: self.rate,
            total: None,
            sources,
            port,
            seed: (number as u64) << 32,
            ipv6: self.sources == Sources::SpoofedV6,
            complete: self.sources == Sources::Botnet,
        }
    }
}

/// What one flood against one contestant came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    delivered_pps: f64,
    /// Right ones, repeated ones included.
    answers_pps: f64,
    /// The first one to each SYN.
    first_pps: f64,
    /// Answers that the driver had no room for.
    dropped_pps: f64,
    handshakes_pps: f64,
    /// CPU time of the guarded host per frame, nanoseconds, where it is told apart.
    cpu_ns: Option<f64>,
    wrong: u64,
    clients: Knocks,
}

/// Floods every contestant, all of them in turn, `effort.rounds` times. Fails when tcpguard sends a wrong answer, or serves
/// nobody, or takes a forged ACK for a connection, or otherwise [does not do its job](honesty): it must not win by doing less.
pub fn measure(
    built: &Artifacts,
    contestants: &[Contestant],
    effort: Effort,
    mut progress: impl FnMut(&str),
) -> Result<Report<Row>> {
    progress("whether tcpguard does its job");
    honesty::check(built)?;
    let floods = floods(effort.rates);
    let mut rounds = Vec::new();
    for round in 0..effort.rounds {
        let mut turn = Vec::new();
        for contestant in contestants {
            progress(&format!("round {} of {}: {contestant}", round + 1, effort.rounds));
            turn.push(
                flood_all(built, contestant, &floods, effort.time, round)
                    .with_context(|| format!("flooding {contestant}"))?,
            );
        }
        rounds.push(turn);
    }
    let place = |wanted| contestants.iter().position(|contestant| *contestant == wanted);
    let ground = place(Contestant::XdpDrop).context("nothing to compare with")?;
    let mirror = place(Contestant::XdpTx).context("nothing to compare with")?;
    let mut rows = Vec::new();
    for (at, spec) in floods.iter().enumerate() {
        for (who, contestant) in contestants.iter().enumerate().filter(|(_, who)| spec.admits(who)) {
            let turns: Vec<_> =
                rounds.iter().map(|turn| [turn[who][at], turn[ground][at], turn[mirror][at]]).collect();
            rows.push(summary(spec, contestant, &turns));
        }
    }
    Ok(Report::new("flood", rows))
}

/// One contestant in a lab of its own, under every flood.
fn flood_all(
    built: &Artifacts,
    contestant: &Contestant,
    floods: &[Spec],
    time: Duration,
    round: usize,
) -> Result<Vec<Outcome>> {
    let mut lab = Lab::up(LabConfig::new(&built.lab_object))?;
    lab.ipv6()?;
    let mut standing = Standing::up(contestant, &lab, built, PORT)?;
    let mut outcomes = Vec::new();
    for (at, spec) in floods.iter().enumerate() {
        let botnet = spec.sources == Sources::Botnet;
        if botnet {
            standing.check()?;
        }
        let before = standing.taken()?;
        let number = round * floods.len() + at;
        let (mut outcome, seconds) =
            flood(&mut lab, &mut standing, contestant, spec, time, number).context(spec.name)?;
        if botnet && contestant.serves() {
            let taken = standing.taken()?.saturating_sub(before + outcome.clients.connected);
            outcome.handshakes_pps = taken as f64 / seconds;
            ensure!(taken > 0, "{}: no handshake was completed", spec.name);
        }
        ensure!(outcome.delivered_pps > 0.0, "{}: no frame got through", spec.name);
        if *contestant == Contestant::Tcpguard {
            ensure!(outcome.wrong == 0, "{}: {} wrong SYN-ACKs", spec.name, outcome.wrong);
            let Knocks { tried, connected, .. } = outcome.clients;
            ensure!(tried == 0 || connected > 0, "{}: nobody was served", spec.name);
        }
        outcomes.push(outcome);
    }
    standing.down()?;
    Ok(outcomes)
}

/// One flood: what it came to, and how many seconds it lasted.
fn flood(
    lab: &mut Lab,
    standing: &mut Standing,
    contestant: &Contestant,
    spec: &Spec,
    time: Duration,
    number: usize,
) -> Result<(Outcome, f64)> {
    let served = contestant.serves();
    // The flow that the flood's segments belong to.
    let known = (spec.sources == Sources::Known && served).then(|| connect(lab, KNOWN_PORT)).transpose()?;
    let judged = spec.unit() != "frames/s";
    // At full rate a thread would only move work to another core.
    let threads = (spec.rate > 0).then(|| PacketThreads::start(lab)).transpose()?;
    let before = Counted::now(lab, standing, threads.as_ref())?;
    let clients = (judged && served).then(|| Clients::start(lab, spec.server())).transpose()?;
    let counters = lab.flood(PORT, spec.flood(lab, number))?.run_for(time)?;
    let clients = clients.map_or(Ok(Knocks::default()), Clients::finish)?;
    settle(lab)?;
    let after = Counted::now(lab, standing, threads.as_ref())?;
    if threads.is_some() {
        drop(threads);
        std::thread::sleep(RELEASE);
    }
    ensure!(known.is_none_or(|known| is_open(&known)), "the flow that was flooded ended");
    // A kernel that still repeats its SYN-ACKs of the flood before answers nothing of this one.
    let wrong = if judged { after.arrivals.wrong() - before.arrivals.wrong() } else { 0 };
    let right = answers(contestant, &after.arrivals) - answers(contestant, &before.arrivals);
    let elsewhere = after.arrivals.of(Received::SynAck) - before.arrivals.of(Received::SynAck);
    let first = first_answers(right, after.repeats - before.repeats, elsewhere, clients.tried);
    let seconds = counters.elapsed.as_secs_f64();
    let spent = |after: Duration, before| after.saturating_sub(before).as_nanos() as f64;
    let outcome = Outcome {
        delivered_pps: counters.rate(),
        answers_pps: right as f64 / seconds,
        first_pps: first as f64 / seconds,
        dropped_pps: (after.dropped - before.dropped) as f64 / seconds,
        // Counted where they are finished.
        handshakes_pps: 0.0,
        cpu_ns: after
            .cpu
            .zip(before.cpu)
            .map(|(after, before)| spent(after, before) / counters.delivered().max(1) as f64),
        wrong,
        clients,
    };
    Ok((outcome, seconds))
}

/// Waits for the answers to the last frames, which may still be on their way, and would be judged by the flood after this one.
fn settle(lab: &Lab) -> Result<()> {
    const TRIES: usize = 10;
    let mut before = 0;
    for _ in 0..TRIES {
        std::thread::sleep(Duration::from_millis(20));
        let now = lab.verifier().arrivals()?.syn_acks();
        if now == before {
            break;
        }
        before = now;
    }
    Ok(())
}

/// What is counted before and after a flood.
struct Counted {
    arrivals: Arrivals,
    /// SYN-ACKs that the guarded host sent again.
    repeats: u64,
    dropped: u64,
    /// CPU time of the guarded host, where threads tell it apart.
    cpu: Option<Duration>,
}

impl Counted {
    fn now(lab: &Lab, standing: &mut Standing, threads: Option<&PacketThreads>) -> Result<Self> {
        Ok(Self {
            arrivals: lab.verifier().arrivals()?,
            repeats: standing.repeats(lab)?,
            dropped: lab.dropped_answers()?,
            cpu: threads
                .map(|threads| Ok::<_, anyhow::Error>(threads.guard_cpu()? + standing.cpu()?))
                .transpose()?,
        })
    }
}

/// How many of `right` answers to a flood were no repeated ones, where `repeats` SYN-ACKs were sent again in all, and `elsewhere`
/// of them, but for one to each of so many clients, went where this flood does not come from: to clients, and to a flood before
/// over the other family.
fn first_answers(right: u64, repeats: u64, elsewhere: u64, clients: u64) -> u64 {
    right.saturating_sub(repeats.saturating_sub(elsewhere.saturating_sub(clients)))
}

/// Answers to spoofed addresses that are right: of a reflector, the frames themselves.
fn answers(contestant: &Contestant, arrivals: &Arrivals) -> u64 {
    match contestant {
        Contestant::XdpTx => arrivals.of(Received::SpoofedReflection),
        _ => arrivals.of(Received::SpoofedSynAck) + arrivals.of(Received::SpoofedHandshake),
    }
}

/// A connection from `port` of the client. What is left of the flood before may take the place of its first SYNs.
fn connect(lab: &Lab, port: u16) -> Result<TcpStream> {
    const TRIES: u32 = 5;
    let server = SocketAddr::from((GUARD_ADDRESS, PORT));
    let connect = || -> Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // So that the next round's connection need not wait for this one's TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.connect_timeout(&server.into(), PATIENCE)?;
        Ok(socket.into())
    };
    let again_and_again = || (1..TRIES).fold(connect(), |tried, _| tried.or_else(|_| connect()));
    lab.client().enter(again_and_again)?.context("the flow that is to be flooded")
}

/// Whether neither end has ended a connection on which nobody says anything.
fn is_open(stream: &TcpStream) -> bool {
    let silent = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(silent)
}

/// What came of real clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Knocks {
    tried: u64,
    connected: u64,
    /// Told so by a reset.
    refused: u64,
}

/// Real clients that connect one after the other while the flood lasts.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Knocks>>,
}

impl Clients {
    fn start(lab: &Lab, server: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let body = move || {
            let mut knocks = Knocks::default();
            while !theirs.load(Ordering::Relaxed) {
                // The first one starts with the flood, not before it.
                std::thread::sleep(Duration::from_millis(20));
                knocks.tried += 1;
                match TcpStream::connect_timeout(&server, PATIENCE) {
                    Ok(_) => knocks.connected += 1,
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    Err(_) => knocks.refused += 1,
                }
            }
            Ok(knocks)
        };
        Ok(Self { stop, thread: lab.client().spawn("clients", body)? })
    }

    fn finish(self) -> Result<Knocks> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(knocks) => knocks,
            Err(_) => bail!("the clients' thread panicked"),
        }
    }
}

/// Each turn is the contestant's outcome, the dropping program's and the reflector's, all of one round.
fn summary(spec: &Spec, contestant: &Contestant, turns: &[[Outcome; 3]]) -> Row {
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

/// Share of the SYNs that were answered. Among the answers that the driver had no room for there may be repeated ones, which take
/// no SYN's place: the share is never more than 1.
fn answered(of: &Outcome) -> f64 {
    (of.first_pps / (of.delivered_pps - of.dropped_pps)).min(1.0)
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
    use super::*;

    fn of(name: &str, rate: u64) -> Spec {
        let mut floods = floods(&[rate]).into_iter();
        floods.find(|spec| spec.name == name).expect("a flood of this name")
    }

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
    fn an_answer_that_is_repeated_stands_for_no_other() {
        // Of a thousand SYNs ten went without an answer, and thirty answers were repeated.
        assert_eq!(first_answers(1020, 30, 5, 5), 990);
        // A client's own answer was repeated, and twelve of the flood before.
        assert_eq!(first_answers(1007, 30, 18, 5), 990);
        assert_eq!(first_answers(3, 30, 0, 5), 0);
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

    #[test]
    fn who_serves_nobody_has_no_part_where_connections_are_made() {
        let admitted = |name: &str| Contestant::STANDARD.iter().filter(|who| of(name, 0).admits(who)).count();
        assert_eq!(["syn_v4", "one_tuple_v4", "known_flow_v4", "handshake_v4"].map(admitted), [6, 6, 4, 4]);
    }

    #[test]
    fn a_connection_is_open_until_its_other_end_ends_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(is_open(&client));
        drop(server);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while is_open(&client) {
            assert!(std::time::Instant::now() < deadline, "it never ends");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn every_rate_is_a_row_of_its_own_over_both_families() {
        let names: Vec<_> = floods(&[7, 0]).iter().map(|spec| (spec.name, spec.rate)).collect();
        assert_eq!(
            names[..5],
            [("syn_v4", 7), ("syn_v4", 0), ("syn_v6", 7), ("syn_v6", 0), ("one_tuple_v4", 0)]
        );
        assert_eq!(names.last(), Some(&("handshake_v4", 0)));
        // Even a short run says what a frame costs.
        assert!([Effort::QUICK, Effort::FULL].iter().all(|effort| effort.rates.iter().any(|&rate| rate > 0)));
    }
}
