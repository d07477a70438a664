//! Domains of the lab: how one is made, and a handle to a running one.

use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use super::Lab;
use super::base::GuestKernel;
use super::guests::{self, Role};
use super::shell::Output;
use crate::error::{Attempt, Error, Result};
use crate::fail;

/// Parts of the guests' kernel that take a second at each boot and that nothing here uses.
const NEEDLESS: &str = "init_kprobe_trace,crypto_kdf108_init,slab_sysfs_init,init_encrypted";

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
    pub(super) fn in_file(&self) -> String {
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

    fn words(&self) -> Vec<String> {
        let mut words = vec![
            format!("mac={}", self.mac),
            format!("ip={}", self.ip),
            "script=vif-route-qubes".into(),
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
    pub(super) fn config(&self, tsc_khz: u64) -> String {
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
        if let Some(ramdisk) = &self.ramdisk {
            text.push_str(&format!("ramdisk=\"{ramdisk}\"\n"));
        }
        if self.driver_domain {
            text.push_str("driver_domain=1\n");
        }
        text
    }
}

/// A domain that was made. Dropping the handle does nothing to it.
#[derive(Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its number.
    pub domid: u32,
    /// Seconds that its making took.
    pub create_seconds: f32,
    log: PathBuf,
    agent: Mutex<Agent>,
}

#[derive(Debug, Default)]
struct Agent {
    tty: Option<String>,
    count: u32,
}

/// For what a guest does in a moment; an emulated machine on a busy host has slow moments.
const SHORT: Duration = Duration::from_secs(120);

impl Domain {
    pub(super) fn new(lab: &Lab, name: &str, domid: u32, create_seconds: f32) -> Self {
        let log = lab.console_dir().join(format!("guest-{name}.log"));
        Self { name: name.into(), domid, create_seconds, log, agent: Mutex::default() }
    }

    /// What it wrote to its console so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// File of its console log on the host.
    pub fn console_file(&self) -> PathBuf {
        self.log.clone()
    }

    /// Length of the console log in bytes: a mark for [`Domain::wait_console_after`].
    pub fn console_mark(&self) -> u64 {
        fs::metadata(&self.log).map_or(0, |meta| meta.len())
    }

    /// Waits until a console line contains `needle`; returns the line.
    ///
    /// # Errors
    /// When it does not come in time, or the domain ends or crashes before.
    pub fn wait_console(&self, lab: &Lab, needle: &str, timeout: Duration) -> Result<String> {
        self.wait_console_after(lab, 0, needle, timeout)
    }

    /// Like [`Domain::wait_console`], looking only at what was written after `mark`.
    ///
    /// # Errors
    /// As [`Domain::wait_console`].
    pub fn wait_console_after(
        &self,
        lab: &Lab,
        mark: u64,
        needle: &str,
        timeout: Duration,
    ) -> Result<String> {
        let deadline = Instant::now() + timeout;
        let mut polls = 0u32;
        loop {
            let text = self.console_from(mark)?;
            if let Some(line) = complete_lines(&text).find(|line| line.contains(needle)) {
                return Ok(line.to_owned());
            }
            polls += 1;
            let late = Instant::now() > deadline;
            // Asking costs emulated time: every five seconds, and at the end.
            if late || polls.is_multiple_of(200) {
                let state = lab.state(&self.name)?;
                if late || !state.is_running() {
                    fail!(
                        "{}: no console line with {needle:?} {} (domain: {state:?}); it ends with:\n{}",
                        self.name,
                        if late {
                            format!("in {} s", timeout.as_secs())
                        } else {
                            "before its end".into()
                        },
                        crate::command::last_lines(&self.console(), 12)
                    );
                }
            }
            std::thread::sleep(Duration::from_millis(25));
        }
    }

    /// Waits until a Linux guest of the lab has booted.
    ///
    /// # Errors
    /// When it does not in time.
    pub fn wait_ready(&self, lab: &Lab) -> Result<()> {
        self.wait_console(lab, "GUEST-READY", Duration::from_secs(240)).map(drop)
    }

    /// Runs a shell command in a Linux guest of the lab; the guest's console agent answers.
    ///
    /// # Errors
    /// When no answer comes in a minute. A failing command is no error.
    pub fn exec(&self, lab: &Lab, line: &str) -> Result<Output> {
        self.exec_for(lab, line, SHORT)
    }

    /// Like [`Domain::exec`], for commands that take longer; the guest ends them at `timeout` (status 143).
    ///
    /// # Errors
    /// As [`Domain::exec`].
    pub fn exec_for(&self, lab: &Lab, line: &str, timeout: Duration) -> Result<Output> {
        let mut agent = self
            .agent
            .lock()
            .map_err(|_| Error::Failed("a thread died while it used the agent".into()))?;
        let tty = match &agent.tty {
            Some(tty) => tty.clone(),
            None => {
                let tty =
                    lab.sh(&format!("xenstore-read /local/domain/{}/console/tty", self.domid))?;
                agent.tty.insert(tty.trim().to_owned()).clone()
            }
        };
        agent.count += 1;
        let tag = format!("{}.{}", self.domid, agent.count);
        let mark = self.console_mark();
        // The console ring holds 1024 bytes of input.
        let encoded = base64(line.as_bytes());
        let mut input = String::new();
        let mut rest = encoded.as_str();
        while let Some((piece, more)) =
            rest.split_at_checked(700).filter(|(_, more)| !more.is_empty())
        {
            input.push_str(&format!("printf '@@+ %s\\n' {piece}; "));
            rest = more;
        }
        input.push_str(&format!("printf '@@! %s %s %s\\n' {tag} {} {rest}", timeout.as_secs()));
        lab.sh(&format!("{{ {input}; }} >{tty}"))?;
        self.read_answer(lab, mark, &tag, timeout + Duration::from_secs(10))
    }

    fn read_answer(&self, lab: &Lab, mark: u64, tag: &str, timeout: Duration) -> Result<Output> {
        let end = format!("@@. {tag} ");
        let line = self.wait_console_after(lab, mark, &end, timeout)?;
        let status =
            line.split_once(&end).and_then(|(_, status)| status.trim().parse().ok()).unwrap_or(-1);
        let prefix = format!("@@| {tag} ");
        let log = self.console_from(mark)?;
        let lines = complete_lines(&log).filter_map(|line| line.split_once(&prefix));
        let text = lines.fold(String::new(), |text, (_, line)| text + line + "\n");
        Ok(Output { text, status })
    }

    /// A command of a guest that must succeed; its output.
    ///
    /// # Errors
    /// When it fails or does not answer.
    pub fn sh(&self, lab: &Lab, line: &str) -> Result<String> {
        self.exec(lab, line)?.ok(&format!("{}: {line}", self.name))
    }

    /// Starts a command in the guest and returns at once; [`Background::finish`] waits for it.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn spawn(&self, lab: &Lab, line: &str) -> Result<Background> {
        let number = self.agent.lock().map_or(0, |agent| agent.count);
        let file = format!("/tmp/background.{number}");
        // Written to a file, as the line may have quotes of its own.
        let start = format!(
            "cat >{file}.sh <<'LAB-END'\n{line}\nLAB-END\n\
             (sh {file}.sh </dev/null >{file}.out 2>&1; echo $? >{file}.rc) </dev/null >/dev/null 2>&1 &"
        );
        self.sh(lab, &start)?;
        Ok(Background { file })
    }

    /// What it wrote after `mark`, in complete lines.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub fn console_after(&self, mark: u64) -> Result<String> {
        Ok(complete_lines(&self.console_from(mark)?).collect::<Vec<_>>().join("\n"))
    }

    fn console_from(&self, mark: u64) -> Result<String> {
        let Ok(mut file) = fs::File::open(&self.log) else { return Ok(String::new()) };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(mark)).doing(|| "cannot seek in a console log")?;
        file.read_to_end(&mut bytes).doing(|| "cannot read a console log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

/// A command that runs in a guest; the guest is named again at each use, so that the world stays free for
/// changes meanwhile.
#[derive(Debug)]
pub struct Background {
    file: String,
}

impl Background {
    /// Its end and output, if it has ended.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn poll(&self, lab: &Lab, domain: &Domain) -> Result<Option<Output>> {
        let file = &self.file;
        let out = domain.exec(lab, &format!("cat {file}.rc && cat {file}.out"))?;
        if !out.success() {
            return Ok(None);
        }
        let (status, text) = out.text.split_once('\n').unwrap_or((&out.text, ""));
        Ok(Some(Output { text: text.to_owned(), status: status.trim().parse().unwrap_or(-1) }))
    }

    /// What it wrote so far.
    ///
    /// # Errors
    /// When the guest does not answer.
    pub fn so_far(&self, lab: &Lab, domain: &Domain) -> Result<String> {
        domain.sh(lab, &format!("cat {}.out", self.file))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// When it does not end in time.
    pub fn finish(&self, lab: &Lab, domain: &Domain, timeout: Duration) -> Result<Output> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(output) = self.poll(lab, domain)? {
                return Ok(output);
            }
            if Instant::now() > deadline {
                let text = self.so_far(lab, domain).unwrap_or_default();
                fail!(
                    "{}: a command had not ended after {} s: {text}",
                    domain.name,
                    timeout.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// How a domain is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Running, blocked or waiting for the CPU.
    Running,
    /// Paused by the toolstack.
    Paused,
    /// Shut down or dying.
    ShutDown,
    /// Crashed, and kept as it is.
    Crashed,
    /// No such domain.
    Gone,
}

impl State {
    /// Whether it may still do something by itself.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }

    /// From the state letters of `xl list` (`-b----`).
    pub(super) fn parse(letters: &str) -> Self {
        match letters {
            "" => Self::Gone,
            s if s.contains('c') => Self::Crashed,
            s if s.contains('s') || s.contains('d') => Self::ShutDown,
            s if s.contains('p') => Self::Paused,
            _ => Self::Running,
        }
    }
}

/// The lines of `text` that are complete, without the carriage returns of a console.
fn complete_lines(text: &str) -> impl Iterator<Item = &str> {
    let end = text.rfind('\n').map_or(0, |at| at + 1);
    text.get(..end).unwrap_or("").lines().map(|line| line.trim_end_matches('\r'))
}

/// Standard base64 with padding (RFC 4648 section 4).
fn base64(data: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in data.chunks(3) {
        let mut bits = 0u32;
        for (i, byte) in chunk.iter().enumerate() {
            bits |= u32::from(*byte) << (16 - 8 * i);
        }
        for i in 0..4 {
            let index = usize::try_from(bits >> (18 - 6 * i) & 63).unwrap_or(0);
            let letter = ALPHABET.get(index).copied().unwrap_or(b'A');
            text.push(if i <= chunk.len() { char::from(letter) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_of_rfc_4648() {
        for (plain, coded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
        ] {
            assert_eq!(base64(plain.as_bytes()), coded);
        }
    }

    #[test]
    fn unfinished_line_does_not_count() {
        let lines: Vec<_> = complete_lines("one\r\ntwo\nthr").collect();
        assert_eq!(lines, ["one", "two"]);
    }

    #[test]
    fn states_of_xl_list() {
        assert_eq!(State::parse("-b----"), State::Running);
        assert_eq!(State::parse("------"), State::Running);
        assert_eq!(State::parse("--p---"), State::Paused);
        assert_eq!(State::parse("---sc-"), State::Crashed);
        assert_eq!(State::parse("---s--"), State::ShutDown);
        assert_eq!(State::parse(""), State::Gone);
    }

    #[test]
    fn vif_words_are_those_of_xl() {
        let vif = Vif { devid: Some(3), ..Vif::new("10.137.0.11 fd09::b", "sys-firewall") };
        assert_eq!(
            vif.on_line(),
            "'mac=00:16:3e:5e:6c:00' 'ip=10.137.0.11 fd09::b' 'script=vif-route-qubes' 'backend=sys-firewall' 'devid=3'"
        );
        assert!(vif.in_file().contains(",ip=10.137.0.11 fd09::b,"));
    }
}
