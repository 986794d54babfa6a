//! The configuration file and the table of tunables. A leaf: it reads and judges, and applies nothing. What needs
//! the running system (does the interface exist, who owns the lock) is asked by `control`.
#![forbid(unsafe_code)]

mod access;
mod destination;
pub mod duration;
mod edit;
mod events;
pub mod file;
pub mod filters;
mod keys;
pub(crate) mod near;
mod overrides;
mod presets;
mod service;
pub(crate) mod shown;
pub mod tunables;
mod write;

use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::str::FromStr;

use tcpguard_common::map::{MAX_INTERFACES, MAX_SERVICES};

pub use access::{Control, MetricsListen, Readers};
pub use destination::{
    BackendAddr, Backends, Balance, CONNECT_TIMEOUT, Destination, Limits, MAX_BACKENDS, ProxyProtocol,
    Responder, Source,
};
pub use edit::{EditError, ServiceEdit, save_service, save_tunable};
pub use events::Events;
pub use filters::{Action, Filter, FilterSet, Prefix};
pub use keys::example;
pub use overrides::{INHERIT, Overrides};
pub use presets::{PRESETS, Preset};
pub use tunables::{
    AcceptOverflow, CongestionControl, StrictPolicy, TUNABLES, Tunable, TunableError, Tunables, Unit, Value,
};

/// Where `tcpguard run` looks when nothing on the command line says what to guard.
pub const DEFAULT_FILE: &str = "/etc/tcpguard/tcpguard.toml";
/// The control socket unless the configuration or `--control` says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/tcpguard/tcpguard.sock";
/// Where maps and links are pinned unless the configuration says otherwise.
pub const DEFAULT_PIN_DIR: &str = "/sys/fs/bpf/tcpguard";
/// As many CPUs as an affinity mask of the usual size has room for.
const MAX_CPUS: u32 = 1024;
/// Fewest flows one may ask XDP to remember.
pub const MIN_FLOWS: u32 = 1024;
/// Most flows one may ask XDP to remember: at 96 to 120 bytes each the map is then near 8 GB.
pub const MAX_FLOWS: u32 = 1 << 26;

/// A whole configuration, validated: every value in range, nothing contradictory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// What to guard; at least one, no name twice.
    pub interfaces: Vec<Interface>,
    /// What to protect there; at least one, no address and port twice.
    pub services: Vec<Service>,
    /// Timers and limits.
    pub tunables: Tunables,
    /// The master secret of the cookie keys; machines that share it accept each other's cookies. Without one
    /// the secret is random and stays with the pins.
    pub secret_file: Option<PathBuf>,
    /// The control socket.
    pub control: Control,
    /// Where Prometheus reads the metrics; nowhere when `None`.
    pub metrics: Option<MetricsListen>,
    /// A directory on a BPF file system.
    pub pin_dir: PathBuf,
    /// Flows XDP can know at once, per family, [`MIN_FLOWS`] to [`MAX_FLOWS`].
    pub max_flows: u32,
    /// What becomes of protected ports once the daemon has been dead for longer than `exit-grace`.
    pub on_daemon_exit: OnDaemonExit,
    /// Sources to deny or to spare the budgets from the start.
    pub filters: FilterSet,
    /// Who hears of events.
    pub events: Events,
}

/// One interface to guard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// As the kernel calls it.
    pub name: String,
    /// How XDP attaches; never changed silently.
    pub mode: AttachMode,
    /// Receive queues that get an engine, from 0 on; `None` for all it has.
    pub queues: Option<u32>,
    /// CPUs for the engines of its queues, which take turns when there are more queues; any CPU when empty.
    pub cpus: Vec<u32>,
    /// Its engines look for frames without ever sleeping: less latency for a CPU each.
    pub busy_poll: bool,
    /// Its device reads and writes AF_XDP frames itself where its driver can, natively.
    pub zero_copy: bool,
}

/// How XDP attaches to an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// In the driver.
    #[default]
    Native,
    /// In the network core, after the kernel built a socket buffer: works everywhere, slowly.
    Generic,
}

