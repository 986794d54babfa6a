//! How many of something the services of a process may hold at once: descriptors, which clients must not use up for
//! everything else, or connections of one service. It counts; it opens nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number that is shared. Clones are the same number.
#[derive(Clone, Debug)]
pub struct Quota(Arc<AtomicUsize>);

impl Default for Quota {
    /// No limit.
    fn default() -> Self {
        Self::new(usize::MAX / 2)
    }
}

impl Quota {
    /// This many at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(AtomicUsize::new(most)))
    }

    /// Allows this many at once; to be called before the first is taken.
    pub fn limit_to(&self, most: usize) {
        self.0.store(most, Ordering::Relaxed);
    }

    /// One of them, until it is dropped; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Share> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Share(Arc::clone(&self.0)))
    }
}

/// The right to one.
#[derive(Debug)]
pub(super) struct Share(Arc<AtomicUsize>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
