//! Facts about a network interface, asked of the network namespace the calling thread is in. Not from /sys: a daemon
//! that entered a namespace without remounting it would read another namespace's interfaces there.

use std::ffi::CString;
use std::fmt;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use super::error::DataplaneError;

const SIOCETHTOOL: libc::Ioctl = 0x8946;
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GCHANNELS: u32 = 0x3c;
const ETHTOOL_GFLAGS: u32 = 0x25;
const ETHTOOL_GRXFHINDIR: u32 = 0x38;
/// `ETH_FLAG_RXVLAN` and `ETH_FLAG_LRO`.
const RX_VLAN: u32 = 1 << 8;
const LRO: u32 = 1 << 15;

/// What attaching needs to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceFacts {
    /// Its name.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
    /// What may change at any time.
    pub link: LinkFacts,
    /// Receive queues.
    pub rx_queues: u32,
    /// Transmit queues.
    pub tx_queues: u32,
    /// The last receive queue that flows are hashed to (`ethtool -x`); `None` if the driver does not say.
    pub hashed_to: Option<u32>,
    /// The driver, or `unknown`.
    pub driver: String,
    /// It takes VLAN tags off frames before anybody sees them.
    pub strips_vlan: bool,
    /// It joins segments of a flow together (LRO).
    pub joins_segments: bool,
}

/// What others may change of an interface while it is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkFacts {
    /// Its MAC address.
    pub mac: [u8; 6],
    /// Bytes of an IP packet it carries.
    pub mtu: u32,
    /// Whether frames come and go.
    pub state: LinkState,
}

/// Whether frames come and go on an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkState {
    /// They do.
    Up,
    /// It is up, but nothing is at the other end of the wire.
    NoCarrier,
    /// It was switched off: `ip link set dev NAME down`.
    Down,
}

impl fmt::Display for LinkState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::NoCarrier => "no-carrier",
            Self::Down => "down",
        })
    }
}

impl LinkFacts {
    /// Asks the kernel about the interface with this index, whatever it is called by now.
    ///
    /// # Errors
    ///
    /// The kernel's: `ENXIO` or `ENODEV` when there is no such interface, or none of Ethernet.
    pub fn of(ifindex: u32) -> io::Result<Self> {
        Self::read(&Control::of(ifindex)?)?.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// `None` if the device is not Ethernet.
    fn read(control: &Control) -> io::Result<Option<Self>> {
        let Some(mac) = control.mac()? else { return Ok(None) };
        Ok(Some(Self { mac, mtu: control.mtu()?, state: control.state()? }))
    }
}

impl InterfaceFacts {
    /// Asks the kernel about the interface called `name`.
    ///
    /// # Errors
    ///
    /// `UnknownInterface`, `NotEthernet`, or `InterfaceQuery`.
    pub fn query(name: &str) -> Result<Self, DataplaneError> {
        let unknown = || DataplaneError::UnknownInterface { name: name.to_owned() };
        let c_name = CString::new(name).map_err(|_| unknown())?;
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(unknown());
        }
        // SAFETY: a valid C string.
        let ifindex = unsafe { libc::if_nametoindex(c_name.as_ptr()) };
        if ifindex == 0 {
            return Err(unknown());
        }
        let failed =
            |what| move |source| DataplaneError::InterfaceQuery { name: name.to_owned(), what, source };
        let control = Control::open(name).map_err(failed("state"))?;
        let link = LinkFacts::read(&control)
            .map_err(failed("MAC address, MTU or flags"))?
            .ok_or_else(|| DataplaneError::NotEthernet { name: name.to_owned() })?;
        let (rx_queues, tx_queues) = control.queues().map_err(failed("queue count"))?;
        // Some drivers only say so while the interface is up.
        let hashed_to = control.hashed_to().ok().flatten();
        let driver = control.driver().unwrap_or_else(|_| "unknown".to_owned());
        // A device that has no such flags does neither.
        let flags = control.flags().unwrap_or(0);
        let (strips_vlan, joins_segments) = (flags & RX_VLAN != 0, flags & LRO != 0);
        let name = name.to_owned();
        Ok(Self { name, ifindex, link, rx_queues, tx_queues, hashed_to, driver, strips_vlan, joins_segments })
    }
}