/// One protected address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Address and port clients connect to; the unspecified address stands for any of its family.
    pub listen: SocketAddr,
    /// How SYNs to it are treated.
    pub mode: ServiceMode,
    /// What would become of its segments is counted, and they are left to the host.
    pub dry_run: bool,
    /// Where its connections go. `None` only with [`ServiceMode::Off`].
    pub destination: Option<Destination>,
    /// What they may take.
    pub limits: Limits,
    /// Timers and limits of its own.
    pub tunables: Overrides,
}

/// How a service treats SYNs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ServiceMode {
    /// SYNs are remembered while it is calm, and answered with cookies in a flood of them.
    #[default]
    Auto,
    /// Every SYN is answered with a cookie.
    Cookie,
    /// SYNs are remembered, and those answered with a cookie that are too many for that.
    Stateful,
    /// Counted and left to the host.
    Off,
}

/// What XDP does with protected ports once the daemon is gone for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnDaemonExit {
    /// Leave them to the host's kernel.
    #[default]
    Pass,
    /// Drop what is addressed to them.
    Drop,
}

/// Why a configuration was refused. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file says something that cannot be.
    #[error("{}:{line}: {message}", path.display())]
    At {
        /// Which file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// What is wrong and what would be right.
        message: String,
    },
    /// A command line argument, or the whole, is wrong.
    #[error("{0}")]
    Whole(String),
}

/// Parts of a configuration that are good by themselves and not together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Contradiction {
    part: Part,
    message: String,
}

/// What a contradiction is about: the later of two things, by its place in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Whole,
    Interface(usize),
    Service(usize),
    /// The message has their names.
    Tunables,
    ReadSocket,
    Metrics,
}

const NOTHING_TO_PROTECT: &str =
    "nothing to protect; add --protect ADDR:PORT=BACKEND or [[service]] in the file";

macro_rules! words {
    ($type:ident, $what:literal, $($variant:ident = $word:literal),+) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word),+ })
            }
        }

        impl $type {
            /// Every word, the default first.
            pub const WORDS: &[&str] = &[$($word),+];
        }

        impl FromStr for $type {
            type Err = String;

            fn from_str(word: &str) -> Result<Self, String> {
                match word {
                    $($word => Ok(Self::$variant),)+
                    _ => Err(format!(concat!("unknown ", $what, " `{}`, expected one of {}"), word, Self::WORDS.join(", "))),
                }
            }
        }
    };
}

// For the files of this room.
use words;

words!(AttachMode, "XDP mode", Native = "native", Generic = "generic");
words!(ServiceMode, "service mode", Auto = "auto", Cookie = "cookie", Stateful = "stateful", Off = "off");
words!(OnDaemonExit, "action", Pass = "pass", Drop = "drop");

impl Interface {
    /// An interface called `name`, refused when the kernel could not have one (IFNAMSIZ, `dev_valid_name`).
    pub fn new(name: &str, mode: AttachMode, queues: Option<u32>) -> Result<Self, String> {
        let impossible = name.is_empty()
            || name.len() > 15
            || name == "."
            || name == ".."
            || name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace());
        if impossible {
            return Err(format!("`{name}` cannot be the name of an interface"));
        }
        let most = tcpguard_common::map::MAX_QUEUES;
        match queues {
            Some(n) if n == 0 || n > most => Err(format!("queues of {name}: {n} is not within 1 to {most}")),
            _ => {
                let (name, cpus) = (name.to_owned(), Vec::new());
                Ok(Self { name, mode, queues, cpus, busy_poll: false, zero_copy: true })
            }
        }
    }
}

impl FromStr for Service {
    type Err = String;

    /// Reads `ADDR:PORT=DESTINATION` or `ADDR:PORT=DESTINATION,MODE`, where `off` as the destination leaves the port to the
    /// host.
    fn from_str(text: &str) -> Result<Self, String> {
        let (listen, destination) = text
            .split_once('=')
            .ok_or_else(|| format!("`{text}` is not ADDR:PORT=BACKEND, as in 192.0.2.1:80=127.0.0.1:8080"))?;
        let listen = listen_address(listen)?;
        if destination == "off" {
            return Ok(Self {
                listen,
                mode: ServiceMode::Off,
                dry_run: false,
                destination: None,
                limits: Limits::default(),
                tunables: Overrides::default(),
            });
        }
        let last = destination.rsplit_once(',').and_then(|(rest, last)| Some((rest, last.parse().ok()?)));
        let (destination, mode) = last.unwrap_or((destination, ServiceMode::default()));
        Ok(Self {
            listen,
            mode,
            dry_run: false,
            destination: Some(destination.parse()?),
            limits: Limits::default(),
            tunables: Overrides::default(),
        })
    }
}

