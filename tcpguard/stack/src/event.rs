//! What the stack tells its caller: outcomes of frames, events, errors, the view of a flow. Plain data, no logic.

use core::fmt;
use core::time::Duration;

use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::build::Link;
use tcpguard_common::reason::Reason;
use tcpguard_common::seq::Seq;

/// A connection: an index into the arena and the generation that tells its uses apart. Valid from
/// [`Event::Incoming`] or [`super::Stack::connect`] until [`super::Stack::close`] or [`super::Stack::abort`],
/// whatever happens to the flow meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnId {
    /// Its place in the arena: below the number of connections there ever were at once, so that it may index an array.
    pub index: u32,
    /// How often that place was taken before.
    pub generation: u32,
}

/// The states of RFC 9293 §3.3.2. LISTEN is not a connection's: it is the cookie's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Active open: our SYN is out.
    SynSent,
    /// Both SYNs are out, ours is not acknowledged yet: a half-open connection, or a simultaneous open.
    SynReceived,
    /// Data flows both ways.
    Established,
    /// We closed first; our FIN is queued or unacknowledged.
    FinWait1,
    /// Our FIN is acknowledged, the peer still sends.
    FinWait2,
    /// The peer closed, we still send.
    CloseWait,
    /// Both closed at once; our FIN is not acknowledged yet.
    Closing,
    /// The peer closed first, then we; our FIN is not acknowledged yet.
    LastAck,
    /// Both sides closed, we first: waits until no old duplicate can be left in the network.
    TimeWait,
    /// Nothing of the flow is left but what the application has not read yet.
    Closed,
}

impl State {
    /// Every state, in the order of the enum.
    pub const ALL: [Self; 10] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinWait1,
        Self::FinWait2,
        Self::CloseWait,
        Self::Closing,
        Self::LastAck,
        Self::TimeWait,
        Self::Closed,
    ];

    /// As RFC 9293 and `ss` write it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "SYN_SENT",
            Self::SynReceived => "SYN_RCVD",
            Self::Established => "ESTABLISHED",
            Self::FinWait1 => "FIN_WAIT_1",
            Self::FinWait2 => "FIN_WAIT_2",
            Self::CloseWait => "CLOSE_WAIT",
            Self::Closing => "CLOSING",
            Self::LastAck => "LAST_ACK",
            Self::TimeWait => "TIME_WAIT",
            Self::Closed => "CLOSED",
        }
    }

    /// Whether the peer's FIN has arrived.
    pub(crate) const fn peer_closed(self) -> bool {
        matches!(self, Self::CloseWait | Self::Closing | Self::LastAck | Self::TimeWait | Self::Closed)
    }

    /// Whether both SYNs are acknowledged and the flow still exists.
    pub(crate) const fn synchronized(self) -> bool {
        !matches!(self, Self::SynSent | Self::SynReceived | Self::Closed)
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It belonged to a connection or a TIME_WAIT entry, or created a connection.
    Consumed,
    /// It carries a valid cookie of a flow we do not have, or have in TIME_WAIT; only without
    /// [`super::Config::adopt_at_once`]. Ask who owns the flow and, if it is us, call [`super::Stack::adopt`].
    Adoptable(AnyFlowKey),
    /// It carries the cookie of a flow that has closed; only without [`super::Config::adopt_at_once`]. If another
    /// engine owns the flow, it may have reset it a moment ago and may want to do so again.
    Replayed(AnyFlowKey),
    /// No such flow here, and no valid cookie. Without [`super::Config::adopt_at_once`] also a segment that cannot be
    /// of the flow that is in TIME_WAIT here: another engine may have its successor.
    Unknown(AnyFlowKey),
    /// Dropped, and counted.
    Dropped(StackDrop),
}

/// Why the stack dropped a frame whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StackDrop {
    /// Not TCP at all.
    NotTcp,
    /// Malformed; the parser's reason.
    Malformed(Reason),
    /// The TCP checksum is wrong.
    Checksum,
    /// The cookie of a flow that was here and has closed: adopting it would repeat what it asked for.
    Replay,
    /// No room for one more connection.
    TableFull,
    /// No room to remember closed flows, and the segment carries data.
    ReplayTableFull,
    /// The port is nobody's.
    NoListener,
    /// A SYN that no cookie key is there to answer.
    NoKey,
    /// Too many connections of the service wait to be accepted.
    BacklogFull,
}

/// What happened. Drain with [`super::Stack::poll_event`] after every batch of `handle_*` calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A new connection for `service`. The caller owns it and must close or abort it in the end.
    Incoming {
        /// The connection.
        conn: ConnId,
        /// Its addresses.
        key: AnyFlowKey,
        /// The service, as given to [`super::Stack::listen`].
        service: u32,
    },
    /// An active open succeeded.
    Connected(ConnId),
    /// There is something to read: data, the end, or an error.
    Readable(ConnId),
    /// There is room to send again after [`Error::WouldBlock`] or a short send.
    Writable(ConnId),
    /// Everything sent, FIN included, is acknowledged.
    FinAcked(ConnId),
    /// The flow is over; what was received can still be read. The caller still owns the [`ConnId`].
    Closed {
        /// The connection.
        conn: ConnId,
        /// Why, unless both sides closed in order.
        error: Option<Error>,
    },
    /// This stack now owns the flow: it must reach us from XDP.
    FlowAdopted {
        /// The flow.
        key: AnyFlowKey,
    },
    /// The flow is gone (or was refused): XDP need not know it any more. After a reset of ours this comes some seconds
    /// later, so that the peer's next segments still reach us and meet another one.
    FlowReleased {
        /// The flow.
        key: AnyFlowKey,
    },
    /// The flow is in TIME_WAIT: its segments must reach us until [`Event::TimeWaitExpired`].
    TimeWaitEntered {
        /// The flow.
        key: AnyFlowKey,
    },
    /// The flow left TIME_WAIT: by time, or because a new incarnation took its place.
    TimeWaitExpired {
        /// The flow.
        key: AnyFlowKey,
    },
}

