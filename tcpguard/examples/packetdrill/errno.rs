//! What a failed call leaves in `errno`.

use tcpguard::stack::Error;

/// An error number of Linux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

/// What the kernel would say in place of the stack's error.
impl From<Error> for Errno {
    fn from(error: Error) -> Self {
        Self(match error {
            Error::WouldBlock => libc::EAGAIN,
            Error::Reset => libc::ECONNRESET,
            Error::Refused => libc::ECONNREFUSED,
            Error::TimedOut | Error::Unread => libc::ETIMEDOUT,
            Error::Unreachable => libc::EHOSTUNREACH,
            Error::NotWritable => libc::EPIPE,
            Error::Aborted => libc::ECONNABORTED,
            Error::NoSuchConnection => libc::ENOTCONN,
            Error::AddressInUse => libc::EADDRINUSE,
            Error::TableFull => libc::ENOBUFS,
        })
    }
}
