//! The rules of one source: the keys below `/qubes-firewall/<ip>/` to one [`RuleSet`], and what it
//! says about a packet.

use alloc::vec::Vec;
use core::fmt;

use crate::error::{Excerpt, Reason, RuleError, RuleSetError};
use crate::rule::{Action, HostName, Rule, RuleMatch};
use crate::subject::{Family, Names, Subject};

/// Number of a rule: the four digits of its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleKey(u16);

impl RuleKey {
    /// Parses a key: exactly four digits (dom0 numbers rules from `0000`; beyond 10000 rules it
    /// writes five digits, which the reference refuses as well).
    #[must_use]
    pub fn parse(key: &[u8]) -> Option<Self> {
        if key.len() != 4 || !key.iter().all(u8::is_ascii_digit) {
            return None;
        }
        core::str::from_utf8(key).ok()?.parse().ok().map(Self)
    }

    /// The number, 0 to 9999.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for RuleKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}", self.0)
    }
}

/// Bounds on one rule set. Beyond them the set is refused, so that its source is denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Rules in one set.
    pub rules: usize,
    /// Bytes of keys and values in one set.
    pub text_bytes: usize,
}

impl Limits {
    /// All that four digits can number, at about 100 bytes of text each. Such a set takes less than
    /// a MiB; who keeps many sets bounds their sum ([`RuleSet::heap_bytes`]).
    pub const DEFAULT: Self = Self { rules: 10_000, text_bytes: 1024 * 1024 };
}

/// The complete rules of one source, of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    family: Family,
    policy: Action,
    /// Ascending by key, no key twice, at most 10000.
    rules: Vec<(RuleKey, Rule)>,
    /// The distinct names, ascending, each by the place of a rule that has it.
    names: Vec<u16>,
}

/// What happens to a packet. Never silence: a source that has a set learns that it was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Forward.
    Accept,
    /// Refuse, with an ICMP error to the source.
    Reject,
}

impl From<Action> for Verdict {
    fn from(action: Action) -> Self {
        match action {
            Action::Accept => Self::Accept,
            Action::Drop => Self::Reject,
        }
    }
}

/// A verdict and its reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Decision {
    /// What happens to the packet.
    pub verdict: Verdict,
    /// What decided.
    pub by: DecidedBy,
}

/// What decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DecidedBy {
    /// The first rule that matched.
    Rule {
        /// Its place in the set, counted from 0 without gaps ([`RuleSet::get`]).
        index: usize,
        /// Its key.
        key: RuleKey,
    },
    /// No rule matched.
    Policy,
    /// A drop rule was reached whose name is not known: it might match, so the packet is refused.
    UnresolvedName {
        /// Its place in the set, counted from 0 without gaps ([`RuleSet::get`]).
        index: usize,
        /// Its key.
        key: RuleKey,
    },
    /// The packet is not of the family of the set.
    OtherFamily,
}

impl RuleSet {
    /// Parses the tree of one source: pairs of a key (the last component of the path) and its
    /// value, in any order. Gaps in the numbers are normal.
    ///
    /// # Errors
    /// The first key that makes the set unusable. Then everything of the source is to be denied.
    pub fn parse<'a>(
        family: Family,
        entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, RuleSetError> {
        Self::parse_within(Limits::DEFAULT, family, entries)
    }

