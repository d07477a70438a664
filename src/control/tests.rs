use std::collections::BTreeMap;

use super::*;
use crate::config::features::LogLevel;
use crate::config::testdb::TestDb;
use crate::visible::Visible;

const NINE: &str = "10.137.0.9";
const TREE9: &str = "/qubes-firewall/10.137.0.9";

/// dom0's database behind a real client, the control plane, and what its actions led to.
struct Rig {
    db: TestDb,
    control: Control,
    rules: BTreeMap<IpAddr, SourceRules>,
    /// Every action but log lines, in order.
    done: Vec<Action>,
    log: Vec<String>,
}

impl Rig {
    fn new() -> Self {
        Self::with("", Limits::default(), TestDb::new())
    }

    fn with(command_line: &str, limits: Limits, db: TestDb) -> Self {
        let control = Control::new(command_line, limits);
        let (rules, done, log) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut rig = Self { db, control, rules, done, log };
        rig.run();
        rig
    }

    /// Delivers what dom0 sent and does what the control plane wants.
    fn run(&mut self) {
        let Self { db, control, rules, done, log } = self;
        let mut take = |control: &mut Control, client: &mut qubesdb::Client| {
            while let Some(action) = control.poll_action() {
                match &action {
                    Action::SetRules { ip, rules: new } => drop(rules.insert(*ip, new.clone())),
                    Action::WriteDb { path, value } => {
                        if let Err(error) = client.write(path.as_str(), value) {
                            log.push(format!("write of {path}: {error}"));
                        }
                    }
                    Action::Log(notice) => {
                        log.push(notice.to_string());
                        continue;
                    }
                    _ => {}
                }
                done.push(action);
            }
        };
        take(control, &mut db.client);
        db.run(|event, client| {
            control.on_event(event, client.store());
            take(control, client);
        });
    }

    fn dump(&mut self, entries: &[(&str, &str)]) {
        self.db.dump(entries);
        self.run();
    }

    fn write(&mut self, path: &str, value: &str) {
        self.db.write(path, value);
        self.run();
    }

    fn remove(&mut self, path: &str) {
        self.db.remove(path);
        self.run();
    }

    fn uplink_connected(&mut self) {
        self.control.on_uplink_connected(self.db.client.store());
        self.run();
    }

    /// `none`, `refused: ...` or `POLICY KEY=LINE KEY=LINE`.
    fn rules(&self, ip: &str) -> String {
        match self.rules.get(&ip.parse().unwrap()) {
            None => "never set".into(),
            Some(SourceRules::None) => "none".into(),
            Some(SourceRules::Refused(reason)) => format!("refused: {reason}"),
            Some(SourceRules::Active(set)) => {
                let mut text = set.rules().policy().word().to_owned();
                set.rules().rules().for_each(|(key, rule)| text += &format!(" | {key} {rule}"));
                text
            }
        }
    }

    /// What dom0 got, oldest first, and forgets it.
    fn take_written(&mut self) -> Vec<(String, String)> {
        std::mem::take(&mut self.db.written)
    }

    /// The actions other than rules, writes and log lines since the last call.
    fn take_config(&mut self) -> Vec<Action> {
        let mut actions = std::mem::take(&mut self.done);
        actions
            .retain(|action| !matches!(action, Action::SetRules { .. } | Action::WriteDb { .. }));
        actions
    }

    /// The network configurations since the last call of this or [`Self::take_config`].
    fn take_network(&mut self) -> Vec<NetworkConfig> {
        let network = |action| match action {
            Action::SetNetwork(network) => Some(network),
            _ => None,
        };
        self.take_config().into_iter().filter_map(network).collect()
    }

    fn take_log(&mut self) -> Vec<String> {
        std::mem::take(&mut self.log)
    }
}

fn handled(ip: &str, counter: &str) -> (String, String) {
    (format!("/qubes-firewall-handled/{ip}"), counter.into())
}

