//! Stands in for packetdrill: loads the library, calls through its table, and plays the peer in the notation of scripts.

use std::ffi::{CString, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::sync::{OnceLock, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use libc::{epoll_event, iovec, msghdr, nfds_t, pollfd, sockaddr, socklen_t, timeval};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{self, AnySegment, Buffer, Ethernet, Flags, Options, checksum};
use tcpguard_common::seq::Seq;

use super::example;

/// What a system call fails with.
pub(crate) type Outcome<T> = Result<T, i32>;

macro_rules! table {
    ($( $name:ident: $kind:ty, )+) => {
        /// `struct packetdrill_interface`, written from the header a second time.
        #[repr(C)]
        #[derive(Clone, Copy)]
        struct Table { $( $name: $kind, )+ }

        /// Its members, in the order in which they lie in memory.
        pub(crate) fn members() -> Vec<&'static str> {
            let mut members = vec![ $( (std::mem::offset_of!(Table, $name), stringify!($name)), )+ ];
            members.sort_unstable();
            members.into_iter().map(|(_, name)| name).collect()
        }
    };
}

table! {
    userdata: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    socket: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int,
    bind: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    listen: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    accept: unsafe extern "C" fn(*mut c_void, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    connect: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    read: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, usize) -> isize,
    readv: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> isize,
    recv: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, usize, c_int) -> isize,
    recvfrom: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, usize, c_int, *mut sockaddr, *mut socklen_t) -> isize,
    recvmsg: unsafe extern "C" fn(*mut c_void, c_int, *mut msghdr, c_int) -> isize,
    write: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize) -> isize,
    writev: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> isize,
    send: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize, c_int) -> isize,
    sendto: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, usize, c_int, *const sockaddr, socklen_t) -> isize,
    sendmsg: unsafe extern "C" fn(*mut c_void, c_int, *const msghdr, c_int) -> isize,
    fcntl: unsafe extern "C" fn(*mut c_void, c_int, c_int, ...) -> c_int,
    ioctl: unsafe extern "C" fn(*mut c_void, c_int, c_ulong, ...) -> c_int,
    close: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    shutdown: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    getsockopt: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    setsockopt: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    poll: unsafe extern "C" fn(*mut c_void, *mut pollfd, nfds_t, c_int) -> c_int,
    netdev_send: unsafe extern "C" fn(*mut c_void, *const c_void, usize) -> c_int,
    netdev_receive: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut usize, *mut c_longlong) -> c_int,
    usleep: unsafe extern "C" fn(*mut c_void, c_uint) -> c_int,
    gettimeofday: unsafe extern "C" fn(*mut c_void, *mut timeval, *mut c_void) -> c_int,
    epoll_create: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    epoll_ctl: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut epoll_event) -> c_int,
    epoll_wait: unsafe extern "C" fn(*mut c_void, c_int, *mut epoll_event, c_int, c_int) -> c_int,
    pipe: unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int,
    splice: unsafe extern "C" fn(*mut c_void, c_int, *mut i64, c_int, *mut i64, usize, c_uint) -> isize,
}

type Init = unsafe extern "C" fn(*const i8, *mut c_void);

/// What is in the table before it is filled.
pub(crate) const POISON: usize = 0x5a5a_5a5a_5a5a_5a5a;

/// The library's one function.
fn init() -> Init {
    static INIT: OnceLock<Init> = OnceLock::new();
    *INIT.get_or_init(|| {
        let library = example::build("packetdrill").join("libpacketdrill.so");
        let path = CString::new(library.into_os_string().into_encoded_bytes()).unwrap();
        // SAFETY: both names are C strings, and the library's function has this type.
        unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!library.is_null(), "{path:?} cannot be loaded");
            let symbol = libc::dlsym(library, c"packetdrill_interface_init".as_ptr());
            assert!(!symbol.is_null(), "no packetdrill_interface_init");
            std::mem::transmute::<*mut c_void, Init>(symbol)
        }
    })
}

