//! Real clients beside a flood: those that knock one after the other, and the one whose connection is flooded.

use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::PORT;
use crate::lab::{GUARD_ADDRESS, Lab};

/// How long a client waits for its connection: it may send its SYN twice.
const PATIENCE: Duration = Duration::from_secs(2);

/// A connection from `port` of the client. What is left of the flood before may take the place of its first SYNs.
pub(super) fn connect(lab: &Lab, port: u16) -> Result<TcpStream> {
    const TRIES: u32 = 5;
    let server = SocketAddr::from((GUARD_ADDRESS, PORT));
    let connect = || -> Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        // So that the next round's connection need not wait for this one's TIME_WAIT.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)).into())?;
        socket.connect_timeout(&server.into(), PATIENCE)?;
        Ok(socket.into())
    };
    let again_and_again = || (1..TRIES).fold(connect(), |tried, _| tried.or_else(|_| connect()));
    lab.client().enter(again_and_again)?.context("the flow that is to be flooded")
}

/// Whether neither end has ended a connection on which nobody says anything.
pub(super) fn is_open(stream: &TcpStream) -> bool {
    let silent = |error: std::io::Error| error.kind() == ErrorKind::WouldBlock;
    stream.set_nonblocking(true).is_ok() && stream.peek(&mut [0]).is_err_and(silent)
}

/// Whether a byte from a client is acknowledged: its kernel keeps it until then.
pub(super) fn is_served(lab: &Lab, mut stream: &TcpStream) -> Result<bool> {
    let port = stream.local_addr()?.port();
    stream.write_all(b"x")?;
    let start = Instant::now();
    while start.elapsed() < PATIENCE {
        let text = lab.client().output("cat", &["/proc/net/tcp"])?;
        if unacknowledged(&text, port) == Some(0) {
            return Ok(true);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(false)
}

/// Bytes that a connection from this port has sent and nobody has acknowledged, out of `/proc/net/tcp`.
fn unacknowledged(text: &str, port: u16) -> Option<u32> {
    let of_port = |line: &&str| {
        line.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")))
    };
    let queues = text.lines().skip(1).find(of_port)?.split_whitespace().nth(4)?;
    u32::from_str_radix(queues.split_once(':')?.0, 16).ok()
}

/// What came of real clients.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Knocks {
    pub(super) tried: u64,
    pub(super) connected: u64,
    /// Told so by a reset.
    pub(super) refused: u64,
}

/// Real clients that connect one after the other while the flood lasts.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Result<Knocks>>,
}

impl Clients {
    pub(super) fn start(lab: &Lab, server: SocketAddr) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let theirs = Arc::clone(&stop);
        let body = move || {
            let mut knocks = Knocks::default();
            while !theirs.load(Ordering::Relaxed) {
                // The first one starts with the flood, not before it.
                std::thread::sleep(Duration::from_millis(20));
                knocks.tried += 1;
                match TcpStream::connect_timeout(&server, PATIENCE) {
                    Ok(_) => knocks.connected += 1,
                    Err(error) if error.kind() == ErrorKind::TimedOut => {}
                    Err(_) => knocks.refused += 1,
                }
            }
            Ok(knocks)
        };
        Ok(Self { stop, thread: lab.client().spawn("clients", body)? })
    }

    pub(super) fn finish(self) -> Result<Knocks> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.join() {
            Ok(knocks) => knocks,
            Err(_) => bail!("the clients' thread panicked"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_acknowledged_stands_beside_the_port_that_sent_it() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n   \
            0: 02004D0A:9C41 01004D0A:0050 01 00000000:00000000 00:00000000 00000000\n   \
            1: 02004D0A:9C40 01004D0A:0050 01 0000000A:00000000 01:00000014 00000000\n";
        assert_eq!(
            [40_000, 40_001, 40_002].map(|port| unacknowledged(text, port)),
            [Some(10), Some(0), None]
        );
    }

    #[test]
    fn a_connection_is_open_until_its_other_end_ends_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(is_open(&client));
        drop(server);
        let deadline = Instant::now() + Duration::from_secs(30);
        while is_open(&client) {
            assert!(Instant::now() < deadline, "it never ends");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
