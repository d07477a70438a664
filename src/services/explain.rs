//! `firewall.Explain`: what would become of the first packet of a flow, and why.

use core::fmt;
use core::net::IpAddr;

use rules::{DecidedBy, RuleSet};
use serde::Serialize;

use super::json::{self, Decider, Error, Protocol, Text};
use super::{FAULT, FirewallServices, SCHEMA};
use crate::clients::RulesState;
use crate::explain::{Explanation, Outcome, Question};
use crate::qrexec::{ExitCode, Progress};
use crate::wire::{ip, protocol};

/// Bytes of the question at most.
const MAX_BYTES: usize = 512;
const WANTED: &str = "expected CLIENT PROTO DST [PORT] in one line of at most 512 bytes: two addresses of one family; tcp, \
                      udp, icmp or a protocol number; a port for tcp and udp, for icmp a type; as an argument +CLIENT+PROTO+DST+PORT";

/// The question, as far as it has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Input {
    bytes: [u8; MAX_BYTES],
    len: usize,
    /// It is complete.
    is_complete: bool,
    /// It is longer than there is room for.
    is_cut: bool,
    separator: char,
}

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

impl Input {
    pub(super) fn new(argument: Option<&str>) -> Self {
        let mut input = Self {
            bytes: [0; MAX_BYTES],
            len: 0,
            is_complete: false,
            is_cut: false,
            separator: ' ',
        };
        if let Some(argument) = argument {
            input.separator = '+';
            input.keep(argument.as_bytes());
            input.is_complete = true;
        }
        input
    }

    /// Takes standard input up to the end of the first line.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        if self.is_complete {
            return;
        }
        let line = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
        self.keep(line);
        // One that is too long gets no better.
        self.is_complete = self.is_cut || line.len() < bytes.len();
    }

    /// There is no more of it.
    pub(super) fn end(&mut self) {
        self.is_complete = true;
    }

    fn keep(&mut self, bytes: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        self.is_cut |= bytes.len() > room.len();
        let count = bytes.len().min(room.len());
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.len = self.len.saturating_add(count);
    }

    fn question(&self) -> Option<Question> {
        let bytes = self.bytes.get(..self.len).filter(|_| !self.is_cut)?;
        let mut words = core::str::from_utf8(bytes).ok()?.trim().split(self.separator);
        let (client, name) = (words.next()?.parse::<IpAddr>().ok()?, words.next()?);
        let (destination, port) = (words.next()?.parse::<IpAddr>().ok()?, words.next());
        if words.next().is_some() || client.is_ipv4() != destination.is_ipv4() {
            return None;
        }
        let protocol = match name {
            "tcp" => protocol::TCP,
            "udp" => protocol::UDP,
            "icmp" | "icmpv6" => ip::icmp(destination),
            number => number.parse().ok()?,
        };
        let echo = if destination.is_ipv4() { 8 } else { 128 };
        let is_icmp = protocol == ip::icmp(destination);
        let port = match (protocol, port) {
            (protocol::TCP | protocol::UDP, port) => port?.parse().ok()?,
            (_, None) if is_icmp => echo,
            (_, Some(kind)) if is_icmp => kind.parse::<u8>().ok()?.into(),
            (_, None) => 0,
            (_, Some(_)) => return None,
        };
        Some(Question { client, protocol, destination, port })
    }
}

#[derive(serde::Serialize)]
struct Line<'a, T: Serialize> {
    schema: u32,
    kind: &'static str,
    client: IpAddr,
    proto: Text<Protocol>,
    dst: IpAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    icmp_type: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirected_to: Option<IpAddr>,
    verdict: &'static str,
    rule: Decider,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    drop_reason: Option<&'static str>,
    reason: Text<Sentence<'a>>,
}

impl FirewallServices<'_> {
    /// The answer and the exit status, once the question is complete.
    pub(super) fn explanation(
        &self,
        input: &Input,
        buffer: &mut [u8],
    ) -> Option<(Progress, ExitCode)> {
        if !input.is_complete {
            return None;
        }
        let Some(question) = input.question() else {
            return Some((json::progress(json::write(&Error::wanted(WANTED), buffer)), FAULT));
        };
        let answer = self.firewall.explain(self.facts.now, &question);
        let rules = self.rules_in_force(question.client);
        let rule = Decider(answer.by);
        let has_port = matches!(question.protocol, protocol::TCP | protocol::UDP);
        let is_icmp = question.protocol == ip::icmp(question.destination);
        let (verdict, drop_reason) = match answer.outcome {
            Outcome::Accepted | Outcome::Answered => ("accept", None),
            Outcome::Rejected(reason) => ("reject", Some(reason.name())),
            Outcome::Dropped(reason) => ("drop", Some(reason.name())),
            Outcome::NoSuchClient => ("drop", None),
        };
        let line = Line {
            schema: SCHEMA,
            kind: "explain",
            client: question.client,
            proto: Text(Protocol(question.protocol)),
            dst: question.destination,
            dport: has_port.then_some(question.port),
            icmp_type: is_icmp.then_some(question.port),
            redirected_to: answer.redirected_to,
            verdict,
            rule,
            text: rule.text(rules),
            drop_reason,
            reason: Text(Sentence { answer: &answer, rules }),
        };
        Some((json::progress(json::write(&line, buffer)), ExitCode::SUCCESS))
    }

    fn rules_in_force(&self, client: IpAddr) -> Option<&RuleSet> {
        let clients = &self.firewall.clients;
        match &clients.host(clients.find(client)?)?.rules {
            RulesState::Active(rules) => Some(rules.rules()),
            RulesState::None | RulesState::Refused => None,
        }
    }
}

/// Why, for people.
struct Sentence<'a> {
    answer: &'a Explanation,
    rules: Option<&'a RuleSet>,
}

impl fmt::Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { answer, rules } = *self;
        let policy = rules.map_or("drop", |rules| rules.policy().word());
        match (answer.outcome, answer.by) {
            (Outcome::NoSuchClient, _) => {
                return f.write_str("No client with this address is known.");
            }
            (Outcome::Answered, _) => {
                f.write_str("It is for the firewall itself, which answers.")?
            }
            (_, Some(DecidedBy::Rule { index, key })) => {
                write!(f, "Rule {index} (key {key}) is the first that matches.")?;
            }
            (_, Some(DecidedBy::Policy)) => write!(f, "No rule matches, the policy is {policy}.")?,
            (_, Some(DecidedBy::UnresolvedName { index, key })) => {
                write!(f, "The name of rule {index} (key {key}) is not resolved: it might match.")?;
            }
            (Outcome::Accepted, None | Some(DecidedBy::OtherFamily)) => {
                f.write_str("dom0 opened it, whatever the rules.")?;
            }
            (_, None | Some(DecidedBy::OtherFamily)) => {}
        }
        if let Outcome::Rejected(reason) | Outcome::Dropped(reason) = answer.outcome {
            let separator = if answer.by.is_some() { " " } else { "" };
            write!(f, "{separator}{}", reason.explanation())?;
        }
        if !answer.is_attached {
            f.write_str(" The client is not connected now.")?;
        }
        Ok(())
    }
}
