//! What dom0 says about a vif in the backend directory, and what a frontend says about its rings.
//!
//! The identity (addresses, MAC, domain) is taken from the backend directory alone, which only dom0 and we can write.
//! Nothing below the frontend's directory is believed except what concerns its own rings.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::abi::{DomId, EventPort, GrantRef};
use crate::netif::Capabilities;
use crate::xenstore::decimal_u32;

/// Most addresses of one vif.
const MAX_ADDRESSES: usize = 16;
/// Domain numbers from here on have special meanings (`DOMID_FIRST_RESERVED` of Xen public/xen.h).
const FIRST_RESERVED_DOMAIN: u32 = 0x7ff0;
/// MTU when the node is missing, and the largest that we serve, in bytes.
const DEFAULT_MTU: u16 = 1500;
/// Smallest MTU that IPv4 allows (RFC 791).
const SMALLEST_MTU: u32 = 68;

/// Who is at the other end of a vif, as dom0 wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The client's domain.
    pub dom: DomId,
    /// The client's device number.
    pub devid: u32,
    /// The client's MAC address.
    pub mac: [u8; 6],
    /// The client's addresses, in dom0's order; at least one.
    pub addresses: Vec<IpAddr>,
    /// Largest IP packet on this link, in bytes; at most 1500.
    pub mtu: u16,
}

/// A node of the backend directory that makes the vif unusable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// `frontend-id` is not the domain of the path.
    #[error("frontend-id does not match the directory")]
    FrontendId,
    /// `frontend` is not the frontend directory that belongs to the path.
    #[error("frontend does not match the directory")]
    Frontend,
    /// `mac` is missing or malformed.
    #[error("mac is missing or malformed")]
    Mac,
    /// `ip` is missing, empty, malformed or too long.
    #[error("ip is missing or malformed")]
    Ip,
    /// `mtu` is malformed.
    #[error("mtu is malformed")]
    Mtu,
}

/// The raw nodes; `None` where missing.
#[derive(Debug, Default)]
pub(super) struct RawIdentity {
    pub(super) frontend: Option<Vec<u8>>,
    pub(super) frontend_id: Option<Vec<u8>>,
    pub(super) mac: Option<Vec<u8>>,
    pub(super) ip: Option<Vec<u8>>,
    pub(super) mtu: Option<Vec<u8>>,
}

impl RawIdentity {
    pub(super) fn parse(&self, dom: DomId, devid: u32) -> Result<Identity, IdentityError> {
        if self.frontend_id.as_deref().and_then(decimal_u32) != Some(u32::from(dom.0)) {
            return Err(IdentityError::FrontendId);
        }
        let frontend = frontend_path(dom, devid);
        if self.frontend.as_deref() != Some(frontend.as_bytes()) {
            return Err(IdentityError::Frontend);
        }
        let mac = self.mac.as_deref().and_then(parse_mac).ok_or(IdentityError::Mac)?;
        let addresses = self.ip.as_deref().and_then(parse_addresses).ok_or(IdentityError::Ip)?;
        let mtu = parse_mtu(self.mtu.as_deref()).ok_or(IdentityError::Mtu)?;
        Ok(Identity { dom, devid, mac, addresses, mtu })
    }
}

/// The frontend's directory.
pub(super) fn frontend_path(dom: DomId, devid: u32) -> alloc::string::String {
    alloc::format!("/local/domain/{}/device/vif/{devid}", dom.0)
}

/// Parses a MAC address: six pairs of hexadecimal digits with colons.
pub(crate) fn parse_mac(value: &[u8]) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut pairs = value.split(|byte| *byte == b':');
    for byte in &mut mac {
        let [high, low] = pairs.next()? else { return None };
        let digit = |ascii: &u8| char::from(*ascii).to_digit(16);
        *byte = u8::try_from(digit(high)?.checked_mul(16)?.checked_add(digit(low)?)?).ok()?;
    }
    pairs.next().is_none().then_some(mac)
}

/// Parses the MTU node: missing or too large means 1500.
pub(crate) fn parse_mtu(value: Option<&[u8]>) -> Option<u16> {
    let Some(value) = value else { return Some(DEFAULT_MTU) };
    let mtu = decimal_u32(value).filter(|mtu| *mtu >= SMALLEST_MTU)?;
    Some(u16::try_from(mtu).unwrap_or(DEFAULT_MTU).min(DEFAULT_MTU))
}

