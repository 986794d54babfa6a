//! The far end of a relayed connection: a backend behind a kernel socket, or a responder. Which backend is the pool's to
//! say.

use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ppp::{v1, v2};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest, ReadBuf};
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::responder::Responder;
use crate::config::{BackendAddr, ProxyProtocol};
use crate::dataplane::choose_port_late;

/// The far end of a relayed connection.
pub(super) enum Backend {
    Tcp(TcpStream),
    Unix(UnixStream),
    Responder(Responder),
}

/// How a backend ended that has perhaps not been read to the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gone {
    /// It closed, or ended its direction.
    Closed,
    /// It reset, or was lost.
    Reset,
}

impl Backend {
    /// Connects to `addr`, from `source` if it is somebody else's address, and says `greeting` first.
    pub(super) async fn connect(
        addr: &BackendAddr,
        source: Option<IpAddr>,
        greeting: &[u8],
    ) -> io::Result<Self> {
        match addr {
            BackendAddr::Tcp(addr) => {
                let mut stream = match source {
                    None => TcpStream::connect(addr).await?,
                    Some(source) => connect_from(source, *addr).await?,
                };
                // The stack paces what it sends; the backend's side must not wait for more either.
                stream.set_nodelay(true)?;
                SockRef::from(&stream).set_tcp_keepalive(&ALIVE)?;
                stream.write_all(greeting).await?;
                Ok(Self::Tcp(stream))
            }
            BackendAddr::Unix(path) => {
                let mut stream = UnixStream::connect(path).await?;
                stream.write_all(greeting).await?;
                Ok(Self::Unix(stream))
            }
        }
    }

    /// Reads into `buffer`; what leaves it empty is the end.
    pub(super) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Responder(responder) => responder.poll_tell(cx, buffer),
        }
    }

    /// How it ended, if nothing more will come from it than what can be read already. Nothing is read, and nobody is woken:
    /// what the kernel told last is looked at, and an end stays in it whatever bytes are before that.
    pub(super) fn gone(&self) -> Option<Gone> {
        let mut nobody = Context::from_waker(Waker::noop());
        let ready = match self {
            Self::Tcp(stream) => pin!(stream.ready(ENDS)).poll(&mut nobody),
            Self::Unix(stream) => pin!(stream.ready(ENDS)).poll(&mut nobody),
            // What it has to say depends on the client alone.
            Self::Responder(_) => return None,
        };
        match ready {
            Poll::Ready(Ok(ready)) if ready.is_read_closed() && ready.is_error() => Some(Gone::Reset),
            Poll::Ready(Ok(ready)) if ready.is_read_closed() => Some(Gone::Closed),
            // Only a runtime that ends makes it fail.
            Poll::Ready(Ok(_) | Err(_)) | Poll::Pending => None,
        }
    }

    /// Writes as much as it takes of `slices`.
    pub(super) fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // Most of what clients say is in one piece, for which the kernel has a shorter way.
        match (self, slices) {
            (Self::Tcp(stream), [whole]) => Pin::new(stream).poll_write(cx, whole),
            (Self::Unix(stream), [whole]) => Pin::new(stream).poll_write(cx, whole),
            (Self::Tcp(stream), _) => Pin::new(stream).poll_write_vectored(cx, slices),
            (Self::Unix(stream), _) => Pin::new(stream).poll_write_vectored(cx, slices),
            (Self::Responder(responder), _) => responder.poll_take(slices),
        }
    }

    /// Ends the direction to it.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Responder(responder) => {
                responder.end();
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Drops it with a reset, where there is such a thing and somebody to tell: a Unix socket only ends.
    pub(super) fn reset(self) {
        if let Self::Tcp(stream) = self {
            // Nothing else to do if the kernel refuses: the connection is then closed.
            let _ = stream.set_zero_linger();
        }
    }
}

