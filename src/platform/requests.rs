//! What dom0 asks of the domain through xenstore `control/shutdown` (Xen docs/misc/xenstore-paths): stop and suspend.
//!
//! A request is acknowledged by writing the node empty, then obeyed. It works from the first turn on, whether or not
//! QubesDB or an uplink is there.

use xen::power::{self, SuspendResult};
use xen::xenstore::{self, Owner, ReqId, Request, Token, WatchEvent};
use xen::{console, event};

use crate::event_loop::machine::{Change, Reason, Stop};
use crate::planted::{Defect, is_planted};

const SHUTDOWN_NODE: &str = "control/shutdown";
/// The number of our watch among those of the platform.
pub(super) const WATCH: u32 = 0;
/// How long the acknowledgement may take before we obey without it, in nanoseconds.
const PATIENCE_NS: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    Stop(Stop),
    Suspend,
}

/// State of the requests.
#[derive(Debug, Default)]
pub(super) struct Requests {
    reading: Option<ReqId>,
    /// The node changed while it was being read.
    again: bool,
    acknowledging: Option<ReqId>,
    wish: Option<Wish>,
    obey_at: Option<u64>,
}

impl Requests {
    pub(super) fn new() -> Self {
        Self::default()
    }

    /// Says what we can do and watches for requests.
    pub(super) fn start(&mut self, store: &mut xenstore::Client) {
        for feature in
            ["control/feature-poweroff", "control/feature-reboot", "control/feature-suspend"]
        {
            // dom0 asks all the same if a node cannot be written.
            let _ = store.request(Owner::Platform, Request::Write { path: feature, value: b"1" });
        }
        let token = Token { owner: Owner::Platform, id: WATCH, generation: 0 };
        store
            .request(Owner::Platform, Request::Watch { path: SHUTDOWN_NODE, token })
            .expect("the first requests fit the queue");
    }

    /// A watch fired, maybe ours.
    pub(super) fn on_watch(&mut self, watch: &WatchEvent, store: &mut xenstore::Client) {
        if watch.token.id != WATCH {
            return;
        }
        match self.reading {
            Some(_) => self.again = true,
            None => self.read(store),
        }
    }

    fn read(&mut self, store: &mut xenstore::Client) {
        self.again = false;
        self.reading = store.request(Owner::Platform, Request::Read { path: SHUTDOWN_NODE }).ok();
        // No room now: `advance` tries again.
        self.again = self.reading.is_none();
    }

    /// A reply, maybe to us.
    pub(super) fn on_reply(
        &mut self,
        reply: &xenstore::Reply,
        store: &mut xenstore::Client,
    ) -> Option<Change> {
        if self.reading == Some(reply.id) {
            self.reading = None;
            if self.again {
                self.read(store);
            } else if let Ok(value) = &reply.result {
                self.take_wish(value, store);
            }
        } else if self.acknowledging == Some(reply.id) {
            // Obeyed whether or not the node could be written: dom0 asked.
            self.acknowledging = None;
            return self.obey();
        }
        None
    }

    fn take_wish(&mut self, value: &[u8], store: &mut xenstore::Client) {
        self.wish = match value {
            b"poweroff" => Some(Wish::Stop(Stop::Poweroff)),
            b"halt" => Some(Wish::Stop(Stop::Halt)),
            b"reboot" => Some(Wish::Stop(Stop::Reboot)),
            b"suspend" => Some(Wish::Suspend),
            // Empty: our own acknowledgement. Others (`crash`) are not for us.
            _ => return,
        };
        let request = Request::Write { path: SHUTDOWN_NODE, value: b"" };
        self.acknowledging = store.request(Owner::Platform, request).ok();
        self.obey_at = Some(xen::time::system_time_ns().saturating_add(PATIENCE_NS));
    }

    /// Retries and time-outs.
    pub(super) fn advance(&mut self, store: &mut xenstore::Client, now: u64) -> Option<Change> {
        if self.again && self.reading.is_none() {
            self.read(store);
        }
        if self.obey_at.is_some_and(|at| at <= now) { self.obey() } else { None }
    }

    pub(super) fn next_deadline(&self) -> Option<u64> {
        self.obey_at
    }

    fn obey(&mut self) -> Option<Change> {
        self.obey_at = None;
        match self.wish.take()? {
            Wish::Stop(_) if is_planted(Defect::ShutdownIgnored) => None,
            Wish::Stop(stop) => Some(Change::Stop(stop)),
            Wish::Suspend => Some(suspend()),
        }
    }
}

/// Suspends. Xen returns here when the host resumes the domain in place: grants, ports, mappings and the shared pages
/// are what they were. A return into a new domain (restore, migration) is not supported and Qubes never does it.
fn suspend() -> Change {
    event::send_held();
    match power::suspend() {
        SuspendResult::Resumed => Change::Resumed,
        SuspendResult::Refused => {
            Change::Note(Reason::new(format_args!("Xen refused the suspend")))
        }
        SuspendResult::NewDomain => {
            console::write_line(format_args!(
                "fw: resumed in another domain, where no device of ours is valid: stopping"
            ));
            console::drain();
            power::crash()
        }
    }
}
