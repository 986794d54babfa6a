//! What travels over the control socket: one JSON object a line, a request and its reply, both with the protocol's
//! version. Types only; sockets are the business of `server` and `client`.
//!
//! Numbers are exact and carry their unit in the field's name (`_ms`, bytes otherwise).

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use serde_json::Value;

mod flows;

pub use flows::{Flow, Flows, FlowsKilled, FlowsOfService, Sort, Which};

/// Changes when a field changes its meaning or disappears; new fields do not change it.
pub const VERSION: u32 = 1;
/// A request line may have this many bytes, its newline included.
pub const MAX_REQUEST: usize = 16 << 10;
/// `flows` lists at most this many.
pub const MAX_FLOWS_LISTED: u32 = 1 << 20;
/// [`Request::Explain`] takes frames of at most this many bytes: in hexadecimal digits they stay below [`MAX_REQUEST`].
pub const MAX_FRAME_EXPLAINED: usize = 7 << 10;
/// Bytes of filters to put into one [`Request::FiltersLoad`]: with their quotes and commas, and what stands around them,
/// it stays below [`MAX_REQUEST`].
pub const MAX_FILTERS_PART: usize = 12 << 10;

/// What a client may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// What runs where.
    Status {},
    /// Every counter.
    Stats {},
    /// Flows, each of them once.
    Flows {
        /// Which of them.
        #[serde(default, skip_serializing_if = "Which::is_all")]
        which: Which,
        /// In which order; in none particular if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        sort: Option<Sort>,
        /// List at most this many; the totals count all.
        limit: u32,
    },
    /// Resets flows.
    FlowsKill {
        /// Which of them.
        #[serde(default, skip_serializing_if = "Which::is_all")]
        which: Which,
        /// Without a condition, all of them.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        all: bool,
        /// Spare what may be this session.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Puts a service in.
    ServicesAdd {
        /// As `--protect` has it.
        service: String,
        /// Further keys of its `[[service]]` table.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        keys: BTreeMap<String, String>,
        /// Write it into the configuration file, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        save: bool,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Changes a service.
    ServicesSet {
        /// Where its clients connect.
        service: SocketAddr,
        /// The keys of its `[[service]]` table that change; empty values take keys away.
        keys: BTreeMap<String, String>,
        /// Write it into the configuration file, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        save: bool,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Takes a service out and resets its connections.
    ServicesDel {
        /// Where its clients connect.
        service: SocketAddr,
        /// Take it out of the configuration file, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        save: bool,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Every tunable, or the one called `name`; with a value, sets it.
    Tune {
        /// Which tunable.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// Its new value, as users write it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        value: Option<String>,
        /// Write it into the configuration file, too.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        save: bool,
    },
    /// Has everything that is changed from now on taken back unless it is confirmed.
    Hold {
        /// Within so much time.
        seconds: u64,
    },
    /// The change was not made after all.
    Release {
        /// As [`Held::number`] has it.
        number: u64,
    },
    /// Keeps what was changed.
    Confirm {},
    /// Reads the configuration file again.
    Reload {
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Has cookie keys derived from another secret.
    KeysRotate {},
    /// What would become of a frame.
    Explain {
        /// From its link header on, in hexadecimal digits.
        frame: String,
        /// Where it would arrive; the first interface if not said.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interface: Option<String>,
        /// The receive queue on which it would.
        queue: u32,
    },
    /// The configuration in force.
    Config {},
    /// What a cookie says that was seen on the wire.
    CookieDecode {
        /// The client.
        peer: SocketAddr,
        /// The end that is guarded.
        local: SocketAddr,
        /// The client's initial sequence number.
        client_isn: u32,
        /// The SYN-ACK's sequence number.
        cookie: u32,
        /// The SYN-ACK's TSval, if it has timestamps.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        stamp: Option<u32>,
    },
    /// Gives a service another mode.
    Mode {
        /// Where its clients connect.
        service: SocketAddr,
        /// `auto`, `cookie`, `stateful` or `off`.
        mode: String,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Puts a service into dry run, or in earnest.
    DryRun {
        /// Where its clients connect.
        service: SocketAddr,
        /// Whether it is to be in dry run.
        on: bool,
    },
    /// Single packets as they come and go, until the client hangs up.
    Monitor {
        /// Only these: names of reasons, or `engine` for what engines send. All of them if there is none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<String>,
        /// Only those of these services. All of them if there is none.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        services: Vec<SocketAddr>,
    },
    /// The filter lists.
    Filters {
        /// List at most this many; the totals count all.
        limit: u32,
    },
    /// Puts one filter into the lists.
    FiltersAdd {
        /// As a line of a list: `deny 192.0.2.0/24 expires 1h`.
        filter: String,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Takes one filter out.
    FiltersDel {
        /// Its prefix.
        prefix: String,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// Takes all filters out, or all of one kind.
    FiltersFlush {
        /// `deny` or `allow`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        action: Option<String>,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
    /// One part of a list that is put into the lists, or takes their place, once its last part is there: all at once.
    FiltersLoad {
        /// The same for all parts of a list; chosen at random.
        load: u64,
        /// Lines, each with its action.
        filters: Vec<String>,
        /// The list is whole.
        last: bool,
        /// It takes the place of what is there.
        replace: bool,
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
    },
}

/// The connection through which a client reached the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Where the client sits.
    pub peer: IpAddr,
    /// Our end.
    pub local: SocketAddr,
}

/// What the daemon answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Stats`].
    Stats(Stats),
    /// To [`Request::Flows`].
    Flows(Flows),
    /// To [`Request::FlowsKill`].
    FlowsKilled(FlowsKilled),
    /// To every change of services.
    ServicesChanged(ServicesChanged),
    /// To [`Request::Tune`] without a value.
    Tunables(Tunables),
    /// To [`Request::Tune`] with a value.
    Tuned(Tuned),
    /// To [`Request::Hold`].
    Held(Held),
    /// To [`Request::Release`].
    Released {},
    /// To [`Request::Confirm`].
    Confirmed {},
    /// To [`Request::Reload`].
    Reloaded(Reloaded),
    /// To [`Request::KeysRotate`].
    KeysRotated(KeysRotated),
    /// To [`Request::Explain`].
    Explained(Explained),
    /// To [`Request::Config`].
    Config(Config),
    /// To [`Request::CookieDecode`].
    Cookie(Cookie),
    /// To [`Request::Mode`].
    ModeSet(ModeSet),
    /// To [`Request::DryRun`].
    DryRunSet(DryRunSet),
    /// The first one to [`Request::Monitor`]: packets are recorded from now on.
    Monitoring {},
    /// To [`Request::Monitor`], for each packet.
    Packet(Packet),
    /// To [`Request::Monitor`], whenever more packets were missed.
    PacketsLost(PacketsLost),
    /// To [`Request::Filters`].
    Filters(Filters),
    /// To every other request about filters.
    FiltersChanged(FiltersChanged),
    /// To a part of a list that is not the last one.
    FiltersPart {},
    /// Nothing was done.
    Error(Refusal),
}

/// Why nothing was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Whose fault it is.
    pub kind: Fault,
    /// One line.
    pub message: String,
}

/// Whose fault a refusal is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The request is malformed, or asks for what cannot be.
    BadInput,
    /// The daemon could not do it.
    Failed,
    /// Too many clients at once.
    Busy,
}

/// What a cookie says. Nothing that would help to make one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cookie {
    /// `valid`, `late`, `out-of-time`, `other-layout`, `no-key` or `wrong`.
    pub validity: String,
    /// What that means.
    pub help: String,
    /// `timestamps`, `no-timestamps` or `strict`.
    pub layout: String,
    /// The epoch with whose key it was made; absent when none of the keys makes it. What follows is then the word of whoever
    /// sent it.
    pub epoch: Option<u32>,
    /// The epoch now.
    pub current_epoch: u32,
    /// How long ago the SYN-ACK left, modulo 275 s, if this machine sent it; absent without timestamps.
    pub age_ms: Option<u64>,
    /// The client's maximum segment size, rounded down.
    pub mss: u16,
    /// The client's window shift; absent when windows are not scaled.
    pub window_scale: Option<u8>,
    /// Whether the client takes selective acknowledgments.
    pub sack_permitted: bool,
    /// Whether both sides use ECN.
    pub ecn: bool,
}

/// What runs where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's own version.
    pub daemon_version: String,
    /// Its process.
    pub pid: u32,
    /// Since it armed its interfaces.
    pub uptime_ms: u64,
    /// `armed`, or `draining` after SIGTERM.
    pub phase: String,
    /// Which daemon run this is, on these pins.
    pub generation: u32,
    /// The current cookie epoch.
    pub epoch: u32,
    /// The guarded interfaces.
    pub interfaces: Vec<Interface>,
    /// The protected services.
    pub services: Vec<Service>,
    /// Until what was changed is taken back, unless it is confirmed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unconfirmed_ms: Option<u64>,
}

/// A guarded interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// As the kernel calls it.
    pub name: String,
    /// The kernel's index.
    pub ifindex: u32,
    /// `native` or `generic`.
    pub mode: String,
    /// Receive queues with an engine.
    pub queues: u32,
    /// How AF_XDP moves frames: `zero-copy` where the driver can, or `copy`.
    #[serde(default)]
    pub af_xdp: String,
    /// `up`, `no-carrier` or `down`.
    #[serde(default)]
    pub link: String,
    /// Its MAC address.
    #[serde(default)]
    pub mac: String,
    /// Bytes of an IP packet it carries.
    #[serde(default)]
    pub mtu: u32,
}

/// A protected service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Service {
    /// Where clients connect.
    pub listen: SocketAddr,
    /// `auto`, `cookie`, `stateful` or `off`.
    pub mode: String,
    /// In mode `auto`, what it does at present: `calm`, when it remembers SYNs, or `cookies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Whether it is in dry run: what would become of its segments is counted, and they are left to the host.
    #[serde(default)]
    pub dry_run: bool,
    /// Whether its cookies without timestamps are strict: `no`, `from-next-epoch`, `yes`, `until-next-epoch`.
    #[serde(default)]
    pub strict: String,
    /// Where connections are relayed to; of several backends the first.
    pub backend: Option<String>,
    /// Which built-in responder has them instead: `echo`, `discard` or `http`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub respond: Option<String>,
    /// All backends, in the order of the configuration.
    #[serde(default)]
    pub backends: Vec<Backend>,
}

