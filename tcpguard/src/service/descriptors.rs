//! How many kernel sockets the services of a process may hold at once, so that clients cannot use up the descriptors
//! that everything else needs. It counts; it opens nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A number of descriptors that services share. Clones are the same number.
#[derive(Clone, Debug)]
pub struct Descriptors(Arc<AtomicUsize>);

impl Default for Descriptors {
    /// As many as the kernel gives.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(usize::MAX / 2)))
    }
}

impl Descriptors {
    /// Allows this many at once; to be called before the first is taken.
    pub fn limit_to(&self, most: usize) {
        self.0.store(most, Ordering::Relaxed);
    }

    /// One of them, until it is dropped; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Descriptor> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Descriptor(Arc::clone(&self.0)))
    }
}

/// The right to one descriptor.
#[derive(Debug)]
pub(super) struct Descriptor(Arc<AtomicUsize>);

impl Drop for Descriptor {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
