//! `qfw eval`: cases in, verdicts out, a line for a line.
//!
//! A verdict is what the rules of the client say about the first packet of a flow, once its source has been checked. The
//! rest of the packet path (a first packet that starts nothing, a destination that is never forwarded to, the firewall's
//! own addresses) is not asked: a case does not say enough about it. `qfw replay` has real packets and asks it.

use std::io::{BufRead, Result, Write};
use std::process::ExitCode;

use rules::Family;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::answer::{Answer, Verdict};
use crate::case::{self, PacketLine, SetLine};
use crate::engine;

pub(crate) const HELP: &str = r#"Input, one case a line:
  {"id":"c1","client":"10.137.0.5","policy":"drop",
   "rules":["action=accept proto=tcp dst4=1.2.3.4/32 dstports=443-443"],
   "dns_servers":["10.139.1.1","10.139.1.2"],"dns":{"example.com":["93.184.216.34"]},
   "packet":{"src":"10.137.0.5","dst":"1.2.3.4","proto":"tcp","sport":40000,"dport":443}}
Output:
  {"id":"c1","verdict":"accept","rule":0}

rules   a list in the order of the keys, or an object of them: {"0000":"...","0003":"..."}
policy  accept or drop; without it the set is refused, as the firewall refuses it
dns     addresses of names in rules, of both families; one that is missing could not be
        resolved, one with [] does not exist
packet  proto is tcp, udp (both need dport), icmp (needs icmptype; ICMPv6 for an IPv6
        packet) or a protocol number
verdict accept, reject (by a drop rule or the policy), drop (silence: the source is not the
        client's, or the packet is of another family), parse-error (the set is refused;
        then everything is rejected), input-error (the line is of no use)
rule    its place in key order, counted from 0; "policy"; or null
reason  a sentence where the verdict is not accept

The verdict is that of the rules. What the firewall does with a packet apart from them is
not in it: one that starts no flow (an echo reply, say) or is for the firewall itself. See
qfw replay for packets that were really sent.

There is an output line for every input line, in the same order. Exit status 0."#;

/// Answers every line of `input`.
pub(crate) fn run(mut input: impl BufRead, mut output: impl Write) -> Result<ExitCode> {
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? > 0 {
        serde_json::to_writer(&mut output, &reply(&line))?;
        output.write_all(b"\n")?;
        line.clear();
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Deserialize)]
struct CaseLine {
    #[serde(flatten)]
    set: SetLine,
    packet: PacketLine,
}

#[derive(Debug, Serialize)]
struct Reply {
    id: Value,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Outcome {
    Answer(Answer),
    Unusable { verdict: &'static str, reason: String },
}

fn reply(line: &[u8]) -> Reply {
    #[derive(Deserialize)]
    struct Id {
        id: Option<Value>,
    }
    let outcome = match judge(line) {
        Ok(answer) => Outcome::Answer(answer),
        Err(reason) => Outcome::Unusable { verdict: "input-error", reason },
    };
    let id = serde_json::from_slice(line).ok().and_then(|Id { id }| id);
    Reply { id: id.unwrap_or(Value::Null), outcome }
}

fn judge(line: &[u8]) -> std::result::Result<Answer, String> {
    let case: CaseLine = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let client = case.set.client.ok_or("missing field `client`")?;
    let packet = case.packet.packet()?;
    let rules = match case::parse(Family::of(client), &case.set.entries()) {
        Ok(rules) => rules,
        Err(error) => return Ok(Answer::without_rule(Verdict::ParseError, error.to_string())),
    };
    if let Some(reason) = packet.stopped_before_rules(client) {
        return Ok(Answer::without_rule(Verdict::Drop, reason));
    }
    let subject = packet.subject(case.set.dns_servers());
    let decision = engine::decide(&rules, &subject, &case.set.names());
    Ok(engine::answer(&rules, decision))
}
