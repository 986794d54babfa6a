//! Places for clients at a socket, some of which are kept for the user who may always come: however many others there are, root
//! can confirm a change. Who gets one of the others' places is `pace`'s affair.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// One of so many places is kept.
const KEPT: usize = 8;

pub(super) struct Places {
    all: Arc<Semaphore>,
    /// Those that anybody may have.
    open: Arc<Semaphore>,
    exempt: Option<u32>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Taken {
    _place: OwnedSemaphorePermit,
    _open: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// So many, of which a few are kept for `exempt`, if there is such a user.
    pub(super) fn new(places: usize, exempt: Option<u32>) -> Self {
        let kept = if exempt.is_some() { places.div_ceil(KEPT) } else { 0 };
        let semaphore = |places| Arc::new(Semaphore::new(places));
        Self { all: semaphore(places), open: semaphore(places - kept), exempt }
    }

    /// A place for a client of `user`, if there is one.
    pub(super) fn take(&self, user: u32) -> Option<Taken> {
        let open = match self.exempt == Some(user) {
            true => None,
            false => Some(Arc::clone(&self.open).try_acquire_owned().ok()?),
        };
        let place = Arc::clone(&self.all).try_acquire_owned().ok()?;
        Some(Taken { _place: place, _open: open })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two users of three quarters each used to have them all, and root was told to try again.
    #[test]
    fn whoever_may_always_come_finds_a_place_however_many_others_there_are() {
        let places = Places::new(32, Some(0));
        let mut others: Vec<_> = (0..32).map_while(|client| places.take(1000 + client % 2)).collect();
        assert_eq!(others.len(), 28);
        let mut own: Vec<_> = (0..32).map_while(|_| places.take(0)).collect();
        assert_eq!(own.len(), 4);
        // Each place goes back to whom it was for.
        others.pop();
        assert!(places.take(1000).is_some());
        own.pop();
        assert!(places.take(0).is_some());
        drop((others, own));
        let all: Vec<_> = (0..40).map_while(|_| places.take(0)).collect();
        assert_eq!(all.len(), 32);
    }

    #[test]
    fn without_such_a_user_all_places_are_everybodys() {
        let places = Places::new(4, None);
        let taken: Vec<_> = (0..9).map_while(|user| places.take(user)).collect();
        assert_eq!(taken.len(), 4);
    }
}
