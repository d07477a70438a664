"""Text that did not come from the person at the keyboard, made harmless for a terminal.

Only printable ASCII passes. Escape sequences, line ends, C1 controls, bidirectional marks and look-alike letters all lie
outside of it, so nothing has to be listed.
"""

from __future__ import annotations

MAX_TEXT = 512


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """`text` with every other character as `\\x1b` or `\\u202e`, and at most `limit` characters long."""
    # Cut first: what is long is not worth the work.
    shown = "".join(_shown(char) for char in text[: limit + 1])
    if len(text) > limit or len(shown) > limit:
        return shown[: max(limit - 3, 0)] + "..."
    return shown


def _shown(char: str) -> str:
    if " " <= char <= "~":
        return char
    code = ord(char)
    if code < 0x100:
        return "\\x%02x" % code
    return "\\u%04x" % code if code < 0x10000 else "\\U%08x" % code
