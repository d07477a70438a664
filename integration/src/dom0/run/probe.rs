//! The VM's side of QubesDB, as plainly as possible: replays recorded rows from a Linux guest against the daemon
//! that runs in dom0 (this one or the real one), or plays a VM that takes updates.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::args::Args;
use super::clock::{self, SharedHypervisor, XenClock};
use super::link::VchanLink;
use super::qubesdb::{PORT, directory};
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result};
use crate::dom0::hex;
use crate::dom0::qdb::rows::{self, After, Row, Step, message};
use crate::dom0::qdb::wire::{HEADER_LEN, Header, kind};
use crate::dom0::ring::{self, Link, Ring};

/// For an answer, and for silence.
const ANSWER: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);

/// The command `probe-qubesdb`.
pub(crate) fn run(args: &Args) -> Result {
    if args.has("list") {
        for row in rows::all().iter().filter(|row| row.is_for_probe()) {
            println!("{} {}", row.name, expected_code(row));
        }
        return Ok(());
    }
    let mut probe = Probe::new(args)?;
    if let Some(name) = args.get("row") {
        let rows = rows::all();
        let row = rows.iter().find(|row| row.name == name && row.is_for_probe());
        return probe.replay(row.ok_or_else(|| Failure::Usage(format!("no row {name}")))?);
    }
    if args.has("dump") {
        return probe.print_dump();
    }
    if let Some(seconds) = args.number("sleep")? {
        return probe.sleep(Duration::from_secs(seconds.into()));
    }
    match args.number("serve")? {
        Some(seconds) => probe.serve(Duration::from_secs(seconds.into())),
        None => Err(Failure::Usage("probe-qubesdb: what?".into())),
    }
}

fn expected_code(row: &Row) -> u8 {
    match row.after {
        After::Exits(code) => code,
        After::Alive | After::Announces => 0,
    }
}

struct Probe {
    hypervisor: SharedHypervisor,
    xenstore: Xenstore,
    server: u32,
    path: String,
    link: Option<VchanLink>,
}

impl Probe {
    fn new(args: &Args) -> Result<Self> {
        let server = args.number("server-domid")?.unwrap_or(0);
        let path = format!("{}/{PORT}", directory(server, args.needed_number("domid")?));
        let (hypervisor, xenstore) = (clock::open()?, Xenstore::open()?);
        let mut probe = Self { hypervisor, xenstore, server, path, link: None };
        probe.connect()?;
        Ok(probe)
    }

