//! Rule text, as QubesDB carries it: no text panics, printing and parsing are inverse, the parts agree.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rules::{
    Action, CompiledSet, DecidedBy, Destination, Family, HostName, NameMatch, Names, Rule, RuleSet,
    Subject, Upper, UpperMatch, Verdict,
};

use crate::source::Source;

/// One byte for family and subject, then lines `KEY VALUE`.
pub fn run(data: &[u8]) {
    let mut source = Source::new(data);
    let family = if source.flag() { Family::V6 } else { Family::V4 };
    let subject = subject(family, &mut source);
    let mut known = Known { key: source.byte(), names: Vec::new() };
    let text = source.rest();
    for value in text.split(|byte| *byte == b'\n') {
        one_line(family, value);
    }
    let entries: Vec<(&[u8], &[u8])> =
        text.split(|byte| *byte == b'\n').filter_map(entry).collect();
    match RuleSet::parse(family, entries.iter().copied()) {
        Ok(set) => {
            known.names = set.names().map(|name| name.as_str().to_owned()).collect();
            whole_set(&set, &entries, &subject, &known);
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.len() < 600, "a message for people: {message}");
            assert!(!message.chars().any(char::is_control), "{message:?}");
        }
    }
}

fn entry(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let space = line.iter().position(|byte| *byte == b' ')?;
    Some((&line[..space], &line[space + 1..]))
}

fn one_line(family: Family, value: &[u8]) {
    match Rule::parse(family, value) {
        Ok(rule) => {
            let printed = rule.to_string();
            assert_eq!(Rule::parse(family, printed.as_bytes()), Ok(rule), "{printed}");
        }
        Err(error) => assert!(error.to_string().len() < 500),
    }
}

fn whole_set(set: &RuleSet, entries: &[(&[u8], &[u8])], subject: &Subject, names: &Known) {
    assert_eq!(set.rules().len() + 1, entries.len());
    let keys: Vec<_> = set.rules().map(|(key, _)| key).collect();
    assert!(keys.is_sorted_by(|a, b| a < b), "in order, without duplicates");
    // Printed and read again it is the same set.
    let policy = set.policy().word();
    let printed: Vec<(String, String)> =
        set.rules().map(|(key, rule)| (key.to_string(), rule.to_string())).collect();
    let lines = printed.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    let again = lines.chain([(&b"policy"[..], policy.as_bytes())]);
    let again = RuleSet::parse(set.family(), again).expect("what was printed is a set");
    let decision = set.evaluate(subject, names);
    assert_eq!(decision, again.evaluate(subject, names));
    assert_eq!((decision.verdict, place(decision.by)), slowly(set, subject, names));
    let compiled = CompiledSet::new(set.clone()).expect("memory for one set");
    let bytes = compiled.heap_bytes() - compiled.rules().heap_bytes();
    let most = CompiledSet::BYTES + set.rules().len() * CompiledSet::MAX_RULE_BYTES;
    assert!(bytes <= most, "{bytes} bytes of tables");
    assert_eq!(compiled.evaluate(subject, names), decision);
    // Not only this packet: at the edges of some rules as well.
    for (_, rule) in set.rules().take(16) {
        near(rule, subject).for_each(|subject| {
            assert_eq!(
                compiled.evaluate(&subject, names),
                set.evaluate(&subject, names),
                "{subject:?}"
            );
        });
    }
}

/// Packets that a rule matches just so, or just not.
fn near(rule: &Rule, subject: &Subject) -> impl Iterator<Item = Subject> {
    let destinations = match rule.destination() {
        Destination::Net(net) => [net.network(), net.broadcast()],
        Destination::Any | Destination::Host(_) => [subject.destination; 2],
    };
    let ports = match rule.upper() {
        UpperMatch::Tcp(Some(range))
        | UpperMatch::Udp(Some(range))
        | UpperMatch::TcpOrUdp(range) => {
            let (first, last) = (range.first(), range.last());
            [first.wrapping_sub(1), first, last, last.wrapping_add(1)]
        }
        UpperMatch::Icmp(icmp_type) => [icmp_type.map_or(8, u16::from); 4],
        UpperMatch::Any | UpperMatch::Tcp(None) | UpperMatch::Udp(None) => [52, 53, 54, u16::MAX],
    };
    let is_dns_server = subject.is_dns_server;
    let uppers = ports.into_iter().flat_map(|port| {
        [Upper::Tcp { port }, Upper::Udp { port }, Upper::Icmp { icmp_type: port as u8 }]
    });
    uppers.chain([subject.upper]).flat_map(move |upper| {
        destinations.map(|destination| Subject { destination, upper, is_dns_server })
    })
}

