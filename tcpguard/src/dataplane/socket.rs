//! One AF_XDP socket: frames in, frames out, and an account of where each frame of its memory is. The rest of the crate
//! sees slices; what is in them is none of this file's business.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use xdp::nic::NicIndex;
use xdp::slab::Slab;
use xdp::socket::{SocketError as XdpError, XdpSocket, XdpSocketBuilder};
use xdp::umem::{FrameSize, UmemCfgBuilder};
use xdp::{CompletionRing, Packet, RingConfigBuilder, RxRing, Umem, WakableFillRing, WakableTxRing};

use super::error::SocketError;
use super::rings::RingViews;

/// Bytes the kernel keeps in front of every frame (`XDP_PACKET_HEADROOM`).
const HEADROOM: u32 = 256;
/// The longest Ethernet frame a 2 KB chunk holds.
const SMALL_FRAME: u32 = 2048 - HEADROOM;
/// The longest Ethernet frame a socket can carry, in bytes.
pub const MAX_FRAME: u32 = 4096 - HEADROOM;
/// The largest MTU whose frames a driver with one 4 KB page for each commonly holds in one buffer, veth being the strictest.
pub const WHOLE_MTU: u32 = 3498;
/// Ethernet header and two VLAN tags, in front of an MTU's worth of IP.
const LINK_HEADER: u32 = 14 + 2 * 4;

/// `SOL_XDP` option `XDP_MAX_TX_SKB_BUDGET`: frames one `sendto` sends in copy mode (32 otherwise). Linux 6.17.
const XDP_MAX_TX_SKB_BUDGET: libc::c_int = 9;
/// What a queued copy-mode frame is charged to the send buffer, at most: a 4 KB skb with its bookkeeping.
const SKB_TRUESIZE: libc::c_int = 8192;

/// Frames moved between ring and memory at a time.
const BATCH: usize = 64;
/// How often a kick calls the kernel before it leaves the rest for the next turn.
const KICK_ATTEMPTS: u32 = 64;
/// Pause between two attempts to bind a busy queue.
const BIND_PAUSE: Duration = Duration::from_millis(10);

/// Whether the device itself reads and writes a socket's frames, or the kernel copies them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ZeroCopy {
    /// The device, where its driver can.
    #[default]
    WherePossible,
    /// The device; an error if its driver cannot.
    Required,
    /// The kernel.
    Off,
}

/// How to open a socket.
#[derive(Clone, Copy, Debug)]
pub struct SocketConfig {
    /// Bytes of the longest Ethernet frame to carry, at most [`MAX_FRAME`].
    pub max_frame: u32,
    /// Frames that wait in the receive ring at most; a power of two. A full ring loses frames.
    pub rx_frames: u32,
    /// Frames that wait to be sent at most; a power of two.
    pub tx_frames: u32,
    /// Whether the device reads and writes the frames itself.
    pub zero_copy: ZeroCopy,
    /// How long to wait for a queue that another socket still holds: the kernel lets go of a dead process's about 80 ms
    /// after its end.
    pub bind_timeout: Duration,
}

impl SocketConfig {
    /// The usual sizes for an interface of this MTU. What the frames can hold is used whole: the MTU may grow a little. Above
    /// [`WHOLE_MTU`], XDP drops longer segments than frames hold.
    pub fn for_mtu(mtu: u32) -> Self {
        let max_frame = match mtu.saturating_add(LINK_HEADER) {
            needed if needed <= SMALL_FRAME => SMALL_FRAME,
            _ => MAX_FRAME,
        };
        let (rx_frames, tx_frames, bind_timeout) = (8192, 4096, Duration::from_secs(1));
        Self { max_frame, rx_frames, tx_frames, zero_copy: ZeroCopy::default(), bind_timeout }
    }

    /// The largest MTU of an interface all of whose frames fit.
    pub fn mtu(&self) -> u32 {
        self.max_frame - LINK_HEADER
    }

    /// The longest packet of a service on an interface of this MTU, bytes. Where frames may take several buffers, it is what
    /// every driver has in the first.
    pub fn packet_limit(mtu: u32) -> u32 {
        if mtu > WHOLE_MTU { 1500 } else { Self::for_mtu(mtu).mtu() }
    }
}

/// Where the frames are. Each is in exactly one place; only while the kernel moves one may it be seen in none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrameAudit {
    /// Frames in all.
    pub total: u32,
    /// Ours to fill and send.
    pub free: u32,
    /// Waiting for the kernel to receive into.
    pub fill: u32,
    /// Received, waiting for us.
    pub rx: u32,
    /// Queued, waiting for the kernel to send.
    pub tx: u32,
    /// Sent, waiting to become free.
    pub completion: u32,
}

