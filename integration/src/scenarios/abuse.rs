//! A client that does all it can to be in the way of others: what the others keep.
//!
//! Client C misbehaves while B downloads and holds an idle connection. Measured in turns with C itself as an honest client that
//! downloads as fast as it can: what B has then is its fair share. Under the abuse B must have most of it, the idle connection must
//! live, the console must not grow without bound, and what the firewall holds is afterwards what it was.
//!
//! C and B share a processor of the emulated machine, and all of them the host's: so that C takes no more of it when it
//! misbehaves, what it leaves is used up by a loop, whatever C does.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::abusers::{self, Abuse, ip_frame, ip_frame_to};
use super::books::Books;
use super::steps::{self, ALICE, BOB, CAROL, need_both};
use super::witness::{Restless, SLACK_BYTES};
use crate::error::{Error, Result};
use crate::fail;
use crate::lab::domain::Background;
use crate::lab::world::{ACCEPT_ALL, World};

/// Part of its fair share that a client must have under abuse.
const SHARE: f64 = 0.8;
/// Turns: an honest client beside B, a hostile one beside B. The median of what is kept counts.
const TURNS: usize = 5;
/// Seconds of a measurement.
pub(super) const WINDOW_S: u32 = 8;
/// For a load or an abuse to get going.
const UNDERWAY: Duration = Duration::from_secs(2);
/// For commands of a guest beside all that.
pub(super) const PATIENCE: Duration = Duration::from_secs(120);
/// What the console may grow by, in the long run and at once: five lines a second and forty at once from each of four
/// sources (`src/log.rs`), of 100 bytes.
const CONSOLE_BYTES_A_SECOND: u64 = 2_000;
const CONSOLE_BYTES_AT_ONCE: u64 = 16_000;
/// Port of the server that sends back what it gets.
const ECHO: u16 = 7777;

/// C opens flows without limit: datagrams from every port to every port.
///
/// # Errors
/// When B is in want of something; so for all below.
pub fn flows(world: &mut World) -> Result<String> {
    let words = [
        "pkt_size 60",
        "flag UDPSRC_RND",
        "flag UDPDST_RND",
        "udp_src_min 1024",
        "udp_src_max 65000",
        "udp_dst_min 1",
        "udp_dst_max 65000",
    ];
    let abuse = Abuse::packets(world, &words)?;
    under(world, &abuse)
}

/// C sends the smallest datagrams of one flow as fast as it can.
pub fn tiny_packets(world: &mut World) -> Result<String> {
    let words = ["pkt_size 60", "udp_src_min 9", "udp_src_max 9", "udp_dst_min 9", "udp_dst_max 9"];
    let abuse = Abuse::packets(world, &words)?;
    under(world, &abuse)
}

/// C sends first fragments without the rest, each of another datagram.
pub fn lone_fragments(world: &mut World) -> Result<String> {
    let head = ip_frame(world, 17, 44, 0x2000)?;
    let program = format!("{head} print \"80000035001800004142434445464748494a4b4c4d4e4f50\"");
    under(world, &Abuse::frames(&program, 14 + 44))
}

/// C floods the server with the largest pings, whose 41 fragments come together.
pub fn large_pings(world: &mut World) -> Result<String> {
    let (program, length) = abusers::pieces_of_pings(world)?;
    under(world, &Abuse::frames(&program, length))
}

/// C asks both resolvers for names, each one once, from a port of its own.
///
/// In Qubes the resolver is beyond the NetVM, which only forwards. Here it runs in the NetVM, beside the server that B downloads from:
/// so that B has not less because the resolver has more to do, it lets everything else go before.
pub fn questions(world: &mut World) -> Result<String> {
    world.need_netvm(0)?;
    world.sh(world.netvm(0)?, "for one in $(pidof dnsmasq); do renice -n 19 -p $one; done")?;
    let head = ip_frame_to(world, &world.plan.client_dns[0], 17, 62, 0)?;
    // UDP without a checksum; one label of four digits before example.org (RFC 1035 4.1).
    let program = format!(
        "{head} printf \"%04x0035002a0000%04x01000001000000000000\", 10000 + i, i; \
         printf \"043%d3%d3%d3%d\", int(i / 1000) % 10, int(i / 100) % 10, int(i / 10) % 10, i % 10; \
         print \"076578616d706c65036f72670000010001\""
    );
    under(world, &Abuse::frames(&program, 14 + 62))
}

/// C asks by ARP for addresses that nobody has, and claims others' addresses.
pub fn neighbours(world: &mut World) -> Result<String> {
    let mac = world.client_of_plan(CAROL)?.mac.replace(':', "");
    let own = abusers::hex_address(&world.client_ip(CAROL)?)?;
    let other = abusers::hex_address(&world.client_ip(BOB)?)?;
    let program = format!(
        "printf \"fffffffffffF{mac}0806000108000604%04x{mac}%s0000000000000a89%02x%02x\\n\", \
         1 + i % 2, i % 3 ? \"{own}\" : \"{other}\", int(i / 256), i % 256"
    );
    under(world, &Abuse::frames(&program, 42))
}

