//! Linux' side: a network namespace as the firewall VM, with a TAP device for each client and for the uplink.

use std::fs::File;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::conntrack::Conntrack;
use super::model::{Family, Packet, Plan, Side, UPLINK_MTU, Upper, Verdict, plan};
use super::{nft, packet};
use crate::error::{Error, Result};
use crate::fail;
use crate::netns::{Namespace, read_frame, write_frame};

/// Numbers of the packets that close a batch; batches are smaller.
const LAST: [(u16, Side); 2] = [(0xfff0, Side::A), (0xfff1, Side::B)];
const PATIENCE: Duration = Duration::from_secs(5);

/// The Linux firewall of one family.
pub(super) struct Linux {
    space: Namespace,
    plan: Plan,
    taps: [(Side, File); 3],
    flows: Conntrack,
}

impl Linux {
    /// Sets the namespace up.
    pub(super) fn new(family: Family) -> Result<Self> {
        let space = Namespace::new("diff")?;
        for (parameter, value) in PARAMETERS {
            space.set(parameter, value)?;
        }
        let taps = [
            (Side::A, space.tap("vif1", "fe:ff:ff:ff:ff:ff")?),
            (Side::B, space.tap("vif2", "fe:ff:ff:ff:ff:ff")?),
            (Side::Uplink, space.tap("eth0", "00:16:3e:5e:6c:06")?),
        ];
        space.sh(&addresses(family))?;
        space.nft(nft::base(family))?;
        let flows = Conntrack::of(&space)?;
        Ok(Self { space, plan: plan(family), taps, flows })
    }

    /// Replaces the rules of client A, and forgets all flows.
    pub(super) fn load(&self, text: String) -> Result<()> {
        self.space.nft(text)?;
        self.flows.forget_all()
    }

    /// Replaces the rules of client A; flows stay as the kernel has them.
    pub(super) fn reload(&self, text: String) -> Result<()> {
        self.space.nft(text)
    }

    /// What becomes of each packet of a batch.
    pub(super) fn verdicts(&self, packets: &[Packet]) -> Result<Vec<Verdict>> {
        let numbered: Vec<(Side, Vec<u8>)> = (1_u16..)
            .zip(packets)
            .map(|(number, packet)| (packet.side, packet::frame(packet, number)))
            .collect();
        self.frames(&numbered)
    }

    /// The same for frames that carry their place, counted from 1, as their number.
    pub(super) fn frames(&self, frames: &[(Side, Vec<u8>)]) -> Result<Vec<Verdict>> {
        for (side, frame) in frames {
            self.write(*side, frame)?;
        }
        // A client's ping of the gateway is always answered, after all that went out to this client before it; B,
        // which may do everything, closes the uplink.
        let kind = if self.plan.a.is_ipv4() { 8 } else { 128 };
        for (number, side) in LAST {
            let upper = Upper::Icmp { kind, code: 0, id: number };
            self.close(number, side, self.plan.client_gateway, upper)?;
        }
        self.close(0xfff2, Side::B, self.plan.netvm, Upper::Udp { from: 1999, to: 9 })?;
        self.collect(frames.len())
    }

    fn close(&self, number: u16, side: Side, destination: IpAddr, upper: Upper) -> Result<()> {
        let source = if side == Side::A { self.plan.a } else { self.plan.b };
        let packet = Packet { side, source, destination, ttl: 64, upper, padding: 0 };
        self.write(side, &packet::frame(&packet, number))
    }

    /// Lets the stack forward packets with source routes.
    pub(super) fn allow_source_routes(&self) -> Result<()> {
        self.space
            .sh("for file in /proc/sys/net/ipv4/conf/*/accept_source_route; do echo 1 >$file; done")
            .map(drop)
    }

    fn write(&self, side: Side, frame: &[u8]) -> Result<()> {
        let tap = self.taps.iter().find(|(own, _)| *own == side);
        tap.map_or(Ok(()), |(_, tap)| write_frame(tap, frame))
    }

    fn collect(&self, count: usize) -> Result<Vec<Verdict>> {
        let mut verdicts = vec![None; count];
        let (mut buffer, mut open) = ([0; 2048], 3);
        let begun = Instant::now();
        while open > 0 {
            for (side, tap) in &self.taps {
                while let Some(frame) = read_frame(tap, &mut buffer)? {
                    let Some((number, verdict)) = packet::observe(frame, *side, &self.plan) else {
                        continue;
                    };
                    match verdicts.get_mut(usize::from(number).wrapping_sub(1)) {
                        Some(place @ None) => *place = Some(verdict),
                        // Fragments of one datagram leave as fragments.
                        Some(Some(Verdict::Accept { .. }))
                            if matches!(verdict, Verdict::Accept { .. }) => {}
                        Some(Some(first)) => {
                            return Err(Error::Failed(format!(
                                "packet {number} was answered twice: {first:?}, {verdict:?}"
                            )));
                        }
                        None if number >= 0xfff0 => open -= 1,
                        // What the stack says by itself (MLD) carries no number.
                        None if number == 0 => {}
                        None => fail!("a frame that nothing caused: {verdict:?}, number {number}"),
                    }
                }
            }
            if open > 0 && !self.wait() && begun.elapsed() > PATIENCE {
                fail!("the packets that close a batch did not come back");
            }
        }
        Ok(verdicts.into_iter().map(|verdict| verdict.unwrap_or(Verdict::Drop)).collect())
    }

    fn wait(&self) -> bool {
        let mut ready: Vec<PollFd<'_>> =
            self.taps.iter().map(|(_, tap)| PollFd::new(tap, PollFlags::IN)).collect();
        let limit = Timespec { tv_sec: 1, tv_nsec: 0 };
        poll(&mut ready, Some(&limit)).is_ok_and(|count| count > 0)
    }
}

const PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "10000000"),
    ("net/ipv4/icmp_msgs_burst", "10000000"),
    // No link-local addresses, and so nothing that the stack says by itself.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
    ("net/ipv6/auto_flowlabels", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    ("net/ipv6/conf/default/accept_dad", "0"),
    ("net/ipv6/conf/default/accept_ra", "0"),
    ("net/ipv6/icmp/ratelimit", "0"),
];

fn addresses(family: Family) -> String {
    let Plan { a, b, own, client_gateway, netvm, .. } = plan(family);
    let (ip, full, nodad) = match family {
        Family::V4 => ("ip -4", 32, ""),
        Family::V6 => ("ip -6", 128, "nodad"),
    };
    let mut lines = format!("ip link set dev eth0 mtu {UPLINK_MTU}\n");
    lines += &format!("{ip} address add {own}/{full} dev eth0 {nodad}\n");
    let peers = [
        (a, "vif1", "00:16:3e:5e:6c:0a"),
        (b, "vif2", "00:16:3e:5e:6c:0b"),
        (netvm, "eth0", "fe:ff:ff:ff:ff:ff"),
    ];
    for (address, device, mac) in peers {
        if device != "eth0" {
            lines += &format!("{ip} address add {client_gateway}/{full} dev {device} {nodad}\n");
        }
        lines += &format!("{ip} route add {address}/{full} dev {device}\n");
        lines +=
            &format!("{ip} neighbour replace {address} lladdr {mac} dev {device} nud permanent\n");
    }
    lines + &format!("{ip} route add default via {netvm} dev eth0 onlink\n")
}
