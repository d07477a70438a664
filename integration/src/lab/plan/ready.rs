//! The plans that scenarios use.

use super::{Client, Firewall, Hidden, NetVm, Plan, Provider, Visible};
use crate::lab::base::GuestKernel;

/// Memory of a NetVM that has little to do, MiB.
const NETVM_MIB: u32 = 192;

impl Plan {
    /// Qubes' address plan; three clients, two NetVMs. The clients share one MAC address, as in Qubes.
    pub fn usual() -> Self {
        let ip6 = |qid: u32| Some(format!("fd09:24ef:4179::a89:{qid:x}"));
        let client = |name: &str, qid: u32| Client {
            name: name.into(),
            ip: format!("10.137.0.{qid}"),
            ip6: ip6(qid),
            visible: None,
            mac: "00:16:3e:5e:6c:00".into(),
            devid: 0,
            memory_mib: 128,
        };
        Self {
            netvms: vec![
                NetVm {
                    name: "sys-net".into(),
                    ip: "10.137.0.5".into(),
                    ip6: ip6(5),
                    page: "sys-net".into(),
                    kind: Provider::Linux,
                    memory_mib: NETVM_MIB,
                },
                NetVm {
                    name: "sys-vpn".into(),
                    ip: "10.137.0.25".into(),
                    ip6: ip6(25),
                    page: "sys-vpn".into(),
                    kind: Provider::Linux,
                    memory_mib: NETVM_MIB,
                },
            ],
            firewall: Firewall {
                name: "sys-firewall".into(),
                ip: "10.137.0.6".into(),
                ip6: ip6(6),
                hidden: None,
                mac: "00:16:3e:5e:6c:00".into(),
                devid: 0,
                memory_mib: 32,
                cmdline: String::new(),
            },
            clients: vec![client("alice", 11), client("bob", 12), client("carol", 13)],
            internet: "192.0.2.1".into(),
            internet6: Some("2001:db8:0:2::1".into()),
            server_name: "www.example.org".into(),
            resolvers: ["192.0.2.53".into(), "192.0.2.54".into()],
            client_dns: ["10.139.1.1".into(), "10.139.1.2".into()],
            kernel: GuestKernel::Stable,
            random_domids: false,
        }
    }

    /// [`Plan::usual`] without IPv6.
    pub fn usual_without_ipv6() -> Self {
        Self::usual().without_ipv6()
    }

    /// With the firewall VM that `rust-firewall-dom0 create` makes.
    pub fn installed() -> Self {
        let mut plan = Self::usual();
        plan.firewall.name = "rust-firewall".into();
        plan
    }

    /// Other names, domain numbers, device numbers, addresses, memory sizes and another guest kernel.
    pub fn unusual() -> Self {
        let client = |name: &str, ip: &str, ip6: &str, mac: &str, devid, memory_mib| Client {
            name: name.into(),
            ip: ip.into(),
            ip6: Some(ip6.into()),
            visible: None,
            mac: mac.into(),
            devid,
            memory_mib,
        };
        Self {
            netvms: vec![
                NetVm {
                    name: "uplink".into(),
                    ip: "172.20.4.1".into(),
                    ip6: Some("fd00:1::1".into()),
                    page: "uplink".into(),
                    kind: Provider::Linux,
                    memory_mib: NETVM_MIB,
                },
                NetVm {
                    name: "other-uplink".into(),
                    ip: "198.51.100.9".into(),
                    ip6: Some("2001:db8:9::9".into()),
                    page: "other".into(),
                    kind: Provider::Linux,
                    memory_mib: NETVM_MIB,
                },
            ],
            firewall: Firewall {
                name: "fw-2".into(),
                ip: "172.20.9.77".into(),
                ip6: Some("fd00:9::4d".into()),
                hidden: None,
                mac: "02:00:00:aa:bb:cc".into(),
                devid: 3,
                memory_mib: 48,
                cmdline: "root=/dev/mapper/dmroot ro nomodeset console=hvc0 swiotlb=2048".into(),
            },
            clients: vec![
                client("x", "192.168.1.1", "fd42::1", "00:16:3e:5e:6c:07", 1, 160),
                client("y", "203.0.113.200", "2001:db8:c8::200", "06:05:04:03:02:01", 7, 144),
                client(
                    "z",
                    "10.138.200.250",
                    "fd09:24ef:4179::a8a:c8fa",
                    "00:16:3e:5e:6c:00",
                    0,
                    160,
                ),
            ],
            internet: "198.18.0.80".into(),
            internet6: Some("2001:2::80".into()),
            server_name: "a.b.c.test".into(),
            resolvers: ["198.18.0.153".into(), "198.18.5.54".into()],
            client_dns: ["10.139.1.1".into(), "10.139.1.2".into()],
            kernel: GuestKernel::Newer,
            random_domids: true,
        }
    }

    /// [`Plan::usual`] with another firewall of ours between the firewall and the NetVM.
    pub fn chain() -> Self {
        let mut plan = Self::usual();
        if let Some(second) = plan.netvms.get_mut(1) {
            second.name = "sys-firewall-2".into();
            second.page = "sys-net".into();
            second.kind = Provider::Firewall(0);
        }
        plan
    }

    /// [`Plan::chain`] with a Linux firewall VM between the other firewall and the NetVM.
    pub fn long_chain() -> Self {
        let mut plan = Self::chain();
        let last = plan.netvms.len();
        if let Some(second) = plan.netvms.get_mut(1) {
            second.kind = Provider::Firewall(last);
        }
        plan.netvms.push(NetVm {
            name: "linux-firewall".into(),
            ip: "10.137.0.35".into(),
            ip6: Some("fd09:24ef:4179::a89:23".into()),
            page: "sys-net".into(),
            kind: Provider::LinuxFirewall(0),
            memory_mib: 128,
        });
        plan
    }

    /// [`Plan::chain`] with hidden addresses: the first two clients believe in one and the same address, and the firewall
    /// itself is told another one than it has. All of it is IPv4.
    pub fn hidden() -> Self {
        let mut plan = Self::chain().without_ipv6();
        for client in plan.clients.iter_mut().take(2) {
            client.visible =
                Some(Visible { ip: "192.168.1.128".into(), gateway: "192.168.1.1".into() });
        }
        plan.firewall.ip = "192.168.77.6".into();
        plan.firewall.hidden =
            Some(Hidden { ip: "10.137.0.6".into(), gateway: "192.168.77.1".into() });
        plan
    }
}
