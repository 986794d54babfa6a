//! Parts of connections between two owners, so that one that wakes takes what another gave back when it came to rest. Not
//! what the parts are.

/// Most that are kept; the rest goes back to the allocator.
const KEEP: usize = 1024;

/// Boxes without an owner, a bounded number of them.
#[derive(Debug)]
pub(crate) struct Spares<T>(Vec<Box<T>>);

impl<T> Spares<T> {
    pub(crate) fn new() -> Self {
        Self(Vec::new())
    }

    /// One of them, as it was given, if there is one.
    pub(crate) fn take(&mut self) -> Option<Box<T>> {
        self.0.pop()
    }

    /// Keeps one, unless there are enough.
    pub(crate) fn give(&mut self, part: Box<T>) {
        if self.0.len() < KEEP {
            self.0.push(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{KEEP, Spares};

    #[test]
    fn no_more_are_kept_than_may_be() {
        let mut spares = Spares::new();
        assert_eq!(spares.take(), None);
        (0..2 * KEEP).for_each(|number| spares.give(Box::new(number)));
        let kept: Vec<_> = std::iter::from_fn(|| spares.take()).map(|number| *number).collect();
        assert_eq!(kept, (0..KEEP).rev().collect::<Vec<_>>());
    }
}
