//! The fast path: the next packet of a flow that stands, in one straight piece.
//!
//! Nearly all packets are TCP or UDP of a flow that the stages of [`crate::pipeline`] have let through before, and nothing
//! about them is unusual. For those this does what the stages would do, and leaves the same state behind; for all others it
//! does nothing at all and they take the way through the stages. It is not asked what can be known from the last time:
//! a flow carries the [`Epoch`] in which a packet of it passed every stage in the same direction, and whatever could make
//! a stage decide otherwise starts a new epoch. What changes from one packet to the next is looked at each time: headers,
//! lengths and checksums, the flow's deadline, what the rules say of it now, TCP windows, the ports at both ends.
//!
//! The tests of the whole crate hand each frame to both ways, where the tables are small, and compare what comes out; the
//! state behind a frame that was taken, too. Behind one that was not, only `tests::fast` looks at the state.
//!
//! Not here, by design: fragments, options and extension headers, padding, ICMP, SYN, FIN and reset, DNS (its answers are
//! read on the way), clients that are told other addresses, flows between clients, a NetVM that is a client.

mod epoch;
mod family;
mod transport;

use core::marker::PhantomData;

use crate::conntrack::table::FlowId;
use crate::conntrack::tcp::Sender;
use crate::conntrack::{Flow, Tuple};
use crate::evidence;
use crate::firewall::{DNS_PORT, Firewall};
use crate::frame::{Checksum, Frame};
use crate::nat::rewrite;
use crate::packet::{Packet, Upper};
use crate::port::{ClientId, Origin, PortCaps, PortId};
use crate::time::Instant;
use crate::verdict::Fate;
use crate::wire::{
    ETHERNET_BYTES, ETHERTYPE_IPV4, ETHERTYPE_IPV6, Mac, Side, protocol, read, read_u16, write,
};

pub(crate) use epoch::{Epoch, Passed};
use family::{Family, V4, V6};
use transport::{Payload, Tcp, Transport, Udp};

/// A packet without anything unusual: whose it is. The rest stays in its frame until it is needed.
struct Ordinary<F: Family, T> {
    source: F::Address,
    destination: F::Address,
    source_port: u16,
    destination_port: u16,
    total_len: usize,
    kind: PhantomData<T>,
}

/// What becomes of a frame. As a type, so that the last step of a way is a jump and nothing is carried back.
pub(crate) trait Ending {
    /// What the caller gets.
    type Out;
    /// It was taken through.
    fn taken(fate: Fate) -> Self::Out;
    /// It is none of these; nothing has changed.
    fn not_taken(
        firewall: &mut Firewall,
        now: Instant,
        origin: Origin,
        frame: &mut Frame<'_>,
    ) -> Self::Out;
}

/// What is not taken goes through the stages.
pub(crate) struct Stages;

impl Ending for Stages {
    type Out = Fate;

    #[inline(always)]
    fn taken(fate: Fate) -> Fate {
        fate
    }

    #[inline(always)]
    fn not_taken(
        firewall: &mut Firewall,
        now: Instant,
        origin: Origin,
        frame: &mut Frame<'_>,
    ) -> Fate {
        firewall.handle_in_stages(now, origin, frame)
    }
}

impl Firewall {
    /// Takes a frame through if it is one of these.
    #[inline(always)]
    pub(crate) fn fast_path<E: Ending>(
        &mut self,
        now: Instant,
        origin: Origin,
        frame: &mut Frame<'_>,
    ) -> E::Out {
        #[cfg(test)]
        if crate::testing::is_fast_path_closed() {
            return E::not_taken(self, now, origin, frame);
        }
        // Long enough for the headers of the shortest packet.
        let head: Option<&[u8; V4::L4]> = frame.bytes().first_chunk();
        match head.filter(|_| frame.check_head().is_ok()) {
            Some(head) => match read_u16(head, 12) {
                ETHERTYPE_IPV4 => self.fast::<V4, E>(now, origin, V4::protocol(head), frame),
                ETHERTYPE_IPV6 => self.fast::<V6, E>(now, origin, V6::protocol(head), frame),
                _ => E::not_taken(self, now, origin, frame),
            },
            None => E::not_taken(self, now, origin, frame),
        }
    }

    #[inline(always)]
    fn fast<F: Family, E: Ending>(
        &mut self,
        now: Instant,
        origin: Origin,
        protocol: u8,
        frame: &mut Frame<'_>,
    ) -> E::Out {
        match (origin, protocol) {
            (Origin::Client(id), protocol::TCP) => self.fast_up::<F, Tcp, E>(now, id, frame),
            (Origin::Client(id), protocol::UDP) => self.fast_up::<F, Udp, E>(now, id, frame),
            (Origin::Uplink, protocol::TCP) => self.fast_down::<F, Tcp, E>(now, frame),
            (Origin::Uplink, protocol::UDP) => self.fast_down::<F, Udp, E>(now, frame),
            _ => E::not_taken(self, now, origin, frame),
        }
    }