    fn connect(&mut self) -> Result {
        self.await_announcement(ANSWER)?;
        let deadline = Instant::now() + ANSWER;
        loop {
            match VchanLink::client(&self.hypervisor, self.server, &self.path) {
                Ok(link) => {
                    self.link = Some(link);
                    return Ok(());
                }
                Err(error) if Instant::now() > deadline => {
                    return Err(Failure::Failed(format!("cannot connect: {error}")));
                }
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        }
    }

    fn await_announcement(&self, patience: Duration) -> Result {
        let deadline = Instant::now() + patience;
        while !self.xenstore.is_announced(&self.path) {
            if Instant::now() > deadline {
                return Err(Failure::Failed("nothing is announced".into()));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn link(&mut self) -> Result<&mut VchanLink> {
        self.link.as_mut().ok_or_else(|| Failure::Failed("no link".into()))
    }

    /// Reads until `len` bytes are there or the time is over.
    fn receive(&mut self, len: usize, patience: Duration) -> Result<Vec<u8>> {
        let link = self.link()?;
        let deadline = Instant::now() + patience;
        let mut bytes = Vec::new();
        while bytes.len() < len {
            let ready = link.data_ready().min(len - bytes.len());
            if let (1.., Ok(Some(piece))) = (ready, ring::read_exactly(link, ready)) {
                bytes.extend(piece);
                continue;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            wait(link, left.min(Duration::from_millis(100)));
        }
        Ok(bytes)
    }

    fn send(&mut self, bytes: &[u8]) -> Result {
        match self.link()?.write(bytes) {
            Ok(n) if n == bytes.len() => Ok(()),
            other => Err(Failure::Failed(format!("wrote {other:?} of {} bytes", bytes.len()))),
        }
    }

    fn replay(&mut self, row: &Row) -> Result {
        for step in &row.steps {
            match step {
                Step::Send(bytes) => self.send(bytes)?,
                Step::Receive(expected) => {
                    let got = self.receive(expected.len(), ANSWER)?;
                    if got != *expected {
                        let (got, expected) = (hex::encode(&got), hex::encode(expected));
                        return Err(Failure::Failed(format!(
                            "{}: got {got}, not {expected}",
                            row.name
                        )));
                    }
                }
                Step::Silence => {
                    let got = self.receive(1, SILENCE)?;
                    if !got.is_empty() {
                        return Err(Failure::Failed(format!(
                            "{}: something came instead of silence",
                            row.name
                        )));
                    }
                }
                Step::Close => self.link = None,
                Step::Dom0Writes(..) => return Err(Failure::Usage("not for the probe".into())),
            }
        }
        self.check_after(row)?;
        println!("{}: as recorded", row.name);
        Ok(())
    }

    fn check_after(&mut self, row: &Row) -> Result {
        let wrong = |what: &str| Err(Failure::Failed(format!("{}: {what}", row.name)));
        match row.after {
            After::Alive => {
                self.send(&message(kind::WRITE, b"/probe", b"alive"))?;
                let answer = message(kind::RESP_OK, b"/probe", b"");
                if self.receive(HEADER_LEN, ANSWER)? != answer {
                    return wrong("the server does not answer afterwards");
                }
            }
            After::Announces => {
                self.connect()?;
                self.send(&message(kind::MULTIREAD, b"", b""))?;
                if self.receive(rows::dump().len(), ANSWER)? != rows::dump() {
                    return wrong("another dump after the new announcement");
                }
            }
            After::Exits(_) => {
                let deadline = Instant::now() + Duration::from_secs(2);
                while Instant::now() < deadline {
                    if let Some(link) = &mut self.link
                        && link.link() == Link::Closed
                    {
                        self.link = None;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                if self.link.is_some() {
                    return wrong("the server has not ended");
                }
                if self.xenstore.is_announced(&self.path) {
                    return wrong("the server has announced a new link");
                }
            }
        }
        Ok(())
    }

    fn synchronise(&mut self) -> Result<Vec<(Header, Vec<u8>)>> {
        self.send(&message(kind::MULTIREAD, b"", b""))?;
        let mut entries = Vec::new();
        loop {
            let (header, value) =
                self.message(ANSWER)?.ok_or_else(|| Failure::Failed("no dump".into()))?;
            if header.name().is_empty() {
                return Ok(entries);
            }
            entries.push((header, value));
        }
    }

    fn message(&mut self, patience: Duration) -> Result<Option<(Header, Vec<u8>)>> {
        let Some(header) = Header::decode(&self.receive(HEADER_LEN, patience)?) else {
            return Ok(None);
        };
        let value = self.receive(header.data_len as usize, ANSWER)?;
        Ok(Some((header, value)))
    }

    fn print_dump(&mut self) -> Result {
        for (header, value) in self.synchronise()? {
            println!(
                "{} = {}",
                String::from_utf8_lossy(header.name()),
                String::from_utf8_lossy(&value)
            );
        }
        Ok(())
    }

    /// Does not read for a while after the dump, then reads everything and counts.
    fn sleep(&mut self, time: Duration) -> Result {
        self.synchronise()?;
        println!("synchronised");
        std::thread::sleep(time);
        let ready = self.link()?.data_ready();
        let (mut messages, mut bytes) = (0, 0);
        while let Some((header, value)) = self.message(Duration::from_secs(1))? {
            messages += 1;
            bytes += HEADER_LEN + value.len();
            if !header.name().starts_with(b"/") || value.len() != header.data_len as usize {
                return Err(Failure::Failed("the stream has broken".into()));
            }
        }
        println!("ring held {ready} bytes; {messages} messages, {bytes} bytes in all");
        Ok(())
    }

    /// Answers every command; on a commit mark writes the handled counter. Prints what comes, with the time.
    fn serve(&mut self, time: Duration) -> Result {
        let mut clock = XenClock::new(self.hypervisor.clone())?;
        let entries = self.synchronise()?;
        let (now_ns, error_ns) = clock.read().doing("Xen's clock")?;
        println!(
            "synchronised {} entries at {now_ns}, clock error at most {error_ns} ns",
            entries.len()
        );
        let deadline = Instant::now() + time;
        let mut handled = 0;
        while Instant::now() < deadline {
            let Some((header, _)) = self.message(Duration::from_millis(200))? else { continue };
            let now_ns = clock.now_ns();
            let path = String::from_utf8_lossy(header.name()).into_owned();
            println!("{now_ns} {} {path}", kind::name(header.kind));
            if !matches!(header.kind, kind::WRITE | kind::RM) {
                continue;
            }
            self.send(&header.answer(kind::RESP_OK).encode())?;
            if let Some(ip) = path.strip_prefix("/qubes-firewall/").filter(|ip| !ip.contains('/')) {
                handled += 1;
                let key = format!("/qubes-firewall-handled/{ip}");
                self.send(&message(kind::WRITE, key.as_bytes(), handled.to_string().as_bytes()))?;
            }
        }
        Ok(())
    }
}

/// Waits for an event of the link.
pub(crate) fn wait(link: &mut VchanLink, patience: Duration) {
    let timeout = Timespec::try_from(patience).ok();
    let has_event = {
        let mut fds = [PollFd::new(&*link, PollFlags::IN)];
        poll(&mut fds, timeout.as_ref()).is_ok_and(|n| n > 0)
    };
    if has_event {
        link.take_event();
    }
}
