//! Network namespaces of the host: a Linux stack per namespace, with TAP devices that the test holds.
//!
//! A namespace belongs to one thread and has no name on the host, so that nothing is left behind, whatever ends the
//! process.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;

use crate::error::{Attempt, Error, Result};
use crate::{command, fail, ffi, progress};

/// Debian packages that make devices, routes and rules; netbase has the names of protocols that nft reads.
pub const PACKAGES: &[&str] = &["iproute2", "nftables", "netbase"];

/// What TAP devices are made with (Linux Documentation/networking/tuntap.rst).
const TAP_DEVICE: &str = "/dev/net/tun";

/// Who does the work that needs a namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The caller.
    Here,
    /// It has been done by another process.
    Elsewhere,
}

/// Lets a user who is not root become it, in a user namespace where `/dev/net/tun` is open to all as on Debian, else
/// through sudo: then `xtask ARGS` has done the work there.
///
/// # Errors
/// When the machine has no TAP devices, or that process fails.
pub fn enter(args: &[&str]) -> Result<Place> {
    if rustix::process::geteuid().is_root() {
        return ensure_tap().map(|()| Place::Here);
    }
    let program = std::env::current_exe().doing(|| "cannot find this program's own file")?;
    let mut again = if is_tap_open() {
        command::new("unshare", &["--user", "--map-root-user", "--"])
    } else if command::exists("sudo") {
        // sudo asks on the terminal itself.
        command::new("sudo", &["--preserve-env=PATH,HOME,CARGO_MANIFEST_DIR", "--"])
    } else {
        fail!("{TAP_DEVICE} is not open to this user, and there is no sudo: this check needs root");
    };
    command::status(again.arg(program).args(args)).map(|()| Place::Elsewhere)
}

/// Why this machine cannot have network namespaces with TAP devices even for root: a container without the permission,
/// a kernel without the device. `test` then names the checks that need them as not run; asked for by name they fail.
///
/// # Errors
/// When a thread cannot be asked.
pub fn refusal() -> Result<Option<String>> {
    if !rustix::process::geteuid().is_root() {
        let is_hopeless = !is_tap_open() && !command::exists("sudo");
        return Ok(is_hopeless.then(|| format!("{TAP_DEVICE} is not open to this user, no sudo")));
    }
    if let Err(error) = ensure_tap() {
        return Ok(Some(error.to_string()));
    }
    let attempt = thread::spawn(|| ffi::own_network().and_then(|()| ffi::tap("probe").map(drop)));
    let result = attempt.join().map_err(|_| Error::Failed("a thread died".into()))?;
    Ok(result.err().map(|error| format!("no network namespaces or TAP devices: {error}")))
}

fn is_tap_open() -> bool {
    File::options().read(true).write(true).open(TAP_DEVICE).is_ok()
}