impl FrameAudit {
    /// Frames inside the kernel: on their way out, or just being received. 0 once traffic has stopped; what never comes
    /// back is leaked.
    pub fn in_kernel(&self) -> u32 {
        let Self { total, free, fill, rx, tx, completion } = *self;
        total.saturating_sub(free + fill + rx + tx + completion)
    }
}

/// The kernel's counters of one socket, since it was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketStatistics {
    /// Frames dropped for reasons other than a full ring: mostly, too long.
    pub rx_dropped: u64,
    /// Frames dropped because the receive ring was full.
    pub rx_ring_full: u64,
    /// Frames dropped because no frame waited in the fill ring.
    pub rx_fill_ring_empty: u64,
    /// Fill descriptors the kernel refused. Never, or the account is wrong.
    pub rx_invalid: u64,
    /// Transmit descriptors the kernel refused. Never, or the account is wrong.
    pub tx_invalid: u64,
    /// Frames the driver refused to send and dropped.
    pub tx_driver_drops: u64,
}

/// An AF_XDP socket bound to one receive queue, with its own frames.
///
/// Dropping it closes the socket, and with it its XSKMAP entry; the kernel frees the queue some milliseconds later.
pub struct XskSocket {
    // Declared, hence dropped, in this order: nothing may refer to the frames when they are unmapped.
    socket: XdpSocket,
    fill: WakableFillRing,
    rx: RxRing,
    tx: WakableTxRing,
    completion: CompletionRing,
    views: RingViews,
    umem: Umem,
    batch: Batch,
    frames: u32,
    rx_frames: u32,
    tx_frames: u32,
    max_frame: usize,
    /// Frames we took from the receive ring and could not put back into the fill ring yet.
    owed_to_fill: usize,
    tx_driver_drops: u64,
}

// SAFETY: `Packet`s point into `umem`, which moves along; none exists outside a call.
unsafe impl Send for XskSocket {}

impl XskSocket {
    /// Opens a socket on a queue of an interface and gives the kernel its receive frames.
    ///
    /// # Errors
    ///
    /// `Busy` when the queue stays taken for `bind_timeout`; the others at once.
    pub fn open(ifindex: u32, queue: u32, config: &SocketConfig) -> Result<Self, SocketError> {
        check(config)?;
        let start = Instant::now();
        loop {
            match Self::open_once(ifindex, queue, config) {
                Err(SocketError::Busy { .. }) if start.elapsed() < config.bind_timeout => {
                    std::thread::sleep(BIND_PAUSE);
                }
                Err(SocketError::Busy { .. }) => {
                    let waited_ms = start.elapsed().as_millis() as u64;
                    return Err(SocketError::Busy { ifindex, queue, waited_ms });
                }
                result => return result,
            }
        }
    }

    fn open_once(ifindex: u32, queue: u32, config: &SocketConfig) -> Result<Self, SocketError> {
        let kernel =
            |action: &str, source| SocketError::Kernel { action: action.to_owned(), ifindex, queue, source };
        let frames = config.rx_frames + config.tx_frames;
        let frame_size = if config.max_frame <= SMALL_FRAME { FrameSize::TwoK } else { FrameSize::FourK };
        let umem = UmemCfgBuilder { frame_size, frame_count: frames, ..UmemCfgBuilder::default() }
            .build()
            .map_err(io::Error::other)
            .and_then(Umem::map)
            .map_err(|source| kernel("map the frames", source))?;
        let rings = RingConfigBuilder {
            rx_count: config.rx_frames,
            fill_count: config.rx_frames,
            tx_count: config.tx_frames,
            completion_count: config.tx_frames,
        }
        .build()
        .map_err(|error| kernel("size the rings", io::Error::other(error)))?;
        let setup = |error| setup_error(error, ifindex, queue);
        let mut builder = XdpSocketBuilder::new().map_err(setup)?;
        let (rings, mut flags) = builder.build_wakable_rings(&umem, rings).map_err(setup)?;
        let views = RingViews::map(builder.as_raw_fd()).map_err(|source| kernel("map the rings", source))?;
        tune(builder.as_raw_fd(), config);
        match config.zero_copy {
            // What the kernel does by itself.
            ZeroCopy::WherePossible => {}
            ZeroCopy::Required => flags.force_zerocopy(),
            ZeroCopy::Off => flags.force_copy(),
        }
        let missing = || kernel("make the rings", io::ErrorKind::NotFound.into());
        let (rx, tx) = (rings.rx_ring.ok_or_else(missing)?, rings.tx_ring.ok_or_else(missing)?);
        let socket = builder
            .bind(NicIndex::new(ifindex), queue, flags)
            .map_err(|error| bind_error(error, ifindex, queue, config))?;
        let mut socket = Self {
            socket,
            fill: rings.fill_ring,
            rx,
            tx,
            completion: rings.completion_ring,
            views,
            umem,
            batch: Batch::new(),
            frames,
            rx_frames: config.rx_frames,
            tx_frames: config.tx_frames,
            max_frame: config.max_frame as usize,
            owed_to_fill: config.rx_frames as usize,
            tx_driver_drops: 0,
        };
        socket.refill();
        Ok(socket)
    }

