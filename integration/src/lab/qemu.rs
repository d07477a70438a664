//! One emulated machine: QEMU (TCG, emulated AMD SVM with nested paging) -> Xen -> Linux dom0.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::cache::Images;
use super::fault;
use super::plan::FIREWALL_CPU;
use crate::error::{Attempt, Error, Result};
use crate::{command, fail};

/// What the machine is started with.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// Instance name: the run directory's, shown in the process list.
    pub name: String,
    /// The xenstore daemon: `xenstored` (C, as Qubes has it) or `oxenstored`.
    pub xenstored: &'static str,
    /// Memory of the machine, MiB.
    pub memory_mib: u32,
    /// Memory of dom0, MiB.
    pub dom0_mib: u32,
    /// Whether the machine goes on after this process has ended (`lab up`).
    pub detached: bool,
}

impl Default for MachineOptions {
    fn default() -> Self {
        Self {
            name: "test".into(),
            xenstored: "xenstored",
            memory_mib: 2048,
            dom0_mib: 640,
            detached: false,
        }
    }
}

/// A running machine, its files in the run directory. Dropped: ended, unless detached.
pub struct Machine {
    /// Run directory: console.log, share/, key, pid, port.
    pub dir: PathBuf,
    child: Option<Child>,
    port: u16,
}

/// Generous: a busy host takes several times the usual 12 s.
const BOOT_TIMEOUT: Duration = Duration::from_secs(240);

impl Machine {
    /// Boots and waits until dom0 says that it is ready.
    ///
    /// # Errors
    /// When QEMU does not start, or dom0 does not come up in time.
    pub fn boot(images: &Images, options: &MachineOptions) -> Result<Self> {
        let dir = run_dir(&options.name);
        if let Ok(old) = Self::attach(&options.name) {
            fail!(
                "a lab named {:?} is running already (pid file in {})",
                options.name,
                old.dir.display()
            );
        }
        let _ = fs::remove_dir_all(&dir);
        for sub in ["share/console", "share/cfg"] {
            fs::create_dir_all(dir.join(sub))
                .doing(|| format!("cannot create {}", dir.display()))?;
        }
        make_key(&dir)?;
        let port = free_port()?;
        let child = command_line(images, options, &dir, port)?
            .spawn()
            .doing(|| "cannot start qemu-system-x86_64")?;
        write(&dir.join("pid"), &child.id().to_string())?;
        write(&dir.join("port"), &port.to_string())?;
        let mut machine = Self { dir, child: Some(child), port };
        machine.wait_ready()?;
        if options.detached {
            machine.child = None;
        }
        Ok(machine)
    }

    /// The detached machine of that name.
    ///
    /// # Errors
    /// When none is running.
    pub fn attach(name: &str) -> Result<Self> {
        let dir = run_dir(name);
        let read = |file: &str| fs::read_to_string(dir.join(file)).ok();
        let (Some(pid), Some(port)) =
            (read("pid"), read("port").and_then(|port| port.parse().ok()))
        else {
            fail!("no lab named {name:?} is running (start one: cargo xtask lab up)");
        };
        if !is_our_qemu(&pid, name) {
            fail!("the lab named {name:?} has ended (start one: cargo xtask lab up)");
        }
        Ok(Self { dir, child: None, port })
    }

    /// Port of dom0's ssh on the host's loopback interface.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The folder that dom0 has as `/host`.
    pub fn share(&self) -> PathBuf {
        self.dir.join("share")
    }

