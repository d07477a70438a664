//! The three stacks, the firewall between them, and programs that speak to each other.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::num::NonZeroU16;
use std::thread;
use std::time::Duration;

use firewall::exposure::{Exposure, Forward, Transport};
use firewall::uplink::{FamilyConfig, NetworkConfig};
use firewall::{ClientPort, Firewall, Limits, Mac, PortCaps, RulesState};
use rules::{CompiledSet, RuleSet};

use super::plan::{CLIENT_MAC, Family, Plan, plan};
use super::script::Peer;
use super::wires::{CLIENT, Core, Taps, Wires};
use crate::error::{Attempt, Error, Result};
use crate::fail;
use crate::netns::Namespace;

/// Where echo services listen, on the server and on the client.
pub(super) const ECHO: u16 = 443;
/// The firewall's port that [`World::open`] forwards to the client's [`ECHO`].
pub(super) const FORWARDED: u16 = 8080;
/// For one step of a conversation.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

const LIMITS: Limits = Limits {
    clients: 1,
    addresses: 8,
    flows: 4096,
    flows_per_client: 2048,
    fragment_bytes: 1 << 20,
};

/// Everything of one check.
pub(super) struct World {
    pub(super) plan: Plan,
    // Ended before the stacks whose devices it holds.
    pub(super) wires: Wires,
    pub(super) client: Namespace,
    pub(super) router: Namespace,
    pub(super) server: Namespace,
}

impl World {
    /// Stacks that have not met yet, with echo services over TCP and UDP on client and server.
    pub(super) fn new(family: Family) -> Result<Self> {
        Self::with(plan(family), None)
    }

    /// The same with a scripted peer in the place of the server's stack, which is not connected.
    pub(super) fn with_peer(family: Family) -> Result<(Self, Peer)> {
        let plan = plan(family);
        let (peer, far) = Peer::new(plan, ECHO)?;
        let world = Self::with(plan, Some(far))?;
        let mac = "lladdr 00:16:3e:00:00:01 dev wan0 nud permanent";
        world.router.sh(&format!("{} neighbour replace {} {mac}", plan.ip(), plan.server))?;
        Ok((world, peer))
    }

    fn with(plan: Plan, far: Option<File>) -> Result<Self> {
        let (client, router, server) =
            (Namespace::new("client")?, Namespace::new("router")?, Namespace::new("server")?);
        for space in [&client, &router, &server] {
            // Addresses are ours to give: none has to be defended before it may be used.
            space.set("net/ipv6/conf/default/accept_dad", "0")?;
            space.set("net/ipv6/conf/default/accept_ra", "0")?;
            space.set("net/ipv6/conf/default/router_solicitations", "0")?;
        }
        let taps = Taps {
            client: client.tap("eth0", &mac_text(CLIENT_MAC))?,
            uplink: router.tap("up0", "fe:ff:ff:ff:ff:ff")?,
            near: router.tap("wan0", "00:16:3e:00:00:fe")?,
            far: server.tap("eth0", "00:16:3e:00:00:01")?,
        };
        let Plan { gateway, own, router: uplink, near, server: address, .. } = plan;
        let (ip, host) = (plan.ip(), plan.host());
        client.sh(&format!(
            "{ip} address add {}/{host} dev eth0\n{ip} route add {gateway} dev eth0\n\
             {ip} route add default via {gateway} dev eth0",
            plan.client
        ))?;
        let wide = if host == 32 { 24 } else { 64 };
        router.sh(&format!(
            "{ip} address add {uplink}/{host} dev up0\n{ip} route add {own} dev up0\n\
             {ip} address add {near}/{wide} dev wan0"
        ))?;
        router.set("net/ipv4/ip_forward", "1")?;
        router.set("net/ipv6/conf/all/forwarding", "1")?;
        server.sh(&format!(
            "{ip} address add {address}/{wide} dev eth0\n{ip} route add default via {near}"
        ))?;
        for space in [&client, &server] {
            serve(space)?;
        }
        let taps = match far {
            Some(far) => Taps { far, ..taps },
            None => taps,
        };
        let wires = Wires::start(firewall(&plan)?, taps)?;
        Ok(Self { plan, wires, client, router, server })
    }

    /// Opens a port of the firewall for the server's side: to the client's echo service.
    pub(super) fn open(&self, is_open: bool) {
        let port = |number| NonZeroU16::new(number).unwrap_or(NonZeroU16::MIN);
        let forward = is_open.then_some(Forward {
            transport: Transport::Tcp,
            port: port(FORWARDED),
            client: self.plan.client,
            client_port: port(ECHO),
        });
        let exposure = Exposure { forward: forward.into_iter().collect(), ..Exposure::default() };
        self.wires.core().firewall.set_exposure(exposure);
    }

    /// Adds what the firewall knows to a failure.
    pub(super) fn explain(&self, error: Error) -> Error {
        let state = if self.wires.is_broken() { "; a TAP device failed" } else { "" };
        let drops = self.wires.core().last_drops();
        Error::Failed(format!("{error}{state}; the firewall's last drops: [{drops}]"))
    }

