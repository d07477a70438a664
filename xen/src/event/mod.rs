//! Event channels (2-level ABI) and the one place where the domain sleeps.
//!
//! A port delivers once and is then masked until its owner has done the work and calls [`Channel::unmask`]: a peer
//! that floods one port cannot keep the others from being served (Xen Security Advisories 332 and 391).
//!
//! * `held`: events that go together at the end of a turn
//! * `lively`: the ports that a short sleep names
#![forbid(unsafe_code)]

mod held;
mod lively;

use core::cell::Cell;

use thiserror::Error;

use crate::abi::event_channel::{PORTS, STATUS_INTERDOMAIN};
use crate::abi::platform::MAX_POLLED_PORTS;
use crate::abi::vcpu::{EVTCHN_MASK, EVTCHN_PENDING, PENDING_SEL, UPCALL_PENDING};
use crate::abi::{DomId, Errno, EventPort};
use crate::counts::{self, Call};
use crate::hypercall::Sleep;
use crate::mem::global;
use crate::postmortem::{self, What};
use crate::shared::SharedPage;
use crate::{hypercall, time};
use held::Held;
use lively::Lively;

global! {
    static TIMER: Timer = Timer { port: Cell::new(None), armed: Cell::new(None) };
}
global! {
    /// Channels of ours.
    static OPEN: Cell<usize> = Cell::new(0);
}

global! {
    static HELD: Held = Held::new();
}
global! {
    static LIVELY: Lively = Lively::new();
}

/// Longest nap, in nanoseconds.
const NAP_NS: u64 = 2_000_000;
/// The same before a deadline: two sleeps cost more than the rest of the time is worth.
const LONG_NAP_NS: u64 = 12_000_000;

struct Timer {
    port: Cell<Option<EventPort>>,
    /// Deadline that Xen's one-shot timer is set to; `None` once it has fired.
    armed: Cell<Option<u64>>,
}

/// Open ports that are listed for a sleep: one more than Xen polls says that there are too many.
const LISTED_PORTS: usize = MAX_POLLED_PORTS + 1;

/// Xen refused a port operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("event channel operation failed with error {}", .0.0)]
pub struct EventError(pub Errno);

/// A port of ours, unmasked at first; closed on drop.
#[derive(Debug)]
pub struct Channel {
    port: EventPort,
}

impl Channel {
    /// A new port that only `peer` can bind to. We play the front end.
    pub fn alloc_unbound(peer: DomId) -> Result<Channel, EventError> {
        counts::call(Call::Port);
        hypercall::event_alloc_unbound(peer).map(Channel::opened).map_err(EventError)
    }

    /// A port bound to `remote`, which `peer` has reserved for us. We play the back end. The first event is raised
    /// at once, by Xen, so that nothing sent before the binding is lost.
    pub fn bind_interdomain(peer: DomId, remote: EventPort) -> Result<Channel, EventError> {
        counts::call(Call::Port);
        hypercall::event_bind_interdomain(peer, remote).map(Channel::opened).map_err(EventError)
    }

    /// Takes over a port that the toolstack has bound (xenstore, console); masked until the first `unmask`.
    pub(crate) fn from_toolstack(port: EventPort) -> Channel {
        OPEN.with(|open| open.set(open.get().saturating_add(1)));
        Channel { port }
    }

    fn opened(port: EventPort) -> Channel {
        let channel = Channel::from_toolstack(port);
        channel.unmask();
        channel
    }

    /// Number of the port: to be told to the peer, and reported by [`take_pending`].
    pub fn port(&self) -> EventPort {
        self.port
    }

    /// Raises an event at the other end, or together with others while they are held ([`hold`]). A dead peer is not an error.
    pub fn notify(&self) {
        if !HELD.with(|held| held.take_up(self.port)) {
            counts::call(Call::Notify);
            hypercall::event_send(self.port);
        }
    }

    /// Whether a peer is bound to the other end now.
    pub fn is_connected(&self) -> bool {
        counts::call(Call::Port);
        hypercall::event_status(self.port) == STATUS_INTERDOMAIN
    }

    /// Lets events through again; one that came in the meantime is delivered by the next [`take_pending`].
    pub fn unmask(&self) {
        unmask(&hypercall::shared_info(), self.port);
    }

