//! Who is flooded: each defence set up on the guarded host of a lab, and what must hold of it afterwards. A lab of its own
//! for each, so that no sysctl, rule or program of one is left to the next.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::programs::ProgramInfo;
use serde_json::Value;
use socket2::SockRef;

use super::super::scale::process;
use super::super::{defence, machine};
use super::KNOWN_PORT;
use crate::build::Artifacts;
use crate::lab::{GUARD_ADDRESS, GUARD_ADDRESS_V6, GUARD_INTERFACE, Instead, Lab, SPOOFED, StandIn};
use crate::run::daemon::Daemon;
use crate::tool;

/// Connections that may wait for the kernel server.
const BACKLOG: i32 = 4096;

/// A defence, or one of the limits of any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Contestant {
    /// Every frame dropped by XDP: what making them costs.
    XdpDrop,
    /// Every frame sent back by XDP: the least that an answer costs.
    XdpTx,
    /// The guard, with a responder behind it.
    Tcpguard,
    /// A kernel server with cookies once its queue is full.
    Syncookies1,
    /// A kernel server that always sends cookies.
    Syncookies2,
    /// A kernel server behind synproxy of nftables.
    Synproxy,
    /// The kernel's xdp_synproxy, out of this object file, or pinned here and with the port allowed.
    XdpSynproxy(PathBuf),
}

impl Contestant {
    /// Those that need nothing that is not here.
    pub const STANDARD: [Self; 6] =
        [Self::XdpDrop, Self::XdpTx, Self::Tcpguard, Self::Syncookies1, Self::Syncookies2, Self::Synproxy];

    /// Whether clients are served.
    pub(super) fn serves(&self) -> bool {
        // xdp_synproxy leaves the connection to synproxy of nftables, which is not set up behind it.
        !matches!(self, Self::XdpDrop | Self::XdpTx | Self::XdpSynproxy(_))
    }
}

impl fmt::Display for Contestant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::XdpDrop => "xdp_drop",
            Self::XdpTx => "xdp_tx",
            Self::Tcpguard => "tcpguard",
            Self::Syncookies1 => "syncookies_1",
            Self::Syncookies2 => "syncookies_2",
            Self::Synproxy => "synproxy",
            Self::XdpSynproxy(_) => "xdp_synproxy",
        })
    }
}

/// A defence that is up.
pub(super) struct Standing {
    _program: Option<StandIn>,
    server: Option<Server>,
    daemon: Option<Daemon>,
    /// Of a program that was given.
    tag: Option<String>,
}

impl Standing {
    pub(super) fn up(contestant: &Contestant, lab: &Lab, built: &Artifacts, port: u16) -> Result<Self> {
        let stand_in = |instead| StandIn::attach(lab, instead).map(Some);
        let cookies = |mode| lab.guard().sysctl(&[("net/ipv4/tcp_syncookies", mode)]);
        let (mut program, mut kernel, mut daemon, mut tag) = (None, true, None, None);
        match contestant {
            Contestant::XdpDrop => (program, kernel) = (stand_in(Instead::Drop)?, false),
            Contestant::XdpTx => (program, kernel) = (stand_in(Instead::Reflect)?, false),
            Contestant::Tcpguard => {
                let v4 = format!("{GUARD_ADDRESS}:{port}=respond:discard");
                let v6 = format!("[{GUARD_ADDRESS_V6}]:{port}=respond:discard");
                let arguments = ["--protect", &v4, "--protect", &v6];
                (daemon, kernel) = (Some(defence::tcpguard(lab, built, &arguments)?), false);
            }
            Contestant::Syncookies1 => {
                cookies("1")?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::Syncookies2 => {
                cookies("2")?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::Synproxy => {
                defence::synproxy(lab, port)?;
                program = stand_in(Instead::Pass)?;
            }
            Contestant::XdpSynproxy(path) => tag = Some(xdp_synproxy(lab, path, port)?),
        }
        let server = kernel.then(|| Server::start(lab, port)).transpose()?;
        Ok(Self { _program: program, server, daemon, tag })
    }

    /// What the kernel calls the program, of one that was given.
    pub(super) fn tag(&self) -> Option<String> {
        self.tag.clone()
    }

    /// Fails when forged segments became connections, but for what [chance](lucky) allows. Clients that connected have left:
    /// theirs are not among those that are open, once they have repeated what was lost beside the flood, and forged ones never
    /// leave.
    pub(super) fn check(&mut self) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let Some(daemon) = &mut self.daemon else { return Ok(()) };
        let start = Instant::now();
        loop {
            let numbers = daemon.numbers()?;
            ensure!(numbers.acks_refused > 0, "no forged ACK was refused");
            let open = |(state, _): &&(String, u64)| state == "ESTABLISHED";
            let open = numbers.states.iter().find(open).map_or(0, |(_, count)| *count);
            let lucky = lucky(numbers.acks_refused);
            if open <= lucky {
                return Ok(());
            }
            ensure!(start.elapsed() < PATIENCE, "{open} connections without a client, more than {lucky}");
            thread::sleep(Duration::from_millis(100));
        }
    }

    /// Connections that clients got, since it is up.
    pub(super) fn taken(&mut self) -> Result<u64> {
        match (&mut self.daemon, &self.server) {
            (Some(daemon), _) => Ok(daemon.numbers()?.acks_accepted),
            (None, Some(server)) => Ok(server.taken.load(Ordering::Relaxed)),
            (None, None) => Ok(0),
        }
    }

    /// SYN-ACKs that were sent again because nothing came, since the lab is up: by the daemon, or the guarded host's kernel.
    pub(super) fn repeats(&mut self, lab: &Lab) -> Result<u64> {
        match &mut self.daemon {
            Some(daemon) => {
                let repeats = daemon.stats()?["totals"]["stack"]["syn-acks-retransmitted"].as_u64();
                repeats.context("the daemon counts no repeated SYN-ACKs")
            }
            None => {
                let said = lab.guard().output("cat", &["/proc/net/netstat"])?;
                netstat(&said, "TCPSynRetrans").context("the kernel counts no repeated SYN-ACKs")
            }
        }
    }

    /// CPU time of a daemon's threads; none where there is no daemon. The server in the kernel's hands is no defence.
    pub(super) fn cpu(&self) -> Result<Duration> {
        self.daemon.as_ref().map_or(Ok(Duration::ZERO), |daemon| process::cpu(daemon.id()))
    }

    pub(super) fn down(self) -> Result<()> {
        self.server.map_or(Ok(()), Server::stop)?;
        self.daemon.map_or(Ok(()), Daemon::stop)
    }
}

/// The counter `name` in `/proc/net/netstat`: of each pair of lines the first one names what stands in the second.
fn netstat(text: &str, name: &str) -> Option<u64> {
    let lines: Vec<_> = text.lines().collect();
    let (pairs, _) = lines.as_chunks::<2>();
    pairs.iter().find_map(|[names, counts]| {
        let at = names.split(' ').position(|field| field == name)?;
        counts.split(' ').nth(at)?.parse().ok()
    })
}

/// How many of `forged` ACKs without timestamps may have been right. A guess is once in 2^25 (`tcpguard_common::cookie`), and a
/// flood makes tens of millions: that many, and four standard deviations and three more.
fn lucky(forged: u64) -> u64 {
    let expected = forged as f64 / f64::from(1_u32 << 25);
    (expected + 4.0 * expected.sqrt() + 3.0) as u64
}

/// A server in the kernel's hands that takes each connection and resets a botnet's at once: descriptors are few. Of real clients
/// it ends them in order, but for the one that is to be flooded with its own segments, which stays.
struct Server {
    taken: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<()>>,
}

impl Server {
    fn start(lab: &Lab, port: u16) -> Result<Self> {
        let listener = lab.guard().enter(|| listen(port))??;
        let (taken, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (count, end) = (Arc::clone(&taken), Arc::clone(&stop));
        let thread = thread::Builder::new().name("server".into()).spawn(move || {
            let mut held = Vec::new();
            while !end.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((stream, peer)) => {
                        count.fetch_add(1, Ordering::Relaxed);
                        if !is_of_botnet(peer.ip()) {
                            // A reset may reach it before it knows that it was connected.
                            SockRef::from(&stream).set_linger(None).context("sparing a client")?;
                            held.extend((peer.port() == KNOWN_PORT).then_some(stream));
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        thread::sleep(Duration::from_millis(1));
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                    Err(error) => return Err(error).context("accepting"),
                }
            }
            Ok(())
        })?;
        Ok(Self { taken, stop, thread })
    }

    fn stop(self) -> Result<()> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow!("the server's thread panicked"))?
    }
}

/// Whether an address is out of the network that floods come from.
fn is_of_botnet(peer: IpAddr) -> bool {
    let (network, len) = SPOOFED;
    let apart = |peer: Ipv4Addr| (u32::from(peer) ^ u32::from(network)) >> (32 - u32::from(len));
    matches!(peer.to_canonical(), IpAddr::V4(peer) if apart(peer) == 0)
}

/// On any address of both families.
fn listen(port: u16) -> Result<TcpListener> {
    let socket = socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    // Those that are accepted inherit it.
    socket.set_linger(Some(Duration::ZERO))?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Attaches the kernel's xdp_synproxy for as long as the lab stands. Of an object file, bpftool loads it: it calls functions of
/// the kernel's modules, which aya does not link. Returns the program's tag.
fn xdp_synproxy(lab: &Lab, path: &Path, port: u16) -> Result<String> {
    let Some(text) = path.to_str() else { bail!("{} is not UTF-8", path.display()) };
    if !path.is_file() || path.starts_with("/sys/fs/bpf") {
        return attach_pinned(lab, text);
    }
    let dir = lab.pin_dir().join("xdp_synproxy");
    std::fs::create_dir_all(&dir)?;
    let at = |name: &str| dir.join(name).to_string_lossy().into_owned();
    let (programs, maps) = (at("programs"), at("maps"));
    tool::run("bpftool", ["prog", "loadall", text, &programs, "pinmaps", &maps])
        .with_context(|| format!("loading {text}"))?;
    let program =
        first_for_xdp(Path::new(&programs))?.with_context(|| format!("no XDP program in {text}"))?;
    // One port of two bytes; its other options are fine as they are when nobody sets them.
    let [low, high] = port.to_ne_bytes().map(|byte| byte.to_string());
    let map = format!("{maps}/allowed_ports");
    let entry = ["key", "0", "0", "0", "0", "value", &low, &high];
    tool::run("bpftool", ["map", "update", "pinned", &map].into_iter().chain(entry))?;
    attach_pinned(lab, &program)
}

/// The sample's object has the same program once more for tc.
fn first_for_xdp(programs: &Path) -> Result<Option<String>> {
    for entry in std::fs::read_dir(programs)? {
        let pin = entry?.path().to_string_lossy().into_owned();
        let shown: Value =
            serde_json::from_str(&tool::output("bpftool", ["--json", "prog", "show", "pinned", &pin])?)?;
        if shown["type"] == "xdp" {
            return Ok(Some(pin));
        }
    }
    Ok(None)
}

/// Not by `ip -n`, which hides the pins. Returns the program's tag.
fn attach_pinned(lab: &Lab, pin: &str) -> Result<String> {
    let arguments = ["link", "set", "dev", GUARD_INTERFACE, "xdpdrv", "pinned", pin];
    lab.guard().output("ip", &arguments)?;
    Ok(machine::tag(&ProgramInfo::from_pin(pin).with_context(|| format!("asking for {pin}"))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guess_in_millions_is_luck_and_one_in_thousands_is_not() {
        // What a whole run makes of them, and what comes of it: none, mostly, and hardly ever a dozen.
        let made = [10_000, 5_000_000, 66_000_000].map(lucky);
        assert_eq!(made, [3, 4, 10]);
    }

    #[test]
    fn a_counter_of_the_kernel_stands_under_its_name() {
        let text =
            "TcpExt: SyncookiesSent TCPSynRetrans\nTcpExt: 7 12\nIpExt: InNoRoutes InOctets\nIpExt: 1 99\n";
        assert_eq!((netstat(text, "TCPSynRetrans"), netstat(text, "InOctets")), (Some(12), Some(99)));
        assert_eq!(netstat(text, "TCPSyn"), None);
    }

    #[test]
    fn a_botnet_is_told_from_real_clients_by_its_network() {
        let of_botnet = |peer: &str| is_of_botnet(peer.parse().unwrap());
        assert!(of_botnet("198.18.0.1") && of_botnet("::ffff:198.19.255.254"));
        assert!(!of_botnet("198.20.0.1") && !of_botnet("::ffff:10.77.0.2") && !of_botnet("fd77::2"));
    }
}
