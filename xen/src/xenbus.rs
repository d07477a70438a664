//! Xenbus device states and the two pure decision tables that drive our ends of a vif.
//!
//! Every event leads to a fresh look at xenstore and then to one call of [`backend_action`] or [`frontend_action`].
//! The tables hold no history: whatever order the peer jumps in, the next look gives a defined step, and no state
//! of the peer is waited for without an event that ends the wait. (Xen public/io/xenbus.h for the numbers; the
//! transitions are those that libxl and the Linux, Windows and Mirage peers rely on.)
#![forbid(unsafe_code)]

use crate::planted::{Defect, is_planted};

/// `enum xenbus_state`. The peer jumps between these as it likes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// The node is missing, unreadable or not a known number.
    Unknown = 0,
    /// Initialising.
    Initialising = 1,
    /// Backend: ready, waits for the frontend's settings.
    InitWait = 2,
    /// Frontend: settings written, waits for the backend.
    Initialised = 3,
    /// Connected.
    Connected = 4,
    /// Closing.
    Closing = 5,
    /// Closed.
    Closed = 6,
    /// Not used by network devices.
    Reconfiguring = 7,
    /// Not used by network devices.
    Reconfigured = 8,
}

impl State {
    /// All states, by number.
    pub const ALL: [State; 9] = [
        State::Unknown,
        State::Initialising,
        State::InitWait,
        State::Initialised,
        State::Connected,
        State::Closing,
        State::Closed,
        State::Reconfiguring,
        State::Reconfigured,
    ];

    /// Parses the value of a `state` node; anything but one of the decimal numbers 1 to 8 is [`State::Unknown`].
    pub fn parse(value: &[u8]) -> State {
        let [digit] = value else { return State::Unknown };
        let index = usize::from(digit.wrapping_sub(b'0'));
        State::ALL.get(index).copied().unwrap_or(State::Unknown)
    }

    /// The value for a `state` node.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Unknown => "0",
            State::Initialising => "1",
            State::InitWait => "2",
            State::Initialised => "3",
            State::Connected => "4",
            State::Closing => "5",
            State::Closed => "6",
            State::Reconfiguring => "7",
            State::Reconfigured => "8",
        }
    }
}

/// The backend's `online` node: whether dom0 wants the device to exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Online {
    /// The device stays; it may be closed and connected again.
    Yes,
    /// The device is being removed.
    No,
}

/// Whether we hold the rings (mapped at the backend, granted at the frontend).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// No ring page, no event channel.
    None,
    /// Rings and event channel exist.
    Attached,
}

/// How long a frontend may still take to react to a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// Not asked yet, or asked a moment ago.
    Running,
    /// It had its time.
    Over,
}

/// What the backend sees in one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendView {
    /// Our own `state` node. Dom0 writes it too: 5 at a removal.
    pub own: State,
    /// Our own `online` node; missing counts as [`Online::No`].
    pub online: Online,
    /// The frontend's `state` node.
    pub front: State,
    /// Whether we are attached.
    pub rings: Rings,
    /// Time left for an unresponsive frontend.
    pub grace: Grace,
}

/// The backend's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendAction {
    /// Wait for the next event.
    Nothing,
    /// Detach if attached, read the identity anew, write features and state 2.
    Offer,
    /// Read the frontend's settings, attach, write state 4.
    Connect,
    /// Write state 5 if it is not there, and give the frontend a moment to react.
    AwaitFrontend,
    /// Detach; write state 5.
    Closing,
    /// Detach; write 5 if we are not there yet, then 6.
    Close,
    /// State 6 was visible and dom0 waits for the directory to go: remove it.
    Remove,
    /// The directory is gone: detach and forget the device.
    Forget,
}

/// The backend's decision table.
pub fn backend_action(view: BackendView) -> BackendAction {
    match (view.own, view.online, view.rings) {
        (State::Unknown, _, _) => BackendAction::Forget,
        (_, Online::No, _) => backend_removal(view),
        // A fresh directory, also in the place of one that we were attached to.
        (State::Initialising, Online::Yes, rings) => match (view.front, rings) {
            (State::Unknown, _) => BackendAction::Close,
            _ => BackendAction::Offer,
        },
        (_, Online::Yes, Rings::Attached) => backend_attached(view),
        (_, Online::Yes, Rings::None) => backend_detached(view),
    }
}

