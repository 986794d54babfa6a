//! An HTTP client that looks at what it is answered, for the demo and for the benchmarks' probes. Tokio's local tasks only.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// What to ask for.
#[derive(Clone, Debug)]
pub(crate) struct Page {
    pub(crate) server: SocketAddr,
    pub(crate) path: String,
    /// The bytes every answer must consist of.
    pub(crate) expected: Bytes,
}

/// One that requests can be sent on.
pub(crate) type Connection = SendRequest<Empty<Bytes>>;

impl Page {
    /// One request, until its answer's last byte, on `connection` or on a new one; with `keep` it stays there.
    pub(crate) async fn fetch(&self, connection: &mut Option<Connection>, keep: bool) -> Result<()> {
        if connection.as_ref().is_none_or(|open| open.is_closed()) {
            *connection = Some(self.connect().await?);
        }
        let Some(open) = connection.as_mut() else { bail!("no connection") };
        let request = Request::get(&self.path).header(header::HOST, self.server.to_string());
        let request = request.header(header::CONNECTION, if keep { "keep-alive" } else { "close" });
        open.ready().await.context("the connection closed")?;
        let response = open.send_request(request.body(Empty::new())?).await.context("sending a request")?;
        ensure!(response.status() == StatusCode::OK, "answered {}", response.status());
        let body = response.into_body().collect().await.context("reading the answer")?.to_bytes();
        ensure!(body == self.expected, "wrong content: {} bytes", body.len());
        if !keep {
            *connection = None;
        }
        Ok(())
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.server).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let (sender, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::task::spawn_local(async move {
            // A request on this connection reports the same error.
            let _ = driver.await;
        });
        Ok(sender)
    }
}