/// `struct ethtool_channels`.
#[repr(C)]
#[derive(Default)]
struct Channels {
    cmd: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_drvinfo`.
#[repr(C)]
struct DriverInfo {
    cmd: u32,
    driver: [u8; 32],
    rest: [u8; 160],
}

/// `struct ethtool_value`.
#[repr(C)]
struct Flags {
    cmd: u32,
    data: u32,
}

/// A socket for ioctls on one interface.
struct Control {
    socket: OwnedFd,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Control {
    fn open(name: &str) -> io::Result<Self> {
        // SAFETY: no pointers.
        let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just returned this descriptor to us alone.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        let mut chars = [0; libc::IFNAMSIZ];
        for (to, from) in chars.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        Ok(Self { socket, name: chars })
    }

    /// The same by the interface's index.
    fn of(ifindex: u32) -> io::Result<Self> {
        let mut control = Self::open("")?;
        // SAFETY: the name has room for IFNAMSIZ bytes, its terminating zero included.
        let named = unsafe { libc::if_indextoname(ifindex, control.name.as_mut_ptr()) };
        if named.is_null() { Err(io::Error::last_os_error()) } else { Ok(control) }
    }

    /// # Safety
    ///
    /// `value` must be what `code` reads, and any pointer in it valid for what `code` writes.
    unsafe fn ioctl(
        &self,
        code: libc::Ioctl,
        value: libc::__c_anonymous_ifr_ifru,
    ) -> io::Result<libc::ifreq> {
        let mut request = libc::ifreq { ifr_name: self.name, ifr_ifru: value };
        // SAFETY: `request` is a whole ifreq; its value is the caller's promise.
        if unsafe { libc::ioctl(self.socket.as_raw_fd(), code, &raw mut request) } < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(request)
    }

    /// One of the ioctls that only write the request's value.
    fn get(&self, code: libc::Ioctl) -> io::Result<libc::ifreq> {
        // SAFETY: callers pass codes that read nothing but the name.
        unsafe { self.ioctl(code, libc::__c_anonymous_ifr_ifru { ifru_ifindex: 0 }) }
    }

    /// The MAC address; `None` if the device is not Ethernet.
    fn mac(&self) -> io::Result<Option<[u8; 6]>> {
        let request = self.get(libc::SIOCGIFHWADDR)?;
        // SAFETY: SIOCGIFHWADDR wrote a sockaddr.
        let address = unsafe { request.ifr_ifru.ifru_hwaddr };
        if address.sa_family != libc::ARPHRD_ETHER {
            return Ok(None);
        }
        let mut mac = [0; 6];
        for (to, from) in mac.iter_mut().zip(address.sa_data) {
            [*to] = from.to_ne_bytes();
        }
        Ok(Some(mac))
    }

    fn mtu(&self) -> io::Result<u32> {
        let request = self.get(libc::SIOCGIFMTU)?;
        // SAFETY: SIOCGIFMTU wrote an int.
        Ok(unsafe { request.ifr_ifru.ifru_mtu }.cast_unsigned())
    }

    fn state(&self) -> io::Result<LinkState> {
        let request = self.get(libc::SIOCGIFFLAGS)?;
        // SAFETY: SIOCGIFFLAGS wrote a short.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        Ok(match (flags & libc::IFF_UP != 0, flags & libc::IFF_RUNNING != 0) {
            (false, _) => LinkState::Down,
            (true, false) => LinkState::NoCarrier,
            (true, true) => LinkState::Up,
        })
    }

    /// Receive and transmit queues. A driver that cannot say has one of each.
    fn queues(&self) -> io::Result<(u32, u32)> {
        let mut channels = Channels { cmd: ETHTOOL_GCHANNELS, ..Channels::default() };
        let data = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(&mut channels).cast() };
        // SAFETY: ETHTOOL_GCHANNELS reads and writes one `struct ethtool_channels`.
        match unsafe { self.ioctl(SIOCETHTOOL, data) } {
            Ok(_) => Ok((channels.rx + channels.combined, channels.tx + channels.combined)),
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok((1, 1)),
            Err(error) => Err(error),
        }
    }

    /// The last receive queue in the table by which flows are spread (RSS).
    fn hashed_to(&self) -> io::Result<Option<u32>> {
        // `struct ethtool_rxfh_indir`: the command, how many entries there is room for, and the entries.
        let mut table = vec![ETHTOOL_GRXFHINDIR, 0];
        loop {
            let data = libc::__c_anonymous_ifr_ifru { ifru_data: table.as_mut_ptr().cast() };
            // SAFETY: ETHTOOL_GRXFHINDIR writes the size of the device's table, and as many entries if there is room.
            unsafe { self.ioctl(SIOCETHTOOL, data) }?;
            let size = table[1] as usize;
            if table.len() == 2 + size {
                return Ok(table[2..].iter().copied().max());
            }
            table = vec![0; 2 + size];
            (table[0], table[1]) = (ETHTOOL_GRXFHINDIR, size as u32);
        }
    }

    /// Offloads that have a flag.
    fn flags(&self) -> io::Result<u32> {
        let mut flags = Flags { cmd: ETHTOOL_GFLAGS, data: 0 };
        let data = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(&mut flags).cast() };
        // SAFETY: ETHTOOL_GFLAGS reads and writes one `struct ethtool_value`.
        unsafe { self.ioctl(SIOCETHTOOL, data) }?;
        Ok(flags.data)
    }

    fn driver(&self) -> io::Result<String> {
        let mut info = DriverInfo { cmd: ETHTOOL_GDRVINFO, driver: [0; 32], rest: [0; 160] };
        let data = libc::__c_anonymous_ifr_ifru { ifru_data: std::ptr::from_mut(&mut info).cast() };
        // SAFETY: ETHTOOL_GDRVINFO reads and writes one `struct ethtool_drvinfo`.
        unsafe { self.ioctl(SIOCETHTOOL, data) }?;
        let length = info.driver.iter().position(|&byte| byte == 0).unwrap_or(info.driver.len());
        Ok(String::from_utf8_lossy(&info.driver[..length]).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::{Channels, DriverInfo, Flags, InterfaceFacts};
    use crate::dataplane::DataplaneError;

    #[test]
    fn ethtool_structs_have_the_kernels_size() {
        assert_eq!(size_of::<Channels>(), 36);
        assert_eq!(size_of::<DriverInfo>(), 196);
        assert_eq!(size_of::<Flags>(), 8);
    }

    #[test]
    fn an_unknown_an_overlong_and_a_hostile_name_are_unknown_interfaces() {
        for name in ["no-such-if0", "", "a-name-longer-than-fifteen", "nul\0inside"] {
            let error = InterfaceFacts::query(name).unwrap_err();
            assert!(matches!(error, DataplaneError::UnknownInterface { .. }), "{name:?}: {error}");
        }
    }

    #[test]
    fn the_loopback_device_is_not_ethernet() {
        assert!(matches!(InterfaceFacts::query("lo"), Err(DataplaneError::NotEthernet { .. })));
    }
}
