//! Xen system time in user space, exactly: from the hypervisor's accounting of a vCPU.
//!
//! `VCPUOP_get_runstate_info` (Xen public/vcpu.h) gives the times spent in each state up to the moment of the
//! call, "the sum of these times is guaranteed not to drift from system time", and the system time at which
//! the present state was entered. The sum runs with system time and differs from it by a constant: the time at
//! which the vCPU was made. [`Calibration`] finds that constant between two bounds that hold for certain:
//!
//! - a state was entered before the call: `entry <= now`, so `constant >= entry - sum`;
//! - let the vCPU run at two calls, entered into running between them for the last time at `entry`. When it was
//!   descheduled first after the first call, at least the time that it then did not run had still to pass until
//!   `entry`: `now at the first call <= entry - time not running in between`, so
//!   `constant <= entry - not_running - first sum`.
//!
//! Both become tight when the thread sleeps between calls and calls right before and after. Half the distance of
//! the bounds is the error, and it is known. No page is mapped and no clock of the kernel is trusted.
//!
//! The time is that of the physical CPU which the vCPU runs on. On real machines all agree within microseconds;
//! under software emulation on a busy host they differ by milliseconds (`xl debug-keys t` prints the skew), which
//! is to be added when times from domains on different CPUs are compared.
#![forbid(unsafe_code)]

/// What the hypercall tells of a vCPU that runs (it makes the call itself). Nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RunState {
    /// System time at which it last began to run.
    pub entry_ns: u64,
    /// Time running, runnable, blocked and offline since the vCPU was made.
    pub spent_ns: [u64; 4],
}

impl RunState {
    fn sum_ns(&self) -> i128 {
        self.spent_ns.iter().map(|ns| i128::from(*ns)).sum()
    }

    fn not_running_ns(&self) -> i128 {
        self.spent_ns.iter().skip(1).map(|ns| i128::from(*ns)).sum()
    }
}

/// The bounds of the constant.
#[derive(Clone, Copy, Debug, Default)]
pub struct Calibration {
    lower: Option<i128>,
    upper: Option<i128>,
    last: Option<RunState>,
}

impl Calibration {
    /// Takes in one more call, always of the same vCPU.
    pub fn add(&mut self, state: RunState) {
        let lower = i128::from(state.entry_ns) - state.sum_ns();
        self.lower = Some(self.lower.map_or(lower, |old| old.max(lower)));
        if let Some(last) = self.last.filter(|last| last.entry_ns < state.entry_ns) {
            let not_running = state.not_running_ns() - last.not_running_ns();
            let upper = i128::from(state.entry_ns) - not_running - last.sum_ns();
            self.upper = Some(self.upper.map_or(upper, |old| old.min(upper)));
        }
        self.last = Some(state);
    }

    /// System time at the call that gave `state`, and the most that it can be wrong by; both nanoseconds.
    /// `None` before both bounds exist.
    pub fn now_ns(&self, state: &RunState) -> Option<(u64, u64)> {
        let (lower, upper) = (self.lower?, self.upper?);
        let error = u64::try_from((upper - lower + 1) / 2).ok()?;
        let now = u64::try_from(state.sum_ns() + (lower + upper) / 2).ok()?;
        Some((now, error))
    }

    /// System time at the call that gave `state`, nanoseconds: as [`Calibration::now_ns`], or without an upper bound what it
    /// is at least.
    pub fn estimate_ns(&self, state: &RunState) -> Option<u64> {
        let least = || u64::try_from(state.sum_ns() + self.lower?).ok();
        self.now_ns(state).map(|(now_ns, _)| now_ns).or_else(least)
    }

    /// The constant itself, nanoseconds: the same for every calibration with one vCPU, within their errors.
    pub fn constant_ns(&self) -> Option<i128> {
        Some((self.lower? + self.upper?) / 2)
    }

    /// Half the distance of the bounds, nanoseconds.
    pub fn error_ns(&self) -> Option<u64> {
        u64::try_from((self.upper? - self.lower? + 1) / 2).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A vCPU made at `made`, that runs and does not run for the given times in turn.
    struct Model {
        now: u64,
        state: RunState,
    }

    impl Model {
        fn new(made: u64) -> Self {
            Self { now: made, state: RunState { entry_ns: made, spent_ns: [0; 4] } }
        }

        fn run(&mut self, ns: u64) {
            self.now += ns;
            self.state.spent_ns[0] += ns;
        }

        fn sleep(&mut self, runnable: u64, blocked: u64) {
            self.now += runnable + blocked;
            self.state.spent_ns[1] += runnable;
            self.state.spent_ns[2] += blocked;
            self.state.entry_ns = self.now;
        }
    }

    #[test]
    fn before_both_bounds_it_is_slow_by_what_the_vcpu_had_run_at_most() {
        let mut calibration = Calibration::default();
        let mut model = Model::new(5_000);
        assert_eq!(calibration.estimate_ns(&model.state), None);
        model.run(300);
        calibration.add(model.state);
        assert_eq!(calibration.now_ns(&model.state), None);
        assert_eq!(calibration.estimate_ns(&model.state), Some(model.now - 300));
    }

    #[test]
    fn constant_is_found_within_the_stated_error() {
        let mut model = Model::new(1_000_000_007);
        model.run(5_000_000);
        let mut calibration = Calibration::default();
        calibration.add(model.state);
        assert_eq!(calibration.now_ns(&model.state), None);
        let mut last_error = u64::MAX;
        for step in 1..20u64 {
            // To the end of the slice, away, preempted once in between, back, and the call.
            model.run(1000 * (20 - step));
            model.sleep(300 * step, 2_000_000);
            model.run(70 * step);
            model.sleep(0, 1_000_000);
            model.run(500 * (20 - step));
            calibration.add(model.state);
            let (now, error) = calibration.now_ns(&model.state).unwrap();
            assert!(now.abs_diff(model.now) <= error, "{now} {} {error}", model.now);
            let constant = calibration.constant_ns().unwrap();
            assert!(constant.abs_diff(1_000_000_007) <= u128::from(error), "{constant}");
            assert!(error <= last_error);
            last_error = error;
        }
        assert!(last_error < 2000, "{last_error}");
    }

    #[test]
    fn call_without_a_sleep_in_between_gives_no_upper_bound() {
        let mut model = Model::new(50);
        let mut calibration = Calibration::default();
        for _ in 0..3 {
            model.run(100);
            calibration.add(model.state);
        }
        assert_eq!(calibration.error_ns(), None);
    }
}