/// Reads what a service listens on.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let addr = socket_address(text)?;
    if impossible_host(addr.ip()) {
        return Err(format!("{}: not an address that a service can have", addr.ip()));
    }
    Ok(addr)
}

/// Reads where a service's connections are relayed to.
pub fn backend_address(text: &str) -> Result<SocketAddr, String> {
    let addr = socket_address(text)?;
    if addr.ip().is_unspecified() || impossible_host(addr.ip()) {
        return Err(format!("backend {addr}: {} is not an address to connect to", addr.ip()));
    }
    Ok(addr)
}

fn socket_address(text: &str) -> Result<SocketAddr, String> {
    let addr: SocketAddr = text.parse().map_err(|_| {
        format!(
            "`{text}` is not an address and port, as in 192.0.2.1:80 or [2001:db8::1]:80 (0.0.0.0 means any)"
        )
    })?;
    if addr.port() == 0 {
        return Err(format!("{text}: port 0 is not a port"));
    }
    Ok(addr)
}

fn impossible_host(ip: IpAddr) -> bool {
    let broadcast = matches!(ip, IpAddr::V4(v4) if v4.is_broadcast());
    ip.is_multicast() || broadcast
}

impl Config {
    /// An empty configuration with every default; not valid before it has an interface and a service.
    pub fn empty() -> Self {
        Self {
            interfaces: Vec::new(),
            services: Vec::new(),
            tunables: Tunables::default(),
            secret_file: None,
            control: Control::default(),
            metrics: None,
            pin_dir: DEFAULT_PIN_DIR.into(),
            max_flows: tcpguard_common::map::DEFAULT_MAX_FLOWS,
            on_daemon_exit: OnDaemonExit::default(),
            filters: FilterSet::default(),
            events: Events::default(),
        }
    }

    /// What is left to check once every part is good by itself: `Err` names the first contradiction.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.contradiction().map_err(|contradiction| ConfigError::Whole(contradiction.message))
    }

    /// As [`Self::check`], with the part that the contradiction is about.
    fn contradiction(&self) -> Result<(), Contradiction> {
        let whole = |message: String| Err(Contradiction { part: Part::Whole, message });
        if self.interfaces.is_empty() {
            return whole(
                "no interface to guard; name one with -i IFACE or [[interface]] in the file".into(),
            );
        }
        if self.services.is_empty() {
            return whole(NOTHING_TO_PROTECT.into());
        }
        self.part_contradiction()
    }

    /// Refuses what contradicts itself already, whatever arguments add to it.
    ///
    /// # Errors
    /// The first contradiction, in one line.
    fn check_part(&self) -> Result<(), String> {
        self.part_contradiction().map_err(|contradiction| contradiction.message)
    }

    fn part_contradiction(&self) -> Result<(), Contradiction> {
        let whole = |message: String| Err(Contradiction { part: Part::Whole, message });
        if self.interfaces.len() > MAX_INTERFACES as usize {
            return whole(format!("{} interfaces: the most is {MAX_INTERFACES}", self.interfaces.len()));
        }
        for (index, interface) in self.interfaces.iter().enumerate() {
            let whole = |message: String| Err(Contradiction { part: Part::Interface(index), message });
            if self.interfaces[..index].iter().any(|other| other.name == interface.name) {
                return whole(format!("interface {} is named twice", interface.name));
            }
        }
        services_contradiction(&self.services)?;
        let tunables =
            |error: TunableError| Contradiction { part: Part::Tunables, message: error.to_string() };
        self.tunables.check().map_err(tunables)?;
        own_tunables_contradiction(&self.services, &self.tunables)?;
        self.sockets_contradiction()
    }

    /// Refuses two sockets in one place: the second to be opened would find the first, and take it for another daemon's.
    fn sockets_contradiction(&self) -> Result<(), Contradiction> {
        let Control { socket, readers, .. } = &self.control;
        let read_socket = readers.as_ref().map(|readers| &readers.socket);
        if read_socket == Some(socket) {
            let path = socket.display();
            let message = format!(
                "read_socket {path}: that is the control socket, through which everything can be changed"
            );
            return Err(Contradiction { part: Part::ReadSocket, message });
        }
        if let Some(MetricsListen::Unix(path)) = &self.metrics
            && (path == socket || read_socket == Some(path))
        {
            let message = format!("metrics on unix:{0}: {0} is a control socket already", path.display());
            return Err(Contradiction { part: Part::Metrics, message });
        }
        Ok(())
    }
}

