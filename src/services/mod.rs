//! What can be asked about the firewall over qrexec: `firewall.Version`, `firewall.Stats` and `firewall.Memory`, beside
//! the calls that every Qubes VM answers. All read-only; dom0's policy says who may call.
//!
//! Answers are JSON (RFC 8259), one object per line. The first has `schema`, which goes up when a key changes its meaning
//! or goes. A line is made when there is room for it, so that a slow caller costs its channel's buffer and no memory
//! beside; the counts of two lines may be moments apart.

mod lines;
#[cfg(test)]
mod tests;

use crate::event_loop::machine::{Effort, MemoryUse};
use crate::firewall::Firewall;
use crate::qrexec::{
    ExitCode, NoSuchService, Progress, ServiceCall, Services, StandardServices, StandardSession,
};

/// Version of the answers' keys.
pub const SCHEMA: u32 = 1;
/// Reasons of a machine for not sending a frame that are told.
const MAX_UNSENT: usize = 16;
/// Exit status of an answer that cannot be written: a fault of ours.
const FAULT: ExitCode = ExitCode(1);

/// What the machine below knows, as of the latest turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Time since the first instruction, in milliseconds.
    pub uptime_ms: u64,
    /// Memory in use.
    pub memory: MemoryUse,
    /// What the hypervisor was asked for.
    pub effort: Effort,
    /// Frames that were not sent although the packet path wanted it, by reason.
    unsent: [(&'static str, u64); MAX_UNSENT],
}

impl Facts {
    /// `unsent` by reason; what there is no room for is left out.
    #[must_use]
    pub fn new(
        uptime_ms: u64,
        memory: MemoryUse,
        effort: Effort,
        unsent: &[(&'static str, u64)],
    ) -> Self {
        let mut facts = Self { uptime_ms, memory, effort, ..Self::default() };
        for (place, reason) in facts.unsent.iter_mut().zip(unsent) {
            *place = *reason;
        }
        facts
    }

    fn unsent(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.unsent.iter().copied().filter(|(name, _)| !name.is_empty())
    }
}

/// The services, with what they tell of.
#[derive(Debug)]
pub struct FirewallServices<'a> {
    firewall: &'a Firewall,
    facts: &'a Facts,
    standard: StandardServices,
}

/// A running call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Session {
    /// One that every Qubes VM answers.
    Standard(StandardSession),
    /// One of ours.
    Report(Report),
}

/// An answer on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    kind: Kind,
    /// Number of the next line, of those that the answer has at most.
    next: usize,
}

/// Which answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Version,
    Stats,
    Memory,
}

impl Kind {
    fn of(service: &str) -> Option<Self> {
        match service {
            "firewall.Version" => Some(Self::Version),
            "firewall.Stats" => Some(Self::Stats),
            "firewall.Memory" => Some(Self::Memory),
            _ => None,
        }
    }
}

impl<'a> FirewallServices<'a> {
    /// Services that tell of `firewall`, and of `facts`.
    #[must_use]
    pub fn new(firewall: &'a Firewall, facts: &'a Facts) -> Self {
        Self { firewall, facts, standard: StandardServices }
    }

    /// The next line of an answer, if there is one.
    fn next_line(&self, report: &mut Report, buffer: &mut [u8]) -> Progress {
        while let Some(number) = self.number(report) {
            match self.line(report.kind, number, buffer) {
                Some(Ok(bytes)) => return Progress::Stdout(bytes),
                Some(Err(lines::TooLong)) => return Progress::Exit(FAULT),
                None => {}
            }
        }
        Progress::Exit(ExitCode::SUCCESS)
    }

    /// Takes the next number.
    fn number(&self, report: &mut Report) -> Option<usize> {
        let number = report.next;
        report.next = number.saturating_add(1);
        (number < self.most_lines(report.kind)).then_some(number)
    }
}

impl Services for FirewallServices<'_> {
    type Session = Session;

    fn start(&mut self, call: &ServiceCall<'_>) -> Result<Session, NoSuchService> {
        let Some(kind) = Kind::of(call.service) else {
            return self.standard.start(call).map(Session::Standard);
        };
        // None of them takes an argument; a caller that gives one means something else.
        match call.argument {
            None | Some("") => Ok(Session::Report(Report { kind, next: 0 })),
            Some(_) => Err(NoSuchService),
        }
    }

    fn stdin(&mut self, session: &mut Session, bytes: &[u8]) {
        if let Session::Standard(session) = session {
            self.standard.stdin(session, bytes);
        }
    }

    fn stdin_end(&mut self, session: &mut Session) {
        if let Session::Standard(session) = session {
            self.standard.stdin_end(session);
        }
    }

    fn poll(&mut self, session: &mut Session, buffer: &mut [u8]) -> Progress {
        match session {
            Session::Standard(session) => self.standard.poll(session, buffer),
            Session::Report(report) => self.next_line(report, buffer),
        }
    }
}
