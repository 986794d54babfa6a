//! Calls that move bytes: out of and into sockets and pipes.

use std::ffi::{c_int, c_uint, c_void};

use libc::{iovec, loff_t, msghdr, size_t, sockaddr, socklen_t, ssize_t};

use super::lent::{elements, enter, input, output};
use crate::errno::Errno;
use crate::files::Kind;
use crate::shim::{Patience, Shim};
use crate::sockets::Target;

/// How long a call on a descriptor waits: not at all if the descriptor or the call is non-blocking.
pub(super) fn patience(shim: &Shim, fd: c_int, flags: c_int) -> Result<Patience, Errno> {
    let status = shim.call(|world| world.files.get(fd).map(|file| file.status))?;
    let at_once = status & libc::O_NONBLOCK != 0 || flags & libc::MSG_DONTWAIT != 0;
    Ok(if at_once { Patience::None } else { Patience::Endless })
}

/// Receives into `out`; all of it, with `MSG_WAITALL`, unless the end comes first.
fn receive(shim: &Shim, fd: c_int, mut out: Target<'_>, flags: c_int) -> Result<ssize_t, Errno> {
    const KNOWN: c_int = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC | libc::MSG_WAITALL;
    if flags & !KNOWN != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let (peek, patience) = (flags & libc::MSG_PEEK != 0, patience(shim, fd, flags)?);
    if out.len() == 0 {
        return Ok(0);
    }
    let mut total = 0;
    let outcome = shim.wait(patience, |world| {
        let mut rest = match &mut out {
            Target::Buffer(out) => Target::Buffer(out.get_mut(total..).unwrap_or_default()),
            Target::Nowhere(len) => Target::Nowhere(*len - total),
        };
        let Some(len) = world.try_recv(fd, &mut rest, peek)? else { return Ok(None) };
        let done = len == 0 || len == rest.len() || flags & libc::MSG_WAITALL == 0 || peek;
        total += len;
        Ok(done.then_some(()))
    });
    match outcome {
        Err(errno) if total == 0 => Err(errno),
        Ok(()) | Err(_) => Ok(total as ssize_t),
    }
}

/// Sends all of `data`, or what there is room for if the call must not wait.
fn transmit(shim: &Shim, fd: c_int, data: &[u8], flags: c_int) -> Result<ssize_t, Errno> {
    if flags & !(libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) != 0 {
        return Err(Errno(libc::EOPNOTSUPP));
    }
    let mut sent = 0;
    let outcome = shim.wait(patience(shim, fd, flags)?, |world| {
        let Some(len) = world.try_send(fd, data.get(sent..).unwrap_or_default())? else { return Ok(None) };
        sent += len;
        Ok((sent == data.len()).then_some(()))
    });
    match outcome {
        Err(errno) if sent == 0 => Err(errno),
        Ok(()) | Err(_) => Ok(sent as ssize_t),
    }
}

pub(super) unsafe extern "C" fn read(
    userdata: *mut c_void,
    fd: c_int,
    at: *mut c_void,
    len: size_t,
) -> ssize_t {
    // SAFETY: as for `recv`.
    unsafe { recv(userdata, fd, at, len, 0) }
}

pub(super) unsafe extern "C" fn recv(
    userdata: *mut c_void,
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and null or a buffer of that length.
    unsafe {
        enter(userdata, |shim| {
            let out = if flags & libc::MSG_TRUNC != 0 {
                Target::Nowhere(len)
            } else {
                Target::Buffer(output(at, len)?)
            };
            receive(shim, fd, out, flags)
        })
    }
}

pub(super) unsafe extern "C" fn recvfrom(
    userdata: *mut c_void,
    fd: c_int,
    at: *mut c_void,
    len: size_t,
    flags: c_int,
    _from: *mut sockaddr,
    from_len: *mut socklen_t,
) -> ssize_t {
    // SAFETY: as for `recv`. A connected socket tells no source.
    unsafe {
        if !from_len.is_null() {
            *from_len = 0;
        }
        recv(userdata, fd, at, len, flags)
    }
}

pub(super) unsafe extern "C" fn readv(
    userdata: *mut c_void,
    fd: c_int,
    parts: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and so many buffers.
    unsafe {
        enter(userdata, |shim| receive_parts(shim, fd, elements(parts.cast_mut(), count.max(0) as usize)?, 0))
    }
}

/// Receives into several buffers.
///
/// # Safety
/// Each part points to as many bytes as it says, that nobody else uses meanwhile.
unsafe fn receive_parts(shim: &Shim, fd: c_int, parts: &[iovec], flags: c_int) -> Result<ssize_t, Errno> {
    let mut bytes = vec![0; parts.iter().map(|part| part.iov_len).sum()];
    let received = receive(shim, fd, Target::Buffer(&mut bytes), flags)?;
    let mut rest = bytes.get(..received as usize).unwrap_or_default();
    for part in parts {
        let (now, later) = rest.split_at(rest.len().min(part.iov_len));
        // SAFETY: the caller promises so much.
        unsafe { output(part.iov_base, now.len()) }?.copy_from_slice(now);
        rest = later;
    }
    Ok(received)
}

