//! An echo server behind the guard: `echo IFACE ADDR:PORT [CONTROL_SOCKET PIN_DIR]`. The connections are streams of the stack's in this very
//! process; no backend and no kernel socket has a part in them.

#[path = "support/arguments.rs"]
mod arguments;

use tcpguard::control::daemon::{Daemon, DaemonError};
use tcpguard::engine::TcpStream;
use tokio::io::AsyncWriteExt as _;
use tokio::task::spawn_local;

fn main() -> Result<(), DaemonError> {
    let (config, listen) = arguments::read("echo");
    let echo = Daemon::new(config).serve(listen, |listener| async move {
        loop {
            let (stream, _) = listener.accept().await;
            spawn_local(echo(stream));
        }
    });
    echo.run()
}

/// Sends everything back, and closes once the client has. What goes wrong is the client's affair.
async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let (mut reader, mut writer) = tokio::io::split(&mut stream);
    tokio::io::copy(&mut reader, &mut writer).await?;
    writer.shutdown().await
}
