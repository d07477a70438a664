"""The book: its commands for dom0 run, its links lead somewhere, and what it lists is all there is.

A box marked `dom0` is run line by line among stand-ins of dom0's programs, each page on a machine of its own. A command
in another box is in NOT_RUN, with the reason.
"""

import json
import os
import re
import subprocess
import tempfile
import unittest

import standin

PACKAGING = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BOOK = os.path.join(PACKAGING, "book")
ROOT = os.path.dirname(PACKAGING)

# Pages whose examples another test compares with what is printed.
TESTED_ELSEWHERE = {
    "command.md": "packaging/rust_firewall_test",
    "why-blocked.md": "packaging/rust_firewall_test",
    "services.md": "src/services/tests/book.rs",
}
BY_HAND = "what packaging/verify-release does, and packaging/tests/release tests, one by one"
XTASK = "a command of the project, which takes minutes: cargo xtask test, or test --long package, runs it"
NOT_RUN = {
    "packaging/verify-release release FINGERPRINT": "packaging/tests/release runs it, on a release of its own",
    "gpg --import release/KEY.asc": BY_HAND,
    "gpg --verify release/SHA256SUMS.asc release/SHA256SUMS": BY_HAND,
    "cd release && sha256sum --check SHA256SUMS": BY_HAND,
    "sudo rpm --import KEY.asc": BY_HAND,
    "rpm -K qubes-rust-firewall-0.1.0-1.x86_64.signed.rpm": BY_HAND,
    "cargo xtask image --verify": XTASK,
    "cargo xtask image --offline": XTASK,
    "cargo xtask package": XTASK,
    "cargo xtask release --key KEY": "test --long package runs the script that signs, with a key made for that",
    "cargo xtask test --fast": XTASK,
    "cargo xtask test": XTASK,
    "cargo xtask run": "it shows what cargo xtask test checks",
}

# rpm as packaging/rpm/test has it for real, as far as the kernel directories go; and who runs what with whose rights.
DOUBLES = {
    "sudo": 'exec "$@"',
    "qvm-run": '[ "$1 $2" = "--pass-io work" ] && [ $# -eq 3 ] && printf image',
    "qubesctl": '''[ "$1" = state.sls ] && [ $# -eq 2 ] || exit 2
path=%s/salt/$(printf '%%s' "$2" | tr . /)
[ -f "$path.sls" ] || [ -f "$path/init.sls" ]''' % PACKAGING,
    "rpm": '''case $1 in
-i | -U)
    [ -f "$2" ] || [ "$1" = -U ] || exit 1
    version=$(expr "$2" : 'qubes-rust-firewall-\\(.*\\)-1.x86_64.rpm')
    rm -f "$RUST_FIREWALL_KERNELS"/*/packaged
    mkdir "$RUST_FIREWALL_KERNELS/rust-firewall-$version"
    cd "$RUST_FIREWALL_KERNELS/rust-firewall-$version"
    printf '\\177ELF\\002\\001%s' "$version" >vmlinuz
    : >initramfs
    : >packaged
    ;;
-qf) [ -f "$(dirname "$2")/packaged" ] ;;
-e) [ "$2" = qubes-rust-firewall ] && ! qvm-ls --raw-data --fields NAME,KERNEL | grep -q 'rust-firewall-' ;;
*) exit 2 ;;
esac''',
}


def pages():
    return sorted(name for name in os.listdir(BOOK) if name.endswith(".md"))


def read(*path):
    with open(os.path.join(*path), encoding="utf-8") as file:
        return file.read()


def boxes(text):
    """(what a box is marked with, its lines)."""
    found, mark, lines = [], None, []
    for line in text.splitlines():
        if line.startswith("```"):
            if mark is None:
                mark, lines = line[3:].strip(), []
            else:
                found.append((mark, lines))
                mark = None
        elif mark is not None:
            lines.append(line)
    if mark is not None:
        raise AssertionError("a box without an end")
    return found


