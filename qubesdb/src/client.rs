//! The state machine of one link to dom0: request, dump, live traffic, and when the link may be closed.

use crate::event::{Closing, Counters, Event, ProtocolError};
use crate::input::{Front, Input};
use crate::message::{Header, HeaderError, Kind, MAX_VALUE_BYTES, encode_header};
use crate::outgoing::{CommandError, Outgoing, Rings, Settled};
use crate::path::Path;
use crate::store::{Limits, Refusal, Store};

/// Keys that this side removes. dom0 never removes them by itself, so that our removal cannot cross dom0's own,
/// which would end dom0's daemon.
const OWN_PREFIXES: [&str; 2] = ["/dns/", "/qubes-firewall-handled/"];

#[derive(Debug)]
enum State {
    /// No connection.
    Idle,
    /// Request queued or sent, end mark not seen. `spoiled`: an error was reported, only the end mark is awaited.
    Dumping { loading: Store, spoiled: bool },
    /// Live traffic.
    Synchronised,
    /// Framing lost during the dump.
    Deaf,
    /// Error reported; to be closed.
    Broken,
}

/// The client. One for the life of the domain; connections come and go.
#[derive(Debug)]
pub struct Client {
    state: State,
    store: Store,
    limits: Limits,
    input: Input,
    outgoing: Outgoing,
    /// While the trees of a dump are being announced: the key up to which that is done.
    announcing: Option<Option<Path>>,
    counters: Counters,
}

/// What processing one message led to.
enum Step {
    Event(Event),
    Silent,
}

impl Client {
    /// A client without connection and with an empty store.
    pub fn new(limits: Limits) -> Self {
        Self {
            state: State::Idle,
            store: Store::new(limits),
            limits,
            input: Input::new(),
            outgoing: Outgoing::new(),
            announcing: None,
            counters: Counters::default(),
        }
    }

    /// The vchan is connected: asks for the dump, once. The store stays what it was until the dump is complete.
    pub fn connected(&mut self) {
        self.disconnected();
        self.state = State::Dumping { loading: Store::new(self.limits), spoiled: false };
        self.outgoing.push_header(&encode_header(Kind::MultiRead, None, 0));
    }

    /// The vchan is gone. Everything of the connection is forgotten (events not taken yet included), except for
    /// the store.
    pub fn disconnected(&mut self) {
        self.state = State::Idle;
        self.input.clear();
        self.outgoing.clear();
        self.announcing = None;
    }

    /// Takes received bytes, in pieces of any size, and says how many were taken: fewer than offered only if
    /// events have to be taken first (a whole 4096-byte ring fits after [`Self::poll_event`] returned `None`,
    /// unless [`Self::poll_transmit`] has answers to send).
    #[must_use = "bytes that were not taken must be offered again"]
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> usize {
        match self.state {
            State::Dumping { .. } | State::Synchronised => self.input.push(bytes),
            State::Idle | State::Deaf | State::Broken => bytes.len(),
        }
    }

    /// Bytes that [`Self::handle_bytes`] would take.
    pub fn input_room(&self) -> usize {
        self.input.room()
    }

