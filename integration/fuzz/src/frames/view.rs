//! What a frame says, read apart from the code under test: slowly, and only what the checks need.

use std::net::IpAddr;

use firewall::Checksum;

use super::build::{checksum_at, pseudo, sum};

/// IPv6: hop-by-hop, routing, fragment, authentication, destination options, mobility, HIP, shim6. The numbers for
/// experiments (253, 254) say nothing about their form.
const EXTENSIONS: &[u8] = &[0, 43, 44, 51, 60, 135, 139, 140];

/// State of a layer-4 checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sum {
    Right,
    Wrong,
    /// The pseudo header's sum alone.
    Partial,
    /// The protocol has none, it is switched off (UDP), or the packet is a piece of a datagram.
    Unknown,
}

/// Which piece of a datagram a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    Whole,
    First,
    Later,
}

/// Whether the sender of a packet opened its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sense {
    Asks,
    Answers,
}

/// An IP packet.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) src: IpAddr,
    pub(super) dst: IpAddr,
    /// The upper-layer protocol; of a later piece over IPv6 what comes first behind the fragment header.
    pub(super) protocol: u8,
    pub(super) piece: Piece,
    pub(super) ttl: u8,
    /// IPv4: don't fragment.
    pub(super) has_df: bool,
    /// Whether the header's length fields and (IPv4) its checksum are right.
    pub(super) header_is_right: bool,
    pub(super) l4: Vec<u8>,
    pub(super) sum: Sum,
    /// Of a piece: identification, offset in bytes, whether more follow, and its bytes of the datagram, extension headers
    /// included.
    id: u32,
    offset: usize,
    has_more: bool,
    part: Vec<u8>,
}

impl View {
    /// Reads a frame; `None` if it is no IP packet whose headers can be followed.
    pub(super) fn new(frame: &[u8], checksum: Checksum) -> Option<Self> {
        let packet = frame.get(14..)?;
        match frame.get(12..14)? {
            [0x08, 0x00] => Self::v4(packet, checksum),
            [0x86, 0xdd] => Self::v6(packet, checksum),
            _ => None,
        }
    }

