//! Changes single values of a configuration file and leaves everything else in it as it is, comments and order included.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::file::Written;
use super::write::service_keys;
use super::{ConfigError, Service, Tunable, Unit, Value, file};

/// Why a file was not changed. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// What is in the file, or would be, is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `tunables` is there and is no table.
    #[error("{}: `tunables` is not a table", .0.display())]
    NotATable(PathBuf),
    /// The services are not written as tables of their own.
    #[error("{}: its services are not [[service]] tables", .0.display())]
    NotTables(PathBuf),
    /// The service is not the file's.
    #[error("{}: has no service {listen}", path.display())]
    NoService {
        /// Which file.
        path: PathBuf,
        /// Which service.
        listen: SocketAddr,
    },
    /// The service is not the file's to say: arguments do.
    #[error(
        "{}: service {listen} is not in it, but comes from --protect, and a file that says it as well would be refused; \
         write it there, and start the daemon without that argument",
        path.display()
    )]
    OfArguments {
        /// Which file.
        path: PathBuf,
        /// Which service.
        listen: SocketAddr,
    },
    /// A file like it could not be put in its place: a daemon that guards has no right any more to give files away, nor to
    /// write where its user may not.
    #[error(
        "{}: {source}; a daemon that guards may replace it only if file and directory are its own user's and group's \
         (chown root:root), or write it by hand and `tcpguard reload`",
        path.display()
    )]
    NotOurs {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What becomes of what a file says of a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceEdit {
    /// It is this, whatever it was.
    Put(Service),
    /// It has these keys, as [`Service::with_keys`] has them, and else what it had.
    Keys {
        /// The keys that change.
        keys: BTreeMap<String, String>,
        /// What is written if the file says nothing of the service.
        whole: Service,
    },
    /// It has this tunable, as [`Overrides::set`](super::Overrides::set) has it, and else what it had.
    Tunable {
        /// Its name.
        name: String,
        /// Its value.
        value: String,
        /// What is written if the file says nothing of the service.
        whole: Service,
    },
    /// It is not there any more.
    Remove,
}

impl ServiceEdit {
    /// The service as it is to be, where the file says `held` of it.
    fn of(&self, held: Option<&Service>) -> Result<Option<Service>, String> {
        let Some(held) = held else {
            return Ok(match self {
                Self::Put(whole) | Self::Keys { whole, .. } | Self::Tunable { whole, .. } => {
                    Some(whole.clone())
                }
                Self::Remove => None,
            });
        };
        match self {
            Self::Put(service) => Ok(Some(service.clone())),
            Self::Keys { keys, .. } => held.with_keys(keys).map(Some),
            Self::Tunable { name, value, .. } => {
                let mut service = held.clone();
                service.tunables.set(name, value).map_err(|error| error.to_string())?;
                Ok(Some(service))
            }
            Self::Remove => Ok(None),
        }
    }
}

/// Sets a tunable in the file at `path`, in place of the value that is there, if `judge` takes the file's new text for a good
/// one. The file is replaced in one step: whoever reads it finds the old one or the new one, whole.
///
/// # Errors
///
/// [`EditError`]; the file is then as it was.
pub fn save_tunable(
    path: &Path,
    tunable: &Tunable,
    number: Value,
    judge: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), EditError> {
    edit(path, |text| with_tunable(path, text, tunable, number), judge)
}

/// Changes what the file at `path` says of the service at `listen`. The file is judged and replaced as [`save_tunable`] does it.
///
/// # Errors
///
/// [`EditError`]; the file is then as it was.
pub fn save_service(
    path: &Path,
    listen: SocketAddr,
    service: &ServiceEdit,
    judge: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), EditError> {
    edit(path, |text| with_service(path, text, listen, service), judge)
}

fn edit(
    path: &Path,
    change: impl FnOnce(&str) -> Result<String, EditError>,
    judge: impl FnOnce(&str) -> Result<(), String>,
) -> Result<(), EditError> {
    let failed = |source| EditError::Io { path: path.to_owned(), source };
    // Behind a symbolic link lies what is meant.
    let target = path.canonicalize().map_err(failed)?;
    let text = fs::read_to_string(&target).map_err(failed)?;
    let changed = change(&text)?;
    judge(&changed).map_err(ConfigError::Whole)?;
    let held = fs::metadata(&target).map_err(failed)?;
    replace(&target, &changed, &held).map_err(|source| match source.kind() {
        io::ErrorKind::PermissionDenied => EditError::NotOurs { path: path.to_owned(), source },
        _ => failed(source),
    })
}

/// The changed text, if there is nothing wrong with it: the next daemon reads it, and what arguments add to it is not known.
fn checked(path: &Path, changed: String) -> Result<String, EditError> {
    match file::parse(path, &changed)?.config.check_part() {
        Ok(()) => Ok(changed),
        Err(message) => Err(ConfigError::Whole(format!("{}: {message}", path.display())).into()),
    }
}

/// The text as a document, if there is nothing wrong with it.
fn document(path: &Path, text: &str) -> Result<(Written, DocumentMut), ConfigError> {
    // Refuses what is wrong with it already, with the line.
    let written = file::parse(path, text)?;
    let damaged =
        |error: toml_edit::TomlError| ConfigError::Whole(format!("{}: {}", path.display(), error.message()));
    Ok((written, text.parse().map_err(damaged)?))
}

/// The text with the service put in, changed or taken out.
fn with_service(
    path: &Path,
    text: &str,
    listen: SocketAddr,
    edit: &ServiceEdit,
) -> Result<String, EditError> {
    let (written, mut document) = document(path, text)?;
    let tables = document.entry("service").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let tables = tables.as_array_of_tables_mut().ok_or_else(|| EditError::NotTables(path.to_owned()))?;
    // The reader has them in the same order.
    let services = &written.config.services;
    let index = services.iter().position(|held| held.listen == listen);
    let service = edit.of(index.map(|index| &services[index]));
    let service = service
        .map_err(|error| ConfigError::Whole(format!("{}: service {listen}: {error}", path.display())))?;
    match (index, &service) {
        (None, None) => return Err(EditError::NoService { path: path.to_owned(), listen }),
        (Some(index), None) => drop(tables.remove(index)),
        (None, Some(service)) => {
            let mut table = Table::new();
            set_keys(&mut table, &toml::Table::new(), &service_keys(service));
            tables.push(table);
        }
        (Some(index), Some(service)) => {
            if let Some(table) = tables.get_mut(index) {
                set_keys(table, &service_keys(&services[index]), &service_keys(service));
            }
        }
    }
    checked(path, document.to_string())
}

/// Makes a table say `new` where it said `old`; what both say stays as it is written.
fn set_keys(table: &mut dyn TableLike, old: &toml::Table, new: &toml::Table) {
    for key in old.keys().filter(|&key| !new.contains_key(key)) {
        table.remove(key);
    }
    for (key, wanted) in new.iter().filter(|&(key, wanted)| old.get(key) != Some(wanted)) {
        let mut item = match wanted {
            toml::Value::Table(wanted) => {
                let none = toml::Table::new();
                let old = old.get(key).and_then(toml::Value::as_table).unwrap_or(&none);
                let held = table.entry(key).or_insert(value(InlineTable::new()));
                if let Some(held) = held.as_table_like_mut() {
                    set_keys(held, old, wanted);
                }
                continue;
            }
            toml::Value::Array(values) => {
                value(values.iter().filter_map(toml::Value::as_str).collect::<toml_edit::Array>())
            }
            toml::Value::Integer(number) => value(*number),
            toml::Value::Boolean(word) => value(*word),
            other => value(other.as_str().unwrap_or_default()),
        };
        keep_decor(table.get(key), &mut item);
        *table.entry(key).or_insert(Item::None) = item;
    }
}

/// Keeps the comment behind a value.
fn keep_decor(old: Option<&Item>, new: &mut Item) {
    if let (Some(old), Some(new)) = (old.and_then(Item::as_value), new.as_value_mut()) {
        *new.decor_mut() = old.decor().clone();
    }
}

/// The text with the tunable set.
fn with_tunable(path: &Path, text: &str, tunable: &Tunable, number: Value) -> Result<String, EditError> {
    let (_, mut document) = document(path, text)?;
    let table = document.entry("tunables").or_insert_with(|| Item::Table(Table::new()));
    let table = table.as_table_like_mut().ok_or_else(|| EditError::NotATable(path.to_owned()))?;
    let mut new = match number.unit {
        Unit::Duration | Unit::Choice(_) => value(number.to_string()),
        Unit::Count => value(i64::try_from(number.number).unwrap_or(i64::MAX)),
    };
    keep_decor(table.get(tunable.name), &mut new);
    // Not `insert`, which forgets the comment above.
    *table.entry(tunable.name).or_insert(Item::None) = new;
    checked(path, document.to_string())
}

/// Puts `text` in place of the file, with the same owner and mode.
fn replace(path: &Path, text: &str, held: &fs::Metadata) -> io::Result<()> {
    let suffix = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{suffix:016x}"));
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, text, held).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        drop(fs::remove_file(&temporary));
    }
    written
}