    /// Shows at most `budget` received frames to `visit`, as many at a time as there are, and gives their memory back to the
    /// kernel. Returns how many there were: fewer than `budget` means that the ring was empty.
    pub fn receive(&mut self, budget: usize, mut visit: impl FnMut(&[&[u8]])) -> usize {
        let mut total = 0;
        while total < budget {
            self.batch.limit = BATCH.min(budget - total);
            // SAFETY: the packets go back to `umem` below, before this call returns.
            let received = unsafe { self.rx.recv(&self.umem, &mut self.batch) };
            if received == 0 {
                break;
            }
            let mut frames = [&[][..]; BATCH];
            for (frame, packet) in frames.iter_mut().zip(self.batch.packets.iter().rev()) {
                *frame = packet;
            }
            visit(&frames[..received]);
            while let Some(packet) = self.batch.pop_back() {
                self.umem.free_packet(packet);
            }
            self.owed_to_fill += received;
            self.refill();
            total += received;
        }
        total
    }

    /// Lends free frames to `write` until it returns `None` or there is no room; it returns the length of the frame it
    /// wrote, from the start of the slice. A frame of no length, or of more than the slice's, is not sent. Frames leave with
    /// the next [`Self::kick`]. Returns how many were queued.
    pub fn transmit(&mut self, mut write: impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        let mut total = 0;
        loop {
            let mut room = self.room();
            if room == 0 {
                self.reap();
                room = self.room();
            }
            if room == 0 {
                return total;
            }
            let wanted = room.min(BATCH);
            let written = self.write_batch(wanted, &mut write);
            // SAFETY: the packets are of `umem`, which outlives the socket.
            let queued = unsafe { self.tx.send(&mut self.batch, false) }.unwrap_or(0);
            // The ring had room for the whole batch, and only a wake-up can fail; whatever did not go is free again.
            while let Some(packet) = self.batch.pop_back() {
                self.umem.free_packet(packet);
            }
            total += queued;
            if written < wanted || queued < written {
                return total;
            }
        }
    }

