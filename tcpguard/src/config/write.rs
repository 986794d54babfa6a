//! Writes a configuration as a file that `file` reads back to the same one.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{
    Action, BackendAddr, Backends, Balance, CONNECT_TIMEOUT, Config, Control, Destination, Events, Filter,
    FilterSet, Interface, Limits, MetricsListen, OnDaemonExit, Service, Source, TUNABLES, Tunables, Unit,
    Value, access, duration,
};

/// What a file cannot say.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: a path that is not UTF-8 cannot stand in a configuration file", .0.display())]
pub struct NotUtf8(PathBuf);

#[derive(Serialize)]
struct File<'a> {
    secret_file: Option<&'a str>,
    pin_dir: &'a str,
    max_flows: u32,
    on_daemon_exit: String,
    control: ControlTable<'a>,
    metrics: MetricsTable,
    interface: Vec<InterfaceTable<'a>>,
    service: Vec<ServiceTable>,
    filters: FiltersTable,
    events: EventsTable<'a>,
    tunables: BTreeMap<&'static str, Number>,
}

#[derive(Serialize)]
struct ControlTable<'a> {
    socket: &'a str,
    group: Option<&'a str>,
    mode: String,
    read_socket: Option<&'a str>,
    read_group: Option<&'a str>,
    read_mode: Option<String>,
}

#[derive(Serialize)]
struct MetricsTable {
    listen: Option<String>,
}

#[derive(Serialize)]
struct InterfaceTable<'a> {
    name: &'a str,
    mode: String,
    queues: Option<u32>,
    #[serde(skip_serializing_if = "<[u32]>::is_empty")]
    cpus: &'a [u32],
    busy_poll: bool,
    zero_copy: bool,
}

#[derive(Default, Serialize)]
struct ServiceTable {
    listen: String,
    backend: Option<Vec<String>>,
    balance: Option<String>,
    connect_timeout: Option<String>,
    proxy_protocol: Option<String>,
    source: Option<String>,
    respond: Option<String>,
    mode: String,
    dry_run: bool,
    max_connections: Option<u32>,
    idle_time: Option<String>,
    total_time: Option<String>,
    // Last: a table comes after all values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    tunables: BTreeMap<&'static str, Number>,
}

#[derive(Serialize)]
struct FiltersTable {
    deny: Vec<String>,
    allow: Vec<String>,
}

#[derive(Serialize)]
struct EventsTable<'a> {
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    hook: &'a [String],
    hook_time: String,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Number {
    Count(u64),
    Text(String),
}

impl Config {
    /// The configuration as a file, with every key that it sets and every tunable.
    ///
    /// # Errors
    ///
    /// [`NotUtf8`].
    pub fn to_toml(&self) -> Result<String, NotUtf8> {
        let Self {
            interfaces,
            services,
            tunables,
            secret_file,
            control,
            metrics,
            pin_dir,
            max_flows,
            on_daemon_exit,
            filters,
            events: Events { hook, hook_time },
        } = self;
        let file = File {
            secret_file: secret_file.as_deref().map(utf8).transpose()?,
            pin_dir: utf8(pin_dir)?,
            max_flows: *max_flows,
            on_daemon_exit: OnDaemonExit::to_string(on_daemon_exit),
            control: control_table(control)?,
            metrics: MetricsTable { listen: metrics.as_ref().map(MetricsListen::to_string) },
            interface: interfaces.iter().map(interface_table).collect(),
            // What goes to the program around us is said by that program.
            service: services
                .iter()
                .filter(|service| service.destination != Some(Destination::Application))
                .map(service_table)
                .collect(),
            filters: filters_table(filters),
            events: EventsTable { hook, hook_time: duration::format(*hook_time) },
            tunables: tunables_table(tunables),
        };
        // Plain data with string keys has no way to fail; an empty file would be refused wherever it is read.
        Ok(toml::to_string_pretty(&file).unwrap_or_default())
    }
}

