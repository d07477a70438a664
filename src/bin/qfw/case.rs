//! JSON that describes a rule set and a packet.
//!
//! Keys that are not known are passed over, so that a line can carry remarks and expectations. `null` is the same as a
//! key that is missing.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use rules::{Family, RuleSet, RuleSetError, Upper};
use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use crate::engine::{KnownNames, Packet};

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// A rule set, and what is known around it.
#[derive(Debug, Deserialize)]
pub(crate) struct SetLine {
    pub(crate) client: Option<IpAddr>,
    policy: Option<String>,
    rules: Entries,
    dns_servers: Option<Vec<IpAddr>>,
    dns: Option<BTreeMap<String, Option<Vec<IpAddr>>>>,
}

impl SetLine {
    /// Keys and values as in QubesDB, the policy among them. One that is given in both places, differently, comes twice.
    pub(crate) fn entries(&self) -> Vec<(String, String)> {
        let mut entries = self.rules.0.clone();
        if let Some(policy) = &self.policy {
            let policy = ("policy".to_owned(), policy.clone());
            if !entries.contains(&policy) {
                entries.push(policy);
            }
        }
        entries
    }

    pub(crate) fn dns_servers(&self) -> &[IpAddr] {
        self.dns_servers.as_deref().unwrap_or_default()
    }

    pub(crate) fn names(&self) -> KnownNames {
        let mut names = KnownNames::default();
        for (name, addresses) in self.dns.iter().flatten() {
            if let Some(addresses) = addresses {
                names.insert(name, addresses.clone());
            }
        }
        names
    }
}

/// Reads keys and values as the firewall does.
pub(crate) fn parse(family: Family, entries: &[(String, String)]) -> Result<RuleSet, RuleSetError> {
    let bytes = entries.iter().map(|(key, value)| (key.as_bytes(), value.as_bytes()));
    RuleSet::parse(family, bytes)
}

/// Rules as a list in the order of their keys, or as an object of the keys. A key that comes twice stays twice.
#[derive(Debug)]
struct Entries(Vec<(String, String)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl<'de> Visitor<'de> for Either {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of rules, or an object of QubesDB keys and rules")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(rule) = list.next_element()? {
                    entries.push((format!("{:04}", entries.len()), rule));
                }
                Ok(Entries(entries))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = object.next_entry()? {
                    entries.push(entry);
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_any(Either)
    }
}

/// A packet.
#[derive(Debug, Deserialize)]
pub(crate) struct PacketLine {
    src: IpAddr,
    dst: IpAddr,
    proto: Proto,
    #[serde(rename = "sport")]
    _sport: Option<u16>,
    dport: Option<u16>,
    icmptype: Option<u8>,
    #[serde(rename = "icmpcode")]
    _icmpcode: Option<u8>,
}

impl PacketLine {
    /// Reads it out of a larger object.
    pub(crate) fn of(value: &Value) -> serde_json::Result<Self> {
        Self::deserialize(value)
    }

    /// The packet, or what it lacks. Rules look neither at the source port nor at the code of an ICMP message.
    pub(crate) fn packet(&self) -> Result<Packet, String> {
        let (source, destination) = (self.src, self.dst);
        let Self { dport, icmptype, .. } = self;
        let upper = upper(destination, self.proto.number(destination), *dport, *icmptype)?;
        Ok(Packet { source, destination, upper })
    }
}

/// The layer above IP of a packet to `destination`; an error says what is missing.
pub(crate) fn upper(
    destination: IpAddr,
    protocol: u8,
    port: Option<u16>,
    icmp_type: Option<u8>,
) -> Result<Upper, String> {
    let icmp = if destination.is_ipv4() { ICMP } else { ICMPV6 };
    let port = || port.ok_or("a TCP or UDP packet needs dport");
    Ok(match protocol {
        TCP => Upper::Tcp { port: port()? },
        UDP => Upper::Udp { port: port()? },
        _ if protocol == icmp => {
            Upper::Icmp { icmp_type: icmp_type.ok_or("an ICMP packet needs icmptype")? }
        }
        protocol => Upper::Other { protocol },
    })
}

/// An IP protocol by name or number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proto {
    Number(u8),
    /// That of the packet's family.
    Icmp,
}

impl Proto {
    pub(crate) const EXPECTED: &str = "tcp, udp, icmp or a protocol number from 0 to 255";

    /// Reads a name or the digits of a number.
    pub(crate) fn of_text(text: &str) -> Option<Self> {
        match text {
            "tcp" => Some(Self::Number(TCP)),
            "udp" => Some(Self::Number(UDP)),
            "icmp" => Some(Self::Icmp),
            "icmpv6" => Some(Self::Number(ICMPV6)),
            number => number.parse().ok().map(Self::Number),
        }
    }

    pub(crate) fn number(self, destination: IpAddr) -> u8 {
        match self {
            Self::Number(number) => number,
            Self::Icmp if destination.is_ipv4() => ICMP,
            Self::Icmp => ICMPV6,
        }
    }
}

impl<'de> Deserialize<'de> for Proto {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Either;
        impl Visitor<'_> for Either {
            type Value = Proto;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(Proto::EXPECTED)
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<Proto, E> {
                let small = u8::try_from(number).map(Proto::Number);
                small.map_err(|_| E::invalid_value(serde::de::Unexpected::Unsigned(number), &self))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Proto, E> {
                let known = Proto::of_text(text);
                known.ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
        }
        deserializer.deserialize_any(Either)
    }
}
