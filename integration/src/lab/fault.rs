//! Telling a broken emulator from a broken guest. QEMU's software emulation of AMD SVM now and then runs the
//! hypervisor's own state in a guest's place: Xen then reports a triple fault of a guest whose dumped code
//! segment and instruction pointer are Xen's (`e008:ffff82d0...`). A guest that faults by itself shows its own.

/// A sentence about the fault of the emulation that Xen's console log tells of, if it does.
pub fn in_hypervisor_log(log: &str) -> Option<String> {
    let mut lines = log.lines();
    while let Some(line) = lines.next() {
        if line.contains("(XEN) Panic on CPU") || line.contains("Xen BUG at") {
            return Some(format!("the hypervisor stopped: {}", line.trim()));
        }
        if line.contains("Triple fault - invoking HVM shutdown") {
            let mut dump = lines.clone().take(40);
            if let Some(state) =
                dump.find(|line| line.contains("RIP:")).filter(|line| is_xens(line))
            {
                return Some(format!("{}; {}", line.trim(), state.trim()));
            }
        }
    }
    None
}

/// The register dump's `RIP: e008:[<ffff82d0402044a5>]`, with or without the brackets.
fn is_xens(line: &str) -> bool {
    let Some((_, rip)) = line.split_once("RIP:") else { return false };
    let Some((selector, address)) = rip.trim().split_once(':') else { return false };
    selector == "e008" && address.trim_start_matches(['[', '<']).starts_with("ffff82")
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "(XEN) d1v0 Triple fault - invoking HVM shutdown action 1\n\
        (XEN) *** Dumping Dom1 vcpu#0 state: ***\n(XEN) CPU:    1\n";

    #[test]
    fn triple_fault_with_xens_state_is_the_emulators() {
        for rip in ["e008:ffff82d0402044a5", "e008:[<ffff82d0402044a5>]"] {
            let log = format!("{HEAD}(XEN) RIP:    {rip}\n");
            assert!(in_hypervisor_log(&log).is_some(), "{rip}");
        }
    }

    #[test]
    fn triple_fault_with_the_guests_state_is_the_guests() {
        let log = format!("{HEAD}(XEN) RIP:    0008:[<0000000000101234>]\n");
        assert_eq!(in_hypervisor_log(&log), None);
        let log = format!("{HEAD}(XEN) RIP:    0008:[<ffff82d0402044a5>]\n");
        assert_eq!(in_hypervisor_log(&log), None);
    }

    #[test]
    fn quiet_log_is_no_fault() {
        assert_eq!(in_hypervisor_log("(XEN) Xen version 4.17\n"), None);
        assert_eq!(in_hypervisor_log(HEAD), None);
    }

    #[test]
    fn hypervisor_panic_is_reported() {
        assert!(in_hypervisor_log("(XEN) Panic on CPU 1:\n(XEN) FATAL TRAP\n").is_some());
    }
}
