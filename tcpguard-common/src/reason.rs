//! Why a TCP segment to a protected port, or an ICMP error about one of its flows, met its verdict: one table from which
//! counters, command line and documentation derive. Not where the counting happens.

/// What became of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Went on to the host's kernel.
    Passed,
    /// Answered from XDP.
    Answered,
    /// Handed to the engine.
    Redirected,
    /// Dropped.
    Dropped,
}

impl Outcome {
    /// The name that command line and metrics use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Answered => "answered",
            Self::Redirected => "redirected",
            Self::Dropped => "dropped",
        }
    }
}

/// What a segment is counted as under its service: each as exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// SYN answered with a cookie.
    CookieSent,
    /// SYN, well-formed, that was not answered.
    SynRefused,
    /// SYN handed to the engine.
    SynStateful,
    /// ACK with a valid cookie whose flow was opened.
    AckValid,
    /// ACK with an invalid cookie.
    AckInvalid,
    /// Any other segment handed to the engine.
    Redirected,
    /// Any other segment dropped.
    Dropped,
    /// Left to the host.
    Passed,
    /// Any other segment answered: with a reset.
    Reset,
}

impl Class {
    /// Counters for each service: as many as [`Reason::class`] has bits for. The first eight are one cache line.
    pub const PLACES: usize = 16;
}

macro_rules! reasons {
    ($( $(#[doc = $help:literal])+ $variant:ident = $name:literal, $outcome:ident; )+) => {
        /// Exactly one of these is counted for every TCP segment to a protected `(address, port)`, and for every ICMP error
        /// about a known flow of it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum Reason { $( $(#[doc = $help])+ $variant, )+ }

        impl Reason {
            /// Every reason, in the order of the counters.
            pub const ALL: &[Self] = &[ $( Self::$variant, )+ ];

            /// The name that counters, command line and metrics use.
            pub const fn name(self) -> &'static str {
                match self { $( Self::$variant => $name, )+ }
            }

            /// What it means, in a sentence or two.
            pub const fn help(self) -> &'static str {
                match self { $( Self::$variant => concat!($($help),+), )+ }
            }

            /// The reason with this place among [`Self::ALL`].
            #[inline(always)]
            pub const fn from_index(index: u32) -> Option<Self> {
                $( if index == Self::$variant as u32 { return Some(Self::$variant) } )+
                None
            }

            const fn declared_outcome(self) -> Outcome {
                match self { $( Self::$variant => Outcome::$outcome, )+ }
            }
        }
    };
}