/// When a backend that says nothing is asked whether it still has the connection. That finds a host that is gone while
/// nothing is on its way to it, and an end that never came: behind bytes for which there was no room here, the kernel
/// of a process that has closed gives up some time, without a word. What is on its way is sent again meanwhile, as often
/// as the kernel does (net.ipv4.tcp_retries2, 15 minutes). `TCP_USER_TIMEOUT` would bound that, but it also ends
/// connections to backends that are there and just do not read for so long.
const ALIVE: TcpKeepalive = TcpKeepalive::new()
    .with_time(Duration::from_secs(60))
    .with_interval(Duration::from_secs(10))
    .with_retries(6);

/// What tells how a socket's other end went.
const ENDS: Interest = Interest::READABLE.add(Interest::ERROR);

/// Connects from an address that is not this host's, with any port that is free towards that backend. Takes `CAP_NET_RAW`;
/// answers come here only where routes say so.
async fn connect_from(source: IpAddr, addr: SocketAddr) -> io::Result<TcpStream> {
    let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    let options = SockRef::from(&socket);
    match source {
        IpAddr::V4(_) => options.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => options.set_ip_transparent_v6(true)?,
    }
    choose_port_late(&socket)?;
    socket.bind(SocketAddr::new(source, 0))?;
    socket.connect(addr).await
}

/// What tells a backend that `client` wants `service`.
pub(super) fn greeting(
    version: Option<ProxyProtocol>,
    client: SocketAddr,
    service: SocketAddr,
) -> io::Result<Vec<u8>> {
    match version {
        None => Ok(Vec::new()),
        Some(ProxyProtocol::V1) => Ok(v1::Addresses::from((client, service)).to_string().into_bytes()),
        Some(ProxyProtocol::V2) => {
            let command = v2::Version::Two | v2::Command::Proxy;
            v2::Builder::with_addresses(command, v2::Protocol::Stream, (client, service)).build()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn backends_that_say_nothing_are_asked_whether_they_are_there() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            for host in ["127.0.0.1:0", "[::1]:0"] {
                let listener = tokio::net::TcpListener::bind(host).await.unwrap();
                let backend = BackendAddr::Tcp(listener.local_addr().unwrap());
                let Ok(Backend::Tcp(stream)) = Backend::connect(&backend, None, b"").await else {
                    panic!("no connection")
                };
                let options = SockRef::from(&stream);
                assert!(options.keepalive().unwrap());
                assert_eq!(options.tcp_keepalive_time().unwrap(), Duration::from_secs(60));
                assert_eq!(options.tcp_keepalive_interval().unwrap(), Duration::from_secs(10));
                assert_eq!(options.tcp_keepalive_retries().unwrap(), 6);
            }
        });
    }

    /// Byte for byte as the protocol's document has them.
    #[test]
    fn greetings_are_those_of_the_proxy_protocol() {
        let v4 = (addr("192.0.2.7:50000"), addr("198.51.100.1:443"));
        let v6 = (addr("[2001:db8::7]:50000"), addr("[2001:db8::1]:443"));
        assert_eq!(greeting(None, v4.0, v4.1).unwrap(), b"");
        let line = greeting(Some(ProxyProtocol::V1), v4.0, v4.1).unwrap();
        assert_eq!(line, b"PROXY TCP4 192.0.2.7 198.51.100.1 50000 443\r\n");
        let line = greeting(Some(ProxyProtocol::V1), v6.0, v6.1).unwrap();
        assert_eq!(line, b"PROXY TCP6 2001:db8::7 2001:db8::1 50000 443\r\n");
        let signature = b"\r\n\r\n\0\r\nQUIT\n";
        let header = greeting(Some(ProxyProtocol::V2), v4.0, v4.1).unwrap();
        let expected = [
            &signature[..],
            &[0x21, 0x11, 0, 12, 192, 0, 2, 7, 198, 51, 100, 1],
            &50000_u16.to_be_bytes(),
            &443_u16.to_be_bytes(),
        ];
        assert_eq!(header, expected.concat());
        let header = greeting(Some(ProxyProtocol::V2), v6.0, v6.1).unwrap();
        assert_eq!((header.len(), &header[12..16]), (16 + 36, &[0x21, 0x21, 0, 36][..]));
    }
}
