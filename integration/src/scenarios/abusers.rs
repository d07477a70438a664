//! Those who are in the way of others: what client C runs in its own domain, and a frontend that breaks the rules.

use serde_json::Value;

use super::abuse::{PATIENCE, WINDOW_S};
use super::steps::CAROL;
use crate::error::Result;
use crate::fail;
use crate::lab::dom0d;
use crate::lab::domain::Background;
use crate::lab::world::World;

/// Frames of a file that is sent again and again: 36 whole pings of [`PIECES`].
const FRAMES: u32 = 36 * PIECES;
/// Fragments of a ping, of [`PIECE_BYTES`] each: 60,680 bytes, of the 65,515 that IPv4 has room for.
const PIECES: u32 = 41;
const PIECE_BYTES: u16 = 1480;
/// Seconds for which a hostile frontend goes on: longer than it is looked at.
const ABUSE_S: u32 = WINDOW_S + 6;

/// What commands say that could not do what they are for.
const IN_VAIN: &str = "in vain";

/// What somebody does to the others.
pub(super) enum Abuse {
    /// Commands of client C.
    Client(Commands),
    /// A kind of `dom0d hostile`: a frontend that breaks the rules of the ring.
    Frontend(&'static str),
}

/// What client C runs: it ends when `/tmp/peace` is there.
pub(super) struct Commands {
    /// Made before, once.
    prepare: String,
    /// Run again and again.
    repeat: String,
    /// Ends what does not end by itself.
    stop: &'static str,
    /// Frames that the firewall must have taken from C in a turn; with fewer it was no abuse.
    least: u64,
}

/// An abuse that goes on.
pub(super) enum Running {
    /// With the frames of C that the firewall had taken before.
    Client(Background, u64),
    Frontend,
}

impl Abuse {
    pub(super) fn repeat(line: impl Into<String>, least: u64) -> Self {
        Self::Client(Commands { prepare: "true".into(), repeat: line.into(), stop: "true", least })
    }

    /// Frames made by awk, as hexadecimal digits, one a line, all `length` bytes long.
    pub(super) fn frames(program: &str, length: usize) -> Self {
        Self::Client(Commands {
            prepare: format!(
                "awk 'BEGIN {{ for (i = 0; i < {FRAMES}; i++) {{ {program} }} }}' | xxd -r -p >/tmp/frames"
            ),
            repeat: format!("socat -u -b {length} FILE:/tmp/frames INTERFACE:eth0"),
            stop: "true",
            least: FRAMES.into(),
        })
    }

    /// Linux' packet generator with these words.
    pub(super) fn packets(world: &World, words: &[&str]) -> Result<Self> {
        let own = world.client_ip(CAROL)?;
        let usual = [
            "count 0".to_owned(),
            "clone_skb 0".into(),
            format!("src_min {own}"),
            format!("src_max {own}"),
            format!("dst {}", world.plan.internet),
            "dst_mac fe:ff:ff:ff:ff:ff".into(),
        ];
        let words = usual.iter().map(String::as_str).chain(words.iter().copied());
        let words: Vec<String> = words.map(|word| format!("'{word}'")).collect();
        Ok(Self::Client(Commands {
            prepare: format!(
                "modprobe pktgen; echo rem_device_all >/proc/net/pktgen/kpktgend_0; \
                 echo add_device eth0 >/proc/net/pktgen/kpktgend_0; \
                 for word in {}; do echo \"$word\" >/proc/net/pktgen/eth0 || exit 1; done",
                words.join(" ")
            ),
            repeat: "echo start >/proc/net/pktgen/pgctrl".into(),
            stop: "echo stop >/proc/net/pktgen/pgctrl",
            least: FRAMES.into(),
        }))
    }

    pub(super) fn prepare(&self, world: &World) -> Result<()> {
        let Self::Client(Commands { prepare, .. }) = self else { return Ok(()) };
        let carol = world.client(CAROL)?;
        carol.exec_for(&world.lab, prepare, PATIENCE)?.ok("the abuse is prepared").map(drop)
    }

    pub(super) fn start(&self, world: &World) -> Result<Running> {
        match self {
            Self::Client(Commands { repeat, .. }) => {
                let taken = taken(world)?;
                let line = format!("rm -f /tmp/peace; until [ -e /tmp/peace ]; do {repeat}; done");
                world
                    .client(CAROL)?
                    .spawn(&world.lab, &line)
                    .map(|running| Running::Client(running, taken))
            }
            Self::Frontend(kind) => {
                let line = dom0d::hostile_line(world.firewall()?.domid, kind, ABUSE_S);
                world.lab.sh(&format!(
                    "rm -f /tmp/hostile.*; ({line} >/tmp/hostile.out 2>&1; echo $? >/tmp/hostile.rc) </dev/null >/dev/null 2>&1 &"
                ))?;
                Ok(Running::Frontend)
            }
        }
    }