    /// Holds events back; they stay pending.
    pub fn mask(&self) {
        mask(&hypercall::shared_info(), self.port);
    }

    /// Holds events back, and lets none of them end a sleep, which a masked one does: to Xen it is pending already, and what
    /// is pending is not told again (`evtchn_2l_set_pending`). Events until [`Channel::unmute`] are lost.
    pub(crate) fn mute(&self) {
        self.mask();
        let (word, bit) = position(self.port);
        hypercall::shared_info().fetch_or_u64(EVTCHN_PENDING + word * 8, bit);
    }

    /// Ends it. The port is masked still: first look for what came in the meantime, then [`Channel::unmask`].
    pub(crate) fn unmute(&self) {
        let (word, bit) = position(self.port);
        hypercall::shared_info().fetch_and_u64(EVTCHN_PENDING + word * 8, !bit);
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        OPEN.with(|open| open.set(open.get().saturating_sub(1)));
        // The last event goes with the port: afterwards the peer would never hear of what was written for it.
        if HELD.with(|held| held.take(self.port)) {
            counts::call(Call::Notify);
            hypercall::event_send(self.port);
        }
        let shared = hypercall::shared_info();
        mask(&shared, self.port);
        counts::call(Call::Port);
        hypercall::event_close(self.port);
        // The number may be handed out again; a stale event would be an event of the next owner.
        let (word, bit) = position(self.port);
        shared.fetch_and_u64(EVTCHN_PENDING + word * 8, !bit);
    }
}

/// From now on events wait for each other, until [`send_held`] or the next [`wait`] sends all of them in one hypercall.
pub fn hold() {
    HELD.with(|held| held.begin());
}

/// Sends the events that were held. From now on they go at once again.
pub fn send_held() {
    let (ports, count) = HELD.with(|held| held.end());
    match ports.get(..count) {
        None | Some([]) => {}
        Some([port]) => {
            counts::call(Call::Notify);
            hypercall::event_send(*port);
        }
        Some(ports) => {
            counts::several();
            ports.iter().for_each(|_| counts::part(Call::Notify));
            hypercall::notify_all(ports, None);
        }
    }
}

/// Channels that are open, the toolstack's included.
pub fn open_channels() -> usize {
    OPEN.with(|open| open.get())
}

/// Calls `deliver` for every port with an event, once; each stays masked until its owner unmasks it.
pub fn take_pending(mut deliver: impl FnMut(EventPort)) {
    let shared = hypercall::shared_info();
    let timer = TIMER.with(|timer| timer.port.get());
    scan(&shared, |port| {
        if timer == Some(port) {
            TIMER.with(|timer| timer.armed.set(None));
            unmask_timer(port);
        } else {
            postmortem::note(What::Port, [port.0.into(), 0]);
            LIVELY.with(|lively| lively.note(port));
            deliver(port);
        }
    });
}

/// Sleeps until an event is pending or Xen's system time reaches `deadline` (ns); returns at once if it is so already.
/// May return early. To be followed by [`take_pending`].
pub fn wait(deadline: Option<u64>) {
    wait_from(deadline, time::system_time_ns());
}

/// The same for a caller that knows the time: `now` in ns, not later than it is.
pub fn wait_from(deadline: Option<u64>, now: u64) {
    if hypercall::shared_info().load_u64(PENDING_SEL) != 0 {
        return send_held();
    }
    if deadline.is_some_and(|deadline| now >= deadline) {
        return send_held();
    }
    postmortem::note(What::Sleep, [deadline.unwrap_or(0), 0]);
    let shared = hypercall::shared_info();
    let mut list = [0; LISTED_PORTS];
    let lively = LIVELY.with(|lively| lively.open(&shared, &mut list));
    if !lively.is_empty() {
        let over = now.saturating_add(NAP_NS);
        let over = deadline.filter(|due| *due <= now.saturating_add(LONG_NAP_NS)).unwrap_or(over);
        sleep(lively, Some(deadline.map_or(over, |deadline| deadline.min(over))));
        if shared.load_u64(PENDING_SEL) != 0 {
            return;
        }
        LIVELY.with(|lively| lively.forget());
        if deadline.is_some_and(|deadline| time::system_time_ns() >= deadline) {
            return;
        }
    }
    let ports = open_ports(&shared, &mut list);
    if ports.len() > MAX_POLLED_PORTS
        && let Some(deadline) = deadline
    {
        arm_timer(deadline, time::system_time_ns());
        // Its port may be new.
        return sleep(open_ports(&shared, &mut list), None);
    }
    sleep(ports, deadline);
}

