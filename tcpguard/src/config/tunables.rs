//! The one table of tunables: name, unit, range, default, help, what it costs. Command line, configuration file and validation
//! derive from it. It does not apply a value: `control` hands the whole set to whoever uses it.

use std::fmt;
use std::time::Duration;

use super::{duration, near};

/// What a tunable's number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A span of time; as a bare number, milliseconds.
    Duration,
    /// A count.
    Count,
    /// Nothing: which of these names it is.
    Choice(&'static [&'static str]),
}

/// A value with its unit: milliseconds, a count, or the place of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// What `number` counts.
    pub unit: Unit,
    /// Milliseconds, a count, or the place of a name.
    pub number: u64,
}

/// How a sender's congestion window grows and shrinks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// RFC 5681 and RFC 6582.
    NewReno,
    /// RFC 9438.
    Cubic,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Tunable {
    /// The name users type.
    pub name: &'static str,
    /// What it does, in a sentence or two.
    pub help: &'static str,
    /// What more of it costs, or less.
    pub cost: &'static str,
    /// What its number counts.
    pub unit: Unit,
    /// Value unless configured.
    pub default: u64,
    /// Least value allowed.
    pub min: u64,
    /// Greatest value allowed.
    pub max: u64,
    /// Whether a service may have a value of its own.
    pub per_service: bool,
    get: fn(&Tunables) -> u64,
    set: fn(&mut Tunables, u64),
}

/// Why a tunable was not set. Displays as one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TunableError {
    /// No such name.
    #[error("unknown tunable `{0}` (`tcpguard tune` lists them){near}", near = hint(.0))]
    Unknown(String),
    /// The text is not a value of the tunable's unit.
    #[error("{0}: {1}")]
    Malformed(&'static str, String),
    /// The value is outside the tunable's range.
    #[error("{name}: {value} is out of range, {min} to {max}")]
    OutOfRange {
        /// Which tunable.
        name: &'static str,
        /// What was asked for.
        value: Value,
        /// Least value allowed.
        min: Value,
        /// Greatest value allowed.
        max: Value,
    },
    /// A service cannot have it for itself.
    #[error("{0} is the same for all services; of its own a service can have {own}", own = of_services())]
    NotPerService(&'static str),
    /// Each value is in range, but not together.
    #[error("{0}")]
    Contradiction(String),
}

trait Number {
    const UNIT: Unit;
    fn number(self) -> u64;
    fn from_number(number: u64) -> Self;
}

impl Number for Duration {
    const UNIT: Unit = Unit::Duration;

    fn number(self) -> u64 {
        u64::try_from(self.as_millis()).unwrap_or(u64::MAX)
    }

    fn from_number(number: u64) -> Self {
        Self::from_millis(number)
    }
}

impl Number for u32 {
    const UNIT: Unit = Unit::Count;

    fn number(self) -> u64 {
        self.into()
    }

    fn from_number(number: u64) -> Self {
        Self::try_from(number).unwrap_or(Self::MAX)
    }
}

impl Number for bool {
    const UNIT: Unit = Unit::Choice(&["off", "on"]);

    fn number(self) -> u64 {
        self.into()
    }

    fn from_number(number: u64) -> Self {
        number != 0
    }
}

/// What a full accept queue does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptOverflow {
    /// Ignores the client's ACK.
    Ignore,
    /// Resets the client.
    Reset,
}

impl Number for AcceptOverflow {
    const UNIT: Unit = Unit::Choice(&["ignore", "reset"]);

    fn number(self) -> u64 {
        match self {
            Self::Ignore => 0,
            Self::Reset => 1,
        }
    }

    fn from_number(number: u64) -> Self {
        if number == 0 { Self::Ignore } else { Self::Reset }
    }
}

impl Number for CongestionControl {
    const UNIT: Unit = Unit::Choice(&["newreno", "cubic"]);

    fn number(self) -> u64 {
        match self {
            Self::NewReno => 0,
            Self::Cubic => 1,
        }
    }

    fn from_number(number: u64) -> Self {
        if number == 0 { Self::NewReno } else { Self::Cubic }
    }
}

/// Whether cookies without timestamps are strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StrictPolicy {
    /// Those of services that somebody sends forged ACKs to.
    Auto,
    /// All are.
    Always,
    /// None is.
    Never,
}

impl Number for StrictPolicy {
    const UNIT: Unit = Unit::Choice(&["auto", "always", "never"]);

    fn number(self) -> u64 {
        match self {
            Self::Auto => 0,
            Self::Always => 1,
            Self::Never => 2,
        }
    }

    fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Auto,
            1 => Self::Always,
            _ => Self::Never,
        }
    }
}

