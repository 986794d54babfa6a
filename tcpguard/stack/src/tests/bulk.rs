//! Many seeded connections over a bad network: every byte arrives once and in order, both ends close, nothing leaks.

use std::time::Duration;

use super::network::{Network, Plan, SynFilter, Weather};
use super::promises::{self, Sabotage};
use super::{Family, Rng};
use crate::{Config, CongestionControl};

const MILLISECOND: Duration = Duration::from_millis(1);

/// How many seeds to try: many more in a long run.
fn seeds(short: u64) -> u64 {
    if std::env::var_os("TCPGUARD_TEST_LONG").is_some() { 10_000 } else { short }
}

fn plan(send: u64, receive: u64) -> Plan {
    Plan { send, receive, answers: false, slow: None }
}

#[test]
fn a_calm_network_moves_a_request_and_its_answer() {
    for family in [Family::V4, Family::V6] {
        let weather = Weather { delay: MILLISECOND, ..Weather::default() };
        let mut network = Network::new(1, family, weather, Config::default());
        network.open(5000, plan(100, 100_000), Plan { answers: true, ..plan(100_000, 100) });
        assert!(network.run());
        assert_eq!(network.finished, [(true, None), (false, None)]);
        assert_eq!(network.server.counters().retransmitted, 0);
        network.drain();
    }
}

#[test]
fn many_connections_over_every_kind_of_weather() {
    let mut failed = 0;
    let mut total = 0;
    for seed in 0..seeds(150) {
        let mut rng = Rng(seed);
        let weather = Weather {
            delay: MILLISECOND * (1 + rng.below(40) as u32),
            jitter: if rng.chance(500) { MILLISECOND * rng.below(20) as u32 } else { Duration::ZERO },
            loss: if rng.chance(700) { rng.below(80) } else { 0 },
            duplicate: rng.below(30),
            corrupt: rng.below(20),
            mark: rng.below(50),
            narrow: None,
            renege: 0,
        };
        let family = if rng.chance(500) { Family::V4 } else { Family::V6 };
        let filter =
            SynFilter { timestamps: rng.chance(300), sack: rng.chance(300), window_scale: rng.chance(300) };
        let config = Config { nagle: rng.chance(300), ecn: rng.chance(500), ..Config::default() };
        let mut network = Network::new(seed, family, weather, config).without(filter);
        let connections = 1 + rng.below(8) as u16;
        for port in 5000..5000 + connections {
            let size = |rng: &mut Rng| match rng.below(4) {
                0 => 0,
                1 => rng.below(100),
                2 => rng.below(20_000),
                _ => rng.below(200_000),
            };
            let (up, down) = (size(&mut rng), size(&mut rng));
            let slow = |rng: &mut Rng| rng.chance(100).then_some(MILLISECOND * 3);
            let answers = rng.chance(500) && up > 0;
            let client = Plan { slow: slow(&mut rng), ..plan(up, down) };
            let server = Plan { slow: slow(&mut rng), answers, ..plan(down, up) };
            network.open(port, client, server);
        }
        assert!(network.run(), "did not end, seed {seed}");
        network.assert_pairs();
        network.drain();
        total += network.finished.len();
        failed += network.finished.iter().filter(|(_, error)| error.is_some()).count();
    }
    // A lost last ACK leaves a client of a silent server to its own timeout: the limit of every cookie.
    assert!(total > 600 && failed * 20 < total, "{failed} of {total} ends saw an error");
}

/// What happened in a network, or in several.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Probes of closed windows.
    probes: u64,
    /// Ends that had everything but the acknowledgement of their FIN.
    unacked: u64,
    /// Connections that learnt of a narrow link.
    narrowed: u64,
    /// Receivers that went back on what they had acknowledged selectively.
    reneged: u64,
    /// Losses that were none.
    undone: u64,
}

impl core::ops::Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            probes: self.probes + other.probes,
            unacked: self.unacked + other.unacked,
            narrowed: self.narrowed + other.narrowed,
            reneged: self.reneged + other.reneged,
            undone: self.undone + other.undone,
        }
    }
}

