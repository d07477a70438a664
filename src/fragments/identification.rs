//! Identification of datagrams that leave in fragments behind one address.
//!
//! Two clients may use one number towards one server; behind our address their fragments would then be mixed up (RFC
//! 7857, RFC 6864). So the number is ours: a counter under a keyed permutation repeats as late as a counter does and
//! cannot be predicted by those who see some of them (RFC 7739).

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::conntrack::index::HashKey;

const ROUNDS: u8 = 4;

/// The numbers to come.
#[derive(Clone, Debug)]
pub(super) struct Identifications {
    prf: SipHasher24,
    v4: u16,
    v6: u32,
}

impl Identifications {
    pub(super) fn new(key: HashKey) -> Self {
        Self { prf: SipHasher24::new_with_keys(key.0, key.1), v4: 0, v6: 0 }
    }

    /// The next one for IPv4.
    pub(super) fn next_v4(&mut self) -> u16 {
        self.v4 = self.v4.wrapping_add(1);
        let [left, right] = self.v4.to_be_bytes().map(u64::from);
        let [left, right] = self.permute(left, right, 0xff);
        u16::from_be_bytes([left as u8, right as u8])
    }

    /// The next one for IPv6.
    pub(super) fn next_v6(&mut self) -> u32 {
        self.v6 = self.v6.wrapping_add(1);
        let halves = [self.v6 >> 16, self.v6 & 0xffff].map(u64::from);
        let [left, right] = self.permute(halves[0], halves[1], 0xffff);
        (left as u32) << 16 | right as u32
    }

    /// A Feistel network: whatever its round function is, different numbers stay different.
    fn permute(&self, mut left: u64, mut right: u64, mask: u64) -> [u64; 2] {
        for round in 0..ROUNDS {
            let mut hasher = self.prf;
            hasher.write_u64(right);
            hasher.write_u64(mask);
            hasher.write_u8(round);
            (left, right) = (right, (left ^ hasher.finish()) & mask);
        }
        [left, right]
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn p2_an_identification_repeats_only_after_all_others() {
        let mut numbers = Identifications::new(HashKey(1, 2));
        let seen: HashSet<u16> = (0..=u16::MAX).map(|_| numbers.next_v4()).collect();
        assert_eq!(seen.len(), 65_536);
        let seen: HashSet<u32> = (0..200_000).map(|_| numbers.next_v6()).collect();
        assert_eq!(seen.len(), 200_000);
    }

    #[test]
    fn p2_identifications_depend_on_the_key_and_are_no_counter() {
        let draw = |key| {
            let mut numbers = Identifications::new(key);
            core::array::from_fn::<u16, 64, _>(|_| numbers.next_v4())
        };
        let first = draw(HashKey(1, 2));
        assert_ne!(first, draw(HashKey(1, 3)));
        let steps: HashSet<u16> = first.windows(2).map(|w| w[1].wrapping_sub(w[0])).collect();
        assert!(steps.len() > 50, "{} different steps", steps.len());
    }
}
