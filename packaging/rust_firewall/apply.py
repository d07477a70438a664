"""`rust-firewall apply`: the rules of a qube from a reviewed file, all at once.

`qvm-firewall` changes one rule at a time, and between two of its calls the qube has rules that nobody wrote. So all go
with one call of the admin API, `admin.vm.firewall.Set`: qubesd reads and checks every line before it takes any, replaces
the qube's list, and renames the new file over the old one; the firewall VM gets the whole tree and takes it at dom0's
commit mark. At no moment are other rules in force than the old ones or the new ones.

Afterwards dom0 and the firewall are asked what they have. If that is not what was to be, the old rules are put back, in
the same way.
"""

from __future__ import annotations

import difflib
import sys
import time
from typing import List, Optional

from . import dom0
from .dom0 import Qube
from .errors import Failure
from .naming import Naming
from .rule import MAX_FILE, Refused, Rule, meaning, parse, parse_list
from .screen import Mark, Screen
from .services import NotKnown, Services, body

#: Seconds between two looks whether the firewall has the new rules; it may take as long as for an answer.
PAUSE = 0.3


def read_file(path: str) -> List[Rule]:
    """The rules of a file (`-`: standard input), which is read once: what is shown is what is applied."""
    try:
        if path == "-":
            data = sys.stdin.buffer.read(MAX_FILE + 1)
        else:
            with open(path, "rb") as file:
                data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Failure("cannot read %s: %s" % (path, error.strerror)) from None
    if len(data) > MAX_FILE:
        raise Failure("%s is larger than %d bytes, which is what dom0 takes" % (path, MAX_FILE), "Nothing was changed.")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        raise Failure("%s is not text" % path, "Nothing was changed.") from None
    rules = parse_list(text, path)
    if not rules:
        raise Failure(
            "%s has no rule" % path, "Nothing was changed. To let nothing pass, write the rule: action=drop"
        )
    over = [one for one in rules if one.is_over()]
    if over:
        raise Failure("expired already: %s" % over[0].line(), "Nothing was changed.")
    return rules


def show_apply(
    screen: Screen, services: Services, naming: Naming, name: str, path: str, is_sure: bool, as_json: bool
) -> int:
    """Shows the difference, asks, applies, checks."""
    qube = naming.qube(name)
    new = read_file(path)
    lines = [one.line() for one in new]
    old = dom0.rule_lines(name)
    if old == lines:
        _report(screen, as_json, name, [], "%s has these rules already; nothing to do" % name, False)
        return 0
    # Of long lists what is around the changes.
    changes = list(difflib.unified_diff(old, lines, lineterm="", n=3))[2:]
    if not as_json:
        _show_changes(screen, name, changes)
    if not is_sure:
        _confirm(screen, name, path)
    if dom0.rule_lines(name) != old:
        raise Failure("the rules of %s have changed since they were shown" % name, "Nothing was changed. Try again.")
    try:
        dom0.set_rules(name, lines)
        said = _verify(services, qube, name, new)
    except (Failure, KeyboardInterrupt) as failure:
        raise _restored(name, old, _reason(failure)) from None
    _report(screen, as_json, name, changes, said, True)
    return 0


def _reason(failure: BaseException) -> str:
    return failure.message if isinstance(failure, Failure) else "interrupted"


def _report(screen: Screen, as_json: bool, name: str, changes: List[str], said: str, is_changed: bool) -> None:
    if as_json:
        screen.json({"qube": name, "changed": is_changed, "difference": changes, "result": said})
    else:
        screen.say(Mark("good", said))


def _show_changes(screen: Screen, name: str, changes: List[str]) -> None:
    screen.say(Mark("head", "rules of %s: - in force, + new" % name))
    for number, line in enumerate(changes):
        style = {"-": "bad", "+": "good"}.get(line[:1])
        if not line.startswith("@@"):
            screen.say(Mark(style, line) if style else line)
        elif number:
            screen.say(Mark("faint", "..."))


def _confirm(screen: Screen, name: str, path: str) -> None:
    if path == "-" or not sys.stdin.isatty():
        raise Failure("nobody can be asked: standard input is not a terminal", "Nothing was changed. Use --yes.")
    screen.say("Apply this to %s? Type yes: " % name)
    screen.flush()
    if sys.stdin.readline().strip() != "yes":
        raise Failure("not confirmed", "Nothing was changed.")


def _verify(services: Services, qube: Qube, name: str, new: List[Rule]) -> str:
    """What holds now, in words; fails if it is not what was to be."""
    if dom0.rule_lines(name) != [one.line() for one in new if not one.is_over()]:
        raise Failure("dom0 does not have the rules that it was given")
    if not qube.is_running() or qube.netvm != services.vm:
        return "%s has the new rules; they count when it is connected to a firewall" % name
    deadline = time.monotonic() + services.timeout
    while True:
        try:
            wrong = _not_in_force(services, qube, new)
        except NotKnown:
            return "%s has the new rules; %s cannot tell whether they are in force" % (name, services.vm)
        if wrong is None:
            return "%s has the new rules, and they are in force in %s" % (name, services.vm)
        if time.monotonic() > deadline:
            raise Failure(wrong)
        time.sleep(PAUSE)


def _not_in_force(services: Services, qube: Qube, new: List[Rule]) -> Optional[str]:
    """What the firewall has instead of the new rules; None when they are in force for every address."""
    lines = services.rules()
    for address in qube.addresses():
        own = [line for line in lines if dom0.normal(line.text("client")) == address]
        heads = body(own, "ruleset")
        state = (heads[0].text("state") if heads else None) or "none"
        if state != "in-force":
            why = heads[0].text("why") if heads else None
            return "the firewall's rules for %s are %s%s" % (address, state, ": " + why if why else "")
        family = 6 if ":" in address else 4
        wanted = [meaning(one.traffic()) for one in new if one.is_for(family) and not one.is_over()]
        if [meaning(line.text("text") or "") for line in body(own, "rule")] != wanted:
            return "the firewall has other rules for %s than dom0" % address
    return None


def _restored(name: str, old: List[str], reason: str) -> Failure:
    try:
        if dom0.rule_lines(name) != _in_time(old):
            dom0.set_rules(name, old)
        is_back = dom0.rule_lines(name) == _in_time(old)
    except (Failure, KeyboardInterrupt) as failure:
        is_back = False
        reason += "; and: " + _reason(failure)
    if is_back:
        return Failure("not applied: %s" % reason, "%s has its old rules." % name)
    return Failure(
        "not applied: %s; THE OLD RULES COULD NOT BE PUT BACK" % reason,
        "Look at 'qvm-firewall %s list'. They were: %s" % (name, " / ".join(old) or "(none)"),
    )


def _in_time(lines: List[str]) -> List[str]:
    """Without those that have expired meanwhile, which dom0 leaves out."""
    return [line for line in lines if not _is_over(line)]


def _is_over(line: str) -> bool:
    try:
        return parse(line).is_over()
    except Refused:
        return False