    /// [`RuleSet::parse`] with limits of the caller.
    ///
    /// # Errors
    /// As [`RuleSet::parse`].
    pub fn parse_within<'a>(
        limits: Limits,
        family: Family,
        entries: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
    ) -> Result<Self, RuleSetError> {
        let mut policy = None;
        let mut rules = Vec::new();
        let mut text_bytes = 0_usize;
        for (key, value) in entries {
            text_bytes = text_bytes.saturating_add(key.len()).saturating_add(value.len());
            if text_bytes > limits.text_bytes {
                return Err(RuleSetError::TooMuchText(limits.text_bytes));
            }
            if key == b"policy" {
                if policy.replace(parse_policy(value)?).is_some() {
                    return Err(RuleSetError::DuplicatePolicy);
                }
                continue;
            }
            let key = RuleKey::parse(key).ok_or_else(|| RuleSetError::BadKey(Excerpt::new(key)))?;
            if rules.len() >= limits.rules {
                return Err(RuleSetError::TooManyRules(limits.rules));
            }
            let rule = Rule::parse(family, value).map_err(|error| rule_error(key, error))?;
            rules.try_reserve(1).map_err(|_| RuleSetError::OutOfMemory)?;
            rules.push((key, rule));
        }
        let policy = policy.ok_or(RuleSetError::PolicyMissing)?;
        let rules = sorted(rules)?;
        let names = distinct_names(&rules)?;
        Ok(Self { family, policy, rules, names })
    }

    /// Judges the first packet of a flow: the first rule that matches, else the policy.
    ///
    /// Goes through the rules one by one, so that it can be read beside the grammar. Packets are judged by
    /// [`crate::CompiledSet`], which is tested to say the same.
    #[must_use]
    pub fn evaluate(&self, subject: &Subject, names: &(impl Names + ?Sized)) -> Decision {
        if Family::of(subject.destination) != self.family {
            return Decision { verdict: Verdict::Reject, by: DecidedBy::OtherFamily };
        }
        for (index, (key, rule)) in self.rules.iter().enumerate() {
            match rule.matches(subject, names) {
                RuleMatch::No => {}
                RuleMatch::Yes => {
                    let by = DecidedBy::Rule { index, key: *key };
                    return Decision { verdict: rule.action.into(), by };
                }
                RuleMatch::Unknown => {
                    let by = DecidedBy::UnresolvedName { index, key: *key };
                    return Decision { verdict: Verdict::Reject, by };
                }
            }
        }
        Decision { verdict: self.policy.into(), by: DecidedBy::Policy }
    }

    /// The family of the tree.
    #[must_use]
    pub const fn family(&self) -> Family {
        self.family
    }

    /// What happens to packets that no rule matches.
    #[must_use]
    pub const fn policy(&self) -> Action {
        self.policy
    }

    /// The rules in the order of their evaluation.
    pub fn rules(&self) -> impl ExactSizeIterator<Item = (RuleKey, &Rule)> {
        self.rules.iter().map(|(key, rule)| (*key, rule))
    }

    /// The rule at a place in the order of evaluation.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(RuleKey, &Rule)> {
        self.rules.get(index).map(|(key, rule)| (*key, rule))
    }

    /// The names that the set depends on: each once, ascending as text.
    pub fn names(&self) -> impl Iterator<Item = &HostName> {
        self.names.iter().filter_map(|&place| self.get(place.into())?.1.host_name())
    }

    /// Heap bytes that the set holds, for budgets.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let names = self.rules.iter().filter_map(|(_, rule)| rule.host_name());
        let text = names.map(|name| name.as_str().len()).fold(0, usize::saturating_add);
        let rules = self.rules.capacity().saturating_mul(size_of::<(RuleKey, Rule)>());
        let index = self.names.capacity().saturating_mul(size_of::<u16>());
        rules.saturating_add(index).saturating_add(text)
    }
}

fn parse_policy(value: &[u8]) -> Result<Action, RuleSetError> {
    let action = core::str::from_utf8(value).ok().and_then(Action::from_word);
    action.ok_or_else(|| RuleSetError::PolicyValue(Excerpt::new(value)))
}

fn rule_error(key: RuleKey, error: RuleError) -> RuleSetError {
    match error.reason {
        Reason::OutOfMemory => RuleSetError::OutOfMemory,
        _ => RuleSetError::Rule { key, error },
    }
}

fn sorted(mut rules: Vec<(RuleKey, Rule)>) -> Result<Vec<(RuleKey, Rule)>, RuleSetError> {
    rules.sort_unstable_by_key(|(key, _)| *key);
    let twins = rules.array_windows().find(|[(one, _), (next, _)]| one == next);
    match twins {
        Some([(key, _), _]) => Err(RuleSetError::DuplicateRule(*key)),
        None => Ok(rules),
    }
}

fn distinct_names(rules: &[(RuleKey, Rule)]) -> Result<Vec<u16>, RuleSetError> {
    let name = |place: u16| rules.get(usize::from(place)).and_then(|(_, rule)| rule.host_name());
    let mut names = Vec::new();
    for (place, (_, rule)) in (0_u16..).zip(rules) {
        if rule.host_name().is_some() {
            names.try_reserve(1).map_err(|_| RuleSetError::OutOfMemory)?;
            names.push(place);
        }
    }
    names.sort_unstable_by(|&one, &other| name(one).cmp(&name(other)));
    names.dedup_by(|one, other| name(*one) == name(*other));
    Ok(names)
}
