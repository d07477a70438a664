//! What rules that do not match cost a packet: nftables on the host's kernel, as a firewall VM has it, and our core; the same
//! rules and the same packet, in turns.

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use serde_json::Value;

use super::report::{Report, median};
use crate::error::{Attempt, Result};
use crate::netns::{self, Namespace, Place, read_frame, write_frame};
use crate::xtask::callgrind;
use crate::{apt, command, fail, paths, progress};

/// Sizes of the rule sets; the first is what the others are compared with.
const SIZES: [usize; 3] = [0, 1000, 10_000];
/// Turns of each side.
const TURNS: usize = 5;
/// Packets of a turn, in groups between which answers are read.
const PACKETS: usize = 20_000;
const GROUP: usize = 200;
const CLIENT: &str = "10.137.0.10";

/// Nanoseconds of a packet, by size.
type Times = [f64; SIZES.len()];

pub(super) fn run(report: &mut Report) -> Result<()> {
    apt::ensure(netns::PACKAGES)?;
    let file = paths::target().join("nft-times.json");
    let path = file.display().to_string();
    if netns::enter(&["bench", "nft-here", &path])? == Place::Here {
        here(&file)?;
    }
    let (ours, linux) = read(&file)?;
    let lines = SIZES.iter().zip(ours.iter().zip(&linux)).map(|(rules, (ours, linux))| {
        format!("{rules:>6} rules: ours {ours:>9.0} ns, nftables {linux:>9.0} ns for a packet")
    });
    report.table("First packets that no rule matches (median)", lines.collect());
    let cost = |times: &Times, at: usize| {
        let [without, ..] = times;
        times.get(at).map_or(f64::NAN, |time| time - without)
    };
    for (at, rules) in SIZES.into_iter().enumerate().skip(1) {
        let (ours, linux) = (cost(&ours, at), cost(&linux, at));
        report.figure(format!("nft.marginal_{rules}.ours_ns"), ours);
        report.figure(format!("nft.marginal_{rules}.linux_ns"), linux);
        report.figure(format!("nft.marginal_{rules}.ratio"), ours.max(0.0) / linux);
    }
    Ok(())
}

/// The measurement itself, as root; the times go to `file`.
///
/// # Errors
/// When something cannot be measured.
pub(super) fn here(file: &Path) -> Result<()> {
    callgrind::program()?;
    let first = our_turn()?;
    let mut ours: [Vec<f64>; SIZES.len()] = Default::default();
    let mut linux: [Vec<f64>; SIZES.len()] = Default::default();
    progress::step("our core and nftables in turns", || -> Result<()> {
        let kernel = Kernel::new()?;
        for _ in 0..TURNS {
            let turn = our_turn()?;
            for (rules, (ours, linux)) in SIZES.into_iter().zip(ours.iter_mut().zip(&mut linux)) {
                kernel.load(first.rules.get(..rules).unwrap_or_default())?;
                linux.push(kernel.time(&first.frame)?);
                let Some((_, time)) = turn.times.iter().find(|(size, _)| *size == rules) else {
                    fail!("no time of our core with {rules} rules");
                };
                ours.push(*time);
            }
        }
        Ok(())
    })?;
    let medians = |times: &[Vec<f64>]| -> Value {
        times.iter().map(|times| median(times.iter().copied())).collect()
    };
    let text = serde_json::json!({"ours": medians(&ours), "linux": medians(&linux)}).to_string();
    fs::write(file, text).doing(|| format!("cannot write {}", file.display()))
}

fn read(file: &Path) -> Result<(Times, Times)> {
    let text = fs::read_to_string(file).doing(|| format!("cannot read {}", file.display()))?;
    let value: Value = serde_json::from_str(&text).unwrap_or_default();
    let times = |name: &str| -> Option<Times> {
        let times: Vec<f64> =
            value.get(name)?.as_array()?.iter().filter_map(Value::as_f64).collect();
        times.try_into().ok()
    };
    match (times("ours"), times("linux")) {
        (Some(ours), Some(linux)) => Ok((ours, linux)),
        _ => fail!("{}: {text:?}", file.display()),
    }
}

/// What `measure marginal` prints.
struct Turn {
    rules: Vec<String>,
    frame: Vec<u8>,
    times: Vec<(usize, f64)>,
}

fn our_turn() -> Result<Turn> {
    let program = paths::target().join("measured/measure");
    let sizes = SIZES.map(|size| size.to_string());
    let text =
        command::output(std::process::Command::new(program).arg("marginal").args(sizes.iter()))?;
    let mut turn = Turn { rules: Vec::new(), frame: Vec::new(), times: Vec::new() };
    for line in text.lines() {
        let fields: Vec<&str> = line.split('\t').collect();
        match fields.as_slice() {
            ["rule", rule] => turn.rules.push(translate(rule)?),
            ["frame", hex] => turn.frame = bytes(hex)?,
            ["time", rules, time] => {
                let (Ok(rules), Ok(time)) = (rules.parse(), time.parse()) else {
                    fail!("{line:?}");
                };
                turn.times.push((rules, time));
            }
            _ => fail!("measure marginal: {line:?}"),
        }
    }
    Ok(turn)
}

