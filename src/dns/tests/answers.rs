//! Questions and answers: who may answer, what happens when nobody does, how long an answer counts.

use proptest::prelude::*;

use super::*;

#[test]
fn a_name_is_asked_for_and_its_addresses_match() {
    let mut script = Script::new(&[NAME]);
    assert_eq!(script.knows(X), NameMatch::Unresolved);
    let asked = script.ask();
    assert_eq!((asked.server, asked.kind()), (FIRST.into(), A));
    assert!(asked.port >= 1024);
    assert_eq!(asked.name().to_ascii_lowercase(), wire(NAME));
    assert_eq!(script.reply(&asked, &Reply::to(&asked).a(300, X).a(300, Y)), Taken::Used);
    assert_eq!([script.knows(X), script.knows(Y)], [NameMatch::Has; 2]);
    assert_eq!(script.knows(FIRST), NameMatch::HasNot);
    assert_eq!(script.nat.leased(), 0);
    // The same answer again finds nobody.
    assert_eq!(script.reply(&asked, &Reply::to(&asked).a(300, Y)), Taken::NotOurs);
}

#[test]
fn ports_numbers_and_cases_differ_from_question_to_question() {
    let mut script = Script::new(&[NAME, "a.example.org", "b.example.org"]);
    let asked = script.all_asked();
    assert_eq!(asked.len(), 3);
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        assert_ne!(asked[one].port, asked[other].port);
        assert_ne!(asked[one].id, asked[other].id);
    }
    let mixed = asked.iter().any(|asked| {
        asked.name().iter().any(u8::is_ascii_uppercase)
            && asked.name().iter().any(u8::is_ascii_lowercase)
    });
    assert!(mixed, "{asked:?}");
}

#[test]
fn an_ipv6_tree_asks_for_aaaa() {
    let mut script = Script::new(&[]);
    let client: IpAddr = "fd09:24ef:4179::a89:a".parse().unwrap();
    let address: Ipv6Addr = "2001:db8::5".parse().unwrap();
    script.names(client, &[NAME]);
    let asked = script.ask();
    assert_eq!(asked.kind(), AAAA);
    script
        .reply(&asked, &Reply::to(&asked).answer(record(TO_QUESTION, AAAA, 60, &address.octets())));
    assert_eq!(script.look(client, NAME, address), NameMatch::Has);
    assert_eq!(script.look(CLIENT, NAME, X), NameMatch::Unresolved);
}

#[test]
fn only_the_server_that_was_asked_may_answer_at_the_port_with_number_and_question() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    let good = Reply::to(&asked).a(300, X);
    let bytes = good.bytes();
    let evil = IpAddr::from([203, 0, 113, 9]);
    assert_eq!(script.receive(evil, asked.port, &bytes), Taken::Wrong);
    assert_eq!(script.receive(SECOND.into(), asked.port, &bytes), Taken::Wrong);
    assert_eq!(script.receive(asked.server, asked.port ^ 1, &bytes), Taken::NotOurs);
    let wrong_id = good.clone().with(|r| r.id ^= 1);
    assert_eq!(script.reply(&asked, &wrong_id), Taken::Wrong);
    let other_name =
        good.clone().with(|r| r.question = [wire("evil.example.org"), vec![0, 1, 0, 1]].concat());
    assert_eq!(script.reply(&asked, &other_name), Taken::Wrong);
    let other_type = good.clone().with(|r| {
        let at = r.question.len() - 3;
        r.question[at] = 28;
    });
    assert_eq!(script.reply(&asked, &other_type), Taken::Wrong);
    assert_eq!(script.receive(asked.server, asked.port, b"nonsense"), Taken::Wrong);
    assert_eq!(script.knows(X), NameMatch::Unresolved);
    assert_eq!(script.reply(&asked, &good), Taken::Used);
    assert_eq!(script.knows(X), NameMatch::Has);
}

