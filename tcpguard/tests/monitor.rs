//! `tcpguard monitor` before a live daemon: what it shows of whom, what it writes, and that nobody has to wait for one
//! that does not read. And what XDP logs itself. Needs root.

mod support;

use std::io::{BufRead as _, BufReader};
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData, RingBuf};
use pcap_parser::pcapng::OptionCode;
use pcap_parser::{Block, PcapNGCapture};
use rustix::process::Signal;
use rustix::thread::{CpuSet, sched_getcpu, sched_setaffinity};
use serde_json::Value;
use support::raw::{Outgoing, RawPort, linux_options};
use support::setup::*;
use tcpguard_common::flow::V6;
use tcpguard_common::map::{Settings, name};
use tcpguard_common::packet::{AnySegment, Flags, parse};
use tcpguard_common::seq::Seq;
use tcpguard_common::trace::Wanted;
use xtask::lab::{FloodSpec, GUARD_INTERFACE, Process};

const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 99);

/// A running `tcpguard monitor`.
struct Monitor {
    process: Process,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Monitor {
    /// Starts it and waits until packets are recorded for it.
    fn start(setup: &Setup, arguments: &[&str]) -> Result<Self> {
        let said = || setup.said().matches("packets are recorded for a monitor").count();
        let before = said();
        let mut command = Command::new(BINARY);
        command.arg("monitor").args(arguments).arg("--control").arg(setup.control());
        let mut process = Process::spawn(command.stdout(Stdio::piped()).stderr(Stdio::piped()))?;
        let lines = BufReader::new(process.child().stdout.take().context("no pipe")?).lines();
        eventually("recording", || Ok(said() > before))?;
        Ok(Self { process, lines })
    }

    fn next(&mut self) -> Result<Value> {
        let line = self.lines.next().context("it ended")??;
        let value: Value = serde_json::from_str(&line)?;
        ensure!(value["version"] == 1, "{line}");
        Ok(value)
    }

    /// Packets up to the one that `last` recognises.
    fn packets(&mut self, last: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
        let mut packets = Vec::new();
        loop {
            let packet = self.next()?;
            ensure!(packet["type"] == "packet", "{packet}");
            packets.push(packet);
            if packets.last().is_some_and(&last) {
                return Ok(packets);
            }
        }
    }

    fn kill(self, setup: &Setup, left: usize) -> Result<()> {
        self.process.kill()?;
        eventually("the daemon notices", || {
            Ok(setup.said().contains(&format!("a monitor has gone left={left}")))
        })
    }
}

fn is(packet: &Value, direction: &str, reason: &str, flags: &str) -> bool {
    packet["direction"] == direction && packet["reason"] == reason && packet["flags"] == flags
}

fn setting(setup: &Setup) -> Result<Wanted> {
    let map = MapData::from_pin(setup.lab.pin_dir().join(name::SETTINGS))?;
    let settings: Array<_, Settings> = Map::Array(map).try_into()?;
    Ok(settings.get(&0, 0)?.trace)
}

/// How much is in the ring. Looking takes it out.
fn recorded(setup: &Setup) -> Result<usize> {
    let map = MapData::from_pin(setup.lab.pin_dir().join(name::TRACE))?;
    let mut ring: RingBuf<_> = Map::RingBuf(map).try_into()?;
    Ok(std::iter::from_fn(|| ring.next().map(drop)).count())
}

#[test]
fn a_connection_is_shown_packet_by_packet_both_ways_until_the_monitor_is_killed() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.answer_with_cookies(SERVICE)?;
    let mut monitor = Monitor::start(&setup, &["--json"])?;
    assert_ne!(setting(&setup)?, Wanted::default());
    setup.fetch()?;
    // HTTP/1.0: the server closes first, and acknowledges the client's FIN last.
    let closed = |packet: &Value| is(packet, "in", "flow-known", "F.");
    let packets = monitor.packets(closed)?;
    assert!(
        is(&packets[0], "in", "cookie-sent", "S") && packets[0]["verdict"] == "answered",
        "{}",
        packets[0]
    );
    assert!(is(&packets[1], "out", "cookie-sent", "S.") && packets[1]["verdict"] == "sent", "{}", packets[1]);
    assert!(
        is(&packets[2], "in", "ack-valid", ".") && packets[2]["verdict"] == "redirected",
        "{}",
        packets[2]
    );
    assert_eq!(packets[1]["ack"].as_u64(), packets[0]["seq"].as_u64().map(|seq| (seq + 1) & 0xffff_ffff));
    let sent: u64 = packets
        .iter()
        .filter(|packet| packet["reason"] == "engine")
        .filter_map(|packet| packet["data_len"].as_u64())
        .sum();
    assert!(sent > 1000, "the engine's output, with the file in it: {sent}");
    for packet in &packets {
        let (src, dst) = (&packet["src"], &packet["dst"]);
        let local = if packet["direction"] == "in" { dst } else { src };
        assert_eq!((local, &packet["service"]), (&SERVICE.to_string().into(), &SERVICE.to_string().into()));
        assert_eq!(packet["interface"], GUARD_INTERFACE);
    }
    let times: Vec<_> = packets.iter().filter_map(|packet| packet["time_ns"].as_u64()).collect();
    assert!(times.is_sorted(), "{times:?}");

