//! The peers of our network drivers: a guest's netfront, a NetVM's netback, and the part of the toolstack that makes
//! their xenstore directories. Honest unless the test tells them otherwise; every field is open to it.
#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::format;
use std::vec::Vec;

use super::xenstore::Store;
use super::{OWN_DOMAIN, Peer, PeerMapping, peer};
use crate::abi::{DomId, EventPort, GrantRef};
use crate::grant::Access;
use crate::netif::{RxFlags, RxRequest, RxResponse, TxFlags, TxRequest, TxResponse};
use crate::ring::{BackRing, FrontRing, Notify};
use crate::shared::SharedPage;

/// Creates the two directories of a client's vif, as libxl does at an attach.
pub fn attach_client(store: &mut Store, dom: DomId, devid: u32, ip: &str) {
    let (own, client) = (OWN_DOMAIN.0, dom.0);
    let front = format!("/local/domain/{client}/device/vif/{devid}");
    let back = format!("/local/domain/{own}/backend/vif/{client}/{devid}");
    let mac = "00:16:3e:5e:6c:00";
    store.write(&format!("{front}/backend"), &back);
    store.write(&format!("{front}/backend-id"), &format!("{own}"));
    store.write(&format!("{front}/mac"), mac);
    store.write(&format!("{front}/state"), "1");
    store.write(&format!("{back}/frontend"), &front);
    store.write(&format!("{back}/frontend-id"), &format!("{client}"));
    store.write(&format!("{back}/mac"), mac);
    store.write(&format!("{back}/ip"), ip);
    store.write(&format!("{back}/hotplug-status"), "");
    store.write(&format!("{back}/online"), "1");
    store.write(&format!("{back}/state"), "1");
}

/// Begins the removal of a client's vif, as libxl does at a detach.
pub fn detach_client(store: &mut Store, dom: DomId, devid: u32) {
    store.write(&format!("backend/vif/{}/{devid}/online", dom.0), "0");
    store.write(&format!("backend/vif/{}/{devid}/state", dom.0), "5");
}

/// Creates the two directories of our uplink.
pub fn attach_uplink(store: &mut Store, netvm: DomId, devid: u32) {
    let (own, backend) = (OWN_DOMAIN.0, netvm.0);
    let back = format!("/local/domain/{backend}/backend/vif/{own}/{devid}");
    store.write(&format!("{back}/online"), "1");
    store.write(&format!("{back}/state"), "1");
    store.write(&format!("device/vif/{devid}/backend"), &back);
    store.write(&format!("device/vif/{devid}/backend-id"), &format!("{backend}"));
    store.write(&format!("device/vif/{devid}/mac"), "00:16:3e:5e:6c:07");
    store.write(&format!("device/vif/{devid}/mtu"), "1500");
    store.write(&format!("device/vif/{devid}/state"), "1");
}

/// A guest with one vif.
pub struct Guest {
    /// Its domain.
    pub peer: Peer,
    /// Its device.
    pub devid: u32,
    /// Its TX ring.
    pub tx: FrontRing<12>,
    /// Its RX ring.
    pub rx: FrontRing<8>,
    /// The page of the TX ring and its reference.
    pub tx_page: (GrantRef, SharedPage),
    /// The page of the RX ring and its reference.
    pub rx_page: (GrantRef, SharedPage),
    /// Its event channel.
    pub port: EventPort,
    pub(super) posted: BTreeMap<usize, (GrantRef, SharedPage)>,
    sent: BTreeMap<u16, GrantRef>,
    next_id: u16,
}

impl Guest {
    /// Rings and an event channel, not published yet.
    pub fn new(dom: DomId, devid: u32) -> Guest {
        let peer = peer(dom);
        let tx_page = peer.grant_page(Access::ReadWrite);
        let rx_page = peer.grant_page(Access::ReadWrite);
        Guest {
            peer,
            devid,
            tx: FrontRing::init(&tx_page.1),
            rx: FrontRing::init(&rx_page.1),
            tx_page,
            rx_page,
            port: peer.alloc_unbound(),
            posted: BTreeMap::new(),
            sent: BTreeMap::new(),
            next_id: 0x100,
        }
    }

    /// Writes a node of its directory.
    pub fn set(&self, store: &mut Store, name: &str, value: &str) {
        let dom = self.peer.domain().0;
        store.write(&format!("/local/domain/{dom}/device/vif/{}/{name}", self.devid), value);
    }

