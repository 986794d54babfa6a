//! The few bpf(2) commands the data plane needs beyond what aya offers: map access through a shared reference, batches,
//! and pinned XDP links. It knows descriptors and bytes, not what they mean.

use std::ffi::CString;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;

use aya::Pod;

const MAP_LOOKUP_ELEM: u32 = 1;
const MAP_UPDATE_ELEM: u32 = 2;
const MAP_DELETE_ELEM: u32 = 3;
const MAP_GET_NEXT_KEY: u32 = 4;
const OBJ_PIN: u32 = 6;
const OBJ_GET: u32 = 7;
const PROG_GET_FD_BY_ID: u32 = 13;
const OBJ_GET_INFO_BY_FD: u32 = 15;
const MAP_LOOKUP_BATCH: u32 = 24;
const MAP_DELETE_BATCH: u32 = 27;
const LINK_CREATE: u32 = 28;
const LINK_UPDATE: u32 = 29;
const LINK_DETACH: u32 = 34;
const ATTACH_XDP: u32 = 37;

/// Update flags of [`Map::update`].
pub(super) const ANY: u64 = 0;
/// Fail with `EEXIST` rather than overwrite.
pub(super) const NOEXIST: u64 = 1;
/// Replace only: `ENOENT` if there is none.
pub(super) const EXIST: u64 = 2;

/// `union bpf_attr` for the element commands.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    /// The value, or where `MAP_GET_NEXT_KEY` writes the key.
    value: u64,
    flags: u64,
}

/// `union bpf_attr` for the batch commands.
#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct PathAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreateAttr {
    prog_fd: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdateAttr {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

/// `struct bpf_link_info` as far as an XDP link fills it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct LinkInfo {
    pub(super) kind: u32,
    pub(super) id: u32,
    pub(super) prog_id: u32,
    pad: u32,
    /// 0 once the device is gone.
    pub(super) ifindex: u32,
}

/// `BPF_LINK_TYPE_XDP`.
pub(super) const LINK_TYPE_XDP: u32 = 6;

