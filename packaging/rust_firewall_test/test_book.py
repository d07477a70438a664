"""The examples in `packaging/book` are what the command prints. `UPDATE_BOOK=1 packaging/test Book` writes them anew."""

import os
import shlex
import unittest
from unittest import mock

from rust_firewall import learn, status, top

from .stand_in import PACKAGING
from .world import World

PROMPT = "    $ rust-firewall "
PAGES = ("command.md", "why-blocked.md")


class Clock:
    """Time that passes when somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def shown(words):
    """What the command prints in a world as the page describes it, indented."""
    with World() as world:
        world.write("new.rules", "action=accept dsthost=www.example.com proto=tcp dstports=443\naction=accept specialtarget=dns\n")
        if words[0] == "doctor":
            world.start_now()
            world.state["qubes"]["personal"]["netvm"] = "sys-net"
            world.state["system"]["updatevm"] = "rust-firewall"
            world.state["qubes"]["rust-firewall"]["features"].pop("skip-update")
            world.state["firewall"]["problems"] = [
                {"id": "rules-refused", "client": "10.137.0.11", "text": "rule 0002 cannot be understood: unknown element dpi."}
            ]
        clock = Clock()
        with mock.patch.object(learn, "time", clock), mock.patch.object(status, "time", clock), mock.patch.object(top, "time", clock):
            ran = world.run(*words)
        assert not ran.errors, ran.errors
        return [("    " + line).rstrip() for line in ran.output.splitlines()]


def page_with_examples(text):
    """The page with the examples as they are now."""
    lines = text.split("\n")
    page = []
    while lines:
        line = lines.pop(0)
        page.append(line)
        if not line.startswith(PROMPT):
            continue
        # What was printed goes on while lines are indented, over empty lines between such lines.
        while lines and (lines[0].startswith("    ") or (not lines[0] and lines[1:2] and lines[1].startswith("    "))):
            if lines[0].startswith(PROMPT) or (not lines[0] and lines[1].startswith(PROMPT)):
                break
            lines.pop(0)
        page += shown(shlex.split(line[len(PROMPT) :]))
    return "\n".join(page)


class Book(unittest.TestCase):
    def test_examples_are_what_the_command_prints(self):
        examples = 0
        for name in PAGES:
            path = os.path.join(PACKAGING, "book", name)
            with open(path) as file:
                text = file.read()
            now = page_with_examples(text)
            examples += text.count(PROMPT)
            if os.environ.get("UPDATE_BOOK"):
                with open(path, "w") as file:
                    file.write(now)
            else:
                self.assertEqual(text.split("\n"), now.split("\n"), name)
        self.assertGreater(examples, 10)

    def test_every_subcommand_is_in_the_book(self):
        from rust_firewall.cli import parser

        with open(os.path.join(PACKAGING, "book", "command.md")) as file:
            text = file.read()
        commands = next(action for action in parser()._actions if action.dest == "command").choices
        for name, command in commands.items():
            self.assertIn("## `%s" % name, text)
            for option in command._option_string_actions:
                if option.startswith("--") and option != "--help":
                    self.assertIn(option, text, "%s of %s" % (option, name))

    def test_every_reason_in_the_book_is_one_of_the_firewall(self):
        with open(os.path.join(os.path.dirname(PACKAGING), "src", "verdict.rs")) as file:
            known = file.read()
        with open(os.path.join(PACKAGING, "book", "why-blocked.md")) as file:
            table = file.read().split("## 4.")[1].split("## 5.")[0]
        reasons = 0
        for line in table.splitlines():
            if line.startswith("| `"):
                for reason in line.split("|")[1].split(","):
                    reason = reason.strip().strip("`")
                    self.assertIn('"%s' % reason.replace("...", ""), known)
                    reasons += 1
        self.assertGreater(reasons, 20)


if __name__ == "__main__":
    unittest.main()
