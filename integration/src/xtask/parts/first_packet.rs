//! What a rule set costs the first packet of a flow: instructions of the whole packet core, against 10 rules and against
//! 1,000. Instructions, not time: they are the same on every run.

use std::net::Ipv4Addr;

use crate::error::Result;
use crate::xtask::image::cargo;
use crate::{apt, command, fail, paths, progress};

const PACKAGES: &[&str] = &["valgrind"];
const FEW: u16 = 10;
const MANY: u16 = 1000;
/// Packets of one run, each the first of its flow.
pub const PACKETS: u16 = 200;
/// How many times as much as against few rules it may be against many.
const MOST: f64 = 4.0;

/// How the rules of a set differ from each other. Every packet reaches the last of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Each another host.
    Hosts,
    /// One host, each another port.
    Ports,
    /// Every destination, overlapping port ranges.
    Ranges,
    /// Networks of all sizes, one within the other.
    Nested,
    /// Names that are not resolved, then one host.
    Names,
    /// None matches: the policy decides.
    Policy,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Hosts, Self::Ports, Self::Ranges, Self::Nested, Self::Names, Self::Policy];

    /// Its word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Hosts => "hosts",
            Self::Ports => "ports",
            Self::Ranges => "ranges",
            Self::Nested => "nested",
            Self::Names => "names",
            Self::Policy => "policy",
        }
    }

    /// The shape of a word.
    #[must_use]
    pub fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|shape| shape.word() == word)
    }

    /// `count` rules.
    #[must_use]
    pub fn rules(self, count: u16) -> Vec<String> {
        (0..count).map(|number| self.rule(number, number + 1 == count)).collect()
    }

    fn rule(self, number: u16, is_last: bool) -> String {
        let action = if is_last || self == Self::Names { "accept" } else { "drop" };
        match self {
            Self::Hosts | Self::Policy => {
                format!("action={action} dst4={}/32 proto=tcp dstports=443-443", host(number))
            }
            Self::Ports => {
                let port = 1000 + number;
                format!("action={action} dst4={}/32 proto=tcp dstports={port}-{port}", host(0))
            }
            Self::Ranges => {
                let (first, last) = (1000 + number, 1000 + number * 2);
                format!("action={action} proto=tcp dstports={first}-{last}")
            }
            Self::Nested if is_last => format!("action={action} dst4=0.0.0.0/0"),
            Self::Nested => {
                let length = 8 + number % 25;
                format!("action={action} dst4={}/{length} proto=udp", host(number))
            }
            Self::Names if is_last => format!("action={action} dst4={}/32", host(number)),
            Self::Names => format!("action={action} dsthost=n{number}.example proto=tcp"),
        }
    }

    /// Where the packets go that reach the last of `count` rules.
    #[must_use]
    pub fn destination(self, count: u16) -> (Ipv4Addr, u16) {
        let last = count.saturating_sub(1);
        match self {
            Self::Hosts | Self::Nested | Self::Names => (host(last), 443),
            Self::Ports => (host(0), 1000 + last),
            // Beyond the end of the range before.
            Self::Ranges => (host(0), 1000 + last * 2),
            Self::Policy => (host(count), 443),
        }
    }
}

fn host(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(198, 18, high, low)
}

/// Counts and judges.
///
/// # Errors
/// When a set of 1,000 rules costs more than four times what one of 10 does.
pub fn run() -> Result<()> {
    apt::ensure(PACKAGES)?;
    let build = ["build", "--quiet", "--release", "-p", "integration", "--bin", "first_packet"];
    progress::step("building first_packet", || command::output(&mut cargo(&build)))?;
    let mut failures = Vec::new();
    for shape in Shape::ALL {
        let few = each(shape, FEW)?;
        let many = each(shape, MANY)?;
        let ratio = many / few;
        progress::say(format!(
            "{:8} {few:7.0} instructions against {FEW} rules, {many:7.0} against {MANY}: {ratio:.2} x",
            shape.word()
        ));
        if ratio > MOST {
            failures.push(shape.word());
        }
    }
    if !failures.is_empty() {
        fail!("the first packet costs more than {MOST} times as much: {}", failures.join(", "));
    }
    Ok(())
}

/// Instructions of one packet.
fn each(shape: Shape, rules: u16) -> Result<f64> {
    let with = instructions(shape, rules, PACKETS)?;
    let without = instructions(shape, rules, 0)?;
    if with <= without {
        fail!("{PACKETS} packets cost nothing: {with} and {without} instructions");
    }
    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    let spent = (with - without) as f64;
    Ok(spent / f64::from(PACKETS))
}

fn instructions(shape: Shape, rules: u16, packets: u16) -> Result<u64> {
    let program = paths::target().join("release/first_packet");
    let mut valgrind =
        command::new("valgrind", &["--tool=callgrind", "--callgrind-out-file=/dev/null"]);
    valgrind.arg(program).args([shape.word(), &rules.to_string(), &packets.to_string()]);
    let out = valgrind.output();
    let text = match &out {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stderr),
        other => fail!("valgrind: {other:?}"),
    };
    let count = text.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    match count {
        Some(count) => Ok(count),
        None => fail!("valgrind did not count: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_name_shapes() {
        for shape in Shape::ALL {
            assert_eq!(Shape::named(shape.word()), Some(shape));
            assert_eq!(shape.rules(3).len(), 3);
        }
        assert_eq!(Shape::named("hosts "), None);
    }
}