/// Addresses separated by white space; a colon makes it IPv6.
fn parse_addresses(value: &[u8]) -> Option<Vec<IpAddr>> {
    let text = core::str::from_utf8(value).ok()?;
    let mut addresses = Vec::new();
    for word in text.split_ascii_whitespace() {
        if addresses.len() >= MAX_ADDRESSES {
            return None;
        }
        addresses.push(if word.contains(':') {
            IpAddr::V6(word.parse::<Ipv6Addr>().ok()?)
        } else {
            IpAddr::V4(word.parse::<Ipv4Addr>().ok()?)
        });
    }
    (!addresses.is_empty()).then_some(addresses)
}

/// A domain number in a path.
pub(super) fn parse_domain(name: &str) -> Option<DomId> {
    let number = decimal_u32(name.as_bytes()).filter(|number| *number < FIRST_RESERVED_DOMAIN)?;
    u16::try_from(number).ok().map(DomId)
}

/// Nodes that the frontend writes before it goes to state 3 or 4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// `multi-queue-num-queues`
    NumQueues,
    /// `tx-ring-ref`
    TxRingRef,
    /// `rx-ring-ref`
    RxRingRef,
    /// `event-channel`
    EventChannel,
    /// `request-rx-copy`
    RequestRxCopy,
    /// `feature-rx-notify`
    RxNotify,
    /// `feature-no-csum-offload`
    NoCsumOffload,
    /// `feature-ipv6-csum-offload`
    Ipv6CsumOffload,
    /// `feature-sg`
    Sg,
    /// `feature-gso-tcpv4`
    GsoTcpV4,
    /// `feature-gso-tcpv6`
    GsoTcpV6,
}

impl Setting {
    const ALL: [Setting; 11] = [
        Setting::NumQueues,
        Setting::TxRingRef,
        Setting::RxRingRef,
        Setting::EventChannel,
        Setting::RequestRxCopy,
        Setting::RxNotify,
        Setting::NoCsumOffload,
        Setting::Ipv6CsumOffload,
        Setting::Sg,
        Setting::GsoTcpV4,
        Setting::GsoTcpV6,
    ];

    /// What a connection depends on. Without offloads nobody asks whether the frontend takes super-frames.
    pub(super) fn needed(offloads: bool) -> impl ExactSizeIterator<Item = Setting> {
        let count = if offloads { Setting::ALL.len() } else { Setting::Sg as usize };
        Setting::ALL.into_iter().take(count)
    }

    /// Name of the node in the frontend's directory.
    pub fn name(self) -> &'static str {
        match self {
            Setting::NumQueues => "multi-queue-num-queues",
            Setting::TxRingRef => "tx-ring-ref",
            Setting::RxRingRef => "rx-ring-ref",
            Setting::EventChannel => "event-channel",
            Setting::RequestRxCopy => "request-rx-copy",
            Setting::RxNotify => "feature-rx-notify",
            Setting::NoCsumOffload => "feature-no-csum-offload",
            Setting::Ipv6CsumOffload => "feature-ipv6-csum-offload",
            Setting::Sg => "feature-sg",
            Setting::GsoTcpV4 => "feature-gso-tcpv4",
            Setting::GsoTcpV6 => "feature-gso-tcpv6",
        }
    }
}

/// Whether a frontend notifies when it posts receive buffers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RxNotify {
    Yes,
    No,
}

/// What a frontend published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    pub(super) tx_ring: GrantRef,
    pub(super) rx_ring: GrantRef,
    pub(super) port: EventPort,
    pub(super) rx_notify: RxNotify,
    pub(super) capabilities: Capabilities,
}

/// The raw nodes; missing ones stay `None`.
#[derive(Debug, Default)]
pub(super) struct RawSettings {
    values: [Option<Vec<u8>>; Setting::ALL.len()],
}

impl RawSettings {
    pub(super) fn set(&mut self, setting: Setting, value: Vec<u8>) {
        if let Some(place) = self.values.get_mut(setting as usize) {
            *place = Some(value);
        }
    }

    /// Whether a node without which there can be no connection is missing; the frontend may still write it.
    pub(super) fn is_incomplete(&self) -> bool {
        [Setting::TxRingRef, Setting::RxRingRef, Setting::EventChannel]
            .iter()
            .any(|setting| self.get(*setting).is_none())
    }

