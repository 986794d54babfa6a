//! Writes the headers of a TCP segment: XDP's answers and everything the stack sends. Not the data.

use super::{Ethernet, Family, Flags, FrameMut, Options, Tcp, Vlan, checksum, options};
use crate::seq::Seq;

/// The link header of a segment to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Link {
    /// Destination address.
    pub dst: [u8; 6],
    /// Source address.
    pub src: [u8; 6],
    /// Tags.
    pub vlan: Vlan,
}

impl Link {
    /// The link header of an answer to a frame with this one.
    pub fn answering(ethernet: &Ethernet) -> Self {
        Self { dst: ethernet.src, src: ethernet.dst, vlan: ethernet.vlan }
    }

    /// Bytes it takes: 14, 18 or 22.
    #[inline(always)]
    pub fn len(&self) -> usize {
        Ethernet::LEN + Ethernet::TAG_LEN * usize::from(self.vlan.count)
    }

    /// Never: a link header has bytes.
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Everything in front of the data of one segment to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers<A> {
    /// The link header.
    pub link: Link,
    /// Source address.
    pub src: A,
    /// Destination address.
    pub dst: A,
    /// The two ECN bits (RFC 3168 §5).
    pub ecn: u8,
    /// Source port, network order.
    pub src_port: [u8; 2],
    /// Destination port, network order.
    pub dst_port: [u8; 2],
    /// SEG.SEQ.
    pub seq: Seq,
    /// SEG.ACK; zero without [`Flags::ACK`].
    pub ack: Seq,
    /// Control bits.
    pub flags: Flags,
    /// SEG.WND as it goes on the wire.
    pub window: u16,
    /// Options. They take whole words, see [`Headers::options_len`]; all of them together with four SACK
    /// blocks would not fit, which the caller must not ask for.
    pub options: Options,
}

impl<A: Family> Headers<A> {
    /// Bytes of options, padding included.
    #[inline(always)]
    pub fn options_len(&self) -> usize {
        match self.options.sack.as_slice().len() {
            0 => self.plain_options_len(),
            blocks => self.plain_options_len() + 4 + 8 * blocks,
        }
    }

    #[inline(always)]
    fn plain_options_len(&self) -> usize {
        let Options { mss, window_scale, sack_permitted, timestamps, sack: _ } = &self.options;
        let mss_len = if mss.is_some() { 4 } else { 0 };
        let scale_len = if window_scale.is_some() { 4 } else { 0 };
        let stamps_len = match (timestamps, sack_permitted) {
            (Some(_), _) => 12,
            (None, true) => 4,
            (None, false) => 0,
        };
        mss_len + scale_len + stamps_len
    }

    /// Bytes of all headers: where the data starts.
    #[inline(always)]
    pub fn len(&self) -> usize {
        self.link.len() + A::HEADER_LEN + Tcp::LEN + self.options_len()
    }

    /// Never: headers have bytes.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Writes the headers at the start of `frame`, in front of `data_len` bytes of data whose
    /// [`checksum::sum`] is `data_sum`. `None` when the frame is too short for the headers, the datagram would
    /// be too long, or the options do not fit.
    pub fn write<F: FrameMut + ?Sized>(&self, frame: &mut F, data_len: usize, data_sum: u64) -> Option<()> {
        let options_len = self.options_len();
        if options_len > options::MAX_OPTIONS {
            return None;
        }
        let options_at = self.link.len() + A::HEADER_LEN + Tcp::LEN;
        let sum = self.write_options(frame, options_at)?;
        let sack_at = options_at + self.plain_options_len();
        let sack_sum = write_sack(frame, sack_at, self.options.sack.as_slice())?;
        let l3 = self.write_link(frame)?;
        self.write_fixed(frame, l3, options_len, data_len, data_sum + sum + sack_sum)
    }

    /// Turns `frame`, whose network header is at `l3`, into an answer without data and without SACK blocks, which are left
    /// out: XDP's verifier would have to follow a loop over them. Of the link header, [`Self::link`] is not used: the
    /// frame's own stays in place with its addresses exchanged.
    #[inline(always)]
    pub fn answer<F: FrameMut + ?Sized>(&self, frame: &mut F, l3: usize) -> Option<()> {
        let options_len = self.plain_options_len();
        let options_at = l3 + A::HEADER_LEN + Tcp::LEN;
        if frame.len() != options_at + options_len {
            frame.resize(options_at + options_len)?;
        }
        let sum = self.write_options(frame, options_at)?;
        let [a, b, c, d, e, f, rest @ ..] = frame.load::<12>(0)?;
        let [g, h, i, j, k, l] = rest;
        frame.store(0, [g, h, i, j, k, l, a, b, c, d, e, f])?;
        self.write_fixed(frame, l3, options_len, 0, sum)
    }

