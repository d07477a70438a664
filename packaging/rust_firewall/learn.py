"""`rust-firewall learn`: watches what a qube contacts and proposes rules, as a file for `apply`."""

from __future__ import annotations

import re
import time
from typing import Any, Dict, List, Optional

from . import dom0
from .answers import Line
from .errors import Failure
from .flows import of_client
from .naming import Naming
from .propose import Contact, Proposal, propose
from .screen import Progress, Screen
from .services import Services, body

#: Seconds between two looks; a flow that nobody uses stays in the table for 30 s at least.
INTERVAL = 2.0
#: Different contacts that are kept; a qube that has more is not understood by watching it.
MAX_CONTACTS = 2000
#: Of drops, those that rules are the reason for; the others no rule can change.
BY_RULES = ("rule-rejected", "flow-forbidden", "name-unresolved")
_DURATION = re.compile(r"([1-9][0-9]{0,5})(s|m|h)\Z")
_UNITS = {"s": 1, "m": 60, "h": 3600}
_MOST = 24 * 3600


def seconds(text: str) -> int:
    """`90s`, `5m`, `2h`."""
    match = _DURATION.match(text)
    if not match or int(match.group(1)) * _UNITS[match.group(2)] > _MOST:
        raise Failure("'%s' is no duration" % text, "Examples: 90s, 5m, 2h; at most 24h.")
    return int(match.group(1)) * _UNITS[match.group(2)]


class Watch:
    """What was seen so far."""

    def __init__(self, with_refused: bool = True) -> None:
        self._with_refused = with_refused
        #: How often each contact was refused; 0 for those that passed.
        self.contacts: Dict[Contact, int] = {}
        self.others: Dict[str, int] = {}
        self.is_full = False

    def look(self, flows: List[Line], drops: List[Line], elapsed_ms: int) -> None:
        """Takes an answer of each kind, of one qube. Drops from before the watch began do not count."""
        for flow in flows:
            # One that the rules do not accept any more is among the drops, should its qube still want it.
            if flow.text("direction") != "in" and flow.text("state") != "forbidden":
                self._note(flow, 0)
        for drop in drops:
            if drop.text("direction") == "in" or drop.count("age_ms") > elapsed_ms:
                continue
            reason = drop.text("reason") or "unknown"
            if reason not in BY_RULES:
                self.others[reason] = max(self.others.get(reason, 0), drop.count("times"))
            elif self._with_refused:
                self._note(drop, drop.count("times"))

    def _note(self, line: Line, refused: int) -> None:
        address = dom0.normal(line.text("dst"))
        proto = line.text("proto")
        if address is None or proto is None:
            return
        number = line.number("type") if proto in ("icmp", "icmpv6") and line.has("type") else line.number("dport")
        contact = Contact(proto, address, number, line.text("name"))
        if contact not in self.contacts and len(self.contacts) >= MAX_CONTACTS:
            self.is_full = True
            return
        self.contacts[contact] = max(self.contacts.get(contact, 0), refused)


def show_learn(
    screen: Screen,
    services: Services,
    naming: Naming,
    client: str,
    length: int,
    options: Dict[str, bool],
) -> int:
    """Watches for `length` seconds, or until Ctrl-C; then says what it proposes."""
    watch = Watch(not options["accepted_only"])
    progress = Progress()
    begun = time.monotonic()
    try:
        while True:
            elapsed = time.monotonic() - begun
            flows = of_client(body(services.flows(), "flow"), naming, client)
            drops = of_client(body(services.drops(), "drop"), naming, client)
            # The answer is a moment younger than the clock was read.
            watch.look(flows, drops, int((time.monotonic() - begun) * 1000))
            left = length - elapsed
            progress.show("%d s left, %d contacts so far; Ctrl-C ends it now" % (max(left, 0), len(watch.contacts)))
            if left <= 0:
                break
            time.sleep(min(INTERVAL, left))
    except KeyboardInterrupt:
        # Wanted: what was seen until now counts.
        pass
    finally:
        progress.end()
    proposal = propose(watch.contacts, options["addresses"])
    if options["json"]:
        screen.json(record(client, proposal, watch))
        return 0
    for line in text(client, int(time.monotonic() - begun), proposal, watch):
        screen.say(line)
    return 0


def text(client: str, watched: int, proposal: Proposal, watch: Watch) -> List[str]:
    """The file for `apply`: rules and remarks."""
    lines = [
        "# Rules for %s, from %d s of watching it: exactly what it contacted, and nothing else." % (client, watched),
        "# Read them: a qube that is not trustworthy chooses its contacts itself. Then: rust-firewall apply %s FILE" % client,
    ]
    last: Optional[List[str]] = None
    for one in proposal.rules:
        if one.addresses != last and "dsthost=" in (one.rule.destination or ""):
            lines.append("# %s: seen at %s" % (one.rule.destination, ", ".join(one.addresses)))
        last = one.addresses
        lines.append(one.rule.line())
    if not proposal.rules:
        lines += ["# It contacted nothing that a rule can let pass.", "action=drop"]
    for contact in proposal.unwritable:
        lines.append("# not proposed, rules of Qubes cannot say it: protocol %s to %s" % (contact.proto, contact.address))
    for reason, times in sorted(watch.others.items()):
        lines.append("# dropped for other reasons than the rules: %s (%d)" % (reason, times))
    if watch.is_full:
        lines.append("# More than %d different contacts: the rest is not here." % MAX_CONTACTS)
    return lines


def record(client: str, proposal: Proposal, watch: Watch) -> Dict[str, Any]:
    """For `--json`."""
    return {
        "qube": client,
        "rules": [{"rule": one.rule.line(), "addresses": one.addresses} for one in proposal.rules],
        "contacts": [
            dict(contact._asdict(), refused=refused) for contact, refused in sorted(watch.contacts.items(), key=str)
        ],
        "unwritable": [contact._asdict() for contact in proposal.unwritable],
        "is_complete": not watch.is_full,
    }
