//! Copies of what engines send, for who watches. While nobody does, it costs one look at a flag for each turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tcpguard_common::trace::{PER_WINDOW, Record, window};
use tokio::sync::mpsc;

/// Records that may wait to be read, of all engines together.
const WAITING: usize = 4096;

/// The engines' end.
#[derive(Clone, Debug)]
pub struct Tap {
    shared: Arc<Shared>,
}

/// The watcher's end.
#[derive(Debug)]
pub struct TapReader {
    shared: Arc<Shared>,
    records: mpsc::Receiver<Record>,
}

#[derive(Debug)]
struct Shared {
    open: AtomicBool,
    lost: AtomicU64,
    records: mpsc::Sender<Record>,
}

/// Both ends, closed for now.
pub fn tap() -> (Tap, TapReader) {
    let (sender, records) = mpsc::channel(WAITING);
    let shared = Arc::new(Shared { open: AtomicBool::new(false), lost: AtomicU64::new(0), records: sender });
    (Tap { shared: Arc::clone(&shared) }, TapReader { shared, records })
}

impl TapReader {
    /// Lets records come, or keeps them from coming.
    pub fn open(&self, open: bool) {
        self.shared.open.store(open, Ordering::Relaxed);
    }

    /// The next record that waits.
    pub fn take(&mut self) -> Option<Record> {
        self.records.try_recv().ok()
    }

    /// How many were not kept: beyond an engine's rate, or for want of room.
    pub fn lost(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

/// One engine's part: how many records it has written lately.
#[derive(Debug)]
pub(crate) struct Tapped {
    tap: Tap,
    engine: u32,
    window: u64,
    written: u32,
}

impl Tapped {
    pub(crate) fn new(tap: Tap, engine: u32) -> Self {
        Self { tap, engine, window: 0, written: 0 }
    }

    /// Whether anybody watches.
    pub(crate) fn is_open(&self) -> bool {
        self.tap.shared.open.load(Ordering::Relaxed)
    }

    /// Copies a frame that is being sent at `now`, nanoseconds, unless there were too many.
    pub(crate) fn record(&mut self, now: u64, frame: &[u8]) {
        if window(now) != self.window {
            (self.window, self.written) = (window(now), 0);
        }
        let kept = self.written < PER_WINDOW
            && self.tap.shared.records.try_send(Record::sent(now, self.engine, frame)).is_ok();
        if kept {
            self.written += 1;
        } else {
            self.tap.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_takes_so_many_and_the_next_one_takes_more() {
        let (tap, mut reader) = tap();
        let mut tapped = Tapped::new(tap, 5);
        assert!(!tapped.is_open());
        reader.open(true);
        assert!(tapped.is_open());
        for number in 0..PER_WINDOW + 10 {
            tapped.record(0, &number.to_ne_bytes());
        }
        tapped.record(1 << 27, b"next");
        let taken: Vec<_> = std::iter::from_fn(|| reader.take()).collect();
        assert_eq!((taken.len(), reader.lost()), (PER_WINDOW as usize + 1, 10));
        assert_eq!(taken[PER_WINDOW as usize].bytes(), b"next");
        assert!(taken.iter().all(|record| record.engine == 5));
    }

    #[test]
    fn a_reader_that_does_not_read_costs_records_and_no_more() {
        let (tap, mut reader) = tap();
        let mut tapped = Tapped::new(tap, 0);
        let offered = WAITING as u64 + 100;
        (0..offered).for_each(|number| tapped.record(number << 27, b"frame"));
        assert_eq!(reader.lost(), 100);
        assert_eq!(std::iter::from_fn(|| reader.take()).count(), WAITING);
    }
}