const MS: u64 = 1;
const S: u64 = 1000 * MS;
const MIN: u64 = 60 * S;
const H: u64 = 60 * MIN;

macro_rules! tunables {
    ($( $(#[doc = $help:literal])+ $(#[cost = $cost:literal])+ $field:ident: $type:ty = $name:literal, $default:expr, $min:expr => $max:expr $(, per $service:ident)?; )+) => {
        /// Every tunable's value. Plain data: whoever holds a copy sees one consistent set.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Tunables { $( $(#[doc = $help])+ pub $field: $type, )+ }

        /// The table, in the order in which it is listed.
        pub const TUNABLES: &[Tunable] = &[ $( Tunable {
            name: $name,
            help: concat!($($help),+),
            cost: concat!($($cost),+),
            unit: <$type as Number>::UNIT,
            default: $default,
            min: $min,
            max: $max,
            per_service: !stringify!($($service)?).is_empty(),
            get: |tunables| tunables.$field.number(),
            set: |tunables, number| tunables.$field = <$type as Number>::from_number(number),
        }, )+ ];

        impl Default for Tunables {
            fn default() -> Self {
                Self { $( $field: <$type as Number>::from_number($default), )+ }
            }
        }
    };
}

tunables! {
    /// How long a closed connection stays in TIME_WAIT, 2MSL (RFC 9293 §3.4.1). Shorter frees memory sooner; too
    /// short lets old duplicates of it live longer than its memory.
    #[cost = "An entry for each connection that was closed here first within this time (see time-wait-limit)."]
    time_wait: Duration = "time-wait", 60 * S, 100 * MS => 10 * MIN;
    /// Connections in TIME_WAIT that each receive queue has room for, per address family. When they are more, the oldest of a
    /// few makes room: old duplicates of it are dropped from then on, as those of any unknown connection. XDP knows
    /// them from a table that a clean start makes, of 4 bytes for each of twice as many, 4 MB to 128 MB: a limit that is raised
    /// later takes effect there with the next clean start.
    #[cost = "36 bytes of room for each entry over IPv4 and 63 over IPv6, on each queue."]
    time_wait_limit: u32 = "time-wait-limit", 262_144, 8 => 4_194_304;
    /// How long a connection that was closed here waits for the peer's FIN before it is dropped.
    #[cost = "Longer keeps 255 bytes for each connection whose client never closes, for so much longer; shorter resets "]
    #[cost = "clients that are slow to close."]
    fin_wait_2: Duration = "fin-wait-2", 60 * S, 100 * MS => H, per service;
    /// Connections that each receive queue may have whose service is done with them and whose clients have not closed or not
    /// acknowledged everything yet. When they are more, those left for longest are reset.
    #[cost = "255 bytes for each, and what it still has to say; a lower limit resets clients that would have taken the "]
    #[cost = "rest."]
    orphan_limit: u32 = "orphan-limit", 65_536, 16 => 1_048_576;
    /// How often what such a connection still has to say, its FIN at last, is sent again before it is given up: how long
    /// FIN_WAIT_1, CLOSING and LAST_ACK may last. In the time that takes a client must acknowledge 1460 bytes, or all.
    #[cost = "Each more about doubles how long a client that is gone keeps its connection's memory; fewer lose the end of "]
    #[cost = "an answer on a bad path."]
    orphan_retries: u32 = "orphan-retries", 8, 1 => 50;
    /// How long a backend may neither take nor say anything, not even goodbye, after its client has closed: both are reset then.
    /// 0 lets it for ever, as TCP does. `tcpguard status` shows how many connections each backend holds up.
    #[cost = "Longer keeps a connection, a descriptor and the backend's for each client whose backend never closes."]
    close_wait: Duration = "close-wait", H, 0 => 24 * H, per service;
    /// Retransmission timeout before the first round-trip measurement (RFC 6298 §2.1).
    #[cost = "Shorter sends again what was not lost to clients farther away than that; longer lets a client wait for it "]
    #[cost = "after a loss."]
    initial_rto: Duration = "initial-rto", S, 10 * MS => MIN, per service;
    /// Least retransmission timeout (RFC 6298 §2.4 says 1s, kernels use 200ms).
    #[cost = "Lower repairs losses sooner, and sends again what was only late where acknowledgments are delayed; higher "]
    #[cost = "lets clients wait."]
    min_rto: Duration = "min-rto", 200 * MS, 10 * MS => MIN, per service;
    /// Greatest retransmission timeout, also between zero-window probes (RFC 6298 §2.5).
    #[cost = "Longer has a client that is back wait so long; shorter sends more probes to those that are gone."]
    max_rto: Duration = "max-rto", MIN, S => 10 * MIN, per service;
    /// Retransmissions of the same data, or unanswered zero-window probes, before a connection is given up
    /// (RFC 9293 §3.8.3, R2).
    #[cost = "Each more keeps a connection to a client that is gone, with what waits for it, up to max-rto longer; fewer "]
    #[cost = "give up on bad paths."]
    retries: u32 = "retries", 15, 1 => 50, per service;
    /// How long data may go unacknowledged before the connection is given up and reset (RFC 5482), instead of after a number of
    /// retries. 0s is no such limit.
    #[cost = "Nothing but clients: one whose path fails for longer than this loses its connection."]
    user_timeout: Duration = "user-timeout", 0, 0 => 24 * H, per service;
    /// How long a client may be silent before it is asked whether it is still there (RFC 1122 §4.2.3.6), to a second. Only
    /// connections with nothing on its way to the client are concerned. 0s is never.
    #[cost = "One small segment for each idle connection in so much time, and timers for all of them; a client asleep is "]
    #[cost = "lost."]
    keepalive_time: Duration = "keepalive-time", 0, 0 => 12 * H, per service;
    /// Time between two keepalive probes that are not answered.
    #[cost = "Shorter sends more probes to those that do not answer, and gives up sooner on those whose path has failed "]
    #[cost = "for a while."]
    keepalive_interval: Duration = "keepalive-interval", 75 * S, S => H, per service;
    /// Keepalive probes without an answer before a connection is given up and reset.
    #[cost = "A segment each, and so many intervals in which a client that is gone keeps its connection."]
    keepalive_probes: u32 = "keepalive-probes", 9, 1 => 100, per service;
    /// How long an acknowledgment may wait for data or a second segment to ride with (RFC 9293 §3.8.6.3). Longer saves
    /// segments, and lets senders wait.
    #[cost = "Shorter sends up to twice as many acknowledgments; longer slows down clients that wait for one."]
    delayed_ack: Duration = "delayed-ack", 40 * MS, 0 => 500 * MS;
    /// How fast connections send: newreno (RFC 5681, RFC 6582) or cubic (RFC 9438), which is as fast on short paths and
    /// recovers sooner on long ones.
    #[cost = "cubic takes some more arithmetic for each acknowledgment, which does not show; newreno is slower on long, "]
    #[cost = "fast paths."]
    congestion_control: CongestionControl = "congestion-control", 1, 0 => 1, per service;
    /// How long a client may keep its receive window closed to what waits for it, though it answers probes, before it is reset:
    /// a download that is paused, or an attacker who lets buffers fill. And how long a backend may take nothing of what a client
    /// says that has not closed, before both are reset. 0s lets either for ever, as TCP does.
    #[cost = "Longer keeps what waits for a client that takes nothing, from the memory for sending that all share; shorter "]
    #[cost = "resets paused downloads."]
    zero_window: Duration = "zero-window", H, 0 => 24 * H, per service;
    /// How long a client may keep its receive window closed, or acknowledge less than 1460 bytes of what waits for it, while
    /// memory for sending is short, the longest-stalled first; and how long it may keep it closed once the backend has
    /// closed: then nobody else would let the client go. That a backend has closed with more to say
    /// than the kernel here has room for is seen minutes later, when its kernel has given up; zero-window and a service's
    /// idle_time end such a client, too. Also how long less than 16 KB may be read of what a client has sent while memory for
    /// receiving is short; of the clients of whom more than that waits, the one with most is reset then. With a sixteenth of
    /// it left, a quarter of that time, of any client.
    #[cost = "Longer lets clients that take nothing hold memory that others wait for; shorter resets slow ones when memory "]
    #[cost = "is short."]
    stall_time: Duration = "stall-time", 30 * S, S => H;
    /// How long to wait for the answer to a SYN-ACK before it is sent again, twice as long each time after that (RFC 6298
    /// §2.1, §5.5). XDP's answers are sent once.
    #[cost = "Shorter sends more SYN-ACKs, to spoofed addresses as well; longer lets a client wait when one is lost."]
    syn_timeout: Duration = "syn-timeout", S, 100 * MS => 10 * S;
    /// How often a SYN-ACK is sent again before a half-open connection is forgotten; none is for longer than its cookie
    /// lives.
    #[cost = "Each is one more SYN-ACK for every spoofed SYN that is remembered, up to stateful-rate of them a second."]
    syn_ack_retries: u32 = "syn-ack-retries", 5, 0 => 8;
    /// Half-open connections that each receive queue has room for, per address family. When they are more, the oldest of
    /// a few makes room: its SYN-ACK is not sent again, but can still be acknowledged.
    #[cost = "36 bytes of room for each over IPv4 and 63 over IPv6, on each queue."]
    half_open_limit: u32 = "half-open-limit", 16_384, 8 => 131_072;
    /// Connections of one service that may wait to be taken by it, on each receive queue.
    #[cost = "255 bytes for each connection that waits, and what its client has sent: up to a receive buffer."]
    accept_backlog: u32 = "accept-backlog", 4096, 1 => 1_048_576, per service;
    /// What becomes of a client whose connection finds the accept queue full: ignore its ACK, so that it comes in as soon as
    /// there is room, or reset it.
    #[cost = "ignore has the client send again, seconds later in the worst case; reset tells it at once, and it may not "]
    #[cost = "try again."]
    accept_overflow: AcceptOverflow = "accept-overflow", 0, 0 => 1, per service;
    /// SYNs a second (and resets of what they left half-open) that stateful services leave to the stack; those beyond are
    /// answered with cookies. More than so many SYNs a second also make services in mode auto answer with cookies alone.
    /// 0 leaves none. Shared out among receive queues.
    #[cost = "Each SYN left to the stack takes an engine's time and a place in its half-open queue; XDP's cookies take "]
    #[cost = "neither."]
    stateful_rate: u32 = "stateful-rate", 5000, 0 => 10_000_000;
    /// How many of them at once after a pause. At least what the rate allows in a clock tick of 10ms.
    #[cost = "The same as stateful-rate, so many at once."]
    stateful_burst: u32 = "stateful-burst", 5000, 1 => 10_000_000;
    /// How long it must have been calm before services in mode auto remember half-open connections again: less than half
    /// of stateful-rate, and the half-open queues less than half full. A flood begins beyond stateful-rate, or with a queue three
    /// quarters full; these shares are fixed, the sizes they are of are stateful-rate and half-open-limit.
    #[cost = "Longer has SYN-ACKs that are lost not sent again for longer after a flood; shorter may change with every "]
    #[cost = "wave of one."]
    calm_time: Duration = "calm-time", 10 * S, 100 * MS => H;
    /// How long a cookie key is used. A cookie lives for one to two periods; a new value starts with the next
    /// key and breaks no handshake under way. So long closed connections are remembered against replays, 8388608 of them
    /// at most: at more than 40000 a second, or with long periods, old cookies are refused early.
    #[cost = "Shorter breaks handshakes that take longer than it; longer gives who guesses cookies as much more time, and "]
    #[cost = "remembers as many more closed connections."]
    cookie_period: Duration = "cookie-period", MIN, 2 * S => H;
    /// Whether cookies for clients without timestamps are strict: guessed with a chance of 1 in 2^29 instead of 2^25, but without
    /// window scale and SACK for these clients. auto: at services that are sent more invalid ACKs than strict-rate. A change
    /// counts from the next cookie-period on and breaks no handshake. Machines that share a secret file accept each other's
    /// cookies without timestamps only while both are strict or neither is: always or never there keeps them alike.
    #[cost = "Clients without timestamps have no window scale and no SACK at a strict service: they are slower on long "]
    #[cost = "paths."]
    strict: StrictPolicy = "strict", 0, 0 => 2, per service;
    /// Invalid ACKs a second, over any time and beyond a minute's worth at once, that make a service strict. The default lets
    /// one guess a day be right at most: 2^25 of them a day are 388 a second.
    #[cost = "Higher lets more guesses by before it counts: the chance of each is 1 in 2^25. Lower makes clients without "]
    #[cost = "timestamps slower more often."]
    strict_rate: u32 = "strict-rate", 388, 1 => 100_000_000, per service;
    /// How long there must have been less than half of strict-rate before a service is no longer strict. From 22.5 times the
    /// cookie-period on, a forger who pauses until then has no more right guesses than one who goes on.
    #[cost = "Longer keeps clients without timestamps slower for longer; shorter lets who guesses begin anew."]
    strict_calm_time: Duration = "strict-calm-time", 30 * MIN, S => 7 * 24 * H, per service;
    /// How long after the daemon died its ports stay silent, so that clients retry, before on_daemon_exit applies.
    #[cost = "Clients wait for so long after a daemon died, whatever on_daemon_exit says; shorter hands them to the host "]
    #[cost = "before a daemon that is started anew can take over."]
    exit_grace: Duration = "exit-grace", 3 * S, 0 => MIN;
    /// SYN-ACKs a second that the addresses of one prefix are sent together, whoever asks for them: the most that a
    /// spoofed victim hears of an attack, some 3 MB/s of SYN-ACKs by default, but for verified-reply-rate. 0 is no limit.
    /// Shared out among receive queues.
    #[cost = "Higher lets more SYN-ACKs out to a spoofed victim, 60 bytes or so each; lower keeps new clients of a prefix "]
    #[cost = "out while it is spoofed."]
    reply_rate: u32 = "reply-rate", 50_000, 0 => 100_000_000;
    /// SYN-ACKs that a prefix (and its verified addresses once more) may be sent at once after a pause. At least what
    /// the rates allow in a clock tick of 10ms.
    #[cost = "A spoofed victim hears so many SYN-ACKs more, once after each pause."]
    reply_burst: u32 = "reply-burst", 50_000, 1 => 100_000_000;
    /// SYN-ACKs a second, beyond reply-rate, for those addresses of a prefix that completed a handshake within
    /// verified-time: clients that were here keep coming in while somebody spoofs their neighbours. Whoever spoofs just
    /// such an address has its prefix sent both rates together. 0 is no limit.
    #[cost = "Who spoofs addresses of known clients has their prefix sent so many SYN-ACKs more; lower keeps such clients "]
    #[cost = "out."]
    verified_reply_rate: u32 = "verified-reply-rate", 50_000, 0 => 100_000_000;
    /// How long after its last handshake an address (IPv6: /64) counts as verified. Half a million of them are
    /// remembered, in 4 MB.
    #[cost = "Longer has more addresses verified than the 4 MB remember well: some that never came count, too."]
    verified_time: Duration = "verified-time", 10 * MIN, S => 24 * H;
    /// Length of the IPv4 prefixes that reply budgets are for.
    #[cost = "Longer prefixes bound what one address hears, and let a network hear 2^(32-length) times as much; shorter "]
    #[cost = "ones have more clients share a budget."]
    reply_prefix_v4: u32 = "reply-prefix-v4", 24, 8 => 32;
    /// Length of the IPv6 prefixes that reply budgets are for.
    #[cost = "As reply-prefix-v4, with 2^(64-length)."]
    reply_prefix_v6: u32 = "reply-prefix-v6", 56, 16 => 64;
    /// Connections a second that one source (IPv4 address, IPv6 /64) may open; the ACK that opens one more is answered
    /// with a reset. 0 is no limit, and the default: an address may be a carrier's NAT or a proxy with thousands of users
    /// behind it, and only who runs the service knows.
    #[cost = "Clients behind one address share it: too low a rate resets honest ones."]
    source_rate: u32 = "source-rate", 0, 0 => 10_000_000;
    /// Connections that one source may open at once after a pause. At least what source-rate allows in a clock tick of
    /// 10ms.
    #[cost = "A source may open so many at once before its rate counts."]
    source_burst: u32 = "source-burst", 100_000, 1 => 10_000_000;
    /// Connections that one source (IPv4 address, IPv6 /64) may have open, TIME_WAIT not counted; the ACK that opens one
    /// more is answered with a reset. 0 is no limit, and the default, as for source-rate. Sources share 262144 places of
    /// which each has two: with a million connections open, a count may be some ten too high.
    #[cost = "Clients behind one address share it: too low a limit resets honest ones."]
    source_flows: u32 = "source-flows", 0, 0 => 10_000_000;
    /// Connections that each service may have open, TIME_WAIT not counted; the ACK that opens one more is answered with a
    /// reset. 0 is no limit but the size of the flow table (the default): memory for connections is bounded by itself.
    #[cost = "Whoever comes when the service is full is reset, honest or not."]
    service_flows: u32 = "service-flows", 0, 0 => 10_000_000;
    /// Segments a second that one connection may send while the engine's receive ring is more than half full, and for a
    /// second after that; what is more is dropped as if it were lost on the way, so that a connection that floods takes
    /// nothing from others. 0 is no limit. The default is more than 1 Gbit/s of full segments.
    #[cost = "Lower slows honest uploads down while the ring is full; higher lets one connection take more of an engine "]
    #[cost = "then."]
    flow_rate: u32 = "flow-rate", 100_000, 0 => 100_000_000;
    /// Segments of one connection that may come at once then. At least what flow-rate allows in a clock tick of 10ms.
    #[cost = "So many segments of one connection are taken before its rate counts."]
    flow_burst: u32 = "flow-burst", 2048, 1 => 100_000_000;
    /// ICMP errors a second about one connection that are heard; more are dropped. They tell how long its segments may be
    /// on their path, which nobody else can, and anybody can send them. 0 is no limit.
    #[cost = "Each that is heard takes a look at the connection it is about; lower may miss the one that says how long "]
    #[cost = "segments may be."]
    icmp_rate: u32 = "icmp-rate", 100, 0 => 1_000_000;
    /// SYNs a second to one service, beyond those that lead to a handshake, that are a SYN flood in `tcpguard events`. 0 is
    /// never. What is done about them does not depend on it.
    #[cost = "Nothing but what is told: while an attack is on, XDP copies segments for 20 ms of each second."]
    attack_syns: u32 = "attack-syns", 10_000, 0 => 100_000_000, per service;
    /// ACKs a second without a valid cookie to one service that are an ACK flood there. 0 is never.
    #[cost = "As attack-syns."]
    attack_acks: u32 = "attack-acks", 10_000, 0 => 100_000_000, per service;
    /// Completed handshakes a second of one service, refused ones included, that are a connection flood there. 0 is never.
    #[cost = "As attack-syns."]
    attack_connections: u32 = "attack-connections", 20_000, 0 => 100_000_000, per service;
    /// Connections of one service whose clients take nothing of what its backends say that are a slow read there. 0 is
    /// never.
    #[cost = "Nothing but what is told."]
    attack_stalls: u32 = "attack-stalls", 1000, 0 => 10_000_000, per service;
    /// How long there must have been less than half of that before an attack is over.
    #[cost = "Nothing but what is told: shorter makes several attacks of one that comes in waves."]
    attack_calm_time: Duration = "attack-calm-time", 10 * S, S => H, per service;
    /// How long open connections may finish after SIGTERM before they are reset.
    #[cost = "A stop or a restart takes so much longer as long as connections are open; nothing new is let in meanwhile."]
    drain_time: Duration = "drain-time", 5 * S, 0 => H;
    /// Whether XDP logs its verdicts, at level debug: who was judged and why, 16 of them for each CPU and interface in an eighth
    /// of a second, and how many more there were. For debugging; `tcpguard monitor` shows more and costs as much.
    #[cost = "As much as a monitor, for each segment that is judged, and a line of log for each that is said."]
    xdp_log: bool = "xdp-log", 0, 0 => 1;
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.unit {
            Unit::Duration => f.write_str(&duration::format(Duration::from_millis(self.number))),
            Unit::Count => write!(f, "{}", self.number),
            Unit::Choice(names) => {
                let name = usize::try_from(self.number).ok().and_then(|place| names.get(place));
                f.write_str(name.copied().unwrap_or("unknown"))
            }
        }
    }
}

impl Unit {
    /// What a bare number of this unit counts, for machine-readable output.
    pub fn name(self) -> &'static str {
        match self {
            Self::Duration => "ms",
            Self::Count => "count",
            Self::Choice(_) => "choice",
        }
    }

    /// The names to choose from, if this is a choice.
    pub fn choices(self) -> &'static [&'static str] {
        match self {
            Self::Duration | Self::Count => &[],
            Self::Choice(names) => names,
        }
    }
}

