//! Frames between the machine's ports and the packet path.

use super::EventLoop;
use super::machine::{Arrival, Machine};
use crate::frame::{Frame, Offload};
use crate::log::Sink;
use crate::port::{Origin, PortId};
use crate::verdict::Fate;

/// Frames of our own (ARP requests) in one turn.
const OWN_FRAMES_PER_TURN: usize = 16;

impl<S: Sink> EventLoop<S> {
    /// Takes one batch of frames through the packet path.
    pub(super) fn forward<M: Machine>(&mut self, machine: &mut M) {
        machine.receive();
        while let Some(arrival) = machine.next_frame() {
            self.forward_one(machine, arrival);
        }
    }

    fn forward_one<M: Machine>(&mut self, machine: &mut M, arrival: Arrival<M::Page>) {
        let Arrival { origin, mut page, len, offload } = arrival;
        // No page is shorter than its frame; a machine that says so gets its page back.
        let Some(mut frame) = Frame::new(M::bytes(&mut page, len), len, offload) else { return };
        let fate = self.firewall.handle(self.now, origin, &mut frame);
        if let Fate::Send(to) = fate {
            let (len, offload) = (frame.len(), frame.offload);
            machine.send(to, page, len, offload);
            self.note_forwarded(machine, origin, to);
        }
        self.send_pieces(machine, origin);
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
            let room = self.firewall.next_piece_len().unwrap_or(0);
            if self.generate_one(machine, room).is_none() {
                return;
            }
        }
    }

    /// Sends one frame of the packet path's own that needs `room` bytes; says where it went.
    fn generate_one<M: Machine>(&mut self, machine: &mut M, room: usize) -> Option<PortId> {
        let mut page = machine.spare_page()?;
        let mut frame = Frame::new(M::bytes(&mut page, room), 0, Offload::default())?;
        let to = self.firewall.poll_generate(self.now, &mut frame)?;
        let (len, offload) = (frame.len(), frame.offload);
        machine.send(to, page, len, offload);
        Some(to)
    }
}
