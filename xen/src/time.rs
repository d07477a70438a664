//! Clocks: Xen's system time, wall clock, and the CPU time that this domain has used.
//!
//! System time goes on through a pause or a fast resume without a jump back; it does not count host sleep. Wall time
//! may jump at any moment, when dom0 sets its clock.
#![forbid(unsafe_code)]

use core::cell::Cell;

use crate::abi::vcpu::{
    TIME_MUL, TIME_SHIFT, TIME_SYSTEM, TIME_TSC, TIME_VERSION, VCPU_TIME, WC_NSEC, WC_SEC,
    WC_SEC_HI, WC_VERSION,
};
use crate::counts::{self, Call};
use crate::hypercall;
use crate::mem::global;
use crate::shared::SharedPage;

const NS_PER_S: u64 = 1_000_000_000;

global! {
    static LATEST: Cell<u64> = Cell::new(0);
}

/// Whether `until` is still to come at `now`, both in ns. If it is further away than `most`, for which nobody waits, the clock was set
/// back, and the wait is over.
pub(crate) fn is_ahead(until: u64, now: u64, most: u64) -> bool {
    (1..=most).contains(&until.saturating_sub(now))
}

/// Nanoseconds of Xen's system time (since the host booted). Never goes backwards.
pub fn system_time_ns() -> u64 {
    LATEST.with(|latest| {
        let now = hypercall::system_time_ns().max(latest.get());
        latest.set(now);
        now
    })
}

/// The system time that was last looked at: no look at the clock.
pub fn latest_ns() -> u64 {
    LATEST.with(|latest| latest.get())
}

/// Seconds since 1970-01-01 00:00 UTC, as dom0 has set the clock. May jump.
pub fn wall_clock_s() -> u64 {
    let (seconds, nanoseconds) = read_wall_clock_base(&hypercall::shared_info());
    let since_base = system_time_ns().saturating_add(u64::from(nanoseconds));
    seconds.saturating_add(since_base / NS_PER_S)
}

/// Nanoseconds that this domain's vCPU has been running on a physical CPU since the domain was built.
pub fn vcpu_running_ns() -> u64 {
    counts::call(Call::Running);
    hypercall::vcpu_running_ns()
}

/// The wall clock at system time 0 (`wc_*` of Xen public/xen.h), under its sequence lock.
fn read_wall_clock_base(shared: &SharedPage) -> (u64, u32) {
    loop {
        let version = shared.load_acquire_u32(WC_VERSION);
        let seconds =
            u64::from(shared.read_u32(WC_SEC)) | u64::from(shared.read_u32(WC_SEC_HI)) << 32;
        let nanoseconds = shared.read_u32(WC_NSEC);
        if version.is_multiple_of(2) && shared.load_acquire_u32(WC_VERSION) == version {
            return (seconds, nanoseconds);
        }
        core::hint::spin_loop();
    }
}

/// `vcpu_time_info`: what turns the time-stamp counter into system time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct PvClock {
    tsc_timestamp: u64,
    system_time_ns: u64,
    multiplier: u32,
    shift: i8,
}

#[cfg_attr(
    all(not(test), any(not(feature = "image"), feature = "fake")),
    expect(dead_code, reason = "the fake hypervisor has a clock of its own")
)]
impl PvClock {
    /// Reads the parameters together with the counter, under the sequence lock, and returns system time in ns.
    pub(crate) fn read_system_time(shared: &SharedPage, read_tsc: impl Fn() -> u64) -> u64 {
        let (clock, tsc) = PvClock::read(shared, read_tsc);
        clock.at(tsc)
    }

    /// Nanoseconds that so many ticks of the counter are now.
    pub(crate) fn ticks_to_ns(shared: &SharedPage, ticks: u64) -> u64 {
        let (clock, _) = PvClock::read(shared, || 0);
        clock.scale(ticks)
    }

    fn read(shared: &SharedPage, read_tsc: impl Fn() -> u64) -> (PvClock, u64) {
        loop {
            let version = shared.load_acquire_u32(VCPU_TIME + TIME_VERSION);
            let clock = PvClock {
                tsc_timestamp: shared.read_u64(VCPU_TIME + TIME_TSC),
                system_time_ns: shared.read_u64(VCPU_TIME + TIME_SYSTEM),
                multiplier: shared.read_u32(VCPU_TIME + TIME_MUL),
                shift: shared.read_u8(VCPU_TIME + TIME_SHIFT) as i8,
            };
            let tsc = read_tsc();
            if version.is_multiple_of(2)
                && shared.load_acquire_u32(VCPU_TIME + TIME_VERSION) == version
            {
                return (clock, tsc);
            }
            core::hint::spin_loop();
        }
    }

