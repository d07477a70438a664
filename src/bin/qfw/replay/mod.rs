//! `qfw replay`: what a rule set would have done with the traffic of a capture.
//!
//! [`capture`] reads the file, [`packet`] finds the IP packets of the client and to it, [`world`] runs them through the
//! packet path of the firewall on the clock of the capture, [`flows`] sums up. What came back in the capture comes back
//! in the replay as well, so that connections live as they did and DNS answers are learned from; [`dns`] answers what the
//! firewall itself asks about names in rules.
//!
//! A capture is not trusted: memory is bounded (1 MiB of the file at a time, 100,000 flows in the summary, the tables of
//! the firewall), and no bytes may panic.

mod capture;
mod dns;
mod flows;
mod packet;
#[cfg(test)]
mod tests;
mod world;

use std::fs::File;
use std::io::{Error, Read, Result, Write, stdin};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use firewall::{Limits, RulesState};
use rules::CompiledSet;

use self::capture::{Broken, Record};
use self::flows::Flows;
use self::packet::Skipped;
use self::world::World;
use crate::engine::KnownNames;
use crate::rulefile::{self, Around};

/// As large as the tables of a firewall with much memory.
const LIMITS: Limits = Limits {
    clients: 1,
    addresses: 512,
    flows: 65_536,
    flows_per_client: 65_536,
    fragment_bytes: 4 << 20,
};
/// Longest IP packet.
const MAX_PACKET_BYTES: usize = 65_535;

pub(crate) const HELP: &str = r#"The capture is a pcap or pcapng file (tcpdump, Wireshark) of Ethernet, Linux cooked or
raw IP packets, taken on the client's side of the firewall. A line is printed for each flow:
the verdict on its first packet, the key of the rule that decided, how many packets the
client sent, their bytes, how many of them were accepted, how many packets came back.

verdict accept, reject, drop, parse-error as for qfw eval; answered: by the firewall itself,
        see --gateway; kept: a fragment whose rest is missing
Not replayed but counted: ARP, VLANs, traffic of others, packets to the client that answer
nothing, ICMP errors. Names are resolved by --resolve and by DNS answers in the capture from
the --dns-server addresses; a name that neither knows is not resolved. No packet is too large,
and memory is bounded: 100000 flows are told apart, 65536 are open at a time.
Exit status 0; 2 if the file is no capture."#;

/// Arguments of `qfw replay`.
#[derive(Args)]
pub(crate) struct Arguments {
    /// Rule file, or - for the standard input
    #[arg(long, value_name = "FILE")]
    rules: PathBuf,
    #[command(flatten)]
    around: Around,
    /// Address by which the client knows the firewall
    #[arg(long, value_name = "IP")]
    gateway: Option<IpAddr>,
    /// Other clients of the firewall, which are out of reach
    #[arg(long = "other-client", value_name = "IP", value_delimiter = ',')]
    other_clients: Vec<IpAddr>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
    /// The capture, or - for the standard input
    capture: PathBuf,
}

/// The surroundings of the client.
pub(crate) struct Setting {
    client: IpAddr,
    gateway: Option<IpAddr>,
    other_clients: Vec<IpAddr>,
    dns_servers: Vec<IpAddr>,
    names: KnownNames,
    limits: Limits,
}

/// Replays a capture.
pub(crate) fn run(arguments: &Arguments, mut output: impl Write) -> Result<ExitCode> {
    let tree = rulefile::read_one(&arguments.rules, &arguments.around)?;
    let client = tree.client.ok_or_else(|| {
        Error::other("the rule file does not say whose rules they are: say --client")
    })?;
    let parsed = tree.parse().map_err(|error| error.to_string());
    let compiled =
        parsed.clone().and_then(|rules| CompiledSet::new(rules).map_err(|error| error.to_string()));
    let state = match compiled {
        Ok(rules) => RulesState::Active(rules),
        Err(error) => {
            eprintln!("qfw: the rules are refused: {error}");
            RulesState::Refused
        }
    };
    let setting = Setting {
        client,
        gateway: arguments.gateway,
        other_clients: arguments.other_clients.clone(),
        dns_servers: tree.dns_servers,
        names: tree.names,
        limits: LIMITS,
    };
    let path = &arguments.capture;
    let about =
        |problem: &dyn std::fmt::Display| Error::other(format!("{}: {problem}", path.display()));
    let source: Box<dyn Read + Send> = match path.as_os_str() == "-" {
        true => Box::new(stdin()),
        false => Box::new(File::open(path).map_err(|error| about(&error))?),
    };
    let (flows, end) = replay(&setting, state, source).map_err(Error::other)?;
    match end {
        Ok(()) => {}
        Err(Broken::NotACapture) => return Err(about(&Broken::NotACapture)),
        Err(broken) => {
            eprintln!("qfw: {}: {broken}: what comes after is not replayed", path.display())
        }
    }
    let rules = parsed.as_ref().map_err(String::as_str);
    match arguments.json {
        true => flows.write_json(&client.to_string(), rules, &mut output)?,
        false => flows.write_table(rules, &mut output)?,
    }
    output.flush()?;
    Ok(ExitCode::SUCCESS)
}

/// The flows, and whether the capture was read to its end.
fn replay(
    setting: &Setting,
    rules: RulesState,
    source: impl Read + Send,
) -> std::result::Result<(Flows, std::result::Result<(), Broken>), String> {
    let mut world = World::new(setting, rules)?;
    let mut flows = Flows::default();
    let end = capture::read(source, |record| {
        if let Err(why) = take(setting.client, &mut world, &mut flows, record) {
            flows.skip(why);
        }
    });
    Ok((flows, end))
}

fn take(
    client: IpAddr,
    world: &mut World,
    flows: &mut Flows,
    record: Record<'_>,
) -> std::result::Result<(), Skipped> {
    let mut packet = packet::ip(record.link, record.bytes)?.to_vec();
    // What was cut off when it was captured counts as zeros: headers are there.
    let cut_off = usize::try_from(record.original_len).unwrap_or(usize::MAX);
    let cut_off = cut_off.saturating_sub(record.bytes.len());
    packet.resize(packet.len().saturating_add(cut_off).min(MAX_PACKET_BYTES), 0);
    let seen = packet::look(&packet).ok_or(Skipped::Malformed)?;
    // Short frames are padded.
    packet.truncate(seen.total_len);
    let ends = seen.ends;
    if ends.source == client {
        let outcome = world.client_sends(record.nanos, &packet);
        flows.sent(ends, packet.len(), outcome);
        return Ok(());
    }
    if ends.destination != client {
        return Err(Skipped::OfOthers);
    }
    let flow = flows.answered(&ends.asked()).ok_or(Skipped::Unsolicited)?;
    let port = flow.outside_port.unwrap_or(ends.destination_port);
    world.uplink_brings(record.nanos, &mut packet, port);
    Ok(())
}
