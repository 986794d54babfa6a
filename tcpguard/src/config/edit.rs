//! Changes single values of a configuration file and leaves everything else in it as it is, comments and order included.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use toml_edit::{ArrayOfTables, DocumentMut, InlineTable, Item, Table, TableLike, value};

use super::file::Written;
use super::write::service_keys;
use super::{ConfigError, Service, Tunable, Unit, Value, check_services, file};

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
    /// It could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// Sets a tunable in the file at `path`, in place of the value that is there. The file is replaced in one step: whoever reads
/// it finds the old one or the new one, whole.
///
/// # Errors
///
/// [`EditError`]; the file is then as it was.
pub fn save_tunable(path: &Path, tunable: &Tunable, number: Value) -> Result<(), EditError> {
    edit(path, |text| with_tunable(path, text, tunable, number))
}

/// Writes the service at `listen` into the file at `path`, in place of what it says of it, or takes it out when there is
/// none any more. The file is replaced as [`save_tunable`] replaces it.
///
/// # Errors
///
/// [`EditError`]; the file is then as it was.
pub fn save_service(path: &Path, listen: SocketAddr, service: Option<&Service>) -> Result<(), EditError> {
    edit(path, |text| with_service(path, text, listen, service))
}

fn edit(path: &Path, change: impl FnOnce(&str) -> Result<String, EditError>) -> Result<(), EditError> {
    let failed = |source| EditError::Io { path: path.to_owned(), source };
    // Behind a symbolic link lies what is meant.
    let target = path.canonicalize().map_err(failed)?;
    let text = fs::read_to_string(&target).map_err(failed)?;
    let changed = change(&text)?;
    replace(&target, &changed).map_err(failed)
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
    service: Option<&Service>,
) -> Result<String, EditError> {
    let (written, mut document) = document(path, text)?;
    let tables = document.entry("service").or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let tables = tables.as_array_of_tables_mut().ok_or_else(|| EditError::NotTables(path.to_owned()))?;
    // The reader has them in the same order.
    match (written.config.services.iter().position(|held| held.listen == listen), service) {
        (None, None) => return Err(EditError::NoService { path: path.to_owned(), listen }),
        (Some(index), None) => drop(tables.remove(index)),
        (None, Some(service)) => {
            let mut table = Table::new();
            set_keys(&mut table, &toml::Table::new(), &service_keys(service));
            tables.push(table);
        }
        (Some(index), Some(service)) => {
            if let Some(table) = tables.get_mut(index) {
                set_keys(table, &service_keys(&written.config.services[index]), &service_keys(service));
            }
        }
    }
    let changed = document.to_string();
    let services = file::parse(path, &changed)?.config.services;
    // Nothing is left for the file to say when the last one is the command line's.
    if !services.is_empty() {
        check_services(&services)
            .map_err(|error| ConfigError::Whole(format!("{}: {error}", path.display())))?;
    }
    Ok(changed)
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
    let changed = document.to_string();
    // Contradictions with what else is in there, too.
    let written = file::parse(path, &changed)?;
    written
        .config
        .tunables
        .check()
        .map_err(|error| ConfigError::Whole(format!("{}: {error}", path.display())))?;
    Ok(changed)
}

/// Puts `text` in place of the file, with the same owner and mode.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let held = fs::metadata(path)?;
    let suffix = getrandom::u64().map_err(|error| io::Error::other(error.to_string()))?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{suffix:016x}"));
    let temporary = PathBuf::from(temporary);
    let written = write_new(&temporary, text, &held).and_then(|()| fs::rename(&temporary, path));
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
            with_service(Path::new("f"), text, listen, service.as_ref()).map_err(|error| error.to_string())
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
        save_tunable(&link, tunable, tunable.value(9)).unwrap();
        assert_eq!(fs::read_to_string(&real).unwrap(), "[tunables]\nretries = 9\n");
        assert_eq!(real.metadata().unwrap().permissions().mode() & 0o777, 0o640);
        assert!(link.is_symlink());
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 2, "nothing is left over");
        let error = save_tunable(&directory.join("none"), tunable, tunable.value(9)).unwrap_err();
        assert!(error.to_string().contains("No such file"));
        fs::remove_dir_all(directory).unwrap();
    }
}
