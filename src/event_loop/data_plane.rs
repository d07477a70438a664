//! Frames between the machine's ports and the packet path.

use super::EventLoop;
use super::machine::{Arrival, Machine};
use crate::frame::{Frame, Offload};
use crate::log::Sink;
use crate::port::PortId;
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
        let Fate::Send(to) = self.firewall.handle(self.now, origin, &mut frame) else { return };
        let (len, offload) = (frame.len(), frame.offload);
        machine.send(to, page, len, offload);
        if !self.has_forwarded && to != PortId::from(origin) {
            self.has_forwarded = true;
            self.report_first_packet(machine);
        }
    }

    /// Sends what the packet path has to say unasked.
    pub(super) fn generate<M: Machine>(&mut self, machine: &mut M) {
        for _ in 0..OWN_FRAMES_PER_TURN {
            let Some(mut page) = machine.spare_page() else { return };
            let Some(mut frame) = Frame::new(M::bytes(&mut page, 0), 0, Offload::default()) else {
                return;
            };
            let Some(to) = self.firewall.poll_generate(self.now, &mut frame) else { return };
            let (len, offload) = (frame.len(), frame.offload);
            machine.send(to, page, len, offload);
        }
    }
}