/// A dump without anything to complain about.
const QUIET: &[(&str, &str)] = &[
    ("/name", "fw"),
    ("/qubes-debug-mode", "0"),
    ("/qubes-random-seed", "Zm9v"),
    ("/connected-ips", ""),
    ("/qubes-netvm-gateway", "10.137.0.6"),
    ("/qubes-netvm-primary-dns", "10.139.1.1"),
    ("/qubes-netvm-secondary-dns", "10.139.1.2"),
];

const UPLINK: &[(&str, &str)] = &[
    ("/qubes-ip", "10.137.0.6"),
    ("/qubes-netmask", "255.255.255.255"),
    ("/qubes-gateway", "10.137.0.5"),
    ("/qubes-primary-dns", "10.139.1.1"),
    ("/qubes-secondary-dns", "10.139.1.2"),
];

/// `QUIET` with more.
fn quiet_and<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    [QUIET, more].concat()
}

#[test]
fn sequence_vector() {
    let mut rig = Rig::new();
    rig.dump(&[
        ("/type", "StandaloneVM"),
        ("/qubes-ip", "10.137.0.6"),
        ("/qubes-firewall/10.137.0.9/policy", "drop"),
        ("/qubes-firewall/10.137.0.9/0000", "action=accept"),
        (TREE9, ""),
        ("/connected-ips", NINE),
    ]);
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
    assert_eq!(rig.take_written(), [handled(NINE, "1")]);
    rig.remove("/qubes-firewall/10.137.0.9/");
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
    rig.write("/qubes-firewall/10.137.0.9/policy", "drop");
    rig.write("/qubes-firewall/10.137.0.9/0000", "action=accept proto=icmp");
    rig.write("/qubes-firewall/10.137.0.9/0002", "action=drop");
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
    assert_eq!(rig.take_written(), []);
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept proto=icmp | 0002 action=drop");
    assert_eq!(rig.take_written(), [handled(NINE, "2")]);
}

#[test]
fn q4_interleaved_trees_take_effect_each_at_its_own_mark() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.write("/qubes-firewall/10.137.0.9/policy", "drop");
    rig.write("/qubes-firewall/10.137.0.11/policy", "accept");
    rig.write("/qubes-firewall/10.137.0.9/0000", "action=accept");
    rig.write("/qubes-firewall/10.137.0.11", "");
    assert_eq!(
        (rig.rules(NINE).as_str(), rig.rules("10.137.0.11").as_str()),
        ("never set", "accept")
    );
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
}

#[test]
fn tree_without_mark_in_a_dump_counts_as_marked() {
    let mut rig = Rig::new();
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept")]);
    assert_eq!(rig.rules(NINE), "accept");
    assert_eq!(rig.take_written(), [handled(NINE, "1")]);
}

#[test]
fn non_empty_write_of_the_mark_is_no_commit() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.write("/qubes-firewall/10.137.0.9/policy", "accept");
    rig.write(TREE9, "1");
    assert_eq!(rig.rules(NINE), "never set");
    assert_eq!(rig.take_written(), []);
}

#[test]
fn refused_set_is_acknowledged_and_says_why() {
    let mut rig = Rig::new();
    rig.dump(&[
        ("/qubes-firewall/10.137.0.9/policy", "accept"),
        ("/qubes-firewall/10.137.0.9/0000", "action=accept"),
        ("/qubes-firewall/10.137.0.9/0001", "action=accept foo=1"),
        ("/qubes-firewall/10.137.0.11/policy", "accept"),
    ]);
    assert_eq!(
        rig.rules(NINE),
        "refused: rule 0001: element 2 'foo=1': unknown option, expected action, dst4, dst6, dsthost, proto, specialtarget, dstports or icmptype"
    );
    assert_eq!(rig.rules("10.137.0.11"), "accept");
    assert_eq!(rig.take_written().len(), 2);
}

#[test]
fn five_digit_key_refuses_the_set() {
    let mut rig = Rig::new();
    rig.dump(&[
        ("/qubes-firewall/10.137.0.9/policy", "accept"),
        ("/qubes-firewall/10.137.0.9/9999", "action=accept"),
        ("/qubes-firewall/10.137.0.9/10000", "action=drop"),
    ]);
    assert_eq!(rig.rules(NINE), "refused: unknown key '10000', expected policy or four digits");
}

