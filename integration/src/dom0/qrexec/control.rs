//! The daemon's side of the control channel, port 512 (Qubes qrexec protocol; faults as recorded).

use std::collections::{BTreeMap, VecDeque};

use super::wire::{self, HEADER_LEN, Header, kind};
use crate::dom0::exit::Exit;
use crate::dom0::ring::{self, Link, Refused, Ring};

/// The first port of data channels: the lowest that is free is given out.
pub const FIRST_PORT: u32 = 513;
/// How many there are.
const PORTS: usize = 256;
/// Size of the ring towards the agent, bytes: a message that is larger can never be sent.
const RING_LEN: usize = 4096;
/// Data channels of dom0 are served by this domain.
const DOM0: u32 = 0;
/// Longest service name of a trigger, bytes, its NUL included.
const SERVICE_NAME_MAX: u32 = 65_000;
/// Length of the identifier of a trigger, bytes.
const REQUEST_ID_LEN: usize = 32;

/// How a call is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// With its data.
    Command,
    /// Only started.
    JustExec,
}

/// Why a call was not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// No agent, or no hello yet.
    #[error("no agent is connected")]
    NoAgent,
    /// All ports are in use.
    #[error("all 256 ports are in use")]
    NoPort,
}

/// What the process has to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Wait for the next event.
    Wait,
    /// The agent is gone: unmap, wait for its next announcement.
    Reconnect,
}

/// One connection after the other to a VM's agent.
#[derive(Debug)]
pub struct Control {
    default_user: String,
    version: Option<u32>,
    header: Option<Header>,
    /// Ring writes that wait for space, each to be written as a whole.
    pending: VecDeque<Vec<u8>>,
    ports: Vec<bool>,
    counters: BTreeMap<&'static str, u64>,
}

impl Control {
    /// A daemon whose calls for user `DEFAULT` run as `default_user`.
    pub fn new(default_user: &str) -> Self {
        let counters =
            ["connections", "calls", "terminated", "terminated_unused", "triggers_refused"];
        Self {
            default_user: default_user.to_owned(),
            version: None,
            header: None,
            pending: VecDeque::new(),
            ports: vec![false; PORTS],
            counters: counters.into_iter().map(|name| (name, 0)).collect(),
        }
    }

    /// The agent's protocol version, once it has said hello.
    pub fn version(&self) -> Option<u32> {
        self.version
    }

    /// Ports given out and not returned.
    pub fn ports_in_use(&self) -> usize {
        self.ports.iter().filter(|used| **used).count()
    }

