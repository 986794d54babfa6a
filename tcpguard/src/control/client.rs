//! The control socket's asking side, blocking: one request, one reply, one connection.

use std::io::{self, BufRead as _, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::protocol::{Reply, Request};
use super::socket::connect;

/// Longer than the daemon takes for the slowest request.
const PATIENCE: Duration = Duration::from_secs(30);

/// How long a daemon may take to let a client in.
const TO_BE_LET_IN: Duration = Duration::from_secs(3);

/// Asks the daemon behind one control socket.
#[derive(Clone, Debug)]
pub struct Client {
    path: PathBuf,
}

/// Why there is no reply. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error("{}: no daemon answers there; is `tcpguard run` up, and with this control socket?", .0.display())]
    NoDaemon(PathBuf),
    /// This user may not ask.
    #[error("{}: permission denied; ask as root or as a member of the socket's group", .0.display())]
    Denied(PathBuf),
    /// The connection broke.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which socket.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What came back is not a reply.
    #[error(
        "{}: the daemon's answer is not understood: {why}; is it of another version than this command? `tcpguard \
         --version` and the daemon's log say",
        path.display()
    )]
    NotUnderstood {
        /// Which socket.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

impl Client {
    /// A client of the daemon that listens on `path`. Connects only to ask.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
    }

    /// Where the daemon listens.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks once and waits for the reply.
    pub fn ask(&self, request: &Request) -> Result<Reply, ClientError> {
        let mut socket = connect(&self.path, TO_BE_LET_IN).map_err(|error| self.unreachable(error))?;
        let mut line = Vec::new();
        self.exchange(&mut socket, request, &mut line)
            .map_err(|source| ClientError::Io { path: self.path.clone(), source })?;
        Reply::from_line(&line).map_err(|why| ClientError::NotUnderstood { path: self.path.clone(), why })
    }

    /// Asks for replies that go on, and hands each to `visit` until that says to stop or the daemon hangs up.
    pub fn follow(
        &self,
        request: &Request,
        mut visit: impl FnMut(Reply) -> ControlFlow<()>,
    ) -> Result<(), ClientError> {
        let mut socket = connect(&self.path, TO_BE_LET_IN).map_err(|error| self.unreachable(error))?;
        let io = |source| ClientError::Io { path: self.path.clone(), source };
        socket.write_all(&request.to_line()).map_err(io)?;
        let mut reader = BufReader::new(socket);
        let mut line = Vec::new();
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).map_err(io)? == 0 {
                return Ok(());
            }
            let reply = Reply::from_line(&line)
                .map_err(|why| ClientError::NotUnderstood { path: self.path.clone(), why })?;
            if visit(reply).is_break() {
                return Ok(());
            }
        }
    }

    fn exchange(&self, socket: &mut UnixStream, request: &Request, line: &mut Vec<u8>) -> io::Result<()> {
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        // A daemon that is busy says so and hangs up without reading: its line is still there to be read.
        let sent = socket.write_all(&request.to_line());
        if BufReader::new(socket).read_until(b'\n', line)? == 0 {
            sent?;
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the daemon hung up"));
        }
        Ok(())
    }

    fn unreachable(&self, error: io::Error) -> ClientError {
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                ClientError::NoDaemon(self.path.clone())
            }
            io::ErrorKind::PermissionDenied => ClientError::Denied(self.path.clone()),
            io::ErrorKind::WouldBlock => {
                let source =
                    io::Error::other("who listens there lets nobody in; is it a daemon, and is it running?");
                ClientError::Io { path: self.path.clone(), source }
            }
            _ => ClientError::Io { path: self.path.clone(), source: error },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::socket::SocketSpec;
    use super::*;

    #[test]
    fn whoever_listens_and_lets_nobody_in_is_not_waited_for_without_end() {
        let path = std::env::temp_dir().join(format!("tcpguard-deaf-{}", std::process::id()));
        let deaf = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        deaf.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        deaf.listen(0).unwrap();
        let waiting: Vec<_> =
            std::iter::from_fn(|| connect(&path, Duration::from_millis(10)).ok()).take(100).collect();
        assert!(waiting.len() < 100, "it lets everybody in");
        let error = Client::new(&path).ask(&Request::Status {}).unwrap_err().to_string();
        assert!(error.contains("lets nobody in"), "{error}");
        let taken = SocketSpec { path: &path, group: None, mode: 0o600 }.check();
        std::fs::remove_file(&path).unwrap();
        assert!(taken.is_err(), "a daemon would take its place");
    }
}
