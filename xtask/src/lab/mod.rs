//! The lab: a guarded host, its clients and an attacker behind one link, in network namespaces that go away with the
//! value that made them. Shared by `cargo xtask` and the integration tests; it knows nothing of the daemon's insides.
//!
//! ```text
//!   client ── client0 ═══════════════════ guard0 ── guard        LabConfig::loss == None
//!   client ── client0 ═ north0  router  south0 ═ guard0 ── guard    with loss in the router's forward hook
//!   client ── client0 ═ west0 bridge east0 ═ north0  router  …      with delay as well
//! ```
//!
//! Attack frames enter the guard's link at its far end (`client0`, or `south0`), where the receiver also sits.

mod backend;
mod bridge;
mod flood;
mod namespace;
mod napi;
mod port;
mod process;
mod sources;
mod state;
pub(crate) mod template;
mod terminal;
#[expect(clippy::print_stdout, reason = "a developer's command talks to a person")]
pub mod verb;
mod verifier;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

pub use backend::{Backend, write_pattern};
pub use flood::{Flood, FloodCounters, FloodSpec, RELEASE};
pub use namespace::Namespace;
pub use napi::PacketThreads;
pub use port::packet_socket;
pub use process::Process;
pub(crate) use process::runtime;
pub use sources::Sources;
pub use tcpguard_common::lab::Received;
pub use template::{Kind, Macs};
pub use terminal::Terminal;
pub use verifier::{Arrivals, Instead, Sieve, StandIn, Verifier};

use bridge::Bridge;
use state::State;

/// The guarded interface, in the guard's namespace.
pub const GUARD_INTERFACE: &str = "guard0";
/// The client's interface, in the client's namespace.
pub const CLIENT_INTERFACE: &str = "client0";
/// The guarded host's address.
pub const GUARD_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
/// Its address once [`Lab::ipv6`] gave it one.
pub const GUARD_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);
/// The network spoofed sources are drawn from, unless a flood says otherwise: set aside for benchmarks (RFC 2544).
pub const SPOOFED: (Ipv4Addr, u8) = (Ipv4Addr::new(198, 18, 0, 0), 15);

pub(crate) const GUARD_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 0, 1];
pub(crate) const FAR_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 0, 2];
const NORTH_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 1, 1];
const CLIENT_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 1, 2];
const SOUTH_INTERFACE: &str = "south0";
const NORTH_INTERFACE: &str = "north0";
const WEST_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 2, 1];
const EAST_MAC: [u8; 6] = [0x02, 0, 0, 0x77, 2, 2];
const WEST_INTERFACE: &str = "west0";
const EAST_INTERFACE: &str = "east0";
const CLIENT_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
/// One end of a link that leads nowhere, beside the attacker's.
const PARKING: &str = "parking0";

/// How to build a lab.
#[derive(Clone, Debug)]
pub struct LabConfig {
    /// The lab's eBPF object, `tcpguard-lab` in the `OUT_DIR` of the `tcpguard` crate.
    pub object: PathBuf,
    /// Receive (and transmit) queues of the guard's link, at least 1.
    pub queues: u32,
    /// Puts a router between client and guard which drops this share of the packets each way, 0.0–1.0.
    pub loss: Option<f64>,
    /// Makes a round trip between client and guard last at least so long, with a router between them as well. Such a lab
    /// cannot be [kept](Lab::keep): this process is the wire.
    pub delay: Option<Duration>,
    /// Addresses the client has: connections from it may use any.
    pub client_addresses: u8,
}

impl LabConfig {
    /// One queue, one client address, no router.
    pub fn new(object: impl Into<PathBuf>) -> Self {
        Self { object: object.into(), queues: 1, loss: None, delay: None, client_addresses: 1 }
    }
}

/// A lab that is up. Dropping it takes everything down.
#[derive(Debug)]
pub struct Lab {
    config: LabConfig,
    // Fields are dropped in order: programs, then namespaces, then whatever else carries the lab's name.
    verifier: Verifier,
    bridge: Option<(Bridge, Namespace)>,
    client: Namespace,
    router: Option<Namespace>,
    guard: Namespace,
    state: State,
}

impl Lab {
    /// Sweeps away what killed labs left, and builds a new one.
    pub fn up(config: LabConfig) -> Result<Self> {
        let state = State::claim()?;
        mount_bpffs()?;
        let make = |role: &str| Namespace::create(&format!("{}-{role}", state.id()));
        let guard = make("guard")?;
        let client = make("client")?;
        let routed = config.loss.is_some() || config.delay.is_some();
        let router = routed.then(|| make("router")).transpose()?;
        let between = config.delay.map(|_| make("bridge")).transpose()?;
        wire(&config, &guard, &client, router.as_ref(), between.as_ref())?;
        let bridge = |(delay, between): (Duration, Namespace)| {
            Bridge::start(&between, [WEST_INTERFACE, EAST_INTERFACE], delay / 2)
                .map(|bridge| (bridge, between))
        };
        let bridge = config.delay.zip(between).map(bridge).transpose()?;
        let (far, interface) = far_end(&client, router.as_ref());
        let ifindex = index(far, interface)?;
        let aim = aim(&config.object, far, interface, ifindex, target(false, 0));
        let expected = aim.config(&FloodSpec::default());
        let verifier = Verifier::attach(&config.object, far, ifindex, &expected)?;
        Ok(Self { config, verifier, bridge, client, router, guard, state })
    }

    /// The lab's name: prefix of its namespaces.
    pub fn id(&self) -> &str {
        self.state.id()
    }

    /// The guarded host. [`GUARD_INTERFACE`] is in it.
    pub fn guard(&self) -> &Namespace {
        &self.guard
    }

    /// The client's host.
    pub fn client(&self) -> &Namespace {
        &self.client
    }

    /// The router between them, when packets are to be lost.
    pub fn router(&self) -> Option<&Namespace> {
        self.router.as_ref()
    }

    /// Makes the router drop this share of the packets each way from now on, 0.0–1.0.
    pub fn lose(&self, share: f64) -> Result<()> {
        lose(self.router().context("a lab without a router loses nothing")?, share)
    }

    /// The client's addresses.
    pub fn client_addresses(&self) -> Vec<Ipv4Addr> {
        let net = u8::from(self.router.is_some());
        (0..self.config.client_addresses).map(|host| Ipv4Addr::new(10, 77, net, 2 + host)).collect()
    }

    /// Has new connections from the client come from its addresses in turn, as long as the value lives. For labs without a router.
    pub fn take_turns(&self) -> Result<Sources> {
        ensure!(self.router.is_none(), "behind the lab's router the guard is reached by another way");
        Sources::start(&self.client, self.client_addresses())
    }

    /// A directory for files, removed with the lab.
    pub fn dir(&self) -> PathBuf {
        self.state.dir()
    }

    /// Where a daemon of this lab should pin its maps: removed with the lab.
    pub fn pin_dir(&self) -> PathBuf {
        self.state.pin_dir()
    }

    /// Where a daemon of this lab should listen for its command line.
    pub fn control_socket(&self) -> PathBuf {
        self.state.dir().join("tcpguard.sock")
    }

    /// The receiver at the far end of the guard's link.
    pub fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Starts a flood against `port` of the guarded host.
    pub fn flood(&mut self, port: u16, spec: FloodSpec) -> Result<Flood> {
        let (far, interface) = far_end(&self.client, self.router.as_ref());
        let ifindex = index(far, interface)?;
        let aim = aim(&self.config.object, far, interface, ifindex, target(spec.ipv6, port));
        self.verifier.expect(&aim.config(&spec))?;
        Flood::start(&aim, spec)
    }

    /// Has the receiver judge answers to the spoofed network again, as before the first flood: whose address another flood took
    /// gets its answers.
    pub fn expect_spoofed(&mut self) -> Result<()> {
        let (far, interface) = far_end(&self.client, self.router.as_ref());
        let ifindex = index(far, interface)?;
        let aim = aim(&self.config.object, far, interface, ifindex, target(false, 0));
        self.verifier.expect(&aim.config(&FloodSpec::default()))
    }

    /// Gives guard and client addresses of IPv6, and the guard a way to answer any. For labs without a router.
    pub fn ipv6(&self) -> Result<()> {
        ensure!(self.router.is_none(), "the lab's router knows IPv4 only");
        let (guard, far) = (mac(GUARD_MAC), mac(FAR_MAC));
        self.guard.ip(&format!(
            "addr add {GUARD_ADDRESS_V6}/64 dev {GUARD_INTERFACE} nodad
neigh replace {CLIENT_ADDRESS_V6} lladdr {far} dev {GUARD_INTERFACE} nud permanent
route add default via {CLIENT_ADDRESS_V6} dev {GUARD_INTERFACE}"
        ))?;
        self.client.ip(&format!(
            "addr add {CLIENT_ADDRESS_V6}/64 dev {CLIENT_INTERFACE} nodad
neigh replace {GUARD_ADDRESS_V6} lladdr {guard} dev {CLIENT_INTERFACE} nud permanent"
        ))
    }

