//! Datagrams, put together byte by byte: nothing here is the code under test.

pub(crate) const GATEWAY_MAC: [u8; 6] = [0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
/// Of every client and NetVM here, as `xen::fake::vif` writes them.
pub(crate) const CLIENT_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x00];
pub(crate) const UPLINK_MAC: [u8; 6] = [0x00, 0x16, 0x3e, 0x5e, 0x6c, 0x07];

pub(crate) const OWN: [u8; 4] = [10, 137, 0, 6];
pub(crate) const HONEST: [[u8; 4]; 2] = [[10, 137, 0, 10], [10, 137, 0, 11]];
pub(crate) const SERVER: [u8; 4] = [198, 51, 100, 7];
pub(crate) const SERVER_PORT: u16 = 4500;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;
/// Of the UDP checksum in a frame.
const UDP_SUM: usize = ETHERNET + IP + 6;

/// Both ends of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) source: ([u8; 4], u16),
    pub(crate) destination: ([u8; 4], u16),
}

/// A frame to `macs.0` from `macs.1` with right checksums.
pub(crate) fn datagram(macs: ([u8; 6], [u8; 6]), ends: Ends, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&macs.0[..], &macs.1, &[0x08, 0x00]].concat();
    let udp_len = (UDP + payload.len()) as u16;
    let mut ip = vec![0x45, 0];
    ip.extend((IP as u16 + udp_len).to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend(ends.source.0);
    ip.extend(ends.destination.0);
    let sum = !sum(&[&ip]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    frame.extend(ip);
    let mut udp = [ends.source.1, ends.destination.1, udp_len, 0].map(u16::to_be_bytes).concat();
    udp.extend(payload);
    let field = match !self::sum(&[&pseudo(ends, udp_len), &udp]) {
        0 => 0xffff,
        field => field,
    };
    udp[6..8].copy_from_slice(&field.to_be_bytes());
    frame.extend(udp);
    frame
}

/// Leaves the checksum of a datagram to its receiver: what is there is the sum of the pseudo header.
pub(crate) fn make_blank(frame: &mut [u8]) {
    if let Some(pseudo) = pseudo_of(frame) {
        frame[UDP_SUM..UDP_SUM + 2].copy_from_slice(&sum(&[&pseudo]).to_be_bytes());
    }
}

/// What a receiver does with such a datagram.
pub(crate) fn complete(frame: &mut [u8]) {
    if pseudo_of(frame).is_some() {
        let field = match !sum(&[&frame[ETHERNET + IP..]]) {
            0 => 0xffff,
            field => field,
        };
        frame[UDP_SUM..UDP_SUM + 2].copy_from_slice(&field.to_be_bytes());
    }
}

fn pseudo_of(frame: &[u8]) -> Option<Vec<u8>> {
    let is_udp = frame.get(12..15) == Some(&[8, 0, 0x45][..]) && frame.get(23) == Some(&17);
    let udp = frame.get(ETHERNET + IP..).filter(|udp| is_udp && udp.len() >= UDP)?;
    let address = |at: usize| ([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]], 0);
    let ends = Ends { source: address(26), destination: address(30) };
    Some(pseudo(ends, udp.len() as u16))
}

/// Ends and payload of a datagram whose lengths and checksums are right.
pub(crate) fn read(frame: &[u8]) -> Option<(Ends, &[u8])> {
    let ip = frame.get(ETHERNET..)?;
    let is_udp = frame[12..14] == [8, 0] && ip.first() == Some(&0x45) && ip.get(9) == Some(&17);
    if !is_udp || sum(&[ip.get(..IP)?]) != 0xffff {
        return None;
    }
    let udp = ip.get(IP..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    let address = |at: usize| ip.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
    let ends = Ends { source: (address(12)?, word(0)?), destination: (address(16)?, word(2)?) };
    let is_whole = usize::from(word(4)?) == udp.len();
    let is_right = word(6)? == 0 || sum(&[&pseudo(ends, word(4)?), udp]) == 0xffff;
    (is_whole && is_right).then_some((ends, udp.get(UDP..)?))
}

fn pseudo(ends: Ends, udp_len: u16) -> Vec<u8> {
    let [high, low] = udp_len.to_be_bytes();
    [&ends.source.0[..], &ends.destination.0, &[0, 17, high, low]].concat()
}

/// RFC 1071, section 2.
pub(crate) fn sum(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let mut sum: u32 = words
        .map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low)))
        .sum();
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
