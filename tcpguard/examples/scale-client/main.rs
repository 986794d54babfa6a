//! A great many clients in one process: the project's own stack over an AF_XDP socket, because descriptors are too few for as
//! many kernel sockets. `cargo xtask bench scale` runs it at the client's end of a lab's link and tells it on standard input what
//! to do; it answers each line with one of JSON. It judges nothing but whether what it asked for happened.

use std::io::{self, BufRead as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant as Wall};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use aya::maps::{Map, MapData, XskMap};
use clap::Parser;
use serde_json::{Value, json};
use tcpguard::dataplane::{SocketConfig, XskSocket, monotonic_ns};
use tcpguard::stack::{Config, ConnId, Error, Event, FlowInfo, Instant, Link, Stack, State};
use tcpguard_common::packet::Vlan;

/// Frames taken from the ring at a time.
const BURST: usize = 256;
/// Handshakes under way at once.
const OPENING: usize = 256;
/// Bytes sent and not acknowledged at once: a receiver may acknowledge single segments 40 ms late.
const IN_FLIGHT: usize = 16 << 20;
/// Bytes of a full segment with timestamps.
const DATA: usize = 1448;
/// How long a server's last ACKs may take once it has answered everything.
const LAST_ACKS: Duration = Duration::from_secs(5);
/// Nothing happened for so long: it will not happen any more.
const PATIENCE: Duration = Duration::from_secs(30);
/// Networks of 256 addresses that clients come from, one of each: the guard's budgets are for such networks.
const NETWORKS: u32 = 4096;
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";

/// Opens connections by the million; reads commands: `open TOTAL`, `data SEGMENTS`, `requests COUNT`
#[derive(Parser)]
struct Args {
    /// Index of the interface to send from and receive at
    #[arg(long)]
    ifindex: u32,
    /// The pinned XSKMAP that its frames are redirected by
    #[arg(long)]
    takers: PathBuf,
    /// Its hardware address
    #[arg(long, value_parser = mac)]
    from: [u8; 6],
    /// That of the other end
    #[arg(long, value_parser = mac)]
    to: [u8; 6],
    /// The service that connections are held to
    #[arg(long)]
    hold: SocketAddr,
    /// The web server that is sent requests
    #[arg(long)]
    web: SocketAddr,
}

#[expect(clippy::print_stdout, reason = "answers")]
fn main() -> Result<()> {
    let args = Args::parse();
    let mut clients = Clients::new(&args)?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let answer = match line.split_once(' ') {
            Some(("open", total)) => clients.open(total.parse()?)?,
            Some(("data", segments)) => clients.data(segments.parse()?)?,
            Some(("requests", count)) => clients.requests(count.parse()?)?,
            _ => bail!("no such command: {line:?}"),
        };
        println!("{answer}");
        io::stdout().flush()?;
    }
    Ok(())
}

fn mac(text: &str) -> Result<[u8; 6]> {
    let bytes: Vec<u8> =
        text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow!("six bytes are expected"))
}

struct Clients {
    stack: Stack,
    socket: XskSocket,
    link: Link,
    hold: SocketAddr,
    web: SocketAddr,
    /// The number of the next client.
    next: u32,
    held: Vec<ConnId>,
    random: u64,
}

impl Clients {
    fn new(args: &Args) -> Result<Self> {
        let socket =
            XskSocket::open(args.ifindex, 0, &SocketConfig::for_mtu(1500)).context("an AF_XDP socket")?;
        let map = MapData::from_pin(&args.takers).with_context(|| args.takers.display().to_string())?;
        let mut takers = XskMap::try_from(Map::XskMap(map))?;
        takers.set(0, socket.as_raw_fd(), 0).context("asking for the link's frames")?;
        let config = Config { max_connections: 1 << 21, max_time_wait: 8, ..Config::default() };
        let link = Link { dst: args.to, src: args.from, vlan: Vlan::default() };
        Ok(Self {
            stack: Stack::new(Instant(monotonic_ns()), config, 42),
            socket,
            link,
            hold: args.hold,
            web: args.web,
            next: 0,
            held: Vec::new(),
            random: 1,
        })
    }

    /// Holds so many connections in all; each has sent a byte that was acknowledged, so that both ends have it.
    fn open(&mut self, total: usize) -> Result<Value> {
        let (start, mut patience) = (Wall::now(), Patience::new());
        let (mut opening, mut failed) = (0, 0usize);
        self.held.reserve(total);
        while self.held.len() < total || self.stack.buffered_bytes() > 0 {
            while opening < OPENING && self.held.len() + opening < total {
                self.connect(self.hold)?;
                opening += 1;
            }
            let busy = self.turn();
            while let Some(event) = self.stack.poll_event() {
                match event {
                    Event::Connected(conn) => {
                        ensure!(self.stack.send(now(), conn, b"!") == Ok(1), "no room for a byte");
                        self.held.push(conn);
                        opening -= 1;
                    }
                    Event::Closed { conn, error } => {
                        self.stack.close(now(), conn);
                        ensure!(!self.held.contains(&conn), "a connection that was held ended: {error:?}");
                        opening -= 1;
                        failed += 1;
                    }
                    _ => {}
                }
            }
            patience.rest(busy, "opening connections").with_context(|| self.stuck())?;
        }
        Ok(json!({ "held": self.held.len(), "failed": failed, "seconds": start.elapsed().as_secs_f64() }))
    }