fn utf8(path: &Path) -> Result<&str, NotUtf8> {
    path.to_str().ok_or_else(|| NotUtf8(path.to_owned()))
}

fn control_table(control: &Control) -> Result<ControlTable<'_>, NotUtf8> {
    let Control { socket, group, mode, readers } = control;
    let readers = readers.as_ref();
    Ok(ControlTable {
        socket: utf8(socket)?,
        group: group.as_deref(),
        mode: access::format_mode(*mode),
        read_socket: readers.map(|readers| utf8(&readers.socket)).transpose()?,
        read_group: readers.and_then(|readers| readers.group.as_deref()),
        read_mode: readers.map(|readers| access::format_mode(readers.mode)),
    })
}

fn interface_table(interface: &Interface) -> InterfaceTable<'_> {
    let Interface { name, mode, queues, cpus, busy_poll, zero_copy } = interface;
    let (busy_poll, zero_copy) = (*busy_poll, *zero_copy);
    InterfaceTable { name, mode: mode.to_string(), queues: *queues, cpus, busy_poll, zero_copy }
}

fn service_table(service: &Service) -> ServiceTable {
    let Service { listen, mode, dry_run, destination, limits, tunables } = service;
    let Limits { connections, idle_time, total_time } = limits;
    let table = ServiceTable {
        listen: listen.to_string(),
        mode: mode.to_string(),
        dry_run: *dry_run,
        max_connections: *connections,
        idle_time: idle_time.map(duration::format),
        total_time: total_time.map(duration::format),
        tunables: tunables.iter().map(|(name, value)| (name, number(value))).collect(),
        ..ServiceTable::default()
    };
    match destination {
        Some(Destination::Backends(Backends { addrs, balance, connect_timeout, proxy_protocol, source })) => {
            ServiceTable {
                backend: Some(addrs.iter().map(BackendAddr::to_string).collect()),
                balance: Some(balance.to_string()),
                connect_timeout: Some(duration::format(*connect_timeout)),
                proxy_protocol: proxy_protocol.map(|version| version.to_string()),
                source: Some(source.to_string()),
                ..table
            }
        }
        Some(Destination::Responder(responder)) => {
            ServiceTable { respond: Some(responder.to_string()), ..table }
        }
        Some(Destination::Application) | None => table,
    }
}

/// A service as the `[[service]]` table that says it, with everything in it that is not as it is by default.
pub(super) fn service_keys(service: &Service) -> toml::Table {
    let mut table = service_table(service);
    let is_default = |word: &Option<String>, default: String| word.as_ref() == Some(&default);
    if is_default(&table.balance, Balance::default().to_string()) {
        table.balance = None;
    }
    if is_default(&table.connect_timeout, duration::format(CONNECT_TIMEOUT)) {
        table.connect_timeout = None;
    }
    if is_default(&table.source, Source::default().to_string()) {
        table.source = None;
    }
    // Plain data with string keys has no way to fail; a service without an address is refused wherever it is read.
    let mut keys = toml::Table::try_from(table).unwrap_or_default();
    if !service.dry_run {
        keys.remove("dry_run");
    }
    keys
}

fn filters_table(filters: &FilterSet) -> FiltersTable {
    let list = |action: Action| {
        let listed = filters.iter().filter(|filter| filter.action == action);
        listed.map(Filter::to_string).collect()
    };
    FiltersTable { deny: list(Action::Deny), allow: list(Action::Allow) }
}

fn tunables_table(tunables: &Tunables) -> BTreeMap<&'static str, Number> {
    TUNABLES.iter().map(|tunable| (tunable.name, number(tunable.get(tunables)))).collect()
}

