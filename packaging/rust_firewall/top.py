"""`rust-firewall top`: who uses the network now, refreshed in place until `q` or Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import sys
import time
from typing import Iterator, Optional

from .errors import Failure
from .naming import Naming
from .rates import rates
from .screen import Mark, Screen, amount, columns, duration
from .services import Services
from .status import rate_record, table

_HOME_AND_CLEAR = "\x1b[H\x1b[J"
#: The second page, no cursor, long lines cut at the edge; and back.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"


def show_top(
    screen: Screen, services: Services, naming: Naming, interval: float, count: Optional[int], as_json: bool
) -> int:
    """`count` pictures, `interval` seconds apart; without a count until somebody ends it."""
    if count is None and not screen.is_terminal:
        raise Failure("top without a terminal needs --once or --count N")
    in_place = count is None and not as_json
    before = services.stats()
    with _own_page(screen, in_place):
        shown = 0
        is_over = _wait(interval, in_place)
        while not is_over:
            after = services.stats()
            uplink, clients = rates(before, after, naming)
            elapsed = after.whole.count("uptime_ms") - before.whole.count("uptime_ms")
            if as_json:
                screen.json(
                    {
                        "uptime_ms": after.whole.count("uptime_ms"),
                        "flows": after.whole.count("flows"),
                        "uplink": rate_record(uplink),
                        "clients": [rate_record(rate) for rate in clients],
                    }
                )
            else:
                _draw(screen, services.vm, after.whole.count("flows"), elapsed, uplink, clients, in_place)
            before = after
            shown += 1
            is_over = shown == count or _wait(interval, in_place)
    return 0


def _draw(screen: Screen, vm, flows, elapsed, uplink, clients, in_place: bool) -> None:
    head, rows, right = table(clients)
    lines = [
        [
            Mark("head", vm),
            "%d flows, uplink sends %s, receives %s, in the last %s"
            % (flows, amount(uplink.sent_per_s, "B/s"), amount(uplink.received_per_s, "B/s"), duration(elapsed)),
        ],
        [""],
    ] + columns(head, rows, right)
    if not in_place:
        screen.lines(lines)
        screen.flush()
        return
    # Python 3.8 says 0 for a terminal that does not say its size.
    height = max((shutil.get_terminal_size().lines or 24) - 2, 3)
    screen.control(_HOME_AND_CLEAR)
    screen.lines(lines[:height])
    screen.say(Mark("faint", "q ends it"))
    screen.flush()


@contextlib.contextmanager
def _own_page(screen: Screen, in_place: bool) -> Iterator[None]:
    """The terminal's second page without a cursor, keys unechoed; whatever happens, the first one comes back."""
    if not in_place or not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    keyboard = sys.stdin.fileno()
    kept = termios.tcgetattr(keyboard)
    try:
        tty.setcbreak(keyboard)
        screen.control(_ENTER)
        yield
    finally:
        screen.control(_LEAVE)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, kept)


def _wait(interval: float, in_place: bool) -> bool:
    """Waits; whether `q` was pressed meanwhile."""
    if not in_place or not sys.stdin.isatty():
        time.sleep(interval)
        return False
    deadline = time.monotonic() + interval
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        if select.select([sys.stdin], [], [], left)[0]:
            keys = os.read(sys.stdin.fileno(), 64)
            if not keys or b"q" in keys.lower():
                return True
