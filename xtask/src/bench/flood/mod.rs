//! `cargo xtask bench flood`: a flooded host behind each defence in turn. How many right answers come back to the far end
//! of the link, and what a frame costs the host, beside a program that drops every frame and one that reflects it. Real
//! clients knock meanwhile. Not what a NIC can take: generator, link and guard share this machine's cores.

mod contestant;
pub mod honesty;

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use tcpguard_common::lab::Received;

use super::figures::{Report, edge, median, sorted};
use super::machine::busy;
use crate::build::Artifacts;
use crate::lab::{Arrivals, FloodSpec, GUARD_ADDRESS, GUARD_ADDRESS_V6, Kind, Lab, LabConfig};
pub use contestant::Contestant;
use contestant::Standing;

/// Where clients and floods go.
const PORT: u16 = 80;
/// The client's end of the flow that is flooded with its own segments.
const KNOWN_PORT: u16 = 40_000;
/// How long a client waits for its connection: it may send its SYN twice.
const PATIENCE: Duration = Duration::from_secs(2);

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
    pub const FULL: Self = Self { rounds: 5, time: Duration::from_secs(2), rates: &[0, 100_000, 500_000] };
    /// Enough to compare contestants that are far apart.
    pub const QUICK: Self = Self { rounds: 3, time: Duration::from_millis(700), rates: &[0] };
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
    /// Frames a second that were asked for; 0 for as many as possible.
    pub asked_pps: u64,
    /// Frames a second that the guarded interface took, median.
    pub delivered_pps: f64,
    /// Share of the SYNs that were answered, without answers that the driver had no room for; more than 1 where answers are
    /// repeated. Median; nothing where the frames of a flood want no answer.
    pub answered: Option<f64>,
    /// CPU time of the whole machine for each frame beyond what it took in the same round to make and drop one,
    /// nanoseconds, median.
    pub cpu_ns: f64,
    /// SYN-ACKs with anything wrong in them, all rounds together.
    pub wrong: u64,
    /// Real clients that tried to connect meanwhile, all rounds together.
    pub tried: u64,
    /// Those that were connected within two seconds.
    pub connected: u64,
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

