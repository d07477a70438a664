//! A peer that writes what it likes into the ring page.

use super::{FakeServer, served};
use crate::fake;
use crate::vchan::{ConnectError, LayoutError, LinkState, Outcome};
use proptest::prelude::*;

#[test]
fn orders_are_read_once() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    server.ring.write_u16(16, 20);
    server.ring.write_u16(18, 20);
    assert_eq!((link.read_capacity(), link.write_capacity()), (4096, 4096));
    assert_eq!(link.write(&[1; 10_000]), 4096);
    server.ring.write_u32(12, 5000);
    assert_eq!(link.data_ready(), 0);
    assert_eq!(link.state(), LinkState::Broken);
}

#[test]
fn our_own_indices_are_not_read_back() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    assert_eq!(link.write(b"abc"), 3);
    server.ring.write_u32(4, 0x8000_0000);
    server.ring.write_u32(8, 0x8000_0000);
    assert_eq!(link.write(b"def"), 3);
    assert_eq!(server.ring.read_u32(4), 6);
    let mut bytes = [0; 6];
    server.left[0].copy_out(0, &mut bytes);
    assert_eq!(&bytes, b"abcdef");
}

#[test]
fn consumer_ahead_of_us_breaks_the_link() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    server.ring.write_u32(0, 1);
    assert_eq!(link.write(b"x"), 0);
    assert_eq!(link.state(), LinkState::Broken);
    server.ring.write_u32(0, 0);
    assert_eq!(link.write(b"x"), 0, "broken for good");
    assert_eq!(link.space(), 0);
}

#[test]
fn consumer_too_far_behind_breaks_the_link() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    server.ring.write_u32(0, 0u32.wrapping_sub(4097));
    assert_eq!(link.space(), 0);
    assert_eq!(link.state(), LinkState::Broken);
    assert_eq!(link.write(b"x"), 0);
}

#[test]
fn order_beyond_our_limit_is_refused_without_mapping() {
    let server = FakeServer::new(12, 12);
    server.write_header(19, 12);
    let outcome = server.connect();
    assert!(matches!(outcome, Outcome::Unusable(ConnectError::Layout(LayoutError::TooLarge(19)))));
    assert!(!server.peer.is_in_use(server.ring_ref));
}

#[test]
fn server_that_is_not_live_or_has_a_client_is_not_connected_to() {
    for (client_live, server_live) in [(2, 0), (2, 2), (0, 1), (1, 1), (3, 1), (255, 255)] {
        let server = FakeServer::new(12, 12);
        server.ring.write_u8(20, client_live);
        server.ring.write_u8(21, server_live);
        assert!(matches!(server.connect(), Outcome::Unusable(ConnectError::NotWaiting)));
    }
}

#[test]
fn live_byte_of_the_peer_with_an_unknown_value_is_closed_for_good() {
    for value in [0, 2, 3, 255] {
        let server = FakeServer::new(12, 12);
        let link = server.connected();
        server.ring.write_u8(21, value);
        assert_eq!(link.state(), LinkState::Closed);
        server.ring.write_u8(21, 1);
        assert_eq!(link.state(), LinkState::Closed, "no way back");
    }
}

#[test]
fn client_that_pretends_never_to_have_come_is_closed() {
    let (server, client) = served();
    assert_eq!(server.link().state(), LinkState::Open);
    client.ring.write_u8(20, 2);
    assert_eq!(server.link().state(), LinkState::Closed);
}

#[test]
fn client_that_is_live_without_event_channel_is_closed() {
    fake::peer(super::PEER);
    let mut server =
        super::Server::new(super::PEER, super::OWN, 512, super::Sizes::QREXEC_CONTROL).unwrap();
    let announced = super::announce(&mut server);
    let ring = crate::GrantRef(announced.ring_ref);
    fake::peer(super::PEER).write(ring, 20, &[1]).unwrap();
    assert_eq!(server.link().state(), LinkState::Closed);
}

#[test]
fn client_may_change_the_grant_list_and_the_orders_of_a_server() {
    let (mut server, client) = served();
    client.ring.copy_in(16, &[0xff; 4]);
    client.ring.copy_in(24, &[0xff; 400]);
    client.left.copy_in(0, b"ok");
    client.ring.write_u32(4, 2);
    let mut bytes = [0; 8];
    assert_eq!(server.link_mut().read(&mut bytes), 2);
    assert_eq!(&bytes[..2], b"ok");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever is in the ring page before and during the connection: no panic, nothing outside of the rings.
    #[test]
    fn arbitrary_ring_page_never_panics(
        head in prop_oneof![
            any::<[u8; 24]>(),
            any::<[u8; 16]>().prop_map(|indices| {
                let mut head = [0; 24];
                head[..16].copy_from_slice(&indices);
                head[16..].copy_from_slice(&[12, 0, 12, 0, 2, 1, 1, 0]);
                head
            }),
        ],
        later in proptest::collection::vec((0usize..36, any::<u8>()), 0..8),
        length in 0usize..9000,
    ) {
        fake::reset_with_pages(8);
        let server = FakeServer::new(12, 12);
        server.ring.copy_in(0, &head);
        if let Outcome::Connected(mut link) = server.connect() {
            let mut buffer = alloc::vec![0xa5; length];
            for (offset, value) in later {
                server.ring.write_u8(offset, value);
                let read = link.read(&mut buffer);
                prop_assert!(read <= length.min(link.read_capacity()));
                let written = link.write(&buffer);
                prop_assert!(written <= length.min(link.write_capacity()));
                prop_assert!(link.data_ready() <= link.read_capacity());
                prop_assert!(link.space() <= link.write_capacity());
                link.state();
            }
        }
        fake::assert_no_leaks();
    }
}
