//! What is counted beside reasons, as `stats` and the metrics name it, and what it means. Nothing is counted here.

use crate::engine::EngineStats;
use crate::service::ServiceStats;

use super::metrics::CLASSES;

/// Something that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Counted {
    /// Its name.
    pub(crate) name: &'static str,
    /// With what it is counted: a group of `stats`, or `segments` for a service's in the metrics.
    pub(crate) group: &'static str,
    /// What it means.
    pub(crate) help: &'static str,
}

/// All of it, group by group.
pub(crate) fn all() -> Vec<Counted> {
    let of = |group, name, help: &'static str| Counted { name, group, help: help.trim() };
    let engine = EngineStats::default().groups();
    let engine = engine
        .into_iter()
        .flat_map(|(group, rows)| rows.into_iter().map(move |(name, _, help)| of(group, name, help)));
    let service = ServiceStats::default().rows().map(|(name, _, help)| of("service", name, help));
    let segments = CLASSES.map(|(_, name, help)| of("segments", name, help));
    engine.chain(service).chain(segments).collect()
}

/// Where the counters of a group are counted.
pub(crate) fn place(group: &str) -> &'static str {
    match group {
        "engine" => "by each engine",
        "flow-table" => "by each engine, at its share of the flow table",
        "ring" => "at each engine's AF_XDP socket",
        "service" => "by relays and responders, on each engine",
        "stack" => "by each engine's TCP stack",
        _ => "by XDP, for each service",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::all;

    #[test]
    fn everything_has_a_meaning_and_a_name_of_its_own_in_its_group() {
        let counted = all();
        let names: BTreeSet<_> = counted.iter().map(|counted| (counted.group, counted.name)).collect();
        assert_eq!(names.len(), counted.len());
        for group in ["engine", "flow-table", "ring", "segments", "service", "stack"] {
            assert!(counted.iter().any(|counted| counted.group == group), "{group}");
        }
        for counted in counted {
            let help = counted.help;
            assert!(help.ends_with('.') && help.len() > 10, "{counted:?}");
            assert!(!help.starts_with("Of these"), "nothing stands before it: {counted:?}");
        }
    }
}