/// One to three connections with small buffers and slow readers over a bad network.
fn simulate(seed: u64, sabotage: Option<Sabotage>) -> Tally {
    let mut rng = Rng(seed);
    let delay = MILLISECOND * (1 + rng.below(100) as u32);
    let weather = Weather {
        delay,
        jitter: if rng.chance(500) { delay.mul_f64(rng.below(100) as f64 / 100.0) } else { Duration::ZERO },
        loss: if rng.chance(700) { rng.below(100) } else { 0 },
        duplicate: if rng.chance(300) { rng.below(200) } else { 0 },
        corrupt: if rng.chance(300) { rng.below(30) } else { 0 },
        mark: if rng.chance(300) { rng.below(100) } else { 0 },
        narrow: rng.chance(300).then(|| (MILLISECOND * rng.below(3000) as u32, 1280 + rng.below(200) as u16)),
        renege: if seed % 4 == 3 { 50 } else { 0 },
    };
    let family = if rng.chance(500) { Family::V4 } else { Family::V6 };
    let filter =
        SynFilter { timestamps: rng.chance(300), sack: rng.chance(300), window_scale: rng.chance(300) };
    let config = Config {
        recv_buffer: 1 << (12 + rng.below(6)),
        send_buffer: 1 << (12 + rng.below(6)),
        nagle: rng.chance(300),
        ecn: rng.chance(500),
        congestion_control: if rng.chance(500) {
            CongestionControl::Cubic
        } else {
            CongestionControl::NewReno
        },
        ..Config::default()
    };
    let mut network = Network::new(seed, family, weather, config).without(filter).sabotaged(sabotage);
    let connections = 1 + rng.below(3) as u16;
    for port in 5000..5000 + connections {
        let (up, down) = (rng.below(150_000), rng.below(150_000));
        // Long enough for the window to close, and for probes of it to be answered with nothing.
        let slow = |rng: &mut Rng| rng.chance(300).then(|| MILLISECOND * rng.below(500) as u32);
        let client = Plan { slow: slow(&mut rng), ..plan(up, down) };
        let server = Plan { slow: slow(&mut rng), answers: rng.chance(300) && up > 0, ..plan(down, up) };
        network.open(port, client, server);
    }
    assert!(network.run(), "did not end, seed {seed}");
    assert_eq!(network.finished.len(), 2 * usize::from(connections), "seed {seed}");
    assert_eq!(network.incomplete, 0, "{:?}, {weather:?}, seed {seed}", network.finished);
    network.drain();
    let counters = [network.client.counters(), network.server.counters()];
    Tally {
        probes: counters.iter().map(|counters| counters.window_probes).sum(),
        unacked: network.finished.iter().filter(|(_, error)| error.is_some()).count() as u64,
        narrowed: counters.iter().map(|counters| counters.mtu_lowered).sum(),
        reneged: network.reneged,
        undone: counters.iter().map(|counters| counters.reductions_undone).sum(),
    }
}

#[test]
fn every_byte_arrives_and_both_ends_close_whatever_the_network_does() {
    let seeds = seeds(60);
    let tally = (0..seeds).map(|seed| simulate(seed, None)).fold(Tally::default(), core::ops::Add::add);
    let Tally { probes, unacked, narrowed, reneged, undone } = tally;
    assert!(probes > 0 && narrowed > 0 && reneged > 0 && undone > 0, "{tally:?}");
    // Every acknowledgement of a FIN was lost until the other end's TIME_WAIT was over.
    assert!(unacked * 1000 <= seeds, "{unacked} ends were never told that all had arrived");
}

#[test]
fn a_stack_that_breaks_its_promises_is_caught() {
    let broken: [Sabotage; 4] = [
        promises::acknowledge_too_much,
        promises::withdraw_windows,
        promises::send_wrong_bytes,
        promises::never_close,
    ];
    for seed in 0..5 {
        simulate(seed, None);
        for (which, sabotage) in broken.into_iter().enumerate() {
            let outcome = std::panic::catch_unwind(|| simulate(seed, Some(sabotage)));
            assert!(outcome.is_err(), "sabotage {which} was not noticed, seed {seed}");
        }
    }
}

/// Eight connections that exchange little over a bad network, as most do. How many ends saw an error.
fn crowd(seed: u64) -> usize {
    let mut rng = Rng(seed);
    let weather = Weather {
        delay: MILLISECOND * (1 + rng.below(50) as u32),
        jitter: MILLISECOND * rng.below(10) as u32,
        loss: rng.below(60),
        duplicate: rng.below(50),
        corrupt: rng.below(20),
        mark: rng.below(50),
        narrow: rng.chance(200).then(|| (MILLISECOND * rng.below(200) as u32, 1280 + rng.below(200) as u16)),
        renege: if seed % 8 == 7 { 50 } else { 0 },
    };
    let family = if rng.chance(500) { Family::V4 } else { Family::V6 };
    // Hands that go round large tables would take most of the time.
    let config = Config { ecn: rng.chance(500), max_time_wait: 64, max_half_open: 64, ..Config::default() };
    let mut network = Network::new(seed, family, weather, config);
    for port in 5000..5008 {
        // The client speaks first: a lost last ACK is the limit of every cookie.
        let (up, down) = (1 + rng.below(3000), rng.below(9000));
        network.open(port, plan(up, down), Plan { answers: rng.chance(500), ..plan(down, up) });
    }
    assert!(network.run(), "did not end, seed {seed}");
    assert_eq!(network.finished.len(), 16, "seed {seed}");
    network.assert_pairs();
    network.drain();
    network.finished.iter().filter(|(_, error)| error.is_some()).count()
}