impl Tunable {
    /// The row called `name`.
    pub fn find(name: &str) -> Result<&'static Self, TunableError> {
        TUNABLES
            .iter()
            .find(|tunable| tunable.name == name)
            .ok_or_else(|| TunableError::Unknown(name.to_owned()))
    }

    /// The row called `name`, if a service may have it for itself.
    ///
    /// # Errors
    /// That there is no such row, or that a service may not.
    pub fn of_a_service(name: &str) -> Result<&'static Self, TunableError> {
        match Self::find(name)? {
            tunable if tunable.per_service => Ok(tunable),
            tunable => Err(TunableError::NotPerService(tunable.name)),
        }
    }

    /// `number` in this tunable's unit.
    pub fn value(&self, number: u64) -> Value {
        Value { unit: self.unit, number }
    }

    /// Its value in `tunables`.
    pub fn get(&self, tunables: &Tunables) -> Value {
        self.value((self.get)(tunables))
    }

    /// Reads a value as users write it; only this tunable's own range is checked.
    pub fn parse(&self, text: &str) -> Result<Value, TunableError> {
        let malformed = |why| TunableError::Malformed(self.name, why);
        let number = match self.unit {
            Unit::Duration => duration::parse(text).map_err(malformed)?.number(),
            Unit::Count => text.parse().map_err(|_| malformed(format!("`{text}` is not a count")))?,
            Unit::Choice(names) => names
                .iter()
                .position(|name| *name == text)
                .map(|place| place as u64)
                .ok_or_else(|| malformed(format!("`{text}` is none of {}", names.join(", "))))?,
        };
        self.check(number)?;
        Ok(self.value(number))
    }

    fn check(&self, number: u64) -> Result<(), TunableError> {
        if (self.min..=self.max).contains(&number) {
            return Ok(());
        }
        Err(TunableError::OutOfRange {
            name: self.name,
            value: self.value(number),
            min: self.value(self.min),
            max: self.value(self.max),
        })
    }
}

