//! The process of a QubesDB server: link, xenstore nodes, local socket, log.

use std::cell::RefCell;
use std::fs::{self, File};
use std::io::Write;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::Value;

use super::args::Args;
use super::clock::{self, SharedHypervisor, XenClock};
use super::lines::Lines;
use super::link::VchanLink;
use super::xenstore::Xenstore;
use super::{Attempt, Failure, Result, db, process};
use crate::dom0::exit::Exit;
use crate::dom0::keys::Op;
use crate::dom0::qdb::control::{self, Condition, Outcome};
use crate::dom0::qdb::event::Event;
use crate::dom0::qdb::server::{Next, Server};
use crate::dom0::ring::{Link, Ring};

/// Port and smallest ring size (bytes) of a QubesDB link.
pub(crate) const PORT: u32 = 111;
pub(crate) const RING_LEN: usize = 4096;
/// How often a quiet link is looked at.
const TICK: Duration = Duration::from_secs(10);
/// How long the server of a dead domain waits for a client before it ends.
const GRIEF: Duration = Duration::from_secs(70);
/// Exit code when the domain is gone.
const DOMAIN_GONE: u8 = 3;

/// Somebody at the local socket who waits for something.
struct Waiter {
    id: u64,
    condition: Condition,
    deadline: Instant,
}

struct Daemon {
    domid: u32,
    socket: String,
    hypervisor: SharedHypervisor,
    clock: Rc<RefCell<XenClock>>,
    xenstore: Xenstore,
    server: Server,
    /// `None` only between the close of a link and the announcement of the next.
    link: Option<VchanLink>,
    is_announced: bool,
    lines: Lines,
    waiters: Vec<Waiter>,
    log: File,
    logged: u64,
    next_tick: Instant,
    gone_since: Option<Instant>,
}

/// The command `qubesdb`.
pub(crate) fn run(args: &Args) -> Result {
    let socket = args.needed("socket")?.to_owned();
    let domid = args.needed_number("domid")?;
    if args.has("detach") {
        process::detach(&socket, Duration::from_secs(30))?;
    }
    process::forget_end(&socket);
    let hypervisor = clock::open()?;
    let clock = Rc::new(RefCell::new(XenClock::of_daemon(hypervisor.clone())?));
    let teller = clock.clone();
    let mut server = Server::new(Box::new(move || teller.borrow_mut().now_ns()));
    if let Some(file) = args.get("load") {
        load(&mut server, file)?;
    }
    if let Some(file) = args.get("vm") {
        for op in db::description(file)?.start() {
            // There is nothing yet that could be removed.
            if let Op::Write(key, value) = op {
                server.local_write(None, key.as_bytes(), value.as_bytes()).doing(&key)?;
            }
        }
    }
    let log = args.get("log").map_or_else(|| format!("{socket}.log"), str::to_owned);
    let log = File::create(&log).doing(&log)?;
    if let Some(gate) = args.get("gate") {
        // Until somebody has opened it for writing, and closed it: then there is the domain.
        fs::read(gate).doing(gate)?;
    }
    let link = Some(announce(&hypervisor, domid)?);
    server.note(Event::Announced);
    let xenstore = Xenstore::open()?;
    let lines = Lines::bind(&socket)?;
    if let Some(wait) = args.number("unpause")? {
        thread::sleep(Duration::from_millis(wait.into()));
        // As `xl unpause` does, whose libraries take longer to load than all of this; Qubes has them loaded.
        hypervisor.borrow_mut().unpause(domid).doing("cannot let the domain run")?;
    }
    let mut daemon = Daemon {
        domid,
        socket,
        hypervisor,
        clock,
        xenstore,
        server,
        link,
        is_announced: true,
        lines,
        waiters: Vec::new(),
        log,
        logged: 0,
        next_tick: Instant::now() + TICK,
        gone_since: None,
    };
    loop {
        daemon.turn()?;
    }
}

fn announce(hypervisor: &SharedHypervisor, domid: u32) -> Result<VchanLink> {
    let path = format!("{}/{PORT}", directory(0, domid));
    VchanLink::server(hypervisor, domid, &path, RING_LEN).doing("cannot announce")
}

/// Where a server domain announces its links to a client domain.
pub(crate) fn directory(server: u32, client: u32) -> String {
    format!("/local/domain/{server}/data/vchan/{client}")
}

fn load(server: &mut Server, file: &str) -> Result {
    let value: Value = serde_json::from_slice(&fs::read(file).doing(file)?).doing(file)?;
    let entries =
        value.as_object().ok_or_else(|| Failure::Failed(format!("{file}: not an object")))?;
    for (key, value) in entries {
        let value =
            value.as_str().ok_or_else(|| Failure::Failed(format!("{file}: {key} is no string")))?;
        server.local_write(None, key.as_bytes(), value.as_bytes()).doing(key)?;
    }
    Ok(())
}

