//! The daemon's behaviour: what it answers, what it survives and what ends it (Qubes qubesdb wire protocol;
//! the rows named here are those of the recorded exchanges).

mod local;

use std::collections::VecDeque;

use super::event::{Event, Journal};
use super::store::{Author, Store};
use super::wire::{self, HEADER_LEN, Header, kind};
use crate::dom0::exit::Exit;
use crate::dom0::ring::{self, Link, Refused, Ring};

pub use self::local::Done;

/// What the process around the server has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for the next event.
    Wait,
    /// The link is gone: close it and announce a new one; the database is kept.
    Announce,
}

/// State of one connection.
#[derive(Debug, Default)]
struct Connection {
    is_seen: bool,
    is_multiread: bool,
    /// Entries and bytes of a dump that is not completely in the ring yet.
    dump: Option<(usize, usize)>,
    is_dumped: bool,
    /// A header whose value has not arrived.
    header: Option<Header>,
    /// What did not fit into the ring.
    pending: VecDeque<u8>,
    /// Our commands whose answers have not come, oldest first.
    unanswered: VecDeque<Header>,
}

/// The server of one domain.
pub struct Server {
    store: Store,
    connection: Connection,
    journal: Journal,
    clock: Box<dyn FnMut() -> u64>,
    garbage: u64,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("connection", &self.connection).finish_non_exhaustive()
    }
}

impl Server {
    /// An empty database; `clock` gives Xen system time in nanoseconds.
    pub fn new(clock: Box<dyn FnMut() -> u64>) -> Self {
        Self {
            store: Store::default(),
            connection: Connection::default(),
            journal: Journal::default(),
            clock,
            garbage: 0x2545_f491_4f6c_dd1d,
        }
    }

    /// The database.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// What happened so far.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// Whether the dump of the present connection is completely in the ring.
    pub fn is_synchronised(&self) -> bool {
        self.connection.is_dumped
    }

    /// Bytes that wait in memory because the VM does not read.
    pub fn pending_bytes(&self) -> usize {
        self.connection.pending.len()
    }

    /// Commands that the VM has not answered yet.
    pub fn unanswered(&self) -> usize {
        self.connection.unanswered.len()
    }

    /// Adds an event to the journal; for what the process around the server does.
    pub fn note(&mut self, event: Event) {
        let now_ns = (self.clock)();
        self.journal.push(now_ns, event);
    }

    /// The clock that the server uses, nanoseconds.
    pub fn now_ns(&mut self) -> u64 {
        (self.clock)()
    }

    /// To be called after every event of the link and after every tick.
    ///
    /// # Errors
    /// With the reason for which the real daemon ends at this point.
    pub fn on_event(&mut self, ring: &mut dyn Ring) -> Result<Next, Exit> {
        match ring.link() {
            Link::Waiting => return Ok(Next::Wait),
            Link::Open if !self.connection.is_seen => {
                self.connection.is_seen = true;
                self.note(Event::Connected);
            }
            Link::Open => {}
            Link::Closed => return self.on_closed(),
        }
        // Input first: an RM is judged by the space in the ring before it is filled up again
        // (recorded flow control).
        self.read_messages(ring)?;
        match self.flush(ring) {
            Ok(()) => Ok(Next::Wait),
            Err(Refused) => self.on_closed(),
        }
    }

    /// Rows P4 to P7.
    fn on_closed(&mut self) -> Result<Next, Exit> {
        self.note(Event::Closed);
        if !self.connection.is_dumped {
            return Err(Exit::ClosedBeforeDump);
        }
        self.connection = Connection::default();
        Ok(Next::Announce)
    }

