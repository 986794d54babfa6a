//! Maps that the kernel lends us as memory: engine heartbeats, TIME_WAIT fingerprints, the front of the flow tables, and
//! the filter tables. One store instead of one system call; what the words mean is agreed in `tcpguard-common`.

use std::collections::HashSet;
use std::io;
use std::marker::PhantomData;
use std::ops::Range;
use std::os::fd::{AsRawFd as _, BorrowedFd};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use aya::Pod;
use tcpguard_common::fingerprint::{self, WAYS};
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::known::{BUCKETS, Bucket, CROWDED, OCCUPIED_WORDS, Place, ROOM, occupied_at};
use tcpguard_common::map::heartbeat;

/// A mapped array map.
#[derive(Debug)]
pub(super) struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: plain shared memory, only ever accessed through atomics, or through volatile stores of one owner.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes, which the map must have.
    pub(super) fn new(map: BorrowedFd<'_>, len: usize) -> io::Result<Self> {
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

    /// Its first byte, on a page boundary. Whoever refers to what is there keeps the mapping.
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
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

    /// When an engine last turned, whichever did last; 0 for never.
    pub(super) fn newest(&self) -> u64 {
        let words = (0..self.entries).filter_map(|index| self.of(index));
        words.map(|heartbeat| heartbeat.last()).max().unwrap_or(0)
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
    /// Says that the engine turned at `now_ns` of `CLOCK_MONOTONIC` (coarse or not), and whether its receive ring is under
    /// pressure. 0 says that it stopped for good.
    pub fn beat(&self, now_ns: u64, under_pressure: bool) {
        self.word().store(heartbeat(now_ns, under_pressure), Ordering::Relaxed);
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

/// The front of the flow tables and the fingerprints of TIME_WAIT. A bucket of the front and 2^`spread` buckets of fingerprints
/// beside each other share the bit that says whether any of them may hold anything.
#[derive(Debug)]
pub(super) struct Buckets {
    front: Mapping,
    fingerprints: Mapping,
    spread: u32,
    occupied: Mapping,
}

impl Buckets {
    /// Maps the arrays of [`BUCKETS`] in front and 2^`spread` times as many with fingerprints, and that of [`OCCUPIED_WORDS`].
    pub(super) fn map(
        front: BorrowedFd<'_>,
        fingerprints: BorrowedFd<'_>,
        spread: u32,
        occupied: BorrowedFd<'_>,
    ) -> io::Result<Arc<Self>> {
        let len = size_of::<[u32; WAYS as usize]>() * BUCKETS as usize;
        Ok(Arc::new(Self {
            front: Mapping::new(front, BUCKETS as usize * size_of::<Bucket>())?,
            fingerprints: Mapping::new(fingerprints, len << spread)?,
            spread,
            occupied: Mapping::new(occupied, OCCUPIED_WORDS as usize * size_of::<u64>())?,
        }))
    }

    /// Says that there is something at this index: after it was put there.
    fn occupy(&self, index: u32) {
        // Who clears the bit later sees what was put there before.
        fence(Ordering::SeqCst);
        let (word, bit) = self.occupied(index);
        if word.load(Ordering::SeqCst) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// Something was taken out. If it was the last, XDP need not look there any more; but what was put there meanwhile must not
    /// be overlooked.
    fn vacate(&self, index: u32) {
        if self.is_empty(index) {
            let (word, bit) = self.occupied(index);
            word.fetch_and(!bit, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            if !self.is_empty(index) {
                self.occupy(index);
            }
        }
    }

    fn is_empty(&self, index: u32) -> bool {
        let (tags, crowded) = self.front(index);
        let mut words = tags.iter().chain([crowded]).chain(self.fingerprints_beside(index).iter().flatten());
        words.all(|word| word.load(Ordering::SeqCst) == 0)
    }

    /// The tags in a bucket of the front, and whether it is crowded.
    fn front(&self, index: u32) -> (&[AtomicU32; ROOM], &AtomicU32) {
        let index = (index % BUCKETS) as usize;
        // SAFETY: the mapping holds that many; a bucket is `ROOM` words and one more.
        let bucket = unsafe { self.front.base.cast::<([AtomicU32; ROOM], AtomicU32)>().add(index).as_ref() };
        (&bucket.0, &bucket.1)
    }

    fn fingerprints(&self, place: u32) -> &[AtomicU32; WAYS as usize] {
        let beside = self.fingerprints_beside(place);
        &beside[fingerprint::bucket(place, self.spread) as usize % beside.len()]
    }

    /// All buckets of fingerprints with the same bit.
    fn fingerprints_beside(&self, index: u32) -> &[[AtomicU32; WAYS as usize]] {
        let first = ((index % BUCKETS) as usize) << self.spread;
        // SAFETY: the mapping holds `BUCKETS` times as many; map values are aligned to 8 bytes.
        unsafe {
            let first = self.fingerprints.base.cast::<[AtomicU32; WAYS as usize]>().add(first);
            std::slice::from_raw_parts(first.as_ptr(), 1 << self.spread)
        }
    }

    fn occupied(&self, index: u32) -> (&AtomicU64, u64) {
        let (word, bit) = occupied_at(index);
        // SAFETY: the index is below `OCCUPIED_WORDS`, which the mapping holds.
        (unsafe { self.occupied.base.cast::<AtomicU64>().add(word as usize).as_ref() }, bit)
    }
}

/// The TIME_WAIT fingerprints that XDP reads. Shared by all engines: different flows may meet in a
/// bucket, so words are exchanged, not blindly stored into. `place` and `word` come from
/// [`fingerprint`](tcpguard_common::fingerprint::fingerprint).
#[derive(Clone, Debug)]
pub struct Fingerprints {
    buckets: Arc<Buckets>,
}

impl Fingerprints {
    pub(super) fn new(buckets: Arc<Buckets>) -> Self {
        Self { buckets }
    }

    /// How many there is room for: 2^this times as many as for 1 048 576.
    pub fn spread(&self) -> u32 {
        self.buckets.spread
    }

    /// Puts `word` into the bucket of `place`. If that is full the first word is overwritten: late segments of that flow are
    /// then dropped in XDP rather than acknowledged, as if they had been lost. Returns whether that happened.
    pub fn set(&self, place: u32, word: u32) -> bool {
        let words = self.buckets.fingerprints(place);
        if words.iter().any(|held| held.load(Ordering::Relaxed) == word) {
            return false;
        }
        let taken =
            |held: &AtomicU32| held.compare_exchange(0, word, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        let found_room = words.iter().any(taken);
        if !found_room {
            words[0].store(word, Ordering::Relaxed);
        }
        self.buckets.occupy(place);
        !found_room
    }

    /// Takes `word` out of the bucket of `place`.
    pub fn clear(&self, place: u32, word: u32) {
        for held in self.buckets.fingerprints(place) {
            if held.compare_exchange(word, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                return self.buckets.vacate(place);
            }
        }
    }

    /// Whether `word` is in the bucket of `place`.
    pub fn contains(&self, place: u32, word: u32) -> bool {
        self.words(place).contains(&word)
    }

    /// The words in the bucket of `place`.
    pub fn words(&self, place: u32) -> [u32; WAYS as usize] {
        self.buckets.fingerprints(place).each_ref().map(|held| held.load(Ordering::Relaxed))
    }

    /// The words that are not 0.
    #[cfg(test)]
    pub(super) fn all(&self) -> impl Iterator<Item = u32> {
        let words = (0..BUCKETS).flat_map(|index| self.buckets.fingerprints_beside(index).iter().flatten());
        words.map(|held| held.load(Ordering::Relaxed)).filter(|&word| word != 0)
    }

    /// Empties every bucket.
    pub fn clear_all(&self) {
        for index in 0..BUCKETS {
            for held in self.buckets.fingerprints_beside(index).iter().flatten() {
                held.store(0, Ordering::Relaxed);
            }
            self.buckets.vacate(index);
        }
    }
}

/// The front of the flow tables, which XDP enters flows into, too.
#[derive(Clone, Debug)]
pub(super) struct Front {
    buckets: Arc<Buckets>,
    /// That of the settings.
    hash_key: Arc<[AtomicU64; 2]>,
}

impl Front {
    pub(super) fn new(buckets: Arc<Buckets>) -> Self {
        Self { buckets, hash_key: Arc::default() }
    }

    /// Says what places follow from. It stays the same while there are flows.
    pub(super) fn set_hash_key(&self, hash_key: [u64; 2]) {
        for (word, value) in self.hash_key.iter().zip(hash_key) {
            word.store(value, Ordering::Relaxed);
        }
    }

    /// Enters a flow that is new in its table.
    pub(super) fn enter(&self, key: &AnyFlowKey) {
        let (tags, crowded, place) = self.find(key);
        // What has this tag already is another flow, or was and is about to be struck out: of either the table is to be asked.
        if put(tags, place.tag) != Put::New {
            crowded.store(CROWDED, Ordering::Relaxed);
        }
        self.buckets.occupy(place.bucket);
    }

    /// Enters a flow that is in its table, unless it stands here.
    pub(super) fn show(&self, key: &AnyFlowKey) {
        let (tags, crowded, place) = self.find(key);
        if put(tags, place.tag) == Put::NoRoom {
            crowded.store(CROWDED, Ordering::Relaxed);
        }
        self.buckets.occupy(place.bucket);
    }

    /// Begins to look whether the crowded ones of `buckets` still have flows that are not in here. Every flow of the tables is to
    /// be shown to [`Self::look_at`] from now on, and then [`Self::end_look`] follows. `token` is nobody else's.
    pub(super) fn begin_look(&self, buckets: Range<u32>, token: u32) {
        for index in buckets {
            let (_, crowded) = self.buckets.front(index);
            let was = crowded.load(Ordering::Relaxed);
            if was != 0 {
                // Others who look at the same bucket begin again, later.
                let _changed = crowded.compare_exchange(was, token, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
    }

    /// Notices a flow that is in its table and not in here, or not alone under its tag: its bucket stays crowded. `seen` is what
    /// this look came across.
    pub(super) fn look_at(&self, key: &AnyFlowKey, token: u32, seen: &mut HashSet<Place>) {
        let (tags, crowded, place) = self.find(key);
        if crowded.load(Ordering::Relaxed) != token {
            return;
        }
        let alone = seen.insert(place);
        if !alone || tags.iter().all(|held| held.load(Ordering::Relaxed) != place.tag) {
            crowded.store(CROWDED, Ordering::Relaxed);
        }
    }

    /// Ends it: a bucket that nobody has called crowded since has all its flows in here.
    pub(super) fn end_look(&self, buckets: Range<u32>, token: u32) {
        for index in buckets {
            let (_, crowded) = self.buckets.front(index);
            if crowded.compare_exchange(token, 0, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
                self.buckets.vacate(index);
            }
        }
    }

    /// Strikes out a flow that was removed from its table.
    pub(super) fn strike(&self, key: &AnyFlowKey) {
        let (tags, _, place) = self.find(key);
        for held in tags {
            // Two that entered it at once may have found a place each; then neither counts.
            let _other = held.compare_exchange(place.tag, 0, Ordering::Relaxed, Ordering::Relaxed);
        }
        self.buckets.vacate(place.bucket);
    }

    /// The tags in a flow's bucket, whether it is crowded, and the flow's place.
    fn find(&self, key: &AnyFlowKey) -> (&[AtomicU32; ROOM], &AtomicU32, Place) {
        let hash_key = [0, 1].map(|index: usize| self.hash_key[index].load(Ordering::Relaxed));
        let place = match key {
            AnyFlowKey::V4(key) => Place::of(hash_key, key),
            AnyFlowKey::V6(key) => Place::of(hash_key, key),
        };
        let (tags, crowded) = self.buckets.front(place.bucket);
        (tags, crowded, place)
    }
}

/// What came of putting a tag into a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Put {
    New,
    Held,
    NoRoom,
}

fn put(tags: &[AtomicU32; ROOM], tag: u32) -> Put {
    for place in tags {
        match place.compare_exchange(0, tag, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => return Put::New,
            Err(held) if held == tag => return Put::Held,
            Err(_) => {}
        }
    }
    Put::NoRoom
}

/// An array of plain values that this side only writes, and only where XDP does not read: which part that is, the caller
/// arranges.
#[derive(Debug)]
pub(super) struct Table<T> {
    mapping: Mapping,
    entries: usize,
    values: PhantomData<fn(T)>,
}

impl<T: Pod> Table<T> {
    /// Maps an array of `entries` values.
    pub(super) fn map(fd: BorrowedFd<'_>, entries: u32) -> io::Result<Self> {
        // The kernel starts every value of an array at a multiple of 8 bytes.
        const { assert!(size_of::<T>().is_multiple_of(8)) };
        let entries = entries as usize;
        Ok(Self { mapping: Mapping::new(fd, entries * size_of::<T>())?, entries, values: PhantomData })
    }

    /// Stores `values` from index `at` on. Those past the last index are left out.
    pub(super) fn store(&mut self, at: usize, values: impl IntoIterator<Item = T>) {
        for (index, value) in (at..self.entries).zip(values) {
            // SAFETY: the index is below `entries`, which the mapping holds, aligned to 8 bytes. Volatile, because nothing
            // here ever reads it back.
            unsafe { self.mapping.base.cast::<T>().add(index).write_volatile(value) };
        }
    }
}