/// So many words of memory after the table was put into it.
pub(crate) fn raw_table(words: usize) -> Vec<usize> {
    let mut memory = vec![POISON; words];
    // SAFETY: more room than the table takes, and no flags.
    unsafe { init()(std::ptr::null(), memory.as_mut_ptr().cast()) };
    memory
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

/// Where the stack listens, and where the peer is.
const SERVER_PORT: u16 = 8080;
const PEER_PORT: u16 = 40_000;
const V4_ENDS: [V4; 2] = [V4([192, 168, 0, 1]), V4([192, 0, 2, 1])];
/// The defaults of the library's flags.
const V6_ENDS: [V6; 2] = [
    V6([0xfd, 0x3d, 0x0a, 0x0b, 0x17, 0xd6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
    V6([0xfd, 0x3d, 0xfa, 0x7b, 0xd1, 0x7d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
];
/// The peer's initial sequence number: data goes over the wrap.
const PEER_ISN: u32 = u32::MAX - 5;

/// The library, and the peer of its one connection.
#[derive(Clone)]
pub(crate) struct Tool {
    table: Table,
    family: Family,
    flags: &'static str,
    mss: u16,
    /// The stack's port, its initial sequence number, and when the last packet left.
    port: u16,
    isn: u32,
    sent_at: Duration,
}

// SAFETY: the table may be used from any thread: packetdrill itself makes blocking calls on one of its own.
unsafe impl Send for Tool {}

impl Tool {
    pub(crate) fn new(family: Family, flags: &'static str) -> Self {
        let text = CString::new(flags).unwrap();
        let mut table = std::mem::MaybeUninit::<Table>::uninit();
        // SAFETY: a C string, and room for the table, which is filled.
        let table = unsafe {
            init()(text.as_ptr(), table.as_mut_ptr().cast());
            table.assume_init()
        };
        Self { table, family, flags, mss: 1460, port: SERVER_PORT, isn: 0, sent_at: Duration::ZERO }
    }

    pub(crate) fn family(&self) -> Family {
        self.family
    }

    pub(crate) fn flags(&self) -> &'static str {
        self.flags
    }

    /// The MSS that the peer's SYN offers.
    pub(crate) fn offer_mss(&mut self, mss: u16) {
        self.mss = mss;
    }

    /// Makes a call on another thread that waits, and lets it come to where it does. The outcome comes with the time.
    pub(crate) fn waiting<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> JoinHandle<(T, Duration)> {
        let (tool, (here, there)) = (self.clone(), mpsc::channel());
        let thread = thread::spawn(move || {
            // SAFETY: asks for a number.
            here.send(unsafe { libc::gettid() }).expect("somebody listens");
            let outcome = call(&tool);
            (outcome, tool.time())
        });
        let status = format!("/proc/self/task/{}/stat", there.recv().expect("a thread"));
        let sleeps = || std::fs::read_to_string(&status).is_ok_and(|status| status.contains(") S "));
        // A few times in a row: it may sleep for a lock on the way.
        let mut seen = 0;
        while seen < 5 {
            thread::sleep(Duration::from_millis(2));
            seen = if sleeps() { seen + 1 } else { 0 };
        }
        thread
    }

    pub(crate) fn socket(&self, flags: c_int) -> c_int {
        let domain = if self.family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 };
        // SAFETY: the table's userdata.
        outcome(unsafe { (self.table.socket)(self.table.userdata, domain, libc::SOCK_STREAM | flags, 0) })
            .unwrap()
    }

    /// A socket that listens.
    pub(crate) fn listening(&self) -> c_int {
        let socket = self.socket(0);
        let any: SocketAddr = match self.family {
            Family::V4 => SocketAddrV4::new([0; 4].into(), SERVER_PORT).into(),
            Family::V6 => SocketAddrV6::new([0; 16].into(), SERVER_PORT, 0, 0).into(),
        };
        let any = socket2::SockAddr::from(any);
        // SAFETY: the table's userdata, and an address of its length.
        unsafe {
            outcome((self.table.bind)(self.table.userdata, socket, any.as_ptr().cast(), any.len())).unwrap();
            outcome((self.table.listen)(self.table.userdata, socket, 5)).unwrap();
        }
        socket
    }

    /// The peer's three-way handshake with a socket that listens.
    pub(crate) fn handshake(&mut self) {
        self.sends("S 0:0(0)");
        self.expect("S. 0:0(0) ack 1");
        self.sends(". 1:1(0) ack 1");
    }

    /// A listening socket and one that was accepted from it.
    pub(crate) fn accepted(&mut self) -> (c_int, c_int) {
        let listener = self.listening();
        self.handshake();
        (listener, self.accept(listener).expect("a connection to accept"))
    }

    /// Accepts, and checks whom.
    pub(crate) fn accept(&self, listener: c_int) -> Outcome<c_int> {
        let mut accepted = Err(0);
        // SAFETY: the address has the room that its length says.
        let peer = unsafe {
            socket2::SockAddr::try_init(|storage, len| {
                let at = storage.cast();
                accepted = outcome((self.table.accept)(self.table.userdata, listener, at, len));
                Ok(())
            })
        };
        if accepted.is_ok() {
            assert_eq!(peer.unwrap().1.as_socket(), Some(self.peer()));
        }
        accepted
    }

    pub(crate) fn connect(&self, socket: c_int) -> Outcome<()> {
        let peer = socket2::SockAddr::from(self.peer());
        // SAFETY: the table's userdata, and an address of its length.
        let result =
            unsafe { (self.table.connect)(self.table.userdata, socket, peer.as_ptr().cast(), peer.len()) };
        outcome(result).map(|_| ())
    }

    fn peer(&self) -> SocketAddr {
        match self.family {
            Family::V4 => SocketAddr::new(V4_ENDS[1].0.into(), PEER_PORT),
            Family::V6 => SocketAddr::new(V6_ENDS[1].0.into(), PEER_PORT),
        }
    }

    pub(crate) fn read(&self, socket: c_int, len: usize) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; len];
        // SAFETY: the table's userdata, and a buffer of that length.
        let result =
            unsafe { (self.table.read)(self.table.userdata, socket, bytes.as_mut_ptr().cast(), len) };
        bytes.truncate(outcome(result)? as usize);
        Ok(bytes)
    }

    /// Reads into no buffer.
    pub(crate) fn read_nowhere(&self, socket: c_int, len: usize) -> Outcome<isize> {
        // SAFETY: the table's userdata; the null pointer is what is tried.
        outcome(unsafe { (self.table.read)(self.table.userdata, socket, std::ptr::null_mut(), len) })
    }

    pub(crate) fn write(&self, socket: c_int, len: usize) -> Outcome<isize> {
        let bytes = self.stream(1, len);
        // SAFETY: the table's userdata, and a buffer of that length.
        outcome(unsafe { (self.table.write)(self.table.userdata, socket, bytes.as_ptr().cast(), len) })
    }

    /// Receives by `recv`, or by `recvfrom`.
    pub(crate) fn receive_with(&self, socket: c_int, flags: c_int, addressed: bool) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; 100];
        let (at, len, table) = (bytes.as_mut_ptr().cast(), bytes.len(), &self.table);
        // SAFETY: the table's userdata, a buffer of that length, and no room for an address.
        let result = unsafe {
            if addressed {
                let (address, address_len) = (std::ptr::null_mut(), std::ptr::null_mut());
                (table.recvfrom)(table.userdata, socket, at, len, flags, address, address_len)
            } else {
                (table.recv)(table.userdata, socket, at, len, flags)
            }
        };
        bytes.truncate(outcome(result)? as usize);
        Ok(bytes)
    }

    /// Sends by `send`, or by `sendto`.
    pub(crate) fn send_with(
        &self,
        socket: c_int,
        len: usize,
        flags: c_int,
        addressed: bool,
    ) -> Outcome<isize> {
        let bytes = self.stream(1, len);
        let (at, table) = (bytes.as_ptr().cast(), &self.table);
        // SAFETY: the table's userdata, a buffer of that length, and no address.
        outcome(unsafe {
            if addressed {
                (table.sendto)(table.userdata, socket, at, len, flags, std::ptr::null(), 0)
            } else {
                (table.send)(table.userdata, socket, at, len, flags)
            }
        })
    }

    /// The last call.
    pub(crate) fn free(&mut self) {
        // SAFETY: nobody uses the table any more.
        unsafe { (self.table.free)(self.table.userdata) };
    }

    pub(crate) fn shutdown(&self, socket: c_int, how: c_int) {
        // SAFETY: the table's userdata.
        outcome(unsafe { (self.table.shutdown)(self.table.userdata, socket, how) }).unwrap();
    }

    pub(crate) fn close(&self, socket: c_int) {
        // SAFETY: the table's userdata.
        outcome(unsafe { (self.table.close)(self.table.userdata, socket) }).unwrap();
    }

    pub(crate) fn linger(&self, socket: c_int, seconds: c_int) {
        let linger = libc::linger { l_onoff: 1, l_linger: seconds };
        self.set(socket, libc::SOL_SOCKET, libc::SO_LINGER, &linger).unwrap();
    }

    pub(crate) fn set_option(&self, socket: c_int, level: c_int, name: c_int, value: c_int) -> Outcome<()> {
        self.set(socket, level, name, &value)
    }

    fn set<T>(&self, socket: c_int, level: c_int, name: c_int, value: &T) -> Outcome<()> {
        let (at, len) = (std::ptr::from_ref(value).cast(), size_of_val(value) as socklen_t);
        // SAFETY: the table's userdata, and a value of that length.
        outcome(unsafe { (self.table.setsockopt)(self.table.userdata, socket, level, name, at, len) })?;
        Ok(())
    }

    fn option_bytes(&self, socket: c_int, level: c_int, name: c_int) -> Outcome<Vec<u8>> {
        let mut bytes = vec![0; 1000];
        let mut len = bytes.len() as socklen_t;
        // SAFETY: the table's userdata, and a buffer of that length.
        let result = unsafe {
            let at = bytes.as_mut_ptr().cast();
            (self.table.getsockopt)(self.table.userdata, socket, level, name, at, &mut len)
        };
        outcome(result)?;
        bytes.truncate(len as usize);
        Ok(bytes)
    }

    pub(crate) fn option(&self, socket: c_int, level: c_int, name: c_int) -> Outcome<c_int> {
        let bytes = self.option_bytes(socket, level, name)?;
        Ok(c_int::from_ne_bytes(bytes.try_into().expect("an int")))
    }

    pub(crate) fn option_len(&self, socket: c_int, level: c_int, name: c_int) -> usize {
        self.option_bytes(socket, level, name).unwrap().len()
    }

    /// The state that `TCP_INFO` tells.
    pub(crate) fn state(&self, socket: c_int) -> u8 {
        self.option_bytes(socket, libc::IPPROTO_TCP, libc::TCP_INFO).unwrap()[0]
    }

    /// What a descriptor is ready for.
    pub(crate) fn poll(&self, fd: c_int, events: i16, milliseconds: c_int) -> i16 {
        let mut entry = pollfd { fd, events, revents: 0 };
        // SAFETY: the table's userdata, and one entry.
        let ready =
            outcome(unsafe { (self.table.poll)(self.table.userdata, &mut entry, 1, milliseconds) }).unwrap();
        assert_eq!(ready == 1, entry.revents != 0);
        entry.revents
    }

    /// An epoll set with one descriptor.
    pub(crate) fn epoll(&self, fd: c_int, events: u32, data: u64) -> c_int {
        let mut event = epoll_event { events, u64: data };
        // SAFETY: the table's userdata, and an event.
        unsafe {
            let set = outcome((self.table.epoll_create)(self.table.userdata, 1)).unwrap();
            let add = libc::EPOLL_CTL_ADD;
            outcome((self.table.epoll_ctl)(self.table.userdata, set, add, fd, &mut event)).unwrap();
            set
        }
    }

    /// What an epoll set has to tell now.
    pub(crate) fn epoll_wait(&self, set: c_int) -> Vec<(u32, u64)> {
        let mut events = [epoll_event { events: 0, u64: 0 }; 4];
        // SAFETY: the table's userdata, and room for so many events.
        let count = unsafe { (self.table.epoll_wait)(self.table.userdata, set, events.as_mut_ptr(), 4, 0) };
        let count = outcome(count).unwrap() as usize;
        events[..count].iter().map(|event| (event.events, event.u64)).collect()
    }

    /// A pipe: where to read and where to write.
    pub(crate) fn pipe(&self) -> (c_int, c_int) {
        let mut ends = [0; 2];
        // SAFETY: the table's userdata, and room for two descriptors.
        outcome(unsafe { (self.table.pipe)(self.table.userdata, ends.as_mut_ptr()) }).unwrap();
        (ends[0], ends[1])
    }

    pub(crate) fn splice(&self, from: c_int, to: c_int, len: usize) -> Outcome<isize> {
        let none = std::ptr::null_mut();
        // SAFETY: the table's userdata, and no offsets.
        outcome(unsafe { (self.table.splice)(self.table.userdata, from, none, to, none, len, 0) })
    }

    pub(crate) fn sleep(&self, duration: Duration) {
        let micros = c_uint::try_from(duration.as_micros()).expect("not that long");
        // SAFETY: the table's userdata.
        outcome(unsafe { (self.table.usleep)(self.table.userdata, micros) }).unwrap();
    }

    pub(crate) fn time(&self) -> Duration {
        let mut time = timeval { tv_sec: 0, tv_usec: 0 };
        // SAFETY: the table's userdata, and room for a time.
        unsafe { outcome((self.table.gettimeofday)(self.table.userdata, &mut time, std::ptr::null_mut())) }
            .unwrap();
        Duration::from_micros((time.tv_sec * 1_000_000 + time.tv_usec) as u64)
    }

    /// When the last packet that was looked at left.
    pub(crate) fn sent_at(&self) -> Duration {
        self.sent_at
    }

    /// The bytes of either stream.
    pub(crate) fn stream(&self, from: usize, len: usize) -> Vec<u8> {
        (from..from + len).map(|at| (at % 251) as u8).collect()
    }

    /// The peer sends a segment, in the notation of scripts: numbers count from the initial ones.
    pub(crate) fn sends(&mut self, segment: &str) {
        let (flags, from, len, ack) = parse(segment);
        let is_syn = flags.contains(Flags::SYN);
        let options = Options { mss: is_syn.then_some(self.mss), ..Options::default() };
        let (seq, ack) = (Seq(PEER_ISN) + from, ack.map_or(Seq(0), |ack| Seq(self.isn) + ack));
        let data = self.stream(from as usize, len);
        let frame = match self.family {
            Family::V4 => frame(self.headers(V4_ENDS, seq, ack, flags, options), &data),
            Family::V6 => frame(self.headers(V6_ENDS, seq, ack, flags, options), &data),
        };
        self.inject(&frame[Ethernet::LEN..]).expect("a packet goes in");
    }

    fn headers<A>(
        &self,
        [local, peer]: [A; 2],
        seq: Seq,
        ack: Seq,
        flags: Flags,
        options: Options,
    ) -> Headers<A> {
        Headers {
            link: Link::default(),
            src: peer,
            dst: local,
            ecn: 0,
            src_port: PEER_PORT.to_be_bytes(),
            dst_port: self.port.to_be_bytes(),
            seq,
            ack,
            flags,
            window: 60_000,
            options,
        }
    }

    /// An IP packet goes in.
    pub(crate) fn inject(&self, packet: &[u8]) -> Outcome<c_int> {
        // SAFETY: the table's userdata, and a packet of that length.
        outcome(unsafe {
            (self.table.netdev_send)(self.table.userdata, packet.as_ptr().cast(), packet.len())
        })
    }

    /// The next packet that leaves, if one ever does.
    fn receive(&mut self) -> Option<Vec<u8>> {
        let mut bytes = vec![0; 4000];
        let (mut len, mut time) = (bytes.len(), 0);
        // SAFETY: the table's userdata, a buffer of that length, and room for a time.
        unsafe {
            let at = bytes.as_mut_ptr().cast();
            outcome((self.table.netdev_receive)(self.table.userdata, at, &mut len, &mut time)).unwrap();
        }
        bytes.truncate(len);
        if len > 0 {
            self.sent_at = Duration::from_micros(time as u64);
        }
        (len > 0).then_some(bytes)
    }

    /// No packet leaves any more.
    #[track_caller]
    pub(crate) fn silent(&mut self) {
        let packet = self.receive();
        assert!(packet.is_none(), "{packet:x?}");
    }

    /// The next packet is this one. A SYN-ACK tells the initial sequence number.
    #[track_caller]
    pub(crate) fn expect(&mut self, segment: &str) {
        let (flags, seq, ack, data) = self.next_segment();
        if flags.contains(Flags::SYN) {
            self.isn = seq.0;
        }
        let from = seq.distance(Seq(self.isn));
        let mut text: String =
            LETTERS.iter().filter(|(flag, _)| flags.contains(*flag)).map(|(_, letter)| letter).collect();
        text += &format!(" {from}:{}({})", from + data.len() as u32, data.len());
        if flags.contains(Flags::ACK) {
            text += &format!(" ack {}", ack.distance(Seq(PEER_ISN)));
        }
        assert_eq!(text, segment);
    }

    /// The next packet carries these bytes there.
    #[track_caller]
    pub(crate) fn expect_data(&mut self, from: u32, bytes: &[u8]) {
        let (_, seq, _, data) = self.next_segment();
        assert_eq!((seq, data.as_slice()), (Seq(self.isn) + from, bytes));
    }

    /// The next packet is the SYN of an active open, which tells its port and initial sequence number.
    #[track_caller]
    pub(crate) fn expect_syn(&mut self) {
        let packet = self.receive().expect("a SYN");
        let at = if self.family == Family::V4 { 20 } else { 40 };
        self.port = u16::from_be_bytes([packet[at], packet[at + 1]]);
        let (flags, seq, ..) = self.read_segment(&packet);
        assert_eq!(flags, Flags::SYN);
        self.isn = seq.0;
    }

    #[track_caller]
    fn next_segment(&mut self) -> (Flags, Seq, Seq, Vec<u8>) {
        let packet = self.receive().expect("a packet");
        self.read_segment(&packet)
    }

    /// Takes a packet apart that the stack sent to the peer.
    #[track_caller]
    fn read_segment(&self, packet: &[u8]) -> (Flags, Seq, Seq, Vec<u8>) {
        let mut frame = vec![0; 12];
        frame.extend(if self.family == Family::V4 { [0x08, 0x00] } else { [0x86, 0xdd] });
        frame.extend(packet);
        let segment = packet::parse(&frame[..]).expect("a well-formed segment");
        let (tcp, payload, whole, ends) = match &segment {
            AnySegment::V4(segment) => {
                let ends = [segment.ip.src, segment.ip.dst] == V4_ENDS;
                (segment.tcp, segment.payload.clone(), segment.checksum_ok(&frame), ends)
            }
            AnySegment::V6(segment) => {
                let ends = [segment.ip.src, segment.ip.dst] == V6_ENDS;
                (segment.tcp, segment.payload.clone(), segment.checksum_ok(&frame), ends)
            }
        };
        assert!(whole && ends, "not to the peer, or corrupt");
        assert_eq!((tcp.src_port, tcp.dst_port), (self.port.to_be_bytes(), PEER_PORT.to_be_bytes()));
        (tcp.flags, tcp.seq, tcp.ack, frame[payload].to_vec())
    }

    /// Descriptors made non-blocking by the variadic call.
    pub(crate) fn set_nonblocking(&self, fd: c_int) {
        let flags = c_long::from(libc::O_RDWR | libc::O_NONBLOCK);
        // SAFETY: the table's userdata.
        unsafe {
            outcome((self.table.fcntl)(self.table.userdata, fd, libc::F_SETFL, flags)).unwrap();
            let now = outcome((self.table.fcntl)(self.table.userdata, fd, libc::F_GETFL)).unwrap();
            assert_eq!(c_long::from(now), flags);
        }
    }

    /// Bytes to read, by the variadic call.
    pub(crate) fn unread(&self, fd: c_int) -> c_int {
        let mut bytes: c_int = -1;
        // SAFETY: the table's userdata, and room for a number.
        outcome(unsafe { (self.table.ioctl)(self.table.userdata, fd, libc::FIONREAD, &raw mut bytes) })
            .unwrap();
        bytes
    }

    /// Sends two parts at once and receives into two parts at once, by the calls that take vectors and messages.
    pub(crate) fn vectors(&self) -> Vectors {
        Vectors(self.table)
    }
}

