//! Socket options. Those that would change what is on the wire and that the stack does not have are refused, so that a
//! script fails where it asks for them and not somewhere later.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use libc::{IPPROTO_IP, IPPROTO_IPV6, IPPROTO_TCP, SOL_SOCKET};
use tcpguard::stack::{CongestionControl, TcbView};

use crate::errno::Errno;
use crate::sockets::Role;
use crate::world::World;

/// What was set on a socket.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Numbers that are only remembered.
    values: BTreeMap<(i32, i32), i32>,
    /// `SO_LINGER`: on or off, and how long.
    linger: (i32, i32),
    /// `TCP_MAXSEG`, if it was set.
    mss: Option<u16>,
}

impl Options {
    /// Whether closing resets the connection: lingering for no time.
    pub(crate) fn aborts_on_close(&self) -> bool {
        let (on, seconds) = self.linger;
        on != 0 && seconds == 0
    }
}

/// Options that mean nothing to one script on one machine: remembered, and told when asked for.
const REMEMBERED: [(i32, i32); 8] = [
    (SOL_SOCKET, libc::SO_REUSEADDR),
    (SOL_SOCKET, libc::SO_REUSEPORT),
    (SOL_SOCKET, libc::SO_PRIORITY),
    (SOL_SOCKET, libc::SO_MARK),
    (SOL_SOCKET, libc::SO_RCVLOWAT),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IPV6, libc::IPV6_RECVERR),
    (IPPROTO_TCP, libc::TCP_INQ),
];
/// The least that Linux lets buffers be.
const LEAST_SEND_BUFFER: u32 = 4608;
const LEAST_RECV_BUFFER: u32 = 2304;
/// What `TCP_MAXSEG` may be set to: the stack's MTU is 576 at least.
const MSS_RANGE: RangeInclusive<u16> = 536..=32_767;
/// `TCP_MAXSEG` of a socket without a connection.
const DEFAULT_MSS: i32 = 536;

