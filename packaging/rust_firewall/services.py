"""What the firewall VM answers over qrexec: each service as a method.

The call is that of its documentation: `qrexec-client -d VM 'user:QUBESRPC firewall.NAME[+ARGUMENT] dom0'`. Exit status 127
is an image that does not have the service.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Tuple

from . import answers
from .answers import Line
from .errors import Failure
from .process import run

#: The largest answer, of flows: 300 bytes for each of the 30,000 that 64 MiB of memory have room for.
MAX_ANSWER = 16 << 20
#: Seconds for one answer, which takes some milliseconds.
TIMEOUT = 15.0
NO_SUCH_SERVICE = 127


class NotKnown(Failure):
    """The image does not have this service."""


class Port(NamedTuple):
    """Counters of the uplink, of a client, or of all clients that are gone."""

    kind: str
    address: Optional[str]
    address6: Optional[str]
    domid: Optional[int]
    counters: dict
    drops: dict


class Stats(NamedTuple):
    """An answer to `firewall.Stats`."""

    whole: Line
    ports: List[Port]


class Services:
    """The services of one firewall VM."""

    def __init__(self, vm: str, timeout: Optional[float] = None) -> None:
        self.vm = vm
        self.timeout = TIMEOUT if timeout is None else timeout

    def version(self) -> Line:
        return self._ask("Version")[0]

    def memory(self) -> Line:
        return self._ask("Memory")[0]

    def health(self) -> List[Line]:
        """The whole, then each problem."""
        return self._ask("Health")

    def flows(self) -> List[Line]:
        return self._ask("Flows")

    def drops(self) -> List[Line]:
        return self._ask("Drops")

    def rules(self) -> List[Line]:
        return self._ask("Rules")

    def explain(self, client: str, proto: str, destination: str, port: Optional[int]) -> Line:
        """What the rules of `client` say about the first packet of such a flow."""
        words = [client, proto, destination] + ([] if port is None else [str(port)])
        lines = self._ask("Explain", given=(" ".join(words) + "\n").encode("ascii"))
        answer = lines[0]
        if answer.kind == "error":
            raise Failure("the firewall cannot explain that: %s" % answer.text("reason", "no reason given"))
        return answer

    def stats(self) -> Stats:
        lines = self._ask("Stats")
        halves: Dict[Tuple[str, Optional[int]], List[Line]] = {}
        for line in lines:
            if line.kind in ("uplink", "departed", "client"):
                halves.setdefault((line.kind, line.number("slot")), []).append(line)
        ports = []
        for (kind, _), pair in halves.items():
            first = pair[0]
            counters, drops = {}, {}
            for half in pair:
                counters.update(half.counts("counters"))
                drops.update(half.counts("drops"))
            ports.append(
                Port(kind, first.text("ip"), first.text("ip6"), first.number("domid"), counters, drops)
            )
        return Stats(lines[0], ports)

    def _ask(self, name: str, given: bytes = b"") -> List[Line]:
        service = "firewall." + name
        call = ["qrexec-client", "-d", self.vm, "user:QUBESRPC %s dom0" % service]
        done = run(call, given, MAX_ANSWER, self.timeout)
        if done.status == NO_SUCH_SERVICE:
            raise NotKnown(
                "%s does not know the service %s" % (self.vm, service),
                "Its image is older than this command, or it is no rust-firewall. Upgrade the image with "
                "'rust-firewall-dom0 upgrade IMAGE' and restart the VM, or name the right VM with --vm.",
            )
        if done.status != 0 and not (name == "Explain" and done.output):
            raise Failure(
                "%s did not answer %s (exit status %d%s)"
                % (self.vm, service, done.status, ": " + done.complaint if done.complaint else ""),
                "Does it run? 'qvm-start %s' starts it; 'rust-firewall doctor' looks for what is wrong." % self.vm,
            )
        return answers.parse(done.output, service)


def body(lines: List[Line], kind: str) -> List[Line]:
    """The lines of one kind."""
    return [line for line in lines if line.kind == kind]
