//! A port for whole frames on one interface of the calling thread's namespace. What the frames say is its user's business.

use std::ffi::CString;

use anyhow::{Context as _, Result};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};

/// Opens a packet socket on `interface`: it receives every frame that arrives there, and sends whole ones.
pub fn packet_socket(interface: &str) -> Result<Socket> {
    const ETH_P_ALL: u16 = 0x0003;
    let opened = || -> std::io::Result<Socket> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(i32::from(ETH_P_ALL.to_be()).into()))?;
        let name = CString::new(interface)?;
        // SAFETY: `name` is a NUL-terminated string.
        let ifindex = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if ifindex == 0 {
            return Err(std::io::Error::last_os_error());
        }
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: ETH_P_ALL.to_be(),
            sll_ifindex: ifindex as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: a `sockaddr_storage` may hold any address, a `sockaddr_ll` included.
        *unsafe { storage.view_as::<libc::sockaddr_ll>() } = address;
        // SAFETY: the storage holds an initialised `sockaddr_ll` of exactly that length.
        let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
        socket.bind(&address)?;
        Ok(socket)
    };
    opened().with_context(|| format!("opening a packet socket on {interface}"))
}
