//! A listening Unix socket: its file, who owns it, and what becomes of it. Who connects is others' business.

use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;

/// `sockaddr_un` has room for 108 bytes, its terminating zero and the suffix of the temporary name included.
const MAX_PATH: usize = 90;
/// How long a daemon that is asked whether it is there may take to let somebody in.
const AT_ONCE: Duration = Duration::from_millis(100);

/// Where to listen, and who may connect.
#[derive(Clone, Copy, Debug)]
pub struct SocketSpec<'a> {
    /// Its file.
    pub path: &'a Path,
    /// The file's group, by name or number; the process's when `None`.
    pub group: Option<&'a str>,
    /// The file's permissions.
    pub mode: u32,
}

/// Why the daemon cannot listen. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// A daemon answers there already.
    #[error("{}: another daemon listens there; give this one a control socket of its own", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is there, and is not ours to remove.
    #[error("{}: exists and is not a socket; move it away, or choose another path", .0.display())]
    NotASocket(PathBuf),
    /// No such group on this machine.
    #[error("unknown group `{0}`; `getent group` lists those there are")]
    UnknownGroup(String),
    /// The system refused.
    #[error("{}: {source}", path.display())]
    System {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The system refused an address and port.
    #[error("{addr}: {source}")]
    Address {
        /// Which.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
}

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

/// Connects to a socket. Where whoever listens lets nobody in it waits for `patience`; then the error is `WouldBlock`.
pub(super) fn connect(path: &Path, patience: Duration) -> io::Result<std::os::unix::net::UnixStream> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None)?;
    // The kernel's limit for connecting as well.
    socket.set_write_timeout(Some(patience))?;
    socket.connect(&socket2::SockAddr::unix(path)?)?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

/// Removes a socket's file if nobody listens there any more. Whether it did; what is no socket, or not refused at once, stays.
pub(super) fn remove_left(path: &Path) -> Result<bool, ListenError> {
    let system = |source| ListenError::System { path: path.to_owned(), source };
    let found = || match path.symlink_metadata() {
        Ok(meta) => Ok(meta.file_type().is_socket().then(|| (meta.dev(), meta.ino()))),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(None)
        }
        Err(error) => Err(system(error)),
    };
    let Some(left) = found()? else { return Ok(false) };
    let is_left = connect(path, AT_ONCE).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
    // A daemon that starts meanwhile puts its own there.
    if !is_left || found()? != Some(left) {
        return Ok(false);
    }
    std::fs::remove_file(path).map(|()| true).map_err(system)
}

impl SocketSpec<'_> {
    /// Refuses what [`Socket::bind`] would refuse, and touches nothing.
    pub fn check(&self) -> Result<(), ListenError> {
        let Self { path, group, mode: _ } = self;
        group.map(group_id).transpose()?;
        let system = |source| ListenError::System { path: path.to_path_buf(), source };
        if path.as_os_str().len() > MAX_PATH {
            return Err(system(io::Error::new(
                io::ErrorKind::InvalidInput,
                "too long for the path of a socket",
            )));
        }
        match path.symlink_metadata() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(system(error)),
            Ok(meta) if !meta.file_type().is_socket() => Err(ListenError::NotASocket(path.to_path_buf())),
            Ok(_) => match connect(path, AT_ONCE) {
                Ok(_) => Err(ListenError::InUse(path.to_path_buf())),
                // Somebody listens, and lets nobody in.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    Err(ListenError::InUse(path.to_path_buf()))
                }
                // Left behind by a daemon that was killed.
                Err(_) => Ok(()),
            },
        }
    }

    fn open_to(&self, path: &Path) -> io::Result<()> {
        if let Some(group) = self.group {
            let gid = group_id(group).map_err(io::Error::other)?;
            std::os::unix::fs::chown(path, None, Some(gid))?;
        }
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(self.mode))
    }
}

impl Socket {
    /// Listens as `spec` says. Replaces the socket of a daemon that was killed.
    pub(super) fn bind(spec: &SocketSpec<'_>) -> Result<Self, ListenError> {
        spec.check()?;
        let path = spec.path;
        let system = |source| ListenError::System { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(system)?;
        }
        // Under another name until owner and mode are right: nobody can connect in between.
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(format!(".{}", std::process::id()));
        let temporary = PathBuf::from(temporary);
        drop(std::fs::remove_file(&temporary));
        let listener = UnixListener::bind(&temporary).map_err(system)?;
        let renamed = spec.open_to(&temporary).and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = renamed {
            drop(std::fs::remove_file(&temporary));
            return Err(system(error));
        }
        let inode = path.symlink_metadata().map_err(system)?.ino();
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// What to accept from.
    pub(super) fn listener(&self) -> &UnixListener {
        &self.listener
    }

    /// Its file.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Not if another daemon's socket has taken its place.
        if self.path.symlink_metadata().is_ok_and(|meta| meta.ino() == self.inode) {
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// A group's number, from its number or its name in /etc/group.
fn group_id(group: &str) -> Result<u32, ListenError> {
    let unknown = || ListenError::UnknownGroup(group.to_owned());
    if let Ok(gid) = group.parse() {
        return Ok(gid);
    }
    let groups = std::fs::read_to_string("/etc/group").map_err(|_| unknown())?;
    let mut fields = groups.lines().map(|line| line.split(':'));
    let gid = fields.find_map(|mut fields| (fields.next() == Some(group)).then(|| fields.nth(1)).flatten());
    gid.and_then(|gid| gid.parse().ok()).ok_or_else(unknown)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_where_nobody_listens_is_removed() {
        let directory = std::env::temp_dir().join(format!("tcpguard-left-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let [path, file, link, datagrams, missing] =
            ["s", "file", "link", "datagrams", "missing"].map(|name| directory.join(name));
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        std::fs::write(&file, "precious").unwrap();
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let _datagrams = std::os::unix::net::UnixDatagram::bind(&datagrams).unwrap();
        assert!(!remove_left(&path).unwrap(), "somebody listens");
        drop(listener);
        // A process that another test starts has it open until it becomes another program.
        while std::os::unix::net::UnixStream::connect(&path).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        for other in [&file, &link, &datagrams, &missing, &file.join("below")] {
            assert!(!remove_left(other).unwrap(), "{}", other.display());
        }
        assert!(remove_left(&path).unwrap());
        assert!(!path.exists() && link.symlink_metadata().is_ok() && datagrams.exists());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "precious");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_socket_has_its_mode_replaces_a_dead_one_and_spares_what_is_not_a_dead_socket() {
        let directory = std::env::temp_dir().join(format!("tcpguard-socket-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("s");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _guard = runtime.enter();
        // Dropping a std listener leaves its file behind, as SIGKILL does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        // A process that another test starts has it open until it becomes another program.
        while std::os::unix::net::UnixStream::connect(&path).is_ok() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let spec = SocketSpec { path: &path, group: Some("0"), mode: 0o660 };
        let socket = Socket::bind(&spec).unwrap();
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o660);
        assert!(matches!(Socket::bind(&spec), Err(ListenError::InUse(_))));
        drop(socket);
        assert!(!path.exists());
        let socket = Socket::bind(&SocketSpec { group: None, mode: 0o604, ..spec }).unwrap();
        assert_eq!(mode(&path), 0o604);
        drop(socket);

        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(Socket::bind(&spec), Err(ListenError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        let other = directory.join("t");
        let error = Socket::bind(&SocketSpec { path: &other, group: Some("no-such-group"), mode: 0o660 })
            .unwrap_err();
        assert!(error.to_string().starts_with("unknown group `no-such-group`; "), "{error}");
        assert!(!other.exists());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
