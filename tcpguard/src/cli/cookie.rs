//! `tcpguard cookie decode`: what a cookie says that was captured on the wire, and whether it holds. The daemon judges it: the
//! keys stay there.

use std::io::{self, BufWriter, Write};
use std::net::SocketAddr;

use crate::control::client::Client;
use crate::control::protocol::{Cookie, Reply, Request};

use super::output::{age, write_json};
use super::{Failure, ask, unexpected};

#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  tcpguard cookie decode 192.0.2.7:51000 198.51.100.1:80 --seq 1001 --ack 0x8badf00e --tsecr 3735928559
  tcpguard cookie decode --syn-ack 198.51.100.1:80 192.0.2.7:51000 --seq 0x8badf00d --ack 1001 --json")]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Explain the cookie of a client's ACK, or of a SYN-ACK
    #[command(after_help = "\
Numbers are those of the wire, decimal or 0x and hexadecimal; `tcpdump -S` shows them. The client's first segment after the
SYN-ACK carries the cookie, less one, as its acknowledgment; later ones do not.")]
    Decode(Segment),
}

/// A segment, as it was captured.
#[derive(clap::Args)]
struct Segment {
    /// Where it came from, such as 192.0.2.7:51000 or [2001:db8::7]:51000
    #[arg(value_name = "FROM")]
    from: SocketAddr,
    /// Where it went
    #[arg(value_name = "TO")]
    to: SocketAddr,
    /// Its sequence number
    #[arg(long, value_name = "N", value_parser = number)]
    seq: u32,
    /// Its acknowledgment number
    #[arg(long, value_name = "N", value_parser = number)]
    ack: u32,
    /// The first value of its timestamps option
    #[arg(long, value_name = "N", value_parser = number)]
    tsval: Option<u32>,
    /// The second value of its timestamps option
    #[arg(long, value_name = "N", value_parser = number)]
    tsecr: Option<u32>,
    /// The sequence number of the client's SYN, where it is not the segment's less one
    #[arg(long, value_name = "N", value_parser = number)]
    isn: Option<u32>,
    /// It is the SYN-ACK, not a segment of the client's
    #[arg(long)]
    syn_ack: bool,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args, client: &Client) -> Result<(), Failure> {
    let What::Decode(segment) = &args.what;
    let Reply::Cookie(cookie) = ask(client, &segment.request().map_err(Failure::BadInput)?)? else {
        return Err(unexpected());
    };
    let mut out = BufWriter::new(io::stdout().lock());
    if segment.json {
        return Ok(write_json(&mut out, &cookie)?);
    }
    explain(&cookie, &mut out)?;
    Ok(out.flush()?)
}

impl Segment {
    fn request(&self) -> Result<Request, String> {
        // Each side sends its own clock and echoes the other's; the cookie is in the guarded end's.
        let (stamp, other, missing) = if self.syn_ack {
            (self.tsval, self.tsecr, "--tsval")
        } else {
            (self.tsecr, self.tsval, "--tsecr")
        };
        if stamp.is_none() && other.is_some() {
            return Err(format!(
                "timestamps come in pairs, and the cookie is in the other one: {missing} is missing"
            ));
        }
        Ok(if self.syn_ack {
            let client_isn = self.isn.unwrap_or(self.ack.wrapping_sub(1));
            Request::CookieDecode { peer: self.to, local: self.from, client_isn, cookie: self.seq, stamp }
        } else {
            let client_isn = self.isn.unwrap_or(self.seq.wrapping_sub(1));
            let cookie = self.ack.wrapping_sub(1);
            Request::CookieDecode { peer: self.from, local: self.to, client_isn, cookie, stamp }
        })
    }
}

fn number(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u32::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| format!("`{text}` is no number of 32 bits"))
}

fn explain(cookie: &Cookie, out: &mut impl Write) -> io::Result<()> {
    let now = cookie.current_epoch;
    let epoch = match cookie.epoch {
        None => format!("none of those whose keys are here (now {now})"),
        Some(epoch) => match now.wrapping_sub(epoch).cast_signed() {
            0 => format!("{epoch}, the current one"),
            1 => format!("{epoch}, the previous one"),
            -1 => format!("{epoch}, the next one"),
            ago => format!("{epoch}, {ago} before the current one"),
        },
    };
    let yes = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
    let claimed = if cookie.epoch.is_some() { "" } else { " (claimed)" };
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<13}{value}");
    line("cookie", &cookie.validity)?;
    line("", &cookie.help)?;
    line("layout", &cookie.layout)?;
    line("epoch", &epoch)?;
    if let Some(ms) = cookie.age_ms {
        line("age", &age(ms))?;
    }
    line("MSS", &format!("{}{claimed}", cookie.mss))?;
    let scale = cookie.window_scale.map_or_else(|| "none".to_owned(), |shift| shift.to_string());
    line("window scale", &format!("{scale}{claimed}"))?;
    line("SACK", &format!("{}{claimed}", yes(cookie.sack_permitted)))?;
    line("ECN", &format!("{}{claimed}", yes(cookie.ecn)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(syn_ack: bool) -> Segment {
        Segment {
            from: "192.0.2.7:9".parse().unwrap(),
            to: "192.0.2.1:80".parse().unwrap(),
            seq: 100,
            ack: 0,
            tsval: Some(7),
            tsecr: Some(8),
            isn: None,
            syn_ack,
            json: false,
        }
    }

    #[test]
    fn a_client_s_segment_and_a_syn_ack_carry_the_same_in_other_places() {
        let (peer, local) = (segment(false).from, segment(false).to);
        assert_eq!(
            segment(false).request().unwrap(),
            Request::CookieDecode { peer, local, client_isn: 99, cookie: u32::MAX, stamp: Some(8) }
        );
        assert_eq!(
            segment(true).request().unwrap(),
            Request::CookieDecode {
                peer: local,
                local: peer,
                client_isn: u32::MAX,
                cookie: 100,
                stamp: Some(7)
            }
        );
        let later = Segment { isn: Some(5), ..segment(false) };
        assert!(matches!(later.request(), Ok(Request::CookieDecode { client_isn: 5, .. })));
        assert!(Segment { tsecr: None, ..segment(false) }.request().unwrap_err().contains("--tsecr"));
        assert!(Segment { tsval: None, ..segment(true) }.request().unwrap_err().contains("--tsval"));
    }

    #[test]
    fn numbers_are_read_in_both_notations() {
        assert_eq!((number("4294967295"), number("0xffffffff")), (Ok(u32::MAX), Ok(u32::MAX)));
        for text in ["", "0x", "-1", "4294967296", "0x100000000", "ff"] {
            assert!(number(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_nobody_vouches_for_is_said_to_be_claimed() {
        let cookie = Cookie {
            validity: "valid".into(),
            help: "Fine.".into(),
            layout: "timestamps".into(),
            epoch: Some(6),
            current_epoch: 7,
            age_ms: Some(1500),
            mss: 1460,
            window_scale: None,
            sack_permitted: true,
            ecn: false,
        };
        let text = |cookie: &Cookie| {
            let mut out = Vec::new();
            explain(cookie, &mut out).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(
            text(&cookie),
            "cookie       valid
             Fine.
layout       timestamps
epoch        6, the previous one
age          1s
MSS          1460
window scale none
SACK         yes
ECN          no
"
        );
        let wrong = text(&Cookie { epoch: None, age_ms: None, ..cookie });
        assert!(wrong.contains("none of those whose keys are here (now 7)"), "{wrong}");
        assert!(wrong.contains("MSS          1460 (claimed)") && !wrong.contains("age"), "{wrong}");
    }
}
