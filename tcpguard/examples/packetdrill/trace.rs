//! Prints packets and connections to standard error, for whoever writes a script.

use std::fmt::Write as _;

use tcpguard::stack::TcbView;
use tcpguard_common::packet::{AnySegment, Flags, Options, Tcp};

use crate::clock::Clock;
use crate::network::segment;

/// Prints a frame; `arrow` says which way it goes.
pub(crate) fn packet(clock: &Clock, arrow: char, frame: &[u8]) {
    let text = match segment(frame) {
        Some(AnySegment::V4(segment)) => describe(&segment.tcp, &segment.options, segment.payload.len()),
        Some(AnySegment::V6(segment)) => describe(&segment.tcp, &segment.options, segment.payload.len()),
        None => format!("{} bytes that are not a TCP segment", frame.len()),
    };
    print(clock, &format!("{arrow} {text}"));
}

/// Prints a connection's variables.
pub(crate) fn tcb(clock: &Clock, view: &TcbView) {
    print(clock, &format!("{view:?}"));
}

#[expect(clippy::print_stderr, reason = "what the flags asked for")]
fn print(clock: &Clock, line: &str) {
    let micros = clock.micros();
    eprintln!("{}.{:06} {line}", micros / 1_000_000, micros % 1_000_000);
}

const LETTERS: [(Flags, char); 8] = [
    (Flags::SYN, 'S'),
    (Flags::FIN, 'F'),
    (Flags::RST, 'R'),
    (Flags::PSH, 'P'),
    (Flags::URG, 'U'),
    (Flags::ECE, 'E'),
    (Flags::CWR, 'W'),
    (Flags::ACK, '.'),
];

/// In the notation of scripts.
fn describe(tcp: &Tcp, options: &Options, len: usize) -> String {
    let mut text: String =
        LETTERS.iter().filter(|(flag, _)| tcp.flags.contains(*flag)).map(|(_, letter)| letter).collect();
    // Writing to a string does not fail.
    let _ = write!(text, " {}:{}({len})", tcp.seq.0, tcp.seq.0.wrapping_add(len as u32));
    if tcp.flags.contains(Flags::ACK) {
        let _ = write!(text, " ack {}", tcp.ack.0);
    }
    let _ = write!(text, " win {}", tcp.window);
    let Options { mss, window_scale, sack_permitted, timestamps, sack } = options;
    let _ = mss.map(|mss| write!(text, " mss {mss}"));
    let _ = window_scale.map(|shift| write!(text, " wscale {shift}"));
    if *sack_permitted {
        text += " sackOK";
    }
    let _ = timestamps.map(|(value, echo)| write!(text, " TS val {value} ecr {echo}"));
    for (left, right) in sack.as_slice() {
        let _ = write!(text, " sack {}:{}", left.0, right.0);
    }
    text
}