#[test]
fn ten_thousand_short_connections_end_with_every_byte_or_an_error() {
    const NETWORKS: u64 = 1250;
    let failed: usize = (0..NETWORKS).map(|seed| crowd(1 << 32 | seed)).sum();
    assert!(failed * 1000 < 16 * NETWORKS as usize, "{failed} ends saw an error");
}

#[test]
fn two_percent_loss_each_way_is_repaired_without_waiting_for_timeouts() {
    let weather = Weather { delay: 5 * MILLISECOND, loss: 20, ..Weather::default() };
    for filter in [SynFilter::default(), SynFilter { timestamps: true, ..SynFilter::default() }] {
        let mut network = Network::new(7, Family::V4, weather, Config::default()).without(filter);
        let size = 10_000_000;
        network.open(5000, plan(10, size), plan(size, 10));
        let start = network.now;
        assert!(network.run());
        let seconds = (network.now - start).as_secs_f64();
        let counters = network.server.counters();
        let rate = size as f64 / seconds / 1e6;
        // 0.93 * MSS / (RTT * sqrt(p)): what AIMD can reach at this loss is a little under 1 MB/s.
        assert!(rate > 0.6, "{rate:.2} MB/s");
        assert!(counters.timeouts < 10, "{} timeouts", counters.timeouts);
        network.drain();
    }
}

#[test]
fn on_a_long_path_with_rare_losses_cubic_is_faster_than_newreno() {
    // By RFC 9438 §5.1 NewReno has some 40 segments in flight here, CUBIC 75 if losses came evenly.
    let weather = Weather { delay: 150 * MILLISECOND, loss: 1, ..Weather::default() };
    let seconds = [CongestionControl::NewReno, CongestionControl::Cubic].map(|congestion_control| {
        let config = Config { congestion_control, ..Config::default() };
        let mut network = Network::new(12, Family::V4, weather, config);
        let size = 30_000_000;
        network.open(5000, plan(10, size), plan(size, 10));
        let start = network.now;
        assert!(network.run());
        assert!(network.server.counters().fast_recoveries > 3);
        let seconds = (network.now - start).as_secs();
        network.drain();
        seconds
    });
    assert!(seconds[1] * 10 < seconds[0] * 9, "{seconds:?}");
}

#[test]
fn without_sack_losses_are_repaired_too() {
    let weather = Weather { delay: 5 * MILLISECOND, loss: 20, ..Weather::default() };
    let filter = SynFilter { sack: true, ..SynFilter::default() };
    let mut network = Network::new(8, Family::V6, weather, Config::default()).without(filter);
    network.open(5000, plan(10, 2_000_000), plan(2_000_000, 10));
    assert!(network.run());
    network.drain();
}

#[test]
fn reordering_alone_causes_few_retransmissions() {
    let weather = Weather { delay: 10 * MILLISECOND, jitter: 2 * MILLISECOND, ..Weather::default() };
    // This network has no bandwidth: of a larger window more would be out of order at once than there may be holes.
    let config = Config { recv_buffer: 512 << 10, ..Config::default() };
    let mut network = Network::new(9, Family::V4, weather, config);
    network.open(5000, plan(10, 3_000_000), plan(3_000_000, 10));
    assert!(network.run());
    let counters = network.server.counters();
    assert!(counters.retransmitted * 50 < counters.segments_out, "{}", counters.retransmitted);
    network.drain();
}

#[test]
fn both_open_at_once() {
    for loss in [0, 150] {
        let weather = Weather { delay: MILLISECOND, loss, ..Weather::default() };
        let mut network = Network::new(10 + loss, Family::V4, weather, Config::default());
        network.open_both_ways(plan(5000, 5000));
        assert!(network.run());
        assert_eq!(network.finished.len(), 2);
        assert!(network.finished.iter().all(|(_, error)| error.is_none()), "{:?}", network.finished);
        network.drain();
    }
}

#[test]
fn hundreds_of_connections_share_the_link() {
    let weather = Weather { delay: 2 * MILLISECOND, loss: 5, ..Weather::default() };
    let mut network = Network::new(11, Family::V4, weather, Config::default());
    for port in 5000..5400 {
        let size = u64::from(port) * 7 % 20_000;
        network.open(port, plan(200, size), Plan { answers: true, ..plan(size, 200) });
    }
    assert!(network.run());
    assert_eq!(network.finished.len(), 800);
    network.drain();
}
