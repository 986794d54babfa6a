//! What can go wrong between the daemon and the kernel: each error says what failed, on which object, and what to try.
//! It decides nothing: no error here is turned into a silent fall-back.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use super::AttachMode;

/// A failure to load, attach or use the XDP program and its maps.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DataplaneError {
    /// The kernel refused for want of privilege.
    #[error(
        "no permission to {action}: run as root, or with the capabilities CAP_BPF, CAP_PERFMON, CAP_NET_ADMIN, \
         CAP_NET_RAW and CAP_IPC_LOCK (plus CAP_SYS_ADMIN to mount bpffs)"
    )]
    NotPrivileged {
        /// What was attempted.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// There is no interface of that name in this network namespace.
    #[error("no interface called {name:?} in this network namespace: `ip link` lists those there are")]
    UnknownInterface {
        /// The name asked for.
        name: String,
    },
    /// The interface carries no Ethernet frames.
    #[error("{name} is not an Ethernet interface: tcpguard guards Ethernet devices only")]
    NotEthernet {
        /// The interface.
        name: String,
    },
    /// An interface property could not be read.
    #[error("could not read the {what} of {name}")]
    InterfaceQuery {
        /// The interface.
        name: String,
        /// The property.
        what: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver has no native XDP for frames of this MTU, or of that of a veth's other end.
    #[error(
        "the MTU of {name} is {mtu}, too large for XDP (at most {limit}): \
         `ip link set dev {name} mtu 1500`, on a veth pair at its other end too"
    )]
    MtuTooLarge {
        /// The interface.
        name: String,
        /// Its MTU in bytes.
        mtu: u32,
        /// The largest that works, as far as it is known.
        limit: u32,
    },
    /// Another XDP program holds the interface.
    #[error(
        "another XDP program is attached to {name}: find its owner with `bpftool net show dev {name}` and stop it, \
         or remove the program with `ip link set dev {name} xdp off`"
    )]
    OtherProgram {
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver cannot run XDP itself.
    #[error("{name} (driver {driver}) does not support native XDP: {}", native_remedy(name, driver))]
    NativeUnsupported {
        /// The interface.
        name: String,
        /// The driver's name, or `unknown`.
        driver: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The driver could run XDP, but not in the state the interface is in.
    #[error(
        "{name} (driver {driver}) refused the XDP program in {mode} mode: {source}. `dmesg` may name the reason; the \
         usual ones are an MTU above 1500 ({mtu} here), large receive offload (`ethtool -K {name} lro off`), and too \
         few free queues for XDP's own (`ethtool -L {name} combined N`)"
    )]
    AttachRefused {
        /// The interface.
        name: String,
        /// The driver's name, or `unknown`.
        driver: String,
        /// Native or generic.
        mode: AttachMode,
        /// The interface's MTU in bytes.
        mtu: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// More receive queues than transmit queues: an AF_XDP socket on one of the others could never send.
    #[error(
        "{name} has {rx} receive queues but only {tx} transmit queues, so that some of its engines could not answer: \
         make them equal with `ethtool -L {name}`"
    )]
    UnequalQueues {
        /// The interface.
        name: String,
        /// Receive queues.
        rx: u32,
        /// Transmit queues.
        tx: u32,
    },
    /// There are not as many receive queues, or maps have no room for as many engines.
    #[error(
        "{queues} queues of {name} are to have an engine, but it has {present}, and {most} can have one; \
         `ethtool -L {name} combined N` sets their number, and `queues` how many of them have an engine",
         most = tcpguard_common::map::MAX_QUEUES
    )]
    QueueCount {
        /// The interface.
        name: String,
        /// How many were asked for, or are there.
        queues: u32,
        /// How many the interface has.
        present: u32,
    },
    /// The device spreads flows over more receive queues than are to have an engine.
    #[error(
        "{name} spreads flows over its receive queues up to number {last}, and only the first {queues} are to have an engine: \
         what arrived at the others would be dropped. `ethtool -X {name} equal {queues}` keeps flows to those"
    )]
    UnservedQueues {
        /// The interface.
        name: String,
        /// How many are to have an engine.
        queues: u32,
        /// The last one that flows are hashed to.
        last: u32,
    },
    /// What a previous daemon had on the interface could not be put back.
    #[error("could not put the previous daemon's XDP program back on {name}: it is not protected any more")]
    Restore {
        /// The interface.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The interface is guarded already.
    #[error(
        "{name} is already guarded by another tcpguard{}: `tcpguard stats` talks to it; stop it first",
        holder(*pid)
    )]
    AlreadyGuarded {
        /// The interface.
        name: String,
        /// The other process, if it said so.
        pid: Option<u32>,
    },
    /// This very daemon attached to the interface before.
    #[error("{name} is named twice")]
    AttachedTwice {
        /// The interface.
        name: String,
    },
    /// The pins belong to a running daemon.
    #[error(
        "another tcpguard is running with its pins in {}: give this one a directory of its own (`--pin-dir`), or stop \
         the other",
        dir.display()
    )]
    PinDirInUse {
        /// The pin directory.
        dir: PathBuf,
    },
    /// The lock directory or file could not be used.
    #[error("could not lock {}", path.display())]
    Lock {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The pin directory is not on a BPF file system.
    #[error(
        "{} is not on a BPF file system: use a directory below /sys/fs/bpf, or mount one with `mount -t bpf bpf DIR`",
        dir.display()
    )]
    NotBpffs {
        /// The pin directory.
        dir: PathBuf,
    },
    /// The BPF file system could not be mounted.
    #[error("could not mount the BPF file system at {}: try `mount -t bpf bpf {}`", dir.display(), dir.display())]
    MountBpffs {
        /// The mount point.
        dir: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A file below the pin directory could not be created, opened or removed.
    #[error("could not {action} the pin {} (names below a BPF file system must not contain a dot)", path.display())]
    Pin {
        /// What was attempted.
        action: &'static str,
        /// The pin.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The eBPF object did not load.
    #[error(
        "could not load the XDP program for {subject}: this kernel may be too old (6.6 or later is expected)"
    )]
    Object {
        /// The interface, or the maps.
        subject: String,
        /// What aya or the kernel's verifier says.
        #[source]
        source: Box<aya::EbpfError>,
    },
    /// The eBPF object lacks something userspace expects: the two were not built together.
    #[error("the eBPF object has no {kind} {name}: it was not built with this binary")]
    ObjectMismatch {
        /// `map` or `program`.
        kind: &'static str,
        /// The name.
        name: String,
    },
    /// A map operation failed.
    #[error("could not {action} the map {map}")]
    Map {
        /// What was attempted.
        action: &'static str,
        /// The map's name.
        map: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// More interfaces than there are slots.
    #[error("too many interfaces: one daemon guards at most {limit}")]
    TooManyInterfaces {
        /// The number of slots.
        limit: u32,
    },
    /// More services than the maps hold.
    #[error("{count} protected address and port pairs of one family: at most {limit} fit")]
    TooManyServices {
        /// How many there are.
        count: usize,
        /// The map's capacity.
        limit: u32,
    },
}

