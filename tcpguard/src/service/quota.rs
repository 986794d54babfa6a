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
    taken: AtomicUsize,
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
        Self(Arc::new(Places { most: AtomicUsize::new(most), taken: AtomicUsize::new(0) }))
    }

    /// Allows this many at once from now on. What is taken beyond that stays until it is given back.
    pub fn limit_to(&self, most: usize) {
        self.0.most.store(most, Ordering::Relaxed);
    }

    /// As many at once as this allows, of which those are taken that `before` has counted.
    pub(super) fn following(&self, before: &Self) -> Self {
        before.limit_to(self.0.most.load(Ordering::Relaxed));
        before.clone()
    }

    /// How many are taken, and how many there may be; `None` if there is no limit.
    pub fn usage(&self) -> Option<(usize, usize)> {
        let most = self.0.most.load(Ordering::Relaxed);
        (most < UNLIMITED).then(|| (self.0.taken.load(Ordering::Relaxed), most))
    }

    /// One of them, until it is dropped; `None` when all are taken.
    pub(super) fn take(&self) -> Option<Share> {
        let most = self.0.most.load(Ordering::Relaxed);
        let one_more = |taken| (taken < most).then_some(taken + 1);
        let taken = self.0.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more);
        taken.ok().map(|_| Share(Arc::clone(&self.0)))
    }
}

/// The right to one.
#[derive(Debug)]
pub(super) struct Share(Arc<Places>);

impl Drop for Share {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
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
        quota.limit_to(9);
        assert_eq!((quota.usage(), Quota::default().usage()), (Some((1, 9)), None));
        drop(second);
        assert_eq!(quota.usage(), Some((0, 9)));
    }

    #[test]
    fn a_limit_that_falls_below_what_is_taken_takes_nothing_away_and_gives_no_more() {
        let quota = Quota::default();
        let mut taken: Vec<_> = (0..3).filter_map(|_| quota.take()).collect();
        let fewer = Quota::new(2).following(&quota);
        assert!(fewer.take().is_none() && quota.take().is_none());
        assert_eq!(fewer.usage(), Some((3, 2)));
        taken.truncate(1);
        taken.extend(fewer.take());
        assert_eq!((taken.len(), fewer.usage(), fewer.take().is_none()), (2, Some((2, 2)), true));
    }
}
