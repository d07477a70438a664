//! What dom0 may open: the words `fw-allow`, `fw-forward` and `fw-filtering-by-address`.

use std::num::NonZeroU16;

use firewall::exposure::{Allow, Exposure, Forward, Scope, Transport};

use super::permits::{Allowed, Forwarded, Permits, Reach};
use super::world::{ADDRESSES, Family};

/// What dom0 may open.
const ALLOWED: &[Allowed] = &[
    Allowed { from: 0, to: 1, reach: Reach::All },
    Allowed { from: 0, to: 1, reach: Reach::Ports(6, Some(80)) },
    Allowed { from: 0, to: 1, reach: Reach::Ports(17, None) },
    Allowed { from: 1, to: 0, reach: Reach::Icmp },
    Allowed { from: 1, to: 0, reach: Reach::Ports(6, None) },
];
const FORWARDED: &[Forwarded] = &[
    Forwarded { protocol: 6, port: 80, client: 0, client_port: 1000 },
    Forwarded { protocol: 6, port: 443, client: 1, client_port: 443 },
    Forwarded { protocol: 17, port: 53, client: 1, client_port: 53 },
    Forwarded { protocol: 17, port: 40_000, client: 0, client_port: 40_001 },
];
/// Replaces what is open by those of the entries whose bits are set, in both families; for the oracle and the firewall.
pub(super) fn replace(permits: &mut Permits, bits: [u8; 3]) -> Exposure {
    let some = |bits: u8, n: usize| bits >> n & 1 == 1;
    let allowed = ALLOWED.iter().enumerate().filter(|(n, _)| some(bits[0], *n));
    let forwarded = FORWARDED.iter().enumerate().filter(|(n, _)| some(bits[1], *n));
    permits.allowed = allowed.map(|(_, entry)| *entry).collect();
    permits.forwarded = forwarded.map(|(_, entry)| *entry).collect();
    permits.by_address = (0..2).filter(|client| some(bits[2], *client)).collect();
    let mut exposure = Exposure::default();
    for family in [Family::V4, Family::V6] {
        let address = |client: usize| ADDRESSES[client].of(family);
        exposure.allow.extend(permits.allowed.iter().map(|entry| Allow {
            from: address(entry.from),
            to: address(entry.to),
            scope: match entry.reach {
                Reach::All => Scope::All,
                Reach::Icmp => Scope::Icmp,
                Reach::Ports(number, port) => {
                    Scope::Ports(transport(number), port.and_then(NonZeroU16::new))
                }
            },
        }));
        exposure.forward.extend(permits.forwarded.iter().map(|entry| Forward {
            transport: transport(entry.protocol),
            port: NonZeroU16::new(entry.port).expect("a port"),
            client: address(entry.client),
            client_port: NonZeroU16::new(entry.client_port).expect("a port"),
        }));
        exposure.filtering_by_address.extend(permits.by_address.iter().map(|c| address(*c)));
    }
    exposure
}

fn transport(protocol: u8) -> Transport {
    if protocol == 6 { Transport::Tcp } else { Transport::Udp }
}