    /// What Xen and dom0 wrote to the serial console so far.
    pub fn console(&self) -> String {
        let bytes = fs::read(self.dir.join("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A fault of the emulator that has shown so far: QEMU's end, or what [`fault`] finds in the log.
    pub fn fault(&mut self) -> Option<String> {
        if let Some(child) = &mut self.child
            && let Ok(Some(status)) = child.try_wait()
        {
            let words = fs::read_to_string(self.dir.join("qemu.log")).unwrap_or_default();
            return Some(format!("QEMU ended ({status}) {}", command::last_lines(&words, 3)));
        }
        fault::in_hypervisor_log(&self.console())
    }

    /// Ends the machine.
    pub fn stop(&mut self) {
        match self.child.take() {
            Some(mut child) => {
                let _ = child.kill();
                let _ = child.wait();
            }
            None => {
                if let Ok(pid) = fs::read_to_string(self.dir.join("pid")) {
                    let _ = command::output(&mut command::new("kill", &[pid.trim()]));
                }
            }
        }
        let _ = fs::remove_file(self.dir.join("pid"));
    }

    fn wait_ready(&mut self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIMEOUT;
        loop {
            let console = self.console();
            if let Some(line) = console.lines().find(|line| line.contains("LAB-FAILED")) {
                fail!("dom0: {}", line.trim());
            }
            if console.lines().any(|line| line.starts_with("LAB-READY")) {
                return Ok(());
            }
            if let Some(fault) = self.fault() {
                return Err(Error::EmulatorFault(format!(
                    "{fault}\n{}",
                    command::last_lines(&console, 15)
                )));
            }
            if Instant::now() > deadline {
                fail!(
                    "dom0 was not ready in {} s; the console's last lines:\n{}",
                    BOOT_TIMEOUT.as_secs(),
                    command::last_lines(&console, 25)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.stop();
        }
    }
}

/// Where the files of the instance `name` are.
pub fn run_dir(name: &str) -> PathBuf {
    crate::paths::target().join("lab/run").join(name)
}

fn command_line(
    images: &Images,
    options: &MachineOptions,
    dir: &Path,
    port: u16,
) -> Result<Command> {
    let base = &images.base;
    let log = File::create(dir.join("qemu.log")).doing(|| "cannot create qemu.log")?;
    let error_log = log.try_clone().doing(|| "cannot share qemu.log")?;
    // `setpriv` makes the machine end with this process, whatever ends that; a detached one leaves its session.
    let mut command = if options.detached {
        command::new("setsid", &[])
    } else {
        command::new("setpriv", &["--pdeathsig", "KILL"])
    };
    command.stdin(Stdio::null()).stdout(log).stderr(error_log);
    command.arg("qemu-system-x86_64").args(["-name", &format!("qrf-lab-{}", options.name)]);
    command.args([
        "-machine",
        "pc",
        "-accel",
        "tcg,thread=multi",
        "-smp",
        "4",
        "-m",
        &options.memory_mib.to_string(),
        "-mem-prealloc",
    ]);
    // Pages of 1 GiB, as every processor has them that Qubes runs on.
    command.args(["-cpu", "qemu64,+svm,+npt,+pdpe1gb,+rdrand,+popcnt,+ssse3,+sse4.1,+sse4.2"]);
    command.args(["-display", "none", "-no-reboot"]);
    // For who wants to look at the machine itself while it runs; a longer path does not fit into an address.
    let monitor = prefixed("unix:", &dir.join("monitor,server=on,wait=off"));
    command.arg("-monitor").arg(if monitor.len() < 120 { monitor } else { "none".into() });
    command.arg("-serial").arg(prefixed("file:", &dir.join("console.log")));
    command.arg("-kernel").arg(base.xen());
    // dom0 has the first CPU for itself, clients share the second, NetVMs the third, and the firewall has the last:
    // unpinned, the emulator fault of `fault` was seen. As each stays on its CPU, each CPU has its own queue: with one for
    // all, a tenth of the instructions waited for its lock, which a CPU may hold that the host does not let run.
    command.arg("-append").arg(format!(
        "console=com1 com1=115200,8n1 loglvl=info guest_loglvl=info dom0_mem={0}M,max:{0}M dom0_max_vcpus=1 \
         dom0_vcpus_pin credit2_runqueue=cpu noreboot spec-ctrl=no xpti=no watchdog=no",
        options.dom0_mib
    ));
    command.arg("-initrd").arg(format!(
        "{} console=hvc0 quiet loglevel=4 mitigations=off nokaslr net.ifnames=0 lab.xenstored={} \
         lab.firewall_cpu={FIREWALL_CPU},{}",
        base.dom0_kernel()?.vmlinux.display(),
        options.xenstored,
        images.dir.join("dom0-initrd").display()
    ));
    command.arg("-drive").arg(format!(
        "file={},format=raw,if=virtio,snapshot=on,cache=unsafe",
        base.disk().display()
    ));
    command
        .arg("-netdev")
        .arg(format!("user,id=n0,restrict=on,hostfwd=tcp:127.0.0.1:{port}-10.0.2.15:22"));
    command.args(["-device", "virtio-net-pci,netdev=n0,romfile="]);
    for (tag, path, more) in
        [("lab", dir.join("share"), ""), ("images", images.dir.clone(), ",readonly=on")]
    {
        let path = path.display();
        command
            .arg("-virtfs")
            .arg(format!("local,path={path},mount_tag={tag},security_model=none{more}"));
    }
    Ok(command)
}

fn prefixed(prefix: &str, path: &Path) -> std::ffi::OsString {
    let mut text = std::ffi::OsString::from(prefix);
    text.push(path);
    text
}

fn make_key(dir: &Path) -> Result<()> {
    let key = dir.join("key");
    command::output(
        command::new("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f"]).arg(&key),
    )?;
    fs::copy(dir.join("key.pub"), dir.join("share/key.pub"))
        .doing(|| "cannot copy the lab's key")
        .map(drop)
}

/// A port that is free now; QEMU takes it a moment later.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).doing(|| "cannot find a free port")?;
    Ok(listener.local_addr().doing(|| "cannot find a free port")?.port())
}

fn is_our_qemu(pid: &str, name: &str) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.trim()))
        .is_ok_and(|line| String::from_utf8_lossy(&line).contains(&format!("qrf-lab-{name}\0")))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).doing(|| format!("cannot write {}", path.display()))
}
