//! IPv4 header fields in place, and headers of our own (RFC 791).

use core::net::Ipv4Addr;

use crate::wire::checksum::{self, Sum};
use crate::wire::{Side, read, read_u16, write, write_u16};

/// Bytes of a header without options.
pub(crate) const HEADER_BYTES: usize = 20;
/// Time to live of packets that we make.
pub(crate) const OWN_TTL: u8 = 64;

const TTL: usize = 8;
const CHECKSUM: usize = 10;
const SOURCE: usize = 12;
const DESTINATION: usize = 16;

/// Replaces an address in the header at `header` and updates the header checksum; returns what changed, for the
/// pseudo header of the layer above.
pub(crate) fn set_address(bytes: &mut [u8], header: usize, side: Side, address: Ipv4Addr) -> Sum {
    let at = header + if side == Side::Source { SOURCE } else { DESTINATION };
    let old = Ipv4Addr::from(read::<4>(bytes, at));
    if old == address {
        return Sum::default();
    }
    write(bytes, at, address.octets());
    let change = Sum::default().replace_address(old.into(), address.into());
    update_checksum(bytes, header, change);
    change
}

/// Replaces an address and takes one off the time to live, which the caller knows to be above one; the same as
/// [`set_address`] and [`decrement_ttl`], with one update of the checksum.
#[inline(always)]
pub(crate) fn hand_on(bytes: &mut [u8], header: usize, side: Side, address: Ipv4Addr) -> Sum {
    let at = header + if side == Side::Source { SOURCE } else { DESTINATION };
    let old = Ipv4Addr::from(read::<4>(bytes, at));
    write(bytes, at, address.octets());
    let change = match old == address {
        true => Sum::default(),
        false => Sum::default().replace_address(old.into(), address.into()),
    };
    let word = read_u16(bytes, header + TTL);
    let less = word.wrapping_sub(1 << 8);
    write_u16(bytes, header + TTL, less);
    update_checksum(bytes, header, change.replace(word, less));
    change
}

/// Takes one off the time to live. The caller knows that it is above one.
pub(crate) fn decrement_ttl(bytes: &mut [u8], header: usize) {
    let [ttl] = read(bytes, header + TTL);
    set_ttl(bytes, header, u8::saturating_sub(ttl, 1));
}

/// Replaces the time to live.
pub(crate) fn set_ttl(bytes: &mut [u8], header: usize, ttl: u8) {
    let old = read_u16(bytes, header + TTL);
    let new = u16::from(ttl) << 8 | old & 0x00ff;
    write_u16(bytes, header + TTL, new);
    update_checksum(bytes, header, Sum::default().replace(old, new));
}

/// Writes a header without options for a packet of our own, checksum included.
///
/// Don't-fragment is set and the identification zero, as RFC 6864 allows for packets that are never fragmented.
pub(crate) fn write_header(
    bytes: &mut [u8],
    header: usize,
    total_len: u16,
    protocol: u8,
    source: Ipv4Addr,
    destination: Ipv4Addr,
) {
    let [len_high, len_low] = total_len.to_be_bytes();
    write(bytes, header, [0x45, 0, len_high, len_low, 0, 0, 0x40, 0, OWN_TTL, protocol, 0, 0]);
    write(bytes, header + SOURCE, source.octets());
    write(bytes, header + DESTINATION, destination.octets());
    let sum = Sum::default().bytes(&read::<HEADER_BYTES>(bytes, header));
    write_u16(bytes, header + CHECKSUM, sum.complete());
}

#[inline(always)]
fn update_checksum(bytes: &mut [u8], header: usize, change: Sum) {
    let field = read_u16(bytes, header + CHECKSUM);
    write_u16(bytes, header + CHECKSUM, checksum::update_full(field, change));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_edit_leaves_a_correct_checksum(from: [u8; 4], to: [u8; 4], new: [u8; 4], protocol: u8, len: u16) {
            let mut bytes = [0u8; 24];
            write_header(&mut bytes, 4, len, protocol, from.into(), to.into());
            set_address(&mut bytes, 4, Side::Source, new.into());
            set_address(&mut bytes, 4, Side::Destination, from.into());
            decrement_ttl(&mut bytes, 4);
            let mut at_once = [0u8; 24];
            write_header(&mut at_once, 4, len, protocol, from.into(), to.into());
            set_address(&mut at_once, 4, Side::Destination, from.into());
            hand_on(&mut at_once, 4, Side::Source, new.into());
            prop_assert_eq!(at_once, bytes);
            prop_assert_eq!(&bytes[16..20], &new);
            prop_assert_eq!(&bytes[20..24], &from);
            prop_assert_eq!(bytes[4 + TTL], OWN_TTL - 1);
            prop_assert_eq!(Sum::default().bytes(&bytes[4..]).fold(), 0xffff);
        }
    }
}