/// Dom0 removes the device. Its directory has to go whatever the frontend does, or dom0's operation fails.
fn backend_removal(view: BackendView) -> BackendAction {
    match (view.own, view.rings, view.front, view.grace) {
        (State::Closed, Rings::None, _, _) => BackendAction::Remove,
        (State::Closed, Rings::Attached, _, _) => BackendAction::Close,
        (_, Rings::None, _, _) => BackendAction::Close,
        (_, _, State::Closing | State::Closed | State::Unknown, _) => BackendAction::Close,
        (_, _, _, Grace::Over) => BackendAction::Close,
        (_, _, _, Grace::Running) => BackendAction::AwaitFrontend,
    }
}

fn backend_attached(view: BackendView) -> BackendAction {
    match (view.own, view.front) {
        (State::Connected, _) if is_planted(Defect::FrontendStateIgnored) => BackendAction::Nothing,
        (_, State::Unknown | State::Closed) => BackendAction::Close,
        (State::Closed, _) => BackendAction::Close,
        (State::Closing, State::Closing) => BackendAction::Closing,
        (State::Closing, _) => match view.grace {
            Grace::Running => BackendAction::AwaitFrontend,
            Grace::Over => BackendAction::Close,
        },
        (_, State::Closing) => BackendAction::Closing,
        // The frontend's driver started again without closing.
        (_, State::Initialising) => BackendAction::Close,
        (State::Connected, _) => BackendAction::Nothing,
        // Somebody reset our state node behind our back: start over.
        (_, _) => BackendAction::Close,
    }
}

fn backend_detached(view: BackendView) -> BackendAction {
    match (view.own, view.front) {
        (State::Closed, State::Initialising) => BackendAction::Offer,
        // Includes a device that we closed because its frontend broke a protocol: it has to start from 1.
        (State::Closed, _) => BackendAction::Nothing,
        (_, State::Unknown | State::Closed) => BackendAction::Close,
        (State::Closing, State::Closing) => BackendAction::Nothing,
        (State::Closing, _) => BackendAction::Close,
        (_, State::Closing) => BackendAction::Closing,
        (State::Connected, _) => BackendAction::Close,
        (_, State::Initialised | State::Connected) => BackendAction::Connect,
        (_, _) => BackendAction::Nothing,
    }
}

/// How far the frontend's rings have come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Uplink {
    /// No ring page, no event channel.
    None,
    /// Published; the backend has not attached yet.
    Published,
    /// The backend was seen in state 4 since they were published.
    Established,
}

/// What the frontend sees in one look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendView {
    /// Our own `state` node.
    pub own: State,
    /// The backend's `state` node.
    pub back: State,
    /// The backend's `online` node; missing counts as [`Online::No`].
    pub online: Online,
    /// Our rings.
    pub uplink: Uplink,
}

/// The frontend's next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrontendAction {
    /// Wait for the next event.
    Nothing,
    /// Write state 1, after a pause if this repeats, so that the backend offers itself again.
    Restart,
    /// Read the backend's features, create rings, publish them, write state 4.
    Connect,
    /// Both sides are connected: frames may flow.
    Up,
    /// Destroy the rings if they exist; write state 5 if the backend does not close already, then 6.
    Close,
    /// Destroy the rings without a word: the device's directory is gone.
    Forget,
}

/// The frontend's decision table.
pub fn frontend_action(view: FrontendView) -> FrontendAction {
    match (view.own, view.uplink) {
        (State::Unknown, _) => FrontendAction::Forget,
        (_, Uplink::None) => frontend_detached(view),
        (_, Uplink::Published | Uplink::Established) => frontend_attached(view),
    }
}

fn frontend_attached(view: FrontendView) -> FrontendAction {
    match (view.own, view.back, view.uplink) {
        (State::Connected, State::Connected, _) => FrontendAction::Up,
        (State::Connected, State::Reconfiguring | State::Reconfigured, _) => {
            FrontendAction::Nothing
        }
        // The backend still attaches: InitWait until it has read our settings. After it has been connected the
        // same state means that it was restarted, and its old rings are of no use.
        (State::Connected, State::InitWait | State::Initialised, Uplink::Published) => {
            FrontendAction::Nothing
        }
        (State::Connected, ..) if is_planted(Defect::BackendStateIgnored) => {
            FrontendAction::Nothing
        }
        // It closes, is gone, starts again, or somebody reset our own state.
        (_, _, _) => FrontendAction::Close,
    }
}

