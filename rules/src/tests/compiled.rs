//! The compiled set says what the interpreter says.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use proptest::collection::vec;
use proptest::prelude::*;

use super::{tree, v4};
use crate::{
    CompiledSet, DecidedBy, Destination, Family, HostName, NameMatch, Names, PortRange, Rule,
    RuleKey, RuleSet, Subject, Upper, UpperMatch,
};

const NAMES: usize = 6;

/// A rule as numbers of which every one means something.
type Draft = (bool, u8, (u8, u8, u8), u8, (u8, u8));
/// A packet: the rule that it is made for and how far it misses.
type Shot = (u16, u8, u8, bool);

/// Names some of which are known, and the addresses that they have; known or not.
#[derive(Debug, Clone, Default)]
struct State {
    known: BTreeSet<usize>,
    has: BTreeSet<(usize, IpAddr)>,
    stamp: Option<u64>,
}

fn name(number: usize) -> String {
    format!("n{number}.example")
}

fn number(name: &str) -> usize {
    name[1..2].parse().unwrap()
}

impl Names for State {
    fn lookup(&self, name: &HostName, address: IpAddr) -> NameMatch {
        let number = number(name.as_str());
        match (self.has.contains(&(number, address)), self.known.contains(&number)) {
            (true, _) => NameMatch::Has,
            (false, true) => NameMatch::HasNot,
            (false, false) => NameMatch::Unresolved,
        }
    }

    fn each_at(&self, address: IpAddr, found: &mut dyn FnMut(&str)) {
        found("x.example");
        self.has.iter().filter(|(_, at)| *at == address).for_each(|(one, _)| found(&name(*one)));
    }

    fn is_known(&self, name: &HostName) -> bool {
        self.known.contains(&number(name.as_str()))
    }

    fn stamp(&self) -> Option<u64> {
        self.stamp
    }
}

/// Few addresses that differ in few bits, so that prefixes nest and names share them.
fn address(family: Family, base: u8, bit: u8) -> IpAddr {
    match family {
        Family::V4 => {
            let bases = [0x0a00_0000, 0x0a00_0081, 0xcb00_7107, 0, u32::MAX];
            let flip = 1_u32.checked_shl(bit.into()).unwrap_or(0);
            IpAddr::V4((bases[usize::from(base) % 5] ^ flip).into())
        }
        Family::V6 => {
            let bases = [0x2001_0db8 << 96, 0x2001_0db8 << 96 | 0x81, 0xcb00_7107, 0, u128::MAX];
            let flip = 1_u128.checked_shl(bit.into()).unwrap_or(0);
            IpAddr::V6((bases[usize::from(base) % 5] ^ flip).into())
        }
    }
}

fn port(choice: u8) -> u16 {
    match choice % 16 {
        0 => 0,
        1 => u16::MAX,
        2 => 53,
        3 => 52,
        4 => 54,
        _ => u16::from(choice) * 7,
    }
}

fn line(family: Family, draft: Draft) -> String {
    let (is_drop, kind, (base, bit, length), upper, (one, other)) = draft;
    let destination = match (kind % 8, family) {
        (0, _) => String::new(),
        (1 | 2, _) => format!(" dsthost={}", name(usize::from(base) % NAMES)),
        (_, Family::V4) => format!(" dst4={}/{}", address(family, base, bit % 40), length % 33),
        (_, Family::V6) => format!(" dst6={}/{}", address(family, base, bit), length % 129),
    };
    let (low, high) = (port(one).min(port(other)), port(one).max(port(other)));
    let upper = match upper % 14 {
        0 => String::new(),
        1 => " proto=tcp".into(),
        2 => " proto=udp".into(),
        3 => " proto=icmp".into(),
        4 => format!(" icmptype={one}"),
        5 => format!(" dstports={low}-{high}"),
        6 => " specialtarget=dns".into(),
        7 => format!(" proto=udp specialtarget=dns dstports={}", [53, 54][usize::from(one % 2)]),
        8 => format!(" specialtarget=dns dstports={}", ["53", "53-54"][usize::from(one % 2)]),
        9 => " proto=tcp specialtarget=dns".into(),
        10 => format!(" proto=udp dstports={low}-{high}"),
        _ => format!(" proto=tcp dstports={low}-{high}"),
    };
    let action = if is_drop { "drop" } else { "accept" };
    format!("action={action}{destination}{upper}")
}