/// The calls that take several buffers.
pub(crate) struct Vectors(Table);

impl Vectors {
    /// Sends each of the parts by `writev` or `sendmsg`.
    pub(crate) fn send(&self, fd: c_int, parts: &mut [Vec<u8>], as_message: bool) -> Outcome<isize> {
        let parts = vectors(parts);
        // SAFETY: the table's userdata, and parts of the lengths they say.
        outcome(unsafe {
            if as_message {
                (self.0.sendmsg)(self.0.userdata, fd, &message(&parts), 0)
            } else {
                (self.0.writev)(self.0.userdata, fd, parts.as_ptr(), parts.len() as c_int)
            }
        })
    }

    /// Receives into each of the parts by `readv` or `recvmsg`.
    pub(crate) fn receive(&self, fd: c_int, parts: &mut [Vec<u8>], as_message: bool) -> Outcome<isize> {
        let parts = vectors(parts);
        // SAFETY: the table's userdata, and parts of the lengths they say.
        outcome(unsafe {
            if as_message {
                (self.0.recvmsg)(self.0.userdata, fd, &mut message(&parts), 0)
            } else {
                (self.0.readv)(self.0.userdata, fd, parts.as_ptr(), parts.len() as c_int)
            }
        })
    }
}

fn vectors(parts: &mut [Vec<u8>]) -> Vec<iovec> {
    parts.iter_mut().map(|part| iovec { iov_base: part.as_mut_ptr().cast(), iov_len: part.len() }).collect()
}