fn frontend_detached(view: FrontendView) -> FrontendAction {
    match (view.own, view.back) {
        (State::Initialising, State::InitWait) => FrontendAction::Connect,
        // A leftover of an earlier driver; the backend waits for a frontend, so it need not be closed first.
        (_, State::InitWait) => FrontendAction::Restart,
        (State::Initialising, State::Connected | State::Closing) => FrontendAction::Close,
        (State::Initialising, _) => FrontendAction::Nothing,
        (State::Closed, State::Closed) => match view.online {
            Online::Yes => FrontendAction::Restart,
            Online::No => FrontendAction::Nothing,
        },
        (State::Closed, _) => FrontendAction::Nothing,
        (_, State::Unknown | State::Initialising) => FrontendAction::Restart,
        (_, _) => FrontendAction::Close,
    }
}

/// Starts in a row that are made at once.
const FREE_STARTS: u32 = 5;
/// Pause before the first delayed start, in ns; doubles with each further one.
const FIRST_PAUSE_NS: u64 = 100_000_000;
const MOST_DOUBLINGS: u32 = 5;
/// A connection that lasts this long makes the next starts free again, in ns.
const STABLE_NS: u64 = 10_000_000_000;

/// Slows down a device whose peer connects and disconnects without end.
#[derive(Debug, Default)]
pub(crate) struct Backoff {
    starts: u32,
    last: u64,
}

impl Backoff {
    /// Earliest time of the next start.
    pub(crate) fn next(&self) -> u64 {
        match self.starts.checked_sub(FREE_STARTS) {
            None => 0,
            Some(over) => self.last.saturating_add(FIRST_PAUSE_NS << over.min(MOST_DOUBLINGS)),
        }
    }

    pub(crate) fn note_start(&mut self, now: u64) {
        if now.saturating_sub(self.last) >= STABLE_NS {
            self.starts = 0;
        }
        self.starts = self.starts.saturating_add(1);
        self.last = now;
    }
}

/// Looks at one device per [`LOOK_WINDOW_NS`]; a whole life from state 1 to removal takes about twenty.
const LOOKS_PER_WINDOW: u32 = 50;
/// In ns.
const LOOK_WINDOW_NS: u64 = 1_000_000_000;

/// Limits the looks at a device whose peer changes its state without end, so that it keeps neither the store nor us
/// busy.
#[derive(Debug, Default)]
pub(crate) struct LookLimit {
    count: u32,
    since: u64,
    held_until: u64,
}

impl LookLimit {
    /// Takes one look; if there were too many, the time at which the next is allowed.
    pub(crate) fn take(&mut self, now: u64) -> Option<u64> {
        let window_end = self.since.saturating_add(LOOK_WINDOW_NS);
        if window_end <= now {
            self.since = now;
            self.count = 0;
        } else if self.count >= LOOKS_PER_WINDOW && !is_planted(Defect::LooksUnlimited) {
            self.held_until = window_end;
            return Some(window_end);
        }
        self.count = self.count.saturating_add(1);
        None
    }

    /// No look is allowed before this time.
    pub(crate) fn held_until(&self) -> u64 {
        self.held_until
    }
}

#[cfg(test)]
mod tests {
    use super::BackendAction as B;
    use super::FrontendAction as F;
    use super::State::*;
    use super::*;

    #[test]
    fn states_parse_strictly() {
        for (number, state) in State::ALL.iter().enumerate() {
            assert_eq!(State::parse(state.as_str().as_bytes()), *state);
            assert_eq!(*state as usize, number);
        }
        for bad in ["", "9", "44", " 4", "4 ", "4\0", "-1", "x", "\u{664}"] {
            assert_eq!(State::parse(bad.as_bytes()), Unknown, "{bad:?}");
        }
    }

    fn backend(own: State, online: Online, rings: Rings, grace: Grace) -> [B; 9] {
        State::ALL.map(|front| backend_action(BackendView { own, online, front, rings, grace }))
    }

