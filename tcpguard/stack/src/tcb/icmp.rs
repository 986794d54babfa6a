//! What the network says about segments of ours (RFC 9293 §3.9.2.2, RFC 1191, RFC 8201). Anybody can say it: only what names
//! a sequence number that is in flight is listened to, and nothing ends an established connection (RFC 5461, RFC 5927).

use super::{Error, Instant, Shared, State, Tcb, segment_limit};
use crate::wire::ip_header_len;
use tcpguard_common::flow::AnyFlowKey;
use tcpguard_common::packet::Trouble;
use tcpguard_common::seq::Seq;

/// The least MTU that is believed: IPv6 has it by definition, and paths narrower than what Linux assumes for IPv4 are
/// attacks, to make us send many small segments.
const LEAST_V4: u16 = 552;
const LEAST_V6: u16 = 1280;

impl Tcb {
    /// An ICMP error about the segment at `seq`; whether it was listened to.
    pub(crate) fn handle_icmp(&mut self, seq: Seq, what: Trouble, now: Instant, shared: &mut Shared) -> bool {
        if !seq.within(self.snd_una, self.flight()) {
            return false;
        }
        match what {
            Trouble::TooBig(mtu) => self.lower_mtu(mtu, now, shared),
            Trouble::Hard if self.state == State::SynSent => self.fail(Error::Unreachable, false, shared),
            Trouble::Hard | Trouble::Soft => self.work.trouble = Some(Error::Unreachable),
        }
        true
    }

    /// Path MTU discovery: what did not fit leaves again at once, in smaller segments. That is no sign of congestion.
    fn lower_mtu(&mut self, mtu: u16, now: Instant, shared: &mut Shared) {
        let least = match self.key {
            AnyFlowKey::V4(_) => LEAST_V4,
            AnyFlowKey::V6(_) => LEAST_V6,
        };
        let mss = mtu.max(least) - ip_header_len(&self.key) - 20;
        if mss >= self.mss.min(segment_limit(&self.key, &shared.config)) {
            return;
        }
        shared.counters.mtu_lowered += 1;
        self.mss = mss;
        let most = self.data_limit(&shared.config, 0);
        if let Some(transfer) = &mut self.transfer {
            transfer.scoreboard.mark_longer_lost(most);
        }
        self.work.force = true;
        self.work.rto_base = now;
        self.arm_retransmit(now, shared.config_of(self.service()));
    }
}
