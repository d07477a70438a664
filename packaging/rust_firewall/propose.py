"""From what a qube was seen to contact to the fewest rules that let exactly that pass. Pure; `learn` watches.

What "exactly" means: each rule names one host, one protocol, and ports that were all seen; ports next to each other become
one range. A host is a name where the firewall knew one (then all addresses of that name, now and later), else one address.
DNS to the resolvers that Qubes gives to qubes is one rule, `specialtarget=dns`, for UDP and TCP and both resolvers,
because a resolver library changes between them by itself. ICMP is written with its type.
"""

from __future__ import annotations

import ipaddress
from typing import Dict, Iterable, List, NamedTuple, Optional, Set, Tuple

from .rule import Rule, is_host_name

#: Qubes gives these to every qube (`/qubes-netvm-primary-dns`, `-secondary-dns`); the firewall redirects them.
RESOLVERS = ("10.139.1.1", "10.139.1.2")
DNS_PORT = 53
#: Echo request, by family: what a flow of ICMP is that has no type in the answer.
ECHO = {4: 8, 6: 128}
ICMP = ("icmp", "icmpv6")


class Contact(NamedTuple):
    """What a qube sent to, or tried to. `number` is the port, or the ICMP type."""

    proto: str
    address: str
    number: Optional[int]
    name: Optional[str] = None

    def is_dns(self) -> bool:
        return self.proto in ("tcp", "udp") and self.number == DNS_PORT and self.address in RESOLVERS


class Proposed(NamedTuple):
    """A rule, and the addresses that were seen behind its name."""

    rule: Rule
    addresses: List[str]


class Proposal(NamedTuple):
    """Rules in the order in which they should stand, and contacts that no rule of Qubes can describe."""

    rules: List[Proposed]
    unwritable: List[Contact]


def propose(contacts: Iterable[Contact], by_address: bool = False) -> Proposal:
    """The rules for `contacts`; with `by_address` none has a host name."""
    known = sorted(set(contacts), key=lambda one: (one.proto, one.address, one.number or 0, one.name or ""))
    names = {} if by_address else _names(known)
    numbers: Dict[Tuple[str, str], Set[Optional[int]]] = {}
    addresses: Dict[str, Set[str]] = {}
    unwritable: List[Contact] = []
    has_dns = False
    for contact in known:
        proto = "icmp" if contact.proto in ICMP else contact.proto
        if contact.is_dns():
            has_dns = True
        elif proto not in ("tcp", "udp", "icmp") or (contact.number is None and proto != "icmp"):
            unwritable.append(contact)
        else:
            host = _destination(contact, names)
            addresses.setdefault(host, set()).add(contact.address)
            numbers.setdefault((host, proto), set()).add(_number(contact))
    rules = [Proposed(Rule("accept", special="dns"), list(RESOLVERS))] if has_dns else []
    for host, proto in sorted(numbers, key=lambda pair: (_order(pair[0]), pair[1] == "icmp", pair[1])):
        seen = sorted(addresses[host], key=lambda one: (ipaddress.ip_address(one).version, ipaddress.ip_address(one)))
        rules += [Proposed(one, seen) for one in _rules(host, proto, numbers[host, proto])]
    return Proposal(rules, unwritable)


def _names(contacts: List[Contact]) -> Dict[str, str]:
    """One name for each address that has any: the one by which most other addresses are known too."""
    behind: Dict[str, Set[str]] = {}
    for contact in contacts:
        if contact.name and is_host_name(contact.name):
            behind.setdefault(contact.name, set()).add(contact.address)
    chosen: Dict[str, str] = {}
    for name in sorted(behind, key=lambda name: (-len(behind[name]), name)):
        for address in behind[name]:
            chosen.setdefault(address, name)
    return chosen


def _destination(contact: Contact, names: Dict[str, str]) -> str:
    name = names.get(contact.address)
    if name:
        return "dsthost=" + name
    address = ipaddress.ip_address(contact.address)
    return "dst%d=%s/%d" % (address.version, address, address.max_prefixlen)


def _number(contact: Contact) -> Optional[int]:
    if contact.number is None and contact.proto in ICMP:
        return ECHO[ipaddress.ip_address(contact.address).version]
    return contact.number


def _order(host: str) -> Tuple[int, int, str]:
    """Names by alphabet, then addresses by number."""
    kind, _, value = host.partition("=")
    if kind == "dsthost":
        return 0, 0, value
    address = ipaddress.ip_address(value.split("/")[0])
    return address.version, int(address), ""


def _rules(host: str, proto: str, numbers: Set[Optional[int]]) -> List[Rule]:
    wanted = sorted(number for number in numbers if number is not None)
    if proto == "icmp":
        return [Rule("accept", host, proto, icmptype=number) for number in wanted]
    return [Rule("accept", host, proto, ports=pair) for pair in ranges(wanted)]


def ranges(numbers: List[int]) -> List[Tuple[int, int]]:
    """Runs of numbers that follow each other: `[80, 81, 443]` -> `[(80, 81), (443, 443)]`."""
    runs: List[Tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] + 1 == number:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs
