//! What must hold between the stacks. Each check is run in both families.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use super::plan::Family;
use super::script::{FIRST, Peer, Say};
use super::world::{ECHO, FORWARDED, PATIENCE, World, ask, converse};
use crate::error::{Attempt, Error, Result};
use crate::fail;

/// One thing that must hold.
pub(super) struct Check {
    pub(super) name: &'static str,
    pub(super) run: Run,
}

/// How it is shown; the text says what was measured.
#[derive(Clone, Copy)]
pub(super) enum Run {
    /// The server is a Linux stack.
    Linux(fn(&World) -> Result<String>),
    /// The server is scripted.
    Scripted(fn(&World, &mut Peer) -> Result<String>),
}

macro_rules! checks {
    ($($name:literal => $kind:ident $run:path,)*) => {
        &[$(Check { name: $name, run: Run::$kind($run) }),*]
    };
}

/// All of them.
pub(super) const ALL: &[Check] = checks! {
    "TCP: 8 MB there and back" => Linux tcp,
    "TCP: 2 MB there and back over a forwarded port, which then closes" => Linux tcp_inwards,
    "UDP: echo of 1 to 30000 bytes, in fragments where they are long" => Linux udp,
    "ping, whole and in fragments" => Linux ping,
    "traceroute by UDP, ICMP and TCP: firewall, router, server" => Linux traceroute,
    "path MTU: a link of 1280 bytes behind the router" => Linux narrow_link,
    "path MTU: an uplink of 1280 bytes" => Linux narrow_uplink,
    "T7: an ICMP error in mid-transfer ends nothing" => Linux hard_error,
    "T2: both sides open the connection at once" => Scripted simultaneous_open,
    "S7: a reset in the window is challenged, the right one ends the connection" => Scripted challenge,
};

const MB: usize = 1 << 20;
const NARROW: u16 = 1280;

fn tcp(world: &World) -> Result<String> {
    let to = SocketAddr::new(world.plan.server, ECHO);
    world.client.run(move || converse(to, 8 * MB, Duration::ZERO))?.map(|()| String::new())
}

fn tcp_inwards(world: &World) -> Result<String> {
    let to = SocketAddr::new(world.plan.own, FORWARDED);
    let connect = move || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_ok();
    if world.server.run(connect)? {
        fail!("{to} is open before anybody opened it");
    }
    world.open(true);
    world.server.run(move || converse(to, 2 * MB, Duration::ZERO))??;
    world.open(false);
    if world.server.run(connect)? {
        fail!("{to} is open after it was closed");
    }
    Ok(String::new())
}

fn udp(world: &World) -> Result<String> {
    let to = SocketAddr::new(world.plan.server, ECHO);
    for bytes in [1, 1200, 1472, 1473, 4000, 8000, 30_000] {
        world.client.run(move || ask(to, bytes))??;
    }
    Ok(String::new())
}

fn ping(world: &World) -> Result<String> {
    for (bytes, to) in
        [(56, world.plan.server), (4000, world.plan.server), (56, world.plan.gateway)]
    {
        let text = world.client.sh(&format!("ping -n -c 3 -i 0.2 -W 3 -s {bytes} {to}"))?;
        if !text.contains("3 received") {
            fail!("{bytes} bytes to {to}: {text}");
        }
    }
    Ok(String::new())
}

fn traceroute(world: &World) -> Result<String> {
    let plan = &world.plan;
    let hops = [plan.gateway, plan.router, plan.server].map(|hop| hop.to_string());
    let family = if plan.family == Family::V4 { "-4" } else { "-6" };
    for method in ["", "-I", &format!("-T -p {ECHO}")] {
        let line = format!("traceroute {family} -n -q 1 -N 1 -w 3 -m 6 {method} {}", plan.server);
        let text = world.client.sh(&line)?;
        let seen: Vec<&str> = text
            .lines()
            .skip(1)
            .map(|line| line.split_whitespace().nth(1).unwrap_or_default())
            .collect();
        if seen != hops {
            fail!("{line}: {seen:?}, not {hops:?}");
        }
    }
    Ok(String::new())
}

/// The router says that a link behind it is too small: the error finds its way to the client, which sends less.
fn narrow_link(world: &World) -> Result<String> {
    world.set_far_mtu(NARROW)?;
    learns(world)
}

/// The firewall itself says it.
fn narrow_uplink(world: &World) -> Result<String> {
    world.wires.core().set_uplink(NARROW);
    learns(world)
}

fn learns(world: &World) -> Result<String> {
    let plan = &world.plan;
    // The server claims to take full packets: nothing but an ICMP error tells the client otherwise.
    let claim = format!(
        "{} route change default via {} advmss {}",
        plan.ip(),
        plan.near,
        1500 - plan.headers()
    );
    world.server.sh(&claim)?;
    let route = format!("{} route get {}", plan.ip(), plan.server);
    let before = world.client.sh(&route)?;
    let to = SocketAddr::new(plan.server, ECHO);
    world.client.run(move || converse(to, MB, Duration::ZERO))??;
    let after = world.client.sh(&route)?;
    let learned = format!("mtu {NARROW}");
    if before.contains("mtu") || !after.contains(&learned) {
        fail!("the client should have learned {learned}: {before} {after}");
    }
    // What may not be cut has to shrink; what may is cut.
    world.client.run(move || ask(to, 4000))??;
    Ok(String::new())
}