    /// System time in ns when the counter was `tsc`. A counter before the time stamp counts as the time stamp.
    ///
    /// The difference is one of 64-bit counters that wrap: Xen's stamp may be older than the domain, and with an
    /// emulated counter, which starts at 0 with the domain, it is then "negative".
    fn at(self, tsc: u64) -> u64 {
        let delta = (tsc.wrapping_sub(self.tsc_timestamp) as i64).max(0);
        self.system_time_ns.saturating_add(self.scale(delta.unsigned_abs()))
    }

    fn scale(self, ticks: u64) -> u64 {
        let ticks = u128::from(ticks);
        let shift = u32::from(self.shift.unsigned_abs()).min(63);
        let scaled = if self.shift < 0 { ticks >> shift } else { ticks << shift };
        // Bounded so that the product fits: more would be centuries.
        let ns = (scaled.min(u128::from(u64::MAX)) * u128::from(self.multiplier)) >> 32;
        ns as u64
    }
}

#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) fn reset() {
    LATEST.with(|latest| latest.set(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    const AT_2_GHZ: PvClock =
        PvClock { tsc_timestamp: 1_000, system_time_ns: 5_000, multiplier: 1 << 31, shift: 0 };

    #[test]
    fn ticks_are_scaled_and_added() {
        assert_eq!(AT_2_GHZ.at(1_000), 5_000);
        assert_eq!(AT_2_GHZ.at(3_000), 6_000);
        let slow = PvClock { shift: 2, ..AT_2_GHZ };
        assert_eq!(slow.at(3_000), 9_000);
        let fast = PvClock { shift: -1, ..AT_2_GHZ };
        assert_eq!(fast.at(3_000), 5_500);
    }

    #[test]
    fn a_counter_before_the_time_stamp_is_not_a_huge_time() {
        assert_eq!(AT_2_GHZ.at(999), 5_000);
    }

    #[test]
    fn a_time_stamp_older_than_the_domain_is_negative() {
        let clock = PvClock { tsc_timestamp: 1_000_u64.wrapping_neg(), ..AT_2_GHZ };
        assert_eq!(clock.at(0), 5_500);
        assert_eq!(clock.at(1_000), 6_000);
    }

    #[test]
    fn extreme_parameters_do_not_overflow() {
        for shift in [i8::MIN, -64, 0, 63, i8::MAX] {
            let clock = PvClock {
                tsc_timestamp: 0,
                system_time_ns: u64::MAX - 1,
                multiplier: u32::MAX,
                shift,
            };
            assert!(clock.at(i64::MAX as u64) >= u64::MAX - 1);
        }
    }

    #[test]
    fn parameters_are_read_from_their_offsets() {
        let shared = crate::mem::host::foreign_page();
        shared.write_u64(32 + 8, 1_000);
        shared.write_u64(32 + 16, 5_000);
        shared.write_u32(32 + 24, 1 << 31);
        shared.write_u8(32 + 28, 1);
        assert_eq!(PvClock::read_system_time(&shared, || 3_000), 7_000);
    }

    #[test]
    fn ticks_alone_are_scaled_like_the_clock() {
        let shared = crate::mem::host::foreign_page();
        shared.write_u64(32 + 8, 1_000);
        shared.write_u64(32 + 16, 5_000);
        shared.write_u32(32 + 24, 1 << 31);
        assert_eq!(PvClock::ticks_to_ns(&shared, 2_000), 1_000);
    }

    #[test]
    fn a_change_during_the_read_is_read_again() {
        let shared = crate::mem::host::foreign_page();
        shared.write_u64(32 + 16, 100);
        let tries = Cell::new(0);
        let now = PvClock::read_system_time(&shared, || {
            tries.set(tries.get() + 1);
            match tries.get() {
                1 => {
                    shared.write_u64(32 + 16, 200);
                    shared.write_u32(32, 3);
                }
                2 => shared.write_u32(32, 4),
                _ => {}
            }
            0
        });
        assert_eq!((now, tries.get()), (200, 3), "changed once, then odd once, then stable");
    }

    #[test]
    fn system_time_never_falls() {
        fake::advance_ns(1_000);
        let now = system_time_ns();
        fake::set_clock_ns(now - 500);
        assert_eq!(system_time_ns(), now);
        fake::set_clock_ns(now + 1);
        assert_eq!(system_time_ns(), now + 1);
    }

    #[test]
    fn wall_clock_is_base_plus_system_time() {
        let shared = hypercall::shared_info();
        shared.write_u32(WC_SEC, 0xffff_fff0);
        shared.write_u32(WC_SEC_HI, 1);
        shared.write_u32(WC_NSEC, 999_999_999);
        fake::set_clock_ns(2_000_000_001);
        assert_eq!(wall_clock_s(), 0x1_ffff_fff0 + 3);
    }
}