    #[inline(never)]
    fn fast_up<F: Family, T: Transport, E: Ending>(
        &mut self,
        now: Instant,
        id: ClientId,
        frame: &mut Frame<'_>,
    ) -> E::Out {
        match self.try_up::<F, T>(now, id, frame) {
            Some(()) => E::taken(Fate::Send(PortId::Uplink)),
            None => E::not_taken(self, now, Origin::Client(id), frame),
        }
    }

    #[inline(never)]
    fn fast_down<F: Family, T: Transport, E: Ending>(
        &mut self,
        now: Instant,
        frame: &mut Frame<'_>,
    ) -> E::Out {
        match self.try_down::<F, T>(now, frame) {
            Some(id) => E::taken(Fate::Send(PortId::Client(id))),
            None => E::not_taken(self, now, Origin::Uplink, frame),
        }
    }

    #[inline(always)]
    fn try_up<F: Family, T: Transport>(
        &mut self,
        now: Instant,
        id: ClientId,
        frame: &mut Frame<'_>,
    ) -> Option<()> {
        let packet = Ordinary::<F, T>::read(frame, Mac::GATEWAY)?;
        let client = self.clients.attached(id)?;
        let (address, host) = F::of_client(client)?;
        let uplink = self.uplink.as_ref()?;
        if address != packet.source || client.visible.is_some() {
            return None;
        }
        packet.fits(frame, &uplink.port.caps)?;
        let (found, flow, own) = self.table.inside(&packet.outbound(), host)?;
        if !flow.passed.is_up(self.epoch) || now >= flow.deadline {
            return None;
        }
        let owner = self.clients.host_mut(host)?;
        let evidence = evidence::of(flow, owner)?;
        let to = (F::of_us(own), flow.local_port_outside());
        T::follow(payload::<F>(frame)?, flow, Sender::Client)?;
        frame.evidence = Some(evidence);
        owner.heard(id);
        if !flow.prolong(now) {
            self.table.relist(found);
        }
        let macs = (F::next_hop(uplink), uplink.port.mac);
        Ordinary::<F, T>::send(frame, macs, Side::Source, to);
        self.count_passed(PortId::Client(id), PortId::Uplink, frame);
        Some(())
    }

    #[inline(always)]
    fn try_down<F: Family, T: Transport>(
        &mut self,
        now: Instant,
        frame: &mut Frame<'_>,
    ) -> Option<ClientId> {
        let uplink = self.uplink.as_ref()?;
        let packet = Ordinary::<F, T>::read(frame, uplink.port.mac)?;
        let flow = self.table.outside(&packet.inbound())?;
        let owner = self.clients.host(flow.host())?;
        let id = owner.port?;
        let client = self.clients.attached(id)?;
        packet.fits(frame, &client.port.caps)?;
        let evidence = evidence::of(flow, owner)?;
        let to = (F::own(owner.address)?, flow.local_port_inside());
        let is_usable = flow.passed.is_down(self.epoch) && now < flow.deadline;
        if !is_usable || client.visible.is_some() {
            return None;
        }
        T::follow(payload::<F>(frame)?, flow, Sender::Remote)?;
        frame.evidence = Some(evidence);
        let macs = (client.port.mac, Mac::GATEWAY);
        Ordinary::<F, T>::send(frame, macs, Side::Destination, to);
        self.count_passed(PortId::Uplink, PortId::Client(id), frame);
        Some(id)
    }

    #[inline(always)]
    fn count_passed(&mut self, from: PortId, to: PortId, frame: &Frame<'_>) {
        let bytes = frame.len() as u64;
        self.stats.received(from, bytes);
        self.stats.sent(to, bytes);
    }
}

/// What the stages note for the fast path.
impl Firewall {
    /// A client's packet has passed every stage on its way to the uplink, without DNS redirection.
    pub(crate) fn note_passed_up(&mut self, id: FlowId, packet: &Packet) {
        if !self.netvm.is_empty() {
            return;
        }
        let Some(flow) = self.table.get_mut(id) else { return };
        if is_plain(flow, packet) {
            flow.passed.note_up(self.epoch);
        }
    }

    /// A packet to our address has passed every stage on its way to the client.
    pub(crate) fn note_passed_down(&mut self, id: FlowId, packet: &Packet) {
        if !self.netvm.is_empty() {
            return;
        }
        let is_to_us = self.network.own_address(packet.source) == Some(packet.destination);
        let Some(flow) = self.table.get_mut(id) else { return };
        // Answers of resolvers are read, or are for our own.
        if is_to_us && is_plain(flow, packet) && packet.source_port != DNS_PORT {
            flow.passed.note_down(self.epoch);
        }
    }
}