#[test]
fn missing_policy_refuses_the_set() {
    let mut rig = Rig::new();
    rig.dump(&[("/qubes-firewall/10.137.0.9/0000", "action=accept")]);
    assert_eq!(rig.rules(NINE), "refused: key policy is missing, expected accept or drop");
}

#[test]
fn nested_key_refuses_the_set() {
    let mut rig = Rig::new();
    rig.dump(&[
        ("/qubes-firewall/10.137.0.9/policy", "accept"),
        ("/qubes-firewall/10.137.0.9/0000/0001", "action=accept"),
    ]);
    assert_eq!(rig.rules(NINE), "refused: unknown key '0000/0001', expected policy or four digits");
}

#[test]
fn repaired_set_takes_the_place_of_a_refused_one() {
    let mut rig = Rig::new();
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "maybe")]);
    assert_eq!(
        rig.rules(NINE),
        "refused: key policy: unknown value 'maybe', expected accept or drop"
    );
    rig.write("/qubes-firewall/10.137.0.9/policy", "drop");
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "drop");
}

#[test]
fn ipv6_tree_is_parsed_as_ipv6_and_acknowledged_at_full_length() {
    let longest = "fd09:24ef:4179:1111:2222:3333:4444:5555";
    let mut rig = Rig::new();
    rig.dump(QUIET);
    for ip in ["fd09:24ef:4179::a89:9", longest] {
        rig.write(&format!("/qubes-firewall/{ip}/policy"), "drop");
        rig.write(&format!("/qubes-firewall/{ip}/0000"), "action=accept dst6=2001:db8::1/32");
        rig.write(&format!("/qubes-firewall/{ip}"), "");
        assert_eq!(rig.rules(ip), "drop | 0000 action=accept dst6=2001:db8::/32");
        assert_eq!(rig.take_written(), [handled(ip, "1")]);
    }
    assert_eq!(format!("/qubes-firewall-handled/{longest}").len(), 63);
}

#[test]
fn tree_name_too_long_for_its_acknowledgement_is_not_written() {
    let ip = "fd09:24ef:4179:1111:2222:3333:255.255.255.25";
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.take_log();
    rig.write(&format!("/qubes-firewall/{ip}"), "");
    assert_eq!(rig.take_written(), []);
    assert_eq!(
        rig.take_log(),
        [format!("rules of {ip} not acknowledged: path longer than 63 bytes")]
    );
    assert_eq!(rig.rules(ip), "none");
}

#[test]
fn tree_of_something_that_is_no_address_is_named_and_acknowledged() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.take_log();
    rig.write("/qubes-firewall/nobody/policy", "accept");
    rig.write("/qubes-firewall/nobody", "");
    assert_eq!(rig.take_log(), ["rules of nobody ignored: not an address"]);
    assert_eq!(rig.take_written(), [handled("nobody", "1")]);
    assert!(rig.rules.is_empty());
}

#[test]
fn removed_tree_with_a_commit_is_a_source_without_rules() {
    let mut rig = Rig::new();
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept"), (TREE9, "")]);
    rig.remove("/qubes-firewall/10.137.0.9/");
    assert_eq!(rig.rules(NINE), "accept");
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "none");
    assert_eq!(rig.take_written(), [handled(NINE, "1"), handled(NINE, "2")]);
}

#[test]
fn removal_of_the_mark_changes_nothing() {
    let mut rig = Rig::new();
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept"), (TREE9, "")]);
    rig.remove(TREE9);
    rig.remove("/qubes-firewall/");
    assert_eq!(rig.rules(NINE), "accept");
    assert_eq!(rig.take_written(), [handled(NINE, "1")]);
}

#[test]
fn counter_goes_on_from_what_dom0_has() {
    for (stored, next) in [
        ("41", "42"),
        ("garbage", "1"),
        ("", "1"),
        ("-3", "1"),
        ("99999999999999999999", "1"),
        ("18446744073709551615", "1"),
    ] {
        let mut rig = Rig::new();
        rig.dump(&[("/qubes-firewall-handled/10.137.0.9", stored), (TREE9, "")]);
        assert_eq!(rig.take_written(), [handled(NINE, next)], "{stored}");
    }
}

