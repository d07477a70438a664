"""Proposals let exactly the observed traffic pass: by the reference, and by the engine that the firewall runs (QFW)."""

import ipaddress
import json
import os
import random
import subprocess
import unittest

from rust_firewall import rule
from rust_firewall.propose import RESOLVERS, Contact, propose, ranges

from . import reference

NAMES = {
    "www.example.com": ["192.0.2.1", "192.0.2.2", "2001:db8::1"],
    "cdn.example.net": ["192.0.2.2", "198.51.100.7"],
    "six.example.org": ["2001:db8::6"],
}
ADDRESSES = sorted({one for found in NAMES.values() for one in found}) + ["203.0.113.5", "203.0.113.6", "2001:db8::9"]
PORTS = [22, 53, 80, 81, 82, 443, 8080, 0, 65535, 65534]
CLIENT = {4: "10.137.0.9", 6: "fd09::9"}


def family(address):
    return ipaddress.ip_address(address).version


def lines(contacts, by_address=False):
    return [one.rule.line() for one in propose(contacts, by_address).rules]


class Proposals(unittest.TestCase):
    def test_ports_next_to_each_other_are_one_range(self):
        self.assertEqual(ranges([80, 81, 82, 443, 445]), [(80, 82), (443, 443), (445, 445)])
        contacts = [Contact("tcp", "192.0.2.9", port) for port in (443, 81, 80)]
        self.assertEqual(
            lines(contacts),
            ["action=accept dst4=192.0.2.9/32 proto=tcp dstports=80-81", "action=accept dst4=192.0.2.9/32 proto=tcp dstports=443-443"],
        )

    def test_addresses_of_a_name_are_one_rule(self):
        contacts = [Contact("tcp", one, 443, "www.example.com") for one in NAMES["www.example.com"]]
        self.assertEqual(lines(contacts), ["action=accept dsthost=www.example.com proto=tcp dstports=443-443"])
        self.assertEqual(len(lines(contacts, by_address=True)), 3)
        self.assertEqual(propose(contacts).rules[0].addresses, ["192.0.2.1", "192.0.2.2", "2001:db8::1"])

    def test_a_contact_without_a_name_has_that_of_its_address(self):
        contacts = [Contact("tcp", "192.0.2.1", 443, "www.example.com"), Contact("tcp", "192.0.2.1", 444)]
        self.assertEqual(lines(contacts), ["action=accept dsthost=www.example.com proto=tcp dstports=443-444"])

    def test_an_address_of_two_names_is_said_once(self):
        contacts = [Contact("tcp", "192.0.2.2", 443, name) for name in ("www.example.com", "cdn.example.net")]
        contacts.append(Contact("tcp", "192.0.2.1", 443, "www.example.com"))
        self.assertEqual(lines(contacts), ["action=accept dsthost=www.example.com proto=tcp dstports=443-443"])

    def test_dns_of_qubes_is_one_rule_and_other_dns_is_like_any_port(self):
        contacts = [Contact("udp", one, 53) for one in RESOLVERS] + [Contact("tcp", RESOLVERS[0], 53), Contact("udp", "192.0.2.9", 53)]
        self.assertEqual(
            lines(contacts), ["action=accept specialtarget=dns", "action=accept dst4=192.0.2.9/32 proto=udp dstports=53-53"]
        )
        self.assertEqual(
            lines([Contact("tcp", RESOLVERS[0], 80)]), ["action=accept dst4=10.139.1.1/32 proto=tcp dstports=80-80"]
        )

    def test_a_ping_has_the_type_of_its_family(self):
        contacts = [Contact("icmp", "192.0.2.9", None), Contact("icmpv6", "2001:db8::9", None), Contact("icmp", "192.0.2.9", 13)]
        self.assertEqual(
            lines(contacts),
            [
                "action=accept dst4=192.0.2.9/32 proto=icmp icmptype=8", "action=accept dst4=192.0.2.9/32 proto=icmp icmptype=13",
                "action=accept dst6=2001:db8::9/128 proto=icmp icmptype=128",
            ],
        )

    def test_what_rules_cannot_say_is_told_and_not_widened(self):
        proposal = propose([Contact("47", "192.0.2.9", None), Contact("tcp", "192.0.2.9", None)])
        self.assertEqual((len(proposal.rules), len(proposal.unwritable)), (0, 2))

    def test_proposals_are_rules_that_apply_takes(self):
        for line in lines(random_contacts(random.Random(3), 60)):
            self.assertEqual(rule.parse(line).line(), line)


