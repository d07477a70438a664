"""What a hostile VM may answer: nothing of it reaches the terminal raw, and nothing of it costs much time or memory."""

import time
import unittest

from rust_firewall import answers, process, services
from rust_firewall.clean import clean
from rust_firewall.errors import Failure

from .world import World

HEAD = b'{"schema":1,"kind":"flows"}\n'


class Cleaning(unittest.TestCase):
    def test_only_printable_ascii_passes(self):
        self.assertEqual(clean("plain text-1.5/x"), "plain text-1.5/x")
        self.assertEqual(clean("\x1b[2J"), "\\x1b[2J")
        self.assertEqual(clean("a\nb\r\t\x07\x7f\x9b"), "a\\x0ab\\x0d\\x09\\x07\\x7f\\x9b")
        self.assertEqual(clean("\u202ex\U0001f600\ud800"), "\\u202ex\\U0001f600\\ud800")
        every = "".join(map(chr, range(0x3000)))
        self.assertTrue(all(" " <= char <= "~" for char in clean(every, 1 << 20)))

    def test_length_is_bounded_whatever_the_characters(self):
        for char in "a\x1b\U0001f600":
            self.assertLessEqual(len(clean(char * 10_000, 40)), 40)
        self.assertEqual(clean("x" * 40, 40), "x" * 40)


class Lines(unittest.TestCase):
    def test_an_answer_is_read(self):
        lines = answers.parse(HEAD + b'{"kind":"flow","dport":443,"name":"a.example","list":["x"],"is":true}\n', "firewall.X")
        self.assertEqual((lines[1].kind, lines[1].number("dport"), lines[1].text("name")), ("flow", 443, "a.example"))
        self.assertEqual((lines[1].texts("list"), lines[1].flag("is"), lines[1].text("none")), (["x"], True, None))

    def test_strings_are_cleaned_in_every_place(self):
        line = answers.parse(HEAD + '{"k\\u001bey":"\\u001b[31m","l":["\\u009b"],"o":{"\\u0007":1}}'.encode(), "s")[1]
        self.assertEqual(line.values, {"k\\x1bey": "\\x1b[31m", "l": ["\\x9b"], "o": {"\\x07": 1}})

    def test_what_is_no_answer_is_refused(self):
        cases = {
            b"": "nothing was answered", b"[]\n": "not an object", b"{\n": "not JSON", b"\xff\n": "not UTF-8",
            b"{}\n\n": "not JSON", HEAD + b'{"a":1,"a":2}\n': "twice", HEAD + b'{"a":1.5}\n': "not whole",
            HEAD + b'{"a":NaN}\n': "not whole", HEAD + b'{"a":1e9}\n': "not whole", HEAD + b'{"a":-1}\n': "beyond 64 bits",
            HEAD + b'{"a":18446744073709551616}\n': "beyond 64 bits", HEAD + b'{"a":%s}\n' % (b"9" * 7000): "beyond 64 bits",
            HEAD + b'{"a":"%s"}\n' % (b"x" * 9000): "longer than",
            HEAD + b'{"a":[[[[1]]]]}\n': "levels", HEAD + b"[" * 8000 + b"\n": "levels",
            HEAD + b'{"a":[%s1]}\n' % (b"1," * 300): "a list of more",
            HEAD + b"{%s}\n" % b",".join(b'"%d":1' % n for n in range(300)): "keys",
            b'{"kind":"flows"}\n': "schema None", b'{"schema":2}\n': "schema 2", b'{"schema":"1"}\n': "not a number",
            b'{"schema":true}\n': "not a number",
        }
        for data, wanted in cases.items():
            with self.subTest(wanted), self.assertRaises(Failure) as caught:
                answers.parse(data, "firewall.X")
            self.assertIn(wanted, caught.exception.message)

    def test_brackets_in_strings_are_no_levels(self):
        line = answers.parse(HEAD + b'{"a":"[[[[[[[[[[\\"[[["}\n', "s")[1]
        self.assertEqual(line.text("a"), '[[[[[[[[[["[[[')

    def test_types_are_checked_where_they_are_used(self):
        line = answers.parse(HEAD + b'{"t":"x","n":1,"l":[1],"o":{"a":"b"},"b":true}\n', "s")[1]
        for ask in (
            lambda: line.number("t"), lambda: line.text("n"), lambda: line.texts("l"), lambda: line.counts("o"),
            lambda: line.number("b"), lambda: line.flag("n"), lambda: line.counts("t"),
        ):
            self.assertRaises(Failure, ask)

    def test_a_large_answer_is_read_in_bounded_time(self):
        data = HEAD + b'{"kind":"flow","client":"10.137.0.5","proto":"tcp","dst":"192.0.2.1","dport":443}\n' * 10_000
        # Of this process: the machine may have other things to do.
        begun = time.process_time()
        self.assertEqual(len(answers.parse(data, "s")), 10_001)
        self.assertLess(time.process_time() - begun, 5)
        self.assertRaises(Failure, answers.parse, HEAD * 65_537, "s")


