//! Who is in the lab's network and with which names, numbers and addresses. Nothing below depends on the
//! values of [`Plan::usual`]: a scenario changes them to show that nothing above does. `ready` has the plans that scenarios use,
//! `specs` makes domains and vifs of them.

mod ready;
mod specs;

use super::base::GuestKernel;

/// The CPU of the NetVMs, and of what else is in front of the firewall; the clients share another. Not dom0's, where a
/// guest was lost to the emulator's fault.
pub const UPLINK_CPU: u32 = 2;

/// The firewall's CPU, its own, in a pool of its own (`integration/lab/dom0/init`). Measured on two cores: 20 MB came at
/// 0.2 MB/s with one CPU for all guests, at 0.6 with the NetVM's for the firewall, at 1.0 to 1.3 so. On the clients' its
/// answer to a SYN would also come before the client's `connect` lets go of the socket, and Linux then only notes an ICMP
/// error.
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
    /// The way from a NetVM to the one that has the outside world in it, both included.
    pub fn way_out<'a>(&'a self, netvm: &'a NetVm) -> Vec<&'a NetVm> {
        let next = |last: &&'a NetVm| self.netvms.get(last.kind.front()?);
        // A plan that were a circle would end, too.
        std::iter::successors(Some(netvm), next).take(self.netvms.len()).collect()
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
}
