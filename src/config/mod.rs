//! QubesDB entries to typed configuration, or a precise error that names the key.
//!
//! Each reader takes what is in the [`Store`] now and reports what it cannot use; the smallest part
//! that depends on a missing or malformed key stays off, the rest is taken. Neighbours: `control`
//! decides *when* something is read, `features` reads the `fw-...` words.
//!
//! Keys and their grammar: Qubes core-admin (`create_qdb_entries` and the network extension).

mod error;
pub mod features;
pub(crate) mod mapped;
pub mod netvm;
mod text;
mod words;

use alloc::vec::Vec;
use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use qubesdb::Store;
use rules::{Excerpt, Family};

pub use error::{ConfigError, Problem, Wanted};
pub use mapped::mapped_ips;

use crate::uplink::{FamilyConfig, NetworkConfig};
use crate::visible::MappedIp;

/// Bytes of the longest VM name that Qubes allows.
const MAX_NAME_BYTES: usize = 31;

/// Where our uplink configuration comes from. dom0 leaves these keys stale when the netvm goes.
pub(crate) const UPLINK_KEYS: [&str; 7] = [
    "/qubes-ip",
    "/qubes-netmask",
    "/qubes-gateway",
    "/qubes-ip6",
    "/qubes-gateway6",
    "/qubes-primary-dns",
    "/qubes-secondary-dns",
];

/// Where the configuration of the clients' side comes from.
pub(crate) const DOWNLINK_KEYS: [&str; 4] = [
    "/qubes-netvm-gateway",
    "/qubes-netvm-gateway6",
    "/qubes-netvm-primary-dns",
    "/qubes-netvm-secondary-dns",
];

/// Addresses of all configured clients as the clients know them, running or not.
pub(crate) const CONNECTED_KEYS: [&str; 2] = ["/connected-ips", "/connected-ips6"];

pub(crate) const NAME_KEY: &str = "/name";
pub(crate) const DEBUG_KEY: &str = "/qubes-debug-mode";
pub(crate) const SEED_KEY: &str = "/qubes-random-seed";

/// Receives what cannot be used.
pub(crate) type Report<'a> = dyn FnMut(ConfigError) + 'a;

/// How we are connected upstream. Valid only while an uplink device is connected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Nothing: no IPv4 through the uplink.
    pub ipv4: Option<Uplink4>,
    /// Nothing: no IPv6 through the uplink.
    pub ipv6: Option<Uplink6>,
    /// Our own resolvers, the first first; at most two.
    pub dns: Vec<IpAddr>,
}

/// IPv4 of the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink4 {
    /// `/qubes-ip`.
    pub address: Ipv4Addr,
    /// `/qubes-netmask` in bits; 32 unless dom0 says otherwise.
    pub prefix_length: u8,
    /// `/qubes-gateway`.
    pub gateway: Ipv4Addr,
}

/// IPv6 of the uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Uplink6 {
    /// `/qubes-ip6`.
    pub address: Ipv6Addr,
    /// `/qubes-gateway6`; the netvm need not offer IPv6.
    pub gateway: Option<Ipv6Addr>,
}

/// What clients see of us.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DownlinkConfig {
    /// The gateway of the clients, our own address on each client device.
    pub gateway: Option<Ipv4Addr>,
    /// The same for IPv6; absent without IPv6.
    pub gateway6: Option<Ipv6Addr>,
    /// Addresses that clients use as resolvers, in order; at most two. The n-th is redirected to
    /// our n-th own one.
    pub dns: Vec<IpAddr>,
}

/// Name of this VM, for log lines: letters, digits, dash, dot, underscore.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VmName {
    bytes: [u8; MAX_NAME_BYTES],
    length: usize,
}

impl VmName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.length).unwrap_or_default();
        core::str::from_utf8(bytes).unwrap_or_default()
    }
}

impl fmt::Debug for VmName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

/// Random bytes from dom0 (64 in practice). Secret: never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct RandomSeed(Vec<u8>);

impl RandomSeed {
    /// The bytes, to be mixed into the generator.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for RandomSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RandomSeed({} bytes)", self.0.len())
    }
}

/// Reads `UPLINK_KEYS`. To be called when an uplink device is there: before, they are stale.
pub fn uplink(store: &Store, report: &mut Report<'_>) -> UplinkConfig {
    let dns = ["/qubes-primary-dns", "/qubes-secondary-dns"];
    UplinkConfig {
        ipv4: uplink4(store, report),
        ipv6: uplink6(store, report),
        dns: resolvers(store, dns, report),
    }
}

