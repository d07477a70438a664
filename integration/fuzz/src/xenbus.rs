//! The two decision tables of a network device's life: whatever states the peer, dom0 and a predecessor leave behind,
//! each decision is one that the documentation of its action allows, nothing runs in circles, and with an honest peer
//! the device is connected in the end.

use xen::xenbus::{
    BackendAction, BackendView, FrontendAction, FrontendView, Grace, Online, Rings, State, Uplink,
    backend_action, frontend_action,
};

use crate::source::Source;

/// Steps in which a device must come to rest with a peer that stays as it is.
const REST_STEPS: usize = 6;
/// Looks in which a removal must end, whatever the frontend does meanwhile.
const REMOVAL_LOOKS: usize = 8;
/// Turns in which two honest ends must be connected.
const CONNECT_TURNS: usize = 60;

/// The whole input as the value of a state node; then what happens to our two ends.
pub fn run(data: &[u8]) {
    parse(data);
    let mut source = Source::new(data);
    let mut back = Backend::new(&mut source);
    let mut front = Frontend::new(&mut source);
    while !source.is_empty() {
        match source.below(8) {
            0 => back.view.front = state(&mut source),
            1 => back.view.own = state(&mut source),
            2 => back.view.online = online(source.flag()),
            3 => front.view.back = state(&mut source),
            4 => front.view.own = state(&mut source),
            5 => front.view.online = online(source.flag()),
            6 => drop(back.look()),
            _ => drop(front.look()),
        }
        Backend { view: back.view }.comes_to_rest();
        Frontend { view: front.view }.comes_to_rest();
    }
    back.removal_ends(&mut Source::new(data));
    with_linux_frontend(&mut Source::new(data));
    with_linux_backend(&mut Source::new(data));
    with_each_other(&mut Source::new(data));
}

fn parse(data: &[u8]) {
    let parsed = State::parse(data);
    match data {
        [digit @ b'1'..=b'8'] => assert_eq!(parsed as u8, digit - b'0'),
        _ => assert_eq!(parsed, State::Unknown),
    }
    if parsed != State::Unknown {
        assert_eq!(parsed.as_str().as_bytes(), data);
    }
}

fn state(source: &mut Source<'_>) -> State {
    source.pick(&State::ALL)
}

fn online(wanted: bool) -> Online {
    if wanted { Online::Yes } else { Online::No }
}

fn rings(attached: bool) -> Rings {
    if attached { Rings::Attached } else { Rings::None }
}

fn uplink(source: &mut Source<'_>) -> Uplink {
    source.pick(&[Uplink::None, Uplink::Published, Uplink::Established])
}

/// Our backend, as far as its table is concerned.
struct Backend {
    view: BackendView,
}

impl Backend {
    fn new(source: &mut Source<'_>) -> Self {
        let (own, front) = (state(source), state(source));
        let (online, rings) = (online(source.flag()), rings(source.flag()));
        let grace = if source.flag() { Grace::Over } else { Grace::Running };
        Self { view: BackendView { own, online, front, rings, grace } }
    }

    /// One look, with what the driver does about it. Returns the decision.
    fn look(&mut self) -> BackendAction {
        let action = backend_action(self.view);
        backend_is_legal(self.view, action);
        let view = &mut self.view;
        if action != BackendAction::AwaitFrontend {
            view.grace = Grace::Running;
        }
        match action {
            BackendAction::Nothing => {}
            BackendAction::Offer => (view.own, view.rings) = (State::InitWait, Rings::None),
            BackendAction::Connect => (view.own, view.rings) = (State::Connected, Rings::Attached),
            // Time passes.
            BackendAction::AwaitFrontend => {
                (view.own, view.grace) = (State::Closing, Grace::Over);
            }
            BackendAction::Closing => (view.own, view.rings) = (State::Closing, Rings::None),
            BackendAction::Close => (view.own, view.rings) = (State::Closed, Rings::None),
            BackendAction::Remove => view.own = State::Unknown,
            BackendAction::Forget => view.rings = Rings::None,
        }
        action
    }

    fn comes_to_rest(mut self) {
        let start = self.view;
        let ends = [BackendAction::Nothing, BackendAction::Forget];
        let rests = (0..REST_STEPS).any(|_| ends.contains(&self.look()));
        assert!(rests, "{start:?} does not come to rest, now {:?}", self.view);
    }

