#!/usr/bin/env python3
"""Stands in for dom0's qvm-* and qubes-prefs: started under their names, it keeps its VMs in one JSON file.

Strict where dom0 is: unknown words, properties and VMs fail, and so does what dom0 refuses (a running VM is attached to
a running netvm only, what is in use is neither removed nor shut down). `install` puts the commands into a folder.

DOM0_STATE   the file: {"global": ..., "vms": ..., "addresses": ...}
DOM0_CALLS   each call that changes something, one a line
DOM0_STOP    MODE:N, at change N: `fail` refuses it, `before` and `after` kill the caller on that side of the change
"""

import argparse
import json
import os
import signal
import stat
import sys

COMMANDS = ["qvm-create", "qvm-prefs", "qvm-features", "qvm-check", "qvm-ls", "qvm-remove", "qvm-start",
            "qvm-shutdown", "qubes-prefs"]
GLOBALS = {"default_netvm": "", "updatevm": "", "clockvm": "", "default_dispvm": "", "default_kernel": "6.6.77-1.fc37"}
PROPERTIES = {"autostart": "False", "audiovm": "dom0", "default_dispvm": None, "kernel": None,
              "kernelopts": "swiotlb=2048", "label": "red", "maxmem": "4000", "memory": "400", "netvm": None,
              "provides_network": "False", "vcpus": "2", "virt_mode": "pvh"}


class Fails(Exception):
    """dom0 refuses."""


class Killed(BaseException):
    """The caller died, where it runs in the same process."""


def kill_caller():
    if os.environ.get("DOM0_STOP_RAISES"):
        raise Killed
    os.kill(os.getppid(), signal.SIGKILL)


def install(folder):
    os.makedirs(folder, exist_ok=True)
    for name in COMMANDS:
        path = os.path.join(folder, name)
        with open(path, "w", encoding="utf-8") as file:
            file.write("#!/bin/sh\nexec %s -E -S %s %s \"$@\"\n" % (sys.executable, os.path.abspath(__file__), name))
        os.chmod(path, os.stat(path).st_mode | stat.S_IXUSR)


def vm(klass, running=False, template="", features=None, **props):
    return {"class": klass, "running": running, "template": template, "props": props, "features": features or {}}


def usual():
    """A machine as it is after the installation of Qubes, and a little lived in."""
    linux = {"qrexec": "1", "gui": "1"}
    return {
        "global": {"default_netvm": "sys-firewall", "updatevm": "sys-firewall", "clockvm": "sys-net",
                   "default_dispvm": "default-dvm"},
        "vms": {
            "fedora-40": vm("TemplateVM", features=linux),
            "sys-net": vm("AppVM", True, "fedora-40", netvm="", provides_network="True", virt_mode="hvm",
                          autostart="True"),
            "sys-firewall": vm("AppVM", True, "fedora-40", netvm="sys-net", provides_network="True", label="green",
                               autostart="True", memory="500"),
            "sys-whonix": vm("AppVM", True, "fedora-40", netvm="sys-firewall", provides_network="True"),
            "sys-vpn": vm("AppVM", False, "fedora-40", provides_network="True"),
            "anon-whonix": vm("AppVM", True, "fedora-40", netvm="sys-whonix"),
            "default-dvm": vm("AppVM", False, "fedora-40"),
            "disp17": vm("DispVM", True, "default-dvm"),
            "work": vm("AppVM", True, "fedora-40"),
            "banking": vm("AppVM", True, "fedora-40", netvm="sys-firewall"),
            "vpn-work": vm("AppVM", False, "fedora-40", netvm="sys-vpn"),
            "vault": vm("AppVM", False, "fedora-40", netvm=""),
        },
    }


