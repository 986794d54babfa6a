//! A TCP peer made of single frames: for what no well-behaved kernel would send. It keeps no state but what one
//! handshake leaves behind, and its address belongs to no kernel, so nobody else answers for it.

use std::io::Write as _;
use std::mem::MaybeUninit;
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use socket2::{MaybeUninitSlice, MsgHdrMut, Socket};
use tcpguard_common::flow::V4;
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{self, AnySegment, Buffer, Family, Flags, Options, Segment, Vlan, checksum};
use tcpguard_common::seq::Seq;
use xtask::lab::{CLIENT_INTERFACE, GUARD_ADDRESS, Lab, packet_socket};

/// A port on the client's link for whole frames.
pub struct RawPort {
    socket: Socket,
    link: Link,
    pub addr: Ipv4Addr,
}

impl RawPort {
    /// Opens the client's end of the lab's link, as the host `addr`, which no kernel may have.
    pub fn open(lab: &Lab, addr: Ipv4Addr) -> Self {
        let link = Link {
            dst: mac(lab.guard(), xtask::lab::GUARD_INTERFACE),
            src: mac(lab.client(), CLIENT_INTERFACE),
            ..Link::default()
        };
        let socket = lab.client().enter(open_packet_socket).expect("entering the client's namespace");
        socket.set_read_timeout(Some(Duration::from_millis(20))).expect("setting a timeout");
        Self { socket, link, addr }
    }

    /// The same port in a VLAN: what it sends carries this tag, and so must all that it receives.
    pub fn tagged(mut self, tag: [u8; 4]) -> Self {
        self.link.vlan = Vlan { count: 1, tags: [tag, [0; 4]] };
        self
    }

    /// Sends a frame as it is.
    pub fn send(&self, frame: &[u8]) {
        (&self.socket).write_all(frame).expect("sending a frame");
    }

    /// Sends a frame if the link takes it: a flood outruns it now and then.
    pub fn try_send(&self, frame: &[u8]) {
        let _full = (&self.socket).write_all(frame);
    }

    /// The next segment from `src_port` of the guarded host to `dst_port` of ours, and its frame.
    pub fn receive(&self, src_port: u16, dst_port: u16, limit: Duration) -> Option<(Segment<V4>, Vec<u8>)> {
        let deadline = Instant::now() + limit;
        let mut buffer = vec![0; 65536];
        while Instant::now() < deadline {
            let Some(frame) = self.read(&mut buffer) else { continue };
            let Ok(AnySegment::V4(segment)) = packet::parse(&frame[..]) else { continue };
            if segment.ip.src == V4(GUARD_ADDRESS.octets())
                && segment.ip.dst == V4(self.addr.octets())
                && segment.tcp.src_port == src_port.to_be_bytes()
                && segment.tcp.dst_port == dst_port.to_be_bytes()
            {
                assert!(segment.checksum_ok(&frame), "a segment with a wrong checksum: {segment:?}");
                assert_eq!(segment.ethernet.vlan, self.link.vlan, "another VLAN's tag: {segment:?}");
                return Some((segment, frame));
            }
        }
        None
    }

    /// The next frame as it was on the wire: the kernel takes its VLAN tag out, and tells it apart.
    fn read(&self, buffer: &mut [u8]) -> Option<Vec<u8>> {
        /// `struct cmsghdr`, then `struct tpacket_auxdata`.
        const LEN: usize = 16 + 20;
        const TP_STATUS_VLAN_VALID: u32 = 1 << 4;
        let mut control = [MaybeUninit::uninit(); LEN + 4];
        let mut parts = [MaybeUninitSlice::new(uninit(buffer))];
        let mut message = MsgHdrMut::new().with_buffers(&mut parts).with_control(&mut control);
        let len = self.socket.recvmsg(&mut message, 0).ok()?;
        assert!(message.control_len() >= LEN, "no auxiliary data");
        // SAFETY: the kernel has written that much.
        let control: &[u8] = unsafe { std::slice::from_raw_parts(control.as_ptr().cast(), LEN) };
        let mut frame = buffer[..len].to_vec();
        let status = u32::from_ne_bytes(control[16..20].try_into().expect("four bytes"));
        if status & TP_STATUS_VLAN_VALID != 0 {
            let word = |at: usize| u16::from_ne_bytes([control[at], control[at + 1]]).to_be_bytes();
            frame.splice(12..12, [word(34), word(32)].concat());
        }
        Some(frame)
    }