fn set(family: Family, drafts: &[Draft], policy: &str) -> RuleSet {
    let lines: Vec<String> = drafts.iter().map(|draft| line(family, *draft)).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    tree(family, &lines).policy(policy).parse().unwrap()
}

/// A packet at the edge of what a rule of the set matches, on either side of it.
fn shoot(set: &RuleSet, state: &State, (rule, at, upper, is_dns_server): Shot) -> Subject {
    let default = Rule::parse(set.family(), b"action=drop").unwrap();
    let index = usize::from(rule) % set.rules().len().max(1);
    let rule = set.get(index).map_or(&default, |(_, rule)| rule);
    let destination = match rule.destination() {
        Destination::Net(net) => near(net, at),
        Destination::Host(_) if !state.has.is_empty() => {
            state.has.iter().nth(usize::from(at) % state.has.len()).unwrap().1
        }
        _ => address(set.family(), at, at / 5),
    };
    Subject { destination, upper: near_upper(rule.upper(), upper), is_dns_server }
}

fn near(net: &IpNet, choice: u8) -> IpAddr {
    let bits = |address| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let (first, last) = (bits(net.network()), bits(net.broadcast()));
    let wanted = match choice % 8 {
        0 | 1 => first,
        2 | 3 => last,
        4 => first.wrapping_sub(1),
        5 => last.wrapping_add(1),
        _ => first + (last - first) / 2,
    };
    match net {
        IpNet::V4(_) => IpAddr::V4((wanted as u32).into()),
        IpNet::V6(_) => IpAddr::V6(wanted.into()),
    }
}

fn near_upper(upper: UpperMatch, choice: u8) -> Upper {
    let at = |range: Option<PortRange>| {
        let Some(range) = range else { return port(choice) };
        match choice % 8 {
            0 | 1 => range.first(),
            2 | 3 => range.last(),
            4 => range.first().wrapping_sub(1),
            5 => range.last().wrapping_add(1),
            _ => 53,
        }
    };
    match (upper, choice / 8 % 8) {
        (_, 0) => Upper::Other { protocol: choice },
        (UpperMatch::Icmp(icmp_type), 1) => Upper::Tcp { port: icmp_type.map_or(8, u16::from) },
        (UpperMatch::Icmp(icmp_type), _) => {
            Upper::Icmp { icmp_type: icmp_type.map_or(choice, |one| one.wrapping_add(choice % 2)) }
        }
        (UpperMatch::Tcp(ports), 1) | (UpperMatch::Udp(ports), 2..) => {
            Upper::Udp { port: at(ports) }
        }
        (UpperMatch::TcpOrUdp(ports), 2..5) => Upper::Udp { port: at(Some(ports)) },
        (UpperMatch::TcpOrUdp(ports), _) => Upper::Tcp { port: at(Some(ports)) },
        (UpperMatch::Tcp(ports) | UpperMatch::Udp(ports), _) => Upper::Tcp { port: at(ports) },
        (UpperMatch::Any, 1) => Upper::Icmp { icmp_type: choice },
        (UpperMatch::Any, 2..5) => Upper::Udp { port: port(choice) },
        (UpperMatch::Any, _) => Upper::Tcp { port: port(choice) },
    }
}

/// What happens to names between two packets. The stamp moves when it must, and sometimes when it need not.
fn change(family: Family, state: &mut State, (what, one, at): (u8, u8, u8)) {
    let one = usize::from(one) % NAMES;
    let address = address(family, at, at / 8);
    match what % 8 {
        0..3 => _ = state.has.insert((one, address)),
        3 => _ = state.has.remove(&(one, address)),
        4..7 => {
            if !state.known.remove(&one) {
                state.known.insert(one);
            }
            state.stamp = state.stamp.map(|stamp| stamp + 1);
        }
        _ => {
            state.stamp = state.stamp.map_or(Some(1000 + u64::from(at)), |stamp| match at % 4 {
                0 => None,
                _ => Some(stamp + 1),
            })
        }
    }
}

fn draft() -> impl Strategy<Value = Draft> {
    any::<Draft>()
}

fn family() -> impl Strategy<Value = Family> {
    prop_oneof![Just(Family::V4), Just(Family::V6)]
}

thread_local! {
    /// Packets by what decided about them: rule, policy, unresolved name.
    static DECIDED: [Cell<u32>; 3] = const { [Cell::new(0), Cell::new(0), Cell::new(0)] };
}

