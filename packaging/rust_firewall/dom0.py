"""What dom0 says, through its own programs. All of these, and nothing else:

| program | what is relied on |
| --- | --- |
| `qvm-ls --raw-data --fields A,B,...` | a line for each qube, the values separated by `|`, `-` for none; a field may be any property |
| `qvm-prefs VM NAME` | the value on a line, an empty line or nothing for none; True or False |
| `qubes-prefs NAME` | the same for the whole system |
| `qvm-features VM NAME` | the value on a line; exit status 1 without a word where it is not set |
| `qvm-firewall --raw VM list` | a rule in the form of the admin API on each line, in order |
| `qubesd-query --fail dom0 admin.vm.firewall.Set VM` | rules on standard input replace all rules of the VM; answers `0`, a zero byte |
| `qrexec-client` | see `services` |
"""

from __future__ import annotations

import ipaddress
import re
from typing import List, NamedTuple, Optional

from . import rule
from .clean import clean
from .errors import Failure
from .process import Completed, run

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,30}\Z")
#: Bytes of a rule, with its comment.
MAX_RULE = 4096
_FIELDS = "NAME,STATE,CLASS,NETVM,IP,IP6,KERNEL,PROVIDES_NETWORK,TEMPLATE_FOR_DISPVMS,DEFAULT_DISPVM"


class Qube(NamedTuple):
    """A line of `qvm-ls`; None for what it does not have."""

    name: str
    state: str
    klass: str
    netvm: Optional[str]
    ip: Optional[str]
    ip6: Optional[str]
    kernel: Optional[str]
    provides_network: bool
    is_disposable_template: bool
    default_dispvm: Optional[str]

    def addresses(self) -> List[str]:
        return [address for address in (self.ip, self.ip6) if address]

    def is_running(self) -> bool:
        return self.state == "Running"


def check_name(name: str) -> str:
    """`name`, if it can be that of a qube: never an option of the program that gets it."""
    if not _NAME.match(name):
        raise Failure("'%s' cannot be the name of a qube" % clean(name, 60))
    return name


def qubes() -> List[Qube]:
    """All qubes, dom0 included."""
    done = run(["qvm-ls", "--raw-data", "--fields", _FIELDS])
    found = []
    for line in _text(done, "qvm-ls").splitlines():
        values = [None if value in ("-", "") else clean(value, 200) for value in line.split("|")]
        if len(values) != len(_FIELDS.split(",")) or values[0] is None:
            raise Failure("qvm-ls printed a line that cannot be understood: '%s'" % clean(line, 120))
        name, state, klass, netvm, ip, ip6, kernel, provides, template, dispvm = values
        found.append(
            Qube(
                name,
                state or "",
                klass or "",
                netvm,
                normal(ip),
                normal(ip6),
                kernel,
                provides == "True",
                template == "True",
                dispvm,
            )
        )
    return found


def normal(address: Optional[str]) -> Optional[str]:
    """An address in its usual form; None for what is none."""
    try:
        return None if address is None else str(ipaddress.ip_address(address))
    except ValueError:
        return None


def preference(vm: str, name: str) -> str:
    """A property; empty for none."""
    return clean(_text(run(["qvm-prefs", check_name(vm), name]), "qvm-prefs %s %s" % (vm, name)).strip())


def system_preference(name: str) -> str:
    """A property of the whole system; empty for none."""
    return clean(_text(run(["qubes-prefs", name]), "qubes-prefs %s" % name).strip())


def feature(vm: str, name: str) -> Optional[str]:
    """A feature; None where it is not set."""
    done = run(["qvm-features", check_name(vm), name])
    if done.status == 1 and not done.output and not done.complaint:
        return None
    return clean(_text(done, "qvm-features %s %s" % (vm, name)).strip())


def rule_lines(vm: str) -> List[str]:
    """The rules of a qube as dom0 has them, in order, each in the form that `rule` writes where it is one."""
    what = "qvm-firewall --raw %s list" % vm
    lines = _text(run(["qvm-firewall", "--raw", check_name(vm), "list"]), what).splitlines()
    for line in lines:
        if clean(line, MAX_RULE) != line:
            raise Failure("%s printed a rule that cannot be one: '%s'" % (what, clean(line, 120)))
    return [rule.standard(line) for line in lines if line]


def set_rules(vm: str, lines: List[str]) -> None:
    """Replaces all rules of a qube in one call of the admin API: qubesd checks them all before it takes any."""
    given = "".join(line + "\n" for line in lines).encode("ascii")
    done = run(["qubesd-query", "--fail", "dom0", "admin.vm.firewall.Set", check_name(vm)], given)
    if done.status == 0 and done.output[:2] == b"0\0":
        return
    # "2", then the kind of the exception, a trace, its text and arguments, zero bytes between them.
    parts = [part for part in done.output[:2048].decode("ascii", "replace").split("\0")[1:] if part.strip()]
    reason = "; ".join(clean(part, 120) for part in parts[:1] + parts[1:][-2:]) or done.complaint
    raise Failure(
        "dom0 refused the rules for %s (exit status %d%s)" % (vm, done.status, ": " + reason if reason else ""),
        "qubesd says more in its journal: 'journalctl -u qubesd'. A user of dom0 who is not in the group qubes may not do this.",
    )


def _text(done: Completed, what: str) -> str:
    if done.status != 0:
        raise Failure(
            "%s failed (exit status %d%s)" % (what, done.status, ": " + done.complaint if done.complaint else "")
        )
    return done.output.decode("utf-8", "replace")