/// Every flood, in the order of the table.
fn floods(rates: &[u64]) -> Vec<Spec> {
    let spec = |name, kind, sources, rate| Spec { name, kind, sources, rate };
    let mut floods: Vec<_> =
        rates.iter().map(|&rate| spec("syn_v4", Kind::Syn, Sources::Spoofed, rate)).collect();
    floods.extend([
        spec("syn_v6", Kind::Syn, Sources::SpoofedV6, 0),
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

    /// Where real clients go meanwhile.
    fn server(&self) -> SocketAddr {
        match self.sources {
            Sources::SpoofedV6 => SocketAddr::from((GUARD_ADDRESS_V6, PORT)),
            Sources::Spoofed | Sources::Botnet | Sources::One | Sources::Known => {
                SocketAddr::from((GUARD_ADDRESS, PORT))
            }
        }
    }

    fn flood(&self, lab: &Lab, round: usize) -> FloodSpec {
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
            seed: round as u64,
            ipv6: self.sources == Sources::SpoofedV6,
            complete: self.sources == Sources::Botnet,
        }
    }
}

/// What one flood against one contestant came to.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Outcome {
    delivered_pps: f64,
    answers_pps: f64,
    /// Answers that the driver had no room for.
    dropped_pps: f64,
    handshakes_pps: f64,
    /// CPU time of the machine per frame, nanoseconds.
    cpu_ns: f64,
    wrong: u64,
    tried: u64,
    connected: u64,
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
        // Where handshakes are finished, who does not serve has no part.
        let entered = |contestant: &Contestant| contestant.serves() || spec.unit() != "handshakes/s";
        for (who, contestant) in contestants.iter().enumerate().filter(|(_, contestant)| entered(contestant))
        {
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
    for spec in floods {
        let botnet = spec.sources == Sources::Botnet;
        if botnet {
            standing.check()?;
        }
        let before = standing.taken()?;
        let (mut outcome, seconds) = flood(&mut lab, contestant, spec, time, round).context(spec.name)?;
        if botnet && contestant.serves() {
            let taken = standing.taken()?.saturating_sub(before + outcome.connected);
            outcome.handshakes_pps = taken as f64 / seconds;
            ensure!(taken > 0, "{}: no handshake was completed", spec.name);
        }
        ensure!(outcome.delivered_pps > 0.0, "{}: no frame got through", spec.name);
        if *contestant == Contestant::Tcpguard {
            ensure!(outcome.wrong == 0, "{}: {} wrong SYN-ACKs", spec.name, outcome.wrong);
            ensure!(outcome.tried == 0 || outcome.connected > 0, "{}: nobody was served", spec.name);
        }
        outcomes.push(outcome);
    }
    standing.down()?;
    Ok(outcomes)
}

/// One flood: what it came to, and how many seconds it lasted.
fn flood(
    lab: &mut Lab,
    contestant: &Contestant,
    spec: &Spec,
    time: Duration,
    round: usize,
) -> Result<(Outcome, f64)> {
    let served = contestant.serves();
    // The flow that the flood's segments belong to.
    let known = (spec.sources == Sources::Known && served).then(|| connect(lab, KNOWN_PORT)).transpose()?;
    let judged = spec.unit() != "frames/s";
    let clients = (judged && served).then(|| Clients::start(lab, spec.server())).transpose()?;
    let (before, dropped) = (lab.verifier().arrivals()?, lab.transmit_drops()?);
    let flood = lab.flood(PORT, spec.flood(lab, round))?;
    let cpu = busy()?;
    let counters = flood.run_for(time)?;
    let spent = busy()?.saturating_sub(cpu);
    let (tried, connected) = clients.map_or(Ok((0, 0)), Clients::finish)?;
    // Answers to the last frames may still be on their way.
    std::thread::sleep(Duration::from_millis(20));
    let after = lab.verifier().arrivals()?;
    ensure!(known.is_none_or(|known| is_open(&known)), "the flow that was flooded ended");
    // A kernel that still repeats its SYN-ACKs of the flood before answers nothing of this one.
    let wrong = if judged { after.wrong() - before.wrong() } else { 0 };
    let right = answers(contestant, &after) - answers(contestant, &before);
    let seconds = counters.elapsed.as_secs_f64();
    let outcome = Outcome {
        delivered_pps: counters.rate(),
        answers_pps: right as f64 / seconds,
        dropped_pps: (lab.transmit_drops()? - dropped) as f64 / seconds,
        // Counted where they are finished.
        handshakes_pps: 0.0,
        cpu_ns: spent.as_nanos() as f64 / counters.delivered().max(1) as f64,
        wrong,
        tried,
        connected,
    };
    Ok((outcome, seconds))
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
    let silent = |error: std::io::Error| error.kind() == std::io::ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(silent)
}

/// Real clients that connect one after the other while the flood lasts.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<(u64, u64)>>,
}

impl Clients {
    fn start(lab: &Lab, server: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let body = move || {
            let (mut tried, mut connected) = (0, 0);
            while !theirs.load(Ordering::Relaxed) {
                // The first one starts with the flood, not before it.
                std::thread::sleep(Duration::from_millis(20));
                tried += 1;
                connected += u64::from(TcpStream::connect_timeout(&server, PATIENCE).is_ok());
            }
            Ok((tried, connected))
        };
        Ok(Self { stop, thread: lab.client().spawn("clients", body)? })
    }

    /// How many tried, and how many were connected.
    fn finish(self) -> Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(counts) => counts,
            Err(_) => bail!("the clients' thread panicked"),
        }
    }
}

