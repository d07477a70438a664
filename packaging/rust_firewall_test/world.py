"""The qubes that tests and the documentation's examples see, and how the command is run among them."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
from typing import NamedTuple
from unittest import mock

from rust_firewall import cli, dom0, process, services

from . import stand_in

COMMAND = os.path.join(stand_in.PACKAGING, "rust-firewall")
VM = "rust-firewall"


def _qube(address, netvm, domid=None, **more):
    qube = {
        "state": "Running" if domid else "Halted", "class": "AppVM", "netvm": netvm, "ip": address, "ip6": None,
        "kernel": "6.12.54-1", "provides_network": False, "template_for_dispvms": False,
        "default_dispvm": "default-dvm", "domid": domid, "firewall": ["action=accept"],
    }
    qube.update(more)
    return qube


STATE = {
    "qubes": {
        "dom0": {
            "state": "Running", "class": "AdminVM", "netvm": None, "ip": None, "kernel": None, "provides_network": False,
            "template_for_dispvms": False, "default_dispvm": None, "domid": 0, "firewall": [],
        },
        "sys-net": _qube("10.137.0.5", None, 1, provides_network=True),
        VM: _qube(
            "10.137.0.6", "sys-net", 2, provides_network=True, kernel="rust-firewall",
            preferences={
                "virt_mode": "pvh", "vcpus": 1, "memory": 32, "maxmem": 32, "kernelopts": "", "audiovm": None
            },
            features={"qubes-firewall": "1", "no-default-kernelopts": "1", "skip-update": "1", "gui": ""},
            **{"class": "StandaloneVM"}
        ),
        "work": _qube(
            "10.137.0.11", VM, 5, ip6="fd09:24ef:4179::a89:b",
            firewall=[
                "action=accept dsthost=www.example.com proto=tcp dstports=443-443 comment=the web page",
                "action=drop dst4=203.0.113.0/24",
                "action=accept specialtarget=dns",
                "action=accept proto=icmp icmptype=8",
                "action=accept dst6=2001:db8::/32 proto=tcp dstports=22-22",
            ],
        ),
        "personal": _qube("10.137.0.12", VM, 6),
        "vault": _qube(None, None, 7, firewall=[]),
        "untrusted": _qube("10.137.0.13", VM),
        "default-dvm": _qube("10.137.0.14", VM, template_for_dispvms=True),
    },
    "system": {"default_netvm": VM, "updatevm": "sys-net", "clockvm": "sys-net", "default_dispvm": "default-dvm"},
    "firewall": {
        "vm": VM, "version": "0.1.0", "uptime_ms": 7384000, "has_uplink": True,
        "names": {
            "www.example.com": ["93.184.216.34", "2606:2800:220:1::34"], "imap.example.org": ["198.51.100.20"],
        },
        "rates": {"work": [1200, 48000], "personal": [310, 2200000]},
        "traffic": [
            {"qube": "work", "proto": "tcp", "dst": "93.184.216.34", "dport": 443, "idle_ms": 200},
            {"qube": "work", "proto": "udp", "dst": "10.139.1.1", "dport": 53, "idle_ms": 4100},
            {"qube": "work", "proto": "icmp", "dst": "198.51.100.7", "dport": 8, "idle_ms": 900},
            {"qube": "work", "proto": "tcp", "dst": "93.184.216.34", "dport": 80, "age_ms": 61000},
            {"qube": "work", "proto": "tcp", "dst": "203.0.113.9", "dport": 22, "age_ms": 5200, "times": 3},
            {"qube": "personal", "proto": "tcp", "dst": "198.51.100.20", "dport": 993, "idle_ms": 30},
        ],
    },
}


class Ran(NamedTuple):
    """How a command ended."""

    status: int
    output: str
    errors: str

    def json(self):
        return json.loads(self.output)


class World:
    """A dom0 of its own in a temporary folder. Use it as a context."""

    def __init__(self):
        self.folder = tempfile.mkdtemp(prefix="rust-firewall-test-")
        self.state = copy.deepcopy(STATE)
        self.file = os.path.join(self.folder, "state.json")
        self.programs = os.path.join(self.folder, "bin")
        stand_in.install(self.programs)
        kernels = os.path.join(self.folder, "kernels", "rust-firewall")
        os.makedirs(kernels)
        with open(os.path.join(kernels, "vmlinuz"), "wb") as image:
            image.write(b"\x7fELF")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def start_now(self):
        """Starts the firewall: what is in the kernel directory is what it runs."""
        self.state["firewall"]["uptime_ms"] = 500

    def environment(self, **more):
        """Variables for the command: no terminal, no colours, the stand-ins first."""
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "TERM")}
        kept.update(
            PATH=self.programs + os.pathsep + kept.get("PATH", ""), STAND_IN_STATE=self.file,
            RUST_FIREWALL_KERNELS=os.path.join(self.folder, "kernels"), PYTHONDONTWRITEBYTECODE="1", COLUMNS="120",
        )
        kept.update(more)
        return kept

    def run(self, *words, given=""):
        """`rust-firewall WORDS` in this process, dom0's programs as well: quick, and the same but for the processes."""

        def program(words_of_it, given_to_it=b"", limit=0, timeout=0):
            del timeout
            call = stand_in.Call(words_of_it[0], words_of_it[1:], given_to_it)
            status = stand_in.answer(self.state, call)
            assert not limit or len(call.output) <= limit
            return process.Completed(bytes(call.output), process.sentence(call.complaint.encode()), status)

        output, errors = io.StringIO(), io.StringIO()
        stdin = io.TextIOWrapper(io.BytesIO(given.encode()))
        kernels = {"RUST_FIREWALL_KERNELS": os.path.join(self.folder, "kernels")}
        before = os.getcwd()
        os.chdir(self.folder)
        try:
            with mock.patch.object(dom0, "run", program), mock.patch.object(services, "run", program), mock.patch.dict(
                os.environ, kernels
            ), mock.patch.object(sys, "stdin", stdin), mock.patch.object(services, "TIMEOUT", 0.5), contextlib.redirect_stdout(
                output
            ), contextlib.redirect_stderr(errors):
                status = cli.main(list(words))
        except SystemExit as end:
            status = end.code
        finally:
            os.chdir(before)
        return Ran(status, output.getvalue(), errors.getvalue())

    def run_alone(self, *words, timeout=60):
        """The same as a process of its own, which runs the stand-ins as programs; their state is in a file meanwhile."""
        self.save()
        done = subprocess.run(
            [sys.executable, "-S", "-B", COMMAND] + list(words), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, env=self.environment(), cwd=self.folder, timeout=timeout, check=False,
        )
        with open(self.file) as file:
            self.state = json.load(file)
        return Ran(done.returncode, done.stdout.decode("utf-8", "surrogateescape"), done.stderr.decode("utf-8", "replace"))

    def save(self):
        with open(self.file, "w") as file:
            json.dump(self.state, file)

    def write(self, name, text):
        """A file in the folder in which commands run."""
        with open(os.path.join(self.folder, name), "w") as file:
            file.write(text)
        return name

    def calls(self, program):
        return [call[1:] for call in self.state.get("calls", []) if call[0] == program]
