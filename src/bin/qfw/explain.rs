//! `qfw explain`: which rule decides about a flow, and why those before it do not.

use std::io::{Error, Result, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use rules::{DecidedBy, RuleSet, Subject};
use serde::Serialize;
use serde_json::Value;

use crate::answer::{Answer, Verdict};
use crate::case::{self, PacketLine, Proto, SetLine};
use crate::engine::{self, Packet};
use crate::rulefile::{self, Around, Tree};

/// Client of rules that do not say whose they are.
const SOME_CLIENT: (Ipv4Addr, Ipv6Addr) =
    (Ipv4Addr::new(10, 137, 0, 2), Ipv6Addr::new(0xfd09, 0, 0, 0, 0, 0, 0, 2));

pub(crate) const HELP: &str = r#"The packet:
  PROTO DESTINATION [PORT|ICMPTYPE]   tcp 198.51.100.7 443, icmp 198.51.100.7 8, 47 198.51.100.7
  JSON                                the packet or the whole line of qfw eval
A whole line needs no --rules."#;

/// Arguments of `qfw explain`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rule file, or - for the standard input
    #[arg(long, value_name = "FILE")]
    rules: Option<PathBuf>,
    #[command(flatten)]
    around: Around,
    /// Source of the packet, if it is not the client
    #[arg(long, value_name = "IP")]
    src: Option<IpAddr>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// The packet
    #[arg(required = true, num_args = 1..=3)]
    packet: Vec<String>,
}

/// What is printed.
#[derive(Serialize)]
struct Explanation {
    #[serde(flatten)]
    answer: Answer,
    /// The rules that were asked, the one that decided last.
    asked: Vec<Asked>,
}

#[derive(Serialize)]
struct Asked {
    key: String,
    rule: String,
    /// What does not hold; nothing for the rule that decides.
    mismatch: Option<String>,
}

/// Exit status 0, also for a set that is refused: that is an answer.
pub(crate) fn run(arguments: &Arguments, mut output: impl Write) -> Result<ExitCode> {
    let (tree, packet) = question(arguments)?;
    let explanation = explain(&tree, &packet);
    if arguments.json {
        serde_json::to_writer(&mut output, &explanation)?;
        writeln!(output)?;
    } else {
        print(&explanation, &mut output)?;
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn explain(tree: &Tree, packet: &Packet) -> Explanation {
    let without_rule = |verdict, reason| Explanation {
        answer: Answer::without_rule(verdict, reason),
        asked: Vec::new(),
    };
    let set = match tree.parse() {
        Ok(set) => set,
        Err(error) => return without_rule(Verdict::ParseError, error.to_string()),
    };
    let client = tree.client.unwrap_or(packet.source);
    if let Some(reason) = packet.stopped_before_rules(client) {
        return without_rule(Verdict::Drop, reason);
    }
    let subject = packet.subject(&tree.dns_servers);
    let decision = engine::decide(&set, &subject, &tree.names);
    let mut answer = engine::answer(&set, decision);
    answer.reason = Some(engine::reason(&set, decision.by));
    Explanation { answer, asked: asked(tree, &set, &subject, decision.by) }
}

fn asked(tree: &Tree, set: &RuleSet, subject: &Subject, by: DecidedBy) -> Vec<Asked> {
    let last = match by {
        DecidedBy::Rule { index, .. } | DecidedBy::UnresolvedName { index, .. } => index,
        DecidedBy::Policy | DecidedBy::OtherFamily => set.rules().len(),
    };
    let asked = set.rules().take(last.saturating_add(1));
    asked
        .map(|(key, rule)| Asked {
            key: key.to_string(),
            rule: rule.to_string(),
            mismatch: rule.mismatch(subject, &tree.names).map(|mismatch| mismatch.to_string()),
        })
        .collect()
}

fn print(explanation: &Explanation, output: &mut impl Write) -> Result<()> {
    let Answer { verdict, reason, .. } = &explanation.answer;
    writeln!(output, "{verdict}: {}", reason.as_deref().unwrap_or_default())?;
    for Asked { key, rule, mismatch } in &explanation.asked {
        let said = mismatch.as_deref().unwrap_or("decides");
        writeln!(output, "  {key} {rule}: {said}")?;
    }
    Ok(())
}

fn question(arguments: &Arguments) -> Result<(Tree, Packet)> {
    let usage = |problem: String| Error::other(format!("packet: {problem}"));
    let text = match arguments.packet.as_slice() {
        [json] if json.trim_start().starts_with('{') => json,
        words => {
            let mut tree = tree(arguments)?;
            let packet = packet(words, arguments.src, &mut tree).map_err(usage)?;
            return Ok((tree, packet));
        }
    };
    let value: Value = serde_json::from_str(text)?;
    let (tree, packet) = match value.get("packet") {
        Some(packet) if arguments.rules.is_none() => {
            let set: SetLine = serde_json::from_str(text)?;
            (rulefile::set(&set), PacketLine::of(packet)?)
        }
        Some(packet) => (tree(arguments)?, PacketLine::of(packet)?),
        None => (tree(arguments)?, PacketLine::of(&value)?),
    };
    Ok((tree, packet.packet().map_err(usage)?))
}

fn tree(arguments: &Arguments) -> Result<Tree> {
    let path = arguments.rules.as_ref();
    let path = path.ok_or_else(|| Error::other("--rules FILE is missing"))?;
    rulefile::read_one(path, &arguments.around)
}

/// The packet that these words describe; its source settles whose rules they are, if the file does not say it.
fn packet(
    words: &[String],
    source: Option<IpAddr>,
    tree: &mut Tree,
) -> std::result::Result<Packet, String> {
    let [proto, destination, rest @ ..] = words else {
        return Err("expected PROTO DESTINATION [PORT|ICMPTYPE]".to_owned());
    };
    let destination: IpAddr =
        destination.parse().map_err(|_| format!("{destination:?} is not an address"))?;
    let proto = Proto::of_text(proto)
        .ok_or_else(|| format!("{proto:?}: expected {}", Proto::EXPECTED))?
        .number(destination);
    let number: Option<u16> = match rest.first() {
        None => None,
        Some(text) => Some(text.parse().map_err(|_| format!("{text:?} is no port or ICMP type"))?),
    };
    let icmp_type = number.and_then(|number| u8::try_from(number).ok());
    let upper = case::upper(destination, proto, number, icmp_type)?;
    let any = if destination.is_ipv4() { SOME_CLIENT.0.into() } else { SOME_CLIENT.1.into() };
    let client = *tree.client.get_or_insert(source.unwrap_or(any));
    Ok(Packet { source: source.unwrap_or(client), destination, upper })
}