/// Each turn is the contestant's outcome, the dropping program's and the reflector's, all of one round.
fn summary(spec: &Spec, contestant: &Contestant, turns: &[[Outcome; 3]]) -> Row {
    let figure = |of: &Outcome| match spec.unit() {
        "answers/s" => of.answers_pps,
        "handshakes/s" => of.handshakes_pps,
        _ => of.delivered_pps,
    };
    let middle = |value: &dyn Fn(&[Outcome; 3]) -> f64| median(&sorted(turns.iter().map(value)));
    let sum = |value: &dyn Fn(&Outcome) -> u64| turns.iter().map(|[own, ..]| value(own)).sum();
    let figures = sorted(turns.iter().map(|[own, ..]| figure(own)));
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
        answered: (spec.unit() == "answers/s")
            .then(|| middle(&|[own, ..]| own.answers_pps / (own.delivered_pps - own.dropped_pps))),
        asked_pps: spec.rate,
        delivered_pps: middle(&|[own, ..]| own.delivered_pps),
        cpu_ns: middle(&|[own, ground, _]| own.cpu_ns - ground.cpu_ns),
        wrong: sum(&|own| own.wrong),
        tried: sum(&|own| own.tried),
        connected: sum(&|own| own.connected),
    }
}

/// The rows as a person reads them.
pub fn print(report: &Report<Row>) {
    println!(
        "{:14} {:>9}  {:13} {:>10} {:>10} {:>9} {:>8} {:>8} {:>7} {:>11}",
        "flood",
        "asked",
        "contestant",
        "answers/s",
        "frames/s",
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
        let answers = if row.unit == "frames/s" { "-".to_owned() } else { format!("{:.0}", row.median) };
        let clients =
            if row.tried == 0 { "-".to_owned() } else { format!("{}/{}", row.connected, row.tried) };
        println!(
            "{:14} {asked:>9}  {:13} {answers:>10} {:>10.0} {:>9} {:>8} {:>8.0} {:>7} {clients:>11}",
            row.name,
            row.contestant,
            row.delivered_pps,
            share(row.of_xdp_tx, 2),
            share(row.answered, 4),
            row.cpu_ns,
            row.wrong
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_and_costs_are_taken_within_a_round() {
        let outcome = |answers_pps, cpu_ns| Outcome {
            delivered_pps: 120.0,
            answers_pps,
            dropped_pps: 20.0,
            cpu_ns,
            tried: 3,
            connected: 2,
            ..Outcome::default()
        };
        // A machine twice as fast in the second round.
        let turns = [
            [outcome(50.0, 300.0), outcome(0.0, 200.0), outcome(100.0, 250.0)],
            [outcome(100.0, 150.0), outcome(0.0, 100.0), outcome(200.0, 125.0)],
        ];
        let row = summary(&floods(&[0])[0], &Contestant::Tcpguard, &turns);
        assert_eq!((row.of_xdp_tx, row.answered, row.cpu_ns), (Some(0.5), Some(0.75), 75.0));
        assert_eq!((row.median, row.min, row.max, row.unit), (75.0, 50.0, 100.0, "answers/s"));
        assert_eq!((row.tried, row.connected), (6, 4));
    }

    #[test]
    fn handshakes_are_not_compared_with_frames_that_are_sent_back() {
        let outcome = Outcome { handshakes_pps: 5.0, delivered_pps: 9.0, ..Outcome::default() };
        let of = |name: &str| floods(&[0]).into_iter().find(|spec| spec.name == name).unwrap();
        let row = summary(&of("handshake_v4"), &Contestant::Tcpguard, &[[outcome; 3]]);
        assert_eq!((row.median, row.of_xdp_tx, row.answered), (5.0, None, None));
        let row = summary(&of("ack_v4"), &Contestant::Tcpguard, &[[outcome; 3]]);
        assert_eq!((row.median, row.of_xdp_tx, row.answered), (9.0, Some(1.0), None));
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
    fn every_rate_is_a_row_of_its_own() {
        let names: Vec<_> = floods(&[0, 7]).iter().map(|spec| (spec.name, spec.rate)).collect();
        assert_eq!(names[..3], [("syn_v4", 0), ("syn_v4", 7), ("syn_v6", 0)]);
        assert_eq!(names.last(), Some(&("handshake_v4", 0)));
    }
}
