//! Rule sets as dom0 writes them into QubesDB: the input of our firewall.

use super::model::{Family, Fault, Proto, Rule, Set, To};

/// Keys and values below `/qubes-firewall/<ip>/`.
pub(super) fn entries(set: &Set) -> Vec<(String, String)> {
    let mut entries: Vec<(String, String)> =
        set.rules.iter().map(|(key, rule)| (format!("{key:04}"), line(rule, set.family))).collect();
    let policy = if set.policy_accepts { "accept" } else { "drop" };
    match set.fault {
        Some(Fault::NoPolicy) => {}
        Some(Fault::PolicyWord) => entries.push(("policy".into(), "reject".into())),
        _ => entries.push(("policy".into(), policy.into())),
    }
    if let Some((key, value)) = set.fault.and_then(|fault| faulty(fault, set.family)) {
        entries.push((key.into(), value.into()));
    }
    entries
}

/// An entry with the fault; none for those that lie in `policy`.
fn faulty(fault: Fault, family: Family) -> Option<(&'static str, &'static str)> {
    let (same, other, long) = match family {
        Family::V4 => (
            "action=accept dst4=198.51.100.256/32",
            "action=accept dst6=2001:db8::/32",
            "action=accept dst4=198.51.100.0/33",
        ),
        Family::V6 => (
            "action=accept dst6=2001:db8::g/64",
            "action=accept dst4=198.51.100.0/24",
            "action=accept dst6=2001:db8::/129",
        ),
    };
    let value = match fault {
        Fault::NoPolicy | Fault::PolicyWord => return None,
        Fault::NoAction => "proto=tcp",
        Fault::ActionWord => "action=ACCEPT",
        Fault::UnknownKey => "action=accept dpi=NO",
        Fault::KeyOfFiveDigits => return Some(("10000", "action=accept")),
        Fault::OtherFamily => other,
        Fault::LongPrefix => long,
        Fault::BadAddress => same,
        Fault::ReversedPorts => "action=accept proto=tcp dstports=90-80",
        Fault::PortTooLarge => "action=accept proto=tcp dstports=1-65536",
        Fault::IcmpTypeTooLarge => "action=accept proto=icmp icmptype=256",
        Fault::PortsOfIcmp => "action=accept proto=icmp dstports=80-80",
        Fault::IcmpTypeOfTcp => "action=accept proto=tcp icmptype=8",
        Fault::DnsOfIcmp => "action=accept proto=icmp specialtarget=dns",
    };
    Some(("9999", value))
}

/// One rule; its spelling chooses among the forms that mean the same.
pub(super) fn line(rule: &Rule, family: Family) -> String {
    let mut words = vec![format!("action={}", if rule.accept { "accept" } else { "drop" })];
    let bit = |n: u32| rule.spelling >> n & 1 == 1;
    match rule.to {
        Some(To::Net(address, length)) => {
            let key = if family == Family::V4 { "dst4" } else { "dst6" };
            let full = if family == Family::V4 { 32 } else { 128 };
            words.push(match length == full && bit(0) {
                true => format!("{key}={address}"),
                false => format!("{key}={address}/{length}"),
            });
        }
        Some(To::Name(name)) => words.push(format!("dsthost={}", name.text())),
        None => {}
    }
    if let Some(proto) = rule.proto {
        let word = match proto {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Icmp => "icmp",
        };
        words.push(format!("proto={word}"));
    }
    if rule.dns {
        words.push("specialtarget=dns".into());
    }
    if let Some((low, high)) = rule.ports {
        words.push(match low == high && bit(1) {
            true => format!("dstports={low}"),
            false => format!("dstports={low}-{high}"),
        });
    }
    if let Some(kind) = rule.icmp_type {
        words.push(format!("icmptype={kind}"));
    }
    // Any order is legal; half of the rules keep dom0's.
    if bit(2) {
        let count = words.len().max(1);
        words.rotate_left((rule.spelling >> 3) as usize % count);
    }
    words.join(" ")
}