/// A backend.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    /// `ADDR:PORT`, or `unix:` and a path.
    pub address: String,
    /// Connections it has.
    pub connections: u64,
    /// Connections it accepted, ever.
    pub connected: u64,
    /// Attempts to connect that failed.
    pub failed: u64,
    /// How long it will yet be left alone because it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rests_ms: Option<u64>,
    /// Those of its connections that one side has held up for longer than a moment, by kind.
    #[serde(default)]
    pub held: Vec<HeldUp>,
}

/// Connections of a backend that are held up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldUp {
    /// `close-wait` and `backend-stalled` by the backend, which does not close or takes nothing; `fin-wait-2` and
    /// `client-stalled` by the client.
    pub state: String,
    /// How many.
    pub connections: u64,
    /// Since the oldest of them last moved.
    pub oldest_ms: u64,
}

/// Every counter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stats {
    /// When it was read, on the daemon's monotonic clock: rates come from differences of it.
    pub time_ms: u64,
    /// Since the daemon armed its interfaces.
    pub uptime_ms: u64,
    /// Verdicts of the XDP program, in the table's order, the ones never reached included. They survive the daemon
    /// with its pins.
    pub reasons: Vec<ReasonCount>,
    /// The same verdicts by service, in the order of the configuration, since the daemon started.
    #[serde(default)]
    pub services: Vec<ServiceCount>,
    /// What would have become of segments that were left to the host because their service was in dry run; of those services
    /// that are, or were since the daemon started.
    #[serde(default)]
    pub dry_run: Vec<ServiceCount>,
    /// Flows by TCP state, over all engines. States without a flow are there with 0.
    pub states: BTreeMap<String, u64>,
    /// Counters of the stack, the engines and the services, summed over the engines, by name and group.
    pub totals: Groups,
    /// The same for each engine.
    pub engines: Vec<Engine>,
}

