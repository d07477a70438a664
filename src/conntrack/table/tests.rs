//! What a flow keeps of its faces is all of them, and no other face is taken for one of them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use core::time::Duration;

use super::*;
use crate::clients::Generation;
use crate::conntrack::{Basis, Permit, Standing};
use crate::nat::MappingId;
use crate::wire::protocol;

const OWN: Own =
    Own { v4: Ipv4Addr::new(10, 137, 0, 5), v6: Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 5) };
/// Each at the place of its owner. The last one is the first one for who looks at the low bits only.
const CLIENTS: [IpAddr; 5] = [
    IpAddr::V4(Ipv4Addr::new(10, 137, 0, 10)),
    IpAddr::V4(Ipv4Addr::new(10, 137, 0, 11)),
    IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 10)),
    IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 11)),
    IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0x0a89, 0x000a)),
];
const FAR: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(198, 51, 100, 7)),
    IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7)),
];
const RESOLVER: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(10, 139, 1, 1)),
    IpAddr::V6(Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 1, 0, 1)),
];

fn table() -> Table {
    let limits = Limits {
        clients: 1,
        addresses: CLIENTS.len() as u16,
        flows: 64,
        flows_per_client: 64,
        fragment_bytes: 0,
    };
    let mut table = Table::new(&limits, HashKey(1, 2)).unwrap();
    table.set_own(OWN);
    table
}

fn now() -> Instant {
    Instant::from_nanos(1 << 40)
}

/// A flow of TCP that our address stands in for.
fn flow(owner: usize) -> NewFlow {
    let (local, is_ipv6) = (CLIENTS[owner], CLIENTS[owner].is_ipv6());
    let remote = FAR[usize::from(is_ipv6)];
    let inside =
        Tuple { protocol: protocol::TCP, local, local_port: 40_000, remote, remote_port: 443 };
    NewFlow {
        inside,
        outside: Tuple { local: OWN.like(local), local_port: 40_001, ..inside },
        host: HostId(owner as u32),
        basis: Basis::Rules,
        mapping: Some(MappingId::numbered(u32::MAX)),
        is_noted: false,
        permit: Permit { generation: Generation(7), held: None },
        class: Class::TcpTransitory,
        tcp: None,
    }
}

/// One flow of each kind and family.
fn all_kinds() -> Vec<NewFlow> {
    [(0, 1), (2, 3)].into_iter().flat_map(|(owner, other)| kinds(owner, other)).collect()
}

fn kinds(owner: usize, other: usize) -> Vec<NewFlow> {
    let resolver = RESOLVER[usize::from(CLIENTS[owner].is_ipv6())];
    let base = || flow(owner);
    let with = |change: &dyn Fn(&mut NewFlow)| {
        let mut new = base();
        change(&mut new);
        new
    };
    let between = |new: &mut NewFlow, remote| {
        (new.basis, new.mapping) = (Basis::Allowed { to: HostId(other as u32) }, None);
        new.outside = Tuple { remote, ..new.inside };
    };
    vec![
        base(),
        with(&|new| new.is_noted = true),
        // DNS, redirected.
        with(&|new| {
            (new.inside.protocol, new.inside.remote_port) = (protocol::UDP, 53);
            let (local, local_port) = (new.outside.local, new.outside.local_port);
            new.outside = Tuple { local, local_port, ..new.inside };
            new.inside.remote = resolver;
        }),
        // Without ports.
        with(&|new| {
            let portless =
                |face: &Tuple| Tuple { protocol: 47, local_port: 0, remote_port: 0, ..*face };
            (new.inside, new.outside) = (portless(&new.inside), portless(&new.outside));
            new.mapping = None;
        }),
        with(&|new| (new.basis, new.mapping) = (Basis::Forwarded, None)),
        with(&|new| {
            new.inside.remote = CLIENTS[other];
            between(new, CLIENTS[other]);
        }),
        // To a client that is our resolver.
        with(&|new| {
            new.inside.remote = resolver;
            between(new, CLIENTS[other]);
        }),
    ]
}

