//! A wire that takes its time: a namespace with two interfaces, and threads that carry every frame from one to the other
//! after a delay, in order. Kernels without netem have nothing for that.

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Result;
use socket2::Socket;

use super::{Namespace, packet_socket};

/// Frames on their way in one direction at most. What comes beyond that is lost, as in any full queue.
const QUEUE: usize = 16 << 10;
/// Bytes of the sockets' own queues.
const BUFFER: usize = 16 << 20;
/// How often a thread without frames looks whether it is to end.
const PATIENCE: Duration = Duration::from_millis(50);

/// The threads of a bridge. Dropping it ends them.
#[derive(Debug)]
pub(super) struct Bridge {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Bridge {
    /// Starts to carry frames between two interfaces of `namespace`, each after `delay`.
    pub(super) fn start(namespace: &Namespace, interfaces: [&str; 2], delay: Duration) -> Result<Self> {
        let [west, east] = interfaces.map(|interface| namespace.enter(|| open(interface)));
        let (west, east) = (west??, east??);
        let mut bridge = Self { stop: Arc::default(), threads: Vec::new() };
        bridge.carry(west.try_clone()?, east.try_clone()?, delay)?;
        bridge.carry(east, west, delay)?;
        Ok(bridge)
    }

    fn carry(&mut self, from: Socket, to: Socket, delay: Duration) -> Result<()> {
        let (queue, due) = sync_channel(QUEUE);
        let stop = Arc::clone(&self.stop);
        let threads = [
            thread::Builder::new().name("bridge-in".into()).spawn(move || take(from, &queue, delay, &stop)),
            thread::Builder::new().name("bridge-out".into()).spawn(move || give(to, &due)),
        ];
        for thread in threads {
            self.threads.push(thread?);
        }
        Ok(())
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ended = thread.join();
        }
    }
}

fn open(interface: &str) -> Result<Socket> {
    let socket = packet_socket(interface)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // As much as the system allows.
    socket.set_recv_buffer_size(BUFFER)?;
    socket.set_send_buffer_size(BUFFER)?;
    Ok(socket)
}

fn take(mut from: Socket, queue: &SyncSender<(Instant, Vec<u8>)>, delay: Duration, stop: &AtomicBool) {
    let mut frame = vec![0; 65536];
    while !stop.load(Ordering::Relaxed) {
        if let Ok(len) = from.read(&mut frame) {
            let _lost = queue.try_send((Instant::now() + delay, frame[..len].to_vec()));
        }
    }
}

fn give(mut to: Socket, due: &Receiver<(Instant, Vec<u8>)>) {
    while let Ok((at, frame)) = due.recv() {
        thread::sleep(at.saturating_duration_since(Instant::now()));
        let _lost = to.write(&frame);
    }
}