    /// An MTU of the way between router and server.
    pub(super) fn set_far_mtu(&self, mtu: u16) -> Result<()> {
        self.router.sh(&format!("ip link set dev wan0 mtu {mtu}"))?;
        self.server.sh(&format!("ip link set dev eth0 mtu {mtu}")).map(drop)
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn firewall(plan: &Plan) -> Result<Core> {
    let failed = |error: &dyn std::error::Error| {
        Error::Failed(format!("our firewall cannot be set up: {error}"))
    };
    let mut firewall = Firewall::new(LIMITS, [7; 32]).map_err(|error| failed(&error))?;
    firewall.set_network(network(plan)).map_err(|error| failed(&error))?;
    let (ip4, ip6) = match plan.client {
        IpAddr::V4(v4) => (Some(v4), None),
        IpAddr::V6(v6) => (None, Some(v6)),
    };
    let port = ClientPort { domid: 1, mac: Mac(CLIENT_MAC), ip4, ip6, caps: PortCaps::PLAIN };
    firewall.attach_client(CLIENT, port).map_err(|error| failed(&error))?;
    let mut core = Core::new(firewall);
    core.set_uplink(1500);
    let entries = [(&b"0000"[..], &b"action=accept"[..]), (&b"policy"[..], &b"drop"[..])];
    let rules = RuleSet::parse(rules::Family::of(plan.client), entries)
        .and_then(CompiledSet::new)
        .map_err(|error| failed(&error))?;
    let now = core.now();
    let state = RulesState::Active(rules);
    core.firewall.set_rules(now, plan.client, state).map_err(|error| failed(&error))?;
    Ok(core)
}

fn network(plan: &Plan) -> NetworkConfig {
    fn family<A>(plan: &Plan, pick: impl Fn(IpAddr) -> Option<A>) -> FamilyConfig<A> {
        FamilyConfig {
            address: pick(plan.own),
            gateway: pick(plan.router),
            client_gateway: pick(plan.gateway),
            dns: Vec::new(),
            client_dns: Vec::new(),
        }
    }
    let v4 = family(plan, |ip| if let IpAddr::V4(v4) = ip { Some(v4) } else { None });
    let v6 = family(plan, |ip| if let IpAddr::V6(v6) = ip { Some(v6) } else { None });
    NetworkConfig { v4, v6, connected: vec![plan.client], ..Default::default() }
}

/// Echo services: what came over TCP is sent back when the other side has said all, UDP datagrams at once.
fn serve(space: &Namespace) -> Result<()> {
    let listener = space.run(|| TcpListener::bind(("::", ECHO)))?;
    let listener = listener.doing(|| "cannot listen")?;
    let socket = space.run(|| UdpSocket::bind(("::", ECHO)))?.doing(|| "cannot bind")?;
    // They end with the process.
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || echo(stream));
        }
    });
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(buffer.get(..length).unwrap_or_default(), from);
        }
    });
    Ok(())
}

fn echo(mut stream: TcpStream) {
    let mut said = Vec::new();
    if stream.read_to_end(&mut said).is_ok() {
        let _ = stream.write_all(&said);
    }
}

/// Sends `bytes` bytes over TCP, in parts with a pause between them, and expects them back.
pub(super) fn converse(to: SocketAddr, bytes: usize, pause: Duration) -> Result<()> {
    let mut stream =
        TcpStream::connect_timeout(&to, PATIENCE).doing(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(PATIENCE)).doing(|| "no time-out")?;
    stream.set_write_timeout(Some(PATIENCE)).doing(|| "no time-out")?;
    let said = noise(bytes);
    for part in said.chunks(bytes.div_ceil(64).max(1)) {
        stream.write_all(part).doing(|| "cannot send")?;
        thread::sleep(pause);
    }
    stream.shutdown(Shutdown::Write).doing(|| "cannot close one side")?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).doing(|| format!("{} of {bytes} bytes back", heard.len()))?;
    if heard != said {
        fail!("{} bytes came back, not the {bytes} that were sent", heard.len());
    }
    Ok(())
}

/// Sends a datagram and expects it back; tries again when it is lost.
pub(super) fn ask(to: SocketAddr, bytes: usize) -> Result<()> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).doing(|| "cannot bind")?;
    socket.set_read_timeout(Some(Duration::from_secs(3))).doing(|| "no time-out")?;
    let (said, mut buffer) = (noise(bytes), vec![0; 1 << 16]);
    for _ in 0..3 {
        socket.send_to(&said, to).doing(|| format!("cannot send {bytes} bytes"))?;
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            if from != to || buffer.get(..length) != Some(&said[..]) {
                fail!("{length} other bytes from {from}");
            }
            return Ok(());
        }
    }
    fail!("no answer to a datagram of {bytes} bytes")
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(bytes as u64);
    std::iter::repeat_with(|| random.u8(..)).take(bytes).collect()
}
