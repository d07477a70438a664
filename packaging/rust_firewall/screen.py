"""All output. Text is cleaned here once more and colours are added after it, so that no escape sequence from outside can
reach the terminal. Colours only where a person looks: a terminal, no `NO_COLOR`, not TERM=dumb.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Union

from .clean import clean

_CODES = {"good": "32", "bad": "31", "warn": "33", "head": "1", "faint": "2"}
#: Longer cells are cut.
MAX_CELL = 200
#: Columns where there is no terminal.
WIDTH = 120


class Mark(NamedTuple):
    """Text with a meaning that has a colour: good, bad, warn, head, faint."""

    style: str
    text: str


Cell = Union[str, Mark]


class Screen:
    """Standard output."""

    def __init__(self, stream: Any = None, is_coloured: Optional[bool] = None) -> None:
        self._stream = sys.stdout if stream is None else stream
        self.is_terminal = _is_terminal(self._stream)
        if is_coloured is None:
            is_coloured = self.is_terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._is_coloured = is_coloured

    def say(self, *cells: Cell) -> None:
        """A line of cells, with a space between them."""
        self._write(" ".join(self._paint(cell, 0) for cell in cells).rstrip())

    def lines(self, rows: Iterable[Sequence[Cell]]) -> None:
        for row in rows:
            self.say(*row)

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int] = ()) -> None:
        """Columns as wide as their widest cell; those in `right` are aligned on the right."""
        self.lines(columns(head, rows, right))

    def json(self, value: Any) -> None:
        """One line of JSON, ASCII only."""
        self._write(json.dumps(value, ensure_ascii=True, sort_keys=False))

    def control(self, sequence: str) -> None:
        """A sequence of our own, for a terminal."""
        self._stream.write(sequence)

    def flush(self) -> None:
        self._stream.flush()

    def _paint(self, cell: Cell, width: int) -> str:
        style, text = (cell.style, cell.text) if isinstance(cell, Mark) else ("", cell)
        text = clean(text, 4096).ljust(width)
        code = _CODES.get(style)
        return "\x1b[%sm%s\x1b[0m" % (code, text) if code and self._is_coloured and text.strip() else text

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")


def columns(
    head: Sequence[str], rows: Sequence[Sequence[Cell]], right: Sequence[int] = ()
) -> List[List[Cell]]:
    """Lines of padded cells, the head first."""
    table: List[List[Mark]] = [[Mark("head", name) for name in head]]
    table += [[_mark(cell) for cell in row] for row in rows]
    widths = [max(len(row[column].text) for row in table) for column in range(len(head))]
    padded: List[List[Cell]] = []
    for row in table:
        line: List[Cell] = []
        for column, (cell, width) in enumerate(zip(row, widths)):
            is_last = column == len(widths) - 1
            text = cell.text.rjust(width) if column in right else cell.text if is_last else cell.text.ljust(width)
            line.append(Mark(cell.style, text + ("" if is_last else " ")))
        padded.append(line)
    return padded


def _mark(cell: Cell) -> Mark:
    style, text = (cell.style, cell.text) if isinstance(cell, Mark) else ("", cell)
    return Mark(style, clean(text, MAX_CELL))


class Progress:
    """One line on standard error that is written over, for a person; nothing where nobody looks."""

    def __init__(self) -> None:
        self._screen = Screen(sys.stderr)

    def show(self, text: str) -> None:
        if self._screen.is_terminal:
            self._screen.control("\r" + clean(text, 79) + "\x1b[K")
            self._screen.flush()

    def end(self) -> None:
        if self._screen.is_terminal:
            self._screen.control("\r\x1b[K")
            self._screen.flush()


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError):
        return False


def duration(milliseconds: int) -> str:
    """`3 d 4 h`, `5 min 2 s`, `0.3 s`."""
    if milliseconds < 10_000:
        return "%.1f s" % (milliseconds / 1000)
    seconds = milliseconds // 1000
    parts: List[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, seconds = divmod(seconds, size)
        if count or parts:
            parts.append("%d %s" % (count, unit))
    return " ".join(parts[:2])


def amount(count: float, unit: str = "B") -> str:
    """`1.5 kB`, in powers of 1000."""
    for prefix in ("", "k", "M", "G", "T"):
        if count < 1000 or prefix == "T":
            digits = "%d" if prefix == "" else "%.1f"
            return (digits + " %s%s") % (count, prefix, unit)
        count /= 1000
    return ""