#[test]
fn guessing_makes_the_question_move_to_another_port() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    for id in 1..=8 {
        let guess = Reply::to(&asked).a(300, X).with(|r| r.id = asked.id.wrapping_add(id));
        assert_eq!(script.reply(&asked, &guess), Taken::Wrong);
    }
    assert_eq!(script.reply(&asked, &Reply::to(&asked).a(300, X)), Taken::NotOurs);
    let again = script.ask();
    assert_ne!((again.port, again.id), (asked.port, asked.id));
    assert_eq!(script.knows(X), NameMatch::Unresolved);
}

#[test]
fn a_server_that_loses_the_case_is_asked_once_more_without() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    let lower = |r: &mut Reply| r.question.make_ascii_lowercase();
    assert_eq!(script.reply(&asked, &Reply::to(&asked).a(300, Y).with(lower)), Taken::Used);
    assert_eq!(script.knows(Y), NameMatch::Unresolved);
    let plain = script.ask();
    assert_eq!((plain.server, plain.name()), (asked.server, wire(NAME).as_slice()));
    assert_ne!((plain.port, plain.id), (asked.port, asked.id));
    script.reply(&plain, &Reply::to(&plain).a(300, X));
    assert_eq!(script.knows(X), NameMatch::Has);
}

#[test]
fn silence_goes_round_the_servers_and_then_pauses() {
    let mut script = Script::new(&[NAME]);
    let mut servers = Vec::new();
    let mut waited = Vec::new();
    for _ in 0..4 {
        servers.push(script.ask().server);
        let before = script.now;
        script.wait_deadline();
        waited.push(script.now.since(before).as_secs());
    }
    assert_eq!(servers, [FIRST, SECOND, FIRST, SECOND].map(IpAddr::from));
    assert_eq!(waited, [2, 2, 4, 4]);
    assert!(script.all_asked().is_empty());
    assert_eq!(script.nat.leased(), 0);
    let (client, name, problem) = script.dns.take_problem().unwrap();
    assert_eq!((client, name.as_str(), problem), (CLIENT, NAME, Problem::NoAnswer));
    let mut pauses = Vec::new();
    for _ in 0..9 {
        let before = script.now;
        script.wait_deadline();
        pauses.push(script.now.since(before).as_secs());
        for _ in 0..4 {
            script.ask();
            script.wait_deadline();
        }
    }
    assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 300, 300, 300]);
    // Told once.
    assert_eq!(script.dns.take_problem(), None);
    script.wait_deadline();
    script.resolve(60, X);
    script.wait(60 + 3600);
    for _ in 0..4 {
        script.ask();
        script.wait_deadline();
    }
    assert!(script.dns.take_problem().is_some(), "told again after it worked");
}

#[test]
fn a_server_failure_goes_to_the_other_server_at_once() {
    let mut script = Script::new(&[NAME]);
    for (rcode, server) in [(2, FIRST), (5, SECOND), (4, FIRST)] {
        let asked = script.ask();
        assert_eq!(asked.server, IpAddr::from(server));
        script.reply(&asked, &Reply::to(&asked).rcode(rcode));
    }
    let asked = script.ask();
    let circle = Reply::to(&asked).answer(record(TO_QUESTION, CNAME, 60, TO_QUESTION));
    script.reply(&asked, &circle);
    assert!(script.all_asked().is_empty());
    assert_eq!(script.dns.take_problem().unwrap().2, Problem::ServerFailure);
    assert_eq!(script.knows(X), NameMatch::Unresolved);
}

#[test]
fn a_name_that_does_not_exist_is_known_and_has_nothing() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    script.reply(&asked, &Reply::to(&asked).rcode(3).authority(soa(900, 900)));
    assert_eq!(script.knows(X), NameMatch::HasNot);
    assert_eq!(script.dns.take_problem(), None);
    script.wait(600);
    assert!(script.all_asked().is_empty());
    script.wait(75);
    let asked = script.ask();
    script.reply(&asked, &Reply::to(&asked).a(60, X));
    assert_eq!(script.knows(X), NameMatch::Has);
}

#[test]
fn a_name_without_addresses_of_the_family_has_nothing() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    script.reply(&asked, &Reply::to(&asked));
    assert_eq!(script.knows(X), NameMatch::HasNot);
}

