//! The session that a command is typed in: the connection through which its user reached the machine, which no change is to cut
//! off by accident. sshd names it in the environment. sudo and su keep that from a command, and not from its parents.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::parent_id;

use crate::control::protocol::Session;

use super::Failure;

/// Where sshd says it.
const VARIABLE: &str = "SSH_CONNECTION";
/// Parents that are looked at: more than any session has, fewer than a loop would.
const PARENTS: usize = 64;

/// What is known of a process.
struct Process {
    name: String,
    parent: u32,
    /// `NAME=VALUE`, each with a NUL behind it, as it was when the program began; `None` if this user may not know.
    environment: Option<Vec<u8>>,
}

/// The session that the daemon is to spare, if there is one and nobody insists.
///
/// # Errors
/// Bad input, where there is a session and nothing says which.
pub(super) fn session(force: bool) -> Result<Option<Session>, Failure> {
    if force {
        return Ok(None);
    }
    let own = std::env::var(VARIABLE).ok();
    let first = Process::read(parent_id());
    let parents = std::iter::successors(first, |process| Process::read(process.parent)).take(PARENTS);
    find(own.as_deref(), parents).map_err(Failure::BadInput)
}

/// The session that is named nearest, up to the sshd that it belongs to.
fn find(own: Option<&str>, parents: impl Iterator<Item = Process>) -> Result<Option<Session>, String> {
    if let Some(session) = own.and_then(read) {
        return Ok(session);
    }
    for process in parents {
        // Its own environment is that of whoever started it.
        if process.is_sshd() {
            return Err(format!(
                "this runs in an SSH session, and {VARIABLE} is missing, which names it: neither here nor in the parents' \
                 environment, as far as it may be read; pass it on (`sudo --preserve-env={VARIABLE}`), or --force does \
                 it without"
            ));
        }
        if let Some(session) = process.variable().and_then(read) {
            return Ok(session);
        }
    }
    Ok(None)
}

impl Process {
    fn read(id: u32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
        // `ID (NAME) STATE PARENT …`; a name may have anything in it.
        let (begin, rest) = stat.rsplit_once(") ")?;
        let name = begin.split_once(" (")?.1.to_owned();
        let parent = rest.split(' ').nth(1)?.parse().ok()?;
        Some(Self { name, parent, environment: fs::read(format!("/proc/{id}/environ")).ok() })
    }

    /// OpenSSH's has a name of its own for the part that serves a session, since 9.8.
    fn is_sshd(&self) -> bool {
        self.name.starts_with("sshd") || self.name == "dropbear"
    }

    fn variable(&self) -> Option<&str> {
        let mut said = self.environment.as_deref()?.split(|&byte| byte == 0);
        said.find_map(|said| std::str::from_utf8(said).ok()?.strip_prefix(VARIABLE)?.strip_prefix('='))
    }
}

/// Reads what sshd says of its connection: the client's address and port, then ours. One that is no network's has no session
/// to lose.
fn read(said: &str) -> Option<Option<Session>> {
    // An address of the link alone has the interface behind it, which is not part of it.
    let address = |word: &str| word.split('%').next().and_then(|address| address.parse::<IpAddr>().ok());
    let words: Vec<_> = said.split_ascii_whitespace().collect();
    match words[..] {
        ["UNKNOWN", ..] => Some(None),
        [peer, _, local, port] => {
            let local = SocketAddr::new(address(local)?, port.parse().ok()?);
            Some(Some(Session { peer: address(peer)?, local }))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_read_as_sshd_writes_it() {
        for (said, peer, local) in [
            ("198.51.100.7 50000 192.0.2.1 22", "198.51.100.7", "192.0.2.1:22"),
            ("2001:db8::7 50000 2001:db8::1 2222", "2001:db8::7", "[2001:db8::1]:2222"),
            ("fe80::7%eth0 50000 fe80::1%eth0 22", "fe80::7", "[fe80::1]:22"),
        ] {
            let session = Session { peer: peer.parse().unwrap(), local: local.parse().unwrap() };
            assert_eq!(read(said), Some(Some(session)), "{said}");
        }
        assert_eq!(read("UNKNOWN 65535 UNKNOWN 65535"), Some(None));
        for said in ["", "198.51.100.7", "198.51.100.7 50000 192.0.2.1", "a b c d", "192.0.2.7 1 192.0.2.1 x"]
        {
            assert_eq!(read(said), None, "{said}");
        }
    }

    /// What sudo and su leave out used to count as no session at all.
    #[test]
    fn the_session_that_is_named_nearest_counts_and_one_that_is_not_named_is_no_licence() {
        let process = |name: &str, environment: Option<&str>| {
            let environment = environment.map(|said| said.as_bytes().to_vec());
            Process { name: name.to_owned(), parent: 0, environment }
        };
        let named = "A=1\0SSH_CONNECTION=192.0.2.7 1 192.0.2.1 22\0B=\0";
        let other = "SSH_CONNECTION=192.0.2.8 1 192.0.2.1 22\0";
        let peer = |own: Option<&str>, parents: Vec<Process>| {
            find(own, parents.into_iter()).map(|session| session.map(|session| session.peer.to_string()))
        };
        let found = |peer: &str| Ok(Some(peer.to_owned()));
        let below =
            || vec![process("sudo", None), process("bash", Some(named)), process("sshd", Some(other))];
        assert_eq!(peer(None, below()), found("192.0.2.7"));
        assert_eq!(peer(Some(""), below()), found("192.0.2.7"));
        assert_eq!(peer(Some("192.0.2.9 1 192.0.2.1 22"), below()), found("192.0.2.9"));
        assert_eq!(peer(Some("UNKNOWN 65535 UNKNOWN 65535"), below()), Ok(None));
        // Nobody came from afar.
        assert_eq!(peer(None, vec![process("bash", Some("A=1\0")), process("systemd", None)]), Ok(None));
        assert_eq!(peer(None, Vec::new()), Ok(None));
        for sshd in ["sshd", "sshd-session", "dropbear"] {
            let lost =
                vec![process("sudo", None), process("bash", Some("A=1\0")), process(sshd, Some(other))];
            let why = peer(None, lost).unwrap_err();
            assert!(why.contains("SSH session") && why.contains("--force"), "{why}");
        }
    }

    #[test]
    fn parents_are_known_by_name_and_environment() {
        let own = Process::read(std::process::id()).unwrap();
        assert_eq!(own.parent, parent_id());
        assert!(own.environment.is_some() && !own.is_sshd(), "{}", own.name);
        assert!(Process::read(u32::MAX).is_none());
    }
}