/// Counters by group (`stack`, `engine`, `ring`, …) and name.
pub type Groups = BTreeMap<String, BTreeMap<String, u64>>;

/// What became of the segments to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceCount {
    /// The service as configured.
    pub listen: SocketAddr,
    /// `auto`, `cookie`, `stateful` or `off`.
    #[serde(default)]
    pub mode: String,
    /// In mode `auto`, what it does at present: `calm`, when it remembers SYNs, or `cookies`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Well-formed SYNs, answered or not; without those of denied sources.
    pub syns: u64,
    /// Of these, those answered with a cookie.
    pub cookies_sent: u64,
    /// Of these, those handed to an engine, which remembers them.
    #[serde(default)]
    pub stateful: u64,
    /// ACKs with a valid cookie whose flow was opened.
    pub acks_valid: u64,
    /// ACKs with an invalid cookie.
    pub acks_invalid: u64,
    /// Segments handed to an engine, `stateful` and `acks_valid` among them.
    pub redirected: u64,
    /// Segments answered with a reset.
    pub reset: u64,
    /// Segments dropped, `acks_invalid` and unanswered SYNs among them.
    pub dropped: u64,
    /// Segments left to the host.
    pub passed: u64,
}

/// How often a reason was counted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReasonCount {
    /// The reason.
    pub name: String,
    /// `passed`, `answered`, `redirected` or `dropped`.
    pub outcome: String,
    /// What it means.
    pub help: String,
    /// Over all CPUs.
    pub total: u64,
    /// For each possible CPU.
    pub per_cpu: Vec<u64>,
    /// Beside the total: what would have been counted, had its service not been in dry run.
    #[serde(default)]
    pub dry_run: u64,
}

