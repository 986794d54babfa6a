//! The buffer through which all connections of an engine read, one at a time, so that none needs one of its own.

use std::cell::{RefCell, RefMut};
use std::rc::Rc;

/// Most bytes read at once.
pub(super) const SCRATCH: usize = 64 << 10;
/// Bytes one connection may move before the others, and the packets, get their turn.
pub(super) const SLICE: usize = 256 << 10;

/// A shared buffer. Clones are the same buffer.
#[derive(Clone)]
pub(super) struct Scratch(Rc<RefCell<Box<[u8]>>>);

impl Default for Scratch {
    fn default() -> Self {
        Self(Rc::new(RefCell::new(vec![0; SCRATCH].into_boxed_slice())))
    }
}

impl Scratch {
    /// The buffer, until whoever uses it is done: never across a point where a task waits.
    pub(super) fn borrow_mut(&self) -> RefMut<'_, Box<[u8]>> {
        self.0.borrow_mut()
    }
}
