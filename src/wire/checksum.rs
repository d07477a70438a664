//! The Internet checksum: computed (RFC 1071) and updated (RFC 1624).
//!
//! All functions work on the folded, not inverted sum. A complete checksum field is its complement; a partial one
//! (Xen `csum_blank`) is the sum itself, over the pseudo header only. Words are added as they lie in memory, whatever the
//! machine's order of bytes: only the sum is turned (RFC 1071, 2 B).

use core::net::IpAddr;

use super::{read_u16, write_u16};
use crate::frame::Checksum;

/// A running one's-complement sum of words as they lie in memory. 64 bits: no packet has enough words to overflow it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sum(u64);

impl Sum {
    /// Adds bytes that start at an even offset of what is summed; an odd last byte counts as a high byte.
    #[inline(always)]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let (quads, rest) = bytes.as_chunks::<4>();
        let sum = quads.iter().fold(self, |sum, quad| sum.add(u32::from_ne_bytes(*quad).into()));
        let (words, odd) = rest.as_chunks::<2>();
        let sum = words.iter().fold(sum, |sum, word| sum.add(u16::from_ne_bytes(*word).into()));
        odd.iter().fold(sum, |sum, high| sum.add(u16::from_ne_bytes([*high, 0]).into()))
    }

    /// Adds one word.
    #[inline(always)]
    pub(crate) fn word(self, word: u16) -> Self {
        self.add(word.to_be().into())
    }

    /// Wraps only after 2^32 terms, more than any packet has.
    #[inline(always)]
    fn add(self, term: u64) -> Self {
        Self(self.0.wrapping_add(term))
    }

    /// Adds an address.
    #[inline(always)]
    pub(crate) fn address(self, address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => self.bytes(&v4.octets()),
            IpAddr::V6(v6) => self.bytes(&v6.octets()),
        }
    }

    /// Adds the pseudo header of TCP and UDP (RFC 9293 3.1, RFC 8200 8.1); `length` counts header and payload.
    pub(crate) fn pseudo_header(
        self,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        length: u16,
    ) -> Self {
        self.address(source).address(destination).word(u16::from(protocol)).word(length)
    }

    /// Replaces a word that is part of the sum: adds the complement of the old one and the new one.
    pub(crate) fn replace(self, old: u16, new: u16) -> Self {
        self.word(!old).word(new)
    }

    /// Replaces an address of the same family.
    #[inline(always)]
    pub(crate) fn replace_address(self, old: IpAddr, new: IpAddr) -> Self {
        // The complement of a whole address stands for the complements of its words: both are minus their sum modulo
        // 0xffff. The extra 0xffff is zero in this arithmetic and keeps the change from being the number zero, which
        // would turn a field's 0xffff into another form of the same value.
        let sum = self.address(new).word(0xffff);
        match old {
            IpAddr::V4(v4) => sum.bytes(&(!v4.to_bits()).to_be_bytes()),
            IpAddr::V6(v6) => sum.bytes(&(!v6.to_bits()).to_be_bytes()),
        }
    }

    /// Joins two sums over data that start at even offsets.
    pub(crate) fn plus(self, other: Self) -> Self {
        self.add(other.0)
    }

    /// Folds to 16 bits.
    #[inline(always)]
    pub(crate) fn fold(self) -> u16 {
        // The carry out of a half goes into its lowest bit, as if the other half stood on both sides of it.
        let (sum, carry) = (self.0 as u32).overflowing_add((self.0 >> 32) as u32);
        let sum = sum.wrapping_add(carry.into());
        u16::from_be((sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16)
    }

    /// Whether bytes of an even number, their checksum among them, are as they were sent.
    #[inline(always)]
    pub(crate) fn is_right<const N: usize>(bytes: &[u8; N]) -> bool {
        Self(0).bytes(bytes).fold() == 0xffff
    }

    /// The value of a complete checksum field.
    pub(crate) fn complete(self) -> u16 {
        !self.fold()
    }
}

/// Updates a complete checksum field by what changed in the data below it.
pub(crate) fn update_full(field: u16, change: Sum) -> u16 {
    !Sum::default().word(!field).plus(change).fold()
}

/// Updates the checksum of an ICMP message by what changed in it or, for ICMPv6, in its pseudo header.
pub(crate) fn update_icmp(message: &mut [u8], change: Sum) {
    let updated = update_full(read_u16(message, 2), change);
    write_u16(message, 2, updated);
    // Where nothing is left but zeros, their sum is zero and not its other form. No update can tell the two apart.
    if updated == 0 && Sum::default().bytes(message).fold() == 0 {
        write_u16(message, 2, 0xffff);
    }
}

/// Updates a partial checksum field by what changed in the pseudo header.
pub(crate) fn update_blank(field: u16, change: Sum) -> u16 {
    Sum::default().word(field).plus(change).fold()
}

