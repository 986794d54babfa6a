//! Reads the TOML file. Every refusal carries the file and the line, contradictions included. The command line may add
//! to what a file says: the whole is checked last.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::shown::brief;
use super::{
    Action, AttachMode, Backends, Balance, Config, ConfigError, Control, Destination, Events, Filter,
    FilterSet, Interface, Limits, MetricsListen, OnDaemonExit, Overrides, Part, ProxyProtocol, Readers,
    Responder, Service, ServiceMode, Source as BackendSource, access, events, near,
};

/// With room for as many filters as there may be: what is larger is some other file.
const MAX_FILE: u64 = 32 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    #[serde(default)]
    interface: Vec<RawInterface>,
    #[serde(default)]
    service: Vec<RawService>,
    #[serde(default)]
    tunables: BTreeMap<Spanned<String>, Spanned<RawValue>>,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    filters: RawFilters,
    #[serde(default)]
    events: RawEvents,
    #[serde(default)]
    metrics: RawMetrics,
    secret_file: Option<PathBuf>,
    pin_dir: Option<PathBuf>,
    max_flows: Option<Spanned<i64>>,
    on_daemon_exit: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawInterface {
    name: Spanned<String>,
    mode: Option<Spanned<String>>,
    queues: Option<Spanned<i64>>,
    cpus: Option<Spanned<Vec<i64>>>,
    #[serde(default)]
    busy_poll: bool,
    zero_copy: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawService {
    listen: Spanned<String>,
    backend: Option<Spanned<RawBackends>>,
    balance: Option<Spanned<String>>,
    connect_timeout: Option<Spanned<String>>,
    proxy_protocol: Option<Spanned<String>>,
    source: Option<Spanned<String>>,
    respond: Option<Spanned<String>>,
    mode: Option<Spanned<String>>,
    #[serde(default)]
    dry_run: bool,
    max_connections: Option<Spanned<i64>>,
    idle_time: Option<Spanned<String>>,
    total_time: Option<Spanned<String>>,
    #[serde(default)]
    tunables: BTreeMap<Spanned<String>, Spanned<RawValue>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected \"ADDR:PORT\", or a list of them")]
enum RawBackends {
    One(String),
    Several(Vec<String>),
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    socket: Option<PathBuf>,
    group: Option<String>,
    mode: Option<Spanned<String>>,
    read_socket: Option<Spanned<PathBuf>>,
    read_group: Option<Spanned<String>>,
    read_mode: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFilters {
    #[serde(default)]
    deny: Vec<Spanned<String>>,
    #[serde(default)]
    allow: Vec<Spanned<String>>,
    #[serde(default)]
    files: Vec<Spanned<PathBuf>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEvents {
    hook: Option<Spanned<Vec<String>>>,
    hook_time: Option<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a value such as \"30s\" or 5")]
enum RawValue {
    Text(String),
    Number(i64),
}

impl RawValue {
    /// As on the command line.
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
        }
    }
}

/// What a file says, and where.
#[derive(Clone, Debug)]
pub struct Written {
    /// Every part is good by itself; the whole is still to be checked, because the command line may add to it.
    pub config: Config,
    path: PathBuf,
    lines: Lines,
}

/// In which line each part begins.
#[derive(Clone, Debug, Default)]
struct Lines {
    interfaces: Vec<usize>,
    services: Vec<usize>,
    tunables: BTreeMap<String, usize>,
    hook: Option<usize>,
    read_socket: Option<usize>,
    metrics: Option<usize>,
}

impl Lines {
    /// The line of a part, unless the file says nothing of it.
    fn of(&self, part: Part, message: &str) -> Option<usize> {
        match part {
            Part::Whole => None,
            Part::Interface(index) => self.interfaces.get(index).copied(),
            Part::Service(index) => self.services.get(index).copied(),
            Part::Tunables => {
                let words = message.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
                words.filter_map(|word| self.tunables.get(word).copied()).max()
            }
            Part::ReadSocket => self.read_socket,
            Part::Metrics => self.metrics,
        }
    }
}

