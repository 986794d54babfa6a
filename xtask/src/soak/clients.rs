//! The soak's clients: each sort does over and over what some real client does, checks every byte that comes back, and
//! may fail never.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use socket2::SockRef;

use crate::lab::{Backend, Namespace};

/// Clients of each sort.
const EACH: u64 = 2;
/// Sizes of the files there are to fetch.
const SIZES: [usize; 5] = [0, 1, 1400, 60_000, 2_000_000];
/// Nothing takes longer than this unless it hangs.
const PATIENCE: Duration = Duration::from_secs(30);

/// What clients talk to.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) relayed: SocketAddr,
    pub(super) echo: SocketAddr,
    /// What the web server has, by index.
    pub(super) files: Vec<Vec<u8>>,
}

/// Puts the files there.
pub(super) fn files(backend: &Backend) -> Result<Vec<Vec<u8>>> {
    let file = |(index, &size): (usize, &usize)| {
        let path = backend.file(&format!("soak-{index}"), size)?;
        Ok(std::fs::read(path)?)
    };
    SIZES.iter().enumerate().map(file).collect()
}

type Work = fn(&Target, &mut Random) -> Result<()>;

/// Every sort, by what it counts.
const SORTS: [(&str, Work); 5] = [
    ("fetches", fetch),
    ("kept connections", keep),
    ("resets", reset),
    ("half-closes", half_close),
    ("slow readers", read_slowly),
];

/// Clients at work.
pub(super) struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<(usize, JoinHandle<Result<u64>>)>,
}

impl Clients {
    pub(super) fn start(namespace: &Namespace, target: &Arc<Target>) -> Result<Self> {
        static SEED: AtomicU64 = AtomicU64::new(1);
        let (stop, mut threads) = (Arc::new(AtomicBool::new(false)), Vec::new());
        for _ in 0..EACH {
            for (sort, &(name, work)) in SORTS.iter().enumerate() {
                let (stop, target) = (Arc::clone(&stop), Arc::clone(target));
                let mut random = Random(SEED.fetch_add(1, Ordering::Relaxed));
                let body = move || {
                    let mut done = 0;
                    while !stop.load(Ordering::Relaxed) {
                        work(&target, &mut random).with_context(|| format!("one of the {name}"))?;
                        done += 1;
                    }
                    Ok(done)
                };
                threads.push((sort, namespace.spawn("client", body)?));
            }
        }
        Ok(Self { stop, threads })
    }

    /// Lets them finish what they are about. Returns how often each sort did its work.
    pub(super) fn finish(self) -> Result<Vec<(&'static str, u64)>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut done: Vec<_> = SORTS.iter().map(|&(name, _)| (name, 0)).collect();
        for (sort, thread) in self.threads {
            done[sort].1 += thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        Ok(done)
    }
}

/// A sequence that looks random and is the same each time (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (word ^ word >> 31) as usize % limit
    }
}

fn connect(addr: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&addr, PATIENCE).context("connecting")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn ask(stream: &mut TcpStream, file: usize, last: bool) -> Result<()> {
    let connection = if last { "close" } else { "keep-alive" };
    let request = format!("GET /soak-{file} HTTP/1.1\r\nHost: soak\r\nConnection: {connection}\r\n\r\n");
    stream.write_all(request.as_bytes()).context("asking")
}

/// Reads an answer's head, byte by byte, then exactly its body.
fn read_answer(stream: &mut TcpStream, expected: &[u8]) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).context("reading an answer's head")?;
        head.push(byte[0]);
    }
    ensure!(head.starts_with(b"HTTP/1.1 200"), "answered {}", String::from_utf8_lossy(&head));
    let mut body = vec![0; expected.len()];
    stream.read_exact(&mut body).context("reading an answer's body")?;
    ensure!(body == expected, "wrong bytes");
    Ok(())
}

/// One file on a connection that the server closes.
fn fetch(target: &Target, random: &mut Random) -> Result<()> {
    let file = random.below(target.files.len());
    let mut stream = connect(target.relayed)?;
    ask(&mut stream, file, true)?;
    read_answer(&mut stream, &target.files[file])?;
    ensure!(stream.read(&mut [0])? == 0, "more than the answer");
    Ok(())
}

/// Several files on a connection that the client closes.
fn keep(target: &Target, random: &mut Random) -> Result<()> {
    let mut stream = connect(target.relayed)?;
    for _ in 0..1 + random.below(20) {
        let file = random.below(target.files.len());
        ask(&mut stream, file, false)?;
        read_answer(&mut stream, &target.files[file])?;
    }
    Ok(())
}

/// A client that goes away in the middle of the largest file.
fn reset(target: &Target, random: &mut Random) -> Result<()> {
    let file = target.files.len() - 1;
    let mut stream = connect(target.relayed)?;
    ask(&mut stream, file, false)?;
    let mut some = vec![0; 1 + random.below(100_000)];
    stream.read_exact(&mut some).context("reading some of an answer")?;
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    Ok(())
}

/// A client that ends its direction and then reads to the end.
fn half_close(target: &Target, random: &mut Random) -> Result<()> {
    let file = &target.files[random.below(target.files.len())];
    let mut stream = connect(target.echo)?;
    let mut received = Vec::with_capacity(file.len());
    std::thread::scope(|scope| {
        let mut writer = stream.try_clone()?;
        let sent = scope.spawn(move || {
            writer.write_all(file)?;
            writer.shutdown(Shutdown::Write)
        });
        stream.read_to_end(&mut received).context("reading an echo")?;
        sent.join().map_err(|_| anyhow!("the writer panicked"))?.context("sending")
    })?;
    ensure!(received == *file, "{} of {} bytes came back, or wrong ones", received.len(), file.len());
    Ok(())
}

/// A client that takes its time, so that both directions stop and go on.
fn read_slowly(target: &Target, random: &mut Random) -> Result<()> {
    let file = target.files.len() - 1;
    let mut stream = connect(target.relayed)?;
    SockRef::from(&stream).set_recv_buffer_size(16 << 10)?;
    ask(&mut stream, file, true)?;
    std::thread::sleep(Duration::from_millis(200 + random.below(800) as u64));
    read_answer(&mut stream, &target.files[file])
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn the_same_seed_is_the_same_sequence_and_another_is_another() {
        let sequence = |seed| {
            let mut random = Random(seed);
            std::array::from_fn::<_, 8, _>(|_| random.below(1000))
        };
        assert_eq!(sequence(1), sequence(1));
        assert_ne!(sequence(1), sequence(2));
        assert!(sequence(1).iter().all(|&number| number < 1000));
    }
}