impl Daemon {
    /// One turn of the loop: serve the link, then the local socket, then wait.
    fn turn(&mut self) -> Result {
        if let Some(link) = &mut self.link {
            match self.server.on_event(link) {
                Ok(Next::Wait) => {}
                Ok(Next::Announce) => self.announce_again(),
                Err(exit) => self.end_as_the_real_one(exit),
            }
        }
        self.answer_waiters();
        self.write_log();
        let due = self.clock.borrow_mut().improve()?;
        self.wait(due);
        for (id, line) in self.lines.service() {
            self.serve(id, &line);
        }
        if Instant::now() >= self.next_tick {
            self.next_tick = Instant::now() + TICK;
            self.look_for_domain();
        }
        Ok(())
    }

    fn wait(&mut self, clock_due: Option<Instant>) {
        let deadlines = self.waiters.iter().map(|waiter| waiter.deadline).chain([self.next_tick]);
        let deadline = deadlines.min().unwrap_or(self.next_tick);
        let timeout = deadline.saturating_duration_since(Instant::now());
        let timeout = timeout + Duration::from_millis(1);
        let to_look = clock_due.map(|due| due.saturating_duration_since(Instant::now()));
        let timeout = to_look.map_or(timeout, |to_look| timeout.min(to_look));
        let timeout = Timespec::try_from(timeout).ok();
        let Some(link) = &mut self.link else { return };
        let has_event = {
            let mut fds = vec![PollFd::new(&*link, PollFlags::IN)];
            fds.extend(self.lines.poll_fds());
            let _ = poll(&mut fds, timeout.as_ref());
            fds.first().is_some_and(|fd| fd.revents().contains(PollFlags::IN))
        };
        if !has_event {
            return;
        }
        link.take_event();
        // As Qubes' library does at the first event after the connection.
        if self.is_announced && link.link() == Link::Open {
            self.is_announced = false;
            match self.xenstore.remove_announcement(&directory(0, self.domid), PORT) {
                Ok(()) => self.server.note(Event::NodesRemoved),
                Err(error) => eprintln!("dom0d: cannot remove the announcement: {error}"),
            }
        }
    }

    fn announce_again(&mut self) {
        // The close of the old link removes its nodes, so it must come first.
        self.link = None;
        match announce(&self.hypervisor, self.domid) {
            Ok(link) => {
                self.link = Some(link);
                self.is_announced = true;
                self.server.note(Event::Announced);
            }
            Err(Failure::Failed(text)) => self.end(DOMAIN_GONE, &text),
            Err(_) => self.end(DOMAIN_GONE, "cannot announce"),
        }
    }

    fn serve(&mut self, id: u64, line: &str) {
        let link = self.link.as_mut().map(|link| link as &mut dyn Ring);
        match control::handle(&mut self.server, link, line) {
            Outcome::Reply(value) => self.lines.reply(id, &value),
            Outcome::Wait(condition, timeout_ms) => {
                let deadline = Instant::now() + Duration::from_millis(timeout_ms);
                self.waiters.push(Waiter { id, condition, deadline });
            }
            Outcome::Quit => {
                self.lines.reply(id, &serde_json::json!({"ok": true}));
                self.end(0, "asked to");
            }
        }
    }

    fn answer_waiters(&mut self) {
        let now = Instant::now();
        for waiter in std::mem::take(&mut self.waiters) {
            match control::check(&self.server, &waiter.condition) {
                Some(answer) => self.lines.reply(waiter.id, &answer),
                None if waiter.deadline <= now => {
                    self.lines.reply(waiter.id, &control::timed_out())
                }
                None if self.lines.has(waiter.id) => self.waiters.push(waiter),
                None => {}
            }
        }
    }

    /// A server that waits for a client of a dead domain ends after a while.
    fn look_for_domain(&mut self) {
        let home = format!("/local/domain/{}", self.domid);
        if self.xenstore.exists(&home).unwrap_or(true) || !self.is_announced {
            self.gone_since = None;
            return;
        }
        let since = *self.gone_since.get_or_insert_with(Instant::now);
        if since.elapsed() > GRIEF {
            self.end(DOMAIN_GONE, "the domain is gone");
        }
    }

    fn write_log(&mut self) {
        for (number, event) in self.server.journal().after(self.logged) {
            self.logged = number;
            let _ = writeln!(self.log, "{event}");
        }
    }

    fn end_as_the_real_one(&mut self, exit: Exit) -> ! {
        self.server.note(Event::Fatal(exit.to_string()));
        self.end(exit.code(), &exit.to_string())
    }

    fn end(&mut self, code: u8, reason: &str) -> ! {
        self.write_log();
        process::end(&self.socket, code, reason)
    }
}
