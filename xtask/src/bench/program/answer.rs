//! Whether what came out of a program is the SYN-ACK to the SYN that went in: a program that leaves out a checksum or the cookie,
//! or only turns frames around, takes less time for nothing.

use anyhow::{Context as _, Result, bail, ensure};
use tcpguard_common::bench::Rewrite;
use tcpguard_common::cookie::{Clock, Strictness, validate};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::{Flags, ParseError, parse};

use super::frames::{MAC, ROUTER};
use super::guard::Tables;

/// Fails unless `frame` answers frame `number` of `rewrite`, a SYN. With `slot` its numbers must be a cookie of that epoch.
pub(super) fn check<A: Tables>(
    frame: &[u8],
    rewrite: &Rewrite,
    number: u64,
    slot: Option<EpochSlot>,
) -> Result<()> {
    let any = match parse(frame) {
        Ok(any) => any,
        Err(ParseError::NotTcp) => bail!("no TCP segment"),
        Err(ParseError::Bad(reason)) => bail!("a malformed segment: {}", reason.name()),
    };
    let segment = A::segment(any).context("a segment of another family")?;
    let (syn, flow) = (rewrite.numbers(number), rewrite.flow::<A>(number));
    let (ip, tcp) = (&segment.ip, &segment.tcp);
    ensure!(
        tcp.flags == Flags::SYN | Flags::ACK,
        "control bits {:#04x}, not those of a SYN-ACK",
        tcp.flags.0
    );
    let ends = [(ip.src, tcp.src_port), (ip.dst, tcp.dst_port)];
    ensure!(ends == [(flow.local, flow.local_port), (flow.peer, flow.peer_port)], "from or to somebody else");
    ensure!(
        (segment.ethernet.src, segment.ethernet.dst) == (MAC, ROUTER),
        "from or to somebody else's link address"
    );
    ensure!(segment.checksum_ok(frame), "a wrong TCP checksum");
    ensure!(segment.payload.is_empty(), "a SYN-ACK with data");
    ensure!(tcp.ack.0 == syn.seq.wrapping_add(1), "it acknowledges what was not sent");
    let stamps = segment.options.timestamps;
    let offered = (rewrite.tsval != 0).then_some(syn.tsval);
    ensure!(stamps.map(|(_, echo)| echo) == offered, "other timestamps than were offered");
    if let Some(slot) = slot {
        let mut epochs = [EpochSlot::default(); EPOCH_SLOTS as usize];
        epochs[(slot.epoch % EPOCH_SLOTS) as usize] = slot;
        let clock = Clock { epoch: slot.epoch, ..Clock::default() };
        let echo = stamps.map(|(tsval, _)| tsval);
        let opened = validate(&epochs, &clock, Strictness::NEVER, &flow, syn.seq, tcp.seq.0, echo);
        ensure!(opened.is_some(), "no cookie of the key in force");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tcpguard_common::bench::PORT;
    use tcpguard_common::cookie::{SynOptions, encode};
    use tcpguard_common::flow::{V4, V6};
    use tcpguard_common::packet::build::{Headers, Link};
    use tcpguard_common::packet::{Buffer, Options, Tcp, Vlan};
    use tcpguard_common::seq::Seq;

    use super::super::frames::{Kind, Sources, rewrite};
    use super::super::guard::epoch;
    use super::*;

    const NUMBER: u64 = 77;

    fn asked<A: Tables>() -> Rewrite {
        rewrite::<A>(Kind::Syn, Sources { network: 12, count: 0 }, epoch().unwrap())
    }

    /// What a guard answers.
    fn headers<A: Tables>() -> Headers<A> {
        let (how, slot) = (asked::<A>(), epoch().unwrap());
        let (syn, flow) = (how.numbers(NUMBER), how.flow::<A>(NUMBER));
        let offer = SynOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(syn.tsval),
            ecn: false,
        };
        let cookie = encode(&slot, Strictness::NEVER, &flow, syn.seq, &offer, 1 << 40);
        Headers {
            link: Link { dst: ROUTER, src: MAC, vlan: Vlan::default() },
            src: A::GUARDED,
            dst: flow.peer,
            ecn: 0,
            src_port: PORT.to_be_bytes(),
            dst_port: flow.peer_port,
            seq: Seq(cookie.isn),
            ack: Seq(syn.seq.wrapping_add(1)),
            flags: Flags::SYN | Flags::ACK,
            window: 64_240,
            options: cookie.options::<A>(&slot, &offer),
        }
    }

    fn frame<A: Tables>(headers: Headers<A>) -> Vec<u8> {
        let len = headers.len();
        let mut frame = vec![0; len];
        headers.write(&mut Buffer::new(&mut frame, len), 0, 0).unwrap();
        frame
    }

    fn fault<A: Tables>(frame: &[u8], slot: Option<EpochSlot>) -> Option<String> {
        check::<A>(frame, &asked::<A>(), NUMBER, slot).err().map(|error| error.to_string())
    }

    #[test]
    fn a_guards_answer_is_one() {
        let slot = epoch().ok();
        assert_eq!(fault::<V4>(&frame(headers::<V4>()), slot), None);
        assert_eq!(fault::<V6>(&frame(headers::<V6>()), slot), None);
    }

    #[test]
    fn an_answer_that_is_cheaper_than_it_may_be_is_none() {
        let right = headers::<V4>();
        let slot = epoch().ok();
        let made = |headers| fault::<V4>(&frame(headers), slot);
        let without_cookie = Headers { seq: Seq(right.seq.0 ^ 1), ..right };
        assert_eq!(made(without_cookie).as_deref(), Some("no cookie of the key in force"));
        // Of others nobody here knows the key.
        assert_eq!(fault::<V4>(&frame(without_cookie), None), None);
        let ahead = Headers { ack: Seq(right.ack.0.wrapping_add(1)), ..right };
        assert_eq!(made(ahead).as_deref(), Some("it acknowledges what was not sent"));
        let silent = Headers { options: Options { timestamps: None, ..right.options }, ..right };
        assert_eq!(made(silent).as_deref(), Some("other timestamps than were offered"));
        let reset = Headers { flags: Flags::RST | Flags::ACK, ..right };
        assert!(made(reset).is_some_and(|fault| fault.starts_with("control bits")));
        let astray = Headers { dst_port: [0; 2], ..right };
        assert_eq!(made(astray).as_deref(), Some("from or to somebody else"));
        let link = Link { dst: MAC, ..right.link };
        assert_eq!(
            made(Headers { link, ..right }).as_deref(),
            Some("from or to somebody else's link address")
        );

        let mut unsummed = frame(right);
        unsummed[14 + 20 + Tcp::CHECKSUM..][..2].fill(0);
        assert_eq!(fault::<V4>(&unsummed, slot).as_deref(), Some("a wrong TCP checksum"));
        let mut unsummed = frame(right);
        unsummed[14 + 10..][..2].fill(0);
        assert!(fault::<V4>(&unsummed, slot).is_some_and(|fault| fault.starts_with("a malformed segment")));
    }
}