fn message(parts: &[iovec]) -> msghdr {
    // SAFETY: a message header of zeros is an empty one.
    let mut message: msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (parts.as_ptr().cast_mut(), parts.len());
    message
}

/// A call's result, or what it left in `errno`.
fn outcome<T: PartialOrd + Default>(result: T) -> Outcome<T> {
    let failed = result < T::default();
    if failed { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(result) }
}

fn frame<A: packet::Family>(headers: Headers<A>, data: &[u8]) -> Vec<u8> {
    let (at, sum) = (headers.len(), checksum::sum(data));
    let mut frame = vec![0; at + data.len()];
    frame[at..].copy_from_slice(data);
    let len = frame.len();
    headers.write(&mut Buffer::new(&mut frame, len), data.len(), sum).expect("room for the headers");
    frame
}

const LETTERS: [(Flags, char); 5] =
    [(Flags::SYN, 'S'), (Flags::FIN, 'F'), (Flags::RST, 'R'), (Flags::PSH, 'P'), (Flags::ACK, '.')];

/// Flags, first number, length and acknowledgement of a segment like `P. 1:11(10) ack 1`.
fn parse(segment: &str) -> (Flags, u32, usize, Option<u32>) {
    let words: Vec<&str> = segment.split_whitespace().collect();
    let letter = |letter| LETTERS.iter().find(|(_, known)| *known == letter).expect("a flag").0;
    let flags = words[0].chars().map(letter).fold(Flags(0), |flags, flag| flags | flag);
    let (from, rest) = words[1].split_once(':').expect("numbers");
    let len = rest.split_once('(').expect("a length").1.trim_end_matches(')');
    let ack = words.get(3).map(|ack| ack.parse().expect("a number"));
    (flags, from.parse().expect("a number"), len.parse().expect("a length"), ack)
}
