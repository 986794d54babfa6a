//! What a scraper is told of the running guard: every number, by name. How it is written is `telemetry::metrics`' business,
//! and who may read it is `scrape`'s.

use std::collections::BTreeMap;

use tcpguard_common::decision::admission::Counted;
use tcpguard_common::reason::{Class, Reason};

use crate::config::ServiceMode;
use crate::dataplane::monotonic_ns;
use crate::engine::{EngineError, EngineStats};
use crate::service::Hold;
use crate::stack::{Durations, State};
use crate::telemetry::attack::Kind as AttackKind;
use crate::telemetry::metrics::{
    Kind::{Counter, Gauge, Histogram},
    Metric, Value,
};

use super::answers::sum_reincarnated;
use super::daemon::DaemonError;
use super::guard::{Engine, Guard};
use super::protocol::{self as wire, AMOUNTS, GAPS};
use super::services::Known;

/// What services' segments are counted as: each segment as one of these.
pub(super) const CLASSES: [(Class, &str, &str); 9] = [
    (Class::CookieSent, "cookie-sent", "SYNs answered with a cookie."),
    (Class::SynRefused, "syn-refused", "SYNs that were dropped."),
    (Class::SynStateful, "syn-stateful", "SYNs handed to an engine, which remembers them."),
    (Class::AckValid, "ack-valid", "ACKs with a valid cookie, whose flow was opened."),
    (Class::AckInvalid, "ack-invalid", "ACKs with an invalid cookie, which were dropped."),
    (Class::Redirected, "redirected", "Segments of no other class that were handed to an engine."),
    (Class::Dropped, "dropped", "Segments of no other class that were dropped."),
    (Class::Passed, "passed", "Segments left to the host."),
    (Class::Reset, "reset", "Segments answered with a reset."),
];

impl Guard {
    /// Every metric. An engine that stands still has none but the age of its heartbeat.
    pub(super) async fn metrics(&self) -> Result<Vec<Metric>, DaemonError> {
        let mut engines = Vec::new();
        let mut states: BTreeMap<State, u64> = State::ALL.into_iter().map(|state| (state, 0)).collect();
        for engine in self.engines() {
            let answer =
                async { Ok::<_, EngineError>((engine.handle.stats().await?, engine.handle.states().await?)) };
            let Some((counted, of_engine)) = self.unless_still(engine, answer).await else { continue };
            for (state, count) in of_engine {
                *states.entry(state).or_default() += count;
            }
            engines.push((engine, counted));
        }
        let filters = self.filters.with(|filters| filters.list(0)).await.ok();
        let mut metrics = self.daemon_metrics();
        metrics.extend(self.segment_metrics()?);
        metrics.extend(self.service_metrics(&engines)?);
        metrics.extend(engine_metrics(&engines));
        metrics.push(self.heartbeats());
        metrics.extend(self.table_metrics(&states, filters.as_ref()));
        metrics.extend(self.event_metrics());
        Ok(metrics)
    }

    fn daemon_metrics(&self) -> Vec<Metric> {
        let mut build = Metric::new(Gauge, "build", "The daemon's version, 1");
        build.add([("version", env!("CARGO_PKG_VERSION"))], Value::Whole(1));
        let uptime = monotonic_ns().saturating_sub(self.armed_at) as f64 / 1e9;
        let single = |name, help, value| {
            let mut metric = Metric::new(Gauge, name, help);
            metric.add([], value);
            metric
        };
        let settings = self.settings();
        let mut links = Metric::new(Gauge, "link_up", "Whether a guarded interface has a carrier");
        for (attached, link) in self.attached.iter().zip(self.links.borrow().iter()) {
            let is_up = link.state.to_string() == "up";
            links.add([("interface", &attached.name)], Value::Whole(is_up.into()));
        }
        vec![
            build,
            single("uptime_seconds", "Since the daemon armed its interfaces", Value::Real(uptime)),
            single(
                "draining",
                "Whether the daemon is ending, 0 or 1",
                Value::Whole(self.draining.get().into()),
            ),
            single("cookie_epoch", "The current cookie epoch", Value::Whole(settings.epoch.into())),
            single(
                "generation",
                "Which daemon run this is, on these pins",
                Value::Whole(settings.generation.into()),
            ),
            links,
        ]
    }

