//! Changes single values of a configuration file and leaves everything else in it as it is, comments and order included.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};

use toml_edit::{DocumentMut, Item, Table, value};

use super::{ConfigError, Tunable, Unit, Value, file};

/// Why a file was not changed. Displays as one line.
#[derive(Debug, thiserror::Error)]
pub enum EditError {
    /// What is in the file, or would be, is no good.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// `tunables` is there and is no table.
    #[error("{}: `tunables` is not a table", .0.display())]
    NotATable(PathBuf),
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
    let failed = |source| EditError::Io { path: path.to_owned(), source };
    // Behind a symbolic link lies what is meant.
    let target = path.canonicalize().map_err(failed)?;
    let text = fs::read_to_string(&target).map_err(failed)?;
    let changed = with_tunable(path, &text, tunable, number)?;
    replace(&target, &changed).map_err(failed)
}

/// The text with the tunable set.
fn with_tunable(path: &Path, text: &str, tunable: &Tunable, number: Value) -> Result<String, EditError> {
    // Refuses what is wrong with it already, with the line.
    file::parse(path, text)?;
    let damaged =
        |error: toml_edit::TomlError| ConfigError::Whole(format!("{}: {}", path.display(), error.message()));
    let mut document: DocumentMut = text.parse().map_err(damaged)?;
    let table = document.entry("tunables").or_insert_with(|| Item::Table(Table::new()));
    let table = table.as_table_like_mut().ok_or_else(|| EditError::NotATable(path.to_owned()))?;
    let mut new = match number.unit {
        Unit::Duration | Unit::Choice(_) => value(number.to_string()),
        Unit::Count => value(i64::try_from(number.number).unwrap_or(i64::MAX)),
    };
    if let (Some(old), Some(new)) = (table.get(tunable.name).and_then(Item::as_value), new.as_value_mut()) {
        // The comment behind it.
        *new.decor_mut() = old.decor().clone();
    }
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
