//! The store: who uses which name, what clients learn by themselves, bounds, and what dom0 is told.

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
    assert_eq!(script.dns.store.sizes().1, 4);
    let newest = Ipv4Addr::new(203, 0, 113, 99);
    assert_eq!([script.knows(newest), script.knows(Y)], [NameMatch::Has, NameMatch::Unresolved]);
}

#[test]
fn a_client_that_learns_much_takes_nothing_from_others() {
    let limits = Limits { addresses: 6, ..LIMITS };
    let mut script = Script::with_limits(limits);
    script.servers(&[FIRST]);
    script.names(OTHER, &["b.example.org"]);
    script.resolve(300, X);
    script.names(CLIENT, &[NAME, "c.example.org"]);
    for n in 0..50u8 {
        let address = Ipv4Addr::new(203, 0, 113, n);
        script.learn(CLIENT, &heard(NAME).a(600, address));
        script.learn(CLIENT, &heard("c.example.org").a(600, address));
    }
    assert_eq!(script.dns.store.sizes().1, 6);
    assert_eq!(script.look(OTHER, "b.example.org", X), NameMatch::Has);
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
