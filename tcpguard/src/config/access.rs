//! Who may ask the daemon, and where: its sockets, their modes and groups. It opens none.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use super::DEFAULT_SOCKET;

/// Of a socket unless configured.
pub(super) const DEFAULT_MODE: u32 = 0o660;
/// What comes before a path.
const UNIX: &str = "unix:";
/// `sockaddr_un` has room for this much, with a temporary name's suffix.
const MAX_PATH: usize = 90;

/// Where the daemon listens for commands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Control {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Group that may use it, by name or number; the daemon's own when `None`.
    pub group: Option<String>,
    /// Its permissions. Others than owner and group have none.
    pub mode: u32,
    /// A second socket, for reading alone.
    pub readers: Option<Readers>,
}

/// A socket on which nothing can be changed, and nothing be seen of what clients send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Readers {
    /// Path of the Unix socket.
    pub socket: PathBuf,
    /// Group that may use it, by name or number; the daemon's own when `None`.
    pub group: Option<String>,
    /// Its permissions.
    pub mode: u32,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into(), group: None, mode: DEFAULT_MODE, readers: None }
    }
}

/// Where Prometheus reads the metrics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricsListen {
    /// On an address and port.
    Tcp(SocketAddr),
    /// On a Unix stream socket, by its absolute path; mode 0660, of the control socket's group.
    Unix(PathBuf),
}

impl FromStr for MetricsListen {
    type Err = String;

    /// Reads `ADDR:PORT`, or `unix:` and an absolute path.
    fn from_str(text: &str) -> Result<Self, String> {
        let Some(path) = text.strip_prefix(UNIX) else { return super::socket_address(text).map(Self::Tcp) };
        if !path.starts_with('/') || path.len() > MAX_PATH || path.contains('\0') {
            return Err(format!("`{text}` is not unix: and an absolute path of at most {MAX_PATH} bytes"));
        }
        Ok(Self::Unix(path.into()))
    }
}

impl fmt::Display for MetricsListen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(addr) => write!(f, "{addr}"),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

/// Reads the permissions of the socket that changes are made through.
pub(super) fn mode(text: &str) -> Result<u32, String> {
    let mode = read_mode(text)?;
    if mode & 0o007 != 0 {
        return Err(format!(
            "mode {text}: whoever is neither owner nor in the group could change everything; 0660"
        ));
    }
    Ok(mode)
}

/// Reads the permissions of a socket.
pub(super) fn read_mode(text: &str) -> Result<u32, String> {
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| mode <= 0o777 && mode & 0o600 == 0o600);
    mode.ok_or_else(|| format!("`{text}` is not the mode of a socket, 0600 to 0777 in octal digits"))
}

/// As the file has it.
pub(super) fn format_mode(mode: u32) -> String {
    format!("{mode:04o}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mode_is_octal_and_nobody_else_may_change_anything() {
        assert_eq!((mode("0660"), mode("600"), read_mode("0666")), (Ok(0o660), Ok(0o600), Ok(0o666)));
        for text in ["0666", "0060", "1660", "660 ", "rw", "", "0o660", "-660"] {
            assert!(mode(text).is_err(), "{text}");
        }
        assert_eq!(format_mode(0o600), "0600");
    }

    #[test]
    fn metrics_listen_on_any_address_or_on_a_path() {
        for text in ["0.0.0.0:9464", "[::1]:1", "unix:/run/m.sock"] {
            assert_eq!(text.parse::<MetricsListen>().unwrap().to_string(), text);
        }
        for text in ["9464", "0.0.0.0:0", "unix:m.sock", "localhost:1", &format!("unix:/{}", "x".repeat(90))]
        {
            assert!(text.parse::<MetricsListen>().is_err(), "{text}");
        }
    }
}
