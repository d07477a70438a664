"""doctor: each thing that can be wrong is found, has a remedy, and what is right is not complained of."""

import os
import time
import unittest

from .world import VM, World


def findings(world, *words):
    ran = world.run("doctor", "--json", *words)
    told = ran.json()
    return ran.status, {one["id"]: one for one in told["findings"]}


class Doctor(unittest.TestCase):
    def healthy(self):
        world = World()
        self.addCleanup(world.__exit__)
        world.start_now()
        return world

    def test_nothing_is_wrong_with_what_create_makes(self):
        self.assertEqual(findings(self.healthy()), (0, {}))
        ran = self.healthy().run("doctor")
        self.assertEqual((ran.status, ran.output), (0, "nothing wrong with rust-firewall\n"))

    def test_each_setting(self):
        def preference(name, value):
            return lambda state: state["qubes"][VM]["preferences"].update({name: value})

        def feature(name, value):
            return lambda state: state["qubes"][VM]["features"].update({name: value})

        def qube(name, **values):
            return lambda state: state["qubes"][name].update(values)

        def system(name, value):
            return lambda state: state["system"].update({name: value})

        cases = [
            (preference("virt_mode", "hvm"), "virt_mode", 1, "qvm-prefs rust-firewall virt_mode pvh"),
            (preference("vcpus", 2), "vcpus", 1, "qvm-prefs rust-firewall vcpus 1"),
            (preference("maxmem", 4000), "maxmem", 1, "qvm-prefs rust-firewall maxmem 32"),
            (preference("memory", 8), "memory", 1, "qvm-prefs rust-firewall memory 32; qvm-prefs rust-firewall maxmem 32"),
            (preference("audiovm", "dom0"), "audiovm", 0, "qvm-prefs rust-firewall audiovm ''"),
            (qube(VM, provides_network=False), "provides_network", 1, "qvm-prefs rust-firewall provides_network True"),
            (qube(VM, netvm=None), "netvm", 1, "qvm-prefs rust-firewall netvm sys-net"),
            (qube(VM, kernel="6.12.54-1"), "kernel", 1, "qvm-prefs rust-firewall kernel rust-firewall"),
            (feature("qubes-firewall", ""), "qubes-firewall", 1, "qvm-features rust-firewall qubes-firewall 1"),
            (feature("no-default-kernelopts", ""), "no-default-kernelopts", 0, "qvm-features rust-firewall no-default-kernelopts 1"),
            (feature("skip-update", "0"), "skip-update", 0, "qvm-features rust-firewall skip-update 1"),
            (feature("gui", "1"), "gui", 0, "qvm-features rust-firewall gui ''"),
            (system("default_netvm", "sys-net"), "default_netvm", 0, "qubes-prefs default_netvm rust-firewall"),
            (system("updatevm", VM), "updatevm", 1, "qubes-prefs updatevm sys-net"),
            (system("clockvm", VM), "clockvm", 1, "qubes-prefs clockvm sys-net"),
            (qube("personal", netvm="sys-net"), "qube-netvm", 1, "qvm-prefs personal netvm rust-firewall"),
            (qube("personal", netvm="gone"), "qube-netvm", 1, "qvm-prefs personal netvm rust-firewall"),
            (qube("default-dvm", netvm="sys-net"), "dispvm-netvm", 1, "qvm-prefs default-dvm netvm rust-firewall"),
            (qube(VM, state="Halted"), "running", 1, "qvm-start rust-firewall"),
        ]
        for change, name, status, fix in cases:
            with self.subTest(name):
                world = self.healthy()
                change(world.state)
                got, found = findings(world, "--vm", VM)
                self.assertIn(name, found)
                self.assertEqual((got, found[name]["fix"]), (status, fix))

    def test_the_image_and_its_age(self):
        world = self.healthy()
        world.state["firewall"]["uptime_ms"] = 7_000_000
        status, found = findings(world)
        self.assertEqual((status, found["restart"]["fix"]), (1, "qvm-shutdown --wait --force rust-firewall && qvm-start rust-firewall"))
        os.remove(os.path.join(world.folder, "kernels", "rust-firewall", "vmlinuz"))
        self.assertIn("image", findings(world)[1])

    def test_a_rollback_needs_a_restart_too(self):
        """It renames directories: the images keep their times."""
        world = self.healthy()
        kernel = os.path.join(world.folder, "kernels", "rust-firewall")
        old = time.time() - 90_000
        os.utime(os.path.join(kernel, "vmlinuz"), (old, old))
        world.state["firewall"]["uptime_ms"] = 3_600_000
        os.rename(kernel, kernel + ".x")
        os.rename(kernel + ".x", kernel)
        self.assertIn("restart", findings(world)[1])

    def test_a_version_is_known_by_its_name_and_rpm_may_move_its_directory(self):
        world = self.healthy()
        kernels = os.path.join(world.folder, "kernels")
        world.state["qubes"][VM]["kernel"] = "rust-firewall-0.1.0"
        for name in ("rust-firewall-0.1.0", "rust-firewall-0.10.0", "rust-firewall-0.9.0", "rust-firewall-empty"):
            os.mkdir(os.path.join(kernels, name))
            if name != "rust-firewall-empty":
                with open(os.path.join(kernels, name, "vmlinuz"), "wb") as image:
                    image.write(b"\x7fELF")
        world.state["firewall"]["uptime_ms"] = 7_000_000
        self.assertEqual(findings(world), (0, {}))
        world.state["qubes"][VM]["kernel"] = "rust-firewall-0.10.0"
        status, found = findings(world)
        self.assertEqual((status, sorted(found)), (1, ["restart"]))
        self.assertIn("version 0.1.0", found["restart"]["text"])
        world.state["qubes"][VM]["kernel"] = "6.12.54-1"
        _, found = findings(world, "--vm", VM)
        self.assertEqual(found["kernel"]["fix"], "qvm-prefs rust-firewall kernel rust-firewall-0.10.0")

    def test_a_vm_that_does_not_answer(self):
        world = self.healthy()
        world.state["faults"] = {"qrexec-client": {"status": 1, "says": "nobody\n"}}
        world.state["qubes"][VM]["features"]["qrexec"] = "1"
        status, found = findings(world)
        self.assertEqual(status, 1)
        self.assertIn("nobody", found["silent"]["text"])
        self.assertEqual(found["qrexec"]["fix"], "qvm-features --unset rust-firewall qrexec")

    def test_what_the_firewall_itself_complains_of(self):
        world = self.healthy()
        world.state["firewall"]["problems"] = [
            {"id": "rules-refused", "client": "10.137.0.11", "text": "Its rules cannot be understood."},
            {"id": "config-word", "text": "fw-allow: an address is missing."},
            {"id": "x; rm -rf", "client": "$(reboot)", "text": "odd"},
            {"id": "client-limited", "client": "$(reboot)", "text": "odd"},
        ]
        status, found = findings(world)
        self.assertEqual(status, 1)
        self.assertEqual(found["health: rules-refused"]["text"], "work: Its rules cannot be understood.")
        self.assertEqual(found["health: rules-refused"]["fix"], "rust-firewall rules work")
        self.assertTrue(all(one["fix"] for one in found.values()))
        self.assertFalse([one for one in found.values() if "reboot" in one["fix"] or "rm -rf" in one["fix"]])

    def test_a_note_of_the_firewall_is_one_here(self):
        world = self.healthy()
        world.state["firewall"]["notes"] = [{"id": "client-features", "client": "10.137.0.11", "text": "Without super-frames."}]
        status, found = findings(world)
        self.assertEqual((status, sorted(found)), (0, ["health: client-features"]))
        note = found["health: client-features"]
        self.assertEqual((note["level"], note["text"]), ("note", "work: Without super-frames."))

    def test_an_older_image_and_another_firewall_are_notes(self):
        world = self.healthy()
        world.state["firewall"]["missing"] = ["Health"]
        world.state["qubes"]["sys-firewall"] = dict(world.state["qubes"]["personal"], netvm="sys-net", provides_network=True)
        status, found = findings(world)
        self.assertEqual((status, sorted(found)), (0, ["health", "other-firewall"]))

    def test_findings_can_be_left_out(self):
        world = self.healthy()
        world.state["qubes"]["personal"]["netvm"] = "sys-net"
        self.assertEqual(findings(world, "--ignore", "qube-netvm")[0], 0)


if __name__ == "__main__":
    unittest.main()
