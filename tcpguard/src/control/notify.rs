//! Tells a service manager how the daemon fares, in the words of sd_notify(3), and says how often it wants to hear that the
//! daemon lives. Without a manager it says nothing.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tracing::warn;

/// Where the manager listens, and how often it wants to hear of us.
pub(super) struct Notify {
    manager: Option<UnixDatagram>,
    watchdog: Option<Duration>,
}

impl Notify {
    /// As the environment says: `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`.
    pub(super) fn from_environment() -> Self {
        let manager = std::env::var_os("NOTIFY_SOCKET").and_then(|address| match connect(&address) {
            Ok(socket) => Some(socket),
            Err(error) => {
                warn!(?address, %error, "the service manager cannot be told anything");
                None
            }
        });
        let number = |name| std::env::var(name).ok()?.parse::<u64>().ok();
        let is_ours = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(std::process::id()));
        let watchdog = number("WATCHDOG_USEC").filter(|&limit| limit > 0 && is_ours);
        Self { manager, watchdog: watchdog.map(Duration::from_micros) }
    }

    /// After how long without a word the manager takes the daemon for dead.
    pub(super) fn watchdog(&self) -> Option<Duration> {
        self.watchdog.filter(|_| self.manager.is_some())
    }

    /// It guards.
    pub(super) fn ready(&self, banner: &str) {
        self.send(&format!("READY=1\nSTATUS={}", banner.lines().next().unwrap_or_default()));
    }

    /// It lives.
    pub(super) fn alive(&self) {
        self.send("WATCHDOG=1");
    }

    /// It drains, and may take so long until it ends, whatever the manager's own patience is.
    pub(super) fn stopping(&self, time: Duration) {
        self.send(&format!("STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC={}", time.as_micros()));
    }

    fn send(&self, state: &str) {
        if let Some(manager) = &self.manager {
            // A manager that does not listen now draws its own conclusions.
            let _ = manager.send(state.as_bytes());
        }
    }
}

/// Connects to a path, or to a name that begins with `@` in place of a zero byte.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.connect_addr(&address)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_is_told_by_path_and_by_abstract_name() {
        let name = format!("tcpguard-notify-{}", std::process::id());
        let path = std::env::temp_dir().join(&name);
        let abstract_name = SocketAddr::from_abstract_name(&name).unwrap();
        for (listener, address) in [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&abstract_name).unwrap(), format!("@{name}").into()),
        ] {
            let notify = Notify { manager: Some(connect(&address).unwrap()), watchdog: None };
            notify.ready("guarding lo\nand more");
            let mut message = [0; 100];
            let len = listener.recv(&mut message).unwrap();
            assert_eq!(&message[..len], b"READY=1\nSTATUS=guarding lo");
        }
        std::fs::remove_file(path).unwrap();
    }
}