    /// Makes queued frames leave and takes back those that left.
    ///
    /// # Errors
    ///
    /// `WouldBlock` when some had to stay: the driver is busy or memory is short, the next turn will do. Anything else is
    /// the end of the socket: `ENETDOWN` while the interface is down, `ENXIO` once it is gone.
    pub fn kick(&mut self) -> io::Result<()> {
        // A full completion ring makes the kernel send nothing and report success.
        self.reap();
        for _ in 0..KICK_ATTEMPTS {
            if self.views.tx.len() == 0 || !self.views.tx.needs_wakeup() {
                self.reap();
                return Ok(());
            }
            match self.wake_tx() {
                Ok(()) => {
                    self.reap();
                    // In zero-copy mode the driver sends in its own time.
                    if self.views.tx.len() == 0 {
                        return Ok(());
                    }
                }
                Err(error) => match error.raw_os_error() {
                    // More frames than the budget of one call, or of the send buffer: completions make room.
                    Some(libc::EAGAIN | libc::EINTR) => self.reap(),
                    // The driver dropped a frame.
                    Some(libc::EBUSY) => {
                        self.tx_driver_drops += 1;
                        self.reap();
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    Some(libc::ENOBUFS) => {
                        self.reap();
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                    _ => return Err(error),
                },
            }
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    /// Whether the socket still has its interface. Costs a system call.
    ///
    /// # Errors
    ///
    /// `ENXIO` once the interface is gone, `ENETDOWN` while it is down.
    pub fn check(&self) -> io::Result<()> {
        // With frames in the ring this would be a kick, which has more to look after and tells the same.
        if self.views.tx.len() == 0 { self.wake_tx() } else { Ok(()) }
    }

    /// Puts the socket on the reactor of the tokio runtime that this thread is in: readable once frames arrived.
    ///
    /// # Errors
    ///
    /// Whatever epoll says.
    pub fn into_async(self) -> io::Result<AsyncFd<Self>> {
        // SAFETY: the descriptor belongs to `self`, which moves into the `AsyncFd` and closes it when dropped; nobody
        // else closes or replaces it.
        let registered = unsafe { AsyncFd::register_with_interest(self, Interest::READABLE) };
        registered.map_err(Into::into)
    }

    /// Whether the device reads and writes the frames itself, instead of the kernel copying them.
    pub fn is_zero_copy(&self) -> bool {
        let mut options: u32 = 0;
        let mut len = size_of::<u32>() as libc::socklen_t;
        // SAFETY: the option is one u32, and there is room for it.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_OPTIONS,
                std::ptr::from_mut(&mut options).cast(),
                &raw mut len,
            )
        };
        result == 0 && options & libc::XDP_OPTIONS_ZEROCOPY != 0
    }

    /// Whether more than half of the receive ring waits: what is not taken in time is lost.
    pub fn is_under_pressure(&self) -> bool {
        self.views.rx.len() > self.rx_frames / 2
    }

    /// Counts the frames where they are.
    pub fn audit(&self) -> FrameAudit {
        FrameAudit {
            total: self.frames,
            free: self.umem.allocatable() as u32,
            fill: self.views.fill.len(),
            rx: self.views.rx.len(),
            tx: self.views.tx.len(),
            completion: self.views.completion.len(),
        }
    }

    /// The kernel's counters.
    ///
    /// # Errors
    ///
    /// None on a kernel that has them (5.9).
    pub fn statistics(&self) -> io::Result<SocketStatistics> {
        let kernel = self.socket.statistics().map_err(io::Error::other)?;
        Ok(SocketStatistics {
            rx_dropped: kernel.rx_dropped,
            rx_ring_full: kernel.rx_ring_full,
            rx_fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            rx_invalid: kernel.rx_invalid_descs,
            tx_invalid: kernel.tx_invalid_descs,
            tx_driver_drops: self.tx_driver_drops,
        })
    }

    /// Frames that could be queued now.
    fn room(&self) -> usize {
        // Frames that the fill ring is owed are not for sending.
        let free = self.umem.allocatable().saturating_sub(self.owed_to_fill);
        free.min((self.tx_frames - self.views.tx.len()) as usize)
    }

    /// Lets `write` fill up to `wanted` frames into the batch.
    fn write_batch(&mut self, wanted: usize, write: &mut impl FnMut(&mut [u8]) -> Option<usize>) -> usize {
        self.batch.limit = wanted;
        let mut written = 0;
        while written < wanted {
            // SAFETY: the packet goes into the ring or back to `umem` before the transmit call returns.
            let Some(mut packet) = (unsafe { self.umem.alloc() }) else { break };
            let capacity = self.max_frame;
            if packet.adjust_tail(capacity as i32).is_err() {
                self.umem.free_packet(packet);
                break;
            }
            let length = write(&mut packet).filter(|length| (1..=capacity).contains(length));
            let Some(length) = length else {
                self.umem.free_packet(packet);
                break;
            };
            // Shortens a packet that is `capacity` long: cannot fail.
            let _ = packet.adjust_tail(length as i32 - capacity as i32);
            if let Some(packet) = self.batch.push_front(packet) {
                self.umem.free_packet(packet);
                break;
            }
            written += 1;
        }
        written
    }

    /// Gives the kernel frames to receive into.
    fn refill(&mut self) {
        // SAFETY: `umem` outlives the socket.
        let queued = unsafe { self.fill.enqueue(&mut self.umem, self.owed_to_fill, false) }.unwrap_or(0);
        self.owed_to_fill -= queued;
        if self.views.fill.needs_wakeup() {
            self.wake_rx();
        }
    }

    /// Makes sent frames free.
    fn reap(&mut self) {
        while self.completion.dequeue(&mut self.umem, BATCH) > 0 {}
    }

    fn wake_tx(&self) -> io::Result<()> {
        // SAFETY: sends nothing but the wake-up.
        let result = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                std::ptr::null(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null(),
                0,
            )
        };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn wake_rx(&self) {
        // SAFETY: receives nothing but the wake-up. That it would block is its normal answer.
        unsafe {
            libc::recvfrom(
                self.socket.as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
                std::ptr::null_mut(),
            )
        };
    }
}

impl AsRawFd for XskSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open for as long as `self`.
        unsafe { BorrowedFd::borrow_raw(self.socket.as_raw_fd()) }
    }
}

