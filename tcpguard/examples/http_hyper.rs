//! A web server behind the guard: hyper over the userspace stack. `http_hyper IFACE ADDR:PORT [CONTROL_SOCKET PIN_DIR]`.

#[path = "support/arguments.rs"]
mod arguments;

use std::convert::Infallible;

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tcpguard::control::daemon::{Daemon, DaemonError};
use tokio::task::spawn_local;

fn main() -> Result<(), DaemonError> {
    let (config, listen) = arguments::read("http_hyper");
    let web = Daemon::new(config).serve(listen, |listener| async move {
        loop {
            let (stream, _) = listener.accept().await;
            // What goes wrong with one connection is its client's affair.
            spawn_local(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(hello)));
        }
    });
    web.run()
}

async fn hello(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(format!("{} {}\n", request.method(), request.uri().path())))
}
