//! Where we differ from the Linux agent on purpose. Each row has its own test: what Linux does, and what we do.

mod lines;
mod network;
mod state;

use std::net::{IpAddr, Ipv4Addr};

use super::linux::Linux;
use super::model::{Family, Packet, Side, Upper, Verdict, plan};
use super::nft;
use super::ours::Ours;
use crate::error::Result;
use crate::fail;

/// How a packet ends, as far as a row says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accept,
    Reject,
    Drop,
}

impl End {
    fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Accept { .. } | Verdict::Answer => Self::Accept,
            Verdict::Reject { .. } => Self::Reject,
            Verdict::Drop => Self::Drop,
        }
    }
}

impl Linux {
    /// How the last of these packets ends.
    fn end(&self, packets: &[Packet]) -> Result<End> {
        let verdicts = self.verdicts(packets)?;
        Ok(verdicts.last().map_or(End::Drop, |verdict| End::of(*verdict)))
    }
}

const REJECT: &str = "reject with icmp type admin-prohibited";
const SERVER: ([u8; 4], u16) = ([198, 51, 100, 7], 443);

/// Runs the tests of all rows; returns their names.
pub(super) fn check() -> Result<Vec<String>> {
    let mut names = Vec::new();
    let [v4, v6] = [Linux::new(Family::V4)?, Linux::new(Family::V6)?];
    lines::check(&v4, &mut names)?;
    network::check(&v4, &v6, &mut names)?;
    state::check(&v4, &mut names)?;
    Ok(names)
}

fn entries(lines: &[(&str, &str)]) -> Vec<(String, String)> {
    let all = lines.iter().chain(&[("policy", "drop")]);
    all.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn expect(name: &str, found: (End, End), wanted: (End, End)) -> Result<()> {
    if found != wanted {
        fail!("{name}: (Linux, ours) should be {wanted:?} and is {found:?}");
    }
    Ok(())
}

/// A packet of client A to an address beyond the uplink.
fn to(family: Family, upper: Upper) -> Packet {
    let destination = match family {
        Family::V4 => Ipv4Addr::from(SERVER.0).into(),
        Family::V6 => IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 7]),
    };
    Packet { side: Side::A, source: plan(family).a, destination, ttl: 64, upper, padding: 0 }
}

fn tcp((to, port): ([u8; 4], u16)) -> Packet {
    let destination = IpAddr::from(Ipv4Addr::from(to));
    let upper = Upper::Tcp { from: 1500 + u16::from(to[3]), to: port, flags: 2 };
    let source = plan(Family::V4).a;
    Packet { side: Side::A, source, destination, ttl: 64, upper, padding: 0 }
}

fn accept_all(linux: &Linux, family: Family) -> Result<Ours> {
    linux.load(nft::replace_by(family, &["accept".to_owned()]))?;
    Ours::new(family, &entries(&[("0000", "action=accept")]))
}

fn reject_all(linux: &Linux, family: Family) -> Result<Ours> {
    linux.load(nft::replace_by(family, &[]))?;
    linux.reload(nft::replace_by(family, &[nft::reject(family).to_owned()]))?;
    Ours::new(family, &entries(&[]))
}
