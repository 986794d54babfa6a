//! Calls that wait for one of several descriptors.

use std::ffi::{c_int, c_short, c_void};
use std::time::Duration;

use libc::{epoll_event, nfds_t, pollfd};

use super::lent::{elements, enter};
use crate::errno::Errno;
use crate::files::Kind;
use crate::readiness::Epoll;
use crate::shim::Patience;

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

pub(super) unsafe extern "C" fn poll(
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

pub(super) unsafe extern "C" fn epoll_create(userdata: *mut c_void, size: c_int) -> c_int {
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

pub(super) unsafe extern "C" fn epoll_ctl(
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

pub(super) unsafe extern "C" fn epoll_wait(
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
