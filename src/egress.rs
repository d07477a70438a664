//! The last stage: does the packet fit the port, and what has to be done to it so that it does.

use core::net::IpAddr;

use crate::fragments::Pieces;
use crate::frame::{Checksum, Frame, Gso, GsoKind};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::port::PortCaps;
use crate::segment::{MAX_SEGMENTS, Segments};
use crate::verdict::{DropReason, Refusal, Verdict};
use crate::wire::checksum::{Sum, udp_field};
use crate::wire::{Mac, ip, read_u16, write_ethernet, write_u16};

/// Where a packet leaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit {
    pub(crate) source: Mac,
    pub(crate) destination: Mac,
    pub(crate) caps: PortCaps,
}

/// How a packet passes [`check`]: what [`finish`] has to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Manner {
    /// As one packet, or in fragments.
    Ordinary,
    /// As the super-frame that it is, with segments of this size.
    Super { size: u16 },
    /// A super-frame that the way on cannot take.
    Segments(Segments),
}

/// Checks that come before anything is rewritten, so that an error can quote the packet as it was sent.
pub(crate) fn check(
    frame: &Frame<'_>,
    packet: &Packet,
    caps: &PortCaps,
) -> Result<Manner, Verdict> {
    if packet.ttl <= 1 {
        return Err(Verdict::Reject(DropReason::TtlExpired, Refusal::TimeExceeded));
    }
    if let Some(gso) = frame.offload.gso {
        return check_super_frame(gso, packet, caps);
    }
    // What came in fragments leaves in fragments of that size.
    let len = frame.pieces.map_or(packet.total_len, |pieces| pieces.largest);
    if len > caps.mtu && packet.is_dont_fragment {
        return Err(Verdict::Reject(DropReason::TooBig, Refusal::FragmentationNeeded(caps.mtu)));
    }
    Ok(Manner::Ordinary)
}

/// Each segment is a packet: those have to fit, and the sender is told if they must not be made smaller.
fn check_super_frame(gso: Gso, packet: &Packet, caps: &PortCaps) -> Result<Manner, Verdict> {
    let Upper::Tcp(segment) = packet.upper else { return Err(DropReason::GsoIllegal.into()) };
    let room = caps.mtu.saturating_sub(packet.total_len.saturating_sub(segment.payload));
    if gso.size > room && packet.is_dont_fragment {
        return Err(Verdict::Reject(DropReason::TooBig, Refusal::FragmentationNeeded(caps.mtu)));
    }
    // As if the sender had made them smaller: better than to cut each of them into fragments.
    let size = gso.size.min(room);
    if size == 0 {
        return Err(DropReason::TooBig.into());
    }
    let takes_super_frames = match gso.kind {
        GsoKind::TcpV4 => caps.accepts_gso_v4,
        GsoKind::TcpV6 => caps.accepts_gso_v6,
    };
    // Nobody can complete one checksum for all segments.
    let takes_blank = takes_blank(packet, caps);
    if takes_super_frames && takes_blank {
        return Ok(Manner::Super { size });
    }
    if segment.payload.div_ceil(size) > MAX_SEGMENTS {
        return Err(DropReason::GsoUnsupported.into());
    }
    let checksum = if takes_blank { Checksum::Blank } else { Checksum::Validated };
    Ok(Manner::Segments(Segments::new(packet, segment.payload, size, checksum)))
}

fn takes_blank(packet: &Packet, caps: &PortCaps) -> bool {
    match packet.source {
        IpAddr::V4(_) => caps.accepts_blank_v4,
        IpAddr::V6(_) => caps.accepts_blank_v6,
    }
}

/// Makes a packet that passed [`check`] and NAT ready to leave.
pub(crate) fn finish(frame: &mut Frame<'_>, packet: &Packet, exit: &Exit, manner: Manner) {
    let bytes = frame.bytes_mut();
    ip::decrement_ttl(bytes, L3);
    write_ethernet(bytes, exit.destination, exit.source, ip::ether_type(packet.source));
    match manner {
        Manner::Ordinary => finish_ordinary(frame, packet, &exit.caps),
        // The checksum is partial and stays so.
        Manner::Super { size } => {
            frame.offload.gso = frame.offload.gso.map(|gso| Gso { size, ..gso });
        }
        Manner::Segments(segments) => frame.segments = Some(segments),
    }
}

fn finish_ordinary(frame: &mut Frame<'_>, packet: &Packet, caps: &PortCaps) {
    frame.pieces = match frame.pieces {
        Some(pieces) => Some(pieces.within(caps.mtu)),
        // [`check`] has let this through for IPv4 alone.
        None if packet.total_len > caps.mtu => Some(Pieces::of_ipv4(caps.mtu)),
        None => None,
    };
    frame.offload.checksum = match frame.offload.checksum {
        // Pieces have no checksum that a peer could complete.
        Checksum::Blank if takes_blank(packet, caps) && frame.pieces.is_none() => Checksum::Blank,
        Checksum::Blank => {
            complete_checksum(frame, packet);
            Checksum::Validated
        }
        // A peer's claim that its checksum is right is not ours to repeat: the receiver checks it.
        Checksum::Full | Checksum::Validated => Checksum::Full,
    };
}

/// Turns a partial checksum into a complete one: the sum over the segment, which includes the pseudo header's sum in
/// the checksum field. Leaves other checksums alone.
pub(crate) fn complete_checksum(frame: &mut Frame<'_>, packet: &Packet) {
    if frame.offload.checksum != Checksum::Blank {
        return;
    }
    // Ingress lets nothing but super-frames through in parts; their segments get a checksum each.
    let segment = frame.whole().and_then(|whole| whole.get(packet.l4..)).unwrap_or_default();
    let (offset, value) = match packet.upper {
        Upper::Tcp(_) => (16, Sum::default().bytes(segment).complete()),
        Upper::Udp => {
            // Bytes behind the UDP length belong to no checksum.
            let covered = usize::from(read_u16(segment, 4)).min(segment.len());
            let datagram = segment.get(..covered).unwrap_or_default();
            (6, udp_field(Sum::default().bytes(datagram).complete()))
        }
        // Ingress lets partial checksums through on TCP and UDP only.
        _ => return,
    };
    write_u16(frame.bytes_mut(), packet.l4 + offset, value);
}
