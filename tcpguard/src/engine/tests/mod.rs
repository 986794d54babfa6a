//! Engines end to end in memory: real stacks, the real XDP decision, no kernel. What they send each other is real, and so
//! is the time.

mod duties;
#[path = "../../../stack/src/tests/router.rs"]
mod router;
mod streams;
mod sweep;
mod thread;
pub(crate) mod world;

use std::rc::Rc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::LocalSet;

use super::{Exchange, TcpStream};
use crate::config::Tunables;
use world::{Host, World};

/// Runs a test on one thread, as an engine's tasks run.
pub(crate) fn on_one_thread(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(std::time::Duration::from_secs(60), test).await.expect("the test hangs");
    });
}

/// One client and one engine.
pub(crate) fn pair() -> (Rc<World>, Host, Host) {
    pair_with(Tunables::default())
}

pub(crate) fn pair_with(tunables: Tunables) -> (Rc<World>, Host, Host) {
    let world = World::new(1);
    let guard = world.guard(0, Exchange::new(1), tunables);
    let client = world.client();
    (world, guard, client)
}

/// Bytes that show where they belong.
pub(crate) fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i ^ i >> 8 ^ i >> 16) as u8).collect()
}

/// Reads to the end.
pub(crate) async fn read_all(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    Ok(bytes)
}

/// Sends bytes and closes, while it reads to the end.
pub(crate) async fn exchange(stream: TcpStream, sent: &[u8]) -> Vec<u8> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let write = async {
        writer.write_all(sent).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    let mut received = Vec::new();
    let (_, read) = tokio::join!(write, reader.read_to_end(&mut received));
    read.unwrap();
    received
}

/// Sends everything back until the peer closes, then closes.
pub(crate) async fn echo(mut stream: TcpStream) -> std::io::Result<()> {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
