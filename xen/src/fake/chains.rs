//! Super-frames of the drivers' peers: packets in several slots, with extra infos. Everything in them is open to the
//! test.
#![forbid(unsafe_code)]

use std::format;
use std::vec::Vec;

use super::vif::{Guest, NetVm};
use super::xenstore::Store;
use crate::abi::{DomId, GrantRef};
use crate::mem::{PAGE_SIZE, Page};
use crate::netif::{
    Chain, Checksum, ExtraInfo, Gso, GsoKind, Offload, Piece, RxFlags, RxResponse, TxFlags,
    TxRequest,
};
use crate::ring::Notify;

/// The nodes by which a peer says that it takes super-frames.
pub const OFFLOADS: [&str; 4] =
    ["feature-sg", "feature-gso-tcpv4", "feature-gso-tcpv6", "feature-ipv6-csum-offload"];

/// A TCP super-frame as far as the drivers look at it: bytes that differ from page to page, and the EtherType.
pub fn super_frame(kind: GsoKind, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len).map(|at| (at.wrapping_mul(31) ^ (at / 241)) as u8).collect();
    let ethertype = match kind {
        GsoKind::TcpV4 => [0x08, 0x00],
        GsoKind::TcpV6 => [0x86, 0xdd],
    };
    if let Some(place) = frame.get_mut(12..14) {
        place.copy_from_slice(&ethertype);
    }
    frame
}

/// What goes with it.
pub fn super_offload(kind: GsoKind) -> Offload {
    let size = if kind == GsoKind::TcpV4 { 1448 } else { 1428 };
    Offload { checksum: Checksum::Blank, gso: Some(Gso { kind, size }) }
}

/// A frame of ours with pieces of these lengths.
pub fn chain(frame: &[u8], lens: &[usize]) -> Chain {
    let mut rest = frame;
    let mut pieces = lens.iter().map(|len| {
        let (bytes, after) = rest.split_at(*len);
        rest = after;
        let mut page = Page::alloc_recycled().expect("a free page");
        page.prefix_mut(*len).copy_from_slice(bytes);
        Piece::new(page, u16::try_from(*len).expect("a piece"))
    });
    let mut chain = Chain::of(pieces.next().expect("a head"));
    pieces.for_each(|piece| assert!(chain.push(piece), "too many pieces"));
    chain
}

/// A frame of ours with all pages full but the last.
pub fn full_chain(frame: &[u8]) -> Chain {
    let lens: Vec<usize> = frame.chunks(PAGE_SIZE).map(<[u8]>::len).collect();
    chain(frame, &lens)
}

/// The bytes of a frame of ours.
pub fn bytes(chain: &Chain) -> Vec<u8> {
    chain.pieces().flat_map(|piece| piece.bytes().iter().copied()).collect()
}

/// A packet that the peer got from us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Flags of the first slot.
    pub flags: u16,
    /// The segmentation request behind it.
    pub gso: Option<Gso>,
    /// Bytes in each data slot.
    pub lens: Vec<usize>,
    /// All of them.
    pub bytes: Vec<u8>,
}

fn decode_gso(slot: &[u8; 8]) -> Gso {
    match ExtraInfo::decode(slot) {
        (ExtraInfo::Gso(Ok(gso)), false) => gso,
        other => panic!("not a lone segmentation request: {other:?}"),
    }
}

impl Guest {
    /// Says that it takes super-frames of both families.
    pub fn take_offloads(&self, store: &mut Store) {
        OFFLOADS.iter().for_each(|name| self.set(store, name, "1"));
    }

    /// Writes a packet: a slot for each piece (page, offset, length), extra infos behind the first. The first slot says
    /// `total`. Ids count from `id`. Nothing is published.
    pub fn write_packet(
        &mut self,
        id: u16,
        flags: u16,
        total: u16,
        extras: &[[u8; 8]],
        pieces: &[(GrantRef, u16, u16)],
    ) {
        for (number, (gref, offset, len)) in pieces.iter().enumerate() {
            let more = if number + 1 < pieces.len() { TxFlags::MORE_DATA } else { 0 };
            let first = if number == 0 { flags } else { 0 };
            let extra = if number == 0 && !extras.is_empty() { TxFlags::EXTRA_INFO } else { 0 };
            let flags = TxFlags(more | first | extra);
            let size = if number == 0 { total } else { *len };
            let id = id.wrapping_add(u16::try_from(number).expect("few slots"));
            let request = TxRequest { gref: *gref, offset: *offset, flags, id, size };
            self.write_slot(&request.encode());
            if number == 0 {
                for [a, b, c, d, e, f, g, h] in extras {
                    self.write_slot(&[*a, *b, *c, *d, *e, *f, *g, *h, 0, 0, 0, 0]);
                }
            }
        }
    }

