//! Captures in the pcapng format (draft-ietf-opsawg-pcapng), as Wireshark and tcpdump read them: one section, an
//! interface block for each interface as it is first met, and packets with a comment each. It writes; it reads nothing.

use std::io::{self, Write};

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const INTERFACE_DESCRIPTION: u32 = 1;
const ENHANCED_PACKET: u32 = 6;

/// Tells a reader which byte order the section has: ours is little-endian everywhere.
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINKTYPE_ETHERNET: u16 = 1;

const OPT_END: u16 = 0;
const OPT_COMMENT: u16 = 1;
const SHB_USERAPPL: u16 = 4;
const IF_NAME: u16 = 2;
const IF_TSRESOL: u16 = 9;
const EPB_FLAGS: u16 = 2;

/// A capture being written.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    snap_len: u32,
    /// Their places are their numbers in the file.
    interfaces: Vec<String>,
}

/// One packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// The interface's name.
    pub interface: &'a str,
    /// Nanoseconds since 1970.
    pub time: u64,
    /// Whether it was sent, not received.
    pub outbound: bool,
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// How long it was.
    pub len: u32,
    /// What a reader is to know of it.
    pub comment: &'a str,
}

impl<W: Write> Writer<W> {
    /// Begins a capture, written by `application`, of at most `snap_len` bytes a packet.
    ///
    /// # Errors
    ///
    /// Those of `out`, as below.
    pub fn new(mut out: W, application: &str, snap_len: u32) -> io::Result<Self> {
        let mut body = BYTE_ORDER.to_le_bytes().to_vec();
        // Version 1.0, and a section whose length is not known yet.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        option(&mut body, SHB_USERAPPL, application.as_bytes());
        option(&mut body, OPT_END, &[]);
        block(&mut out, SECTION_HEADER, &body)?;
        Ok(Self { out, snap_len, interfaces: Vec::new() })
    }

    /// Appends a packet, all of it: what is written so far is a whole file.
    pub fn write(&mut self, packet: &Packet<'_>) -> io::Result<()> {
        let interface = match self.interfaces.iter().position(|name| name == packet.interface) {
            Some(known) => known,
            None => self.introduce(packet.interface)?,
        };
        let mut body = (interface as u32).to_le_bytes().to_vec();
        body.extend(((packet.time >> 32) as u32).to_le_bytes());
        body.extend((packet.time as u32).to_le_bytes());
        body.extend((packet.bytes.len() as u32).to_le_bytes());
        body.extend(packet.len.to_le_bytes());
        padded(&mut body, packet.bytes);
        let direction: u32 = if packet.outbound { 2 } else { 1 };
        option(&mut body, EPB_FLAGS, &direction.to_le_bytes());
        option(&mut body, OPT_COMMENT, packet.comment.as_bytes());
        option(&mut body, OPT_END, &[]);
        block(&mut self.out, ENHANCED_PACKET, &body)?;
        self.out.flush()
    }

    fn introduce(&mut self, name: &str) -> io::Result<usize> {
        let mut body = u32::from(LINKTYPE_ETHERNET).to_le_bytes().to_vec();
        body.extend(self.snap_len.to_le_bytes());
        option(&mut body, IF_NAME, name.as_bytes());
        // Times are in units of 10⁻⁹ seconds.
        option(&mut body, IF_TSRESOL, &[9]);
        option(&mut body, OPT_END, &[]);
        block(&mut self.out, INTERFACE_DESCRIPTION, &body)?;
        self.interfaces.push(name.to_owned());
        Ok(self.interfaces.len() - 1)
    }
}

/// A block has its length at both ends.
fn block(out: &mut impl Write, kind: u32, body: &[u8]) -> io::Result<()> {
    let len = (body.len() as u32 + 12).to_le_bytes();
    // In one piece, so that a reader meets no half of it.
    out.write_all(&[&kind.to_le_bytes()[..], &len, body, &len].concat())
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    body.extend(code.to_le_bytes());
    body.extend((value.len() as u16).to_le_bytes());
    padded(body, value);
}

/// Everything begins at a multiple of four bytes.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;
    use pcap_parser::pcapng::OptionCode;
    use pcap_parser::{Block, PcapNGCapture};

    /// Read back by somebody else's parser.
    #[test]
    fn a_capture_holds_interfaces_packets_directions_times_and_comments() {
        let mut file = Vec::new();
        let mut writer = Writer::new(&mut file, "tcpguard test", 256).unwrap();
        let time = 1_700_000_000_123_456_789;
        let packets =
            [("eth0", false, &b"odd"[..], 3), ("eth1", true, &[7; 256], 1500), ("eth0", true, &[], 60)];
        for (interface, outbound, bytes, len) in packets {
            writer.write(&Packet { interface, time, outbound, bytes, len, comment: "because: ä" }).unwrap();
        }
        let capture = PcapNGCapture::from_file(&file).unwrap();
        let (mut names, mut found) = (Vec::new(), Vec::new());
        for block in &capture.sections[0].blocks {
            match block {
                Block::SectionHeader(_) => {}
                Block::InterfaceDescription(block) => {
                    assert_eq!((block.snaplen, block.linktype.0, block.if_tsresol), (256, 1, 9));
                    names.push(text(&block.options, OptionCode(IF_NAME)));
                }
                Block::EnhancedPacket(block) => {
                    let nanoseconds = u64::from(block.ts_high) << 32 | u64::from(block.ts_low);
                    assert_eq!(nanoseconds, time);
                    assert_eq!(text(&block.options, OptionCode::Comment), "because: ä");
                    let flags = block.options.iter().find(|option| option.code.0 == EPB_FLAGS).unwrap();
                    let data = block.data[..block.caplen as usize].to_vec();
                    found.push((block.if_id, flags.value()[0] == 2, data, block.origlen));
                }
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(names, ["eth0", "eth1"]);
        let expected = packets
            .map(|(name, outbound, bytes, len)| (u32::from(name == "eth1"), outbound, bytes.to_vec(), len));
        assert_eq!(found, expected);
    }

    fn text(options: &[pcap_parser::PcapNGOption<'_>], code: OptionCode) -> String {
        let option = options.iter().find(|option| option.code == code).unwrap();
        String::from_utf8(option.value()[..usize::from(option.len)].to_vec()).unwrap()
    }
}
