//! What XDP logs itself, read from where aya-log puts it and told as events with fields. Whether it logs anything is not
//! decided here.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use aya::Ebpf;
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tcpguard_common::reason::{Outcome, Reason};
use tcpguard_common::trace::LOGGED_DRY_RUN;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::debug;

use super::error::DataplaneError;
use crate::telemetry::log::XDP;

/// Its ring.
const MAP: &str = "AYA_LOGS";

/// What the program on one interface logs.
pub struct XdpLog(EbpfLogger<Teller>);

impl XdpLog {
    /// Takes the ring of an instance whose programs are not loaded yet; they need it to be open until they are.
    pub(super) fn open(ebpf: &mut Ebpf, interface: &str) -> Result<Self, DataplaneError> {
        let teller = Teller { interface: interface.to_owned() };
        EbpfLogger::init_with_logger(ebpf, teller).map(Self).map_err(|error| match error {
            aya_log::Error::MapNotFound => {
                DataplaneError::ObjectMismatch { kind: "map", name: MAP.to_owned() }
            }
            error => DataplaneError::Map { action: "open", map: MAP, source: io::Error::other(error) },
        })
    }

    /// Tells what comes as it comes, for ever. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// Whatever the reactor says.
    pub async fn tell(self) -> io::Result<Infallible> {
        // SAFETY: the descriptor of the ring, which moves into the `AsyncFd` and is closed with it; nobody else closes or
        // replaces it.
        let mut ring = unsafe { AsyncFd::register_with_interest(self.0, Interest::READABLE) }?;
        loop {
            let mut ready = ring.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

impl fmt::Debug for XdpLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("XdpLog").finish_non_exhaustive()
    }
}

/// Turns messages into events.
struct Teller {
    interface: String,
}

impl Log for Teller {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let (said, interface) = (record.args().to_string(), self.interface.as_str());
        match Judged::read(&said) {
            Some(Judged { reason, outcome, dry_run, from, to, missed }) => {
                let (verdict, reason) = (outcome.name(), reason.name());
                debug!(
                    target: XDP,
                    interface, verdict, reason, dry_run, %from, %to, missed,
                    "XDP judged a segment"
                );
            }
            None => debug!(target: XDP, interface, "XDP: {said}"),
        }
    }

    fn flush(&self) {}
}

/// A message of the program's.
#[derive(Debug, PartialEq, Eq)]
struct Judged {
    reason: Reason,
    outcome: Outcome,
    dry_run: bool,
    from: SocketAddr,
    to: SocketAddr,
    /// Verdicts of the same CPU that were not logged before it.
    missed: u32,
}

impl Judged {
    /// Takes its words apart.
    fn read(said: &str) -> Option<Self> {
        let words: Vec<_> = said.split(' ').collect();
        let [verdict, src, dst, ports, missed] = words[..] else { return None };
        let [verdict, ports, missed] = [verdict, ports, missed].map(str::parse::<u32>);
        let (verdict, ports, missed) = (verdict.ok()?, ports.ok()?, missed.ok()?);
        let end = |address: &str, port: u32| {
            let address: Ipv6Addr = address.parse().ok()?;
            Some(SocketAddr::new(address.to_canonical(), port as u16))
        };
        let (src, dst) = (end(src, ports >> 16)?, end(dst, ports)?);
        let (reason, dry_run) =
            (Reason::from_index(verdict & !LOGGED_DRY_RUN)?, verdict & LOGGED_DRY_RUN != 0);
        let outcome = if dry_run { Outcome::Passed } else { reason.outcome() };
        // What is looked at is the frame as it is then: the answer that was written over it goes the other way.
        let (from, to) = if outcome == Outcome::Answered { (dst, src) } else { (src, dst) };
        Some(Self { reason, outcome, dry_run, from, to, missed })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_with_addresses_of_both_families_and_nonsense_is_not() {
        let ports = 40_000_u32 << 16 | 80;
        let read = |verdict: u32, ends: &str| Judged::read(&format!("{verdict} {ends} {ports} 7"));
        let judged = |reason, outcome, from: &str, to: &str| Judged {
            reason,
            outcome,
            dry_run: outcome == Outcome::Passed,
            from: from.parse().unwrap(),
            to: to.parse().unwrap(),
            missed: 7,
        };
        let (invalid, sent) = (Reason::AckInvalid, Reason::CookieSent);
        assert_eq!(
            read(invalid as u32, "::ffff:192.0.2.7 ::ffff:198.51.100.1"),
            Some(judged(invalid, Outcome::Dropped, "192.0.2.7:40000", "198.51.100.1:80"))
        );
        assert_eq!(
            read(sent as u32, "2001:db8::7 2001:db8::1"),
            Some(judged(sent, Outcome::Answered, "[2001:db8::1]:80", "[2001:db8::7]:40000")),
            "the answer's ends change places"
        );
        assert_eq!(
            read(sent as u32 | LOGGED_DRY_RUN, "2001:db8::7 2001:db8::1"),
            Some(judged(sent, Outcome::Passed, "[2001:db8::7]:40000", "[2001:db8::1]:80"))
        );
        for nonsense in
            ["", "1", "1 ::1 ::1 1", "1 ::1 ::1 1 1 1", "a ::1 ::1 1 1", "1 ::1 b 1 1", "63 ::1 ::1 1 1"]
        {
            assert_eq!(Judged::read(nonsense), None, "{nonsense}");
        }
    }
}
