//! The ring page byte by byte (section 9.1 of the vector list) and the set-up rows of the recordings.

use super::{FakeClient, FakeServer, OWN, PEER, announce, header, served};
use crate::fake;
use crate::mem::host;
use crate::vchan::layout::{self, Layout};
use crate::vchan::{LinkState, Server, Sizes};
use crate::{DomId, GrantRef};

const ANNOUNCED: [u8; 24] = [
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x0c, 0x00, 0x0c, 0x00, 0x02, 0x01, 0x01, 0x00,
];
const CONNECTED: [u8; 24] = [
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x0c, 0x00, 0x0c, 0x00, 0x01, 0x01, 0x01, 0x01,
];
const CLIENT_WROTE_12: [u8; 24] = [
    0x00, 0x00, 0x00, 0x00, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x0c, 0x00, 0x0c, 0x00, 0x01, 0x01, 0x00, 0x01,
];
const SERVER_READ_12: [u8; 24] = [
    0x0c, 0x00, 0x00, 0x00, 0x0c, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x00,
    0x0c, 0x00, 0x0c, 0x00, 0x01, 0x01, 0x01, 0x01,
];
const HELLO: [u8; 12] = [0x00, 0x03, 0, 0, 4, 0, 0, 0, 3, 0, 0, 0];

