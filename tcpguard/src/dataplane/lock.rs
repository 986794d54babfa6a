//! Locks that the kernel releases when their holder dies, however it dies. Nothing is ever left to clean up by hand.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

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
    /// Creates and locks the file at `path`, and writes this process's number into it.
    pub(super) fn acquire(path: &Path) -> Result<Self, LockError> {
        loop {
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(path)
                .map_err(LockError::Io)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(LockError::Held(holder(&mut file))),
                Err(TryLockError::Error(error)) => return Err(LockError::Io(error)),
            }
            // A holder removes the file before it lets go: what we locked may have no name any more.
            let locked = file.metadata().map_err(LockError::Io)?.ino();
            if std::fs::metadata(path).is_ok_and(|now| now.ino() == locked) {
                file.set_len(0).map_err(LockError::Io)?;
                writeln!(file, "{}", std::process::id()).map_err(LockError::Io)?;
                return Ok(Self { file, path: path.to_owned() });
            }
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
    match directory.try_lock() {
        Ok(()) => Ok(directory),
        Err(TryLockError::WouldBlock) => Err(LockError::Held(None)),
        Err(TryLockError::Error(error)) => Err(LockError::Io(error)),
    }
}

fn holder(file: &mut File) -> Option<u32> {
    let mut text = String::new();
    file.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{FileLock, LockError};

    #[test]
    fn a_held_lock_names_its_holder_and_a_dropped_one_leaves_nothing() {
        let path = std::env::temp_dir().join(format!("tcpguard-lock-test-{}", std::process::id()));
        let first = FileLock::acquire(&path).unwrap();
        match FileLock::acquire(&path) {
            Err(LockError::Held(pid)) => assert_eq!(pid, Some(std::process::id())),
            other => panic!("the lock was given twice: {other:?}"),
        }
        drop(first);
        assert!(!path.exists());
        drop(FileLock::acquire(&path).unwrap());
    }
}
