//! The C interface: packetdrill's table of functions, and all that is `unsafe`. Each function, in the files beside this
//! one, turns C's pointers into slices and a panic into a failed call; what it does is `shim`'s and `sockets`' business.

mod descriptors;
mod lent;
mod outside;
mod polling;
mod streams;

use std::ffi::{CStr, c_char, c_int, c_long, c_longlong, c_uint, c_ulong, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};

use libc::{
    epoll_event, iovec, loff_t, msghdr, nfds_t, pollfd, size_t, sockaddr, socklen_t, ssize_t, timeval,
};

use crate::flags::Flags;
use crate::shim::Shim;
use descriptors::{
    accept, bind, close, connect, fcntl, getsockopt, ioctl, listen, setsockopt, shutdown, socket,
};
use outside::{gettimeofday, netdev_receive, netdev_send, usleep};
use polling::{epoll_create, epoll_ctl, epoll_wait, poll};
use streams::{pipe, read, readv, recv, recvfrom, recvmsg, send, sendmsg, sendto, splice, write, writev};

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

unsafe extern "C" fn free(userdata: *mut c_void) {
    // SAFETY: as for `enter`; and this is the last call.
    let shim = unsafe { Box::from_raw(userdata.cast::<Shim>()) };
    // A panic here would have nobody left to tell.
    let _ = catch_unwind(AssertUnwindSafe(|| shim.call(|world| world.files.abandon())));
}