impl std::fmt::Debug for XskSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("XskSocket").field("fd", &self.as_raw_fd()).field("audit", &self.audit()).finish()
    }
}

/// Packets on their way between ring and memory; unlike the crate's own, with a limit that changes.
struct Batch {
    packets: VecDeque<Packet>,
    limit: usize,
}

impl Batch {
    fn new() -> Self {
        Self { packets: VecDeque::with_capacity(BATCH), limit: BATCH }
    }
}

impl Slab for Batch {
    fn available(&self) -> usize {
        self.limit.saturating_sub(self.packets.len())
    }

    fn len(&self) -> usize {
        self.packets.len()
    }

    fn is_empty(&self) -> bool {
        self.packets.is_empty()
    }

    fn push_front(&mut self, packet: Packet) -> Option<Packet> {
        if self.available() == 0 {
            return Some(packet);
        }
        self.packets.push_front(packet);
        None
    }

    fn pop_back(&mut self) -> Option<Packet> {
        self.packets.pop_back()
    }
}

fn check(config: &SocketConfig) -> Result<(), SocketError> {
    let SocketConfig { max_frame, rx_frames, tx_frames, zero_copy: _, bind_timeout: _ } = *config;
    if !(64..=MAX_FRAME).contains(&max_frame) {
        let expected = "64 to 3840 bytes";
        return Err(SocketError::Config { what: "max_frame", expected, value: max_frame });
    }
    for (what, value) in [("rx_frames", rx_frames), ("tx_frames", tx_frames)] {
        if !value.is_power_of_two() || !(64..=1 << 20).contains(&value) {
            let expected = "a power of two from 64 to 1048576";
            return Err(SocketError::Config { what, expected, value });
        }
    }
    Ok(())
}

/// Best effort: an older kernel sends 32 frames a call and the kick calls more often.
fn tune(socket: RawFd, config: &SocketConfig) {
    let budget = config.tx_frames;
    // In copy mode each queued frame is charged to the send buffer until the driver is done with it.
    let buffer =
        libc::c_int::try_from(config.tx_frames).unwrap_or(libc::c_int::MAX).saturating_mul(SKB_TRUESIZE);
    for (level, option, value) in [
        (libc::SOL_XDP, XDP_MAX_TX_SKB_BUDGET, budget.cast_signed()),
        (libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, buffer),
    ] {
        // SAFETY: both options read an int.
        unsafe {
            libc::setsockopt(
                socket,
                level,
                option,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
    }
}

fn setup_error(error: XdpError, ifindex: u32, queue: u32) -> SocketError {
    let (action, source) = match error {
        XdpError::SocketCreation(source) => match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => return SocketError::NotPrivileged(source),
            Some(libc::EAFNOSUPPORT) => return SocketError::Unsupported(source),
            _ => ("create an AF_XDP socket".to_owned(), source),
        },
        XdpError::SetSockOpt { inner, option } | XdpError::GetSockOpt { inner, option } => {
            (format!("set up {option:?} of an AF_XDP socket"), inner)
        }
        XdpError::RingMap { inner, ring } => (format!("map the {ring:?} ring of an AF_XDP socket"), inner),
        XdpError::Bind(source) => ("bind an AF_XDP socket".to_owned(), source),
    };
    SocketError::Kernel { action, ifindex, queue, source }
}

fn bind_error(error: XdpError, ifindex: u32, queue: u32, config: &SocketConfig) -> SocketError {
    let XdpError::Bind(source) = error else { return setup_error(error, ifindex, queue) };
    match source.raw_os_error() {
        Some(libc::EBUSY) => SocketError::Busy { ifindex, queue, waited_ms: 0 },
        Some(libc::EPERM | libc::EACCES) => SocketError::NotPrivileged(source),
        Some(libc::EOPNOTSUPP) if config.zero_copy == ZeroCopy::Required => {
            SocketError::NoZeroCopy { ifindex, source }
        }
        Some(libc::EINVAL) => SocketError::NoSuchQueue { ifindex, queue, source },
        _ => setup_error(XdpError::Bind(source), ifindex, queue),
    }
}
