//! Changes that come from outside the control socket's small requests: the configuration file read again, the secret
//! replaced. Each is judged whole first; connections live through all of them.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::signal::unix::Signal;
use tracing::{error, info};

use crate::config::{
    Config, Destination, EditError, FilterSet, Service, TUNABLES, Tunable, Tunables, save_tunable,
};
use crate::dataplane::MasterSecret;

use super::daemon::DaemonError;
use super::filters::{Change, Filters};
use super::guard::{Guard, Turn};
use super::protocol::{self as wire, Fault, Refusal, Reply, Request, Session};

/// Where a daemon's configuration came from.
#[derive(Clone)]
pub struct Origin {
    /// The file.
    pub file: PathBuf,
    /// Services that the arguments add to it.
    pub protected: Vec<SocketAddr>,
    /// Reads it again, or a text as if it were the file's, with the same arguments on top. The error is one line.
    pub read: Arc<ReadFile>,
}

/// See [`Origin::read`].
pub type ReadFile = dyn Fn(Option<&str>) -> Result<Config, String> + Send + Sync;

/// A file that was read again.
pub(super) struct Read {
    file: PathBuf,
    new: Config,
    secret: Option<MasterSecret>,
}

impl fmt::Debug for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Origin").field(&self.file).finish()
    }
}

/// Reads the file again whenever SIGHUP asks for it, and says what came of it.
pub(super) async fn on_hangup(guard: &Guard, hangup: &mut Signal) -> Infallible {
    loop {
        // None only once no signal can come any more.
        if hangup.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
        match guard.change(Request::Reload { session: None }, None).await {
            Reply::Reloaded(done) => info!(
                file = done.file,
                tunables = done.tunables.len(),
                filters = done.filters.total,
                new_secret = done.new_secret,
                "SIGHUP: the file is in force"
            ),
            Reply::Error(Refusal { kind: Fault::Failed, message }) => error!("SIGHUP: {message}"),
            Reply::Error(refusal) => error!("SIGHUP: nothing was changed: {}", refusal.message),
            other => error!(?other, "SIGHUP"),
        }
    }
}

impl Guard {
    /// Reads the file again, and judges it as far as that goes by itself.
    pub(super) async fn read_again(&self) -> Result<Read, Reply> {
        let Some(origin) = self.origin.clone() else {
            let why = "the daemon was started without a file: there is nothing to read again";
            return Err(Reply::bad_input(why));
        };
        let read = blocking(move || (origin.read)(None).map(|config| (origin.file, config))).await;
        let (file, new) = read.map_err(Reply::bad_input)?;
        if let Some(what) = needs_restart(&self.config, &new) {
            return Err(Reply::bad_input(format!(
                "{}: {what} changed, which takes a restart; nothing was changed",
                file.display()
            )));
        }
        let secret = self.read_secret().await.map_err(Reply::bad_input)?;
        Ok(Read { file, new, secret })
    }

    /// Puts in force what may change of a file while connections live.
    pub(super) async fn reload(
        &self,
        turn: &Turn<'_>,
        Read { file, new, secret }: Read,
        session: Option<Session>,
    ) -> Reply {
        let services = self.with_applications(new.services);
        if let Err(error) = self.judge_services(&services, session) {
            return Reply::bad_input(error);
        }
        let filters = match self.replace_filters(new.filters, session).await {
            Ok(changed) => changed,
            Err(reply) => return reply,
        };
        let tunables = differences(&self.tunables.borrow(), &new.tunables);
        let applied = async {
            self.set_tunables(turn, new.tunables).await?;
            let new_secret = match secret {
                Some(secret) => self.set_secret(secret).await?,
                None => false,
            };
            Ok::<_, DaemonError>((new_secret, self.replace_services(turn, services).await?))
        };
        match applied.await {
            Ok((new_secret, services)) => {
                let file = file.display().to_string();
                let unconfirmed_ms = None;
                Reply::Reloaded(wire::Reloaded {
                    file,
                    tunables,
                    filters,
                    services,
                    new_secret,
                    unconfirmed_ms,
                })
            }
            Err(error) => half_made(&error),
        }
    }

    /// The services of a file, and those of the program around us, of which a file says nothing.
    fn with_applications(&self, mut services: Vec<Service>) -> Vec<Service> {
        let held = self.modes.services();
        let applications = held.into_iter().filter(|held| held.destination == Some(Destination::Application));
        services.extend(applications);
        services
    }

    async fn replace_filters(
        &self,
        filters: FilterSet,
        session: Option<Session>,
    ) -> Result<wire::FiltersChanged, Reply> {
        let caller = self.caller(session);
        let change = move |held: &mut Filters| held.change(&Change::Replace(filters), caller);
        self.filters.with(change).await.map_err(Reply::from)
    }

    /// Sets a tunable and, before that, writes it into the file: neither without the other.
    pub(super) async fn tune_and_save(&self, turn: &Turn<'_>, name: &str, text: &str) -> Reply {
        let changed = self.tunables.borrow().with(name, text);
        let (tunables, tunable, value) =
            match changed.and_then(|(all, _, new)| Ok((all, Tunable::find(name)?, new))) {
                Ok(found) => found,
                Err(error) => return Reply::bad_input(error.to_string()),
            };
        if let Err(error) = self.judge_tunables(&tunables) {
            return Reply::bad_input(error);
        }
        let save = move |origin: &Origin| {
            save_tunable(&origin.file, tunable, value, |text| (origin.read)(Some(text)).map(drop))
        };
        let file = match self.write_file(save).await {
            Ok(file) => file,
            Err(refusal) => return refusal,
        };
        match self.tune(turn, name, text).await {
            Reply::Tuned(tuned) => {
                Reply::Tuned(wire::Tuned { saved: Some(file.display().to_string()), ..tuned })
            }
            refused => refused,
        }
    }