fn bytes(hex: &str) -> Result<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2).map(|pair| {
        let text = std::str::from_utf8(pair).ok()?;
        u8::from_str_radix(text, 16).ok()
    });
    let bytes: Option<Vec<u8>> = pairs.collect();
    bytes.map_or_else(|| fail!("no frame: {hex:?}"), Ok)
}

/// A line of dom0 as the agent of Qubes renders it.
fn translate(rule: &str) -> Result<String> {
    let mut text = String::new();
    for word in rule.split(' ') {
        match word.split_once('=') {
            Some(("dst4", address)) => text += &format!("ip daddr {address} "),
            Some(("proto", protocol)) => text += &format!("meta l4proto {protocol} "),
            Some(("dstports", port)) => text += &format!("th dport {port} "),
            _ => fail!("how is {word:?} said in nftables?"),
        }
    }
    Ok(text + "accept")
}

/// Packets are forwarded, and each is refused as it would be alone.
const PARAMETERS: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/icmp_ratelimit", "0"),
    ("net/ipv4/icmp_ratemask", "0"),
    ("net/ipv4/icmp_msgs_per_sec", "10000000"),
    ("net/ipv4/icmp_msgs_burst", "10000000"),
];

/// A firewall of the host's kernel with one client.
struct Kernel {
    space: Namespace,
    client: File,
    uplink: File,
}

impl Kernel {
    fn new() -> Result<Self> {
        let space = Namespace::new("bench")?;
        for (parameter, value) in PARAMETERS {
            space.set(parameter, value)?;
        }
        let client = space.tap("vif1", "fe:ff:ff:ff:ff:ff")?;
        let uplink = space.tap("eth0", "00:16:3e:5e:6c:06")?;
        space.sh(&format!(
            "ip address add 10.137.0.6/32 dev eth0\n\
             ip address add 10.137.0.6/32 dev vif1\n\
             ip route add {CLIENT}/32 dev vif1\n\
             ip neighbour replace {CLIENT} lladdr 00:16:3e:5e:6c:0a dev vif1 nud permanent\n\
             ip neighbour replace 10.137.0.5 lladdr fe:ff:ff:ff:ff:ff dev eth0 nud permanent\n\
             ip route add default via 10.137.0.5 dev eth0 onlink\n"
        ))?;
        space.nft(format!(
            "table ip fw {{
 chain sources {{ type filter hook prerouting priority -300; policy accept;
  iifname \"vif*\" iifname . ip saddr != {{ \"vif1\" . {CLIENT} }} drop
 }}
 chain through {{ type filter hook forward priority 0; policy drop;
  ct state invalid drop
  ct state established,related accept
  ip saddr {CLIENT} jump client
 }}
 chain client {{ reject with icmp type admin-prohibited; }}
 chain post {{ type nat hook postrouting priority 100; policy accept;
  oifname \"eth0\" masquerade
 }}
}}
"
        ))?;
        Ok(Self { space, client, uplink })
    }

    fn load(&self, rules: &[String]) -> Result<()> {
        let mut text = String::from("flush chain ip fw client\n");
        for rule in
            rules.iter().map(String::as_str).chain(["reject with icmp type admin-prohibited"])
        {
            text += &format!("add rule ip fw client {rule}\n");
        }
        self.space.nft(text)
    }

    /// Nanoseconds of a packet: the kernel takes it through all its stages while it is written.
    fn time(&self, frame: &[u8]) -> Result<f64> {
        let (mut spent, mut refused) = (0, 0);
        let mut buffer = [0; 2048];
        for group in 0..=PACKETS / GROUP {
            let begun = Instant::now();
            for _ in 0..GROUP {
                write_frame(&self.client, frame)?;
            }
            // The first group warms up.
            if group > 0 {
                spent += begun.elapsed().as_nanos();
            }
            while read_frame(&self.client, &mut buffer)?.is_some() {
                refused += 1;
            }
            if read_frame(&self.uplink, &mut buffer)?.is_some_and(is_tcp) {
                fail!("nftables let a packet pass that no rule accepts");
            }
        }
        if refused == 0 {
            fail!("nftables refused nothing: did it see the packets?");
        }
        Ok(spent as f64 / PACKETS as f64)
    }
}

fn is_tcp(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_dom0_becomes_a_rule_of_nftables() {
        assert_eq!(
            translate("dst4=203.0.0.9 proto=tcp dstports=443").unwrap(),
            "ip daddr 203.0.0.9 meta l4proto tcp th dport 443 accept"
        );
        assert!(translate("dsthost=a.example").is_err());
        assert_eq!(bytes("00ff10").unwrap(), [0, 255, 16]);
        assert!(bytes("0g").is_err());
    }
}