    /// Of every engine, those that stand still as well.
    fn heartbeats(&self) -> Metric {
        let help = "Since an engine last turned; beyond a second it stands still, and XDP hands it nothing";
        let mut ages = Metric::new(Gauge, "engine_heartbeat_age_seconds", help);
        for wire::EngineState { interface, queue, turned_ms, .. } in self.engine_states() {
            let queue = queue.to_string();
            ages.add([("interface", &interface), ("queue", &queue)], Value::Real(turned_ms as f64 / 1000.0));
        }
        ages
    }

    fn segment_metrics(&self) -> Result<Vec<Metric>, DaemonError> {
        let counters = self.dataplane.counters()?;
        let mut segments = Metric::new(
            Counter,
            "segments",
            "Segments to guarded ports, and ICMP errors about their flows, by verdict",
        );
        let mut dry_run =
            Metric::new(Counter, "dry_run_segments", "What the verdict would have been in dry run");
        for &reason in Reason::ALL {
            let labels = [("reason", reason.name()), ("outcome", reason.outcome().name())];
            segments.add(labels, Value::Whole(counters.total(reason)));
            dry_run.add(labels, Value::Whole(counters.dry_run(reason)));
        }
        Ok(vec![segments, dry_run])
    }

    fn service_metrics(&self, engines: &[(&Engine, EngineStats)]) -> Result<Vec<Metric>, DaemonError> {
        let reincarnated = sum_reincarnated(engines.iter().map(|(_, counted)| counted));
        let mut segments =
            Metric::new(Counter, "service_segments", "Segments to a service, by what XDP made of them");
        let mut dry_run = Metric::new(
            Counter,
            "service_dry_run_segments",
            "The same of a service in dry run: what would have become",
        );
        let mut incarnations = Metric::new(
            Counter,
            "service_reincarnated",
            "Valid ACKs that opened a new incarnation of a flow: of class redirected, because the stack judges them",
        );
        let mut modes = Metric::new(Gauge, "service_mode", "The mode of a service and what it does now, 1");
        let mut flows = Metric::new(Gauge, "service_flows", "Entries of a service in the flow table");
        for Known { id, service } in &self.modes.known() {
            let listen = service.listen.to_string();
            let [done, would] = self.counted_of(*id)?;
            for (class, name, _) in CLASSES {
                let labels = [("service", listen.as_str()), ("class", name)];
                segments.add(labels, Value::Whole(done.of(class)));
                dry_run.add(labels, Value::Whole(would.of(class)));
            }
            let count = self.reincarnated_of(*id, &reincarnated);
            incarnations.add([("service", listen.as_str())], Value::Whole(count));
            let mode = ServiceMode::to_string(&service.mode);
            let state = self.modes.state(service).unwrap_or(&mode);
            modes.add([("service", &listen), ("mode", &mode), ("state", state)], Value::Whole(1));
            flows.add([("service", &listen)], Value::Whole(self.census.open(Counted::Service(*id)).into()));
        }
        let mut metrics = vec![segments, dry_run, incarnations, modes, flows];
        metrics.extend(self.backend_metrics());
        Ok(metrics)
    }

