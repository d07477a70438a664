//! A domain to be made.

use crate::lab::base::GuestKernel;
use crate::lab::guests::{self, Role};
use crate::lab::plan::FIREWALL_CPU;

/// Parts of the guests' kernel that take a second at each boot and that nothing here uses.
const NEEDLESS: &str = "init_kprobe_trace,crypto_kdf108_init,slab_sysfs_init,init_encrypted";

/// What Qubes' backend domains run for a vif.
const SCRIPT: &str = "vif-route-qubes";

/// A network device of a domain to be made, as Qubes' libvirt template has it.
#[derive(Clone, Debug)]
pub struct Vif {
    /// The frontend's MAC address.
    pub mac: String,
    /// The frontend's address (or two, separated by a space).
    pub ip: String,
    /// Name of the backend domain.
    pub backend: String,
    /// Device number, when it is not to be the next free one.
    pub devid: Option<u32>,
}

impl Vif {
    /// A device with the MAC address that Qubes gives every vif by default.
    pub fn new(ip: &str, backend: &str) -> Self {
        Self {
            mac: "00:16:3e:5e:6c:00".into(),
            ip: ip.into(),
            backend: backend.into(),
            devid: None,
        }
    }

    /// `xl`'s notation in a domain's file.
    pub(in crate::lab) fn in_file(&self) -> String {
        self.words().join(",")
    }

    /// `xl`'s notation on a shell line: a word each, as `network-attach` silently misreads commas.
    fn on_line(&self) -> String {
        self.words().iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" ")
    }

    /// The shell line of dom0 that gives it to a running domain.
    pub fn attach_line(&self, domain: &str) -> String {
        format!("xl network-attach {domain} {}", self.on_line())
    }

    /// libxl's JSON (`libxl_device_nic`).
    pub(in crate::lab) fn json(&self) -> serde_json::Value {
        let mut value = serde_json::json!({
            "mac": self.mac, "ip": self.ip, "script": SCRIPT, "backend_domname": self.backend,
        });
        if let (Some(devid), Some(object)) = (self.devid, value.as_object_mut()) {
            object.insert("devid".into(), devid.into());
        }
        value
    }

    fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("mac={}", self.mac),
            format!("ip={}", self.ip),
            format!("script={SCRIPT}"),
            format!("backend={}", self.backend),
        ];
        if let Some(devid) = self.devid {
            words.push(format!("devid={devid}"));
        }
        words
    }
}

/// A domain to be made.
#[derive(Clone, Debug)]
pub struct DomainSpec {
    /// Name for `xl`.
    pub name: String,
    /// Kernel, as a path in dom0.
    pub kernel: String,
    /// RAM disk, as a path in dom0.
    pub ramdisk: Option<String>,
    /// Kernel command line.
    pub cmdline: String,
    /// Memory and its maximum, MiB.
    pub memory_mib: u32,
    /// Network devices.
    pub vifs: Vec<Vif>,
    /// Whether it serves devices to others.
    pub driver_domain: bool,
    /// The physical CPU that it runs on (dom0 has 0 to itself otherwise).
    pub cpu: u32,
    /// Left paused after its making, as Qubes does to prepare QubesDB.
    pub paused: bool,
}

impl DomainSpec {
    /// A Linux guest of the lab; `words` go to its init (`ip=10.137.0.11`).
    pub fn linux(name: &str, role: Role, kernel: GuestKernel, words: &[(&str, &str)]) -> Self {
        let mut cmdline = format!(
            "console=hvc0 quiet loglevel=4 mitigations=off cryptomgr.notests \
             initcall_blacklist={NEEDLESS} lab.role={}",
            role.name()
        );
        for (key, value) in words {
            cmdline.push_str(&format!(" lab.{key}={value}"));
        }
        Self {
            name: name.into(),
            kernel: format!("/images/{}", guests::kernel_file_name(kernel)),
            ramdisk: Some(format!("/images/{}", guests::ramdisk_name(role, kernel))),
            cmdline,
            memory_mib: 128,
            vifs: Vec::new(),
            driver_domain: role != Role::Client,
            cpu: 1,
            paused: false,
        }
    }

    /// A kernel of our own: no RAM disk.
    pub fn unikernel(name: &str, kernel: &str, memory_mib: u32, cmdline: &str) -> Self {
        Self {
            name: name.into(),
            kernel: kernel.into(),
            ramdisk: None,
            cmdline: cmdline.into(),
            memory_mib,
            vifs: Vec::new(),
            driver_domain: true,
            cpu: 1,
            paused: false,
        }
    }

    /// The text of `xl`'s configuration file. The time stamp counter is the processor's own, as in Qubes (libvirt's
    /// `<timer name="tsc" mode="native"/>`): else Xen takes each look at it for an exit on this machine.
    pub(in crate::lab) fn config(&self, tsc_khz: u64) -> String {
        let mut cmdline = self.cmdline.clone();
        if self.ramdisk.is_some() {
            // Without it a PVH Linux spends seconds on finding its TSC's frequency.
            cmdline.push_str(&format!(" tsc_early_khz={tsc_khz}"));
        }
        let vifs: Vec<_> = self.vifs.iter().map(|vif| format!("\"{}\"", vif.in_file())).collect();
        let mut text = format!(
            "name=\"{}\"\ntype=\"pvh\"\nkernel=\"{}\"\nextra=\"{cmdline}\"\nmemory={m}\nmaxmem={m}\nvcpus=1\n\
             cpus=\"{}\"\non_crash=\"preserve\"\non_reboot=\"destroy\"\non_poweroff=\"destroy\"\n\
             tsc_mode=\"native\"\n\
             vif=[{}]\n",
            self.name,
            self.kernel,
            self.cpu,
            vifs.join(","),
            m = self.memory_mib,
        );
        if self.cpu == FIREWALL_CPU {
            text.push_str("pool=\"firewall\"\n");
        }
        if let Some(ramdisk) = &self.ramdisk {
            text.push_str(&format!("ramdisk=\"{ramdisk}\"\n"));
        }
        if self.driver_domain {
            text.push_str("driver_domain=1\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vif_words_are_those_of_xl() {
        let vif = Vif { devid: Some(3), ..Vif::new("10.137.0.11 fd09::b", "sys-firewall") };
        assert_eq!(
            vif.on_line(),
            "'mac=00:16:3e:5e:6c:00' 'ip=10.137.0.11 fd09::b' 'script=vif-route-qubes' 'backend=sys-firewall' 'devid=3'"
        );
        assert!(vif.in_file().contains(",ip=10.137.0.11 fd09::b,"));
        let json = r#"{"backend_domname":"sys-firewall","devid":3,"ip":"10.137.0.11 fd09::b","mac":"00:16:3e:5e:6c:00","script":"vif-route-qubes"}"#;
        assert_eq!(vif.json().to_string(), json);
    }
}
