"""`rust-firewall rules` and `explain`: which rules decide, and how often they did."""

from __future__ import annotations

import ipaddress
from typing import Any, Dict, List, Optional, Tuple

from . import dom0, rule
from .answers import Line
from .dom0 import Qube
from .errors import Failure
from .flows import remarks
from .naming import Naming
from .propose import ECHO
from .screen import Cell, Mark, Screen
from .services import Services, body

#: Addresses of a name that are asked about.
MAX_ADDRESSES = 16
_STATES = {"in-force": "good", "refused": "bad", "none": "warn"}


def show_rules(screen: Screen, services: Services, naming: Naming, name: str, as_json: bool) -> int:
    """The rules of a qube as the firewall has them, with hits, for each of its addresses."""
    client = naming.client(name)
    lines = _whole_answer(services)
    said = comments(dom0.rule_lines(name))
    sets = [_RuleSet(address, lines) for address in client.addresses()]
    if as_json:
        screen.json({"qube": name, "sets": [one.record(said) for one in sets]})
        return 0
    for number, one in enumerate(sets):
        if number:
            screen.say("")
        one.show(screen, name, said)
    return 0


def _whole_answer(services: Services) -> List[Line]:
    """Rules that were not replaced while they were told; the last answer if they always are."""
    lines = services.rules()
    for _ in range(2):
        if all(line.text("state") != "replaced" for line in body(lines, "ruleset")):
            break
        lines = services.rules()
    return lines


def comments(lines: List[str]) -> Dict[str, str]:
    """The comments that dom0 keeps and the firewall never sees, by what the firewall sees."""
    found = {}
    for line in lines:
        traffic, has_comment, comment = line.partition(" comment=")
        if has_comment:
            found[rule.meaning(traffic.partition(" expire=")[0])] = comment
    return found


class _RuleSet:
    """The lines about one address."""

    def __init__(self, address: str, lines: List[Line]) -> None:
        own = [line for line in lines if dom0.normal(line.text("client")) == address]
        self.address = address
        self.head: Optional[Line] = next(iter(body(own, "ruleset")), None)
        self.rules = sorted(body(own, "rule"), key=lambda line: line.count("index"))
        self.policy: Optional[Line] = next(iter(body(own, "policy")), None)

    def state(self) -> str:
        return "none" if self.head is None else self.head.text("state") or "none"

    def show(self, screen: Screen, name: str, said: Dict[str, str]) -> None:
        state = self.state()
        screen.say(Mark("head", name), self.address, Mark(_STATES.get(state, "warn"), _state(state)))
        if self.head is not None and self.head.has("why"):
            screen.say("   ", self.head.text("why") or "")
        rows: List[List[Cell]] = []
        for line in self.rules:
            text = line.text("text") or ""
            rows.append([str(line.count("index")), str(line.count("hits")), text])
            rows += [["", "", Mark("faint", "    " + remark)] for remark in _remarks(line, said.get(rule.meaning(text)))]
        if self.policy is not None:
            text = "no rule accepts it: %s" % (self.policy.text("action") or "drop")
            rows.append(["-", str(self.policy.count("hits")), text])
        if rows:
            screen.table(["RULE", "HITS", "TEXT"], rows, (0, 1))

    def record(self, said: Dict[str, str]) -> Dict[str, Any]:
        """For `--json`."""
        return {
            "address": self.address,
            "state": self.state(),
            "why": None if self.head is None else self.head.text("why"),
            "rules": [
                {
                    "index": line.count("index"),
                    "hits": line.count("hits"),
                    "text": line.text("text"),
                    "comment": said.get(rule.meaning(line.text("text") or "")),
                    "addresses": line.texts("addresses"),
                    "unresolved": bool(line.flag("unresolved")),
                }
                for line in self.rules
            ],
            "policy": None
            if self.policy is None
            else {"action": self.policy.text("action"), "hits": self.policy.count("hits")},
        }


