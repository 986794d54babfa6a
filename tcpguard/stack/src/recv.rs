//! Bytes received: those in order and unread, and those that wait behind a hole. Sequence numbers are judged
//! elsewhere; what comes here lies inside the window.

use std::collections::VecDeque;
use std::io::IoSlice;

use tcpguard_common::seq::Seq;

use super::pool::{CHUNK, Chunk, Pool, copy_out};
use super::pressure::recv_share;

/// Most islands of out-of-order data: bounds the work per segment against a peer that sends every other byte.
pub(crate) const MAX_ISLANDS: usize = 64;

/// Out-of-order data `[start, end)`, and when it last grew, for the order of SACK blocks (RFC 2018 §4).
#[derive(Clone, Copy, Debug)]
struct Island {
    start: Seq,
    end: Seq,
    stamp: u32,
}

/// What became of a segment's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// RCV.NXT moves on by this many bytes.
    InOrder(u32),
    /// Kept behind a hole.
    OutOfOrder,
    /// Kept already, all of it.
    Duplicate,
    /// No memory, or no more for who holds so much, or no room for one more island.
    NoRoom,
}

/// The receive side's memory. Byte `i` of the unread stream lies at `head + i` of the row of chunks; a chunk
/// that lies wholly in a hole does not exist.
#[derive(Debug, Default)]
pub(crate) struct RecvBuffer {
    chunks: VecDeque<Option<Chunk>>,
    head: usize,
    ready: usize,
    islands: Vec<Island>,
    stamp: u32,
}

impl RecvBuffer {
    /// Bytes that can be read.
    pub(crate) fn ready(&self) -> usize {
        self.ready
    }