/// Updates the checksum field of TCP or UDP: `addresses` is what changed in the pseudo header, `ports` in the header,
/// which a partial checksum does not cover.
#[inline(always)]
pub(crate) fn update_transport(field: u16, state: Checksum, addresses: Sum, ports: Sum) -> u16 {
    match state {
        Checksum::Blank => update_blank(field, addresses),
        Checksum::Full | Checksum::Validated => update_full(field, addresses.plus(ports)),
    }
}

/// UDP over IPv4 uses zero for "no checksum", so a computed zero travels as its other form (RFC 768).
pub(crate) fn udp_field(computed: u16) -> u16 {
    if computed == 0 { 0xffff } else { computed }
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// RFC 1071, section 2, written as it is printed there.
    fn by_the_book(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        }
        while sum >> 16 != 0 {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn only_nothing_folds_to_zero() {
        for sum in [0xffff, 0xffff_0000, 0xffff_ffff, 0x1_0000, 0xffff_ffff_0000_0000, u64::MAX] {
            assert_eq!(Sum(sum).fold(), by_the_book(&sum.to_ne_bytes()), "{sum:#x}");
        }
        assert_eq!((Sum(0).fold(), Sum(u64::MAX).fold()), (0, 0xffff));
    }

    #[test]
    fn rfc_1071_example() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
    }

    #[test]
    fn rfc_1624_example() {
        // Section 4: HC = 0xDD2F, m = 0x5555, m' = 0x3285 gives 0x0000, not 0xFFFF.
        assert_eq!(update_full(0xdd2f, Sum::default().replace(0x5555, 0x3285)), 0x0000);
    }

    #[test]
    fn an_icmp_message_that_becomes_all_zeros_has_their_checksum() {
        let mut message = [8, 0, 0xf7, 0xff, 0, 0, 0, 0];
        message[0] = 0;
        update_icmp(&mut message, Sum::default().replace(0x0800, 0));
        assert_eq!(message, [0, 0, 0xff, 0xff, 0, 0, 0, 0]);
        assert_eq!(by_the_book(&message), 0xffff);
        // Zero in its usual form stays.
        let mut message = [0, 0, 0, 1, 0xff, 0xfe, 0, 0];
        message[5] = 0xff;
        update_icmp(&mut message, Sum::default().replace(0xfffe, 0xffff));
        assert_eq!(message, [0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    }

    proptest! {
        #[test]
        fn right_bytes_sum_to_ones(mut header: [u8; 20], at in 0usize..20, other: u8) {
            header[10..12].fill(0);
            let field = Sum::default().bytes(&header).complete();
            header[10..12].copy_from_slice(&field.to_be_bytes());
            prop_assert!(Sum::is_right(&header));
            header[at] = other;
            prop_assert_eq!(Sum::is_right(&header), by_the_book(&header) == 0xffff);
        }

        #[test]
        fn every_sum_folds_to_its_words(sum: u64) {
            prop_assert_eq!(Sum(sum).fold(), by_the_book(&sum.to_ne_bytes()));
        }

        #[test]
        fn sum_equals_the_plain_algorithm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).fold(), by_the_book(&bytes));
        }

        #[test]
        fn full_update_equals_recomputation(
            mut bytes in proptest::collection::vec(any::<u8>(), 8..64), at in 0usize..4, new in any::<u16>(),
        ) {
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            let before = Sum::default().bytes(&bytes).complete();
            let old = u16::from_be_bytes([bytes[2 * at], bytes[2 * at + 1]]);
            bytes[2 * at..2 * at + 2].copy_from_slice(&new.to_be_bytes());
            prop_assume!(bytes.iter().any(|byte| *byte != 0));
            let after = update_full(before, Sum::default().replace(old, new));
            prop_assert_eq!(after, Sum::default().bytes(&bytes).complete());
        }

        #[test]
        fn blank_update_equals_recomputation_of_the_pseudo_header(
            source: [u8; 4], destination: [u8; 4], new: [u8; 4], length: u16,
        ) {
            let [source, destination, new] = [source, destination, new].map(|a| IpAddr::V4(Ipv4Addr::from(a)));
            let before = Sum::default().pseudo_header(source, destination, 6, length).fold();
            let after = update_blank(before, Sum::default().replace_address(source, new));
            prop_assert_eq!(after, Sum::default().pseudo_header(new, destination, 6, length).fold());
        }

        #[test]
        fn updates_work_for_ipv6_addresses_too(source: [u8; 16], destination: [u8; 16], new: [u8; 16], length: u16) {
            let [source, destination, new] = [source, destination, new].map(|a| IpAddr::V6(Ipv6Addr::from(a)));
            let before = Sum::default().pseudo_header(source, destination, 17, length);
            let after = Sum::default().pseudo_header(new, destination, 17, length);
            let change = Sum::default().replace_address(source, new);
            prop_assert_eq!(update_blank(before.fold(), change), after.fold());
            prop_assert_eq!(update_full(before.complete(), change), after.complete());
        }
    }
}