    /// Pages of its own that hold a frame in pieces of these lengths, each at the end of its page.
    pub fn pieces(&self, frame: &[u8], lens: &[usize]) -> Vec<(GrantRef, u16, u16)> {
        let mut rest = frame;
        let piece = |len: &usize| {
            let (bytes, after) = rest.split_at(*len);
            rest = after;
            let offset = PAGE_SIZE - len;
            let number = |value: usize| u16::try_from(value).expect("within a page");
            (self.buffer(offset, bytes), number(offset), number(*len))
        };
        lens.iter().map(piece).collect()
    }

    /// Sends a super-frame in slots of these lengths.
    pub fn send_super(&mut self, id: u16, frame: &[u8], lens: &[usize], offload: Offload) {
        let pieces = self.pieces(frame, lens);
        let gso = offload.gso.map(ExtraInfo::encode_gso);
        let extras: Vec<[u8; 8]> = gso.into_iter().collect();
        let total = u16::try_from(frame.len()).expect("the size of a packet");
        self.write_packet(id, TxFlags::for_frame(offload).0, total, &extras, &pieces);
        self.push_tx();
    }

    /// RX packets since the last call; error responses count as packets without bytes.
    pub fn received_packets(&mut self) -> Vec<Packet> {
        let count = self.rx.unconsumed(&self.rx_page.1).expect("our backend keeps its indices");
        let mut left = (0..count).map(|_| {
            let (slot, bytes) = self.rx.take(&self.rx_page.1).expect("counted");
            let (gref, page) = self.posted.remove(&slot).expect("a posted buffer");
            self.peer.revoke(gref);
            (slot, bytes, page)
        });
        let mut packets = Vec::new();
        while let Some(mut next) = left.next() {
            let flags = RxResponse::decode(&next.1).flags;
            let mut packet =
                Packet { flags: flags.0, gso: None, lens: Vec::new(), bytes: Vec::new() };
            loop {
                let (slot, bytes, page) = next;
                let response = RxResponse::decode(&bytes);
                assert_eq!(usize::from(response.id), slot | 0x4000, "answered in another slot");
                let len = usize::try_from(response.status).unwrap_or(0);
                let mut data = std::vec![0; len];
                page.copy_out(usize::from(response.offset), &mut data);
                packet.lens.push(len);
                packet.bytes.extend(data);
                if packet.lens.len() == 1 && flags.has(RxFlags::EXTRA_INFO) {
                    let extra = left.next().expect("an extra info");
                    packet.gso = Some(decode_gso(&extra.1));
                }
                if !response.flags.has(RxFlags::MORE_DATA) {
                    break;
                }
                next = left.next().expect("a further slot");
            }
            packets.push(packet);
        }
        drop(left);
        self.rx.arm_after(&self.rx_page.1, 1).expect("our backend keeps its indices");
        packets
    }
}

impl NetVm {
    /// Says that it takes super-frames of both families; before [`NetVm::offer`].
    pub fn offer_offloads(store: &mut Store, dom: DomId, devid: u32) {
        let directory = NetVm::directory(dom, devid);
        OFFLOADS.iter().for_each(|name| store.write(&format!("{directory}/{name}"), "1"));
    }

