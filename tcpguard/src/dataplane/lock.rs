//! Locks that the kernel releases when their holder dies, however it dies. Nothing is ever left to clean up by hand: the files
//! of killed holders go when somebody comes by.

use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

/// How long a lock that was let go may still seem held: a child that its holder was just starting has the file open, too,
/// until it executes.
const LINGER: Duration = Duration::from_millis(500);

/// What the name of a lock file ends in.
pub(super) const EXTENSION: &str = "lock";

/// Why a lock was not taken.
#[derive(Debug)]
pub(super) enum LockError {
    /// Another open file holds it; the process that wrote its number into it, if any.
    Held(Option<u32>),
    /// The file could not be opened or locked.
    Io(io::Error),
}

/// An flock(2)ed file, held until dropped.
#[derive(Debug)]
pub(super) struct FileLock {
    file: File,
    path: PathBuf,
}

impl FileLock {
    /// Creates and locks the file at `path`, and writes this process's number into it. Removes the files beside it that
    /// killed holders left.
    pub(super) fn acquire(path: &Path) -> Result<Self, LockError> {
        loop {
            if let Some(mut lock) = Self::lock(path, OpenOptions::new().create(true), LINGER)? {
                lock.file.set_len(0).map_err(LockError::Io)?;
                writeln!(lock.file, "{}", std::process::id()).map_err(LockError::Io)?;
                path.parent().into_iter().for_each(sweep);
                return Ok(lock);
            }
        }
    }

    /// Locks the file; `None` when it lost its name meanwhile, because a holder removes it before it lets go.
    fn lock(path: &Path, options: &mut OpenOptions, patience: Duration) -> Result<Option<Self>, LockError> {
        // Nobody else may even read it: whoever can open a file can lock it, and so keep the next daemon out.
        let options = options.read(true).write(true).truncate(false).mode(0o600);
        let mut file = options.open(path).map_err(LockError::Io)?;
        file.set_permissions(Permissions::from_mode(0o600)).map_err(LockError::Io)?;
        if !try_lock(&file, patience)? {
            return Err(LockError::Held(holder(&mut file)));
        }
        let locked = file.metadata().map_err(LockError::Io)?.ino();
        let named = std::fs::metadata(path).is_ok_and(|now| now.ino() == locked);
        Ok(named.then(|| Self { file, path: path.to_owned() }))
    }
}

/// Removes the lock files in `directory` that nobody holds. One that cannot be removed does no harm.
pub(super) fn sweep(directory: &Path) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.extension().is_some_and(|extension| extension == EXTENSION) {
            // Taken and dropped, which removes it.
            drop(FileLock::lock(&path, &mut OpenOptions::new(), Duration::ZERO));
        }
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Under the lock, so that nobody who acquired the name can lose it. A file that stays does no harm.
        let _ = std::fs::remove_file(&self.path);
        let _ = self.file.unlock();
    }
}

/// Locks an existing directory.
pub(super) fn lock_directory(path: &Path) -> Result<File, LockError> {
    let directory = File::open(path).map_err(LockError::Io)?;
    if try_lock(&directory, LINGER)? { Ok(directory) } else { Err(LockError::Held(None)) }
}

/// Whether the file could be locked within `patience`.
fn try_lock(file: &File, patience: Duration) -> Result<bool, LockError> {
    let start = Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(true),
            Err(TryLockError::WouldBlock) if start.elapsed() < patience => sleep(Duration::from_millis(5)),
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
        }
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::{FileLock, LockError};

    fn directory(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("tcpguard-lock-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn nobody_else_can_hold_the_lock() {
        let path = directory("mode").join("a.lock");
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        let lock = FileLock::acquire(&path).unwrap();
        assert_eq!(mode(), 0o600);
        drop(lock);
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o644)).unwrap();
        let lock = FileLock::acquire(&path).unwrap();
        assert_eq!(mode(), 0o600, "a file that an earlier version left");
        drop(lock);
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn what_killed_holders_left_is_removed_and_what_is_held_is_not() {
        let directory = directory("sweep");
        let [mine, held, left, other] =
            ["a.lock", "b.lock", "c.lock", "d.txt"].map(|name| directory.join(name));
        let lock = FileLock::acquire(&held).unwrap();
        std::fs::write(&left, "1").unwrap();
        std::fs::write(&other, "").unwrap();
        drop(FileLock::acquire(&mine).unwrap());
        assert!(held.exists() && other.exists() && !left.exists());
        drop(lock);
        std::fs::remove_dir_all(directory).unwrap();
    }

    /// What a fork leaves open until it executes is as good as another descriptor of the same open file.
    #[test]
    fn a_lock_that_a_starting_child_still_shares_is_waited_for() {
        let path = directory("linger").join("a.lock");
        let lock = FileLock::acquire(&path).unwrap();
        let shared = lock.file.try_clone().unwrap();
        // Gone without its `Drop`, which unlocks for all: as when the holder is killed.
        std::mem::forget(lock);
        let child = std::thread::spawn(move || {
            std::thread::sleep(super::LINGER / 10);
            super::File::unlock(&shared).unwrap();
        });
        drop(FileLock::acquire(&path).unwrap());
        child.join().unwrap();
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_held_lock_names_its_holder_and_a_dropped_one_leaves_nothing() {
        let path = directory("holder").join("a.lock");
        let first = FileLock::acquire(&path).unwrap();
        match FileLock::acquire(&path) {
            Err(LockError::Held(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("the lock was given twice: {other:?}"),
        }
        drop(first);
        assert!(!path.exists());
        drop(FileLock::acquire(&path).unwrap());
        std::fs::remove_dir(path.parent().unwrap()).unwrap();
    }
}
