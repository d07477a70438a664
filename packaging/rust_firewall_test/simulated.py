"""A firewall VM that answers as the image does (`firewall.*`, JSON lines, schema 1), from the state of the stand-ins.

Its rules are those that dom0 has for the qubes behind it; each entry of `traffic` is judged by them whenever somebody
asks, so that an edit shows at once. Time goes on by a second with each `firewall.Stats`.
"""

from __future__ import annotations

import json

from .reference import decide

NO_SUCH_SERVICE = 127


def answer(state, service, argument, given):
    """`(bytes for standard output, exit status)`."""
    firewall = state["firewall"]
    if service in firewall.get("missing", ()):
        return b"", NO_SUCH_SERVICE
    if service in firewall.get("raw", {}):
        return firewall["raw"][service].encode("latin-1"), 0
    services = {
        "Version": _version, "Stats": _stats, "Memory": _memory, "Health": _health, "Flows": _flows, "Drops": _drops,
        "Rules": _rules,
    }
    if service == "Explain":
        return _explain(state, given.decode("ascii"))
    if service not in services or argument:
        return b"", NO_SUCH_SERVICE
    return _lines(services[service](state)), 0


def _lines(objects):
    return b"".join(json.dumps(one).encode("ascii") + b"\n" for one in objects)


def _clients(state):
    vm = state["firewall"]["vm"]
    return {
        name: qube
        for name, qube in state["qubes"].items()
        if qube["netvm"] == vm and qube["state"] == "Running" and name not in state["firewall"].get("detached", ())
    }


def _in_force(state, name, family=4):
    """The rules of a qube as the firewall has them: without comments, and without those of the other family."""
    lines = state["firewall"].get("stale", {}).get(name, state["qubes"][name]["firewall"])
    other = "dst6=" if family == 4 else "dst4="
    return [line.partition(" comment=")[0] for line in lines if other not in line]


def _version(state):
    firewall = state["firewall"]
    yield {"schema": 1, "name": "qubes-rust-firewall", "version": firewall["version"], "uptime_ms": firewall["uptime_ms"]}


def _stats(state):
    firewall = state["firewall"]
    firewall["uptime_ms"] += 1000
    seconds = firewall["uptime_ms"] // 1000
    yield {
        "schema": 1, "kind": "firewall", "uptime_ms": firewall["uptime_ms"], "flows": len(list(_flows(state))) - 1,
        "without_accept": firewall.get("without_accept", 0), "has_uplink": firewall["has_uplink"], "unsent": {},
    }
    yield {"kind": "machine", "hypercalls": 12000, "copies": 900}
    clients = _clients(state)
    rates = [firewall["rates"].get(name, [0, 0]) for name in clients]
    total = [sum(rate[way] for rate in rates) * seconds for way in (0, 1)]
    yield {"kind": "uplink", "counters": {"received-bytes": total[1], "sent-bytes": total[0]}}
    yield {"kind": "uplink", "drops": {"no-flow": 14}}
    yield {"kind": "departed", "counters": {"received-bytes": 0, "sent-bytes": 0}}
    yield {"kind": "departed", "drops": {}}
    for slot, (name, qube) in enumerate(clients.items()):
        head = {"kind": "client", "slot": slot, "domid": qube["domid"], "ip": qube["ip"], "ip6": qube.get("ip6")}
        out, back = firewall["rates"].get(name, [0, 0])
        counters = {"received-bytes": out * seconds, "sent-bytes": back * seconds, "flows-opened": 3}
        yield dict(head, counters=counters)
        dropped = sum(
            drop["times"] for drop in _drops(state) if drop.get("client") and drop["client"] in (qube["ip"], qube.get("ip6"))
        )
        yield dict(head, drops={"rule-rejected": dropped} if dropped else {})


def _memory(state):
    yield {
        "schema": 1, "kind": "memory", "heap_used": 524288, "heap_peak": 786432, "heap_size": 4194304, "pages_used": 310,
        "pages": 2600, "flows": len(list(_flows(state))) - 1, "flows_limit": 8192, "flows_per_client_limit": 2048,
        "clients": len(_clients(state)), "clients_limit": 64, "grants": 90, "quarantined": 0, "ports": 9, "watches": 12,
        "nat_ports": 4, "largest_operation": 40960, "operations_refused": 0, "leaks": 0,
    }
    yield {"kind": "part", "part": "rules", "live": 4000, "peak": 9000, "budget": 200000, "blocks": 12, "count": 0, "failures": 0}


def _health(state):
    firewall = state["firewall"]
    problems = firewall.get("problems", [])
    yield {
        "schema": 1, "kind": "health", "ok": not problems, "uptime_ms": firewall["uptime_ms"],
        "version": firewall["version"], "uplink": "connected" if firewall["has_uplink"] else "none",
        "database": "connected", "rules_refused": 0, "without_accept": 0, "leaks": 0,
    }
    for problem in problems:
        yield dict(problem, kind="problem")
    for note in firewall.get("notes", []):
        yield dict(note, kind="note")


def _judged(state):
    """The traffic with the rules' decision: `(qube, its address, entry, action, rule, text)`."""
    clients = _clients(state)
    for entry in state["firewall"]["traffic"]:
        qube = clients.get(entry["qube"])
        if qube is None:
            continue
        family = 6 if ":" in entry["dst"] else 4
        rules = _in_force(state, entry["qube"], family)
        action, rule = decide(rules, entry, state["firewall"]["names"])
        text = "policy=drop" if rule == "policy" else rules[rule]
        yield qube, qube["ip6" if family == 6 else "ip"], entry, action, rule, text


