//! The pin directory: where on which BPF file system it lies, who uses it, and what a previous daemon left there. It
//! gives no pin a meaning beyond its name.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use super::error::DataplaneError;
use super::lock::{LockError, lock_directory};

/// Where systems mount the BPF file system.
const BPFFS: &str = "/sys/fs/bpf";
/// Where maps wait until they take the place of others.
const STAGE: &str = "new";
/// `BPF_FS_MAGIC`.
const BPF_FS_MAGIC: u32 = 0xcafe_4a11;

/// A locked directory on a BPF file system.
#[derive(Debug)]
pub(super) struct PinDir {
    path: PathBuf,
    /// Maps are pinned below [`STAGE`].
    staged: bool,
    /// Its flock keeps other daemons out.
    _lock: File,
}

impl PinDir {
    /// Creates the directory if need be, mounting the BPF file system if it belongs at its usual place and is missing.
    pub(super) fn open(path: &Path) -> Result<Self, DataplaneError> {
        ensure_bpffs(path)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| {
            // A name with a dot is EPERM on bpffs, which is not for want of privilege.
            if has_dot_below_bpffs(path) {
                return DataplaneError::Pin { action: "create", path: path.to_owned(), source };
            }
            DataplaneError::or_privilege(format!("create {}", path.display()), source, |source| {
                DataplaneError::Pin { action: "create", path: path.to_owned(), source }
            })
        })?;
        match lock_directory(path) {
            Ok(lock) => Ok(Self { path: path.to_owned(), staged: false, _lock: lock }),
            Err(LockError::Held(_)) => Err(DataplaneError::PinDirInUse { dir: path.to_owned() }),
            Err(LockError::Io(source)) => {
                Err(DataplaneError::or_privilege(format!("open {}", path.display()), source, |source| {
                    DataplaneError::Lock { path: path.to_owned(), source }
                }))
            }
        }
    }

    /// The pin called `name`.
    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Where the map called `name` is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        if self.staged { self.path.join(STAGE).join(name) } else { self.path.join(name) }
    }

    /// From now on maps are pinned beside those that are there, until [`Self::unstage`].
    pub(super) fn stage(&mut self) -> Result<(), DataplaneError> {
        self.clear_stage();
        let path = self.path.join(STAGE);
        let created = std::fs::DirBuilder::new().mode(0o700).create(&path);
        created.map_err(|source| DataplaneError::Pin { action: "create", path, source })?;
        self.staged = true;
        Ok(())
    }

    /// Puts the staged maps called `names` in the place of those that are there, in this order.
    pub(super) fn unstage<'a>(
        &mut self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Result<(), DataplaneError> {
        if !self.staged {
            return Ok(());
        }
        for name in names {
            let path = self.join(name);
            let moved = std::fs::rename(self.map(name), &path);
            moved.map_err(|source| DataplaneError::Pin { action: "replace", path, source })?;
        }
        self.staged = false;
        self.clear_stage();
        Ok(())
    }

    /// Removes what a start left that did not get as far as [`Self::unstage`].
    fn clear_stage(&self) {
        let path = self.path.join(STAGE);
        for entry in std::fs::read_dir(&path).into_iter().flatten().flatten() {
            let _ = std::fs::remove_file(entry.path());
        }
        let _ = std::fs::remove_dir(path);
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Removes the pin at `path`, if there is one.
    pub(super) fn remove(path: &Path) -> Result<(), DataplaneError> {
        match std::fs::remove_file(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(DataplaneError::Pin { action: "remove", path: path.to_owned(), source })
            }
            _ => Ok(()),
        }
    }

    /// The pins whose name starts with `prefix`.
    pub(super) fn with_prefix(&self, prefix: &str) -> Result<Vec<PathBuf>, DataplaneError> {
        let list = || -> io::Result<Vec<PathBuf>> {
            let mut pins = Vec::new();
            for entry in std::fs::read_dir(&self.path)? {
                let entry = entry?;
                if entry.file_name().as_bytes().starts_with(prefix.as_bytes()) {
                    pins.push(entry.path());
                }
            }
            pins.sort();
            Ok(pins)
        };
        list().map_err(|source| DataplaneError::Pin { action: "list", path: self.path.clone(), source })
    }

    /// Removes the directory itself; it stays if something else is in it.
    pub(super) fn remove_dir(self) {
        self.clear_stage();
        let _ = std::fs::remove_dir(&self.path);
    }
}

