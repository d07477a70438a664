//! The store: who uses which name, what clients learn by themselves, bounds, and what dom0 is told.

use proptest::prelude::*;

use super::*;

fn told(script: &mut Script) -> Vec<(IpAddr, String)> {
    core::iter::from_fn(|| script.dns.take_change())
        .map(|(client, name)| (client, name.as_str().into()))
        .collect()
}

fn published(script: &Script, client: IpAddr) -> Vec<IpAddr> {
    let mut all: Vec<_> = script.dns.addresses_of(script.now, client, &host_name(NAME)).collect();
    all.sort_unstable();
    all
}

/// An answer that a client got, about a question of its own.
fn heard(name: &str) -> Reply {
    let question = [wire(name), vec![0, 1, 0, 1]].concat();
    Reply::to(&Asked { server: FIRST.into(), port: 4, id: 99, question })
}

#[test]
fn clients_share_what_our_resolver_knows() {
    let mut script = Script::new(&[NAME]);
    script.resolve(300, X);
    assert_eq!(script.look(OTHER, NAME, X), NameMatch::Unresolved, "not a name of its rules");
    script.names(OTHER, &[NAME]);
    assert!(script.all_asked().is_empty());
    assert_eq!(script.look(OTHER, NAME, X), NameMatch::Has);
}

#[test]
fn a_name_goes_with_its_last_use() {
    let mut script = Script::new(&[NAME, "b.example.org"]);
    script.names(OTHER, &[NAME]);
    for asked in script.all_asked() {
        script.reply(&asked, &Reply::to(&asked).a(300, X));
    }
    assert_eq!(script.dns.store.sizes(), (2, 2));
    script.names(CLIENT, &["b.example.org"]);
    assert_eq!(script.knows(X), NameMatch::Unresolved);
    assert_eq!(script.look(OTHER, NAME, X), NameMatch::Has);
    script.names(OTHER, &[]);
    script.names(CLIENT, &[]);
    assert_eq!(script.dns.store.sizes(), (0, 0));
    assert!(script.all_asked().is_empty());
}

#[test]
fn an_edit_that_keeps_a_name_keeps_its_addresses() {
    let mut script = Script::new(&[NAME]);
    script.resolve(300, X);
    script.learn(CLIENT, &heard(NAME).a(300, Y));
    script.names(CLIENT, &["b.example.org", NAME, NAME]);
    assert_eq!([script.knows(X), script.knows(Y)], [NameMatch::Has; 2]);
}

#[test]
fn a_dot_at_the_end_makes_no_difference() {
    let mut script = Script::new(&["www.example.org."]);
    script.resolve(300, X);
    script.learn(CLIENT, &heard(NAME).a(300, Y));
    assert_eq!(script.look(CLIENT, "www.example.org.", X), NameMatch::Has);
    assert_eq!(script.look(CLIENT, "www.example.org.", Y), NameMatch::Has);
}

#[test]
fn what_a_client_was_answered_counts_for_its_own_rules_alone() {
    let mut script = Script::new(&[NAME]);
    script.names(OTHER, &[NAME]);
    script.learn(CLIENT, &heard("WWW.eXample.org").a(120, Y));
    assert_eq!(script.knows(Y), NameMatch::Has);
    assert_eq!(script.knows(X), NameMatch::Unresolved, "our own resolver has not answered");
    assert_eq!(script.look(OTHER, NAME, Y), NameMatch::Unresolved);
    script.wait(119);
    assert_eq!(script.knows(Y), NameMatch::Has);
    script.wait(1);
    assert_eq!(script.knows(Y), NameMatch::Unresolved);
}

#[test]
fn nothing_but_answers_about_names_of_the_rules_is_learned() {
    let mut script = Script::new(&[NAME]);
    script.learn(CLIENT, &heard("evil.example.org").a(120, Y));
    script
        .learn(CLIENT, &heard(NAME).answer(record(&wire("evil.example.org"), A, 60, &Y.octets())));
    script.learn(CLIENT, &heard(NAME).a(60, Y).rcode(2));
    script.learn(CLIENT, &heard(NAME).a(60, Y).with(|r| r.flags = 0x0100));
    script.learn(CLIENT, &heard(NAME).a(60, Y).with(|r| r.flags |= 0x0200));
    script.learn(OTHER, &heard(NAME).a(60, Y));
    script.dns.learn(script.now, b"noise", |_| Some(CLIENT));
    assert_eq!(script.dns.store.sizes(), (1, 0));
}

