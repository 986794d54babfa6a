//! Whether what came out is right, to the last byte.

use std::format;
use std::string::String;
use std::string::ToString as _;

use super::cases::Case;
use super::world::{ADVERTISED, EPOCH, Place};
use tcpguard_common::cookie::{self, Clock};
use tcpguard_common::decision::Verdict;
use tcpguard_common::packet::{AnySegment, Flags, Options, Segment, parse};
use tcpguard_common::reason::Reason;

/// Whether the frame that came out, and what was remembered, is right for what went in.
pub(crate) fn check(case: &Case, verdict: Verdict, out: &[u8], flows: usize) -> Result<(), String> {
    let fail = |what: &str| Err(format!("{}: {what}\n in: {:02x?}\nout: {out:02x?}", case.name, case.frame));
    if verdict != case.verdict {
        return fail(&format!("expected {:?}, got {verdict:?}", case.verdict));
    }
    let before = case.world.flows_v4.borrow().len() + case.world.flows_v6.borrow().len();
    if flows != before + usize::from(case.reason == Some(Reason::AckValid)) {
        return fail("the flow table is not what it should be");
    }
    if verdict != Verdict::Transmit {
        return if out == case.frame { Ok(()) } else { fail("the frame was touched") };
    }
    let answered = match (parse(&case.frame[..]), parse(out)) {
        (Ok(AnySegment::V4(to)), Ok(AnySegment::V4(answer))) => check_answer(case, &to, &answer, out),
        (Ok(AnySegment::V6(to)), Ok(AnySegment::V6(answer))) => check_answer(case, &to, &answer, out),
        _ => Err("no well-formed answer".to_string()),
    };
    answered.or_else(|what| fail(&what))
}

fn require(holds: bool, what: &str) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what.to_string()) }
}

fn check_answer<A: Place>(
    case: &Case,
    to: &Segment<A>,
    answer: &Segment<A>,
    out: &[u8],
) -> Result<(), String> {
    require(answer.checksum_ok(out), "checksum")?;
    require(answer.payload.is_empty() && answer.payload.end == out.len(), "nothing after the headers")?;
    require(answer.tcp.header_len <= to.tcp.header_len + 4, "at most four bytes longer")?;
    require(out.len() <= case.frame.len() + 4, "a frame at most four bytes longer")?;
    let ends = (answer.ethernet.src, answer.ethernet.dst, answer.ethernet.vlan);
    require(ends == (to.ethernet.dst, to.ethernet.src, to.ethernet.vlan), "link header mirrored")?;
    require((answer.ip.src, answer.ip.dst) == (to.ip.dst, to.ip.src), "addresses mirrored")?;
    let ports = (answer.tcp.src_port, answer.tcp.dst_port);
    require(ports == (to.tcp.dst_port, to.tcp.src_port), "ports mirrored")?;
    require(answer.ip.hop_limit == 64 && answer.ip.ecn == 0 && answer.tcp.urgent == 0, "a plain header")?;
    use Reason::{AdmissionService, AdmissionSourceFlows, AdmissionSourceRate, FlowMapFull};
    if let Some(FlowMapFull | AdmissionService | AdmissionSourceFlows | AdmissionSourceRate) = case.reason {
        require(
            answer.tcp.flags == Flags::RST && answer.tcp.seq == to.tcp.ack,
            "a reset where the peer expects it",
        )?;
        return require(answer.options == Options::default() && answer.tcp.window == 0, "a bare reset");
    }
    check_syn_ack(case, to, answer, out)
}

fn check_syn_ack<A: Place>(
    case: &Case,
    to: &Segment<A>,
    answer: &Segment<A>,
    out: &[u8],
) -> Result<(), String> {
    let asks = to.tcp.flags.contains(Flags::ECE | Flags::CWR) && to.options.timestamps.is_some();
    let echo = if asks { Flags::ECE } else { Flags(0) };
    require(answer.tcp.flags == Flags::SYN | Flags::ACK | echo, "SYN, ACK, ECE if it was asked for")?;
    require(answer.tcp.ack == to.tcp.seq + 1, "acknowledges the SYN, not its data")?;
    require(answer.tcp.window == ADVERTISED.window, "the window of the slot")?;
    let mss = if A::VERSION == 4 { ADVERTISED.mss_v4 } else { ADVERTISED.mss_v6 };
    let tsval = answer.options.timestamps.map(|(value, _)| value);
    let strictness = A::services(&case.world).values().next().map(|service| service.strictness);
    let strictness = strictness.unwrap_or_default();
    let plain = strictness.at(EPOCH) && to.options.timestamps.is_none();
    let offer = Options {
        mss: Some(mss),
        window_scale: to.options.window_scale.filter(|_| !plain).map(|_| ADVERTISED.window_scale),
        sack_permitted: to.options.sack_permitted && !plain,
        timestamps: to.options.timestamps.zip(tsval).map(|((echo, _), value)| (value, echo)),
        ..to.options
    };
    require(answer.options == offer, "exactly the options that were offered and are remembered")?;
    if let Some(expected) = case.answer {
        let mut expected = expected.to_vec();
        expected[2..4].copy_from_slice(&mss.to_be_bytes());
        if let Some(tsval) = tsval {
            expected[8..12].copy_from_slice(&tsval.to_be_bytes());
        }
        let options = &out[answer.ip.l4 + 20..];
        require(options == expected, &format!("options {options:02x?} instead of {expected:02x?}"))?;
    }
    let clock = Clock { epoch: EPOCH, ..Clock::default() };
    let (flow, irs, iss) = (to.key(), to.tcp.seq.0, answer.tcp.seq.0);
    let accepted = cookie::validate(&case.world, &clock, strictness, &flow, irs, iss, tsval);
    let Some(accepted) = accepted else { return Err("a cookie that validates".to_string()) };
    let asked = to.options.mss.unwrap_or(A::DEFAULT_MSS).max(A::DEFAULT_MSS);
    require(accepted.mss <= asked, "an MSS that was asked for")?;
    require(accepted.sack_permitted == offer.sack_permitted, "SACK remembered")?;
    require(accepted.ecn == asks, "ECN remembered where timestamps have room for it")?;
    require(accepted.window_scale.is_some() == offer.window_scale.is_some(), "scaling remembered")?;
    require(accepted.window_scale <= to.options.window_scale, "a shift that was offered")
}