#[test]
fn commits_in_one_burst_are_counted_one_by_one() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    for _ in 0..3 {
        rig.db.write(TREE9, "");
    }
    rig.run();
    assert_eq!(rig.take_written(), ["1", "2", "3"].map(|counter| handled(NINE, counter)));
}

#[test]
fn counter_that_dom0_changes_or_removes_counts_from_there() {
    let mut rig = Rig::new();
    rig.dump(&[(TREE9, "")]);
    rig.write("/qubes-firewall-handled/10.137.0.9", "70");
    rig.write(TREE9, "");
    rig.remove("/qubes-firewall-handled/10.137.0.9");
    rig.write(TREE9, "");
    rig.remove("/qubes-firewall-handled/");
    rig.write(TREE9, "");
    let counters = ["1", "71", "1", "1"];
    assert_eq!(rig.take_written(), counters.map(|counter| handled(NINE, counter)));
}

#[test]
fn reconnect_replaces_everything() {
    let mut rig = Rig::new();
    rig.dump(&[
        ("/qubes-firewall/10.137.0.9/policy", "accept"),
        ("/qubes-firewall/10.137.0.11/policy", "accept"),
        ("/qubes-firewall/10.137.0.12/policy", "accept"),
        ("/connected-ips", "10.137.0.9"),
    ]);
    rig.take_config();
    rig.db.client.disconnected();
    rig.control.on_link_lost();
    rig.take_log();
    rig.run();
    assert_eq!(rig.take_log(), ["qubesdb link lost, rules of 3 sources stay in force"]);
    assert_eq!(rig.rules(NINE), "accept");
    rig.take_written();
    rig.dump(&[
        ("/qubes-firewall/10.137.0.9/policy", "accept"),
        ("/qubes-firewall/10.137.0.12/policy", "drop"),
        ("/qubes-firewall-handled/10.137.0.9", "8"),
        ("/connected-ips", "10.137.0.12"),
    ]);
    assert_eq!(rig.rules(NINE), "accept");
    assert_eq!(rig.rules("10.137.0.11"), "none");
    assert_eq!(rig.rules("10.137.0.12"), "drop");
    assert_eq!(rig.take_written(), [handled("10.137.0.12", "1"), handled(NINE, "9")]);
    let [network] = &rig.take_network()[..] else { panic!() };
    assert_eq!(network.connected, ["10.137.0.12".parse::<IpAddr>().unwrap()]);
}

#[test]
fn set_with_an_entry_that_did_not_fit_is_refused() {
    let limits = qubesdb::Limits { entries: 4, bytes: 10_000 };
    let mut rig = Rig::with("", Limits::default(), TestDb::within(limits));
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept"), (TREE9, "")]);
    rig.take_log();
    rig.write("/qubes-firewall/10.137.0.9/0000", "action=accept");
    rig.write("/qubes-firewall/10.137.0.9/0001", "action=drop");
    assert_eq!(rig.rules(NINE), "accept");
    let refused = "qubesdb entry /qubes-firewall/10.137.0.9/0001 refused: too many entries";
    assert_eq!(rig.take_log(), [refused]);
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "refused: an entry is missing: too many entries");
    assert_eq!(rig.take_written(), [handled(NINE, "1"), handled(NINE, "2")]);
}

#[test]
fn mark_that_did_not_fit_refuses_the_set() {
    let limits = qubesdb::Limits { entries: 1, bytes: 10_000 };
    let mut rig = Rig::with("", Limits::default(), TestDb::within(limits));
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept")]);
    assert_eq!(rig.rules(NINE), "accept");
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "refused: an entry is missing: too many entries");
}

#[test]
fn source_beyond_the_limit_is_refused_and_others_stay() {
    let limits = Limits { sources: 1, ..Limits::default() };
    let mut rig = Rig::with("", limits, TestDb::new());
    rig.dump(&[("/qubes-firewall/10.137.0.9/policy", "accept")]);
    rig.write("/qubes-firewall/10.137.0.11/policy", "accept");
    rig.write("/qubes-firewall/10.137.0.11", "");
    assert_eq!(rig.rules("10.137.0.11"), "refused: more than 1 sources with rules");
    assert_eq!(rig.rules(NINE), "accept");
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "accept");
}

