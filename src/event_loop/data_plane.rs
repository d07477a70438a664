//! Frames between the machine's ports and the packet path.

use super::EventLoop;
use super::machine::{Arrival, Machine, Paged};
use crate::frame::{Frame, Offload};
use crate::log::Sink;
use crate::port::{Origin, PortId};
use crate::verdict::Fate;

/// Frames of our own (ARP requests) in one turn.
const OWN_FRAMES_PER_TURN: usize = 16;

type PagedOf<M> = Paged<<M as Machine>::Page, <M as Machine>::Tail>;

impl<S: Sink> EventLoop<S> {
    /// Takes one batch of frames from each side through the packet path: first those for clients.
    pub(super) fn forward<M: Machine>(&mut self, machine: &mut M) {
        machine.receive_from_uplink();
        self.forward_batch(machine);
        machine.receive_from_clients();
        self.forward_batch(machine);
    }

    fn forward_batch<M: Machine>(&mut self, machine: &mut M) {
        while let Some(arrival) = machine.next_frame() {
            self.forward_one(machine, arrival);
        }
    }

    fn forward_one<M: Machine>(&mut self, machine: &mut M, arrival: Arrival<M::Page, M::Tail>) {
        let Arrival { origin, frame: Paged { mut page, head, len, tail, offload } } = arrival;
        let buffer = M::bytes(&mut page, head);
        // No page is shorter than its head, and no head longer than its frame; a machine that says so gets them back.
        let Some(mut frame) = Frame::with_tail(buffer, head, len, offload) else { return };
        match self.firewall.handle(self.now, origin, &mut frame) {
            Fate::Send(to) => {
                // What answers a frame has nothing of its tail.
                let tail = tail.filter(|_| frame.tail_len() > 0);
                let (head, len, offload) = (frame.bytes().len(), frame.len(), frame.offload);
                machine.send(to, Paged { page, head, len, tail, offload });
                self.note_forwarded(machine, origin, to);
            }
            Fate::Segments(to) => self.send_segments(machine, (origin, to), &frame, &tail),
            Fate::Drop(_) | Fate::Consumed => {}
        }
        self.send_pieces(machine, origin);
    }

    /// Sends a super-frame in segments. When memory is short the rest is lost, and the sender sends it again.
    fn send_segments<M: Machine>(
        &mut self,
        machine: &mut M,
        (origin, to): (Origin, PortId),
        frame: &Frame<'_>,
        tail: &Option<M::Tail>,
    ) {
        let Some(mut segments) = frame.segments() else { return };
        while let Some(len) = segments.next_len() {
            let Some(((), segment)) =
                fill(machine, len, |out| segments.write_next(frame, tail, out))
            else {
                return self.firewall.lose_segments(origin, segments);
            };
            machine.send(to, segment);
            self.note_forwarded(machine, origin, to);
        }
    }

    /// Sends a datagram that was cut, before the next one needs its place. Bounded by the pieces of one datagram.
    fn send_pieces<M: Machine>(&mut self, machine: &mut M, origin: Origin) {
        while let Some(len) = self.firewall.next_piece_len() {
            let Some(to) = self.generate_one(machine, len) else { return };
            self.note_forwarded(machine, origin, to);
        }
    }

    fn note_forwarded<M: Machine>(&mut self, machine: &mut M, origin: Origin, to: PortId) {
        if !self.has_forwarded && to != PortId::from(origin) {
            self.has_forwarded = true;
            self.report_first_packet(machine);
        }
    }

    /// Sends what the packet path has to say unasked.
    pub(super) fn generate<M: Machine>(&mut self, machine: &mut M) {
        for _ in 0..OWN_FRAMES_PER_TURN {
            if !self.firewall.may_generate(self.now) {
                return;
            }
            let room = self.firewall.next_piece_len().unwrap_or(0);
            if self.generate_one(machine, room).is_none() {
                return;
            }
        }
    }

    /// Sends one frame of the packet path's own that needs `room` bytes; says where it went.
    fn generate_one<M: Machine>(&mut self, machine: &mut M, room: usize) -> Option<PortId> {
        let (to, frame) =
            fill(machine, room, |frame| self.firewall.poll_generate(self.now, frame))?;
        machine.send(to, frame);
        Some(to)
    }
}

/// Has a frame of at most `room` bytes, or of an answer's size, written into a spare page.
fn fill<M: Machine, R>(
    machine: &mut M,
    room: usize,
    write: impl FnOnce(&mut Frame<'_>) -> Option<R>,
) -> Option<(R, PagedOf<M>)> {
    let mut page = machine.spare_page()?;
    let mut frame = Frame::new(M::bytes(&mut page, room), 0, Offload::default())?;
    let written = write(&mut frame)?;
    let (len, offload) = (frame.len(), frame.offload);
    Some((written, Paged { page, head: len, len, tail: None, offload }))
}
