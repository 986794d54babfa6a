//! The C interface: packetdrill's table of functions, and all that is `unsafe`. Each function turns C's pointers into
//! slices and a panic into a failed call; what it does is `shim`'s and `sockets`' business.

use std::ffi::{CStr, c_char, c_int, c_long, c_longlong, c_short, c_uint, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::time::Duration;

use libc::{
    epoll_event, iovec, loff_t, msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t, timeval,
};

use crate::address;
use crate::errno::Errno;
use crate::files::Kind;
use crate::flags::Flags;
use crate::readiness::Epoll;
use crate::shim::{Patience, Shim};
use crate::sockets::Target;

/// `struct packetdrill_interface` of packetdrill's header `packetdrill.h`: this order is the interface. `fcntl` and
/// `ioctl` are variadic there. Rust cannot define such functions; on x86-64 a caller passes them what it passes to these.
#[repr(C)]
pub(crate) struct Interface {
    userdata: *mut c_void,
    free: unsafe extern "C" fn(*mut c_void),
    socket: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int) -> c_int,
    bind: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    listen: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    accept: unsafe extern "C" fn(*mut c_void, c_int, *mut sockaddr, *mut socklen_t) -> c_int,
    connect: unsafe extern "C" fn(*mut c_void, c_int, *const sockaddr, socklen_t) -> c_int,
    read: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t) -> ssize_t,
    readv: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> ssize_t,
    recv: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, size_t, c_int) -> ssize_t,
    recvfrom: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        *mut c_void,
        size_t,
        c_int,
        *mut sockaddr,
        *mut socklen_t,
    ) -> ssize_t,
    recvmsg: unsafe extern "C" fn(*mut c_void, c_int, *mut msghdr, c_int) -> ssize_t,
    write: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t) -> ssize_t,
    writev: unsafe extern "C" fn(*mut c_void, c_int, *const iovec, c_int) -> ssize_t,
    send: unsafe extern "C" fn(*mut c_void, c_int, *const c_void, size_t, c_int) -> ssize_t,
    sendto: unsafe extern "C" fn(
        *mut c_void,
        c_int,
        *const c_void,
        size_t,
        c_int,
        *const sockaddr,
        socklen_t,
    ) -> ssize_t,
    sendmsg: unsafe extern "C" fn(*mut c_void, c_int, *const msghdr, c_int) -> ssize_t,
    fcntl: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_long) -> c_int,
    ioctl: unsafe extern "C" fn(*mut c_void, c_int, c_ulong, *mut c_int) -> c_int,
    close: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    shutdown: unsafe extern "C" fn(*mut c_void, c_int, c_int) -> c_int,
    getsockopt: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut c_void, *mut socklen_t) -> c_int,
    setsockopt: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *const c_void, socklen_t) -> c_int,
    poll: unsafe extern "C" fn(*mut c_void, *mut pollfd, nfds_t, c_int) -> c_int,
    netdev_send: unsafe extern "C" fn(*mut c_void, *const c_void, size_t) -> c_int,
    netdev_receive: unsafe extern "C" fn(*mut c_void, *mut c_void, *mut size_t, *mut c_longlong) -> c_int,
    usleep: unsafe extern "C" fn(*mut c_void, c_uint) -> c_int,
    gettimeofday: unsafe extern "C" fn(*mut c_void, *mut timeval, *mut c_void) -> c_int,
    epoll_create: unsafe extern "C" fn(*mut c_void, c_int) -> c_int,
    epoll_ctl: unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, *mut epoll_event) -> c_int,
    epoll_wait: unsafe extern "C" fn(*mut c_void, c_int, *mut epoll_event, c_int, c_int) -> c_int,
    pipe: unsafe extern "C" fn(*mut c_void, *mut c_int) -> c_int,
    splice:
        unsafe extern "C" fn(*mut c_void, c_int, *mut loff_t, c_int, *mut loff_t, size_t, c_uint) -> ssize_t,
}

/// A pointer and thirty-two functions.
const _: () = assert!(size_of::<Interface>() == 33 * size_of::<usize>());
const _: () = assert!(cfg!(target_arch = "x86_64"), "fixed functions stand in for variadic ones");