pub(super) unsafe extern "C" fn recvmsg(
    userdata: *mut c_void,
    fd: c_int,
    message: *mut msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and a message header with as many buffers as it says.
    unsafe {
        enter(userdata, |shim| {
            let message = message.as_mut().ok_or(Errno(libc::EFAULT))?;
            let parts = elements(message.msg_iov, message.msg_iovlen)?;
            let received = receive_parts(shim, fd, parts, flags)?;
            message.msg_namelen = 0;
            message.msg_flags = 0;
            put_queue_length(shim, fd, message)?;
            Ok(received)
        })
    }
}

/// Adds the control message that `TCP_INQ` asks for: how much there is still to read, or 1 for the end.
///
/// # Safety
/// The message's control buffer is as long as it says.
unsafe fn put_queue_length(shim: &Shim, fd: c_int, message: &mut msghdr) -> Result<(), Errno> {
    let wanted = shim.call(|world| world.option(fd, libc::IPPROTO_TCP, libc::TCP_INQ))?;
    let (mut queued, _, _) = shim.call(|world| world.queues(fd))?;
    let ended = shim.call(|world| world.readiness(fd))?.0 & libc::POLLRDHUP as u32 != 0;
    if queued == 0 && ended {
        queued = 1;
    }
    // SAFETY: computes a length.
    let space = unsafe { libc::CMSG_SPACE(size_of::<c_int>() as c_uint) } as usize;
    if wanted == 0i32.to_ne_bytes() || message.msg_controllen < space {
        message.msg_controllen = 0;
        return Ok(());
    }
    // SAFETY: there is room for one control message, so the first header is there.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(message);
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as c_uint) as size_t;
        (*header).cmsg_level = libc::IPPROTO_TCP;
        (*header).cmsg_type = libc::TCP_INQ;
        libc::CMSG_DATA(header).cast::<u32>().write_unaligned(queued);
    }
    message.msg_controllen = space;
    Ok(())
}

pub(super) unsafe extern "C" fn write(
    userdata: *mut c_void,
    fd: c_int,
    at: *const c_void,
    len: size_t,
) -> ssize_t {
    // SAFETY: as for `send`.
    unsafe { send(userdata, fd, at, len, 0) }
}

pub(super) unsafe extern "C" fn send(
    userdata: *mut c_void,
    fd: c_int,
    at: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and null or a buffer of that length.
    unsafe { enter(userdata, |shim| transmit(shim, fd, input(at, len)?, flags)) }
}

pub(super) unsafe extern "C" fn sendto(
    userdata: *mut c_void,
    fd: c_int,
    at: *const c_void,
    len: size_t,
    flags: c_int,
    _to: *const sockaddr,
    _to_len: socklen_t,
) -> ssize_t {
    // SAFETY: as for `send`. A connected socket ignores the destination.
    unsafe { send(userdata, fd, at, len, flags) }
}

pub(super) unsafe extern "C" fn writev(
    userdata: *mut c_void,
    fd: c_int,
    parts: *const iovec,
    count: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and so many buffers.
    unsafe {
        enter(userdata, |shim| send_parts(shim, fd, elements(parts.cast_mut(), count.max(0) as usize)?, 0))
    }
}

pub(super) unsafe extern "C" fn sendmsg(
    userdata: *mut c_void,
    fd: c_int,
    message: *const msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and a message header with as many buffers as it says.
    unsafe {
        enter(userdata, |shim| {
            let message = message.as_ref().ok_or(Errno(libc::EFAULT))?;
            send_parts(shim, fd, elements(message.msg_iov, message.msg_iovlen)?, flags)
        })
    }
}

/// Sends what is in several buffers.
///
/// # Safety
/// Each part points to as many bytes as it says.
unsafe fn send_parts(shim: &Shim, fd: c_int, parts: &[iovec], flags: c_int) -> Result<ssize_t, Errno> {
    let mut bytes = Vec::new();
    for part in parts {
        // SAFETY: the caller promises so much.
        bytes.extend(unsafe { input(part.iov_base, part.iov_len) }?);
    }
    transmit(shim, fd, &bytes, flags)
}

pub(super) unsafe extern "C" fn pipe(userdata: *mut c_void, ends: *mut c_int) -> c_int {
    // SAFETY: the table's userdata, and room for two descriptors.
    unsafe {
        enter(userdata, |shim| {
            let ends = elements(ends, 2)?;
            shim.call(|world| {
                let pipe = world.files.pipes.len();
                world.files.pipes.push(Default::default());
                ends[0] = world.files.open(Kind::Pipe { pipe, writes: false }, libc::O_RDONLY)?;
                ends[1] = world.files.open(Kind::Pipe { pipe, writes: true }, libc::O_WRONLY)?;
                Ok(0)
            })
        })
    }
}

pub(super) unsafe extern "C" fn splice(
    userdata: *mut c_void,
    from: c_int,
    _from_offset: *mut loff_t,
    to: c_int,
    _to_offset: *mut loff_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: the table's userdata. Neither sockets nor pipes have offsets.
    unsafe {
        enter(userdata, |shim| {
            let patience =
                if flags & libc::SPLICE_F_NONBLOCK != 0 { Patience::None } else { patience(shim, from, 0)? };
            shim.wait(patience, |world| world.try_splice(from, to, len)).map(|len| len as ssize_t)
        })
    }
}
