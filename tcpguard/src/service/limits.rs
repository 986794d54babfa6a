//! What the connections of one service may take: how many at once, how long without a byte, how long in all. It tells
//! when a limit is reached; the proxy draws the consequence.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

use super::quota::{Quota, Share};
use super::relay::End;
use crate::config;

/// The limits of one service, which all engines share.
#[derive(Clone, Debug, Default)]
pub(super) struct Limits {
    connections: Quota,
    idle: Option<Duration>,
    total: Option<Duration>,
}

impl Limits {
    pub(super) fn new(config: config::Limits) -> Self {
        let config::Limits { connections, idle_time: idle, total_time: total } = config;
        let connections = connections.map_or_else(Quota::default, |most| Quota::new(most as usize));
        Self { connections, idle, total }
    }

    /// These limits, from now on, for a service that has had `before`: its connections go on counting.
    pub(super) fn following(self, before: &Self) -> Self {
        Self { connections: self.connections.following(&before.connections), ..self }
    }

    /// How many connections there are, and how many there may be; `None` if there is no limit.
    pub(super) fn connections(&self) -> Option<(usize, usize)> {
        self.connections.usage()
    }

    /// One more connection; `None` when there are enough.
    pub(super) fn admit(&self) -> Option<Share> {
        self.connections.take()
    }

    /// Watches over one connection from now on, if there is anything to watch.
    pub(super) fn watch(&self) -> Option<Box<Watch>> {
        if self.idle.is_none() && self.total.is_none() {
            return None;
        }
        let now = Instant::now();
        let over = self.total.map(|total| now + total);
        let timer = Box::pin(sleep_until(now));
        Some(Box::new(Watch { idle: self.idle, over, seen: u64::MAX, quiet_since: now, timer }))
    }
}

/// Looks now and then whether a connection still moves anything: no timer is touched for each byte. So a connection
/// may be idle for up to a quarter longer than its limit.
pub(super) struct Watch {
    idle: Option<Duration>,
    over: Option<Instant>,
    /// Bytes moved at the last look.
    seen: u64,
    quiet_since: Instant,
    timer: Pin<Box<Sleep>>,
}

impl Watch {
    /// Ready once a limit is reached by a connection that has moved `moved` bytes.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<End> {
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            if self.over.is_some_and(|over| now >= over) {
                return Poll::Ready(End::Overtime);
            }
            if moved != self.seen {
                (self.seen, self.quiet_since) = (moved, now);
            }
            if self.idle.is_some_and(|idle| now - self.quiet_since >= idle) {
                return Poll::Ready(End::Idle);
            }
            let look = self.idle.map(|idle| now + idle / 4);
            let next = [look, self.over].into_iter().flatten().min().unwrap_or(now);
            self.timer.as_mut().reset(next);
        }
    }
}
