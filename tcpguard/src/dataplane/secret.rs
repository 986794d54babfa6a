//! The master secret that cookie keys derive from: from a file that a fleet may share, or random. It never prints.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use thiserror::Error;

/// Why there is no secret.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The file could not be read or created.
    #[error("could not {action} the secret file {}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Others may read the file.
    #[error(
        "the secret file {} is readable by others (mode {mode:04o}): whoever reads it can forge cookies; \
         `chmod 600` it, and replace it if it may have been read",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The file holds something else.
    #[error(
        "the secret file {} does not hold a secret: 64 hexadecimal digits (`openssl rand -hex 32`), not all zero",
        path.display()
    )]
    Malformed {
        /// The file.
        path: PathBuf,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(String),
}

/// 32 secret bytes. Machines with the same secret accept each other's cookies.
#[derive(Clone, PartialEq, Eq)]
pub struct MasterSecret([u8; 32]);

impl MasterSecret {
    /// A secret of these bytes.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A secret of this run alone.
    ///
    /// # Errors
    ///
    /// `Random`.
    pub fn random() -> Result<Self, SecretError> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes).map_err(|error| SecretError::Random(error.to_string()))?;
        Ok(Self(bytes))
    }

    /// The secret in the file at `path`, which is created with mode 0600 and a random one if absent.
    ///
    /// # Errors
    ///
    /// All of [`SecretError`].
    pub fn from_file(path: &Path) -> Result<Self, SecretError> {
        match Self::read(path) {
            Err(SecretError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Self::create(path)
            }
            result => result,
        }
    }

    /// The secret in the file at `path`.
    ///
    /// # Errors
    ///
    /// `File`, `Exposed` or `Malformed`.
    pub fn read(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { action: "read", path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).open(path).map_err(failed)?;
        let mode = file.metadata().map_err(failed)?.mode() & 0o7777;
        if mode & 0o077 != 0 {
            return Err(SecretError::Exposed { path: path.to_owned(), mode });
        }
        let mut text = Vec::new();
        file.take(256).read_to_end(&mut text).map_err(failed)?;
        parse(&text).ok_or_else(|| SecretError::Malformed { path: path.to_owned() })
    }

    fn create(path: &Path) -> Result<Self, SecretError> {
        let failed = |source| SecretError::File { action: "create", path: path.to_owned(), source };
        let secret = Self::random()?;
        // Under another name until it is whole: nobody ever reads a part of it, and a crash leaves none.
        let suffix = getrandom::u64().map_err(|error| SecretError::Random(error.to_string()))?;
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{suffix:016x}"));
        let temporary = PathBuf::from(temporary);
        let linked = secret.write(&temporary).and_then(|()| std::fs::hard_link(&temporary, path));
        let _ = std::fs::remove_file(&temporary);
        match linked {
            Ok(()) => sync_directory(path).map_err(failed).map(|()| secret),
            // Another daemon was faster.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Self::read(path),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes a new file that only its owner may read.
    fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        let text: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{text}")?;
        file.sync_all()
    }

    /// The two halves, each a SipHash key.
    pub(super) fn halves(&self) -> [[u64; 2]; 2] {
        let mut words = [0u64; 4];
        for (word, bytes) in words.iter_mut().zip(self.0.chunks_exact(8)) {
            *word = bytes.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte));
        }
        let [a, b, c, d] = words;
        [[a, b], [c, d]]
    }
}

impl fmt::Debug for MasterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MasterSecret(..)")
    }
}

/// Makes a new name outlive a crash of the machine.
fn sync_directory(path: &Path) -> io::Result<()> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent)?.sync_all()
}

fn parse(text: &[u8]) -> Option<MasterSecret> {
    let digits = text.trim_ascii();
    if digits.len() != 64 {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let mut bytes = [0u8; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let [high, low] = pair else { return None };
        *byte = u8::try_from(digit(*high)? << 4 | digit(*low)?).ok()?;
    }
    (bytes != [0; 32]).then_some(MasterSecret(bytes))
}

#[cfg(test)]
mod tests {
    use super::{MasterSecret, SecretError};
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    use std::path::PathBuf;

    struct TempFile(PathBuf);

    impl TempFile {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("tcpguard-secret-{name}-{}", std::process::id()));
            let _ = std::fs::remove_file(&path);
            Self(path)
        }
    }

    impl Drop for TempFile {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn an_absent_file_is_created_for_its_owner_alone_and_read_back_the_same() {
        let file = TempFile::new("create");
        let created = MasterSecret::from_file(&file.0).unwrap();
        assert_eq!(std::fs::metadata(&file.0).unwrap().mode() & 0o7777, 0o600);
        assert_eq!(MasterSecret::from_file(&file.0).unwrap(), created);
        assert_ne!(created, MasterSecret::random().unwrap());
        assert_eq!(format!("{created:?}"), "MasterSecret(..)");
    }

    #[test]
    fn daemons_that_start_at_once_agree_on_one_secret_and_leave_nothing_else() {
        let dir = TempFile::new("race");
        std::fs::create_dir(&dir.0).unwrap();
        for round in 0..50 {
            let path = dir.0.join(round.to_string());
            let read = || MasterSecret::from_file(&path).unwrap();
            let secrets: Vec<_> = std::thread::scope(|scope| {
                let threads: Vec<_> = (0..8).map(|_| scope.spawn(read)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            assert!(secrets.iter().all(|secret| *secret == secrets[0]));
        }
        assert_eq!(std::fs::read_dir(&dir.0).unwrap().count(), 50);
        std::fs::remove_dir_all(&dir.0).unwrap();
    }

    #[test]
    fn an_exposed_file_and_one_that_holds_no_secret_are_refused() {
        let file = TempFile::new("bad");
        let write = |text: &str, mode| {
            std::fs::write(&file.0, text).unwrap();
            std::fs::set_permissions(&file.0, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        let good = "0123456789abcdefABCDEF0123456789abcdefabcdef0123456789abcdef0123";
        write(good, 0o640);
        assert!(matches!(MasterSecret::from_file(&file.0), Err(SecretError::Exposed { mode: 0o640, .. })));
        for text in ["", "abc", &"0".repeat(64), &"g".repeat(64), &good[1..], &format!("{good}00")] {
            write(text, 0o600);
            let result = MasterSecret::from_file(&file.0);
            assert!(matches!(result, Err(SecretError::Malformed { .. })), "{text:?} gave {result:?}");
        }
        write(good, 0o600);
        let [[first, _], _] = MasterSecret::from_file(&file.0).unwrap().halves();
        assert_eq!(first, u64::from_le_bytes([0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef]));
    }

    #[test]
    fn a_file_in_no_directory_names_the_file() {
        let error = MasterSecret::from_file("/no/such/directory/secret".as_ref()).unwrap_err();
        assert!(error.to_string().contains("/no/such/directory/secret"), "{error}");
    }
}