    /// Counters by name.
    pub fn counters(&self) -> &BTreeMap<&'static str, u64> {
        &self.counters
    }

    /// To be called after every event of the link.
    ///
    /// # Errors
    /// With the reason for which the real daemon ends.
    pub fn on_event(&mut self, ring: &mut dyn Ring) -> Result<Next, Exit> {
        // Unlike a QubesDB server, the daemon is a client: there is no waiting state.
        if ring.link() == Link::Closed {
            self.version = None;
            self.header = None;
            self.pending.clear();
            self.ports.fill(false);
            return Ok(Next::Reconnect);
        }
        while let Some((header, body)) = self.read_message(ring)? {
            self.handle(header, &body)?;
        }
        self.flush(ring)?;
        Ok(Next::Wait)
    }

    fn read_message(&mut self, ring: &mut dyn Ring) -> Result<Option<(Header, Vec<u8>)>, Exit> {
        let header = match self.header.take() {
            Some(header) => header,
            None => {
                let Some(bytes) = read_exactly(ring, HEADER_LEN)? else { return Ok(None) };
                let Some(header) = Header::decode(&bytes) else {
                    return Err(Exit::ControlRingBroken);
                };
                self.check_header(header)?;
                header
            }
        };
        let body = read_exactly(ring, header.len as usize)?;
        if body.is_none() {
            self.header = Some(header);
        }
        Ok(body.map(|body| (header, body)))
    }

    fn check_header(&self, Header { kind, len }: Header) -> Result<(), Exit> {
        if self.version.is_none() != (kind == kind::HELLO) {
            return Err(Exit::UnknownMessage(kind));
        }
        let fixed = |expected: u32| len == expected;
        let is_right = match kind {
            kind::HELLO => fixed(4),
            kind::CONNECTION_TERMINATED => fixed(8),
            kind::TRIGGER_SERVICE => fixed(128),
            kind::TRIGGER_SERVICE3 => (97..=96 + SERVICE_NAME_MAX).contains(&len),
            kind::TRIGGER_SERVICE4 => (161..=160 + SERVICE_NAME_MAX).contains(&len),
            _ => return Err(Exit::UnknownMessage(kind)),
        };
        if is_right { Ok(()) } else { Err(Exit::WrongLength { kind, len }) }
    }

    fn handle(&mut self, header: Header, body: &[u8]) -> Result<(), Exit> {
        match header.kind {
            kind::HELLO => self.handle_hello(body)?,
            kind::CONNECTION_TERMINATED => self.handle_terminated(body),
            _ => self.refuse_trigger(header.kind, body),
        }
        Ok(())
    }

    /// The version is echoed, whatever it is above 1.
    fn handle_hello(&mut self, body: &[u8]) -> Result<(), Exit> {
        let version = wire::word(body).unwrap_or(0);
        if version < 2 {
            return Err(Exit::OldVersion(version));
        }
        self.version = Some(version);
        self.count("connections");
        self.queue(wire::header(kind::HELLO, 4));
        self.queue(version.to_le_bytes().to_vec());
        Ok(())
    }

    fn handle_terminated(&mut self, body: &[u8]) {
        let port = wire::words(body).filter(|(domain, _)| *domain == DOM0).map(|(_, port)| port);
        let index = port.and_then(|port| port.checked_sub(FIRST_PORT));
        let slot = index.and_then(|index| self.ports.get_mut(index as usize));
        let was_used = slot.is_some_and(std::mem::take);
        self.count(if was_used { "terminated" } else { "terminated_unused" });
    }

    /// No policy of the lab allows a call out of the firewall.
    fn refuse_trigger(&mut self, kind: u32, body: &[u8]) {
        let id = if kind == kind::TRIGGER_SERVICE {
            body.get(96..)
        } else {
            body.get(if kind == kind::TRIGGER_SERVICE3 { 64 } else { 128 }..)
        };
        let id = id.and_then(|rest| rest.get(..REQUEST_ID_LEN)).unwrap_or_default().to_vec();
        self.count("triggers_refused");
        self.queue(wire::header(kind::SERVICE_REFUSED, id.len()));
        self.queue(id);
    }

    /// Passes a call on: the port at which its data channel is to be served. `command` is `user:text`.
    ///
    /// # Errors
    /// When there is no agent, or no port.
    pub fn call(&mut self, mode: Mode, command: &str) -> Result<u32, CallError> {
        self.version.ok_or(CallError::NoAgent)?;
        let free = self.ports.iter_mut().zip(FIRST_PORT..).find(|(used, _)| !**used);
        let (used, port) = free.ok_or(CallError::NoPort)?;
        *used = true;
        self.count("calls");
        let target = [DOM0.to_le_bytes(), port.to_le_bytes()].concat();
        let kind = if mode == Mode::JustExec { kind::JUST_EXEC } else { kind::EXEC_CMDLINE };
        // For the default user the real daemon writes target, user and command one by one.
        let parts = match command.strip_prefix("DEFAULT:") {
            Some(text) => vec![
                target,
                self.default_user.clone().into_bytes(),
                format!(":{text}\0").into_bytes(),
            ],
            None => vec![[target, format!("{command}\0").into_bytes()].concat()],
        };
        self.queue(wire::header(kind, parts.iter().map(Vec::len).sum()));
        self.pending.extend(parts);
        Ok(port)
    }

    /// Writes what fits, message part by message part.
    ///
    /// # Errors
    /// When a part is larger than the ring.
    pub fn flush(&mut self, ring: &mut dyn Ring) -> Result<(), Exit> {
        while let Some(part) = self.pending.front() {
            if part.len() > RING_LEN {
                return Err(Exit::BodyTooLarge(part.len()));
            }
            if ring.space() < part.len() {
                return Ok(());
            }
            // Space was there, so a short write is a link that closed: the next look finds it.
            if ring.write(part) != Ok(part.len()) {
                return Ok(());
            }
            self.pending.pop_front();
        }
        Ok(())
    }

    fn queue(&mut self, part: Vec<u8>) {
        self.pending.push_back(part);
    }

    fn count(&mut self, name: &'static str) {
        *self.counters.entry(name).or_insert(0) += 1;
    }
}

