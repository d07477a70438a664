//! The lab: real Xen under QEMU's software emulation, with a Linux dom0 and Linux guests made of Debian
//! packages. A tool (`cargo xtask lab`) and the stage of the scenario tests.

#![forbid(unsafe_code)]

pub mod base;
pub mod cache;
pub mod cpio;
pub mod dom0d;
pub mod domain;
pub mod fault;
pub mod guests;
pub mod kernel;
pub mod modules;
pub mod plan;
pub mod qemu;
pub mod shell;
pub mod timed_start;
pub mod world;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use self::cache::Images;
use self::domain::{Domain, DomainSpec, State, Vif};
use self::qemu::{Machine, MachineOptions};
use self::shell::{Output, Shells};
use crate::error::{Attempt, Error, Result};
use crate::{fail, paths, progress};

/// Boots that are tried when the emulator itself fails.
const BOOT_TRIES: u32 = 3;

/// Where libxl keeps the configurations of domains.
const KNOWN: &str = "/var/lib/xen/userdata-d";
/// Before a moment in what a script says.
const TOOK: &str = "@@took ";

/// A booted lab: dom0 answers. Dropped: everything in it is gone, unless the machine was detached.
pub struct Lab {
    shells: Shells,
    machine: RefCell<Machine>,
    tsc_khz: Cell<u64>,
    /// Number of the domain that was made last.
    latest: Cell<u32>,
    seen: RefCell<Seen>,
}

/// The domains as they were seen last.
#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    states: BTreeMap<String, State>,
}

/// How old that may be: what ends by itself is waited for, or noted.
const LATELY: Duration = Duration::from_secs(3);

impl Lab {
    /// Boots a machine. A fault of the emulator is said and tried again, twice.
    ///
    /// # Errors
    /// When dom0 does not come up.
    pub fn boot(images: &Images, options: &MachineOptions) -> Result<Self> {
        let mut try_count = 1;
        let machine = loop {
            let booted =
                progress::step("lab: booting Xen and dom0", || Machine::boot(images, options));
            match booted {
                Err(Error::EmulatorFault(fault)) if try_count < BOOT_TRIES => {
                    progress::say(format!(
                        "emulator fault {try_count} while booting, again: {fault}"
                    ));
                    try_count += 1;
                }
                other => break other?,
            }
        };
        Ok(Self::over(machine))
    }

    /// The lab that `cargo xtask lab up` left running.
    ///
    /// # Errors
    /// When there is none.
    pub fn attach(name: &str) -> Result<Self> {
        Ok(Self::over(Machine::attach(name)?))
    }

    fn over(machine: Machine) -> Self {
        let shells = Shells::new(&machine.dir.join("key"), machine.port());
        Self {
            shells,
            machine: machine.into(),
            tsc_khz: Cell::new(0),
            latest: Cell::new(0),
            seen: RefCell::default(),
        }
    }

    /// Runs a command in dom0; a minute at most.
    ///
    /// # Errors
    /// When dom0 does not answer. A failing command is no error.
    pub fn exec(&self, line: &str) -> Result<Output> {
        self.exec_for(line, Duration::from_secs(60))
    }

    /// Like [`Lab::exec`], with another limit.
    ///
    /// # Errors
    /// As [`Lab::exec`].
    pub fn exec_for(&self, line: &str, timeout: Duration) -> Result<Output> {
        self.shells.exec(line, timeout)
    }

    /// A command in dom0 that must succeed; its output.
    ///
    /// # Errors
    /// When it fails, or dom0 does not answer.
    pub fn sh(&self, line: &str) -> Result<String> {
        self.exec(line)?.ok(&format!("dom0: {line}"))
    }

    /// Shell of a person at the terminal.
    pub fn shells(&self) -> &Shells {
        &self.shells
    }

    /// Ends the machine, also a detached one.
    pub fn stop(&self) {
        self.machine.borrow_mut().stop();
    }