    /// Publishes everything as Linux does, and goes to state 4.
    pub fn publish(&self, store: &mut Store) {
        self.set(store, "tx-ring-ref", &format!("{}", self.tx_page.0.0));
        self.set(store, "rx-ring-ref", &format!("{}", self.rx_page.0.0));
        self.set(store, "event-channel", &format!("{}", self.port.0));
        self.set(store, "request-rx-copy", "1");
        self.set(store, "feature-rx-notify", "1");
        self.set(store, "feature-ipv6-csum-offload", "1");
        self.set(store, "state", "4");
    }

    /// A page with these bytes at an offset, granted read-only.
    pub fn buffer(&self, offset: usize, bytes: &[u8]) -> GrantRef {
        let (gref, page) = self.peer.grant_page(Access::ReadOnly);
        page.copy_in(offset, bytes);
        gref
    }

    /// Sends a frame in one slot; returns its id.
    pub fn send(&mut self, frame: &[u8], flags: TxFlags) -> u16 {
        let gref = self.buffer(0, frame);
        let id = self.next_id;
        self.next_id = self.next_id.wrapping_add(1);
        self.sent.insert(id, gref);
        let size = u16::try_from(frame.len()).expect("a frame");
        self.write_slot(&TxRequest { gref, offset: 0, flags, id, size }.encode());
        self.push_tx();
        id
    }

    /// Writes one raw TX slot, without publishing it.
    pub fn write_slot(&mut self, slot: &[u8; 12]) {
        self.tx.request(&self.tx_page.1, slot);
    }

    /// Publishes the TX slots; notifies as the ring asks.
    pub fn push_tx(&mut self) {
        if self.tx.push(&self.tx_page.1) == Notify::Needed {
            self.peer.notify(self.port);
        }
    }

    /// TX responses since the last call; the pages they end are freed.
    pub fn responses(&mut self) -> Vec<TxResponse> {
        let count = self.tx.unconsumed(&self.tx_page.1).expect("our backend keeps its indices");
        let mut responses = Vec::new();
        for _ in 0..count {
            let (_, slot) = self.tx.take(&self.tx_page.1).expect("counted");
            let response = TxResponse::decode(&slot);
            if let Some(gref) = self.sent.remove(&response.id) {
                assert!(self.peer.revoke_and_free(gref), "a page is in use after its response");
            }
            responses.push(response);
        }
        let armed = self.tx.arm_after(&self.tx_page.1, 1);
        armed.expect("our backend keeps its indices");
        responses
    }

    /// Posts receive buffers; notifies as the ring asks.
    pub fn post(&mut self, count: usize) {
        for _ in 0..count {
            let slot = self.rx.next_slot();
            let (gref, page) = self.peer.grant_page(Access::ReadWrite);
            let id = u16::try_from(slot).expect("below 256") | 0x4000;
            self.rx.request(&self.rx_page.1, &RxRequest { id, gref }.encode());
            self.posted.insert(slot, (gref, page));
        }
        if self.rx.push(&self.rx_page.1) == Notify::Needed {
            self.peer.notify(self.port);
        }
    }

    /// RX responses since the last call, with the bytes that they announce.
    pub fn received(&mut self) -> Vec<(RxResponse, Vec<u8>)> {
        let count = self.rx.unconsumed(&self.rx_page.1).expect("our backend keeps its indices");
        let mut frames = Vec::new();
        for _ in 0..count {
            let (slot, bytes) = self.rx.take(&self.rx_page.1).expect("counted");
            let response = RxResponse::decode(&bytes);
            let (gref, page) = self.posted.remove(&slot).expect("a posted buffer");
            assert_eq!(usize::from(response.id), slot | 0x4000, "answered in another slot");
            let mut data = std::vec![0; usize::try_from(response.status).unwrap_or(0)];
            page.copy_out(usize::from(response.offset), &mut data);
            assert!(self.peer.revoke_and_free(gref), "a buffer is in use after its response");
            frames.push((response, data));
        }
        let armed = self.rx.arm_after(&self.rx_page.1, 1);
        armed.expect("our backend keeps its indices");
        frames
    }

    /// The references of all posted buffers, in the order of their ring slots.
    pub fn posted_refs(&self) -> Vec<GrantRef> {
        self.posted.values().map(|(gref, _)| *gref).collect()
    }
}