/// What tells this thread's network namespace from others: interface indices repeat in each.
pub(super) fn network_namespace() -> u64 {
    // Without /proc there is nothing to tell apart: the daemon then runs where it was started.
    std::fs::metadata("/proc/thread-self/ns/net").map(|link| link.ino()).unwrap_or(0)
}

fn has_dot_below_bpffs(path: &Path) -> bool {
    path.strip_prefix(BPFFS).is_ok_and(|below| below.as_os_str().as_bytes().contains(&b'.'))
}

fn ensure_bpffs(dir: &Path) -> Result<(), DataplaneError> {
    if on_bpffs(dir) {
        return Ok(());
    }
    if !dir.starts_with(BPFFS) {
        return Err(DataplaneError::NotBpffs { dir: dir.to_owned() });
    }
    mount_bpffs()?;
    tracing::info!(
        "mounted the BPF file system at {BPFFS}, where pins keep protection on without the daemon"
    );
    if in_private_mount_namespace() {
        tracing::warn!(
            "{BPFFS} is mounted in a mount namespace of its own (`ip netns exec` makes one): pins there end with it, so \
             protection will not outlive this daemon; `nsenter --net` enters a network namespace alone"
        );
    }
    Ok(())
}

/// Whether `dir`, or its nearest ancestor that exists, is on a BPF file system.
fn on_bpffs(dir: &Path) -> bool {
    let Some(existing) = dir.ancestors().find(|path| path.exists()) else { return false };
    let Ok(path) = CString::new(existing.as_os_str().as_bytes()) else { return false };
    let mut stat = std::mem::MaybeUninit::<libc::statfs>::zeroed();
    // SAFETY: a valid path, and room for one statfs.
    if unsafe { libc::statfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return false;
    }
    // SAFETY: statfs succeeded; zeroed before, and plain integers throughout.
    let kind = unsafe { stat.assume_init() }.f_type;
    // The magic is 32 bits wide; the field's width and sign depend on the platform.
    kind as u32 == BPF_FS_MAGIC
}

fn mount_bpffs() -> Result<(), DataplaneError> {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC | libc::MS_RELATIME;
    // SAFETY: C string literals; no data.
    let result = unsafe {
        libc::mount(
            c"bpf".as_ptr(),
            c"/sys/fs/bpf".as_ptr(),
            c"bpf".as_ptr(),
            flags,
            c"mode=0700".as_ptr().cast(),
        )
    };
    if result == 0 {
        return Ok(());
    }
    let source = io::Error::last_os_error();
    if source.raw_os_error() == Some(libc::EPERM) {
        return Err(DataplaneError::NotPrivileged {
            action: format!("mount the BPF file system at {BPFFS}"),
            source,
        });
    }
    Err(DataplaneError::MountBpffs { dir: BPFFS.into(), source })
}

fn in_private_mount_namespace() -> bool {
    let namespace = |path: &str| std::fs::metadata(path).map(|link| link.ino());
    match (namespace("/proc/thread-self/ns/mnt"), namespace("/proc/1/ns/mnt")) {
        (Ok(ours), Ok(init)) => ours != init,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::PinDir;
    use crate::dataplane::DataplaneError;
    use std::path::Path;

    #[test]
    fn a_directory_off_the_bpf_file_system_is_refused_and_not_created() {
        let dir = std::env::temp_dir().join("tcpguard-no-such-pin-dir");
        assert!(matches!(PinDir::open(&dir), Err(DataplaneError::NotBpffs { .. })));
        assert!(!dir.exists());
        assert!(matches!(PinDir::open(Path::new("/proc/tcpguard")), Err(DataplaneError::NotBpffs { .. })));
    }
}