/// One engine's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Engine {
    /// Its interface.
    pub interface: String,
    /// Its receive queue.
    pub queue: u32,
    /// Flows by TCP state.
    pub states: BTreeMap<String, u64>,
    /// Its counters.
    pub counters: Groups,
}

/// Rows of the table of tunables.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunables {
    /// In the table's order.
    pub tunables: Vec<Tunable>,
}

/// One tunable: numbers in its unit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunable {
    /// The name.
    pub name: String,
    /// `ms`, `count` or `choice`.
    pub unit: String,
    /// Of a choice, the names its numbers stand for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<String>,
    /// Now.
    pub value: u64,
    /// Unless configured.
    pub default: u64,
    /// Least.
    pub min: u64,
    /// Greatest.
    pub max: u64,
    /// What it does.
    pub help: String,
}

/// A tunable was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuned {
    /// Which.
    pub name: String,
    /// `ms`, `count` or `choice`.
    pub unit: String,
    /// The value that was replaced.
    pub old: u64,
    /// The value now.
    pub new: u64,
    /// The file it was written into as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
}

/// Changes are taken back unless they are confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    /// What [`Request::Release`] names; none where earlier changes wait to be confirmed with it.
    pub number: Option<u64>,
}

/// The configuration file was read again, and is in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// Which file.
    pub file: String,
    /// The tunables that changed.
    pub tunables: Vec<Tuned>,
    /// What became of the filter lists.
    pub filters: FiltersChanged,
    /// What became of the services.
    pub services: ServicesChanged,
    /// The secret file holds another secret than before.
    pub new_secret: bool,
}

/// Another secret will count.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeysRotated {
    /// The first epoch whose key comes from it.
    pub epoch: u32,
    /// Until that epoch.
    pub from_ms: u64,
    /// For how long cookies of the old one are still accepted.
    pub old_until_ms: u64,
}

/// What would become of a frame.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// What it is, in a line.
    pub frame: String,
    /// Where it would arrive.
    pub interface: String,
    /// On which receive queue.
    pub queue: u32,
    /// What the decision asked, in order.
    pub steps: Vec<Step>,
    /// `passed`, `answered`, `redirected` or `dropped`.
    pub outcome: String,
    /// Under which it would be counted; none for what is not TCP to a protected address and port.
    pub reason: Option<String>,
    /// What that means.
    pub help: Option<String>,
    /// What would be sent back, in a line.
    pub answer: Option<String>,
    /// The same as a frame, in hexadecimal digits.
    pub answer_frame: Option<String>,
}

/// One thing that the decision asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What it looked at.
    pub step: String,
    /// What it found there.
    pub found: String,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// As a file.
    pub toml: String,
}

/// A service was put into dry run, or in earnest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DryRunSet {
    /// Whether it was in dry run.
    pub old: bool,
    /// Whether it is.
    pub new: bool,
}

