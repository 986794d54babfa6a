//! What only an attacker, or a fault on the way, would send: every lie about a length, every chain and tag, every cut.

use std::format;
use std::vec;
use std::vec::Vec;

use super::acks::valid_ack;
use super::cases::Table;
use super::frames::{ACK, CLIENT_ISN, LINUX, Spec};
use super::world::{EPOCH, PORT, Place, World};
use tcpguard_common::cookie::{self, Strictness, SynOptions};
use tcpguard_common::flow::{V4, V6};
use tcpguard_common::map::{
    EPOCH_SLOTS, EpochSlot, MODE_COOKIE, MODE_OFF, ON_EXIT_PASS, Service, ServiceKey,
};
use tcpguard_common::reason::Reason;

const TAGS: [&[[u8; 4]]; 3] = [&[], &[[0x81, 0, 0x20, 5]], &[[0x88, 0xa8, 0, 7], [0x81, 0, 0, 9]]];

impl Table {
    pub(super) fn hostile(&mut self) {
        self.in_both_families::<V4>();
        self.in_both_families::<V6>();
        self.lying_datagram_lengths::<V4>(40);
        self.port_zero();
        self.fragments_v4();
        self.fragments_v6();
        self.chains();
        self.cut_chains();
        self.hidden_ports();
    }

    fn in_both_families<A: Place>(&mut self) {
        self.lying_option_lengths::<A>();
        self.repeated_options::<A>();
        self.lying_datagram_lengths::<A>(0);
        self.cuts::<A>();
        self.link::<A>();
        self.keyless::<A>();
    }

    fn lying_option_lengths<A: Place>(&mut self) {
        let world = World::new();
        for kind in [2, 3, 4, 5, 8, 30, 34, 254] {
            // The third is what is left of the header, plus one.
            for length in [0, 1, 9, 41, 255] {
                let options = [kind, length, 0, 0, 0, 0, 0, 0];
                for spec in [Spec::<A>::syn(&options), Spec::ack(5, &options)] {
                    let name = format!(
                        "IPv{} flags {:#04x} with option {kind} of length {length}",
                        A::VERSION,
                        spec.flags
                    );
                    self.row(name, &world, spec.frame(), Reason::BadOptions);
                }
            }
            let mut cut = [1; 40];
            cut[39] = kind;
            let name = format!("IPv{} ACK with option {kind} cut before its length", A::VERSION);
            self.row(name, &world, Spec::<A>::ack(5, &cut).frame(), Reason::BadOptions);
        }
    }

    fn repeated_options<A: Place>(&mut self) {
        let world = World::new();
        let on = |what: &str| format!("IPv{} {what}", A::VERSION);
        self.row(on("ACK of 40 NOPs"), &world, Spec::<A>::ack(5, &[1; 40]).frame(), Reason::AckInvalid);
        self.row(
            on("ACK of 40 ends of options"),
            &world,
            Spec::<A>::ack(5, &[0; 40]).frame(),
            Reason::AckInvalid,
        );
        let valid = valid_ack::<A>(EPOCH, true);
        let wrong = [1, 1, 8, 10, 0, 0, 0, 100, 0, 0, 0, 0];
        for (what, options, reason) in [
            ("the right timestamps last", [&wrong, &valid.options[..]].concat(), Reason::AckValid),
            ("the right timestamps first", [&valid.options[..], &wrong].concat(), Reason::AckInvalid),
        ] {
            let spec = Spec { options, ..valid.clone() };
            self.row(on(&format!("ACK with {what}")), &world, spec.frame(), reason);
        }
        let stamps = [8, 10, 0, 0, 0, 99, 0, 0, 0, 0, 1, 1];
        for shift in 15..=255 {
            let options = [&[2, 4, 5, 180, 1, 3, 3, shift], &stamps[..]].concat();
            let name = on(&format!("SYN with timestamps and a window shift of {shift}"));
            self.row(name, &world, Spec::<A>::syn(&options).frame(), Reason::CookieSent);
        }
        for mss in [0, 1] {
            let options = [&[2, 4, 0, mss], &stamps[..]].concat();
            let name = on(&format!("SYN with timestamps and MSS {mss}"));
            self.row(name, &world, Spec::<A>::syn(&options).frame(), Reason::CookieSentSmallMss);
        }
    }