#[test]
fn what_was_learned_has_bounds_in_time_and_number() {
    let mut script = Script::new(&[NAME]);
    script.learn(CLIENT, &heard(NAME).a(0, Y));
    script.wait(59);
    assert_eq!(script.knows(Y), NameMatch::Has);
    for n in 0..100u8 {
        script.learn(CLIENT, &heard(NAME).a(u32::from(n) + 100, Ipv4Addr::new(203, 0, 113, n)));
    }
    assert_eq!(script.dns.store.sizes().1, 1);
    let newest = Ipv4Addr::new(203, 0, 113, 99);
    assert_eq!([script.knows(newest), script.knows(Y)], [NameMatch::Has, NameMatch::Unresolved]);
}

#[test]
fn a_client_that_learns_much_leaves_others_their_share() {
    let limits = Limits { addresses: 16, addresses_per_name: 16, ..LIMITS };
    let mut script = Script::with_limits(limits);
    script.servers(&[FIRST]);
    let names = [NAME, "c.example.org", "d.example.org"];
    script.names(CLIENT, &names);
    for n in 0..50u8 {
        for name in names {
            script.learn(CLIENT, &heard(name).a(600, Ipv4Addr::new(203, 0, 113, n)));
        }
    }
    assert_eq!(script.dns.store.sizes().1, 8, "half of all");
    script.names(OTHER, &["b.example.org"]);
    let of_others = |n| Ipv4Addr::new(192, 0, 2, n);
    for n in 0..2 {
        script.learn(OTHER, &heard("b.example.org").a(60, of_others(n)));
    }
    for asked in script.all_asked() {
        script.reply(&asked, &Reply::to(&asked).a(300, X));
    }
    assert_eq!(script.dns.store.sizes().1, 8 + 4);
    for address in [of_others(0), of_others(1), X] {
        assert_eq!(script.look(OTHER, "b.example.org", address), NameMatch::Has);
    }
}

#[test]
fn a_name_with_many_addresses_leaves_others_their_share() {
    let limits = Limits { addresses: 16, addresses_per_name: 8, ..LIMITS };
    let mut script = Script::with_limits(limits);
    script.servers(&[FIRST]);
    script.names(CLIENT, &[NAME]);
    let asked = script.ask();
    let many = (0..64).fold(Reply::to(&asked), |r, n| r.a(600, Ipv4Addr::new(203, 0, 113, n)));
    script.reply(&asked, &many);
    assert_eq!(script.dns.store.sizes().1, 8);
    script.names(OTHER, &["b.example.org"]);
    script.resolve(60, X);
    assert_eq!(script.look(OTHER, "b.example.org", X), NameMatch::Has);
    assert_eq!(script.dns.store.sizes().1, 8);
}

#[test]
fn a_name_costs_no_more_than_it_says() {
    let cost = store::Store::COST;
    assert!(cost <= Limits::NAME_BYTES, "{cost} bytes");
    let limits = Limits::for_clients(512);
    assert_eq!((limits.uses, limits.addresses), (2 * limits.names, 4 * limits.names));
    // What 16 MiB of memory can spare.
    assert!(limits.names as usize * Limits::NAME_BYTES <= 640 << 10);
}

/// What may happen to the store.
#[derive(Clone, Debug)]
enum Step {
    Names(u8, Vec<u8>),
    Answer(u8, Vec<u8>, u32),
    Learn(u8, u8, Vec<u8>, u32),
    Wait(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let some = |n: u8| proptest::collection::vec(0..n, 0..6);
    let ttl = prop_oneof![0u32..200, Just(100_000)];
    let step = prop_oneof![
        (0u8..3, some(6)).prop_map(|(client, names)| Step::Names(client, names)),
        (0u8..3, some(12), ttl.clone()).prop_map(|(kind, all, ttl)| Step::Answer(kind, all, ttl)),
        (0u8..3, 0u8..6, some(12), ttl).prop_map(|(c, n, all, ttl)| Step::Learn(c, n, all, ttl)),
        prop_oneof![0u64..100, Just(4000)].prop_map(Step::Wait),
    ];
    proptest::collection::vec(step, 1..60)
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, n)
}

/// The stamp, and which names are known to the clients.
fn what_is_known(
    script: &Script,
    clients: [IpAddr; 3],
    hosts: &[HostName],
) -> (Option<u64>, Vec<bool>) {
    let views = clients.map(|client| script.dns.view(script.now, client, None));
    let known = views.iter().flat_map(|view| hosts.iter().map(|host| view.is_known(host)));
    (views[0].stamp(), known.collect())
}