fn write_new(path: &Path, text: &str, like: &fs::Metadata) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    chown(path, Some(like.uid()), Some(like.gid()))?;
    file.set_permissions(like.permissions())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn changed(text: &str, name: &str, new: &str) -> Result<String, String> {
        let tunable = Tunable::find(name).unwrap();
        let number = tunable.parse(new).unwrap();
        with_tunable(Path::new("f"), text, tunable, number).map_err(|error| error.to_string())
    }

    fn edited(text: &str, listen: SocketAddr, edit: &ServiceEdit) -> Result<String, String> {
        with_service(Path::new("f"), text, listen, edit).map_err(|error| error.to_string())
    }

    fn keys(keys: &[(&str, &str)]) -> BTreeMap<String, String> {
        keys.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn one_value_changes_and_everything_else_stays() {
        let text = "# Top.\nmax_flows = 4096 # Few.\n\n[tunables] # Timers.\n# How long.\ntime-wait   = \"30s\"   # Short.\nretries = 3\n";
        let expected = text.replace("\"30s\"", "\"1m\"");
        assert_eq!(changed(text, "time-wait", "60s").unwrap(), expected);
        assert_eq!(changed(text, "retries", "8").unwrap(), text.replace("= 3", "= 8"));
    }

    #[test]
    fn a_value_that_is_not_there_yet_is_added_and_its_table_too() {
        let text = "# Top.\n[tunables]\nretries = 3\n";
        assert_eq!(changed(text, "time-wait", "30s").unwrap(), format!("{text}time-wait = \"30s\"\n"));
        let text = "# Top.\nmax_flows = 4096 # Few.\n";
        assert_eq!(changed(text, "retries", "8").unwrap(), format!("{text}\n[tunables]\nretries = 8\n"));
    }

    #[test]
    fn services_come_change_and_go_and_what_else_is_said_of_them_stays() {
        let text = "# Top.\n[[service]] # Web.\nlisten = \"10.0.0.1:80\" # Here.\n# There.\nbackend = \"127.0.0.1:1\" # One.\nmode = \"auto\"\n\n[tunables]\nretries = 3\n";
        let listen = "10.0.0.1:80".parse().unwrap();
        let saved = |text: &str, listen, service: Option<&str>| {
            let service = service.map(|service| service.parse::<Service>().unwrap());
            edited(text, listen, &service.map_or(ServiceEdit::Remove, ServiceEdit::Put))
        };
        assert_eq!(saved(text, listen, Some("10.0.0.1:80=127.0.0.1:1,auto")).unwrap(), text);
        let two = saved(text, listen, Some("10.0.0.1:80=127.0.0.1:1,127.0.0.1:2,cookie")).unwrap();
        let expected = text.replace("\"127.0.0.1:1\"", "[\"127.0.0.1:1\", \"127.0.0.1:2\"]");
        assert_eq!(two, expected.replace("auto", "cookie"));
        let added = saved(text, "10.0.0.2:80".parse().unwrap(), Some("10.0.0.2:80=respond:echo")).unwrap();
        assert_eq!(file::parse(Path::new("f"), &added).unwrap().config.services.len(), 2);
        assert!(added.starts_with(text.split_once("[tunables]").unwrap().0), "{added}");
        let back = saved(&added, "10.0.0.2:80".parse().unwrap(), None).unwrap();
        assert_eq!(file::parse(Path::new("f"), &back).unwrap().config.services.len(), 1);
        assert_eq!(
            saved(text, "10.0.0.2:80".parse().unwrap(), None).unwrap_err(),
            "f: has no service 10.0.0.2:80"
        );
        assert!(!saved(text, listen, None).unwrap().contains("service"));
    }

    /// The rest of what is in force used to be saved with it.
    #[test]
    fn of_a_service_only_what_is_named_is_written_into_a_file_that_has_it() {
        let text = "[[service]]\nlisten = \"10.0.0.1:80\"\nbackend = \"127.0.0.1:1\"\nmode = \"auto\"\n";
        let listen = "10.0.0.1:80".parse().unwrap();
        // In force, but for as long as the daemon lives.
        let mut whole: Service = "10.0.0.1:80=127.0.0.1:1,off".parse().unwrap();
        whole.limits.connections = Some(7);
        let tune = |name: &str, value: &str| ServiceEdit::Tunable {
            name: name.to_owned(),
            value: value.to_owned(),
            whole: whole.clone(),
        };
        let tuned = edited(text, listen, &tune("retries", "3")).unwrap();
        assert_eq!(tuned, format!("{text}tunables = {{ retries = 3 }}\n"));
        assert_eq!(edited(&tuned, listen, &tune("retries", "inherit")).unwrap(), text);
        let set = |named: &[(&str, &str)]| ServiceEdit::Keys { keys: keys(named), whole: whole.clone() };
        let timed = edited(text, listen, &set(&[("idle_time", "90s")])).unwrap();
        assert_eq!(timed, format!("{text}idle_time = \"1m30s\"\n"));
        // What the file has of it may not go with that.
        let error = edited(text, listen, &set(&[("backend", "")])).unwrap_err();
        assert!(
            error.starts_with("f: service 10.0.0.1:80: ") && error.contains("neither a backend"),
            "{error}"
        );
        // Of one that it does not have, everything.
        let new = edited("max_flows = 4096\n", listen, &set(&[])).unwrap();
        assert!(new.contains("mode = \"off\"") && new.contains("max_connections = 7"), "{new}");
    }

    /// It used to become an empty word, which no file can have there.
    #[test]
    fn dry_run_is_written_as_a_file_has_it() {
        let text = "[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"echo\"\n";
        let listen = "10.0.0.1:80".parse().unwrap();
        let whole: Service = "10.0.0.1:80=respond:echo".parse().unwrap();
        let set = |value: &str| ServiceEdit::Keys { keys: keys(&[("dry_run", value)]), whole: whole.clone() };
        let on = edited(text, listen, &set("true")).unwrap();
        assert_eq!(on, format!("{text}dry_run = true\n"));
        assert_eq!(edited(&on, listen, &set("false")).unwrap(), text);
        let put = ServiceEdit::Put(Service { dry_run: true, ..whole.clone() });
        assert!(edited("", listen, &put).unwrap().contains("dry_run = true"));
    }

    /// Each used to be judged by what is in force, and the next daemon did not start.
    #[test]
    fn a_file_s_common_tunables_and_its_services_own_may_not_contradict_each_other() {
        let service = "[[service]]\nlisten = \"10.0.0.1:80\"\nrespond = \"echo\"\n";
        let listen = "10.0.0.1:80".parse().unwrap();
        let (name, value) = ("min-rto".to_owned(), "3s".to_owned());
        let whole: Service = "10.0.0.1:80=respond:echo".parse().unwrap();
        let own = ServiceEdit::Tunable { name, value, whole };
        let text = format!("{service}[tunables]\nmax-rto = \"2s\"\n");
        let why = "f: service 10.0.0.1:80: min-rto 3s is above max-rto 2s";
        assert_eq!(edited(&text, listen, &own).unwrap_err(), why);
        let text = format!("{service}tunables = {{ min-rto = \"3s\" }}\n");
        assert_eq!(changed(&text, "max-rto", "2s").unwrap_err(), why);
        assert!(changed(&text, "max-rto", "4s").is_ok());
    }

    #[test]
    fn a_file_that_is_no_good_or_would_not_be_is_refused() {
        let error = changed("[tunables]\nretries = 0\n", "time-wait", "30s").unwrap_err();
        assert!(error.starts_with("f:2: retries"), "{error}");
        let error = changed("[tunables]\nmax-rto = \"5s\"\n", "min-rto", "6s").unwrap_err();
        assert_eq!(error, "f: min-rto 6s is above max-rto 5s");
    }

    #[test]
    fn the_file_is_replaced_whole_with_owner_and_mode_through_a_link() {
        let directory = std::env::temp_dir().join(format!("tcpguard-edit-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let (real, link) = (directory.join("real.toml"), directory.join("link.toml"));
        fs::write(&real, "[tunables]\nretries = 3\n").unwrap();
        fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let tunable = Tunable::find("retries").unwrap();
        save_tunable(&link, tunable, tunable.value(9), |_| Ok(())).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "[tunables]\nretries = 9\n");
        assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing is left over");
        let none = directory.join("none");
        let error = save_tunable(&none, tunable, tunable.value(9), |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("No such file"));
        // What the arguments say to it counts as well.
        let judge = |text: &str| match text.contains("retries = 8") {
            true => Err("not with these arguments".to_owned()),
            false => Ok(()),
        };
        let error = save_tunable(&real, tunable, tunable.value(8), judge).unwrap_err();
        assert_eq!(error.to_string(), "not with these arguments");
        assert_eq!(fs::read_to_string(&real).unwrap(), "[tunables]\nretries = 9\n");
        fs::remove_dir_all(directory).unwrap();
    }
}
