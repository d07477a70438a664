"""Rules as dom0's admin API writes them: one line, elements `key=value`, a comment at the end.

Grammar: `qvm-firewall --help`, and the firewall chapter of the Qubes documentation. What dom0 would refuse is refused here
first, with the number of the line, and so is what dom0 keeps in another form than it was given (`dst4=0.0.0.0/0`).
"""

from __future__ import annotations

import ipaddress
import re
import time
from typing import List, NamedTuple, Optional, Tuple

from .clean import clean
from .errors import Failure

#: What qubesd takes in one call.
MAX_FILE = 65536
MAX_RULES = 1000
_COMMENT = re.compile(r"[A-Za-z0-9:;,./\-_\[\] ]*\Z")
_NUMBER = re.compile(r"[0-9]{1,10}\Z")
_HOST = re.compile(r"[a-z0-9._-]{1,253}\Z")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?\Z")
_KEYS = ("action", "dsthost", "proto", "specialtarget", "dstports", "icmptype", "expire", "comment")


class Refused(ValueError):
    """Why a line is no rule."""


class Rule(NamedTuple):
    """A rule; what it does not say is None. `destination` is `dst4=...`, `dst6=...` or `dsthost=...`."""

    action: str
    destination: Optional[str] = None
    proto: Optional[str] = None
    special: Optional[str] = None
    ports: Optional[Tuple[int, int]] = None
    icmptype: Optional[int] = None
    expire: Optional[int] = None
    comment: Optional[str] = None

    def line(self) -> str:
        """The rule for dom0."""
        words = [self.traffic()]
        if self.expire is not None:
            words.append("expire=%d" % self.expire)
        if self.comment:
            words.append("comment=" + self.comment)
        return " ".join(words)

    def traffic(self) -> str:
        """What the firewall VM gets of it: without expiry and comment."""
        words = ["action=" + self.action]
        if self.destination:
            words.append(self.destination)
        if self.proto:
            words.append("proto=" + self.proto)
        if self.special:
            words.append("specialtarget=" + self.special)
        if self.ports:
            words.append("dstports=%d-%d" % self.ports)
        if self.icmptype is not None:
            words.append("icmptype=%d" % self.icmptype)
        return " ".join(words)

    def is_for(self, family: int) -> bool:
        """Whether the rules of an address of this family (4, 6) have it."""
        return not (self.destination or "").startswith("dst6=" if family == 4 else "dst4=")

    def is_over(self) -> bool:
        return self.expire is not None and self.expire <= time.time()


def parse(line: str) -> Rule:
    """A rule from the form of the admin API, or from the keyword form of `qvm-firewall`."""
    line, has_comment, comment = line.strip().partition("comment=")
    found = {}
    for word in line.split():
        key, equals, value = word.partition("=")
        if not equals or not value:
            raise Refused("'%s' is not KEY=VALUE" % clean(word, 80))
        key = "dsthost" if key in ("dst4", "dst6") else key
        if key not in _KEYS:
            raise Refused("unknown element '%s', expected one of %s" % (clean(key, 40), ", ".join(_KEYS)))
        if key in found:
            raise Refused("'%s' twice" % key)
        found[key] = value
    if has_comment and not _COMMENT.match(comment):
        raise Refused("a comment has letters, digits, spaces and :;,./-_[] only")
    return _rule(found, comment.strip() if has_comment else None)


def _rule(found: dict, comment: Optional[str]) -> Rule:
    action = _one_of(found, "action", ("accept", "drop"))
    if action is None:
        raise Refused("no action, expected action=accept or action=drop")
    proto = _one_of(found, "proto", ("tcp", "udp", "icmp"))
    special = _one_of(found, "specialtarget", ("dns",))
    ports, icmptype = found.get("dstports"), found.get("icmptype")
    if ports is not None and proto not in ("tcp", "udp"):
        raise Refused("dstports needs proto=tcp or proto=udp")
    if icmptype is not None and proto != "icmp":
        raise Refused("icmptype needs proto=icmp")
    if special and proto == "icmp":
        raise Refused("specialtarget=dns is TCP and UDP, not ICMP")
    expire = found.get("expire")
    return Rule(
        action,
        destination(found["dsthost"]) if "dsthost" in found else None,
        proto,
        special,
        None if ports is None else _ports(ports),
        None if icmptype is None else _number("icmptype", icmptype, 255),
        None if expire is None else _number("expire", expire, 1 << 33),
        comment or None,
    )


def destination(value: str) -> str:
    """`dst4=ADDRESS/BITS`, `dst6=ADDRESS/BITS` or `dsthost=NAME`."""
    address, slash, bits = value.partition("/")
    try:
        family = ipaddress.ip_address(address).version
    except ValueError:
        if not slash and is_host_name(value):
            return "dsthost=" + value
        raise Refused("'%s' is neither an address, a network nor a host name in lower case" % clean(value, 80)) from None
    longest = 32 if family == 4 else 128
    length = _number("prefix length", bits, longest) if slash else longest
    if length == 0:
        raise Refused("'%s' is every destination: leave the element out" % clean(value, 80))
    return "dst%d=%s/%d" % (family, address, length)


def is_host_name(text: str) -> bool:
    """Whether it can be the value of dsthost and nothing else: no address, no broken one such as 10.1."""
    labels = text.split(".")
    if not _HOST.match(text) or not all(_LABEL.match(label) for label in labels):
        return False
    return any("a" <= char <= "z" for char in labels[-1])


def _one_of(found: dict, key: str, values: tuple) -> Optional[str]:
    value = found.get(key)
    if value is not None and value not in values:
        raise Refused("%s=%s: expected %s" % (key, clean(value, 40), " or ".join(values)))
    return value


def _ports(value: str) -> Tuple[int, int]:
    low, dash, high = value.partition("-")
    first = _number("dstports", low, 65535)
    last = _number("dstports", high, 65535) if dash else first
    if first > last:
        raise Refused("dstports=%s: the first port is larger than the last" % clean(value, 40))
    return first, last


def _number(key: str, text: str, most: int) -> int:
    if not _NUMBER.match(text) or int(text) > most:
        raise Refused("%s '%s': expected 0 to %d" % (key, clean(text, 40), most))
    return int(text)


def parse_list(text: str, where: str) -> List[Rule]:
    """The rules of a file: a line each; empty lines and what follows a `#` at the start of a line are remarks."""
    rules = []
    for number, line in enumerate(text.split("\n"), 1):
        line = line.strip()
        if not line or line.startswith("#"):
            continue
        try:
            rules.append(parse(line))
        except Refused as refused:
            raise Failure("%s, line %d: %s" % (where, number, refused), "Nothing was changed.") from None
        if len(rules) > MAX_RULES:
            raise Failure("%s has more than %d rules" % (where, MAX_RULES), "Nothing was changed.")
    return rules


def meaning(line: str) -> str:
    """What the firewall gets of a rule, in one form for all that mean the same: networks without the bits of a host,
    addresses as they are usually written. The firewall writes what it has understood, not what it was given."""
    try:
        one = parse(line)
    except Refused:
        return line
    kind, _, value = (one.destination or "").partition("=")
    if kind in ("dst4", "dst6"):
        one = one._replace(destination="%s=%s" % (kind, ipaddress.ip_network(value, strict=False)))
    return one.traffic()


def standard(line: str) -> str:
    """A rule in the order of elements that this module writes; the line itself if it is no rule."""
    try:
        return parse(line).line()
    except Refused:
        return line