    /// Frames that the program on [`GUARD_INTERFACE`] sent back where they came from and the driver had no room for.
    pub fn transmit_drops(&self) -> Result<u64> {
        let said = self.guard.output("ethtool", &["-S", GUARD_INTERFACE])?;
        Ok(of_all_queues(&said, "xdp_tx_errors"))
    }

    /// Frames that left [`GUARD_INTERFACE`], whoever sent them, and that the driver had no room for.
    pub fn dropped_answers(&self) -> Result<u64> {
        let said = self.guard.output("ip", &["-s", "-j", "link", "show", "dev", GUARD_INTERFACE])?;
        let said: serde_json::Value = serde_json::from_str(&said).context("what ip said")?;
        said[0]["stats64"]["tx"]["dropped"].as_u64().context("ip counts no drops")
    }

    /// The index of [`CLIENT_INTERFACE`] in the client's namespace.
    pub fn client_ifindex(&self) -> Result<u32> {
        index(&self.client, CLIENT_INTERFACE)
    }

    /// Pins the map by which a process gets, through AF_XDP sockets, what else the client's kernel would: it enters its
    /// sockets there, by queue.
    pub fn pin_takers(&self) -> Result<PathBuf> {
        std::fs::create_dir_all(self.pin_dir())?;
        let path = self.pin_dir().join("lab-takers");
        self.verifier.pin_takers(&path)?;
        Ok(path)
    }

    /// Starts nginx on the guarded host's loopback.
    pub fn backend(&self, port: u16) -> Result<Backend> {
        let address = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port);
        Backend::start(&self.guard, address, &self.dir())
    }

    /// Leaves the lab standing when this value goes, until [`down`] with this name.
    pub fn keep(mut self, name: &str) -> Result<()> {
        ensure!(self.bridge.is_none(), "a lab with delay ends with the process that delays");
        std::fs::create_dir_all(self.pin_dir())?;
        self.verifier.pin(&self.state.pin_dir().join("lab-verify"))?;
        self.state.keep(name)?;
        self.guard.keep();
        self.client.keep();
        if let Some(router) = &mut self.router {
            router.keep();
        }
        Ok(())
    }
}

/// Takes down what was kept under this name, and returns the [ids](Lab::id). Other labs stay up.
pub fn down(name: &str) -> Result<Vec<String>> {
    state::sweep_kept(name)
}

/// A lab that was kept.
#[derive(Debug)]
pub struct Kept {
    object: PathBuf,
    far: Namespace,
    interface: &'static str,
}

/// The lab that was kept under this name; `object` as in [`LabConfig`].
pub fn kept(object: &Path, name: &str) -> Result<Kept> {
    let id = state::kept(name)?
        .with_context(|| format!("no lab `{name}` is up: `cargo xtask lab` brings one up"))?;
    let router = Namespace::existing(&format!("{id}-router"));
    let client = Namespace::existing(&format!("{id}-client")).context("the lab has no client any more")?;
    let interface = if router.is_some() { SOUTH_INTERFACE } else { CLIENT_INTERFACE };
    Ok(Kept { object: object.to_owned(), far: router.unwrap_or(client), interface })
}

impl Kept {
    /// Starts a flood against `port` of its guarded host. Its receiver knows the default sources only.
    pub fn start(&self, port: u16, spec: FloodSpec) -> Result<Flood> {
        let ifindex = index(&self.far, self.interface)?;
        let target = target(spec.ipv6, port);
        Flood::start(&aim(&self.object, &self.far, self.interface, ifindex, target), spec)
    }
}

/// Mounts bpffs, where pins live, unless it is mounted.
pub fn mount_bpffs() -> Result<()> {
    if bpffs_is_mounted()? { Ok(()) } else { crate::tool::run("mount", ["-t", "bpf", "bpf", "/sys/fs/bpf"]) }
}