/// Services were changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicesChanged {
    /// Those that are new.
    pub added: Vec<SocketAddr>,
    /// Those that are otherwise than before.
    pub changed: Vec<SocketAddr>,
    /// Those that are gone.
    pub removed: Vec<SocketAddr>,
    /// Connections that were reset with them, half-open ones included.
    pub reset: u64,
    /// The file that was changed as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub saved: Option<String>,
}

/// A service was given another mode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModeSet {
    /// The mode it had.
    pub old: String,
    /// The one it has.
    pub new: String,
}

/// One packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// `in` or `out`.
    pub direction: String,
    /// The interface.
    pub interface: String,
    /// Its queue.
    pub queue: u32,
    /// The service as configured.
    pub service: Option<SocketAddr>,
    /// `passed`, `answered`, `redirected` or `dropped` of what came in; `sent`.
    pub verdict: String,
    /// Whether it passed for a dry run: the reason then says what would have become of it.
    #[serde(default)]
    pub dry_run: bool,
    /// Why: of an answer, that of what it answers. `engine` for what an engine sent.
    pub reason: String,
    /// Bytes of the whole frame.
    pub len: u32,
    /// Its beginning, in hexadecimal.
    pub frame: String,
}

/// Packets that a client asked for and did not get, since it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsLost {
    /// Beyond what a CPU or an engine records in a second.
    pub beyond_rate: u64,
    /// The ring to the daemon was full.
    pub ring_full: u64,
    /// The client did not read fast enough.
    pub unread: u64,
}

/// The filter lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filters {
    /// How many there are, listed or not.
    pub total: u64,
    /// How many of them deny.
    pub denied: u64,
    /// How many of them allow.
    pub allowed: u64,
    /// Hits of all of them.
    pub hits: u64,
    /// The listed ones, ordered by family, address and length.
    pub filters: Vec<Filter>,
}

/// One filter.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filter {
    /// `deny` or `allow`.
    pub action: String,
    /// Address and length.
    pub prefix: String,
    /// Segments for which it was the longest prefix, since it was put in.
    pub hits: u64,
    /// Until it is forgotten.
    pub expires_ms: Option<u64>,
}

/// The filter lists were changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FiltersChanged {
    /// Prefixes that are new.
    pub added: u64,
    /// Prefixes that are gone.
    pub removed: u64,
    /// Prefixes that there are now.
    pub total: u64,
}

/// Rows that a reply is put on a line with at once: a millisecond or two of work.
const LONG: usize = 1000;

/// A line: the version beside the content.
#[derive(Serialize)]
struct Line<'a, T> {
    v: u32,
    #[serde(flatten)]
    content: &'a T,
}

impl Request {
    /// One line, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }

    /// Reads a line, with or without its newline.
    pub fn from_line(line: &[u8]) -> Result<Self, String> {
        from_line(line).map_err(|why| format!("bad request: {why}"))
    }
}

impl Reply {
    /// One line, newline included.
    pub fn to_line(&self) -> Vec<u8> {
        to_line(self)
    }

    /// Reads a line, with or without its newline.
    pub fn from_line(line: &[u8]) -> Result<Self, String> {
        from_line(line)
    }

    /// Whether putting it on a line takes long enough for others to notice.
    pub(super) fn is_long(&self) -> bool {
        match self {
            Self::Flows(flows) => flows.flows.len() > LONG,
            Self::Filters(filters) => filters.filters.len() > LONG,
            _ => false,
        }
    }

    /// A refusal of what cannot be.
    pub fn bad_input(message: impl Into<String>) -> Self {
        Self::Error(Refusal { kind: Fault::BadInput, message: message.into() })
    }

    /// A refusal of what did not work.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Error(Refusal { kind: Fault::Failed, message: message.into() })
    }
}

fn to_line<T: Serialize>(content: &T) -> Vec<u8> {
    // Plain data with string keys has no way to fail; should that change, the other side says the line is bad.
    let mut line = serde_json::to_vec(&Line { v: VERSION, content }).unwrap_or_default();
    line.push(b'\n');
    line
}

/// The version is judged before anything else is: another version's content is allowed to look like anything.
fn from_line<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Result<T, String> {
    let mut object: serde_json::Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    match object.remove("v").as_ref().and_then(Value::as_u64) {
        Some(version) if version == u64::from(VERSION) => {}
        Some(version) => return Err(format!("protocol version {version}, this side speaks {VERSION}")),
        None => return Err("no protocol version".to_owned()),
    }
    serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
