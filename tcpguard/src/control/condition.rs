//! How the guard is: the age of its keys, which engines turn, and how full everything is that is bounded. It looks and changes
//! nothing, and no engine that stands still holds it up.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tcpguard_common::decision::admission::Counted;
use tcpguard_common::filter::MAX_FILTERS;
use tcpguard_common::map::is_under_pressure;
use tokio::time::{sleep, timeout};

use crate::dataplane::{Now, monotonic_ns};
use crate::engine::EngineError;
use crate::stack::{Bounded, Usage};

use super::answers::millis;
use super::guard::{Engine, Guard, STALE_AFTER};
use super::protocol as wire;
use super::services::Known;

/// How long an engine may take to say how full it is. One that turns takes a millisecond or two.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked whether an engine that is to answer still turns.
const GLANCE: Duration = Duration::from_millis(100);
/// Thousandths of a limit from which on there is nearly no room left.
const NEAR: u64 = 800;

impl Guard {
    /// The age of the keys, and of what they derive from.
    pub(super) fn keys_state(&self) -> wire::Keys {
        let (keys, now) = (self.keys.borrow(), Now::read());
        wire::Keys {
            age_ms: millis(keys.key_age(now)),
            next_ms: millis(keys.until_next(now)),
            period_ms: millis(keys.period()),
            secret_age_ms: monotonic_ns().saturating_sub(self.secret_since.get()) / 1_000_000,
            secret_file: self.config.secret_file.as_ref().map(|path| path.display().to_string()),
        }
    }

    /// Which engines turn, as they say themselves in the words that XDP goes by.
    pub(super) fn engine_states(&self) -> Vec<wire::EngineState> {
        self.engines().iter().map(|engine| self.engine_state(engine)).collect()
    }

    fn engine_state(&self, engine: &Engine) -> wire::EngineState {
        let heartbeat = self.dataplane.heartbeat(engine.handle.engine());
        let last = heartbeat.map_or(0, |heartbeat| heartbeat.last());
        let turned = Duration::from_nanos(monotonic_ns().saturating_sub(last));
        wire::EngineState {
            interface: engine.interface.clone(),
            queue: engine.queue,
            turns: turned < STALE_AFTER,
            turned_ms: millis(turned),
            pressed: is_under_pressure(last),
        }
    }

    /// What an engine answers; nothing if it stands still, or stops while it is asked: nobody waits for that.
    pub(super) async fn unless_still<T>(
        &self,
        engine: &Engine,
        answer: impl Future<Output = Result<T, EngineError>>,
    ) -> Option<T> {
        let stops = async {
            // One that has just been let go on may not have turned yet, and will.
            sleep(GLANCE).await;
            while self.engine_state(engine).turns {
                sleep(GLANCE).await;
            }
        };
        tokio::select! {
            biased;
            answer = answer => answer.ok(),
            () = stops => None,
        }
    }

    /// How full everything is that is bounded; of what each engine has, that of the fullest that turns.
    pub(super) async fn limits(&self) -> Vec<wire::Limit> {
        let mut limits = self.flow_tables();
        for engine in self.engines().iter().filter(|engine| self.engine_state(engine).turns) {
            let Ok(Ok(stats)) = timeout(PATIENCE, engine.handle.stats()).await else { continue };
            for usage in stats.usage {
                keep_fuller(&mut limits, of_stack(&engine.name(), usage));
            }
        }
        let specs = self.engines().first().map(|engine| engine.services.specs()).unwrap_or_default();
        for spec in specs {
            if let Some((used, most)) = spec.connections() {
                let remedy = format!("tcpguard services set {} max_connections=N", spec.listen);
                let of = Some(spec.listen.to_string());
                limits.push(limit("service-connections", of, (used as u64, most as u64), remedy));
            }
        }
        let descriptors = self.engines().first().and_then(|engine| engine.services.descriptors().usage());
        if let Some((used, most)) = descriptors {
            let remedy = "raise the limit (LimitNOFILE= of the unit, ulimit -Hn) and start the daemon anew";
            limits.push(limit("descriptors", None, (used as u64, most as u64), remedy));
        }
        if let Ok(filters) = self.filters.with(|filters| filters.list(0)).await {
            let remedy = "put larger prefixes in the place of many small ones, and give them --expires";
            limits.push(limit("filters", None, (filters.total, MAX_FILTERS.into()), remedy));
        }
        limits
    }

