"""What rules mean, as small as it can be said: the first rule whose predicates all hold decides, else the policy.

Written from the Qubes documentation and apart from `rust_firewall.rule`, so that a mistake there is not repeated here.
"""

from __future__ import annotations

import ipaddress

RESOLVERS = ("10.139.1.1", "10.139.1.2")


def decide(rules, packet, names, policy="drop"):
    """`(action, number of the rule or "policy")` for a packet: `proto`, `dst`, and `dport` (of ICMP the type)."""
    for number, text in enumerate(rules):
        options = dict(word.split("=", 1) for word in text.partition(" comment=")[0].split(" "))
        if matches(options, packet, names):
            return options["action"], number
    return policy, "policy"


def matches(options, packet, names):
    """Whether all predicates of a rule hold."""
    address = ipaddress.ip_address(packet["dst"])
    for key in ("dst4", "dst6"):
        if key in options and address not in ipaddress.ip_network(options[key], strict=False):
            return False
    if "dsthost" in options and packet["dst"] not in names.get(options["dsthost"], ()):
        return False
    if "proto" in options and options["proto"] != packet["proto"].replace("icmpv6", "icmp"):
        return False
    if "specialtarget" in options:
        if packet["dst"] not in RESOLVERS or packet["proto"] not in ("tcp", "udp") or packet["dport"] != 53:
            return False
    if "dstports" in options:
        low, _, high = options["dstports"].partition("-")
        if not int(low) <= packet["dport"] <= int(high or low):
            return False
    return "icmptype" not in options or int(options["icmptype"]) == packet["dport"]