    /// Whether nothing is held at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.ready == 0 && self.islands.is_empty()
    }

    /// Whether data waits behind a hole.
    pub(crate) fn has_islands(&self) -> bool {
        !self.islands.is_empty()
    }

    /// Islands of data that wait behind holes.
    pub(crate) fn island_count(&self) -> usize {
        self.islands.len()
    }

    /// Places `data`, whose first byte is `seq`, at or after `rcv_nxt`.
    pub(crate) fn place(&mut self, rcv_nxt: Seq, seq: Seq, data: &[u8], pool: &mut Pool) -> Placed {
        debug_assert!(seq.at_or_after(rcv_nxt));
        let end = seq + data.len() as u32;
        if seq == rcv_nxt {
            let stored = self.store(0, data, pool);
            if stored == 0 {
                return Placed::NoRoom;
            }
            return Placed::InOrder(self.advance(rcv_nxt, rcv_nxt + stored as u32));
        }
        if self.islands.iter().any(|island| island.start.at_or_before(seq) && island.end.at_or_after(end)) {
            return Placed::Duplicate;
        }
        if self.islands.len() >= MAX_ISLANDS && !self.touches_island(seq, end) {
            return Placed::NoRoom;
        }
        let stored = self.store(seq.distance(rcv_nxt) as usize, data, pool);
        if stored == 0 {
            return Placed::NoRoom;
        }
        self.add_island(seq, seq + stored as u32);
        Placed::OutOfOrder
    }

    /// Up to `out.len()` of the most recently changed islands, the newest first; how many.
    pub(crate) fn sack_blocks(&self, out: &mut [(Seq, Seq)]) -> usize {
        let mut written = 0;
        let mut newer_than = None;
        while let Some(slot) = out.get_mut(written) {
            let older = |island: &&Island| newer_than.is_none_or(|stamp| island.stamp < stamp);
            let Some(next) = self.islands.iter().filter(older).max_by_key(|island| island.stamp) else {
                break;
            };
            *slot = (next.start, next.end);
            newer_than = Some(next.stamp);
            written += 1;
        }
        written
    }

    /// Reads into `out` and gives the memory back; how much.
    pub(crate) fn read(&mut self, out: &mut [u8], pool: &mut Pool) -> usize {
        let len = out.len().min(self.ready);
        copy_out(|index| self.chunks.get(index)?.as_ref(), self.head, &mut out[..len]);
        self.consume(len, pool);
        len
    }

    /// Lends the unread bytes, as far as `out` reaches; how many slices that takes.
    pub(crate) fn peek<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut left = self.ready;
        let mut start = self.head;
        let mut count = 0;
        for (chunk, slot) in self.chunks.iter().flatten().zip(out) {
            if left == 0 {
                break;
            }
            let len = left.min(CHUNK - start);
            *slot = IoSlice::new(&chunk[start..start + len]);
            (left, start) = (left - len, 0);
            count += 1;
        }
        count
    }

    /// Forgets the first `len` readable bytes.
    pub(crate) fn consume(&mut self, len: usize, pool: &mut Pool) {
        debug_assert!(len <= self.ready);
        self.head += len;
        self.ready -= len;
        while self.head >= CHUNK {
            self.head -= CHUNK;
            if let Some(Some(chunk)) = self.chunks.pop_front() {
                pool.give(chunk);
            }
        }
        if self.is_empty() {
            self.clear(pool);
        }
    }

    /// Forgets what waits behind holes, which RFC 2018 §8 allows, and gives its memory back.
    pub(crate) fn discard_islands(&mut self, pool: &mut Pool) {
        self.islands.clear();
        let keep = (self.head + self.ready).div_ceil(CHUNK);
        while self.chunks.len() > keep {
            if let Some(Some(chunk)) = self.chunks.pop_back() {
                pool.give(chunk);
            }
        }
        if self.is_empty() {
            self.clear(pool);
        }
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        self.chunks.drain(..).flatten().for_each(|chunk| pool.give(chunk));
        self.islands.clear();
        (self.head, self.ready) = (0, 0);
    }

    /// Writes `data` at `offset` bytes past the readable ones, as far as the pool and a connection's share of it reach; how
    /// much.
    fn store(&mut self, offset: usize, data: &[u8], pool: &mut Pool) -> usize {
        let mut at = self.head + self.ready + offset;
        let mut rest = data;
        while !rest.is_empty() {
            let (index, within) = (at / CHUNK, at % CHUNK);
            while self.chunks.len() <= index {
                self.chunks.push_back(None);
            }
            let slot = &mut self.chunks[index];
            if slot.is_none() && index * CHUNK < recv_share(pool) {
                *slot = pool.take();
            }
            let Some(chunk) = slot else { break };
            let len = rest.len().min(CHUNK - within);
            chunk[within..within + len].copy_from_slice(&rest[..len]);
            rest = &rest[len..];
            at += len;
        }
        data.len() - rest.len()
    }

    /// `[rcv_nxt, end)` is now in order: swallows the islands it reaches; how far RCV.NXT moves.
    fn advance(&mut self, rcv_nxt: Seq, mut end: Seq) -> u32 {
        let mut reached = 0;
        for island in &self.islands {
            if island.start.after(end) {
                break;
            }
            end = end.max(island.end);
            reached += 1;
        }
        self.islands.drain(..reached);
        let moved = end.distance(rcv_nxt);
        self.ready += moved as usize;
        moved
    }

    fn touches_island(&self, start: Seq, end: Seq) -> bool {
        self.islands.iter().any(|island| island.start.at_or_before(end) && island.end.at_or_after(start))
    }

    /// Adds `[start, end)`, merging it with every island it touches.
    fn add_island(&mut self, start: Seq, end: Seq) {
        let first = self.islands.partition_point(|island| island.end.before(start));
        let last = first + self.islands[first..].partition_point(|island| island.start.at_or_before(end));
        let mut merged = Island { start, end, stamp: self.stamp };
        self.stamp = self.stamp.wrapping_add(1);
        for island in &self.islands[first..last] {
            merged.start = merged.start.min(island.start);
            merged.end = merged.end.max(island.end);
        }
        self.islands.splice(first..last, [merged]);
    }
}

#[cfg(test)]
mod tests {
    use super::{IoSlice, MAX_ISLANDS, Placed, Pool, RecvBuffer, Seq};
    use crate::pool::CHUNK;

    const START: Seq = Seq(u32::MAX - 5_000);

    fn pattern(from: usize, len: usize) -> Vec<u8> {
        (from..from + len).map(|i| (i * 7 + i / 251) as u8).collect()
    }

