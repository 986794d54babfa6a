//! Goodput over a path that takes time and loses packets: the stack's, and the kernel's own over the same path in turn. Both
//! serve the same bytes to a client in a kernel; tcpguard relays them from the kernel's loopback. Part of `bench stack`.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use socket2::SockRef;

use super::defence;
use super::stack::{Effort, Row, row};
use crate::build::Artifacts;
use crate::lab::{GUARD_ADDRESS, Lab, LabConfig};

/// A round trip.
const DELAY: Duration = Duration::from_millis(20);
/// Shares of packets lost each way, in percent.
const LOSSES: [u8; 3] = [0, 1, 5];
/// Where tcpguard serves, and the kernel.
const GUARDED: SocketAddr = SocketAddr::new(IpAddr::V4(GUARD_ADDRESS), 80);
const KERNEL: SocketAddr = SocketAddr::new(IpAddr::V4(GUARD_ADDRESS), 81);
/// What tcpguard relays from.
const BACKEND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Measures in a lab of its own, which takes root. Fails unless bytes arrived in every run.
pub(super) fn measure(built: &Artifacts, effort: Effort) -> Result<Vec<Row>> {
    let lab = Lab::up(LabConfig { delay: Some(DELAY), ..LabConfig::new(&built.lab_object) })?;
    // What one connection learnt of the path is not to help or hinder the next.
    lab.guard().sysctl(&[("net/ipv4/tcp_no_metrics_save", "1")])?;
    lab.client().sysctl(&[("net/ipv4/tcp_rmem", "4096 131072 6291456")])?;
    let _sources = [Source::start(&lab, BACKEND)?, Source::start(&lab, KERNEL)?];
    let daemon = defence::tcpguard(&lab, built, &["--protect", &format!("{GUARDED}={BACKEND}")])?;
    let mut rows: Vec<_> = LOSSES
        .iter()
        .flat_map(|loss| ["", "kernel/"].map(|who| (format!("{who}goodput_loss_{loss}"), Vec::new())))
        .collect();
    for _ in 0..effort.transfers {
        for (loss, pair) in LOSSES.iter().zip(rows.chunks_mut(2)) {
            lab.lose(f64::from(*loss) / 100.0)?;
            for ((name, samples), server) in pair.iter_mut().zip([GUARDED, KERNEL]) {
                eprintln!("{name}");
                samples.push(transfer(&lab, server, effort.transfer)?);
            }
        }
    }
    daemon.stop()?;
    Ok(rows.into_iter().map(|(name, samples)| row(name, "MB/s".into(), samples)).collect())
}

/// Megabytes a second that a client in a kernel gets from `server` in so much time, its handshake included. It takes longer
/// where the handshake alone does, for its segments are lost, too.
fn transfer(lab: &Lab, server: SocketAddr, time: Duration) -> Result<f64> {
    const SILENCE: Duration = Duration::from_secs(30);
    lab.client().enter(|| {
        let start = Instant::now();
        let mut stream = TcpStream::connect(server).with_context(|| format!("connecting to {server}"))?;
        stream.set_read_timeout(Some(SILENCE))?;
        // Nobody repeats a handshake's last segment if it is lost, but this.
        stream.write_all(b"send")?;
        let (mut buffer, mut bytes) = (vec![0; 1 << 20], 0);
        while bytes == 0 || start.elapsed() < time {
            let read = stream.read(&mut buffer).with_context(|| format!("reading from {server}"))?;
            ensure!(read > 0, "{server} ended the connection");
            bytes += read;
        }
        Ok(bytes as f64 / 1e6 / start.elapsed().as_secs_f64())
    })?
}

/// A server that sends as much as each client takes. Dropping it ends it.
struct Source {
    stop: Arc<AtomicBool>,
    accepting: Option<JoinHandle<()>>,
}

impl Source {
    /// Starts it in the guard's namespace.
    fn start(lab: &Lab, address: SocketAddr) -> Result<Self> {
        let listener = lab.guard().enter(|| TcpListener::bind(address))?;
        let listener = listener.with_context(|| format!("listening on {address}"))?;
        // The same congestion control as tcpguard's, whatever this machine prefers.
        SockRef::from(&listener).set_tcp_congestion(b"cubic").context("choosing CUBIC")?;
        // Accepting must notice that it is to end.
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&stop);
        let accepting = thread::Builder::new().name("source".into()).spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((mut stream, _)) => {
                        thread::spawn(move || while stream.write_all(&[0x5a; 1 << 16]).is_ok() {});
                    }
                    Err(_) => thread::sleep(Duration::from_millis(2)),
                }
            }
        })?;
        Ok(Self { stop, accepting: Some(accepting) })
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(accepting) = self.accepting.take() {
            let _ended = accepting.join();
        }
    }
}
