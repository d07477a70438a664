//! ICMP errors about translated flows: the quoted packet has to become the one that the receiver knows (RFC 5508,
//! section 4). Type, code and everything behind the quoted headers stay (RFC 4884 extensions included).

use core::net::IpAddr;

use crate::conntrack::Tuple;
use crate::frame::{Checksum, Frame};
use crate::icmp::icmp_sum;
use crate::ingress::L3;
use crate::nat::rewrite::{self, Ends};
use crate::packet::{Packet, Quote, Quoted};
use crate::verdict::DropReason;
use crate::wire::checksum::update_transport;
use crate::wire::write_u16;

/// An error from outside about a packet of the client: it sees its own address and the destination it meant.
pub(crate) fn to_client(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quote: &Quote,
    (inside, outside): (&Tuple, &Tuple),
) -> Result<(), DropReason> {
    // A redirected destination that answers itself stays hidden behind the address that the client knows.
    let sender = if packet.source == outside.remote { inside.remote } else { packet.source };
    let quoted = Ends {
        source: inside.local,
        source_port: inside.local_port,
        destination: inside.remote,
        destination_port: inside.remote_port,
    };
    translate(frame, packet, quote, sender, inside.local, &quoted)
}

/// An error of the client about a packet from outside: the far side sees our address in both headers.
pub(crate) fn to_remote(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quote: &Quote,
    outside: &Tuple,
) -> Result<(), DropReason> {
    let quoted = Ends {
        source: outside.remote,
        source_port: outside.remote_port,
        destination: outside.local,
        destination_port: outside.local_port,
    };
    translate(frame, packet, quote, outside.local, outside.remote, &quoted)
}

/// Gives an error other ends, and the packet that it quotes too.
pub(crate) fn translate(
    frame: &mut Frame<'_>,
    packet: &Packet,
    quote: &Quote,
    source: IpAddr,
    destination: IpAddr,
    quoted: &Ends,
) -> Result<(), DropReason> {
    let bytes = frame.bytes_mut();
    rewrite_quote(bytes, quote, quoted)?;
    rewrite::set_addresses(bytes, L3, source, destination)?;
    // Rare and small: summing it all is simpler than following each change through the quote.
    write_u16(bytes, packet.l4 + 2, 0);
    let sum = icmp_sum(bytes.get(packet.l4..).unwrap_or_default(), (source, destination));
    write_u16(bytes, packet.l4 + 2, sum.complete());
    Ok(())
}

/// The quoted checksums are updated where they were quoted, never verified: they may be cut off or partial.
fn rewrite_quote(bytes: &mut [u8], quote: &Quote, ends: &Ends) -> Result<(), DropReason> {
    const TCP_CHECKSUM: usize = 16;
    let addresses = rewrite::set_addresses(bytes, quote.l3, ends.source, ends.destination)?;
    let state = Checksum::Full;
    match quote.upper {
        Quoted::Tcp => {
            let ports = rewrite::set_ports(bytes, quote.l4, ends);
            if bytes.len() >= quote.l4 + TCP_CHECKSUM + 2 {
                rewrite::update_field(bytes, quote.l4 + TCP_CHECKSUM, |field| {
                    update_transport(field, state, addresses, ports)
                });
            }
        }
        Quoted::Udp => {
            let ports = rewrite::set_ports(bytes, quote.l4, ends);
            rewrite::update_field(bytes, quote.l4 + 6, |field| {
                rewrite::update_udp(field, state, addresses, ports)
            });
        }
        Quoted::IcmpQuery | Quoted::IcmpReply => {
            let is_query = quote.upper == Quoted::IcmpQuery;
            let identifier = if is_query { ends.source_port } else { ends.destination_port };
            let addresses = rewrite::covered(ends.source, addresses);
            rewrite::set_identifier(bytes, quote.l4, identifier, addresses);
        }
        Quoted::Other => {}
    }
    Ok(())
}