#[test]
fn vector_9_1_server_before_the_client_came() {
    let page = host::foreign_page();
    let grants = [GrantRef(0x301), GrantRef(0x302)];
    layout::announce(&page, Layout::for_sizes(4096, 4096).unwrap(), grants.into_iter());
    let mut bytes = [0; 36];
    page.copy_out(0, &mut bytes);
    assert_eq!(bytes[..24], ANNOUNCED);
    assert_eq!(bytes[24..], [0x01, 0x03, 0, 0, 0x02, 0x03, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn vector_9_1_as_server_from_announcement_to_first_read() {
    fake::peer(PEER);
    let mut server = Server::new(PEER, OWN, 512, Sizes::QREXEC_CONTROL).unwrap();
    let announced = announce(&mut server);
    let page = fake::peer(PEER).map(GrantRef(announced.ring_ref), crate::grant::Access::ReadWrite);
    assert_eq!(header(&page.unwrap()), ANNOUNCED);
    assert_eq!(server.link().state(), LinkState::Waiting);

    let client = FakeClient::connect(&announced);
    assert_eq!(header(&client.ring), CONNECTED);
    assert_eq!(server.link().state(), LinkState::Open);

    client.left.copy_in(0, &HELLO);
    client.ring.write_u32(4, 12);
    client.ring.fetch_and_u8(22, !1);
    client.peer.notify(client.port);
    assert_eq!(header(&client.ring), CLIENT_WROTE_12);

    client.peer.take_notifications();
    let mut bytes = [0; 12];
    assert_eq!(server.link_mut().read(&mut bytes), 12);
    assert_eq!(bytes, HELLO);
    assert_eq!(header(&client.ring), SERVER_READ_12);
    assert_eq!(client.peer.take_notifications(), [], "READ was not asked for");
}

#[test]
fn vector_9_1_as_client_from_connection_to_first_write() {
    let server = FakeServer::new(12, 12);
    assert_eq!(server.header(), ANNOUNCED);
    let mut link = server.connected();
    assert_eq!(server.header(), CONNECTED);
    assert_eq!(server.peer.take_notifications(), [server.port], "the server is told");

    assert_eq!(link.write(&HELLO), 12);
    assert_eq!(server.header(), CLIENT_WROTE_12);
    assert_eq!(server.peer.take_notifications(), [server.port], "the WRITE bit was set");
    let mut bytes = [0; 12];
    server.left[0].copy_out(0, &mut bytes);
    assert_eq!(bytes, HELLO);
    link.write(&HELLO);
    assert_eq!(server.peer.take_notifications(), [], "the bit was cleared by the first one");
}

#[test]
fn vector_9_1_writing_20_bytes_at_position_ffe() {
    let server = FakeServer::new(12, 12);
    server.ring.write_u32(0, 0xffff_fff0);
    server.ring.write_u32(4, 0xffff_fffe);
    let mut link = server.connected();
    let bytes: [u8; 20] = core::array::from_fn(|index| index as u8 + 1);
    assert_eq!(link.write(&bytes), 20);
    assert_eq!(server.ring.read_u32(4), 0x12);
    let mut tail = [0; 2];
    server.left[0].copy_out(0xffe, &mut tail);
    assert_eq!(tail, [1, 2]);
    let mut front = [0; 18];
    server.left[0].copy_out(0, &mut front);
    assert_eq!(front, bytes[2..]);
    assert_eq!(link.space(), 4096 - 34);
}

#[test]
fn vector_9_1_hostile_producer_is_no_data_and_the_link_is_broken() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    server.ring.write_u32(12, 0x2000);
    assert_eq!(link.data_ready(), 0);
    assert_eq!(link.state(), LinkState::Broken);
    assert_eq!(link.read(&mut [0; 16]), 0);
}

#[test]
fn vector_9_1_order_checks_of_a_server() {
    for (left, right, is_good) in [
        (10, 11, true),
        (11, 10, true),
        (12, 12, true),
        (12, 10, true),
        (10, 10, false),
        (11, 11, false),
        (9, 12, false),
        (21, 12, false),
    ] {
        let server = FakeServer::new(12, 12);
        server.write_header(left, right);
        let outcome = server.connect();
        let is_connected = matches!(outcome, super::Outcome::Connected(_));
        assert_eq!(is_connected, is_good, "({left},{right}): {outcome:?}");
        drop(outcome);
        assert_eq!(server.ring.read_u8(20), if is_good { 0 } else { 2 });
    }
    fake::assert_no_leaks();
}

#[test]
fn vector_9_1_xenstore_text_of_a_server() {
    fake::peer(DomId::DOM0);
    let mut server = Server::new(DomId::DOM0, OWN, 512, Sizes::QREXEC_CONTROL).unwrap();
    let announced = announce(&mut server);
    let both =
        "[Permission { dom: DomId(23), mode: None }, Permission { dom: DomId(0), mode: Read }]";
    let ring = "data/vchan/0/512/ring-ref";
    let port = "data/vchan/0/512/event-channel";
    let digits = |number: u32| alloc::format!("{:?}", alloc::format!("{number}").as_bytes());
    assert_eq!(
        announced.requests,
        [
            "TransactionStart".into(),
            alloc::format!("Write {{ path: \"{ring}\", value: {} }}", digits(announced.ring_ref)),
            alloc::format!("Write {{ path: \"{port}\", value: {} }}", digits(announced.port)),
            alloc::format!("SetPerms {{ path: \"{ring}\", permissions: {both} }}"),
            alloc::format!("SetPerms {{ path: \"{port}\", permissions: {both} }}"),
            "TransactionEnd(Commit)".into(),
        ]
    );
    assert!(server.next_request().is_none(), "nothing more until the client comes");
}

#[test]
fn captures_1_row_03_ring_page_after_the_servers_init() {
    // As the QubesDB daemon announces: the client's end finds exactly this.
    let server = FakeServer::new(12, 12);
    assert_eq!(server.header(), ANNOUNCED);
    assert!(server.connected().is_open());
}

#[test]
fn captures_1_row_04_client_sets_live_and_notify_and_accepts_notify_3() {
    let server = FakeServer::new(12, 12);
    server.ring.write_u8(22, 3);
    let link = server.connected();
    assert_eq!(server.header()[20..], [1, 1, 3, 1]);
    assert_eq!(link.data_ready(), 0);
    assert_eq!(server.header()[23], 1);
}

#[test]
fn captures_1_row_06_client_writes_nothing_to_xenstore() {
    let server = FakeServer::new(12, 12);
    let mut connector = super::Connector::new(PEER, OWN, 513, super::TOKEN);
    // `connect_to` checks that watch and reads are all there is.
    let link = super::link(super::connect_to(&mut connector, server.ring_ref, server.port));
    assert!(connector.next_request().is_none());
    drop(link);
}

#[test]
fn captures_4_a_full_ring_and_a_header_that_starts_anywhere() {
    let server = FakeServer::new(12, 12);
    server.ring.write_u32(8, 4000);
    server.ring.write_u32(12, 4000);
    let mut link = server.connected();
    // 72 bytes from 4000 on fit; of the next 4024 the first 24 are before the end of the buffer.
    let ring: alloc::vec::Vec<u8> = (0..4096u32).map(|n| n as u8).collect();
    server.right[0].copy_in(0, &ring);
    server.ring.write_u32(12, 4000 + 4096);
    assert_eq!(link.data_ready(), 4096);
    let mut all = alloc::vec![0; 5000];
    assert_eq!(link.read(&mut all), 4096);
    assert_eq!(all[..96], ring[4000..]);
    assert_eq!(all[96..4096], ring[..4000]);
    assert_eq!(server.ring.read_u32(8), 8096);
}

#[test]
fn captures_6_peer_closed_and_the_ring_stays_readable() {
    let server = FakeServer::new(12, 12);
    let mut link = server.connected();
    server.right[0].copy_in(0, b"last words");
    server.ring.write_u32(12, 10);
    server.ring.write_u8(21, 0);
    server.peer.notify(server.port);
    assert_eq!(link.state(), LinkState::Closed);
    let mut bytes = [0; 10];
    assert_eq!(link.read(&mut bytes), 10);
    assert_eq!(&bytes, b"last words");
    assert_eq!(link.write(b"x"), 0);
}

#[test]
fn captures_6_peer_died_without_clearing_its_byte() {
    let server = FakeServer::new(12, 12);
    let link = server.connected();
    server.peer.close(server.port);
    assert_eq!(server.ring.read_u8(21), 1);
    assert_eq!(link.state(), LinkState::Closed, "the event channel gives it away");
}

#[test]
fn captures_7_announcement_is_removed_at_the_first_event_after_the_connection() {
    use super::{Request, TxId};
    let (mut server, client) = served();
    let rm = |path| Some((TxId::NONE, Request::Rm { path }));
    assert_eq!(server.next_request(), rm("data/vchan/3/512"));
    assert_eq!(server.next_request(), None, "one request at a time");
    server.on_reply(Ok(b"OK\0"));
    let list = Request::Directory { path: "data/vchan/3" };
    assert_eq!(server.next_request(), Some((TxId::NONE, list)));
    server.on_reply(Ok(b""));
    assert_eq!(server.next_request(), rm("data/vchan/3"));
    server.on_reply(Ok(b"OK\0"));
    assert_eq!(server.next_request(), None);
    assert!(server.is_removed() && server.link().is_open());
    drop(client);
}

#[test]
fn captures_7_a_directory_with_another_server_stays() {
    let (mut server, client) = served();
    server.next_request();
    server.on_reply(Ok(b"OK\0"));
    server.next_request();
    server.on_reply(Ok(b"6000\0"));
    assert_eq!(server.next_request(), None);
    assert!(server.is_removed());
    drop(client);
}

#[test]
fn captures_7_hello_may_be_in_the_ring_before_dom0_connects() {
    fake::peer(PEER);
    let mut server = Server::new(PEER, OWN, 512, Sizes::QREXEC_CONTROL).unwrap();
    assert_eq!(server.link_mut().write(&HELLO), 12);
    let announced = announce(&mut server);
    let client = FakeClient::connect(&announced);
    assert_eq!(client.ring.read_u32(12), 12);
    let mut bytes = [0; 12];
    client.right.copy_out(0, &mut bytes);
    assert_eq!(bytes, HELLO);
    assert!(server.link().is_open());
}

#[test]
fn captures_7_header_without_body_and_then_the_daemon_is_gone() {
    let (mut server, client) = served();
    client.left.copy_in(0, &[0x00, 0x02, 0x00, 0x00, 0x8f, 0x10, 0x00, 0x00]);
    client.ring.write_u32(4, 8);
    client.ring.write_u8(20, 0);
    client.peer.notify(client.port);
    assert_eq!(server.link().state(), LinkState::Closed);
    assert_eq!(server.link_mut().read(&mut [0; 64]), 8);
    assert_eq!(server.link_mut().read(&mut [0; 64]), 0);
}

#[test]
fn captures_8_data_channel_of_orders_16_maps_33_pages_and_gives_them_back() {
    let server = FakeServer::new(16, 16);
    let mut link = server.connected();
    assert_eq!((link.read_capacity(), link.write_capacity()), (65536, 65536));
    assert!(server.grants.iter().all(|gref| server.peer.is_in_use(*gref)));
    assert_eq!(server.grants.len(), 32);
    assert_eq!(link.write(&[0x5a; 70_000]), 65536);
    assert!(server.left.iter().all(|page| page.read_u8(4095) == 0x5a));
    drop(link);
    assert!(!server.grants.iter().any(|gref| server.peer.is_in_use(*gref)));
    assert!(!server.peer.is_in_use(server.ring_ref));
    fake::assert_no_leaks();
}

#[test]
fn captures_8_close_right_after_the_last_write_leaves_the_bytes() {
    let server = FakeServer::new(16, 16);
    let mut link = server.connected();
    let exit_code = [0x93, 0x01, 0, 0, 4, 0, 0, 0, 7, 0, 0, 0];
    link.write(&exit_code);
    server.peer.take_notifications();
    drop(link);
    assert_eq!(server.ring.read_u8(20), 0, "cli_live");
    assert_eq!(server.peer.take_notifications(), [server.port]);
    let mut bytes = [0; 12];
    server.left[0].copy_out(0, &mut bytes);
    assert_eq!((bytes, server.ring.read_u32(4)), (exit_code, 12));
}