#[test]
fn rules_beyond_the_memory_limit_are_refused_until_there_is_room() {
    let one = [(&b"policy"[..], &b"drop"[..]), (b"0000", b"action=accept")];
    let set = RuleSet::parse(Family::V4, one).unwrap();
    let plain = set.heap_bytes();
    let bytes = rules::CompiledSet::new(set).unwrap().heap_bytes();
    assert!(bytes > plain && plain > 0, "the tables count");
    let limits = Limits { rule_bytes: bytes, ..Limits::default() };
    let mut rig = Rig::with("", limits, TestDb::new());
    rig.dump(QUIET);
    for ip in [NINE, "10.137.0.11"] {
        rig.write(&format!("/qubes-firewall/{ip}/policy"), "drop");
        rig.write(&format!("/qubes-firewall/{ip}/0000"), "action=accept");
        rig.write(&format!("/qubes-firewall/{ip}"), "");
    }
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
    let refused = format!("refused: more than {bytes} bytes of rules of all sources");
    assert_eq!(rig.rules("10.137.0.11"), refused);
    // The same rules again: they take the place of those that they replace.
    rig.write(TREE9, "");
    assert_eq!(rig.rules(NINE), "drop | 0000 action=accept");
    // A set without a rule costs something, too.
    rig.remove("/qubes-firewall/10.137.0.9/0000");
    rig.remove("/qubes-firewall/10.137.0.9/policy");
    rig.write(TREE9, "");
    rig.write("/qubes-firewall/10.137.0.11", "");
    assert_eq!(rig.rules("10.137.0.11"), "drop | 0000 action=accept");
}

#[test]
fn uplink_addresses_are_taken_when_the_device_appears() {
    let mut rig = Rig::new();
    rig.dump(&quiet_and(UPLINK));
    let network = rig.take_network().pop().unwrap();
    assert_eq!((network.v4.address, network.v4.gateway, network.v4.dns.len()), (None, None, 0));
    assert_eq!(network.v4.client_gateway, Some([10, 137, 0, 6].into()));
    rig.write("/qubes-ip", "10.137.0.66");
    assert_eq!(rig.take_network(), []);
    rig.uplink_connected();
    let network = rig.take_network().pop().unwrap();
    assert_eq!(network.v4.address, Some([10, 137, 0, 66].into()));
    assert_eq!(network.v4.gateway, Some([10, 137, 0, 5].into()));
    assert_eq!(network.v4.dns.len(), 2);
}

#[test]
fn stale_uplink_keys_are_not_read_between_two_devices() {
    let mut rig = Rig::new();
    rig.dump(&quiet_and(UPLINK));
    rig.uplink_connected();
    rig.take_network();
    rig.control.on_uplink_gone();
    // A netvm change: dom0 writes every key again, one by one, and then attaches the device.
    rig.write("/qubes-ip", "10.137.0.6");
    rig.write("/qubes-gateway", "10.138.0.1");
    rig.write("/qubes-gateway", "not an address");
    rig.write("/qubes-gateway", "10.138.0.7");
    assert_eq!(rig.take_network(), []);
    assert_eq!(rig.take_log(), ["config name=fw"]);
    rig.uplink_connected();
    let [network] = &rig.take_network()[..] else { panic!() };
    assert_eq!(network.v4.gateway, Some([10, 138, 0, 7].into()));
}

#[test]
fn uplink_that_goes_leaves_its_addresses_for_the_flows_that_wait() {
    let mut rig = Rig::new();
    rig.dump(&quiet_and(UPLINK));
    rig.uplink_connected();
    rig.take_network();
    rig.control.on_uplink_gone();
    rig.write("/connected-ips", "10.137.0.9");
    let [network] = &rig.take_network()[..] else { panic!() };
    assert_eq!(network.v4.address, Some([10, 137, 0, 6].into()));
    rig.uplink_connected();
    assert_eq!(rig.take_network(), []);
}