impl Tunables {
    /// The same set with one value changed, given as users write it; checked whole. Returns it with the value
    /// that was replaced and the new one.
    pub fn with(&self, name: &str, text: &str) -> Result<(Self, Value, Value), TunableError> {
        let mut changed = self.clone();
        let (old, new) = changed.set(name, text)?;
        changed.check()?;
        Ok((changed, old, new))
    }

    /// Changes one value in place and returns the old and the new one. What values say together is left to
    /// [`Self::check`], so that several can be set in any order.
    pub fn set(&mut self, name: &str, text: &str) -> Result<(Value, Value), TunableError> {
        let tunable = Tunable::find(name)?;
        let old = tunable.get(self);
        let new = tunable.parse(text)?;
        (tunable.set)(self, new.number);
        Ok((old, new))
    }

    /// Checks every range and what the values say together.
    pub fn check(&self) -> Result<(), TunableError> {
        for tunable in TUNABLES {
            tunable.check((tunable.get)(self))?;
        }
        let format = duration::format;
        if self.min_rto > self.max_rto {
            let (min, max) = (format(self.min_rto), format(self.max_rto));
            return Err(TunableError::Contradiction(format!("min-rto {min} is above max-rto {max}")));
        }
        if self.initial_rto > self.max_rto {
            let (initial, max) = (format(self.initial_rto), format(self.max_rto));
            return Err(TunableError::Contradiction(format!("initial-rto {initial} is above max-rto {max}")));
        }
        let rates = [("reply-rate", self.reply_rate), ("verified-reply-rate", self.verified_reply_rate)];
        for (name, rate) in rates {
            check_burst((name, rate), ("reply-burst", self.reply_burst))?;
        }
        check_burst(("flow-rate", self.flow_rate), ("flow-burst", self.flow_burst))?;
        check_burst(("source-rate", self.source_rate), ("source-burst", self.source_burst))?;
        check_burst(("stateful-rate", self.stateful_rate), ("stateful-burst", self.stateful_burst))?;
        Ok(())
    }
}