    /// Ends it; what it has to say.
    pub(super) fn end(&self, world: &World, running: &Running) -> Result<String> {
        match (self, running) {
            (Self::Client(Commands { stop, least, .. }), Running::Client(running, before)) => {
                let carol = world.client(CAROL)?;
                let line =
                    format!("touch /tmp/peace; {stop}; killall socat ping 2>/dev/null; true");
                carol.exec_for(&world.lab, &line, PATIENCE)?;
                let said = running.finish(&world.lab, carol, PATIENCE)?.text;
                if said.contains(IN_VAIN) {
                    fail!("the abuse was none: {}", crate::command::last_lines(&said, 5));
                }
                let taken = taken(world)?.saturating_sub(*before);
                if taken < *least {
                    fail!(
                        "the abuse was none: {taken} frames of C: {}",
                        crate::command::last_lines(&said, 5)
                    );
                }
                Ok(format!("{taken} frames of C in the last turn"))
            }
            _ => {
                let line = "n=0; until [ -s /tmp/hostile.rc ]; do n=$((n + 1)); [ $n -lt 300 ] || exit 1; sleep 0.2; done; \
                            cat /tmp/hostile.out; exit $(cat /tmp/hostile.rc)";
                let said = world.lab.exec_for(line, PATIENCE)?.ok("the hostile frontend")?;
                let connected = !said.contains("\"connections\":0");
                if !connected && !matches!(self, Self::Frontend("settings")) {
                    fail!("the hostile frontend never connected: {said}");
                }
                Ok(said.trim().to_owned())
            }
        }
    }
}

/// Frames that the firewall has taken from C.
fn taken(world: &World) -> Result<u64> {
    let domid = u64::from(world.client(CAROL)?.domid);
    let out = world.dom0d()?.call(&world.lab, "QUBESRPC firewall.Stats+ dom0")?;
    let lines = out.text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let own = |line: &Value| line.get("domid").and_then(Value::as_u64) == Some(domid);
    let counts = lines
        .filter(own)
        .filter_map(|line| line.pointer("/counters/received-frames").and_then(Value::as_u64));
    let all: Vec<u64> = counts.collect();
    if all.is_empty() {
        fail!("firewall.Stats without domain {domid}: {}", out.text);
    }
    Ok(all.iter().sum())
}

/// An awk program that prints a link and an IPv4 header from C to the server, with the number `i` as the identification and
/// these flags and this offset of a fragment (RFC 791 3.1).
pub(super) fn ip_frame(world: &World, protocol: u8, length: u16, flags: u16) -> Result<String> {
    ip_frame_to(world, &world.plan.internet, protocol, length, flags)
}

pub(super) fn ip_frame_to(
    world: &World,
    to: &str,
    protocol: u8,
    length: u16,
    flags: u16,
) -> Result<String> {
    head(world, to, [protocol.into(), length], ["i", &flags.to_string()])
}

/// An awk program that prints the pieces of the largest pings to the server, one after the other.
pub(super) fn pieces_of_pings(world: &World) -> Result<(String, usize)> {
    let flags =
        format!("i % {PIECES} * {} + (i % {PIECES} < {} ? 8192 : 0)", PIECE_BYTES / 8, PIECES - 1);
    let number = format!("int(i / {PIECES})");
    let head = head(world, &world.plan.internet, [1, 20 + PIECE_BYTES], [&number, &flags])?;
    // An echo request of zeros (RFC 792): its sum is that of its type and its number.
    let program = format!(
        "{head} if (!zeros) {{ zeros = \"0000\"; while (length(zeros) < 4096) zeros = zeros zeros; }} \
         if (i % {PIECES} == 0) printf \"0800%04x0000%04x\", 65535 - 2048 - {number}, {number}; \
         print substr(zeros, 1, i % {PIECES} ? {} : {});",
        2 * PIECE_BYTES,
        2 * (PIECE_BYTES - 8)
    );
    Ok((program, usize::from(14 + 20 + PIECE_BYTES)))
}

/// The same with awk's expressions for the identification and for the flags and the offset.
fn head(
    world: &World,
    to: &str,
    [protocol, length]: [u16; 2],
    [number, flags]: [&str; 2],
) -> Result<String> {
    let mac = world.client_of_plan(CAROL)?.mac.replace(':', "");
    let (own, to) = (hex_address(&world.client_ip(CAROL)?)?, hex_address(to)?);
    // The sum of all other words of the header (RFC 791, RFC 1071).
    let words = format!("4500{length:04x}40{protocol:02x}{own}{to}");
    Ok(format!(
        "o = {flags}; s = {} + {number} + o; while (s > 65535) s = s - 65535; \
         printf \"feffffffffff{mac}08004500{length:04x}%04x%04x40{protocol:02x}%04x{own}{to}\", {number}, o, 65535 - s;",
        sum(&words)
    ))
}

/// The sum of 16-bit words in hexadecimal digits.
fn sum(digits: &str) -> u32 {
    let word =
        |at: usize| digits.get(at..at + 4).and_then(|word| u32::from_str_radix(word, 16).ok());
    (0..digits.len()).step_by(4).filter_map(word).sum()
}

pub(super) fn hex_address(text: &str) -> Result<String> {
    match text.parse::<std::net::Ipv4Addr>() {
        Ok(address) => Ok(address.octets().iter().map(|octet| format!("{octet:02x}")).collect()),
        Err(_) => fail!("no IPv4 address: {text:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sum_of_words() {
        assert_eq!(sum("00010002fffe"), 0x10001);
        assert_eq!(sum(""), 0);
    }

    #[test]
    fn addresses_in_hexadecimal() {
        assert_eq!(hex_address("10.137.0.13").unwrap(), "0a89000d");
        assert!(hex_address("10.137.0").is_err());
    }
}
