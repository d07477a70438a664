//! Our own call, of a service in dom0.

use super::{Action, Agent, CallId};
use crate::qrexec::request::Ended;
use crate::time::Instant;

impl<S> Agent<S> {
    /// Asks dom0 for `service` in dom0, without input: once. False if that cannot be yet, or never with this dom0.
    pub fn request(&mut self, service: &str) -> bool {
        if !self.control.can_trigger() {
            return false;
        }
        if let Some(message) = self.request.ask(service) {
            self.control.queue(message);
        }
        true
    }

    /// dom0 has a call of ours connected to `port`. Whatever is not the one that was asked for ends at once.
    pub(super) fn connected(&mut self, now: Instant, domain: u32, port: u32, ident: &[u8]) {
        let id = CallId(self.next_id);
        if domain != 0 || !self.request.connected(now, id, port, ident) {
            return self.control.terminate(domain, port);
        }
        self.next_id = self.next_id.wrapping_add(1);
        self.actions.push_back(Action::ServeData { call: id, port });
    }

    /// Our own call is over, if so: dom0 gets its port back.
    pub(super) fn request_over(&mut self, ended: Option<Ended>, is_ours_to_close: bool) {
        let Some(Ended { id, port, end }) = ended else { return };
        if let Some(port) = port {
            self.control.terminate(0, port);
        }
        if is_ours_to_close {
            self.actions.push_back(Action::CloseData { call: id });
        }
        self.actions.push_back(Action::RequestEnded(end));
    }
}
