"""The sub-commands that change rules, or propose to: learn and apply."""

import unittest

from rust_firewall import learn
from rust_firewall.answers import Line
from rust_firewall.errors import Failure

from .world import World

NEW = "action=accept proto=tcp dsthost=192.0.2.1 dstports=443\n# remark\naction=drop comment=the end\n"
NEW_LINES = ["action=accept dst4=192.0.2.1/32 proto=tcp dstports=443-443", "action=drop comment=the end"]


class Apply(unittest.TestCase):
    def test_all_rules_are_replaced_in_one_call(self):
        with World() as world:
            world.write("new", NEW)
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertEqual((ran.status, ran.errors), (0, ""))
            self.assertEqual(world.state["qubes"]["personal"]["firewall"], NEW_LINES)
            self.assertEqual(world.calls("qubesd-query"), [["--fail", "dom0", "admin.vm.firewall.Set", "personal"]])
            self.assertTrue(all(call[-1] == "list" for call in world.calls("qvm-firewall")))
            self.assertIn("-action=accept\n+action=accept dst4=192.0.2.1/32 proto=tcp dstports=443-443\n", ran.output)
            self.assertIn("they are in force in rust-firewall", ran.output)

    def test_the_same_rules_change_nothing(self):
        with World() as world:
            world.write("new", NEW)
            world.run("apply", "personal", "new", "--yes")
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertIn("nothing to do", ran.output)
            self.assertEqual(len(world.calls("qubesd-query")), 1)

    def test_nothing_happens_unasked(self):
        with World() as world:
            world.write("new", NEW)
            ran = world.run("apply", "personal", "new", given="yes\n")
            self.assertEqual(ran.status, 1)
            self.assertIn("Use --yes", ran.errors)
            self.assertEqual(world.state["qubes"]["personal"]["firewall"], ["action=accept"])

    def test_files_that_are_no_rules_change_nothing(self):
        cases = {
            "": "has no rule", "# only\n": "has no rule", "action=accept\nallow all\n": "line 2", "\udc80": None,
            "action=accept expire=1\n": "expired already", "#" * 70_000: "larger than",
        }
        with World() as world:
            for text, wanted in cases.items():
                if wanted is None:
                    with open(world.folder + "/new", "wb") as file:
                        file.write(b"\xff\n")
                    wanted = "is not text"
                else:
                    world.write("new", text)
                ran = world.run("apply", "personal", "new", "--yes")
                self.assertEqual(ran.status, 1)
                self.assertIn(wanted, ran.errors)
                self.assertIn("Nothing was changed", ran.errors)
            self.assertIn("cannot read", world.run("apply", "personal", "absent", "--yes").errors)
            self.assertEqual(world.calls("qubesd-query"), [])

    def test_rules_come_from_standard_input_too(self):
        with World() as world:
            ran = world.run("apply", "personal", "-", "--yes", "--json", given=NEW)
            self.assertEqual((ran.status, ran.json()["changed"]), (0, True))
            self.assertEqual(world.state["qubes"]["personal"]["firewall"], NEW_LINES)

    def test_old_rules_come_back_when_the_firewall_does_not_take_the_new_ones(self):
        with World() as world:
            world.state["firewall"]["refused"] = {"personal": "rule 0000: odd"}
            world.write("new", NEW)
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertEqual(ran.status, 1)
            self.assertIn("not applied: the firewall's rules for 10.137.0.12 are refused: rule 0000: odd", ran.errors)
            self.assertIn("personal has its old rules", ran.errors)
            self.assertEqual(world.state["qubes"]["personal"]["firewall"], ["action=accept"])
            self.assertEqual(len(world.calls("qubesd-query")), 2)

    def test_old_rules_come_back_when_dom0_has_others_than_it_was_given(self):
        with World() as world:
            world.state["forgets_rules"] = True
            world.write("new", NEW)
            world.state["qubes"]["personal"]["firewall"] = ["action=accept", "action=drop"]
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertEqual(ran.status, 1)
            self.assertIn("dom0 does not have the rules", ran.errors)
            # This dom0 forgets a rule of the old ones as well, and that is said.
            self.assertIn("COULD NOT BE PUT BACK", ran.errors)
            self.assertIn("They were: action=accept / action=drop", ran.errors)

    def test_what_dom0_refuses_leaves_the_old_rules(self):
        with World() as world:
            world.state["takes_sets"] = 0
            world.write("new", NEW)
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertEqual(ran.status, 1)
            self.assertIn("dom0 refused the rules for personal (exit status 2: QubesException; firewall save error)", ran.errors)
            self.assertIn("personal has its old rules", ran.errors)
            self.assertEqual(len(world.calls("qubesd-query")), 1)

    def test_a_dom0_that_says_nothing_has_not_agreed(self):
        with World() as world:
            world.state["faults"] = {"qubesd-query": {"status": 0}}
            world.write("new", NEW)
            self.assertIn("dom0 refused the rules", world.run("apply", "personal", "new", "--yes").errors)

    def test_rules_of_a_qube_that_does_not_run_are_changed_as_well(self):
        with World() as world:
            world.write("new", NEW)
            ran = world.run("apply", "untrusted", "new", "--yes")
            self.assertIn("they count when it is connected", ran.output)
            world.state["firewall"]["missing"] = ["Rules"]
            self.assertIn("cannot tell whether", world.run("apply", "personal", "new", "--yes").output)

    def test_the_firewall_writes_networks_in_its_own_way(self):
        with World() as world:
            world.write("new", "action=accept dst4=192.0.2.9/24\n")
            world.state["firewall"]["stale"] = {"personal": ["action=accept dst4=192.0.2.0/24"]}
            self.assertEqual(world.run("apply", "personal", "new", "--yes").status, 0)

    def test_rules_that_only_dom0_understands_can_be_replaced_and_come_back(self):
        with World() as world:
            odd = ["action=accept dst4=0.0.0.0/0", "action=accept dsthost=10.1"]
            world.state["qubes"]["personal"]["firewall"] = odd
            world.write("new", NEW)
            world.state["firewall"]["stale"] = {"personal": ["action=drop"]}
            ran = world.run("apply", "personal", "new", "--yes")
            self.assertIn("the firewall has other rules", ran.errors)
            self.assertEqual(world.state["qubes"]["personal"]["firewall"], odd)


