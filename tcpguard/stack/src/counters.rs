//! What the stack counts. One table gives every counter its field, name and meaning.

macro_rules! counters {
    ($( $(#[doc = $help:literal])+ $field:ident = $name:literal; )+) => {
        /// Running totals since the stack was created.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct StackCounters { $( $(#[doc = $help])+ pub $field: u64, )+ }

        impl StackCounters {
            /// Every counter with its name and meaning.
            pub fn rows(&self) -> impl Iterator<Item = (&'static str, u64, &'static str)> {
                [ $( ($name, self.$field, concat!($($help),+)), )+ ].into_iter()
            }
        }
    };
}

counters! {
    /// TCP segments that came in well-formed and with a good checksum.
    segments_in = "segments-in";
    /// Frames sent.
    segments_out = "segments-out";
    /// Frames dropped because they are not TCP or malformed.
    malformed = "malformed";
    /// Frames dropped for a wrong TCP checksum.
    bad_checksum = "bad-checksum";
    /// ICMP errors about segments in flight.
    icmp_heard = "icmp-heard";
    /// ICMP errors about a connection of ours and nothing that it has in flight: old ones, or forged.
    icmp_ignored = "icmp-ignored";
    /// Connections whose segments became smaller because the path's MTU is (RFC 1191, RFC 8201).
    mtu_lowered = "mtu-lowered";
    /// Segments of no flow of ours without a valid cookie.
    unknown = "unknown";
    /// Connections created from a valid cookie.
    adopted = "adopted";
    /// Of the adopted, connections from a flow entry whose frame was lost before it reached us.
    adopted_swept = "adopted-swept";
    /// Of the adopted, connections in place of an earlier incarnation of the same flow.
    reincarnated = "reincarnated";
    /// Valid cookies refused because their flow was here and has closed.
    replays_refused = "replays-refused";
    /// Valid cookies refused because a newer or as new incarnation is alive.
    incarnations_refused = "incarnations-refused";
    /// Valid cookies refused because the connection table is full.
    table_full = "table-full";
    /// Valid cookies refused because closed flows of their epoch had to be forgotten, or can no longer be remembered and
    /// the segment carried data.
    replay_table_full = "replay-table-full";
    /// Cookie epochs whose closed flows were forgotten early to make room; their cookies are refused.
    replay_epochs_forgotten = "replay-epochs-forgotten";
    /// Closed flows that could not be remembered.
    replay_not_remembered = "replay-not-remembered";
    /// Valid cookies for a port without a listener.
    no_listener = "no-listener";
    /// Active opens started.
    active_opens = "active-opens";
    /// SYNs of passive opens that got a place in the half-open queue.
    half_open_entered = "half-open-entered";
    /// Half-open connections whose handshake was completed.
    half_open_completed = "half-open-completed";
    /// Half-open connections reset by the peer.
    half_open_reset = "half-open-reset";
    /// Half-open connections forgotten after the last retransmission.
    half_open_timed_out = "half-open-timed-out";
    /// Half-open connections forgotten to make room; their handshake can still be completed.
    half_open_evicted = "half-open-evicted";
    /// SYNs answered without a place in the half-open queue: from more than 65536 link addresses at once.
    half_open_unkept = "half-open-unkept";
    /// SYNs of half-open connections that came again, and were answered again.
    syns_repeated = "syns-repeated";
    /// SYN-ACKs sent again because nothing came.
    syn_acks_retransmitted = "syn-acks-retransmitted";
    /// Answers that belong to no connection dropped because 1024 were waiting to be sent.
    replies_dropped = "replies-dropped";
    /// SYNs that could not be answered: no cookie key.
    syns_unanswerable = "syns-unanswerable";
    /// Connections refused, or left for later, because too many of their service wait to be accepted.
    backlog_full = "backlog-full";
    /// Connections reset by the peer.
    resets_in = "resets-in";
    /// Resets sent.
    resets_out = "resets-out";
    /// Resets sent again, because the peer went on after the first.
    resets_repeated = "resets-repeated";
    /// Connections that retransmitted the same data three times (RFC 9293 §3.8.3, R1): a path in trouble.
    retries_r1 = "retries-r1";
    /// Connections given up after the last retransmission, or when the user timeout was over.
    timed_out = "timed-out";
    /// Keepalive probes sent.
    keepalive_probes = "keepalive-probes";
    /// Connections given up because their peers did not answer keepalive probes.
    keepalive_expired = "keepalive-expired";
    /// Orphans whose FIN_WAIT_2 ended by timeout.
    fin_wait_2_expired = "fin-wait-2-expired";
    /// Orphans reset because there were too many, those longest without an application first.
    orphans_reset = "orphans-reset";
    /// Segments outside the receive window.
    out_of_window = "out-of-window";
    /// Segments dropped for an old timestamp, or for a missing one (RFC 7323).
    paws_dropped = "paws-dropped";
    /// Challenge acknowledgements owed to suspicious segments (RFC 5961).
    challenge_acks = "challenge-acks";
    /// Suspicious segments neither answered nor tried as a new incarnation's, by the per-connection throttle.
    challenge_acks_throttled = "challenge-acks-throttled";
    /// Segments with data that arrived out of order and were kept.
    out_of_order = "out-of-order";
    /// In-window segments dropped for want of a buffer, because their connection held its share of what was left of them, or
    /// for want of room for one more hole.
    no_buffer = "no-buffer";
    /// Connections that gave up data behind a hole because receive memory was short.
    reclaimed = "reclaimed";
    /// Data segments retransmitted.
    retransmitted = "retransmitted";
    /// Retransmission timeouts.
    timeouts = "timeouts";
    /// Loss recoveries entered without a timeout.
    fast_recoveries = "fast-recoveries";
    /// Reductions of the congestion window taken back, because nothing had been lost (RFC 3522, RFC 3708).
    reductions_undone = "reductions-undone";
    /// Segments with data that the network had marked with congestion (RFC 3168).
    congestion_marks = "congestion-marks";
    /// Congestion windows reduced because the peer echoed such a mark.
    ecn_reductions = "ecn-reductions";
    /// Tail loss probes sent (RFC 8985).
    tail_loss_probes = "tail-loss-probes";
    /// Zero-window probes sent.
    window_probes = "window-probes";
    /// Connections given up because their peer kept its window closed for too long.
    zero_window_expired = "zero-window-expired";
    /// Connections reset because their peer took next to nothing of what waited for it while send memory was short.
    stalls_reset = "stalls-reset";
    /// Connections reset because nobody read what they had received while receive memory was short.
    unread_reset = "unread-reset";
    /// Connections closed here first: from ESTABLISHED to FIN_WAIT_1.
    fin_wait_1_entered = "fin-wait-1-entered";
    /// Connections closed here first whose peer acknowledged that before it closed: from FIN_WAIT_1 to FIN_WAIT_2.
    fin_wait_2_entered = "fin-wait-2-entered";
    /// Connections closed here whose peer's FIN came before it acknowledged ours: from FIN_WAIT_1 to CLOSING.
    closing_entered = "closing-entered";
    /// Connections that the peer closed first: from ESTABLISHED to CLOSE_WAIT.
    close_wait_entered = "close-wait-entered";
    /// Connections that the peer closed first and then were closed here: from CLOSE_WAIT to LAST_ACK.
    last_ack_entered = "last-ack-entered";
    /// Connections whose last FIN was acknowledged: from LAST_ACK to CLOSED.
    last_ack_left = "last-ack-left";
    /// Flows that entered TIME_WAIT.
    time_wait_entered = "time-wait-entered";
    /// TIME_WAIT entries whose time was over: from TIME_WAIT to CLOSED.
    time_wait_expired = "time-wait-expired";
    /// TIME_WAIT entries restarted by a retransmitted FIN.
    time_wait_restarted = "time-wait-restarted";
    /// Acknowledgements from TIME_WAIT withheld by the throttle of each entry.
    time_wait_throttled = "time-wait-throttled";
    /// TIME_WAIT entries ended early to make room.
    time_wait_evicted = "time-wait-evicted";
}