reasons! {
    /// SYN answered with a SYN-ACK whose sequence number is a cookie.
    CookieSent = "cookie-sent", Answered;
    /// As cookie-sent, for a SYN that announces an MSS below the 536 (IPv6: 1220) that a cookie can express:
    /// segments may be longer than its sender asked for.
    CookieSentSmallMss = "cookie-sent-small-mss", Answered;
    /// SYN to a stateful service, handed to the engine, which remembers it and repeats its answer.
    SynStateful = "syn-stateful", Redirected;
    /// RST of an unknown flow to a stateful service, handed to the engine: it may be of a half-open connection.
    RstStateful = "rst-stateful", Redirected;
    /// ACK of an unknown flow with a valid cookie: flow remembered, handed to the engine.
    AckValid = "ack-valid", Redirected;
    /// Segment of a known flow, handed to the engine.
    FlowKnown = "flow-known", Redirected;
    /// Segment of a flow in TIME_WAIT, handed to the engine; also the ACK that opens its next incarnation, which the stack
    /// judges.
    TimeWait = "time-wait", Redirected;
    /// Segment of a known flow, or of one in TIME_WAIT, that sends more than flow-rate while the engine's receive ring is
    /// more than half full.
    FlowRate = "flow-rate", Dropped;
    /// ACK of an unknown flow whose cookie does not validate: forged, expired, or of a flow that ended.
    AckInvalid = "ack-invalid", Dropped;
    /// Valid cookie, but the TCP checksum is wrong, or the segment longer than 4096 bytes.
    AckBadChecksum = "ack-bad-checksum", Dropped;
    /// Valid cookie, but the flow map is full: answered with a reset.
    FlowMapFull = "flow-map-full", Answered;
    /// Valid cookie, but the service has as many flows as service-flows allows: answered with a reset.
    AdmissionService = "admission-service", Answered;
    /// Valid cookie, but its source has as many flows as source-flows allows: answered with a reset.
    AdmissionSourceFlows = "admission-source-flows", Answered;
    /// Valid cookie, but its source opens flows faster than source-rate allows: answered with a reset.
    AdmissionSourceRate = "admission-source-rate", Answered;
    /// Valid cookie of a flow that was refused, but the frame could not be turned into a reset.
    RefusedSilently = "refused-silently", Dropped;
    /// The source is on the deny list.
    FilterDeny = "filter-deny", Dropped;
    /// RST of an unknown flow, to a service that answers with cookies.
    NoFlowRst = "no-flow-rst", Dropped;
    /// Segment of an unknown flow with neither SYN, ACK nor RST, or a SYN-ACK nobody asked for.
    NoFlow = "no-flow", Dropped;
    /// SYN of a source prefix that has been sent all the SYN-ACKs its budget (reply-rate) allows.
    ReplyBudget = "reply-budget", Dropped;
    /// As reply-budget, for a recently verified source, whose prefix has used up the budget of such sources
    /// (verified-reply-rate) too.
    ReplyBudgetVerified = "reply-budget-verified", Dropped;
    /// SYN whose TCP checksum is wrong.
    SynBadChecksum = "syn-bad-checksum", Dropped;
    /// SYN that could not be answered: no valid cookie key (a daemon that drains its connections has none), longer than
    /// 4096 bytes, or no room in the frame.
    SynUnanswerable = "syn-unanswerable", Dropped;
    /// Frame shorter than its IP length field says; where the MTU is above 3498, also one that takes several buffers of the
    /// driver's, which no peer sends that keeps to the MSS.
    Truncated = "truncated", Dropped;
    /// IPv4 header checksum wrong in a SYN or in an ACK that would create a flow.
    IpBadChecksum = "ip-bad-checksum", Dropped;
    /// IP length field too small for the IP and TCP headers.
    BadLength = "bad-length", Dropped;
    /// TCP data offset below 5 or past the end of the segment.
    BadDataOffset = "bad-data-offset", Dropped;
    /// TCP option whose length is below 2 or runs past the header.
    BadOptions = "bad-options", Dropped;
    /// First fragment of a TCP segment: nothing legitimate fragments TCP here.
    Fragment = "fragment", Dropped;
    /// IPv6 datagram that hides its port, while some IPv6 port is guarded: a first fragment without its last header (which
    /// RFC 7112 forbids), or more than six extension headers. Whatever it carries.
    HeaderChain = "header-chain", Dropped;
    /// Flag combination that no TCP sends: none at all, SYN with FIN, or SYN with RST.
    BadFlags = "bad-flags", Dropped;
    /// Source address that cannot be: multicast, 255.255.255.255, unspecified, loopback, or the destination itself; or
    /// a group as the link-layer source. The broadcast addresses of subnets are not known.
    BadSource = "bad-source", Dropped;
    /// Destination address that no TCP connection has: multicast, broadcast, unspecified or loopback.
    BadDestination = "bad-destination", Dropped;
    /// Source or destination port 0.
    BadPort = "bad-port", Dropped;
    /// Segment, other than a SYN, to a service in dry run: nobody was sent a cookie that it could carry, and no flow was
    /// opened that it could belong to, so what would become of it is not known. Passed to the host.
    NotFollowed = "not-followed", Passed;
    /// The service is off: counted and passed to the host.
    ServiceOff = "service-off", Passed;
    /// The engine's heartbeat is stale, or its socket gone, and exit-grace still runs: dropped, so that clients
    /// retry.
    Grace = "grace", Dropped;
    /// The engine's heartbeat has been stale (daemon killed, stopped or stuck) for longer than exit-grace, and
    /// `on_daemon_exit` is `pass`: left to the host.
    ExitPass = "exit-pass", Passed;
    /// As exit-pass, but `on_daemon_exit` is `drop`.
    ExitDrop = "exit-drop", Dropped;
    /// ICMP error that a segment of a known flow was too big for its path, handed to the engine: path MTU discovery.
    IcmpTooBig = "icmp-too-big", Redirected;
    /// Another ICMP error about a known flow (destination unreachable, time exceeded, parameter problem), handed to the
    /// engine.
    IcmpError = "icmp-error", Redirected;
    /// ICMP error about a known flow of which more is said than icmp-rate allows.
    IcmpRate = "icmp-rate", Dropped;
    /// Arrived on a receive queue without an engine: it came up after the daemon, or is not among those configured.
    NoEngine = "no-engine", Dropped;
}

