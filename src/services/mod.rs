//! What can be asked about the firewall over qrexec, beside the calls that every Qubes VM answers. All read-only; dom0's
//! policy says who may call. `packaging/book/services.md` has every service, argument and key.
//!
//! Answers are JSON (RFC 8259), one object per line, save that `firewall.Stats+openmetrics` is OpenMetrics text. The first
//! line has `schema`, which goes up when a key changes its meaning or goes. A line is made when there is room for it, so
//! that a slow caller costs its channel's buffer and no memory beside; what two lines tell may be moments apart.
//!
//! `lines` has the reports of a fixed number of lines, `health` (with `notes`) and `metrics` as well; `flows`, `drops` and `ruleset` go
//! through tables that may change under way; `explain` answers a question; `json` is what all of them share.

mod drops;
mod explain;
mod flows;
mod health;
mod json;
mod lines;
mod metrics;
mod notes;
mod ruleset;
#[cfg(test)]
mod tests;

#[cfg(test)]
use health::IDS as PROBLEMS;
#[cfg(test)]
use notes::IDS as NOTES;

use alloc::boxed::Box;
use core::net::IpAddr;

use crate::control::Control;
use crate::event_loop::machine::{Effort, MemoryUse};
use crate::firewall::Firewall;
use crate::qrexec::{
    ExitCode, NoSuchService, Progress, ServiceCall, Services, StandardServices, StandardSession,
};
use crate::time::Instant;

/// Version of the answers' keys.
pub const SCHEMA: u32 = 1;
/// Reasons of a machine for not sending a frame that are told.
const MAX_UNSENT: usize = 16;
/// Exit status of an answer that cannot be given: what was asked is not understood, or a fault of ours.
const FAULT: ExitCode = ExitCode(1);

/// What the machine below knows, as of the latest turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The time of the turn.
    pub now: Instant,
    /// Time since the first instruction, in milliseconds.
    pub uptime_ms: u64,
    /// Memory in use.
    pub memory: MemoryUse,
    /// What the hypervisor was asked for.
    pub effort: Effort,
    /// QubesDB is connected.
    pub has_database: bool,
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

    /// The same in a turn at `now`, with QubesDB connected or not.
    #[must_use]
    pub fn at(self, now: Instant, has_database: bool) -> Self {
        Self { now, has_database, ..self }
    }

    fn unsent(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        self.unsent.iter().copied().filter(|(name, _)| !name.is_empty())
    }
}

/// The services, with what they tell of.
#[derive(Debug)]
pub struct FirewallServices<'a> {
    firewall: &'a Firewall,
    control: &'a Control,
    facts: &'a Facts,
    standard: StandardServices,
}

/// A running call.
#[derive(Debug, PartialEq, Eq)]
pub enum Session {
    /// One that every Qubes VM answers.
    Standard(StandardSession),
    /// One of ours.
    Report(Report),
}

/// An answer on its way.
#[derive(Debug, PartialEq, Eq)]
pub struct Report(Answer);

#[derive(Debug, PartialEq, Eq)]
enum Answer {
    /// A report, and the number of its next line, of those that it has at most.
    Lines {
        kind: Kind,
        next: usize,
    },
    Flows(flows::Cursor),
    Drops(drops::Cursor),
    Rules(ruleset::Cursor),
    Explain(Box<explain::Input>),
    /// What was asked is not understood; this was expected.
    Misunderstood(&'static str),
    /// The last line was told.
    Over(ExitCode),
}

/// A report of so many lines at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Version,
    Stats,
    Memory,
    Health,
    Metrics,
}

