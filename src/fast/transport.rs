//! What the fast path has to know of TCP and UDP. As types, like the families.

use super::family::Family;
use crate::conntrack::tcp::{Segment, Sender, flags};
use crate::conntrack::{Class, Flow, Hold};
use crate::frame::{Checksum, Gso};
use crate::ingress::L3;
use crate::nat::rewrite;
use crate::port::PortCaps;
use crate::wire::checksum::{Sum, update_transport};
use crate::wire::{protocol, read, read_u16, write_u16};

/// A packet above IP, in a frame whose head may be all that is there of it.
#[derive(Clone, Copy)]
pub(super) struct Payload<'f> {
    /// From the header of TCP or UDP on.
    pub(super) head: &'f [u8],
    /// Bytes in all.
    pub(super) len: usize,
}

/// A protocol with ports.
pub(super) trait Transport {
    /// Its number.
    const PROTOCOL: u8;
    /// Offset of its checksum.
    const CHECKSUM: usize;

    /// Whether its header is right and has nothing unusual.
    fn is_plain<F: Family>(packet: Payload<'_>, state: Checksum) -> bool;
    /// Whether a port takes it as a super-frame. It is plain.
    fn fits_super<F: Family>(packet: Payload<'_>, gso: Gso, caps: &PortCaps) -> Option<bool>;
    /// Follows the flow. `None`, and no change, if the flow does not go on with this packet, or becomes another one by it.
    /// The packet is plain.
    fn follow(packet: Payload<'_>, flow: &mut Flow, sender: Sender) -> Option<()>;
    /// The checksum after a change of addresses and ports.
    fn update(field: u16, state: Checksum, addresses: Sum, ports: Sum) -> u16;

    /// Updates the checksum.
    #[inline(always)]
    fn update_checksum(l4: &mut [u8], state: Checksum, addresses: Sum, ports: Sum) {
        let field = read_u16(l4, Self::CHECKSUM);
        write_u16(l4, Self::CHECKSUM, Self::update(field, state, addresses, ports));
    }
}

/// A segment of a connection that stands: an acknowledgement, perhaps with payload.
pub(super) struct Tcp;

/// TCP without options.
const LEAST: usize = 20;

impl Tcp {
    /// Bytes of the header, and behind it.
    #[inline(always)]
    fn lengths(packet: Payload<'_>) -> Option<(usize, u16)> {
        let header: &[u8; LEAST] = packet.head.first_chunk()?;
        let [offset] = read(header, 12);
        let header_len = usize::from(offset >> 4) * 4;
        let payload = u16::try_from(packet.len.checked_sub(header_len)?).ok()?;
        (header_len >= LEAST && header_len <= packet.head.len()).then_some((header_len, payload))
    }
}

impl Transport for Tcp {
    const PROTOCOL: u8 = protocol::TCP;
    const CHECKSUM: usize = 16;

    #[inline(always)]
    fn is_plain<F: Family>(packet: Payload<'_>, _: Checksum) -> bool {
        use flags::{ACK, FIN, RST, SYN, URG};
        let Some(header) = packet.head.first_chunk::<LEAST>() else { return false };
        let [flags] = read(header, 13);
        flags & (SYN | FIN | RST | ACK | URG) == ACK && Self::lengths(packet).is_some()
    }

    #[inline(always)]
    fn fits_super<F: Family>(packet: Payload<'_>, gso: Gso, caps: &PortCaps) -> Option<bool> {
        let (header_len, payload) = Self::lengths(packet)?;
        let headers = u16::try_from(F::L4 - L3 + header_len).ok()?;
        let (takes_blank, takes_super_frames) = F::takes(caps);
        let is_consistent = gso.kind == F::GSO && gso.size > 0 && payload > gso.size;
        let fits = gso.size <= caps.mtu.saturating_sub(headers);
        Some(is_consistent && fits && takes_blank && takes_super_frames)
    }

    #[inline(always)]
    fn follow(packet: Payload<'_>, flow: &mut Flow, sender: Sender) -> Option<()> {
        let is_settled = flow.class == Class::TcpEstablished && flow.hold() == Hold::Firm;
        // What comes from outside changes neither class nor hold of a connection that stands.
        if sender == Sender::Client && !is_settled {
            return None;
        }
        let header: &[u8; LEAST] = packet.head.first_chunk()?;
        let segment = Segment {
            flags: flags::ACK,
            sequence: u32::from_be_bytes(read(header, 4)),
            acknowledgement: u32::from_be_bytes(read(header, 8)),
            window: read_u16(header, 14),
            payload: Self::lengths(packet)?.1,
            scale: None,
        };
        flow.tcp.as_mut()?.go_on(sender, &segment)
    }

    #[inline(always)]
    fn update(field: u16, state: Checksum, addresses: Sum, ports: Sum) -> u16 {
        update_transport(field, state, addresses, ports)
    }
}

/// A datagram.
pub(super) struct Udp;

impl Transport for Udp {
    const PROTOCOL: u8 = protocol::UDP;
    const CHECKSUM: usize = 6;

    #[inline(always)]
    fn is_plain<F: Family>(packet: Payload<'_>, state: Checksum) -> bool {
        const BYTES: usize = 8;
        let Some(header) = packet.head.first_chunk::<BYTES>() else { return false };
        let covered = usize::from(read_u16(header, 4));
        let has_none = read_u16(header, Self::CHECKSUM) == 0 && state != Checksum::Blank;
        let is_whole = packet.head.len() == packet.len && covered >= BYTES && covered <= packet.len;
        is_whole && !(has_none && F::NEEDS_CHECKSUM)
    }

    #[inline(always)]
    fn fits_super<F: Family>(_: Payload<'_>, _: Gso, _: &PortCaps) -> Option<bool> {
        None
    }

    #[inline(always)]
    fn follow(_: Payload<'_>, flow: &mut Flow, sender: Sender) -> Option<()> {
        // Its first answer changes what it is.
        let is_settled = flow.hold() == Hold::Firm && flow.class != Class::UdpOneWay;
        (flow.tcp.is_none() && (sender == Sender::Client || is_settled)).then_some(())
    }

    #[inline(always)]
    fn update(field: u16, state: Checksum, addresses: Sum, ports: Sum) -> u16 {
        rewrite::update_udp(field, state, addresses, ports)
    }
}