    /// Dom0 takes the device away; the frontend jumps from state to state.
    fn removal_ends(mut self, source: &mut Source<'_>) {
        self.view.online = Online::No;
        let gone = (0..REMOVAL_LOOKS).any(|_| {
            self.view.front = state(source);
            self.look() == BackendAction::Forget
        });
        assert!(gone, "not removed: {:?}", self.view);
    }
}

/// What the documentation of the actions and of the table says.
fn backend_is_legal(view: BackendView, action: BackendAction) {
    use BackendAction as B;
    use State as S;
    let BackendView { own, online, front, rings, grace } = view;
    let (wanted, attached) = (online == Online::Yes, rings == Rings::Attached);
    let legal = match action {
        B::Forget => own == S::Unknown,
        // State 6 was visible, and nothing is held.
        B::Remove => !wanted && own == S::Closed && !attached,
        // A fresh directory, or a frontend that starts again after both ends were closed.
        B::Offer => {
            let again = own == S::Closed && front == S::Initialising && !attached;
            wanted && (own == S::Initialising && front != S::Unknown || again)
        }
        // We offered it, and the frontend has written its settings.
        B::Connect => {
            let offered = !matches!(own, S::Initialising | S::Connected | S::Closing | S::Closed);
            wanted && !attached && offered && matches!(front, S::Initialised | S::Connected)
        }
        // Only where something is to be waited for, and not for ever.
        B::AwaitFrontend => {
            let closes = matches!(front, S::Closing | S::Closed | S::Unknown);
            let asked = !wanted || own == S::Closing;
            asked && attached && grace == Grace::Running && !closes
        }
        B::Closing => wanted && front == S::Closing && own != S::Closed,
        B::Close => own != S::Closed || attached,
        B::Nothing => {
            // Rings are kept only with a frontend that may use them, and not for a device that is to go.
            let gone = matches!(front, S::Unknown | S::Initialising | S::Closing | S::Closed);
            wanted && if attached { own == S::Connected && !gone } else { own != S::Connected }
        }
    };
    assert!(legal && (own == S::Unknown) == (action == B::Forget), "{action:?} for {view:?}");
}

/// Our frontend, likewise.
struct Frontend {
    view: FrontendView,
}

impl Frontend {
    fn new(source: &mut Source<'_>) -> Self {
        let (own, back) = (state(source), state(source));
        let online = online(source.flag());
        Self { view: FrontendView { own, back, online, uplink: uplink(source) } }
    }

    fn look(&mut self) -> FrontendAction {
        let action = frontend_action(self.view);
        frontend_is_legal(self.view, action);
        let view = &mut self.view;
        match action {
            FrontendAction::Nothing => {}
            FrontendAction::Restart => view.own = State::Initialising,
            FrontendAction::Connect => {
                (view.own, view.uplink) = (State::Connected, Uplink::Published);
            }
            FrontendAction::Up => view.uplink = Uplink::Established,
            FrontendAction::Close => (view.own, view.uplink) = (State::Closed, Uplink::None),
            FrontendAction::Forget => view.uplink = Uplink::None,
        }
        action
    }

    fn comes_to_rest(mut self) {
        let start = self.view;
        let ends = [FrontendAction::Nothing, FrontendAction::Up, FrontendAction::Forget];
        let rests = (0..REST_STEPS).any(|_| ends.contains(&self.look()));
        assert!(rests, "{start:?} does not come to rest, now {:?}", self.view);
    }
}

fn frontend_is_legal(view: FrontendView, action: FrontendAction) {
    use FrontendAction as F;
    use State as S;
    let FrontendView { own, back, online, uplink } = view;
    let held = uplink != Uplink::None;
    let legal = match action {
        F::Forget => own == S::Unknown,
        F::Up => held && own == S::Connected && back == S::Connected,
        F::Connect => !held && own == S::Initialising && back == S::InitWait,
        // So that the backend offers itself again; not while it closes, and not where we are in state 1 already.
        F::Restart => {
            let again = own == S::Closed && back == S::Closed && online == Online::Yes;
            let leftover = own != S::Closed && matches!(back, S::Unknown | S::Initialising);
            !held && own != S::Initialising && (again || leftover || back == S::InitWait)
        }
        F::Close => held || own != S::Closed,
        F::Nothing => {
            // Rings stay while the backend attaches; a device without rings waits in state 1 or 6.
            let reconfigures = matches!(back, S::Reconfiguring | S::Reconfigured);
            let attaches = matches!(back, S::InitWait | S::Initialised);
            let kept =
                own == S::Connected && (reconfigures || attaches && uplink == Uplink::Published);
            if held { kept } else { matches!(own, S::Initialising | S::Closed) }
        }
    };
    assert!(legal && (own == S::Unknown) == (action == F::Forget), "{action:?} for {view:?}");
}

