//! Attacks as `tcpguard events`, `status`, the log and a hook tell of them. Needs root.

mod support;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use support::setup::{BINARY, SERVICE, Setup, eventually};
use xtask::lab::{CLIENT_INTERFACE, FloodSpec, Kind, Process};

/// Attacks that are on, by kind.
fn ongoing(setup: &Setup, kind: &str) -> Result<Option<Value>> {
    let mut events = setup.json(&["events"])?;
    let ongoing = events["ongoing"].as_array_mut().context("no list")?;
    Ok(ongoing.iter_mut().find(|attack| attack["kind"] == kind).map(Value::take))
}

/// Waits until an attack of this kind is on and as much is known of it as there should be.
fn begun(setup: &Setup, kind: &str, is_known: impl Fn(&Value) -> bool) -> Result<Value> {
    let (mut found, mut last) = (None, None);
    let waited = eventually(&format!("{kind} begins"), || {
        last = ongoing(setup, kind)?;
        found = last.clone().filter(&is_known);
        Ok(found.is_some())
    });
    waited.with_context(|| format!("{last:?}"))?;
    found.context("it began")
}

/// The prefixes that an attack comes from.
fn prefixes(attack: &Value) -> Vec<&str> {
    let shares = attack["prefixes"].as_array().into_iter().flatten();
    let mut prefixes: Vec<_> = shares.filter_map(|share| share["prefix"].as_str()).collect();
    prefixes.sort_unstable();
    prefixes
}

/// Somebody elsewhere who downloads the large file at his leisure, a few megabytes a second: as long as it lasts, there is always
/// something on its way to him.
struct Download {
    ended: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<std::io::Result<usize>>,
}

impl Download {
    /// Where he is.
    const FROM: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
    const PAUSE: Duration = Duration::from_millis(20);

    fn start(setup: &Setup) -> Result<Self> {
        let client = setup.lab.client();
        client.ip(&format!("addr add {}/32 dev {CLIENT_INTERFACE}", Self::FROM))?;
        let mut stream = client.enter(|| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            socket.bind(&SocketAddrV4::new(Self::FROM, 0).into())?;
            socket.connect(&SERVICE.into())?;
            Ok::<_, std::io::Error>(TcpStream::from(socket))
        })??;
        stream.write_all(b"GET /large HTTP/1.0\r\n\r\n")?;
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        let thread = std::thread::spawn(move || {
            let (mut block, mut total) = (vec![0; 64 << 10], 0);
            while !told.load(Ordering::Relaxed) {
                total += stream.read(&mut block)?;
                std::thread::sleep(Self::PAUSE);
            }
            Ok(total)
        });
        Ok(Self { ended, thread })
    }

    fn finish(self) -> Result<()> {
        self.ended.store(true, Ordering::Relaxed);
        let total = self.thread.join().ok().context("the download panicked")??;
        ensure!(total > 256 << 10, "{total} bytes");
        Ok(())
    }
}

fn over(setup: &Setup, kind: &str) -> Result<()> {
    eventually(&format!("{kind} is over"), || Ok(ongoing(setup, kind)?.is_none()))
}

