//! What the fuzz targets in `fuzz/` do with their input: each body takes any bytes and panics when something is wrong. The
//! unit tests below feed the same bodies from the seeds and from a generator, for a bounded time and without a fuzzer.

use std::vec;
use std::vec::Vec;

use crate::decision::reference;
use crate::decision::table::generator::worlds;
use crate::decision::table::world::{ADVERTISED, MASTER, World};
use tcpguard_common::cookie::{self, Clock, Strictness, SynOptions};
use tcpguard_common::flow::{FlowKey, V4, V6};
use tcpguard_common::map::{EPOCH_SLOTS, EpochSlot};
use tcpguard_common::packet::build::{Headers, Link};
use tcpguard_common::packet::{
    self, AnySegment, Buffer, Family, MAX_OPTIONS, Options, Segment, WINDOW_SCALE_MAX, checksum,
};
use tcpguard_common::reason::Reason;

/// The parser: what it finds lies inside the frame, and written anew it reads the same.
pub(crate) fn parser(frame: &[u8]) {
    match packet::parse(frame) {
        Ok(AnySegment::V4(segment)) => rewritten(&segment, frame, |any| match any {
            AnySegment::V4(segment) => Some(segment),
            AnySegment::V6(_) => None,
        }),
        Ok(AnySegment::V6(segment)) => rewritten(&segment, frame, |any| match any {
            AnySegment::V6(segment) => Some(segment),
            AnySegment::V4(_) => None,
        }),
        Err(_) => {}
    }
}

fn rewritten<A: Family>(
    segment: &Segment<A>,
    frame: &[u8],
    of_family: impl Fn(AnySegment) -> Option<Segment<A>>,
) {
    let Segment { ethernet, ip, tcp, options, payload } = segment;
    assert!(ethernet.l3 <= ip.l3 && ip.l3 < ip.l4 && ip.fault.reason().is_none());
    assert_eq!(payload.clone(), ip.l4 + tcp.header_len..ip.l4 + ip.l4_len);
    let data = frame.get(payload.clone()).expect("data inside the frame");
    let headers = Headers {
        link: Link { dst: ethernet.dst, src: ethernet.src, vlan: ethernet.vlan },
        src: ip.src,
        dst: ip.dst,
        ecn: ip.ecn,
        src_port: tcp.src_port,
        dst_port: tcp.dst_port,
        seq: tcp.seq,
        ack: tcp.ack,
        flags: tcp.flags,
        window: tcp.window,
        options: *options,
    };
    let mut bytes = vec![0; headers.len()];
    bytes.extend(data);
    let len = bytes.len();
    let written = headers.write(&mut Buffer::new(&mut bytes, len), data.len(), checksum::sum(data));
    // Packed without padding, a peer's options may be more than ours can be with it.
    assert_eq!(written.is_some(), headers.options_len() <= MAX_OPTIONS);
    if written.is_none() {
        return;
    }
    let again = packet::parse(&bytes[..]).ok().and_then(of_family).expect("what we write we can read");
    assert!(again.checksum_ok(&bytes));
    assert_eq!((again.ethernet.vlan, again.ip.ecn), (ethernet.vlan, ip.ecn));
    assert_eq!((again.key(), again.options), (segment.key(), *options));
    assert_eq!((again.tcp.seq, again.tcp.ack), (tcp.seq, tcp.ack));
    assert_eq!((again.tcp.flags, again.tcp.window), (tcp.flags, tcp.window));
    assert_eq!(&bytes[again.payload], data);
}

/// The option walk: both forms of it and the reference find the same.
pub(crate) fn options(bytes: &[u8]) {
    let bytes = &bytes[..bytes.len().min(MAX_OPTIONS)];
    // Something in front, so that an offset counted from the wrong place shows.
    let frame = [&[0x02; 7], bytes].concat();
    let plain = Options::parse(&frame[..], 7, bytes.len());
    let whole = Options::parse_all(&frame[..], 7, bytes.len());
    assert_eq!(plain, whole.map(|options| Options { sack: Default::default(), ..options }));
    let found = whole.map(|Options { mss, window_scale, sack_permitted, timestamps, sack }| {
        assert!(window_scale.is_none_or(|shift| shift <= WINDOW_SCALE_MAX));
        assert!(sack.as_slice().len() <= 4);
        (mss, window_scale, sack_permitted, timestamps)
    });
    assert_eq!(found, reference::options(bytes));
}