impl Written {
    /// Checks `whole`: this file's configuration, or what became of it when more was added at the end.
    ///
    /// # Errors
    ///
    /// The first contradiction, with the line if it is the file's.
    pub fn check(&self, whole: &Config) -> Result<(), ConfigError> {
        let Err(contradiction) = whole.contradiction() else { return Ok(()) };
        let (path, message) = (self.path.clone(), contradiction.message);
        Err(match self.lines.of(contradiction.part, &message) {
            Some(line) => ConfigError::At { path, line, message },
            None => ConfigError::Whole(format!("{}: {message}", path.display())),
        })
    }
}

impl Written {
    /// What is no error in the file, but will not work on this machine as it is now; each with its line.
    pub fn doubts(&self) -> Vec<String> {
        let (path, line) = (self.path.display(), self.lines.hook.unwrap_or_default());
        let trouble = self.config.events.trouble();
        trouble.into_iter().map(|trouble| format!("{path}:{line}: {trouble}")).collect()
    }
}

/// Reads the file at `path`.
///
/// # Errors
///
/// The first thing in it that cannot be, with its line.
pub fn read(path: &Path) -> Result<Written, ConfigError> {
    let file = File::open(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    read_from(path, file)
}

/// As [`read`], from anywhere; `path` is for the messages.
///
/// # Errors
///
/// The first thing in it that cannot be, with its line.
pub fn read_from(path: &Path, source: impl Read) -> Result<Written, ConfigError> {
    let failed = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    source.take(MAX_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE {
        return Err(failed(std::io::Error::other(format!("larger than {MAX_FILE} bytes"))));
    }
    parse(path, &text)
}

/// Reads the text of a file; `path` is for the messages.
///
/// # Errors
///
/// The first thing in it that cannot be, with its line.
pub fn parse(path: &Path, text: &str) -> Result<Written, ConfigError> {
    let source = Source::new(path, text);
    let raw: RawFile = toml::from_str(text).map_err(|error| {
        source.error(error.span().map_or(0, |span| span.start), with_suggestion(one_line(error.message())))
    })?;
    // Before each of them is looked at.
    super::check_service_count(raw.service.len())
        .map_err(|message| ConfigError::Whole(format!("{}: {message}", path.display())))?;
    let mut config = Config::empty();
    let mut lines = Lines::default();
    for interface in raw.interface {
        lines.interfaces.push(source.line(interface.name.span().start));
        config.interfaces.push(read_interface(&source, interface)?);
    }
    for service in raw.service {
        lines.services.push(source.line(service.listen.span().start));
        config.services.push(read_service(&source, service)?);
    }
    for (name, value) in &raw.tunables {
        let set = config.tunables.set(name.get_ref(), &value.get_ref().text());
        set.map_err(|error| source.error(name.span().start, error.to_string()))?;
        lines.tunables.insert(name.get_ref().clone(), source.line(name.span().start));
    }
    lines.read_socket = raw.control.read_socket.as_ref().map(|path| source.line(path.span().start));
    lines.metrics = raw.metrics.listen.as_ref().map(|listen| source.line(listen.span().start));
    config.control = read_control(&source, raw.control)?;
    config.metrics = source.maybe(&raw.metrics.listen, |listen| listen.parse::<MetricsListen>())?;
    config.secret_file = raw.secret_file;
    if let Some(dir) = raw.pin_dir {
        config.pin_dir = dir;
    }
    if let Some(flows) = raw.max_flows {
        config.max_flows = source.at(&flows, |&flows| super::check_max_flows(flows))?;
    }
    if let Some(action) = raw.on_daemon_exit {
        config.on_daemon_exit = source.at(&action, |action| action.parse::<OnDaemonExit>())?;
    }
    config.filters = read_filters(&source, &raw.filters)?;
    lines.hook = raw.events.hook.as_ref().map(|hook| source.line(hook.span().start));
    config.events = read_events(&source, raw.events)?;
    Ok(Written { config, path: path.to_owned(), lines })
}

/// Reads one `[[service]]` table, without its header.
///
/// # Errors
///
/// The first thing in it that cannot be, without a line.
pub(super) fn parse_service(text: &str) -> Result<Service, String> {
    let source = Source::new(Path::new(""), text);
    let raw: RawService = toml::from_str(text).map_err(|error| with_suggestion(one_line(error.message())))?;
    read_service(&source, raw).map_err(|error| match error {
        ConfigError::At { message, .. } | ConfigError::Whole(message) => message,
        ConfigError::Read { .. } => error.to_string(),
    })
}

fn read_filters(source: &Source<'_>, raw: &RawFilters) -> Result<FilterSet, ConfigError> {
    let mut filters = FilterSet::default();
    for (action, list) in [(Action::Deny, &raw.deny), (Action::Allow, &raw.allow)] {
        for text in list {
            source.at(text, |text| match Filter::parse(text, Some(action))? {
                filter if filter.action == action => filters.insert(filter),
                filter => Err(format!("`{text}` in the list of what to {action}: not {}", filter.action)),
            })?;
        }
    }
    for path in &raw.files {
        filters.read_file(path.get_ref()).map_err(|error| match error {
            // Which line of the configuration names a file that is not there helps more than the bare name.
            ConfigError::Read { .. } => source.error(path.span().start, error.to_string()),
            ConfigError::At { .. } | ConfigError::Whole(_) => error,
        })?;
    }
    Ok(filters)
}

fn read_control(source: &Source<'_>, raw: RawControl) -> Result<Control, ConfigError> {
    let default = Control::default();
    let read_mode = source.maybe(&raw.read_mode, |mode| access::read_mode(mode))?;
    let readers = match raw.read_socket {
        Some(socket) => {
            let (group, mode) = (raw.read_group.map(Spanned::into_inner), read_mode);
            let mode = mode.unwrap_or(access::DEFAULT_MODE);
            Some(Readers { socket: socket.into_inner(), group, mode })
        }
        None => match [&raw.read_group, &raw.read_mode].into_iter().flatten().next() {
            Some(alone) => {
                let message = "only a daemon with a read_socket has this".to_owned();
                return Err(source.error(alone.span().start, message));
            }
            None => None,
        },
    };
    let mode = source.maybe(&raw.mode, |mode| access::mode(mode))?;
    Ok(Control {
        socket: raw.socket.unwrap_or(default.socket),
        group: raw.group,
        mode: mode.unwrap_or(default.mode),
        readers,
    })
}

fn read_events(source: &Source<'_>, raw: RawEvents) -> Result<Events, ConfigError> {
    source.maybe(&raw.hook, |hook| events::check_hook(hook))?;
    let time = source.maybe(&raw.hook_time, |text| events::hook_time(text))?;
    let default = Events::default();
    Ok(Events {
        hook: raw.hook.map_or(default.hook, Spanned::into_inner),
        hook_time: time.unwrap_or(default.hook_time),
    })
}

fn read_interface(source: &Source<'_>, raw: RawInterface) -> Result<Interface, ConfigError> {
    let mode = match &raw.mode {
        Some(mode) => source.at(mode, |mode| mode.parse::<AttachMode>())?,
        None => AttachMode::default(),
    };
    let queues = match &raw.queues {
        Some(queues) => Some(source.at(queues, |&queues| {
            u32::try_from(queues).map_err(|_| format!("queues: {queues} is not a number of queues"))
        })?),
        None => None,
    };
    let cpus = source.maybe(&raw.cpus, |cpus| cpus.iter().map(|&cpu| super::check_cpu(cpu)).collect())?;
    let interface = source.at(&raw.name, |name| Interface::new(name, mode, queues))?;
    let zero_copy = raw.zero_copy.unwrap_or(interface.zero_copy);
    Ok(Interface { cpus: cpus.unwrap_or_default(), busy_poll: raw.busy_poll, zero_copy, ..interface })
}

fn read_service(source: &Source<'_>, raw: RawService) -> Result<Service, ConfigError> {
    let mode = match &raw.mode {
        Some(mode) => source.at(mode, |mode| mode.parse::<ServiceMode>())?,
        None => ServiceMode::default(),
    };
    let destination = read_destination(source, &raw)?;
    let listen = source.at(&raw.listen, |listen| super::listen_address(listen))?;
    if let Some(Destination::Backends(backends)) = &destination {
        source.maybe(&raw.source, |_| backends.check_source(listen))?;
    }
    if mode != ServiceMode::Off && destination.is_none() {
        let message = format!(
            "service {listen}: neither a backend nor a responder; add backend = \"ADDR:PORT\", or respond = \"http\""
        );
        return Err(source.error(raw.listen.span().start, message));
    }
    let time_limit = |text: &String| super::destination::time_limit(text);
    let limits = Limits {
        connections: source
            .maybe(&raw.max_connections, |&count| super::destination::connection_limit(count))?,
        idle_time: source.maybe(&raw.idle_time, time_limit)?,
        total_time: source.maybe(&raw.total_time, time_limit)?,
    };
    let mut tunables = Overrides::default();
    for (name, value) in &raw.tunables {
        let set = tunables.set(name.get_ref(), &value.get_ref().text());
        set.map_err(|error| source.error(name.span().start, error.to_string()))?;
    }
    Ok(Service { listen, mode, dry_run: raw.dry_run, destination, limits, tunables })
}

fn read_destination(source: &Source<'_>, raw: &RawService) -> Result<Option<Destination>, ConfigError> {
    let Some(backend) = &raw.backend else {
        let meaningless = [&raw.balance, &raw.connect_timeout, &raw.proxy_protocol, &raw.source];
        if let Some(setting) = meaningless.into_iter().flatten().next() {
            return Err(
                source.error(setting.span().start, "only a service with a backend has this".to_owned())
            );
        }
        let responder = source.maybe(&raw.respond, |respond| respond.parse::<Responder>())?;
        return Ok(responder.map(Destination::Responder));
    };
    if let Some(respond) = &raw.respond {
        let message = "both a backend and a responder: which of them?".to_owned();
        return Err(source.error(respond.span().start, message));
    }
    let mut backends = source.at(backend, |backend| {
        let addrs = match backend {
            RawBackends::One(addr) => std::slice::from_ref(addr),
            RawBackends::Several(addrs) => addrs,
        };
        Backends::new(addrs.iter().map(|addr| addr.parse()).collect::<Result<_, _>>()?)
    })?;
    if let Some(balance) = source.maybe(&raw.balance, |balance| balance.parse::<Balance>())? {
        backends.balance = balance;
    }
    if let Some(timeout) =
        source.maybe(&raw.connect_timeout, |timeout| super::destination::time_limit(timeout))?
    {
        backends.connect_timeout = timeout;
    }
    backends.proxy_protocol =
        source.maybe(&raw.proxy_protocol, |version| version.parse::<ProxyProtocol>())?;
    if let Some(from) = source.maybe(&raw.source, |from| from.parse::<BackendSource>())? {
        backends.source = from;
    }
    Ok(Some(Destination::Backends(backends)))
}

struct Source<'a> {
    path: &'a Path,
    /// Where lines end.
    ends: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(path: &'a Path, text: &str) -> Self {
        Self { path, ends: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    fn at<T, U>(
        &self,
        value: &Spanned<T>,
        read: impl FnOnce(&T) -> Result<U, String>,
    ) -> Result<U, ConfigError> {
        read(value.get_ref()).map_err(|message| self.error(value.span().start, message))
    }

    /// As [`Self::at`], for what need not be there.
    fn maybe<T, U>(
        &self,
        value: &Option<Spanned<T>>,
        read: impl FnOnce(&T) -> Result<U, String>,
    ) -> Result<Option<U>, ConfigError> {
        value.as_ref().map(|value| self.at(value, read)).transpose()
    }

    fn error(&self, offset: usize, message: String) -> ConfigError {
        // A message may quote what stands in the file, line breaks included.
        let message = brief(&one_line(&message));
        ConfigError::At { path: self.path.to_owned(), line: self.line(offset), message }
    }

    fn line(&self, offset: usize) -> usize {
        1 + self.ends.partition_point(|&end| end < offset)
    }
}

/// To "unknown field `x`, expected one of `a`, `b`": which of them was meant, if one is near.
fn with_suggestion(message: String) -> String {
    if !message.starts_with("unknown field") {
        return message;
    }
    let mut names = message.split('`').skip(1).step_by(2);
    let meant = names.next().map_or_else(String::new, |unknown| near::suggestion(unknown, names));
    message + &meant
}

fn one_line(message: &str) -> String {
    message.lines().map(str::trim).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests;
