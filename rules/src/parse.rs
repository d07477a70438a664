//! One line of text to one [`Rule`], strictly: what is not understood in full is refused in full.
//!
//! The grammar, as dom0 writes it (any order of the options is accepted):
//!
//! ```text
//! line  = action [SP dst] [SP proto] [SP target] [SP (ports / icmp)]
//! dst   = "dst4=" ipv4 ["/" 0..32] / "dst6=" ipv6 ["/" 0..128] / "dsthost=" name
//! proto = "proto=" ("tcp" / "udp" / "icmp")      target = "specialtarget=dns"
//! ports = "dstports=" port ["-" port]            icmp   = "icmptype=" 0..255
//! ```

use alloc::string::String;
use core::net::{Ipv4Addr, Ipv6Addr};
use core::str::{self, FromStr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::error::{Element, Excerpt, Reason, RuleError};
use crate::rule::{Action, Destination, HostName, PortRange, Rule, SpecialTarget, UpperMatch};
use crate::subject::Family;

/// One `key=value` of the line.
#[derive(Clone, Copy)]
struct Setting<'a> {
    /// Position, counted from 1.
    position: usize,
    text: &'a str,
    value: &'a str,
}

impl Setting<'_> {
    fn error(&self, reason: Reason) -> RuleError {
        error_at(self.position, self.text, reason)
    }
}

/// The options of one line, each at most once, values not looked at yet.
#[derive(Default)]
struct Options<'a> {
    action: Option<Setting<'a>>,
    dst4: Option<Setting<'a>>,
    dst6: Option<Setting<'a>>,
    dsthost: Option<Setting<'a>>,
    proto: Option<Setting<'a>>,
    specialtarget: Option<Setting<'a>>,
    dstports: Option<Setting<'a>>,
    icmptype: Option<Setting<'a>>,
}

pub(crate) fn rule(family: Family, value: &[u8]) -> Result<Rule, RuleError> {
    let options = split(value)?;
    let action = options.action.ok_or(whole_line(Reason::ActionMissing))?;
    let action =
        Action::from_word(action.value).ok_or_else(|| action.error(Reason::UnknownAction))?;
    let destination = destination(family, &options)?;
    let upper = upper(&options)?;
    let target = target(upper, &options)?;
    Ok(Rule { action, destination, upper, target })
}

fn split(value: &[u8]) -> Result<Options<'_>, RuleError> {
    if value.is_empty() {
        return Err(whole_line(Reason::EmptyLine));
    }
    let line = str::from_utf8(value).ok().filter(|line| line.is_ascii());
    let line = line.ok_or(whole_line(Reason::NotText))?;
    let mut options = Options::default();
    for (index, text) in line.split(' ').enumerate() {
        options.add(index.saturating_add(1), text)?;
    }
    Ok(options)
}

impl<'a> Options<'a> {
    fn add(&mut self, position: usize, text: &'a str) -> Result<(), RuleError> {
        let error = |reason| Err(error_at(position, text, reason));
        if text.is_empty() {
            return error(Reason::EmptyElement);
        }
        let Some((key, value)) = text.split_once('=') else { return error(Reason::NoEquals) };
        if value.contains('=') {
            return error(Reason::SecondEquals);
        }
        let Some(place) = self.place(key) else { return error(Reason::UnknownOption) };
        if value.is_empty() {
            return error(Reason::EmptyValue);
        }
        if place.is_some() {
            return error(Reason::DuplicateOption);
        }
        *place = Some(Setting { position, text, value });
        Ok(())
    }

    fn place(&mut self, key: &str) -> Option<&mut Option<Setting<'a>>> {
        Some(match key {
            "action" => &mut self.action,
            "dst4" => &mut self.dst4,
            "dst6" => &mut self.dst6,
            "dsthost" => &mut self.dsthost,
            "proto" => &mut self.proto,
            "specialtarget" => &mut self.specialtarget,
            "dstports" => &mut self.dstports,
            "icmptype" => &mut self.icmptype,
            _ => return None,
        })
    }
}

fn destination(family: Family, options: &Options<'_>) -> Result<Destination, RuleError> {
    match (options.dst4, options.dst6, options.dsthost) {
        (None, None, None) => Ok(Destination::Any),
        (Some(setting), None, None) => {
            in_family(&setting, Family::V4, family)?;
            Ok(Destination::Net(IpNet::V4(net4(&setting)?)))
        }
        (None, Some(setting), None) => {
            in_family(&setting, Family::V6, family)?;
            Ok(Destination::Net(IpNet::V6(net6(&setting)?)))
        }
        (None, None, Some(setting)) => Ok(Destination::Host(host(&setting)?)),
        (Some(one), Some(other), _) | (Some(one), _, Some(other)) | (_, Some(one), Some(other)) => {
            let later = if one.position > other.position { one } else { other };
            Err(later.error(Reason::SecondDestination))
        }
    }
}

fn in_family(setting: &Setting<'_>, of: Family, tree: Family) -> Result<(), RuleError> {
    if of == tree { Ok(()) } else { Err(setting.error(Reason::WrongFamily(of, tree))) }
}

