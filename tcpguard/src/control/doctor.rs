//! Whether this machine can run the guard, and what would help if not. It looks and changes nothing; no daemon is asked.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use schemars::JsonSchema;
use serde::Serialize;
use tcpguard_common::map::MAX_QUEUES;

use crate::config::{AttachMode, Config, Events, Interface};
use crate::dataplane::{
    Feature, InterfaceFacts, LinkState, MasterSecret, SecretError, SocketConfig, features,
};

use super::socket::ListenError;
use super::{doors, ports};

/// The oldest kernel that has everything.
const KERNEL: (u32, u32) = (6, 6);
/// Drivers that are known to run XDP themselves, and those among them whose AF_XDP needs no copy.
const NATIVE: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "dpaa2-eth",
    "ena",
    "enetc",
    "fec",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_en",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "qede",
    "sfc",
    "st_gmac",
    "stmmac",
    "tsnep",
    "tun",
    "veth",
    "virtio_net",
    "vmxnet3",
];
const ZERO_COPY: &[&str] =
    &["i40e", "ice", "igb", "igc", "ixgbe", "mlx5_core", "nfp", "st_gmac", "stmmac", "tsnep", "virtio_net"];
/// The largest MTU that native XDP commonly takes with one 4 KB page a frame.
const NATIVE_MTU: u32 = 3498;
/// Descriptors below which connections are few.
const FEW_DESCRIPTORS: u64 = 10_000;
/// Capabilities by their bit.
const CAPABILITIES: [(u32, &str); 5] =
    [(12, "CAP_NET_ADMIN"), (13, "CAP_NET_RAW"), (14, "CAP_IPC_LOCK"), (38, "CAP_PERFMON"), (39, "CAP_BPF")];

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// Worth knowing; nothing is wrong.
    Note,
    /// It works, but not as well as it could, or not for everybody.
    Warning,
    /// The guard would not start, or not guard.
    Bad,
}

impl Verdict {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Bad => "bad",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Finding {
    /// What.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What would help.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remedy: Option<String>,
}

fn finding(
    check: impl Into<String>,
    verdict: Verdict,
    found: impl Into<String>,
    remedy: impl Into<String>,
) -> Finding {
    let remedy = Some(remedy.into()).filter(|_| verdict != Verdict::Good);
    Finding { check: check.into(), verdict, found: found.into(), remedy }
}

/// Looks at everything that `config` needs. What is wrong with the configuration itself is said by who read it.
pub fn examine(config: &Config) -> Vec<Finding> {
    let mut findings = vec![kernel(&read("/proc/sys/kernel/osrelease"))];
    findings.extend(features().iter().map(feature));
    findings.push(capabilities(&read("/proc/self/status")));
    findings.push(bpffs(&read("/proc/mounts"), &config.pin_dir));
    findings.push(jit(&read("/proc/sys/net/core/bpf_jit_enable")));
    findings.push(clock(&read("/sys/devices/system/clocksource/clocksource0/current_clocksource")));
    findings.push(descriptors(getrlimit(Resource::Nofile).maximum));
    for interface in &config.interfaces {
        findings.extend(of_interface(interface));
    }
    findings.push(source_ports(config));
    findings.extend(routing_headers());
    findings.push(control_socket(config));
    findings.extend(config.secret_file.as_deref().map(secret_file));
    findings.extend((!config.events.hook.is_empty()).then(|| hook(&config.events)));
    findings.push(finding(
        "host",
        Verdict::Note,
        "XDP comes before the host's nftables and tcpdump: they see nothing of protected ports",
        "put what nftables did for them into tcpguard filters; `tcpguard explain --pcap` and `stats` say what came",
    ));
    findings
}

/// What a file says; nothing if there is none.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

fn kernel(release: &str) -> Finding {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    let version = match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor),
        _ => (0, 0),
    };
    let verdict = if version >= KERNEL { Verdict::Good } else { Verdict::Bad };
    let remedy = format!("Linux {}.{} or newer is needed", KERNEL.0, KERNEL.1);
    finding("kernel", verdict, release, remedy)
}