    pub(super) fn parse(&self) -> Result<Settings, Setting> {
        let (blank_ipv4, blank_ipv6) =
            (!self.flag(Setting::NoCsumOffload)?, self.flag(Setting::Ipv6CsumOffload)?);
        // A super-frame comes in several slots and without its checksum.
        let takes_chains = self.flag(Setting::Sg)?;
        let capabilities = Capabilities {
            blank_ipv4,
            blank_ipv6,
            gso_tcpv4: self.flag(Setting::GsoTcpV4)? && takes_chains && blank_ipv4,
            gso_tcpv6: self.flag(Setting::GsoTcpV6)? && takes_chains && blank_ipv6,
        };
        if self.optional(Setting::NumQueues)?.unwrap_or(1) != 1 {
            return Err(Setting::NumQueues);
        }
        if !self.flag(Setting::RequestRxCopy)? {
            return Err(Setting::RequestRxCopy);
        }
        let notifies = self.flag(Setting::RxNotify)?;
        Ok(Settings {
            tx_ring: GrantRef(self.required(Setting::TxRingRef)?),
            rx_ring: GrantRef(self.required(Setting::RxRingRef)?),
            port: EventPort(self.required(Setting::EventChannel)?),
            rx_notify: if notifies { RxNotify::Yes } else { RxNotify::No },
            capabilities,
        })
    }

    fn get(&self, setting: Setting) -> Option<&[u8]> {
        self.values.get(setting as usize).and_then(|value| value.as_deref())
    }

    fn optional(&self, setting: Setting) -> Result<Option<u32>, Setting> {
        self.get(setting).map(|value| decimal_u32(value).ok_or(setting)).transpose()
    }

    fn required(&self, setting: Setting) -> Result<u32, Setting> {
        self.optional(setting)?.ok_or(setting)
    }