/// Reads `DOWNLINK_KEYS`.
pub fn downlink(store: &Store, report: &mut Report<'_>) -> DownlinkConfig {
    let dns = ["/qubes-netvm-primary-dns", "/qubes-netvm-secondary-dns"];
    DownlinkConfig {
        gateway: required(store, "/qubes-netvm-gateway", text::host4, HOST4, report),
        gateway6: optional(store, "/qubes-netvm-gateway6", text::host6, HOST6, report),
        dns: resolvers(store, dns, report),
    }
}

/// Reads `CONNECTED_KEYS`: IPv4 ascending, then IPv6 ascending, none twice. A wrong word is left
/// out; the first one of each key is reported.
pub fn connected_ips(store: &Store, report: &mut Report<'_>) -> Vec<IpAddr> {
    let mut sorted = Vec::new();
    let [key4, key6] = CONNECTED_KEYS;
    if store.get(key4).is_none() {
        report(ConfigError { key: key4, problem: Problem::Missing });
    }
    let v4 = |word: &[u8]| text::host4(word).map(IpAddr::V4);
    let v6 = |word: &[u8]| text::host6(word).map(IpAddr::V6);
    add_words(store, key4, v4, HOST4, &mut sorted, report);
    // Without IPv6 dom0 writes this key empty, older releases not at all.
    add_words(store, key6, v6, HOST6, &mut sorted, report);
    sorted.sort_unstable();
    sorted.dedup();
    sorted
}

/// The uplink to a NetVM that is a client of ours, which dom0's keys say nothing about.
pub fn client_side_uplink(netvm: &netvm::ClientSideNetvm) -> UplinkConfig {
    let (address, gateway) = (netvm.address, netvm.gateway);
    UplinkConfig {
        ipv4: Some(Uplink4 { address, prefix_length: 32, gateway }),
        ipv6: None,
        dns: netvm.dns.map(IpAddr::V4).to_vec(),
    }
}

/// Puts the four groups together for the packet path.
pub fn network(
    uplink: &UplinkConfig,
    downlink: &DownlinkConfig,
    connected: &[IpAddr],
    mapped: &[MappedIp],
) -> NetworkConfig {
    NetworkConfig {
        v4: FamilyConfig {
            address: uplink.ipv4.map(|ipv4| ipv4.address),
            gateway: uplink.ipv4.map(|ipv4| ipv4.gateway),
            client_gateway: downlink.gateway,
            dns: of_ipv4(&uplink.dns),
            client_dns: of_ipv4(&downlink.dns),
        },
        v6: FamilyConfig {
            address: uplink.ipv6.map(|ipv6| ipv6.address),
            gateway: uplink.ipv6.and_then(|ipv6| ipv6.gateway),
            client_gateway: downlink.gateway6,
            dns: of_ipv6(&uplink.dns),
            client_dns: of_ipv6(&downlink.dns),
        },
        connected: connected.to_vec(),
        mapped: mapped.to_vec(),
    }
}

/// Reads `/name`.
pub fn name(store: &Store, report: &mut Report<'_>) -> Option<VmName> {
    required(store, NAME_KEY, vm_name, Wanted::Name, report)
}

/// Reads `/qubes-debug-mode`; off unless it says otherwise.
pub fn debug_mode(store: &Store, report: &mut Report<'_>) -> DebugMode {
    let switch = |value: &[u8]| match value {
        b"0" => Some(DebugMode::Off),
        b"1" => Some(DebugMode::On),
        _ => None,
    };
    required(store, DEBUG_KEY, switch, Wanted::Switch, report).unwrap_or_default()
}

/// `/qubes-debug-mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum DebugMode {
    /// `0`.
    #[default]
    Off,
    /// `1`.
    On,
}

/// Reads `/qubes-random-seed`.
pub fn random_seed(store: &Store, report: &mut Report<'_>) -> Option<RandomSeed> {
    let problem = match store.get(SEED_KEY) {
        None => Problem::Missing,
        Some(value) => match text::base64(value).filter(|bytes| !bytes.is_empty()) {
            Some(bytes) => return Some(RandomSeed(bytes)),
            None => Problem::BadSecret(Wanted::Base64),
        },
    };
    report(ConfigError { key: SEED_KEY, problem });
    None
}

