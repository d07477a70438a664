//! The caller's side of one call: the data channel that dom0 serves (Qubes qrexec protocol, as recorded).

use std::collections::VecDeque;

use super::wire::{self, HEADER_LEN, Header, kind};
use crate::dom0::ring::{self, Link, Refused, Ring};

/// dom0's own version, said whatever the control channel agreed on.
const VERSION: u32 = 4;
/// Exit status when the other side breaks the protocol.
pub const FAULT: u8 = 1;
/// Exit status when the channel closes without one.
pub const NO_STATUS: u8 = 255;
/// Exit status when nobody connects.
pub const NOBODY: u8 = 125;

/// How a call is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It goes on.
    Running,
    /// It ended, with this exit status.
    Ended(u8),
}

/// A call. Output is collected until it is taken.
#[derive(Debug, Default)]
pub struct Call {
    version: Option<u32>,
    is_greeted: bool,
    stdin: VecDeque<u8>,
    is_stdin_closed: bool,
    is_stdin_end_sent: bool,
    /// The message that is being read, and what is left of its body.
    body: Option<Header>,
    ended: [bool; 2],
    status: Option<u8>,
    /// What the service wrote to its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote to its error output.
    pub stderr: Vec<u8>,
    /// Remarks of the caller itself, one per line.
    pub remarks: String,
}

impl Call {
    /// Adds standard input of the service.
    pub fn push_stdin(&mut self, bytes: &[u8]) {
        self.stdin.extend(bytes);
    }

    /// There is no more of it.
    pub fn close_stdin(&mut self) {
        self.is_stdin_closed = true;
    }

    /// Bytes of standard input that wait for space.
    pub fn stdin_waiting(&self) -> usize {
        self.stdin.len()
    }

    /// To be called after every event of the link, and when there is more input.
    pub fn on_event(&mut self, ring: &mut dyn Ring) -> State {
        if let Some(status) = self.status {
            return State::Ended(status);
        }
        let link = ring.link();
        if link == Link::Waiting {
            return State::Running;
        }
        if !self.is_greeted {
            self.is_greeted = true;
            for part in [wire::header(kind::HELLO, 4), VERSION.to_le_bytes().to_vec()] {
                // A new ring has room; a closed one is found below.
                let _ = ring.write(&part);
            }
        }
        // What was written before the close is read to its end.
        if self.read_messages(ring).is_err() {
            self.status.get_or_insert(FAULT);
        }
        if self.status.is_none() && link == Link::Closed {
            self.status = Some(NO_STATUS);
        }
        if let Some(status) = self.status {
            if self.ended.contains(&false) && status != 0 {
                self.remarks.push_str("the service closed early\n");
            }
            return State::Ended(status);
        }
        self.send_stdin(ring);
        State::Running
    }

    fn limit(&self) -> usize {
        if self.version == Some(2) { 4096 } else { 65_536 }
    }

    fn read_messages(&mut self, ring: &mut dyn Ring) -> Result<(), Refused> {
        while self.status.is_none() {
            let header = match self.body.take() {
                Some(header) => header,
                None => {
                    let Some(bytes) = ring::read_exactly(ring, HEADER_LEN)? else { return Ok(()) };
                    let header = Header::decode(&bytes).ok_or(Refused)?;
                    self.check(header)?;
                    header
                }
            };
            if !self.read_body(ring, header)? {
                return Ok(());
            }
        }
        Ok(())
    }

    fn check(&self, Header { kind, len }: Header) -> Result<(), Refused> {
        let is_right = match kind {
            kind::HELLO => self.version.is_none() && len == 4,
            _ if self.version.is_none() => false,
            kind::STDOUT | kind::STDERR | kind::EXIT_CODE => len as usize <= self.limit(),
            _ => false,
        };
        is_right.then_some(()).ok_or(Refused)
    }