    fn v4(ip: &[u8], checksum: Checksum) -> Option<Self> {
        let header_len = usize::from(ip.first()? & 0xf) * 4;
        let header = ip.get(..header_len).filter(|header| header.len() >= 20)?;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        let l4 = ip.get(header_len..total)?.to_vec();
        let (offset, has_more) = (u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff, ip[6] & 0x20 != 0);
        let address = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&ip[at..at + 4]).unwrap());
        let view = Self {
            src: address(12),
            dst: address(16),
            protocol: ip[9],
            piece: piece(offset, has_more),
            ttl: ip[8],
            has_df: ip[6] & 0x40 != 0,
            header_is_right: total == ip.len() && ip[0] >> 4 == 4 && sum(&[header]) == 0xffff,
            part: l4.clone(),
            l4,
            sum: Sum::Unknown,
            id: u16::from_be_bytes([ip[4], ip[5]]).into(),
            offset: usize::from(offset) * 8,
            has_more,
        };
        Some(view.summed(checksum))
    }

    fn v6(ip: &[u8], checksum: Checksum) -> Option<Self> {
        let length = usize::from(u16::from_be_bytes([*ip.get(4)?, *ip.get(5)?]));
        let (mut next, ttl) = (*ip.get(6)?, *ip.get(7)?);
        let address =
            |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
        let (src, dst) = (address(8)?, address(24)?);
        let mut rest = ip.get(40..40 + length)?;
        let mut piece_is = Piece::Whole;
        let (mut id, mut offset, mut has_more, mut part) = (0, 0, false, rest);
        while EXTENSIONS.contains(&next) {
            let (this, units) = (next, usize::from(*rest.get(1)?));
            let length = match this {
                44 => 8,
                51 => (units + 2) * 4,
                _ => (units + 1) * 8,
            };
            if this == 44 {
                let field = u16::from_be_bytes([*rest.get(2)?, *rest.get(3)?]);
                piece_is = piece(field >> 3, field & 1 == 1);
                (offset, has_more) = (usize::from(field & !7), field & 1 == 1);
                id = u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?);
                part = rest.get(8..)?;
            }
            next = *rest.first()?;
            rest = rest.get(length..)?;
            if piece_is == Piece::Later {
                break;
            }
        }
        let header_is_right = 40 + length == ip.len() && ip[0] >> 4 == 6;
        let (l4, sum) = (rest.to_vec(), Sum::Unknown);
        let view = Self {
            src,
            dst,
            protocol: next,
            piece: piece_is,
            ttl,
            has_df: true,
            header_is_right,
            l4,
            sum,
            id,
            offset,
            has_more,
            part: part.to_vec(),
        };
        Some(view.summed(checksum))
    }

    /// The datagram that consecutive pieces make up, from the first to the last.
    pub(super) fn whole(pieces: &[Self]) -> Self {
        let first = pieces.first().expect("at least one piece");
        let mut bytes = Vec::new();
        for (n, piece) in pieces.iter().enumerate() {
            let of = |view: &Self| (view.src, view.dst, view.id, view.ttl);
            assert_eq!(of(piece), of(first), "pieces of two datagrams");
            assert_eq!(piece.offset, bytes.len(), "a gap, or twice the same: {piece:?}");
            assert_eq!(piece.has_more, n + 1 < pieces.len(), "the end: {piece:?}");
            bytes.extend(&piece.part);
        }
        let l4 = bytes.split_off(first.part.len() - first.l4.len());
        let whole = Self { piece: Piece::Whole, sum: Sum::Unknown, l4, ..first.clone() };
        whole.summed(Checksum::Full)
    }

    /// The super-frame that consecutive segments make up.
    pub(super) fn joined(segments: &[Self]) -> Self {
        let (first, last) = (segments.first(), segments.last());
        let (first, last) = first.zip(last).expect("at least one segment");
        let sequence = |view: &Self| u32::from_be_bytes(view.l4[4..8].try_into().unwrap());
        let mut l4 = first.l4[..first.l4.len() - first.payload().len()].to_vec();
        let headers = l4.len();
        for segment in segments {
            let of = |view: &Self| (view.src, view.dst, view.ports(), view.ttl, view.has_df);
            assert_eq!(of(segment), of(first), "segments of two super-frames");
            let offset = (l4.len() - headers) as u32;
            assert_eq!(sequence(segment), sequence(first).wrapping_add(offset), "a gap");
            assert!(!segment.payload().is_empty(), "nothing in it: {segment:?}");
            l4.extend(segment.payload());
        }
        l4[13] |= last.l4[13];
        Self { part: l4.clone(), l4, ..first.clone() }
    }

    fn summed(mut self, checksum: Checksum) -> Self {
        let protocol = self.protocol;
        let Some(field) = checksum_at(protocol).and_then(|at| self.l4.get(at..at + 2)) else {
            return self;
        };
        // Over IPv4 a complete UDP checksum of zero is none; a partial one has no such meaning.
        let has_none = protocol == 17 && field == [0, 0] && checksum != Checksum::Blank;
        // ICMP of the other family is just another protocol.
        let is_foreign = protocol == if self.src.is_ipv4() { 58 } else { 1 };
        if is_foreign || self.piece != Piece::Whole || has_none {
            return self;
        }
        // Bytes behind the UDP length belong to no checksum.
        let covered = match self.word(4).map(usize::from) {
            Some(length) if protocol == 17 && length >= 8 => {
                self.l4.get(..length).unwrap_or(&self.l4)
            }
            _ => &self.l4,
        };
        let pseudo = match protocol {
            1 => Vec::new(),
            _ => pseudo(self.src, self.dst, protocol, covered.len()),
        };
        let partial = sum(&[&pseudo]).to_be_bytes();
        self.sum = match checksum {
            Checksum::Blank if field == partial => Sum::Partial,
            Checksum::Blank => Sum::Wrong,
            _ if sum(&[&pseudo, covered]) == 0xffff => Sum::Right,
            _ => Sum::Wrong,
        };
        self
    }

    fn word(&self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes([*self.l4.get(at)?, *self.l4.get(at + 1)?]))
    }

    /// Source and destination port, where there are ports.
    pub(super) fn ports(&self) -> Option<(u16, u16)> {
        let has_ports = matches!(self.protocol, 6 | 17) && self.piece != Piece::Later;
        has_ports.then(|| Some((self.word(0)?, self.word(2)?)))?
    }

    /// Type of an ICMP message of the packet's own family.
    pub(super) fn icmp_type(&self) -> Option<u8> {
        let is_icmp = self.protocol == if self.src.is_ipv4() { 1 } else { 58 };
        (is_icmp && self.piece != Piece::Later).then(|| self.l4.first().copied())?
    }

    /// What follows the transport header; everything for protocols without ports.
    pub(super) fn payload(&self) -> &[u8] {
        let header_len = match self.protocol {
            6 => self.l4.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4),
            17 => 8,
            _ => 0,
        };
        self.l4.get(header_len..).unwrap_or_default()
    }

    /// Port of who opened the flow, or the identifier of its query; 0 where there is none.
    pub(super) fn near(&self, sense: Sense) -> u16 {
        match (self.ports(), sense) {
            (Some((near, _)), Sense::Asks) | (Some((_, near)), Sense::Answers) => near,
            (None, _) if self.icmp_type().is_some() => self.word(4).unwrap_or(0),
            (None, _) => 0,
        }
    }

    /// The same of a packet that is no piece: a later piece does not tell.
    pub(super) fn whole_near(&self, sense: Sense) -> Option<u16> {
        (self.piece == Piece::Whole).then(|| self.near(sense))
    }

    /// The other port, or the type of an ICMP message; 0 where there is none.
    pub(super) fn far(&self, sense: Sense) -> u16 {
        match (self.ports(), sense) {
            (Some((_, far)), Sense::Asks) | (Some((far, _)), Sense::Answers) => far,
            (None, _) => self.icmp_type().map_or(0, u16::from),
        }
    }

    /// The addresses in the packet that an ICMP error quotes, as far as they are there.
    pub(super) fn quoted_ends(&self) -> Vec<IpAddr> {
        let quoted = self.l4.get(8..).filter(|_| self.is_icmp_error()).unwrap_or_default();
        let at = |at: usize| quoted.get(at..at + 4)?.try_into().map(|v4: [u8; 4]| v4.into()).ok();
        [at(12), at(16)].into_iter().flatten().collect()
    }

    /// Whether it is the reply to an ICMP query.
    pub(super) fn is_icmp_reply(&self) -> bool {
        let replies: &[u8] = if self.src.is_ipv4() { &[0, 14, 16, 18] } else { &[129] };
        self.icmp_type().is_some_and(|kind| replies.contains(&kind))
    }

    /// Whether it is an ICMP error.
    pub(super) fn is_icmp_error(&self) -> bool {
        match (self.src, self.icmp_type()) {
            (_, None) => false,
            (IpAddr::V4(_), Some(kind)) => [3, 4, 5, 11, 12].contains(&kind),
            (IpAddr::V6(_), Some(kind)) => kind < 128,
        }
    }
}

