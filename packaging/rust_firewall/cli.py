"""The command line: arguments, which firewall is meant, and how failures look."""

from __future__ import annotations

import argparse
import os
import sys
from typing import List, Optional

from . import apply, doctor, dom0, flows, learn, rules, status, top
from .clean import clean
from .errors import Failure
from .naming import Naming, firewall_of
from .screen import Mark, Screen
from .services import Services

DESCRIPTION = "Looks into a rust-firewall VM from dom0, and edits the rules of the qubes behind it."
EPILOG = "Exit status: 0 as wished, 1 something is wrong or refused, 2 wrong arguments. NO_COLOR switches colours off."


def parser() -> argparse.ArgumentParser:
    """All sub-commands and their options."""
    whole = argparse.ArgumentParser(prog="rust-firewall", description=DESCRIPTION, epilog=EPILOG)
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--vm", metavar="NAME", help="the firewall VM (default: the netvm of the qube that is named, or the only VM with the "
        "kernel rust-firewall, or the default netvm)"
    )
    shared.add_argument(
        "--timeout", type=_interval, metavar="SECONDS", help="how long the VM may take for an answer (15)"
    )
    shared.add_argument("--json", action="store_true", help="JSON for scripts")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND")
    commands.required = True

    def add(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, parents=[shared])

    one = add("status", "the firewall at one glance")
    one.add_argument("--interval", type=_interval, default=1.0, metavar="SECONDS", help="between two readings (1)")
    one = add("top", "who uses the network now; q or Ctrl-C ends it")
    one.add_argument("--interval", type=_interval, default=2.0, metavar="SECONDS", help="between two readings (2)")
    count = one.add_mutually_exclusive_group()
    count.add_argument("--once", dest="count", action="store_const", const=1, help="one picture")
    count.add_argument("--count", type=_count, metavar="N", help="N pictures")
    one = add("flows", "connections that pass")
    one.add_argument("client", metavar="QUBE", nargs="?", help="of this qube only")
    one = add("drops", "what was refused lately, by which rule, and why")
    one.add_argument("client", metavar="QUBE", nargs="?", help="of this qube only")
    one.add_argument("--follow", action="store_true", help="go on with what is refused from now on")
    one = add("rules", "the rules of a qube as the firewall has them, and how often each decided")
    one.add_argument("client", metavar="QUBE")
    one = add("explain", "what would happen to a connection, and why; exit status 1 if it is refused")
    one.add_argument("client", metavar="QUBE")
    one.add_argument("destination", metavar="DEST", help="an address, or a host name that the firewall knows")
    one.add_argument("number", metavar="PORT", nargs="?", type=_port, help="port; for icmp the type (default 8, IPv6 128)")
    one.add_argument("--proto", choices=("tcp", "udp", "icmp"), default="tcp", help="default tcp")
    one = add("learn", "watches what a qube contacts and proposes rules for 'apply'")
    one.add_argument("client", metavar="QUBE")
    one.add_argument("length", metavar="DURATION", help="90s, 5m, 2h; Ctrl-C ends it early")
    one.add_argument("--addresses", action="store_true", help="addresses instead of host names")
    one.add_argument("--accepted-only", action="store_true", help="leave out what was refused meanwhile")
    one = add("apply", "replaces the rules of a qube by those of a file, all at once")
    one.add_argument("client", metavar="QUBE")
    one.add_argument("file", metavar="FILE", help="a rule on each line; - for standard input")
    one.add_argument("--yes", action="store_true", help="do not ask")
    one = add("doctor", "looks for what is wrong; exit status 1 if there is anything")
    one.add_argument("--ignore", action="append", default=[], metavar="ID", help="leave out findings with this name")
    return whole


def _interval(text: str) -> float:
    value = float(text)
    if not 0.05 <= value <= 3600:
        raise argparse.ArgumentTypeError("0.05 to 3600")
    return value


def _count(text: str) -> int:
    value = int(text)
    if not 1 <= value <= 1_000_000:
        raise argparse.ArgumentTypeError("1 to 1000000")
    return value


def _port(text: str) -> int:
    value = int(text)
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError("0 to 65535")
    return value


def main(arguments: Optional[List[str]] = None) -> int:
    """Runs the command; its exit status."""
    args = parser().parse_args(arguments)
    screen = Screen()
    try:
        status_code = _run(args, screen)
        screen.flush()
        return status_code
    except Failure as failure:
        return _complain(failure, args.json)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) has seen enough. Nothing may be written at the interpreter's end either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace, screen: Screen) -> int:
    qubes = dom0.qubes()
    client = getattr(args, "client", None)
    vm = firewall_of(qubes, args.vm, client)
    naming, services = Naming(qubes, vm), Services(vm, args.timeout)
    if client is not None and args.command != "apply":
        naming.client(client)
    if args.command == "status":
        return status.show_status(screen, services, naming, args.interval, args.json)
    if args.command == "top":
        return top.show_top(screen, services, naming, args.interval, args.count, args.json)
    if args.command == "flows":
        return flows.show_flows(screen, services, naming, client, args.json)
    if args.command == "drops":
        return flows.show_drops(screen, services, naming, client, args.json, args.follow)
    if args.command == "rules":
        return rules.show_rules(screen, services, naming, client, args.json)
    if args.command == "explain":
        question = (client, args.destination, args.number, args.proto)
        return rules.show_explain(screen, services, naming, question, args.json)
    if args.command == "learn":
        options = {"addresses": args.addresses, "accepted_only": args.accepted_only, "json": args.json}
        return learn.show_learn(screen, services, naming, client, learn.seconds(args.length), options)
    if args.command == "apply":
        return apply.show_apply(screen, services, naming, client, args.file, args.yes, args.json)
    return doctor.show_doctor(screen, services, naming, args.ignore, args.json)


def _complain(failure: Failure, as_json: bool) -> int:
    errors = Screen(sys.stderr)
    if as_json:
        errors.json({"error": clean(failure.message, 2000), "hint": clean(failure.hint, 2000)})
    else:
        errors.say(Mark("bad", "rust-firewall:"), failure.message)
        if failure.hint:
            errors.say("   ", failure.hint)
    return 1
