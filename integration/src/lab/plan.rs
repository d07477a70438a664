//! Who is in the lab's network and with which names, numbers and addresses. Nothing below depends on the
//! values of [`Plan::usual`]: a scenario changes them to show that nothing above does.

use super::base::GuestKernel;
use super::domain::{DomainSpec, Vif};
use super::guests::Role;

/// The CPU of the NetVMs, and of what else is in front of the firewall; the clients share another. Not dom0's, where a
/// guest was lost to the emulator's fault.
pub const UPLINK_CPU: u32 = 2;

/// The firewall's CPU, its own. Measured on two cores: 20 MB came at 0.2 MB/s with one CPU for all guests, at 0.6 with the
/// NetVM's for the firewall, at 1.0 to 1.3 so. On the clients' its answer to a SYN would also come before the client's
/// `connect` lets go of the socket, and Linux then only notes an ICMP error.
pub const FIREWALL_CPU: u32 = 3;

/// A NetVM.
#[derive(Clone, Debug)]
pub struct NetVm {
    /// Name of the domain.
    pub name: String,
    /// Its address on the vif: gateway of the firewall.
    pub ip: String,
    /// Its IPv6 address on the vif.
    pub ip6: Option<String>,
    /// A word in the page that it serves, to tell one NetVM from another.
    pub page: String,
    /// What it is.
    pub kind: Provider,
    /// Memory of one with Linux, MiB.
    pub memory_mib: u32,
}

/// Memory of a NetVM that has little to do, MiB.
const NETVM_MIB: u32 = 192;

/// What provides the firewall's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Provider {
    /// A Linux NetVM with the outside world in it.
    Linux,
    /// Another firewall of ours, behind the NetVM of this index.
    Firewall(usize),
    /// A Linux firewall VM, behind the NetVM of this index.
    LinuxFirewall(usize),
}

impl Provider {
    /// Index of what is in front of it; none of the one that has the outside world in it.
    pub fn front(self) -> Option<usize> {
        match self {
            Self::Linux => None,
            Self::Firewall(front) | Self::LinuxFirewall(front) => Some(front),
        }
    }
}

/// The firewall's place in the network.
#[derive(Clone, Debug)]
pub struct Firewall {
    /// Name of the domain.
    pub name: String,
    /// Its address on the uplink, and its clients' gateway.
    pub ip: String,
    /// The same for IPv6.
    pub ip6: Option<String>,
    /// When `ip` is only what it is told (`net.fake-ip`): the truth, which its provider knows.
    pub hidden: Option<Hidden>,
    /// MAC address of its uplink.
    pub mac: String,
    /// Device number of its first uplink.
    pub devid: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Kernel command line.
    pub cmdline: String,
}

/// What a firewall with a hidden address is not told, and what it is told instead of its gateway.
#[derive(Clone, Debug)]
pub struct Hidden {
    /// Its real address.
    pub ip: String,
    /// The gateway that it believes in.
    pub gateway: String,
}

/// A qube behind the firewall.
#[derive(Clone, Debug)]
pub struct Client {
    /// Name of the domain.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// Its IPv6 address.
    pub ip6: Option<String>,
    /// What it believes its address and gateway to be, when that is not the truth (`net.fake-ip`).
    pub visible: Option<Visible>,
    /// MAC address of its vif.
    pub mac: String,
    /// Device number of its vif.
    pub devid: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
}

/// Addresses that a qube is told instead of the real ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Visible {
    /// Its own.
    pub ip: String,
    /// Its gateway's.
    pub gateway: String,
}