fn piece(offset: u16, has_more: bool) -> Piece {
    match (offset, has_more) {
        (0, false) => Piece::Whole,
        (0, true) => Piece::First,
        _ => Piece::Later,
    }
}

/// Forwarding changes addresses, ports, TTL and sums, and nothing else. Of a datagram that came in pieces only the last
/// one is known.
pub(super) fn forwarded(before: &View, after: &View) {
    let is_told = before.piece != Piece::Later
        || before.src.is_ipv4()
        || !EXTENSIONS.contains(&before.protocol);
    assert!(!is_told || before.protocol == after.protocol, "{before:?} became {after:?}");
    if before.piece != Piece::Whole {
        return;
    }
    assert_eq!(before.ttl.checked_sub(1), Some(after.ttl), "TTL");
    assert_eq!(before.has_df, after.has_df, "DF");
    if before.icmp_type().is_none() {
        assert!(before.payload() == after.payload(), "the payload was changed");
    }
    // A wrong sum stays wrong: nobody vouches for what nobody computed (R7).
    match (before.sum, after.sum) {
        (Sum::Right | Sum::Partial, Sum::Right | Sum::Partial) => {}
        (was, is) => assert_eq!(was, is, "checksum: {before:?} became {after:?}"),
    }
}

/// What the firewall answers itself goes back to who asked, with right sums.
pub(super) fn answer(before: &View, after: &View) {
    assert_eq!(after.dst, before.src, "an answer to another");
    assert!(matches!(after.sum, Sum::Right | Sum::Partial), "checksum of an answer: {after:?}");
    assert_eq!(after.piece, Piece::Whole);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A piece of a datagram over IPv6.
    fn piece_at(offset: u16, has_more: bool, first: u8, part: &[u8]) -> View {
        let mut frame = vec![0; 14];
        frame[12..].copy_from_slice(&[0x86, 0xdd]);
        frame.extend([0x60, 0, 0, 0, 0, 8 + part.len() as u8, 44, 64]);
        frame.extend([0xfd; 32]);
        let field = (offset | u16::from(has_more)).to_be_bytes();
        frame.extend([first, 0, field[0], field[1], 0, 0, 0, 1]);
        frame.extend(part);
        View::new(&frame, Checksum::Full).unwrap()
    }

    #[test]
    fn a_later_piece_does_not_tell_the_protocol_behind_an_extension_header() {
        // Authentication header, UDP.
        let first = [[17, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 2, 0, 16, 0, 0]].concat();
        let pieces = [piece_at(0, true, 51, &first), piece_at(16, false, 51, &[9; 8])];
        let whole = View::whole(&pieces);
        assert_eq!((pieces[1].protocol, whole.protocol), (51, 17));
        forwarded(&pieces[1], &whole);
        forwarded(&pieces[0], &whole);
    }

    #[test]
    #[should_panic(expected = "became")]
    fn a_later_piece_tells_a_protocol_that_is_no_extension_header() {
        let pieces = [piece_at(0, true, 17, &[0; 8]), piece_at(8, false, 6, &[9; 8])];
        forwarded(&pieces[1], &View::whole(&pieces));
    }
}