    /// Whether the body was read to its end. Output is passed on as it comes.
    fn read_body(&mut self, ring: &mut dyn Ring, header: Header) -> Result<bool, Refused> {
        let len = header.len as usize;
        if matches!(header.kind, kind::STDOUT | kind::STDERR) {
            let (output, ended) = match header.kind {
                kind::STDOUT => (&mut self.stdout, &mut self.ended[0]),
                _ => (&mut self.stderr, &mut self.ended[1]),
            };
            *ended |= len == 0;
            let ready = ring.data_ready().min(len);
            if let Some(bytes) = ring::read_exactly(ring, ready)? {
                output.extend(bytes);
            }
            if ready < len {
                self.body = Some(Header {
                    kind: header.kind,
                    len: u32::try_from(len - ready).unwrap_or(0),
                });
            }
            return Ok(ready == len);
        }
        let Some(body) = ring::read_exactly(ring, len)? else {
            self.body = Some(header);
            return Ok(false);
        };
        let number = wire::word(&body).ok_or(Refused)?;
        if header.kind == kind::HELLO {
            if number < 2 {
                return Err(Refused);
            }
            self.version = Some(number.min(VERSION));
        } else {
            // As a process's exit status: the low byte. Longer bodies are accepted.
            self.status = Some(number.to_le_bytes()[0]);
        }
        Ok(true)
    }

