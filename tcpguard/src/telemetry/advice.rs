//! What an operator wants to know of a verdict's reason beyond its meaning: where it is decided, and what to do about it.
//! The table of reasons itself, with names and help, is `tcpguard-common`'s.

use tcpguard_common::reason::Reason;

/// What to know of one reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Advice {
    /// After what, and where in the sources.
    pub decided: &'static str,
    /// What to do when many are counted.
    pub act: &'static str,
}

const LIFE: &str = "after the filters: is there an engine that lives? (check_alive in decision/mod.rs)";
const FORM: &str = "after filters and life: is the segment well-formed? (packet/ in tcpguard-common)";
const SENSE: &str = "after its form: can any TCP send this? (check_possible in decision/mod.rs)";
const SYN: &str = "last of a SYN's checks (judge_syn in decision/mod.rs)";
const SYN_BUDGET: &str = "once a SYN is known to be whole (decision/budget.rs)";
const ACK: &str = "no flow is known, and the segment is an ACK (judge_ack in decision/mod.rs)";
const NO_FLOW: &str =
    "no flow is known, and the segment is no ACK that could bring a cookie (judge in decision/mod.rs)";

const COMPLAINT: &str = "an ICMP error quotes a segment of a known flow (decision/complaint.rs)";
const ADMISSION: &str = "a valid cookie was shown (admit in decision/admission.rs)";

const NOTHING: &str = "Nothing: this is the normal course.";
const JUNK: &str = "Nothing for a few. Many are an attack that costs next to nothing, or a broken device on the way: \
                    look at what they have in common (tcpguard explain --pcap) and deny it upstream.";

