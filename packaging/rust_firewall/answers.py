"""Answers of the firewall: JSON, one object per line (RFC 8259), read as what a hostile VM may have written.

Every string is cleaned here, so that no other module holds a raw one. Bounds: a line of 8 KiB (a message of qrexec is
half of that), 65,536 lines, four levels, numbers of 64 bits, no fractions, no key twice.
"""

from __future__ import annotations

import json
from typing import Any, Dict, List, Optional

from . import SCHEMA
from .clean import clean
from .errors import Failure

MAX_LINE = 8192
MAX_LINES = 65536
MAX_DEPTH = 4
MAX_KEYS = 256
MAX_LIST = 256
MAX_DIGITS = 20
MOST = (1 << 64) - 1


class _Refused(ValueError):
    """Why a line is no answer."""


class Line:
    """An object of an answer; reading a key checks its type."""

    def __init__(self, values: Dict[str, Any], service: str) -> None:
        self.values = values
        self._service = service

    @property
    def kind(self) -> str:
        """What it is about; the empty string where it does not say."""
        return self.text("kind") or ""

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def number(self, key: str, default: Optional[int] = None) -> Optional[int]:
        value = self.values.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._odd(key, "a number")
        return value

    def count(self, key: str) -> int:
        """A number; 0 where it is left out."""
        return self.number(key, 0) or 0

    def text(self, key: str, default: Optional[str] = None) -> Optional[str]:
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self._odd(key, "text")
        return value

    def flag(self, key: str) -> Optional[bool]:
        value = self.values.get(key)
        if value is not None and not isinstance(value, bool):
            raise self._odd(key, "true or false")
        return value

    def texts(self, key: str) -> List[str]:
        value = self.values.get(key)
        if value is None:
            return []
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._odd(key, "a list of texts")
        return value

    def counts(self, key: str) -> Dict[str, int]:
        value = self.values.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict) or not all(type(one) is int for one in value.values()):
            raise self._odd(key, "an object of numbers")
        return value

    def rule(self) -> Optional[str]:
        """`rule` as text: the number of a rule, `policy`, or nothing."""
        value = self.values.get("rule")
        if value is None or value == "policy":
            return value
        return str(self.number("rule"))

    def _odd(self, key: str, wanted: str) -> Failure:
        return _strange(self._service, "%s is not %s" % (key, wanted))


def parse(data: bytes, service: str) -> List[Line]:
    """All objects of an answer, the first of which must have our schema."""
    lines = data.split(b"\n")
    if lines and not lines[-1]:
        lines.pop()
    if len(lines) > MAX_LINES:
        raise _strange(service, "more than %d lines" % MAX_LINES)
    objects = []
    for number, line in enumerate(lines, 1):
        try:
            objects.append(Line(_object(line), service))
        except _Refused as refused:
            raise _strange(service, "line %d: %s" % (number, refused)) from None
    if not objects:
        raise _strange(service, "nothing was answered")
    schema = objects[0].number("schema")
    if schema != SCHEMA:
        raise Failure(
            "%s: the answer has schema %s, this command reads schema %d" % (service, schema, SCHEMA),
            "Install the command and the image of one version.",
        )
    return objects


def _strange(service: str, why: str) -> Failure:
    return Failure(
        "the answer to %s cannot be used: %s" % (service, why),
        "Nothing of it was used. If the image is of another version, install both of one; else treat the VM as "
        "compromised and restart it.",
    )


def _object(line: bytes) -> Dict[str, Any]:
    if len(line) > MAX_LINE:
        raise _Refused("longer than %d bytes" % MAX_LINE)
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        raise _Refused("not UTF-8") from None
    _check_depth(text)
    try:
        value = json.loads(
            text, parse_float=_no_fraction, parse_int=_integer, parse_constant=_no_fraction, object_pairs_hook=_pairs
        )
    except _Refused:
        raise
    except (ValueError, RecursionError):
        raise _Refused("not JSON") from None
    if not isinstance(value, dict):
        raise _Refused("not an object")
    return value


def _check_depth(text: str) -> None:
    """Before the parser sees it, which goes as deep as the text says."""
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    depth, in_string, escaped = 0, False, False
    for char in text:
        if in_string:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                in_string = False
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise _Refused("more than %d levels" % MAX_DEPTH)
        elif char in "]}":
            depth -= 1


def _pairs(pairs: List[Any]) -> Dict[str, Any]:
    if len(pairs) > MAX_KEYS:
        raise _Refused("more than %d keys" % MAX_KEYS)
    values: Dict[str, Any] = {}
    for key, value in pairs:
        key = clean(key, 64)
        if key in values:
            raise _Refused("key %s twice" % key)
        values[key] = _cleaned(value)
    return values


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list):
        if len(value) > MAX_LIST:
            raise _Refused("a list of more than %d" % MAX_LIST)
        return [_cleaned(one) for one in value]
    return value


def _integer(digits: str) -> int:
    if len(digits) > MAX_DIGITS or not 0 <= int(digits) <= MOST:
        raise _Refused("a number beyond 64 bits")
    return int(digits)


def _no_fraction(_: str) -> int:
    raise _Refused("a number that is not whole")
