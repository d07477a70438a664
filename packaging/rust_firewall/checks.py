"""What `doctor` looks for. Each check is a function of [`Facts`] alone, and each finding names the command that mends it.

Sources: `packaging/README.md` for the settings of the VM; the Qubes documentation for default_netvm, updatevm, clockvm and
disposables.
"""

from __future__ import annotations

from typing import Any, Callable, Dict, List, NamedTuple, Optional

from .answers import Line
from .dom0 import Qube
from .naming import Naming, kernel_version, runs_our_kernel

WRONG, NOTE = "wrong", "note"
#: The image boots with 16 MiB and more.
LEAST_MEMORY = 16


class Finding(NamedTuple):
    """Something that is not as it should be. A note is worth knowing and changes no exit status."""

    level: str
    id: str
    text: str
    fix: str = ""


class Facts(NamedTuple):
    """What was asked of dom0 and of the VM; None for what could not be."""

    naming: Naming
    vm: Qube
    preferences: Dict[str, str]
    features: Dict[str, Optional[str]]
    system: Dict[str, str]
    #: Answer to firewall.Version.
    version: Optional[Line]
    #: Why there is none.
    silence: str
    #: Problems of firewall.Health; None if it cannot tell.
    problems: Optional[List[Line]]
    #: Its notes.
    notes: List[Line]
    #: Seconds since 1970 at which the image in the kernel directory got there; None if there is none.
    image_since: Optional[float]
    #: The kernel directory that `rust-firewall-dom0 create` would choose.
    newest_kernel: str
    now: float


PREFERENCES = ("virt_mode", "vcpus", "memory", "maxmem", "kernelopts", "audiovm")
FEATURES = ("qubes-firewall", "no-default-kernelopts", "skip-update", "gui", "qrexec")
SYSTEM = ("default_netvm", "updatevm", "clockvm", "default_dispvm")


def find(facts: Facts) -> List[Finding]:
    """All findings, in the order of the checks."""
    return [finding for check in CHECKS for finding in check(facts)]


def _preferences(facts: Facts) -> List[Finding]:
    vm, has = facts.vm.name, facts.preferences
    found = []
    for name, wanted, why in (
        ("virt_mode", "pvh", "the image boots as a PVH guest only"),
        ("vcpus", "1", "the image uses one processor; others would idle"),
    ):
        if has[name] != wanted:
            found.append(_set(vm, name, has[name], wanted, why))
    if not runs_our_kernel(facts.vm):
        kernel = facts.vm.kernel or "the one of its template"
        found.append(_set(vm, "kernel", kernel, facts.newest_kernel, "that is the kernel directory of the image"))
    if not facts.vm.provides_network:
        found.append(_set(vm, "provides_network", "False", "True", "no qube can use it as its netvm otherwise"))
    if not facts.vm.netvm:
        found.append(
            Finding(WRONG, "netvm", "%s has no netvm: nothing leaves" % vm, "qvm-prefs %s netvm sys-net" % vm)
        )
    return found + _memory(vm, has)


def _set(vm: str, name: str, has: str, wanted: str, why: str) -> Finding:
    return Finding(
        WRONG, name, "%s of %s is %s, not %s: %s" % (name, vm, has or "empty", wanted, why),
        "qvm-prefs %s %s %s" % (vm, name, wanted),
    )


def _memory(vm: str, has: Dict[str, str]) -> List[Finding]:
    memory, most = _whole(has["memory"]), _whole(has["maxmem"])
    if memory < LEAST_MEMORY:
        return [
            Finding(
                WRONG, "memory", "memory of %s is %s MiB; the image needs %d" % (vm, has["memory"] or "no", LEAST_MEMORY),
                "qvm-prefs %s memory 32; qvm-prefs %s maxmem 32" % (vm, vm),
            )
        ]
    if most not in (0, memory):
        return [
            Finding(
                WRONG, "maxmem", "maxmem of %s is %s, memory %s: the image has no balloon driver and starts with less than "
                "it is told" % (vm, has["maxmem"], has["memory"]),
                "qvm-prefs %s maxmem %d" % (vm, memory),
            )
        ]
    return []


