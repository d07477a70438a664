//! One TCP connection to a resolver at a time, for answers that do not fit into a datagram (RFC 7766).
//!
//! The TCP itself is `smoltcp`'s. Its device is [`Wire`]: one packet in, a few out, in buffers that exist from the start.
//! Only segments from the server and the port that were asked reach it, so that it answers nobody else.

use alloc::boxed::Box;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;
use core::time::Duration;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::Instant as StackInstant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};

use super::DNS_PORT;
use super::message::MAX_QUERY_BYTES;
use crate::limits::OutOfMemory;
use crate::time::Instant;
use crate::wire::ETHERNET_BYTES;

/// Longest answer that is taken: room for hundreds of addresses.
pub(crate) const MAX_ANSWER_BYTES: usize = 8192;
/// From the connection to the answer.
const PATIENCE: Duration = Duration::from_secs(8);
/// Bytes of the length before each message.
const PREFIX_BYTES: usize = 2;
/// What fits through every IPv6 link, so that no segment of ours or to us is too big.
const MTU: usize = 1280;
/// A backend may join segments up to the window that we offer. As a frame that still fits into one page: what comes for
/// ourselves is read whole (see `frame`).
const RX_BYTES: usize = 4096 - ETHERNET_BYTES;
/// The window: what is left of that behind the longest headers.
const RECEIVE_BYTES: usize = RX_BYTES - 120;
const TX_SLOTS: usize = 4;

/// How a question over TCP stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Progress {
    Waiting,
    /// The answer is complete: [`Stream::answer`].
    Answered,
    /// Refused, reset, too late or too long.
    Failed,
}

pub(crate) struct Stream {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
    query: [u8; PREFIX_BYTES + MAX_QUERY_BYTES],
    query_len: usize,
    sent: usize,
    answer: Box<[u8]>,
    received: usize,
    /// Set while there is a question.
    until: Option<Instant>,
    deadline: Option<Instant>,
}

impl Stream {
    pub(crate) fn new() -> Result<Self, OutOfMemory> {
        let mut wire = Wire::new()?;
        let socket = Socket::new(buffer(RECEIVE_BYTES)?, buffer(PREFIX_BYTES + MAX_QUERY_BYTES)?);
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Ok(Self {
            interface: interface(&mut wire, Instant::default(), 0),
            wire,
            sockets,
            handle,
            query: [0; PREFIX_BYTES + MAX_QUERY_BYTES],
            query_len: 0,
            sent: 0,
            answer: bytes(PREFIX_BYTES + MAX_ANSWER_BYTES)?,
            received: 0,
            until: None,
            deadline: None,
        })
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.until.is_none()
    }

    /// Connects from `own` to `server`, in order to ask `query`; `seed` makes the sequence numbers unpredictable.
    pub(crate) fn ask(
        &mut self,
        now: Instant,
        seed: u64,
        own: (IpAddr, u16),
        server: IpAddr,
        query: &[u8],
    ) -> Option<()> {
        let prefix = u16::try_from(query.len()).ok()?.to_be_bytes();
        self.query_len = PREFIX_BYTES + query.len();
        let (length, message) = self.query.get_mut(..self.query_len)?.split_at_mut(PREFIX_BYTES);
        length.copy_from_slice(&prefix);
        message.copy_from_slice(query);
        (self.sent, self.received) = (0, 0);

        self.interface = interface(&mut self.wire, now, seed);
        let host_bits = if own.0.is_ipv4() { 32 } else { 128 };
        self.interface.update_ip_addrs(|addresses| {
            // Room for two.
            let _ = addresses.push(IpCidr::new(IpAddress::from(own.0), host_bits));
        });
        let routes = self.interface.routes_mut();
        // The next hop is the pipeline's business; without a route nothing is sent.
        match server {
            IpAddr::V4(server) => routes.add_default_ipv4_route(server).map(drop).ok()?,
            IpAddr::V6(server) => routes.add_default_ipv6_route(server).map(drop).ok()?,
        }
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        socket.abort();
        let remote = (IpAddress::from(server), DNS_PORT);
        socket.connect(self.interface.context(), remote, (IpAddress::from(own.0), own.1)).ok()?;
        self.until = Some(now.after(PATIENCE));
        self.deadline = Some(now);
        Some(())
    }

    /// Takes a packet of the connection, from its IP header on; false if there is no room for it.
    pub(crate) fn receive(&mut self, packet: &[u8]) -> bool {
        self.wire.put(packet)
    }

    /// Moves on what can move.
    pub(crate) fn poll(&mut self, now: Instant) -> Progress {
        let Some(until) = self.until else { return Progress::Waiting };
        self.interface.poll(stack_time(now), &mut self.wire, &mut self.sockets);
        let progress = self.exchange();
        self.interface.poll(stack_time(now), &mut self.wire, &mut self.sockets);
        let stack = self.interface.poll_delay(stack_time(now), &self.sockets);
        let stack = stack.map(|delay| now.after(Duration::from_micros(delay.total_micros())));
        self.deadline = Some(stack.map_or(until, |stack| stack.min(until)));
        match progress {
            Progress::Waiting if until <= now => Progress::Failed,
            progress => progress,
        }
    }

    /// The answer, once it is complete.
    pub(crate) fn answer(&self) -> &[u8] {
        let end = answer_end(&self.answer, self.received).unwrap_or(PREFIX_BYTES);
        self.answer.get(PREFIX_BYTES..end).unwrap_or_default()
    }

