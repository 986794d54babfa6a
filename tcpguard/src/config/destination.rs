//! Where the connections of a service go: to backends, or to a responder that is built in; and what each may take.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::words;

/// What comes before a responder's name where a backend could stand.
const RESPOND: &str = "respond:";
/// What comes before the path of a Unix socket.
const UNIX: &str = "unix:";
/// Longest path of a Unix socket, bytes: `sun_path` without its end.
const MAX_UNIX_PATH: usize = 107;
/// Most backends of one service.
pub const MAX_BACKENDS: usize = 256;
/// Shortest and longest time limit of a service.
const TIME_LIMITS: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(7 * 24 * 3600));
/// How long a backend may take to accept, unless configured.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// What becomes of a service's connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// They are relayed there.
    Backends(Backends),
    /// They are answered here.
    Responder(Responder),
    /// They go to the program that has this library in it (`control::daemon::Daemon::serve`).
    Application,
}

/// Backends that stand in for each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backends {
    /// At least one, none twice.
    pub addrs: Vec<BackendAddr>,
    /// Which of them a new connection goes to.
    pub balance: Balance,
    /// How long one may take to accept before the next is tried.
    pub connect_timeout: Duration,
    /// Tell them who the client is before its first byte.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Where they see their connections come from.
    pub source: Source,
}

/// Where a backend listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendAddr {
    /// On an address and port.
    Tcp(SocketAddr),
    /// On a Unix stream socket, by its absolute path.
    Unix(PathBuf),
}

/// Which backend a new connection goes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Balance {
    /// To one after the other.
    #[default]
    RoundRobin,
    /// To the one that has fewest.
    LeastConnections,
}

/// Versions of HAProxy's PROXY protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocol {
    /// A line of text.
    V1,
    /// A binary header.
    V2,
}

/// Which address a backend sees its connections come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// Whichever of ours routes choose.
    #[default]
    Own,
    /// The client's, with a port of ours (`IP_TRANSPARENT`). What a backend answers must be routed back here.
    Client,
}

/// A service that needs no backend: for probes, tests and measurements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Responder {
    /// Sends back what it receives (RFC 862).
    Echo,
    /// Reads and says nothing (RFC 863).
    Discard,
    /// Answers every HTTP/1 request with the same short page.
    Http,
}

/// What the connections of one service may take; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// How many at once, over all queues.
    pub connections: Option<u32>,
    /// How long one may go without a byte in either direction.
    pub idle_time: Option<Duration>,
    /// How long one may last.
    pub total_time: Option<Duration>,
}

words!(Responder, "responder", Echo = "echo", Discard = "discard", Http = "http");
words!(Balance, "balance", RoundRobin = "round-robin", LeastConnections = "least-connections");
words!(Source, "source", Own = "own", Client = "client");
words!(ProxyProtocol, "version of the PROXY protocol", V1 = "v1", V2 = "v2");

impl Backends {
    /// These, with the defaults for everything else.
    ///
    /// # Errors
    /// When there is none, or one twice.
    pub fn new(addrs: Vec<BackendAddr>) -> Result<Self, String> {
        if addrs.is_empty() || addrs.len() > MAX_BACKENDS {
            return Err(format!("{} backends: there can be 1 to {MAX_BACKENDS}", addrs.len()));
        }
        for (index, addr) in addrs.iter().enumerate() {
            if addrs[..index].contains(addr) {
                return Err(format!("backend {addr} is given twice"));
            }
        }
        Ok(Self {
            addrs,
            balance: Balance::default(),
            connect_timeout: CONNECT_TIMEOUT,
            proxy_protocol: None,
            source: Source::default(),
        })
    }

    /// Whether they can be connected to from the addresses that clients of `listen` have.
    ///
    /// # Errors
    /// Which one cannot: an address of one family reaches no backend of the other, and none a Unix socket.
    pub(super) fn check_source(&self, listen: SocketAddr) -> Result<(), String> {
        let fits = |addr: &BackendAddr| match addr {
            BackendAddr::Tcp(addr) => addr.is_ipv4() == listen.is_ipv4(),
            BackendAddr::Unix(_) => false,
        };
        match self.addrs.iter().find(|addr| !fits(addr)) {
            Some(addr) if self.source == Source::Client => Err(format!(
                "backend {addr} cannot be connected to from the addresses that clients of {listen} have"
            )),
            _ => Ok(()),
        }
    }
}

/// Reads a time limit of a service.
pub(super) fn time_limit(text: &str) -> Result<Duration, String> {
    let duration = super::duration::parse(text)?;
    let (least, most) = TIME_LIMITS;
    if !(least..=most).contains(&duration) {
        let format = super::duration::format;
        return Err(format!("{text} is out of range, {} to {}", format(least), format(most)));
    }
    Ok(duration)
}

/// Reads a limit of connections.
pub(super) fn connection_limit(count: i64) -> Result<u32, String> {
    u32::try_from(count)
        .ok()
        .filter(|&count| count > 0)
        .ok_or_else(|| format!("max_connections: {count} is not within 1 to {}", u32::MAX))
}

impl FromStr for Destination {
    type Err = String;

    /// Reads backends with commas between them, or `respond:` and the name of a responder.
    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(RESPOND) {
            Some(responder) => Ok(Self::Responder(responder.parse()?)),
            None => {
                let addrs = text.split(',').map(str::parse).collect::<Result<_, _>>()?;
                Ok(Self::Backends(Backends::new(addrs)?))
            }
        }
    }
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Backends(Backends { addrs, .. }) => {
                for (index, addr) in addrs.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{addr}")?;
                }
                Ok(())
            }
            Self::Responder(responder) => write!(f, "{RESPOND}{responder}"),
            Self::Application => f.write_str("this program"),
        }
    }
}

impl FromStr for BackendAddr {
    type Err = String;

    /// Reads `ADDR:PORT`, or `unix:` and an absolute path.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else { return Ok(Self::Tcp(super::backend_address(text)?)) };
        if !path.starts_with('/') || path.len() > MAX_UNIX_PATH || path.contains('\0') {
            return Err(format!(
                "`{text}` is not unix: and an absolute path of at most {MAX_UNIX_PATH} bytes"
            ));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for BackendAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_is_written_as_it_is_read() {
        for text in [
            "127.0.0.1:8080",
            "[::1]:8080,10.0.0.1:80,unix:/run/app.sock",
            "respond:echo",
            "respond:discard",
            "respond:http",
        ] {
            assert_eq!(text.parse::<Destination>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_destination_is_refused_with_what_would_be_one() {
        let long = format!("unix:/{}", "x".repeat(107));
        for (text, why) in [
            ("respond:gopher", "unknown responder `gopher`, expected one of echo, discard, http"),
            ("127.0.0.1:80,127.0.0.1:80", "backend 127.0.0.1:80 is given twice"),
            ("127.0.0.1:80,", "`` is not an address and port"),
            ("unix:run/app.sock", "absolute path"),
            (&long, "at most 107 bytes"),
        ] {
            let error = text.parse::<Destination>().unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