    /// XDP's tables of flows, and what services may have in them.
    fn flow_tables(&self) -> Vec<wire::Limit> {
        let services = self.modes.known();
        let open = |known: &Known| u64::from(self.census.open(Counted::Service(known.id)));
        let family = |is_of: fn(&IpAddr) -> bool| {
            services.iter().filter(|known| is_of(&known.service.listen.ip())).map(open).sum::<u64>()
        };
        let remedy = "service-flows and source-flows (tcpguard tune) bound who fills it; max_flows in the file takes a restart";
        let room = u64::from(self.config.max_flows);
        let [old_v4, old_v6] = self.census.old_entries();
        let table = |name, used| limit(name, None, (used, room), remedy);
        let mut limits = vec![
            table("flow-table-ipv4", family(IpAddr::is_ipv4) + old_v4),
            table("flow-table-ipv6", family(IpAddr::is_ipv6) + old_v6),
        ];
        let most = u64::from(self.tunables.borrow().service_flows);
        let fullest = services.iter().max_by_key(|known| open(known)).filter(|_| most > 0);
        if let Some(known) = fullest {
            let listen: SocketAddr = known.service.listen;
            let usage = (open(known), most);
            limits.push(limit("service-flows", Some(listen.to_string()), usage, tune("service-flows")));
        }
        limits
    }
}

/// What a stack says of itself.
fn of_stack(engine: &str, Usage { what, used, limit: most }: Usage) -> wire::Limit {
    // All engines share it.
    let of = (what != Bounded::ClosedFlows).then(|| engine.to_owned());
    limit(what.name(), of, (used, most), remedy(what))
}

fn remedy(what: Bounded) -> String {
    match what {
        Bounded::Connections => "more receive queues (ethtool -L), each with an engine of its own".to_owned(),
        Bounded::TimeWaitV4 | Bounded::TimeWaitV6 => {
            format!("{}; a shorter time-wait empties it sooner", tune("time-wait-limit"))
        }
        Bounded::HalfOpenV4 | Bounded::HalfOpenV6 => {
            format!("{}; services in mode auto answer with cookies meanwhile", tune("half-open-limit"))
        }
        Bounded::Orphans => format!("{}; a shorter fin-wait-2 ends them sooner", tune("orphan-limit")),
        Bounded::AcceptQueue => {
            format!("{}; tcpguard status says which backend does not take connections", tune("accept-backlog"))
        }
        Bounded::SendMemory => "tcpguard flows --sort send-queued says which clients take nothing; a shorter \
                                stall-time resets them sooner"
            .to_owned(),
        Bounded::ReceiveMemory => {
            "tcpguard flows --sort recv-queued says which connections; their backends do not read, and a shorter \
             stall-time resets them sooner"
                .to_owned()
        }
        Bounded::ClosedFlows => {
            "a shorter cookie-period (tcpguard tune) has them forgotten sooner; old cookies are refused meanwhile"
                .to_owned()
        }
    }
}

fn tune(name: &str) -> String {
    format!("tcpguard tune {name} N")
}

fn limit(
    name: &str,
    of: Option<String>,
    (used, limit): (u64, u64),
    remedy: impl Into<String>,
) -> wire::Limit {
    let permille = share(used, limit);
    wire::Limit {
        name: name.to_owned(),
        of,
        used,
        limit,
        permille,
        near: permille >= NEAR,
        remedy: remedy.into(),
    }
}

/// In thousandths; a limit of nothing is full.
fn share(used: u64, limit: u64) -> u64 {
    let share = (u128::from(used) * 1000).checked_div(limit.into()).unwrap_or(1000);
    u64::try_from(share).unwrap_or(u64::MAX)
}

/// Takes this limit in, or lets it take the place of another engine's that is less full.
fn keep_fuller(limits: &mut Vec<wire::Limit>, limit: wire::Limit) {
    match limits.iter_mut().find(|held| held.name == limit.name) {
        Some(held) if (held.permille, held.used) < (limit.permille, limit.used) => *held = limit,
        Some(_) => {}
        None => limits.push(limit),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fullest_engine_speaks_for_all_and_four_fifths_are_near() {
        let usage = |used, limit| Usage { what: Bounded::HalfOpenV4, used, limit };
        let mut limits = Vec::new();
        for (engine, usage) in [
            ("eth0 queue 0", usage(79, 100)),
            ("eth0 queue 1", usage(80, 100)),
            ("eth0 queue 2", usage(3, 100)),
        ] {
            keep_fuller(&mut limits, of_stack(engine, usage));
        }
        let [limit] = limits.as_slice() else { panic!("{limits:?}") };
        assert_eq!((limit.of.as_deref(), limit.permille, limit.near), (Some("eth0 queue 1"), 800, true));
        assert!(limit.remedy.contains("tcpguard tune half-open-limit"), "{}", limit.remedy);
        assert!(!of_stack("", usage(799, 1000)).near);
        assert_eq!((share(1, 0), share(u64::MAX, 1), share(0, 7)), (1000, u64::MAX, 0));
    }
}