    fn backend_metrics(&self) -> [Metric; 5] {
        let mut open = Metric::new(Gauge, "backend_connections", "Connections that a backend has");
        let mut connected =
            Metric::new(Counter, "backend_connected", "Connections that a backend has accepted");
        let mut failed =
            Metric::new(Counter, "backend_failed", "Connections that could not be had of a backend");
        let mut rests =
            Metric::new(Gauge, "backend_resting", "Whether a backend rests after failures, 0 or 1");
        let mut held = Metric::new(Gauge, "backend_held", "Connections that one side holds up");
        for wire::Service { listen, backends, .. } in self.services() {
            let listen = listen.to_string();
            for backend in &backends {
                let labels = [("service", listen.as_str()), ("backend", backend.address.as_str())];
                open.add(labels, Value::Whole(backend.connections));
                connected.add(labels, Value::Whole(backend.connected));
                failed.add(labels, Value::Whole(backend.failed));
                rests.add(labels, Value::Whole(backend.rests_ms.is_some().into()));
                for hold in Hold::ALL {
                    let found = backend.held.iter().find(|held| held.state == hold.name());
                    let count = found.map_or(0, |held| held.connections);
                    held.add([labels[0], labels[1], ("state", hold.name())], Value::Whole(count));
                }
            }
        }
        [open, connected, failed, rests, held]
    }

    fn table_metrics(&self, states: &BTreeMap<State, u64>, filters: Option<&wire::Filters>) -> Vec<Metric> {
        let mut flows = Metric::new(Gauge, "flows", "Flows by TCP state");
        for (state, &count) in states {
            flows.add([("state", state.name())], Value::Whole(count));
        }
        let mut entries = Metric::new(Gauge, "table_entries", "Entries of a table");
        let mut capacity = Metric::new(Gauge, "table_capacity", "Entries that a table has room for");
        let tracked = |Known { id, .. }: &Known| u64::from(self.census.open(Counted::Service(*id)));
        let tracked: u64 = self.modes.known().iter().map(tracked).sum();
        let old: u64 = self.census.old_entries().iter().sum();
        entries.add([("table", "flows")], Value::Whole(tracked + old));
        // One table for each address family.
        capacity.add([("table", "flows")], Value::Whole(2 * u64::from(self.config.max_flows)));
        if let Some(filters) = filters {
            entries.add([("table", "filters")], Value::Whole(filters.total));
        }
        capacity.add([("table", "filters")], Value::Whole(u64::from(tcpguard_common::filter::MAX_FILTERS)));
        vec![flows, entries, capacity]
    }

    fn event_metrics(&self) -> Vec<Metric> {
        let mut on = Metric::new(Gauge, "attack", "Whether a service is under attack, 0 or 1");
        let mut rate = Metric::new(
            Gauge,
            "attack_rate",
            "Of an attack that is on, segments or handshakes in the last second, or stalled connections",
        );
        let mut sources =
            Metric::new(Gauge, "attack_sources", "Of an attack that is on, a lower bound of its sources");
        let ongoing = self.attacks.ongoing();
        for known in &self.modes.known() {
            let listen = known.service.listen;
            for kind in AttackKind::ALL {
                let is_this = |attack: &&wire::Attack| attack.service == listen && attack.kind == kind.name();
                let found = ongoing.iter().find(is_this);
                let listen = listen.to_string();
                let labels = [("service", listen.as_str()), ("kind", kind.name())];
                on.add(labels, Value::Whole(found.is_some().into()));
                rate.add(labels, Value::Whole(found.map_or(0, |attack| attack.rate)));
                sources.add(labels, Value::Whole(found.map_or(0, |attack| attack.sources_at_least)));
            }
        }
        let mut attacks = Metric::new(Counter, "attacks", "Attacks that have begun");
        attacks.add([], Value::Whole(self.attacks.begun()));
        let mut hook = Metric::new(Counter, "hook_runs", "Runs of the hook for events, by how they ended");
        let wire::HookRuns { done, failed, late, skipped } = self.attacks.hook.runs();
        for (end, count) in [("done", done), ("failed", failed), ("late", late), ("skipped", skipped)] {
            hook.add([("end", end)], Value::Whole(count));
        }
        vec![on, rate, sources, attacks, hook]
    }
}