class Dom0:
    def __init__(self):
        self.path = os.environ["DOM0_STATE"]
        with open(self.path, encoding="utf-8") as file:
            self.state = json.load(file)
        self.vms = self.state["vms"]

    def vm(self, name):
        if name not in self.vms:
            raise Fails("no such domain: '%s'" % name)
        return self.vms[name]

    def default(self, name, prop):
        one = self.vms[name]
        if prop == "netvm":
            if one["class"] == "DispVM":
                return self.value(one["template"], "netvm")
            return "" if one["class"] == "TemplateVM" else self.state["global"].get("default_netvm", "")
        if prop == "default_dispvm":
            return self.state["global"].get("default_dispvm", "")
        if prop == "kernel":
            return GLOBALS["default_kernel"]
        return PROPERTIES[prop]

    def value(self, name, prop):
        props = self.vm(name)["props"]
        return props[prop] if prop in props else self.default(name, prop)

    def clients(self, name):
        return [other for other in self.vms if other != name and self.value(other, "netvm") == name]

    def change(self, words, work):
        """Does it, counts it, and stops there if asked to."""
        with open(os.environ["DOM0_CALLS"], "a+", encoding="utf-8") as log:
            log.seek(0)
            number = len(log.readlines()) + 1
            log.write(" ".join(words) + "\n")
        mode, _, at = os.environ.get("DOM0_STOP", "").partition(":")
        stops = bool(at) and int(at) == number
        if stops and mode == "fail":
            raise Fails("failed as it was told to")
        if stops and mode == "before":
            kill_caller()
            sys.exit(1)
        work()
        with open(self.path + ".new", "w", encoding="utf-8") as file:
            json.dump(self.state, file, indent=1, sort_keys=True)
        os.replace(self.path + ".new", self.path)
        if stops and mode == "after":
            kill_caller()

    def attach(self, name, netvm):
        """What dom0 checks when VM `name` gets this netvm."""
        if not netvm:
            return
        if self.value(netvm, "provides_network") != "True":
            raise Fails("'%s' does not provide network" % netvm)
        hop = netvm
        while hop:
            if hop == name:
                raise Fails("loops in network are unsupported")
            hop = self.value(hop, "netvm")
        if self.vms[name]["running"] and not self.vms[netvm]["running"]:
            raise Fails("cannot dynamically attach '%s' to stopped NetVM '%s'" % (name, netvm))

    def set(self, name, prop, value):
        one = self.vm(name)
        if prop not in PROPERTIES:
            raise Fails("no such property: '%s'" % prop)
        if prop == "netvm":
            self.attach(name, self.default(name, "netvm") if value is None else value)
        if prop == "kernel" and value is not None:
            need_kernel(value)
        if prop in ("memory", "maxmem", "vcpus") and value is not None and not value.isdigit():
            raise Fails("invalid value for %s: '%s'" % (prop, value))
        if prop in ("kernel", "virt_mode", "memory") and one["running"] and one["class"] == "DispVM":
            raise Fails("cannot change %s of a running DispVM" % prop)
        if value is None:
            one["props"].pop(prop, None)
        else:
            one["props"][prop] = value

    def set_global(self, prop, value):
        if prop not in GLOBALS:
            raise Fails("no such property: '%s'" % prop)
        if value:
            self.vm(value)
        if prop == "default_netvm":
            followers = [name for name, one in self.vms.items()
                         if one["running"] and one["class"] == "AppVM" and "netvm" not in one["props"]]
            for name in followers:
                self.attach(name, value)
        if value is None:
            self.state["global"].pop(prop, None)
        else:
            self.state["global"][prop] = value

    def start(self, name):
        one = self.vm(name)
        if one["running"]:
            return
        netvm = self.value(name, "netvm")
        if netvm:
            self.start(netvm)
        need_kernel(self.value(name, "kernel"))
        one["running"] = True


def need_kernel(name):
    """Ours must be there; the others are dom0's."""
    folder = os.path.join(os.environ.get("RUST_FIREWALL_KERNELS", "/var/lib/qubes/vm-kernels"), name)
    if name.startswith("rust-firewall") and not os.path.isfile(os.path.join(folder, "vmlinuz")):
        raise Fails("kernel '%s' not installed" % name)


def shown(value):
    return "None" if value == "" else value


def listing(rows):
    width = max(len(name) for name, _, _ in rows)
    for name, default, value in rows:
        print("%-*s  %s  %s" % (width, name, "D" if default else "-", shown(value)))


def listed(dom0, fields):
    """A line for each VM. The addresses are what the file's `addresses` has: VM to [IPv4, IPv6], both optional."""
    print("|".join("dom0" if field == "NAME" else "-" for field in fields))
    for name in sorted(dom0.vms):
        print("|".join(field_of(dom0, name, field) or "-" for field in fields))


def field_of(dom0, name, field):
    one = dom0.vms[name]
    addresses = dom0.state.get("addresses", {}).get(name, [])
    known = {"NAME": name, "STATE": "Running" if one["running"] else "Halted", "CLASS": one["class"],
             "IP": "".join(addresses[:1]), "IP6": "".join(addresses[1:2]),
             "TEMPLATE_FOR_DISPVMS": str(name == dom0.state["global"].get("default_dispvm"))}
    if field in known:
        return known[field]
    if field.lower() not in PROPERTIES:
        raise Fails("no such field: %s" % field)
    return dom0.value(name, field.lower())


