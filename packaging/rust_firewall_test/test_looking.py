"""The sub-commands that look: status, top, flows, drops, rules, explain; and which firewall is meant."""

import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
import unittest

from rust_firewall.screen import amount, duration

from .world import COMMAND, VM, World

CTRL_C = b"\x03"
FAST = ["--interval", "0.05"]


def lines_with(ran, *words):
    return [line for line in ran.output.splitlines() if all(word in line for word in words)]


class Status(unittest.TestCase):
    def test_clients_have_the_names_and_rates_of_qubes(self):
        with World() as world:
            ran = world.run("status", *FAST)
            self.assertEqual((ran.status, ran.errors), (0, ""))
            self.assertTrue(lines_with(ran, "work", "10.137.0.11", "1.2 kB/s", "48.0 kB/s"))
            told = world.run("status", "--json", *FAST).json()
            clients = {client["qube"]: client for client in told["clients"]}
            self.assertEqual(sorted(clients), ["personal", "work"])
            self.assertEqual(clients["personal"]["receives_bytes_per_s"], 2_200_000)
            self.assertEqual(clients["work"]["refused"], 4)
            self.assertEqual((told["version"], told["uplink"]["connected"], told["problems"]), ("0.1.0", True, []))

    def test_trouble_is_said(self):
        with World() as world:
            firewall = world.state["firewall"]
            firewall.update(has_uplink=False, without_accept=2, detached=["personal"])
            firewall["problems"] = [{"id": "no-uplink", "text": "Give the firewall a netvm."}]
            ran = world.run("status", *FAST)
            for text in ("not connected", "2 frames", "not attached: personal", "no-uplink Give the firewall a netvm."):
                self.assertIn(text, ran.output)

    def test_an_image_without_health_is_no_failure(self):
        with World() as world:
            world.state["firewall"]["missing"] = ["Health"]
            self.assertIn("no firewall.Health", world.run("status", *FAST).output)
            self.assertIsNone(world.run("status", "--json", *FAST).json()["problems"])

    def test_a_client_that_counts_anew_has_no_negative_rate(self):
        from rust_firewall.naming import Naming
        from rust_firewall.rates import rates
        from rust_firewall.answers import Line
        from rust_firewall.services import Port, Stats

        def stats(uptime, domid, count):
            port = Port("client", "10.137.0.11", None, domid, {"received-bytes": count, "sent-bytes": 0}, {"x": count})
            return Stats(Line({"uptime_ms": uptime}, ""), [port])

        naming = Naming([], VM)
        self.assertEqual(rates(stats(1000, 5, 900), stats(2000, 5, 1900), naming)[1][0].sent_per_s, 1000)
        self.assertEqual(rates(stats(1000, 5, 900), stats(2000, 6, 9000), naming)[1][0].sent_per_s, 0)
        self.assertEqual(rates(stats(1000, 5, 900), stats(2000, 5, 10), naming)[1][0].sent_per_s, 0)
        self.assertEqual(rates(stats(2000, 5, 0), stats(1, 5, 10), naming)[1][0].sent_per_s, 0)

    def test_durations_and_amounts(self):
        self.assertEqual([duration(ms) for ms in (0, 9_999, 61_000, 3_600_000, 90_000_000)],
                         ["0.0 s", "10.0 s", "1 min 1 s", "1 h 0 min", "1 d 1 h"])
        self.assertEqual([amount(count) for count in (0, 999, 1500, 2.2e6, 5e15)], ["0 B", "999 B", "1.5 kB", "2.2 MB", "5000.0 TB"])