/// C connects to a closed port again and again: every attempt is refused by rules, and answered.
pub fn refused_connections(world: &mut World) -> Result<String> {
    // Its own rules let nothing out but names.
    let words = ["pkt_size 60", "flag UDPSRC_RND", "udp_src_min 1024", "udp_src_max 65000"];
    let abuse = Abuse::packets(world, &words)?;
    under_rules(world, &abuse, &["action=accept specialtarget=dns"])
}

/// C writes nonsense to its part of xenstore, without end: to the nodes of its device that the firewall has read, to some that
/// nobody knows, and at length. Jumps of the state are [`settings`]' and `xenbus`'.
pub fn xenstore(world: &mut World) -> Result<String> {
    // Within the 2,048 bytes that xenstored takes for a node.
    let nodes = [
        "tx-ring-ref",
        "rx-ring-ref",
        "event-channel",
        "request-rx-copy",
        "feature-rx-notify",
        "feature-sg",
        "multi-queue-num-queues",
        "queue-0/tx-ring-ref",
        "noise",
    ];
    let pairs: Vec<String> = nodes.iter().map(|node| format!("device/vif/0/{node} $v")).collect();
    let line = format!(
        "noise=$(head -c 900 /dev/urandom | xxd -p | tr -d '\\n'); \
         for v in -1 x 4294967296 8 $noise; do xenstore-write -- {} data/noise $noise || echo in vain; done",
        pairs.join(" ")
    );
    under(world, &Abuse::repeat(line, 0))
}

/// A frontend lets the producer of its ring jump by more than the ring has, again and again.
pub fn ring_producer(world: &mut World) -> Result<String> {
    under(world, &Abuse::Frontend("producer"))
}

/// A frontend fills its ring with noise.
pub fn ring_requests(world: &mut World) -> Result<String> {
    under(world, &Abuse::Frontend("requests"))
}

/// A frontend sends events and nothing else.
pub fn events(world: &mut World) -> Result<String> {
    under(world, &Abuse::Frontend("events"))
}

/// A frontend publishes rings, event channels and features that are none.
pub fn settings(world: &mut World) -> Result<String> {
    under(world, &Abuse::Frontend("settings"))
}

fn need_all(world: &mut World) -> Result<()> {
    need_both(world)?;
    world.need_rules(CAROL, ACCEPT_ALL)?;
    world.need_client(CAROL)
}

fn under(world: &mut World, abuse: &Abuse) -> Result<String> {
    under_rules(world, abuse, ACCEPT_ALL)
}

/// What B keeps beside C, which has these rules.
fn under_rules(world: &mut World, abuse: &Abuse, rules: &[&str]) -> Result<String> {
    need_all(world)?;
    abuse.prepare(world)?;
    let before = Books::read(world)?;
    let idle = Idle::open(world)?;
    let load = Restless::start(world, BOB)?;
    let busy = Busy::start(world)?;
    let (mut fair, mut kept) = (Vec::new(), Vec::new());
    let (mut grown, mut seconds, mut told) = (0, 0.0, String::new());
    let mut shares = [String::new(), String::new()];
    for _ in 0..TURNS {
        world.need_rules(CAROL, ACCEPT_ALL)?;
        let honest = Restless::start(world, CAROL)?;
        std::thread::sleep(UNDERWAY);
        let used = world.lab.all_cpu_seconds()?;
        fair.push(rate(world)?);
        shares[0] = shares_since(world, &used)?;
        honest.end(world)?;
        world.need_rules(CAROL, rules)?;
        let mark = world.firewall()?.console_mark();
        let begun = Instant::now();
        let running = abuse.start(world)?;
        std::thread::sleep(UNDERWAY);
        let used = world.lab.all_cpu_seconds()?;
        kept.push(rate(world)?);
        shares[1] = shares_since(world, &used)?;
        grown += world.firewall()?.console_mark().saturating_sub(mark);
        seconds += begun.elapsed().as_secs_f64();
        told = abuse.end(world, &running)?;
    }
    load.end(world)?;
    busy.end(world)?;
    idle.lives(world)?;
    world.need_rules(CAROL, ACCEPT_ALL)?;
    steps::page(world, world.client(BOB)?, 0)?;
    steps::page(world, world.client(ALICE)?, 0)?;
    steps::page(world, world.client(CAROL)?, 0)?;
    // Each by what came just before it: what the host does meanwhile is in both.
    let shares_of_turns: Vec<f64> =
        fair.iter().zip(&kept).map(|(fair, kept)| kept / fair.max(1.0)).collect();
    let each: Vec<String> =
        shares_of_turns.iter().map(|part| format!("{:.0}", part * 100.0)).collect();
    let part = median(shares_of_turns);
    let (fair, kept) = (median(fair), median(kept));
    let console = grown as f64 / seconds;
    let said = format!(
        "B has {:.2} MB/s, {:.0} % of its fair share, {:.2} MB/s beside an honest client; its idle connection lives; console {console:.0} B/s",
        kept / 1e6,
        part * 100.0,
        fair / 1e6
    );
    let [before_it, under_it] = shares;
    let said =
        format!("{said}; by turns {} %; processors: {before_it}, then {under_it}", each.join(", "));
    #[expect(clippy::cast_precision_loss, reason = "small constants")]
    let most = CONSOLE_BYTES_AT_ONCE as f64 + CONSOLE_BYTES_A_SECOND as f64 * seconds;
    if part < SHARE || grown as f64 > most {
        fail!("{said} ({grown} bytes in {seconds:.0} s); {told}");
    }
    let books = before.settle_with(world, SLACK_BYTES)?;
    Ok(format!("{said}; {told}; {books}"))
}

