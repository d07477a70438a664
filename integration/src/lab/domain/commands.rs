//! Commands in a Linux guest of the lab: they go to its console, where its agent answers.

use std::time::{Duration, Instant};

use super::{Domain, complete_lines};
use crate::error::{Error, Result};
use crate::fail;
use crate::lab::Lab;
use crate::lab::shell::Output;

/// For what a guest does in a moment; an emulated machine on a busy host has slow moments.
const SHORT: Duration = Duration::from_secs(120);

/// What is known of a guest's agent.
#[derive(Debug, Default)]
pub(super) struct Agent {
    tty: Option<String>,
    count: u32,
}

impl Domain {
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
}
