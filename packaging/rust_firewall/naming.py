"""Names instead of addresses, and which firewall VM is meant."""

from __future__ import annotations

import re
from typing import List, Optional, Tuple

from . import dom0
from .clean import clean
from .dom0 import Qube
from .errors import Failure

KERNEL = "rust-firewall"
_VERSIONED = re.compile(KERNEL + r"-([0-9][A-Za-z0-9.+~_-]{0,40})\Z", re.ASCII)


class Naming:
    """The qubes of dom0, by name and by address, seen from one firewall VM."""

    def __init__(self, qubes: List[Qube], vm: str) -> None:
        self.qubes = qubes
        self.vm = vm
        self._by_name = {qube.name: qube for qube in qubes}
        self._by_address = {}
        # Its clients last: should two qubes have one address, theirs is the name that counts here.
        for qube in sorted(qubes, key=lambda qube: qube.netvm == vm):
            for address in qube.addresses():
                self._by_address[address] = qube.name

    def qube(self, name: str) -> Qube:
        """A qube by name."""
        found = self._by_name.get(dom0.check_name(name))
        if found is None:
            raise Failure("there is no qube %s" % clean(name, 60), "'qvm-ls' lists them.")
        return found

    def client(self, name: str) -> Qube:
        """A qube that is behind this firewall and has an address."""
        qube = self.qube(name)
        if qube.netvm != self.vm:
            raise Failure(
                "%s is not behind %s: its netvm is %s" % (name, self.vm, qube.netvm or "none"),
                "'qvm-prefs %s netvm %s' puts it there; --vm names another firewall." % (name, self.vm),
            )
        if not qube.addresses():
            raise Failure("dom0 knows no address of %s" % name)
        return qube

    def clients(self) -> List[Qube]:
        return [qube for qube in self.qubes if qube.netvm == self.vm]

    def name(self, address: Optional[str]) -> str:
        """The qube with this address, or the address."""
        return self._by_address.get(dom0.normal(address) or "", address or "-")


def firewall_of(qubes: List[Qube], wanted: Optional[str], client: Optional[str] = None) -> str:
    """The firewall VM: `wanted`, or the netvm of `client`, or the only one, or the default netvm."""
    names = {qube.name for qube in qubes}
    if wanted is not None:
        if dom0.check_name(wanted) not in names:
            raise Failure("there is no qube %s" % clean(wanted, 60), "'qvm-ls' lists them.")
        return wanted
    ours = [qube.name for qube in qubes if runs_our_kernel(qube)]
    behind = [qube.netvm for qube in qubes if qube.name == client and qube.netvm in ours]
    if behind:
        return behind[0] or ""
    if len(ours) == 1:
        return ours[0]
    default = dom0.system_preference("default_netvm")
    if default in ours or (not ours and default in names):
        return default
    if ours:
        raise Failure(
            "there are several firewall VMs, and none of them is the default netvm: %s" % ", ".join(ours),
            "Say which one: --vm NAME",
        )
    raise Failure(
        "no VM has the kernel %s, and there is no default netvm" % KERNEL,
        "'rust-firewall-dom0 create' makes one; --vm NAME names one with another kernel.",
    )


def runs_our_kernel(qube: Qube) -> bool:
    """Also the image before the last upgrade, and kernels that a person has named after it."""
    kernel = qube.kernel or ""
    return kernel == KERNEL or kernel.startswith((KERNEL + ".", KERNEL + "-"))


def kernel_version(kernel: Optional[str]) -> Optional[str]:
    """The version in the name of a kernel directory of the package; None for one with another name."""
    found = _VERSIONED.match(kernel or "")
    return found.group(1) if found else None


def newest_kernel(names: List[str]) -> str:
    """The kernel directory of the newest version among `names`; without any, that of an image installed by hand."""
    versioned = [name for name in names if kernel_version(name) is not None]
    return max(versioned, key=_order, default=KERNEL)


def _order(name: str) -> List[Tuple[int, str]]:
    """Numbers by their value, as `sort -V` has them, which `rust-firewall-dom0` uses."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