/// Whether NAT changes the near end alone: no DNS redirection, no ICMP error about the flow.
fn is_plain(flow: &Flow, packet: &Packet) -> bool {
    matches!(packet.upper, Upper::Tcp(_) | Upper::Udp) && !flow.is_redirected()
}

/// What is above IP.
#[inline(always)]
fn payload<'f, F: Family>(frame: &'f Frame<'_>) -> Option<Payload<'f>> {
    Some(Payload { head: frame.bytes().get(F::L4..)?, len: frame.len().checked_sub(F::L4)? })
}

impl<F: Family, T: Transport> Ordinary<F, T> {
    /// Reads a frame to `own_mac`.
    #[inline(always)]
    fn read(frame: &Frame<'_>, own_mac: Mac) -> Option<Self> {
        let bytes = frame.bytes();
        let link: &[u8; ETHERNET_BYTES] = bytes.first_chunk()?;
        if Mac(read(link, 0)) != own_mac {
            return None;
        }
        let ip = F::read(bytes)?;
        // Padding is cut off elsewhere.
        let is_whole = ETHERNET_BYTES + ip.total_len == frame.len();
        if !is_whole || ip.ttl <= 1 {
            return None;
        }
        let payload = payload::<F>(frame)?;
        if !T::is_plain::<F>(payload, frame.offload.checksum) {
            return None;
        }
        Some(Self {
            source: ip.source,
            destination: ip.destination,
            source_port: read_u16(payload.head, 0),
            destination_port: read_u16(payload.head, 2),
            total_len: ip.total_len,
            kind: PhantomData,
        })
    }

    #[inline(always)]
    fn outbound(&self) -> Tuple {
        Tuple {
            protocol: T::PROTOCOL,
            local: self.source.into(),
            local_port: self.source_port,
            remote: self.destination.into(),
            remote_port: self.destination_port,
        }
    }

    #[inline(always)]
    fn inbound(&self) -> Tuple {
        Tuple {
            protocol: T::PROTOCOL,
            local: self.destination.into(),
            local_port: self.destination_port,
            remote: self.source.into(),
            remote_port: self.source_port,
        }
    }

    /// Whether the port takes it as it is.
    #[inline(always)]
    fn fits(&self, frame: &Frame<'_>, caps: &PortCaps) -> Option<()> {
        let is_blank = frame.offload.checksum == Checksum::Blank;
        let fits = match frame.offload.gso {
            None => self.total_len <= usize::from(caps.mtu) && (!is_blank || F::takes(caps).0),
            Some(gso) => is_blank && T::fits_super::<F>(payload::<F>(frame)?, gso, caps)?,
        };
        fits.then_some(())
    }

    /// Gives the packet another end on one side, and a link header. [`Ordinary::read`] has seen every byte of it.
    #[inline(always)]
    fn send(
        frame: &mut Frame<'_>,
        (to, from): (Mac, Mac),
        side: Side,
        (address, port): (F::Address, u16),
    ) {
        let state = frame.offload.checksum;
        let bytes = frame.bytes_mut();
        write(bytes, 0, to.0);
        write(bytes, 6, from.0);
        let addresses = F::hand_on(bytes, side, address);
        let Some(l4) = bytes.get_mut(F::L4..) else { return };
        let ports = rewrite::set_word(l4, if side == Side::Source { 0 } else { 2 }, port);
        T::update_checksum(l4, state, addresses, ports);
        if state == Checksum::Validated {
            // As in `egress`: a peer's claim is not ours to repeat.
            frame.offload.checksum = Checksum::Full;
        }
    }
}

/// What a packet of a flow that stands can change, for the tests to set back.
#[cfg(test)]
#[derive(Clone, Debug)]
pub(crate) struct PacketState {
    table: crate::conntrack::table::Table,
    clients: crate::clients::Clients,
    stats: crate::stats::Stats,
}

#[cfg(test)]
impl Firewall {
    pub(crate) fn packet_state(&self) -> PacketState {
        let (table, clients) = (self.table.clone(), self.clients.clone());
        PacketState { table, clients, stats: self.stats.clone() }
    }

    pub(crate) fn replace_packet_state(&mut self, state: PacketState) -> PacketState {
        let table = core::mem::replace(&mut self.table, state.table);
        let clients = core::mem::replace(&mut self.clients, state.clients);
        let stats = core::mem::replace(&mut self.stats, state.stats);
        PacketState { table, clients, stats }
    }
}
