//! The lab itself: it comes up and goes away, and its flood is what it says it is. Needs root.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use xtask::lab::{FloodSpec, GUARD_ADDRESS, Kind, Lab, LabConfig, Received};

const PORT: u16 = 8080;

fn config() -> LabConfig {
    LabConfig::new(concat!(env!("OUT_DIR"), "/tcpguard-lab"))
}

fn namespaces(id: &str) -> usize {
    let listed = xtask::tool::output("ip", ["netns", "list"]).unwrap_or_default();
    listed.lines().filter(|line| line.starts_with(id)).count()
}

#[test]
fn a_lab_comes_up_and_leaves_nothing_behind() -> Result<()> {
    let lab = Lab::up(config())?;
    let (id, dir) = (lab.id().to_owned(), lab.dir());
    assert_eq!(namespaces(&id), 2);
    assert_eq!(echoed(&lab, 3)?, 3);
    drop(lab);
    assert_eq!(namespaces(&id), 0);
    assert!(!dir.exists());
    Ok(())
}

/// The victim is this test itself, run again in a process of its own.
#[test]
fn a_killed_lab_goes_away_by_itself() -> Result<()> {
    const VICTIM: &str = "TCPGUARD_TEST_VICTIM";
    if std::env::var_os(VICTIM).is_some() {
        let lab = Lab::up(config())?;
        let _backend = lab.backend(PORT)?;
        writeln!(std::io::stdout(), "up {}", lab.id())?;
        thread::sleep(Duration::from_secs(60));
        return Ok(());
    }
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["--exact", "--nocapture", "a_killed_lab_goes_away_by_itself"]);
    let mut victim = command.env(VICTIM, "1").stdout(Stdio::piped()).spawn()?;
    let lines = BufReader::new(victim.stdout.take().expect("piped")).lines();
    let id = lines.map_while(Result::ok).find_map(|line| line.strip_prefix("up ").map(str::to_owned));
    victim.kill()?;
    victim.wait()?;
    let id = id.expect("the victim's lab is up");
    let deadline = Instant::now() + Duration::from_secs(10);
    while Path::new("/run/tcpguard-lab").join(&id).exists() && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(namespaces(&id), 0);
    Ok(())
}

/// As after a crash of the machine's memory killer, or of the heir.
#[test]
fn what_a_dead_lab_left_is_swept_away_by_the_next() -> Result<()> {
    let id = format!("tcpguard-{}-dead", std::process::id());
    let dir = Path::new("/run/tcpguard-lab").join(&id);
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("lock"), "")?;
    xtask::tool::run("ip", ["netns", "add", &format!("{id}-guard")])?;
    let _lab = Lab::up(config())?;
    assert_eq!(namespaces(&id), 0);
    assert!(!dir.exists());
    Ok(())
}

#[test]
fn a_process_of_the_lab_ends_with_it() -> Result<()> {
    let lab = Lab::up(config())?;
    let mut backend = lab.backend(PORT)?;
    let pid = backend.process().id();
    drop(lab);
    assert!(backend.process().wait(Duration::from_secs(2)).is_ok(), "nginx {pid} outlived its lab");
    Ok(())
}

/// A kernel listener is the oracle: with syncookies it answers every SYN whose checksums are right, and its answers
/// acknowledge and echo what it read.
#[test]
fn every_spoofed_syn_is_answered_by_a_kernel_listener_and_every_answer_verified() -> Result<()> {
    const TOTAL: u64 = 20_000;
    let mut lab = Lab::up(config())?;
    lab.guard().sysctl(&[("net/ipv4/tcp_syncookies", "2")])?;
    let address = SocketAddrV4::new(GUARD_ADDRESS, PORT);
    let listener = lab.guard().enter(|| TcpListener::bind(address))??;
    // The driver takes live frames only with a program (or GRO) at the receiving end, as the guard's will be.
    let _pass = xtask::lab::StandIn::attach(&lab, xtask::lab::Instead::Pass)?;
    let flood = lab.flood(PORT, FloodSpec { rate: 20_000, total: Some(TOTAL), ..FloodSpec::default() })?;
    let counters = flood.finish()?;
    assert_eq!(counters.delivered(), TOTAL);
    let arrivals = settled(&lab, |seen| seen.of(Received::SpoofedSynAck) >= TOTAL)?;
    drop(listener);
    assert_eq!(arrivals.of(Received::SpoofedSynAck), TOTAL, "{arrivals:?}");
    assert_eq!(arrivals.wrong(), 0, "{arrivals:?}");
    Ok(())
}

