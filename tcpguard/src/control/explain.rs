//! What would become of one frame, step by step: the decision that XDP takes, run over the maps as they are, without
//! changing or counting anything.

use tcpguard_common::decision::{Verdict, decide};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::packet::{
    AnySegment, Buffer, Complaint, Ethernet, Family, Flags, ParseError, Segment, Trouble, parse,
};
use tcpguard_common::reason::{Outcome, Reason};

use crate::dataplane::{Arrival, Step, View};

use super::filters::{FilterError, Filters};
use super::guard::Guard;
use super::protocol::{self as wire, MAX_FRAME_EXPLAINED, Reply};
use super::services::Known;

/// Room behind the frame: an answer is at most four bytes longer than what it answers.
const ROOM: usize = 64;

impl Guard {
    /// Runs the decision for a frame that would arrive on `interface` (the first one, if not said) and `queue`.
    pub(super) async fn explain(&self, frame: &str, interface: Option<&str>, queue: u32) -> Reply {
        let Some(frame) = bytes(frame).filter(|frame| !frame.is_empty()) else {
            return Reply::bad_input("the frame is not hexadecimal digits, two for each byte");
        };
        if frame.len() > MAX_FRAME_EXPLAINED {
            return Reply::bad_input(format!(
                "a frame of {} bytes: the most is {MAX_FRAME_EXPLAINED}",
                frame.len()
            ));
        }
        let attached = match interface {
            None => self.attached.first(),
            Some(name) => self.attached.iter().find(|attached| attached.name == name),
        };
        let Some(attached) = attached else {
            return Reply::bad_input(format!("{} is not guarded", interface.unwrap_or_default()));
        };
        let arrival = Arrival {
            slot: attached.slot,
            queue,
            sockets: self.living_engines(),
            services: self
                .modes
                .known()
                .into_iter()
                .map(|Known { id, service }| (id, format!("{} ({})", service.listen, service.mode)))
                .collect(),
        };
        let views = match self.dataplane.views() {
            Ok(views) => views,
            Err(error) => return Reply::failed(error.to_string()),
        };
        let name = attached.name.clone();
        let explain = move |_: &mut Filters| -> Result<wire::Explained, FilterError> {
            Ok(explained(frame, name, queue, View::new(views, arrival)))
        };
        // With the lists held still, so that the tables in force are the same from the first step to the last.
        self.filters.with(explain).await.map_or_else(Reply::from, Reply::Explained)
    }

    /// The engines that turn, by their XSKMAP index: their sockets are where XDP finds them.
    fn living_engines(&self) -> Vec<u32> {
        let living = self.engines().iter().filter(|engine| engine.handle.end().is_none());
        living.map(|engine| engine.handle.engine()).collect()
    }
}

fn explained(mut frame: Vec<u8>, interface: String, queue: u32, view: View) -> wire::Explained {
    let (len, parsed) = (frame.len(), parse(frame.as_slice()));
    let summary = format!("{}, {len} bytes", describe(&frame));
    let other_mac = Ethernet::parse(frame.as_slice())
        .is_some_and(|ethernet| view.mac().is_some_and(|mac| mac != ethernet.dst));
    frame.resize(len + ROOM, 0);
    let mut buffer = Buffer::new(&mut frame, len);
    let verdict = decide(&mut buffer, &view);
    let answer = (verdict == Verdict::Transmit).then(|| buffer.frame().to_vec());
    let left = match &parsed {
        Ok(AnySegment::V4(segment)) if is_syn(segment) => view.replies_left(segment.ip.src),
        Ok(AnySegment::V6(segment)) if is_syn(segment) => view.replies_left(segment.ip.src),
        Ok(_) | Err(_) => None,
    };
    let (mut steps, reason) = view.minutes();
    if let Some(left) = left.filter(|_| reason.is_some_and(is_budgeted)) {
        let found = format!("{left} SYN-ACKs left at once for the source's prefix on this queue");
        steps.push(Step { what: "reply budget", found });
    }
    if reason.is_none() {
        let found = match (other_mac, parsed) {
            (true, _) => "addressed to another MAC",
            (false, Err(ParseError::NotTcp)) => {
                "neither TCP, or not its first fragment, nor an ICMP error about a known flow"
            }
            (false, _) => "not aimed at a protected address and port",
        };
        steps.push(Step { what: "not ours", found: found.to_owned() });
    }
    wire::Explained {
        frame: summary,
        interface,
        queue,
        steps: steps
            .into_iter()
            .map(|Step { what, found }| wire::Step { step: what.to_owned(), found })
            .collect(),
        outcome: outcome(verdict).name().to_owned(),
        reason: reason.map(|reason| reason.name().to_owned()),
        help: reason.map(|reason| reason.help().trim().to_owned()),
        answer: answer.as_deref().map(describe),
        answer_frame: answer.map(|answer| answer.iter().map(|byte| format!("{byte:02x}")).collect()),
    }
}