#[test]
fn ttls_are_bounded_on_both_sides() {
    for (ttl, life) in [(0, 60), (1, 60), (64, 64), (86_400, 86_400), (0x7fff_ffff, 86_400)] {
        let mut script = Script::new(&[NAME]);
        script.resolve(ttl, X);
        // A later answer takes the place of the first one; the address of that counts as long as it said.
        script.wait(life * 3 / 4 - 1);
        assert!(script.all_asked().is_empty(), "{ttl}");
        script.wait(1);
        script.resolve(86_400, Y);
        script.wait(life - life * 3 / 4 - 1);
        assert_eq!(script.knows(X), NameMatch::Has, "{ttl}");
        script.wait(1);
        assert_eq!(
            [script.knows(X), script.knows(Y)],
            [NameMatch::HasNot, NameMatch::Has],
            "{ttl}"
        );
    }
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    script.reply(&asked, &Reply::to(&asked).rcode(3).authority(soa(0x7fff_ffff, 0x7fff_ffff)));
    script.wait(3600 * 3 / 4);
    script.ask();
}

#[test]
fn the_latest_answer_counts_for_an_hour_while_no_server_answers() {
    let mut script = Script::new(&[NAME]);
    script.resolve(60, X);
    script.wait(45);
    script.resolve(60, Y);
    script.wait(30);
    assert_eq!([script.knows(X), script.knows(Y)], [NameMatch::HasNot, NameMatch::Has]);
    script.wait(30 + 3599);
    assert_eq!([script.knows(X), script.knows(Y)], [NameMatch::HasNot, NameMatch::Has]);
    // Sweeps come every 15 seconds.
    script.wait(15);
    assert_eq!([script.knows(X), script.knows(Y)], [NameMatch::Unresolved; 2]);
}

#[test]
fn a_new_server_is_asked_at_once_and_an_old_one_no_longer_heard() {
    let mut script = Script::new(&[NAME]);
    let old = script.ask();
    script.servers(&[SECOND]);
    assert_eq!(script.nat.leased(), 0);
    assert_eq!(script.reply(&old, &Reply::to(&old).a(60, X)), Taken::NotOurs);
    let new = script.resolve(300, Y);
    assert_eq!(new.server, IpAddr::from(SECOND));
    // The same servers again change nothing.
    script.servers(&[SECOND]);
    assert!(script.all_asked().is_empty());
    script.servers(&[FIRST]);
    script.ask();
    assert_eq!(script.knows(Y), NameMatch::Has, "what was known stays");
}

#[test]
fn without_a_way_nothing_is_asked_and_with_one_all_is() {
    let mut script = Script::with_limits(LIMITS);
    script.names(CLIENT, &[NAME]);
    assert!(script.all_asked().is_empty());
    assert_eq!(script.dns.next_deadline(), None);
    let no_address = Route::default().with(None::<Ipv4Addr>, &[FIRST]);
    script.dns.set_route(script.now, Some(no_address), &mut script.nat);
    assert!(script.all_asked().is_empty());
    script.servers(&[FIRST]);
    assert_eq!(script.dns.next_deadline(), Some(script.now));
    script.ask();
    script.dns.set_route(script.now, None, &mut script.nat);
    assert_eq!((script.nat.leased(), script.dns.next_deadline()), (0, None));
}

