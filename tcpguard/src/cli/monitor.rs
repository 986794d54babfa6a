//! `tcpguard monitor`: single packets as they come and go, and why they met their verdict.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use schemars::JsonSchema;
use serde::Serialize;
use tcpguard_common::packet::Options;
use tcpguard_common::trace::SNAP;

use crate::control::client::Client;
use crate::control::protocol::{Packet, PacketsLost, Reply, Request};
use crate::telemetry::packet::{self, Headers, TcpHeader};
use crate::telemetry::pcapng;

use super::output::{time_of_day, write_json};
use super::{Failure, refused, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Shown are segments to protected services, each with its verdict and reason, and what leaves: answers of XDP under the
reason of what they answer, everything else under `engine`. Each CPU and each engine records about a thousand packets
a second; how many there were beyond that is said. Nothing is recorded while no monitor runs.

Examples:
  tcpguard monitor
  tcpguard monitor --reason ack-invalid --reason syn-bad-checksum
  tcpguard monitor --service 192.0.2.1:443 --json | jq .reason
  tcpguard monitor --count 1000 -w flood.pcapng     then: tshark -r flood.pcapng")]
pub(super) struct Args {
    /// Only packets of this reason, as `tcpguard stats` names them, or `engine`; may be repeated
    #[arg(long = "reason", value_name = "NAME", value_delimiter = ',')]
    reasons: Vec<String>,
    /// Only packets of this service, such as 192.0.2.1:443; may be repeated
    #[arg(long = "service", value_name = "ADDRESS:PORT", value_delimiter = ',')]
    services: Vec<SocketAddr>,
    /// End after N packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Print a line of JSON for each packet
    #[arg(long)]
    json: bool,
    /// Write a capture for Wireshark or tcpdump instead of printing; the reasons are in the comments
    #[arg(short, long, value_name = "FILE.pcapng", conflicts_with = "json")]
    write: Option<PathBuf>,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let request = Request::Monitor { reasons: args.reasons.clone(), services: args.services.clone() };
    let mut sink = match &args.write {
        Some(path) => Sink::capture(path)?,
        None if args.json => Sink::Json,
        None => Sink::Text,
    };
    let (mut left, mut result) = (args.count, Ok(()));
    client.follow(&request, |reply| {
        result = show(&mut sink, reply, &mut left);
        if result.is_err() || left == Some(0) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })?;
    result?;
    match left {
        Some(0) => Ok(()),
        _ => Err(Failure::Failed("the daemon hung up".to_owned())),
    }
}

fn show(sink: &mut Sink, reply: Reply, left: &mut Option<u64>) -> Result<(), Failure> {
    match reply {
        Reply::Monitoring {} => Ok(()),
        Reply::Packet(packet) => {
            sink.packet(&packet)?;
            *left = left.map(|left| left - 1);
            Ok(())
        }
        Reply::PacketsLost(lost) => Ok(sink.lost(&lost)?),
        Reply::Error(refusal) => Err(refused(refusal)),
        _ => Err(unexpected()),
    }
}

/// Where packets go.
enum Sink {
    Text,
    Json,
    Capture(pcapng::Writer<BufWriter<File>>),
}

impl Sink {
    fn capture(path: &Path) -> Result<Self, Failure> {
        let application = concat!("tcpguard ", env!("CARGO_PKG_VERSION"));
        let writer = File::create(path)
            .and_then(|file| pcapng::Writer::new(BufWriter::new(file), application, SNAP as u32));
        writer.map(Self::Capture).map_err(|error| Failure::BadInput(format!("{}: {error}", path.display())))
    }

    fn packet(&mut self, packet: &Packet) -> io::Result<()> {
        let bytes = bytes(&packet.frame);
        let headers = packet::headers(&bytes, packet.len as usize);
        match self {
            Self::Text => writeln!(io::stdout().lock(), "{}", line(packet, headers.as_ref())),
            Self::Json => {
                write_json(&mut io::stdout().lock(), &Event::Packet(Shown::new(packet, headers.as_ref())))
            }
            Self::Capture(writer) => writer.write(&pcapng::Packet {
                interface: &packet.interface,
                time: packet.time_ns,
                outbound: packet.direction == "out",
                bytes: &bytes,
                len: packet.len,
                comment: &comment(packet),
            }),
        }
    }

    /// Beside the packets, not among them, unless each line says what it is.
    fn lost(&mut self, lost: &PacketsLost) -> io::Result<()> {
        match self {
            Self::Json => write_json(&mut io::stdout().lock(), &Event::Lost(lost)),
            Self::Text | Self::Capture(_) => {
                let PacketsLost { beyond_rate, ring_full, unread } = lost;
                writeln!(
                    io::stderr(),
                    "tcpguard: not shown so far: {beyond_rate} beyond the rate, {ring_full} for a full ring, {unread} \
                     read too slowly"
                )
            }
        }
    }
}

/// What a line of JSON is about.
#[derive(Serialize, JsonSchema)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub(super) enum Event<'a> {
    /// A packet.
    Packet(Shown<'a>),
    /// More packets were missed.
    Lost(&'a PacketsLost),
}

/// A packet as programs read it. What cannot be read of it is null.
#[derive(Serialize, JsonSchema)]
pub(super) struct Shown<'a> {
    #[serde(flatten)]
    packet: &'a Packet,
    /// Who sent it.
    src: Option<SocketAddr>,
    /// Whom it is for.
    dst: Option<SocketAddr>,
    /// Its flags, a letter each, as tcpdump writes them.
    flags: Option<String>,
    /// Its sequence number.
    seq: Option<u32>,
    /// Its acknowledgment number.
    ack: Option<u32>,
    /// Its window field.
    window: Option<u16>,
    /// Bytes of data in it.
    data_len: Option<usize>,
}

impl<'a> Shown<'a> {
    fn new(packet: &'a Packet, headers: Option<&Headers>) -> Self {
        let tcp = headers.and_then(|headers| headers.tcp.as_ref());
        Self {
            packet,
            src: headers.map(|headers| headers.src),
            dst: headers.map(|headers| headers.dst),
            flags: tcp.map(|tcp| packet::flags(tcp.flags)),
            seq: tcp.map(|tcp| tcp.seq),
            ack: tcp.map(|tcp| tcp.ack),
            window: tcp.map(|tcp| tcp.window),
            data_len: tcp.map(|tcp| tcp.data_len),
        }
    }
}

fn line(packet: &Packet, headers: Option<&Headers>) -> String {
    let Packet { time_ns, direction, interface, queue, verdict, dry_run, reason, len, .. } = packet;
    let dry_run = if *dry_run { " (dry run)" } else { "" };
    let what = headers.map_or_else(|| format!("{len} bytes"), |headers| addressed(headers, *len));
    format!(
        "{} {direction:3} {interface}/{queue} {what}: {verdict}{dry_run}, {reason}",
        time_of_day(*time_ns)
    )
}

fn addressed(headers: &Headers, len: u32) -> String {
    let Headers { src, dst, vlans, tcp } = headers;
    let vlans: String = vlans.iter().map(|vlan| format!("vlan {vlan} ")).collect();
    let Some(TcpHeader { flags, seq, ack, window, data_len, options }) = tcp else {
        return format!("{vlans}{src} > {dst} malformed, {len} bytes");
    };
    let options = options.as_ref().map_or_else(|| " bad options".to_owned(), said);
    let flags = packet::flags(*flags);
    format!("{vlans}{src} > {dst} [{flags}] seq {seq} ack {ack} win {window}{options} data {data_len}")
}

fn said(options: &Options) -> String {
    let Options { mss, window_scale, sack_permitted, timestamps, sack: _ } = options;
    let mut said = String::new();
    said += &mss.map(|mss| format!(" mss {mss}")).unwrap_or_default();
    said += &window_scale.map(|shift| format!(" wscale {shift}")).unwrap_or_default();
    said += if *sack_permitted { " sackOK" } else { "" };
    said + &timestamps.map(|(value, echo)| format!(" ts {value}/{echo}")).unwrap_or_default()
}

fn comment(packet: &Packet) -> String {
    let Packet { queue, service, verdict, dry_run, reason, .. } = packet;
    let dry_run = if *dry_run { " (dry run)" } else { "" };
    let service = service.map(|service| format!(", service {service}")).unwrap_or_default();
    format!("{verdict}{dry_run}: {reason}, queue {queue}{service}")
}

/// The bytes that hexadecimal digits stand for, up to the first that is none.
fn bytes(hex: &str) -> Vec<u8> {
    hex.as_bytes()
        .chunks_exact(2)
        .map_while(|pair| u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A SYN of 192.0.2.1:40000 to 198.51.100.1:80, with MSS, in VLAN 5.
    const SYN: &str = "02000000000202000000000181000005080045000\
        02c00004000400600\
        00c0000201c63364019c40005000000007000000006002fde800000000020405b4";

    fn syn() -> Packet {
        Packet {
            time_ns: 1_700_000_000_123_456_789,
            direction: "in".into(),
            interface: "eth0".into(),
            queue: 3,
            service: Some("198.51.100.1:80".parse().unwrap()),
            dry_run: false,
            verdict: "answered".into(),
            reason: "cookie-sent".into(),
            len: 62,
            frame: SYN.replace(' ', ""),
        }
    }

    #[test]
    fn a_line_says_when_where_who_what_and_why() {
        let packet = syn();
        let headers = packet::headers(&bytes(&packet.frame), 62);
        assert_eq!(
            line(&packet, headers.as_ref()),
            "22:13:20.123456 in  eth0/3 vlan 5 192.0.2.1:40000 > 198.51.100.1:80 [S] seq 7 ack 0 win 65000 mss 1460 data \
             0: answered, cookie-sent"
        );
        assert_eq!(comment(&packet), "answered: cookie-sent, queue 3, service 198.51.100.1:80");
        assert!(line(&packet, None).ends_with("eth0/3 62 bytes: answered, cookie-sent"));
    }

    #[test]
    fn a_line_of_json_is_versioned_and_says_what_it_is() {
        let (packet, mut out) = (syn(), Vec::new());
        let headers = packet::headers(&bytes(&packet.frame), 62);
        write_json(&mut out, &Event::Packet(Shown::new(&packet, headers.as_ref()))).unwrap();
        let lost = PacketsLost { beyond_rate: 1, ring_full: 2, unread: 3 };
        write_json(&mut out, &Event::Lost(&lost)).unwrap();
        let lines: Vec<serde_json::Value> =
            out.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(lines.len(), 2);
        let expected = serde_json::json!({
            "version": 1, "type": "packet", "time_ns": 1_700_000_000_123_456_789u64, "dry_run": false, "direction": "in",
            "interface": "eth0", "queue": 3, "service": "198.51.100.1:80", "verdict": "answered",
            "reason": "cookie-sent", "len": 62, "frame": packet.frame, "src": "192.0.2.1:40000",
            "dst": "198.51.100.1:80", "flags": "S", "seq": 7, "ack": 0, "window": 65000, "data_len": 0,
        });
        assert_eq!(lines[0], expected);
        let expected =
            serde_json::json!({"version": 1, "type": "lost", "beyond_rate": 1, "ring_full": 2, "unread": 3});
        assert_eq!(lines[1], expected);
    }

    #[test]
    fn what_is_not_hexadecimal_ends_the_bytes() {
        assert_eq!(bytes("00ff7"), [0, 255]);
        assert_eq!(bytes("00é0"), [0]);
    }
}