    monitor.kill(&setup, 0)?;
    assert_eq!(setting(&setup)?, Wanted::default());
    recorded(&setup)?;
    setup.fetch()?;
    assert_eq!(recorded(&setup)?, 0, "recorded for nobody");
    Ok(())
}

#[test]
fn several_monitors_see_what_each_asked_for() -> Result<()> {
    let setup = Setup::new()?;
    let second = setup.second_link()?;
    let _daemon = setup.daemon_from_file(&Setup::second_guarded())?;
    for service in [SERVICE, second] {
        setup.answer_with_cookies(service)?;
    }
    let bad = one_line(&setup.ask(&["monitor", "--reason", "nonsense"])?, 2)?;
    assert!(bad.contains("unknown reason `nonsense`"), "{bad}");
    let bad = one_line(&setup.ask(&["monitor", "--service", "192.0.2.1:1"])?, 2)?;
    assert!(bad.contains("no service 192.0.2.1:1"), "{bad}");

    let mut invalid = Monitor::start(&setup, &["--json", "--reason", "ack-invalid"])?;
    let mut of_second = Monitor::start(&setup, &["--json", "--service", &second.to_string()])?;
    let mut text = Monitor::start(&setup, &["--count", "2"])?;
    setup.fetch()?;
    let raw = RawPort::open(&setup.lab, PEER);
    let forged = Outgoing { seq: Seq(1), ack: Seq(2), flags: Flags::ACK, ..Outgoing::default() };
    raw.send(&raw.frame(5000, SERVICE.port(), &forged));
    setup.fetch_from(second)?;

    let first = invalid.next()?;
    assert!(is(&first, "in", "ack-invalid", ".") && first["verdict"] == "dropped", "{first}");
    assert_eq!(first["src"], format!("{PEER}:5000"));
    let packets = of_second.packets(|packet| packet["reason"] == "engine" && packet["data_len"] != 0)?;
    assert!(is(&packets[0], "in", "cookie-sent", "S"), "{}", packets[0]);
    assert!(packets.iter().all(|packet| packet["service"] == second.to_string()), "{packets:?}");
    let lines = text.lines.by_ref().collect::<std::io::Result<Vec<_>>>()?;
    assert!(
        lines[0].contains(" > 10.77.0.1:80 [S] seq ") && lines[0].ends_with(": answered, cookie-sent"),
        "{lines:?}"
    );
    assert!(lines[1].contains("10.77.0.1:80 > ") && lines[1].ends_with(": sent, cookie-sent"), "{lines:?}");
    assert_eq!((lines.len(), text.process.wait(SOON)?.code()), (2, Some(0)));

    of_second.kill(&setup, 1)?;
    assert_eq!(setting(&setup)?.reasons.count_ones(), 1, "only what is left to be watched");
    invalid.kill(&setup, 0)
}