    /// Every length from nothing to well past the frame, which ends in link padding.
    fn lying_datagram_lengths<A: Place>(&mut self, ip_options: usize) {
        let world = World::new();
        let extra = (6, vec![1; ip_options]);
        let spec = Spec { extra, data: vec![0x5a; 9], ..Spec::<A>::syn(LINUX) };
        let (at, base) = if A::VERSION == 4 { (spec.l3() + 2, 20 + ip_options) } else { (spec.l3() + 4, 0) };
        let truth = base + 20 + LINUX.len() + spec.data.len();
        for length in 0..truth + 20 {
            let mut frame = spec.frame();
            frame.extend([0x77; 6]);
            frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
            if A::VERSION == 4 {
                let sum = spec.header_checksum(&frame);
                frame[spec.l3() + 10..spec.l3() + 12].copy_from_slice(&sum);
            }
            let reason = match length {
                _ if length < base + 20 => Reason::BadLength,
                _ if length < base + 20 + LINUX.len() => Reason::BadDataOffset,
                _ if length == truth => Reason::CookieSent,
                _ if length <= truth + 6 => Reason::SynBadChecksum,
                _ => Reason::Truncated,
            };
            let version = A::VERSION;
            let name =
                format!("IPv{version} with {ip_options} bytes of options, {length} announced, {truth} there");
            self.row(name, &world, frame, reason);
        }
    }

    fn cuts<A: Place>(&mut self) {
        let world = World::new();
        // IPv4 options, or extension headers.
        let extra = match A::VERSION {
            4 => (6, vec![1; 40]),
            _ => (60, [[60, 0, 1, 4, 0, 0, 0, 0], [6, 0, 1, 4, 0, 0, 0, 0]].concat()),
        };
        let with_extra = |spec: Spec<A>| Spec { extra: extra.clone(), ..spec };
        for spec in [
            Spec::<A>::syn(LINUX),
            valid_ack(EPOCH, true),
            valid_ack(EPOCH, false),
            with_extra(Spec::syn(LINUX)),
            with_extra(valid_ack(EPOCH, true)),
        ] {
            for tags in TAGS {
                let spec = Spec { tags: tags.to_vec(), ..spec.clone() };
                let whole = spec.frame();
                for len in 0..whole.len() {
                    // Nobody can tell where it goes before the destination port.
                    let reason = (len >= spec.l4() + 4).then_some(Reason::Truncated);
                    let name = format!(
                        "IPv{} flags {:#04x}, {} + {} bytes of options and {} tags, cut to {len}",
                        A::VERSION,
                        spec.flags,
                        spec.extra.1.len(),
                        spec.options.len(),
                        tags.len()
                    );
                    self.row(name, &world, whole[..len].to_vec(), reason);
                }
            }
        }
    }

    fn link<A: Place>(&mut self) {
        let world = World::new();
        for spec in [Spec::<A>::syn(LINUX), valid_ack::<A>(EPOCH, true)] {
            let row = |what: &str| format!("IPv{} flags {:#04x} {what}", A::VERSION, spec.flags);
            for first in 0..3 {
                for second in 0..3 {
                    for third in 0..3 {
                        let tpids = [[0x81, 0], [0x88, 0xa8], [0x91, 0]];
                        let tags = [first, second, third].map(|tag| [tpids[tag][0], tpids[tag][1], 0, 1]);
                        let three = Spec { tags: tags.to_vec(), ..spec.clone() };
                        self.row(row(&format!("with tags {tags:02x?}")), &world, three.frame(), None);
                    }
                }
            }
            for (what, mac) in [("broadcast", [0xff; 6]), ("multicast", [0x33, 0x33, 0, 0, 0, 1])] {
                let mut from = spec.frame();
                from[6..12].copy_from_slice(&mac);
                self.row(row(&format!("from a {what} MAC")), &world, from, Reason::BadSource);
                let mut to = spec.frame();
                to[..6].copy_from_slice(&mac);
                self.row(row(&format!("to a {what} MAC")), &world, to, None);
            }
            let land = Spec { src: A::GUARDED, src_port: PORT, ..spec.clone() };
            self.row(row("from the very socket it goes to"), &world, land.frame(), Reason::BadSource);
        }
    }