/// A name about which the questions contradict each other.
fn disagreement(view: &View<'_>, address: Ipv4Addr, hosts: &[HostName]) -> Option<HostName> {
    let mut at: Vec<String> = Vec::new();
    view.each_at(address.into(), &mut |name| at.push(name.to_owned()));
    let expected = |host: &HostName| match at.iter().any(|name| name == host.as_str()) {
        true => NameMatch::Has,
        false if view.is_known(host) => NameMatch::HasNot,
        false => NameMatch::Unresolved,
    };
    hosts.iter().find(|host| view.lookup(host, address.into()) != expected(host)).cloned()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever happens, all questions agree, all bounds hold, and nothing is left when the names are gone.
    #[test]
    fn the_store_agrees_with_itself(steps in steps()) {
        let client = |n: u8| IpAddr::from([10, 137, 0, n]);
        let name = |n: u8| format!("n{n}.example.org");
        let hosts: Vec<HostName> = (0..6).map(|n| host_name(&name(n))).collect();
        let mut script = Script::with_limits(Limits { names: 5, ..LIMITS });
        script.servers(&[FIRST]);
        let mut known_before = (None, Vec::new());
        for step in steps {
            match step {
                Step::Names(n, names) => {
                    let names: Vec<String> = names.into_iter().map(name).collect();
                    script.names(client(n), &names.iter().map(String::as_str).collect::<Vec<_>>());
                }
                Step::Answer(kind, all, ttl) => for asked in script.all_asked() {
                    let reply = Reply::to(&asked);
                    let reply = match kind {
                        0 => all.iter().fold(reply, |reply, n| reply.a(ttl, address(*n))),
                        1 => reply.rcode(3),
                        _ => reply.rcode(2),
                    };
                    script.reply(&asked, &reply);
                },
                Step::Learn(c, n, all, ttl) => {
                    let reply = all.iter().fold(heard(&name(n)), |r, n| r.a(ttl, address(*n)));
                    script.learn(client(c), &reply);
                }
                Step::Wait(seconds) => script.wait(seconds),
            }
            prop_assert!(script.dns.store.sizes().1 <= 16);
            let known = what_is_known(&script, [0, 1, 2].map(client), &hosts);
            prop_assert!(known.0 != known_before.0 || known.1 == known_before.1, "same stamp");
            known_before = known;
            for c in 0..3 {
                let view = script.dns.view(script.now, client(c), None);
                for a in 0..12 {
                    let mut at: Vec<String> = Vec::new();
                    view.each_at(address(a).into(), &mut |name| at.push(name.to_owned()));
                    // A flow that keeps this address under one of the names makes it one more, and makes none known.
                    if let Some(held) = view.hold(&hosts[usize::from(a) % hosts.len()]) {
                        let held = (held, address(a).into());
                        let view = script.dns.view(script.now, client(c), Some(held));
                        prop_assert_eq!(disagreement(&view, address(a), &hosts), None);
                    }
                    prop_assert_eq!(disagreement(&view, address(a), &hosts), None);
                    for host in &hosts {
                        let has = at.iter().any(|name| name == host.as_str());
                        let mut listed = script.dns.addresses_of(script.now, client(c), host);
                        prop_assert_eq!(has, listed.any(|one| one == IpAddr::from(address(a))));
                    }
                }
            }
        }
        (0..3).for_each(|c| { script.names(client(c), &[]); });
        prop_assert_eq!(script.dns.store.sizes(), (0, 0));
        prop_assert!(!script.dns.has_changes());
        prop_assert_eq!(script.dns.take_problem(), None);
    }
}

#[test]
fn names_are_bounded_per_client_and_in_all() {
    let mut script = Script::new(&["a", "b", "c", "d", "e", "a"]);
    assert_eq!(script.names(CLIENT, &["a", "b", "c", "d", "e", "a"]), 1);
    assert_eq!(script.dns.store.sizes().0, 4);
    assert_eq!(script.names(OTHER, &["a", "f", "g", "h"]), 0);
    let third = IpAddr::from([10, 137, 0, 12]);
    assert_eq!(
        script.names(third, &["i", "j", "k", "a"]),
        2,
        "one more in all, and one that is known"
    );
    assert_eq!(script.look(third, "k", X), NameMatch::Unresolved);
}