    /// A fault of the emulator that has shown since the boot.
    pub fn fault(&self) -> Option<String> {
        self.machine.borrow_mut().fault()
    }

    /// Console of Xen and dom0.
    pub fn console(&self) -> String {
        self.machine.borrow().console()
    }

    pub(crate) fn console_dir(&self) -> PathBuf {
        self.share().join("console")
    }

    /// The folder that dom0 has as `/host`.
    pub fn share(&self) -> PathBuf {
        self.machine.borrow().share()
    }

    /// Puts a file where dom0 sees it at once; returns its path there.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn put(&self, file: &Path) -> Result<String> {
        let name =
            file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        // Renamed into place: a program that runs from the old file keeps it.
        let temporary = self.share().join(format!(".{name}.new"));
        fs::copy(file, &temporary).doing(|| format!("cannot copy {}", file.display()))?;
        fs::rename(&temporary, self.share().join(&name))
            .doing(|| format!("cannot place {name}"))?;
        Ok(format!("/host/{name}"))
    }

    /// Puts a kernel where dom0 has it to itself, as Qubes' dom0 has those on its disk: `xl` takes a tenth of a second longer to
    /// read one through the share. Its path in dom0.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn put_kernel(&self, file: &Path) -> Result<String> {
        let there = self.put(file)?;
        let kernel = there.replacen("/host/", "/run/lab/", 1);
        // Renamed into place, as above.
        self.sh(&format!("cp {there} {kernel}.new && mv {kernel}.new {kernel}"))?;
        Ok(kernel)
    }

    /// Makes a domain.
    ///
    /// # Errors
    /// When `xl` refuses.
    pub fn create(&self, spec: &DomainSpec) -> Result<Domain> {
        let begun = Instant::now();
        // libxl keeps the configuration of each domain: the shell alone can read it. xl is asked for the number, which takes it
        // several times as long, only if it is not the next one.
        let line = format!(
            "{create} || exit
             for known in {KNOWN}.{next}.*.libxl-json; do
                 [ -e \"$known\" ] && case $(<\"$known\") in *'\"name\": \"{name}\"'*) echo {next}; exit ;; esac
             done
             xl domid {name}",
            create = self.prepare(spec)?,
            name = spec.name,
            next = self.next_domid()
        );
        let out = self
            .exec_for(&line, Duration::from_secs(120))?
            .ok(&format!("xl create {}", spec.name))?;
        let Some(domid) = out.lines().last().and_then(|line| line.trim().parse().ok()) else {
            fail!("xl create {}: no domain number in {out:?}", spec.name);
        };
        self.latest.set(domid);
        Ok(Domain::new(self, &spec.name, domid, begun.elapsed().as_secs_f32()))
    }

    /// Makes a domain, with the number [`Lab::next_domid`], and goes on with more lines of dom0, each under a name: all in one script, as
    /// asking dom0 for each takes a tenth of a second. The seconds that each took, `xl create` before them.
    ///
    /// # Errors
    /// When a line fails, or the domain has another number.
    fn create_and(
        &self,
        spec: &DomainSpec,
        then: &[(&'static str, String)],
    ) -> Result<(Domain, timed_start::Parts)> {
        let domid = self.next_domid();
        let clock = format!("read -r up rest </proc/uptime; echo \"{TOOK}$up\"");
        let mut script = format!(
            "{clock}; {create} || exit; {clock}
             set -- {KNOWN}.{domid}.*.libxl-json; [ -e \"$1\" ] || {{ echo not domain {domid}; exit 1; }}",
            create = self.prepare(spec)?
        );
        for (_, line) in then {
            script.push_str(&format!("\n{line} || exit; {clock}"));
        }
        let text = self
            .exec_for(&script, Duration::from_secs(300))?
            .ok(&format!("start of {}", spec.name))?;
        self.latest.set(domid);
        let moments: Vec<f32> =
            text.lines().filter_map(|line| line.strip_prefix(TOOK)?.trim().parse().ok()).collect();
        let names = std::iter::once("xl create").chain(then.iter().map(|(name, _)| *name));
        let took: Vec<_> = names
            .zip(moments.windows(2))
            .filter_map(|(name, pair)| Some((name, pair.last()? - pair.first()?)))
            .collect();
        let [(_, created), ..] = took.as_slice() else {
            fail!("start of {}: no times in {text:?}", spec.name);
        };
        Ok((Domain::new(self, &spec.name, domid, *created), took))
    }

    /// Writes a domain's configuration; the line that makes it.
    fn prepare(&self, spec: &DomainSpec) -> Result<String> {
        self.forget_states();
        let file = format!("cfg/{}.cfg", spec.name);
        let config = spec.config(self.tsc_khz()?);
        fs::write(self.share().join(&file), config)
            .doing(|| "cannot write a domain's configuration")?;
        self.keep_old_log(&spec.name);
        let pause = if spec.paused { "-p" } else { "" };
        Ok(format!("xl create -q {pause} /host/{file}"))
    }

    /// The number that the next domain gets: Xen counts them.
    pub fn next_domid(&self) -> u32 {
        self.latest.get().saturating_add(1)
    }

    /// A handle to a domain that exists.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn domain(&self, name: &str) -> Result<Domain> {
        let out = self.sh(&format!("xl domid {name}"))?;
        match out.trim().parse() {
            Ok(domid) => Ok(Domain::new(self, name, domid, 0.0)),
            Err(_) => fail!("no domain {name}"),
        }
    }

    /// Lets a paused domain run.
    ///
    /// # Errors
    /// When `xl` refuses.
    pub fn unpause(&self, domain: &Domain) -> Result<()> {
        self.forget_states();
        self.sh(&format!("xl unpause {}", domain.domid)).map(drop)
    }

    /// Ends a domain without asking it.
    ///
    /// # Errors
    /// When `xl` refuses.
    pub fn destroy(&self, name: &str) -> Result<()> {
        self.forget_states();
        self.sh(&format!("xl destroy {name}")).map(drop)
    }

    /// Asks a domain to shut down and waits for its end; seconds taken.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn shutdown(&self, name: &str, timeout: Duration) -> Result<f32> {
        self.forget_states();
        let begun = Instant::now();
        self.sh(&format!("xl shutdown -F {name}"))?;
        while self.state(name)? != State::Gone {
            if begun.elapsed() > timeout {
                fail!("{name} had not shut down after {} s", timeout.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(begun.elapsed().as_secs_f32())
    }

    /// Gives a running domain a network device, as Qubes does at a netvm change.
    ///
    /// # Errors
    /// When `xl` refuses or the backend does not answer within libxl's 10 s.
    pub fn attach_vif(&self, name: &str, vif: &Vif) -> Result<()> {
        self.sh(&vif.attach_line(name)).map(drop)
    }

    /// Takes a network device from a running domain. Complaints of `xl` are returned, as Qubes ignores them
    /// when the backend domain has ended.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn detach_vif(&self, name: &str, devid: u32) -> Result<Output> {
        self.exec_for(&format!("xl network-detach {name} {devid}"), Duration::from_secs(90))
    }

    /// How a domain is.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn state(&self, name: &str) -> Result<State> {
        // Without the header and the failure of an unknown name.
        let out = self.exec(&format!("xl list {name} 2>/dev/null | awk 'NR == 2 {{print $5}}'"))?;
        Ok(State::parse(out.text.trim()))
    }

    /// Processor seconds that each domain has used, from `xl list` (in steps of 0.1 s).
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn all_cpu_seconds(&self) -> Result<BTreeMap<String, f64>> {
        let text = self.sh("xl list")?;
        let read = |line: &str| -> Option<(String, f64)> {
            let mut words = line.split_whitespace();
            let name = words.next()?.to_owned();
            Some((name, words.next_back()?.parse().ok()?))
        };
        let used: BTreeMap<String, f64> = text.lines().skip(1).filter_map(read).collect();
        if used.is_empty() {
            fail!("xl list: {text:?}");
        }
        Ok(used)
    }

    /// How a domain is, or was in the last seconds: all are asked for at once, which costs as much as one. For what a
    /// scenario needs at its start.
    ///
    /// # Errors
    /// When dom0 does not answer.
    pub fn state_lately(&self, name: &str) -> Result<State> {
        let mut seen = self.seen.borrow_mut();
        if seen.at.is_none_or(|at| at.elapsed() > LATELY) {
            let out = self.exec("xl list")?.text;
            let read = |line: &str| {
                let words: Vec<&str> = line.split_whitespace().collect();
                Some(((*words.first()?).to_owned(), State::parse(words.get(4)?)))
            };
            *seen =
                Seen { at: Some(Instant::now()), states: out.lines().filter_map(read).collect() };
        }
        Ok(seen.states.get(name).copied().unwrap_or(State::Gone))
    }

    /// What was seen of the domains no longer holds.
    pub(crate) fn forget_states(&self) {
        self.seen.borrow_mut().at = None;
    }

    /// Seconds of CPU time that a domain has used (0.1 s steps).
    ///
    /// # Errors
    /// When there is no such domain.
    pub fn cpu_seconds(&self, name: &str) -> Result<f32> {
        let out = self.sh(&format!("xl list {name} | awk 'NR == 2 {{print $6}}'"))?;
        out.trim().parse().map_err(|_| Error::Failed(format!("xl list {name}: {out:?}")))
    }

    /// Copies the console logs of all domains, Xen's and dom0's console, xenstore's content and the list of
    /// domains to `target/lab/logs/LABEL`; returns that folder.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn save_logs(&self, label: &str) -> Result<PathBuf> {
        let to = paths::target().join("lab/logs").join(label);
        let _ = fs::remove_dir_all(&to);
        fs::create_dir_all(&to).doing(|| format!("cannot create {}", to.display()))?;
        let dir = self.machine.borrow().dir.clone();
        for (name, from) in [("xen-and-dom0.log", "console.log"), ("qemu.log", "qemu.log")] {
            let _ = fs::copy(dir.join(from), to.join(name));
        }
        for name in base::read_dir(&self.console_dir())? {
            let _ = fs::copy(self.console_dir().join(&name), to.join(&name));
        }
        for name in base::read_dir(&self.share())? {
            if Path::new(&name).extension().is_some_and(|ext| ext == "log") {
                let _ = fs::copy(self.share().join(&name), to.join(&name));
            }
        }
        // dom0 may be what has died.
        if self.fault().is_none() {
            for (name, line) in
                [("xl-list.txt", "xl list -v; free -m; uptime"), ("xenstore.txt", "xenstore-ls -f")]
            {
                if let Ok(out) = self.exec_for(line, Duration::from_secs(20)) {
                    let _ = fs::write(to.join(name), out.text);
                }
            }
        }
        Ok(to)
    }

    /// Frequency of the processor's time stamp counter, which Linux guests are told.
    fn tsc_khz(&self) -> Result<u64> {
        if self.tsc_khz.get() == 0 {
            let out = self.sh("xl info | awk '$1 == \"cpu_mhz\" {printf \"%d\", $3 * 1000}'")?;
            let Ok(khz) = out.trim().parse() else { fail!("xl info: cpu_mhz is {out:?}") };
            self.tsc_khz.set(khz);
        }
        Ok(self.tsc_khz.get())
    }

    /// The console daemon appends to the log of an earlier domain of that name: move that away.
    fn keep_old_log(&self, name: &str) {
        let dir = self.console_dir();
        let log = dir.join(format!("guest-{name}.log"));
        if log.exists() {
            let free = (1..1000)
                .map(|n| dir.join(format!("guest-{name}.{n}.log")))
                .find(|path| !path.exists());
            if let Some(free) = free {
                let _ = fs::rename(&log, free);
            }
        }
    }
}