    fn read_messages(&mut self, ring: &mut dyn Ring) -> Result<(), Exit> {
        loop {
            let header = match self.connection.header.take() {
                Some(header) => header,
                None => match self.read_header(ring)? {
                    Some(header) => header,
                    None => return Ok(()),
                },
            };
            // Only these two have their value read: the data of an answer stays in the ring and is taken for
            // the next header (row M17).
            let len = if matches!(header.kind, kind::WRITE | kind::RM) {
                header.data_len as usize
            } else {
                0
            };
            let Some(value) = read_exactly(ring, len)? else {
                self.connection.header = Some(header);
                return Ok(());
            };
            self.handle(ring, header, &value)?;
        }
    }

    fn read_header(&mut self, ring: &mut dyn Ring) -> Result<Option<Header>, Exit> {
        let Some(bytes) = read_exactly(ring, HEADER_LEN)? else { return Ok(None) };
        let Some(mut header) = Header::decode(&bytes) else { return Err(Exit::RingBroken) };
        // A path without a NUL is cut (row M8).
        if let Some(last) = header.path.last_mut() {
            *last = 0;
        }
        check_header(&header)?;
        Ok(Some(header))
    }

    fn handle(&mut self, ring: &mut dyn Ring, header: Header, value: &[u8]) -> Result<(), Exit> {
        let path = header.name().to_vec();
        self.note(Event::Received { kind: header.kind, path, len: value.len() });
        match header.kind {
            kind::MULTIREAD => self.handle_multiread(ring, header),
            kind::WRITE => self.handle_write(ring, header, value),
            kind::RM => self.handle_rm(ring, header, value),
            kind::RESP_OK => {
                self.match_answer(&header);
                Ok(())
            }
            _ => {
                self.journal.count("errors_from_vm");
                self.match_answer(&header);
                Ok(())
            }
        }
    }

    fn handle_multiread(&mut self, ring: &mut dyn Ring, request: Header) -> Result<(), Exit> {
        if self.connection.is_multiread {
            return Err(self.refuse(ring, request.answer(kind::RESP_ERROR), Exit::SecondMultiread));
        }
        self.connection.is_multiread = true;
        let prefix = request.name().to_vec();
        self.note(Event::Multiread { prefix: prefix.clone() });
        // One header is used for all messages: the padding stays the request's, and the end mark has what the
        // last entry left in the path field.
        let mut header = request.answer(kind::RESP_MULTIREAD);
        let entries: Vec<_> =
            self.store.below(&prefix).rev().map(|(k, e)| (k.to_vec(), e.value.clone())).collect();
        let mut bytes = HEADER_LEN;
        for (key, value) in &entries {
            header.set_name(key);
            header.data_len = u32::try_from(value.len()).unwrap_or(u32::MAX);
            bytes += HEADER_LEN + value.len();
            self.transmit(ring, &header, value).map_err(|Refused| Exit::ClosedBeforeDump)?;
        }
        if let Some(first) = header.path.first_mut() {
            *first = 0;
        }
        header.data_len = 0;
        self.transmit(ring, &header, b"").map_err(|Refused| Exit::ClosedBeforeDump)?;
        self.connection.dump = Some((entries.len(), bytes));
        self.finish_dump();
        Ok(())
    }

    fn handle_write(
        &mut self,
        ring: &mut dyn Ring,
        header: Header,
        value: &[u8],
    ) -> Result<(), Exit> {
        if !wire::is_key(header.name()) {
            return Err(self.refuse(ring, header.answer(kind::RESP_ERROR), Exit::RefusedWrite));
        }
        if value.contains(&0) {
            return self.answer(ring, header, kind::RESP_ERROR);
        }
        let now_ns = (self.clock)();
        self.store.set(header.name(), value, Author::Vm, now_ns);
        self.answer(ring, header, kind::RESP_OK)
    }

    fn handle_rm(&mut self, ring: &mut dyn Ring, header: Header, value: &[u8]) -> Result<(), Exit> {
        if ring.space() < HEADER_LEN {
            return Err(Exit::NoRoomForAnswer);
        }
        // Row M16. That the value is taken out of the ring is inferred: the daemon lived on.
        if !value.is_empty() {
            return self.answer(ring, header, kind::RESP_ERROR);
        }
        if self.store.remove(header.name()) == 0 {
            return Err(self.refuse(
                ring,
                header.answer(kind::RESP_ERROR_NOENT),
                Exit::AbsentEntry,
            ));
        }
        self.answer(ring, header, kind::RESP_OK)
    }

