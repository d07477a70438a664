//! Requests that the backend was told of and does not look at.
//!
//! A Linux backend that loses the end of an interrupt, or an event that never arrived, leaves the connection deaf for
//! ever: its ring asks for an event at an index that was published long ago. Seen with Linux 6.1 as 50 requests on the
//! ring, none taken, the ring still asking for the first, and one interrupt in all. So such an event is sent again, and
//! when that helps nothing the connection is made anew. A backend that looked and merely keeps a page for long (a packet
//! in the queue of a slow device) asks for a later index and is not meant.

/// Pause before an event is sent again, in ns.
const REPEAT_NS: u64 = 250_000_000;
/// How long a connection may stay deaf, in ns.
const GIVE_UP_NS: u64 = 5_000_000_000;

/// What is seen of the backend's progress: the index at which it wants an event, and our count of its responses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Progress {
    /// Requests are out, and the event that the backend asks for is due.
    pub(super) is_due: bool,
    /// `req_event` of the ring.
    pub(super) event: u32,
    /// Responses taken.
    pub(super) answered: u32,
}

/// What to do about a silent backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    None,
    /// The event is to be sent once more.
    Repeat {
        /// For the first time about the same requests.
        is_first: bool,
    },
    /// The connection is of no use.
    GiveUp,
}

/// For how long a connection has been silent.
#[derive(Debug, Default)]
pub(super) struct Unheard {
    watch: Option<Watch>,
}

#[derive(Debug)]
struct Watch {
    progress: Progress,
    since: u64,
    check_at: u64,
    repeated: bool,
}

impl Unheard {
    /// Requests were published: starts to watch, if that is not done already.
    pub(super) fn note(&mut self, progress: Progress, now: u64) {
        if !progress.is_due {
            self.watch = None;
        } else if self.watch.is_none() {
            self.watch = Some(Watch {
                progress,
                since: now,
                check_at: now.saturating_add(REPEAT_NS),
                repeated: false,
            });
        }
    }

    /// When [`Unheard::check`] is due, in ns.
    pub(super) fn deadline(&self) -> Option<u64> {
        self.watch.as_ref().map(|watch| watch.check_at)
    }

    /// Compares with what was seen before.
    pub(super) fn check(&mut self, progress: Progress, now: u64) -> Remedy {
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.check_at <= now) else {
            return Remedy::None;
        };
        if !progress.is_due || progress != watch.progress {
            self.watch = None;
            self.note(progress, now);
            return Remedy::None;
        }
        watch.check_at = now.saturating_add(REPEAT_NS);
        if now.saturating_sub(watch.since) >= GIVE_UP_NS {
            return Remedy::GiveUp;
        }
        let is_first = !core::mem::replace(&mut watch.repeated, true);
        Remedy::Repeat { is_first }
    }
}