def _known_name(state, entry):
    """One that the rules of the qube have; with `knows_all_names` any."""
    rules = " ".join(state["qubes"][entry["qube"]]["firewall"]).split(" ")
    names = [
        name for name, addresses in state["firewall"]["names"].items()
        if entry["dst"] in addresses and ("dsthost=" + name in rules or state["firewall"].get("knows_all_names"))
    ]
    return {"name": names[0]} if names else {}


def _flows(state):
    flows = []
    for number, (_, source, entry, action, rule, _text) in enumerate(_judged(state)):
        if action != "accept":
            continue
        flow = {
            "kind": "flow", "client": source, "slot": 0, "direction": "out", "proto": entry["proto"], "src": source,
            "dst": entry["dst"], "nat": "10.137.0.6", "state": "established", "rule": rule,
            "idle_ms": entry.get("idle_ms", 100),
        }
        if entry["proto"] in ("tcp", "udp"):
            flow.update(sport=40000 + number, dport=entry["dport"], nat_port=40000 + number)
        else:
            flow.update(id=7, type=entry["dport"], state="query")
        flow.update(_known_name(state, entry))
        flows.append(flow)
    yield {"schema": 1, "kind": "flows", "uptime_ms": state["firewall"]["uptime_ms"], "flows": len(flows)}
    yield from flows


def _drops(state):
    drops = []
    for number, (_, source, entry, action, rule, text) in enumerate(_judged(state)):
        if action == "accept":
            continue
        drop = {
            "kind": "drop", "age_ms": entry.get("age_ms", 0), "times": entry.get("times", 1), "client": source,
            "direction": "out", "reason": "rule-rejected", "rule": rule, "text": text,
            "proto": entry["proto"],
            "src": source, "dst": entry["dst"], "why": "The rules of this source reject the flow.",
        }
        if rule == "policy":
            del drop["text"]
        if entry["proto"] in ("tcp", "udp"):
            drop.update(sport=40000 + number, dport=entry["dport"])
        else:
            drop.update(type=entry["dport"])
        drop.update(_known_name(state, entry))
        drops.append(drop)
    drops += [dict(drop, kind="drop") for drop in state["firewall"].get("other_drops", [])]
    drops.sort(key=lambda drop: drop["age_ms"])
    yield {
        "schema": 1, "kind": "drops", "uptime_ms": state["firewall"]["uptime_ms"], "kept": len(drops), "limit": 256,
        "total": sum(drop["times"] for drop in drops),
    }
    yield from drops


def _rules(state):
    clients = _clients(state)
    yield {"schema": 1, "kind": "rules", "clients": len(clients)}
    refused = state["firewall"].get("refused", {})
    for name, qube in clients.items():
        for family, address in ((4, qube["ip"]), (6, qube.get("ip6"))):
            if address is None:
                continue
            if name in refused:
                yield {"kind": "ruleset", "client": address, "state": "refused", "why": refused[name], "rules": 0, "generation": 4}
                continue
            rules = _in_force(state, name, family)
            decided = [rule for _, source, _, _, rule, _ in _judged(state) if source == address]
            yield {"kind": "ruleset", "client": address, "state": "in-force", "rules": len(rules), "generation": 4}
            for index, text in enumerate(rules):
                line = {"kind": "rule", "client": address, "index": index, "text": text, "hits": decided.count(index)}
                yield dict(line, **_addresses(state, text, family))
            yield {"kind": "policy", "client": address, "action": "drop", "hits": decided.count("policy")}


def _addresses(state, text, family):
    name = next((word[8:] for word in text.split(" ") if word.startswith("dsthost=")), None)
    if name is None:
        return {}
    known = [one for one in state["firewall"]["names"].get(name, []) if (":" in one) == (family == 6)]
    return {"addresses": known} if known else {"unresolved": True}


def _explain(state, line):
    words = line.rstrip("\n").split(" ")
    sources = {one: name for name, qube in _clients(state).items() for one in (qube["ip"], qube.get("ip6")) if one}
    is_number = len(words) == 4 and words[3].isdigit()
    if words[0] not in sources or not (is_number or (len(words) == 3 and words[1] == "icmp")) or words[1] not in ("tcp", "udp", "icmp"):
        return _lines([{"schema": 1, "kind": "error", "reason": "expected CLIENT PROTO DST [PORT]"}]), 1
    family = 6 if ":" in words[2] else 4
    packet = {"proto": words[1], "dst": words[2], "dport": int(words[3]) if is_number else {4: 8, 6: 128}[family]}
    rules = _in_force(state, sources[words[0]], family)
    action, rule = decide(rules, packet, state["firewall"]["names"])
    is_accepted = action == "accept"
    told = {"schema": 1, "kind": "explain", "client": words[0], "proto": words[1], "dst": words[2]}
    told["type" if words[1] == "icmp" else "dport"] = packet["dport"]
    told.update(verdict="accept" if is_accepted else "reject", rule=rule)
    if rule != "policy":
        told["text"] = rules[rule]
    if not is_accepted:
        told["drop_reason"] = "rule-rejected"
    told["reason"] = "It is accepted." if is_accepted else "The rules of this source reject the flow."
    return _lines([told]), 0