class Top(unittest.TestCase):
    def test_counted_pictures_without_a_terminal(self):
        with World() as world:
            ran = world.run("top", "--count", "2", *FAST)
            self.assertEqual((ran.status, len(lines_with(ran, "personal", "2.2 MB/s"))), (0, 2))
            self.assertNotIn("\x1b", ran.output)
            self.assertEqual(len(world.run("top", "--once", "--json", *FAST).output.splitlines()), 1)
            ran = world.run("top")
            self.assertEqual(ran.status, 1)
            self.assertIn("--once", ran.errors)

    def on_terminal(self, world, words, keys, until, **more):
        """Runs on a terminal of its own; `keys` are typed once `until` was shown."""
        world.save()
        master, slave = pty.openpty()
        child = subprocess.Popen(
            [sys.executable, "-S", "-B", COMMAND] + words, stdin=slave, stdout=slave, stderr=slave,
            env=world.environment(TERM="xterm", **more), start_new_session=True,
            # A shell without job control has what it starts in the background ignore Ctrl-C, tests included.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(slave)
        shown, deadline = b"", time.monotonic() + 30
        try:
            while time.monotonic() < deadline:
                if select.select([master], [], [], 0.1)[0]:
                    try:
                        shown += os.read(master, 65536)
                    except OSError:
                        break
                if keys and until in shown:
                    if keys == CTRL_C:
                        # The terminal is not the one that controls the child, and would not say so.
                        child.send_signal(signal.SIGINT)
                    else:
                        os.write(master, keys)
                    keys = b""
                if child.poll() is not None and not select.select([master], [], [], 0)[0]:
                    break
            return child.wait(max(deadline - time.monotonic(), 1)), shown
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
            os.close(master)

    def test_a_terminal_is_used_in_place_and_given_back(self):
        with World() as world:
            status, shown = self.on_terminal(world, ["top", "--interval", "0.2"], b"xq", b"q ends it")
            self.assertEqual(status, 0)
            enter, leave = shown.index(b"\x1b[?1049h"), shown.rindex(b"\x1b[?1049l")
            self.assertLess(enter, shown.index(b"\x1b[H\x1b[J"))
            self.assertLess(shown.rindex(b"personal"), leave)
            self.assertIn(b"\x1b[?25h", shown[leave - 12 :])
            self.assertIn(b"\x1b[1mQUBE", shown)

    def test_no_color_is_respected(self):
        with World() as world:
            _, shown = self.on_terminal(world, ["flows"], b"", b"", NO_COLOR="1")
            self.assertIn(b"personal", shown)
            self.assertNotIn(b"\x1b", shown)
            _, shown = self.on_terminal(world, ["flows"], b"", b"")
            self.assertIn(b"\x1b[1mQUBE", shown)

    def test_learn_shows_progress_and_ends_early(self):
        with World() as world:
            status, shown = self.on_terminal(world, ["learn", "work", "1h"], CTRL_C, b"Ctrl-C ends it now")
            self.assertEqual(status, 0)
            self.assertIn(b"contacts so far", shown)
            self.assertIn(b"action=accept specialtarget=dns", shown)
            self.assertNotIn(b"Traceback", shown)

    def test_apply_asks_on_a_terminal(self):
        with World() as world:
            file = os.path.join(world.folder, world.write("new", "action=drop\n"))
            status, shown = self.on_terminal(world, ["apply", "personal", file], b"no\n", b"Type yes:")
            self.assertEqual((status, b"Nothing was changed" in shown), (1, True))
            status, shown = self.on_terminal(world, ["apply", "personal", file], b"yes\n", b"Type yes:")
            self.assertEqual((status, b"in force" in shown), (0, True), shown)


class FlowsAndDrops(unittest.TestCase):
    def test_flows_of_all_and_of_one(self):
        with World() as world:
            self.assertEqual(len(world.run("flows").output.splitlines()), 5)
            ran = world.run("flows", "work")
            self.assertTrue(lines_with(ran, "work", "www.example.com (93.184.216.34) port 443", "established"))
            self.assertFalse(lines_with(ran, "personal"))
            told = world.run("flows", "work", "--json").json()["flows"]
            self.assertEqual([flow["dport"] for flow in told if flow["proto"] == "tcp"], [443])
            world.state["firewall"]["traffic"] = []
            self.assertEqual(world.run("flows", "work").output, "no flows of work\n")

    def test_flows_of_its_second_address_are_its_own(self):
        with World() as world:
            world.state["firewall"]["traffic"] = [{"qube": "work", "proto": "tcp", "dst": "2001:db8::5", "dport": 22}]
            self.assertTrue(lines_with(world.run("flows", "work"), "work", "2001:db8::5 port 22"))

    def test_drops_name_the_rule(self):
        with World() as world:
            output = world.run("drops", "work").output
            self.assertIn("203.0.113.9 port 22 5.2 s ago, 3 times\n    rule 1: action=drop dst4=203.0.113.0/24", output)
            self.assertIn("port 80 1 min 1 s ago\n    no rule accepts it", output)
            told = world.run("drops", "--json").json()
            self.assertEqual([drop["rule"] for drop in told["drops"]], ["policy", 1])
            world.state["firewall"]["traffic"] = []
            self.assertEqual(world.run("drops").output, "nothing was refused lately\n")

    def test_follow_says_what_is_new_only(self):
        with World() as world:
            world.save()
            child = subprocess.Popen(
                [sys.executable, "-S", "-B", "-c", FOLLOW, os.path.dirname(COMMAND), "drops", "--follow"],
                stdout=subprocess.PIPE, env=world.environment(),
            )
            try:
                # Three lines for each: what, which rule, why.
                first = [child.stdout.readline().decode() for _ in range(6)]
                self.assertIn("port 22", first[3])
                world.state["firewall"]["traffic"][4]["times"] = 4
                world.state["firewall"]["traffic"].append(
                    {"qube": "personal", "proto": "udp", "dst": "192.0.2.200", "dport": 9}
                )
                world.state["qubes"]["personal"]["firewall"] = ["action=drop"]
                world.save()
                told = "".join(child.stdout.readline().decode() for _ in range(6))
                self.assertIn("4 times", told)
                self.assertIn("192.0.2.200", told)
                self.assertNotIn("port 80 ", told)
            finally:
                child.terminate()
                child.stdout.close()
                child.wait()


#: The command, with less patience.
FOLLOW = """
import sys
sys.path.insert(0, sys.argv[1])
from rust_firewall import cli, flows
flows.FOLLOW = 0.2
sys.exit(cli.main(sys.argv[2:]))
"""


class Rules(unittest.TestCase):
    def test_hits_addresses_and_comments(self):
        with World() as world:
            output = world.run("rules", "work").output
            self.assertIn("work 10.137.0.11 in force\n", output)
            self.assertIn("   0     1  action=accept dsthost=www.example.com proto=tcp dstports=443-443\n", output)
            self.assertIn("the web page", output)
            self.assertIn("now 93.184.216.34", output)
            sets = world.run("rules", "work", "--json").json()["sets"]
            self.assertEqual([one["address"] for one in sets], ["10.137.0.11", "fd09:24ef:4179::a89:b"])
            self.assertEqual([rule["hits"] for rule in sets[0]["rules"]], [1, 1, 1, 1])
            self.assertEqual(sets[0]["policy"], {"action": "drop", "hits": 1})

    def test_a_refused_set_says_why(self):
        with World() as world:
            world.state["firewall"]["refused"] = {"work": "rule 0000: no action"}
            output = world.run("rules", "work").output
            self.assertIn("refused: everything of this address is rejected\n    rule 0000: no action", output)
            output = world.run("rules", "untrusted").output
            self.assertIn("no rules: everything of this address is dropped", output)

    def test_rules_that_are_replaced_meanwhile_are_asked_for_again(self):
        with World() as world:
            head = '{"schema":1,"kind":"rules","clients":1}\n'
            world.state["firewall"]["raw"] = {
                "Rules": head + '{"kind":"ruleset","client":"10.137.0.12","state":"replaced","rules":1,"generation":1}\n'
            }
            self.assertIn("ask again", world.run("rules", "personal").output)
            self.assertEqual(len(world.calls("qrexec-client")), 3)

    def test_unresolved_names_are_said(self):
        with World() as world:
            world.state["firewall"]["names"] = {}
            self.assertIn("the name is not resolved", world.run("rules", "work").output)


class Explain(unittest.TestCase):
    def test_verdict_rule_and_exit_status(self):
        with World() as world:
            ran = world.run("explain", "work", "203.0.113.9", "443")
            self.assertEqual(ran.status, 1)
            self.assertIn("reject work to tcp 203.0.113.9 port 443\n    rule 1: action=drop dst4=203.0.113.0/24", ran.output)
            ran = world.run("explain", "personal", "203.0.113.9", "443")
            self.assertEqual((ran.status, ran.output.split()[0]), (0, "accept"))
            told = world.run("explain", "work", "192.0.2.1", "9", "--proto", "udp", "--json").json()["answers"]
            self.assertEqual((told[0]["rule"], told[0]["verdict"]), ("policy", "reject"))

    def test_a_name_is_asked_by_the_addresses_that_the_firewall_knows(self):
        with World() as world:
            output = world.run("explain", "work", "WWW.example.com", "443").output
            self.assertIn("(93.184.216.34)", output)
            self.assertIn("(2606:2800:220:1::34)", output)
            # Known from its traffic only.
            world.state["firewall"]["knows_all_names"] = True
            self.assertIn("(198.51.100.20)", world.run("explain", "personal", "imap.example.org", "993").output)
            ran = world.run("explain", "work", "nowhere.example", "443")
            self.assertEqual(ran.status, 1)
            self.assertIn("dom0 has no network", ran.errors)

    def test_icmp_has_a_type(self):
        with World() as world:
            self.assertEqual(world.run("explain", "work", "192.0.2.1", "--proto", "icmp").status, 0)
            self.assertEqual(world.run("explain", "work", "192.0.2.1", "13", "--proto", "icmp").status, 1)
            self.assertIn("needs a port", world.run("explain", "work", "192.0.2.1").errors)

    def test_a_destination_of_a_family_that_the_qube_has_not(self):
        with World() as world:
            self.assertIn("no address of the family", world.run("explain", "personal", "2001:db8::1", "1").errors)


class Choice(unittest.TestCase):
    """Which firewall is meant."""

    def test_the_netvm_of_the_qube_then_the_only_one_then_the_default(self):
        with World() as world:
            qubes = world.state["qubes"]
            qubes["fw2"] = dict(qubes[VM], domid=9, kernel="rust-firewall.previous", ip="10.137.0.66")
            self.assertEqual(world.run("flows", "work").status, 0)
            self.assertEqual(world.run("flows").status, 0)
            world.state["system"]["default_netvm"] = "sys-net"
            self.assertIn("--vm NAME", world.run("flows").errors)
            self.assertEqual(world.run("flows", "work").status, 0)
            self.assertEqual(world.run("flows", "--vm", VM).status, 0)
            self.assertIn("no qube nobody", world.run("flows", "--vm", "nobody").errors)
            self.assertIn("work is not behind fw2", world.run("flows", "work", "--vm", "fw2").errors)
            self.assertIn("cannot be the name", world.run("flows", "--vm=--help").errors)

    def test_the_package_is_found_beside_the_file_behind_a_link_and_where_python_keeps_packages(self):
        with World() as world:
            world.save()
            link, copy = os.path.join(world.folder, "link"), os.path.join(world.folder, "copy")
            os.symlink(COMMAND, link)
            shutil.copy(COMMAND, copy)
            for path, more in ((link, {}), (copy, {"PYTHONPATH": os.path.dirname(COMMAND)})):
                done = subprocess.run(
                    [sys.executable, "-S", path, "flows"], env=world.environment(**more), stdout=subprocess.PIPE, check=True
                )
                self.assertIn(b"www.example.com", done.stdout)

    def test_failures_are_sentences_and_json_on_wish(self):
        with World() as world:
            world.state["qubes"][VM]["state"] = "Halted"
            ran = world.run("flows")
            self.assertEqual((ran.status, ran.output), (1, ""))
            self.assertIn("qvm-start rust-firewall", ran.errors)
            self.assertIn("did not answer", __import__("json").loads(world.run("flows", "--json").errors)["error"])
            self.assertEqual(world.run("no-such-command").status, 2)
            world.state["faults"] = {"qvm-ls": {"status": 1, "says": "qubesd is not there\n"}}
            self.assertIn("qvm-ls failed (exit status 1: qubesd is not there)", world.run("flows").errors)

    def test_an_older_image_is_named_as_the_reason(self):
        with World() as world:
            world.state["firewall"]["missing"] = ["Flows", "Drops", "Rules", "Explain"]
            for words in (["flows"], ["drops"], ["rules", "work"], ["explain", "work", "192.0.2.1", "1"]):
                self.assertIn("older than this command", world.run(*words).errors)


if __name__ == "__main__":
    unittest.main()
