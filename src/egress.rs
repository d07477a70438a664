//! The last stage: does the packet fit the port, and what has to be done to it so that it does.

use core::net::IpAddr;

use crate::fragments::Pieces;
use crate::frame::{Checksum, Frame, GsoKind};
use crate::ingress::L3;
use crate::packet::{Packet, Upper};
use crate::port::PortCaps;
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

/// Checks that come before anything is rewritten, so that an error can quote the packet as it was sent.
pub(crate) fn check(frame: &Frame<'_>, packet: &Packet, caps: &PortCaps) -> Result<(), Verdict> {
    if packet.ttl <= 1 {
        return Err(Verdict::Reject(DropReason::TtlExpired, Refusal::TimeExceeded));
    }
    if let Some(gso) = frame.offload.gso {
        let is_accepted = match gso.kind {
            GsoKind::TcpV4 => caps.accepts_gso_v4,
            GsoKind::TcpV6 => caps.accepts_gso_v6,
        };
        return if is_accepted { Ok(()) } else { Err(DropReason::GsoUnsupported.into()) };
    }
    // What came in fragments leaves in fragments of that size.
    let len = frame.pieces.map_or(packet.total_len, |pieces| pieces.largest);
    if len > caps.mtu && packet.is_dont_fragment {
        return Err(Verdict::Reject(DropReason::TooBig, Refusal::FragmentationNeeded(caps.mtu)));
    }
    Ok(())
}

/// Makes a packet that passed [`check`] and NAT ready to leave.
pub(crate) fn finish(frame: &mut Frame<'_>, packet: &Packet, exit: &Exit) {
    let bytes = frame.bytes_mut();
    ip::decrement_ttl(bytes, L3);
    write_ethernet(bytes, exit.destination, exit.source, ip::ether_type(packet.source));
    let takes_blank = match packet.source {
        IpAddr::V4(_) => exit.caps.accepts_blank_v4,
        IpAddr::V6(_) => exit.caps.accepts_blank_v6,
    };
    frame.pieces = match frame.pieces {
        Some(pieces) => Some(pieces.within(exit.caps.mtu)),
        // [`check`] has let this through for IPv4 alone.
        None if frame.offload.gso.is_none() && packet.total_len > exit.caps.mtu => {
            Some(Pieces::of_ipv4(exit.caps.mtu))
        }
        None => None,
    };
    frame.offload.checksum = match frame.offload.checksum {
        // Pieces have no checksum that a peer could complete.
        Checksum::Blank if takes_blank && frame.pieces.is_none() => Checksum::Blank,
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
    let segment = frame.bytes().get(packet.l4..).unwrap_or_default();
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
