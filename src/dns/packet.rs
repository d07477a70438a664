//! Packets of our own: a DNS question in UDP in IP.

use core::net::IpAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpAddress, IpProtocol, IpRepr, UdpPacket, UdpRepr};

use super::DNS_PORT;

const UDP_HEADER_BYTES: usize = 8;
/// What Linux starts with.
const TTL: u8 = 64;

/// Writes a packet to the DNS port of `to` whose payload `write` writes; says how long it is. `None`: no room.
pub(crate) fn datagram(
    out: &mut [u8],
    from: (IpAddr, u16),
    to: IpAddr,
    write: impl FnOnce(&mut [u8]) -> Option<usize>,
) -> Option<usize> {
    let (source, destination) = (IpAddress::from(from.0), IpAddress::from(to));
    let ip_header = if to.is_ipv4() { 20 } else { 40 };
    let payload_at = ip_header + UDP_HEADER_BYTES;
    let payload_len = write(out.get_mut(payload_at..)?)?;
    let udp_len = UDP_HEADER_BYTES + payload_len;
    let packet = out.get_mut(..ip_header + udp_len)?;
    let checksums = ChecksumCapabilities::default();
    IpRepr::new(source, destination, IpProtocol::Udp, udp_len, TTL).emit(&mut *packet, &checksums);
    let udp = UdpRepr { src_port: from.1, dst_port: DNS_PORT };
    let mut datagram = UdpPacket::new_unchecked(packet.get_mut(ip_header..)?);
    // The payload is there already.
    udp.emit(&mut datagram, &source, &destination, payload_len, |_| {}, &checksums);
    Some(ip_header + udp_len)
}
