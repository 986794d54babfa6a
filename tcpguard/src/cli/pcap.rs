//! Reads captures as tcpdump writes them (libpcap's classic format). It takes frames out, and looks into none.

use std::io::{self, Read};

/// No capture of TCP has a longer frame; what says so is damaged, and nothing is allocated for it.
const MAX_FRAME: u32 = 256 << 10;
/// LINKTYPE_ETHERNET.
const ETHERNET: u32 = 1;

/// The frames of a capture, in order.
pub(super) struct Pcap<R> {
    source: R,
    big_endian: bool,
    over: bool,
}

impl<R: Read> Pcap<R> {
    /// Reads the header.
    pub(super) fn new(mut source: R) -> Result<Self, String> {
        let mut header = [0; 24];
        source.read_exact(&mut header).map_err(|error| short("the header", &error))?;
        let [a, b, c, d, ..] = header;
        // Microseconds, or nanoseconds.
        let big_endian = match [a, b, c, d] {
            [0xd4, 0xc3, 0xb2, 0xa1] | [0x4d, 0x3c, 0xb2, 0xa1] => false,
            [0xa1, 0xb2, 0xc3, 0xd4] | [0xa1, 0xb2, 0x3c, 0x4d] => true,
            [0x0a, 0x0d, 0x0d, 0x0a] => {
                return Err(
                    "a pcapng capture: convert it with `editcap -F pcap` or `tcpdump -r … -w …`".to_owned()
                );
            }
            _ => return Err("not a capture".to_owned()),
        };
        let pcap = Self { source, big_endian, over: false };
        let [.., e, f, g, h] = header;
        match pcap.number([e, f, g, h]) & 0x0fff_ffff {
            ETHERNET => Ok(pcap),
            other => Err(format!(
                "link type {other}: only Ethernet (1) is what XDP sees; capture on the interface itself"
            )),
        }
    }

    fn number(&self, bytes: [u8; 4]) -> u32 {
        if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) }
    }

    /// The next frame; `None` at the end.
    fn read(&mut self) -> Result<Option<Vec<u8>>, String> {
        let mut record = [0; 16];
        let mut filled = 0;
        while filled < record.len() {
            match self.source.read(&mut record[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err("cut short".to_owned()),
                Ok(read) => filled += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.to_string()),
            }
        }
        let [_, _, _, _, _, _, _, _, a, b, c, d, e, f, g, h] = record;
        let (captured, length) = (self.number([a, b, c, d]), self.number([e, f, g, h]));
        if captured > MAX_FRAME {
            return Err(format!("{captured} bytes: the capture is damaged"));
        }
        let mut frame = vec![0; captured as usize];
        self.source.read_exact(&mut frame).map_err(|error| short("it", &error))?;
        if captured < length {
            return Err(format!("only {captured} of its {length} bytes were captured: use tcpdump -s 0"));
        }
        Ok(Some(frame))
    }
}

fn short(what: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => format!("{what} is cut short"),
        _ => error.to_string(),
    }
}

impl<R: Read> Iterator for Pcap<R> {
    type Item = Result<Vec<u8>, String>;

    /// Nothing follows an error.
    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let frame = self.read().transpose();
        self.over = !matches!(frame, Some(Ok(_)));
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capture(magic: [u8; 4], link: u32, frames: &[&[u8]]) -> Vec<u8> {
        let number = |value: u32| if magic[0] == 0xa1 { value.to_be_bytes() } else { value.to_le_bytes() };
        let mut bytes = magic.to_vec();
        bytes.extend([0; 16]);
        bytes.extend(number(link));
        for frame in frames {
            bytes.extend([0; 8]);
            bytes.extend(number(frame.len() as u32));
            bytes.extend(number(frame.len() as u32));
            bytes.extend_from_slice(frame);
        }
        bytes
    }

    const MAGICS: [[u8; 4]; 4] = [
        [0xd4, 0xc3, 0xb2, 0xa1],
        [0x4d, 0x3c, 0xb2, 0xa1],
        [0xa1, 0xb2, 0xc3, 0xd4],
        [0xa1, 0xb2, 0x3c, 0x4d],
    ];

    fn refused(bytes: &[u8]) -> String {
        match Pcap::new(bytes) {
            Err(why) => why,
            Ok(pcap) => pcap.last().unwrap().unwrap_err(),
        }
    }

    #[test]
    fn frames_are_read_in_either_byte_order_and_resolution() {
        for magic in MAGICS {
            let bytes = capture(magic, ETHERNET, &[b"first", b"", b"third"]);
            let frames: Result<Vec<_>, _> = Pcap::new(bytes.as_slice()).unwrap().collect();
            assert_eq!(frames.unwrap(), [&b"first"[..], b"", b"third"]);
        }
    }

    #[test]
    fn what_is_no_whole_capture_of_ethernet_is_refused() {
        let good = capture(MAGICS[0], ETHERNET, &[b"first", b"second"]);
        for (bytes, why) in [
            (&good[..good.len() - 1], "it is cut short"),
            (&good[..50], "cut short"),
            (&good[..23], "the header is cut short"),
            (b"GET / HTTP/1.0\r\n\r\nand so on", "not a capture"),
            (&capture([0x0a, 0x0d, 0x0d, 0x0a], 1, &[]), "editcap"),
            (&capture(MAGICS[0], 113, &[]), "link type 113"),
        ] {
            assert!(refused(bytes).contains(why), "{why}: {}", refused(bytes));
        }
        let mut cut = good.clone();
        cut[24 + 12] += 1;
        assert!(refused(&cut).contains("only 5 of its 6 bytes"));
        let mut huge = good;
        huge[24 + 11] = 0xff;
        assert!(refused(&huge).contains("damaged"));
    }
}