    /// Sends so many full segments over any of the connections, and waits until all is acknowledged.
    fn data(&mut self, segments: usize) -> Result<Value> {
        let (start, mut patience) = (Wall::now(), Patience::new());
        ensure!(!self.held.is_empty(), "no connection to send over");
        let mut left = segments;
        while left > 0 || self.stack.buffered_bytes() > 0 {
            let mut burst = BURST.min(left);
            while burst > 0 && self.stack.buffered_bytes() < IN_FLIGHT {
                let conn = self.any();
                match self.stack.send(now(), conn, &[0x5a; DATA]) {
                    Ok(_) => left -= 1,
                    Err(Error::WouldBlock) => {}
                    Err(error) => bail!("a connection that was held ended: {error}"),
                }
                burst -= 1;
            }
            let busy = self.turn();
            while self.stack.poll_event().is_some() {}
            patience.rest(busy, "sending data").with_context(|| self.stuck())?;
        }
        Ok(json!({ "segments": segments, "seconds": start.elapsed().as_secs_f64() }))
    }

    /// Sends so many requests, each over a connection of its own which the server closes first.
    fn requests(&mut self, count: usize) -> Result<Value> {
        let (start, mut patience) = (Wall::now(), Patience::new());
        let (mut begun, mut open, mut answered, mut failed, mut cut) = (0, 0, 0usize, 0usize, 0);
        let mut all_answered = None;
        // What is still closing needs us to the end.
        while answered < count || self.stack.connection_count() > 0 {
            while open < OPENING && answered + open < count {
                self.connect(self.web)?;
                (begun, open) = (begun + 1, open + 1);
            }
            let busy = self.turn();
            while let Some(event) = self.stack.poll_event() {
                match event {
                    Event::Connected(conn) => {
                        ensure!(self.stack.send(now(), conn, REQUEST) == Ok(REQUEST.len()), "no room to ask");
                    }
                    Event::Readable(conn) => loop {
                        match self.stack.recv(now(), conn, &mut [0; 2048]) {
                            Ok(0) => {
                                self.stack.close(now(), conn);
                                (open, answered) = (open - 1, answered + 1);
                                break;
                            }
                            Ok(_) => {}
                            Err(_) => break,
                        }
                    },
                    // Those that were answered are not ours any more.
                    Event::Closed { conn, error: Some(_) } => {
                        self.stack.close(now(), conn);
                        (open, failed) = (open - 1, failed + 1);
                    }
                    _ => {}
                }
            }
            if answered == count && all_answered.get_or_insert_with(Wall::now).elapsed() > LAST_ACKS {
                // XDP knows a million TIME_WAITs. An ACK that is lost of any other does not come again, however often we ask.
                cut = cut.max(self.stack.connection_count());
                self.stack.abort_some(now(), u32::MAX);
            }
            patience.rest(busy, "sending requests").with_context(|| self.stuck()).with_context(|| {
                format!("{answered} of {count} are answered, {open} are not, {failed} failed")
            })?;
        }
        let seconds = start.elapsed().as_secs_f64();
        Ok(json!({ "answered": answered, "failed": failed, "begun": begun, "cut": cut, "seconds": seconds }))
    }

    fn connect(&mut self, server: SocketAddr) -> Result<()> {
        let number = self.next;
        self.next += 1;
        let [_, _, high, low] = (number % NETWORKS).to_be_bytes();
        // All of 172.16.0.0/12, set aside for private use.
        let address = Ipv4Addr::new(172, 16 | high, low, 1);
        let port = u16::try_from(1024 + number / NETWORKS).context("no ports left")?;
        let local = SocketAddr::new(IpAddr::V4(address), port);
        self.stack.connect(now(), local, server, self.link).context("opening a connection")?;
        Ok(())
    }

    /// Which connections wait for something that does not come.
    fn stuck(&self) -> String {
        let waiting = |flow: &FlowInfo| flow.state != State::Established || flow.send_queued > 0;
        let flows: Vec<_> = self.stack.flows(now()).collect();
        let some: Vec<_> = flows.iter().filter(|flow| waiting(flow)).chain(&flows).take(3).collect();
        format!("{} connections, such as {some:?}", flows.len())
    }

    fn any(&mut self) -> ConnId {
        self.random = tcpguard_common::lab::mix(self.random);
        self.held[(self.random % self.held.len() as u64) as usize]
    }

    /// Takes what came and sends what is to go; whether anything was.
    fn turn(&mut self) -> bool {
        let Self { stack, socket, .. } = self;
        let at = now();
        let came = socket.receive(BURST, |frames| {
            stack.look_ahead(frames.iter().copied());
            for frame in frames {
                stack.handle_frame(at, frame);
            }
        });
        if stack.poll_timeout().is_some_and(|due| due <= at) {
            stack.handle_timeout(at);
        }
        let went = socket.transmit(|frame| stack.poll_transmit(at, frame));
        // What had to stay goes with the next turn.
        let _busy = socket.kick();
        came + went > 0
    }
}

fn now() -> Instant {
    Instant(monotonic_ns())
}

/// Waits for things to happen, but not for ever.
struct Patience(Wall);

impl Patience {
    fn new() -> Self {
        Self(Wall::now())
    }

    fn rest(&mut self, busy: bool, doing: &str) -> Result<()> {
        if busy {
            self.0 = Wall::now();
            return Ok(());
        }
        ensure!(self.0.elapsed() < PATIENCE, "nothing happened any more while {doing}");
        thread::sleep(Duration::from_micros(100));
        Ok(())
    }
}
