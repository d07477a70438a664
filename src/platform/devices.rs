//! What happened to devices, in the words of the event loop, and in those of the post-mortem.

use core::net::IpAddr;

use xen::netback::{self, VifId};
use xen::postmortem::{self, What};
use xen::{netfront, netif};

use crate::clients::ClientPort;
use crate::event_loop::machine::{Change, Reason};
use crate::port::{ClientId, PortCaps};
use crate::uplink::UplinkPort;
use crate::wire::Mac;

pub(super) fn on_frontend_event(event: netfront::Event) -> Change {
    match event {
        netfront::Event::Up { mac, backend, mtu, capabilities, .. } => Change::UplinkUp {
            port: UplinkPort { mac: Mac(mac), caps: caps(capabilities, mtu) },
            backend: backend.0,
        },
        netfront::Event::Leak { part, bytes } => Change::Note(Reason::new(format_args!(
            "leak uplink part={} bytes={bytes}",
            part.name()
        ))),
        netfront::Event::Silent { .. } => Change::Note(Reason::new(format_args!(
            "uplink does not react to what it was sent: telling it again"
        ))),
        netfront::Event::Down { reason, .. } => {
            Change::UplinkDown { reason: Reason::new(format_args!("{reason}")) }
        }
    }
}

/// The vif's slot; `netback` is given no more slots than fit.
pub(super) fn client_id(vif: VifId) -> ClientId {
    ClientId(u16::try_from(vif.slot()).unwrap_or(u16::MAX))
}

/// The first address of each family counts: dom0 writes one of each.
pub(super) fn client_port(
    identity: &netback::Identity,
    capabilities: netif::Capabilities,
) -> ClientPort {
    ClientPort {
        domid: identity.dom.0,
        mac: Mac(identity.mac),
        ip4: identity.addresses.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        }),
        ip6: identity.addresses.iter().find_map(|address| match address {
            IpAddr::V6(v6) => Some(*v6),
            IpAddr::V4(_) => None,
        }),
        caps: caps(capabilities, identity.mtu),
    }
}

fn caps(capabilities: netif::Capabilities, mtu: u16) -> PortCaps {
    PortCaps {
        accepts_blank_v4: capabilities.blank_ipv4,
        accepts_blank_v6: capabilities.blank_ipv6,
        accepts_gso_v4: capabilities.gso_tcpv4,
        accepts_gso_v6: capabilities.gso_tcpv6,
        mtu,
    }
}

/// Notes a change for the case that this domain comes to an unexpected end.
pub(super) fn note(change: &Change) {
    let (what, numbers) = match change {
        Change::ClientUp { id, port, .. } => (What::ClientUp, [id.0.into(), port.domid.into()]),
        Change::ClientDown { id, .. } => (What::ClientDown, [id.0.into(), 0]),
        Change::UplinkUp { backend, .. } => (What::UplinkUp, [(*backend).into(), 0]),
        Change::UplinkDown { .. } => (What::UplinkDown, [0, 0]),
        Change::DatabaseUp => (What::Database, [1, 0]),
        Change::DatabaseDown => (What::Database, [0, 0]),
        Change::AgentUp => (What::Agent, [1, 0]),
        Change::AgentDown => (What::Agent, [0, 0]),
        Change::CallUp(_) => (What::Call, [1, 0]),
        Change::CallDown(_) => (What::Call, [0, 0]),
        Change::Resumed => (What::Resumed, [0, 0]),
        Change::Stop(_) => (What::Stop, [0, 0]),
        // It has a line in the log.
        Change::Note(_) => return,
    };
    postmortem::note(what, numbers);
}