/// Names that other stacks, or the RFCs, have for what is told here by another one.
const ELSEWHERE: [(&str, &str); 12] = [
    ("last-ack", "orphan-retries"),
    ("closing", "orphan-retries"),
    ("fin-wait-1", "orphan-retries"),
    ("fin-timeout", "fin-wait-2"),
    ("msl", "time-wait"),
    ("2msl", "time-wait"),
    ("syn-backlog", "half-open-limit"),
    ("somaxconn", "accept-backlog"),
    ("abort-on-overflow", "accept-overflow"),
    ("synack-retries", "syn-ack-retries"),
    ("tw-buckets", "time-wait-limit"),
    ("max-orphans", "orphan-limit"),
];

/// What somebody may have meant who wrote a name that there is none of.
fn hint(name: &str) -> String {
    let plain = name.to_lowercase().replace('_', "-");
    match ELSEWHERE.iter().find(|(known, _)| *known == plain) {
        Some((_, ours)) => format!(", {ours} does that"),
        None => near::suggestion(name, TUNABLES.iter().map(|tunable| tunable.name)),
    }
}

/// The names of those that a service may have for itself.
fn of_services() -> String {
    let names: Vec<_> =
        TUNABLES.iter().filter(|tunable| tunable.per_service).map(|tunable| tunable.name).collect();
    names.join(", ")
}

