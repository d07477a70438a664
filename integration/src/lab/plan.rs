//! Who is in the lab's network and with which names, numbers and addresses. Nothing below depends on the
//! values of [`Plan::usual`]: a scenario changes them to show that nothing above does.

use super::base::GuestKernel;
use super::domain::{DomainSpec, Vif};
use super::guests::Role;

/// The CPU of the NetVMs and of the firewall; the clients share another, so that traffic has two. Not dom0's,
/// where a guest was lost to the emulator's fault. Nor the clients' for the firewall: its answer to a SYN would
/// come before the client's `connect` lets go of the socket, and Linux then only notes an ICMP error.
pub const UPLINK_CPU: u32 = 2;

/// A NetVM.
#[derive(Clone, Debug)]
pub struct NetVm {
    /// Name of the domain.
    pub name: String,
    /// Its address on the vif: gateway of the firewall.
    pub ip: String,
    /// A word in the page that it serves, to tell one NetVM from another.
    pub page: String,
}

/// The firewall's place in the network.
#[derive(Clone, Debug)]
pub struct Firewall {
    /// Name of the domain.
    pub name: String,
    /// Its address on the uplink, and its clients' gateway.
    pub ip: String,
    /// MAC address of its uplink.
    pub mac: String,
    /// Device number of its first uplink.
    pub devid: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Kernel command line.
    pub cmdline: String,
}

/// A qube behind the firewall.
#[derive(Clone, Debug)]
pub struct Client {
    /// Name of the domain.
    pub name: String,
    /// Its address.
    pub ip: String,
    /// MAC address of its vif.
    pub mac: String,
    /// Device number of its vif.
    pub devid: u32,
    /// Memory, MiB.
    pub memory_mib: u32,
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
        let client = |name: &str, ip: &str| Client {
            name: name.into(),
            ip: ip.into(),
            mac: "00:16:3e:5e:6c:00".into(),
            devid: 0,
            memory_mib: 128,
        };
        Self {
            netvms: vec![
                NetVm { name: "sys-net".into(), ip: "10.137.0.5".into(), page: "sys-net".into() },
                NetVm { name: "sys-vpn".into(), ip: "10.137.0.25".into(), page: "sys-vpn".into() },
            ],
            firewall: Firewall {
                name: "sys-firewall".into(),
                ip: "10.137.0.6".into(),
                mac: "00:16:3e:5e:6c:00".into(),
                devid: 0,
                memory_mib: 32,
                cmdline: String::new(),
            },
            clients: vec![
                client("alice", "10.137.0.11"),
                client("bob", "10.137.0.12"),
                client("carol", "10.137.0.13"),
            ],
            internet: "192.0.2.1".into(),
            server_name: "www.example.org".into(),
            resolvers: ["192.0.2.53".into(), "192.0.2.54".into()],
            client_dns: ["10.139.1.1".into(), "10.139.1.2".into()],
            kernel: GuestKernel::Stable,
            random_domids: false,
        }
    }

    /// Other names, domain numbers, device numbers, addresses, memory sizes and another guest kernel.
    pub fn unusual() -> Self {
        let client = |name: &str, ip: &str, mac: &str, devid, memory_mib| Client {
            name: name.into(),
            ip: ip.into(),
            mac: mac.into(),
            devid,
            memory_mib,
        };
        Self {
            netvms: vec![
                NetVm { name: "uplink".into(), ip: "172.20.4.1".into(), page: "uplink".into() },
                NetVm {
                    name: "other-uplink".into(),
                    ip: "198.51.100.9".into(),
                    page: "other".into(),
                },
            ],
            firewall: Firewall {
                name: "fw-2".into(),
                ip: "172.20.9.77".into(),
                mac: "02:00:00:aa:bb:cc".into(),
                devid: 3,
                memory_mib: 48,
                cmdline: "root=/dev/mapper/dmroot ro nomodeset console=hvc0 swiotlb=2048".into(),
            },
            clients: vec![
                client("x", "192.168.1.1", "00:16:3e:5e:6c:07", 1, 160),
                client("y", "203.0.113.200", "06:05:04:03:02:01", 7, 144),
                client("z", "10.138.200.250", "00:16:3e:5e:6c:00", 0, 160),
            ],
            internet: "198.18.0.80".into(),
            server_name: "a.b.c.test".into(),
            resolvers: ["198.18.0.153".into(), "198.18.5.54".into()],
            client_dns: ["10.139.1.1".into(), "10.139.1.2".into()],
            kernel: GuestKernel::Newer,
            random_domids: true,
        }
    }

    /// The domain of a NetVM.
    pub fn netvm_spec(&self, netvm: &NetVm) -> DomainSpec {
        let mut spec = DomainSpec::linux(
            &netvm.name,
            Role::NetVm,
            self.kernel,
            &[
                ("ip", &netvm.ip),
                ("internet", &self.internet),
                ("resolvers", &self.resolvers.join(",")),
                ("name", &self.server_name),
                ("page", &netvm.page),
            ],
        );
        spec.cpu = UPLINK_CPU;
        spec
    }

    /// The uplink of the firewall to a NetVM.
    pub fn uplink(&self, netvm: &NetVm) -> Vif {
        let Firewall { mac, ip, devid, .. } = &self.firewall;
        Vif { mac: mac.clone(), ip: ip.clone(), backend: netvm.name.clone(), devid: Some(*devid) }
    }

    /// The vif of a client to the firewall.
    pub fn client_vif(&self, client: &Client) -> Vif {
        Vif {
            mac: client.mac.clone(),
            ip: client.ip.clone(),
            backend: self.firewall.name.clone(),
            devid: Some(client.devid),
        }
    }

    /// The domain of a client, with its vif.
    pub fn client_spec(&self, client: &Client) -> DomainSpec {
        let mut spec = DomainSpec::linux(
            &client.name,
            Role::Client,
            self.kernel,
            &[("ip", &client.ip), ("gw", &self.firewall.ip), ("dns", &self.client_dns.join(","))],
        );
        spec.memory_mib = client.memory_mib;
        spec.vifs.push(self.client_vif(client));
        spec
    }
}