/// The four bits of each reason's class, a word for each bit, for the same reason as the outcomes.
const CLASSES: [u64; 4] = {
    let (mut table, mut index) = ([0; 4], 0);
    while index < Reason::ALL.len() {
        let class = Reason::ALL[index].declared_class() as u64;
        table[0] |= (class & 1) << index;
        table[1] |= (class >> 1 & 1) << index;
        table[2] |= (class >> 2 & 1) << index;
        table[3] |= (class >> 3 & 1) << index;
        index += 1;
    }
    table
};

/// Two bits for each reason, so that finding its outcome is a shift and no load from memory.
const OUTCOMES: [u64; 2] = {
    let (mut table, mut index) = ([0; 2], 0);
    while index < Reason::ALL.len() {
        table[index / 32] |= (Reason::ALL[index].declared_outcome() as u64) << (2 * (index % 32));
        index += 1;
    }
    table
};

impl Reason {
    /// What became of such a frame.
    #[inline(always)]
    pub const fn outcome(self) -> Outcome {
        let index = self as u32;
        let word = if index < 32 { OUTCOMES[0] } else { OUTCOMES[1] };
        match word >> (2 * (index % 32)) & 3 {
            0 => Outcome::Passed,
            1 => Outcome::Answered,
            2 => Outcome::Redirected,
            _ => Outcome::Dropped,
        }
    }

    const fn declared_class(self) -> Class {
        match (self, self.declared_outcome()) {
            (Self::CookieSent | Self::CookieSentSmallMss, _) => Class::CookieSent,
            (
                Self::ReplyBudget | Self::ReplyBudgetVerified | Self::SynBadChecksum | Self::SynUnanswerable,
                _,
            ) => Class::SynRefused,
            (Self::SynStateful, _) => Class::SynStateful,
            (Self::AckValid, _) => Class::AckValid,
            (Self::AckInvalid, _) => Class::AckInvalid,
            (_, Outcome::Redirected) => Class::Redirected,
            (_, Outcome::Dropped) => Class::Dropped,
            (_, Outcome::Answered) => Class::Reset,
            (_, Outcome::Passed) => Class::Passed,
        }
    }

    /// The number of its [`Class`].
    #[inline(always)]
    pub fn class(self) -> u32 {
        let index = self as u32;
        let bit = |place: usize| (CLASSES[place] >> index & 1) << place;
        (bit(0) | bit(1) | bit(2) | bit(3)) as u32
    }

    /// How many there are.
    pub const COUNT: usize = Self::ALL.len();

    /// The reason called `name`.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::Reason;

    #[test]
    fn names_are_unique_and_find_their_reason() {
        for (index, &reason) in Reason::ALL.iter().enumerate() {
            assert_eq!(Reason::from_name(reason.name()), Some(reason));
            assert_eq!(reason as usize, index);
            assert_eq!(Reason::from_index(index as u32), Some(reason));
            assert_eq!(reason.outcome(), reason.declared_outcome());
            assert_eq!(reason.class(), reason.declared_class() as u32);
            assert!(!reason.help().is_empty());
        }
        assert_eq!((Reason::from_name("no-such"), Reason::from_index(Reason::COUNT as u32)), (None, None));
    }
}
