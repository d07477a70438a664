//! Unpredictable bits, for hash keys and port numbers.
//!
//! RDSEED and RDRAND where CPUID shows them; Qubes masks RDRAND on some processors, so the jitter of the time-stamp
//! counter and Xen's clocks are always mixed in, and the caller adds what dom0 offers (`/qubes-random-seed`).
#![forbid(unsafe_code)]

use core::hash::Hasher;

use siphasher::sip::SipHasher24;

use crate::hypercall::cpu;
use crate::time;

/// Values asked from each instruction.
const HARDWARE_VALUES: usize = 8;
/// Tries per value: the instructions may have none ready.
const TRIES: usize = 16;
/// Samples of the time-stamp counter where there is no other source. Each gives a fraction of a bit to a few bits, and
/// costs an exit where Xen emulates the counter.
const JITTER_SAMPLES: usize = 512;
/// Samples beside a hardware source.
const JITTER_SAMPLES_MORE: usize = 32;

/// 32 bytes, different at each call.
pub fn seed() -> [u8; 32] {
    seed_with(&[])
}

/// The same with `extra` mixed in, which can only make it better.
pub fn seed_with(extra: &[u8]) -> [u8; 32] {
    let mut mixer = Mixer::new();
    let (mut hardware, random) = (0, cpu::Random::detect());
    for _ in 0..HARDWARE_VALUES {
        hardware += mixer.add_if_ready(|| random.rdseed()) + mixer.add_if_ready(|| random.rdrand());
    }
    mixer.add(time::system_time_ns());
    mixer.add(time::wall_clock_s());
    mixer.add(time::vcpu_running_ns());
    let enough = hardware >= HARDWARE_VALUES;
    mixer.add_jitter(if enough { JITTER_SAMPLES_MORE } else { JITTER_SAMPLES });
    mixer.add_bytes(extra);
    mixer.finish()
}

/// Four keyed hashes of the same samples: 256 bits that a quarter of the samples does not reveal.
struct Mixer([SipHasher24; 4]);

impl Mixer {
    fn new() -> Mixer {
        Mixer([1, 2, 3, 4].map(|lane| SipHasher24::new_with_keys(lane, !lane)))
    }

    fn add(&mut self, value: u64) {
        self.0.iter_mut().for_each(|lane| lane.write_u64(value));
    }

    fn add_bytes(&mut self, bytes: &[u8]) {
        self.add(bytes.len() as u64);
        self.0.iter_mut().for_each(|lane| lane.write(bytes));
    }

    /// Number of values added.
    fn add_if_ready(&mut self, source: impl Fn() -> Option<u64>) -> usize {
        let value = (0..TRIES).find_map(|_| source());
        value.into_iter().map(|value| self.add(value)).count()
    }

    /// How long hashing takes varies with caches, interrupts and the other domains.
    fn add_jitter(&mut self, samples: usize) {
        for _ in 0..samples {
            self.add(cpu::rdtsc());
        }
    }

    fn finish(self) -> [u8; 32] {
        let mut seed = [0; 32];
        let (words, _) = seed.as_chunks_mut::<8>();
        for (word, lane) in words.iter_mut().zip(self.0) {
            *word = lane.finish().to_le_bytes();
        }
        seed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_seeds_differ_in_every_word() {
        let (first, second) = (seed(), seed());
        for (one, other) in first.chunks(8).zip(second.chunks(8)) {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn the_lanes_differ_and_every_input_counts() {
        let finish = |values: &[u64], extra: &[u8]| {
            let mut mixer = Mixer::new();
            values.iter().for_each(|value| mixer.add(*value));
            mixer.add_bytes(extra);
            mixer.finish()
        };
        let seed = finish(&[1, 2], b"dom0");
        assert_ne!(seed[..8], seed[8..16]);
        assert_eq!(seed, finish(&[1, 2], b"dom0"), "a pure function of the samples");
        for other in [finish(&[1, 3], b"dom0"), finish(&[1, 2], b"dom1"), finish(&[2, 1], b"dom0")]
        {
            assert!(seed.iter().zip(other).filter(|(one, two)| **one != *two).count() > 20);
        }
    }
}
