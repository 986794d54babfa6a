//! The far end of a connection that needs no backend: it takes what the client sends and says what a built-in service
//! says to that, through the same relay as a backend would. It holds at most one answer.

use std::io::{self, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::ReadBuf;

use super::counters::{ServiceCounters, add};
use super::http::Http;
use crate::config;

/// Bytes taken before what they are answered with must be gone.
const TAKEN_AT_ONCE: usize = 16 << 10;
/// Room for an answer that a connection may keep, so that the next short one costs no allocation.
const KEPT: usize = 512;

/// One connection's far end.
pub(super) struct Responder {
    kind: Kind,
    /// What the client is to be told, and how much of it was handed out.
    answer: Vec<u8>,
    told: usize,
    /// The client has ended.
    ended: bool,
    /// Something was not taken because of the answer.
    waiting: bool,
    counters: Arc<ServiceCounters>,
}

enum Kind {
    Echo,
    Discard,
    /// In a box, so that who needs no such state has no room for it.
    Http(Box<Http>),
}

impl Responder {
    pub(super) fn new(kind: config::Responder, counters: Arc<ServiceCounters>) -> Self {
        let kind = match kind {
            config::Responder::Echo => Kind::Echo,
            config::Responder::Discard => Kind::Discard,
            config::Responder::Http => Kind::Http(Box::default()),
        };
        Self { kind, answer: Vec::new(), told: 0, ended: false, waiting: false, counters }
    }

    /// Takes what the client said; pending while it has not been told the last answer. Whoever tells it wakes its own task
    /// then, which is the one that waits here.
    pub(super) fn poll_take(&mut self, slices: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if !self.answer.is_empty() {
            self.waiting = true;
            return Poll::Pending;
        }
        let mut taken = 0;
        for slice in slices {
            let bytes = &slice[..slice.len().min(TAKEN_AT_ONCE - taken)];
            self.take(bytes);
            taken += bytes.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn take(&mut self, bytes: &[u8]) {
        match &mut self.kind {
            Kind::Echo => self.answer.extend_from_slice(bytes),
            Kind::Discard => {}
            Kind::Http(http) => {
                let before = (http.answered, http.refused);
                http.take(bytes, &mut self.answer);
                add(&self.counters.requests, http.answered - before.0);
                add(&self.counters.bad_requests, u64::from(http.refused && !before.1));
            }
        }
    }

    /// The client has ended.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// What the client is to be told; nothing at the end. No waker is kept: what there is to say changes only by what the
    /// same task hands over.
    pub(super) fn poll_tell(&mut self, cx: &Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let rest = &self.answer[self.told..];
        if rest.is_empty() {
            return if self.is_over() { Poll::Ready(Ok(())) } else { Poll::Pending };
        }
        let len = rest.len().min(buffer.remaining());
        buffer.put_slice(&rest[..len]);
        self.told += len;
        if self.told == self.answer.len() {
            self.told = 0;
            if self.answer.capacity() > KEPT {
                self.answer = Vec::new();
            }
            self.answer.clear();
            if std::mem::take(&mut self.waiting) {
                cx.waker().wake_by_ref();
            }
        }
        Poll::Ready(Ok(()))
    }

    fn is_over(&self) -> bool {
        self.ended || matches!(&self.kind, Kind::Http(http) if http.is_over())
    }
}
