//! Bytes through the rings: order, wrap, full and empty, events when they are due. The other end is a second
//! implementation on the fake's view of the pages.

use super::{FakeServer, served};
use crate::fake;
use crate::shared::SharedPage;
use alloc::collections::VecDeque;
use alloc::vec::Vec;
use proptest::prelude::*;

/// The byte with this free-running index in the peer's view of a ring.
fn slot(server: &FakeServer, is_left: bool, order: u8, index: u32) -> (&SharedPage, usize) {
    let position = index as usize % (1 << order);
    let pages = if is_left { &server.left } else { &server.right };
    match order {
        10 => (&server.ring, 1024 + position),
        11 => (&server.ring, 2048 + position),
        _ => (&pages[position / 4096], position % 4096),
    }
}

/// The server's end, one byte at a time.
struct Model<'s> {
    server: &'s FakeServer,
    orders: (u8, u8),
}

impl Model<'_> {
    fn write(&self, bytes: &[u8]) -> usize {
        let (producer, consumer) = (self.server.ring.read_u32(12), self.server.ring.read_u32(8));
        let space = (1 << self.orders.1) - producer.wrapping_sub(consumer) as usize;
        let count = space.min(bytes.len());
        for (n, byte) in bytes[..count].iter().enumerate() {
            let index = producer.wrapping_add(n as u32);
            let (page, offset) = slot(self.server, false, self.orders.1, index);
            page.write_u8(offset, *byte);
        }
        self.server.ring.write_u32(12, producer.wrapping_add(count as u32));
        self.signal(1, count);
        count
    }

    fn read(&self, most: usize) -> Vec<u8> {
        let (producer, consumer) = (self.server.ring.read_u32(4), self.server.ring.read_u32(0));
        let count = most.min(producer.wrapping_sub(consumer) as usize);
        let byte = |n: usize| {
            let (page, offset) =
                slot(self.server, true, self.orders.0, consumer.wrapping_add(n as u32));
            page.read_u8(offset)
        };
        let bytes: Vec<u8> = (0..count).map(byte).collect();
        self.server.ring.write_u32(0, consumer.wrapping_add(count as u32));
        self.signal(2, count);
        bytes
    }

    /// The server signals what is set in srv_notify.
    fn signal(&self, bit: u8, count: usize) {
        if count > 0 && self.server.ring.fetch_and_u8(23, !bit) & bit != 0 {
            self.server.peer.notify(self.server.port);
        }
    }
}

fn pending_event() -> bool {
    let mut any = false;
    crate::event::take_pending(|_| any = true);
    any
}

#[test]
fn event_comes_when_data_arrive_in_a_drained_ring() {
    let server = FakeServer::new(12, 12);
    let model = Model { server: &server, orders: (12, 12) };
    let mut link = server.connected();
    pending_event();
    link.unmask();
    assert_eq!(link.read(&mut [0; 8]), 0);
    model.write(b"x");
    assert!(pending_event());
    link.unmask();
    model.write(b"y");
    assert!(!pending_event(), "not asked for again before the ring was drained");
    assert_eq!(link.read(&mut [0; 8]), 2);
    model.write(b"z");
    assert!(pending_event(), "draining asks again");
}

#[test]
fn event_comes_when_space_appears_in_a_full_ring() {
    let server = FakeServer::new(12, 12);
    let model = Model { server: &server, orders: (12, 12) };
    let mut link = server.connected();
    pending_event();
    link.unmask();
    assert_eq!(link.write(&[1; 4096]), 4096);
    model.read(10);
    assert!(!pending_event(), "everything fitted: nobody waits");
    assert_eq!(link.write(&[1; 20]), 10);
    model.read(1);
    assert!(pending_event());
    assert_eq!(link.space(), 1);
}

#[test]
fn space_that_is_scarce_asks_for_an_event() {
    let server = FakeServer::new(12, 12);
    let model = Model { server: &server, orders: (12, 12) };
    let mut link = server.connected();
    pending_event();
    link.unmask();
    link.write(&[1; 4000]);
    assert_eq!(link.space(), 96);
    model.read(1);
    assert!(pending_event());
}

#[test]
fn server_end_signals_what_the_client_asked_for() {
    let (mut server, client) = served();
    client.peer.take_notifications();
    assert_eq!(server.link_mut().write(b"a"), 1);
    assert_eq!(client.peer.take_notifications(), [client.port], "srv_notify had WRITE");
    assert_eq!(server.link_mut().write(b"b"), 1);
    assert_eq!(client.peer.take_notifications(), []);
    client.ring.fetch_or_u8(23, 2);
    client.left.copy_in(0, b"data");
    client.ring.write_u32(4, 4);
    assert_eq!(server.link_mut().read(&mut [0; 2]), 2);
    assert_eq!(client.peer.take_notifications(), [client.port], "srv_notify had READ");
    assert_eq!(client.ring.read_u8(23), 0);
}

#[test]
fn events_of_a_link_name_its_port() {
    let server = FakeServer::new(12, 12);
    let link = server.connected();
    let mut ports = Vec::new();
    crate::event::take_pending(|port| ports.push(port));
    assert_eq!(ports, [link.port()], "binding raises the first one");
    assert_eq!(link.peer(), super::PEER);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Both directions carry the bytes in order, at every start index, for every kind of ring.
    #[test]
    fn streams_arrive_unchanged(
        orders in prop_oneof![
            Just((10u8, 11u8)), Just((11, 10)), Just((12, 12)), Just((12, 10)), Just((13, 14)),
        ],
        start in prop_oneof![Just(0u32), any::<u32>(), (0u32..3000).prop_map(|n| u32::MAX - n)],
        steps in proptest::collection::vec((0u8..4, 0usize..9000), 1..40),
    ) {
        fake::reset_with_pages(8);
        {
            let server = FakeServer::new(orders.0, orders.1);
            for offset in [0, 4, 8, 12] {
                server.ring.write_u32(offset, start);
            }
            let model = Model { server: &server, orders };
            let mut link = server.connected();
            let (mut to_server, mut to_us) = (VecDeque::new(), VecDeque::new());
            let mut next = 0u8;
            for (what, length) in steps {
                let bytes: Vec<u8> = (0..length).map(|n| next.wrapping_add(n as u8)).collect();
                match what {
                    0 => {
                        let space = (1 << orders.0) - to_server.len();
                        prop_assert_eq!(link.space(), space);
                        let written = link.write(&bytes);
                        prop_assert_eq!(written, space.min(length));
                        to_server.extend(&bytes[..written]);
                    }
                    1 => to_us.extend(&bytes[..model.write(&bytes)]),
                    2 => {
                        let read = model.read(length);
                        prop_assert_eq!(&read, &to_server.drain(..read.len()).collect::<Vec<u8>>());
                    }
                    _ => {
                        prop_assert_eq!(link.data_ready(), to_us.len());
                        let mut buffer = alloc::vec![0; length];
                        let read = link.read(&mut buffer);
                        prop_assert_eq!(read, length.min(to_us.len()));
                        let expected: Vec<u8> = to_us.drain(..read).collect();
                        prop_assert_eq!(&buffer[..read], &expected[..]);
                    }
                }
                next = next.wrapping_add(length as u8).wrapping_mul(3);
                prop_assert!(link.is_open());
            }
        }
        fake::assert_no_leaks();
    }
}