#[test]
fn addresses_that_arrive_after_the_device_are_taken_as_well() {
    let mut rig = Rig::new();
    rig.uplink_connected();
    assert_eq!(rig.take_network(), []);
    assert_eq!(rig.take_log(), [""; 0]);
    rig.dump(&quiet_and(UPLINK));
    let network = rig.take_network().pop().unwrap();
    assert_eq!(network.v4.gateway, Some([10, 137, 0, 5].into()));
    // The writes overtaken by the xenstore event: same value first, then the new one.
    rig.write("/qubes-ip", "10.137.0.6");
    assert_eq!(rig.take_network(), []);
    rig.write("/qubes-gateway", "10.138.0.7");
    let [network] = &rig.take_network()[..] else { panic!() };
    assert_eq!(network.v4.gateway, Some([10, 138, 0, 7].into()));
}

#[test]
fn connected_ips_are_live() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.take_network();
    rig.take_log();
    rig.write("/connected-ips", "10.137.0.9");
    rig.write("/connected-ips6", "fd09::9");
    rig.write("/connected-ips", "10.137.0.9");
    let networks = rig.take_network();
    let counts: Vec<_> = networks.iter().map(|network| network.connected.len()).collect();
    assert_eq!(counts, [1, 2]);
    rig.remove("/connected-ips");
    assert_eq!(rig.take_log(), ["config /connected-ips: missing"]);
    let [network] = &rig.take_network()[..] else { panic!() };
    assert_eq!(network.connected, ["fd09::9".parse::<IpAddr>().unwrap()]);
}

#[test]
fn removal_of_a_whole_branch_is_seen() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.take_network();
    rig.remove("/");
    assert_eq!(rig.take_network(), [NetworkConfig::default()]);
    assert_eq!(rig.control.name(), None);
}

#[test]
fn missing_keys_are_each_named_once() {
    let mut rig = Rig::new();
    rig.dump(&[]);
    let keys = [
        "/qubes-random-seed",
        "/name",
        "/qubes-debug-mode",
        "/connected-ips",
        "/qubes-netvm-gateway",
        "/qubes-netvm-primary-dns",
        "/qubes-netvm-secondary-dns",
    ];
    let expected = keys.map(|key| format!("config {key}: missing")).to_vec();
    assert_eq!(rig.take_log(), expected);
    rig.write("/qubes-netvm-gateway", "10.137.0.6");
    rig.write("/qubes-netvm-primary-dns", "x");
    assert_eq!(rig.take_log(), ["config /qubes-netvm-primary-dns: 'x' is not a host address"]);
    rig.uplink_connected();
    let log = rig.take_log();
    assert_eq!(log.first().map(String::as_str), Some("config /qubes-ip: missing"));
    assert_eq!(log.len(), 5);
    rig.uplink_connected();
    assert_eq!(rig.take_log(), log);
}

#[test]
fn seed_is_mixed_in_and_never_logged() {
    let mut rig = Rig::new();
    rig.dump(QUIET);
    let seeds = |actions: Vec<Action>| {
        let seed = |action| match action {
            Action::AddEntropy(seed) => Some(seed.as_bytes().to_vec()),
            _ => None,
        };
        actions.into_iter().filter_map(seed).collect::<Vec<_>>()
    };
    assert_eq!(seeds(rig.take_config()), [b"foo"]);
    rig.write("/qubes-random-seed", "Zm9vYmFy");
    assert_eq!(seeds(rig.take_config()), [b"foobar"]);
    assert!(rig.take_log().iter().all(|line| !line.contains("Zm9v")));
}

