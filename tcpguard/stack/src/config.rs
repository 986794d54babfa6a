//! What an operator can tune of the stack. Not where the values come from: the daemon validates ranges before
//! they get here, and every value applies to connections that already exist.

use core::time::Duration;

use super::congestion::CongestionControl;

/// The stack's tunables. [`super::Stack::set_config`] replaces them live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The interface's MTU in bytes, IP header included: bounds every segment we send. At least 576.
    pub mtu: u16,
    /// How long a flow stays in TIME_WAIT: 2MSL (RFC 9293 §3.4.2). Applies to entries already there.
    pub time_wait: Duration,
    /// How long FIN_WAIT_2 may last once the application is gone. A half-close the application still reads from
    /// lasts as long as it wants.
    pub fin_wait_2: Duration,
    /// Retransmission timeout before the first round-trip sample (RFC 6298 §2.1).
    pub initial_rto: Duration,
    /// How much longer than the smoothed round trip the retransmission timeout is at least.
    pub min_rto: Duration,
    /// Upper bound of the retransmission timeout, back-off included.
    pub max_rto: Duration,
    /// Retransmissions of the same data before the connection is given up (RFC 9293 §3.8.3, R2).
    pub retries: u8,
    /// The same once the application is gone: bounds FIN_WAIT_1, CLOSING and LAST_ACK without an owner. So does the time that
    /// takes, for a peer that acknowledges less than 1460 bytes meanwhile.
    pub orphan_retries: u8,
    /// Most connections at once whose application is gone, TIME_WAIT not counted. When they are more, those that have been
    /// without one for longest are reset, counted.
    pub max_orphans: u32,
    /// How long data, or a SYN, may stay without the acknowledgement that it waits for before the connection is given up
    /// (RFC 9293 §3.9.1, RFC 5482). In place of `retries` as long as the application has the connection; zero is no such
    /// limit.
    pub user_timeout: Duration,
    /// Silence after which a peer is asked whether it is still there (RFC 1122 §4.2.3.6); zero is never. To a second.
    pub keepalive_time: Duration,
    /// Time between two such questions.
    pub keepalive_interval: Duration,
    /// Questions in a row without an answer before the connection is given up.
    pub keepalive_probes: u8,
    /// How long a peer may keep its window closed to what waits for it before the connection is given up, though it answers
    /// probes. RFC 9293 §3.8.6.1 would have it wait for ever; zero is that.
    pub zero_window: Duration,
    /// The same while send memory is short, also for a peer whose window is open and which acknowledges less than a segment
    /// (1460 bytes) of what waits for it; and how long an application may read less than 16 KB of what has arrived while
    /// receive memory is. With memory to spare it may do so for as long as it wants.
    pub stall_time: Duration,
    /// Retransmissions of an active open's SYN before the attempt is given up.
    pub syn_retries: u8,
    /// How long to wait for the answer to a SYN-ACK before it is sent again; twice as long each time after that. Applies
    /// to half-open connections already there.
    pub syn_timeout: Duration,
    /// Retransmissions of a SYN-ACK before the half-open connection is forgotten.
    pub syn_ack_retries: u8,
    /// Most half-open connections at once, per address family. When the queue is full the oldest in a small sample makes
    /// room, counted.
    pub max_half_open: u32,
    /// Most connections of one service that may wait for the application to take them.
    pub accept_backlog: u32,
    /// What a full accept queue does: reset the client, or ignore its ACK, so that it, or whoever swept it up, comes again.
    pub reset_on_overflow: bool,
    /// How long an acknowledgement may wait for data or a second segment to ride with (RFC 9293 §3.8.6.3).
    pub delayed_ack: Duration,
    /// How much may be in flight.
    pub congestion_control: CongestionControl,
    /// Whether our SYNs offer ECN (RFC 3168). Adopted connections have it when their cookie carries it.
    pub ecn: bool,
    /// Whether our SYNs offer timestamps (RFC 7323 §3.2). Adopted connections have them when their cookie carries them.
    pub timestamps: bool,
    /// Nagle's algorithm (RFC 9293 §3.7.4).
    pub nagle: bool,
    /// Most bytes a connection may hold unsent or unacknowledged, if its congestion window is half as large.
    pub send_buffer: u32,
    /// Most bytes a connection may hold received and unread, out of order included, once its window has grown to that:
    /// it starts with 512 KB, and grows as long as it is what limits the peer.
    pub recv_buffer: u32,
    /// Most bytes all connections together may hold for sending.
    pub send_pool: usize,
    /// Most bytes all connections together may hold as received. The last quarter is for those that hold 64 KB at most, the
    /// last eighth for those with 16 KB, the last sixteenth for the first 4 KB of each.
    pub recv_pool: usize,
    /// Most connections at once, TIME_WAIT not counted. Fixed when the stack is created.
    pub max_connections: u32,
    /// Most TIME_WAIT entries at once, per address family. When the table is full the entry nearest its end in a small
    /// sample makes room, counted.
    pub max_time_wait: u32,
    /// Most fingerprints of closed flows, which refuse replayed cookies. When they are full, those of the oldest cookie
    /// epoch go, and its cookies are refused from then on: that costs handshakes under way while the key changes. When
    /// all are of one epoch, the cookie period is too long for the rate of connections: an adoption whose segment
    /// carries data is refused. Both are counted.
    pub max_closed_flows: u32,
    /// Our receive window shift for active opens, 0–14 (RFC 7323 §2.3). Adopted connections use their cookie's.
    pub window_scale: u8,
    /// Whether a segment with a valid cookie of a flow we do not know is adopted at once, or reported as
    /// [`super::Received::Adoptable`] so that the caller can first ask whether another engine owns the flow.
    pub adopt_at_once: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            mtu: 1500,
            time_wait: Duration::from_secs(60),
            fin_wait_2: Duration::from_secs(60),
            initial_rto: Duration::from_secs(1),
            min_rto: Duration::from_millis(200),
            max_rto: Duration::from_secs(120),
            retries: 15,
            orphan_retries: 8,
            max_orphans: 1 << 16,
            user_timeout: Duration::ZERO,
            keepalive_time: Duration::ZERO,
            keepalive_interval: Duration::from_secs(75),
            keepalive_probes: 9,
            zero_window: Duration::from_secs(3600),
            stall_time: Duration::from_secs(30),
            syn_retries: 6,
            syn_timeout: Duration::from_secs(1),
            syn_ack_retries: 5,
            max_half_open: 1 << 14,
            accept_backlog: u32::MAX,
            reset_on_overflow: false,
            delayed_ack: Duration::from_millis(40),
            congestion_control: CongestionControl::NewReno,
            ecn: false,
            timestamps: true,
            nagle: false,
            send_buffer: 4 << 20,
            recv_buffer: 4 << 20,
            send_pool: 256 << 20,
            recv_pool: 256 << 20,
            max_connections: 1 << 20,
            max_time_wait: 1 << 18,
            max_closed_flows: 1 << 23,
            window_scale: 7,
            adopt_at_once: true,
        }
    }
}
