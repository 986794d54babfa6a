//! The smallest useful server that a SYN flood does not reach: says one sentence to everybody and closes.
//! `static_responder IFACE ADDR:PORT [CONTROL_SOCKET PIN_DIR]`.

#[path = "support/arguments.rs"]
mod arguments;

use tcpguard::control::daemon::{Daemon, DaemonError};
use tcpguard::engine::TcpStream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::spawn_local;

const SENTENCE: &[u8] = b"Still here.\n";

fn main() -> Result<(), DaemonError> {
    let (config, listen) = arguments::read("static_responder");
    let responder = Daemon::new(config).serve(listen, |listener| async move {
        loop {
            let (stream, _) = listener.accept().await;
            spawn_local(answer(stream));
        }
    });
    responder.run()
}

/// What a client says is read before the stream is dropped: bytes left unread would turn the answer into a reset.
async fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.write_all(SENTENCE).await?;
    stream.shutdown().await?;
    let mut said = [0; 512];
    while stream.read(&mut said).await? > 0 {}
    Ok(())
}