#[test]
fn a_flow_has_all_that_it_was_made_of_and_leaves_nothing_behind() {
    for new in all_kinds() {
        let mut table = table();
        let id = table.insert(now(), &new).unwrap();
        let flow = table.get(id).unwrap();
        assert_eq!((table.inside_of(flow), table.outside_of(flow)), (new.inside, new.outside));
        assert_eq!((flow.host(), flow.basis(), flow.mapping()), (new.host, new.basis, new.mapping));
        assert_eq!((flow.is_noted(), flow.generation), (new.is_noted, new.permit.generation));
        assert_eq!((flow.standing(), flow.hold()), (Standing::Accepted, Hold::Loose));
        assert_eq!(flow.is_redirected(), new.inside.remote != new.outside.remote);
        assert_eq!(flow.deadline, now().after(new.class.lifetime()));
        assert_eq!(table.find_inside(&new.inside), Some(id));
        assert_eq!(table.find_outside(&new.outside), Some(id));
        assert_eq!(
            table.inside(&new.inside, new.host).map(|found| (found.0, found.2)),
            Some((id, OWN))
        );
        let is_between_clients = matches!(new.basis, Basis::Allowed { .. });
        assert_eq!(table.outside(&new.outside).is_none(), is_between_clients);
        assert_eq!(
            (table.has_allowed(), table.mapped()),
            (is_between_clients, new.mapping.is_some().into())
        );
        table.remove(id).unwrap();
        assert_eq!((table.len(), table.has_allowed(), table.mapped()), (0, false, 0));
        assert_eq!(
            (table.find_inside(&new.inside), table.find_outside(&new.outside)),
            (None, None)
        );
        let hashes = (hash(table.key, &new.inside), hash(table.key, &new.outside));
        assert_eq!(
            (table.by_inside.first(hashes.0), table.by_outside.first(hashes.1)),
            (None, None)
        );
    }
}

/// Everything that differs from a face in one bit, and its addresses in the other family.
fn neighbours(face: &Tuple) -> Vec<Tuple> {
    let mut all = Vec::new();
    all.extend((0..8).map(|bit| Tuple { protocol: face.protocol ^ 1 << bit, ..*face }));
    for bit in 0..16 {
        all.push(Tuple { local_port: face.local_port ^ 1 << bit, ..*face });
        all.push(Tuple { remote_port: face.remote_port ^ 1 << bit, ..*face });
    }
    for bit in 0..128 {
        let flipped = |address| match address {
            IpAddr::V4(v4) => Ipv4Addr::from(u32::from(v4) ^ 1 << (bit % 32)).into(),
            IpAddr::V6(v6) => Ipv6Addr::from(u128::from(v6) ^ 1 << bit).into(),
        };
        all.push(Tuple { local: flipped(face.local), ..*face });
        all.push(Tuple { remote: flipped(face.remote), ..*face });
    }
    let others = |address| match address {
        IpAddr::V4(v4) => {
            vec![Ipv6Addr::from(u128::from(u32::from(v4))).into(), v4.to_ipv6_mapped().into()]
        }
        IpAddr::V6(v6) => vec![IpAddr::V4(Ipv4Addr::from(u128::from(v6) as u32))],
    };
    for (local, remote) in others(face.local).into_iter().zip(others(face.remote)) {
        all.push(Tuple { local, remote, ..*face });
    }
    let own = [IpAddr::from(OWN.v4), OWN.v6.into()];
    all.extend(CLIENTS.into_iter().chain(own).map(|local| Tuple { local, ..*face }));
    // No packet has addresses of two.
    all.retain(|other| other != face && other.is_of_one_family());
    all
}

/// Chance makes no two hashes one here: what no hash tells apart has to be told apart all the same.
#[test]
fn no_other_face_is_taken_for_one_of_a_flow_even_if_it_has_the_same_hash() {
    for new in all_kinds() {
        let mut full = table();
        // Their clients have flows, so that their places have their addresses.
        (0..CLIENTS.len()).for_each(|owner| assert!(full.insert(now(), &flow(owner)).is_some()));
        let known: Vec<Tuple> =
            (0..CLIENTS.len()).flat_map(|n| [flow(n).inside, flow(n).outside]).collect();
        if known.contains(&new.inside) {
            full = table();
        }
        let id = full.insert(now(), &new).unwrap();
        for other in neighbours(&new.inside).into_iter().filter(|other| !known.contains(other)) {
            let mut table = full.clone();
            table.by_inside.insert(hash(table.key, &other), id.0);
            assert_eq!(table.find_inside(&other), None, "{other:?} {new:?}");
            for (owner, address) in CLIENTS.into_iter().enumerate() {
                if address == other.local {
                    assert!(
                        table.inside(&other, HostId(owner as u32)).is_none(),
                        "{other:?} {new:?}"
                    );
                }
            }
        }
        for other in neighbours(&new.outside).into_iter().filter(|other| !known.contains(other)) {
            let mut table = full.clone();
            table.by_outside.insert(hash(table.key, &other), id.0);
            assert_eq!(table.find_outside(&other), None, "{other:?} {new:?}");
            assert!(table.outside(&other).is_none(), "{other:?} {new:?}");
        }
    }
}

