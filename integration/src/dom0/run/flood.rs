//! Many calls at once from one process: as many callers as dom0 can have, without a process for each.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::{Value, json};

use super::args::Args;
use super::clock::{self, SharedHypervisor};
use super::lines::ask;
use super::link::VchanLink;
use super::qubesdb::directory;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result};
use crate::dom0::qrexec::call::{Call, State};
use crate::dom0::qrexec::control::FIRST_PORT;
use crate::dom0::ring::{Link, Ring};

/// Size of both rings, bytes: small ones, for an emulated dom0 takes seconds to share the pages of a usual caller's.
const RING_LEN: usize = 4096;
/// How often the callers are looked at when nothing happens.
const TICK: Duration = Duration::from_millis(200);
/// For connections that the firewall makes at once, and for the end of a single call.
const STALL: Duration = Duration::from_secs(15);
/// How a call ended that was answered.
const ANSWER: &str = "answer";

/// A caller.
struct Caller {
    call: Call,
    link: VchanLink,
    port: u32,
    is_announced: bool,
}

/// The way to the firewall.
struct Dom0 {
    socket: String,
    domid: u32,
    parent: String,
    hypervisor: SharedHypervisor,
    xenstore: Xenstore,
}

/// The command `flood`: callers who stop, then so many calls at once. Prints how the calls ended; with callers who stop
/// also after how many seconds another call was answered beside them.
pub(crate) fn run(args: &Args) -> Result {
    let command = format!("DEFAULT:{}", args.at(0, "COMMAND")?);
    let patience = Duration::from_secs(args.needed_number("seconds")?.into());
    let domid = args.needed_number("domid")?;
    let dom0 = Dom0 {
        socket: args.needed("socket")?.to_owned(),
        domid,
        parent: directory(0, domid),
        hypervisor: clock::open()?,
        xenstore: Xenstore::open()?,
    };
    // The channels are there before the calls, so that all of these are under way at the same time. The daemon gives out
    // its ports from the first one on.
    let (stalled, calls) = (args.number("stalled")?.unwrap_or(0), args.needed_number("calls")?);
    let ports = FIRST_PORT..FIRST_PORT + stalled + calls;
    let mut callers = ports.map(|port| dom0.caller(port)).collect::<Result<Vec<_>>>()?;
    let mut others = callers.split_off(stalled as usize);
    let stopped_at = Instant::now();
    dom0.stall(&mut callers, args.get("stall").unwrap_or_default())?;
    dom0.call(&command, &others)?;
    let mut ends = dom0.ends(&mut others, patience);
    for caller in others {
        let how = if caller.is_announced { "nobody connected" } else { "connected, no end" };
        *ends.entry(how.to_owned()).or_default() += 1;
    }
    let mut told = json!({"ends": ends});
    if stalled > 0
        && let Some(object) = told.as_object_mut()
    {
        object
            .insert("free_after_s".into(), json!(dom0.until_free(&command, stopped_at, patience)?));
    }
    println!("{told}");
    Ok(())
}

impl Dom0 {
    /// Serves the channel of a call to come.
    fn caller(&self, port: u32) -> Result<Caller> {
        let path = format!("{}/{port}", self.parent);
        let link = VchanLink::server(&self.hypervisor, self.domid, &path, RING_LEN)
            .doing("cannot serve a data channel")?;
        Ok(Caller { call: Call::default(), link, port, is_announced: true })
    }

    fn ask(&self, command: &str, count: usize) -> Result<Vec<u64>> {
        let request = json!({"cmd": "calls", "command": command, "count": count});
        let answer = ask(&self.socket, &request)?;
        match answer.get("ports").and_then(Value::as_array) {
            Some(ports) => Ok(ports.iter().filter_map(Value::as_u64).collect()),
            None => Err(Failure::Failed(format!("no ports: {answer}"))),
        }
    }

    /// Makes the calls whose channels are served.
    fn call(&self, command: &str, callers: &[Caller]) -> Result {
        let ports = self.ask(command, callers.len())?;
        if !ports.iter().copied().eq(callers.iter().map(|caller| u64::from(caller.port))) {
            return Err(Failure::Failed(format!("not the ports that are served: {ports:?}")));
        }
        Ok(())
    }

    /// Makes calls whose callers say nothing and read nothing any more once they are connected.
    fn stall(&self, callers: &mut [Caller], command: &str) -> Result {
        if callers.is_empty() {
            return Ok(());
        }
        self.call(&format!("DEFAULT:{command}"), callers)?;
        let begun = Instant::now();
        while callers.iter().any(|caller| caller.is_announced) {
            if begun.elapsed() > STALL {
                return Err(Failure::Failed("nobody connects to those who are to stop".into()));
            }
            for caller in callers.iter_mut().filter(|caller| caller.is_announced) {
                if let Some(end) = caller.turn(&self.xenstore, &self.parent) {
                    return Err(Failure::Failed(format!("one that was to stop ended: {end}")));
                }
            }
            wait(callers);
        }
        Ok(())
    }

    /// Serves callers to their ends, or until the time is over.
    fn ends(&self, callers: &mut Vec<Caller>, patience: Duration) -> BTreeMap<String, u32> {
        let begun = Instant::now();
        let mut ends = BTreeMap::new();
        callers.iter_mut().for_each(|caller| caller.call.close_stdin());
        while !callers.is_empty() && begun.elapsed() < patience {
            callers.retain_mut(|caller| match caller.turn(&self.xenstore, &self.parent) {
                None => true,
                Some(end) => {
                    *ends.entry(end).or_default() += 1;
                    false
                }
            });
            wait(callers);
        }
        ends
    }

    /// One call after the other until one is answered: seconds since `begun`.
    fn until_free(&self, command: &str, begun: Instant, patience: Duration) -> Result<f32> {
        while begun.elapsed() < patience {
            let ports = self.ask(command, 1)?;
            let port = ports.first().and_then(|port| u32::try_from(*port).ok());
            let Some(port) = port else { return Err(Failure::Failed("no port".into())) };
            let mut callers = vec![self.caller(port)?];
            if self.ends(&mut callers, STALL).contains_key(ANSWER) {
                return Ok(begun.elapsed().as_secs_f32());
            }
            std::thread::sleep(TICK);
        }
        Err(Failure::Failed("callers who stop keep their places".into()))
    }
}

impl Caller {
    /// Serves it; how it ended, if it has: `answer`, or the exit status and what was said on the error output.
    fn turn(&mut self, xenstore: &Xenstore, parent: &str) -> Option<String> {
        let state = self.call.on_event(&mut self.link);
        if self.is_announced && self.link.link() != Link::Waiting {
            self.is_announced = false;
            let _ = xenstore.remove_announcement(parent, self.port);
        }
        let State::Ended(status) = state else { return None };
        let said = String::from_utf8_lossy(&self.call.stderr);
        Some(match status {
            0 if !self.call.stdout.is_empty() => ANSWER.to_owned(),
            0 => "empty answer".to_owned(),
            status => format!("{status} {}", said.trim()),
        })
    }
}

/// Until one of them has an event.
fn wait(callers: &mut [Caller]) {
    let timeout = Timespec::try_from(TICK).ok();
    let ready: Vec<bool> = {
        let mut fds: Vec<_> =
            callers.iter().map(|caller| PollFd::new(&caller.link, PollFlags::IN)).collect();
        let _ = poll(&mut fds, timeout.as_ref());
        fds.iter().map(|fd| fd.revents().contains(PollFlags::IN)).collect()
    };
    for (caller, _) in callers.iter_mut().zip(ready).filter(|(_, is_ready)| *is_ready) {
        caller.link.take_event();
    }
}