const HOST4: Wanted = Wanted::Host(Family::V4);
const HOST6: Wanted = Wanted::Host(Family::V6);

fn uplink4(store: &Store, report: &mut Report<'_>) -> Option<Uplink4> {
    let address = required(store, "/qubes-ip", text::host4, HOST4, report);
    let mask = required(store, "/qubes-netmask", text::netmask, Wanted::Netmask, report);
    let gateway = required(store, "/qubes-gateway", text::host4, HOST4, report);
    let (address, gateway) = (address?, gateway?);
    if address == gateway {
        report(ConfigError { key: "/qubes-gateway", problem: Problem::GatewayIsOwn });
        return None;
    }
    // Everything goes through the gateway, so that the mask decides nothing: without one go on.
    Some(Uplink4 { address, prefix_length: mask.unwrap_or(32), gateway })
}

fn uplink6(store: &Store, report: &mut Report<'_>) -> Option<Uplink6> {
    let address = optional(store, "/qubes-ip6", text::host6, HOST6, report)?;
    let gateway = optional(store, "/qubes-gateway6", text::host6, HOST6, report);
    if gateway == Some(address) {
        report(ConfigError { key: "/qubes-gateway6", problem: Problem::GatewayIsOwn });
        return None;
    }
    Some(Uplink6 { address, gateway })
}

fn resolvers(store: &Store, keys: [&'static str; 2], report: &mut Report<'_>) -> Vec<IpAddr> {
    let read = |key| required(store, key, text::host, Wanted::AnyHost, report);
    keys.into_iter().filter_map(read).collect()
}

fn of_ipv4(addresses: &[IpAddr]) -> Vec<Ipv4Addr> {
    let ipv4 = |address: &IpAddr| if let IpAddr::V4(v4) = address { Some(*v4) } else { None };
    addresses.iter().filter_map(ipv4).collect()
}

fn of_ipv6(addresses: &[IpAddr]) -> Vec<Ipv6Addr> {
    let ipv6 = |address: &IpAddr| if let IpAddr::V6(v6) = address { Some(*v6) } else { None };
    addresses.iter().filter_map(ipv6).collect()
}

fn add_words(
    store: &Store,
    key: &'static str,
    parse: impl Fn(&[u8]) -> Option<IpAddr>,
    wanted: Wanted,
    into: &mut Vec<IpAddr>,
    report: &mut Report<'_>,
) {
    let value = store.get(key).unwrap_or_default();
    let mut first_bad = None;
    for word in value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
        match parse(word) {
            Some(address) => into.push(address),
            None => _ = first_bad.get_or_insert(word),
        }
    }
    if let Some(word) = first_bad {
        report(bad(key, word, wanted));
    }
}

fn vm_name(value: &[u8]) -> Option<VmName> {
    let allowed = |&byte: &u8| byte.is_ascii_alphanumeric() || b"-._".contains(&byte);
    if value.is_empty() || !value.iter().all(allowed) {
        return None;
    }
    let mut bytes = [0; MAX_NAME_BYTES];
    bytes.get_mut(..value.len())?.copy_from_slice(value);
    Some(VmName { bytes, length: value.len() })
}

/// A key that has to be there.
fn required<T>(
    store: &Store,
    key: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
    wanted: Wanted,
    report: &mut Report<'_>,
) -> Option<T> {
    if store.get(key).is_none() {
        report(ConfigError { key, problem: Problem::Missing });
    }
    present(store, key, parse, wanted, report)
}

/// A key that may be absent or empty.
fn optional<T>(
    store: &Store,
    key: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
    wanted: Wanted,
    report: &mut Report<'_>,
) -> Option<T> {
    if store.get(key)?.is_empty() {
        return None;
    }
    present(store, key, parse, wanted, report)
}

fn present<T>(
    store: &Store,
    key: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
    wanted: Wanted,
    report: &mut Report<'_>,
) -> Option<T> {
    let value = store.get(key)?;
    let parsed = parse(value);
    if parsed.is_none() {
        report(bad(key, value, wanted));
    }
    parsed
}

fn bad(key: &'static str, value: &[u8], wanted: Wanted) -> ConfigError {
    ConfigError { key, problem: Problem::Bad { value: Excerpt::new(value), wanted } }
}

#[cfg(test)]
pub(crate) mod testdb;
#[cfg(test)]
mod tests;
