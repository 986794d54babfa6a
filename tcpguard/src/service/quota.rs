//! How many of something the services of a process may hold at once: descriptors, which clients must not use up for
//! everything else, or connections of one service. It counts; it opens nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// More than there can ever be.
const UNLIMITED: usize = usize::MAX / 2;

/// A number that is shared. Clones are the same number.
#[derive(Clone, Debug)]
pub struct Quota(Arc<Places>);

#[derive(Debug)]
struct Places {
    most: AtomicUsize,
    free: AtomicUsize,
}

impl Default for Quota {
    /// No limit.
    fn default() -> Self {
        Self::new(UNLIMITED)
    }
}

impl Quota {
    /// This many at once.
    pub fn new(most: usize) -> Self {
        Self(Arc::new(Places { most: AtomicUsize::new(most), free: AtomicUsize::new(most) }))
    }

    /// Allows this many at once; to be called before the first is taken.
    pub fn limit_to(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
        self.0.free.store(most, Ordering::Relaxed);
    }

    /// How many are taken, and how many there may be; `None` if there is no limit.
    pub fn usage(&self) -> Option<(usize, usize)> {
        let most = self.0.most.load(Ordering::Relaxed);
        (most < UNLIMITED).then(|| (most.saturating_sub(self.0.free.load(Ordering::Relaxed)), most))
    }

    /// One of them, until it is dropped; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Share> {
        let taken =
            self.0.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |free| free.checked_sub(1));
        taken.ok().map(|_| Share(Arc::clone(&self.0)))
    }
}

/// The right to one.
#[derive(Debug)]
pub(super) struct Share(Arc<Places>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.free.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_counts_until_it_is_given_back() {
        let quota = Quota::new(2);
        let (first, second) = (quota.take(), quota.take());
        assert!(first.is_some() && second.is_some() && quota.take().is_none());
        assert_eq!(quota.usage(), Some((2, 2)));
        drop(first);
        assert_eq!(quota.usage(), Some((1, 2)));
        drop(second);
        quota.limit_to(9);
        assert_eq!((quota.usage(), Quota::default().usage()), (Some((0, 9)), None));
    }
}