#[test]
fn each_kind_of_attack_is_told_once_when_it_begins_and_once_when_it_is_over() -> Result<()> {
    let mut setup = Setup::new()?;
    setup.backend.file("large", 32 << 20)?;
    let heard = setup.lab.dir().join("heard");
    let hook = format!("cat >> {}", heard.display());
    let _daemon = setup.daemon_from_file(&format!(
        "[events]\nhook = [\"/bin/sh\", \"-c\", {hook:?}]\nhook_time = \"5s\"\n\
         [tunables]\nattack-syns = 500\nattack-acks = 500\nattack-connections = 5\nattack-stalls = 1\nattack-calm-time = \"1s\"\n"
    ))?;
    assert_eq!(setup.text(&["events"])?, "no attack since the daemon started\n");
    let followed = setup.lab.dir().join("followed");
    let mut follower = std::process::Command::new(BINARY);
    follower.args(["events", "--follow", "--json", "--control"]).arg(setup.control());
    let follower = Process::spawn(follower.stdout(File::create(&followed)?))?;

    // SYNs from two /24 and no more, so that most sources are met more than once.
    let sources = (Ipv4Addr::new(198, 18, 4, 0), 23);
    let spec = FloodSpec { rate: 20_000, sources, ..FloodSpec::default() };
    let flood = setup.lab.flood(SERVICE.port(), spec)?;
    let both = ["198.18.4.0/24", "198.18.5.0/24"];
    let attack = begun(&setup, "syn-flood", |attack| prefixes(attack) == both)?;
    assert_eq!(attack["service"], SERVICE.to_string());
    let number = |name: &str| attack[name].as_u64().with_context(|| format!("no {name}: {attack}"));
    ensure!(number("peak")? > 500 && number("rate")? <= number("peak")?, "{attack}");
    ensure!((2..=512).contains(&number("sources_seen")?), "{attack}");
    ensure!(number("sources_at_least")? >= number("sources_seen")?, "{attack}");
    let status = setup.text(&["status"])?;
    ensure!(status.contains(&format!("under attack: {SERVICE}: syn-flood since ")), "{status}");
    // A monitor beside it sees what it asks for, and no more.
    let seen =
        setup.text(&["monitor", "--count", "3", "--reason", "cookie-sent,syn-stateful,reply-budget"])?;
    assert_eq!(seen.lines().count(), 3, "{seen}");
    flood.stop()?;
    over(&setup, "syn-flood")?;

    let spec = FloodSpec { kind: Kind::Ack, rate: 20_000, ..FloodSpec::default() };
    let flood = setup.lab.flood(SERVICE.port(), spec)?;
    // 131 072 sources, of which hardly any comes twice.
    begun(&setup, "ack-flood", |attack| attack["sources_at_least"].as_u64() > Some(2000))?;
    flood.stop()?;
    over(&setup, "ack-flood")?;
    ensure!(ongoing(&setup, "syn-flood")?.is_none());

    eventually("there are connections enough", || {
        (0..10).try_for_each(|_| setup.fetch())?;
        Ok(ongoing(&setup, "connection-flood")?.is_some())
    })?;
    over(&setup, "connection-flood")?;

    let slow = || -> Result<TcpStream> {
        let mut stream = setup.connect()?;
        stream.write_all(b"GET /large HTTP/1.0\r\n\r\n")?;
        Ok(stream)
    };
    let downloads = Download::start(&setup)?;
    let readers = [slow()?, slow()?];
    let attack = begun(&setup, "slow-read", |attack| attack["sampled"].as_u64() > Some(0))?;
    assert_eq!((&attack["peak"], &attack["sources_seen"]), (&2.into(), &1.into()), "{attack}");
    assert_eq!(prefixes(&attack), ["10.77.0.0/24"], "who is in the middle of a download is none of them");
    downloads.finish()?;
    drop(readers);
    over(&setup, "slow-read")?;

    let listed = setup.json(&["events"])?;
    let events = listed["events"].as_array().context("no events")?;
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            (
                event["event"].as_str().unwrap_or_default(),
                event["attack"]["kind"].as_str().unwrap_or_default(),
            )
        })
        .collect();
    let kinds = ["syn-flood", "ack-flood", "connection-flood", "slow-read"];
    let expected: Vec<_> =
        kinds.into_iter().flat_map(|kind| [("attack-began", kind), ("attack-ended", kind)]).collect();
    assert_eq!(told, expected);
    for (number, event) in (1..).zip(events) {
        assert_eq!(event["number"], number);
        let attack = &event["attack"];
        let ended = attack["ended_ms"].as_u64();
        assert_eq!(ended.is_some(), event["event"] == "attack-ended");
        ensure!(ended.is_none_or(|ended| Some(ended) > attack["began_ms"].as_u64()), "{event}");
    }
    // Whoever listens hears the same, and the log has a line for each.
    let lines = |path: &std::path::Path| -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        text.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
    };
    for path in [&heard, &followed] {
        eventually("everything was heard", || Ok(lines(path)?.len() == events.len()))?;
        for (heard, event) in lines(path)?.iter_mut().zip(events) {
            let version = heard.as_object_mut().and_then(|heard| heard.remove("version"));
            assert_eq!((version, &*heard), (Some(1.into()), event));
        }
    }
    assert_eq!(listed["hook"]["failed"], 0);
    let log = setup.said();
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("an attack has begun"), count("an attack is over")), (4, 4), "{log}");
    let text = setup.text(&["events"])?;
    ensure!(text.starts_with("EVENT  TIME ") && text.lines().count() == 9, "{text}");
    follower.kill()?;
    setup.fetch()
}
