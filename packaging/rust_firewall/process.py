"""Running one of dom0's programs, with bounds on time and on what it may say."""

from __future__ import annotations

import os
import selectors
import subprocess
import time
from typing import List, NamedTuple

from .clean import clean
from .errors import Failure

#: What dom0's own programs may print: `qvm-ls` of a thousand qubes is 100 KB.
MAX_OUTPUT = 1 << 20
#: Of what a program complains about; the rest is read and thrown away.
MAX_COMPLAINT = 4096
#: Seconds. `qvm-ls` of many qubes on a slow disk takes a few.
TIMEOUT = 30.0
CHUNK = 65536


class Completed(NamedTuple):
    """How a program ended."""

    output: bytes
    complaint: str
    status: int


def run(words: List[str], given: bytes = b"", limit: int = MAX_OUTPUT, timeout: float = TIMEOUT) -> Completed:
    """Runs `words` with `given` on standard input; fails if it says more than `limit` bytes or takes longer."""
    name = words[0]
    try:
        child = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
    except FileNotFoundError:
        raise Failure(
            "%s not found" % name, "This command runs in dom0, where Qubes OS has that program."
        ) from None
    except OSError as error:
        raise Failure("cannot run %s: %s" % (name, clean(error.strerror or str(error)))) from None
    try:
        return _collect(child, name, given, limit, timeout)
    finally:
        if child.poll() is None:
            child.kill()
        for pipe in (child.stdin, child.stdout, child.stderr):
            _close(pipe)
        child.wait()


def _collect(child: subprocess.Popen, name: str, given: bytes, limit: int, timeout: float) -> Completed:
    deadline = time.monotonic() + timeout
    output, complaint = bytearray(), bytearray()
    with selectors.DefaultSelector() as selector:
        for pipe, what in ((child.stdout, "out"), (child.stderr, "err")):
            selector.register(pipe, selectors.EVENT_READ, what)
        if given:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE, "in")
        else:
            _close(child.stdin)
        while selector.get_map():
            left = deadline - time.monotonic()
            if left <= 0:
                raise _late(name, timeout)
            for key, _ in selector.select(left):
                if key.data == "in":
                    given = _feed(selector, child.stdin, given)
                    continue
                chunk = os.read(key.fd, CHUNK)
                if not chunk:
                    selector.unregister(key.fileobj)
                elif key.data == "out":
                    output += chunk
                    if len(output) > limit:
                        raise Failure(
                            "%s printed more than %d bytes and was stopped" % (name, limit),
                            "Nothing of it was used.",
                        )
                else:
                    complaint += chunk[: max(MAX_COMPLAINT - len(complaint), 0)]
    try:
        status = child.wait(max(deadline - time.monotonic(), 0.1))
    except subprocess.TimeoutExpired:
        raise _late(name, timeout) from None
    return Completed(bytes(output), sentence(bytes(complaint)), status)


def _feed(selector: selectors.BaseSelector, pipe, given: bytes) -> bytes:
    """Writes a part of `given`; what is left. A program that does not read its input is no failure by itself."""
    try:
        given = given[os.write(pipe.fileno(), given[:CHUNK]) :]
    except BrokenPipeError:
        given = b""
    if not given:
        selector.unregister(pipe)
        _close(pipe)
    return given


def _close(pipe) -> None:
    try:
        pipe.close()
    except BrokenPipeError:
        pass


def _late(name: str, timeout: float) -> Failure:
    return Failure(
        "%s did not end within %g s and was stopped" % (name, timeout),
        "Try again; if it stays so, look at the VM's console log: /var/log/xen/console/guest-VM.log",
    )


def sentence(complaint: bytes) -> str:
    """The last lines of what a program complains about, as one line."""
    lines = [line.strip() for line in complaint.decode("utf-8", "replace").splitlines()]
    return clean("; ".join([line for line in lines if line][-3:]), 300)