fn feature(Feature { name, purpose, present }: &Feature) -> Finding {
    let check = format!("feature {name}");
    match present {
        Ok(true) => finding(check, Verdict::Good, "there", ""),
        Ok(false) => {
            finding(check, Verdict::Bad, format!("not in this kernel; for {purpose}"), "another kernel")
        }
        Err(why) => finding(check, Verdict::Warning, format!("not known: {why}"), "ask as root"),
    }
}

fn capabilities(status: &str) -> Finding {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let held = line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let missing: Vec<_> =
        CAPABILITIES.iter().filter(|(bit, _)| held >> bit & 1 == 0).map(|(_, name)| *name).collect();
    match missing.as_slice() {
        [] => finding("rights", Verdict::Good, "all that is needed", ""),
        missing => finding(
            "rights",
            Verdict::Bad,
            format!("this process lacks {}", missing.join(", ")),
            "run as root, or by the unit in tcpguard/dist, which has just these",
        ),
    }
}

fn bpffs(mounts: &str, pin_dir: &Path) -> Finding {
    let mounted = mounts.lines().any(|line| {
        let mut words = line.split_ascii_whitespace().skip(1);
        words.next().is_some_and(|place| pin_dir.starts_with(place)) && words.next() == Some("bpf")
    });
    let found = format!("{} is {}on a BPF file system", pin_dir.display(), if mounted { "" } else { "not " });
    let verdict = match mounted {
        true => Verdict::Good,
        // The daemon mounts the usual one itself.
        false if pin_dir.starts_with("/sys/fs/bpf") => Verdict::Warning,
        false => Verdict::Bad,
    };
    finding("pins", verdict, found, "mount -t bpf bpf /sys/fs/bpf")
}