    /// Header and data separately, the header only when there is space for both.
    fn send_stdin(&mut self, ring: &mut dyn Ring) {
        if self.version.is_none() {
            return;
        }
        while !self.stdin.is_empty() {
            let room = ring.space().saturating_sub(HEADER_LEN);
            let len = self.stdin.len().min(self.limit()).min(room);
            if len == 0 {
                return;
            }
            let data: Vec<u8> = self.stdin.drain(..len).collect();
            let _ = ring.write(&wire::header(kind::STDIN, len));
            let _ = ring.write(&data);
        }
        if self.is_stdin_closed && !self.is_stdin_end_sent && ring.space() >= HEADER_LEN {
            self.is_stdin_end_sent = true;
            let _ = ring.write(&wire::header(kind::STDIN, 0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dom0::hex;
    use crate::dom0::ring::fake::FakeRing;

    const HELLO_3: &str = "0003000004000000 03000000";

    fn started(stdin: &[u8], hello: &str) -> (Call, FakeRing) {
        let mut call = Call::default();
        let mut ring = FakeRing::new(65536);
        call.push_stdin(stdin);
        call.close_stdin();
        assert_eq!(call.on_event(&mut ring), State::Running);
        assert!(ring.writes.is_empty(), "nothing before the agent has connected");
        ring.vm_connects();
        assert_eq!(call.on_event(&mut ring), State::Running);
        assert_eq!(hex::encode(&ring.vm_reads_all()), "000300000400000004000000");
        ring.vm_writes(&hex::decode(hello).unwrap());
        assert_eq!(call.on_event(&mut ring), State::Running);
        ring.writes.clear();
        (call, ring)
    }

    #[test]
    fn exec_cmdline_as_recorded() {
        let (mut call, mut ring) = started(b"in put", HELLO_3);
        assert_eq!(
            hex::encode(&ring.vm_reads_all()),
            "9001000006000000696e207075749001000000000000"
        );
        for digits in [
            "91010000 06000000 68656c6c6f0a",
            "92010000 05000000 7761726e0a",
            "91010000 00000000",
            "92010000 00000000",
            "93010000 04000000 07000000",
        ] {
            ring.vm_writes(&hex::decode(digits).unwrap());
        }
        // The agent closes right after its last write; everything is read all the same.
        ring.vm_closes();
        assert_eq!(call.on_event(&mut ring), State::Ended(7));
        assert_eq!(
            (call.stdout.as_slice(), call.stderr.as_slice()),
            (&b"hello\n"[..], &b"warn\n"[..])
        );
        assert_eq!(call.remarks, "");
    }

    #[test]
    fn ends_of_a_call_as_the_caller_sees_them() {
        let hello = "68656c6c6f0a";
        let complete = format!(
            "91010000 06000000 {hello} 92010000 05000000 7761726e0a 91010000 00000000 92010000 00000000 93010000 04000000 07000000"
        );
        for (said, status, output) in [
            ("93010000 04000000 7f000000", 127, ""),
            ("", 255, ""),
            ("91010000 01000000 61 93010000 04000000 00000000", 0, "a"),
            (complete.as_str(), 7, "hello\n"),
            ("ff010000 00000000", 1, ""),
            ("93010000 08000000 00000000 00000000", 0, ""),
            ("91010000 01000100", 1, ""),
        ] {
            let (mut call, mut ring) = started(b"x", HELLO_3);
            ring.vm_writes(&hex::decode(said).unwrap());
            ring.vm_closes();
            assert_eq!(call.on_event(&mut ring), State::Ended(status), "{said}");
            assert_eq!(call.stdout, output.as_bytes(), "{said}");
            assert_eq!(call.remarks.contains("closed early"), status != 0 && status != 7, "{said}");
        }
    }

    #[test]
    fn exit_code_counts_at_once_while_input_is_open() {
        let mut call = Call::default();
        let mut ring = FakeRing::new(65536);
        ring.vm_connects();
        ring.vm_writes(&hex::decode(HELLO_3).unwrap());
        assert_eq!(call.on_event(&mut ring), State::Running);
        ring.vm_writes(&hex::decode("93010000 04000000 05000000").unwrap());
        assert_eq!(call.on_event(&mut ring), State::Ended(5));
    }

    #[test]
    fn first_message_must_be_a_hello_and_only_the_first() {
        for said in [
            "91010000 00000000",
            "00030000 08000000 03000000 00000000",
            "00030000 04000000 01000000",
        ] {
            let mut call = Call::default();
            let mut ring = FakeRing::new(65536);
            ring.vm_connects();
            ring.vm_writes(&hex::decode(said).unwrap());
            assert_eq!(call.on_event(&mut ring), State::Ended(FAULT), "{said}");
        }
        let (mut call, mut ring) = started(b"", HELLO_3);
        ring.vm_writes(&hex::decode(HELLO_3).unwrap());
        assert_eq!(call.on_event(&mut ring), State::Ended(FAULT));
    }

    /// 200000 bytes: as large as the free space in version 3, 4096 in version 2.
    #[test]
    fn chunks_of_standard_input() {
        for (hello, expected) in [
            (HELLO_3, vec![65528, 65528, 65528, 3416]),
            ("0003000004000000 02000000", [vec![4096; 48], vec![3392]].concat()),
        ] {
            let (mut call, mut ring) = started(&[b'i'; 200_000], hello);
            let (mut stream, mut lens) = (Vec::new(), Vec::new());
            loop {
                let bytes = ring.vm_reads_all();
                if bytes.is_empty() {
                    break;
                }
                stream.extend(bytes);
                call.on_event(&mut ring);
            }
            let mut rest = stream.as_slice();
            while let Some((header, body)) = rest.split_at_checked(8) {
                let header = Header::decode(header).unwrap();
                assert_eq!(header.kind, kind::STDIN);
                lens.push(header.len as usize);
                rest = &body[header.len as usize..];
            }
            assert_eq!(lens.pop(), Some(0), "the end");
            // Version 2 stops at the end of the ring and then goes on, so its chunks are not all whole.
            assert_eq!(lens.iter().sum::<usize>(), 200_000);
            assert!(lens.iter().all(|len| *len <= *expected.iter().max().unwrap()));
            assert_eq!(lens.first(), expected.first());
        }
    }

    #[test]
    fn output_that_comes_in_pieces_is_passed_on() {
        let (mut call, mut ring) = started(b"", HELLO_3);
        ring.vm_writes(&hex::decode("91010000 06000000 6865").unwrap());
        assert_eq!(call.on_event(&mut ring), State::Running);
        assert_eq!(std::mem::take(&mut call.stdout), b"he");
        ring.vm_writes(&hex::decode("6c6c6f0a 9301").unwrap());
        assert_eq!(call.on_event(&mut ring), State::Running);
        ring.vm_writes(&hex::decode("0000 04000000 00000000").unwrap());
        assert_eq!(call.on_event(&mut ring), State::Ended(0));
        assert_eq!(call.stdout, b"llo\n");
    }
}