fn net4(setting: &Setting<'_>) -> Result<Ipv4Net, RuleError> {
    let (address, length) = address_and_length::<Ipv4Addr>(setting, Family::V4, 32)?;
    let net = Ipv4Net::new(address, length);
    net.map(|net| net.trunc()).map_err(|_| setting.error(Reason::BadPrefixLength(32)))
}

fn net6(setting: &Setting<'_>) -> Result<Ipv6Net, RuleError> {
    let (address, length) = address_and_length::<Ipv6Addr>(setting, Family::V6, 128)?;
    let net = Ipv6Net::new(address, length);
    net.map(|net| net.trunc()).map_err(|_| setting.error(Reason::BadPrefixLength(128)))
}

/// Without a length, the address alone. `core` refuses octets with leading zeros and short forms;
/// whether the length fits the family is left to the caller.
fn address_and_length<A: FromStr>(
    setting: &Setting<'_>,
    family: Family,
    longest: u8,
) -> Result<(A, u8), RuleError> {
    let (address, length) = match setting.value.split_once('/') {
        None => (setting.value, Some(longest)),
        Some((address, length)) => (address, decimal(length)),
    };
    let address = address.parse().map_err(|_| setting.error(Reason::BadAddress(family)))?;
    Ok((address, length.ok_or_else(|| setting.error(Reason::BadPrefixLength(longest)))?))
}

fn host(setting: &Setting<'_>) -> Result<HostName, RuleError> {
    let allowed = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_');
    if !setting.value.bytes().all(allowed) {
        return Err(setting.error(Reason::BadName));
    }
    let mut name = String::new();
    name.try_reserve_exact(setting.value.len()).map_err(|_| whole_line(Reason::OutOfMemory))?;
    name.push_str(setting.value);
    Ok(HostName(name.into_boxed_str()))
}

fn upper(options: &Options<'_>) -> Result<UpperMatch, RuleError> {
    let Some(proto) = options.proto else { return upper_without_proto(options) };
    match proto.value {
        "tcp" => Ok(UpperMatch::Tcp(ports_without_type(options)?)),
        "udp" => Ok(UpperMatch::Udp(ports_without_type(options)?)),
        "icmp" => match (options.dstports, options.icmptype) {
            (Some(ports), _) => Err(ports.error(Reason::PortsWithIcmp)),
            (None, Some(setting)) => Ok(UpperMatch::Icmp(Some(icmp_type(&setting)?))),
            (None, None) => Ok(UpperMatch::Icmp(None)),
        },
        _ => Err(proto.error(Reason::UnknownProtocol)),
    }
}

/// Ports alone mean TCP and UDP, a type alone means ICMP, as in the reference.
fn upper_without_proto(options: &Options<'_>) -> Result<UpperMatch, RuleError> {
    if let (None, Some(setting)) = (options.dstports, options.icmptype) {
        return Ok(UpperMatch::Icmp(Some(icmp_type(&setting)?)));
    }
    Ok(ports_without_type(options)?.map_or(UpperMatch::Any, UpperMatch::TcpOrUdp))
}

fn ports_without_type(options: &Options<'_>) -> Result<Option<PortRange>, RuleError> {
    match options.icmptype {
        Some(setting) => Err(setting.error(Reason::TypeWithoutIcmp)),
        None => options.dstports.map(|setting| port_range(&setting)).transpose(),
    }
}

fn port_range(setting: &Setting<'_>) -> Result<PortRange, RuleError> {
    let (first, last) = setting.value.split_once('-').unwrap_or((setting.value, setting.value));
    let (Some(first), Some(last)) = (decimal(first), decimal(last)) else {
        return Err(setting.error(Reason::BadPorts));
    };
    PortRange::new(first, last).ok_or_else(|| setting.error(Reason::ReversedPorts))
}

fn icmp_type(setting: &Setting<'_>) -> Result<u8, RuleError> {
    decimal(setting.value).ok_or_else(|| setting.error(Reason::BadIcmpType))
}

fn target(upper: UpperMatch, options: &Options<'_>) -> Result<Option<SpecialTarget>, RuleError> {
    let Some(setting) = options.specialtarget else { return Ok(None) };
    if setting.value != "dns" {
        return Err(setting.error(Reason::UnknownTarget));
    }
    if matches!(upper, UpperMatch::Icmp(_)) {
        return Err(setting.error(Reason::DnsWithIcmp));
    }
    Ok(Some(SpecialTarget::Dns))
}

/// A decimal number in the range of its type: digits only (`core` would take a sign), no leading
/// zero (nft would read it as octal).
fn decimal<N: FromStr>(text: &str) -> Option<N> {
    let digits_only = text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits_only || (text.len() > 1 && text.starts_with('0')) {
        return None;
    }
    text.parse().ok()
}

fn error_at(position: usize, text: &str, reason: Reason) -> RuleError {
    let text = Excerpt::new(text.as_bytes());
    RuleError { element: Some(Element { position, text }), reason }
}

const fn whole_line(reason: Reason) -> RuleError {
    RuleError { element: None, reason }
}
