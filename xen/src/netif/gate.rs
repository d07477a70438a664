//! When a peer's event channel may raise events again.
//!
//! A port is masked from the moment its event is taken until its rings are drained. A peer that raises events without
//! any work behind them is listened to only every few milliseconds (Xen Security Advisories 332 and 391); its work, if
//! there is some after all, waits that long.

use crate::event::Channel;
use crate::planted::{Defect, is_planted};

/// Events in a row without any work behind them before a peer is slowed down.
const FREE_IDLE_EVENTS: u32 = 8;
/// Pause before events are taken again, in ns.
const PAUSE_NS: u64 = 10_000_000;

/// State of one peer's event channel.
#[derive(Debug, Default)]
pub(crate) struct EventGate {
    event_taken: bool,
    worked: bool,
    idle_events: u32,
    unmask_at: Option<u64>,
}

impl EventGate {
    /// An event was taken; its port is masked now.
    pub(crate) fn note_event(&mut self) {
        self.event_taken = true;
        self.worked = false;
    }

    /// Something useful was found or done.
    pub(crate) fn note_work(&mut self) {
        self.worked = true;
    }

    /// The rings are drained: opens the port, at once or after a pause.
    pub(crate) fn settle(&mut self, channel: &Channel, now: u64) {
        if !core::mem::take(&mut self.event_taken) {
            return;
        }
        self.idle_events = if self.worked { 0 } else { self.idle_events.saturating_add(1) };
        if self.idle_events > FREE_IDLE_EVENTS && !is_planted(Defect::EventStormServed) {
            self.unmask_at = Some(now.saturating_add(PAUSE_NS));
        } else {
            channel.unmask();
        }
    }

    /// End of the pause, if there is one.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.unmask_at
    }

    /// Opens the port when its pause is over; `true` if so.
    pub(crate) fn open_if_due(&mut self, channel: &Channel, now: u64) -> bool {
        let due = self.unmask_at.is_some_and(|due| due <= now);
        if due {
            self.unmask_at = None;
            channel.unmask();
        }
        due
    }
}
