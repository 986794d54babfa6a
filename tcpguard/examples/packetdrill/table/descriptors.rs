//! Calls about a socket itself: where it comes from, whom it talks to, how it is tuned and how it ends.

use std::ffi::{c_int, c_long, c_ulong, c_void};

use libc::{sockaddr, socklen_t};

use super::lent::{enter, input, output, put_address};
use super::streams::patience;
use crate::address;
use crate::errno::Errno;

pub(super) unsafe extern "C" fn socket(
    userdata: *mut c_void,
    domain: c_int,
    kind: c_int,
    protocol: c_int,
) -> c_int {
    // SAFETY: the tool passes the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.socket(domain, kind, protocol))) }
}

pub(super) unsafe extern "C" fn bind(
    userdata: *mut c_void,
    fd: c_int,
    at: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the table's userdata, and an address of that length.
    unsafe {
        enter(userdata, |shim| {
            let address = address::decode(input(at.cast(), len as usize)?)?;
            shim.call(|world| world.bind(fd, address)).map(|()| 0)
        })
    }
}

pub(super) unsafe extern "C" fn listen(userdata: *mut c_void, fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.listen(fd, backlog)).map(|()| 0)) }
}

pub(super) unsafe extern "C" fn accept(
    userdata: *mut c_void,
    fd: c_int,
    at: *mut sockaddr,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the table's userdata, and null or room for an address.
    unsafe {
        enter(userdata, |shim| {
            let patience = patience(shim, fd, 0)?;
            let (accepted, peer) = shim.wait(patience, |world| world.try_accept(fd))?;
            let domain = shim.call(|world| world.files.socket(fd).map(|socket| socket.domain))?;
            put_address(&address::encode(peer, domain), at, len);
            Ok(accepted)
        })
    }
}

pub(super) unsafe extern "C" fn connect(
    userdata: *mut c_void,
    fd: c_int,
    at: *const sockaddr,
    len: socklen_t,
) -> c_int {
    // SAFETY: the table's userdata, and an address of that length.
    unsafe {
        enter(userdata, |shim| {
            let peer = address::decode(input(at.cast(), len as usize)?)?;
            let began = shim.call(|world| world.is_connecting(fd))?;
            match shim.wait(patience(shim, fd, 0)?, |world| world.try_connect(fd, peer)) {
                Ok(()) => Ok(0),
                Err(Errno(libc::EAGAIN)) => {
                    Err(Errno(if began { libc::EALREADY } else { libc::EINPROGRESS }))
                }
                Err(errno) => Err(errno),
            }
        })
    }
}

pub(super) unsafe extern "C" fn close(userdata: *mut c_void, fd: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.close(fd)).map(|()| 0)) }
}

pub(super) unsafe extern "C" fn shutdown(userdata: *mut c_void, fd: c_int, how: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.shutdown(fd, how)).map(|()| 0)) }
}

pub(super) unsafe extern "C" fn fcntl(
    userdata: *mut c_void,
    fd: c_int,
    command: c_int,
    value: c_long,
) -> c_int {
    // SAFETY: the table's userdata.
    unsafe {
        enter(userdata, |shim| {
            shim.call(|world| {
                let file = world.files.get_mut(fd)?;
                match command {
                    libc::F_GETFL => Ok(file.status),
                    libc::F_SETFL => {
                        // Only the low half of the register is the tool's `int`.
                        let wanted = value as c_int & libc::O_NONBLOCK;
                        file.status = file.status & !libc::O_NONBLOCK | wanted;
                        Ok(0)
                    }
                    libc::F_GETFD | libc::F_SETFD => Ok(0),
                    _ => Err(Errno(libc::EINVAL)),
                }
            })
        })
    }
}

/// `SIOCOUTQNSD` of `linux/sockios.h`.
const SIOCOUTQNSD: c_ulong = 0x894b;

pub(super) unsafe extern "C" fn ioctl(
    userdata: *mut c_void,
    fd: c_int,
    request: c_ulong,
    value: *mut c_int,
) -> c_int {
    // SAFETY: the table's userdata, and null or a number.
    unsafe {
        enter(userdata, |shim| {
            let value = value.as_mut().ok_or(Errno(libc::EFAULT))?;
            // The tool holds requests in an `int`.
            match request & 0xffff_ffff {
                libc::FIONREAD => *value = shim.call(|world| world.queues(fd))?.0 as c_int,
                libc::TIOCOUTQ => *value = shim.call(|world| world.queues(fd))?.1 as c_int,
                SIOCOUTQNSD => *value = shim.call(|world| world.queues(fd))?.2 as c_int,
                libc::FIONBIO => {
                    let nonblocking = if *value != 0 { libc::O_NONBLOCK } else { 0 };
                    shim.call(|world| {
                        let file = world.files.get_mut(fd)?;
                        file.status = file.status & !libc::O_NONBLOCK | nonblocking;
                        Ok::<(), Errno>(())
                    })?;
                }
                _ => return Err(Errno(libc::ENOTTY)),
            }
            Ok(0)
        })
    }
}

pub(super) unsafe extern "C" fn getsockopt(
    userdata: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    at: *mut c_void,
    len: *mut socklen_t,
) -> c_int {
    // SAFETY: the table's userdata, and a buffer of the length beside it.
    unsafe {
        enter(userdata, |shim| {
            let len = len.as_mut().ok_or(Errno(libc::EFAULT))?;
            let value = shim.call(|world| world.option(fd, level, name))?;
            let out = output(at, (*len as usize).min(value.len()))?;
            out.copy_from_slice(value.get(..out.len()).unwrap_or_default());
            *len = out.len() as socklen_t;
            Ok(0)
        })
    }
}

pub(super) unsafe extern "C" fn setsockopt(
    userdata: *mut c_void,
    fd: c_int,
    level: c_int,
    name: c_int,
    at: *const c_void,
    len: socklen_t,
) -> c_int {
    // SAFETY: the table's userdata, and null or a buffer of that length.
    unsafe {
        enter(userdata, |shim| {
            let value = input(at, len as usize)?;
            shim.call(|world| world.set_option(fd, level, name, value)).map(|()| 0)
        })
    }
}
