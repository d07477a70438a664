//! What is kept and said after a failure.

use std::path::Path;
use std::time::Duration;

use super::{Kind, World};
use crate::lab::domain::Domain;
use crate::lab::plan::{NetVm, Provider};

/// Shell lines that show a guest's network from inside.
const NETWORK_STATE: &str = "mount -t debugfs debugfs /sys/kernel/debug 2>/dev/null; ip -s link; ip addr; ip route; netstat -tn; ps; \
    ip -6 route; ip neigh; cat /tmp/hotplug.log; grep -i -e xen -e vif -e eth /proc/interrupts; cat /proc/net/snmp; \
    for f in /sys/kernel/debug/xen-netback/*/*; do echo \"$f:\"; cat $f; done; xenstore-ls backend; \
    for d in $(xenstore-list backend/vif); do for n in $(xenstore-list backend/vif/$d); do \
    f=$(xenstore-read backend/vif/$d/$n/frontend); echo $f; xenstore-ls $f; done; done; dmesg | tail -30";

impl World {
    /// Writes what each Linux domain knows of its network to a file of its own in `dir`: interfaces with counters,
    /// routes, neighbours, and a backend's rings and directories. What cannot be had is left out.
    pub fn save_network_state(&self, dir: &Path) {
        for (name, domain) in &self.domains {
            if self.is_image(name) {
                continue;
            }
            // A guest that hangs must not hold up the report for long.
            let state = domain.exec_for(&self.lab, NETWORK_STATE, Duration::from_secs(20));
            if let Ok(state) = state {
                let _ = std::fs::write(dir.join(format!("network-{name}.txt")), state.text);
            }
        }
    }

    /// Ends the firewalls of ours as dom0 does: the last `lines` lines of each one's console, with what it counted among
    /// them. For the report of a failure; what cannot be had is left out.
    pub fn last_words(&self, lines: usize) -> Vec<String> {
        let images = || self.domains.iter().filter(|(name, _)| self.is_image(name));
        let ends: String = images().map(|(name, _)| format!("xl shutdown -F {name}; ")).collect();
        if self.lab.fault().is_none() {
            let _ = self.lab.exec_for(&format!("{ends}sleep 5"), Duration::from_secs(30));
        }
        let tail = |(name, domain): (&String, &Domain)| {
            let console = domain.console();
            let all: Vec<&str> = console.lines().collect();
            let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
            last.iter().map(|line| format!("{name}: {line}")).collect::<Vec<_>>()
        };
        images().flat_map(tail).collect()
    }

    fn is_image(&self, name: &str) -> bool {
        let is_provider =
            |netvm: &NetVm| netvm.name == name && matches!(netvm.kind, Provider::Firewall(_));
        self.kind != Kind::Linux
            && (name == self.plan.firewall.name || self.plan.netvms.iter().any(is_provider))
    }
}
