//! A network frontend that connects as any other does and then breaks the rules of the ring, or of the event channel. It
//! is in dom0, whose user space can share pages; for the backend it is a client like any other.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

use super::args::Args;
use super::{Attempt, Failure, Result};
use crate::ffi::{EventChannel, SharedPage};

/// Words of a ring's page (Xen public io/ring.h): producer of requests, its event, producer of responses, its event; the
/// slots begin after 64 bytes.
const REQUESTS: usize = 0;
const FIRST_SLOT: usize = 16;
/// Slots of the transmit ring, of three words each (`struct netif_tx_request`, io/netif.h).
const SLOTS: u32 = 256;
const SLOT_WORDS: usize = 3;
/// Events at once, and the pause after them: dom0 has one processor, and more to do.
const BURST: u32 = 400;
const PAUSE: Duration = Duration::from_millis(2);
/// For the backend to reach a state.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two connections: a backend may take its time with one that was closed for its faults.
const BETWEEN: Duration = Duration::from_millis(200);

/// What it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The producer jumps by more than the ring has.
    Producer,
    /// Requests whose every word is noise.
    Requests,
    /// Events without end, and nothing to see for them.
    Events,
    /// Ring pages, event channel and features that are none.
    Settings,
}

impl Kind {
    fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "producer" => Self::Producer,
            "requests" => Self::Requests,
            "events" => Self::Events,
            "settings" => Self::Settings,
            _ => return Err(Failure::Usage(format!("no kind {name}"))),
        })
    }
}

/// The command `hostile`: what it did, as JSON.
pub(crate) fn run(args: &Args) -> Result {
    let kind = Kind::parse(args.needed("kind")?)?;
    let (domid, devid) = (args.needed_number("domid")?, args.needed_number("devid")?);
    let seconds = args.needed_number("seconds")?;
    let until = Instant::now() + Duration::from_secs(seconds.into());
    let mut noise = Noise(u64::from(domid) << 32 | 0x9e37_79b9);
    let (mut connections, mut closed, mut events) = (0_u64, 0_u64, 0_u64);
    while Instant::now() < until {
        let mut frontend = Frontend::connect(domid, devid, kind, &mut noise)?;
        connections += u64::from(frontend.is_connected);
        events += frontend.misbehave(kind, until, &mut noise)?;
        closed += u64::from(!frontend.is_served()?);
        frontend.remove()?;
        std::thread::sleep(BETWEEN);
    }
    println!(
        "{}",
        json!({"connections": connections, "closed_by_backend": closed, "events": events})
    );
    Ok(())
}

/// Numbers without a pattern: xorshift64*.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let product = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d);
        u32::try_from(product >> 32).unwrap_or_default()
    }
}

struct Frontend {
    transmit: SharedPage,
    /// Only there to be granted.
    receive: SharedPage,
    channel: EventChannel,
    front: String,
    back: String,
    produced: u32,
    is_connected: bool,
}

impl Frontend {
    /// Makes both directories as libxl does, and connects.
    fn connect(domid: u32, devid: u32, kind: Kind, noise: &mut Noise) -> Result<Self> {
        let transmit = SharedPage::new(domid).doing("cannot share the transmit ring")?;
        let receive = SharedPage::new(domid).doing("cannot share the receive ring")?;
        let channel = EventChannel::new(domid).doing("cannot make an event channel")?;
        let front = format!("/local/domain/0/device/vif/{devid}");
        let back = format!("/local/domain/{domid}/backend/vif/0/{devid}");
        for (path, owner, reader) in [(&back, domid, 0), (&front, 0, domid)] {
            tool("xenstore-write", &[path, ""])?;
            tool("xenstore-chmod", &[path, &format!("n{owner}"), &format!("r{reader}")])?;
        }
        write(
            &back,
            &[
                ("frontend", &front),
                ("frontend-id", "0"),
                ("handle", &devid.to_string()),
                ("mac", "00:16:3e:5e:6c:00"),
                ("ip", "10.137.200.200"),
                ("script", "vif-route-qubes"),
                ("type", "vif"),
                ("online", "1"),
                ("hotplug-status", ""),
            ],
        )?;
        write(
            &front,
            &[
                ("backend", &back),
                ("backend-id", &domid.to_string()),
                ("handle", &devid.to_string()),
                ("mac", "00:16:3e:5e:6c:00"),
                ("state", "1"),
            ],
        )?;
        write(&back, &[("state", "1")])?;
        let mut this =
            Self { transmit, receive, channel, front, back, produced: 0, is_connected: false };
        this.wait("2")?;
        let is_good = kind != Kind::Settings;
        let word =
            |good: u32, noise: &mut Noise| if is_good { good } else { noise.next() }.to_string();
        let rings = [this.transmit.reference(), this.receive.reference(), this.channel.port()];
        let [transmit, receive, port] = rings.map(|number| word(number, noise));
        let flag = if is_good { "1" } else { "-1" };
        write(
            &this.front,
            &[
                ("tx-ring-ref", &transmit),
                ("rx-ring-ref", &receive),
                ("event-channel", &port),
                ("request-rx-copy", "1"),
                ("feature-rx-notify", "1"),
                ("feature-sg", flag),
                ("feature-gso-tcpv4", "1"),
                ("state", "4"),
            ],
        )?;
        if is_good {
            this.wait("4")?;
            this.is_connected = true;
        }
        Ok(this)
    }