impl Answer {
    fn to(service: &str, argument: Option<&str>) -> Result<Self, NoSuchService> {
        // dom0 writes an empty argument where there is none.
        let argument = argument.filter(|argument| !argument.is_empty());
        let report = |kind| match argument {
            None => Self::Lines { kind, next: 0 },
            Some(_) => Self::Misunderstood("expected no argument"),
        };
        Ok(match service {
            "firewall.Version" => report(Kind::Version),
            "firewall.Stats" if argument == Some("openmetrics") => {
                Self::Lines { kind: Kind::Metrics, next: 0 }
            }
            "firewall.Stats" if argument.is_some() => {
                Self::Misunderstood("expected no argument, or openmetrics")
            }
            "firewall.Stats" => report(Kind::Stats),
            "firewall.Memory" => report(Kind::Memory),
            "firewall.Health" => report(Kind::Health),
            "firewall.Flows" => of_client(argument, |of| Self::Flows(flows::Cursor::new(of))),
            "firewall.Drops" => of_client(argument, |of| Self::Drops(drops::Cursor::new(of))),
            "firewall.Rules" => of_client(argument, |of| Self::Rules(ruleset::Cursor::new(of))),
            "firewall.Explain" => Self::Explain(Box::new(explain::Input::new(argument))),
            _ => return Err(NoSuchService),
        })
    }
}

/// An answer about all clients, or about the one that the argument names.
fn of_client(argument: Option<&str>, answer: impl FnOnce(Option<IpAddr>) -> Answer) -> Answer {
    match argument.map(str::parse) {
        None => answer(None),
        Some(Ok(client)) => answer(Some(client)),
        Some(Err(_)) => Answer::Misunderstood("expected no argument, or the address of a client"),
    }
}

impl<'a> FirewallServices<'a> {
    /// Services that tell of `firewall`, of what dom0 wrote as `control` has it, and of `facts`.
    #[must_use]
    pub fn new(firewall: &'a Firewall, control: &'a Control, facts: &'a Facts) -> Self {
        Self { firewall, control, facts, standard: StandardServices }
    }

    /// The next piece of an answer.
    fn next(&self, answer: &mut Answer, buffer: &mut [u8]) -> Progress {
        match answer {
            Answer::Lines { kind, next } => self.next_line(*kind, next, buffer),
            Answer::Flows(cursor) => self.next_flow(cursor, buffer),
            Answer::Drops(cursor) => self.next_drop(cursor, buffer),
            Answer::Rules(cursor) => self.next_rule(cursor, buffer),
            Answer::Explain(input) => match self.explanation(input, buffer) {
                Some((progress, code)) => {
                    *answer = Answer::Over(code);
                    progress
                }
                None => Progress::Waiting,
            },
            Answer::Misunderstood(wanted) => {
                let progress = json::misunderstood(wanted, buffer);
                *answer = Answer::Over(FAULT);
                progress
            }
            Answer::Over(code) => Progress::Exit(*code),
        }
    }

    /// The next line of a report, if there is one.
    fn next_line(&self, kind: Kind, next: &mut usize, buffer: &mut [u8]) -> Progress {
        while *next < self.most_lines(kind) {
            let line = self.line(kind, *next, buffer);
            *next = next.saturating_add(1);
            if let Some(written) = line {
                return json::progress(written);
            }
        }
        Progress::Exit(ExitCode::SUCCESS)
    }
}

impl Services for FirewallServices<'_> {
    type Session = Session;

    fn start(&mut self, call: &ServiceCall<'_>) -> Result<Session, NoSuchService> {
        match Answer::to(call.service, call.argument) {
            Ok(answer) => Ok(Session::Report(Report(answer))),
            Err(NoSuchService) => self.standard.start(call).map(Session::Standard),
        }
    }

    fn stdin(&mut self, session: &mut Session, bytes: &[u8]) {
        match session {
            Session::Standard(session) => self.standard.stdin(session, bytes),
            Session::Report(Report(Answer::Explain(input))) => input.take(bytes),
            Session::Report(_) => {}
        }
    }

    fn stdin_end(&mut self, session: &mut Session) {
        match session {
            Session::Standard(session) => self.standard.stdin_end(session),
            Session::Report(Report(Answer::Explain(input))) => input.end(),
            Session::Report(_) => {}
        }
    }

    fn poll(&mut self, session: &mut Session, buffer: &mut [u8]) -> Progress {
        match session {
            Session::Standard(session) => self.standard.poll(session, buffer),
            Session::Report(Report(answer)) => self.next(answer, buffer),
        }
    }
}