def _state(state: str) -> str:
    return {
        "in-force": "in force",
        "refused": "refused: everything of this address is rejected",
        "none": "no rules: everything of this address is dropped",
        "replaced": "being replaced just now: ask again",
    }.get(state, state)


def _remarks(line: Line, comment: Optional[str]) -> List[str]:
    said = [comment] if comment else []
    addresses = line.texts("addresses")
    if addresses:
        more = ", ..." if len(addresses) > MAX_ADDRESSES or line.has("more_addresses") else ""
        said.append("now " + ", ".join(addresses[:MAX_ADDRESSES]) + more)
    if line.flag("unresolved"):
        said.append("the name is not resolved: an accept rule matches nothing meanwhile")
    return said


def show_explain(
    screen: Screen,
    services: Services,
    naming: Naming,
    question: Tuple[str, str, Optional[int], str],
    as_json: bool,
) -> int:
    """What would happen to a flow of a qube: `(qube, destination, port or ICMP type, protocol)`. Exit status 1 if it is
    refused at any of the addresses."""
    name, destination, number, proto = question
    client = naming.client(name)
    if proto in ("tcp", "udp") and number is None:
        raise Failure("%s needs a port" % proto, "rust-firewall explain %s %s PORT" % (name, destination))
    addresses = _addresses(services, client, destination)
    answers = []
    for address in addresses:
        source = _source(client, address)
        if source is not None:
            asked = _number(proto, address, number)
            answers.append((address, services.explain(source, proto, address, asked)))
    if not answers:
        raise Failure("%s has no address of the family of %s" % (name, ", ".join(addresses)))
    is_accepted = all(answer.text("verdict") == "accept" for _, answer in answers)
    if as_json:
        screen.json({"qube": name, "answers": [_explained(address, answer) for address, answer in answers]})
        return 0 if is_accepted else 1
    for address, answer in answers:
        verdict = answer.text("verdict") or "unknown"
        target = destination if destination == address else "%s (%s)" % (destination, address)
        where = "%s %s%s" % (proto, target, "" if number is None else " %s %d" % (_word(proto), number))
        style = "good" if verdict == "accept" else "bad"
        screen.say(Mark(style, verdict), "%s to %s" % (name, where))
        for remark in remarks(answer, "reason"):
            screen.say("   ", remark)
    return 0 if is_accepted else 1


def _explained(address: str, answer: Line) -> Dict[str, Any]:
    record = {key: value for key, value in answer.values.items() if key not in ("schema", "kind")}
    return dict(record, dst=address)


def _word(proto: str) -> str:
    return "type" if proto == "icmp" else "port"


def _number(proto: str, address: str, number: Optional[int]) -> Optional[int]:
    """A ping, where ICMP has no type."""
    return ECHO[ipaddress.ip_address(address).version] if proto == "icmp" and number is None else number


def _source(client: Qube, destination: str) -> Optional[str]:
    return client.ip if ipaddress.ip_address(destination).version == 4 else client.ip6


def _addresses(services: Services, client: Qube, destination: str) -> List[str]:
    """The address itself, or those that the firewall knows for a name: dom0 has no network and resolves nothing."""
    address = dom0.normal(destination)
    if address is not None:
        return [address]
    name = destination.lower()
    if not rule.is_host_name(name):
        raise Failure("'%s' is neither an address nor a host name" % destination)
    own = set(client.addresses())
    found: List[str] = []
    for line in body(services.rules(), "rule"):
        if dom0.normal(line.text("client")) in own and "dsthost=" + name in (line.text("text") or "").split(" "):
            found += line.texts("addresses")
    for line in body(services.flows(), "flow") + body(services.drops(), "drop"):
        if dom0.normal(line.text("client")) in own and line.text("name") == name:
            found.append(line.text("dst") or "")
    known = [one for one in dict.fromkeys(dom0.normal(one) for one in found) if one is not None]
    if not known:
        raise Failure(
            "the firewall knows no address of %s, and dom0 has no network to ask" % name,
            "Give the address instead, or let the qube try it once: then 'rust-firewall drops %s' has it." % client.name,
        )
    return known[:MAX_ADDRESSES]
