//! What the loop needs of the machine it runs on. Xen is one implementation (`platform`), the tests are another.

use core::fmt;

use crate::clients::ClientPort;
use crate::frame::Offload;
use crate::port::{ClientId, Origin, PortId};
use crate::qrexec::CallId;
use crate::segment::Payload;
use crate::time::Instant;
use crate::uplink::UplinkPort;

/// A byte pipe to a peer that is trusted or has been checked: a vchan in the image.
pub trait Pipe {
    /// Reads what is there, up to the length of `buffer`; 0 if there is nothing.
    fn read(&mut self, buffer: &mut [u8]) -> usize;
    /// Writes as much as fits.
    fn write(&mut self, bytes: &[u8]) -> usize;
    /// Bytes that wait to be read.
    fn unread(&self) -> usize;
    /// Bytes that can be written now.
    fn space(&self) -> usize;
}

/// Something happened to a device or a link.
pub enum Change {
    /// A client's vif is connected.
    ClientUp {
        /// Its slot.
        id: ClientId,
        /// Who it is.
        port: ClientPort,
        /// Its device number, for the log.
        devid: u32,
    },
    /// A client's vif is no longer connected.
    ClientDown {
        /// Its slot.
        id: ClientId,
        /// Why.
        reason: Reason,
    },
    /// The uplink is connected.
    UplinkUp {
        /// What is known about it.
        port: UplinkPort,
        /// The backend's domain, for the log.
        backend: u16,
    },
    /// The uplink is no longer connected.
    UplinkDown {
        /// Why.
        reason: Reason,
    },
    /// QubesDB is connected.
    DatabaseUp,
    /// QubesDB closed the link; what it still holds can be read until `close_database`.
    DatabaseDown,
    /// The control channel of the qrexec agent is offered to dom0.
    AgentUp,
    /// dom0 closed it; as for `DatabaseDown`.
    AgentDown,
    /// The data channel of a call is connected.
    CallUp(CallId),
    /// The data channel of a call is gone or cannot be connected.
    CallDown(CallId),
    /// A line for the log about a device or link that did not change the state above.
    Note(Reason),
    /// The domain was suspended and goes on.
    Resumed,
    /// dom0 asks us to stop.
    Stop(Stop),
}

/// Why something happened, for the log: one line of text, cut at its capacity.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    bytes: [u8; Self::CAPACITY],
    length: usize,
}

impl Reason {
    const CAPACITY: usize = 180;

    /// Formats the reason.
    #[must_use]
    pub fn new(text: fmt::Arguments<'_>) -> Self {
        let mut reason = Self { bytes: [0; Self::CAPACITY], length: 0 };
        // A longer text is cut, which is not an error here.
        let _ = fmt::write(&mut reason, text);
        reason
    }

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or("(unprintable)")
    }
}

impl fmt::Write for Reason {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            let Some(place) = self.bytes.get_mut(self.length) else { return Err(fmt::Error) };
            // ASCII only, so that a cut never splits a character.
            *place = if byte.is_ascii() && !byte.is_ascii_control() { byte } else { b'?' };
            self.length += 1;
        }
        Ok(())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// How dom0 wants us to stop (xenstore `control/shutdown`, Xen docs/misc/xenstore-paths).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// `poweroff`.
    Poweroff,
    /// `halt`: the same to us.
    Halt,
    /// `reboot`.
    Reboot,
}

impl Stop {
    /// The word in xenstore.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Poweroff => "poweroff",
            Self::Halt => "halt",
            Self::Reboot => "reboot",
        }
    }
}

/// A frame in private pages.
pub struct Paged<P, T> {
    /// The page that holds its head from byte 0 on.
    pub page: P,
    /// Bytes of the head: the whole frame, or at least [`MIN_HEAD_BYTES`](crate::frame::MIN_HEAD_BYTES) of it.
    pub head: usize,
    /// Bytes of the frame.
    pub len: usize,
    /// What is behind the head: nothing if `head` is `len`, else `len - head` bytes.
    pub tail: Option<T>,
    /// What is left to the receiver, or was left to us.
    pub offload: Offload,
}

/// A frame that came in.
pub struct Arrival<P, T> {
    /// From where.
    pub origin: Origin,
    /// The frame.
    pub frame: Paged<P, T>,
}

/// Parts of the program whose memory is kept apart, at most.
pub const MAX_PARTS: usize = 12;

/// What one part of the program has of the heap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartUse {
    /// Its name; empty: there is no such part.
    pub name: &'static str,
    /// Bytes now.
    pub live: usize,
    /// Most bytes at one time.
    pub peak: usize,
    /// Bytes that it may have; as many as there are: `usize::MAX`.
    pub budget: usize,
    /// Blocks now.
    pub blocks: usize,
    /// Blocks given out since the start.
    pub count: u64,
    /// Requests that were refused.
    pub failures: u64,
}

/// Memory and what else the hypervisor lends, in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryUse {
    /// Heap in use, bytes.
    pub heap_used: usize,
    /// Most of it at one time, bytes.
    pub heap_peak: usize,
    /// Heap, bytes.
    pub heap_size: usize,
    /// Pages of the pool in use.
    pub pages_used: usize,
    /// Pages of the pool.
    pub pages: usize,
    /// Pages that other domains may access.
    pub grants: usize,
    /// Of the pages in use, those that another domain does not let go.
    pub quarantined: usize,
    /// Event channels.
    pub ports: usize,
    /// Watches in xenstore.
    pub watches: usize,
    /// Most bytes that one operation of the control plane has asked for.
    pub largest_operation: usize,
    /// Operations that had to wait for memory.
    pub operations_refused: u64,
    /// Clients and connections that left memory behind.
    pub leaks: u64,
    /// The heap by part.
    pub parts: [PartUse; MAX_PARTS],
}