    /// Packets that we sent, with the references of their pages and their ids; not answered yet.
    pub fn take_packets(&mut self) -> Vec<(Packet, Vec<TxRequest>)> {
        let count = self.tx.unconsumed(&self.tx_page).expect("our frontend keeps its indices");
        let slots: Vec<[u8; 12]> = (0..count).filter_map(|_| self.tx.take(&self.tx_page)).collect();
        self.tx.final_check(&self.tx_page).expect("our frontend keeps its indices");
        let mut left = slots.into_iter();
        let mut packets = Vec::new();
        while let Some(first) = left.next() {
            let head = TxRequest::decode(&first);
            let extra = head.flags.has(TxFlags::EXTRA_INFO).then(|| left.next());
            let gso = extra.flatten().map(|slot| {
                let [a, b, c, d, e, f, g, h, ..] = slot;
                decode_gso(&[a, b, c, d, e, f, g, h])
            });
            let mut requests = std::vec![head];
            while requests.last().is_some_and(|last| last.flags.has(TxFlags::MORE_DATA)) {
                requests.push(TxRequest::decode(&left.next().expect("a further slot")));
            }
            let others: u16 = requests.iter().skip(1).map(|request| request.size).sum();
            if let Some(head) = requests.first_mut() {
                head.size = head.size.checked_sub(others).expect("the first says the total");
            }
            let lens = requests.iter().map(|request| usize::from(request.size)).collect();
            let bytes = requests.iter().flat_map(|request| self.bytes(request)).collect();
            packets.push((Packet { flags: head.flags.0, gso, lens, bytes }, requests));
        }
        packets
    }

    /// Answers a packet as Linux does: each data slot by its id, the extra info with `XEN_NETIF_RSP_NULL`.
    pub fn answer(&mut self, packet: &Packet, requests: &[TxRequest], status: i16) {
        for (number, request) in requests.iter().enumerate() {
            self.respond(request.id, status);
            if number == 0 && packet.gso.is_some() {
                self.respond(0xffff, crate::netif::STATUS_NULL);
            }
        }
    }

    /// Writes the slots of a packet (offset, bytes, status or its length), extra infos behind the first, without
    /// publishing them.
    pub fn write_packet(&mut self, flags: u16, extras: &[[u8; 8]], slots: &[RxSlot<'_>]) {
        for (number, slot) in slots.iter().enumerate() {
            let buffer = self.take_buffer().expect("a posted buffer");
            if !slot.bytes.is_empty() {
                let written = self.peer.write(buffer.gref, usize::from(slot.offset), slot.bytes);
                written.expect("a writable buffer");
            }
            let more = if number + 1 < slots.len() { RxFlags::MORE_DATA } else { 0 };
            let first = if number == 0 { flags } else { 0 };
            let extra = if number == 0 && !extras.is_empty() { RxFlags::EXTRA_INFO } else { 0 };
            let len = i16::try_from(slot.bytes.len()).expect("a slot");
            let response = RxResponse {
                id: buffer.id,
                offset: slot.offset,
                flags: RxFlags(more | first | extra | slot.flags),
                status: slot.status.unwrap_or(len),
            };
            self.rx.respond(&self.rx_page, &response.encode());
            if number == 0 {
                for extra in extras {
                    self.take_buffer().expect("a posted buffer");
                    self.rx.respond(&self.rx_page, extra);
                }
            }
        }
    }

    /// Publishes RX responses.
    pub fn push_rx(&mut self) {
        if self.rx.push(&self.rx_page) == Notify::Needed {
            self.peer.notify(self.port);
        }
    }

    /// Delivers a super-frame in slots of these lengths.
    pub fn deliver_super(&mut self, frame: &[u8], lens: &[usize], offload: Offload) {
        let gso = offload.gso.map(ExtraInfo::encode_gso);
        let extras: Vec<[u8; 8]> = gso.into_iter().collect();
        let slots = RxSlot::cut(frame, lens);
        self.write_packet(RxFlags::for_frame(offload).0, &extras, &slots);
        self.push_rx();
    }
}

/// One slot that a backend answers.
#[derive(Clone, Debug, Default)]
pub struct RxSlot<'a> {
    /// First byte in the buffer.
    pub offset: u16,
    /// What it holds.
    pub bytes: &'a [u8],
    /// Flags beside those that belong there.
    pub flags: u16,
    /// What it says instead of the length.
    pub status: Option<i16>,
}

impl<'a> RxSlot<'a> {
    /// A frame in slots of these lengths.
    pub fn cut(frame: &'a [u8], lens: &[usize]) -> Vec<RxSlot<'a>> {
        let mut rest = frame;
        let slot = |len: &usize| {
            let (bytes, after) = rest.split_at(*len);
            rest = after;
            RxSlot { bytes, ..RxSlot::default() }
        };
        lens.iter().map(slot).collect()
    }
}