fn agree(set: &CompiledSet, subject: &Subject, state: &State) -> Result<(), TestCaseError> {
    let expected = set.rules().evaluate(subject, state);
    prop_assert_eq!(set.evaluate(subject, state), expected, "{:?} {:?}", subject, state);
    let kind = match expected.by {
        DecidedBy::Rule { .. } => 0,
        DecidedBy::Policy => 1,
        DecidedBy::UnresolvedName { .. } => 2,
        DecidedBy::OtherFamily => return Ok(()),
    };
    DECIDED.with(|all| all[kind].set(all[kind].get() + 1));
    Ok(())
}

#[test]
fn compiled_and_interpreted_sets_agree_while_names_change() {
    let input = (
        family(),
        vec(draft(), 0..40),
        prop_oneof![Just("accept"), Just("drop")],
        vec((any::<(u8, u8, u8)>(), vec(any::<Shot>(), 1..6)), 1..12),
        any::<bool>(),
    );
    let config = ProptestConfig { cases: 4000, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    let result = runner.run(&input, |(family, drafts, policy, steps, has_stamp)| {
        let set = CompiledSet::new(set(family, &drafts, policy)).unwrap();
        let mut state = State { stamp: has_stamp.then_some(1), ..State::default() };
        state.known.extend(0..NAMES / 2);
        for (event, shots) in steps {
            change(family, &mut state, event);
            for shot in shots {
                agree(&set, &shoot(set.rules(), &state, shot), &state)?;
            }
        }
        Ok(())
    });
    result.unwrap();
    // Only what is hit is tested.
    let counts = DECIDED.with(|all| all.each_ref().map(Cell::get));
    assert!(counts.iter().all(|count| *count > 5000), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn large_sets_agree(
        family in family(),
        drafts in vec(draft(), 400..800),
        known in any::<u8>(),
        shots in vec(any::<Shot>(), 100),
    ) {
        let set = CompiledSet::new(set(family, &drafts, "drop")).unwrap();
        let known = (0..NAMES).filter(|one| known >> one & 1 == 1).collect();
        let state = State { known, ..State::default() };
        for shot in shots {
            agree(&set, &shoot(set.rules(), &state, shot), &state)?;
        }
    }
}

/// Every port, type and protocol, to a resolver and to others.
#[test]
fn every_place_of_a_crowded_set_agrees() {
    let lines = [
        "action=accept proto=udp specialtarget=dns dstports=53",
        "action=drop dstports=53-53 proto=tcp",
        "action=accept specialtarget=dns",
        "action=drop proto=tcp dstports=1-52",
        "action=accept proto=tcp dstports=0-53",
        "action=drop dstports=54",
        "action=accept proto=udp dstports=54-65535",
        "action=drop proto=udp dstports=1000-65535",
        "action=accept dstports=40000-40000",
        "action=drop proto=tcp dstports=30000-65534",
        "action=accept proto=icmp icmptype=8",
        "action=drop icmptype=255",
        "action=accept proto=icmp",
        "action=drop proto=tcp",
    ];
    let set = CompiledSet::new(v4(&lines).parse().unwrap()).unwrap();
    let ports = (0..=u16::MAX).flat_map(|port| [Upper::Tcp { port }, Upper::Udp { port }]);
    let types = (0..=u8::MAX).map(|icmp_type| Upper::Icmp { icmp_type });
    let others = (0..=u8::MAX).map(|protocol| Upper::Other { protocol });
    for upper in ports.chain(types).chain(others) {
        for is_dns_server in [false, true] {
            let destination = IpAddr::from([10, 139, 1, 1]);
            let subject = Subject { destination, upper, is_dns_server };
            agree(&set, &subject, &State::default()).unwrap();
        }
    }
}

#[test]
fn every_nested_prefix_agrees() {
    for (family, length) in [(Family::V4, 32), (Family::V6, 128)] {
        for is_upwards in [false, true] {
            let (option, base) = match family {
                Family::V4 => ("dst4", "203.0.113.255"),
                Family::V6 => ("dst6", "2001:db8::ff"),
            };
            let one = |bits: u8| {
                format!("action=accept {option}={base}/{bits} proto=tcp dstports={bits}")
            };
            let mut lines: Vec<String> = (0..=length).map(one).collect();
            if is_upwards {
                lines.reverse();
            }
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            let set = CompiledSet::new(tree(family, &lines).parse().unwrap()).unwrap();
            for shot in 0..=length {
                for port in [u16::from(shot), u16::from(shot) + 1, 200] {
                    let destination = near(&format!("{base}/{shot}").parse().unwrap(), shot);
                    let upper = Upper::Tcp { port };
                    let subject = Subject { destination, upper, is_dns_server: false };
                    agree(&set, &subject, &State::default()).unwrap();
                }
            }
        }
    }
}

/// A name that is not known has one address all the same: a client or a flow learned it. A packet there must not make
/// the set believe that the name is known.
#[test]
fn what_a_flow_holds_does_not_open_the_rest() {
    let lines = ["action=drop dsthost=n0.example", "action=accept"];
    let set = CompiledSet::new(v4(&lines).parse().unwrap()).unwrap();
    let [held, other] = [[198, 51, 100, 7], [198, 51, 100, 8]].map(IpAddr::from);
    let state = State { has: [(0, held)].into(), stamp: Some(1), ..State::default() };
    let by = |destination| {
        let upper = Upper::Tcp { port: 443 };
        set.evaluate(&Subject { destination, upper, is_dns_server: false }, &state).by
    };
    for _ in 0..2 {
        assert!(matches!(by(held), DecidedBy::Rule { index: 0, .. }));
        assert!(matches!(by(other), DecidedBy::UnresolvedName { index: 0, .. }));
    }
}

#[test]
fn a_copy_remembers_nothing_of_other_names() {
    let lines = ["action=drop dsthost=n0.example", "action=accept"];
    let set = CompiledSet::new(v4(&lines).parse().unwrap()).unwrap();
    let subject = super::tcp("198.51.100.7", 443);
    let known = State { known: [0].into(), stamp: Some(1), ..State::default() };
    assert!(matches!(set.evaluate(&subject, &known).by, DecidedBy::Rule { index: 1, .. }));
    let other = State { stamp: Some(1), ..State::default() };
    let decision = set.clone().evaluate(&subject, &other);
    assert!(matches!(decision.by, DecidedBy::UnresolvedName { index: 0, .. }));
}

/// Ten thousand rules of the kinds that cost most.
#[test]
fn tables_stay_within_what_a_rule_may_cost() {
    let lines: [fn(u32) -> String; 3] = [
        |n| format!("action=drop dst4=10.{}.{}.0/24 dstports={}", n / 200, n % 200, 2 + n),
        |n| format!("action=drop dsthost={n}.example dstports={}", 2 + n),
        |n| format!("action=drop dstports={}-{}", 1 + n, 30_000 + 2 * n),
    ];
    for line in lines {
        let all: Vec<(String, String)> =
            (0..10_000).map(|n| (format!("{n:04}"), line(n))).collect();
        let entries = all.iter().map(|(key, line)| (key.as_bytes(), line.as_bytes()));
        let policy = (&b"policy"[..], &b"drop"[..]);
        let set = RuleSet::parse(Family::V4, entries.chain([policy])).unwrap();
        let plain = set.heap_bytes();
        let tables = CompiledSet::new(set).unwrap().heap_bytes() - plain;
        assert!(tables <= CompiledSet::BYTES + 10_000 * CompiledSet::MAX_RULE_BYTES, "{tables}");
        const { assert!(10_000 * CompiledSet::MAX_RULE_BYTES <= 600 << 10) };
    }
}

#[test]
fn what_was_counted_belongs_to_one_set_and_one_rule() {
    let entries: [(&[u8], &[u8]); 3] =
        [(b"policy", b"drop"), (b"0003", b"action=accept"), (b"0007", b"action=drop dsthost=a.b")];
    let set = || CompiledSet::new(RuleSet::parse(Family::V4, entries).unwrap()).unwrap();
    let (counted, other) = (set(), set());
    let key = |text: &[u8]| RuleKey::parse(text).unwrap();
    let decisions = [
        (DecidedBy::Rule { index: 0, key: key(b"0003") }, 3),
        (DecidedBy::UnresolvedName { index: 1, key: key(b"0007") }, 2),
        (DecidedBy::Policy, 4),
        (DecidedBy::OtherFamily, 5),
        (DecidedBy::Rule { index: 9, key: key(b"0009") }, 6),
    ];
    for (by, times) in decisions {
        (0..times).for_each(|_| counted.count(by));
    }
    let hits = |set: &CompiledSet| ([0, 1, 2].map(|index| set.hits(index)), set.policy_hits());
    assert_eq!(hits(&counted), ([3, 2, 0], 4));
    assert_eq!(hits(&counted.clone()), ([3, 2, 0], 4));
    assert_eq!(hits(&other), ([0; 3], 0));
    assert_eq!(counted, other, "what was counted does not tell them apart");
}
