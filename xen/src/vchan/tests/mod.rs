//! Tests against the fake hypervisor: the other end is played byte by byte.

mod connecting;
mod hostile;
mod streams;
mod vectors;

use alloc::string::{String, ToString};
use alloc::vec::Vec;

use super::{Connector, Link, Outcome, Server, ServerOutcome, Sizes};
use crate::abi::{DomId, EventPort, GrantRef};
use crate::fake::{self, Peer, PeerMapping};
use crate::grant::Access;
use crate::shared::SharedPage;
use crate::xenstore::{Owner, Request, Token, TxId};

const PEER: DomId = DomId(3);
const OWN: DomId = DomId(23);
const TOKEN: Token = Token { owner: Owner::Platform, id: 1, generation: 0 };

/// A server in another domain: its own view of its pages.
struct FakeServer {
    peer: Peer,
    ring: SharedPage,
    ring_ref: GrantRef,
    left: Vec<SharedPage>,
    right: Vec<SharedPage>,
    port: EventPort,
    grants: Vec<GrantRef>,
}

impl FakeServer {
    fn new(left_order: u8, right_order: u8) -> Self {
        let peer = fake::peer(PEER);
        let (ring_ref, ring) = peer.grant_page(Access::ReadWrite);
        let mut grants = Vec::new();
        let mut data = |order: u8| -> Vec<SharedPage> {
            let count = if order < 12 { 0 } else { 1 << (order - 12) };
            (0..count)
                .map(|_| {
                    let (gref, page) = peer.grant_page(Access::ReadWrite);
                    grants.push(gref);
                    page
                })
                .collect()
        };
        let (left, right) = (data(left_order), data(right_order));
        let server = Self { peer, ring, ring_ref, left, right, port: peer.alloc_unbound(), grants };
        server.write_header(left_order.into(), right_order.into());
        server
    }

    fn write_header(&self, left_order: u16, right_order: u16) {
        let [l0, l1] = left_order.to_le_bytes();
        let [r0, r1] = right_order.to_le_bytes();
        // orders, cli_live = 2, srv_live = 1, cli_notify = WRITE, srv_notify = 0
        self.ring.copy_in(16, &[l0, l1, r0, r1, 2, 1, 1, 0]);
        for (index, gref) in self.grants.iter().enumerate() {
            self.ring.copy_in(24 + 4 * index, &gref.0.to_le_bytes());
        }
    }

    fn connect(&self) -> Outcome {
        let mut connector = Connector::new(PEER, OWN, 513, TOKEN);
        connect_to(&mut connector, self.ring_ref, self.port)
    }

    fn connected(&self) -> Link {
        link(self.connect())
    }

    /// First bytes of the ring page.
    fn header(&self) -> [u8; 24] {
        header(&self.ring)
    }
}

fn header(ring: &SharedPage) -> [u8; 24] {
    let mut bytes = [0; 24];
    ring.copy_out(0, &mut bytes);
    bytes
}

fn link(outcome: Outcome) -> Link {
    match outcome {
        Outcome::Connected(link) => link,
        other => panic!("{other:?}"),
    }
}

/// Plays xenstore with this announcement for a new connector.
fn connect_to(connector: &mut Connector, ring_ref: GrantRef, port: EventPort) -> Outcome {
    assert!(matches!(connector.next_request(), Some(Request::Watch { token: TOKEN, .. })));
    assert!(connector.on_reply(Ok(b"OK\0")).is_none());
    connector.on_watch();
    answer_reads(connector, &ring_ref.0.to_string(), &port.0.to_string()).unwrap()
}

/// Answers both reads.
fn answer_reads(connector: &mut Connector, ring_ref: &str, port: &str) -> Option<Outcome> {
    assert_eq!(
        connector.next_request(),
        Some(Request::Read { path: "/local/domain/3/data/vchan/23/513/event-channel" })
    );
    if let Some(outcome) = connector.on_reply(Ok(port.as_bytes())) {
        return Some(outcome);
    }
    assert_eq!(
        connector.next_request()?,
        Request::Read { path: "/local/domain/3/data/vchan/23/513/ring-ref" }
    );
    connector.on_reply(Ok(ring_ref.as_bytes()))
}

/// What a server of ours wrote into xenstore.
#[derive(Debug, Default)]
struct Announced {
    requests: Vec<String>,
    ring_ref: u32,
    port: u32,
}

/// Plays xenstore until the server is announced.
fn announce(server: &mut Server) -> Announced {
    let mut announced = Announced::default();
    loop {
        let Some((tx, request)) = server.next_request() else { panic!("stuck") };
        let number = |value: &[u8]| core::str::from_utf8(value).unwrap().parse().unwrap();
        match request {
            Request::Write { path, value } if path.ends_with("ring-ref") => {
                announced.ring_ref = number(value);
            }
            Request::Write { value, .. } => announced.port = number(value),
            _ => {}
        }
        let is_start = request == Request::TransactionStart;
        assert_eq!(tx, if is_start { TxId::NONE } else { TxId(5) });
        announced.requests.push(alloc::format!("{request:?}"));
        let reply: &[u8] = if is_start { b"5\0" } else { b"OK\0" };
        if server.on_reply(Ok(reply)) == Some(ServerOutcome::Announced) {
            return announced;
        }
    }
}

/// A client in another domain.
struct FakeClient {
    peer: Peer,
    ring: PeerMapping,
    left: PeerMapping,
    right: PeerMapping,
    port: EventPort,
}

impl FakeClient {
    /// Connects to a server with two data pages.
    fn connect(announced: &Announced) -> Self {
        let peer = fake::peer(PEER);
        let map = |gref: u32| peer.map(GrantRef(gref), Access::ReadWrite).unwrap();
        let ring = map(announced.ring_ref);
        let (left, right) = (map(ring.read_u32(24)), map(ring.read_u32(28)));
        let port = peer.bind(EventPort(announced.port));
        ring.write_u8(20, 1);
        ring.fetch_or_u8(23, 1);
        peer.notify(port);
        Self { peer, ring, left, right, port }
    }
}

fn served() -> (Server, FakeClient) {
    fake::peer(PEER);
    let mut server = Server::new(PEER, OWN, 512, Sizes::QREXEC_CONTROL).unwrap();
    let announced = announce(&mut server);
    let client = FakeClient::connect(&announced);
    (server, client)
}