impl World {
    /// `setsockopt`.
    pub(crate) fn set_option(&mut self, fd: i32, level: i32, name: i32, value: &[u8]) -> Result<(), Errno> {
        let socket = self.files.socket_mut(fd)?;
        if (level, name) == (IPPROTO_TCP, libc::TCP_CONGESTION) {
            return self.set_congestion(value);
        }
        let number = number(value, 0).ok_or(Errno(libc::EINVAL))?;
        if REMEMBERED.contains(&(level, name)) {
            socket.options.values.insert((level, name), number);
            return Ok(());
        }
        let mut config = self.stack.config().clone();
        match (level, name) {
            (SOL_SOCKET, libc::SO_LINGER) => {
                let seconds = self::number(value, 4).ok_or(Errno(libc::EINVAL))?;
                socket.options.linger = (number, seconds);
            }
            (SOL_SOCKET, libc::SO_SNDBUF) => config.send_buffer = doubled(number, LEAST_SEND_BUFFER),
            (SOL_SOCKET, libc::SO_RCVBUF) => config.recv_buffer = doubled(number, LEAST_RECV_BUFFER),
            (IPPROTO_TCP, libc::TCP_NODELAY) => config.nagle = number == 0,
            (IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => {
                let millis = u64::try_from(number).map_err(|_| Errno(libc::EINVAL))?;
                config.user_timeout = Duration::from_millis(millis);
            }
            (IPPROTO_TCP, libc::TCP_MAXSEG) => {
                let headers = if socket.domain == libc::AF_INET { 40 } else { 60 };
                let mss = u16::try_from(number).ok().filter(|mss| MSS_RANGE.contains(mss));
                let mss = mss.ok_or(Errno(libc::EINVAL))?;
                socket.options.mss = Some(mss);
                config.mtu = mss + headers;
                self.cookies.advertise(&config);
            }
            (IPPROTO_IPV6, libc::IPV6_V6ONLY) if number == 0 => {}
            _ => return Err(Errno(libc::ENOPROTOOPT)),
        }
        if config != *self.stack.config() {
            self.stack.set_config(self.now(), config);
        }
        Ok(())
    }

    fn set_congestion(&mut self, name: &[u8]) -> Result<(), Errno> {
        let mut config = self.stack.config().clone();
        config.congestion_control = match name.split(|byte| *byte == 0).next() {
            Some(b"cubic") => CongestionControl::Cubic,
            Some(b"reno") => CongestionControl::NewReno,
            _ => return Err(Errno(libc::ENOENT)),
        };
        self.stack.set_config(self.now(), config);
        Ok(())
    }

    /// `getsockopt`: the option's bytes.
    pub(crate) fn option(&mut self, fd: i32, level: i32, name: i32) -> Result<Vec<u8>, Errno> {
        let socket = self.files.socket(fd)?;
        if REMEMBERED.contains(&(level, name)) {
            return Ok(bytes(socket.options.values.get(&(level, name)).copied().unwrap_or(0)));
        }
        let config = self.stack.config();
        Ok(match (level, name) {
            (SOL_SOCKET, libc::SO_LINGER) => {
                let (on, seconds) = socket.options.linger;
                [bytes(on), bytes(seconds)].concat()
            }
            (SOL_SOCKET, libc::SO_SNDBUF) => bytes(config.send_buffer as i32),
            (SOL_SOCKET, libc::SO_RCVBUF) => bytes(config.recv_buffer as i32),
            (SOL_SOCKET, libc::SO_TYPE) => bytes(libc::SOCK_STREAM),
            (SOL_SOCKET, libc::SO_DOMAIN) => bytes(socket.domain),
            (SOL_SOCKET, libc::SO_PROTOCOL) => bytes(IPPROTO_TCP),
            (SOL_SOCKET, libc::SO_ACCEPTCONN) => bytes(i32::from(matches!(socket.role, Role::Listening(_)))),
            (SOL_SOCKET, libc::SO_ERROR) => bytes(self.take_error(fd)?),
            (IPPROTO_TCP, libc::TCP_NODELAY) => bytes(i32::from(!config.nagle)),
            (IPPROTO_TCP, libc::TCP_CONGESTION) => match config.congestion_control {
                CongestionControl::Cubic => b"cubic\0".to_vec(),
                CongestionControl::NewReno => b"reno\0".to_vec(),
            },
            (IPPROTO_TCP, libc::TCP_USER_TIMEOUT) => bytes(config.user_timeout.as_millis() as i32),
            (IPPROTO_TCP, libc::TCP_MAXSEG) => {
                let unconnected = socket.options.mss.map_or(DEFAULT_MSS, i32::from);
                bytes(self.view(fd).map_or(unconnected, |view| data_limit(&view)))
            }
            (IPPROTO_TCP, libc::TCP_INFO) => self.tcp_info(fd)?,
            (IPPROTO_IPV6, libc::IPV6_V6ONLY) => bytes(0),
            _ => return Err(Errno(libc::ENOPROTOOPT)),
        })
    }

    fn take_error(&mut self, fd: i32) -> Result<i32, Errno> {
        let Ok(id) = self.connected(fd) else { return Ok(0) };
        Ok(self.connection(id)?.error.take().map_or(0, |Errno(code)| code))
    }

    fn view(&self, fd: i32) -> Option<TcbView> {
        self.stack.view(self.connected(fd).ok()?)
    }

    /// `struct tcp_info` of `linux/tcp.h`, as far as `tcpi_total_retrans`. What the stack does not count is 0.
    fn tcp_info(&self, fd: i32) -> Result<Vec<u8>, Errno> {
        let mut info = vec![self.state(fd)?];
        let Some(view) = self.view(fd) else {
            info.resize(INFO_LEN, 0);
            return Ok(info);
        };
        let mss = data_limit(&view).max(1) as u32;
        let segments = |bytes: u32| bytes.div_ceil(mss);
        let micros = |time: Duration| u32::try_from(time.as_micros()).unwrap_or(u32::MAX);
        let scaled = view.snd_shift != 0 || view.rcv_shift != 0;
        let options = u8::from(view.timestamps) | u8::from(view.sack_permitted) << 1 | u8::from(scaled) << 2;
        // Congestion state, retransmissions, probes, back-off, options, shifts, flags.
        info.extend([0, view.retries, 0, view.retries, options, view.snd_shift | view.rcv_shift << 4, 0]);
        let mtu = u32::from(self.stack.config().mtu);
        let words = [
            micros(view.rto),
            0,
            mss,
            mss,
            segments(view.snd_nxt.distance(view.snd_una)),
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
            mtu,
            view.rcv_wnd,
            view.srtt.map_or(0, micros),
            0,
            view.ssthresh.map_or(INFINITE_SSTHRESH, segments),
            view.cwnd / mss,
            mtu - 40,
        ];
        words.iter().for_each(|word| info.extend(word.to_ne_bytes()));
        info.resize(INFO_LEN, 0);
        Ok(info)
    }
}

/// Bytes of `struct tcp_info` that are told.
const INFO_LEN: usize = 104;
/// `TCP_INFINITE_SSTHRESH`.
const INFINITE_SSTHRESH: u32 = 0x7fff_ffff;

/// Bytes of data in a full segment.
fn data_limit(view: &TcbView) -> i32 {
    i32::from(view.mss) - if view.timestamps { 12 } else { 0 }
}

fn doubled(value: i32, least: u32) -> u32 {
    (value.max(0) as u32).saturating_mul(2).max(least)
}

fn bytes(value: i32) -> Vec<u8> {
    value.to_ne_bytes().to_vec()
}

fn number(value: &[u8], at: usize) -> Option<i32> {
    value.get(at..)?.first_chunk().map(|bytes| i32::from_ne_bytes(*bytes))
}