fn native_remedy(name: &str, driver: &str) -> String {
    if driver.starts_with("802.1Q") {
        return format!(
            "it is a VLAN device; guard its parent, tcpguard reads the tags (`ip -d link show {name}`)"
        );
    }
    "guard the device below it, or ask for generic mode (`--mode generic`), which runs later and slower"
        .to_owned()
}

fn holder(pid: Option<u32>) -> String {
    pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
}

impl DataplaneError {
    /// An I/O error of `action`, unless it is for want of privilege, which has one remedy whatever failed.
    pub(super) fn or_privilege(
        action: impl Into<String>,
        source: io::Error,
        other: impl FnOnce(io::Error) -> Self,
    ) -> Self {
        if source.kind() == io::ErrorKind::PermissionDenied {
            Self::NotPrivileged { action: action.into(), source }
        } else {
            other(source)
        }
    }
}

/// A failure to open or use an AF_XDP socket.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SocketError {
    /// The kernel refused for want of privilege.
    #[error("no permission to open an AF_XDP socket: run as root, or with CAP_NET_RAW and CAP_NET_ADMIN")]
    NotPrivileged(#[source] io::Error),
    /// The kernel was built without AF_XDP.
    #[error("this kernel has no AF_XDP sockets (CONFIG_XDP_SOCKETS)")]
    Unsupported(#[source] io::Error),
    /// The configuration cannot work.
    #[error("AF_XDP {what} must be {expected}, not {value}")]
    Config {
        /// Which setting.
        what: &'static str,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        value: u32,
    },
    /// The queue stayed bound by another socket.
    #[error(
        "queue {queue} of interface {ifindex} is in use by another AF_XDP socket (waited {waited_ms} ms for it): \
         `ss -f xdp -ap` names its owner"
    )]
    Busy {
        /// The interface index.
        ifindex: u32,
        /// The receive queue.
        queue: u32,
        /// How long it was retried, milliseconds.
        waited_ms: u64,
    },
    /// There is no such queue.
    #[error("interface {ifindex} has no receive queue {queue}: `ethtool -l` shows how many there are")]
    NoSuchQueue {
        /// The interface index.
        ifindex: u32,
        /// The receive queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Zero-copy was asked for and the driver has none.
    #[error("the driver of interface {ifindex} has no zero-copy AF_XDP: configure copy mode")]
    NoZeroCopy {
        /// The interface index.
        ifindex: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else the kernel refused.
    #[error("could not {action} for queue {queue} of interface {ifindex}")]
    Kernel {
        /// What was attempted.
        action: String,
        /// The interface index.
        ifindex: u32,
        /// The receive queue.
        queue: u32,
        /// The kernel's answer.
        source: io::Error,
    },
}
