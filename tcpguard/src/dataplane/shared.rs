//! Maps that the kernel lends us as memory: engine heartbeats and TIME_WAIT fingerprints. One store instead of one
//! system call; what the words mean is agreed in `tcpguard-common`.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// A mapped array map.
#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: plain shared memory, only ever accessed through atomics.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
        // SAFETY: a fresh mapping at an address of the kernel's choice; nothing else is touched.
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` with this length; no reference into it outlives its owner.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}

/// The heartbeat words of all engines.
#[derive(Clone, Debug)]
pub(super) struct Heartbeats {
    mapping: Arc<Mapping>,
    entries: u32,
}

impl Heartbeats {
    /// Maps an array of `entries` 8-byte values.
    pub(super) fn map(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        Ok(Self { mapping: Arc::new(Mapping::new(fd, entries as usize * 8)?), entries })
    }

    pub(super) fn of(&self, index: u32) -> Option<Heartbeat> {
        (index < self.entries)
            .then(|| Heartbeat { mapping: Arc::clone(&self.mapping), index: index as usize })
    }
}

/// One engine's word: when it last turned.
#[derive(Clone, Debug)]
pub struct Heartbeat {
    mapping: Arc<Mapping>,
    index: usize,
}

impl Heartbeat {
    /// Says that the engine turned at `now_ns` of `CLOCK_MONOTONIC` (coarse or not). 0 says that it stopped for good.
    pub fn beat(&self, now_ns: u64) {
        self.word().store(now_ns, Ordering::Relaxed);
    }

    /// What was last said, by this daemon or the one before.
    pub fn last(&self) -> u64 {
        self.word().load(Ordering::Relaxed)
    }

    fn word(&self) -> &AtomicU64 {
        // SAFETY: `Heartbeats::of` checked the index against the mapping; the kernel aligns its pages.
        unsafe { self.mapping.base.cast::<AtomicU64>().add(self.index).as_ref() }
    }
}

/// Ways of a bucket: a fingerprint may lie in any of so many words.
const WAYS: u32 = 4;

/// The TIME_WAIT (and closed flow) fingerprints that XDP reads. Shared by all engines: different flows may meet in a
/// bucket, so words are exchanged, never blindly stored.
#[derive(Clone, Debug)]
pub struct Fingerprints {
    mapping: Arc<Mapping>,
    /// Words in the array.
    words: u32,
    /// Words in one map value.
    lanes: u32,
    /// Bytes from one map value to the next: the kernel rounds values up to 8.
    stride: usize,
}

impl Fingerprints {
    /// Maps an array of `entries` values of `value_size` bytes, a multiple of 4.
    pub(super) fn map(fd: BorrowedFd<'_>, entries: u32, value_size: u32) -> io::Result<Self> {
        let stride = value_size.next_multiple_of(8) as usize;
        let mapping = Arc::new(Mapping::new(fd, entries as usize * stride)?);
        let lanes = value_size / 4;
        Ok(Self { mapping, words: entries * lanes, lanes, stride })
    }

    /// Puts `word` into the bucket that starts at word `base`. With all ways taken the first is evicted: its flow's late
    /// segments are then dropped by XDP rather than acknowledged, which RFC 9293 tolerates as loss. Returns whether
    /// another fingerprint was.
    pub fn set(&self, base: u32, word: u32) -> bool {
        let mut free = None;
        for way in 0..WAYS {
            let held = self.word(base, way).load(Ordering::Relaxed);
            if held == word {
                return false;
            }
            if held == 0 && free.is_none() {
                free = Some(way);
            }
        }
        let Some(first) = free else {
            self.word(base, 0).store(word, Ordering::Relaxed);
            return true;
        };
        for way in first..WAYS {
            if self.word(base, way).compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return false;
            }
        }
        self.word(base, 0).store(word, Ordering::Relaxed);
        true
    }

    /// Takes `word` out of the bucket that starts at word `base`.
    pub fn clear(&self, base: u32, word: u32) {
        for way in 0..WAYS {
            if self.word(base, way).compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return;
            }
        }
    }

    /// Whether `word` is in the bucket that starts at word `base`.
    pub fn contains(&self, base: u32, word: u32) -> bool {
        (0..WAYS).any(|way| self.word(base, way).load(Ordering::Relaxed) == word)
    }

    /// Empties the whole array.
    pub fn clear_all(&self) {
        for index in 0..self.words {
            self.word(index, 0).store(0, Ordering::Relaxed);
        }
    }

    fn word(&self, base: u32, way: u32) -> &AtomicU32 {
        let index = base.wrapping_add(way) % self.words;
        let offset = (index / self.lanes) as usize * self.stride + (index % self.lanes) as usize * 4;
        // SAFETY: the index is below `words`, so that the offset lies in the mapping; values are aligned to 8.
        unsafe { self.mapping.base.add(offset).cast::<AtomicU32>().as_ref() }
    }
}