#[test]
fn a_flood_is_shown_in_part_and_a_monitor_that_stands_still_delays_nobody() -> Result<()> {
    const PACKETS: u64 = 200_000;
    let mut setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.answer_with_cookies(SERVICE)?;
    let mut monitor = Monitor::start(&setup, &["--json"])?;
    let standing = Monitor::start(&setup, &["--json"])?;
    standing.process.signal(Signal::STOP)?;
    let spec = FloodSpec { rate: 40_000, total: Some(PACKETS), ..FloodSpec::default() };
    let flood = setup.lab.flood(SERVICE.port(), spec)?;
    for _ in 0..20 {
        setup.fetch()?;
    }
    let delivered = flood.finish()?.delivered();
    ensure!(delivered > PACKETS / 2, "{delivered} delivered");
    // Each SYN and its answer is shown or counted.
    let (mut shown, mut lost) = (0, 0);
    while shown + lost < 2 * delivered {
        let event = monitor.next()?;
        match event["type"].as_str() {
            Some("packet") => shown += 1,
            Some("lost") => {
                let part = |name: &str| event[name].as_u64().unwrap_or_default();
                lost = part("beyond_rate") + part("ring_full") + part("unread");
            }
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert!(lost > shown, "{shown} shown, {lost} lost");
    standing.kill(&setup, 1)?;
    monitor.kill(&setup, 0)?;
    setup.fetch()
}

/// What a capture says of each packet: whether it was sent, its segment, and its comment.
fn capture(path: &Path) -> Result<Vec<(bool, Vec<u8>, String)>> {
    let bytes = std::fs::read(path)?;
    let capture = PcapNGCapture::from_file(&bytes).map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut packets = Vec::new();
    for block in &capture.sections[0].blocks {
        let Block::EnhancedPacket(block) = block else { continue };
        let option = |code| {
            let option = block.options.iter().find(|option| option.code == code);
            option
                .map(|option| option.value()[..usize::from(option.len)].to_vec())
                .context("an option is missing")
        };
        let comment = String::from_utf8(option(OptionCode::Comment)?)?;
        let sent = option(OptionCode(2))?[0] == 2;
        packets.push((sent, block.data[..block.caplen as usize].to_vec(), comment));
    }
    Ok(packets)
}

#[test]
fn a_capture_is_readable_at_any_time_and_carries_the_reasons() -> Result<()> {
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&[])?;
    setup.answer_with_cookies(SERVICE)?;
    let path = setup.lab.dir().join("capture.pcapng");
    let monitor = Monitor::start(&setup, &["-w", &path.display().to_string()])?;
    let open = setup.keep_alive()?;
    let request = "redirected: ack-valid, queue ";
    eventually("the capture", || {
        Ok(capture(&path)
            .is_ok_and(|packets| packets.iter().any(|(_, _, comment)| comment.starts_with(request))))
    })?;
    std::thread::sleep(Duration::from_millis(100));
    monitor.kill(&setup, 0)?;
    let packets = capture(&path)?;
    let (sent, syn_ack, comment) = &packets[1];
    assert!(*sent && comment.starts_with("sent: cookie-sent, queue "), "{comment}");
    assert!(comment.ends_with(&format!(", service {SERVICE}")), "{comment}");
    let Ok(AnySegment::V4(segment)) = parse(&syn_ack[..]) else { panic!("{syn_ack:02x?}") };
    assert!(segment.checksum_ok(syn_ack));
    assert_eq!(segment.tcp.flags, Flags::SYN | Flags::ACK);
    assert_eq!(u16::from_be_bytes(segment.tcp.dst_port), open.local_addr()?.port());
    assert!(
        packets.iter().any(|(sent, _, comment)| *sent && comment.starts_with("sent: engine")),
        "{packets:?}"
    );
    Ok(())
}

/// What XDP has logged, a line each.
fn logged(setup: &Setup) -> Vec<String> {
    let said = setup.said();
    said.lines().filter(|line| line.contains("XDP judged a segment")).map(str::to_owned).collect()
}

/// How many verdicts these lines say were not logged.
fn missed(lines: &[String]) -> u64 {
    let missed = lines.iter().filter_map(|line| line.rsplit_once("missed=")?.1.parse::<u64>().ok());
    missed.sum()
}

#[test]
fn xdp_logs_its_verdicts_while_xdp_log_is_on_and_no_more_of_them_than_it_may() -> Result<()> {
    const FORGED: u16 = 2000;
    let host = |last| V6([0xfd, 0x77, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
    let setup = Setup::new()?;
    let _daemon = setup.daemon(&["--protect", "[fd77::1]:80=respond:echo,cookie"])?;
    setup.answer_with_cookies(SERVICE)?;
    // Each CPU counts for itself what it does not log.
    let mut here = CpuSet::new();
    here.set(sched_getcpu());
    sched_setaffinity(None, &here)?;
    let raw = RawPort::open(&setup.lab, PEER);
    let syn = Outgoing { seq: Seq(7), flags: Flags::SYN, options: linux_options(), ..Outgoing::default() };
    let forged = Outgoing { seq: Seq(1), ack: Seq(2), flags: Flags::ACK, ..Outgoing::default() };
    let answered = |port: u16| -> Result<()> {
        let before = setup.reason("cookie-sent")?;
        raw.send(&raw.frame(port, SERVICE.port(), &syn));
        eventually("it is answered", || Ok(setup.reason("cookie-sent")? > before))
    };
    answered(4000)?;
    ensure!(logged(&setup).is_empty(), "{:?}", logged(&setup));

    let said = setup.text(&["tune", "xdp-log", "on"])?;
    assert_eq!(said, "xdp-log: off -> on\n");
    answered(4001)?;
    raw.send(&raw.between(host(0x99), host(1), 4002, 80, &forged));
    raw.send(&raw.between(host(0x99), host(1), 4003, 80, &syn));
    let expected = [
        ("answered", "cookie-sent", format!("from={PEER}:4001 to={SERVICE}")),
        ("dropped", "ack-invalid", "from=[fd77::99]:4002 to=[fd77::1]:80".to_owned()),
        ("answered", "cookie-sent", "from=[fd77::99]:4003 to=[fd77::1]:80".to_owned()),
    ];
    eventually("XDP has its say", || Ok(logged(&setup).len() >= expected.len()))?;
    let lines = logged(&setup);
    for (line, (verdict, reason, ends)) in lines.iter().zip(&expected) {
        let fields = format!(
            "interface=\"{GUARD_INTERFACE}\" verdict=\"{verdict}\" reason=\"{reason}\" dry_run=false {ends} missed=0"
        );
        ensure!(line.contains(" DEBUG ") && line.ends_with(&fields), "{line}: not {fields}");
    }
    assert_eq!(lines.len(), expected.len(), "{lines:?}");
    assert_eq!(recorded(&setup)?, 0, "nobody watches");

    // Of what comes faster than may be logged the next message tells.
    for port in 10_000..10_000 + FORGED {
        raw.send(&raw.frame(port, SERVICE.port(), &forged));
    }
    eventually("all are judged", || Ok(setup.reason("ack-invalid")? == 1 + u64::from(FORGED)))?;
    let mut port = 5000;
    eventually("the log says that it has not all", || {
        port += 1;
        answered(port)?;
        Ok(missed(&logged(&setup)) > 0)
    })?;
    let lines = logged(&setup);
    let judged = (port - 5000 + FORGED) as usize + expected.len();
    ensure!(lines.len() < judged / 2, "{} of {judged}", lines.len());
    ensure!(lines.len() as u64 + missed(&lines) <= judged as u64, "{lines:?}");

    setup.text(&["tune", "xdp-log", "off"])?;
    let before = logged(&setup).len();
    answered(6000)?;
    assert_eq!(logged(&setup).len(), before);
    setup.fetch()
}
