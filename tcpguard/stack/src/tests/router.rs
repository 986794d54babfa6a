//! A router that a frame is too long for, or that knows no way for it.

use tcpguard_common::packet::checksum;

/// Type and code.
pub(crate) const TOO_BIG_V4: (u8, u8) = (3, 4);

/// What a router answers the sender of `frame`.
pub(crate) fn complaint(frame: &[u8], (kind, code): (u8, u8), mtu: u32) -> Vec<u8> {
    let v4 = frame[12..14] == [8, 0];
    let (datagram, header_len) = (&frame[14..], if v4 { 20 } else { 40 });
    let quoted = &datagram[..datagram.len().min(header_len + 28)];
    let mut message = [&[kind, code, 0, 0], &mtu.to_be_bytes()[..], quoted].concat();
    let len = (header_len + message.len()) as u16;
    let mut header = vec![0; header_len];
    let mut pseudo = 0;
    if v4 {
        header[..4].copy_from_slice(&[0x45, 0, (len >> 8) as u8, len as u8]);
        header[8..10].copy_from_slice(&[64, 1]);
        header[12..16].copy_from_slice(&[192, 0, 2, 99]);
        header[16..20].copy_from_slice(&datagram[12..16]);
        let sum = checksum::finish(checksum::sum(&header));
        header[10..12].copy_from_slice(&sum);
    } else {
        header[0] = 0x60;
        header[4..6].copy_from_slice(&(message.len() as u16).to_be_bytes());
        header[6..8].copy_from_slice(&[58, 64]);
        header[8..24].copy_from_slice(&datagram[24..40]);
        header[24..40].copy_from_slice(&datagram[8..24]);
        let len_and_protocol = [0, 0, (message.len() >> 8) as u8, message.len() as u8, 0, 0, 0, 58];
        pseudo = checksum::sum(&header[8..40]) + checksum::sum(&len_and_protocol);
    }
    let sum = checksum::finish(pseudo + checksum::sum(&message));
    message[2..4].copy_from_slice(&sum);
    [&frame[6..12], &[2, 0, 0, 0, 0, 9], &frame[12..14], &header, &message].concat()
}
