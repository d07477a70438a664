//! How the domain ends, and how it is suspended (Xen public/sched.h, `SCHEDOP_shutdown`).
#![forbid(unsafe_code)]

use crate::abi::platform::{SHUTDOWN_CRASH, SHUTDOWN_POWEROFF, SHUTDOWN_REBOOT, SHUTDOWN_SUSPEND};
use crate::{event, hypercall};

/// How a suspension ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SuspendResult {
    /// In the same domain: rings, grants and ports are as they were. Time has passed.
    Resumed,
    /// In a domain built anew (restore, migration), where nothing is bound any more. Qubes never does this; the only
    /// safe answer is [`crash`] with a reason on the console.
    NewDomain,
    /// Xen refused; nothing has happened.
    Refused,
}

/// Ends the domain as a power button does.
pub fn poweroff() -> ! {
    end(SHUTDOWN_POWEROFF)
}

/// Ends the domain and asks the toolstack to start it again. Qubes only ends it.
pub fn reboot() -> ! {
    end(SHUTDOWN_REBOOT)
}

/// Ends the domain as crashed. The reason should be on the console by then: see `panic!`.
pub fn crash() -> ! {
    end(SHUTDOWN_CRASH)
}

/// Stops until dom0 resumes the domain.
pub fn suspend() -> SuspendResult {
    let resumed = hypercall::shutdown(SHUTDOWN_SUSPEND);
    event::forget_timer();
    match resumed {
        Ok(0) => SuspendResult::NewDomain,
        Ok(_) => SuspendResult::Resumed,
        Err(_) => SuspendResult::Refused,
    }
}

fn end(reason: u32) -> ! {
    // Does not return on Xen; if it ever should, stop anyway.
    let _ = hypercall::shutdown(reason);
    hypercall::halt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;

    #[test]
    fn each_end_has_its_reason() {
        let ends: [(fn() -> !, u32); 3] = [(poweroff, 0), (reboot, 1), (crash, 3)];
        for (end, reason) in ends {
            assert!(std::panic::catch_unwind(|| end()).is_err());
            assert_eq!(fake::shutdown_reason(), Some(reason));
        }
    }

    #[test]
    fn a_suspension_returns() {
        assert_eq!(suspend(), SuspendResult::Resumed);
        assert_eq!(fake::shutdown_reason(), Some(2));
    }
}
