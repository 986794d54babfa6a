//! The calls of the tool itself: packets from and to the network, and the clock.

use std::ffi::{c_int, c_longlong, c_uint, c_void};
use std::time::Duration;

use libc::{size_t, timeval};

use super::lent::{enter, input, output};
use crate::errno::Errno;

pub(super) unsafe extern "C" fn netdev_send(userdata: *mut c_void, at: *const c_void, len: size_t) -> c_int {
    // SAFETY: the table's userdata, and a packet of that length.
    unsafe {
        enter(userdata, |shim| {
            let packet = input(at, len)?;
            shim.call(|world| world.deliver(packet)).map(|()| 0)
        })
    }
}

pub(super) unsafe extern "C" fn netdev_receive(
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

pub(super) unsafe extern "C" fn usleep(userdata: *mut c_void, microseconds: c_uint) -> c_int {
    // SAFETY: the table's userdata.
    unsafe {
        enter(userdata, |shim| {
            shim.sleep(Duration::from_micros(microseconds.into()));
            Ok(0)
        })
    }
}

pub(super) unsafe extern "C" fn gettimeofday(
    userdata: *mut c_void,
    time: *mut timeval,
    _zone: *mut c_void,
) -> c_int {
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