#[test]
fn features_follow_command_line_features_and_debug_mode() {
    let mut rig = Rig::with("ro fw-log=drops fw-x", Limits::default(), TestDb::new());
    let level = |actions: &[Action]| {
        let level = |action: &Action| match action {
            Action::SetFeatures(features) => Some(features.log),
            _ => None,
        };
        actions.iter().filter_map(level).collect::<Vec<_>>()
    };
    assert_eq!(level(&rig.take_config()), [LogLevel::Drops]);
    assert_eq!(rig.take_log(), ["config command line 'fw-x': unknown word, ignored"]);
    rig.dump(&quiet_and(&[("/vm-config/fw-log", "debug"), ("/vm-config/other", "fw-log")]));
    assert_eq!(level(&rig.take_config()), [LogLevel::Debug]);
    rig.write("/vm-config/fw-log", "verbose");
    assert_eq!(level(&rig.take_config()), [LogLevel::Off]);
    rig.remove("/vm-config/");
    assert_eq!(level(&rig.take_config()), [LogLevel::Drops]);
    rig.write("/qubes-debug-mode", "1");
    assert_eq!(level(&rig.take_config()), []);
    let mut rig = Rig::new();
    rig.dump(QUIET);
    rig.take_config();
    rig.write("/qubes-debug-mode", "1");
    assert_eq!(level(&rig.take_config()), [LogLevel::Debug]);
}

#[test]
fn mapped_addresses_are_live() {
    let mut rig = Rig::new();
    let ip = "/mapped-ip/10.137.0.9/visible-ip";
    let gateway = "/mapped-ip/10.137.0.9/visible-gateway";
    rig.dump(&quiet_and(&[(ip, "192.168.1.2"), (gateway, "192.168.1.1")]));
    let mapped = |rig: &mut Rig| {
        let networks = rig.take_network();
        networks.into_iter().map(|network| network.mapped).collect::<Vec<_>>()
    };
    let real = "10.137.0.9".parse().unwrap();
    let visible =
        Visible::As { address: [192, 168, 1, 2].into(), gateway: [192, 168, 1, 1].into() };
    assert_eq!(mapped(&mut rig).last().unwrap()[..], [MappedIp { real, visible }]);
    rig.write(ip, "192.168.1.2");
    assert_eq!(mapped(&mut rig), Vec::<Vec<_>>::new());
    rig.take_log();
    rig.write(gateway, "fe80::1");
    assert_eq!(mapped(&mut rig), [[MappedIp { real, visible: Visible::Unknown }]]);
    assert_eq!(
        rig.take_log(),
        ["config /mapped-ip: 'fe80::1' of client '10.137.0.9' is not an IPv4 host address of \
          its own; the client is shut out"]
    );
    rig.remove(gateway);
    assert_eq!(mapped(&mut rig), [[]]);
    rig.write(gateway, "192.168.1.1");
    rig.remove("/mapped-ip/10.137.0.9/");
    assert_eq!(mapped(&mut rig).len(), 2);
    assert!(rig.control.network.mapped.is_empty());
}

#[test]
fn refused_configuration_entry_counts_as_absent() {
    let mut rig = Rig::new();
    rig.dump(&quiet_and(&[("/connected-ips6", "fd09::9")]));
    rig.take_config();
    rig.take_log();
    rig.write("/connected-ips6", "fd09::9\0");
    let [network] = &rig.take_network()[..] else { panic!() };
    assert!(network.connected.is_empty());
    assert_eq!(
        rig.take_log(),
        ["qubesdb entry /connected-ips6 refused: value contains a NUL byte"]
    );
}

#[test]
fn name_is_kept_for_messages() {
    let mut rig = Rig::new();
    assert_eq!(rig.control.name(), None);
    rig.dump(QUIET);
    assert_eq!(rig.control.name().unwrap().as_str(), "fw");
    assert_eq!(rig.take_log(), ["config name=fw"]);
    rig.write("/name", "fw");
    assert_eq!(rig.take_log(), [""; 0]);
    rig.write("/name", "fw2");
    assert_eq!(rig.take_log(), ["config name=fw2"]);
}

/// dom0's side of two trees, and what must be in force.
#[derive(Default)]
struct Model {
    database: BTreeMap<String, String>,
    in_force: BTreeMap<&'static str, String>,
    marks: BTreeMap<&'static str, u64>,
}

const MODEL_IPS: [&str; 2] = [NINE, "fd09::9"];

