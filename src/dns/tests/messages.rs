//! The parser: what a message says, and that nothing in it makes us go in circles, panic or believe too much.

use proptest::prelude::*;

use super::message::{Malformed, Outcome, read};
use super::*;

fn question(name: &[u8], kind: u16) -> Asked {
    let question = [name, &kind.to_be_bytes()[..], &[0, 1]].concat();
    Asked { server: FIRST.into(), port: 1, id: 7, question }
}

fn about(name: &str) -> Reply {
    Reply::to(&question(&wire(name), A))
}

fn outcome(reply: &Reply) -> Result<Outcome, Malformed> {
    read(&reply.bytes())?.outcome()
}

fn addresses(reply: &Reply) -> (Vec<IpAddr>, u32) {
    match outcome(reply) {
        Ok(Outcome::Addresses { addresses, ttl_s }) => (addresses.iter().collect(), ttl_s),
        other => panic!("{other:?}"),
    }
}

#[test]
fn addresses_come_with_the_least_ttl_and_once() {
    let reply = about(NAME).a(300, X).a(60, Y).a(300, X);
    assert_eq!(addresses(&reply), (vec![X.into(), Y.into()], 60));
    let message_bytes = reply.bytes();
    let message = read(&message_bytes).unwrap();
    assert_eq!((message.id(), message.name().unwrap().as_str()), (7, NAME));
}

#[test]
fn aliases_are_followed_in_any_order_and_others_are_not() {
    let (b, c) = (wire("b.example.net"), wire("c.example.net"));
    let reply = about(NAME)
        .answer(record(&c, A, 500, &X.octets()))
        .answer(record(&b, CNAME, 40, &c))
        .answer(record(TO_QUESTION, CNAME, 90, &wire("B.Example.NET")))
        .answer(record(&wire("evil.example.com"), A, 5, &Y.octets()))
        .answer(record(&c, AAAA, 5, &Ipv6Addr::LOCALHOST.octets()));
    assert_eq!(addresses(&reply), (vec![X.into()], 40));
}

#[test]
fn a_chain_may_have_eight_aliases_and_not_nine() {
    let link = |n: usize| wire(&format!("n{n}.example.org"));
    let chain = |aliases: usize| {
        let first = record(TO_QUESTION, CNAME, 60, &link(1));
        let rest = (1..aliases).map(|n| record(&link(n), CNAME, 60, &link(n + 1)));
        let reply = rest.fold(about(NAME).answer(first), Reply::answer);
        reply.answer(record(&link(aliases), A, 60, &X.octets()))
    };
    assert_eq!(addresses(&chain(8)).0, [IpAddr::from(X)]);
    assert_eq!(outcome(&chain(9)), Err(Malformed::TooManyAliases));
}

#[test]
fn aliases_in_a_circle_end() {
    let b = wire("b.example.org");
    let reply = about(NAME).answer(record(TO_QUESTION, CNAME, 60, &b)).answer(record(
        &b,
        CNAME,
        60,
        TO_QUESTION,
    ));
    assert_eq!(outcome(&reply), Err(Malformed::TooManyAliases));
    let to_itself = about(NAME).answer(record(TO_QUESTION, CNAME, 60, TO_QUESTION));
    assert_eq!(outcome(&to_itself), Err(Malformed::TooManyAliases));
}

#[test]
fn pointers_in_circles_and_beyond_the_message_are_unreadable() {
    let at = (12 + about(NAME).question.len()) as u8;
    for pointer in [[0xc0, at], [0xff, 0xff]] {
        let reply = about(NAME).answer(record(&pointer, A, 60, &X.octets()));
        assert_eq!(outcome(&reply), Err(Malformed::Unreadable), "{pointer:?}");
    }
    // Two pointers at each other, in the data of a record.
    let circle =
        about(NAME).answer(record(TO_QUESTION, CNAME, 60, &[0xc0, at + 14, 0xc0, at + 12]));
    assert_eq!(outcome(&circle), Err(Malformed::Unreadable));
    assert_eq!(read(&Reply::to(&question(&[0xc0, 12], A)).bytes()).unwrap().name().map(drop), None);
}

#[test]
fn names_longer_than_dns_allows_are_unreadable() {
    let label = [&[63][..], &[b'a'; 63]].concat();
    let long = [label.concat_times(5), vec![0]].concat();
    let reply = Reply::to(&question(&long, A)).answer(record(TO_QUESTION, A, 60, &X.octets()));
    assert_eq!(outcome(&reply), Err(Malformed::Unreadable));
    assert!(read(&reply.bytes()).unwrap().name().is_none());
}