/// Sends the events that were held, and sleeps.
fn sleep(ports: &[u32], until: Option<u64>) {
    let sleep = Sleep { ports, until };
    let (held, count) = HELD.with(|held| held.end());
    let held = held.get(..count).unwrap_or_default();
    counts::call(Call::Sleep);
    held.iter().for_each(|_| counts::part(Call::Notify));
    match held {
        [] => hypercall::block(&sleep),
        _ => hypercall::notify_all(held, Some(&sleep)),
    }
}

/// The ports that may wake us: all that are not masked. Xen starts with every port masked by us, so that a clear bit
/// means an open port.
fn open_ports<'a>(shared: &SharedPage, list: &'a mut [u32; LISTED_PORTS]) -> &'a [u32] {
    let mut count = 0;
    for word in 0..PORTS as usize / 64 {
        let mut open = !shared.load_u64(EVTCHN_MASK + word * 8);
        while open != 0
            && let Some(place) = list.get_mut(count)
        {
            *place = word as u32 * 64 + open.trailing_zeros();
            count += 1;
            open &= open - 1;
        }
    }
    list.get(..count).unwrap_or_default()
}

/// Sets the one-shot timer for a sleep that has no end of its own, unless it will fire in time anyway.
fn arm_timer(deadline: u64, now: u64) {
    TIMER.with(|timer| {
        if timer.port.get().is_none() {
            let port =
                hypercall::event_bind_timer().expect("the timer of vCPU 0 can be bound once");
            timer.port.set(Some(port));
            unmask_timer(port);
        }
        // One that should have fired and was not heard of is not waited for.
        let will_fire = |armed| now < armed && armed <= deadline;
        if !timer.armed.get().is_some_and(will_fire) {
            counts::call(Call::Timer);
            hypercall::set_timer(deadline).expect("the one-shot timer of the own vCPU can be set");
            timer.armed.set(Some(deadline));
        }
    });
}

/// After a suspension: whether the timer is still set is not known.
pub(crate) fn forget_timer() {
    TIMER.with(|timer| timer.armed.set(None));
}

/// Not owned by a [`Channel`]: it lives as long as the domain.
fn unmask_timer(port: EventPort) {
    unmask(&hypercall::shared_info(), port);
}

fn unmask(shared: &SharedPage, port: EventPort) {
    let (word, bit) = position(port);
    shared.fetch_and_u64(EVTCHN_MASK + word * 8, !bit);
    // Xen raises no upcall for what became pending under the mask. The selector is ours to set as well.
    if shared.load_u64(EVTCHN_PENDING + word * 8) & bit != 0 {
        shared.fetch_or_u64(PENDING_SEL, 1 << word);
    }
}

/// One pass over the two levels, in the order that Xen public/event_channel.h asks for: clear the upcall, then take
/// the selector, then each word; a pending bit is cleared before its owner works.
fn scan(shared: &SharedPage, mut deliver: impl FnMut(EventPort)) {
    shared.swap_u8(UPCALL_PENDING, 0);
    let mut selector = shared.swap_u64(PENDING_SEL, 0);
    while selector != 0 {
        let word = selector.trailing_zeros() as usize;
        selector &= selector - 1;
        let masked = shared.load_u64(EVTCHN_MASK + word * 8);
        let mut ready = shared.load_u64(EVTCHN_PENDING + word * 8) & !masked;
        while ready != 0 {
            let bit = ready & ready.wrapping_neg();
            ready &= ready - 1;
            let port = EventPort(word as u32 * 64 + bit.trailing_zeros());
            mask(shared, port);
            shared.fetch_and_u64(EVTCHN_PENDING + word * 8, !bit);
            deliver(port);
        }
    }
}