/// Numbers from the front of the input; zeros once it is used up.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut taken = [0; N];
        let (front, rest) = self.0.split_at(self.0.len().min(N));
        taken[..front.len()].copy_from_slice(front);
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        let [byte] = self.bytes();
        byte
    }

    fn word(&mut self) -> u32 {
        u32::from_ne_bytes(self.bytes())
    }
}

/// The cookie: it remembers no more than was offered, and what is made and what is accepted is what the reference says.
pub(crate) fn cookie(input: &[u8]) {
    let mut input = Input(input);
    let ports = [input.bytes(), input.bytes()];
    let [peer_port, local_port] = ports;
    if input.byte() & 1 == 0 {
        let (peer, local) = (V4(input.bytes()), V4(input.bytes()));
        of_flow(&mut input, FlowKey { peer, local, peer_port, local_port });
    } else {
        let (peer, local) = (V6(input.bytes()), V6(input.bytes()));
        of_flow(&mut input, FlowKey { peer, local, peer_port, local_port });
    }
}

fn of_flow<A: Family>(input: &mut Input<'_>, flow: FlowKey<A>) {
    let [which, shift, sooner, skew] = input.bytes();
    let mss = u16::from_ne_bytes(input.bytes());
    let (now, client_isn, coarse_ns) = (input.word(), input.word(), u64::from(input.word()) << 20);
    let on = |bit: u8| which & 1 << bit != 0;
    let syn = SynOptions {
        mss: on(0).then_some(mss),
        window_scale: on(1).then_some(shift),
        sack_permitted: on(2),
        timestamps: on(3).then_some(1),
        ecn: on(5),
    };
    let slots = slots(now);
    let issued = now.wrapping_add(u32::from(skew % 4)).wrapping_sub(2);
    let slot = slots.iter().find(|slot| slot.epoch == issued).expect("one of four in a row");
    let strictness = Strictness(u16::from(skew >> 4));
    let made = cookie::encode(slot, strictness, &flow, client_isn, &syn, coarse_ns);
    let any = A::any_key(flow);
    let offer = reference::Offer {
        mss: syn.mss,
        shift: syn.window_scale,
        sack: syn.sack_permitted,
        stamped: syn.timestamps.is_some(),
        ecn: syn.ecn,
        strict: strictness.at(issued),
    };
    assert_eq!((made.isn, made.tsval), reference::issue(slot, &any, client_isn, &offer, coarse_ns));
    assert_eq!(made.strict, strictness.at(issued) && syn.timestamps.is_none());

    // As it was made, and as the input has it.
    let (isn, tsval) = (input.word(), input.word());
    let echoes = [(0, 0), (isn, tsval), (isn & 1 << (sooner % 32), 0), (0, 1 << (sooner % 32))];
    for (in_isn, in_tsval) in echoes {
        let (echo, tsecr) = (made.isn ^ in_isn, made.tsval.map(|tsval| tsval ^ in_tsval));
        let clock = Clock { epoch: now, second_half: on(4), extra: 0 };
        let accepted = cookie::validate(&slots, &clock, strictness, &flow, client_isn, echo, tsecr);
        let expected = reference::holds(&slots, (now, on(4)), strictness.0, &any, client_isn, echo, tsecr);
        assert_eq!(accepted.is_some(), expected);
        let late = Clock { extra: 1, ..clock };
        let stack = cookie::validate(&slots, &late, strictness, &flow, client_isn, echo, tsecr);
        assert!(
            accepted.is_none() || stack == accepted,
            "the stack accepts whatever XDP accepts, and reads the same"
        );
        if let Some(accepted) = accepted.filter(|_| (in_isn, in_tsval) == (0, 0)) {
            assert!(accepted.mss <= syn.mss.unwrap_or(A::DEFAULT_MSS).max(A::DEFAULT_MSS));
            assert!(accepted.window_scale <= syn.window_scale);
            assert_eq!(accepted.window_scale.is_some(), syn.window_scale.is_some() && !made.strict);
            assert_eq!(accepted.sack_permitted, syn.sack_permitted && !made.strict);
            assert_eq!(accepted.strict, made.strict);
            assert_eq!(accepted.ecn, syn.ecn && syn.timestamps.is_some());
            assert_eq!((accepted.timestamps, accepted.slot), (syn.timestamps.is_some(), *slot));
        }
    }
}