fn outcome(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Pass => Outcome::Passed,
        Verdict::Drop => Outcome::Dropped,
        Verdict::Transmit => Outcome::Answered,
        Verdict::Redirect(_) => Outcome::Redirected,
    }
}

fn is_syn<A: Family>(segment: &Segment<A>) -> bool {
    segment.tcp.flags.contains(Flags::SYN) && !segment.tcp.flags.contains(Flags::ACK)
}

/// Whether the verdict came after the budget was asked.
fn is_budgeted(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::CookieSent | Reason::CookieSentSmallMss | Reason::ReplyBudget | Reason::ReplyBudgetVerified
    )
}

/// What a frame is, in a line.
fn describe(frame: &[u8]) -> String {
    match parse(frame) {
        Ok(AnySegment::V4(segment)) => segment_line(&segment, frame),
        Ok(AnySegment::V6(segment)) => segment_line(&segment, frame),
        Err(ParseError::NotTcp) => complaint(frame).unwrap_or_else(|| "not a TCP segment".to_owned()),
        Err(ParseError::Bad(reason)) => format!("a malformed TCP segment ({})", reason.name()),
    }
}

/// An ICMP error in a line.
fn complaint(frame: &[u8]) -> Option<String> {
    fn line<A: Family>(frame: &[u8], l3: usize) -> Option<String> {
        let said = Complaint::<A>::parse(frame, l3)?;
        let key = A::any_key(said.key);
        let what = match said.what {
            Trouble::TooBig(mtu) => format!("too big, {mtu} bytes fit"),
            Trouble::Hard | Trouble::Soft => "not delivered".to_owned(),
        };
        let damage = if said.checksums_ok(frame) { "" } else { " (bad checksum)" };
        Some(format!("an ICMP error about {} > {}: {what}{damage}", key.local_addr(), key.peer_addr()))
    }
    let ethernet = Ethernet::parse(frame)?;
    match ethernet.ether_type {
        V4::ETHER_TYPE => line::<V4>(frame, ethernet.l3),
        V6::ETHER_TYPE => line::<V6>(frame, ethernet.l3),
        _ => None,
    }
}

fn segment_line<A: Family>(segment: &Segment<A>, frame: &[u8]) -> String {
    let key = A::any_key(segment.key());
    let tcp = &segment.tcp;
    let mut line = format!(
        "{} > {} {} seq {} ack {} win {} len {}",
        key.peer_addr(),
        key.local_addr(),
        flags(tcp.flags),
        tcp.seq.0,
        tcp.ack.0,
        tcp.window,
        segment.payload.len()
    );
    let options = &segment.options;
    if let Some(mss) = options.mss {
        line += &format!(" mss {mss}");
    }
    if let Some(shift) = options.window_scale {
        line += &format!(" wscale {shift}");
    }
    if options.sack_permitted {
        line += " sackOK";
    }
    if let Some((value, echo)) = options.timestamps {
        line += &format!(" TS val {value} ecr {echo}");
    }
    if !segment.checksum_ok(frame) {
        line += " (bad checksum)";
    }
    line
}

fn flags(flags: Flags) -> String {
    const NAMES: [(Flags, &str); 8] = [
        (Flags::SYN, "SYN"),
        (Flags::FIN, "FIN"),
        (Flags::RST, "RST"),
        (Flags::PSH, "PSH"),
        (Flags::ACK, "ACK"),
        (Flags::URG, "URG"),
        (Flags::ECE, "ECE"),
        (Flags::CWR, "CWR"),
    ];
    let set: Vec<_> =
        NAMES.iter().filter(|&&(flag, _)| flags.contains(flag)).map(|&(_, name)| name).collect();
    if set.is_empty() { "no flags".to_owned() } else { set.join("+") }
}

/// Reads hexadecimal digits.
fn bytes(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_are_read_in_pairs_and_nothing_else_is() {
        assert_eq!(bytes("00fFa9"), Some(vec![0, 255, 0xa9]));
        assert_eq!(bytes(""), Some(vec![]));
        for text in ["0", "0g", "0 0", "é"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }

    #[test]
    fn flags_are_named() {
        assert_eq!(flags(Flags::SYN | Flags::ACK), "SYN+ACK");
        assert_eq!(flags(Flags::default()), "no flags");
    }
}