fn mask(shared: &SharedPage, port: EventPort) {
    let (word, bit) = position(port);
    shared.fetch_or_u64(EVTCHN_MASK + word * 8, bit);
}

/// Word and bit of a port.
fn position(port: EventPort) -> (usize, u64) {
    assert!(port.0 < PORTS, "port beyond the 2-level ABI");
    ((port.0 / 64) as usize, 1 << (port.0 % 64))
}

/// Forgets the timer's port together with the fake hypervisor that it belonged to.
#[cfg(not(all(feature = "image", not(any(test, feature = "fake")))))]
pub(crate) fn reset() {
    TIMER.with(|timer| {
        timer.port.set(None);
        timer.armed.set(None);
    });
    HELD.with(|held| held.end());
    LIVELY.with(|lively| lively.forget());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake;
    use crate::mem::host;
    use alloc::vec::Vec;

    const PEER: DomId = DomId(3);

    #[test]
    fn events_that_are_held_go_together_and_each_once() {
        let mut channels: Vec<Channel> =
            (0..3).map(|_| Channel::alloc_unbound(PEER).unwrap()).collect();
        let peer = fake::peer(PEER);
        let theirs: Vec<EventPort> = channels.iter().map(|one| peer.bind(one.port())).collect();
        peer.take_notifications();
        hold();
        for at in [0, 1, 0, 2] {
            channels[at].notify();
        }
        assert_eq!(peer.take_notifications(), []);
        drop(channels.remove(1));
        assert_eq!(peer.take_notifications(), [theirs[1]], "the last one goes with its port");
        let before = counts::counts();
        send_held();
        let after = counts::counts();
        assert_eq!(peer.take_notifications(), [theirs[0], theirs[2]]);
        assert_eq!(after.notifications - before.notifications, 2);
        assert_eq!(after.hypercalls - before.hypercalls, 1);
        channels[0].notify();
        assert_eq!(peer.take_notifications(), [theirs[0]], "held no longer");
    }

    fn pending() -> Vec<EventPort> {
        let mut ports = Vec::new();
        take_pending(|port| ports.push(port));
        ports
    }

    #[test]
    fn an_event_is_delivered_once_and_held_back_until_unmasked() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        let theirs = peer.bind(channel.port());
        assert!(pending().is_empty());
        peer.notify(theirs);
        assert_eq!(pending(), [channel.port()]);
        peer.notify(theirs);
        assert!(pending().is_empty(), "still masked");
        channel.unmask();
        assert_eq!(pending(), [channel.port()]);
        channel.unmask();
        assert!(pending().is_empty());
    }

    #[test]
    fn binding_to_a_peers_port_raises_the_first_event() {
        let peer = fake::peer(PEER);
        let channel = Channel::bind_interdomain(PEER, peer.alloc_unbound()).unwrap();
        assert_eq!(pending(), [channel.port()]);
    }

    #[test]
    fn a_port_that_is_not_offered_cannot_be_bound() {
        fake::peer(PEER);
        let refused = Channel::bind_interdomain(PEER, EventPort(40)).unwrap_err();
        assert_eq!(refused, EventError(Errno::EINVAL));
    }

    #[test]
    fn connection_is_seen_and_notifications_arrive() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        assert!(!channel.is_connected());
        let theirs = peer.bind(channel.port());
        assert!(channel.is_connected());
        channel.notify();
        channel.notify();
        assert_eq!(peer.take_notifications(), [theirs], "events do not count");
        peer.close(theirs);
        assert!(!channel.is_connected());
        channel.notify();
    }

    #[test]
    fn dropping_a_channel_closes_the_port_and_forgets_its_event() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        let theirs = peer.bind(channel.port());
        let port = channel.port();
        peer.notify(theirs);
        drop(channel);
        let next = Channel::alloc_unbound(PEER).unwrap();
        assert_eq!(next.port(), port, "the lowest free number is used again");
        assert!(pending().is_empty());
    }

    #[test]
    fn waiting_ends_at_the_deadline_and_the_timer_is_not_delivered() {
        let deadline = time::system_time_ns() + 5_000;
        wait(Some(deadline));
        assert_eq!(time::system_time_ns(), deadline);
        assert!(pending().is_empty());
        wait(Some(deadline));
        assert_eq!(time::system_time_ns(), deadline, "a deadline in the past does not sleep");
        wait(Some(deadline + 1));
        assert_eq!(time::system_time_ns(), deadline + 1, "the timer is set again");
    }

    #[test]
    fn waiting_ends_with_an_event_that_is_already_pending() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        let theirs = peer.bind(channel.port());
        peer.notify(theirs);
        let now = time::system_time_ns();
        wait(Some(now + 1_000));
        wait(None);
        assert_eq!(time::system_time_ns(), now);
        assert_eq!(pending(), [channel.port()]);
    }

    #[test]
    fn waiting_sees_an_event_that_was_unmasked_late() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        let theirs = peer.bind(channel.port());
        peer.notify(theirs);
        assert_eq!(pending(), [channel.port()]);
        peer.notify(theirs);
        channel.unmask();
        wait(None);
        assert_eq!(pending(), [channel.port()]);
    }

    #[test]
    fn an_event_during_the_sleep_ends_it() {
        let peer = fake::peer(PEER);
        let channel = Channel::alloc_unbound(PEER).unwrap();
        let theirs = peer.bind(channel.port());
        let now = time::system_time_ns();
        fake::at(now + 300, move || fake::peer(PEER).notify(theirs));
        wait(Some(now + 1_000));
        assert_eq!(time::system_time_ns(), now + 300);
        assert_eq!(pending(), [channel.port()]);
    }

    #[test]
    fn a_firewall_at_work_naps_and_then_sleeps() {
        let peer = fake::peer(PEER);
        let channels = [(); 2].map(|()| Channel::alloc_unbound(PEER).unwrap());
        let theirs = channels.each_ref().map(|channel| peer.bind(channel.port()));
        peer.notify(theirs[0]);
        assert_eq!(pending(), [channels[0].port()]);
        channels[0].unmask();
        let sleeps = || counts::counts().sleeps;
        let (begun, before) = (time::system_time_ns(), sleeps());
        let [_, other] = theirs;
        fake::at(begun + NAP_NS / 2, move || fake::peer(PEER).notify(other));
        wait(None);
        assert_eq!(time::system_time_ns(), begun + NAP_NS / 2, "any port ends a nap");
        assert_eq!((pending(), sleeps() - before), (std::vec![channels[1].port()], 1));
        channels[1].unmask();
        fake::at(begun + 9 * NAP_NS, move || fake::peer(PEER).notify(other));
        wait(None);
        assert_eq!(time::system_time_ns(), begun + 9 * NAP_NS);
        assert_eq!((pending(), sleeps() - before), (std::vec![channels[1].port()], 3));
        let deadline = begun + 9 * NAP_NS + 5;
        wait(Some(deadline));
        assert_eq!((time::system_time_ns(), sleeps() - before), (deadline, 4), "masked: no nap");
    }

    #[test]
    fn the_scan_covers_all_words_and_skips_masked_ports() {
        let shared = host::foreign_page();
        let ports = [1, 63, 64, 1000, 4095];
        for port in ports {
            let (word, bit) = position(EventPort(port));
            shared.fetch_or_u64(EVTCHN_PENDING + word * 8, bit);
            shared.fetch_or_u64(PENDING_SEL, 1 << word);
        }
        mask(&shared, EventPort(1000));
        shared.write_u8(UPCALL_PENDING, 1);
        let mut seen = Vec::new();
        scan(&shared, |port| seen.push(port.0));
        assert_eq!(seen, [1, 63, 64, 4095]);
        assert_eq!((shared.read_u8(UPCALL_PENDING), shared.load_u64(PENDING_SEL)), (0, 0));
        let (word, bit) = position(EventPort(1000));
        assert_eq!(shared.load_u64(EVTCHN_PENDING + word * 8), bit, "stays pending");
        scan(&shared, |port| panic!("{port:?} delivered twice"));
    }

    #[test]
    fn a_word_without_selector_bit_is_not_looked_at() {
        let shared = host::foreign_page();
        shared.fetch_or_u64(EVTCHN_PENDING, 1 << 5);
        scan(&shared, |port| panic!("{port:?} delivered without selector"));
    }
}