/// Why a call or a connection failed; what a kernel socket would say in its place stands in brackets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Nothing to read, or no room to send: an event will tell (EAGAIN).
    #[error("the operation would block")]
    WouldBlock,
    /// The peer reset the connection (ECONNRESET).
    #[error("connection reset by peer")]
    Reset,
    /// The peer answered our SYN with a reset (ECONNREFUSED).
    #[error("connection refused")]
    Refused,
    /// Nothing came back for the configured number of retransmissions (ETIMEDOUT).
    #[error("connection timed out")]
    TimedOut,
    /// We reset it for memory: what the peer had sent was not read for too long (ETIMEDOUT).
    #[error("reset to free memory: what the peer had sent was not read")]
    Unread,
    /// The network said that the peer cannot be reached, and it did not answer (EHOSTUNREACH).
    #[error("host unreachable")]
    Unreachable,
    /// Sending after our own FIN, or on a connection that is over (EPIPE).
    #[error("the sending side is closed")]
    NotWritable,
    /// We aborted it, or data arrived for an application that is gone (ECONNABORTED).
    #[error("connection aborted")]
    Aborted,
    /// The [`ConnId`] is not (or no longer) valid (ENOTCONN).
    #[error("no such connection")]
    NoSuchConnection,
    /// The addresses are in use, or of different families (EADDRINUSE).
    #[error("address in use or families differ")]
    AddressInUse,
    /// No room for one more connection (ENOBUFS).
    #[error("connection table full")]
    TableFull,
}

/// How a connection began, as XDP's entry of its flow tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The link header of our segments: the peer is its destination.
    pub link: Link,
    /// The peer's first sequence number after its SYN.
    pub seq: Seq,
    /// Ours: of an adopted connection, the cookie plus one.
    pub ack: Seq,
}

/// A connection's variables under the names of RFC 9293 §3.3.1, RFC 5681 and RFC 6298, for developers and tools. Sizes in
/// bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcbView {
    /// The state.
    pub state: State,
    /// Our initial sequence number.
    pub iss: Seq,
    /// The peer's initial sequence number; meaningless in SYN_SENT.
    pub irs: Seq,
    /// The oldest sequence number of ours that is not acknowledged.
    pub snd_una: Seq,
    /// The next one we use.
    pub snd_nxt: Seq,
    /// The peer's window, scaled.
    pub snd_wnd: u32,
    /// The next sequence number expected.
    pub rcv_nxt: Seq,
    /// What is left of the window we advertised.
    pub rcv_wnd: u32,
    /// The peer's window shift.
    pub snd_shift: u8,
    /// Ours.
    pub rcv_shift: u8,
    /// The largest segment the peer and our MTU take, options not deducted.
    pub mss: u16,
    /// Whether segments carry timestamps.
    pub timestamps: bool,
    /// Whether the peer takes selective acknowledgements.
    pub sack_permitted: bool,
    /// Bytes queued and never sent.
    pub unsent: u32,
    /// The congestion window.
    pub cwnd: u32,
    /// Where slow start ends, once known.
    pub ssthresh: Option<u32>,
    /// The smoothed round-trip time, once measured.
    pub srtt: Option<Duration>,
    /// The retransmission timeout, back-off included.
    pub rto: Duration,
    /// Retransmissions or probes since the peer last made progress.
    pub retries: u8,
}

/// One line of `tcpguard flows`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInfo {
    /// The addresses.
    pub key: AnyFlowKey,
    /// The state.
    pub state: State,
    /// The service it belongs to; `None` for our own active opens and where the port has no listener any more.
    pub service: Option<u32>,
    /// Since adoption, or since the (last) entry into TIME_WAIT or into the half-open queue.
    pub age: Duration,
    /// Payload bytes received in order. 0 in TIME_WAIT.
    pub bytes_in: u64,
    /// Payload bytes the peer has acknowledged. 0 in TIME_WAIT.
    pub bytes_out: u64,
    /// Bytes received that the application has not read.
    pub recv_queued: u32,
    /// Bytes the peer has not acknowledged.
    pub send_queued: u32,
    /// Smoothed round-trip time, once measured.
    pub rtt: Option<Duration>,
    /// Until the next timer of the flow fires.
    pub timer: Option<Duration>,
    /// How often the SYN-ACK of a half-open connection was sent again. `None` otherwise.
    pub syn_ack_retransmits: Option<u8>,
}

impl FlowInfo {
    /// A flow that no data is known of.
    pub fn without_data(key: AnyFlowKey, state: State, service: Option<u32>, age: Duration) -> Self {
        Self {
            key,
            state,
            service,
            age,
            bytes_in: 0,
            bytes_out: 0,
            recv_queued: 0,
            send_queued: 0,
            rtt: None,
            timer: None,
            syn_ack_retransmits: None,
        }
    }
}