#[test]
fn questions_on_their_way_are_bounded_and_all_get_their_turn() {
    let names: Vec<String> = (0..20).map(|n| format!("n{n}.example.org")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let limits = Limits { names: 20, names_per_client: 20, uses: 20, addresses: 40, ..LIMITS };
    let mut script = Script::with_limits(limits);
    script.servers(&[FIRST, SECOND]);
    assert_eq!(script.names(CLIENT, &names), 0);
    let mut asked = script.all_asked();
    assert_eq!(asked.len(), 8);
    assert!(
        script.dns.next_deadline().unwrap() > script.now,
        "no idle turns while all are on their way"
    );
    let mut resolved = 0;
    while let Some(one) = asked.pop() {
        script.reply(&one, &Reply::to(&one).a(600, X));
        resolved += 1;
        asked.extend(script.all_asked());
    }
    assert_eq!(resolved, 20);
    assert!(names.iter().all(|name| script.look(CLIENT, name, X) == NameMatch::Has));
    assert_eq!(script.nat.leased(), 0);
}

#[test]
fn a_name_that_is_gone_holds_up_no_other() {
    let silent: Vec<String> = (0..8).map(|n| format!("n{n}.example.org")).collect();
    let limits = Limits { names: 10, names_per_client: 10, uses: 10, ..LIMITS };
    let mut script = Script::with_limits(limits);
    script.servers(&[FIRST, SECOND]);
    script.names(CLIENT, &silent.iter().map(String::as_str).collect::<Vec<_>>());
    let asked = script.all_asked();
    assert_eq!(asked.len(), 8);
    let [one, ..] = asked.as_slice() else { panic!("eight") };
    script.names(CLIENT, &["n1.example.org", "new.example.org"]);
    assert!(script.dns.next_deadline().unwrap() <= script.now);
    let again = script.all_asked();
    let names: Vec<_> = again.iter().map(|asked| asked.name().to_ascii_lowercase()).collect();
    assert_eq!(names, [b"\x03new\x07example\x03org\0".to_vec()]);
    // The port is given back with the place.
    assert_eq!(script.reply(one, &Reply::to(one).a(600, X)), Taken::NotOurs);
}

#[test]
fn no_free_port_is_a_failure_like_another() {
    let mut script = Script::new(&[NAME]);
    let mut held = Vec::new();
    while let Some(lease) = script.nat.lease_own(17) {
        held.push(lease);
    }
    assert!(script.all_asked().is_empty());
    assert_eq!(script.dns.take_problem().unwrap().2, Problem::NoAnswer);
    assert!(script.dns.next_deadline().unwrap() > script.now);
    held.into_iter().for_each(|lease| script.nat.give_back_own(17, lease));
    script.wait(5);
    script.ask();
}

#[test]
fn what_dns_cannot_carry_is_never_asked_for_and_told() {
    let mut script = Script::new(&["a..b"]);
    assert!(script.all_asked().is_empty());
    let (_, name, problem) = script.dns.take_problem().unwrap();
    assert_eq!((name.as_str(), problem), ("a..b", Problem::NoDnsName));
    assert_eq!(script.look(CLIENT, "a..b", X), NameMatch::Unresolved);
    assert_eq!(script.dns.next_deadline(), None);
}

#[test]
fn an_answer_for_a_name_that_went_meanwhile_changes_nothing() {
    let mut script = Script::new(&[NAME]);
    let asked = script.ask();
    script.names(CLIENT, &[]);
    script.names(CLIENT, &["other.example.org"]);
    script.reply(&asked, &Reply::to(&asked).a(60, X));
    assert_eq!(script.look(CLIENT, "other.example.org", X), NameMatch::Unresolved);
    assert_eq!(script.knows(X), NameMatch::Unresolved);
    script.ask();
}

proptest! {
    /// Whatever arrives, only the right answer of the right server resolves the name, no port leaks, and the machine
    /// never wants to be woken at once without having something to say.
    #[test]
    fn noise_changes_nothing(
        packets in proptest::collection::vec(
            (any::<bool>(), any::<bool>(), proptest::collection::vec(any::<u8>(), 0..80), 0u64..4),
            1..60,
        ),
    ) {
        let mut script = Script::new(&[NAME, "b.example.org"]);
        let mut asked = script.all_asked();
        for (right_port, right_start, mut bytes, seconds) in packets {
            let Some(one) = asked.first().cloned() else { break };
            if right_start {
                let mut whole = Reply::to(&one).with(|r| r.id ^= 0x8001).bytes();
                whole.append(&mut bytes);
                bytes = whole;
            }
            let port = if right_port { one.port } else { one.port.wrapping_add(1) };
            let taken = script.receive(one.server, port, &bytes);
            prop_assert_ne!(taken, Taken::Used);
            script.wait(seconds);
            let next = script.all_asked();
            if !next.is_empty() {
                asked = next;
            }
            if let Some(at) = script.dns.next_deadline() {
                prop_assert!(at > script.now);
            }
            prop_assert!(script.nat.leased() <= 2 * 2, "two queries, a port of each family");
            prop_assert_eq!(script.knows(X), NameMatch::Unresolved);
        }
    }
}
