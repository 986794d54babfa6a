//! Real clients beside a flood: those that knock one after the other, and the one whose connection is flooded.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    fn a_connection_is_open_until_its_other_end_ends_it() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert!(is_open(&client));
        drop(server);
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while is_open(&client) {
            assert!(std::time::Instant::now() < deadline, "it never ends");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
