//! Domains and vifs of a plan.

use super::{Client, Firewall, NetVm, Plan, UPLINK_CPU};
use crate::lab::domain::{DomainSpec, Vif};
use crate::lab::guests::Role;

impl Plan {
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