/// States in which an end, or one before it, can have left its node.
const LEFT_BACK: [State; 5] =
    [State::Initialising, State::InitWait, State::Connected, State::Closing, State::Closed];
const LEFT_FRONT: [State; 4] =
    [State::Initialising, State::Connected, State::Closing, State::Closed];

/// The next state of a frontend as Linux' netfront behaves: it answers an offer in state 1 alone, closes with its
/// backend, and is started again by its user once both are closed.
fn linux_frontend(own: State, back: State) -> State {
    match (back, own) {
        (State::InitWait, State::Initialising) => State::Connected,
        (State::Closed, State::Closed) => State::Initialising,
        (State::Closing | State::Closed, _) => State::Closed,
        _ => own,
    }
}

fn with_linux_frontend(source: &mut Source<'_>) {
    let mut back = Backend::new(source);
    back.view.own = source.pick(&LEFT_BACK);
    back.view.online = Online::Yes;
    let mut front = source.pick(&LEFT_FRONT);
    let mut turns = 0;
    loop {
        let fair = source.is_empty();
        if fair || source.flag() {
            back.view.front = front;
            back.look();
        }
        if fair || source.flag() {
            front = linux_frontend(front, back.view.own);
        }
        let ours = (back.view.own, back.view.rings) == (State::Connected, Rings::Attached);
        if fair && ours && front == State::Connected {
            return;
        }
        turns += usize::from(fair);
        assert!(turns < CONNECT_TURNS, "not connected: {:?} {front:?}", back.view);
    }
}

/// The next state of a backend as Linux' netback behaves on its way to what the frontend's state asks for.
fn linux_backend(own: State, front: State) -> State {
    let target = match front {
        State::Initialising => State::InitWait,
        State::Connected => State::Connected,
        State::Closing => State::Closing,
        State::Closed => State::Closed,
        _ => return own,
    };
    match (own, target) {
        _ if own == target => own,
        (State::Initialising, State::Closed) => State::Closed,
        (State::Initialising, _) => State::InitWait,
        (State::InitWait, State::Connected) => State::Connected,
        (State::InitWait | State::Connected, _) => State::Closing,
        (State::Closing, _) => State::Closed,
        (State::Closed, State::Closing) => State::Closing,
        (State::Closed, _) => State::InitWait,
        _ => own,
    }
}

fn with_linux_backend(source: &mut Source<'_>) {
    let mut front = Frontend::new(source);
    front.view.own = source.pick(&LEFT_FRONT);
    front.view.online = Online::Yes;
    let mut back = source.pick(&LEFT_BACK);
    let mut turns = 0;
    loop {
        let fair = source.is_empty();
        if fair || source.flag() {
            front.view.back = back;
            let action = front.look();
            if fair && action == FrontendAction::Up {
                return;
            }
        }
        if fair || source.flag() {
            back = linux_backend(back, front.view.own);
        }
        turns += usize::from(fair);
        assert!(turns < CONNECT_TURNS, "not connected: {:?}", front.view);
    }
}

/// A firewall of this kind behind another one.
fn with_each_other(source: &mut Source<'_>) {
    let (mut back, mut front) = (Backend::new(source), Frontend::new(source));
    (back.view.own, front.view.own) = (source.pick(&LEFT_BACK), source.pick(&LEFT_FRONT));
    (back.view.online, front.view.online) = (Online::Yes, Online::Yes);
    let mut turns = 0;
    loop {
        let fair = source.is_empty();
        if fair || source.flag() {
            back.view.front = front.view.own;
            back.look();
        }
        if fair || source.flag() {
            front.view.back = back.view.own;
            let action = front.look();
            let attached = back.view.rings == Rings::Attached;
            if fair && action == FrontendAction::Up && attached {
                return;
            }
        }
        turns += usize::from(fair);
        assert!(turns < CONNECT_TURNS, "not connected: {:?} {:?}", back.view, front.view);
    }
}