fn engine_metrics(engines: &[(&Engine, EngineStats)]) -> Vec<Metric> {
    let mut events =
        Metric::new(Counter, "engine_events", "What engines, stacks, rings and flow tables count");
    let mut amounts = Metric::new(Gauge, "engine_amounts", "What engines and rings hold at this moment");
    let mut services =
        Metric::new(Counter, "relay_events", "What relays and responders count, over all services");
    let mut level = Metric::new(Gauge, "half_open_fill", "How full an engine's half-open queue is, 0 to 1");
    let mut gaps = Metric::new(
        Histogram,
        "engine_gap_seconds",
        "Time between two looks at a receive ring, sleep not counted: how long frames may have waited",
    );
    let mut handshakes = Metric::new(
        Histogram,
        "handshake_seconds",
        "From a SYN-ACK to its acknowledgment, where a cookie or the half-open queue says when it left",
    );
    for (engine, counted) in engines {
        let queue = engine.queue.to_string();
        let labels = [("interface", engine.interface.as_str()), ("queue", queue.as_str())];
        for (group, rows) in counted.groups() {
            for (name, count, _) in rows {
                let metric = if AMOUNTS.contains(&name) { &mut amounts } else { &mut events };
                // The histogram tells these better.
                if !name.starts_with(GAPS) {
                    metric
                        .add([labels[0], labels[1], ("group", group), ("event", name)], Value::Whole(count));
                }
            }
        }
        let mut sums = BTreeMap::new();
        for (_, counted) in engine.services.stats() {
            for (name, count, _) in counted.rows() {
                *sums.entry(name).or_insert(0) += count;
            }
        }
        for (name, count) in sums {
            services.add([labels[0], labels[1], ("event", name)], Value::Whole(count));
        }
        level.add(labels, Value::Real(counted.half_open_level));
        gaps.add(labels, histogram(&counted.gaps.buckets, counted.gaps.sum));
        handshakes.add(labels, histogram(&counted.handshakes.buckets, counted.handshakes.sum));
    }
    vec![events, amounts, services, level, gaps, handshakes, answers(engines)]
}

/// Of each service, added up over its engines.
fn answers(engines: &[(&Engine, EngineStats)]) -> Metric {
    let mut sums: BTreeMap<_, Durations> = BTreeMap::new();
    for (listen, answers) in engines.iter().flat_map(|(engine, _)| engine.services.answers()) {
        sums.entry(listen).or_default().merge(&answers);
    }
    let help = "From what a client of a relay or responder said to the first byte of the answer";
    let mut metric = Metric::new(Histogram, "request_seconds", help);
    for (listen, Durations { buckets, sum }) in sums {
        metric.add([("service", &listen.to_string())], histogram(&buckets, sum));
    }
    metric
}

/// Counts by powers of two of microseconds, and the sum in nanoseconds.
fn histogram(buckets: &[u64], sum: u64) -> Value {
    let last = buckets.len() - 1;
    let bound = |bucket: usize| if bucket == last { f64::MAX } else { (1u64 << bucket) as f64 / 1e6 };
    let buckets = buckets.iter().enumerate().map(|(bucket, &count)| (bound(bucket), count));
    Value::Buckets(buckets.collect(), sum as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_class_of_segments_has_a_name_of_its_own() {
        for &reason in Reason::ALL {
            let class = reason.class();
            assert!(CLASSES.iter().any(|(known, ..)| *known as u32 == class), "{}", reason.name());
        }
    }

    #[test]
    fn gaps_are_a_histogram_in_seconds() {
        let mut gaps = crate::engine::Gaps::default();
        gaps.buckets[0] = 3;
        gaps.buckets[19] = 1;
        gaps.sum = 1_500_000_000;
        let Value::Buckets(buckets, sum) = histogram(&gaps.buckets, gaps.sum) else { panic!() };
        assert_eq!((buckets[0], buckets[10].0, buckets[19]), ((1e-6, 3), 0.001024, (f64::MAX, 1)));
        assert_eq!((buckets.len(), sum), (20, 1.5));
    }
}
