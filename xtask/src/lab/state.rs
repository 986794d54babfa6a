//! What a lab leaves on the machine besides its namespaces: one directory under /run, held by a file lock that the
//! kernel releases whatever ends the process, so that a dead lab is told from a living one; and a small process that
//! outlives us just long enough to remove the lab should we be killed.

use std::fs::{self, File};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use super::namespace;

const ROOT: &str = "/run/tcpguard-lab";
const BPFFS: &str = "/sys/fs/bpf";
/// Present in a lab that shall outlive the process that made it; the name it was kept under is in it.
const KEPT: &str = "kept";

/// A lab's directory. Dropping it removes everything that carries the lab's name, unless it was [kept](Self::keep).
#[derive(Debug)]
pub(super) struct State {
    id: String,
    keep: bool,
    heir: Child,
    _lock: File,
}

/// What the heir does: waits until our end of its standard input closes, which the kernel sees to, then removes all
/// that carries the lab's name. Signals for our process group do not concern it.
const HEIR: &str = "trap '' INT TERM HUP
cat >/dev/null
for path in /run/netns/\"$1\"-*; do
  [ -e \"$path\" ] || continue
  name=${path##*/}
  ip netns pids \"$name\" | xargs -r kill -KILL
  ip netns del \"$name\"
done
rm -rf \"/sys/fs/bpf/$1\" \"/run/tcpguard-lab/$1\"";

impl State {
    /// Sweeps away dead labs, then claims a new name.
    pub(super) fn claim() -> Result<Self> {
        static LABS: AtomicU32 = AtomicU32::new(0);
        let _turn = turn()?;
        sweep(None)?;
        let id = format!("tcpguard-{}-{}", std::process::id(), LABS.fetch_add(1, Ordering::Relaxed));
        let dir = Path::new(ROOT).join(&id);
        fs::create_dir_all(&dir)?;
        let lock = File::create(dir.join("lock"))?;
        lock.try_lock().with_context(|| format!("locking {}", dir.display()))?;
        let mut heir = Command::new("sh");
        heir.args(["-c", HEIR, "tcpguard-lab", &id]).process_group(0);
        heir.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let heir = heir.spawn().context("starting the lab's heir")?;
        Ok(Self { id, keep: false, heir, _lock: lock })
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn dir(&self) -> PathBuf {
        Path::new(ROOT).join(&self.id)
    }

    pub(super) fn pin_dir(&self) -> PathBuf {
        Path::new(BPFFS).join(&self.id)
    }

    /// Leaves the lab standing until [`sweep_kept`] with this name.
    pub(super) fn keep(&mut self, name: &str) -> Result<()> {
        fs::write(self.dir().join(KEPT), name)?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for State {
    fn drop(&mut self) {
        // Killed before its input closes, it removes nothing.
        let _ = self.heir.kill();
        let _ = self.heir.wait();
        if !self.keep {
            remove(&self.id);
        }
    }
}

/// Removes what was kept under this name, and returns what it was called on the machine.
pub(super) fn sweep_kept(name: &str) -> Result<Vec<String>> {
    let _turn = turn()?;
    sweep(Some(name))
}

/// The newest lab that was kept under this name.
pub(super) fn kept(name: &str) -> Result<Option<String>> {
    let _turn = turn()?;
    let labs = fs::read_dir(ROOT)?.flatten().filter(|lab| kept_as(&lab.path()).as_deref() == Some(name));
    let newest = labs.max_by_key(|lab| lab.metadata().and_then(|about| about.modified()).ok());
    Ok(newest.and_then(|lab| lab.file_name().into_string().ok()))
}

/// Serialises claiming and sweeping: a lab is never seen between its directory and its lock.
fn turn() -> Result<File> {
    if !crate::tool::is_root() {
        bail!("the lab needs root: it makes network namespaces and loads XDP programs");
    }
    fs::create_dir_all(ROOT)?;
    let turn = File::create(Path::new(ROOT).join("lock"))?;
    turn.lock()?;
    Ok(turn)
}

/// The name under which the lab in this directory was kept; nothing if it was not.
fn kept_as(dir: &Path) -> Option<String> {
    fs::read_to_string(dir.join(KEPT)).ok()
}

/// Removes labs whose process is gone: those that nobody kept, or those kept under this name.
fn sweep(kept: Option<&str>) -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(ROOT)?.flatten().filter(|entry| entry.path().is_dir()) {
        let alive = File::open(entry.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_err());
        let Ok(id) = entry.file_name().into_string() else { continue };
        if !alive && kept_as(&entry.path()).as_deref() == kept {
            remove(&id);
            swept.push(id);
        }
    }
    Ok(swept)
}

/// Removes everything that carries the lab's name: processes, namespaces, pins, files. Goes on past failures.
fn remove(id: &str) {
    for name in namespace::named(&format!("{id}-")) {
        namespace::remove(&name);
    }
    let _ = fs::remove_dir_all(Path::new(BPFFS).join(id));
    let _ = fs::remove_dir_all(Path::new(ROOT).join(id));
}