trait Times {
    fn concat_times(&self, n: usize) -> Vec<u8>;
}

impl Times for Vec<u8> {
    fn concat_times(&self, n: usize) -> Vec<u8> {
        core::iter::repeat_n(self.as_slice(), n).flatten().copied().collect()
    }
}

#[test]
fn more_addresses_than_are_kept_are_left_out() {
    let reply = (0..200u8).fold(about(NAME), |reply, n| reply.a(60, Ipv4Addr::new(192, 0, 2, n)));
    assert_eq!(addresses(&reply).0.len(), message::MAX_ADDRESSES);
}

#[test]
fn absence_lives_as_long_as_the_soa_says() {
    let absent = |reply: Reply| outcome(&reply).unwrap();
    let nx = about(NAME).rcode(3);
    assert_eq!(absent(nx.clone()), Outcome::NoSuchName { ttl_s: None });
    assert_eq!(
        absent(nx.clone().authority(soa(300, 900))),
        Outcome::NoSuchName { ttl_s: Some(300) }
    );
    assert_eq!(absent(nx.authority(soa(900, 200))), Outcome::NoSuchName { ttl_s: Some(200) });
    let alias = about(NAME).answer(record(TO_QUESTION, CNAME, 60, &wire("b.example.org")));
    assert_eq!(absent(alias.authority(soa(9, 9))), Outcome::NoAddress { ttl_s: Some(9) });
    let other = about(NAME).answer(record(TO_QUESTION, AAAA, 60, &Ipv6Addr::LOCALHOST.octets()));
    assert_eq!(absent(other), Outcome::NoAddress { ttl_s: None });
    // "Ask others": we cannot.
    let referral = about(NAME).authority(record(&wire("org"), NS, 60, &wire("ns.example.org")));
    assert_eq!(absent(referral), Outcome::Failed);
}

#[test]
fn other_codes_are_failures_and_a_cut_answer_says_nothing() {
    for rcode in [1, 2, 4, 5, 11] {
        assert_eq!(outcome(&about(NAME).a(60, X).rcode(rcode)), Ok(Outcome::Failed));
    }
    let cut = about(NAME).a(60, X).with(|reply| reply.flags |= 0x0200);
    assert_eq!(outcome(&cut), Ok(Outcome::Truncated));
}

#[test]
fn a_ttl_that_is_none_is_zero() {
    assert_eq!(addresses(&about(NAME).a(0x8000_0000, X)).1, 0);
    assert_eq!(addresses(&about(NAME).a(0x7fff_ffff, X)).1, 0x7fff_ffff);
}

#[test]
fn what_is_no_response_to_one_question_is_refused() {
    let header = |reply: &Reply| read(&reply.bytes()).map(drop);
    assert_eq!(header(&about(NAME).with(|r| r.flags = 0x0100)), Err(Malformed::NoResponse));
    assert_eq!(header(&about(NAME).with(|r| r.flags = 0xa180)), Err(Malformed::NoResponse));
    assert_eq!(header(&Reply::to(&question(&wire(NAME), 16))), Err(Malformed::OtherType));
    let chaos = about(NAME).with(|r| *r.question.last_mut().unwrap() = 3);
    assert_eq!(header(&chaos), Err(Malformed::Unreadable));
    let mut two = about(NAME).bytes();
    two[5] = 2;
    assert_eq!(read(&two).map(drop), Err(Malformed::NoResponse));
    let whole = about(NAME).a(60, X).bytes();
    for len in 0..whole.len() {
        let cut = read(&whole[..len]).and_then(|message| message.outcome());
        assert_eq!(cut, Err(Malformed::Unreadable), "{len}");
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        if let Ok(message) = read(&bytes) {
            let _ = (message.id(), message.name(), message.outcome());
        }
    }

    #[test]
    fn no_change_of_an_answer_makes_the_parser_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
    ) {
        let reply = about(NAME)
            .answer(record(TO_QUESTION, CNAME, 60, &wire("b.example.org")))
            .answer(record(&wire("b.example.org"), A, 60, &X.octets()))
            .authority(soa(1, 1));
        let mut bytes = reply.bytes();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(message) = read(&bytes) {
            let _ = message.name();
            if let Ok(Outcome::Addresses { addresses, .. }) = message.outcome() {
                let family = message.kind().family();
                prop_assert!(addresses.iter().all(|address| Family::of(address) == family));
            }
        }
    }
}
