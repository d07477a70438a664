//! Shells in dom0: a few `bash` processes at the other end of one ssh connection, each fed command after
//! command. A login for each command would cost half a second of emulated time.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use crate::error::{Attempt, Error, Result};
use crate::fail;

/// What a command in dom0 or in a guest gave.
#[derive(Clone, Debug)]
pub struct Output {
    /// Standard output and error, as lines came.
    pub text: String,
    /// Exit status.
    pub status: i32,
}

impl Output {
    /// The text of a command that succeeded.
    ///
    /// # Errors
    /// When it did not; `what` and the text are in the message.
    pub fn ok(self, what: &str) -> Result<String> {
        if self.status != 0 {
            fail!("{what}: exit status {}: {}", self.status, self.text.trim());
        }
        Ok(self.text)
    }

    /// Whether the exit status is zero.
    pub fn success(&self) -> bool {
        self.status == 0
    }
}

/// The shells of one machine's dom0.
pub struct Shells {
    key: PathBuf,
    port: u16,
    /// ssh's control socket: in the temporary folder, as socket paths have at most 107 bytes.
    control: PathBuf,
    idle: Mutex<Vec<Shell>>,
}

impl Shells {
    /// Shells over the ssh port `port` of the host, with the private key `key`.
    pub fn new(key: &Path, port: u16) -> Self {
        let control = std::env::temp_dir().join(format!("qrf-lab-{}-{port}", std::process::id()));
        Self { key: key.to_path_buf(), port, control, idle: Mutex::default() }
    }

    /// Runs a shell command in dom0.
    ///
    /// # Errors
    /// When dom0 does not answer in time or the connection breaks. A failing command is no error.
    pub fn exec(&self, line: &str, timeout: Duration) -> Result<Output> {
        let idle = self.idle.lock().ok().and_then(|mut idle| idle.pop());
        let mut shell = match idle {
            Some(shell) => shell,
            None => self.open()?,
        };
        let output = shell.run(line, timeout)?;
        if let Ok(mut idle) = self.idle.lock() {
            idle.push(shell);
        }
        Ok(output)
    }

    /// ssh with the lab's options, for a person at the terminal: `args` is the remote command, none a shell.
    pub fn ssh(&self) -> Command {
        let mut ssh = Command::new("ssh");
        ssh.args([
            "-q",
            "-p",
            &self.port.to_string(),
            "-o",
            "BatchMode=yes",
            "-o",
            "StrictHostKeyChecking=no",
        ]);
        ssh.args([
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "IdentitiesOnly=yes",
            "-o",
            "ConnectTimeout=30",
        ]);
        // Nobody's configuration of other connections.
        ssh.args(["-F", "/dev/null", "-i"]).arg(&self.key);
        ssh.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=60", "-o"]);
        ssh.arg(format!("ControlPath={}", self.control.display()));
        ssh.arg("root@127.0.0.1");
        ssh
    }

    fn open(&self) -> Result<Shell> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            // A dropbear that is not up yet refuses: QEMU's forwarding then closes the connection.
            let mut shell = Shell::start(self.ssh())?;
            match shell.run(":", Duration::from_secs(30)) {
                Ok(_) => return Ok(shell),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => std::thread::sleep(Duration::from_millis(300)),
            }
        }
    }
}

impl Drop for Shells {
    fn drop(&mut self) {
        if let Ok(mut idle) = self.idle.lock() {
            idle.clear();
        }
        let mut exit = self.ssh();
        exit.args(["-O", "exit"]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let _ = exit.status();
    }
}

struct Shell {
    child: Child,
    input: ChildStdin,
    lines: Receiver<String>,
    count: u64,
}

impl Shell {
    fn start(mut ssh: Command) -> Result<Self> {
        // Debian's /usr/sbin/xl is a script that looks for the one of the running Xen each time.
        let remote = ". /root/.profile; PATH=$(echo /usr/lib/xen-*/bin):$PATH; exec bash";
        let mut child = ssh
            .arg(remote)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .doing(|| "cannot run ssh")?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            fail!("no pipes to ssh");
        };
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(output);
            let mut line = Vec::new();
            while reader.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                if sender.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                    break;
                }
                line.clear();
            }
        });
        Ok(Self { child, input, lines, count: 0 })
    }

    fn run(&mut self, line: &str, timeout: Duration) -> Result<Output> {
        self.count += 1;
        let mark = format!("@@end{}@@", self.count);
        // In a subshell and fed from nothing: the command can neither end the shell nor eat its input.
        let script = format!("( {line}\n) </dev/null 2>&1; printf '\\n{mark} %s\\n' $?\n");
        let sent = self.input.write_all(script.as_bytes()).and_then(|()| self.input.flush());
        sent.doing(|| "cannot write to the shell in dom0")?;
        let deadline = Instant::now() + timeout;
        let mut text = String::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let received = self.lines.recv_timeout(left).map_err(|error| {
                let why = if error == mpsc::RecvTimeoutError::Timeout {
                    "no answer in time"
                } else {
                    "lost"
                };
                Error::Failed(format!(
                    "dom0's shell: {why} ({} s): {line}\n{text}",
                    timeout.as_secs()
                ))
            })?;
            if let Some(status) = received.strip_prefix(&mark) {
                // The mark brings a line break of its own.
                text.pop();
                return Ok(Output { text, status: status.trim().parse().unwrap_or(-1) });
            }
            text.push_str(&received);
        }
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