class Learn(unittest.TestCase):
    def test_what_it_proposes_apply_takes_and_the_same_traffic_passes(self):
        with World() as world:
            for entry in world.state["firewall"]["traffic"]:
                entry.pop("age_ms", None)
            before = len(world.run("flows", "work", "--json").json()["flows"])
            proposal = world.run("learn", "work", "1s").output
            self.assertIn("# dsthost=www.example.com: seen at 93.184.216.34", proposal)
            self.assertIn("action=accept specialtarget=dns\n", proposal)
            self.assertIn("action=accept dst4=203.0.113.9/32 proto=tcp dstports=22-22\n", proposal)
            world.write("new", proposal)
            ran = world.run("apply", "work", "new", "--yes")
            self.assertEqual(ran.status, 0, ran.errors)
            self.assertEqual(world.run("drops", "work", "--json").json()["drops"], [])
            self.assertEqual(len(world.run("flows", "work", "--json").json()["flows"]), before + 2)
            self.assertEqual(world.run("explain", "work", "203.0.113.9", "23").status, 1)

    def test_what_was_refused_can_be_left_out_and_addresses_be_wanted(self):
        with World() as world:
            world.state["firewall"]["traffic"][4].pop("age_ms")
            told = world.run("learn", "work", "1s", "--accepted-only", "--addresses", "--json").json()
            rules = [one["rule"] for one in told["rules"]]
            self.assertIn("action=accept dst4=93.184.216.34/32 proto=tcp dstports=443-443", rules)
            self.assertFalse([line for line in rules if "203.0.113" in line or "dsthost" in line])

    def test_a_qube_that_contacts_nothing_is_closed(self):
        with World() as world:
            world.state["firewall"]["traffic"] = []
            output = world.run("learn", "work", "1s").output
            self.assertIn("contacted nothing", output)
            self.assertEqual(output.splitlines()[-1], "action=drop")

    def test_durations(self):
        self.assertEqual([learn.seconds(text) for text in ("1s", "5m", "24h")], [1, 300, 86400])
        for text in ("", "5", "0s", "-5m", "25h", "5d", "1.5m", "5m "):
            self.assertRaises(Failure, learn.seconds, text)

    def test_only_drops_of_the_watched_time_and_by_rules_count(self):
        def drop(**more):
            return Line(dict({
                "client": "x", "direction": "out", "reason": "rule-rejected", "proto": "tcp", "dst": "192.0.2.1", "dport": 1,
                "age_ms": 10, "times": 2,
            }, **more), "")

        watch = learn.Watch()
        watch.look([], [drop(), drop(dport=2, age_ms=900), drop(dport=3, reason="source-spoofed"), drop(dport=4, direction="in")], 500)
        self.assertEqual([(one.number, refused) for one, refused in watch.contacts.items()], [(1, 2)])
        self.assertEqual(watch.others, {"source-spoofed": 2})

    def test_flows_that_rules_forbid_by_now_or_that_came_in_are_not_proposed(self):
        flow = {"direction": "out", "proto": "tcp", "dst": "192.0.2.1", "dport": 1, "state": "established"}
        watch = learn.Watch()
        watch.look([Line(dict(flow, state="forbidden"), ""), Line(dict(flow, direction="in"), "")], [], 0)
        self.assertEqual(watch.contacts, {})
        watch.look([Line(flow, "")], [], 0)
        self.assertEqual(len(watch.contacts), 1)

    def test_contacts_are_bounded(self):
        flows = [
            Line({"direction": "out", "proto": "tcp", "dst": "192.0.2.1", "dport": port}, "") for port in range(learn.MAX_CONTACTS + 9)
        ]
        watch = learn.Watch()
        watch.look(flows, [], 0)
        self.assertEqual((len(watch.contacts), watch.is_full), (learn.MAX_CONTACTS, True))


if __name__ == "__main__":
    unittest.main()