    /// A slot that nobody wrote has a key that everybody knows.
    fn keyless<A: Place>(&mut self) {
        let syn = SynOptions { mss: Some(1460), sack_permitted: true, ..SynOptions::default() };
        for timestamps in [None, Some(99)] {
            let known_key = EpochSlot { epoch: EPOCH, ..EpochSlot::default() };
            let flow = Spec::<A>::syn(&[]).flow();
            let syn = SynOptions { timestamps, ..syn };
            let forged = cookie::encode(&known_key, Strictness::NEVER, &flow, CLIENT_ISN, &syn, 0);
            let options = forged
                .tsval
                .map_or(vec![], |tsval| [&[1, 1, 8, 10, 0, 0, 0, 1][..], &tsval.to_be_bytes()].concat());
            let ack = Spec::<A>::ack(forged.isn.wrapping_add(1), &options);
            let mut unwritten = World::new();
            let mut without_key = World::new();
            unwritten.epochs = [EpochSlot::default(); EPOCH_SLOTS as usize];
            for slot in &mut without_key.epochs {
                slot.key = [0; 2];
            }
            for (what, world) in
                [("live keys", World::new()), ("no key at all", unwritten), ("keys of zeros", without_key)]
            {
                let name =
                    format!("IPv{} ACK made with a key of zeros, {timestamps:?}, to {what}", A::VERSION);
                self.row(name, &world, ack.frame(), Reason::AckInvalid);
            }
        }
    }

    /// No configuration protects port 0, but the decision does not know that.
    fn port_zero(&mut self) {
        let mut world = World::new();
        world.ports[0] |= 1;
        world.services_v4.insert(
            ServiceKey::new(V4::GUARDED, [0; 2]),
            Service { id: 1, mode: MODE_COOKIE, ..Service::default() },
        );
        for src_port in [0, 40_000] {
            let spec = Spec { dst_port: 0, src_port, ..Spec::<V4>::syn(LINUX) };
            let name = format!("IPv4 SYN from port {src_port} to a service on port 0");
            self.row(name, &world, spec.frame(), Reason::BadPort);
        }
    }

    fn fragments_v4(&mut self) {
        let world = World::new();
        for spec in [Spec::<V4>::syn(LINUX), valid_ack(EPOCH, true)] {
            let whole = spec.frame();
            let l4_len = whole.len() - spec.l4();
            // Fragments come in eights; the smallest first one has ports and a sequence number, and no flags.
            for payload in [8, 16, 24, 32, 40] {
                for offset in 0..=(l4_len / 8) {
                    let payload = payload.min(l4_len - 8 * offset.min(l4_len / 8));
                    let more = offset * 8 + payload < l4_len;
                    let mut frame = whole[..spec.l4()].to_vec();
                    frame.extend(&whole[spec.l4() + 8 * offset..][..payload]);
                    let field = (offset as u16 | if more { 0x2000 } else { 0 }).to_be_bytes();
                    frame[spec.l3() + 6..spec.l3() + 8].copy_from_slice(&field);
                    let total = (20 + payload as u16).to_be_bytes();
                    frame[spec.l3() + 2..spec.l3() + 4].copy_from_slice(&total);
                    let sum = spec.header_checksum(&frame);
                    frame[spec.l3() + 10..spec.l3() + 12].copy_from_slice(&sum);
                    let reason = match (offset, payload) {
                        (0, 0..20) => Some(Reason::BadLength),
                        (0, _) if more => Some(Reason::Fragment),
                        (0, _) => continue,
                        // Overlaps what came first, or completes it: without the first it comes to nothing.
                        _ => None,
                    };
                    let name = format!(
                        "IPv4 flags {:#04x}, {payload} bytes at {} of {l4_len}",
                        spec.flags,
                        8 * offset
                    );
                    self.row(name, &world, frame, reason);
                }
            }
        }
    }

