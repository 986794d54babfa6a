//! The rings' producer and consumer indices and flags, as the kernel sees them. The `xdp` crate moves the descriptors but
//! shows neither; without them nobody can tell an empty ring from a stuck one. Read only.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// The four rings of one socket.
#[derive(Debug)]
pub(super) struct RingViews {
    pub(super) fill: RingView,
    pub(super) rx: RingView,
    pub(super) tx: RingView,
    pub(super) completion: RingView,
}

impl RingViews {
    /// Maps the rings of a socket that has them all and is not bound yet (a bound one cannot be mapped).
    pub(super) fn map(socket: RawFd) -> io::Result<Self> {
        let mut offsets = std::mem::MaybeUninit::<libc::xdp_mmap_offsets>::zeroed();
        let mut len = size_of::<libc::xdp_mmap_offsets>() as libc::socklen_t;
        // SAFETY: room for `len` bytes.
        let result = unsafe {
            libc::getsockopt(
                socket,
                libc::SOL_XDP,
                libc::XDP_MMAP_OFFSETS,
                offsets.as_mut_ptr().cast(),
                &raw mut len,
            )
        };
        if result != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: written by the kernel, zeroed before; plain integers.
        let offsets = unsafe { offsets.assume_init() };
        let fill = libc::XDP_UMEM_PGOFF_FILL_RING.cast_signed();
        let completion = libc::XDP_UMEM_PGOFF_COMPLETION_RING.cast_signed();
        Ok(Self {
            fill: RingView::map(socket, fill, &offsets.fr)?,
            rx: RingView::map(socket, libc::XDP_PGOFF_RX_RING, &offsets.rx)?,
            tx: RingView::map(socket, libc::XDP_PGOFF_TX_RING, &offsets.tx)?,
            completion: RingView::map(socket, completion, &offsets.cr)?,
        })
    }
}

/// The header of one ring.
#[derive(Debug)]
pub(super) struct RingView {
    base: NonNull<u8>,
    len: usize,
    producer: usize,
    consumer: usize,
    flags: usize,
}

// SAFETY: shared memory that is only read, through atomics.
unsafe impl Send for RingView {}

impl RingView {
    fn map(socket: RawFd, page: libc::off_t, offsets: &libc::xdp_ring_offset) -> io::Result<Self> {
        let at = |offset: u64| usize::try_from(offset).map_err(|_| io::ErrorKind::InvalidData);
        let (producer, consumer, flags) = (at(offsets.producer)?, at(offsets.consumer)?, at(offsets.flags)?);
        let len = producer.max(consumer).max(flags) + size_of::<u32>();
        // SAFETY: a fresh mapping at an address of the kernel's choice.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, socket, page) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, producer, consumer, flags })
    }

    /// Descriptors between consumer and producer.
    pub(super) fn len(&self) -> u32 {
        // The consumer first: whichever side moves in between, the difference cannot become negative.
        let consumer = self.load(self.consumer);
        self.load(self.producer).wrapping_sub(consumer)
    }

    /// Whether the kernel waits for a system call before it looks at the ring (`XDP_RING_NEED_WAKEUP`).
    pub(super) fn needs_wakeup(&self) -> bool {
        self.load(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }

    fn load(&self, offset: usize) -> u32 {
        // SAFETY: `map` made the mapping long enough for each of the three offsets; the kernel aligns them.
        unsafe { self.base.add(offset).cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire)
    }
}

impl Drop for RingView {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no reference into it outlives a call.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