#[derive(Debug, Clone)]
enum Step {
    Write(&'static str, &'static str, &'static str),
    Remove(&'static str, &'static str),
    RemoveTree(&'static str),
    Mark(&'static str),
    Reconnect,
}

impl Model {
    fn mark(&mut self, ip: &'static str) {
        let prefix = format!("/qubes-firewall/{ip}/");
        let below = |(key, value): (&String, &String)| {
            Some((key.strip_prefix(&prefix)?.to_owned(), value.to_owned()))
        };
        let entries: Vec<_> = self.database.iter().filter_map(below).collect();
        let family = Family::of(ip.parse().unwrap());
        let entries = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
        let text = if entries.len() == 0 {
            "none".to_owned()
        } else {
            match RuleSet::parse(family, entries) {
                Err(error) => format!("refused: {error}"),
                Ok(set) => {
                    let line = |(key, rule)| format!(" | {key} {rule}");
                    set.policy().word().to_owned() + &set.rules().map(line).collect::<String>()
                }
            }
        };
        self.in_force.insert(ip, text);
        *self.marks.entry(ip).or_default() += 1;
    }

    fn step(&mut self, step: &Step, rig: &mut Rig) {
        match *step {
            Step::Write(ip, key, value) => {
                let key = format!("/qubes-firewall/{ip}/{key}");
                rig.write(&key, value);
                self.database.insert(key, value.into());
            }
            Step::Remove(ip, key) => {
                let key = format!("/qubes-firewall/{ip}/{key}");
                rig.remove(&key);
                self.database.remove(&key);
            }
            Step::RemoveTree(ip) => {
                let prefix = format!("/qubes-firewall/{ip}/");
                rig.remove(&prefix);
                self.database.retain(|key, _| !key.starts_with(&prefix));
            }
            Step::Mark(ip) => {
                let key = format!("/qubes-firewall/{ip}");
                rig.write(&key, "");
                self.database.insert(key, String::new());
                self.mark(ip);
            }
            Step::Reconnect => {
                rig.control.on_link_lost();
                let entries = self.database.iter().map(|(key, value)| (&**key, &**value));
                rig.dump(&entries.collect::<Vec<_>>());
                for ip in MODEL_IPS {
                    let tree = format!("/qubes-firewall/{ip}");
                    let has_tree = |key: &String| {
                        key.strip_prefix(&tree).is_some_and(|r| r.is_empty() || r.starts_with('/'))
                    };
                    if self.database.keys().any(has_tree) {
                        self.mark(ip);
                    } else if self.in_force.contains_key(ip) {
                        self.in_force.insert(ip, "none".into());
                    }
                }
            }
        }
        self.database.extend(rig.take_written());
    }
}

fn step() -> impl proptest::strategy::Strategy<Value = Step> {
    use proptest::prelude::*;
    let ip = || prop::sample::select(&MODEL_IPS);
    let key = || prop::sample::select(&["policy", "0000", "0002", "10000"]);
    let value = prop::sample::select(&[
        "accept",
        "drop",
        "action=accept",
        "action=drop proto=tcp",
        "action=accept dst4=10.0.0.0/8",
        "action=accept x=1",
    ]);
    prop_oneof![
        6 => (ip(), key(), value).prop_map(|(ip, key, value)| Step::Write(ip, key, value)),
        1 => (ip(), Just("policy")).prop_map(|(ip, key)| Step::Write(ip, key, "drop")),
        1 => (ip(), key()).prop_map(|(ip, key)| Step::Remove(ip, key)),
        1 => ip().prop_map(Step::RemoveTree),
        3 => ip().prop_map(Step::Mark),
        1 => Just(Step::Reconnect),
    ]
}

proptest::proptest! {
    #[test]
    fn only_committed_trees_are_ever_in_force(
        steps in proptest::collection::vec(step(), 0..40),
    ) {
        let (mut rig, mut model) = (Rig::new(), Model::default());
        rig.dump(&[]);
        for step in &steps {
            model.step(step, &mut rig);
            for ip in MODEL_IPS {
                let expected = model.in_force.get(ip).map_or("never set", |text| text);
                proptest::prop_assert_eq!(rig.rules(ip), expected, "{} after {:?}", ip, step);
                let handled = model.database.get(&format!("/qubes-firewall-handled/{ip}"));
                let marks = model.marks.get(ip).map(u64::to_string);
                proptest::prop_assert_eq!(handled, marks.as_ref());
            }
        }
    }
}