    /// Rows: own state 0 to 8. Columns: frontend state 0 to 8. Device wanted, no rings.
    #[test]
    fn backend_table_online_detached() {
        let table = [
            (Unknown, [B::Forget; 9]),
            (
                Initialising,
                [
                    B::Close,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                ],
            ),
            (
                InitWait,
                [
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                    B::Connect,
                    B::Connect,
                    B::Closing,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
            (
                Initialised,
                [
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                    B::Connect,
                    B::Connect,
                    B::Closing,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
            (
                Connected,
                [
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Closing,
                    B::Close,
                    B::Close,
                    B::Close,
                ],
            ),
            (
                Closing,
                [
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Close,
                    B::Nothing,
                    B::Close,
                    B::Close,
                    B::Close,
                ],
            ),
            (
                Closed,
                [
                    B::Nothing,
                    B::Offer,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
            (
                Reconfiguring,
                [
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                    B::Connect,
                    B::Connect,
                    B::Closing,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
            (
                Reconfigured,
                [
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                    B::Connect,
                    B::Connect,
                    B::Closing,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
        ];
        for (own, expected) in table {
            for grace in [Grace::Running, Grace::Over] {
                assert_eq!(backend(own, Online::Yes, Rings::None, grace), expected, "{own:?}");
            }
        }
    }

    /// As above, with rings and while an unresponsive frontend still has time.
    #[test]
    fn backend_table_online_attached() {
        let closes_unless_closing = |closing| {
            [
                B::Close,
                B::Close,
                B::Close,
                B::Close,
                B::Close,
                closing,
                B::Close,
                B::Close,
                B::Close,
            ]
        };
        let waits = B::AwaitFrontend;
        let table = [
            (Unknown, [B::Forget; 9]),
            (
                Initialising,
                [
                    B::Close,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                    B::Offer,
                ],
            ),
            (InitWait, closes_unless_closing(B::Closing)),
            (Initialised, closes_unless_closing(B::Closing)),
            (
                Connected,
                [
                    B::Close,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                    B::Nothing,
                    B::Closing,
                    B::Close,
                    B::Nothing,
                    B::Nothing,
                ],
            ),
            (Closing, [B::Close, waits, waits, waits, waits, B::Closing, B::Close, waits, waits]),
            (Closed, [B::Close; 9]),
            (Reconfiguring, closes_unless_closing(B::Closing)),
            (Reconfigured, closes_unless_closing(B::Closing)),
        ];
        for (own, expected) in table {
            let got = backend(own, Online::Yes, Rings::Attached, Grace::Running);
            assert_eq!(got, expected, "{own:?}");
            let over = expected.map(|action| if action == waits { B::Close } else { action });
            let got = backend(own, Online::Yes, Rings::Attached, Grace::Over);
            assert_eq!(got, over, "{own:?}, time over");
        }
    }

    /// Dom0 removes the device.
    #[test]
    fn backend_table_offline() {
        for own in State::ALL {
            for grace in [Grace::Running, Grace::Over] {
                let detached = match own {
                    Unknown => B::Forget,
                    Closed => B::Remove,
                    _ => B::Close,
                };
                let got = backend(own, Online::No, Rings::None, grace);
                assert_eq!(got, [detached; 9], "{own:?} detached");
            }
            let asks = B::AwaitFrontend;
            let running = match own {
                Unknown => [B::Forget; 9],
                Closed => [B::Close; 9],
                _ => [B::Close, asks, asks, asks, asks, B::Close, B::Close, asks, asks],
            };
            let got = backend(own, Online::No, Rings::Attached, Grace::Running);
            assert_eq!(got, running, "{own:?} attached");
            let over = running.map(|action| if action == asks { B::Close } else { action });
            let got = backend(own, Online::No, Rings::Attached, Grace::Over);
            assert_eq!(got, over, "{own:?} attached, time over");
        }
    }

    #[test]
    fn the_directory_is_never_removed_while_dom0_wants_the_device() {
        for own in State::ALL {
            for rings in [Rings::None, Rings::Attached] {
                for grace in [Grace::Running, Grace::Over] {
                    let row = backend(own, Online::Yes, rings, grace);
                    assert!(!row.contains(&B::Remove));
                }
            }
        }
    }

    /// Applies the actions as the driver does, with a frontend that stays as it is, until nothing more happens.
    #[test]
    fn r10_every_combination_settles_within_a_few_steps() {
        for own in State::ALL {
            for front in State::ALL {
                for online in [Online::Yes, Online::No] {
                    for rings in [Rings::None, Rings::Attached] {
                        settle(BackendView { own, online, front, rings, grace: Grace::Running });
                    }
                }
            }
        }
    }

    fn settle(start: BackendView) {
        let mut view = start;
        for _ in 0..6 {
            match backend_action(view) {
                B::Nothing => return,
                B::Remove => view.own = Unknown,
                B::Forget => return,
                B::Offer => (view.own, view.rings) = (InitWait, Rings::None),
                B::Connect => (view.own, view.rings) = (Connected, Rings::Attached),
                B::AwaitFrontend => (view.own, view.grace) = (Closing, Grace::Over),
                B::Closing => (view.own, view.rings) = (Closing, Rings::None),
                B::Close => (view.own, view.rings) = (Closed, Rings::None),
            }
        }
        panic!("{start:?} does not settle, now {view:?}");
    }

    fn frontend(own: State, online: Online, uplink: Uplink) -> [F; 9] {
        State::ALL.map(|back| frontend_action(FrontendView { own, back, online, uplink }))
    }

    /// Rows: own state. Columns: backend state 0 to 8.
    #[test]
    fn frontend_table_detached() {
        let close_leftover = [
            F::Restart,
            F::Restart,
            F::Restart,
            F::Close,
            F::Close,
            F::Close,
            F::Close,
            F::Close,
            F::Close,
        ];
        for online in [Online::Yes, Online::No] {
            let again = if online == Online::Yes { F::Restart } else { F::Nothing };
            let table = [
                (Unknown, [F::Forget; 9]),
                (
                    Initialising,
                    [
                        F::Nothing,
                        F::Nothing,
                        F::Connect,
                        F::Nothing,
                        F::Close,
                        F::Close,
                        F::Nothing,
                        F::Nothing,
                        F::Nothing,
                    ],
                ),
                (InitWait, close_leftover),
                (Initialised, close_leftover),
                (Connected, close_leftover),
                (Closing, close_leftover),
                (
                    Closed,
                    [
                        F::Nothing,
                        F::Nothing,
                        F::Restart,
                        F::Nothing,
                        F::Nothing,
                        F::Nothing,
                        again,
                        F::Nothing,
                        F::Nothing,
                    ],
                ),
                (Reconfiguring, close_leftover),
                (Reconfigured, close_leftover),
            ];
            for (own, expected) in table {
                assert_eq!(frontend(own, online, Uplink::None), expected, "{own:?} {online:?}");
            }
        }
    }

    #[test]
    fn frontend_table_attached() {
        let shut = F::Close;
        for online in [Online::Yes, Online::No] {
            for own in State::ALL {
                for uplink in [Uplink::Published, Uplink::Established] {
                    let attaching = if uplink == Uplink::Published { F::Nothing } else { shut };
                    let expected = match own {
                        Unknown => [F::Forget; 9],
                        Connected => [
                            shut,
                            shut,
                            attaching,
                            attaching,
                            F::Up,
                            shut,
                            shut,
                            F::Nothing,
                            F::Nothing,
                        ],
                        _ => [shut; 9],
                    };
                    assert_eq!(frontend(own, online, uplink), expected, "{own:?} {uplink:?}");
                }
            }
        }
    }

    #[test]
    fn starts_are_free_at_first_then_slower_and_free_again_after_a_stable_time() {
        let mut backoff = Backoff::default();
        let mut now = 50_000_000_000;
        for _ in 0..FREE_STARTS {
            assert!(backoff.next() <= now);
            backoff.note_start(now);
        }
        for pause_ms in [100, 200, 400, 800, 1600, 3200, 3200, 3200] {
            assert_eq!(backoff.next(), now + pause_ms * 1_000_000);
            now += pause_ms * 1_000_000;
            backoff.note_start(now);
        }
        now += STABLE_NS;
        backoff.note_start(now);
        assert!(backoff.next() <= now, "free again");
    }

    #[test]
    fn looks_are_held_back_until_the_window_ends() {
        let mut looks = LookLimit::default();
        let now = 5_000_000_000;
        for _ in 0..LOOKS_PER_WINDOW {
            assert_eq!(looks.take(now), None);
        }
        assert_eq!(looks.take(now + 1), Some(now + LOOK_WINDOW_NS));
        assert_eq!(looks.held_until(), now + LOOK_WINDOW_NS);
        assert_eq!(looks.take(now + LOOK_WINDOW_NS), None);
    }
}