/// What the hypervisor was asked for since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effort {
    /// Hypercalls of all kinds.
    pub hypercalls: u64,
    /// Of these, batches of copies to and from clients' pages.
    pub copies: u64,
    /// Copies in them.
    pub copy_operations: u64,
    /// Bytes that they copied.
    pub copied_bytes: u64,
    /// Events sent to peers.
    pub notifications: u64,
    /// Times that we went to sleep.
    pub sleeps: u64,
    /// Times that the timer was set.
    pub timers: u64,
    /// Turns in which frames came from clients, came from the uplink, went to clients, went to the uplink.
    pub batches: [u64; 4],
    /// Blocks of the heap that frames on their way were given: none, or it is a fault.
    pub allocations: u64,
    /// Writes about clients that xenstore refused: a quota, perhaps.
    pub store_refusals: u64,
    /// Clients' devices that were offered fewer features than usual, as xenstore has no room for their nodes.
    pub limited_vifs: u64,
}

/// What the loop is about to do, for the books about memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// Take frames through the packet path, and time: allocates nothing, and is never refused.
    Packets,
    /// Take in what QubesDB says.
    Database,
    /// Put rules and configuration in force, or what devices and links say.
    Rules,
    /// Serve calls over qrexec.
    Calls,
}

/// The machine.
pub trait Machine {
    /// A private page that holds one frame, or the head of one.
    type Page;
    /// Private pages with what is behind the head of a super-frame. The loop hands them on as they are, or reads them to
    /// cut the frame up.
    type Tail: Payload;
    /// Work that has begun; it ends when this is dropped.
    type Scope;

    /// Begins a piece of work of the control plane that allocates no more than is sure to be there; `None` while memory is
    /// short: the loop comes back to it after the next [`Self::sleep`], which then is a short one.
    fn begin(&mut self, work: Work) -> Option<Self::Scope>;

    /// A monotonic clock without pauses of the domain.
    fn now(&self) -> Instant;
    /// `instant` on the clock that all domains share (Xen system time), in nanoseconds.
    fn shared_clock_ns(&self, instant: Instant) -> u64;
    /// Time since the first instruction: on the wall, and of that running, in microseconds.
    fn uptime_us(&self) -> (u64, u64);
    /// Memory in use.
    fn memory(&self) -> MemoryUse;
    /// What the hypervisor was asked for.
    fn effort(&self) -> Effort;

    /// Sleeps until something happens or `until` is reached, but not while devices have work left.
    fn sleep(&mut self, until: Option<Instant>);
    /// Begins a turn: serves events, xenstore and the life of devices and links; bounded work. Returns the time of the turn.
    fn advance(&mut self) -> Instant;
    /// What that led to.
    fn next_change(&mut self) -> Option<Change>;

    /// Takes a bounded batch of frames from the uplink.
    fn receive_from_uplink(&mut self);
    /// Takes a bounded batch of frames from the clients. What was sent to them goes out with it, for one exit to the
    /// hypervisor.
    fn receive_from_clients(&mut self);
    /// The next frame of the batch.
    fn next_frame(&mut self) -> Option<Arrival<Self::Page, Self::Tail>>;
    /// A page for a frame of our own; `None` if memory is short.
    fn spare_page(&mut self) -> Option<Self::Page>;
    /// The beginning of a page: `len` bytes or, where that is more, what an answer of our own needs.
    fn bytes(page: &mut Self::Page, len: usize) -> &mut [u8];
    /// Queues a frame. One that cannot be taken is dropped and counted in [`Self::unsent`].
    fn send(&mut self, to: PortId, frame: Paged<Self::Page, Self::Tail>);
    /// Frames that [`Self::send`] dropped since the start, by reason; always the same reasons in the same order.
    fn unsent(&self) -> &[(&'static str, u64)];
    /// Sends what was queued and tells the peers.
    fn flush(&mut self);

    /// QubesDB, while it is connected.
    fn database(&mut self) -> Option<&mut dyn Pipe>;
    /// Closes the link and waits for dom0's next offer.
    fn close_database(&mut self);
    /// The control channel of the qrexec agent, while it is offered.
    fn agent(&mut self) -> Option<&mut dyn Pipe>;
    /// Closes it and offers a new one.
    fn reset_agent(&mut self);
    /// Connects the data channel of a call: `CallUp` or `CallDown` follows.
    fn open_call(&mut self, call: CallId, domain: u16, port: u32);
    /// Serves a data channel for dom0 as vchan server; `CallUp` when it is offered. At most one at a time.
    fn serve_call(&mut self, call: CallId, port: u32);
    /// The data channel of a call, while it is connected.
    fn call(&mut self, call: CallId) -> Option<&mut dyn Pipe>;
    /// Closes it, or gives up connecting.
    fn close_call(&mut self, call: CallId);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_and_made_printable() {
        let long = "x".repeat(500);
        assert_eq!(Reason::new(format_args!("{long}")).as_str().len(), Reason::CAPACITY);
        assert_eq!(Reason::new(format_args!("a\u{1b}[0m\u{e9}")).as_str(), "a?[0m??");
    }
}
