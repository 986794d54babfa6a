//! What travels over the control socket: one JSON object a line, a request and its reply, both with the protocol's
//! version. Types only; sockets are the business of `server` and `client`.
//!
//! Numbers are exact and carry their unit in the field's name (`_ms`, bytes otherwise).

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr};

use serde::de::value::MapAccessDeserializer;
use serde::de::{Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::background::Pauses;

mod access;
mod changes;
mod events;
mod filters;
mod flows;
mod packets;
mod stats;
mod status;
mod versioned;

pub(super) use access::Effect;
pub use changes::{
    DryRunSet, KeysRotated, ModeSet, Reloaded, ServiceTuned, ServicesChanged, Tunable, Tunables, Tuned,
    TunedAll,
};
pub use events::{Attack, AttackPrefix, Event, Events, HookRuns};
pub use filters::{Filter, Filters, FiltersChanged};
pub use flows::{Flow, Flows, FlowsKilled, FlowsOfService, Sort, Which};
pub use packets::{Cookie, Explained, Packet, PacketsLost, Step};
pub use stats::{AMOUNTS, Engine, EngineName, GAPS, Groups, ReasonCount, ServiceCount, Stats, is_amount};
pub use status::{Backend, EngineState, HeldUp, Interface, Keys, Limit, Service, Status};
pub use versioned::{JSON_VERSION, Versioned};

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
    /// Every tunable, or the one called `name`; with a value, sets it. Of a service: what it may have for itself, and `inherit`
    /// gives it the common value again.
    Tune {
        /// Where its clients connect.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<SocketAddr>,
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
    /// Sets several tunables at once, or none of them.
    TuneAll {
        /// Values as users write them, by name.
        values: BTreeMap<String, String>,
    },
    /// Makes a change and has it taken back, with whatever else is changed until then, unless that is confirmed.
    OnProbation {
        /// Within so much time from when it is in force.
        seconds: u64,
        /// What else is asked for services, modes, tunables, filters or a reload.
        change: Box<Self>,
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
        /// Refuse to cut this session off.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        session: Option<Session>,
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
    /// What happened lately.
    Events {},
    /// What happened lately, and whatever happens until the client hangs up.
    EventsFollow {},
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
    /// The same of a service.
    ServiceTuned(ServiceTuned),
    /// To [`Request::TuneAll`].
    TunedAll(TunedAll),
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
    /// To [`Request::Events`].
    Events(Events),
    /// To [`Request::EventsFollow`], for each event.
    Event(Event),
    /// To [`Request::Filters`].
    Filters(Filters),
    /// To every other request about filters.
    FiltersChanged(FiltersChanged),
    /// To a part of a list that is not the last one.
    FiltersPart {},
    /// Nothing was done, or not all of it.
    Error(Refusal),
}

/// Why something was not done.
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
    /// The daemon could not do it; some of it may be done.
    Failed,
    /// Too many clients at once.
    Busy,
}

/// The configuration in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// As a file.
    pub toml: String,
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

    /// As [`Self::to_line`], with pauses: for a thread that others' work comes before.
    pub(super) fn to_long_line(&self) -> Vec<u8> {
        let mut long = LongLine { line: Vec::new(), next: 0, pauses: Pauses::begin() };
        // As in `to_line`.
        let _written = serde_json::to_writer(&mut long, &Line { v: VERSION, content: self });
        long.line.push(b'\n');
        long.line
    }

    /// Reads a line of [`Self::to_line`], with or without its newline. Straight from the text: as a tree of values a million
    /// flows would be gigabytes.
    pub fn from_line(line: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(line).map_err(|error| error.to_string()).and_then(|Answer(reply)| reply)
    }

    /// Whether putting it on a line takes long enough for others to notice.
    pub(super) fn is_long(&self) -> bool {
        match self {
            Self::Flows(flows) => flows.flows.len() > LONG,
            Self::Filters(filters) => filters.filters.len() > LONG,
            _ => false,
        }
    }

    /// Of a reply to what could be taken back: in how many milliseconds it is, unless it is confirmed.
    pub fn unconfirmed_ms(&mut self) -> Option<&mut Option<u64>> {
        match self {
            Self::ServicesChanged(changed) => Some(&mut changed.unconfirmed_ms),
            Self::Tuned(tuned) | Self::ServiceTuned(ServiceTuned { tuned, .. }) => {
                Some(&mut tuned.unconfirmed_ms)
            }
            Self::TunedAll(tuned) => Some(&mut tuned.unconfirmed_ms),
            Self::Reloaded(reloaded) => Some(&mut reloaded.unconfirmed_ms),
            Self::ModeSet(set) => Some(&mut set.unconfirmed_ms),
            Self::DryRunSet(set) => Some(&mut set.unconfirmed_ms),
            Self::FiltersChanged(changed) => Some(&mut changed.unconfirmed_ms),
            Self::Status(_)
            | Self::Stats(_)
            | Self::Flows(_)
            | Self::FlowsKilled(_)
            | Self::Tunables(_)
            | Self::Confirmed {}
            | Self::KeysRotated(_)
            | Self::Explained(_)
            | Self::Config(_)
            | Self::Cookie(_)
            | Self::Monitoring {}
            | Self::Packet(_)
            | Self::PacketsLost(_)
            | Self::Events(_)
            | Self::Event(_)
            | Self::Filters(_)
            | Self::FiltersPart {}
            | Self::Error(_) => None,
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

/// A line in the making, with pauses.
struct LongLine {
    line: Vec<u8>,
    /// How long it is when it is time to look at the time.
    next: usize,
    pauses: Pauses,
}

impl Write for LongLine {
    fn write(&mut self, part: &[u8]) -> io::Result<usize> {
        /// Bytes that are put together in some hundred microseconds.
        const AT_ONCE: usize = 1 << 16;
        self.line.extend_from_slice(part);
        if self.line.len() >= self.next {
            self.next = self.line.len() + AT_ONCE;
            self.pauses.take();
        }
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The version is judged before anything else is: another version's content is allowed to look like anything.
fn from_line<T: for<'a> Deserialize<'a>>(line: &[u8]) -> Result<T, String> {
    let mut object: serde_json::Map<String, Value> =
        serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let version = object.remove("v").as_ref().and_then(Value::as_u64);
    check(version.ok_or_else(|| "no protocol version".to_owned())?)?;
    serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())
}

fn check(version: u64) -> Result<(), String> {
    if version == u64::from(VERSION) {
        Ok(())
    } else {
        Err(format!("protocol version {version}, this side speaks {VERSION}"))
    }
}

/// A reply behind its version, or what is the matter with that.
struct Answer(Result<Reply, String>);

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Answer;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object that begins with the protocol's version")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Answer, A::Error> {
                if map.next_key::<String>()?.as_deref() != Some("v") {
                    return Err(A::Error::custom("no protocol version"));
                }
                if let Err(why) = check(map.next_value()?) {
                    while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                    return Ok(Answer(Err(why)));
                }
                Reply::deserialize(MapAccessDeserializer::new(map)).map(|reply| Answer(Ok(reply)))
            }
        }

        deserializer.deserialize_map(Reader)
    }
}

#[cfg(test)]
mod tests;