/// Fills the table. `flags` are the words of `--so_flags`, or null; with words that it does not know it says so and ends
/// the process, for want of a way to report it.
///
/// # Safety
/// `flags` is null or a C string, `interface` points to room for the table.
#[unsafe(no_mangle)]
unsafe extern "C" fn packetdrill_interface_init(flags: *const c_char, interface: *mut Interface) {
    let text = if flags.is_null() {
        String::new()
    } else {
        // SAFETY: not null, so a C string.
        unsafe { CStr::from_ptr(flags) }.to_string_lossy().into_owned()
    };
    let shim = match Flags::parse(&text) {
        Ok(flags) => Box::new(Shim::new(flags)),
        Err(problem) => {
            complain(&format!("packetdrill flags: {problem}"));
            std::process::exit(2);
        }
    };
    let table = Interface {
        userdata: Box::into_raw(shim).cast(),
        free,
        socket,
        bind,
        listen,
        accept,
        connect,
        read,
        readv,
        recv,
        recvfrom,
        recvmsg,
        write,
        writev,
        send,
        sendto,
        sendmsg,
        fcntl,
        ioctl,
        close,
        shutdown,
        getsockopt,
        setsockopt,
        poll,
        netdev_send,
        netdev_receive,
        usleep,
        gettimeofday,
        epoll_create,
        epoll_ctl,
        epoll_wait,
        pipe,
        splice,
    };
    // SAFETY: the caller has room for the table.
    unsafe { interface.write(table) };
}

#[expect(clippy::print_stderr, reason = "the tool has no other way to be told")]
fn complain(text: &str) {
    eprintln!("{text}");
}

/// What C calls return: -1 for a failure.
trait Outcome {
    const FAILURE: Self;
}

impl Outcome for c_int {
    const FAILURE: Self = -1;
}

impl Outcome for ssize_t {
    const FAILURE: Self = -1;
}

/// Makes a call on the shim behind `userdata`. A failure, a panic included, sets `errno`.
///
/// # Safety
/// `userdata` is what [`packetdrill_interface_init`] put into the table, and not freed yet.
unsafe fn enter<T: Outcome>(userdata: *mut c_void, call: impl FnOnce(&Shim) -> Result<T, Errno>) -> T {
    // SAFETY: the caller promises that it is the shim, which is only ever shared.
    let shim = unsafe { &*userdata.cast::<Shim>() };
    let outcome = catch_unwind(AssertUnwindSafe(|| call(shim))).unwrap_or_else(|_| {
        complain("packetdrill: the stack panicked");
        Err(Errno(libc::EIO))
    });
    outcome.unwrap_or_else(|Errno(code)| {
        // SAFETY: the place of this thread's errno.
        unsafe { *libc::__errno_location() = code };
        T::FAILURE
    })
}

/// Bytes that C lends for reading.
///
/// # Safety
/// `at` is null or points to `len` bytes that nobody changes while they are used.
unsafe fn input<'a>(at: *const c_void, len: usize) -> Result<&'a [u8], Errno> {
    match (at.is_null(), len) {
        (_, 0) => Ok(&[]),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: the caller promises so much.
        (false, _) => Ok(unsafe { slice::from_raw_parts(at.cast(), len) }),
    }
}

/// Bytes that C lends for writing.
///
/// # Safety
/// `at` is null or points to `len` bytes that nobody else uses meanwhile.
unsafe fn output<'a>(at: *mut c_void, len: usize) -> Result<&'a mut [u8], Errno> {
    match (at.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: the caller promises so much.
        (false, _) => Ok(unsafe { slice::from_raw_parts_mut(at.cast(), len) }),
    }
}

/// Elements of an array that C lends for reading and writing.
///
/// # Safety
/// `at` is null or points to `len` initialised elements that nobody else uses meanwhile.
unsafe fn elements<'a, T>(at: *mut T, len: usize) -> Result<&'a mut [T], Errno> {
    match (at.is_null(), len) {
        (_, 0) => Ok(&mut []),
        (true, _) => Err(Errno(libc::EFAULT)),
        // SAFETY: the caller promises so much.
        (false, _) => Ok(unsafe { slice::from_raw_parts_mut(at, len) }),
    }
}

/// Puts an address where C wants it, cut to the room there is, and its whole length beside it.
///
/// # Safety
/// `at` is null or points to `*len` bytes; `len` is null or points to a length.
unsafe fn put_address(bytes: &[u8], at: *mut sockaddr, len: *mut socklen_t) {
    if at.is_null() || len.is_null() {
        return;
    }
    // SAFETY: neither is null, so the caller promises both.
    unsafe {
        let room = slice::from_raw_parts_mut(at.cast::<u8>(), *len as usize);
        room.iter_mut().zip(bytes).for_each(|(place, byte)| *place = *byte);
        *len = bytes.len() as socklen_t;
    }
}

unsafe extern "C" fn free(userdata: *mut c_void) {
    // SAFETY: as for `enter`; and this is the last call.
    let shim = unsafe { Box::from_raw(userdata.cast::<Shim>()) };
    // A panic here would have nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| shim.call(|world| world.files.abandon())));
}

