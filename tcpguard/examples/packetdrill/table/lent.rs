//! What C lends: memory behind pointers, made slices, and the shim behind `userdata`. What is done with it is for each call
//! to say.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use libc::{sockaddr, socklen_t, ssize_t};

use super::complain;
use crate::errno::Errno;
use crate::shim::Shim;

/// What C calls return: -1 for a failure.
pub(super) trait Outcome {
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
/// `userdata` is what [`packetdrill_interface_init`](super::packetdrill_interface_init) put into the table, and not freed yet.
pub(super) unsafe fn enter<T: Outcome>(
    userdata: *mut c_void,
    call: impl FnOnce(&Shim) -> Result<T, Errno>,
) -> T {
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
pub(super) unsafe fn input<'a>(at: *const c_void, len: usize) -> Result<&'a [u8], Errno> {
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
pub(super) unsafe fn output<'a>(at: *mut c_void, len: usize) -> Result<&'a mut [u8], Errno> {
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
pub(super) unsafe fn elements<'a, T>(at: *mut T, len: usize) -> Result<&'a mut [T], Errno> {
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
pub(super) unsafe fn put_address(bytes: &[u8], at: *mut sockaddr, len: *mut socklen_t) {
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