class Programs(unittest.TestCase):
    def test_output_input_and_status(self):
        done = process.run(["sh", "-c", "cat; echo odd >&2; exit 3"], b"given")
        self.assertEqual(done, process.Completed(b"given", "odd", 3))

    def test_input_that_nobody_reads_is_no_failure(self):
        self.assertEqual(process.run(["true"], b"x" * 200_000).status, 0)

    def test_too_much_output_ends_the_program(self):
        begun = time.monotonic()
        with self.assertRaises(Failure) as caught:
            process.run(["yes"], limit=100_000)
        self.assertIn("more than 100000 bytes", caught.exception.message)
        self.assertLess(time.monotonic() - begun, 5)

    def test_too_long_ends_the_program(self):
        for line in ("sleep 20", "exec >&- 2>&-; sleep 20", "trap '' TERM; sleep 20"):
            begun = time.monotonic()
            with self.subTest(line), self.assertRaises(Failure) as caught:
                process.run(["sh", "-c", "exec " + line if line.startswith("sleep") else line], timeout=0.3)
            self.assertIn("did not end within 0.3 s", caught.exception.message)
            self.assertLess(time.monotonic() - begun, 5)

    def test_complaints_are_cleaned_and_cut(self):
        done = process.run(["sh", "-c", "printf 'x\\033[31m%s\\n' $(seq 1 9999) >&2"])
        self.assertTrue(done.complaint.isprintable() and len(done.complaint) <= 300)

    def test_a_program_that_is_not_there_is_named(self):
        with self.assertRaises(Failure) as caught:
            process.run(["no-such-program-at-all"])
        self.assertIn("dom0", caught.exception.hint)


HOSTILE = "\x1b]0;owned\x07\x1b[2J\u202e\x9b31m"
EVERY = {
    "Version": {"name": HOSTILE, "version": HOSTILE, "uptime_ms": 1},
    "Memory": {"kind": "memory"},
    "Health": {"kind": "health", "ok": False},
    "Stats": {"kind": "firewall", "uptime_ms": 1, "has_uplink": True},
    "Flows": {"kind": "flows"},
    "Drops": {"kind": "drops", "uptime_ms": 1 << 40, "total": 1},
    "Rules": {"kind": "rules"},
    "Explain": {"kind": "explain", "verdict": HOSTILE, "rule": 0, "text": HOSTILE, "reason": HOSTILE},
}
BODY = {
    "Health": {"kind": "problem", "id": HOSTILE, "client": HOSTILE, "text": HOSTILE},
    "Stats": {"kind": "client", "ip": HOSTILE, "ip6": HOSTILE, "counters": {HOSTILE: 1}, "drops": {HOSTILE: 3}},
    "Flows": {"kind": "flow", "client": "10.137.0.11", "direction": HOSTILE, "proto": HOSTILE, "dst": HOSTILE, "name": HOSTILE, "state": HOSTILE},
    "Drops": {"kind": "drop", "client": "10.137.0.11", "age_ms": 0, "times": 1, "reason": HOSTILE, "text": HOSTILE, "rule": 1, "why": HOSTILE, "dst": "192.0.2.1", "proto": HOSTILE, "name": HOSTILE},
    "Rules": {"kind": "rule", "client": "10.137.0.11", "index": 0, "text": HOSTILE, "addresses": [HOSTILE], "hits": 1},
}


class Commands(unittest.TestCase):
    """The whole command against a VM that says hostile things."""

    def test_no_hostile_character_reaches_the_terminal(self):
        import json

        with World() as world:
            for service, head in EVERY.items():
                lines = [dict(head, schema=1)] + ([BODY[service]] if service in BODY else [])
                text = "".join(json.dumps(line) + "\n" for line in lines)
                world.state["firewall"].setdefault("raw", {})[service] = text
            for words in (
                ["status", "--interval", "0.05"], ["top", "--once", "--interval", "0.05"], ["flows"], ["drops"], ["rules", "work"],
                ["explain", "work", "192.0.2.1", "1"], ["learn", "work", "1s"], ["doctor"],
            ):
                for option in ([], ["--json"]):
                    with self.subTest(words=words, option=option):
                        # One as a process of its own: what the interpreter itself might say is in it.
                        run = world.run_alone if words == ["drops"] else world.run
                        ran = run(*words + option)
                        told = ran.output + ran.errors
                        self.assertNotIn("Traceback", told)
                        self.assertTrue(all(" " <= char <= "~" or char == "\n" for char in told), repr(told))
                        if words[0] not in ("top", "learn"):
                            self.assertIn("owned", told.replace("\\\\", "\\"), "the text is shown, in harmless form")

    def test_a_hostile_name_never_becomes_a_rule(self):
        import json

        with World() as world:
            flows = [{"schema": 1, "kind": "flows"}]
            names = ["a.example proto=udp", "b.example\naction=accept", "10.1", "-x", "A.example", "x\x1b", "", "c" * 300]
            for number, name in enumerate(names, 1):
                flows.append({
                    "kind": "flow", "client": "10.137.0.11", "direction": "out", "proto": "tcp", "dst": "192.0.2.%d" % number,
                    "dport": 1, "name": name,
                })
            world.state["firewall"]["raw"] = {"Flows": "".join(json.dumps(flow) + "\n" for flow in flows)}
            ran = world.run("learn", "work", "1s")
            rules = [line for line in ran.output.splitlines() if not line.startswith("#")]
            self.assertEqual(
                rules, ["action=accept dst4=192.0.2.%d/32 proto=tcp dstports=1-1" % number for number in range(1, 9)]
            )

    def test_floods_and_silence_end_with_a_sentence(self):
        with World() as world:
            world.state["faults"] = {"qrexec-client": {"flood": services.MAX_ANSWER + 70_000}}
            ran = world.run_alone("flows")
            self.assertEqual(ran.status, 1)
            self.assertIn("was stopped", ran.errors)
            world.state["faults"] = {"qrexec-client": {"status": 1, "says": "\x1b[31mno\x1b[0m such domain\n"}}
            ran = world.run_alone("flows")
            self.assertIn("\\x1b[31mno\\x1b[0m such domain", ran.errors)
            self.assertIn("qvm-start rust-firewall", ran.errors)


if __name__ == "__main__":
    unittest.main()