fn read_exactly(ring: &mut dyn Ring, len: usize) -> Result<Option<Vec<u8>>, Exit> {
    if len > RING_LEN {
        // Longer than the ring: upstream reads it piecemeal; nothing in the lab sends it.
        return Err(Exit::ControlRingBroken);
    }
    ring::read_exactly(ring, len).map_err(|Refused| Exit::ControlRingBroken)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::hex;
    use crate::dom0::ring::fake::FakeRing;

    fn open() -> FakeRing {
        let mut ring = FakeRing::new(4096);
        ring.vm_connects();
        ring
    }

    fn says(ring: &mut FakeRing, digits: &str) {
        ring.vm_writes(&hex::decode(digits).unwrap());
    }

    fn heard(ring: &mut FakeRing) -> String {
        hex::encode(&ring.vm_reads_all())
    }

    fn greeted() -> (Control, FakeRing) {
        let (mut control, mut ring) = (Control::new("user"), open());
        says(&mut ring, "00030000 04000000 03000000");
        assert_eq!(control.on_event(&mut ring), Ok(Next::Wait));
        assert_eq!(ring.writes, [8, 4]);
        ring.vm_reads_all();
        ring.writes.clear();
        (control, ring)
    }

    #[test]
    fn hello_echoes_every_version_above_1() {
        for version in ["02", "03", "04", "63"] {
            let (mut control, mut ring) = (Control::new("user"), open());
            says(&mut ring, &format!("00030000 04000000 {version}000000"));
            control.on_event(&mut ring).unwrap();
            assert_eq!(heard(&mut ring), format!("0003000004000000{version}000000"));
        }
        let (mut control, mut ring) = (Control::new("user"), open());
        says(&mut ring, "00030000 04000000 01000000");
        assert_eq!(control.on_event(&mut ring), Err(Exit::OldVersion(1)));
        assert_eq!(heard(&mut ring), "");
    }

    #[test]
    fn hello_in_pieces_is_waited_for() {
        let (mut control, mut ring) = (Control::new("user"), open());
        for (piece, version) in
            [("00030000 04", None), ("000000", None), ("03", None), ("000000", Some(3))]
        {
            says(&mut ring, piece);
            control.on_event(&mut ring).unwrap();
            assert_eq!(control.version(), version);
        }
    }

    #[test]
    fn call_is_the_recorded_exec_cmdline_and_its_port_comes_back() {
        let (mut control, mut ring) = greeted();
        for _ in 0..2 {
            assert_eq!(control.call(Mode::Command, "user:QUBESRPC qubes.Test+arg dom0"), Ok(513));
            control.flush(&mut ring).unwrap();
            assert_eq!(
                heard(&mut ring),
                "000200002a0000000000000001020000757365723a51554245535250432071756265732e546573742b61726720646f6d3000"
            );
            says(&mut ring, "11020000 08000000 00000000 01020000");
            control.on_event(&mut ring).unwrap();
            assert_eq!((heard(&mut ring).as_str(), control.ports_in_use()), ("", 0));
        }
        assert_eq!(ring.writes, [8, 42, 8, 42]);
    }

    #[test]
    fn vectors_of_section_9_3() {
        let (mut control, mut ring) = greeted();
        control.call(Mode::Command, "root:QUBESRPC qubes.SuspendPreAll dom0").unwrap();
        control.call(Mode::JustExec, "user:date").unwrap();
        control.flush(&mut ring).unwrap();
        assert_eq!(
            heard(&mut ring),
            "000200002f0000000000000001020000726f6f743a51554245535250432071756265732e53757370656e64507265416c6c20646f6d3000\
             01020000120000000000000002020000757365723a6461746500"
        );
    }

    #[test]
    fn default_user_makes_three_writes_of_the_body() {
        let (mut control, mut ring) = greeted();
        control.call(Mode::JustExec, "DEFAULT:touch /x").unwrap();
        control.flush(&mut ring).unwrap();
        assert_eq!(ring.writes, [8, 8, 4, 10]);
        assert_eq!(
            heard(&mut ring),
            "01020000160000000000000001020000757365723a746f756368202f7800"
        );
    }

    #[test]
    fn faults_of_the_control_channel() {
        for (said, end) in [
            ("99090000 00000000", Err(Exit::UnknownMessage(0x999))),
            ("11020000 04000000 00000000", Err(Exit::WrongLength { kind: 0x211, len: 4 })),
            ("11020000 08000000 00000000 05020000", Ok(Next::Wait)),
            ("00030000 04000000 03000000", Err(Exit::UnknownMessage(0x300))),
        ] {
            let (mut control, mut ring) = greeted();
            says(&mut ring, said);
            assert_eq!(control.on_event(&mut ring), end, "{said}");
        }
        let (mut control, mut ring) = (Control::new("user"), open());
        says(&mut ring, "11020000 08000000 00000000 01020000");
        assert_eq!(
            control.on_event(&mut ring),
            Err(Exit::UnknownMessage(0x211)),
            "no hello before it"
        );
    }

    #[test]
    fn command_larger_than_the_ring_ends_the_daemon_after_its_header() {
        let (mut control, mut ring) = greeted();
        let command = format!("user:{}", "x".repeat(4225));
        assert_eq!(command.len(), 4230);
        control.call(Mode::Command, &command).unwrap();
        assert_eq!(control.flush(&mut ring), Err(Exit::BodyTooLarge(4239)));
        assert_eq!(heard(&mut ring), "000200008f100000");
    }

    #[test]
    fn agent_that_goes_is_waited_for() {
        let (mut control, mut ring) = greeted();
        control.call(Mode::Command, "user:x").unwrap();
        ring.vm_closes();
        assert_eq!(control.on_event(&mut ring), Ok(Next::Reconnect));
        assert_eq!(control.call(Mode::Command, "user:x"), Err(CallError::NoAgent));
        let mut ring = open();
        says(&mut ring, "00030000 04000000 03000000");
        control.on_event(&mut ring).unwrap();
        assert_eq!(control.call(Mode::Command, "user:x"), Ok(513));
    }

    #[test]
    fn ports_run_out_after_256_calls_that_nobody_ends() {
        let (mut control, mut ring) = greeted();
        for port in 513..769 {
            assert_eq!(control.call(Mode::Command, "user:x"), Ok(port));
            control.flush(&mut ring).unwrap();
            ring.vm_reads_all();
        }
        assert_eq!(control.call(Mode::Command, "user:x"), Err(CallError::NoPort));
    }

    #[test]
    fn trigger_is_refused_with_its_identifier() {
        let (mut control, mut ring) = greeted();
        let trigger = [
            hex::decode("12020000 6e000000").unwrap(),
            [&b"dom0"[..], &[0; 60]].concat(),
            [&b"REQ1"[..], &[0; 28]].concat(),
            b"qubes.GetDate\0".to_vec(),
        ];
        ring.vm_writes(&trigger.concat());
        control.on_event(&mut ring).unwrap();
        assert_eq!(heard(&mut ring), format!("030200002000000052455131{}", "00".repeat(28)));
    }
}