def _whole(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else -1


def _features(facts: Facts) -> List[Finding]:
    vm, has = facts.vm.name, facts.features
    found = []
    for name, wanted, why in (
        ("qubes-firewall", "1", "dom0 writes rules in the old format as well"),
        ("no-default-kernelopts", "1", "the image gets options for Linux"),
        ("skip-update", "1", "the updater tries to update it"),
    ):
        if has[name] != wanted:
            found.append(
                Finding(
                    WRONG if name == "qubes-firewall" else NOTE, name, "feature %s is %s, not %s: %s"
                    % (name, "not set" if has[name] is None else has[name] or "empty", wanted, why),
                    "qvm-features %s %s %s" % (vm, name, wanted),
                )
            )
    if has["gui"] != "":
        found.append(Finding(NOTE, "gui", "feature gui is not empty: dom0 starts a GUI daemon for it", "qvm-features %s gui ''" % vm))
    if facts.preferences["audiovm"]:
        found.append(Finding(NOTE, "audiovm", "dom0 starts an audio daemon for it", "qvm-prefs %s audiovm ''" % vm))
    if has["qrexec"] and facts.version is None and facts.vm.is_running():
        found.append(
            Finding(
                WRONG, "qrexec", "feature qrexec is set and the VM does not answer: its next start waits for it and fails",
                "qvm-features --unset %s qrexec" % vm,
            )
        )
    return found


def _system(facts: Facts) -> List[Finding]:
    vm, has = facts.vm.name, facts.system
    found = []
    if has["default_netvm"] != vm:
        found.append(
            Finding(
                NOTE, "default_netvm", "new qubes get %s as their netvm" % (has["default_netvm"] or "none"),
                "qubes-prefs default_netvm %s" % vm,
            )
        )
    linux = _linux_netvm(facts)
    for name, what in (
        ("updatevm", "downloads of dom0's updates need Linux programs in it"),
        ("clockvm", "the time is asked of a Linux program in it"),
    ):
        if has[name] == vm:
            found.append(Finding(WRONG, name, "%s is %s: %s" % (name, vm, what), "qubes-prefs %s %s" % (name, linux)))
    return found


def _linux_netvm(facts: Facts) -> str:
    """A network VM with Linux in it: the netvm of ours, usually."""
    by_name = {qube.name: qube for qube in facts.naming.qubes}
    netvm = by_name.get(facts.vm.netvm or "")
    while netvm is not None and runs_our_kernel(netvm) and netvm.netvm != facts.vm.name:
        netvm = by_name.get(netvm.netvm or "")
    return netvm.name if netvm is not None else "sys-net"


def _qubes(facts: Facts) -> List[Finding]:
    """Every qube that reaches the network past the firewalls."""
    by_name = {qube.name: qube for qube in facts.naming.qubes}
    uplinks = {facts.vm.netvm} - {None}
    found = []
    for qube in facts.naming.qubes:
        if qube.name == facts.vm.name or qube.netvm is None:
            continue
        netvm = by_name.get(qube.netvm)
        if netvm is None:
            found.append(_netvm(WRONG, facts, qube.name, "%s has the netvm %s, which does not exist" % (qube.name, qube.netvm)))
        elif qube.netvm in uplinks and qube.provides_network:
            if not runs_our_kernel(qube):
                found.append(
                    Finding(NOTE, "other-firewall", "%s is on %s too; qubes behind it have another firewall" % (qube.name, qube.netvm))
                )
        elif qube.netvm in uplinks:
            text = "%s is on %s, past the firewall: its rules count nowhere" % (qube.name, qube.netvm)
            found.append(_netvm(WRONG, facts, qube.name, text))
    return found


def _netvm(level: str, facts: Facts, qube: str, text: str) -> Finding:
    """A qube that should be behind this firewall."""
    name = "qube-netvm" if level == WRONG else "dispvm-netvm"
    return Finding(level, name, text, "qvm-prefs %s netvm %s" % (qube, facts.vm.name))


def _disposables(facts: Facts) -> List[Finding]:
    """What a qube behind this firewall opens in a disposable has the network of that disposable."""
    by_name = {qube.name: qube for qube in facts.naming.qubes}
    users: Dict[str, List[str]] = {}
    for qube in facts.naming.clients():
        if qube.default_dispvm:
            users.setdefault(qube.default_dispvm, []).append(qube.name)
    default = facts.system["default_dispvm"]
    if default:
        users.setdefault(default, []).append("the system default")
    found = []
    for name, who in sorted(users.items()):
        template = by_name.get(name)
        if template is None or template.netvm is None or template.netvm == facts.vm.name:
            continue
        if runs_our_kernel(by_name.get(template.netvm, template)):
            continue
        text = "disposables of %s (%s) have the netvm %s" % (name, _shortened(who), template.netvm)
        found.append(_netvm(NOTE, facts, name, text))
    return found


def _shortened(names: List[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _image(facts: Facts) -> List[Finding]:
    vm = facts.vm.name
    found = []
    if facts.image_since is None and runs_our_kernel(facts.vm):
        found.append(
            Finding(
                WRONG, "image", "there is no image in the kernel directory of %s" % facts.vm.kernel,
                "sudo rust-firewall-dom0 install vmlinuz",
            )
        )
    if not facts.vm.is_running():
        return found + [Finding(WRONG, "running", "%s does not run (%s)" % (vm, facts.vm.state), "qvm-start %s" % vm)]
    if facts.version is None:
        return found + [
            Finding(WRONG, "silent", "%s runs and does not answer: %s" % (vm, facts.silence), "qvm-kill %s; qvm-start %s" % (vm, vm))
        ]
    if _is_older(facts, facts.version):
        found.append(
            Finding(
                WRONG, "restart", "the kernel of %s was exchanged after it started: it still runs the one before (version %s)"
                % (vm, facts.version.text("version", "?")),
                _restart(vm),
            )
        )
    return found


def _is_older(facts: Facts, running: Line) -> bool:
    """Is what runs another image than the one that the VM would start with? A version is in the directory's name, and rpm
    moves the directories of old ones; where it is not, the time at which the image got there tells."""
    version = kernel_version(facts.vm.kernel)
    if version is not None:
        return version != running.text("version")
    started = facts.now - running.count("uptime_ms") / 1000
    return facts.image_since is not None and facts.image_since > started + 1


def _restart(vm: str) -> str:
    return "qvm-shutdown --wait --force %s && qvm-start %s" % (vm, vm)


def _health(facts: Facts) -> List[Finding]:
    if facts.problems is None:
        if facts.version is None:
            return []
        text = "this image has no firewall.Health: nothing is known of its own checks"
        return [Finding(NOTE, "health", text, "rust-firewall-dom0 upgrade")]
    problems = [
        Finding(WRONG, "health: " + (problem.text("id") or "unknown"), _problem(facts, problem), _remedy(facts, problem))
        for problem in facts.problems
    ]
    notes = [Finding(NOTE, "health: " + (note.text("id") or "unknown"), _problem(facts, note)) for note in facts.notes]
    return problems + notes


def _remedy(facts: Facts, problem: Line) -> str:
    """What to begin with. A name that the firewall says gets into a command only if dom0 knows it."""
    vm = facts.vm.name
    client = facts.naming.name(problem.text("client")) if problem.has("client") else ""
    is_qube = any(qube.name == client for qube in facts.naming.qubes)
    restart = _restart(vm)
    more_memory = "qvm-prefs %s memory 64; qvm-prefs %s maxmem 64; %s" % (vm, vm, restart)
    remedies = {
        "no-uplink": "qvm-start %s; qvm-prefs %s netvm" % (facts.vm.netvm or "sys-net", vm),
        "database-lost": restart,
        "config-word": "qvm-features %s; qvm-prefs %s kernelopts" % (vm, vm),
        "rules-not-taken": more_memory,
        "memory": more_memory,
        "memory-refused": more_memory,
        "flow-table-full": more_memory,
    }
    if is_qube:
        rules = "rust-firewall rules " + client
        remedies.update(
            {"rules-refused": rules, "names-unresolved": rules, "client-limited": "rust-firewall flows " + client}
        )
    return remedies.get(problem.text("id") or "", "sudo tail -n 50 /var/log/xen/console/guest-%s.log" % vm)


def _problem(facts: Facts, problem: Line) -> str:
    client = problem.text("client")
    return (facts.naming.name(client) + ": " if client else "") + (problem.text("text") or "")


CHECKS: List[Callable[[Facts], List[Finding]]] = [_preferences, _features, _system, _qubes, _disposables, _image, _health]


def record(finding: Finding) -> Dict[str, Any]:
    """For `--json`."""
    return dict(finding._asdict())