/// What a daemon has in its slots.
fn slots(now: u32) -> [EpochSlot; EPOCH_SLOTS as usize] {
    let mut slots = [EpochSlot::default(); EPOCH_SLOTS as usize];
    for offset in 0..EPOCH_SLOTS {
        let epoch = now.wrapping_add(offset).wrapping_sub(2);
        slots[(epoch % EPOCH_SLOTS) as usize] =
            EpochSlot::derive(MASTER, epoch, &ADVERTISED).expect("a secret and a window");
    }
    slots
}

std::thread_local! {
    /// Judging leaves them as they were: the budgets that are not used up at first never are.
    static WORLDS: Vec<World> = worlds().into_iter().map(|(_, world)| world).collect();
}

/// The decision: the frame after the first two bytes is judged and answered as the reference says. The first chooses the
/// world and the room behind the frame; by the second the frame gets what no fuzzer would find, right checksums and a
/// valid cookie.
pub(crate) fn decision(input: &[u8]) {
    let Some((&[place, gifts], frame)) = input.split_first_chunk() else { return };
    let mut frame = frame.to_vec();
    WORLDS.with(|worlds| {
        let world = &worlds[usize::from(place & 0xf) % worlds.len()];
        if gifts & 1 != 0 {
            reference::sign(world, &mut frame);
        }
        if gifts & 2 != 0 {
            reference::repair(&mut frame);
        }
        match reference::compare(world, &frame, usize::from(place >> 4) * 4) {
            Ok(Some(Reason::AckValid)) => handed_over(world, &frame),
            Ok(_) => {}
            Err(difference) => panic!("{difference}"),
        }
    });
}

/// What XDP lets through, the stack can read, and accepts as well.
fn handed_over(world: &World, frame: &[u8]) {
    let accepted = match packet::parse(frame).expect("a whole segment") {
        AnySegment::V4(segment) => adoptable(world, &segment),
        AnySegment::V6(segment) => adoptable(world, &segment),
    };
    assert!(accepted);
}

fn adoptable<A: Family>(world: &World, segment: &Segment<A>) -> bool {
    let clock =
        Clock { epoch: world.settings.epoch, second_half: world.settings.epoch_second_half != 0, extra: 1 };
    let (client_isn, isn) = ((segment.tcp.seq - 1).0, (segment.tcp.ack - 1).0);
    let tsecr = segment.options.timestamps.map(|(_, echo)| echo);
    let flow = segment.key();
    // A world's services are all alike in this.
    let strictness = world.services_v4.values().next().map(|service| service.strictness).unwrap_or_default();
    cookie::validate(world, &clock, strictness, &flow, client_isn, isn, tsecr).is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decision::table::generator::{Generator, Random};

    const SEED: u64 = 0x6675_7a7a;

    /// Feeds `body` the seeds of `target`, and what `generated` makes of so many calls.
    fn feed(target: &str, body: fn(&[u8]), calls: usize, mut generated: impl FnMut() -> Vec<u8>) {
        let folder = std::format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
        let mut seeds = 0;
        for seed in std::fs::read_dir(&folder).unwrap() {
            let seed = std::fs::read(seed.unwrap().path()).unwrap();
            body(&seed);
            // Cut anywhere it is a fair input too.
            (0..seed.len()).for_each(|len| body(&seed[..len]));
            seeds += 1;
        }
        assert!(seeds > 5, "{seeds} seeds in {folder}");
        (0..calls).for_each(|_| body(&generated()));
    }

    #[test]
    fn the_body_of_the_parsers_target_holds() {
        let mut generator = Generator::new(SEED, 0..=2000);
        feed("parser", parser, 100_000, || generator.frame());
    }

    #[test]
    fn the_body_of_the_option_walks_target_holds() {
        let mut random = Random::new(SEED);
        feed("options", options, 300_000, || {
            // Small numbers are kinds and lengths.
            let len = random.below(44);
            (0..len)
                .map(|_| if random.below(3) == 0 { random.word() as u8 } else { random.below(12) as u8 })
                .collect()
        });
    }

    #[test]
    fn the_body_of_the_cookies_target_holds() {
        let mut random = Random::new(SEED);
        feed("cookie", cookie, 50_000, || (0..10).flat_map(|_| random.word().to_ne_bytes()).collect());
    }

    #[test]
    fn the_body_of_the_decisions_target_holds() {
        let (mut generator, mut random) = (Generator::new(SEED, 0..=2000), Random::new(SEED));
        feed("decision", decision, 100_000, || {
            let gifts = [random.word() as u8, random.word() as u8];
            [&gifts[..], &generator.frame()].concat()
        });
    }
}
