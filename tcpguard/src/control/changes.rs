//! What clients change: one change at a time, each begun with what the last one left and made to its end. What becomes of one
//! that nobody confirms is `confirm`'s.

use std::time::Duration;

use tracing::info;

use crate::config::{Filter, FilterSet, ServiceMode};

use super::answers::millis;
use super::filters::{Change, Filters};
use super::guard::{Guard, Turn};
use super::protocol::{self as wire, Effect, Fault, Refusal, Reply, Request, Session};
use super::reload::Read;

impl Guard {
    /// Makes a change once it is its turn; with `time`, one that is taken back unless it is confirmed within that time, which
    /// begins when it is in force.
    pub(super) async fn change(&self, change: Request, time: Option<Duration>) -> Reply {
        if change.effect() != Effect::Revocable {
            return Reply::bad_input("this is no change that could be taken back");
        }
        // A disk may take its time over it, and nobody else is to wait for that.
        let read = match &change {
            Request::Reload { .. } => match self.read_again().await {
                Ok(read) => Some(read),
                Err(refusal) => return refusal,
            },
            _ => None,
        };
        let turn = self.changing.lock().await;
        if change.saves() && (time.is_some() || self.is_holding()) {
            return Reply::bad_input(
                "what is not confirmed may be taken back, and the file would bring it again: confirm first, then save",
            );
        }
        let begun = match time {
            Some(time) => match self.hold(&turn, time).await {
                Ok(begun) => begun,
                Err(refusal) => return refusal,
            },
            None => false,
        };
        let mut reply = self.make(&turn, change, read).await;
        match &mut reply {
            Reply::Error(Refusal { kind: Fault::BadInput | Fault::Busy, .. }) => self.release(&turn, begun),
            Reply::Error(Refusal { kind: Fault::Failed, message }) => {
                if let Some(time) = time {
                    self.prolong(&turn, time);
                    let left = self.unconfirmed().map_or(0, |left| millis(left).div_ceil(1000));
                    *message += &format!("; it is taken back in {left}s unless `tcpguard confirm` follows");
                }
            }
            made => {
                if let Some(time) = time {
                    self.prolong(&turn, time);
                }
                if let Some(unconfirmed) = made.unconfirmed_ms() {
                    *unconfirmed = self.unconfirmed().map(millis);
                }
            }
        }
        reply
    }

    async fn make(&self, turn: &Turn<'_>, change: Request, read: Option<Read>) -> Reply {
        match (change, read) {
            (Request::ServicesAdd { service, keys, save, session }, _) => {
                self.add_service(turn, &service, keys, (save, session)).await
            }
            (Request::ServicesSet { service, keys, save, session }, _) => {
                self.set_service(turn, service, keys, (save, session)).await
            }
            (Request::ServicesDel { service, save, session }, _) => {
                self.remove_service(turn, service, (save, session)).await
            }
            (Request::Mode { service, mode, session }, _) => {
                let mode: ServiceMode = match mode.parse() {
                    Ok(mode) => mode,
                    Err(error) => return Reply::bad_input(error),
                };
                match self.set_mode(turn, service, mode, session).await {
                    Ok(old) => {
                        let (old, new) = (old.to_string(), mode.to_string());
                        Reply::ModeSet(wire::ModeSet { old, new, unconfirmed_ms: None })
                    }
                    Err(refusal) => refusal,
                }
            }
            (Request::DryRun { service, on, session }, _) => {
                match self.set_dry_run(turn, service, on, session).await {
                    Ok(old) => Reply::DryRunSet(wire::DryRunSet { old, new: on, unconfirmed_ms: None }),
                    Err(refusal) => refusal,
                }
            }
            (Request::Tune { service, name: Some(name), value: Some(value), save }, _) => match service {
                Some(service) => self.tune_service(turn, service, name, value, save).await,
                None if save => self.tune_and_save(turn, &name, &value).await,
                None => self.tune(turn, &name, &value).await,
            },
            (Request::Tune { .. }, _) => Reply::bad_input("a value without a name"),
            (Request::TuneAll { values }, _) => self.tune_all(turn, &values).await,
            (Request::Reload { session }, Some(read)) => self.reload(turn, read, session).await,
            (Request::FiltersAdd { filter, session }, _) => {
                let mut set = FilterSet::default();
                let added = Filter::parse(&filter, None).and_then(|filter| set.insert(filter));
                self.change_filters(turn, added.map(|_| Change::Add(set)), session).await
            }
            (Request::FiltersDel { prefix, session }, _) => {
                self.change_filters(turn, prefix.parse().map(Change::Remove), session).await
            }
            (Request::FiltersFlush { action, session }, _) => {
                let action = action.map(|action| action.parse()).transpose();
                self.change_filters(turn, action.map(Change::Flush), session).await
            }
            (Request::FiltersLoad { load, filters, last, replace, session }, _) => {
                self.load_filters((load, filters, last), replace, session).await
            }
            // See `Request::effect`.
            _ => Reply::bad_input("this is no change that could be taken back"),
        }
    }

    async fn change_filters(
        &self,
        _turn: &Turn<'_>,
        change: Result<Change, String>,
        session: Option<Session>,
    ) -> Reply {
        let caller = self.caller(session);
        let change = match change {
            Ok(change) => change,
            Err(message) => return Reply::bad_input(message),
        };
        let changed = self.filters.with(move |filters| filters.change(&change, caller)).await;
        changed.map_or_else(Reply::from, Reply::FiltersChanged)
    }

    /// Takes in a part of a list. The last one has the whole list put in force, which is a change.
    pub(super) async fn load_filters(
        &self,
        (load, part, last): (u64, Vec<String>, bool),
        replace: bool,
        session: Option<Session>,
    ) -> Reply {
        let caller = self.caller(session);
        let load = move |held: &mut Filters| match held.load(load, &part, last)? {
            Some(list) => {
                let change = if replace { Change::Replace(list) } else { Change::Add(list) };
                held.change(&change, caller).map(Reply::FiltersChanged)
            }
            None => Ok(Reply::FiltersPart {}),
        };
        self.filters.with(load).await.unwrap_or_else(Reply::from)
    }

    /// Keeps what is in force, once what is being changed is.
    pub(super) async fn confirm(&self) -> Reply {
        let _turn = self.changing.lock().await;
        match self.probation.borrow_mut().take() {
            Some(_) => {
                info!("confirmed");
                Reply::Confirmed {}
            }
            None => Reply::bad_input("nothing waits to be confirmed; what did was taken back in time"),
        }
    }
}