/// A loop in C that leaves nothing of its processor, and lets everything else of C's go before.
struct Busy(Background);

impl Busy {
    fn start(world: &World) -> Result<Self> {
        let line = "echo $$ >/tmp/busy; renice -n 19 -p $$; while :; do :; done";
        world.client(CAROL)?.spawn(&world.lab, line).map(Self)
    }

    fn end(self, world: &World) -> Result<()> {
        let carol = world.client(CAROL)?;
        world.sh(carol, "kill $(cat /tmp/busy)")?;
        self.0.finish(&world.lab, carol, PATIENCE).map(drop)
    }
}

/// Seconds of their processors that the domains between B and the server have used since.
fn shares_since(world: &World, before: &BTreeMap<String, f64>) -> Result<String> {
    let after = world.lab.all_cpu_seconds()?;
    let used = |name: &str| -> f64 {
        let of = |all: &BTreeMap<String, f64>| all.get(name).copied().unwrap_or_default();
        of(&after) - of(before)
    };
    let names = [&world.client(CAROL)?.name, &world.client(BOB)?.name];
    let names = names.into_iter().chain([&world.firewall()?.name, &world.netvm(0)?.name]);
    let words: Vec<String> = names.map(|name| format!("{name} {:.1} s", used(name))).collect();
    Ok(words.join(" "))
}

/// Bytes per second that B receives for a while.
fn rate(world: &World) -> Result<f64> {
    let look = "cut -d' ' -f1 /proc/uptime; cat /sys/class/net/eth0/statistics/rx_bytes";
    let line = format!("{look}; sleep {WINDOW_S}; {look}");
    let text = world.client(BOB)?.exec_for(&world.lab, &line, PATIENCE)?.ok("B's rate")?;
    let numbers: Vec<f64> = text.lines().filter_map(|line| line.trim().parse().ok()).collect();
    match numbers.as_slice() {
        [from, bytes_before, to, bytes_after] if to > from => {
            Ok((bytes_after - bytes_before) / (to - from))
        }
        _ => fail!("B does not tell what it received: {text:?}"),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// A connection of B on which nothing happens.
struct Idle {
    connection: Background,
}

impl Idle {
    fn open(world: &World) -> Result<Self> {
        let server = &world.plan.internet;
        let netvm = world.netvm(0)?;
        world.sh(
            netvm,
            &format!(
                "netstat -tln | grep -q :{ECHO} || \
                 (setsid socat TCP-LISTEN:{ECHO},bind={server},fork,reuseaddr EXEC:cat </dev/null >/dev/null 2>&1 &) ; sleep 1"
            ),
        )?;
        let line = format!(
            "rm -f /tmp/idle; mkfifo /tmp/idle; exec 3<>/tmp/idle; exec socat - TCP:{server}:{ECHO} <&3 >/tmp/echoed"
        );
        let bob = world.client(BOB)?;
        let this = Self { connection: bob.spawn(&world.lab, &line)? };
        this.echoes(world, "before")?;
        Ok(this)
    }

    fn echoes(&self, world: &World, word: &str) -> Result<()> {
        let line = format!(
            "echo {word} >/tmp/idle; n=0; until grep -q '^{word}$' /tmp/echoed; do n=$((n + 1)); [ $n -lt 100 ] || exit 1; \
             usleep 200000; done"
        );
        let bob = world.client(BOB)?;
        let out = bob.exec_for(&world.lab, &line, PATIENCE)?;
        if !out.success() {
            let end = self.connection.poll(&world.lab, bob)?;
            return Err(Error::Failed(format!("B's idle connection is dead: {end:?}")));
        }
        Ok(())
    }

    fn lives(self, world: &World) -> Result<()> {
        self.echoes(world, "after")?;
        world.sh(world.client(BOB)?, "killall socat; true").map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_three() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]).to_bits(), 2.0_f64.to_bits());
    }
}
