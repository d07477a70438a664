"""`rust-firewall doctor`: looks for what is wrong, and names the command that mends it."""

from __future__ import annotations

import os
import time
from typing import List, Optional, Tuple

from . import checks, dom0
from .answers import Line
from .checks import WRONG, Facts
from .errors import Failure
from .naming import Naming, newest_kernel
from .screen import Mark, Screen
from .services import NotKnown, Services, body

#: Where Qubes looks for kernels; the variable is that of `rust-firewall-dom0`.
KERNELS = "/var/lib/qubes/vm-kernels"


def show_doctor(screen: Screen, services: Services, naming: Naming, ignored: List[str], as_json: bool) -> int:
    """Exit status 1 if anything is wrong that is not ignored."""
    facts = gather(services, naming)
    findings = [one for one in checks.find(facts) if one.id not in ignored]
    is_wrong = any(one.level == WRONG for one in findings)
    if as_json:
        version = None if facts.version is None else facts.version.text("version")
        screen.json(
            {
                "vm": services.vm,
                "ok": not is_wrong,
                "version": version,
                "findings": [checks.record(one) for one in findings],
            }
        )
        return 1 if is_wrong else 0
    for one in findings:
        screen.say(Mark("bad" if one.level == WRONG else "warn", one.level), Mark("head", one.id), "-", one.text)
        if one.fix:
            screen.say("    fix:", one.fix)
    count = sum(one.level == WRONG for one in findings)
    if is_wrong:
        screen.say(Mark("bad", "%d thing%s wrong with %s" % (count, "s" if count > 1 else "", services.vm)))
    else:
        screen.say(Mark("good", "nothing wrong with %s" % services.vm))
    return 1 if is_wrong else 0


def gather(services: Services, naming: Naming) -> Facts:
    """Asks dom0 and the VM. That the VM does not answer is a finding, not a failure."""
    vm = naming.qube(services.vm)
    version, silence, problems, notes = None, "", None, []
    if vm.is_running():
        try:
            version = services.version()
            problems, notes = told(services)
        except Failure as failure:
            silence = failure.message
    return Facts(
        naming,
        vm,
        {name: dom0.preference(vm.name, name) for name in checks.PREFERENCES},
        {name: dom0.feature(vm.name, name) for name in checks.FEATURES},
        {name: dom0.system_preference(name) for name in checks.SYSTEM},
        version,
        silence,
        problems,
        notes,
        image_since(vm.kernel),
        newest_kernel(kernel_directories()),
        time.time(),
    )


def told(services: Services) -> Tuple[Optional[List[Line]], List[Line]]:
    """Problems and notes of the firewall itself; no problems, and not even an empty list, if its image cannot tell."""
    try:
        lines = services.health()
    except NotKnown:
        return None, []
    return body(lines, "problem"), body(lines, "note")


def kernels() -> str:
    return os.environ.get("RUST_FIREWALL_KERNELS", KERNELS)


def kernel_directories() -> List[str]:
    """Those that have an image."""
    try:
        names = os.listdir(kernels())
    except OSError:
        return []
    return [name for name in names if os.path.isfile(os.path.join(kernels(), name, "vmlinuz"))]


def image_since(kernel: Optional[str]) -> Optional[float]:
    """When the image got into its kernel directory: it was written then, or the directory was given its name (an
    upgrade and a rollback rename it)."""
    if kernel is None:
        return None
    directory = os.path.join(kernels(), os.path.basename(kernel))
    try:
        return max(os.stat(os.path.join(directory, "vmlinuz")).st_mtime, os.stat(directory).st_ctime)
    except OSError:
        return None