#[test]
fn what_cannot_be_kept_as_it_is_is_refused() {
    let refused = |what: &str, change: &dyn Fn(&mut NewFlow)| {
        let mut table = table();
        let mut new = flow(0);
        assert!(table.insert(now(), &flow(2)).is_some());
        change(&mut new);
        assert_eq!(table.insert(now(), &new), None, "{what}");
        assert_eq!((table.len(), table.mapped(), table.owned_by(HostId(0))), (1, 1, 0), "{what}");
        assert!(table.insert(now(), &flow(0)).is_some(), "{what}");
    };
    let elsewhere = IpAddr::from([10, 137, 0, 6]);
    refused("not behind our address", &|new| new.outside.local = elsewhere);
    refused("behind its own address", &|new| new.outside.local = new.inside.local);
    refused("other protocols", &|new| new.outside.protocol = 17);
    refused("other remote ports", &|new| new.outside.remote_port = 444);
    refused("other families", &|new| {
        new.outside = Tuple { local: OWN.v6.into(), remote: FAR[1], ..new.outside };
    });
    refused("mixed families inside", &|new| new.inside.remote = FAR[1]);
    refused("mixed families outside", &|new| new.outside.remote = FAR[1]);
    refused("no such place", &|new| new.host = HostId(CLIENTS.len() as u32));
    refused("a mapping and forwarded", &|new| new.basis = Basis::Forwarded);
    let allowed = Basis::Allowed { to: HostId(1) };
    refused("a mapping between clients", &|new| {
        (new.basis, new.outside) = (allowed, new.inside);
    });
    refused("our address between clients", &|new| (new.basis, new.mapping) = (allowed, None));
}

#[test]
fn a_place_has_the_address_of_one_client_until_its_last_flow_is_gone() {
    let mut table = table();
    let id = table.insert(now(), &flow(0)).unwrap();
    let other = NewFlow { host: HostId(0), ..flow(1) };
    assert_eq!(table.insert(now(), &other), None);
    table.remove(id).unwrap();
    assert!(table.insert(now(), &other).is_some());
    assert_eq!(table.insert(now(), &flow(0)), None);
}

#[test]
fn our_addresses_stay_as_long_as_there_are_flows_behind_them() {
    let mut table = table();
    let id = table.insert(now(), &flow(0)).unwrap();
    let moved = Own { v4: Ipv4Addr::new(10, 137, 0, 6), ..OWN };
    table.set_own(moved);
    assert_eq!(table.find_outside(&flow(0).outside), Some(id));
    table.remove(id).unwrap();
    table.set_own(moved);
    assert_eq!(table.insert(now(), &flow(0)), None);
}

#[test]
fn a_flow_moves_in_its_list_once_in_half_a_second_and_never_misses_it() {
    let all = [
        Class::TcpTransitory,
        Class::TcpEstablished,
        Class::UdpOneWay,
        Class::UdpBothWays,
        Class::UdpDns,
        Class::IcmpQuery,
        Class::Other,
    ];
    assert!(
        all.len() == Class::COUNT && all.iter().all(|class| class.lifetime() <= Class::LONGEST)
    );
    let mut table = table();
    let mut now = now();
    let first = table.insert(now, &NewFlow { class: Class::TcpEstablished, ..flow(0) }).unwrap();
    let second = table.insert(now, &NewFlow { class: Class::TcpEstablished, ..flow(1) }).unwrap();
    let mut moves = 0;
    for _ in 0..1000 {
        now = now.after(Duration::from_millis(10));
        let flow = table.get_mut(first).unwrap();
        if !flow.prolong(now) {
            moves += 1;
            table.relist(first);
            assert!(table.get_mut(first).unwrap().prolong(now));
        }
    }
    assert!((18..=20).contains(&moves), "{moves} in ten seconds");
    assert_eq!(table.any(), Some(second), "the head of the list");
    // As late as can be.
    for class in all {
        table.renew(now, first, class);
        now = now.after(class.lifetime()).after(Duration::from_nanos(1));
        assert!(!table.get_mut(first).unwrap().prolong(now), "{class:?}");
    }
}
