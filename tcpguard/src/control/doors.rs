//! Where clients come in: the control socket, the one for readers, and the metrics' endpoint.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::config::{Config, Control, MetricsListen, Readers};

use super::guard::Guard;
use super::scrape::{self, Scrape};
use super::server::{Limits, Rights, Server};
use super::socket::{ListenError, SocketSpec, remove_left};

/// All of them, open.
pub(super) struct Doors {
    control: Server,
    readers: Option<Server>,
    scrape: Option<Rc<Scrape>>,
}

/// The control socket as configured.
pub(super) fn control_spec(control: &Control) -> SocketSpec<'_> {
    SocketSpec { path: &control.socket, group: control.group.as_deref(), mode: control.mode }
}

fn readers_spec(Readers { socket, group, mode }: &Readers) -> SocketSpec<'_> {
    SocketSpec { path: socket, group: group.as_deref(), mode: *mode }
}

/// Refuses sockets that could not be opened, and touches nothing.
pub(super) fn check(control: &Control) -> Result<(), ListenError> {
    control_spec(control).check()?;
    control.readers.as_ref().map_or(Ok(()), |readers| readers_spec(readers).check())
}

/// Removes those sockets at which nobody listens any more, and says which.
pub(super) fn remove_left_ones(
    control: &Control,
    metrics: Option<&MetricsListen>,
) -> Result<Vec<PathBuf>, ListenError> {
    let readers = control.readers.as_ref().map(|readers| &readers.socket);
    let metrics = metrics.and_then(|listen| match listen {
        MetricsListen::Unix(path) => Some(path),
        MetricsListen::Tcp(_) => None,
    });
    let mut removed = Vec::new();
    for path in [Some(&control.socket), readers, metrics].into_iter().flatten() {
        if remove_left(path)? {
            removed.push(path.clone());
        }
    }
    Ok(removed)
}

/// How many clients there may be at once.
pub(super) fn clients(config: &Config) -> usize {
    let servers = 1 + usize::from(config.control.readers.is_some());
    let scrapers = if config.metrics.is_some() { scrape::CLIENTS } else { 0 };
    servers * Limits::default().clients + scrapers
}

impl Doors {
    /// Opens what is configured.
    ///
    /// # Errors
    /// What cannot be opened, and why.
    pub(super) fn open(control: &Control, metrics: Option<&MetricsListen>) -> Result<Self, ListenError> {
        let readers =
            control.readers.as_ref().map(|readers| Server::bind(&readers_spec(readers), Rights::Read));
        let scrape = metrics.map(|listen| Scrape::bind(listen, control.group.as_deref()).map(Rc::new));
        Ok(Self {
            control: Server::bind(&control_spec(control), Rights::All)?,
            readers: readers.transpose()?,
            scrape: scrape.transpose()?,
        })
    }

    /// Where changes are made.
    pub(super) fn control_path(&self) -> &Path {
        self.control.path()
    }

    /// Serves clients until it is dropped. Needs a `LocalSet`.
    pub(super) async fn serve(&self, guard: &Rc<Guard>) {
        let readers = async {
            match &self.readers {
                Some(readers) => readers.serve(Rc::clone(guard)).await,
                None => std::future::pending().await,
            }
        };
        let scrape = async {
            match &self.scrape {
                Some(scrape) => match scrape.serve(guard).await {},
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.control.serve(Rc::clone(guard)) => {}
            () = readers => {}
            () = scrape => {}
        }
    }
}
