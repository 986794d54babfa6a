//! What is sent: every flood, what its figure counts, and who has a part in it.

use std::net::{Ipv4Addr, SocketAddr};

use super::{Contestant, KNOWN_PORT, PORT};
use crate::lab::{FloodSpec, GUARD_ADDRESS, GUARD_ADDRESS_V6, Kind, Lab};

/// A flood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) sources: Sources,
    pub(super) rate: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sources {
    /// Random ones from the network that is set aside for benchmarks.
    Spoofed,
    /// The same over IPv6.
    SpoofedV6,
    /// A botnet's own, which acknowledge what they are answered.
    Botnet,
    /// One address and port out of it.
    One,
    /// A connection that the client has.
    Known,
}

/// Every flood, in the order of the table: those of SYNs at each rate.
pub(super) fn floods(rates: &[u64]) -> Vec<Spec> {
    let spec = |name, kind, sources, rate| Spec { name, kind, sources, rate };
    let families = [("syn_v4", Sources::Spoofed), ("syn_v6", Sources::SpoofedV6)];
    let mut floods: Vec<_> = families
        .into_iter()
        .flat_map(|(name, sources)| rates.iter().map(move |&rate| spec(name, Kind::Syn, sources, rate)))
        .collect();
    floods.extend([
        spec("one_tuple_v4", Kind::Syn, Sources::One, 0),
        spec("ack_v4", Kind::Ack, Sources::Spoofed, 0),
        spec("data_v4", Kind::Data, Sources::Spoofed, 0),
        spec("known_flow_v4", Kind::Ack, Sources::Known, 0),
        // The last one, because it leaves connections behind.
        spec("handshake_v4", Kind::Syn, Sources::Botnet, 0),
    ]);
    floods
}

impl Spec {
    /// What the figure counts.
    pub(super) fn unit(&self) -> &'static str {
        match (self.kind, self.sources) {
            (Kind::Syn, Sources::Spoofed | Sources::SpoofedV6) => "answers/s",
            (Kind::Syn, Sources::Botnet) => "handshakes/s",
            _ => "frames/s",
        }
    }

    /// Whether a contestant does what the row says: where connections are made, who does not serve has no part.
    pub(super) fn admits(&self, contestant: &Contestant) -> bool {
        contestant.serves() || !matches!(self.sources, Sources::Botnet | Sources::Known)
    }

    /// Where real clients go meanwhile.
    pub(super) fn server(&self) -> SocketAddr {
        match self.sources {
            Sources::SpoofedV6 => SocketAddr::from((GUARD_ADDRESS_V6, PORT)),
            Sources::Spoofed | Sources::Botnet | Sources::One | Sources::Known => {
                SocketAddr::from((GUARD_ADDRESS, PORT))
            }
        }
    }

    /// `number` is another one for each flood of a lab, so that none repeats what one before it sent.
    pub(super) fn flood(&self, lab: &Lab, number: usize) -> FloodSpec {
        let client = lab.client_addresses().first().copied().unwrap_or(Ipv4Addr::UNSPECIFIED);
        let (sources, port) = match self.sources {
            Sources::Spoofed | Sources::SpoofedV6 | Sources::Botnet => (FloodSpec::default().sources, None),
            Sources::One => ((Ipv4Addr::new(198, 18, 0, 1), 32), Some(KNOWN_PORT)),
            Sources::Known => ((client, 32), Some(KNOWN_PORT)),
        };
        FloodSpec {
            kind: self.kind,
            rate: self.rate,
            total: None,
            sources,
            port,
            seed: (number as u64) << 32,
            ipv6: self.sources == Sources::SpoofedV6,
            complete: self.sources == Sources::Botnet,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::Effort;
    use super::*;

    /// The flood of this name.
    pub(in super::super) fn of(name: &str, rate: u64) -> Spec {
        let mut floods = floods(&[rate]).into_iter();
        floods.find(|spec| spec.name == name).expect("a flood of this name")
    }

    #[test]
    fn who_serves_nobody_has_no_part_where_connections_are_made() {
        let admitted = |name: &str| Contestant::STANDARD.iter().filter(|who| of(name, 0).admits(who)).count();
        assert_eq!(["syn_v4", "one_tuple_v4", "known_flow_v4", "handshake_v4"].map(admitted), [6, 6, 4, 4]);
    }

    #[test]
    fn every_rate_is_a_row_of_its_own_over_both_families() {
        let names: Vec<_> = floods(&[7, 0]).iter().map(|spec| (spec.name, spec.rate)).collect();
        assert_eq!(
            names[..5],
            [("syn_v4", 7), ("syn_v4", 0), ("syn_v6", 7), ("syn_v6", 0), ("one_tuple_v4", 0)]
        );
        assert_eq!(names.last(), Some(&("handshake_v4", 0)));
        // Even a short run says what a frame costs.
        assert!([Effort::QUICK, Effort::FULL].iter().all(|effort| effort.rates.iter().any(|&rate| rate > 0)));
    }
}