def prefs(dom0, command, words):
    parser = argparse.ArgumentParser(prog=command)
    if command == "qvm-prefs":
        parser.add_argument("vm")
    parser.add_argument("property", nargs="?")
    parser.add_argument("value", nargs="?")
    parser.add_argument("--default", "-D", action="store_true")
    parser.add_argument("--hide-default", action="store_true")
    args = parser.parse_args(words)
    name = args.vm if command == "qvm-prefs" else None
    known = PROPERTIES if name else GLOBALS
    explicit = dom0.vm(name)["props"] if name else dom0.state["global"]
    value_of = (lambda prop: dom0.value(name, prop)) if name else (lambda prop: explicit.get(prop, GLOBALS[prop]))
    if args.property is None:
        listing([(prop, prop not in explicit, value_of(prop)) for prop in sorted(known)])
        return
    if args.property not in known:
        raise Fails("no such property: '%s'" % args.property)
    if args.default or args.value is not None:
        value = None if args.default else args.value
        if value is not None and value.lower() == "none":
            value = ""
        dom0.change([command] + words, lambda: dom0.set(name, args.property, value) if name else dom0.set_global(args.property, value))
    elif value_of(args.property) and not (args.hide_default and args.property not in explicit):
        print(value_of(args.property))


def features(dom0, words):
    parser = argparse.ArgumentParser(prog="qvm-features")
    parser.add_argument("vm")
    parser.add_argument("feature", nargs="?")
    parser.add_argument("value", nargs="?")
    parser.add_argument("--unset", "--default", "-D", action="store_true")
    args = parser.parse_args(words)
    kept = dom0.vm(args.vm)["features"]
    if args.feature is None:
        for name in sorted(kept):
            print("%s  %s" % (name, kept[name]))
    elif args.unset:
        dom0.change(["qvm-features"] + words, lambda: kept.pop(args.feature, None))
    elif args.value is not None:
        dom0.change(["qvm-features"] + words, lambda: kept.__setitem__(args.feature, args.value))
    elif args.feature in kept:
        print(kept[args.feature])
    else:
        sys.exit(1)


def create(dom0, words):
    parser = argparse.ArgumentParser(prog="qvm-create")
    parser.add_argument("--class", dest="klass", required=True, choices=["StandaloneVM", "AppVM"])
    parser.add_argument("--label", required=True)
    parser.add_argument("--property", action="append", default=[])
    parser.add_argument("name")
    args = parser.parse_args(words)
    if args.name in dom0.vms:
        raise Fails("a domain named '%s' exists already" % args.name)

    def work():
        dom0.vms[args.name] = vm(args.klass)
        for word in args.property:
            prop, equals, value = word.partition("=")
            if not equals:
                raise Fails("property without a value: '%s'" % word)
            dom0.set(args.name, prop, value)
        dom0.vms[args.name]["props"]["label"] = args.label
    dom0.change(["qvm-create"] + words, work)


def main(command, words):
    dom0 = Dom0()
    if command == "qvm-create":
        create(dom0, words)
    elif command in ("qvm-prefs", "qubes-prefs"):
        prefs(dom0, command, words)
    elif command == "qvm-features":
        features(dom0, words)
    elif command == "qvm-check":
        parser = argparse.ArgumentParser(prog="qvm-check")
        parser.add_argument("--quiet", "-q", action="store_true")
        parser.add_argument("--running", action="store_true")
        parser.add_argument("vm")
        args = parser.parse_args(words)
        sys.exit(0 if args.vm in dom0.vms and (not args.running or dom0.vms[args.vm]["running"]) else 1)
    elif command == "qvm-ls" and words == ["--raw-list"]:
        print("\n".join(["dom0"] + sorted(dom0.vms)))
    elif command == "qvm-ls" and len(words) == 3 and words[:2] == ["--raw-data", "--fields"]:
        listed(dom0, words[2].split(","))
    elif command == "qvm-start" and len(words) == 1:
        dom0.change([command] + words, lambda: dom0.start(words[0]))
    elif command == "qvm-shutdown":
        parser = argparse.ArgumentParser(prog="qvm-shutdown")
        parser.add_argument("--wait", action="store_true")
        parser.add_argument("--force", action="store_true")
        parser.add_argument("vm")
        args = parser.parse_args(words)
        if not args.force and any(dom0.vms[name]["running"] for name in dom0.clients(args.vm)):
            raise Fails("there are other VMs connected to this VM")
        dom0.change([command] + words, lambda: dom0.vm(args.vm).__setitem__("running", False))
    elif command == "qvm-remove" and len(words) == 2 and words[0] == "--force":
        name = words[1]
        explicit = [other for other, one in dom0.vms.items() if name in (one["props"].get("netvm"), one["template"])]
        if dom0.vm(name)["running"] or explicit or name in dom0.state["global"].values():
            raise Fails("cannot remove '%s': it runs or is in use" % name)
        dom0.change([command] + words, lambda: dom0.vms.pop(name))
    else:
        raise Fails("%s: not understood: %s" % (command, " ".join(words)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["install"]:
        install(sys.argv[2])
        sys.exit(0)
    if sys.argv[1:2] == ["usual"]:
        json.dump(usual(), sys.stdout)
        sys.exit(0)
    try:
        main(sys.argv[1], sys.argv[2:])
    except Fails as error:
        print("%s: %s" % (sys.argv[1], error), file=sys.stderr)
        sys.exit(1)