fn place(by: DecidedBy) -> Option<usize> {
    match by {
        DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => Some(index),
        DecidedBy::Policy | DecidedBy::OtherFamily => None,
    }
}

/// The decision once more, from the typed rules, without any code of the crate but their fields.
fn slowly(set: &RuleSet, subject: &Subject, names: &Known) -> (Verdict, Option<usize>) {
    let verdict = |action| match action {
        Action::Accept => Verdict::Accept,
        Action::Drop => Verdict::Reject,
    };
    if Family::of(subject.destination) != set.family() {
        return (Verdict::Reject, None);
    }
    for (index, (_, rule)) in set.rules().enumerate() {
        let is_there = match rule.destination() {
            Destination::Any => true,
            Destination::Net(net) => net.contains(&subject.destination),
            Destination::Host(name) => match names.lookup(name, subject.destination) {
                NameMatch::Has => true,
                NameMatch::HasNot => false,
                // Whatever else the rule says: it might match.
                NameMatch::Unresolved if rule.action() == Action::Drop => {
                    return (Verdict::Reject, Some(index));
                }
                NameMatch::Unresolved => false,
            },
        };
        let is_target = rule.target().is_none() || special_holds(rule, subject);
        if is_there && is_target && upper_holds(rule, subject) {
            return (verdict(rule.action()), Some(index));
        }
    }
    (verdict(set.policy()), None)
}

fn upper_holds(rule: &Rule, subject: &Subject) -> bool {
    match (rule.upper(), subject.upper) {
        (UpperMatch::Any, _) => true,
        (UpperMatch::Tcp(ports), Upper::Tcp { port })
        | (UpperMatch::Udp(ports), Upper::Udp { port }) => {
            ports.is_none_or(|range| (range.first()..=range.last()).contains(&port))
        }
        (UpperMatch::TcpOrUdp(range), Upper::Tcp { port } | Upper::Udp { port }) => {
            (range.first()..=range.last()).contains(&port)
        }
        (UpperMatch::Icmp(wanted), Upper::Icmp { icmp_type }) => {
            wanted.is_none_or(|wanted| wanted == icmp_type)
        }
        _ => false,
    }
}

/// `specialtarget=dns`: port 53 of one of the resolvers, over TCP or UDP, unless the ports say something else.
fn special_holds(rule: &Rule, subject: &Subject) -> bool {
    let is_dns = matches!(subject.upper, Upper::Tcp { port: 53 } | Upper::Udp { port: 53 });
    let only_53 = match rule.upper() {
        UpperMatch::Tcp(Some(range))
        | UpperMatch::Udp(Some(range))
        | UpperMatch::TcpOrUdp(range) => (range.first(), range.last()) == (53, 53),
        _ => true,
    };
    subject.is_dns_server && is_dns && only_53
}

fn subject(family: Family, source: &mut Source<'_>) -> Subject {
    let bits = source.byte();
    let destination = match (family, bits & 1) {
        (Family::V4, 0) => IpAddr::V4(Ipv4Addr::new(10, 0, 0, bits >> 4)),
        (Family::V4, _) => IpAddr::V4(source.long().into()),
        (Family::V6, 0) => {
            IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(bits >> 4)))
        }
        (Family::V6, _) => IpAddr::V6(u128::from_le_bytes(source.array()).into()),
    };
    let port = if bits & 2 == 0 { source.pick(&[53, 80, 443, 0, 65_535]) } else { source.word() };
    let upper = match bits >> 2 & 3 {
        0 => Upper::Tcp { port },
        1 => Upper::Udp { port },
        2 => Upper::Icmp { icmp_type: port as u8 },
        _ => Upper::Other { protocol: port as u8 },
    };
    Subject { destination, upper, is_dns_server: source.flag() }
}

/// What is known about names: decided by their first letter.
struct Known {
    key: u8,
    /// The names of the set.
    names: Vec<String>,
}

impl Names for Known {
    fn lookup(&self, name: &HostName, _: IpAddr) -> NameMatch {
        self.state(name.as_str())
    }

    fn each_at(&self, _: IpAddr, found: &mut dyn FnMut(&str)) {
        let there = self.names.iter().filter(|name| self.state(name) == NameMatch::Has);
        there.for_each(|name| found(name));
    }

    fn is_known(&self, name: &HostName) -> bool {
        self.state(name.as_str()) != NameMatch::Unresolved
    }
}

impl Known {
    fn state(&self, name: &str) -> NameMatch {
        match (name.as_bytes()[0] ^ self.key) % 3 {
            0 => NameMatch::Has,
            1 => NameMatch::HasNot,
            _ => NameMatch::Unresolved,
        }
    }
}
