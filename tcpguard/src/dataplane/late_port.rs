//! A choice of the kernel's that a socket option puts off. The socket is somebody else's.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Lets the kernel choose the port of a socket that is bound to port 0 when it connects, not before: then the port need be
/// free towards that peer alone, not towards all (`IP_BIND_ADDRESS_NO_PORT`, ip(7)). For TCP sockets of either family.
///
/// # Errors
/// When the kernel refuses.
pub fn choose_port_late(socket: impl AsFd) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the option reads an int, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            std::ptr::from_ref(&on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use socket2::{Domain, Socket, Type};

    use super::choose_port_late;

    #[test]
    fn a_bound_socket_has_no_port_before_it_connects() {
        let loopback = ["127.0.0.1:0", "[::1]:0"].map(|addr| addr.parse::<SocketAddr>().unwrap());
        for addr in loopback {
            let listener = TcpListener::bind(addr).unwrap();
            let socket = Socket::new(Domain::for_address(addr), Type::STREAM, None).unwrap();
            choose_port_late(&socket).unwrap();
            socket.bind(&addr.into()).unwrap();
            let port = || socket.local_addr().unwrap().as_socket().unwrap().port();
            assert_eq!(port(), 0);
            socket.connect(&listener.local_addr().unwrap().into()).unwrap();
            assert_ne!(port(), 0);
        }
    }
}