/// XDP's clock stands still for a timer tick, 10 ms with the slowest kernels: what a rate allows in that time comes at
/// once, and must fit into the burst.
fn check_burst(rate: (&str, u32), burst: (&str, u32)) -> Result<(), TunableError> {
    let least = rate.1.div_ceil(100);
    if burst.1 >= least {
        return Ok(());
    }
    Err(TunableError::Contradiction(format!(
        "{} {} is too little for {} {}, which allows {least} in a clock tick of 10ms",
        burst.0, burst.1, rate.0, rate.1
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_has_a_unique_name_a_help_text_and_a_default_in_range() {
        for (index, tunable) in TUNABLES.iter().enumerate() {
            assert!(TUNABLES[..index].iter().all(|other| other.name != tunable.name), "{}", tunable.name);
            assert!(tunable.min <= tunable.default && tunable.default <= tunable.max, "{}", tunable.name);
            assert!(!tunable.help.trim().is_empty());
            assert!(
                tunable.cost.len() > 10 && tunable.cost.ends_with('.'),
                "{} costs {:?}",
                tunable.name,
                tunable.cost
            );
            assert_eq!(tunable.get(&Tunables::default()), tunable.value(tunable.default));
        }
        Tunables::default().check().unwrap();
    }

    #[test]
    fn each_row_reads_and_writes_a_field_of_its_own() {
        for tunable in TUNABLES {
            let mut changed = Tunables::default();
            let number = if tunable.default == tunable.max { tunable.min } else { tunable.max };
            let text = tunable.value(number).to_string();
            changed.set(tunable.name, &text).unwrap();
            for other in TUNABLES {
                let expected = if other.name == tunable.name { number } else { other.default };
                assert_eq!(other.get(&changed), other.value(expected), "{} by {}", other.name, tunable.name);
            }
        }
    }

    #[test]
    fn the_ends_of_a_range_are_in_and_one_step_past_them_is_out() {
        for tunable in TUNABLES {
            for number in [tunable.min, tunable.max] {
                assert_eq!(tunable.parse(&tunable.value(number).to_string()), Ok(tunable.value(number)));
            }
            if let Unit::Choice(names) = tunable.unit {
                assert_eq!((tunable.min, tunable.max), (0, names.len() as u64 - 1), "{}", tunable.name);
                continue;
            }
            let past = [tunable.min.checked_sub(1), tunable.max.checked_add(1)];
            for number in past.into_iter().flatten() {
                let error = tunable.parse(&tunable.value(number).to_string()).unwrap_err();
                assert!(matches!(error, TunableError::OutOfRange { .. }), "{error}");
            }
        }
    }

    #[test]
    fn a_change_names_what_it_replaced_and_a_bad_one_says_why() {
        let (changed, old, new) = Tunables::default().with("time-wait", "2m").unwrap();
        assert_eq!((old.to_string(), new.to_string()), ("1m".into(), "2m".into()));
        assert_eq!(changed.time_wait, Duration::from_secs(120));

        let why = |name: &str, value: &str| Tunables::default().with(name, value).unwrap_err().to_string();
        assert_eq!(
            why("timewait", "2m"),
            "unknown tunable `timewait` (`tcpguard tune` lists them), did you mean `time-wait`?"
        );
        // RFC 9293's name of what lasts that long here.
        assert_eq!(
            why("last-ack", "2m"),
            "unknown tunable `last-ack` (`tcpguard tune` lists them), orphan-retries does that"
        );
        assert!(ELSEWHERE.iter().all(|(name, ours)| {
            Tunable::find(ours).is_ok()
                && why(&name.to_uppercase().replace('-', "_"), "1").ends_with("does that")
        }));
        assert_eq!(why("nonsense", "2m"), "unknown tunable `nonsense` (`tcpguard tune` lists them)");
        assert_eq!(why("time-wait", "20m"), "time-wait: 20m is out of range, 100ms to 10m");
        assert_eq!(why("time-wait", "60"), "time-wait: `60`: a duration looks like 500ms, 30s, 2m or 1m30s");
        assert_eq!(why("retries", "many"), "retries: `many` is not a count");
        assert_eq!(why("congestion-control", "bbr"), "congestion-control: `bbr` is none of newreno, cubic");
        let (changed, old, new) = Tunables::default().with("congestion-control", "newreno").unwrap();
        assert_eq!((old.to_string(), new.to_string()), ("cubic".into(), "newreno".into()));
        assert_eq!(changed.congestion_control, CongestionControl::NewReno);
        assert_eq!(why("max-rto", "500ms"), "max-rto: 500ms is out of range, 1s to 10m");
        assert_eq!(why("initial-rto", "1m30s"), "initial-rto: 1m30s is out of range, 10ms to 1m");
    }

    #[test]
    fn values_that_are_good_alone_can_contradict_each_other() {
        let (changed, ..) = Tunables::default().with("max-rto", "5s").unwrap();
        assert_eq!(changed.with("min-rto", "6s").unwrap_err().to_string(), "min-rto 6s is above max-rto 5s");
        assert_eq!(
            changed.with("initial-rto", "6s").unwrap_err().to_string(),
            "initial-rto 6s is above max-rto 5s"
        );
        assert_eq!(
            Tunables::default().with("reply-burst", "499").unwrap_err().to_string(),
            "reply-burst 499 is too little for reply-rate 50000, which allows 500 in a clock tick of 10ms"
        );
        let (slow, ..) = Tunables::default().with("reply-rate", "10").unwrap();
        assert_eq!(
            slow.with("reply-burst", "1").unwrap_err().to_string(),
            "reply-burst 1 is too little for verified-reply-rate 50000, which allows 500 in a clock tick of 10ms"
        );
        let (slow, ..) = slow.with("verified-reply-rate", "0").unwrap();
        slow.with("reply-burst", "1").unwrap();
        let (fast, ..) = Tunables::default().with("source-rate", "5000").unwrap();
        assert_eq!(
            fast.with("source-burst", "49").unwrap_err().to_string(),
            "source-burst 49 is too little for source-rate 5000, which allows 50 in a clock tick of 10ms"
        );
    }
}