    /// Does what it is there for, until the backend has had enough, or the time is up; events sent.
    fn misbehave(&mut self, kind: Kind, until: Instant, noise: &mut Noise) -> Result<u64> {
        let mut events = 0;
        let begun = Instant::now();
        loop {
            match kind {
                Kind::Producer => {
                    let far = SLOTS + 1 + noise.next() % (u32::MAX - SLOTS);
                    self.transmit.write(REQUESTS, self.produced.wrapping_add(far));
                }
                Kind::Requests => self.request(noise),
                Kind::Events | Kind::Settings => {}
            }
            for _ in 0..BURST {
                events += u64::from(self.channel.notify());
            }
            std::thread::sleep(PAUSE);
            // To look costs dom0 a process: now and then.
            let is_over =
                Instant::now() > until || (kind == Kind::Settings && begun.elapsed() > BETWEEN);
            if is_over
                || (kind != Kind::Events
                    && events % 8000 < u64::from(BURST)
                    && !self.is_served()?)
            {
                return Ok(events);
            }
        }
    }

    /// As many requests as the ring takes, all noise; half of them with a reference that exists.
    fn request(&mut self, noise: &mut Noise) {
        for _ in 0..1 + noise.next() % SLOTS {
            let slot = usize::try_from(self.produced % SLOTS).unwrap_or_default();
            let at = FIRST_SLOT + slot * SLOT_WORDS;
            let reference = match noise.next() % 2 {
                0 => noise.next(),
                _ => self.transmit.reference(),
            };
            self.transmit.write(at, reference);
            self.transmit.write(at + 1, noise.next());
            self.transmit.write(at + 2, noise.next());
            self.produced = self.produced.wrapping_add(1);
        }
        self.transmit.write(REQUESTS, self.produced);
    }

    fn state(&self) -> Result<String> {
        tool("xenstore-read", &[&format!("{}/state", self.back)])
    }

    fn is_served(&self) -> Result<bool> {
        Ok(self.state()? == "4")
    }

    fn wait(&self, wanted: &str) -> Result {
        let begun = Instant::now();
        loop {
            let state = self.state()?;
            if state == wanted {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Failed(format!(
                    "the backend is in state {state:?}, not {wanted}"
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Removes the device as libxl does; the backend must remove its directory.
    fn remove(self) -> Result {
        write(&self.back, &[("online", "0"), ("state", "5")])?;
        write(&self.front, &[("state", "6")])?;
        let begun = Instant::now();
        while tool("xenstore-exists", &[&self.back]).is_ok() {
            if begun.elapsed() > PATIENCE {
                return Err(Failure::Failed(format!(
                    "{} stays, in state {:?}",
                    self.back,
                    self.state()
                )));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        tool("xenstore-rm", &[&self.front]).map(drop)
    }
}

/// Writes nodes below a directory, all at once.
fn write(directory: &str, nodes: &[(&str, &str)]) -> Result {
    let words: Vec<String> = nodes
        .iter()
        .flat_map(|(name, value)| [format!("{directory}/{name}"), (*value).to_owned()])
        .collect();
    // A value may look like an option.
    let words: Vec<&str> = ["--"].into_iter().chain(words.iter().map(String::as_str)).collect();
    tool("xenstore-write", &words).map(drop)
}

/// Runs a program of dom0; what it printed.
fn tool(name: &str, words: &[&str]) -> Result<String> {
    let output = Command::new(name)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .doing(&format!("cannot run {name}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::Failed(format!("{name} {}: {text}", words.join(" "))));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_names() {
        for name in ["producer", "requests", "events", "settings"] {
            assert!(Kind::parse(name).is_ok(), "{name}");
        }
        assert!(matches!(Kind::parse("kind"), Err(Failure::Usage(_))));
    }

    #[test]
    fn noise_does_not_repeat() {
        let mut noise = Noise(1);
        let mut seen: Vec<u32> = (0..1000).map(|_| noise.next()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert!(seen.len() > 990);
    }
}