/// Without a listener the kernel answers with resets: the sources must be spoofed, and each frame counted once.
#[test]
fn random_acks_and_data_are_well_formed_enough_to_be_reset() -> Result<()> {
    const TOTAL: u64 = 1_000;
    for kind in [Kind::Ack, Kind::Data] {
        let mut lab = Lab::up(config())?;
        let _pass = xtask::lab::StandIn::attach(&lab, xtask::lab::Instead::Pass)?;
        let spec = FloodSpec { kind, rate: 50_000, total: Some(TOTAL), ..FloodSpec::default() };
        assert_eq!(lab.flood(PORT, spec)?.finish()?.delivered(), TOTAL);
        let arrivals = settled(&lab, |seen| seen.of(Received::SpoofedReset) >= TOTAL)?;
        assert_eq!(arrivals.of(Received::SpoofedReset), TOTAL, "{kind:?}: {arrivals:?}");
    }
    Ok(())
}

#[test]
fn a_router_loses_about_the_share_it_is_told() -> Result<()> {
    let lab = Lab::up(LabConfig { loss: Some(0.2), ..config() })?;
    let answered = echoed(&lab, 500)?;
    // Lost 20 % each way: 64 % of 500 come back; six standard deviations either side.
    assert!((255..385).contains(&answered), "{answered}");
    Ok(())
}

#[test]
fn a_bridge_takes_its_time_and_loses_nothing() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(100);
    let lab = Lab::up(LabConfig { delay: Some(DELAY), ..config() })?;
    let address = SocketAddrV4::new(GUARD_ADDRESS, PORT);
    let _listener = lab.guard().enter(|| TcpListener::bind(address))??;
    let start = Instant::now();
    let _stream = lab.client().enter(|| TcpStream::connect(address))??;
    assert!(start.elapsed() >= DELAY, "{:?}", start.elapsed());
    assert_eq!(echoed(&lab, 100)?, 100);
    Ok(())
}

#[test]
fn connections_come_from_all_of_the_clients_addresses_while_they_take_turns() -> Result<()> {
    let lab = Lab::up(LabConfig { client_addresses: 3, ..config() })?;
    let server = lab.guard().enter(|| TcpListener::bind((GUARD_ADDRESS, 80)))??;
    let source = || -> Result<IpAddr> {
        let _client = lab.client().enter(|| TcpStream::connect((GUARD_ADDRESS, 80)))??;
        Ok(server.accept()?.1.ip())
    };
    let turns = lab.take_turns()?;
    let (mut seen, deadline) = (BTreeSet::new(), Instant::now() + Duration::from_secs(5));
    while seen.len() < 3 && Instant::now() < deadline {
        seen.insert(source()?);
    }
    let addresses: BTreeSet<_> = lab.client_addresses().into_iter().map(IpAddr::V4).collect();
    assert_eq!(seen, addresses);
    drop(turns);
    let last = source()?;
    thread::sleep(Duration::from_millis(200));
    assert_eq!(source()?, last);
    Ok(())
}

/// How many of `count` datagrams from the client come back from the guarded host.
fn echoed(lab: &Lab, count: u32) -> Result<u32> {
    let address = SocketAddrV4::new(GUARD_ADDRESS, 7);
    let server = lab.guard().enter(|| UdpSocket::bind(address))??;
    let client = lab.client().enter(|| UdpSocket::bind("0.0.0.0:0"))??;
    server.set_read_timeout(Some(Duration::from_millis(500)))?;
    client.set_read_timeout(Some(Duration::from_millis(500)))?;
    let mut datagram = [0; 64];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut datagram = [0; 64];
            while let Ok((len, from)) = server.recv_from(&mut datagram) {
                let _ = server.send_to(&datagram[..len], from);
            }
        });
        scope.spawn(|| {
            for _ in 0..count {
                let _ = client.send_to(&[1; 32], address);
                thread::sleep(Duration::from_micros(200));
            }
        });
        Ok(std::iter::from_fn(|| client.recv_from(&mut datagram).ok()).count() as u32)
    })
}

fn settled(lab: &Lab, done: impl Fn(&xtask::lab::Arrivals) -> bool) -> Result<xtask::lab::Arrivals> {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = lab.verifier().arrivals()?;
        if done(&seen) || Instant::now() > deadline {
            return Ok(seen);
        }
        thread::sleep(Duration::from_millis(20));
    }
}
