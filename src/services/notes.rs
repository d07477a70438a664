//! What `firewall.Health` tells that is no problem, but worth knowing when something is slower than expected.

use core::fmt;
use core::net::IpAddr;

use super::FirewallServices;
use super::json::{self, TooLong, Value, text, word};
use crate::port::{ClientId, PortCaps};

/// Something worth knowing.
#[derive(Clone, Copy)]
enum Note {
    /// A client's frontend takes less than we could send to it.
    Features(Option<IpAddr>, PortCaps),
    /// So many writes into xenstore were refused.
    StoreRefused(u64),
}

/// The words of all notes.
#[cfg(test)]
pub(super) const IDS: [&str; 2] = ["client-features", "store-refused"];

impl Note {
    fn id(&self) -> (&'static str, Option<IpAddr>) {
        match *self {
            Self::Features(client, _) => ("client-features", client),
            Self::StoreRefused(_) => ("store-refused", None),
        }
    }
}

/// What a frontend can take, and the nodes that say so (Xen public/io/netif.h).
fn features(caps: &PortCaps) -> [(bool, &'static str); 4] {
    [
        (caps.accepts_blank_v4, "partial checksums over IPv4 (feature-no-csum-offload is 1)"),
        (caps.accepts_blank_v6, "partial checksums over IPv6 (no feature-ipv6-csum-offload)"),
        (caps.accepts_gso_v4, "TCP super-frames over IPv4 (no feature-sg or feature-gso-tcpv4)"),
        (caps.accepts_gso_v6, "TCP super-frames over IPv6 (no feature-sg or feature-gso-tcpv6)"),
    ]
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Features(_, caps) => {
                f.write_str("this client came up without ")?;
                let missing = features(caps).into_iter().filter(|(has, _)| !has);
                for (number, (_, name)) in missing.enumerate() {
                    f.write_str(if number == 0 { "" } else { ", " })?;
                    f.write_str(name)?;
                }
                f.write_str(
                    ": frames to it are completed or cut here; all of it works, and costs more",
                )
            }
            Self::StoreRefused(count) => write!(
                f,
                "xenstore refused {count} writes about clients, for its quota of this VM perhaps: features that a client was \
                 not offered it does without until it is attached anew; give the VM fewer clients"
            ),
        }
    }
}

impl FirewallServices<'_> {
    /// Note `number`.
    pub(super) fn note(&self, number: usize, buffer: &mut [u8]) -> Option<Result<usize, TooLong>> {
        let note = self.notes().nth(number)?;
        let (id, client) = note.id();
        let line = [
            ("kind", word("note")),
            ("id", word(id)),
            ("client", client.map(Value::Address)),
            ("text", text(&note)),
        ];
        Some(json::write(&line, buffer))
    }

    fn notes(&self) -> impl Iterator<Item = Note> {
        let refused = self.facts.effort.store_refusals;
        let refused = (refused > 0).then_some(Note::StoreRefused(refused));
        let slots = (0..self.firewall.limits().clients).map(ClientId);
        let ports = slots.filter_map(|id| Some(self.firewall.clients.attached(id)?.port));
        let lesser = ports.filter(|port| features(&port.caps).iter().any(|(has, _)| !has));
        refused.into_iter().chain(lesser.map(|port| {
            let ip = port.ip4.map(IpAddr::V4).or(port.ip6.map(IpAddr::V6));
            Note::Features(ip, port.caps)
        }))
    }
}