    /// Network header and fixed TCP header; `sum` is that of options and data.
    #[inline(always)]
    fn write_fixed<F: FrameMut + ?Sized>(
        &self,
        frame: &mut F,
        l3: usize,
        options_len: usize,
        data_len: usize,
        sum: u64,
    ) -> Option<()> {
        let header_len = Tcp::LEN + options_len;
        let l4_len = u16::try_from(header_len + data_len).ok()?;
        A::write_header(frame, l3, (self.src, self.dst), l4_len, self.ecn)?;
        let pseudo = checksum::pseudo(self.src, self.dst, usize::from(l4_len));
        self.write_tcp(frame, l3 + A::HEADER_LEN, header_len, sum + pseudo)
    }

    #[inline(always)]
    fn write_link<F: FrameMut + ?Sized>(&self, frame: &mut F) -> Option<usize> {
        let Link { dst, src, vlan } = self.link;
        frame.store(0, dst)?;
        frame.store(6, src)?;
        let mut at = 12;
        if vlan.count > 0 {
            frame.store(at, vlan.tags[0])?;
            at += Ethernet::TAG_LEN;
        }
        if vlan.count > 1 {
            frame.store(at, vlan.tags[1])?;
            at += Ethernet::TAG_LEN;
        }
        frame.store(at, A::ETHER_TYPE.to_be_bytes())?;
        Some(at + 2)
    }

    /// The layouts are those of Linux: SACK-permitted sits in the padding of the timestamps.
    #[inline(always)]
    fn write_options<F: FrameMut + ?Sized>(&self, frame: &mut F, offset: usize) -> Option<u64> {
        use options::{MSS, NOP, SACK_PERMITTED, TIMESTAMPS, WINDOW_SCALE};
        let (mut at, mut sum) = (offset, 0);
        if let Some(mss) = self.options.mss {
            let [high, low] = mss.to_be_bytes();
            sum += put(frame, &mut at, [[MSS, 4, high, low]])?;
        }
        let [a, b] = if self.options.sack_permitted { [SACK_PERMITTED, 2] } else { [NOP, NOP] };
        if let Some((value, echo)) = self.options.timestamps {
            sum += put(frame, &mut at, [[a, b, TIMESTAMPS, 10], value.to_be_bytes(), echo.to_be_bytes()])?;
        } else if self.options.sack_permitted {
            sum += put(frame, &mut at, [[NOP, NOP, SACK_PERMITTED, 2]])?;
        }
        if let Some(shift) = self.options.window_scale {
            sum += put(frame, &mut at, [[NOP, WINDOW_SCALE, 3, shift]])?;
        }
        Some(sum)
    }

    #[inline(always)]
    fn write_tcp<F: FrameMut + ?Sized>(
        &self,
        frame: &mut F,
        l4: usize,
        header_len: usize,
        sum: u64,
    ) -> Option<()> {
        let [window_high, window_low] = self.window.to_be_bytes();
        let words = [
            [self.src_port[0], self.src_port[1], self.dst_port[0], self.dst_port[1]],
            self.seq.0.to_be_bytes(),
            self.ack.0.to_be_bytes(),
            [(header_len as u8) << 2, self.flags.0, window_high, window_low],
        ];
        let words = words.map(u32::from_ne_bytes);
        let [sum_high, sum_low] = checksum::finish(sum + checksum::of_words(words));
        let [a, b, c, d] = words;
        frame.store_words(l4, [a, b, c, d, u32::from_ne_bytes([sum_high, sum_low, 0, 0])])
    }
}

/// Writes words at `at`, which moves behind them: their sum.
#[inline(always)]
fn put<const W: usize, F: FrameMut + ?Sized>(
    frame: &mut F,
    at: &mut usize,
    words: [[u8; 4]; W],
) -> Option<u64> {
    let words = words.map(u32::from_ne_bytes);
    frame.store_words(*at, words)?;
    *at += 4 * W;
    Some(checksum::of_words(words))
}

fn write_sack<F: FrameMut + ?Sized>(frame: &mut F, offset: usize, blocks: &[(Seq, Seq)]) -> Option<u64> {
    use options::{NOP, SACK};
    if blocks.is_empty() {
        return Some(0);
    }
    let head = [NOP, NOP, SACK, 2 + 8 * blocks.len() as u8];
    let mut sum = u64::from(u32::from_ne_bytes(head));
    frame.store(offset, head)?;
    for (index, (left, right)) in blocks.iter().enumerate() {
        let (left, right) = (left.0.to_be_bytes(), right.0.to_be_bytes());
        frame.store(offset + 4 + 8 * index, left)?;
        frame.store(offset + 8 + 8 * index, right)?;
        sum += u64::from(u32::from_ne_bytes(left)) + u64::from(u32::from_ne_bytes(right));
    }
    Some(sum)
}