fn jit(enabled: &str) -> Finding {
    match enabled {
        "0" => finding(
            "BPF JIT",
            Verdict::Warning,
            "off: the program is interpreted, ten times slower",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // A kernel that always compiles may not say so.
        _ => finding("BPF JIT", Verdict::Good, "on", ""),
    }
}

fn clock(source: &str) -> Finding {
    let fast = ["tsc", "kvm-clock", "arch_sys_counter", "hyperv_clocksource_tsc_page", "riscv_clocksource"];
    match source {
        "" => finding("clock", Verdict::Note, "not known", "none needed if the machine keeps time"),
        source if fast.contains(&source) => finding("clock", Verdict::Good, source, ""),
        source => finding(
            "clock",
            Verdict::Warning,
            format!("{source}: every look at it costs a microsecond"),
            "see /sys/devices/system/clocksource/clocksource0/available_clocksource for tsc",
        ),
    }
}

fn descriptors(limit: Option<u64>) -> Finding {
    match limit {
        Some(limit) if limit < FEW_DESCRIPTORS => finding(
            "descriptors",
            Verdict::Warning,
            format!("at most {limit}, and each relayed connection takes one"),
            "raise the limit: ulimit -Hn, or LimitNOFILE= of a unit",
        ),
        Some(limit) => finding("descriptors", Verdict::Good, format!("at most {limit}"), ""),
        None => finding("descriptors", Verdict::Good, "without a limit", ""),
    }
}

fn of_interface(interface: &Interface) -> Vec<Finding> {
    let name = &interface.name;
    let about = |what: &str| format!("{name} {what}");
    let facts = match InterfaceFacts::query(name) {
        Ok(facts) => facts,
        Err(error) => {
            let remedy =
                "`ip -br link` lists the interfaces; VLAN, bond and bridge devices: guard their parents";
            return vec![finding(about("interface"), Verdict::Bad, error.to_string(), remedy)];
        }
    };
    let mut findings = judge(interface, &facts);
    findings.push(attached(name));
    findings
}

/// Whether whatever queue a packet arrives at has an engine.
fn judge_queues(interface: &Interface, facts: &InterfaceFacts) -> Finding {
    let (name, present) = (&interface.name, facts.rx_queues);
    let wanted = interface.queues.unwrap_or(present);
    let verdict = match facts.hashed_to {
        _ if wanted > present || wanted > MAX_QUEUES => Verdict::Bad,
        Some(last) if wanted < present && last >= wanted => Verdict::Bad,
        None if wanted < present => Verdict::Warning,
        _ => Verdict::Good,
    };
    let served = match facts.hashed_to {
        _ if wanted == present => "an engine for each".to_owned(),
        Some(last) => {
            format!("engines for the first {wanted}; flows are hashed to queues up to number {last}")
        }
        None => format!("engines for the first {wanted}; what arrives at the others is dropped"),
    };
    finding(
        format!("{name} queues"),
        verdict,
        format!("{present} receive queues, {served}"),
        format!(
            "at most {MAX_QUEUES} can have one: ethtool -L {name} combined N sets their number, ethtool -X {name} equal N keeps \
             flows to the first N, and `queues` says how many have an engine"
        ),
    )
}

/// What there is to say of an interface that is like that.
fn judge(interface: &Interface, facts: &InterfaceFacts) -> Vec<Finding> {
    let name = &interface.name;
    let about = |what: &str| format!("{name} {what}");
    let (driver, mtu) = (facts.driver.as_str(), facts.link.mtu);
    let native = interface.mode == AttachMode::Native;
    let mut findings = Vec::new();
    let state = match facts.link.state {
        LinkState::Up => Verdict::Good,
        LinkState::NoCarrier | LinkState::Down => Verdict::Warning,
    };
    findings.push(finding(
        about("link"),
        state,
        facts.link.state.to_string(),
        format!("ip link set dev {name} up, and a look at the cable"),
    ));
    findings.push(match (native, NATIVE.contains(&driver)) {
        (true, true) => finding(about("driver"), Verdict::Good, format!("{driver} runs XDP natively"), ""),
        (true, false) => finding(
            about("driver"),
            Verdict::Warning,
            format!("{driver} is not known to run XDP natively"),
            "if the daemon does not start: mode = \"generic\", which is slow, or another NIC",
        ),
        (false, _) => finding(
            about("driver"),
            Verdict::Note,
            format!("{driver}, XDP in generic mode: slow"),
            "mode = \"native\" where the driver can",
        ),
    });
    let copied = "each frame is copied once each way";
    findings.push(match (native && ZERO_COPY.contains(&driver), interface.zero_copy) {
        (true, true) => finding(
            about("zero-copy"),
            Verdict::Good,
            format!("{driver} can read and write frames where they are"),
            "",
        ),
        (true, false) => finding(
            about("zero-copy"),
            Verdict::Note,
            format!("{driver} could do without copies, but is not to: {copied}"),
            "zero_copy = true",
        ),
        (false, _) => {
            finding(about("zero-copy"), Verdict::Note, copied, "none: it costs little at common rates")
        }
    });
    let most = if native { NATIVE_MTU } else { SocketConfig::for_mtu(mtu).mtu() };
    findings.push(finding(
        about("MTU"),
        if mtu <= most { Verdict::Good } else { Verdict::Bad },
        format!("{mtu}"),
        format!("native XDP on one page takes {NATIVE_MTU} at most: ip link set dev {name} mtu 1500"),
    ));
    findings.push(judge_queues(interface, facts));
    if facts.strips_vlan {
        findings.push(finding(
            about("VLAN tags"),
            Verdict::Warning,
            "the NIC takes tags off: answers to tagged frames leave untagged",
            format!("where VLANs matter: ethtool -K {name} rxvlan off"),
        ));
    }
    if facts.joins_segments {
        findings.push(finding(
            about("LRO"),
            Verdict::Warning,
            "the NIC joins segments, which XDP cannot have",
            format!("ethtool -K {name} lro off"),
        ));
    }
    if driver == "veth" {
        findings.push(judge_peer(name, shown));
    }
    findings
}

/// What iproute2 knows of an interface; nothing where there is no iproute2.
fn shown(name: &str) -> Option<serde_json::Value> {
    let asked = std::process::Command::new("ip").args(["-j", "-d", "link", "show", "dev", name]).output();
    let said = asked.ok().filter(|output| output.status.success())?;
    let links = serde_json::from_slice::<serde_json::Value>(&said.stdout).ok()?;
    Some(links[0].clone())
}

/// The other end of a veth needs an XDP program: without one, what XDP answers is stranded. It is seen where it is in this
/// network namespace.
fn judge_peer(name: &str, shown: impl Fn(&str) -> Option<serde_json::Value>) -> Finding {
    const REMEDY: &str =
        "at the other end: ethtool -K PEER tx off, and any XDP program that passes everything";
    let check = format!("{name} peer");
    let link = shown(name).unwrap_or_default();
    let here = link["link"].as_str().filter(|_| link["link_netnsid"].is_null());
    let Some((peer, facts)) = here.and_then(|peer| Some((peer, shown(peer)?))) else {
        let found = "a veth: its other end must not leave checksums to hardware, and needs an XDP program";
        return finding(check, Verdict::Note, found, REMEDY);
    };
    match facts["xdp"]["prog"]["id"].as_u64() {
        Some(id) => finding(check, Verdict::Good, format!("{peer} has XDP program {id}"), ""),
        None => {
            let found = format!("{peer} has no XDP program: SYN-ACKs do not leave");
            finding(check, Verdict::Bad, found, REMEDY.replace("PEER", peer))
        }
    }
}

/// Whether somebody else's program is on the interface. iproute2 knows how to ask.
fn attached(name: &str) -> Finding {
    let check = format!("{name} XDP");
    let Some(link) = shown(name) else {
        return finding(check, Verdict::Note, "not known: `ip` does not say", "install iproute2");
    };
    let program = &link["xdp"]["prog"];
    match (program["id"].as_u64(), program["name"].as_str()) {
        (None, _) => finding(check, Verdict::Good, "no program attached", ""),
        (Some(id), Some(ours @ "tcpguard")) => {
            finding(check, Verdict::Good, format!("program {id}, {ours}"), "")
        }
        (Some(id), other) => finding(
            check,
            Verdict::Bad,
            format!("program {id}, {}, is somebody else's", other.unwrap_or("without a name")),
            format!("whoever attached it takes it off: ip link set dev {name} xdp off, or its own tool"),
        ),
    }
}

fn source_ports(config: &Config) -> Finding {
    let chosen = ports::chosen_by_host(config.services.iter().map(|service| service.listen));
    match chosen.as_slice() {
        [] => finding("source ports", Verdict::Good, "the host chooses no protected port", ""),
        chosen => finding(
            "source ports",
            Verdict::Warning,
            "the host may choose protected ports for its own connections",
            ports::remedy(chosen),
        ),
    }
}

/// Hosts that act on routing headers may bring segments to a port past the guard.
fn routing_headers() -> impl Iterator<Item = Finding> {
    let on = ["seg6_enabled", "rpl_seg_enabled"].into_iter().filter(|name| {
        let say = |scope| read(&format!("/proc/sys/net/ipv6/conf/{scope}/{name}")) == "1";
        say("all") || say("default")
    });
    on.map(|name| {
        let found = "routing headers are acted on: they may lead past the guard";
        let remedy = format!("sysctl -w net.ipv6.conf.all.{name}=0 net.ipv6.conf.default.{name}=0");
        finding(format!("sysctl {name}"), Verdict::Warning, found, remedy)
    })
}

fn control_socket(config: &Config) -> Finding {
    let control = &config.control;
    match doors::check(control) {
        Ok(()) => finding("control socket", Verdict::Good, control.socket.display().to_string(), ""),
        Err(error @ ListenError::InUse(_)) => {
            finding("control socket", Verdict::Note, error.to_string(), "`tcpguard status` asks that one")
        }
        Err(error) => {
            finding("control socket", Verdict::Bad, error.to_string(), "[control] in the configuration")
        }
    }
}

fn secret_file(path: &Path) -> Finding {
    let check = "secret file";
    let said = |why: &str| format!("{}: {why}", path.display());
    let error = match MasterSecret::read(path) {
        Ok(_) => return finding(check, Verdict::Good, path.display().to_string(), ""),
        Err(error) => error,
    };
    let kind = match &error {
        SecretError::File { source, .. } => Some(source.kind()),
        _ => None,
    };
    match (kind, path.parent()) {
        (Some(ErrorKind::NotFound), Some(directory)) if !directory.is_dir() => {
            let remedy = format!("mkdir -p {}", directory.display());
            finding(check, Verdict::Bad, said("its directory is not there"), remedy)
        }
        (Some(ErrorKind::NotFound), _) => finding(
            check,
            Verdict::Note,
            said("not there yet"),
            "none: the daemon makes one when it starts; machines that share it get a copy",
        ),
        (Some(ErrorKind::PermissionDenied), _) => {
            finding(check, Verdict::Warning, said("not known: permission denied"), "ask as root")
        }
        _ => finding(
            check,
            Verdict::Bad,
            error.to_string(),
            "a file of `openssl rand -hex 32`, readable by its owner alone",
        ),
    }
}

fn hook(events: &Events) -> Finding {
    let check = "event hook";
    match events.trouble() {
        None => finding(check, Verdict::Good, events.hook.join(" "), ""),
        Some(trouble) => finding(
            check,
            Verdict::Warning,
            trouble,
            "an absolute path of a program that all may execute, in [events] in the configuration",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataplane::LinkFacts;

    fn facts(driver: &str) -> InterfaceFacts {
        InterfaceFacts {
            name: "eth0".into(),
            ifindex: 2,
            link: LinkFacts { mac: [2; 6], mtu: 1500, state: LinkState::Up },
            rx_queues: 4,
            tx_queues: 4,
            hashed_to: Some(3),
            driver: driver.into(),
            strips_vlan: false,
            joins_segments: false,
        }
    }

    fn worst(findings: &[Finding]) -> (Verdict, &str) {
        let worst = findings.iter().rev().max_by_key(|finding| finding.verdict).unwrap();
        (worst.verdict, worst.check.as_str())
    }

    #[test]
    fn the_other_end_of_a_veth_is_judged_where_it_can_be_seen() {
        use serde_json::json;
        // What `ip -j -d link show` says of both ends, in one namespace and in two.
        let judged = |own: serde_json::Value, peer: Option<serde_json::Value>| {
            judge_peer("eth0", |name| if name == "eth0" { Some(own.clone()) } else { peer.clone() })
        };
        let here = json!({"ifname": "eth0", "link": "peer0"});
        let bare = judged(here.clone(), Some(json!({"ifname": "peer0"})));
        assert_eq!(bare.verdict, Verdict::Bad);
        let remedy = bare.remedy.unwrap_or_default();
        assert!(remedy.contains("ethtool -K peer0 tx off"), "{remedy}");
        let ready = judged(here, Some(json!({"ifname": "peer0", "xdp": {"mode": 1, "prog": {"id": 7}}})));
        assert_eq!((ready.verdict, &*ready.found), (Verdict::Good, "peer0 has XDP program 7"));
        let elsewhere = judged(json!({"ifname": "eth0", "link_index": 2, "link_netnsid": 0}), None);
        assert_eq!(elsewhere.verdict, Verdict::Note);
    }

    #[test]
    fn an_interface_is_judged_by_its_worst_part() {
        let native = Interface::new("eth0", AttachMode::Native, None).unwrap();
        let three = Interface { queues: Some(3), ..native.clone() };
        let copying = Interface { zero_copy: false, ..native.clone() };
        let change = |change: &dyn Fn(&mut InterfaceFacts)| {
            let mut facts = facts("ice");
            change(&mut facts);
            facts
        };
        for (interface, facts, expected) in [
            (&native, facts("ice"), (Verdict::Good, "eth0 link")),
            (&copying, facts("ice"), (Verdict::Note, "eth0 zero-copy")),
            (&native, facts("veth"), (Verdict::Note, "eth0 zero-copy")),
            (&native, facts("e1000"), (Verdict::Warning, "eth0 driver")),
            (&native, change(&|f| f.link.state = LinkState::Down), (Verdict::Warning, "eth0 link")),
            (&native, change(&|f| f.link.mtu = 9000), (Verdict::Bad, "eth0 MTU")),
            (&native, change(&|f| f.rx_queues = MAX_QUEUES + 1), (Verdict::Bad, "eth0 queues")),
            (&three, facts("ice"), (Verdict::Bad, "eth0 queues")),
            (&three, change(&|f| f.hashed_to = Some(2)), (Verdict::Good, "eth0 link")),
            (&three, change(&|f| f.hashed_to = None), (Verdict::Warning, "eth0 queues")),
            (&three, change(&|f| f.rx_queues = 2), (Verdict::Bad, "eth0 queues")),
            (&native, change(&|f| f.strips_vlan = true), (Verdict::Warning, "eth0 VLAN tags")),
            (&native, change(&|f| f.joins_segments = true), (Verdict::Warning, "eth0 LRO")),
        ] {
            assert_eq!(worst(&judge(interface, &facts)), expected, "{facts:?}");
        }
    }

    #[test]
    fn what_the_configuration_names_is_looked_at() {
        let directory = std::env::temp_dir().join(format!("tcpguard-doctor-{}", std::process::id()));
        let secret = directory.join("secret");
        let verdict = || (secret_file(&secret).verdict, secret_file(&secret).found);
        assert_eq!(verdict().0, Verdict::Bad, "no directory");
        fs::create_dir_all(&directory).unwrap();
        assert_eq!(verdict().0, Verdict::Note, "not there yet");
        MasterSecret::from_file(&secret).unwrap();
        assert_eq!(verdict(), (Verdict::Good, secret.display().to_string()));
        fs::write(&secret, "no secret").unwrap();
        assert_eq!(verdict().0, Verdict::Bad, "{:?}", verdict());
        fs::remove_dir_all(&directory).unwrap();

        let judged = |program: &str| {
            let events = Events { hook: vec![program.to_owned()], ..Events::default() };
            let config = Config { events, secret_file: Some(secret.clone()), ..Config::empty() };
            let findings = examine(&config);
            let of =
                |check: &str| findings.iter().find(|found| found.check == check).map(|found| found.verdict);
            (of("event hook"), of("secret file"))
        };
        assert_eq!(judged("/bin/sh"), (Some(Verdict::Good), Some(Verdict::Bad)));
        assert_eq!(judged("/bin/hs"), (Some(Verdict::Warning), Some(Verdict::Bad)));
    }

    #[test]
    fn whatever_is_not_good_has_a_remedy() {
        for (verdict, expected, of) in [
            (kernel("6.18.5-amd64").verdict, Verdict::Good, "new"),
            (kernel("6.5.0").verdict, Verdict::Bad, "old"),
            (kernel("").verdict, Verdict::Bad, "unknown"),
            (capabilities("CapEff:\t000001ffffffffff\n").verdict, Verdict::Good, "root"),
            (capabilities("CapEff:\t0000000000000000\n").verdict, Verdict::Bad, "nobody"),
            (bpffs("bpf /sys/fs/bpf bpf rw 0 0", Path::new("/sys/fs/bpf/x")).verdict, Verdict::Good, "there"),
            (bpffs("", Path::new("/sys/fs/bpf/x")).verdict, Verdict::Warning, "not yet"),
            (bpffs("tmpfs /tmp tmpfs rw 0 0", Path::new("/tmp/x")).verdict, Verdict::Bad, "elsewhere"),
            (jit("0").verdict, Verdict::Warning, "interpreted"),
            (clock("hpet").verdict, Verdict::Warning, "slow"),
            (clock("tsc").verdict, Verdict::Good, "fast"),
            (descriptors(Some(1024)).verdict, Verdict::Warning, "few"),
            (descriptors(None).verdict, Verdict::Good, "many"),
        ] {
            assert_eq!(verdict, expected, "{of}");
        }
        let lacking = capabilities("CapEff:\t0000000000001000\n");
        assert!(
            lacking.found.ends_with("lacks CAP_NET_RAW, CAP_IPC_LOCK, CAP_PERFMON, CAP_BPF"),
            "{lacking:?}"
        );
        for finding in examine(&Config::empty()) {
            assert_eq!(finding.remedy.is_none(), finding.verdict == Verdict::Good, "{finding:?}");
        }
    }
}
