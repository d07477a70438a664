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

/// A calibrated clock.
pub(crate) struct XenClock {
    hypervisor: SharedHypervisor,
    calibration: Calibration,
    last_ns: u64,
}

impl XenClock {
    pub(crate) fn new(hypervisor: SharedHypervisor) -> Result<Self> {
        // vCPU 0 must be the one that makes the calls while the bounds are found.
        let before = sched_getaffinity(None).doing("sched_getaffinity")?;
        let mut first = CpuSet::new();
        first.set(0);
        sched_setaffinity(None, &first).doing("sched_setaffinity")?;
        let calibration = calibrate(&hypervisor);
        sched_setaffinity(None, &before).doing("sched_setaffinity")?;
        Ok(Self { hypervisor, calibration: calibration?, last_ns: 0 })
    }

    /// System time, nanoseconds, and the most that it can be wrong by.
    pub(crate) fn read(&mut self) -> io::Result<(u64, u64)> {
        let state = self.hypervisor.borrow_mut().run_state(0)?;
        self.calibration.now_ns(&state).ok_or_else(|| io::Error::other("clock not calibrated"))
    }

    /// System time, nanoseconds. A hypercall that fails repeats the last answer.
    pub(crate) fn now_ns(&mut self) -> u64 {
        if let Ok((now_ns, _)) = self.read() {
            self.last_ns = now_ns;
        }
        self.last_ns
    }
}

fn calibrate(hypervisor: &SharedHypervisor) -> Result<Calibration> {
    let mut calibration = Calibration::default();
    let start = Instant::now();
    loop {
        let state = hypervisor.borrow_mut().run_state(0).doing("VCPUOP_get_runstate_info")?;
        calibration.add(state);
        match calibration.error_ns() {
            Some(0..=GOAL_NS) => return Ok(calibration),
            Some(0..=FAIR_NS) if start.elapsed() > PATIENCE => return Ok(calibration),
            Some(_) if start.elapsed() > IMPATIENCE => return Ok(calibration),
            None if start.elapsed() > LIMIT => {
                return Err(Failure::Failed(
                    "the vCPU never slept: no bounds for Xen's clock".into(),
                ));
            }
            _ => std::thread::sleep(Duration::from_micros(500)),
        }
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