    #[test]
    fn segments_in_any_order_come_out_in_order_across_the_wrap() {
        let mut pool = Pool::new(64 * CHUNK);
        let mut buffer = RecvBuffer::default();
        let mut rcv_nxt = START;
        let (len, step) = (20_000, 1000);
        // A fixed shuffle: 13 generates all residues modulo 20.
        for i in 0..len / step {
            let from = (i * 13 % (len / step)) * step;
            match buffer.place(rcv_nxt, (START + from as u32).max(rcv_nxt), &pattern(from, step), &mut pool) {
                Placed::InOrder(moved) => rcv_nxt += moved,
                Placed::OutOfOrder => {}
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(rcv_nxt, START + len as u32);
        let mut out = vec![0; len + 1];
        assert_eq!(buffer.read(&mut out, &mut pool), len);
        assert_eq!(out[..len], pattern(0, len));
        assert_eq!(pool.used_bytes(), 0);
    }

    #[test]
    fn lent_slices_are_the_bytes_in_order_from_wherever_reading_stopped() {
        let mut pool = Pool::new(64 * CHUNK);
        let mut buffer = RecvBuffer::default();
        let data = pattern(0, 3 * CHUNK);
        assert_eq!(buffer.place(Seq(0), Seq(0), &data, &mut pool), Placed::InOrder(3 * CHUNK as u32));
        buffer.consume(100, &mut pool);
        for (room, lent) in [(8, 3 * CHUNK - 100), (2, 2 * CHUNK - 100), (0, 0)] {
            let mut slices = vec![IoSlice::new(&[]); room];
            let count = buffer.peek(&mut slices);
            let bytes: Vec<u8> = slices[..count].iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!(bytes, data[100..100 + lent]);
        }
        assert_eq!(RecvBuffer::default().peek(&mut [IoSlice::new(&[])]), 0);
    }

    #[test]
    fn sack_blocks_name_the_newest_island_first() {
        let mut pool = Pool::new(64 * CHUNK);
        let mut buffer = RecvBuffer::default();
        for from in [1000, 5000, 3000] {
            assert_eq!(buffer.place(Seq(0), Seq(from), &[0; 100], &mut pool), Placed::OutOfOrder);
        }
        assert_eq!(buffer.place(Seq(0), Seq(5050), &[0; 100], &mut pool), Placed::OutOfOrder);
        assert_eq!(buffer.place(Seq(0), Seq(5050), &[0; 100], &mut pool), Placed::Duplicate);
        let mut blocks = [(Seq(0), Seq(0)); 4];
        assert_eq!(buffer.sack_blocks(&mut blocks), 3);
        assert_eq!(blocks[..3], [(Seq(5000), Seq(5150)), (Seq(3000), Seq(3100)), (Seq(1000), Seq(1100))]);
    }

    #[test]
    fn one_byte_islands_are_bounded() {
        let mut pool = Pool::new(64 * CHUNK);
        let mut buffer = RecvBuffer::default();
        for i in 0..MAX_ISLANDS as u32 {
            assert_eq!(buffer.place(Seq(0), Seq(2 * i + 1), &[0], &mut pool), Placed::OutOfOrder);
        }
        let beyond = Seq(2 * MAX_ISLANDS as u32 + 1);
        assert_eq!(buffer.place(Seq(0), beyond, &[0], &mut pool), Placed::NoRoom);
        assert_eq!(buffer.place(Seq(0), Seq(0), &[0], &mut pool), Placed::InOrder(2));
    }

    #[test]
    fn an_empty_pool_keeps_the_part_that_fits() {
        let mut pool = Pool::new(CHUNK);
        let mut buffer = RecvBuffer::default();
        assert_eq!(buffer.place(Seq(0), Seq(0), &[1; CHUNK + 10], &mut pool), Placed::InOrder(CHUNK as u32));
        let next = Seq(CHUNK as u32);
        assert_eq!(buffer.place(next, next, &[1; 10], &mut pool), Placed::NoRoom);
        buffer.consume(CHUNK, &mut pool);
        assert_eq!(buffer.place(next, next, &[1; 10], &mut pool), Placed::InOrder(10));
    }
}