def random_contacts(rng, count):
    """Of every kind; names as a resolver that the client asked may have said them: sometimes, and always true."""
    contacts = []
    for _ in range(count):
        address = rng.choice(ADDRESSES + list(RESOLVERS))
        proto = rng.choice(["tcp", "tcp", "udp", "icmp"])
        if proto == "icmp":
            number = rng.choice([8, 13]) if family(address) == 4 else rng.choice([128, 150])
            proto = "icmp" if family(address) == 4 else "icmpv6"
        else:
            number = rng.choice(PORTS)
        known = [name for name, found in NAMES.items() if address in found]
        contacts.append(Contact(proto, address, number, rng.choice(known) if known and rng.random() < 0.7 else None))
    return contacts


def every_packet():
    for address in ADDRESSES + list(RESOLVERS):
        for proto in ("tcp", "udp"):
            for port in PORTS + [21, 83, 444]:
                yield proto, address, port
        for number in (8, 13, 128, 150):
            yield ("icmp" if family(address) == 4 else "icmpv6"), address, number


class Expected:
    """Whether a packet is of the same host, protocol and port as one that was seen. A host is all addresses that the name
    has by which the contact was called."""

    def __init__(self, contacts, by_address):
        self._has_dns = any(one.is_dns() for one in contacts)
        self._seen = set()
        for one in contacts:
            name = None if by_address else host_of(one.address, contacts)
            for address in NAMES[name] if name else [one.address]:
                self._seen.add((one.proto.replace("icmpv6", "icmp"), address, one.number))

    def __call__(self, proto, address, number):
        if Contact(proto, address, number).is_dns():
            return self._has_dns
        return (proto.replace("icmpv6", "icmp"), address, number) in self._seen


def host_of(address, contacts):
    """The name that stands for an address: of those it was called, the one that most contacted addresses were called."""
    called = {}
    for one in contacts:
        if one.name:
            called.setdefault(one.name, set()).add(one.address)
    mine = [name for name in called if address in called[name]]
    return min(mine, key=lambda name: (-len(called[name]), name), default=None)


def cases(seed, rounds):
    """`(identity, rules, packet, wanted)`."""
    rng = random.Random(seed)
    for number in range(rounds):
        contacts = random_contacts(rng, rng.choice([1, 2, 5, 20, 60]))
        by_address = rng.random() < 0.4
        rules = lines(contacts, by_address)
        expected = Expected(contacts, by_address)
        for packet in every_packet():
            yield "%d %s %s" % (number, packet, by_address), rules, packet, expected(*packet)


def rules_for(rules, address):
    """Those that dom0 writes for the family of an address."""
    other = "dst6=" if family(address) == 4 else "dst4="
    return [line for line in rules if other not in line]


class Exactness(unittest.TestCase):
    def test_by_the_reference(self):
        accepted = 0
        for identity, rules, (proto, address, number), wanted in cases(11, 40):
            packet = {"proto": proto, "dst": address, "dport": number}
            action, _ = reference.decide(rules_for(rules, address), packet, NAMES)
            self.assertEqual(action == "accept", wanted, (identity, rules))
            accepted += wanted
        self.assertGreater(accepted, 500)

    def test_no_rule_can_go(self):
        """Minimal: without any one of the rules something that was seen does not pass."""
        rng = random.Random(5)
        for _ in range(30):
            contacts = random_contacts(rng, rng.choice([2, 5, 20]))
            rules = lines(contacts, by_address=True)
            for left_out in range(len(rules)):
                rest = rules[:left_out] + rules[left_out + 1 :]
                refused = [one for one in contacts if reference.decide(
                    rules_for(rest, one.address), {"proto": one.proto, "dst": one.address, "dport": one.number}, NAMES
                )[0] != "accept"]
                self.assertTrue(refused, (rules, left_out))

    def test_by_the_engine_of_the_firewall(self):
        qfw = os.environ.get("QFW")
        if not qfw:
            self.skipTest("QFW does not name the rule tool: cargo build --bin qfw")
        wanted, given = {}, []
        for identity, rules, (proto, address, number), is_wanted in cases(17, 30):
            source = CLIENT[family(address)]
            packet = {"src": source, "dst": address, "proto": proto.replace("icmpv6", "icmp")}
            packet.update({"icmptype": number} if packet["proto"] == "icmp" else {"sport": 40000, "dport": number})
            given.append(json.dumps({
                "id": identity, "client": source, "policy": "drop", "rules": rules_for(rules, address),
                "dns_servers": list(RESOLVERS), "dns": NAMES, "packet": packet,
            }))
            wanted[identity] = is_wanted
        done = subprocess.run([qfw, "eval"], input="\n".join(given).encode(), stdout=subprocess.PIPE, check=True)
        answers = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual(len(answers), len(given))
        for answer in answers:
            self.assertIn(answer["verdict"], ("accept", "reject"), answer)
            self.assertEqual(answer["verdict"] == "accept", wanted[answer["id"]], answer)


if __name__ == "__main__":
    unittest.main()
