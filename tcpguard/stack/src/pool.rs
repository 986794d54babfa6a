//! Buffer memory: chunks of one size out of a bounded, recycled budget. Not who uses them for what.

use std::collections::VecDeque;

/// Bytes in a chunk: a short request and its answer take one each.
pub(crate) const CHUNK: usize = 4096;

/// One buffer.
pub(crate) type Chunk = Box<[u8; CHUNK]>;

/// Idle chunks kept for reuse; the rest goes back to the allocator.
const KEEP: usize = 4096;

/// A budget of chunks.
#[derive(Debug)]
pub(crate) struct Pool {
    free: Vec<Chunk>,
    in_use: usize,
    budget: usize,
}

impl Pool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { free: Vec::new(), in_use: 0, budget: bytes / CHUNK }
    }

    /// Applies another budget. Chunks beyond it stay with their owners until given back.
    pub(crate) fn set_budget(&mut self, bytes: usize) {
        self.budget = bytes / CHUNK;
    }

    /// A chunk, its old contents still in it; `None` when the budget is spent.
    pub(crate) fn take(&mut self) -> Option<Chunk> {
        if self.in_use >= self.budget {
            return None;
        }
        self.in_use += 1;
        Some(self.free.pop().unwrap_or_else(|| Box::new([0; CHUNK])))
    }

    pub(crate) fn give(&mut self, chunk: Chunk) {
        debug_assert!(self.in_use > 0, "a chunk that was never taken");
        self.in_use -= 1;
        if self.free.len() < KEEP {
            self.free.push(chunk);
        }
    }

    /// Bytes there are in all.
    pub(crate) fn budget_bytes(&self) -> usize {
        self.budget * CHUNK
    }

    pub(crate) fn has_room(&self) -> bool {
        self.in_use < self.budget
    }

    /// Bytes that can still be taken.
    pub(crate) fn room_bytes(&self) -> usize {
        self.budget.saturating_sub(self.in_use) * CHUNK
    }

    /// Bytes in the hands of connections.
    pub(crate) fn used_bytes(&self) -> usize {
        self.in_use * CHUNK
    }
}

/// Copies `to.len()` bytes out of a row of chunks from `offset`, which the caller knows to be present.
pub(crate) fn copy_out<'a>(
    chunk_at: impl Fn(usize) -> Option<&'a Chunk>,
    mut offset: usize,
    mut to: &mut [u8],
) {
    while !to.is_empty() {
        let within = offset % CHUNK;
        let len = to.len().min(CHUNK - within);
        let Some(chunk) = chunk_at(offset / CHUNK) else {
            debug_assert!(false, "reading bytes that are not there");
            return;
        };
        let (now, later) = to.split_at_mut(len);
        now.copy_from_slice(&chunk[within..within + len]);
        to = later;
        offset += len;
    }
}

/// Bytes queued for sending: everything from SND.UNA up to the last byte the application gave us.
#[derive(Debug, Default)]
pub(crate) struct SendBuffer {
    chunks: VecDeque<Chunk>,
    /// Where the first byte lies in the first chunk.
    head: usize,
    len: usize,
}

impl SendBuffer {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Appends as much of `data` as `limit` and the pool allow; how much.
    pub(crate) fn push(&mut self, data: &[u8], limit: usize, pool: &mut Pool) -> usize {
        let room = limit.saturating_sub(self.len).min(data.len());
        let mut rest = &data[..room];
        while !rest.is_empty() {
            let end = self.head + self.len;
            if end == self.chunks.len() * CHUNK {
                match pool.take() {
                    Some(chunk) => self.chunks.push_back(chunk),
                    None => break,
                }
            }
            let within = end % CHUNK;
            let len = rest.len().min(CHUNK - within);
            let Some(chunk) = self.chunks.back_mut() else { break };
            chunk[within..within + len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            self.len += len;
        }
        room - rest.len()
    }

    /// How much [`Self::push`] would take.
    pub(crate) fn room(&self, limit: usize, pool: &Pool) -> usize {
        let slack = self.chunks.len() * CHUNK - self.head - self.len;
        limit.saturating_sub(self.len).min(slack + pool.room_bytes())
    }

    /// Copies out the bytes from `offset` on; they must be there.
    pub(crate) fn copy_out(&self, offset: usize, to: &mut [u8]) {
        debug_assert!(offset + to.len() <= self.len);
        copy_out(|index| self.chunks.get(index), self.head + offset, to);
    }

    /// Forgets the first `len` bytes: they are acknowledged.
    pub(crate) fn advance(&mut self, len: usize, pool: &mut Pool) {
        debug_assert!(len <= self.len);
        let len = len.min(self.len);
        self.head += len;
        self.len -= len;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            if let Some(chunk) = self.chunks.pop_front() {
                pool.give(chunk);
            }
        }
        if self.len == 0 {
            self.clear(pool);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.chunks.drain(..).for_each(|chunk| pool.give(chunk));
        (self.head, self.len) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::{CHUNK, Pool, SendBuffer};

    #[test]
    fn a_send_buffer_gives_its_chunks_back_as_bytes_are_acknowledged() {
        let mut pool = Pool::new(4 * CHUNK);
        let mut buffer = SendBuffer::default();
        let data: Vec<u8> = (0..3 * CHUNK + 100).map(|i| i as u8).collect();
        assert_eq!(buffer.push(&data, usize::MAX, &mut pool), data.len());
        assert_eq!(pool.used_bytes(), 4 * CHUNK);
        buffer.advance(CHUNK + 7, &mut pool);
        assert_eq!(pool.used_bytes(), 3 * CHUNK);
        let mut out = vec![0; data.len() - CHUNK - 7];
        buffer.copy_out(0, &mut out);
        assert_eq!(out, data[CHUNK + 7..]);
        buffer.advance(out.len(), &mut pool);
        assert_eq!((buffer.len(), pool.used_bytes()), (0, 0));
    }

    #[test]
    fn the_room_is_exactly_what_a_push_takes() {
        let mut pool = Pool::new(4 * CHUNK);
        let mut buffer = SendBuffer::default();
        for limit in [10, CHUNK, CHUNK + 1, 10 * CHUNK] {
            let room = buffer.room(limit, &pool);
            assert_eq!(buffer.push(&[0; 10 * CHUNK], limit, &mut pool), room);
            assert_eq!(buffer.room(limit, &pool), 0);
        }
        buffer.advance(CHUNK + 5, &mut pool);
        assert_eq!(buffer.room(usize::MAX, &pool), CHUNK, "a chunk comes back whole");
    }

    #[test]
    fn an_empty_pool_ends_a_push_short() {
        let mut pool = Pool::new(CHUNK);
        let mut buffer = SendBuffer::default();
        assert_eq!(buffer.push(&[1; 2 * CHUNK], usize::MAX, &mut pool), CHUNK);
        assert_eq!(buffer.push(&[1], usize::MAX, &mut pool), 0);
    }
}
