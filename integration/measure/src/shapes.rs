//! Rule sets that are hard in one way each.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// What decides about the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The last rule alone matches: an accept rule; the policy is drop.
    LastRule,
    /// No rule matches; the policy is accept.
    Policy,
    /// No rule matches; the policy is drop.
    Refused,
}

impl End {
    /// For a table.
    pub fn name(self) -> &'static str {
        match self {
            Self::LastRule => "last rule",
            Self::Policy => "policy",
            Self::Refused => "refused",
        }
    }
}

/// Where a packet goes.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Where.
    pub address: IpAddr,
    /// TCP port, or nothing for an echo request.
    pub port: Option<u16>,
}

/// A kind of rule set.
pub struct Shape {
    /// For a table.
    pub name: &'static str,
    /// The line of rule number `n`. Rules differ in what they match.
    pub line: fn(usize) -> String,
    /// A packet that rule `n` matches and no rule before it.
    pub target: fn(usize) -> Target,
    /// A packet that no rule matches.
    pub miss: Target,
    /// Whether it is about IPv6.
    pub is_v6: bool,
}

/// Number `n` of the addresses that rules name.
pub fn host(n: usize) -> Ipv4Addr {
    Ipv4Addr::from_bits(0xcb00_0000 + n as u32)
}

const SERVER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 7);
const SERVER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 7);
/// No rule with a port names it.
const OTHER_PORT: u16 = 65_000;

const fn v4(address: Ipv4Addr, port: u16) -> Target {
    Target { address: IpAddr::V4(address), port: Some(port) }
}

fn port(n: usize) -> u16 {
    2000 + n as u16
}

/// What people write most.
pub const HOSTS: Shape = Shape {
    name: "hosts",
    line: |n| format!("dst4={} proto=tcp dstports=443", host(n)),
    target: |n| v4(host(n), 443),
    miss: v4(SERVER, 443),
    is_v6: false,
};

/// One address, many ports.
pub const PORTS: Shape = Shape {
    name: "ports of one host",
    line: |n| format!("dst4={SERVER} proto=tcp dstports={}", port(n)),
    target: |n| v4(SERVER, port(n)),
    miss: v4(SERVER, OTHER_PORT),
    is_v6: false,
};

/// What costs most: each rule overlaps all others.
pub const NESTED6: Shape = Shape {
    name: "nested prefixes, IPv6",
    line: |n| format!("dst6={SERVER6}/{} proto=tcp dstports={}", 1 + n % 128, port(n)),
    target: |n| Target { address: IpAddr::V6(SERVER6), port: Some(port(n)) },
    miss: Target { address: IpAddr::V6(SERVER6), port: Some(OTHER_PORT) },
    is_v6: true,
};

/// Some of everything.
pub const MIXTURE: Shape = Shape {
    name: "mixture",
    line: |n| match n % 5 {
        0 => format!("dst4={}/24 proto=udp", host(256 * n)),
        1 => format!("specialtarget=dns dst4={}", host(n)),
        2 => format!("dsthost=n{n}.example"),
        3 => format!("dstports={}-{}", port(n), port(n) + 9),
        _ => format!("dst4={} proto=tcp", host(n)),
    },
    target: |n| v4(host(n), 443),
    miss: v4(SERVER, 443),
    is_v6: false,
};

/// Those that are measured with up to ten thousand rules.
pub const SIZED: &[Shape] = &[PORTS, NESTED6, MIXTURE];

/// All of them. Actions are put to the lines later.
pub const SHAPES: &[Shape] = &[
    HOSTS,
    PORTS,
    Shape {
        // Each overlaps those around it, and has its last ports for itself.
        name: "port ranges, any host",
        line: |n| format!("dstports={}-{}", 2000 + 20 * n, 2000 + 20 * n + 99),
        target: |n| v4(SERVER, 2000 + 20 * n as u16 + 99),
        miss: v4(SERVER, OTHER_PORT),
        is_v6: false,
    },
    Shape {
        name: "nested prefixes",
        line: |n| format!("dst4={SERVER}/{} proto=tcp dstports={}", 1 + n % 32, port(n)),
        target: |n| v4(SERVER, port(n)),
        miss: v4(SERVER, OTHER_PORT),
        is_v6: false,
    },
    NESTED6,
    Shape {
        name: "ICMP types",
        line: |n| format!("dst4={}/28 icmptype={}", host(16 * n), if n % 2 == 1 { 8 } else { 13 }),
        target: |n| Target { address: IpAddr::V4(host(16 * n)), port: None },
        miss: Target { address: IpAddr::V4(SERVER), port: None },
        is_v6: false,
    },
    Shape {
        name: "names",
        line: |n| format!("dsthost=n{n}.example proto=tcp"),
        target: |n| v4(host(n), 443),
        miss: v4(SERVER, 443),
        is_v6: false,
    },
    MIXTURE,
];
