"""dom0's programs, as far as the command uses them, strict about their arguments: what they do not know is a failure.

State is a JSON file, named by RUST_FIREWALL_STATE. Two variables point the stand-ins at a firewall that is not simulated;
each is a JSON list of words, the beginning of a command:

- RUST_FIREWALL_QREXEC: gets `user:COMMAND`'s COMMAND as one more word, and standard input;
- RUST_FIREWALL_ON_RULES: gets the name of a qube as one more word, and its new rules on standard input.
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
            file.write("#!%s -IS\nimport sys\nsys.path.insert(0, %r)\n" % (sys.executable, PACKAGING))
            file.write("from rust_firewall_test import stand_in\nsys.exit(stand_in.main(%r, sys.argv[1:]))\n" % program)
        os.chmod(path, 0o755)


def main(program, words):
    """One call; its exit status."""
    path = os.environ["RUST_FIREWALL_STATE"]
    with open(path) as file:
        state = json.load(file)
    state.setdefault("calls", []).append([program] + words)
    fault = state.get("faults", {}).get(program)
    if fault is not None:
        status = _fail(fault)
    else:
        status = globals()["_" + program.replace("-", "_")](state, words)
    temporary = "%s.%d" % (path, os.getpid())
    with open(temporary, "w") as file:
        json.dump(state, file)
    os.replace(temporary, path)
    return status


def _fail(fault):
    """`{"sleep": seconds}`, `{"flood": bytes}`, or `{"status": n, "says": text}`."""
    if "sleep" in fault:
        time.sleep(fault["sleep"])
    try:
        sys.stdout.write("x" * fault.get("flood", 0))
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(1)
    sys.stderr.write(fault.get("says", ""))
    return fault.get("status", 1)


def _usage(program, words):
    sys.stderr.write("usage: %s ... (not understood: %r)\n" % (program, words))
    return 2


def _shown(value):
    return "-" if value in (None, "") else str(value)


def _qvm_ls(state, words):
    if len(words) != 3 or words[:2] != ["--raw-data", "--fields"]:
        return _usage("qvm-ls", words)
    fields = words[2].split(",")
    if any(field not in FIELDS for field in fields):
        return _usage("qvm-ls", words)
    for name in sorted(state["qubes"]):
        qube = state["qubes"][name]
        values = [name if field == "NAME" else _shown(qube.get(FIELDS[field])) for field in fields]
        sys.stdout.write("|".join(values) + "\n")
    return 0


def _qvm_prefs(state, words):
    if len(words) != 2 or words[0] not in state["qubes"]:
        return _usage("qvm-prefs", words)
    qube = state["qubes"][words[0]]
    value = qube.get("preferences", {}).get(words[1], qube.get(words[1]))
    if value is not None:
        print(value)
    return 0


def _qubes_prefs(state, words):
    if len(words) != 1 or words[0] not in state["system"]:
        return _usage("qubes-prefs", words)
    if state["system"][words[0]] is not None:
        print(state["system"][words[0]])
    return 0


def _qvm_features(state, words):
    if len(words) != 2 or words[0] not in state["qubes"]:
        return _usage("qvm-features", words)
    features = state["qubes"][words[0]].get("features", {})
    if words[1] not in features:
        return 1
    print(features[words[1]])
    return 0


def _qvm_firewall(state, words):
    if len(words) != 3 or words[0] != "--raw" or words[2] != "list" or words[1] not in state["qubes"]:
        return _usage("qvm-firewall", words)
    for line in state["qubes"][words[1]]["firewall"]:
        rest, has_comment, comment = line.partition(" comment=")
        options = sorted(rest.split(" "), key=lambda word: ORDER.index(word.partition("=")[0]))
        print(" ".join(options) + has_comment + comment)
    return 0


def _qubesd_query(state, words):
    if words[:3] != ["--fail", "dom0", "admin.vm.firewall.Set"] or len(words) != 4 or words[3] not in state["qubes"]:
        return _usage("qubesd-query", words)
    lines = sys.stdin.read().splitlines()
    qube = state["qubes"][words[3]]
    for line in lines:
        options = [word.partition("=")[0] for word in line.partition(" comment=")[0].split(" ")]
        if any(option not in ORDER for option in options) or options.count("action") != 1:
            sys.stdout.write("2\0ValueError\0\0Unknown firewall option\0")
            return 2
    if state.get("forgets_rules"):
        lines = lines[:-1]
    if state.get("takes_sets", 9) < 1:
        sys.stdout.write("2\0QubesException\0\0firewall save error\0")
        return 2
    state["takes_sets"] = state.get("takes_sets", 9) - 1
    qube["firewall"] = lines
    _call("RUST_FIREWALL_ON_RULES", words[3], "".join(line + "\n" for line in lines).encode())
    sys.stdout.write("0\0")
    return 0


def _call(variable, word, given):
    """Runs the command of a variable, if it is set; None if it is not."""
    if variable not in os.environ:
        return None
    return subprocess.run(json.loads(os.environ[variable]) + [word], input=given, check=False).returncode


def _qrexec_client(state, words):
    if len(words) != 3 or words[0] != "-d" or not words[2].startswith("user:QUBESRPC firewall."):
        return _usage("qrexec-client", words)
    given = sys.stdin.buffer.read()
    status = _call("RUST_FIREWALL_QREXEC", words[2][len("user:") :], given)
    if status is not None:
        return status
    vm = state["qubes"].get(words[1])
    if vm is None or vm["state"] != "Running" or words[1] != state["firewall"]["vm"]:
        sys.stderr.write("qrexec-client: cannot connect to the daemon of %s\n" % words[1])
        return 1
    call, _, source = words[2][len("user:QUBESRPC ") :].partition(" ")
    service, _, argument = call[len("firewall.") :].partition("+")
    if source != "dom0":
        return _usage("qrexec-client", words)
    output, status = simulated.answer(state, service, argument, given)
    sys.stdout.buffer.write(output)
    sys.stdout.flush()
    return status


if __name__ == "__main__":
    install(sys.argv[1])
