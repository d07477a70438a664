"""`rust-firewall flows` and `drops`: what passes, and what was refused, by qube."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional

from . import dom0
from .answers import Line
from .naming import Naming
from .screen import Mark, Screen, duration
from .services import Services, body

#: Seconds between two looks of `--follow`.
FOLLOW = 2.0
#: Kinds of drops that `--follow` remembers, to say only what is new.
MAX_REMEMBERED = 4096


def of_client(lines: List[Line], naming: Naming, client: Optional[str]) -> List[Line]:
    """Those of one qube; all without one."""
    if client is None:
        return lines
    addresses = set(naming.client(client).addresses())
    return [line for line in lines if dom0.normal(line.text("client")) in addresses]


def show_flows(screen: Screen, services: Services, naming: Naming, client: Optional[str], as_json: bool) -> int:
    """Every flow, the busiest last seen first."""
    flows = of_client(body(services.flows(), "flow"), naming, client)
    flows.sort(key=lambda flow: flow.count("idle_ms"))
    if as_json:
        screen.json({"flows": [flow_record(flow, naming) for flow in flows]})
        return 0
    if not flows:
        screen.say("no flows%s" % (" of " + client if client else ""))
        return 0
    rows = [
        [
            naming.name(flow.text("client")),
            flow.text("direction") or "-",
            flow.text("proto") or "-",
            far_end(flow, naming),
            flow.text("state") or "-",
            flow.rule() or "-",
            duration(flow.count("idle_ms")) if flow.has("idle_ms") else "-",
        ]
        for flow in flows
    ]
    screen.table(["QUBE", "DIR", "PROTO", "WITH", "STATE", "RULE", "IDLE"], rows)
    return 0


def show_drops(
    screen: Screen, services: Services, naming: Naming, client: Optional[str], as_json: bool, follow: bool
) -> int:
    """What was refused lately, the newest last; with `follow` goes on until it is interrupted."""
    seen: Dict[Any, int] = {}
    is_first = True
    while True:
        lines = services.drops()
        drops = of_client(body(lines, "drop"), naming, client)
        new = [drop for drop in reversed(drops) if _is_new(drop, seen)]
        while len(seen) > MAX_REMEMBERED:
            del seen[next(iter(seen))]
        if as_json and not follow:
            screen.json({"total": lines[0].count("total"), "drops": [drop_record(drop, naming) for drop in new]})
        elif as_json:
            for drop in new:
                screen.json(drop_record(drop, naming))
        else:
            _say_drops(screen, new, naming, is_first and not follow, client)
        screen.flush()
        if not follow:
            return 0
        is_first = False
        time.sleep(FOLLOW)


#: What the firewall counts in one place.
_PLACE = ("client", "reason", "proto", "dst", "dport", "type", "rule")


def _is_new(drop: Line, seen: Dict[Any, int]) -> bool:
    """Whether it happened again since the last look; one that counts from the beginning again did."""
    key = tuple(str(drop.values.get(name)) for name in _PLACE)
    last = seen.pop(key, 0)
    seen[key] = drop.count("times")
    return drop.count("times") != last


def _say_drops(screen: Screen, drops: List[Line], naming: Naming, is_whole: bool, client: Optional[str]) -> None:
    if is_whole and not drops:
        screen.say("nothing was refused%s lately" % (" from " + client if client else ""))
    for drop in drops:
        who = naming.name(drop.text("client"))
        route = "from" if drop.text("direction") == "in" else "to"
        screen.say(
            Mark("head", who),
            Mark("bad", drop.text("reason", "dropped") or ""),
            drop.text("proto", "") or "",
            route,
            far_end(drop, naming),
            Mark("faint", "%s ago%s" % (duration(drop.count("age_ms")), _times(drop.count("times")))),
        )
        for remark in remarks(drop):
            screen.say("   ", remark)


def remarks(line: Line, why: str = "why") -> List[str]:
    """The rule that decided, and the reason, which has the key `why`, in words."""
    said = []
    deciding = line.rule()
    if deciding == "policy":
        said.append("no rule accepts it, so the policy decides")
    elif deciding is not None:
        said.append("rule %s: %s" % (deciding, line.text("text") or "(not known any more)"))
    if line.has(why):
        said.append(line.text(why) or "")
    return said


def _times(times: int) -> str:
    return ", %d times" % times if times > 1 else ""


def far_end(line: Line, naming: Naming) -> str:
    """`example.com (93.184.216.34) 443`: whom the qube talks to."""
    is_inwards = line.text("direction") == "in"
    address, port = (
        (line.text("src"), line.number("sport")) if is_inwards else (line.text("dst"), line.number("dport"))
    )
    known = line.text("name") or naming.name(address)
    who = known if known == (address or "-") else "%s (%s)" % (known, address)
    return who if port is None else "%s port %d" % (who, port)


def flow_record(flow: Line, naming: Naming) -> Dict[str, Any]:
    """For `--json`: the firewall's keys, and the qube."""
    return dict(_without_kind(flow), qube=naming.name(flow.text("client")))


def drop_record(drop: Line, naming: Naming) -> Dict[str, Any]:
    return dict(_without_kind(drop), qube=naming.name(drop.text("client")))


def _without_kind(line: Line) -> Dict[str, Any]:
    return {key: value for key, value in line.values.items() if key != "kind"}
