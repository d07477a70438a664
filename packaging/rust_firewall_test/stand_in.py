"""dom0's programs, as far as the command uses them, strict about their arguments: what they do not know is a failure.

State is a JSON file, named by STAND_IN_STATE. Two variables point the stand-ins at a firewall that is not simulated;
each is a JSON list of words, the beginning of a command:

- STAND_IN_QREXEC: gets `user:COMMAND`'s COMMAND as one more word, and standard input;
- STAND_IN_ON_RULES: gets the name of a qube as one more word, and its new rules on standard input.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

from . import simulated

PROGRAMS = ("qvm-ls", "qvm-prefs", "qubes-prefs", "qvm-features", "qvm-firewall", "qubesd-query", "qrexec-client")
FIELDS = {
    "NAME": None, "STATE": "state", "CLASS": "class", "NETVM": "netvm", "IP": "ip", "IP6": "ip6", "KERNEL": "kernel",
    "PROVIDES_NETWORK": "provides_network", "TEMPLATE_FOR_DISPVMS": "template_for_dispvms",
    "DEFAULT_DISPVM": "default_dispvm",
}
#: The order in which qvm-firewall writes a rule; that of the admin API is another.
ORDER = ("action", "proto", "dst4", "dst6", "dsthost", "dstports", "icmptype", "specialtarget", "expire")
PACKAGING = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def install(directory):
    """Makes the programs in `directory`, run by this Python."""
    os.makedirs(directory, exist_ok=True)
    for program in PROGRAMS:
        path = os.path.join(directory, program)
        with open(path, "w") as file:
            file.write("#!%s -ISB\nimport sys\nsys.path.insert(0, %r)\n" % (sys.executable, PACKAGING))
            file.write("from rust_firewall_test import stand_in\nsys.exit(stand_in.main(%r, sys.argv[1:]))\n" % program)
        os.chmod(path, 0o755)


class Call:
    """A call of a program: what it is given, and what it says."""

    def __init__(self, program, words, given=b""):
        self.program = program
        self.words = words
        self.given = given
        self.output = bytearray()
        self.complaint = ""

    def say(self, text):
        self.output += text.encode("latin-1")

    def usage(self):
        self.complaint += "usage: %s ... (not understood: %r)\n" % (self.program, self.words)
        return 2


def answer(state, call):
    """Runs a call; its exit status."""
    state.setdefault("calls", []).append([call.program] + call.words)
    fault = state.get("faults", {}).get(call.program)
    if fault is None:
        return globals()["_" + call.program.replace("-", "_")](state, call)
    # `{"sleep": seconds}`, `{"flood": bytes}`, or `{"status": n, "says": text}`.
    time.sleep(fault.get("sleep", 0))
    call.say("x" * fault.get("flood", 0))
    call.complaint += fault.get("says", "")
    return fault.get("status", 1)


def main(program, words):
    """A program of its own process, with the state in a file."""
    path = os.environ["STAND_IN_STATE"]
    with open(path) as file:
        state = json.load(file)
    call = Call(program, words, sys.stdin.buffer.read())
    status = answer(state, call)
    temporary = "%s.%d" % (path, os.getpid())
    with open(temporary, "w") as file:
        json.dump(state, file)
    os.replace(temporary, path)
    try:
        sys.stderr.write(call.complaint)
        sys.stdout.buffer.write(call.output)
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)
    return status


def _shown(value):
    return "-" if value in (None, "") else str(value)


def _qvm_ls(state, call):
    if len(call.words) != 3 or call.words[:2] != ["--raw-data", "--fields"]:
        return call.usage()
    fields = call.words[2].split(",")
    if any(field not in FIELDS for field in fields):
        return call.usage()
    for name in sorted(state["qubes"]):
        qube = state["qubes"][name]
        values = [name if field == "NAME" else _shown(qube.get(FIELDS[field])) for field in fields]
        call.say("|".join(values) + "\n")
    return 0


def _qvm_prefs(state, call):
    if len(call.words) != 2 or call.words[0] not in state["qubes"]:
        return call.usage()
    qube = state["qubes"][call.words[0]]
    value = qube.get("preferences", {}).get(call.words[1], qube.get(call.words[1]))
    if value is not None:
        call.say("%s\n" % value)
    return 0


def _qubes_prefs(state, call):
    if len(call.words) != 1 or call.words[0] not in state["system"]:
        return call.usage()
    if state["system"][call.words[0]] is not None:
        call.say("%s\n" % state["system"][call.words[0]])
    return 0


def _qvm_features(state, call):
    if len(call.words) != 2 or call.words[0] not in state["qubes"]:
        return call.usage()
    features = state["qubes"][call.words[0]].get("features", {})
    if call.words[1] not in features:
        return 1
    call.say("%s\n" % features[call.words[1]])
    return 0


def _qvm_firewall(state, call):
    words = call.words
    if len(words) != 3 or words[0] != "--raw" or words[2] != "list" or words[1] not in state["qubes"]:
        return call.usage()
    for line in state["qubes"][words[1]]["firewall"]:
        rest, has_comment, comment = line.partition(" comment=")
        options = sorted(rest.split(" "), key=lambda word: ORDER.index(word.partition("=")[0]))
        call.say(" ".join(options) + has_comment + comment + "\n")
    return 0


def _qubesd_query(state, call):
    words = call.words
    if words[:3] != ["--fail", "dom0", "admin.vm.firewall.Set"] or len(words) != 4 or words[3] not in state["qubes"]:
        return call.usage()
    lines = call.given.decode("ascii").splitlines()
    for line in lines:
        options = [word.partition("=")[0] for word in line.partition(" comment=")[0].split(" ")]
        if any(option not in ORDER for option in options) or options.count("action") != 1:
            call.say("2\0ValueError\0\0Unknown firewall option\0")
            return 2
    if state.get("takes_sets", 9) < 1:
        call.say("2\0QubesException\0\0firewall save error\0")
        return 2
    state["takes_sets"] = state.get("takes_sets", 9) - 1
    state["qubes"][words[3]]["firewall"] = lines[:-1] if state.get("forgets_rules") else lines
    _elsewhere("STAND_IN_ON_RULES", words[3], call.given)
    call.say("0\0")
    return 0


def _elsewhere(variable, word, given):
    """Runs the command of a variable, if it is set; None if it is not."""
    if variable not in os.environ:
        return None
    done = subprocess.run(
        json.loads(os.environ[variable]) + [word], input=given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False
    )
    return done


def _qrexec_client(state, call):
    words = call.words
    if len(words) != 3 or words[0] != "-d" or not words[2].startswith("user:QUBESRPC firewall."):
        return call.usage()
    done = _elsewhere("STAND_IN_QREXEC", words[2][len("user:") :], call.given)
    if done is not None:
        call.output += done.stdout
        call.complaint += done.stderr.decode("utf-8", "replace")
        return done.returncode
    vm = state["qubes"].get(words[1])
    if vm is None or vm["state"] != "Running" or words[1] != state["firewall"]["vm"]:
        call.complaint += "qrexec-client: cannot connect to the daemon of %s\n" % words[1]
        return 1
    asked, _, source = words[2][len("user:QUBESRPC ") :].partition(" ")
    service, _, argument = asked[len("firewall.") :].partition("+")
    if source != "dom0":
        return call.usage()
    output, status = simulated.answer(state, service, argument, call.given)
    call.output += output
    return status


if __name__ == "__main__":
    install(sys.argv[1])