#[test]
fn addresses_are_told_when_they_change_and_not_when_they_are_confirmed() {
    let mut script = Script::new(&[NAME]);
    script.names(OTHER, &[NAME]);
    let both = [(CLIENT, NAME.into()), (OTHER, NAME.into())];
    assert_eq!(told(&mut script), both);
    script.resolve(60, X);
    assert_eq!(told(&mut script), both);
    assert_eq!(published(&script, OTHER), [IpAddr::from(X)]);
    script.wait(45);
    script.resolve(60, X);
    assert_eq!(told(&mut script), []);
    script.learn(CLIENT, &heard(NAME).a(60, Y));
    assert_eq!(told(&mut script), [(CLIENT, NAME.into())]);
    assert_eq!(published(&script, CLIENT), [X, Y].map(IpAddr::from));
    assert_eq!(published(&script, OTHER), [IpAddr::from(X)]);
    script.wait(75);
    assert_eq!(told(&mut script), [(CLIENT, NAME.into())], "what was learned is over");
    assert_eq!(published(&script, CLIENT), [IpAddr::from(X)]);
    assert!(!script.dns.has_changes());
    script.names(CLIENT, &[NAME]);
    assert_eq!(told(&mut script), [(CLIENT, NAME.into())], "each edit");
}

#[test]
fn a_flow_keeps_its_address_under_its_name() {
    let mut script = Script::new(&[NAME]);
    let held = script.dns.view(script.now, CLIENT, None).hold(&host_name(NAME)).unwrap();
    assert_eq!(script.dns.view(script.now, OTHER, None).hold(&host_name(NAME)), None);
    let check = |script: &Script, expected: NameMatch| {
        let view = script.dns.view(script.now, CLIENT, Some((held, X.into())));
        assert_eq!(view.lookup(&host_name(NAME), X.into()), expected);
        let mut at = Vec::new();
        view.each_at(X.into(), &mut |name| at.push(name.to_owned()));
        assert_eq!(at, if expected == NameMatch::Has { vec![NAME] } else { vec![] });
        assert_eq!(view.lookup(&host_name("b.example.org"), X.into()), NameMatch::Unresolved);
        assert_eq!(view.lookup(&host_name(NAME), Y.into()), NameMatch::Unresolved);
        assert!(!view.is_known(&host_name(NAME)), "one address of it is not all");
    };
    check(&script, NameMatch::Has);
    script.names(CLIENT, &["c.example.org", NAME]);
    check(&script, NameMatch::Has);
    script.names(CLIENT, &["c.example.org"]);
    check(&script, NameMatch::Unresolved);
    script.names(CLIENT, &[NAME]);
    check(&script, NameMatch::Unresolved);
}

#[test]
fn a_flow_can_keep_every_name_that_there_can_be() {
    for slot in [0, 1, 255, 256, MAX_NAMES - 1] {
        for serial in [0, 1, u32::MAX] {
            let name = NameId { slot, serial };
            assert_eq!(Held::of(name).map(Held::name), Some(name));
        }
    }
    assert_eq!(Held::of(NameId { slot: MAX_NAMES, serial: 1 }), None);
    assert_eq!(Limits::for_clients(u16::MAX).names, MAX_NAMES);
}

#[test]
fn the_reverse_question_agrees_and_the_stamp_moves_with_what_is_known() {
    let mut script = Script::new(&[NAME, "b.example.org"]);
    let stamp = |script: &Script| script.dns.view(script.now, CLIENT, None).stamp();
    let at = |script: &Script, client, address: Ipv4Addr| {
        let mut all = Vec::new();
        let view = script.dns.view(script.now, client, None);
        view.each_at(address.into(), &mut |name| all.push(name.to_owned()));
        all.sort();
        all
    };
    script.names(OTHER, &[NAME]);
    let before = stamp(&script);
    for asked in script.all_asked() {
        script.reply(&asked, &Reply::to(&asked).a(60, X));
    }
    let known = stamp(&script);
    assert_ne!(known, before);
    script.learn(CLIENT, &heard(NAME).a(60, Y));
    assert_eq!(stamp(&script), known);
    assert_eq!(at(&script, CLIENT, X), ["b.example.org", NAME]);
    assert_eq!([at(&script, CLIENT, Y), at(&script, OTHER, X)], [[NAME]; 2]);
    assert!(at(&script, OTHER, Y).is_empty());
    script.wait(60);
    assert!(at(&script, CLIENT, Y).is_empty());
    assert_eq!(stamp(&script), known);
    script.wait(3600);
    assert_ne!(stamp(&script), known);
    assert!(at(&script, CLIENT, X).is_empty());
}
