//! How long an engine's thread has slept: what of the time that passed was nobody's doing. It measures; whoever puts the
//! thread to sleep says when.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::dataplane::monotonic_ns;

/// The sleep of one thread, which alone writes here.
#[derive(Debug, Default)]
pub(crate) struct Sleep {
    /// When the last one began.
    began: AtomicU64,
    total: AtomicU64,
}

impl Sleep {
    /// The thread is about to look whether anything has happened, and to sleep if not.
    pub(crate) fn begin(&self) {
        self.began.store(monotonic_ns(), Ordering::Relaxed);
    }

    /// It is back.
    pub(crate) fn end(&self) {
        let slept = monotonic_ns().saturating_sub(self.began.load(Ordering::Relaxed));
        self.total.store(self.total().saturating_add(slept), Ordering::Relaxed);
    }

    /// Nanoseconds that it has slept, ever.
    pub(crate) fn total(&self) -> u64 {
        self.total.load(Ordering::Relaxed)
    }
}
