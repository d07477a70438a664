"""`rust-firewall status`: the state of the firewall at one glance."""

from __future__ import annotations

import time
from typing import Any, Dict, List, Optional, Tuple

from .answers import Line
from .naming import Naming
from .rates import Rate, rates
from .screen import Cell, Mark, Screen, amount, duration
from .services import NotKnown, Services, body

#: Most reasons of drops that are named.
MAX_REASONS = 5


def show_status(screen: Screen, services: Services, naming: Naming, interval: float, as_json: bool) -> int:
    """Two readings, `interval` seconds apart."""
    version, memory = services.version(), services.memory()
    problems = health(services)
    before = services.stats()
    time.sleep(interval)
    after = services.stats()
    uplink, clients = rates(before, after, naming)
    absent = [qube.name for qube in naming.clients() if qube.is_running() and qube.name not in _names(clients)]
    if as_json:
        screen.json(_record(services.vm, version, memory, after.whole, problems, uplink, clients, absent))
        return 0
    screen.lines(_head(services.vm, naming, version, memory, after.whole, uplink))
    screen.say("")
    screen.table(*table(clients))
    if absent:
        screen.say(Mark("warn", "running, and not attached: " + ", ".join(absent)))
    reasons = sorted(_reasons(after.ports).items(), key=lambda pair: (-pair[1], pair[0]))
    if reasons:
        named = ", ".join("%d %s" % (count, reason) for reason, count in reasons[:MAX_REASONS])
        more = ", ..." if len(reasons) > MAX_REASONS else ""
        screen.say("")
        screen.say(Mark("head", "refused "), named + more)
    screen.say("")
    screen.lines(problem_lines(problems))
    return 0


def health(services: Services) -> Optional[List[Line]]:
    """The problems that the firewall knows of; None if its image cannot tell."""
    try:
        return body(services.health(), "problem")
    except NotKnown:
        return None


def problem_lines(problems: Optional[List[Line]]) -> List[List[Cell]]:
    if problems is None:
        return [[Mark("head", "health  "), Mark("warn", "not told: this image has no firewall.Health")]]
    if not problems:
        return [[Mark("head", "health  "), Mark("good", "no problems")]]
    return [
        [Mark("head", "problem "), Mark("bad", problem.text("id", "unknown") or ""), problem.text("text", "") or ""]
        for problem in problems
    ]


def table(clients: List[Rate]) -> Tuple[List[str], List[List[Cell]], Tuple[int, ...]]:
    """Head, rows, and the columns that are numbers."""
    head = ["QUBE", "ADDRESS", "DOMAIN", "SENDS", "RECEIVES", "NEW FLOWS", "REFUSED"]
    rows: List[List[Cell]] = []
    for rate in clients:
        refused: Cell = str(rate.drops_in_all)
        if rate.drops:
            refused = Mark("warn", "%d (+%d)" % (rate.drops_in_all, rate.drops))
        rows.append(
            [
                rate.name,
                rate.address,
                "-" if rate.domid is None else str(rate.domid),
                amount(rate.sent_per_s, "B/s"),
                amount(rate.received_per_s, "B/s"),
                str(rate.new_flows),
                refused,
            ]
        )
    return head, rows, (2, 3, 4, 5, 6)


def _head(
    vm: str, naming: Naming, version: Line, memory: Line, whole: Line, uplink: Rate
) -> List[List[Cell]]:
    has_uplink = bool(whole.flag("has_uplink"))
    netvm = next((qube.netvm for qube in naming.qubes if qube.name == vm), None)
    leaves = "sends %s, receives %s" % (amount(uplink.sent_per_s, "B/s"), amount(uplink.received_per_s, "B/s"))
    without_accept = whole.count("without_accept")
    lines: List[List[Cell]] = [
        [
            Mark("head", vm),
            "%s %s," % (version.text("name", "?"), version.text("version", "?")),
            "up " + duration(version.count("uptime_ms")),
        ],
        [
            Mark("head", "uplink  "),
            Mark("good", "connected") if has_uplink else Mark("bad", "not connected"),
            "to %s, %s" % (netvm or "none", leaves),
        ],
        [
            Mark("head", "flows   "),
            "%d of %d, at most %d for one qube"
            % (memory.count("flows"), memory.count("flows_limit"), memory.count("flows_per_client_limit")),
        ],
        [
            Mark("head", "memory  "),
            "heap %d of %d KiB (at most %d so far), %d of %d pages"
            % (
                memory.count("heap_used") // 1024,
                memory.count("heap_size") // 1024,
                memory.count("heap_peak") // 1024,
                memory.count("pages_used"),
                memory.count("pages"),
            ),
        ],
    ]
    if without_accept:
        lines.append([Mark("bad", "%d frames were about to leave without an accept: report this" % without_accept)])
    return lines


def _names(clients: List[Rate]) -> List[str]:
    return [rate.name for rate in clients]


def _reasons(ports: Any) -> Dict[str, int]:
    reasons: Dict[str, int] = {}
    for port in ports:
        for reason, count in port.drops.items():
            reasons[reason] = reasons.get(reason, 0) + count
    return reasons


def rate_record(rate: Rate) -> Dict[str, Any]:
    """For `--json`."""
    return {
        "qube": rate.name,
        "address": rate.address,
        "domid": rate.domid,
        "sends_bytes_per_s": round(rate.sent_per_s),
        "receives_bytes_per_s": round(rate.received_per_s),
        "new_flows": rate.new_flows,
        "refused": rate.drops_in_all,
        "refused_meanwhile": rate.drops,
    }


def _record(
    vm: str,
    version: Line,
    memory: Line,
    whole: Line,
    problems: Optional[List[Line]],
    uplink: Rate,
    clients: List[Rate],
    absent: List[str],
) -> Dict[str, Any]:
    return {
        "vm": vm,
        "version": version.text("version"),
        "uptime_ms": version.count("uptime_ms"),
        "uplink": {
            "connected": bool(whole.flag("has_uplink")),
            "sends_bytes_per_s": round(uplink.sent_per_s),
            "receives_bytes_per_s": round(uplink.received_per_s),
        },
        "flows": memory.count("flows"),
        "memory": {key: value for key, value in memory.values.items() if key not in ("schema", "kind")},
        "without_accept": whole.count("without_accept"),
        "clients": [rate_record(rate) for rate in clients],
        "not_attached": absent,
        "problems": None if problems is None else [dict(one.values) for one in problems],
    }