/// The router cannot reach the server for a moment, and says so with ICMP errors that are no reason to give up.
fn hard_error(world: &World) -> Result<String> {
    let plan = world.plan;
    let to = SocketAddr::new(plan.server, ECHO);
    let pause = Duration::from_millis(25);
    let transfer = world.client.spawn(move || converse(to, 2 * MB, pause))?;
    thread::sleep(Duration::from_millis(300));
    let host = format!("{} route add unreachable {}/{}", plan.ip(), plan.server, plan.host());
    world.router.sh(&host)?;
    thread::sleep(Duration::from_millis(600));
    world.router.sh(&host.replace(" add ", " delete "))?;
    let result = transfer.join();
    result.map_err(|_| Error::Failed("the transfer died".into()))??;
    let errors = unreachables(world)?;
    if errors == 0 {
        fail!("no ICMP error reached the client: nothing was shown");
    }
    Ok(format!(": {errors} errors reached the client"))
}

/// RFC 9293, 3.5, figure 8: the peer's SYN crosses the client's on the way.
fn simultaneous_open(world: &World, peer: &mut Peer) -> Result<String> {
    let stream = connecting(world)?;
    let syn = peer.hear("the client's SYN", |heard| heard.tcp.syn && !heard.tcp.ack)?.tcp;
    let client = syn.sequence_number.wrapping_add(1);
    peer.say(Say { sequence: FIRST, syn: true, ..Say::default() })?;
    let own = FIRST.wrapping_add(1);
    peer.hear("the client's SYN with an ACK of the peer's", |heard| {
        heard.tcp.syn && heard.tcp.ack && heard.tcp.acknowledgment_number == own
    })?;
    peer.say(Say { sequence: FIRST, acknowledges: Some(client), syn: true, ..Say::default() })?;
    peer.say(Say { sequence: own, acknowledges: Some(client), ..Say::default() })?;
    let mut stream = connected(stream)?;
    talk(&mut stream, peer, own, client)?;
    Ok(String::new())
}

/// RFC 5961, 3.2: a reset that does not hit the next number exactly is asked about, and changes nothing.
fn challenge(world: &World, peer: &mut Peer) -> Result<String> {
    let stream = connecting(world)?;
    let syn = peer.hear("the client's SYN", |heard| heard.tcp.syn)?.tcp;
    let (own, client) = (FIRST.wrapping_add(1), syn.sequence_number.wrapping_add(1));
    peer.say(Say { sequence: FIRST, acknowledges: Some(client), syn: true, ..Say::default() })?;
    let mut stream = connected(stream)?;
    peer.hear("the client's ACK", |heard| heard.tcp.acknowledgment_number == own)?;
    let far = own.wrapping_add(1000);
    peer.say(Say { sequence: far, rst: true, ..Say::default() })?;
    peer.hear("a challenge", |heard| {
        heard.payload.is_empty() && heard.tcp.ack && heard.tcp.acknowledgment_number == own
    })?;
    let (own, _) = talk(&mut stream, peer, own, client)?;
    peer.say(Say { sequence: own, rst: true, ..Say::default() })?;
    match stream.read(&mut [0; 16]) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(String::new()),
        other => fail!("the right reset did not end the connection: {other:?}"),
    }
}

/// The client begins to open a connection to the peer.
fn connecting(world: &World) -> Result<thread::JoinHandle<io::Result<TcpStream>>> {
    let to = SocketAddr::new(world.plan.server, ECHO);
    world.client.spawn(move || {
        let stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(stream)
    })
}

fn connected(stream: thread::JoinHandle<io::Result<TcpStream>>) -> Result<TcpStream> {
    let stream = stream.join().map_err(|_| Error::Failed("the client died".into()))?;
    stream.doing(|| "the client does not connect")
}

/// Some bytes each way; the numbers that come next, the peer's and the client's.
fn talk(stream: &mut TcpStream, peer: &mut Peer, own: u32, client: u32) -> Result<(u32, u32)> {
    const QUESTION: &[u8] = b"question";
    const ANSWER: &[u8] = b"answer";
    stream.write_all(QUESTION).doing(|| "the client cannot write")?;
    peer.hear("the client's bytes", |heard| heard.payload == QUESTION)?;
    let after = |number: u32, bytes: &[u8]| number.wrapping_add(bytes.len() as u32);
    let client = after(client, QUESTION);
    peer.say(Say { sequence: own, acknowledges: Some(client), payload: ANSWER, ..Say::default() })?;
    let mut heard = [0; ANSWER.len()];
    stream.read_exact(&mut heard).doing(|| "the client does not hear the peer")?;
    if heard != ANSWER {
        fail!("the client heard {heard:?}");
    }
    Ok((after(own, ANSWER), client))
}

/// "Destination unreachable" messages that the client's stack has received.
fn unreachables(world: &World) -> Result<u64> {
    let family = world.plan.family;
    world.client.run(move || {
        let file = match family {
            Family::V4 => "/proc/thread-self/net/snmp",
            Family::V6 => "/proc/thread-self/net/snmp6",
        };
        let text = fs::read_to_string(file).doing(|| format!("cannot read {file}"))?;
        let count = match family {
            Family::V4 => {
                let rows: Vec<Vec<&str>> = text
                    .lines()
                    .filter(|line| line.starts_with("Icmp:"))
                    .map(|line| line.split_whitespace().collect())
                    .collect();
                match rows.as_slice() {
                    [names, values] => {
                        let at = names.iter().position(|name| *name == "InDestUnreachs");
                        at.and_then(|at| values.get(at)?.parse().ok())
                    }
                    _ => None,
                }
            }
            Family::V6 => text
                .lines()
                .find_map(|line| line.strip_prefix("Icmp6InDestUnreachs")?.trim().parse().ok()),
        };
        count.ok_or_else(|| Error::Failed(format!("no counter of ICMP errors in {file}")))
    })?
}
