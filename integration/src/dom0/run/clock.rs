//! Xen system time for the daemons and for scripts.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::json;

use super::args::Args;
use super::{Attempt, Failure, Result};
use crate::dom0::xentime::Calibration;
use crate::ffi::Hypervisor;

/// An error that is good enough at once, and one that is after some time; nanoseconds.
const GOAL_NS: u64 = 50_000;
const FAIR_NS: u64 = 300_000;
/// When to be content with a fair error, when with any, and when to give up without one.
const PATIENCE: Duration = Duration::from_millis(300);
const IMPATIENCE: Duration = Duration::from_secs(3);
const LIMIT: Duration = Duration::from_secs(10);

/// The hypervisor, shared by the clock and the link.
pub(crate) type SharedHypervisor = Rc<RefCell<Hypervisor>>;

/// When that of a daemon is calibrated.
const CALIBRATED_AFTER: Duration = Duration::from_secs(3);

/// A pause between two looks at the vCPU, which are to be in different times of its running.
const STEP: Duration = Duration::from_micros(500);

/// Xen's clock, with bounds for its error.
pub(crate) struct XenClock {
    hypervisor: SharedHypervisor,
    calibration: Calibration,
    /// When the first look is due.
    begun: Instant,
    /// Where the process may run once the bounds are found; until then it is on vCPU 0, whose calls they come from.
    places: Option<CpuSet>,
    last_ns: u64,
}

impl XenClock {
    /// A calibrated clock.
    pub(crate) fn new(hypervisor: SharedHypervisor) -> Result<Self> {
        let mut clock = Self::later(hypervisor, Duration::ZERO)?;
        while let Some(due) = clock.improve()? {
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        Ok(clock)
    }

    /// A clock for a daemon that a firewall's start waits for: calibrated, which takes a third of a second, when the domain has started
    /// as a rule, by calls of [`XenClock::improve`].
    pub(crate) fn of_daemon(hypervisor: SharedHypervisor) -> Result<Self> {
        Self::later(hypervisor, CALIBRATED_AFTER)
    }

    /// A clock that is calibrated by calls of [`XenClock::improve`] after some time. Until then it may be slow by as long as
    /// the vCPU had run without a pause.
    fn later(hypervisor: SharedHypervisor, wait: Duration) -> Result<Self> {
        let before = sched_getaffinity(None).doing("sched_getaffinity")?;
        let mut first = CpuSet::new();
        first.set(0);
        sched_setaffinity(None, &first).doing("sched_setaffinity")?;
        let (calibration, begun) = (Calibration::default(), Instant::now() + wait);
        let mut clock = Self { hypervisor, calibration, begun, places: Some(before), last_ns: 0 };
        clock.look()?;
        Ok(clock)
    }

    fn look(&mut self) -> Result {
        let state = self.hypervisor.borrow_mut().run_state(0).doing("VCPUOP_get_runstate_info")?;
        self.calibration.add(state);
        Ok(())
    }

    /// Looks at the vCPU once more if it is time and the bounds are not good enough; when the next look is due.
    pub(crate) fn improve(&mut self) -> Result<Option<Instant>> {
        let now = Instant::now();
        if self.places.is_none() || now < self.begun {
            return Ok(self.places.as_ref().map(|_| self.begun));
        }
        self.look()?;
        let passed = now - self.begun;
        let is_done = match self.calibration.error_ns() {
            Some(0..=GOAL_NS) => true,
            Some(0..=FAIR_NS) => passed > PATIENCE,
            Some(_) => passed > IMPATIENCE,
            None if passed > LIMIT => {
                return Err(Failure::Failed(
                    "the vCPU never slept: no bounds for Xen's clock".into(),
                ));
            }
            None => false,
        };
        if is_done && let Some(places) = self.places.take() {
            sched_setaffinity(None, &places).doing("sched_setaffinity")?;
        }
        Ok((!is_done).then(|| Instant::now() + STEP))
    }

    /// System time, nanoseconds, and the most that it can be wrong by.
    pub(crate) fn read(&mut self) -> io::Result<(u64, u64)> {
        let state = self.hypervisor.borrow_mut().run_state(0)?;
        self.calibration.now_ns(&state).ok_or_else(|| io::Error::other("clock not calibrated"))
    }

    /// System time, nanoseconds. A hypercall that fails repeats the last answer.
    pub(crate) fn now_ns(&mut self) -> u64 {
        if let Ok(state) = self.hypervisor.borrow_mut().run_state(0)
            && let Some(now_ns) = self.calibration.estimate_ns(&state)
        {
            self.last_ns = now_ns;
        }
        self.last_ns
    }
}

pub(crate) fn open() -> Result<SharedHypervisor> {
    Ok(Rc::new(RefCell::new(Hypervisor::open().doing("cannot reach the hypervisor")?)))
}

/// The command `xentime`.
pub(crate) fn print(args: &Args) -> Result {
    let mut clock = XenClock::new(open()?)?;
    let (now_ns, error_ns) = clock.read().doing("VCPUOP_get_runstate_info")?;
    if args.has("json") {
        let constant_ns = clock.calibration.constant_ns().and_then(|ns| i64::try_from(ns).ok());
        println!(
            "{}",
            json!({"xen_ns": now_ns, "error_ns": error_ns, "vcpu_made_ns": constant_ns})
        );
    } else {
        println!("{now_ns}");
    }
    Ok(())
}
