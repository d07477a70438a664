//! IPv6 header fields in place, and headers of our own (RFC 8200).

use core::net::Ipv6Addr;

use crate::wire::checksum::Sum;
use crate::wire::{Side, read, write, write_u16};

/// Bytes of the fixed header.
pub(crate) const HEADER_BYTES: usize = 40;
/// Hop limit of packets that we make.
pub(crate) const OWN_HOP_LIMIT: u8 = 64;
/// What every link carries (RFC 8200, 5).
pub(crate) const MIN_MTU: u16 = 1280;

const HOP_LIMIT: usize = 7;
const SOURCE: usize = 8;
const DESTINATION: usize = 24;

/// Replaces an address in the header at `header`; returns what changed, for the pseudo header of the layer above.
#[inline(always)]
pub(crate) fn set_address(bytes: &mut [u8], header: usize, side: Side, address: Ipv6Addr) -> Sum {
    let at = header + if side == Side::Source { SOURCE } else { DESTINATION };
    let old = Ipv6Addr::from(read::<16>(bytes, at));
    if old == address {
        return Sum::default();
    }
    write(bytes, at, address.octets());
    Sum::default().replace_address(old.into(), address.into())
}

/// Takes one off the hop limit. The caller knows that it is above one.
#[inline(always)]
pub(crate) fn decrement_hop_limit(bytes: &mut [u8], header: usize) {
    let [limit] = read(bytes, header + HOP_LIMIT);
    set_hop_limit(bytes, header, limit.wrapping_sub(1));
}

/// Replaces the hop limit.
pub(crate) fn set_hop_limit(bytes: &mut [u8], header: usize, limit: u8) {
    write(bytes, header + HOP_LIMIT, [limit]);
}

/// Writes a header for a packet of our own without extension headers.
pub(crate) fn write_header(
    bytes: &mut [u8],
    header: usize,
    payload_len: u16,
    next: u8,
    source: Ipv6Addr,
    destination: Ipv6Addr,
) {
    write(bytes, header, [0x60, 0, 0, 0]);
    write_u16(bytes, header + 4, payload_len);
    write(bytes, header + 6, [next, OWN_HOP_LIMIT]);
    write(bytes, header + SOURCE, source.octets());
    write(bytes, header + DESTINATION, destination.octets());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn edits_touch_their_field_and_tell_what_changed(from: [u8; 16], to: [u8; 16], new: [u8; 16], len: u16) {
            let mut bytes = [0u8; 44];
            write_header(&mut bytes, 4, len, 17, from.into(), to.into());
            let before = Sum::default().bytes(&bytes[12..]);
            let change = set_address(&mut bytes, 4, Side::Source, new.into());
            decrement_hop_limit(&mut bytes, 4);
            let after = Sum::default().bytes(&bytes[12..]);
            let [high, low] = len.to_be_bytes();
            prop_assert_eq!(&bytes[4..12], &[0x60, 0, 0, 0, high, low, 17, OWN_HOP_LIMIT - 1]);
            prop_assert_eq!(&bytes[12..28], &new);
            prop_assert_eq!(&bytes[28..], &to);
            // Zero and 0xffff are the same number.
            prop_assert_eq!(before.plus(change).fold() % 0xffff, after.fold() % 0xffff);
        }
    }
}