/// Refuses values of services' own that contradict those that hold for all.
///
/// # Errors
/// The first contradiction, in one line.
pub fn check_own_tunables(services: &[Service], common: &Tunables) -> Result<(), String> {
    own_tunables_contradiction(services, common).map_err(|contradiction| contradiction.message)
}

fn own_tunables_contradiction(services: &[Service], common: &Tunables) -> Result<(), Contradiction> {
    for (index, service) in services.iter().enumerate() {
        service.tunables.over(common).map_err(|error| Contradiction {
            part: Part::Service(index),
            message: format!("service {}: {error}", service.listen),
        })?;
    }
    Ok(())
}

/// Refuses services that contradict each other, or that are too few or too many: what there is to check about them once
/// each is good by itself.
///
/// # Errors
/// The first contradiction, in one line.
pub fn check_services(services: &[Service]) -> Result<(), String> {
    if services.is_empty() {
        return Err(NOTHING_TO_PROTECT.to_owned());
    }
    services_contradiction(services).map_err(|contradiction| contradiction.message)
}

/// Refuses more services than there is room for.
fn check_service_count(count: usize) -> Result<(), String> {
    match count > MAX_SERVICES as usize {
        true => Err(format!("{count} services: the most is {MAX_SERVICES}")),
        false => Ok(()),
    }
}

