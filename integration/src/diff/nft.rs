//! Rule sets and the Qubes packet path as nftables rules: what a Linux firewall VM does, in our words.
//!
//! Nothing of the crate `rules` is used here. A set becomes one chain, replaced in one transaction.

use std::fmt::Write as _;

use super::model::{Family, Plan, Proto, Rule, Set, To, plan};

/// Table and keywords of a family.
struct Words {
    table: &'static str,
    ip: &'static str,
    icmp: &'static str,
    reject: &'static str,
}

const fn words(family: Family) -> Words {
    match family {
        Family::V4 => Words {
            table: "ip fw",
            ip: "ip",
            icmp: "icmp",
            reject: "reject with icmp type admin-prohibited",
        },
        Family::V6 => Words {
            table: "ip6 fw",
            ip: "ip6",
            icmp: "icmpv6",
            reject: "reject with icmpv6 type admin-prohibited",
        },
    }
}

/// How a rule refuses.
pub(super) const fn reject(family: Family) -> &'static str {
    words(family).reject
}

/// The part that never changes: anti-spoofing, DNS redirection, input, isolation, masquerading.
pub(super) fn base(family: Family) -> String {
    let Words { table, ip, reject, .. } = words(family);
    let Plan { a, b, absent, client_dns: [c1, c2], own_dns: [d1, d2], .. } = plan(family);
    let (to_us, silent, number) = match family {
        Family::V4 => {
            ("reject with icmp type host-prohibited", "iifname \"vif*\" udp dport 68 drop", "icmp")
        }
        Family::V6 => (
            reject,
            "iifname \"vif*\" icmpv6 type { nd-router-advert, nd-redirect } drop",
            "ipv6-icmp",
        ),
    };
    // From the uplink, ICMPv6 is for the firewall itself; ICMP is not.
    let uplink = if family == Family::V6 { "meta l4proto ipv6-icmp accept" } else { "" };
    format!(
        "table {table} {{
 chain raw {{ type filter hook prerouting priority -300; policy accept;
  iifname \"vif*\" iifname . {ip} saddr != {{ \"vif1\" . {a}, \"vif2\" . {b} }} drop
  iifname != \"vif*\" {ip} saddr {{ {a}, {b}, {absent} }} drop
 }}
 chain dns {{ type nat hook prerouting priority -100; policy accept;
  {ip} daddr {c1} meta l4proto {{ tcp, udp }} th dport 53 dnat to {d1}
  {ip} daddr {c2} meta l4proto {{ tcp, udp }} th dport 53 dnat to {d2}
 }}
 chain input {{ type filter hook input priority 0; policy drop;
  ct state invalid drop
  {silent}
  ct state established,related accept
  iifname \"vif*\" meta l4proto {number} accept
  {uplink}
  iifname \"lo\" accept
  iifname \"vif*\" {to_us}
 }}
 chain base-forward {{ type filter hook forward priority 0; policy accept;
  ct state invalid drop
  ct state established,related accept
  oifname \"vif*\" drop
 }}
 chain rules {{ type filter hook forward priority 1; policy drop;
  ct state established,related accept
  iifname != \"vif*\" accept
  {ip} saddr {a} jump client-a
  {ip} saddr {b} jump client-b
 }}
 chain client-a {{ {reject}; }}
 chain client-b {{ accept; }}
 chain leak {{ type filter hook postrouting priority -300; policy accept;
  oifname != \"vif*\" {ip} daddr {{ {a}, {b}, {absent} }} drop
 }}
 chain post {{ type nat hook postrouting priority 100; policy accept;
  oifname \"vif*\" accept
  oifname \"lo\" accept
  masquerade
 }}
}}
"
    )
}

/// Replaces the chain of client A.
pub(super) fn replace(set: &Set) -> String {
    replace_by(set.family, &chain(set))
}

/// Replaces the chain of client A by these lines.
pub(super) fn replace_by(family: Family, lines: &[String]) -> String {
    let table = words(family).table;
    let mut text = format!("flush chain {table} client-a\n");
    for line in lines {
        let _ = writeln!(text, "add rule {table} client-a {line}");
    }
    text
}

/// The rules of a set, one nft rule a line.
pub(super) fn chain(set: &Set) -> Vec<String> {
    let Words { reject, .. } = words(set.family);
    if set.fault.is_some() {
        return vec![reject.into()];
    }
    let mut lines: Vec<String> =
        set.rules.iter().filter_map(|(_, rule)| translate(rule, set.family)).collect();
    lines.push(if set.policy_accepts { "accept".into() } else { reject.into() });
    lines
}

/// One rule; nothing for one that can match no packet.
fn translate(rule: &Rule, family: Family) -> Option<String> {
    let Words { ip, icmp, reject, .. } = words(family);
    let mut line = String::new();
    match rule.to {
        Some(To::Net(address, length)) => {
            let _ = write!(line, "{ip} daddr {address}/{length} ");
        }
        // The agent resolves a name when it loads the set, and takes all addresses of the family.
        Some(To::Name(name)) => {
            let addresses = name.addresses(family);
            let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            let _ = write!(line, "{ip} daddr {{ {} }} ", addresses.join(", "));
        }
        None => {}
    }
    match rule.proto {
        Some(Proto::Tcp) => line.push_str("meta l4proto tcp "),
        Some(Proto::Udp) => line.push_str("meta l4proto udp "),
        Some(Proto::Icmp) if family == Family::V4 => line.push_str("meta l4proto icmp "),
        Some(Proto::Icmp) => line.push_str("meta l4proto ipv6-icmp "),
        None => {}
    }
    if rule.dns {
        if rule.ports.is_some_and(|ports| ports != (53, 53)) {
            return None;
        }
        let [first, second] = plan(family).own_dns;
        let _ = write!(line, "{ip} daddr {{ {first}, {second} }} ");
    }
    let ports = if rule.dns { Some((53, 53)) } else { rule.ports };
    if let Some((low, high)) = ports {
        if rule.proto.is_none() {
            line.push_str("meta l4proto { tcp, udp } ");
        }
        let _ = write!(line, "th dport {low}-{high} ");
    }
    if let Some(kind) = rule.icmp_type {
        let _ = write!(line, "{icmp} type {kind} ");
    }
    line.push_str(if rule.accept { "accept" } else { reject });
    Some(line)
}