    fn fragments_v6(&mut self) {
        let world = World::new();
        for payload in [0, 3, 4, 8, 16, 20, 24, 40] {
            for (offset, more) in [(0, true), (8, true), (8, false), (16, false), (0x1fff * 8, false)] {
                let [high, low] = (offset as u16 | u16::from(more)).to_be_bytes();
                let spec = Spec { extra: (44, vec![6, 0, high, low, 0, 0, 0, 1]), ..Spec::<V6>::syn(LINUX) };
                let mut frame = spec.frame();
                frame.truncate(spec.l4() + payload);
                frame[spec.l3() + 4..spec.l3() + 6].copy_from_slice(&(8 + payload as u16).to_be_bytes());
                let reason = match (offset, payload) {
                    (0, 0..4) => Some(Reason::HeaderChain),
                    (0, 4..20) => Some(Reason::BadLength),
                    (0, _) => Some(Reason::Fragment),
                    _ => None,
                };
                let name = format!("IPv6 fragment of {payload} bytes at {offset}, more: {more}");
                self.row(name, &world, frame, reason);
            }
        }
    }

    fn chains(&mut self) {
        let world = World::new();
        // The type of each header and its bytes but the first, which names the follower.
        let kinds: [(&str, u8, &[u8]); 7] = [
            ("hop-by-hop", 0, &[0, 1, 4, 0, 0, 0, 0]),
            ("routing", 43, &[0, 0, 0, 0, 0, 0, 0]),
            ("long routing", 43, &[2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
            ("atomic fragment", 44, &[0, 0, 0, 0, 0, 0, 1]),
            ("authentication", 51, &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2]),
            ("empty authentication", 51, &[0, 0, 0, 0, 0, 0, 1]),
            ("destination options", 60, &[0, 1, 4, 0, 0, 0, 0]),
        ];
        for (what, kind, rest) in kinds {
            for count in 1..=9 {
                let mut chain: Vec<u8> = [&[kind], rest].concat().repeat(count);
                let last = chain.len() - rest.len() - 1;
                chain[last] = 6;
                for spec in [Spec::<V6>::syn(LINUX), valid_ack(EPOCH, true)] {
                    let answered = if spec.flags == ACK { Reason::AckValid } else { Reason::CookieSent };
                    let spec = Spec { extra: (kind, chain.clone()), ..spec };
                    let name = format!("IPv6 flags {:#04x} behind {count} {what} headers", spec.flags);
                    let reason = if count <= 6 { answered } else { Reason::HeaderChain };
                    self.row(name, &world, spec.frame(), reason);
                }
            }
        }
        // A header that claims more than the frame has leads nowhere.
        for kind in [0, 43, 51, 60] {
            let spec = Spec { extra: (kind, vec![6, 255, 0, 0, 0, 0, 0, 0]), ..Spec::<V6>::syn(LINUX) };
            let name = format!("IPv6 extension header {kind} that is longer than the frame");
            self.row(name, &world, spec.frame(), None);
        }
    }

    /// A first fragment that ends anywhere, with a second fragment header in every place, or without, and with what it
    /// should have had as padding behind it, or without.
    fn cut_chains(&mut self) {
        let world = World::new();
        let header =
            |kind: u8, next: u8, rest: [u8; 3]| vec![kind, next, 0, rest[0], rest[1], rest[2], 0, 0, 0];
        for (what, second) in [
            ("without another", None),
            ("with an atomic one", Some([0, 0, 0])),
            ("with another first one", Some([0, 1, 0])),
            ("with a later one", Some([0, 8, 0])),
        ] {
            for place in 1..=second.map_or(1, |_| 4) {
                let mut kinds = [44, 60, 0, 60, 60];
                if second.is_some() {
                    kinds[place] = 44;
                }
                let mut extra = vec![];
                for (index, kind) in kinds.into_iter().enumerate() {
                    let next = kinds.get(index + 1).copied().unwrap_or(6);
                    let rest = if index == 0 {
                        [0, 1, 0]
                    } else {
                        second.filter(|_| index == place).unwrap_or([1, 4, 0])
                    };
                    extra.extend(&header(kind, next, rest)[1..]);
                }
                let spec = Spec { extra: (44, extra), ..Spec::<V6>::syn(LINUX) };
                let whole = spec.frame();
                for end in spec.l3() + 48..=whole.len() {
                    let later = what == "with a later one" && end >= spec.l3() + 40 + 8 * place + 4;
                    let reason = match end - spec.l3() - 40 {
                        _ if later => Reason::HeaderChain,
                        0..44 => Reason::HeaderChain,
                        44..60 => Reason::BadLength,
                        _ => Reason::Fragment,
                    };
                    let mut padded = whole.clone();
                    padded[spec.l3() + 4..spec.l3() + 6]
                        .copy_from_slice(&((end - spec.l3() - 40) as u16).to_be_bytes());
                    let name = format!("IPv6 first fragment, {what} in place {place}, that ends at {end}");
                    self.row(name.clone(), &world, padded[..end].to_vec(), reason);
                    self.row(name + ", padded", &world, padded, reason);
                }
            }
        }
    }

    /// Who is concerned by what hides its port, and who is not.
    fn hidden_ports(&mut self) {
        let options = |next: u8| vec![next, 0, 1, 4, 0, 0, 0, 0];
        let cut = |spec: Spec<V6>| {
            let spec = Spec { extra: (44, [&[60, 0, 0, 1, 0, 0, 0, 1][..], &options(60)].concat()), ..spec };
            let mut frame = spec.frame();
            frame.truncate(spec.l4());
            frame[spec.l3() + 4..spec.l3() + 6].copy_from_slice(&16_u16.to_be_bytes());
            frame
        };
        let long = |spec: Spec<V6>| {
            Spec { extra: (60, [options(60).repeat(6), options(6)].concat()), ..spec }.frame()
        };
        let syn = Spec::<V6>::syn(LINUX);
        for (what, frame) in [("cut", cut(syn.clone())), ("long", long(syn.clone()))] {
            let row = |rest: &str| format!("IPv6 {what} chain {rest}");
            let mut without = World::new();
            without.services_v6.clear();
            without.guard_hidden_ports(false);
            self.row(row("where no service is on IPv6"), &without, frame.clone(), None);
            let mut off = World::new();
            off.services_v6.values_mut().for_each(|service| service.mode = MODE_OFF);
            off.guard_hidden_ports(false);
            self.row(row("where all services on IPv6 are off"), &off, frame.clone(), None);
            let mut dead = World { beating: false, ..World::new() };
            (dead.settings.stale_after, dead.settings.on_exit) = (1, ON_EXIT_PASS);
            self.row(row("after a daemon's grace"), &dead, frame.clone(), Reason::ExitPass);
            let mut unarmed = World::new();
            unarmed.interface.armed = 0;
            self.row(row("while not armed"), &unarmed, frame.clone(), None);
            let mut foreign = frame;
            foreign[5] ^= 1;
            self.row(row("to another MAC"), &World::new(), foreign, None);
        }
        let elsewhere = Spec { dst: V6::ELSEWHERE, dst_port: 22, ..syn.clone() };
        self.row(
            "IPv6 cut chain to another address",
            &World::new(),
            cut(elsewhere.clone()),
            Reason::HeaderChain,
        );
        self.row(
            "IPv6 long chain to another address",
            &World::new(),
            long(elsewhere.clone()),
            Reason::HeaderChain,
        );
        let udp = [&[60, 0, 0, 1, 0, 0, 0, 1][..], &options(17)].concat();
        let udp = Spec { extra: (44, udp), ..elsewhere.clone() };
        self.row("IPv6 first fragment of UDP", &World::new(), udp.frame(), None);
        let long_udp = Spec { extra: (60, [options(60).repeat(5), options(17)].concat()), ..elsewhere };
        self.row("IPv6 UDP after six extension headers", &World::new(), long_udp.frame(), None);
    }
}