    /// Forgets the connection.
    pub(crate) fn abort(&mut self) {
        (self.until, self.deadline) = (None, None);
        self.sockets.get_mut::<Socket<'_>>(self.handle).abort();
    }

    /// Ends the connection, with a reset if it is still there.
    pub(crate) fn close(&mut self, now: Instant) {
        self.abort();
        self.interface.poll(stack_time(now), &mut self.wire, &mut self.sockets);
    }

    /// Takes the next packet to be sent, from its IP header on.
    pub(crate) fn transmit(&mut self, out: &mut [u8]) -> Option<usize> {
        let packet = self.wire.next()?;
        out.get_mut(..packet.len())?.copy_from_slice(packet);
        Some(packet.len())
    }

    /// When [`Stream::poll`] has something to do.
    pub(crate) fn next_deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn exchange(&mut self) -> Progress {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        if socket.can_send()
            && let Some(rest) = self.query.get(self.sent..self.query_len)
        {
            self.sent += socket.send_slice(rest).unwrap_or(0);
        }
        while socket.can_recv() {
            let room = self.answer.get_mut(self.received..).unwrap_or_default();
            match socket.recv_slice(room) {
                Ok(taken) if taken > 0 => self.received += taken,
                _ => return Progress::Failed,
            }
            if answer_end(&self.answer, self.received).is_some_and(|end| end <= self.received) {
                return Progress::Answered;
            }
        }
        let socket = self.sockets.get::<Socket<'_>>(self.handle);
        // Before the handshake nothing can be received, which is no failure.
        let is_over = !socket.is_open() || (self.sent > 0 && !socket.may_recv());
        let end = answer_end(&self.answer, self.received);
        if is_over || end.is_some_and(|end| end > self.answer.len()) {
            return Progress::Failed;
        }
        Progress::Waiting
    }
}

/// Where the message ends that begins in the bytes received.
fn answer_end(answer: &[u8], received: usize) -> Option<usize> {
    let prefix = answer.get(..received)?.first_chunk::<PREFIX_BYTES>()?;
    Some(PREFIX_BYTES + usize::from(u16::from_be_bytes(*prefix)))
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("until", &self.until).finish_non_exhaustive()
    }
}

fn interface(wire: &mut Wire, now: Instant, seed: u64) -> Interface {
    let mut config = Config::new(HardwareAddress::Ip);
    config.random_seed = seed;
    Interface::new(config, wire, stack_time(now))
}

fn stack_time(now: Instant) -> StackInstant {
    StackInstant::from_micros(i64::try_from(now.as_nanos() / 1000).unwrap_or(i64::MAX))
}

fn bytes(len: usize) -> Result<Box<[u8]>, OutOfMemory> {
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(len).map_err(|_| OutOfMemory)?;
    bytes.resize(len, 0);
    Ok(bytes.into_boxed_slice())
}

fn buffer(len: usize) -> Result<SocketBuffer<'static>, OutOfMemory> {
    Ok(SocketBuffer::new(bytes(len)?.into_vec()))
}

/// The device below the connection.
struct Wire {
    incoming: Box<[u8]>,
    incoming_len: usize,
    outgoing: Vec<Slot>,
    /// Slots in use, from the first on.
    queued: usize,
    /// Slots of those that were sent.
    taken: usize,
}

struct Slot {
    bytes: Box<[u8]>,
    len: usize,
}

impl Wire {
    fn new() -> Result<Self, OutOfMemory> {
        let slot = || Ok(Slot { bytes: bytes(MTU)?, len: 0 });
        let outgoing = vec![(); TX_SLOTS].into_iter().map(|()| slot()).collect::<Result<_, _>>()?;
        Ok(Self { incoming: bytes(RX_BYTES)?, incoming_len: 0, outgoing, queued: 0, taken: 0 })
    }

    fn put(&mut self, packet: &[u8]) -> bool {
        if self.incoming_len > 0 {
            return false;
        }
        let Some(place) = self.incoming.get_mut(..packet.len()) else { return false };
        place.copy_from_slice(packet);
        self.incoming_len = packet.len();
        true
    }

    fn next(&mut self) -> Option<&[u8]> {
        if self.taken >= self.queued {
            return None;
        }
        let slot = self.outgoing.get(self.taken)?;
        self.taken += 1;
        if self.taken == self.queued {
            (self.taken, self.queued) = (0, 0);
        }
        slot.bytes.get(..slot.len)
    }
}

struct Incoming<'a>(&'a [u8]);

impl RxToken for Incoming<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

struct Outgoing<'a> {
    slot: &'a mut Slot,
    queued: &'a mut usize,
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        // The stack was told the size of a slot.
        let bytes = self.slot.bytes.get_mut(..len).expect("the stack keeps to the MTU");
        bytes.fill(0);
        let result = f(bytes);
        self.slot.len = len;
        *self.queued += 1;
        result
    }
}

impl Device for Wire {
    type RxToken<'a> = Incoming<'a>;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: StackInstant) -> Option<(Incoming<'_>, Outgoing<'_>)> {
        if self.incoming_len == 0 {
            return None;
        }
        let slot = self.outgoing.get_mut(self.queued)?;
        let packet = self.incoming.get(..core::mem::take(&mut self.incoming_len))?;
        Some((Incoming(packet), Outgoing { slot, queued: &mut self.queued }))
    }

    fn transmit(&mut self, _: StackInstant) -> Option<Outgoing<'_>> {
        let slot = self.outgoing.get_mut(self.queued)?;
        Some(Outgoing { slot, queued: &mut self.queued })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = MTU;
        capabilities
    }
}