/// The whole network.
#[derive(Clone, Debug)]
pub struct Plan {
    /// NetVMs; the first is the one in use at the start.
    pub netvms: Vec<NetVm>,
    /// The firewall.
    pub firewall: Firewall,
    /// The clients, none of them started by itself.
    pub clients: Vec<Client>,
    /// Address of the server in the outside world.
    pub internet: String,
    /// The same server's IPv6 address; none where the whole network is without IPv6.
    pub internet6: Option<String>,
    /// Name of that server in the DNS.
    pub server_name: String,
    /// Real resolvers: the firewall's own, served by the NetVM.
    pub resolvers: [String; 2],
    /// Resolvers that the clients are told, which nobody has: the firewall redirects them.
    pub client_dns: [String; 2],
    /// Kernel of all Linux guests.
    pub kernel: GuestKernel,
    /// Domain numbers as Xen counts them, or random ones.
    pub random_domids: bool,
}

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

    /// The way from a NetVM to the one that has the outside world in it, both included.
    pub fn way_out<'a>(&'a self, netvm: &'a NetVm) -> Vec<&'a NetVm> {
        let next = |last: &&'a NetVm| self.netvms.get(last.kind.front()?);
        // A plan that were a circle would end, too.
        std::iter::successors(Some(netvm), next).take(self.netvms.len()).collect()
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

    /// The gateway that the firewall is told.
    pub fn told_gateway<'a>(&'a self, provider: &'a NetVm) -> &'a str {
        self.firewall.hidden.as_ref().map_or(&provider.ip, |hidden| &hidden.gateway)
    }

    /// The network as the other firewall sees it: it stands where ours does, and ours is its client.
    pub fn seen_by(&self, provider: &NetVm) -> Self {
        let mut plan = self.clone();
        let own = &self.firewall;
        plan.clients = vec![Client {
            name: own.name.clone(),
            ip: own.hidden.as_ref().map_or(&own.ip, |hidden| &hidden.ip).clone(),
            ip6: own.ip6.clone(),
            visible: own
                .hidden
                .as_ref()
                .map(|hidden| Visible { ip: own.ip.clone(), gateway: hidden.gateway.clone() }),
            mac: own.mac.clone(),
            devid: own.devid,
            memory_mib: own.memory_mib,
        }];
        plan.firewall = Firewall {
            name: provider.name.clone(),
            ip: provider.ip.clone(),
            ip6: provider.ip6.clone(),
            hidden: None,
            mac: "00:16:3e:5e:6c:00".into(),
            devid: 0,
            memory_mib: 32,
            cmdline: String::new(),
        };
        plan
    }

    /// Resolvers of a VM behind `provider`: a firewall has the addresses that all clients know.
    pub fn resolvers_behind(&self, provider: Option<&NetVm>) -> &[String; 2] {
        match provider.map(|provider| provider.kind) {
            Some(Provider::Firewall(_)) => &self.client_dns,
            Some(Provider::Linux | Provider::LinuxFirewall(_)) | None => &self.resolvers,
        }
    }

    /// The same network without IPv6, as Qubes has it by default.
    pub fn without_ipv6(mut self) -> Self {
        self.internet6 = None;
        self.firewall.ip6 = None;
        self.netvms.iter_mut().for_each(|netvm| netvm.ip6 = None);
        self.clients.iter_mut().for_each(|client| client.ip6 = None);
        self
    }

    /// [`Plan::usual`] without IPv6.
    pub fn usual_without_ipv6() -> Self {
        Self::usual().without_ipv6()
    }

    /// The domain of a NetVM.
    pub fn netvm_spec(&self, netvm: &NetVm) -> DomainSpec {
        let mut spec = DomainSpec::linux(
            &netvm.name,
            Role::NetVm,
            self.kernel,
            &[
                ("ip", &netvm.ip),
                ("ip6", netvm.ip6.as_deref().unwrap_or_default()),
                ("internet", &self.internet),
                ("internet6", self.internet6.as_deref().unwrap_or_default()),
                ("resolvers", &self.resolvers.join(",")),
                ("name", &self.server_name),
                ("page", &netvm.page),
            ],
        );
        spec.cpu = UPLINK_CPU;
        spec.memory_mib = netvm.memory_mib;
        spec
    }

    /// The domain of a Linux firewall VM among the NetVMs, with its uplink to `provider`.
    pub fn linux_firewall_spec(&self, netvm: &NetVm, provider: &NetVm) -> DomainSpec {
        let ip6 = |of: &NetVm| of.ip6.clone().unwrap_or_default();
        let (own6, gateway6) = (ip6(netvm), ip6(provider));
        let words =
            [("ip", netvm.ip.as_str()), ("gw", &provider.ip), ("ip6", &own6), ("gw6", &gateway6)];
        let mut spec = DomainSpec::linux(&netvm.name, Role::LinuxFirewall, self.kernel, &words);
        spec.cpu = UPLINK_CPU;
        spec.memory_mib = netvm.memory_mib;
        spec.vifs.push(Vif::new(&both(&netvm.ip, netvm.ip6.as_deref()), &provider.name));
        spec
    }

    /// The uplink of the firewall to a NetVM.
    pub fn uplink(&self, netvm: &NetVm) -> Vif {
        let Firewall { mac, ip, ip6, hidden, devid, .. } = &self.firewall;
        let ip = hidden.as_ref().map_or(ip, |hidden| &hidden.ip);
        Vif {
            mac: mac.clone(),
            ip: both(ip, ip6.as_deref()),
            backend: netvm.name.clone(),
            devid: Some(*devid),
        }
    }

    /// The vif of a client to the firewall.
    pub fn client_vif(&self, client: &Client) -> Vif {
        Vif {
            mac: client.mac.clone(),
            ip: both(&client.ip, client.ip6.as_deref()),
            backend: self.firewall.name.clone(),
            devid: Some(client.devid),
        }
    }

    /// What a client is configured with: its address and its gateway's.
    pub fn client_addresses<'a>(&'a self, client: &'a Client) -> (&'a str, &'a str) {
        match &client.visible {
            Some(visible) => (&visible.ip, &visible.gateway),
            None => (&client.ip, &self.firewall.ip),
        }
    }

    /// The same for IPv6, which a client with hidden addresses does not have.
    pub fn client_addresses6<'a>(&'a self, client: &'a Client) -> Option<(&'a str, &'a str)> {
        let own = client.ip6.as_deref().filter(|_| client.visible.is_none())?;
        Some((own, self.firewall.ip6.as_deref()?))
    }

    /// The domain of a client, with its vif.
    pub fn client_spec(&self, client: &Client) -> DomainSpec {
        let (ip, gateway) = self.client_addresses(client);
        let (ip6, gateway6) = self.client_addresses6(client).unwrap_or_default();
        let mut spec = DomainSpec::linux(
            &client.name,
            Role::Client,
            self.kernel,
            &[
                ("ip", ip),
                ("gw", gateway),
                ("ip6", ip6),
                ("gw6", gateway6),
                ("dns", &self.client_dns.join(",")),
            ],
        );
        spec.memory_mib = client.memory_mib;
        spec.vifs.push(self.client_vif(client));
        spec
    }
}

/// The `ip` node of a vif: libvirt writes both addresses, with a space between them.
fn both(ip: &str, ip6: Option<&str>) -> String {
    ip6.map_or_else(|| ip.to_owned(), |ip6| format!("{ip} {ip6}"))
}