/// A tunable's value as the file has it.
fn number(value: Value) -> Number {
    match value.unit {
        Unit::Duration | Unit::Choice(_) => Number::Text(value.to_string()),
        Unit::Count => Number::Count(value.number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{AttachMode, Overrides, ProxyProtocol, Readers, ServiceMode, file};
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::time::Duration;

    fn read_back(config: &Config) -> Config {
        let text = config.to_toml().unwrap();
        let written =
            file::parse(Path::new("written"), &text).unwrap_or_else(|error| panic!("{error}\n{text}"));
        written.config
    }

    #[test]
    fn everything_that_a_configuration_can_say_is_read_back() {
        let mut config = Config::empty();
        config.interfaces.push(Interface::new("eth0", AttachMode::Generic, Some(3)).unwrap());
        config.interfaces.push(Interface::new("a\"b'c", AttachMode::Native, None).unwrap());
        config.services.push("192.0.2.1:80=127.0.0.1:8080".parse().unwrap());
        config.services.push("[2001:db8::1]:22=off".parse().unwrap());
        assert_eq!(config.services[1].mode, ServiceMode::Off);
        config.services.push("192.0.2.1:7=respond:echo".parse().unwrap());
        let limits = Limits {
            connections: Some(7),
            idle_time: Some(Duration::from_secs(90)),
            total_time: Some(Duration::from_millis(1500)),
        };
        let mut relayed =
            Backends::new(["[::1]:1", "unix:/a b"].map(|addr| addr.parse().unwrap()).into()).unwrap();
        relayed.balance = Balance::LeastConnections;
        relayed.connect_timeout = Duration::from_millis(100);
        relayed.proxy_protocol = Some(ProxyProtocol::V1);
        let mut transparent = Backends::new(vec!["127.0.0.1:9".parse().unwrap()]).unwrap();
        transparent.source = Source::Client;
        let destination = Some(Destination::Backends(transparent));
        config.services.push(Service { destination, ..config.services[0].clone() });
        config.services[3].listen = "192.0.2.1:9".parse().unwrap();
        let destination = Some(Destination::Backends(relayed));
        let mut own = Overrides::default();
        for (name, value) in [("retries", "3"), ("fin-wait-2", "1s500ms"), ("strict", "never")] {
            own.set(name, value).unwrap();
        }
        let listen = "192.0.2.1:8".parse().unwrap();
        config.services.push(Service {
            listen,
            mode: ServiceMode::Cookie,
            dry_run: true,
            destination,
            limits,
            tunables: own,
        });
        config.secret_file = Some("/a b/\\\"\n\u{e9}".into());
        let readers = Readers { socket: "/r".into(), group: Some("users".into()), mode: 0o666 };
        config.control =
            Control { socket: "/s".into(), group: Some("adm".into()), mode: 0o600, readers: Some(readers) };
        config.metrics = Some("unix:/m".parse().unwrap());
        config.pin_dir = "/pins".into();
        config.max_flows = 4096;
        config.on_daemon_exit = OnDaemonExit::Drop;
        for line in ["deny 10.0.0.0/8", "allow 10.1.0.0/16 expires 1h30m", "deny ::/0 expires 500ms"] {
            config.filters.insert(Filter::parse(line, None).unwrap()).unwrap();
        }
        config.events =
            Events { hook: vec!["/bin/a b".into(), "\"".into()], hook_time: Duration::from_secs(3) };
        config.tunables.set("time-wait", "1s500ms").unwrap();
        config.tunables.set("retries", "7").unwrap();
        assert_eq!(read_back(&config), config);
        assert_eq!(read_back(&Config::empty()), Config::empty());
    }

    #[test]
    fn a_path_that_a_file_cannot_name_is_refused() {
        let config = Config { pin_dir: OsStr::from_bytes(b"/\xff").into(), ..Config::empty() };
        assert!(config.to_toml().unwrap_err().to_string().contains("not UTF-8"));
    }

    proptest! {
        #[test]
        fn every_value_of_every_tunable_is_read_back(number: u64) {
            let mut config = Config::empty();
            for tunable in TUNABLES {
                let number = tunable.min + number % (tunable.max - tunable.min + 1);
                config.tunables.set(tunable.name, &tunable.value(number).to_string()).unwrap();
            }
            prop_assert_eq!(read_back(&config), config);
        }
    }
}