impl Advice {
    /// What to know of `reason`.
    pub const fn on(reason: Reason) -> Self {
        let (decided, act) = match reason {
            Reason::CookieSent => (
                SYN,
                "Nothing. Many more of them than of ack-valid are a SYN flood, which this is the answer to; what the \
                 answers cost others is bounded by reply-rate.",
            ),
            Reason::CookieSentSmallMss => (
                SYN,
                "Nothing for a few. Many are attackers or very old devices: large answers to them may be lost.",
            ),
            Reason::SynStateful => (
                SYN,
                "Nothing: the stack answers and remembers them (tcpguard flows --half-open), as long as stateful-rate lasts.",
            ),
            Reason::RstStateful => (
                NO_FLOW,
                "Nothing: a client may give a half-open connection up; the stack judges it, inside stateful-rate.",
            ),
            Reason::AckValid => (ACK, NOTHING),
            Reason::FlowKnown => ("the flow is in the table (judge in decision/mod.rs)", NOTHING),
            Reason::TimeWait => (ACK, NOTHING),
            Reason::AckInvalid => (
                ACK,
                "Nothing for a few: late segments of flows that ended. Many are an ACK flood, or, if clients complain, \
                 cookies of a machine with another secret_file or another clock (tcpguard status shows the epoch).",
            ),
            Reason::AckBadChecksum => (
                ACK,
                "Segments are damaged on the way, or a veth peer has transmit checksum offload on (ethtool -K IF tx off).",
            ),
            Reason::FlowRate => (
                "the flow is known, and its engine's ring is more than half full (charge_flow in decision/budget.rs)",
                "A client floods its own connection: tcpguard flows shows who sends most; deny it, or lower flow-rate. \
                 If real transfers are meant, the engine cannot keep up: more queues help (ethtool -L).",
            ),
            Reason::IcmpTooBig => (
                COMPLAINT,
                "Nothing: segments leave as small as the path needs from then on (mtu-lowered in tcpguard stats).",
            ),
            Reason::IcmpError => (
                COMPLAINT,
                "Nothing for a few: clients that went away. Many at once mean that a route is gone, or are forged, which harms \
                 nobody: no error ends a connection.",
            ),
            Reason::IcmpRate => (
                COMPLAINT,
                "Somebody forges ICMP errors about a connection, or a router sends one for each segment: see with a capture \
                 which router it is. Transfers to clients behind narrow paths may hang: raise icmp-rate.",
            ),
            Reason::AdmissionService => (
                ADMISSION,
                "The service has as many flows as service-flows allows: raise it, or see in tcpguard flows who holds them.",
            ),
            Reason::AdmissionSourceFlows => (
                ADMISSION,
                "A source holds as many flows as source-flows allows: deny it if it is an attacker, allow it if it is a proxy \
                 or a NAT (tcpguard filters add).",
            ),
            Reason::AdmissionSourceRate => (
                ADMISSION,
                "A source opens flows faster than source-rate: deny it if it is an attacker, allow it if it is a proxy or a \
                 NAT (tcpguard filters add).",
            ),
            Reason::RefusedSilently => (
                ADMISSION,
                "Look at the other refusals of proven sources (flow-map-full, admission-…): these frames had no room for \
                 the reset that such a source gets.",
            ),
            Reason::FlowMapFull => (
                "a valid cookie was shown, and the flow map has no room (judge_ack in decision/mod.rs)",
                "Raise max_flows, which takes a clean stop and start; see in tcpguard flows which state fills it, and \
                 shorten its time (tcpguard tune).",
            ),
            Reason::FilterDeny => (
                "first of all that drops (decision/filter.rs)",
                "Nothing if the list is right: tcpguard filters shows which prefix is hit how often.",
            ),
            Reason::NoFlowRst => (
                NO_FLOW,
                "Nothing: clients reset what ended here already. Many are a RST flood, dropped at once.",
            ),
            Reason::NoFlow => (
                NO_FLOW,
                "Nothing for a few: late segments of flows that ended. Many are a flood of FIN, PSH or SYN-ACK segments, \
                 dropped at once.",
            ),
            Reason::ReplyBudget => (
                SYN_BUDGET,
                "Somebody sends SYNs from, or spoofs, one prefix faster than reply-rate. If real clients sit there, allow \
                 their addresses (tcpguard filters add allow) or raise reply-rate.",
            ),
            Reason::ReplyBudgetVerified => (
                SYN_BUDGET,
                "As for reply-budget; clients that were here lately are affected, too: raise verified-reply-rate.",
            ),
            Reason::SynBadChecksum => (
                SYN,
                "SYNs are damaged on the way, or a veth peer has transmit checksum offload on (ethtool -K IF tx off).",
            ),
            Reason::SynUnanswerable => (
                SYN,
                "Look whether the daemon's keys are current (tcpguard status): otherwise these are SYNs of over 4096 \
                 bytes, which no client sends.",
            ),
            Reason::Truncated
            | Reason::IpBadChecksum
            | Reason::BadLength
            | Reason::BadDataOffset
            | Reason::BadOptions => (FORM, JUNK),
            Reason::Fragment => (
                FORM,
                "Nothing for a few. Many that belong to real clients mean a hop that ignores DF, or an MTU that \
                 is too large on the way.",
            ),
            Reason::HeaderChain => (
                FORM,
                "Nothing for a few: no real client sends them. Many are somebody who tries to get past the guard.",
            ),
            Reason::BadFlags | Reason::BadSource | Reason::BadDestination | Reason::BadPort => (SENSE, JUNK),
            Reason::NotFollowed => (
                "in dry run, of everything but SYNs: whether its flow would be known (judge in decision/mod.rs)",
                "Nothing: the host has it. What the SYNs would meet is counted; tcpguard dry-run ADDR:PORT off guards in earnest.",
            ),
            Reason::ServiceOff => (
                "first of all: the service's mode (judge in decision/mod.rs)",
                "Nothing: the service is configured to be left to the host.",
            ),
            Reason::Grace => (
                LIFE,
                "The daemon was killed or stopped, or an engine is stuck: start it again (tcpguard run). Clients retry \
                 meanwhile, for exit-grace.",
            ),
            Reason::ExitPass => (
                LIFE,
                "No daemon lives, and the ports are unprotected: start it (tcpguard run), or take the program off \
                 (tcpguard detach).",
            ),
            Reason::ExitDrop => (LIFE, "No daemon lives, and the ports are shut: start it (tcpguard run)."),
            Reason::NoEngine => (
                LIFE,
                "Queues were added while the daemon ran: restart it, or take them away again (ethtool -L IF combined N). Or \
                 `queues` gives fewer of them an engine than flows are hashed to (ethtool -X IF equal N).",
            ),
        };
        Self { decided, act }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_do_is_said_in_sentences() {
        for &reason in Reason::ALL {
            let Advice { decided, act } = Advice::on(reason);
            assert!(!decided.ends_with('.') && act.ends_with('.'), "{}", reason.name());
            assert!(!act.contains("  ") && !decided.contains("  "), "{}", reason.name());
        }
    }
}
