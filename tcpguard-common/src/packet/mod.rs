//! Bytes on the wire: the access traits, the header types and the one bounds-checked parser. It judges form,
//! not meaning: whether a well-formed segment is welcome is the business of `decision` and of the stack.

/// Read access to one Ethernet frame.
pub trait Frame {
    /// Bytes in the frame.
    fn len(&self) -> usize;

    /// `N` bytes from `offset`; `None` when they do not all lie inside the frame.
    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;

    /// Whether the frame has no bytes.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Write access to one Ethernet frame, for answering in place.
pub trait FrameMut: Frame {
    /// Writes `bytes` at `offset`; `None`, and nothing written, when they do not all lie inside the frame.
    fn store<const N: usize>(&mut self, offset: usize, bytes: [u8; N]) -> Option<()>;

    /// Makes the frame `len` bytes long, cutting or growing at its end; `None` when there is no room.
    fn resize(&mut self, len: usize) -> Option<()>;
}

impl Frame for [u8] {
    fn len(&self) -> usize {
        self.len()
    }

    fn load<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..offset.checked_add(N)?)?.try_into().ok()
    }
}
