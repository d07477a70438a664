"""Throughput from two readings of `firewall.Stats`, by the firewall's own clock."""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from .naming import Naming
from .services import Port, Stats


class Rate(NamedTuple):
    """What a port did between the readings: bytes per second, and new flows and drops in all of that time."""

    name: str
    address: str
    domid: Optional[int]
    sent_per_s: float
    received_per_s: float
    new_flows: int
    drops: int
    drops_in_all: int


def rates(before: Stats, after: Stats, naming: Naming) -> Tuple[Rate, List[Rate]]:
    """The uplink's, then each client's. "Sent" is what a qube sends; of the uplink what leaves through it."""
    elapsed = (after.whole.count("uptime_ms") - before.whole.count("uptime_ms")) / 1000
    old: Dict[object, Port] = {_key(port): port for port in before.ports}
    clients = []
    uplink = Rate("uplink", "-", None, 0.0, 0.0, 0, 0, 0)
    for port in after.ports:
        past = old.get(_key(port))
        if port.kind == "uplink":
            uplink = _rate("uplink", port, past, elapsed, "sent-bytes", "received-bytes")
        elif port.kind == "client":
            name = naming.name(port.address or port.address6)
            clients.append(_rate(name, port, past, elapsed, "received-bytes", "sent-bytes"))
    clients.sort(key=lambda rate: (-(rate.sent_per_s + rate.received_per_s), rate.name))
    return uplink, clients


def _key(port: Port) -> object:
    # A client that came back has another domain number, and counts from zero.
    return port.kind, port.address, port.address6, port.domid


def _rate(name: str, port: Port, past: Optional[Port], elapsed: float, out: str, back: str) -> Rate:
    def change(counts: str, key: str) -> int:
        now, then = getattr(port, counts), getattr(past, counts) if past else {}
        return max(now.get(key, 0) - then.get(key, 0), 0)

    def per_second(key: str) -> float:
        return change("counters", key) / elapsed if past and elapsed > 0 else 0.0

    drops = sum(port.drops.values())
    return Rate(
        name,
        port.address or port.address6 or "-",
        port.domid,
        per_second(out),
        per_second(back),
        change("counters", "flows-opened") if past else 0,
        sum(change("drops", reason) for reason in port.drops) if past else 0,
        drops,
    )