    /// Changes the file, and says which that is.
    pub(super) async fn write_file(
        &self,
        write: impl FnOnce(&Origin) -> Result<(), EditError> + Send + 'static,
    ) -> Result<PathBuf, Reply> {
        let Some(origin) = self.origin.clone() else {
            let why = "the daemon was started without a file: there is nowhere to save this";
            return Err(Reply::bad_input(why));
        };
        let file = origin.file.clone();
        match blocking(move || write(&origin)).await {
            Ok(()) => Ok(file),
            Err(error @ EditError::Io { .. }) => Err(Reply::failed(format!("{error}; nothing was changed"))),
            Err(error) => Err(Reply::bad_input(format!("{error}; nothing was changed"))),
        }
    }

    /// Sets several tunables, judged together and put in force together.
    pub(super) async fn tune_all(&self, turn: &Turn<'_>, values: &BTreeMap<String, String>) -> Reply {
        let old = self.tunables.borrow().clone();
        let mut new = Tunables::clone(&old);
        let judged = values.iter().try_for_each(|(name, value)| new.set(name, value).map(drop));
        let judged = judged.and_then(|()| new.check()).map_err(|error| error.to_string());
        if let Err(error) = judged.and_then(|()| self.judge_tunables(&new)) {
            return Reply::bad_input(format!("{error}; nothing was changed"));
        }
        let tuned = differences(&old, &new);
        if let Err(error) = self.set_tunables(turn, new).await {
            return half_made(&error);
        }
        for wire::Tuned { name, old, new, .. } in &tuned {
            info!("{name}: {old} -> {new}");
        }
        Reply::TunedAll(wire::TunedAll { tuned, unconfirmed_ms: None })
    }

    /// Has cookies made with another key from the next epoch on: the secret file's, or a random one.
    pub(super) async fn rotate_keys(&self) -> Reply {
        let secret = match self.read_secret().await {
            Ok(Some(secret)) => secret,
            Ok(None) => match MasterSecret::random() {
                Ok(secret) => secret,
                Err(error) => return Reply::failed(error.to_string()),
            },
            Err(why) => return Reply::bad_input(why),
        };
        match (self.set_secret(secret).await, &self.config.secret_file) {
            (Ok(true), _) => {
                info!("the cookie keys were rotated");
                Reply::KeysRotated(self.next_key())
            }
            (Ok(false), file) => Reply::bad_input(format!(
                "{}: still the secret that is in use; write a new one first (openssl rand -hex 32), on every \
                 machine that shares it",
                file.as_deref().unwrap_or(Path::new("no file")).display()
            )),
            (Err(error), _) => Reply::failed(error.to_string()),
        }
    }

    /// What the secret file holds now, if there is one.
    async fn read_secret(&self) -> Result<Option<MasterSecret>, String> {
        let Some(path) = self.config.secret_file.clone() else { return Ok(None) };
        blocking(move || MasterSecret::read(&path).map(Some).map_err(|error| chain(&error))).await
    }
}

/// A change that failed when it had been begun.
pub(super) fn half_made(error: &DaemonError) -> Reply {
    Reply::failed(format!("{error}; part of the change may be in force: `tcpguard config` says what is"))
}

/// Runs what waits for disks where nobody waits for it.
pub(super) async fn blocking<T: Send + 'static, E: Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        // A defect in the work is one here.
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// An error with what caused it.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

/// What of a new configuration cannot be put in force while connections live.
fn needs_restart(old: &Config, new: &Config) -> Option<String> {
    let Config {
        interfaces,
        services: _,
        tunables: _,
        secret_file,
        control,
        metrics,
        pin_dir,
        max_flows,
        on_daemon_exit,
        filters: _,
        events,
    } = new;
    let parts = [
        ("interface", *interfaces != old.interfaces),
        ("secret_file", *secret_file != old.secret_file),
        ("control", *control != old.control),
        ("metrics", *metrics != old.metrics),
        ("pin_dir", *pin_dir != old.pin_dir),
        ("max_flows", *max_flows != old.max_flows),
        ("on_daemon_exit", *on_daemon_exit != old.on_daemon_exit),
        ("events", *events != old.events),
    ];
    let changed: Vec<_> = parts.iter().filter(|(_, changed)| *changed).map(|&(name, _)| name).collect();
    (!changed.is_empty()).then(|| changed.join(", "))
}

fn differences(old: &Tunables, new: &Tunables) -> Vec<wire::Tuned> {
    let changed = TUNABLES.iter().filter(|tunable| tunable.get(old) != tunable.get(new));
    changed
        .map(|tunable| wire::Tuned {
            name: tunable.name.to_owned(),
            unit: tunable.unit.name().to_owned(),
            old: tunable.get(old).number,
            new: tunable.get(new).number,
            saved: None,
            unconfirmed_ms: None,
        })
        .collect()
}