/// Whether bpffs is where it belongs.
pub fn bpffs_is_mounted() -> Result<bool> {
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    Ok(mounts.lines().any(|line| line.split(' ').nth(1) == Some("/sys/fs/bpf")))
}

/// Frames XDP sent from `interface` that its peer's ring had no room for.
fn link_errors(namespace: &Namespace, interface: &str) -> Result<u64> {
    let said = namespace.output("ethtool", &["-S", interface])?;
    Ok(of_all_queues(&said, "xdp_xmit_errors"))
}

/// The counter `name` of every queue, summed.
fn of_all_queues(statistics: &str, name: &str) -> u64 {
    let lines = statistics.lines().filter_map(|line| line.trim().split_once(": "));
    lines
        .filter(|(queues, _)| queues.strip_suffix(name).is_some_and(|queue| queue.ends_with('_')))
        .filter_map(|(_, n)| n.parse::<u64>().ok())
        .sum()
}

/// The namespace and interface at the other end of the guard's link.
fn far_end<'a>(client: &'a Namespace, router: Option<&'a Namespace>) -> (&'a Namespace, &'static str) {
    router.map_or((client, CLIENT_INTERFACE), |router| (router, SOUTH_INTERFACE))
}

fn aim<'a>(
    object: &Path,
    from: &'a Namespace,
    interface: &'static str,
    ifindex: u32,
    target: SocketAddr,
) -> flood::Aim<'a> {
    let macs = Macs { source: FAR_MAC, destination: GUARD_MAC };
    flood::Aim { object: object.to_owned(), from, interface, ifindex, macs, target }
}

/// What is flooded.
fn target(ipv6: bool, port: u16) -> SocketAddr {
    let address = if ipv6 { IpAddr::V6(GUARD_ADDRESS_V6) } else { IpAddr::V4(GUARD_ADDRESS) };
    SocketAddr::new(address, port)
}

fn index(namespace: &Namespace, interface: &str) -> Result<u32> {
    let said = namespace.output("ip", &["-o", "link", "show", "dev", interface])?;
    let index = said.split(':').next().and_then(|index| index.trim().parse().ok());
    index.with_context(|| format!("no interface index in {said:?}"))
}

/// Links, addresses, routes and neighbours; checksums computed before frames enter a veth, as on a real wire.
fn wire(
    config: &LabConfig,
    guard: &Namespace,
    client: &Namespace,
    router: Option<&Namespace>,
    bridge: Option<&Namespace>,
) -> Result<()> {
    let hosts: Vec<u8> = (0..config.client_addresses).map(|host| 2 + host).collect();
    match router {
        None => {
            pair(client, CLIENT_INTERFACE, FAR_MAC, guard, GUARD_INTERFACE, GUARD_MAC, config.queues)?;
            address(guard, GUARD_INTERFACE, [10, 77, 0, 1])?;
            client.ip(&lines(&hosts, |host| format!("addr add 10.77.0.{host}/24 dev {CLIENT_INTERFACE}")))?;
            let far = mac(FAR_MAC);
            guard.ip(&lines(&hosts, |host| {
                format!("neigh replace 10.77.0.{host} lladdr {far} dev {GUARD_INTERFACE} nud permanent")
            }))?;
            neighbour(client, CLIENT_INTERFACE, [10, 77, 0, 1], GUARD_MAC)?;
        }
        Some(router) => {
            pair(router, SOUTH_INTERFACE, FAR_MAC, guard, GUARD_INTERFACE, GUARD_MAC, config.queues)?;
            match bridge {
                None => pair(client, CLIENT_INTERFACE, CLIENT_MAC, router, NORTH_INTERFACE, NORTH_MAC, 1)?,
                Some(bridge) => {
                    // It carries what others say, and says nothing itself.
                    bridge.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
                    pair(client, CLIENT_INTERFACE, CLIENT_MAC, bridge, WEST_INTERFACE, WEST_MAC, 1)?;
                    pair(bridge, EAST_INTERFACE, EAST_MAC, router, NORTH_INTERFACE, NORTH_MAC, 1)?;
                }
            }
            address(guard, GUARD_INTERFACE, [10, 77, 0, 1])?;
            address(router, SOUTH_INTERFACE, [10, 77, 0, 2])?;
            address(router, NORTH_INTERFACE, [10, 77, 1, 1])?;
            for host in hosts {
                address(client, CLIENT_INTERFACE, [10, 77, 1, host])?;
                neighbour(router, NORTH_INTERFACE, [10, 77, 1, host], CLIENT_MAC)?;
            }
            neighbour(guard, GUARD_INTERFACE, [10, 77, 0, 2], FAR_MAC)?;
            neighbour(router, SOUTH_INTERFACE, [10, 77, 0, 1], GUARD_MAC)?;
            neighbour(client, CLIENT_INTERFACE, [10, 77, 1, 1], NORTH_MAC)?;
            client.ip("route add default via 10.77.1.1")?;
            router.sysctl(&[("net/ipv4/ip_forward", "1")])?;
            // Packets are lost one at a time, not as the bundles that GRO would make of them.
            router.output("ethtool", &["-K", SOUTH_INTERFACE, "gro", "off"])?;
            lose(router, config.loss.unwrap_or(0.0))?;
        }
    }
    let far = router.unwrap_or(client);
    far.ip(&format!("link add {PARKING} type veth peer name parking1"))?;
    guard.ip("route add default via 10.77.0.2")?;
    let ports = ("net/ipv4/ip_local_port_range", "1024 65535");
    client.sysctl(&[ports, ("net/ipv4/tcp_tw_reuse", "1")])?;
    guard.sysctl(&[ports, ("net/ipv4/tcp_tw_reuse", "1"), ("net/core/somaxconn", "65535")])
}

