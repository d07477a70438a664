//! There is no shell here, but what dom0 mostly asks one for in a VM like this: to power off, or to reboot. As a command of its
//! own (`qrexec-client -d VM root:poweroff`) and by the services with which `qvm-run` runs one: `qubes.VMExec+poweroff`, and
//! `qubes.VMShell` with the line `poweroff; exit` as its input. Of dom0 alone; everything else is no such service.

use super::command::Command;

/// Longest line that is looked at, bytes.
const MAX_LINE: usize = 64;

/// How the VM is to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// For good.
    Poweroff,
    /// To be started anew, where the toolstack does that.
    Reboot,
}

impl Ending {
    fn of_command(command: &str) -> Option<Self> {
        let command = command.trim();
        match command.strip_prefix("sudo ").unwrap_or(command).trim() {
            "poweroff" | "halt" | "shutdown now" | "shutdown -h now" | "systemctl poweroff" => {
                Some(Self::Poweroff)
            }
            "reboot" | "shutdown -r now" | "systemctl reboot" => Some(Self::Reboot),
            _ => None,
        }
    }

    /// Of a line for a shell, which `qvm-run` ends with `exit`.
    fn of_line(line: &[u8]) -> Option<Self> {
        let line = core::str::from_utf8(line).ok()?.trim();
        match line.split_once(';') {
            Some((command, rest)) if rest.trim() == "exit" => Self::of_command(command),
            Some(_) => None,
            None => Self::of_command(line),
        }
    }
}

/// What a shell was asked for.
#[derive(Debug)]
pub(super) enum Shell {
    /// The line of its input so far. `None` once it is too long to be one of ours.
    Reading(Option<(usize, [u8; MAX_LINE])>),
    /// The whole command was read.
    Asked(Option<Ending>),
}

impl Shell {
    /// The shell of a call that asks for one.
    pub(super) fn of(command: &Command<'_>) -> Option<Self> {
        match command {
            Command::Shell(line) => Some(Self::Asked(Ending::of_line(line.as_bytes()))),
            Command::Service(call) => match (call.service, call.argument) {
                ("qubes.VMShell", None | Some("")) => Some(Self::Reading(Some((0, [0; MAX_LINE])))),
                ("qubes.VMExec", Some(argument)) => Some(Self::Asked(Ending::of_command(argument))),
                _ => None,
            },
        }
    }

    /// A piece of the input.
    pub(super) fn stdin(&mut self, bytes: &[u8]) {
        let Self::Reading(line) = self else { return };
        for byte in bytes {
            if *byte == b'\n' {
                return self.stdin_end();
            }
            *line = line.take().and_then(|(len, mut text)| {
                *text.get_mut(len)? = *byte;
                Some((len.saturating_add(1), text))
            });
        }
    }

    /// Its end.
    pub(super) fn stdin_end(&mut self) {
        if let Self::Reading(line) = self {
            let ending = line.and_then(|(len, text)| Ending::of_line(text.get(..len)?));
            *self = Self::Asked(ending);
        }
    }
}