class Commands(unittest.TestCase):
    def test_commands_for_dom0_work(self):
        ran = 0
        for page in pages():
            lines = [line for mark, box in boxes(read(BOOK, page)) if mark == "dom0" for line in box if line.strip()]
            if not lines:
                continue
            with tempfile.TemporaryDirectory() as folder:
                env = self.machine(folder, is_installed=not any("rpm -i" in line for line in lines))
                for line in lines:
                    with self.subTest(page=page, command=line):
                        done = subprocess.run(["sh", "-c", line], cwd=folder, env=env, stdin=subprocess.DEVNULL,
                                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                              universal_newlines=True, check=False)
                        self.assertEqual(done.returncode, 0, done.stdout)
                        ran += 1
        self.assertGreater(ran, 20)

    def machine(self, folder, is_installed):
        path = os.path.join(folder, "bin")
        standin.install(path)
        for name, text in DOUBLES.items():
            with open(os.path.join(path, name), "w", encoding="utf-8") as file:
                file.write("#!/bin/sh\nset -eu\n" + text + "\n")
            os.chmod(os.path.join(path, name), 0o755)
        os.symlink(os.path.join(PACKAGING, "rust-firewall-dom0"), os.path.join(path, "rust-firewall-dom0"))
        os.mkdir(os.path.join(folder, "kernels"))
        state = standin.usual()
        state["vms"]["mirage-firewall"] = standin.vm("StandaloneVM", netvm="sys-net", provides_network="True")
        env = dict(os.environ, PATH=path + ":" + os.environ["PATH"], DOM0_STATE=os.path.join(folder, "state.json"),
                   DOM0_CALLS=os.path.join(folder, "calls"), RUST_FIREWALL_KERNELS=os.path.join(folder, "kernels"),
                   RUST_FIREWALL_STATE=os.path.join(folder, "saved"), PYTHONDONTWRITEBYTECODE="1")
        env.pop("DOM0_STOP", None)
        env.pop("DOM0_STOP_RAISES", None)
        with open(env["DOM0_STATE"], "w", encoding="utf-8") as file:
            json.dump(state, file)
        if is_installed:
            package = os.path.join(folder, "qubes-rust-firewall-0.1.0-1.x86_64.rpm")
            open(package, "wb").close()
            subprocess.run(["rpm", "-i", os.path.basename(package)], cwd=folder, env=env, check=True)
            subprocess.run(["rust-firewall-dom0", "create"], env=env, check=True, stdout=subprocess.DEVNULL)
        return env

    def test_every_other_command_has_a_reason(self):
        left = dict(NOT_RUN)
        for page in pages():
            text = read(BOOK, page)
            if page in TESTED_ELSEWHERE:
                self.assertTrue(os.path.exists(os.path.join(ROOT, TESTED_ELSEWHERE[page])), page)
                continue
            self.assertFalse(re.search(r"^    \S", text, re.M), "%s: a box without a mark" % page)
            for mark, lines in boxes(text):
                self.assertIn(mark, ("dom0", "sh", "text"), "%s: what is a box marked %r?" % (page, mark))
                for line in lines if mark == "sh" else []:
                    self.assertIn(line, NOT_RUN, "%s: neither run nor with a reason" % page)
                    left.pop(line, None)
        self.assertEqual(left, {}, "reasons for commands that no page has")


class Text(unittest.TestCase):
    def test_links_lead_somewhere(self):
        for folder, page in [(BOOK, page) for page in pages()] + [(PACKAGING, "README.md"), (ROOT, "README.md")]:
            text = read(folder, page)
            for target in re.findall(r"\]\(([^)]+)\)", text):
                if re.match(r"[a-z]+:", target):
                    continue
                name, _, anchor = target.partition("#")
                path = os.path.normpath(os.path.join(folder, name)) if name else os.path.join(folder, page)
                self.assertTrue(os.path.exists(path), "%s links to %s" % (page, target))
                if anchor:
                    self.assertIn(anchor, anchors(read(path)), "%s links to %s" % (page, target))

    def test_every_page_is_in_the_index(self):
        index = read(BOOK, "README.md")
        for page in pages():
            if page != "README.md":
                self.assertIn("](%s)" % page, index)

    def test_options_lists_every_word_of_the_firewall(self):
        source = read(ROOT, "src/config/features.rs") + read(ROOT, "src/config/netvm.rs") + read(ROOT, "src/main.rs")
        words = set(re.findall(r'"((?:fw-|--)[a-z0-9-]+)"', source))
        self.assertGreater(len(words), 10)
        options = read(BOOK, "options.md")
        for word in sorted(words):
            self.assertIn("`%s`" % word, options)

    def test_policy_denies_every_service(self):
        policy = [line.split() for line in read(PACKAGING, "policy/30-rust-firewall.policy").splitlines()
                  if line and not line.startswith("#")]
        for line in policy:
            self.assertEqual(line[1:], ["*", "@anyvm", "@anyvm", "deny"])
        services = set()
        for name in os.listdir(os.path.join(ROOT, "src/services")):
            if name.endswith(".rs") and name != "tests.rs":
                services |= set(re.findall(r'"firewall\.[A-Z][A-Za-z]+', read(ROOT, "src/services", name)))
        self.assertGreaterEqual(services, {'"firewall.Stats', '"firewall.Version', '"firewall.Memory'})
        self.assertLessEqual(services, {'"' + line[0] for line in policy})


def anchors(text):
    """As they are made of headings: small letters, spaces to hyphens, other signs away."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", text, re.M):
        found.add(re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-"))
    return found


if __name__ == "__main__":
    unittest.main()