    fn answer(&mut self, ring: &mut dyn Ring, header: Header, kind: u8) -> Result<(), Exit> {
        let header = header.answer(kind);
        self.note(Event::Sent { kind, path: header.name().to_vec(), len: 0 });
        // A link that closes right now is found at the next look.
        let _ = self.transmit(ring, &header, b"");
        Ok(())
    }

    /// The last answer before the end.
    fn refuse(&mut self, ring: &mut dyn Ring, header: Header, exit: Exit) -> Exit {
        self.note(Event::Sent { kind: header.kind, path: header.name().to_vec(), len: 0 });
        let _ = self.transmit(ring, &header, b"");
        exit
    }

    /// The real daemon does not look at answers; here it is counted whether each is that of our oldest command.
    fn match_answer(&mut self, answer: &Header) {
        let is_ours = self.connection.unanswered.front().is_some_and(|sent| {
            sent.name() == answer.name()
                && sent.path == answer.path
                && sent.padding == answer.padding
        });
        if is_ours {
            self.connection.unanswered.pop_front();
            self.journal.count("acks_matched");
        } else {
            self.journal.count("acks_unmatched");
        }
    }

    /// Header and value as two ring writes; behind what already waits in memory, if anything does.
    fn transmit(
        &mut self,
        ring: &mut dyn Ring,
        header: &Header,
        value: &[u8],
    ) -> Result<(), Refused> {
        for piece in [header.encode().as_slice(), value] {
            if piece.is_empty() {
                continue;
            }
            let pending = &mut self.connection.pending;
            let written = if pending.is_empty() { ring.write(piece)? } else { 0 };
            pending.extend(piece.get(written..).unwrap_or_default());
        }
        Ok(())
    }

    /// Puts into the ring what waits in memory, without regard to message borders.
    fn flush(&mut self, ring: &mut dyn Ring) -> Result<(), Refused> {
        while !self.connection.pending.is_empty() {
            let pending = self.connection.pending.make_contiguous();
            // Also asks for the event that tells of space.
            let space = ring.space().min(pending.len());
            let written = match pending.get(..space) {
                Some(piece) if !piece.is_empty() => ring.write(piece)?,
                _ => 0,
            };
            if written == 0 {
                break;
            }
            self.connection.pending.drain(..written);
        }
        self.finish_dump();
        Ok(())
    }

    fn finish_dump(&mut self) {
        if self.connection.pending.is_empty()
            && let Some((entries, bytes)) = self.connection.dump.take()
        {
            self.connection.is_dumped = true;
            self.note(Event::DumpWritten { entries, bytes });
        }
    }
}

/// What the real daemon checks on the header alone: nothing is answered when it fails.
fn check_header(header: &Header) -> Result<(), Exit> {
    if !matches!(
        header.kind,
        kind::WRITE | kind::MULTIREAD | kind::RM | kind::RESP_OK | kind::RESP_ERROR
    ) {
        return Err(Exit::ForbiddenType(header.kind));
    }
    if !wire::has_allowed_bytes(header.name()) {
        return Err(Exit::BadPath);
    }
    if header.data_len >= wire::DATA_LIMIT {
        return Err(Exit::TooLong(header.data_len));
    }
    if header.kind == kind::RESP_ERROR && header.data_len != 0 {
        return Err(Exit::ErrorWithData);
    }
    Ok(())
}

fn read_exactly(ring: &mut dyn Ring, len: usize) -> Result<Option<Vec<u8>>, Exit> {
    ring::read_exactly(ring, len).map_err(|Refused| Exit::RingBroken)
}

#[cfg(test)]
mod tests;
