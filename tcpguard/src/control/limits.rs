//! From the tunables to the limits that XDP keeps. Nothing is applied here.

use tcpguard_common::map::Limits;
use tcpguard_common::sketch::Rate;

use crate::config::Tunables;

/// The limits of `tunables`, for interfaces of at most `queues` receive queues each: the reply budgets are kept for each
/// queue, as that share of the whole.
pub(super) fn limits(tunables: &Tunables, queues: u32) -> Limits {
    let reply_rate = |per_second| Rate::new(per_second, tunables.reply_burst, queues);
    Limits {
        stateful: Rate::new(tunables.stateful_rate, tunables.stateful_burst, queues),
        replies: reply_rate(tunables.reply_rate),
        verified_replies: reply_rate(tunables.verified_reply_rate),
        prefix_v4: prefix(tunables.reply_prefix_v4),
        prefix_v6: prefix(tunables.reply_prefix_v6),
        verified_for: tunables.verified_time.as_nanos() as u64,
        arrivals: Rate::new(tunables.source_rate, tunables.source_burst, 1),
        flows: Rate::new(tunables.flow_rate, tunables.flow_burst, 1),
        complaints: Rate::new(tunables.icmp_rate, tunables.icmp_rate, 1),
        source_flows: tunables.source_flows,
        service_flows: tunables.service_flows,
    }
}

/// The upper `len` of 64 bits; `len` is 1 to 64.
fn prefix(len: u32) -> u64 {
    !0 << (64 - len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The limits in which these differ, by name.
    fn changed(before: &Limits, after: &Limits) -> Vec<&'static str> {
        let Limits {
            stateful,
            replies,
            verified_replies,
            prefix_v4,
            prefix_v6,
            verified_for,
            arrivals,
            flows,
            complaints,
            source_flows,
            service_flows,
        } = before;
        let differences = [
            ("stateful", *stateful != after.stateful),
            ("replies", *replies != after.replies),
            ("verified_replies", *verified_replies != after.verified_replies),
            ("prefix_v4", *prefix_v4 != after.prefix_v4),
            ("prefix_v6", *prefix_v6 != after.prefix_v6),
            ("verified_for", *verified_for != after.verified_for),
            ("arrivals", *arrivals != after.arrivals),
            ("flows", *flows != after.flows),
            ("complaints", *complaints != after.complaints),
            ("source_flows", *source_flows != after.source_flows),
            ("service_flows", *service_flows != after.service_flows),
        ];
        differences.into_iter().filter(|(_, differ)| *differ).map(|(name, _)| name).collect()
    }

    #[test]
    fn each_tunable_of_a_budget_changes_its_own_limit_and_no_other() {
        for (name, value, moved) in [
            ("stateful-rate", "77", vec!["stateful"]),
            ("stateful-burst", "777777", vec!["stateful"]),
            ("reply-rate", "77", vec!["replies"]),
            ("verified-reply-rate", "77", vec!["verified_replies"]),
            ("reply-burst", "777777", vec!["replies", "verified_replies"]),
            ("reply-prefix-v4", "20", vec!["prefix_v4"]),
            ("reply-prefix-v6", "48", vec!["prefix_v6"]),
            ("verified-time", "77s", vec!["verified_for"]),
            ("source-rate", "77", vec!["arrivals"]),
            ("flow-rate", "77", vec!["flows"]),
            ("flow-burst", "777777", vec!["flows"]),
            ("icmp-rate", "77", vec!["complaints"]),
            ("source-flows", "77", vec!["source_flows"]),
            ("service-flows", "77", vec!["service_flows"]),
        ] {
            let tuned = Tunables::default().with(name, value).expect(name).0;
            assert_eq!(changed(&limits(&Tunables::default(), 4), &limits(&tuned, 4)), moved, "{name}");
        }
        let limited = Tunables::default().with("source-rate", "77").expect("a rate").0;
        let tuned = limited.with("source-burst", "777777").expect("a burst").0;
        assert_eq!(changed(&limits(&limited, 4), &limits(&tuned, 4)), ["arrivals"]);
    }

    #[test]
    fn queues_share_what_a_prefix_may_be_sent() {
        let tunables =
            Tunables { reply_rate: 1000, reply_burst: 100, verified_reply_rate: 0, ..Tunables::default() };
        let limits = limits(&tunables, 4);
        assert_eq!(limits.replies, Rate::new(250, 25, 1));
        assert_eq!(limits.verified_replies, Rate::UNLIMITED);
        assert_eq!(limits.stateful, Rate::new(tunables.stateful_rate / 4, tunables.stateful_burst / 4, 1));
        assert_eq!(limits.prefix_v4, 0xffff_ff00_0000_0000);
        assert_eq!(limits.prefix_v6, 0xffff_ffff_ffff_ff00);
        assert_eq!(limits.verified_for, 600_000_000_000);
        assert_eq!(prefix(64), u64::MAX);
    }
}