/// # Safety
///
/// Every pointer in `attr` must be valid for what `command` reads and writes through it.
unsafe fn bpf<T>(command: u32, attr: &mut T) -> io::Result<i32> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attr` and takes the rest of the union as zero; the pointers in
    // it are the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    // bpf(2) returns an int.
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

/// Pins the object behind `fd` at `path`.
pub(super) fn pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, fd: fd_number(fd), file_flags: 0 };
    // SAFETY: the path outlives the call.
    unsafe { bpf(OBJ_PIN, &mut attr) }.map(drop)
}

/// Opens the object pinned at `path`.
pub(super) fn get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = PathAttr { pathname: path.as_ptr() as u64, ..PathAttr::default() };
    // SAFETY: the path outlives the call.
    let fd = unsafe { bpf(OBJ_GET, &mut attr) }?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches an XDP program to a device; `flags` are the `XDP_FLAGS_*` of the mode.
pub(super) fn link_create(program: BorrowedFd<'_>, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr =
        LinkCreateAttr { prog_fd: fd_number(program), target: ifindex, attach_type: ATTACH_XDP, flags };
    // SAFETY: no pointers.
    let fd = unsafe { bpf(LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Replaces the program of a link; no packet sees neither.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link_fd: fd_number(link),
        new_prog_fd: fd_number(program),
        ..LinkUpdateAttr::default()
    };
    // SAFETY: no pointers.
    unsafe { bpf(LINK_UPDATE, &mut attr) }.map(drop)
}

/// Takes a link's program off its device, whoever else holds the link.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = fd_number(link);
    // SAFETY: no pointers.
    unsafe { bpf(LINK_DETACH, &mut attr) }.map(drop)
}

/// The program with this id. Needs `CAP_SYS_ADMIN`.
pub(super) fn program_by_id(id: u32) -> io::Result<OwnedFd> {
    let mut attr = id;
    // SAFETY: no pointers.
    let fd = unsafe { bpf(PROG_GET_FD_BY_ID, &mut attr) }?;
    // SAFETY: the kernel just returned this descriptor to us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What the kernel knows of a link.
pub(super) fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    let mut info = LinkInfo::default();
    let mut attr = InfoAttr {
        fd: fd_number(link),
        len: size_of::<LinkInfo>() as u32,
        info: std::ptr::from_mut(&mut info) as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes of `info`, plain integers.
    unsafe { bpf(OBJ_GET_INFO_BY_FD, &mut attr) }?;
    Ok(info)
}

/// A map whose elements are `V` under `K`: cheap to clone, usable from any thread.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: Arc<OwnedFd>,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for Map<K, V> {
    fn clone(&self) -> Self {
        Self { fd: Arc::clone(&self.fd), types: PhantomData }
    }
}

impl<K, V> AsFd for Map<K, V> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// # Safety
    ///
    /// `fd` must be a map whose key and value sizes are those of `K` and `V`, and not a per-CPU map: the kernel copies
    /// that many bytes, whatever the types say.
    pub(super) unsafe fn from_fd(fd: OwnedFd) -> Self {
        Self { fd: Arc::new(fd), types: PhantomData }
    }

    fn element(&self, key: Option<&K>, value: u64, flags: u64) -> ElementAttr {
        let key = key.map_or(0, |key| std::ptr::from_ref(key) as u64);
        ElementAttr { map_fd: fd_number(self.as_fd()), pad: 0, key, value, flags }
    }

    /// The value under `key`.
    pub(super) fn lookup(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = std::mem::MaybeUninit::<V>::zeroed();
        let mut attr = self.element(Some(key), value.as_mut_ptr() as u64, 0);
        // SAFETY: key and value have the map's sizes (`from_fd`).
        match unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) } {
            // SAFETY: `V: Pod` is valid for any bytes, and all were written.
            Ok(_) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes the value under `key`; `flags` is [`ANY`], [`NOEXIST`] or [`EXIST`].
    pub(super) fn update(&self, key: &K, value: &V, flags: u64) -> io::Result<()> {
        let mut attr = self.element(Some(key), std::ptr::from_ref(value) as u64, flags);
        // SAFETY: key and value have the map's sizes (`from_fd`).
        unsafe { bpf(MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Removes `key`; whether it was there.
    pub(super) fn remove(&self, key: &K) -> io::Result<bool> {
        let mut attr = self.element(Some(key), 0, 0);
        // SAFETY: the key has the map's size (`from_fd`).
        match unsafe { bpf(MAP_DELETE_ELEM, &mut attr) } {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Every key. For maps that only the daemon writes: a concurrent writer may make it miss or repeat some.
    pub(super) fn keys(&self) -> io::Result<Vec<K>> {
        let mut keys: Vec<K> = Vec::new();
        loop {
            let mut next = std::mem::MaybeUninit::<K>::zeroed();
            let mut attr = self.element(keys.last(), next.as_mut_ptr() as u64, 0);
            // SAFETY: both keys have the map's size (`from_fd`).
            match unsafe { bpf(MAP_GET_NEXT_KEY, &mut attr) } {
                // SAFETY: `K: Pod` is valid for any bytes, and all were written.
                Ok(_) => keys.push(unsafe { next.assume_init() }),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(keys),
                Err(error) => return Err(error),
            }
        }
    }

    /// One slice of a hash map: whole buckets from `cursor` on (`None`: from the start) until `keys` and `values`, of
    /// equal length, hold no further bucket. Returns how many elements there are and where to go on, `None` at the end.
    ///
    /// # Errors
    ///
    /// `ENOSPC` when the next bucket alone holds more elements than there is room for.
    pub(super) fn lookup_batch(
        &self,
        cursor: Option<u32>,
        keys: &mut [K],
        values: &mut [V],
    ) -> io::Result<(usize, Option<u32>)> {
        let mut next = 0u32;
        let mut attr = BatchAttr {
            in_batch: cursor.as_ref().map_or(0, |cursor| std::ptr::from_ref(cursor) as u64),
            out_batch: std::ptr::from_mut(&mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(keys.len().min(values.len())).unwrap_or(u32::MAX),
            map_fd: fd_number(self.as_fd()),
            ..BatchAttr::default()
        };
        // SAFETY: room for `count` keys and values of the map's sizes; a hash map's cursor is a u32.
        match unsafe { bpf(MAP_LOOKUP_BATCH, &mut attr) } {
            Ok(_) => Ok((attr.count as usize, Some(next))),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok((attr.count as usize, None)),
            Err(error) => Err(error),
        }
    }

    /// Removes `keys` and shows those that were there to `removed`; those that were not do not stop it.
    pub(super) fn remove_batch(&self, keys: &[K], mut removed: impl FnMut(&K)) -> io::Result<()> {
        let mut rest = keys;
        while !rest.is_empty() {
            let mut attr = BatchAttr {
                keys: rest.as_ptr() as u64,
                count: u32::try_from(rest.len()).unwrap_or(u32::MAX),
                map_fd: fd_number(self.as_fd()),
                ..BatchAttr::default()
            };
            // SAFETY: `count` keys of the map's size.
            let result = unsafe { bpf(MAP_DELETE_BATCH, &mut attr) };
            let (done, left) = rest.split_at(rest.len().min(attr.count as usize));
            match result {
                Ok(_) => rest = left,
                // The kernel stops at a key that is missing and says how many it removed before: step over it.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) && !left.is_empty() => {
                    rest = &left[1..];
                }
                Err(error) => return Err(error),
            }
            done.iter().for_each(&mut removed);
        }
        Ok(())
    }
}

/// A per-CPU array whose values are `u64` words.
#[derive(Debug)]
pub(super) struct PerCpuArray {
    fd: OwnedFd,
    cpus: usize,
    words: usize,
}

impl PerCpuArray {
    /// # Safety
    ///
    /// `fd` must be a `BPF_MAP_TYPE_PERCPU_ARRAY` of values of `words` × 8 bytes, and `cpus` the kernel's number of possible
    /// CPUs: it copies that many values.
    pub(super) unsafe fn from_fd(fd: OwnedFd, cpus: usize, words: usize) -> Self {
        Self { fd, cpus, words }
    }

    /// The words of `index` on each possible CPU, one CPU's after the other's.
    pub(super) fn lookup(&self, index: u32) -> io::Result<Vec<u64>> {
        let mut values = vec![0u64; self.cpus * self.words];
        let mut attr = ElementAttr {
            map_fd: fd_number(self.fd.as_fd()),
            key: std::ptr::from_ref(&index) as u64,
            value: values.as_mut_ptr() as u64,
            ..ElementAttr::default()
        };
        // SAFETY: room for one value per possible CPU (`from_fd`).
        unsafe { bpf(MAP_LOOKUP_ELEM, &mut attr) }?;
        Ok(values)
    }
}