    /// The next event. `None`: more bytes have to come, or answers have to be sent.
    pub fn poll_event(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.announce_tree() {
                return Some(event);
            }
            if !self.outgoing.has_room_for_answer() {
                return None;
            }
            let step = match self.input.front() {
                Front::Incomplete => return None,
                Front::Bad(error) => Step::Event(self.lose_framing(error)),
                Front::Message(header) => {
                    self.counters.messages = self.counters.messages.saturating_add(1);
                    let step = self.process(&header);
                    self.input.consume(&header);
                    step
                }
            };
            if matches!(self.state, State::Deaf | State::Broken) {
                self.input.clear();
            }
            if let Step::Event(event) = step {
                if matches!(event, Event::Refused { .. }) {
                    self.counters.refused = self.counters.refused.saturating_add(1);
                }
                return Some(event);
            }
        }
    }

    /// The bytes to be written to the vchan next (maybe not all that wait: call again after
    /// [`Self::transmitted`]). `unread` is the number of received bytes still in the ring, `space` what the ring
    /// towards dom0 takes now; write at once, since commands are released by these numbers.
    pub fn poll_transmit(&mut self, unread: usize, space: usize) -> &[u8] {
        if matches!(self.state, State::Synchronised) {
            let unread = if self.input.is_empty() { unread } else { unread.max(1) };
            self.outgoing.admit(&mut self.store, Rings { unread, space });
        }
        self.outgoing.ready()
    }

    /// So many bytes of [`Self::poll_transmit`] were written.
    pub fn transmitted(&mut self, bytes: usize) {
        self.outgoing.sent(bytes);
    }

    /// Is nothing waiting to be sent?
    pub fn is_idle(&self) -> bool {
        self.outgoing.is_idle()
    }

    /// Has dom0 answered everything that we asked for?
    pub fn is_settled(&self) -> bool {
        self.outgoing.is_settled()
    }

    /// Sets a key in dom0's database and, when the command is sent, in the store.
    ///
    /// # Errors
    /// See [`CommandError`]; nothing is sent then.
    pub fn write(&mut self, path: &str, value: &[u8]) -> Result<(), CommandError> {
        let path = Path::entry(path)?;
        if path.tree().is_some() {
            return Err(CommandError::NotOurs);
        }
        if value.len() > MAX_VALUE_BYTES {
            return Err(CommandError::ValueTooLong);
        }
        if value.contains(&0) {
            return Err(CommandError::NulInValue);
        }
        self.require_synchronised()?;
        self.store.check_room(&path, value).map_err(CommandError::StoreFull)?;
        self.outgoing.queue_write(path, value)
    }

    /// Removes a key of ours or, with trailing slash, everything below it; see [`CommandError::NotOurs`]. It is
    /// sent when dom0 has room to answer, and dropped if nothing is there any more at that moment.
    ///
    /// What remains: dom0 may fill the whole 4096-byte ring between our look at it and its own. Reading at once,
    /// which the event loop does anyway, was enough in the recordings; overwriting a key with an empty value has no
    /// such risk.
    ///
    /// # Errors
    /// See [`CommandError`]; nothing is sent then.
    pub fn remove(&mut self, path: &str) -> Result<(), CommandError> {
        let path = Path::removal(path)?;
        self.require_synchronised()?;
        if !self.store.holds_any(&path) && !self.outgoing.will_write_below(&path) {
            return Err(CommandError::Absent);
        }
        if !OWN_PREFIXES.iter().any(|own| path.as_str().starts_with(own)) {
            return Err(CommandError::NotOurs);
        }
        self.outgoing.queue_removal(path)
    }

    /// The database as far as events have been taken.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Is the dump complete and the connection in order?
    pub fn is_synchronised(&self) -> bool {
        matches!(self.state, State::Synchronised)
    }

    /// May, must or must not the vchan be closed?
    pub fn closing(&self) -> Closing {
        match self.state {
            State::Dumping { .. } => Closing::Forbidden,
            State::Idle | State::Synchronised => Closing::Allowed,
            State::Deaf => Closing::AfterQuiet,
            State::Broken => Closing::Required,
        }
    }

    /// Is closing the vchan now harmless to dom0's daemon?
    pub fn may_close(&self) -> bool {
        matches!(self.closing(), Closing::Allowed | Closing::Required)
    }

    /// Totals.
    pub fn counters(&self) -> Counters {
        Counters { commands_dropped: self.outgoing.dropped(), ..self.counters }
    }

    fn require_synchronised(&self) -> Result<(), CommandError> {
        if self.is_synchronised() { Ok(()) } else { Err(CommandError::NotSynchronised) }
    }

    /// After a dump every tree counts as committed: one event each, before anything else happens.
    fn announce_tree(&mut self) -> Option<Event> {
        let after = self.announcing?;
        let next = self.store.next_tree(after.as_ref());
        self.announcing = next.map(|(key, _)| Some(key));
        let (_, tree) = next?;
        Some(Event::Committed { tree, complete: self.store.tree_is_complete(&tree) })
    }

    fn lose_framing(&mut self, error: HeaderError) -> Event {
        let was_spoiled = matches!(self.state, State::Dumping { .. });
        self.state = if was_spoiled { State::Deaf } else { State::Broken };
        Event::ProtocolError { reason: error.into() }
    }

    fn process(&mut self, header: &Header) -> Step {
        match self.state {
            State::Dumping { .. } => self.process_in_dump(header),
            State::Synchronised => self.process_live(header),
            State::Idle | State::Deaf | State::Broken => Step::Silent,
        }
    }

    fn process_in_dump(&mut self, header: &Header) -> Step {
        let State::Dumping { loading, spoiled } = &mut self.state else { return Step::Silent };
        if header.is_end_of_dump() {
            return self.end_dump();
        }
        if *spoiled {
            return Step::Silent;
        }
        let raw = header.raw_path();
        let reason = if header.kind() != Kind::DumpEntry {
            ProtocolError::Unexpected(header.kind())
        } else if raw.as_bytes().is_empty() {
            ProtocolError::EntryWithoutPath
        } else {
            return match set(loading, header, self.input.value(header)) {
                Ok(_) => Step::Silent,
                Err(reason) => Step::Event(Event::Refused { path: raw, reason }),
            };
        };
        *spoiled = true;
        Step::Event(Event::ProtocolError { reason })
    }

    fn end_dump(&mut self) -> Step {
        match core::mem::replace(&mut self.state, State::Broken) {
            State::Dumping { loading, spoiled: false } => {
                self.store = loading;
                self.state = State::Synchronised;
                self.announcing = Some(None);
                Step::Event(Event::Dumped)
            }
            _ => Step::Silent,
        }
    }

    fn process_live(&mut self, header: &Header) -> Step {
        match header.kind() {
            Kind::Write => self.process_write(header),
            Kind::Remove => self.process_removal(header),
            Kind::Ok | Kind::Error if header.data_len() > 0 => {
                self.break_off(ProtocolError::AnswerWithValue)
            }
            Kind::Ok | Kind::Error => self.process_answer(header),
            kind @ (Kind::MultiRead | Kind::NoEntry | Kind::DumpEntry) => {
                self.break_off(ProtocolError::Unexpected(kind))
            }
        }
    }

    fn process_write(&mut self, header: &Header) -> Step {
        let value = self.input.value(header);
        let is_empty = value.is_empty();
        match set(&mut self.store, header, value) {
            Ok(path) => {
                self.outgoing.push_header(&header.answer(Kind::Ok));
                Step::Event(match path.tree().filter(|tree| is_empty && *tree.mark() == path) {
                    None => Event::Changed { path },
                    Some(tree) => {
                        Event::Committed { tree, complete: self.store.tree_is_complete(&tree) }
                    }
                })
            }
            Err(reason) => self.refuse(header, reason),
        }
    }

    fn process_removal(&mut self, header: &Header) -> Step {
        let path = match header.removal_path() {
            Ok(path) => path,
            Err(error) => {
                self.store.mark_incomplete(header.raw_path().as_bytes(), error.into());
                return self.refuse(header, error.into());
            }
        };
        if header.data_len() > 0 {
            return self.refuse(header, Refusal::RemovalWithValue);
        }
        // An absent entry is answered like a present one. Upstream's daemon for VMs answers that there is no such
        // entry and ends, on which dom0's daemon ends as well.
        self.outgoing.push_header(&header.answer(Kind::Ok));
        match (self.store.remove(&path), path.is_prefix()) {
            (false, _) => Step::Silent,
            (true, false) => Step::Event(Event::Removed { path }),
            (true, true) => Step::Event(Event::RemovedBelow { prefix: path }),
        }
    }

    fn process_answer(&mut self, header: &Header) -> Step {
        let settled = header.removal_path().map_or(Settled::Nothing, |p| self.outgoing.settle(&p));
        if settled == Settled::Nothing {
            self.counters.unexpected_answers = self.counters.unexpected_answers.saturating_add(1);
        }
        if header.kind() == Kind::Ok {
            return Step::Silent;
        }
        if let (Settled::Write, Ok(path)) = (settled, header.entry_path()) {
            // dom0 does not hold it, so that a later removal of it would end dom0's daemon.
            self.store.remove(&path);
        }
        Step::Event(Event::CommandRefused { path: header.raw_path() })
    }

    /// A legal key gets the answer "refused" as from upstream's daemon. To an illegal one there is no answer that
    /// dom0's header check certainly accepts, and dom0 waits for none.
    fn refuse(&mut self, header: &Header, reason: Refusal) -> Step {
        if !matches!(reason, Refusal::Path(_)) {
            self.outgoing.push_header(&header.answer(Kind::Error));
        }
        Step::Event(Event::Refused { path: header.raw_path(), reason })
    }

    fn break_off(&mut self, reason: ProtocolError) -> Step {
        self.state = State::Broken;
        Step::Event(Event::ProtocolError { reason })
    }
}

/// Sets an entry as the header says; a refusal is noted in the store.
fn set(store: &mut Store, header: &Header, value: &[u8]) -> Result<Path, Refusal> {
    match header.entry_path() {
        Ok(path) => store.insert(path, value).map(|()| path),
        Err(error) => {
            store.mark_incomplete(header.raw_path().as_bytes(), error.into());
            Err(error.into())
        }
    }
}