/// A NetVM's netback, connected to our uplink.
pub struct NetVm {
    /// Its domain.
    pub peer: Peer,
    /// Its directory for us.
    pub directory: std::string::String,
    /// Our TX ring, as mapped there.
    pub tx_page: PeerMapping,
    /// Our RX ring, as mapped there.
    pub rx_page: PeerMapping,
    /// Its end of the TX ring.
    pub tx: BackRing<12>,
    /// Its end of the RX ring.
    pub rx: BackRing<8>,
    /// Its event channel.
    pub port: EventPort,
}

impl NetVm {
    /// Directory of a NetVM for our device.
    pub fn directory(dom: DomId, devid: u32) -> std::string::String {
        format!("/local/domain/{}/backend/vif/{}/{devid}", dom.0, OWN_DOMAIN.0)
    }

    /// Goes to state 2 with the features of Linux.
    pub fn offer(store: &mut Store, dom: DomId, devid: u32) {
        let directory = NetVm::directory(dom, devid);
        for name in ["feature-rx-copy", "feature-sg", "feature-ipv6-csum-offload"] {
            store.write(&format!("{directory}/{name}"), "1");
        }
        store.write(&format!("{directory}/state"), "2");
    }

    /// Connects to what we have published, and goes to state 4.
    pub fn connect(store: &mut Store, dom: DomId, devid: u32) -> NetVm {
        let peer = peer(dom);
        let number = |name: &str| {
            let value = store.read(&format!("device/vif/{devid}/{name}")).expect("published");
            value.parse::<u32>().expect("a number")
        };
        let map = |gref| peer.map(GrantRef(gref), Access::ReadWrite).expect("a granted ring");
        let (tx_page, rx_page) = (map(number("tx-ring-ref")), map(number("rx-ring-ref")));
        let tx = BackRing::attach(&tx_page).expect("a fresh ring");
        let rx = BackRing::attach(&rx_page).expect("a fresh ring");
        let port = peer.bind(EventPort(number("event-channel")));
        let directory = NetVm::directory(dom, devid);
        store.write(&format!("{directory}/state"), "4");
        NetVm { peer, directory, tx_page, rx_page, tx, rx, port }
    }

    /// Requests that we have published, not answered yet.
    pub fn take_requests(&mut self) -> Vec<TxRequest> {
        let count = self.tx.unconsumed(&self.tx_page).expect("our frontend keeps its indices");
        let slots = (0..count).filter_map(|_| self.tx.take(&self.tx_page)).collect::<Vec<_>>();
        self.tx.final_check(&self.tx_page).expect("our frontend keeps its indices");
        slots.iter().map(TxRequest::decode).collect()
    }

    /// The bytes of a sent frame, through the grant.
    pub fn bytes(&self, request: &TxRequest) -> Vec<u8> {
        let mut frame = std::vec![0; usize::from(request.size)];
        let read = self.peer.read(request.gref, usize::from(request.offset), &mut frame);
        read.expect("a granted frame");
        frame
    }

    /// Answers one TX request.
    pub fn respond(&mut self, id: u16, status: i16) {
        self.tx.respond(&self.tx_page, &TxResponse { id, status }.encode());
        if self.tx.push(&self.tx_page) == Notify::Needed {
            self.peer.notify(self.port);
        }
    }

    /// Takes and answers everything that we sent.
    pub fn sent(&mut self) -> Vec<(TxRequest, Vec<u8>)> {
        let requests = self.take_requests();
        let frames = requests.iter().map(|request| (*request, self.bytes(request))).collect();
        requests.iter().for_each(|request| self.respond(request.id, 0));
        frames
    }

    /// The next receive buffer that we posted.
    pub fn take_buffer(&mut self) -> Option<RxRequest> {
        self.rx.unconsumed(&self.rx_page).expect("our frontend keeps its indices");
        self.rx.take(&self.rx_page).as_ref().map(RxRequest::decode)
    }

    /// Writes one RX response, published at once.
    pub fn respond_rx(&mut self, response: RxResponse) {
        self.rx.respond(&self.rx_page, &response.encode());
        if self.rx.push(&self.rx_page) == Notify::Needed {
            self.peer.notify(self.port);
        }
    }

    /// Delivers a frame in one slot.
    pub fn deliver(&mut self, frame: &[u8], flags: RxFlags) {
        let buffer = self.take_buffer().expect("a posted buffer");
        self.peer.write(buffer.gref, 0, frame).expect("a writable buffer");
        let status = i16::try_from(frame.len()).expect("a frame");
        self.respond_rx(RxResponse { id: buffer.id, offset: 0, flags, status });
    }
}