    /// A feature: missing and 0 mean no.
    fn flag(&self, setting: Setting) -> Result<bool, Setting> {
        match self.optional(setting)? {
            None | Some(0) => Ok(false),
            Some(1) => Ok(true),
            Some(_) => Err(setting),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOM: DomId = DomId(5);

    fn raw() -> RawIdentity {
        RawIdentity {
            frontend: Some(b"/local/domain/5/device/vif/2".to_vec()),
            frontend_id: Some(b"5".to_vec()),
            mac: Some(b"00:16:3e:5E:6c:00".to_vec()),
            ip: Some(b"10.137.0.11 fd09:24ef:4179::a89:b".to_vec()),
            mtu: None,
        }
    }

    #[test]
    fn a_qubes_identity() {
        let identity = raw().parse(DOM, 2).unwrap();
        assert_eq!(identity.mac, [0, 0x16, 0x3e, 0x5e, 0x6c, 0]);
        let expected: [IpAddr; 2] =
            ["10.137.0.11".parse().unwrap(), "fd09:24ef:4179::a89:b".parse().unwrap()];
        assert_eq!(identity.addresses, expected);
        assert_eq!(identity.mtu, 1500);
    }

    #[test]
    fn every_malformed_node_is_named() {
        type Change = fn(&mut RawIdentity);
        let cases: [(Change, IdentityError); 16] = [
            (|raw| raw.frontend_id = None, IdentityError::FrontendId),
            (|raw| raw.frontend_id = Some(b"6".to_vec()), IdentityError::FrontendId),
            (|raw| raw.frontend_id = Some(b"05".to_vec()), IdentityError::FrontendId),
            (|raw| raw.frontend = None, IdentityError::Frontend),
            (
                |raw| raw.frontend = Some(b"/local/domain/5/device/vif/3".to_vec()),
                IdentityError::Frontend,
            ),
            (
                |raw| raw.frontend = Some(b"/local/domain/6/device/vif/2".to_vec()),
                IdentityError::Frontend,
            ),
            (|raw| raw.mac = None, IdentityError::Mac),
            (|raw| raw.mac = Some(b"00:16:3e:5e:6c".to_vec()), IdentityError::Mac),
            (|raw| raw.mac = Some(b"00:16:3e:5e:6c:00:01".to_vec()), IdentityError::Mac),
            (|raw| raw.mac = Some(b"00:16:3e:5e:6c:+0".to_vec()), IdentityError::Mac),
            (|raw| raw.ip = None, IdentityError::Ip),
            (|raw| raw.ip = Some(b" ".to_vec()), IdentityError::Ip),
            (|raw| raw.ip = Some(b"10.137.0.256".to_vec()), IdentityError::Ip),
            (|raw| raw.ip = Some(b"10.137.0.11,10.137.0.12".to_vec()), IdentityError::Ip),
            (|raw| raw.ip = Some(b"fd09:::1".to_vec()), IdentityError::Ip),
            (|raw| raw.mtu = Some(b"67".to_vec()), IdentityError::Mtu),
        ];
        for (number, (change, error)) in cases.into_iter().enumerate() {
            let mut raw = raw();
            change(&mut raw);
            assert_eq!(raw.parse(DOM, 2), Err(error), "case {number}");
        }
    }

    #[test]
    fn too_many_addresses_are_refused() {
        let mut raw = raw();
        raw.ip = Some([b"10.0.0.1 ".as_slice(); 16].concat());
        assert_eq!(raw.parse(DOM, 2).unwrap().addresses.len(), 16);
        raw.ip = Some([b"10.0.0.1 ".as_slice(); 17].concat());
        assert_eq!(raw.parse(DOM, 2), Err(IdentityError::Ip));
    }

    #[test]
    fn mtu_is_capped() {
        assert_eq!(parse_mtu(Some(b"9000")), Some(1500));
        assert_eq!(parse_mtu(Some(b"4000000000")), Some(1500));
        assert_eq!(parse_mtu(Some(b"1280")), Some(1280));
        assert_eq!(parse_mtu(Some(b"-1")), None);
    }

    fn settings(pairs: &[(Setting, &str)]) -> RawSettings {
        let mut raw = RawSettings::default();
        let base = [
            (Setting::TxRingRef, "520"),
            (Setting::RxRingRef, "521"),
            (Setting::EventChannel, "7"),
            (Setting::RequestRxCopy, "1"),
        ];
        for (setting, value) in base.iter().chain(pairs) {
            raw.set(*setting, value.as_bytes().to_vec());
        }
        raw
    }

    #[test]
    fn the_settings_of_a_linux_frontend() {
        let pairs =
            [(Setting::NumQueues, "1"), (Setting::RxNotify, "1"), (Setting::Ipv6CsumOffload, "1")];
        let parsed = settings(&pairs).parse().unwrap();
        let expected = Settings {
            tx_ring: GrantRef(520),
            rx_ring: GrantRef(521),
            port: EventPort(7),
            rx_notify: RxNotify::Yes,
            capabilities: Capabilities { blank_ipv4: true, blank_ipv6: true, ..Capabilities::NONE },
        };
        assert_eq!(parsed, expected);
        let plain = settings(&[(Setting::NoCsumOffload, "1")]).parse().unwrap();
        assert_eq!(plain.capabilities, Capabilities::NONE);
        assert_eq!(plain.rx_notify, RxNotify::No);
    }

    #[test]
    fn super_frames_need_scatter_gather_and_blank_checksums() {
        let all = [
            (Setting::Ipv6CsumOffload, "1"),
            (Setting::Sg, "1"),
            (Setting::GsoTcpV4, "1"),
            (Setting::GsoTcpV6, "1"),
        ];
        let gso = |pairs: &[(Setting, &str)]| {
            let capabilities = settings(pairs).parse().unwrap().capabilities;
            (capabilities.gso_tcpv4, capabilities.gso_tcpv6)
        };
        assert_eq!(gso(&all), (true, true));
        assert_eq!(gso(&all[1..]), (true, false));
        assert_eq!(gso(&[all[0], all[2], all[3]]), (false, false));
        assert_eq!(gso(&all[..3]), (true, false));
        let blank = (Setting::NoCsumOffload, "1");
        assert_eq!(gso(&[all[0], all[1], all[2], all[3], blank]), (false, true));
        assert_eq!(Setting::needed(false).last(), Some(Setting::Ipv6CsumOffload));
        assert_eq!(Setting::needed(true).last(), Some(Setting::GsoTcpV6));
    }

    #[test]
    fn malformed_settings_are_named() {
        let cases = [
            (Setting::NumQueues, "2"),
            (Setting::NumQueues, "0"),
            (Setting::TxRingRef, "4294967296"),
            (Setting::TxRingRef, "-1"),
            (Setting::RxRingRef, ""),
            (Setting::EventChannel, "7 "),
            (Setting::RequestRxCopy, "0"),
            (Setting::RxNotify, "2"),
            (Setting::NoCsumOffload, "yes"),
            (Setting::Ipv6CsumOffload, "\0"),
        ];
        for (setting, value) in cases {
            assert_eq!(
                settings(&[(setting, value)]).parse(),
                Err(setting),
                "{setting:?}={value:?}"
            );
        }
        assert_eq!(RawSettings::default().parse(), Err(Setting::RequestRxCopy));
        assert!(RawSettings::default().is_incomplete() && !settings(&[]).is_incomplete());
    }
}
