//! What a service counts. One table gives every counter its field, name and meaning.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::stack::{BUCKETS, Durations};

macro_rules! counters {
    ($( $(#[doc = $help:literal])+ $field:ident = $name:literal; )+) => {
        /// Running totals of one service on one engine, which writes them; any thread may read.
        #[derive(Debug, Default)]
        pub struct ServiceCounters {
            $( $(#[doc = $help])+ pub $field: AtomicU64, )+
            /// From what a client said to the first of the answer.
            pub answers: Latency,
        }

        /// [`ServiceCounters`] at one moment.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct ServiceStats { $( $(#[doc = $help])+ pub $field: u64, )+ }

        impl ServiceCounters {
            /// The totals now.
            pub fn read(&self) -> ServiceStats {
                ServiceStats { $( $field: self.$field.load(Ordering::Relaxed), )+ }
            }
        }

        impl ServiceStats {
            /// Every counter with its name and meaning.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> + use<> {
                [ $( ($name, self.$field, concat!($($help),+)), )+ ].into_iter()
            }
        }
    };
}

counters! {
    /// Connections taken from the stack.
    accepted = "accepted";
    /// Connections whose backend accepted, or that a responder has.
    connected = "connected";
    /// Connections that both sides closed in order.
    finished = "finished";
    /// Connections that the client reset or left unanswered, or whose window it kept closed for stall-time while memory was
    /// short.
    client_failed = "client-failed";
    /// Clients reset to free memory because what they had sent was not read for stall-time.
    unread_reset = "unread-reset";
    /// Connections that the backend reset, or stopped reading from.
    backend_failed = "backend-failed";
    /// Clients reset because they neither sent nor closed for fin-wait-2 after the backend's, or the responder's, end.
    client_silent = "client-silent";
    /// Clients reset because the backend neither took nor sent anything, nor closed, for close-wait after their end; or because
    /// it took nothing of what they sent for zero-window.
    backend_silent = "backend-silent";
    /// Connections tried at another backend after one had failed.
    retried = "retried";
    /// Clients reset because their service had all the connections it may have.
    over_limit = "over-limit";
    /// Connections reset because nothing moved for the service's idle_time.
    idle = "idle";
    /// Connections reset because they lasted longer than the service's total_time.
    overtime = "overtime";
    /// Clients reset because the backend refused the connection.
    backend_refused = "backend-refused";
    /// Clients reset because the backend could not be reached, or its Unix socket is not there.
    backend_unreachable = "backend-unreachable";
    /// Clients reset because the backend did not answer in time.
    backend_timeout = "backend-timeout";
    /// Clients reset because descriptors or memory for the backend's connection ran out, or because there is no address or port
    /// to connect to any backend from.
    exhausted = "exhausted";
    /// Clients reset because connecting to the backend failed for another reason.
    backend_error = "backend-error";
    /// Payload bytes relayed to the backend, or taken by a responder.
    bytes_to_backend = "bytes-to-backend";
    /// Payload bytes sent to clients.
    bytes_to_client = "bytes-to-client";
    /// HTTP requests answered by a responder.
    requests = "requests";
    /// What was no HTTP request, and was refused by a responder.
    bad_requests = "bad-requests";
}

/// A histogram that one thread writes; any thread may read.
#[derive(Debug, Default)]
pub struct Latency {
    buckets: [AtomicU64; BUCKETS],
    sum: AtomicU64,
}

impl Latency {
    /// Counts one.
    pub(super) fn record(&self, duration: Duration) {
        add(&self.buckets[Durations::bucket(duration)], 1);
        add(&self.sum, u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }

    /// What was counted so far.
    pub fn read(&self) -> Durations {
        let buckets = self.buckets.each_ref().map(|bucket| bucket.load(Ordering::Relaxed));
        Durations { buckets, sum: self.sum.load(Ordering::Relaxed) }
    }
}

/// Adds to a counter that only this thread writes.
pub(super) fn add(counter: &AtomicU64, amount: u64) {
    counter.store(counter.load(Ordering::Relaxed).saturating_add(amount), Ordering::Relaxed);
}