/// A line for each.
fn lines(hosts: &[u8], line: impl Fn(u8) -> String) -> String {
    hosts.iter().map(|&host| line(host) + "\n").collect()
}

fn pair(
    a: &Namespace,
    a_name: &str,
    a_mac: [u8; 6],
    b: &Namespace,
    b_name: &str,
    b_mac: [u8; 6],
    queues: u32,
) -> Result<()> {
    let (a_text, b_text, peer) = (mac(a_mac), mac(b_mac), b.name());
    let count = format!("numtxqueues {queues} numrxqueues {queues}");
    a.ip(&format!(
        "link add {a_name} address {a_text} {count} type veth peer name {b_name} address {b_text} {count} netns {peer}
link set {a_name} up"
    ))?;
    b.ip(&format!("link set {b_name} up"))?;
    a.output("ethtool", &["-K", a_name, "tx", "off"])?;
    b.output("ethtool", &["-K", b_name, "tx", "off"]).map(drop)
}

fn address(namespace: &Namespace, interface: &str, address: [u8; 4]) -> Result<()> {
    namespace.ip(&format!("addr add {}/24 dev {interface}", Ipv4Addr::from(address)))
}

/// A fixed neighbour entry: a flood must not depend on ARP getting through it.
fn neighbour(namespace: &Namespace, interface: &str, address: [u8; 4], at: [u8; 6]) -> Result<()> {
    let (address, at) = (Ipv4Addr::from(address), mac(at));
    namespace.ip(&format!("neigh replace {address} lladdr {at} dev {interface} nud permanent"))
}

/// Drops a share of what the router forwards, each way, instead of the share it dropped before.
fn lose(router: &Namespace, share: f64) -> Result<()> {
    let per_million = (share.clamp(0.0, 1.0) * 1e6) as u32;
    // nftables refuses a comparison that never holds.
    let rule = match per_million {
        0 => String::new(),
        _ => format!("    numgen random mod 1000000 < {per_million} counter drop\n"),
    };
    router.nft(&format!(
        "table inet lab
delete table inet lab
table inet lab {{
  chain forward {{
    type filter hook forward priority 0
{rule}  }}
}}
"
    ))
}

/// As `ip` writes and reads it.
pub(crate) fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transmit_errors_of_every_queue_are_summed() {
        let said = "NIC statistics:\n     peer_ifindex: 7\n     rx_queue_0_xdp_packets: 9\n     \
                    tx_queue_0_xdp_xmit: 100\n     tx_queue_0_xdp_xmit_errors: 3\n     \
                    tx_queue_1_xdp_xmit_errors: 4\n";
        assert_eq!(of_all_queues(said, "xdp_xmit_errors"), 7);
        assert_eq!(of_all_queues(said, "xdp_packets"), 9);
    }

    #[test]
    fn a_mac_is_written_as_ip_reads_it() {
        assert_eq!(mac(GUARD_MAC), "02:00:00:77:00:01");
    }
}
