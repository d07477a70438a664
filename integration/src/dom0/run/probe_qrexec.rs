//! A minimal qrexec agent in a Linux guest, to try the daemon and the caller: every call gets the same answer,
//! "hello" on its output, its input on the error output, exit code 7.

use std::time::{Duration, Instant};

use super::args::Args;
use super::clock::{self, SharedHypervisor};
use super::link::VchanLink;
use super::probe::wait;
use super::qubesdb::directory;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result};
use crate::dom0::qrexec::wire::{self, HEADER_LEN, Header, kind};
use crate::dom0::ring::{self, Link, Ring};

const CONTROL_PORT: u32 = 512;
const CONTROL_LEN: usize = 4096;
const PATIENCE: Duration = Duration::from_secs(10);

/// The command `probe-qrexec`.
pub(crate) fn run(args: &Args) -> Result {
    let domid = args.needed_number("domid")?;
    let deadline = Instant::now() + Duration::from_secs(args.needed_number("serve")?.into());
    let (hypervisor, xenstore) = (clock::open()?, Xenstore::open()?);
    let parent = directory(domid, 0);
    let path = format!("{parent}/{CONTROL_PORT}");
    let mut link =
        VchanLink::server(&hypervisor, 0, &path, CONTROL_LEN).doing("cannot announce")?;
    let mut is_connected = false;
    send(&mut link, kind::HELLO, &3u32.to_le_bytes())?;
    while Instant::now() < deadline {
        wait(&mut link, Duration::from_millis(100));
        match link.link() {
            Link::Waiting => continue,
            Link::Closed => return Err(Failure::Failed("the daemon has closed".into())),
            Link::Open if !is_connected => {
                is_connected = true;
                xenstore
                    .remove_announcement(&parent, CONTROL_PORT)
                    .doing("cannot remove the announcement")?;
            }
            Link::Open => {}
        }
        while let Some((kind, body)) = receive(&mut link)? {
            println!("{kind:#x} {}", String::from_utf8_lossy(body.get(8..).unwrap_or_default()));
            if matches!(kind, kind::EXEC_CMDLINE | kind::JUST_EXEC) {
                let target = body.get(..8).unwrap_or_default().to_vec();
                let (domain, port) =
                    wire::words(&target).ok_or_else(|| Failure::Failed("short call".into()))?;
                let result = answer_call(
                    &hypervisor,
                    domain,
                    &format!("{}/{port}", directory(domain, domid)),
                    kind,
                );
                send(&mut link, kind::CONNECTION_TERMINATED, &target)?;
                result?;
            }
        }
    }
    Ok(())
}

fn answer_call(hypervisor: &SharedHypervisor, domain: u32, path: &str, kind: u32) -> Result {
    let deadline = Instant::now() + PATIENCE;
    let mut link = loop {
        match VchanLink::client(hypervisor, domain, path) {
            Ok(link) => break link,
            Err(error) if Instant::now() > deadline => {
                return Err(Failure::Failed(format!("{path}: {error}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    };
    send(&mut link, kind::HELLO, &3u32.to_le_bytes())?;
    let mut input = Vec::new();
    loop {
        match next(&mut link)? {
            (kind::HELLO, _) => {}
            (kind::STDIN, data) if data.is_empty() => break,
            (kind::STDIN, data) => input.extend(data),
            (other, _) => {
                return Err(Failure::Failed(format!("message {other:#x} from the caller")));
            }
        }
    }
    println!("input of {} bytes", input.len());
    if kind == kind::JUST_EXEC {
        return send(&mut link, kind::EXIT_CODE, &[0; 4]);
    }
    send(&mut link, kind::STDOUT, b"hello\n")?;
    send(&mut link, kind::STDERR, input.get(..input.len().min(100)).unwrap_or_default())?;
    for end in [kind::STDOUT, kind::STDERR] {
        send(&mut link, end, b"")?;
    }
    send(&mut link, kind::EXIT_CODE, &7u32.to_le_bytes())
}

fn next(link: &mut VchanLink) -> Result<(u32, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(message) = receive(link)? {
            return Ok(message);
        }
        if link.link() == Link::Closed || Instant::now() > deadline {
            return Err(Failure::Failed("the caller has closed or says nothing".into()));
        }
        wait(link, Duration::from_millis(100));
    }
}

/// A message if its header is there; its body is waited for.
fn receive(link: &mut VchanLink) -> Result<Option<(u32, Vec<u8>)>> {
    let broken = |_| Failure::Failed("the link broke".into());
    let Some(header) = ring::read_exactly(link, HEADER_LEN).map_err(broken)? else {
        return Ok(None);
    };
    let Some(Header { kind, len }) = Header::decode(&header) else { return Ok(None) };
    let (mut body, deadline) = (Vec::new(), Instant::now() + PATIENCE);
    while body.len() < len as usize {
        let ready = link.data_ready().min(len as usize - body.len());
        match ring::read_exactly(link, ready).map_err(broken)? {
            Some(piece) if !piece.is_empty() => body.extend(piece),
            _ if Instant::now() > deadline => return Err(Failure::Failed("half a message".into())),
            _ => wait(link, Duration::from_millis(100)),
        }
    }
    Ok(Some((kind, body)))
}

fn send(link: &mut VchanLink, kind: u32, body: &[u8]) -> Result {
    for part in [wire::header(kind, body.len()).as_slice(), body] {
        if !part.is_empty() && link.write(part) != Ok(part.len()) {
            return Err(Failure::Failed("no space for an answer".into()));
        }
    }
    Ok(())
}
