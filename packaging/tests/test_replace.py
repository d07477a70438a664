"""rust-firewall-dom0 on a machine as it is after the installation: replace, restore, interruptions, versions."""

import contextlib
import copy
import importlib.machinery
import importlib.util
import io
import json
import os
import subprocess
import tempfile
import unittest
import unittest.mock

import standin

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(os.path.dirname(HERE), "rust-firewall-dom0")
REPLACE = os.path.join(os.path.dirname(HERE), "rust-firewall-replace")
IMAGE = b"\x7fELF\x02\x01\x01 an image"


class Machine(unittest.TestCase):
    """A stand-in dom0 in a folder of its own."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.kernels = os.path.join(self.folder, "kernels")
        os.mkdir(self.kernels)
        standin.install(os.path.join(self.folder, "bin"))
        self.env = dict(os.environ, PATH=os.path.join(self.folder, "bin") + ":" + os.environ["PATH"],
                        DOM0_STATE=os.path.join(self.folder, "state.json"),
                        DOM0_CALLS=os.path.join(self.folder, "calls"),
                        RUST_FIREWALL_KERNELS=self.kernels, RUST_FIREWALL_STATE=os.path.join(self.folder, "saved"),
                        PYTHONDONTWRITEBYTECODE="1")
        patched = unittest.mock.patch.dict(os.environ, dict(self.env, DOM0_STOP_RAISES="1"))
        patched.start()
        self.addCleanup(patched.stop)
        loader = importlib.machinery.SourceFileLoader("replace", REPLACE)
        self.program = importlib.util.module_from_spec(importlib.util.spec_from_loader("replace", loader))
        loader.exec_module(self.program)
        self.program.call = self.call
        self.set_state(standin.usual())
        self.install("0.1.0")

    def set_state(self, state):
        with open(self.env["DOM0_STATE"], "w", encoding="utf-8") as file:
            json.dump(state, file)

    @property
    def state(self):
        with open(self.env["DOM0_STATE"], encoding="utf-8") as file:
            return json.load(file)

    @property
    def calls(self):
        try:
            with open(self.env["DOM0_CALLS"], encoding="utf-8") as file:
                return file.read().splitlines()
        except FileNotFoundError:
            return []

    def install(self, version):
        image = os.path.join(self.folder, "image")
        with open(image, "wb") as file:
            file.write(IMAGE + version.encode())
        self.dom0("--to", version, "install", image)

    def dom0(self, *words, status=0, stop="", forget=True):
        if forget and os.path.exists(self.env["DOM0_CALLS"]):
            os.remove(self.env["DOM0_CALLS"])
        done = subprocess.run([SCRIPT, *words], env=dict(self.env, DOM0_STOP=stop), stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True, check=False)
        if status is not None:
            self.assertEqual(done.returncode, status, done.stdout)
        return done.stdout

    def call(self, words, shown=False):
        """What the program calls: the stand-in in this process, or the script."""
        if words[0] == self.program.DOM0:
            if words[1:] == ("versions",):
                return 0, "".join("%s digest\n" % name for name in sorted(os.listdir(self.kernels))), ""
            out = self.dom0(*words[1:], status=None, forget=False, stop=os.environ.get("DOM0_STOP", ""))
            return 0 if "cannot" not in out else 1, out, ""
        out, error = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
            try:
                standin.main(words[0], list(words[1:]))
                status = 0
            except standin.Fails:
                status = 1
            except SystemExit as end:
                status = end.code or 0
        return status, out.getvalue(), error.getvalue()

    def run_program(self, *words, stop=""):
        """Exit status (None when it was killed), what it said, how many changes there were."""
        os.environ["DOM0_STOP"] = stop
        if os.path.exists(self.env["DOM0_CALLS"]):
            os.remove(self.env["DOM0_CALLS"])
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                status = self.program.main(list(words))
            except standin.Killed:
                status = None
        return status, out.getvalue(), len(self.calls)

    def replace(self, *words, status=0, stop=""):
        """`replace` or `restore` in this process, which is much faster than hundreds of others."""
        ended, said, _ = self.run_program(*words, stop=stop)
        if status != "any":
            self.assertEqual(ended, status, said)
        return said

    def value(self, qube, prop):
        status, out, error = self.call(["qvm-prefs", qube, prop])
        self.assertEqual(status, 0, error)
        return out.strip()

    def without(self, *names):
        """The state, less these VMs and what runs."""
        state = copy.deepcopy(self.state)
        for name in names:
            state["vms"].pop(name, None)
        return state


class Replace(Machine):
    def test_every_user_of_the_old_one_is_switched_and_nobody_else(self):
        said = self.dom0("replace", "--updatevm", "sys-net")
        state = self.state
        self.assertEqual(state["global"], {"default_netvm": "rust-firewall", "updatevm": "sys-net",
                                           "clockvm": "sys-net", "default_dispvm": "default-dvm"})
        netvms = {name: self.value(name, "netvm") for name in state["vms"]}
        self.assertEqual(netvms, {
            "fedora-40": "", "sys-net": "", "sys-firewall": "sys-net", "rust-firewall": "sys-net",
            "sys-whonix": "rust-firewall", "sys-vpn": "rust-firewall", "anon-whonix": "sys-whonix",
            "default-dvm": "rust-firewall", "disp17": "rust-firewall", "work": "rust-firewall",
            "banking": "rust-firewall", "vpn-work": "sys-vpn", "vault": ""})
        # Who followed the default does so still.
        self.assertNotIn("netvm", state["vms"]["work"]["props"])
        self.assertNotIn("netvm", state["vms"]["sys-vpn"]["props"])
        self.assertIn("sys-whonix gives network to others and is switched", said)
        self.assertIn("sys-vpn gives network to others and follows the default", said)
        self.assertIn("new disposables (of default-dvm) have the netvm rust-firewall", said)
        new = state["vms"]["rust-firewall"]
        self.assertTrue(new["running"])
        self.assertEqual(new["props"]["autostart"], "True")
        self.assertEqual(new["features"]["qubes-firewall"], "1")
        self.assertEqual(state["vms"]["sys-firewall"]["props"]["autostart"], "False")

    def test_the_list_is_there_before_the_first_change(self):
        before = self.state
        self.replace("replace", "--updatevm", "sys-net", status="any", stop="before:7")
        # 1 to 5 create the VM, 6 starts it.
        self.assertEqual(self.without("rust-firewall")["global"], before["global"])
        with open(os.path.join(self.env["RUST_FIREWALL_STATE"], "replace.json"), encoding="utf-8") as file:
            saved = json.load(file)
        names = {(one["qube"], one["name"]): one["was"] for one in saved["changes"]}
        self.assertEqual(names, {
            ("", "updatevm"): {"default": False, "value": "sys-firewall"},
            ("", "default_netvm"): {"default": False, "value": "sys-firewall"},
            ("banking", "netvm"): {"default": False, "value": "sys-firewall"},
            ("sys-whonix", "netvm"): {"default": False, "value": "sys-firewall"},
            ("rust-firewall", "autostart"): {"default": True, "value": "False"},
            ("sys-firewall", "autostart"): {"default": False, "value": "True"}})

    def test_restore_brings_every_property_back(self):
        before = self.state
        self.replace("replace", "--updatevm", "sys-net")
        said = self.replace("restore")
        self.assertEqual(self.without("rust-firewall"), before, said)
        self.assertNotIn("autostart", self.state["vms"]["rust-firewall"]["props"])
        self.assertIn("nothing was replaced", self.replace("restore", status=1))
        self.replace("replace", "--yes")
        self.assertEqual(self.value("banking", "netvm"), "rust-firewall")

    def test_a_default_comes_back_as_a_default(self):
        state = standin.usual()
        del state["vms"]["sys-firewall"]["props"]["autostart"]
        state["global"]["clockvm"] = "sys-firewall"
        self.set_state(state)
        self.replace("replace", "--yes")
        self.assertEqual(self.state["global"]["clockvm"], "sys-net")
        self.replace("restore")
        self.assertEqual(self.without("rust-firewall"), state)

    def test_stopped_while_it_creates_the_vm_it_goes_on(self):
        self.dom0("--yes", "replace", status=None, stop="before:3")
        self.assertIn("rust-firewall", self.state["vms"])
        self.dom0("--yes", "replace", status=None, stop="after:9", forget=False)
        self.dom0("--yes", "replace")
        self.assertEqual(self.state["vms"]["rust-firewall"]["features"],
                         {"qubes-firewall": "1", "no-default-kernelopts": "1", "skip-update": "1", "gui": ""})
        self.assertEqual(self.value("banking", "netvm"), "rust-firewall")

    def test_what_was_changed_since_is_left_alone(self):
        self.replace("replace", "--yes")
        state = self.state
        state["vms"]["banking"]["props"]["netvm"] = ""
        del state["vms"]["anon-whonix"]
        self.set_state(state)
        said = self.replace("restore")
        self.assertIn("left alone: banking netvm", said)
        self.assertEqual(self.value("banking", "netvm"), "", "a qube without network stays without")
        self.assertEqual(self.value("work", "netvm"), "sys-firewall")

    def test_a_second_run_changes_nothing(self):
        self.replace("replace", "--yes", "--check", status=1)
        self.replace("replace", "--yes")
        self.replace("replace", "--yes", "--check")
        state = self.state
        self.replace("replace", "--yes")
        self.assertEqual(self.calls, [])
        self.assertEqual(self.state, state)

    def test_dry_run_changes_nothing(self):
        state = self.state
        said = self.dom0("--dry-run", "--yes", "replace")
        self.assertIn("create", said)
        self.assertEqual((self.calls, self.state), ([], state))
        self.dom0("create")
        state = self.state
        said = self.dom0("--dry-run", "--yes", "replace")
        self.assertIn("qubes-prefs default_netvm rust-firewall\nqvm-prefs banking netvm rust-firewall\n", said)
        self.assertEqual((self.calls, self.state), ([], state))
        self.assertFalse(os.path.exists(self.env["RUST_FIREWALL_STATE"]))

    def test_updates_need_a_linux_qube(self):
        state = self.state
        self.assertIn("--updatevm NAME", self.replace("replace", status=1))
        for name in ("nobody", "rust-firewall"):
            self.replace("replace", "--updatevm", name, status=1)
        self.assertEqual(self.state, state)
        # The old firewall is one; then it goes on starting with the machine.
        self.replace("replace", "--updatevm", "sys-firewall")
        self.assertEqual(self.state["global"]["updatevm"], "sys-firewall")
        self.assertEqual(self.state["vms"]["sys-firewall"]["props"]["autostart"], "True")
        self.replace("replace", "--yes")
        self.assertEqual(self.calls, [], "the choice is remembered")

    def test_updates_that_go_elsewhere_stay_there(self):
        state = standin.usual()
        state["global"]["updatevm"] = "sys-whonix"
        self.set_state(state)
        self.replace("replace")
        self.assertEqual(self.state["global"]["updatevm"], "sys-whonix")

    def test_what_is_no_firewall_is_refused(self):
        for words in (["--old", "nobody"], ["--old", "vault"], ["--name", "work"]):
            state = self.state
            self.replace("replace", "--updatevm", "sys-net", *words, status=1)
            self.assertEqual(self.state, state)
            self.assertEqual(self.calls, [])

    def test_a_second_replacement_waits_for_restore(self):
        self.replace("replace", "--yes")
        self.assertIn("'restore' first", self.replace("replace", "--yes", "--old", "sys-vpn", status=1))


class InPlace(Machine):
    """The old VM becomes the firewall and keeps its name."""

    def test_the_old_name_gets_the_new_kernel_and_gives_it_back(self):
        before = self.state
        self.replace("replace", "--yes", "--name", "sys-firewall")
        one = self.state["vms"]["sys-firewall"]
        self.assertEqual(one["props"], {
            "kernel": "rust-firewall-0.1.0", "kernelopts": "", "memory": "32", "maxmem": "32", "vcpus": "1",
            "audiovm": "", "autostart": "True", "label": "green", "netvm": "sys-net", "provides_network": "True",
            "virt_mode": "pvh"})
        self.assertEqual(one["features"], {"qubes-firewall": "1", "no-default-kernelopts": "1", "skip-update": "1",
                                           "gui": "", "qrexec": ""})
        self.assertTrue(one["running"])
        self.assertEqual(self.state["global"]["updatevm"], "sys-net")
        self.assertEqual(self.value("banking", "netvm"), "sys-firewall")
        self.replace("restore", "--name", "sys-firewall")
        self.assertEqual(self.state, before)

    def test_updates_cannot_stay_with_it(self):
        self.replace("replace", "--name", "sys-firewall", "--updatevm", "sys-firewall", status=1)


class Interrupted(Machine):
    """Stopped at every change, on either side of it: in this process, for the number of runs."""

    def begin(self, state, saved=None):
        self.set_state(state)
        for name in ("replace.json", "replace.restored.json"):
            path = os.path.join(self.env["RUST_FIREWALL_STATE"], name)
            if os.path.exists(path):
                os.remove(path)
        if saved is not None:
            with open(self.program.LIST, "wb") as file:
                file.write(saved)

    def stopped_anywhere(self, *words):
        self.dom0("create")
        before = self.state
        status, _, changes = self.run_program(*words)
        self.assertEqual(status, 0)
        after = self.state
        self.assertGreater(changes, 6)
        with open(self.program.LIST, "rb") as file:
            saved = file.read()
        for mode in ("fail", "before", "after"):
            for number in range(1, changes + 1):
                with self.subTest(mode=mode, number=number):
                    self.begin(before)
                    expected = 1 if mode == "fail" else None
                    self.assertEqual(self.run_program(*words, stop="%s:%d" % (mode, number))[0], expected)
                    stopped = self.state
                    with open(self.program.LIST, "rb") as file:
                        self.assertEqual(file.read(), saved, "the whole list is there before the first change")
                    self.assertEqual(self.run_program(*words)[0], 0)
                    self.assertEqual(self.state, after)
                    self.begin(stopped, saved)
                    self.assertEqual(self.run_program("restore")[0], 0)
                    self.assert_restored(before)
        self.begin(after, saved)
        status, _, changes = self.run_program("restore")
        self.assertEqual(status, 0)
        for mode in ("fail", "before", "after"):
            for number in range(1, changes + 1):
                with self.subTest(mode=mode, number=number, what="restore"):
                    self.begin(after, saved)
                    self.run_program("restore", stop="%s:%d" % (mode, number))
                    self.assertEqual(self.run_program("restore")[0], 0)
                    self.assert_restored(before)

    def assert_restored(self, before):
        # That the new VM runs now is no property.
        expected, state = copy.deepcopy(before), self.state
        for one in (expected, state):
            one["vms"]["rust-firewall"]["running"] = None
        self.assertEqual(state, expected)

    def test_beside_the_old_one(self):
        self.stopped_anywhere("replace", "--yes")

    def test_in_its_place(self):
        self.stopped_anywhere("replace", "--yes", "--name", "sys-firewall")


class Versions(Machine):
    def test_create_takes_the_newest(self):
        self.install("0.10.0")
        self.install("0.9.0")
        self.dom0("create")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.10.0")
        self.dom0("--name", "fw2", "--to", "0.9.0", "create")
        self.assertEqual(self.value("fw2", "kernel"), "rust-firewall-0.9.0")
        self.dom0("--name", "fw3", "--to", "7", "create", status=1)

    def test_upgrade_and_rollback_exchange_kernels(self):
        self.dom0("create")
        self.install("0.2.0")
        self.dom0("upgrade")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.2.0")
        self.assertIn("nothing to do", self.dom0("upgrade"))
        self.dom0("rollback")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.1.0")
        self.dom0("rollback")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.2.0")
        self.dom0("--to", "0.1.0", "upgrade")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.1.0")
        self.dom0("--to", "0.3.0", "upgrade", status=1)
        self.dom0("--to", "../x", "upgrade", status=1)

    def test_the_older_layout_is_left_and_found_again(self):
        state = self.state
        state["vms"]["rust-firewall"] = standin.vm("StandaloneVM", netvm="sys-net", kernel="rust-firewall")
        self.set_state(state)
        for name in ("rust-firewall", "rust-firewall.previous"):
            os.mkdir(os.path.join(self.kernels, name))
            for file in ("vmlinuz", "initramfs"):
                with open(os.path.join(self.kernels, name, file), "wb") as made:
                    made.write(IMAGE)
        self.dom0("upgrade")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall-0.1.0")
        self.dom0("rollback")
        self.assertEqual(self.value("rust-firewall", "kernel"), "rust-firewall")
        self.dom0("upgrade")
        said = self.dom0("versions").splitlines()
        self.assertEqual([line.split()[0] for line in said],
                         ["rust-firewall", "rust-firewall.previous", "rust-firewall-0.1.0"])
        self.assertEqual([line.split()[2:] for line in said], [["rust-firewall"], [], ["rust-firewall"]])

    def test_prune_keeps_what_is_used_or_remembered(self):
        for version in ("0.2.0", "0.3.0"):
            self.install(version)
        self.dom0("--to", "0.1.0", "create")
        self.dom0("--to", "0.2.0", "upgrade")
        self.dom0("prune")
        self.assertEqual(sorted(os.listdir(self.kernels)), ["rust-firewall-0.1.0", "rust-firewall-0.2.0"])

    def test_remove_takes_versions_along_unless_another_vm_uses_one(self):
        self.dom0("create")
        self.dom0("--name", "fw2", "create")
        self.assertIn("fw2", self.dom0("--yes", "remove", status=1))
        self.dom0("--yes", "--name", "fw2", "remove", status=1)
        state = self.state
        del state["vms"]["fw2"]
        self.set_state(state)
        self.dom0("--yes", "remove")
        self.assertEqual(os.listdir(self.kernels), [])


if __name__ == "__main__":
    unittest.main()
