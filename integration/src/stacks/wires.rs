//! A thread that is the firewall between two TAP devices, and the cable between two others.

use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time;

use firewall::uplink::UplinkPort;
use firewall::{ClientId, Fate, Firewall, Frame, Instant, Mac, Offload, Origin, PortCaps, PortId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::plan::UPLINK_MAC;
use crate::error::{Attempt, Result};
use crate::fail;
use crate::netns::{read_frame, write_frame};

/// The only client.
pub(super) const CLIENT: ClientId = ClientId(0);
/// Room for a frame with the largest datagram.
const PAGE: usize = 66_000;
/// Longest sleep, so that a request to stop is heard.
const SLEEP: time::Duration = time::Duration::from_millis(20);
const PATIENCE: time::Duration = time::Duration::from_secs(1);

/// The TAP devices: what is written to one arrives in its stack.
pub(super) struct Taps {
    pub(super) client: File,
    pub(super) uplink: File,
    /// The router's end of the cable to the server.
    pub(super) near: File,
    /// The server's end.
    pub(super) far: File,
}

/// The firewall and its clock.
pub(super) struct Core {
    pub(super) firewall: Firewall,
    begun: time::Instant,
    /// Frames that were dropped, the last ones with their reasons.
    drops: Vec<String>,
}

impl Core {
    pub(super) fn new(firewall: Firewall) -> Self {
        Self { firewall, begun: time::Instant::now(), drops: Vec::new() }
    }

    pub(super) fn now(&self) -> Instant {
        // The clock of a guest does not begin at zero.
        let elapsed = self.begun.elapsed() + PATIENCE;
        Instant::from_nanos(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX))
    }

    /// The uplink with packets of at most `mtu` bytes.
    pub(super) fn set_uplink(&mut self, mtu: u16) {
        let caps = PortCaps { mtu, ..PortCaps::PLAIN };
        let now = self.now();
        self.firewall.set_uplink(now, Some(UplinkPort { mac: Mac(UPLINK_MAC), caps }));
    }

    /// What was dropped last.
    pub(super) fn last_drops(&self) -> String {
        let skipped = self.drops.len().saturating_sub(8);
        self.drops.iter().skip(skipped).map(String::as_str).collect::<Vec<_>>().join(", ")
    }

    fn frame(&mut self, taps: &Taps, origin: Origin, bytes: &[u8], page: &mut [u8]) -> Result<()> {
        let now = self.now();
        if let Some(place) = page.get_mut(..bytes.len()) {
            place.copy_from_slice(bytes);
        }
        let Some(mut frame) = Frame::new(page, bytes.len(), Offload::default()) else {
            return Ok(());
        };
        match self.firewall.handle(now, origin, &mut frame) {
            Fate::Send(port) => write_frame(taps.of(port), frame.bytes())?,
            Fate::Drop(reason) => self.drops.push(format!("{reason:?}")),
            Fate::Consumed => {}
            Fate::Segments(_) => fail!("no super-frame came in, and one is to leave"),
        }
        if self.firewall.stats().without_accept() > 0 {
            fail!("a frame was about to leave without an accept");
        }
        self.own_frames(taps, page)
    }

    /// Pieces of what came, and what the firewall says by itself.
    fn own_frames(&mut self, taps: &Taps, page: &mut [u8]) -> Result<()> {
        loop {
            let now = self.now();
            let Some(mut frame) = Frame::new(page, 0, Offload::default()) else { return Ok(()) };
            let Some(port) = self.firewall.poll_generate(now, &mut frame) else { return Ok(()) };
            write_frame(taps.of(port), frame.bytes())?;
        }
    }

    fn timer(&mut self, taps: &Taps, page: &mut [u8]) -> Result<()> {
        let now = self.now();
        if self.firewall.next_deadline().is_some_and(|deadline| deadline <= now) {
            self.firewall.on_timer(now);
        }
        self.own_frames(taps, page)
    }
}

impl Taps {
    fn of(&self, port: PortId) -> &File {
        match port {
            PortId::Uplink => &self.uplink,
            PortId::Client(_) => &self.client,
        }
    }

    fn wait(&self) {
        let files = [&self.client, &self.uplink, &self.near, &self.far];
        let mut ready = files.map(|file| PollFd::new(file, PollFlags::IN));
        let limit = Timespec { tv_sec: 0, tv_nsec: i64::from(SLEEP.subsec_nanos()) };
        // Interrupted or not: the next round looks at every device.
        let _ = poll(&mut ready, Some(&limit));
    }
}

/// The running thread; it ends when this is dropped.
pub(super) struct Wires {
    core: Arc<Mutex<Core>>,
    is_over: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<Result<()>>>,
}

impl Wires {
    /// Puts the firewall between the stacks.
    pub(super) fn start(core: Core, taps: Taps) -> Result<Self> {
        let core = Arc::new(Mutex::new(core));
        let is_over = Arc::new(AtomicBool::new(false));
        let (shared, stop) = (Arc::clone(&core), Arc::clone(&is_over));
        let thread = thread::Builder::new().name("wires".into());
        let thread = thread.spawn(move || forward(&shared, &taps, &stop));
        let thread = Some(thread.doing(|| "cannot start a thread")?);
        Ok(Self { core, is_over, thread })
    }

    /// The firewall, while no frame is in it.
    pub(super) fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the thread has ended, which it does by itself only when something broke.
    pub(super) fn is_broken(&self) -> bool {
        self.thread.as_ref().is_none_or(thread::JoinHandle::is_finished)
    }
}

impl Drop for Wires {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn forward(core: &Mutex<Core>, taps: &Taps, is_over: &AtomicBool) -> Result<()> {
    let (mut page, mut buffer) = (vec![0; PAGE], vec![0; PAGE]);
    while !is_over.load(Ordering::Relaxed) {
        taps.wait();
        let mut core = core.lock().unwrap_or_else(PoisonError::into_inner);
        for origin in [Origin::Client(CLIENT), Origin::Uplink] {
            while let Some(bytes) = read_frame(taps.of(origin.into()), &mut buffer)? {
                core.frame(taps, origin, bytes, &mut page)?;
            }
        }
        core.timer(taps, &mut page)?;
        drop(core);
        for (from, to) in [(&taps.near, &taps.far), (&taps.far, &taps.near)] {
            while let Some(bytes) = read_frame(from, &mut buffer)? {
                write_frame(to, bytes)?;
            }
        }
    }
    Ok(())
}