/// Makes sure that there is the device that TAP devices are made with: a bare `/dev` may lack it.
///
/// # Errors
/// When it cannot be made, as where the kernel gives no right to.
fn ensure_tap() -> Result<()> {
    if Path::new(TAP_DEVICE).exists() {
        return Ok(());
    }
    progress::say("making /dev/net/tun, which this check needs");
    fs::create_dir_all("/dev/net").doing(|| "cannot make /dev/net")?;
    // Its number since 1999 (devices.txt of Linux).
    let args = ["-m", "0666", TAP_DEVICE, "c", "10", "200"];
    command::output(&mut command::new("mknod", &args)).map(drop)
}

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace, and the thread that lives in it.
pub struct Namespace {
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Namespace {
    /// An empty namespace with the loopback device up.
    ///
    /// # Errors
    /// When the kernel refuses, as it does to a user who is not root.
    pub fn new(name: &str) -> Result<Self> {
        let (jobs, work) = mpsc::channel::<Job>();
        let (say, entered) = mpsc::channel();
        let live = move || {
            let result = ffi::own_network();
            let is_in = result.is_ok();
            let _ = say.send(result);
            if is_in {
                work.iter().for_each(|job| job());
            }
        };
        let thread = thread::Builder::new().name(name.into()).spawn(live);
        let thread = Some(thread.doing(|| "cannot start a thread")?);
        let entered = entered.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()));
        entered.doing(|| "cannot make a network namespace (this check needs root)")?;
        let this = Self { jobs: Some(jobs), thread };
        this.sh("ip link set lo up")?;
        Ok(this)
    }

    /// Runs `work` inside.
    ///
    /// # Errors
    /// When `work` panicked.
    pub fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        self.start(work)?.recv().map_err(|_| Error::Failed("a job in a namespace died".into()))
    }

    /// Starts `work` inside; its result arrives later. The next job waits for it.
    ///
    /// # Errors
    /// When an earlier job panicked.
    pub fn start<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<mpsc::Receiver<T>> {
        let (done, result) = mpsc::channel();
        let job: Job = Box::new(move || {
            let _ = done.send(work());
        });
        let is_sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !is_sent {
            fail!("the thread of a namespace is gone");
        }
        Ok(result)
    }

    /// A thread of its own inside, for work that goes on beside other jobs.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<thread::JoinHandle<T>> {
        self.run(|| thread::Builder::new().spawn(work))?.doing(|| "cannot start a thread")
    }

    /// Runs lines of shell inside; stops at the first that fails.
    ///
    /// # Errors
    /// When one fails.
    pub fn sh(&self, lines: &str) -> Result<String> {
        let lines = lines.to_owned();
        self.run(move || command::output(&mut command::new("sh", &["-euc", &lines])))?
    }

    /// Loads an nft file in one transaction.
    ///
    /// # Errors
    /// When nft refuses it.
    pub fn nft(&self, text: String) -> Result<()> {
        self.run(move || nft(&text))?
    }

    /// Writes a kernel parameter (`net/ipv4/ip_forward`).
    ///
    /// # Errors
    /// When it does not exist.
    pub fn set(&self, parameter: &str, value: &str) -> Result<()> {
        let (path, value) = (format!("/proc/sys/{parameter}"), value.to_owned());
        self.run(move || fs::write(&path, value).doing(|| format!("cannot write {path}")))?
    }

    /// A TAP device, up, with this MAC address: the test is what lies behind its cable.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn tap(&self, name: &str, mac: &str) -> Result<File> {
        let device = name.to_owned();
        let tap = self.run(move || ffi::tap(&device))?;
        let tap = tap.doing(|| {
            format!("cannot make the TAP device {name} (it takes root, or a /dev/net/tun that anybody may open)")
        })?;
        self.sh(&format!("ip link set dev {name} address {mac} txqueuelen 10000 up"))?;
        Ok(tap)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn nft(text: &str) -> Result<()> {
    let mut nft = Command::new("nft");
    nft.args(["-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut nft = nft.spawn().doing(|| "cannot run nft (Debian package nftables)")?;
    if let Some(mut input) = nft.stdin.take() {
        input.write_all(text.as_bytes()).doing(|| "cannot write to nft")?;
    }
    let out = nft.wait_with_output().doing(|| "cannot wait for nft")?;
    if !out.status.success() {
        fail!("nft: {}\nin:\n{text}", String::from_utf8_lossy(&out.stderr));
    }
    Ok(())
}

/// The next frame from a TAP device, if there is one.
///
/// # Errors
/// When the device is gone.
pub fn read_frame<'b>(mut tap: &File, buffer: &'b mut [u8]) -> Result<Option<&'b [u8]>> {
    match tap.read(buffer) {
        Ok(length) => Ok(buffer.get(..length)),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).doing(|| "cannot read a TAP device"),
    }
}

/// Hands a frame to the stack behind a TAP device.
///
/// # Errors
/// When the device is gone.
pub fn write_frame(mut tap: &File, frame: &[u8]) -> Result<()> {
    tap.write_all(frame).doing(|| "cannot write to a TAP device")
}
