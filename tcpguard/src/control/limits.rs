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
