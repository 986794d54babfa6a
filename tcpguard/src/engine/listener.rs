//! Accepting the connections of one service. Not where they are admitted: a valid cookie did that.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::task::{Context, Poll, ready};

use tokio::task::coop;

use super::net::Net;
use super::stream::TcpStream;

/// The connections of one service on one engine. Dropping it resets those that still wait.
pub struct TcpListener {
    net: Net,
    service: u32,
}

impl TcpListener {
    pub(crate) fn new(net: Net, service: u32) -> Self {
        Self { net, service }
    }

    /// The next connection and its peer. Needs no descriptor, so nothing can make it fail.
    pub async fn accept(&self) -> (TcpStream, SocketAddr) {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    /// As [`Self::accept`]; only the last waker is woken.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<(TcpStream, SocketAddr)> {
        let slice = ready!(coop::poll_proceed(cx));
        let stream = ready!(self.net.poll_accept(self.service, cx));
        slice.made_progress();
        let peer = stream.peer_addr();
        Poll::Ready((stream, peer))
    }
}

impl Drop for TcpListener {
    fn drop(&mut self) {
        self.net.unlisten(self.service);
    }
}