fn services_contradiction(services: &[Service]) -> Result<(), Contradiction> {
    let whole = |message: String| Err(Contradiction { part: Part::Whole, message });
    check_service_count(services.len()).or_else(whole)?;
    let mut given = HashSet::new();
    for (index, service) in services.iter().enumerate() {
        let refuse = |message: String| Err(Contradiction { part: Part::Service(index), message });
        if !given.insert(service.listen) {
            return refuse(format!("service {} is given twice", service.listen));
        }
        match (service.mode, &service.destination) {
            (ServiceMode::Auto | ServiceMode::Cookie | ServiceMode::Stateful, None) => {
                return refuse(format!("service {}: neither a backend nor a responder", service.listen));
            }
            (_, Some(Destination::Backends(backends)))
                if backends.addrs.contains(&BackendAddr::Tcp(service.listen)) =>
            {
                return refuse(format!("service {}: its backend is the service itself", service.listen));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses what cannot be the number of a CPU; whether there is such a CPU is asked when an engine starts.
fn check_cpu(cpu: i64) -> Result<u32, String> {
    u32::try_from(cpu)
        .ok()
        .filter(|&cpu| cpu < MAX_CPUS)
        .ok_or_else(|| format!("cpus: {cpu} is not within 0 to {}", MAX_CPUS - 1))
}

/// Refuses a flow limit outside [`MIN_FLOWS`] to [`MAX_FLOWS`].
pub fn check_max_flows(flows: i64) -> Result<u32, String> {
    u32::try_from(flows)
        .ok()
        .filter(|flows| (MIN_FLOWS..=MAX_FLOWS).contains(flows))
        .ok_or_else(|| format!("max_flows: {flows} is not within {MIN_FLOWS} to {MAX_FLOWS}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn small() -> Config {
        let mut config = Config::empty();
        config.interfaces.push(Interface::new("eth0", AttachMode::Native, None).unwrap());
        config.services.push("10.0.0.1:80=127.0.0.1:8080".parse().unwrap());
        config
    }

    #[test]
    fn protect_takes_both_families_responders_and_off() {
        let service: Service = "[2001:db8::1]:443=[::1]:8443".parse().unwrap();
        assert_eq!(service.listen, "[2001:db8::1]:443".parse().unwrap());
        assert_eq!(service.destination, Some("[::1]:8443".parse().unwrap()));
        let service: Service = "0.0.0.0:443=off".parse().unwrap();
        assert_eq!((service.mode, service.destination), (ServiceMode::Off, None));
        for mode in [ServiceMode::Auto, ServiceMode::Cookie, ServiceMode::Stateful, ServiceMode::Off] {
            let service: Service = format!("0.0.0.0:443=127.0.0.1:1,{mode}").parse().unwrap();
            assert_eq!((service.mode, service.destination), (mode, Some("127.0.0.1:1".parse().unwrap())));
        }
        let service: Service = "192.0.2.1:7=respond:echo".parse().unwrap();
        let echo = Destination::Responder(Responder::Echo);
        assert_eq!((service.mode, service.destination), (ServiceMode::Auto, Some(echo)));
    }

    #[test]
    fn protect_refuses_what_cannot_be_a_service() {
        for (text, why) in [
            ("10.0.0.1:80", "ADDR:PORT=BACKEND"),
            ("10.0.0.1:80=127.0.0.1:1,maybe", "not an address"),
            ("10.0.0.1:0=127.0.0.1:1", "port 0"),
            ("10.0.0.1:80=127.0.0.1:0", "port 0"),
            ("10.0.0.300:80=127.0.0.1:1", "not an address"),
            ("10.0.0.1=127.0.0.1:1", "not an address"),
            ("10.0.0.1:99999=127.0.0.1:1", "not an address"),
            ("224.0.0.1:80=127.0.0.1:1", "service can have"),
            ("255.255.255.255:80=127.0.0.1:1", "service can have"),
            ("10.0.0.1:80=0.0.0.0:1", "connect to"),
            ("example.org:80=127.0.0.1:1", "not an address"),
        ] {
            let error = text.parse::<Service>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_whole_that_contradicts_itself_is_refused() {
        small().check().unwrap();
        let refused = |change: &dyn Fn(&mut Config), why: &str| {
            let mut config = small();
            change(&mut config);
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
            assert!(!error.contains('\n'));
        };
        refused(&|c| c.interfaces.clear(), "no interface");
        refused(&|c| c.services.clear(), "nothing to protect");
        refused(&|c| c.interfaces.push(c.interfaces[0].clone()), "named twice");
        refused(&|c| c.services.push(c.services[0].clone()), "given twice");
        refused(&|c| c.services[0].destination = None, "neither a backend nor a responder");
        let to_itself = |c: &Config| c.services[0].listen.to_string().parse().ok();
        refused(&|c| c.services[0].destination = to_itself(c), "service itself");
        refused(&|c| c.tunables.min_rto = c.tunables.max_rto * 2, "min-rto");
        let readers = |socket: &str| Some(Readers { socket: socket.into(), group: None, mode: 0o660 });
        refused(&|c| c.control.readers = readers(DEFAULT_SOCKET), "that is the control socket");
        refused(&|c| c.metrics = format!("unix:{DEFAULT_SOCKET}").parse().ok(), "a control socket already");
        let both = |c: &mut Config| {
            (c.control.readers, c.metrics) = (readers("/r"), "unix:/r".parse().ok());
        };
        refused(&both, "metrics on unix:/r");
    }

    #[test]
    fn interface_names_and_queue_counts_are_judged_before_the_kernel_is_asked() {
        for name in ["", ".", "..", "a/b", "a b", "0123456789abcdef", "eth0:1"] {
            assert!(Interface::new(name, AttachMode::Native, None).is_err(), "{name}");
        }
        assert!(Interface::new("eth0", AttachMode::Native, Some(0)).is_err());
        assert!(Interface::new("eth0", AttachMode::Native, Some(65)).is_err());
        assert!(Interface::new("eth0", AttachMode::Native, Some(64)).is_ok());
    }
}