unsafe extern "C" fn socket(userdata: *mut c_void, domain: c_int, kind: c_int, protocol: c_int) -> c_int {
    // SAFETY: the tool passes the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.socket(domain, kind, protocol))) }
}

unsafe extern "C" fn bind(userdata: *mut c_void, fd: c_int, at: *const sockaddr, len: socklen_t) -> c_int {
    // SAFETY: the table's userdata, and an address of that length.
    unsafe {
        enter(userdata, |shim| {
            let address = address::decode(input(at.cast(), len as usize)?)?;
            shim.call(|world| world.bind(fd, address)).map(|()| 0)
        })
    }
}

unsafe extern "C" fn listen(userdata: *mut c_void, fd: c_int, backlog: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.listen(fd, backlog)).map(|()| 0)) }
}

unsafe extern "C" fn accept(
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

unsafe extern "C" fn connect(userdata: *mut c_void, fd: c_int, at: *const sockaddr, len: socklen_t) -> c_int {
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

/// How long a call on a descriptor waits: not at all if the descriptor or the call is non-blocking.
fn patience(shim: &Shim, fd: c_int, flags: c_int) -> Result<Patience, Errno> {
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

unsafe extern "C" fn read(userdata: *mut c_void, fd: c_int, at: *mut c_void, len: size_t) -> ssize_t {
    // SAFETY: as for `recv`.
    unsafe { recv(userdata, fd, at, len, 0) }
}

unsafe extern "C" fn recv(
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

unsafe extern "C" fn recvfrom(
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

unsafe extern "C" fn readv(userdata: *mut c_void, fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
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

unsafe extern "C" fn recvmsg(
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

unsafe extern "C" fn write(userdata: *mut c_void, fd: c_int, at: *const c_void, len: size_t) -> ssize_t {
    // SAFETY: as for `send`.
    unsafe { send(userdata, fd, at, len, 0) }
}

unsafe extern "C" fn send(
    userdata: *mut c_void,
    fd: c_int,
    at: *const c_void,
    len: size_t,
    flags: c_int,
) -> ssize_t {
    // SAFETY: the table's userdata, and null or a buffer of that length.
    unsafe { enter(userdata, |shim| transmit(shim, fd, input(at, len)?, flags)) }
}

unsafe extern "C" fn sendto(
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

unsafe extern "C" fn writev(userdata: *mut c_void, fd: c_int, parts: *const iovec, count: c_int) -> ssize_t {
    // SAFETY: the table's userdata, and so many buffers.
    unsafe {
        enter(userdata, |shim| send_parts(shim, fd, elements(parts.cast_mut(), count.max(0) as usize)?, 0))
    }
}

unsafe extern "C" fn sendmsg(
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

unsafe extern "C" fn fcntl(userdata: *mut c_void, fd: c_int, command: c_int, value: c_long) -> c_int {
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

unsafe extern "C" fn ioctl(userdata: *mut c_void, fd: c_int, request: c_ulong, value: *mut c_int) -> c_int {
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

unsafe extern "C" fn close(userdata: *mut c_void, fd: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.close(fd)).map(|()| 0)) }
}

unsafe extern "C" fn shutdown(userdata: *mut c_void, fd: c_int, how: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe { enter(userdata, |shim| shim.call(|world| world.shutdown(fd, how)).map(|()| 0)) }
}

unsafe extern "C" fn getsockopt(
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

unsafe extern "C" fn setsockopt(
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

/// A timeout of poll and epoll, in milliseconds.
fn timeout(milliseconds: c_int) -> Patience {
    match u64::try_from(milliseconds) {
        Ok(0) => Patience::None,
        Ok(milliseconds) => Patience::For(Duration::from_millis(milliseconds)),
        Err(_) => Patience::Endless,
    }
}

/// Nothing is ready, and it is time: no failure.
fn or_none<T: Default>(outcome: Result<T, Errno>) -> Result<T, Errno> {
    match outcome {
        Err(Errno(libc::EAGAIN)) => Ok(T::default()),
        outcome => outcome,
    }
}

unsafe extern "C" fn poll(
    userdata: *mut c_void,
    fds: *mut pollfd,
    count: nfds_t,
    milliseconds: c_int,
) -> c_int {
    // SAFETY: the table's userdata, and so many entries.
    unsafe {
        enter(userdata, |shim| {
            let fds = elements(fds, count as usize)?;
            or_none(shim.wait(timeout(milliseconds), |world| {
                let mut ready = 0;
                for entry in &mut *fds {
                    entry.revents = match world.readiness(entry.fd) {
                        _ if entry.fd < 0 => 0,
                        Ok((mask, _)) => mask as c_short & (entry.events | libc::POLLERR | libc::POLLHUP),
                        Err(_) => libc::POLLNVAL,
                    };
                    ready += c_int::from(entry.revents != 0);
                }
                Ok((ready > 0).then_some(ready))
            }))
        })
    }
}

unsafe extern "C" fn netdev_send(userdata: *mut c_void, at: *const c_void, len: size_t) -> c_int {
    // SAFETY: the table's userdata, and a packet of that length.
    unsafe {
        enter(userdata, |shim| {
            let packet = input(at, len)?;
            shim.call(|world| world.deliver(packet)).map(|()| 0)
        })
    }
}

unsafe extern "C" fn netdev_receive(
    userdata: *mut c_void,
    at: *mut c_void,
    len: *mut size_t,
    time: *mut c_longlong,
) -> c_int {
    // SAFETY: the table's userdata, a buffer of the length beside it, and room for a time.
    unsafe {
        enter(userdata, |shim| {
            let (len, time) = len.as_mut().zip(time.as_mut()).ok_or(Errno(libc::EFAULT))?;
            let room = output(at, *len)?;
            let Some(packet) = shim.next_packet() else {
                *len = 0;
                return Ok(0);
            };
            let place = room.get_mut(..packet.bytes.len()).ok_or(Errno(libc::EMSGSIZE))?;
            place.copy_from_slice(&packet.bytes);
            (*len, *time) = (packet.bytes.len(), packet.time);
            Ok(0)
        })
    }
}

unsafe extern "C" fn usleep(userdata: *mut c_void, microseconds: c_uint) -> c_int {
    // SAFETY: the table's userdata.
    unsafe {
        enter(userdata, |shim| {
            shim.sleep(Duration::from_micros(microseconds.into()));
            Ok(0)
        })
    }
}

unsafe extern "C" fn gettimeofday(userdata: *mut c_void, time: *mut timeval, _zone: *mut c_void) -> c_int {
    // SAFETY: the table's userdata, and room for a time.
    unsafe {
        enter(userdata, |shim| {
            let micros = shim.time();
            let place = time.as_mut().ok_or(Errno(libc::EFAULT))?;
            *place = timeval { tv_sec: micros / 1_000_000, tv_usec: micros % 1_000_000 };
            Ok(0)
        })
    }
}

unsafe extern "C" fn epoll_create(userdata: *mut c_void, size: c_int) -> c_int {
    // SAFETY: the table's userdata.
    unsafe {
        enter(userdata, |shim| {
            if size <= 0 {
                return Err(Errno(libc::EINVAL));
            }
            shim.call(|world| world.files.open(Kind::Epoll(Epoll::default()), libc::O_RDWR))
        })
    }
}

unsafe extern "C" fn epoll_ctl(
    userdata: *mut c_void,
    set: c_int,
    op: c_int,
    fd: c_int,
    event: *mut epoll_event,
) -> c_int {
    // SAFETY: the table's userdata, and null or an event.
    unsafe {
        enter(userdata, |shim| {
            let (events, data) = match (event.as_ref(), op) {
                (Some(event), _) => (event.events, event.u64),
                (None, libc::EPOLL_CTL_DEL) => (0, 0),
                (None, _) => return Err(Errno(libc::EFAULT)),
            };
            shim.call(|world| {
                world.files.get(fd)?;
                world.files.epoll_mut(set)?.control(op, fd, events, data)
            })
            .map(|()| 0)
        })
    }
}

unsafe extern "C" fn epoll_wait(
    userdata: *mut c_void,
    set: c_int,
    events: *mut epoll_event,
    most: c_int,
    milliseconds: c_int,
) -> c_int {
    // SAFETY: the table's userdata, and room for so many events.
    unsafe {
        enter(userdata, |shim| {
            let most = usize::try_from(most).ok().filter(|&most| most > 0).ok_or(Errno(libc::EINVAL))?;
            let room = elements(events, most)?;
            let ready = or_none(shim.wait(timeout(milliseconds), |world| {
                Ok(Some(world.collect(set, most)?).filter(|ready| !ready.is_empty()))
            }))?;
            for (place, &(events, data)) in room.iter_mut().zip(&ready) {
                *place = epoll_event { events, u64: data };
            }
            Ok(ready.len() as c_int)
        })
    }
}

unsafe extern "C" fn pipe(userdata: *mut c_void, ends: *mut c_int) -> c_int {
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

unsafe extern "C" fn splice(
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
