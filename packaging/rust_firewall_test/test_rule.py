"""Rules: what is read, what is refused, and what dom0 would make of them."""

import unittest

from rust_firewall import rule
from rust_firewall.errors import Failure


class Reading(unittest.TestCase):
    def test_forms_of_qvm_firewall_become_those_of_the_admin_api(self):
        cases = {
            "action=accept": "action=accept",
            "action=accept proto=tcp dsthost=192.0.2.1 dstports=443": "action=accept dst4=192.0.2.1/32 proto=tcp dstports=443-443",
            "  dst4=192.0.2.0/24   action=drop ": "action=drop dst4=192.0.2.0/24",
            "action=accept dst4=192.0.2.9/24": "action=accept dst4=192.0.2.9/24",
            "action=accept dsthost=2001:db8::1": "action=accept dst6=2001:db8::1/128",
            "action=accept dsthost=www.example.com proto=udp dstports=1-9": "action=accept dsthost=www.example.com proto=udp dstports=1-9",
            "action=accept specialtarget=dns proto=udp": "action=accept proto=udp specialtarget=dns",
            "action=accept icmptype=8 proto=icmp": "action=accept proto=icmp icmptype=8",
            "action=accept expire=2000000000 comment=until then = no": None,
            "action=accept expire=2000000000 comment=until then": "action=accept expire=2000000000 comment=until then",
        }
        for line, wanted in cases.items():
            with self.subTest(line):
                if wanted is None:
                    self.assertRaises(rule.Refused, rule.parse, line)
                else:
                    self.assertEqual(rule.parse(line).line(), wanted)
                    self.assertEqual(rule.parse(wanted).line(), wanted)

    def test_what_dom0_would_refuse_or_change_is_refused(self):
        for line in (
            "", "accept", "proto=tcp", "action=reject", "action=accept action=drop", "action=accept dst4=192.0.2.1 dsthost=a.b",
            "action=accept proto=sctp", "action=accept dstports=80", "action=accept proto=icmp dstports=80",
            "action=accept proto=tcp dstports=80-", "action=accept proto=tcp dstports=90-80",
            "action=accept proto=tcp dstports=65536", "action=accept proto=tcp dstports=+80",
            "action=accept proto=tcp dstports=1-2-3", "action=accept proto=tcp icmptype=8",
            "action=accept proto=icmp icmptype=256", "action=accept proto=icmp specialtarget=dns",
            "action=accept specialtarget=moon", "action=accept dst4=0.0.0.0/0", "action=accept dsthost=::/0",
            "action=accept dst4=192.0.2.1/33", "action=accept dsthost=10.1", "action=accept dsthost=300.1.1.1",
            "action=accept dsthost=Example.com", "action=accept dsthost=a..b", "action=accept dsthost=-a.b",
            "action=accept dsthost=x\x1b[31m.com", "action=accept dpi=NO", "action=accept comment=\x1b[31m",
            "action=accept proto=tcp dstports=\u0664\u0664\u0663",
        ):
            with self.subTest(line):
                self.assertRaises(rule.Refused, rule.parse, line)

    def test_refusals_never_repeat_raw_text(self):
        for line in ("action=accept dsthost=\x1b]0;x\x07", "\x1b[2J=1", "action=\u202e"):
            with self.assertRaises(rule.Refused) as caught:
                rule.parse(line)
            self.assertTrue(str(caught.exception).isascii() and str(caught.exception).isprintable())

    def test_a_file_names_the_line(self):
        with self.assertRaises(Failure) as caught:
            rule.parse_list("# remark\n\naction=accept\naction=deny\n", "FILE")
        self.assertIn("FILE, line 4: action=deny: expected accept or drop", caught.exception.message)

    def test_a_file_has_at_most_a_thousand_rules(self):
        self.assertEqual(len(rule.parse_list("action=drop\n" * 1000, "F")), 1000)
        self.assertRaises(Failure, rule.parse_list, "action=drop\n" * 1001, "F")

    def test_rules_that_mean_the_same_are_the_same(self):
        same = [
            ("action=accept dst4=192.0.2.9/24", "dst4=192.0.2.0/24 action=accept comment=x"),
            ("action=accept dst6=2001:DB8:0::1/128", "action=accept dst6=2001:db8::1/128"),
            ("action=drop proto=tcp dstports=1", "proto=tcp action=drop dstports=1-1 expire=9"),
        ]
        for one, other in same:
            self.assertEqual(rule.meaning(one), rule.meaning(other))
        self.assertNotEqual(rule.meaning("action=accept dst4=192.0.2.9/24"), rule.meaning("action=accept dst4=192.0.2.9/25"))
        self.assertEqual(rule.meaning("no rule"), "no rule")

    def test_rules_of_each_family(self):
        four, six, both = (rule.parse("action=accept dsthost=" + one) for one in ("192.0.2.1", "2001:db8::1", "a.example"))
        self.assertEqual([one.is_for(4) for one in (four, six, both)], [True, False, True])
        self.assertEqual([one.is_for(6) for one in (four, six, both)], [False, True, True])


if __name__ == "__main__":
    unittest.main()