    /// A frame from `port` of ours to `to_port` of the guarded host.
    pub fn frame(&self, port: u16, to_port: u16, segment: &Outgoing<'_>) -> Vec<u8> {
        self.between(V4(self.addr.octets()), V4(GUARD_ADDRESS.octets()), port, to_port, segment)
    }

    /// A frame between any two addresses, along our link.
    pub fn between<A: Family>(
        &self,
        src: A,
        dst: A,
        port: u16,
        to_port: u16,
        segment: &Outgoing<'_>,
    ) -> Vec<u8> {
        let headers = Headers {
            link: self.link,
            src,
            dst,
            ecn: 0,
            src_port: port.to_be_bytes(),
            dst_port: to_port.to_be_bytes(),
            seq: segment.seq,
            ack: segment.ack,
            flags: segment.flags,
            window: 64240,
            options: segment.options,
        };
        let mut frame = vec![0; headers.len() + segment.data.len()];
        let len = frame.len();
        frame[headers.len()..].copy_from_slice(segment.data);
        headers
            .write(&mut Buffer::new(&mut frame, len), segment.data.len(), checksum::sum(segment.data))
            .expect("headers that fit");
        frame
    }

    /// Sends a SYN with `options` and returns the SYN-ACK's half of a handshake.
    pub fn syn(&self, port: u16, to_port: u16, isn: u32, options: Options) -> Option<Handshake> {
        let syn = Outgoing { seq: Seq(isn), flags: Flags::SYN, options, ..Outgoing::default() };
        self.send(&self.frame(port, to_port, &syn));
        let (syn_ack, _) = self.receive(to_port, port, Duration::from_secs(2))?;
        assert_eq!(syn_ack.tcp.flags.0, Flags::SYN.0 | Flags::ACK.0, "the answer to a SYN");
        assert_eq!(syn_ack.tcp.ack, Seq(isn) + 1);
        Some(Handshake { port, to_port, next: Seq(isn) + 1, syn_ack })
    }
}

/// The parts of a segment that tests choose.
#[derive(Default)]
pub struct Outgoing<'a> {
    pub seq: Seq,
    pub ack: Seq,
    pub flags: Flags,
    pub options: Options,
    pub data: &'a [u8],
}

/// A handshake of which only the final ACK is missing.
pub struct Handshake {
    pub port: u16,
    pub to_port: u16,
    /// The sequence number of our first byte of data.
    pub next: Seq,
    pub syn_ack: Segment<V4>,
}

impl Handshake {
    /// A segment that acknowledges the SYN-ACK and carries `data` as the first bytes.
    pub fn ack<'a>(&self, data: &'a [u8]) -> Outgoing<'a> {
        let flags = if data.is_empty() { Flags::ACK } else { Flags(Flags::ACK.0 | Flags::PSH.0) };
        Outgoing { seq: self.next, ack: self.syn_ack.tcp.seq + 1, flags, options: self.options(), data }
    }

    /// The options of every segment after the handshake: timestamps when they were agreed on.
    pub fn options(&self) -> Options {
        let timestamps = self.syn_ack.options.timestamps.map(|(tsval, _)| (0x0100_0000, tsval));
        Options { timestamps, ..Options::default() }
    }
}

/// What a Linux client offers.
pub fn linux_options() -> Options {
    Options {
        mss: Some(1460),
        window_scale: Some(7),
        sack_permitted: true,
        timestamps: Some((0x00ff_0000, 0)),
        ..Options::default()
    }
}

/// The same bytes, to be written by somebody who takes uninitialised ones, too.
fn uninit(bytes: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: the same memory; a kernel only ever writes initialised bytes into it.
    unsafe { &mut *(std::ptr::from_mut(bytes) as *mut [MaybeUninit<u8>]) }
}

fn open_packet_socket() -> Socket {
    let socket = packet_socket(CLIENT_INTERFACE).expect("a packet socket");
    const PACKET_AUXDATA: libc::c_int = 8;
    let on: libc::c_int = 1;
    // SAFETY: an int, and its size.
    let set = unsafe {
        let size = size_of_val(&on) as libc::socklen_t;
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_AUXDATA, (&raw const on).cast(), size)
    };
    assert_eq!(set, 0, "asking for auxiliary data: {}", std::io::Error::last_os_error());
    socket
}

fn mac(namespace: &xtask::lab::Namespace, interface: &str) -> [u8; 6] {
    let said = namespace.output("ip", &["-o", "link", "show", "dev", interface]).expect("ip link show");
    let text = said.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next()).expect("a MAC");
    let mut mac = [0; 6];
    for (byte, text) in mac.iter_mut().zip(text.split(':')) {
        *byte = u8::from_str_radix(text, 16).expect("two hex digits");
    }
    mac
}
