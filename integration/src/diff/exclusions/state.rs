//! Rule changes under flows (qubes-protocols.md 5.7). The agent of a Linux firewall VM looks through the kernel's flows
//! and removes those that the new rules forbid, as it reads them; those that it overlooks go on. Ours are judged again.

use std::net::IpAddr;

use super::{End, REJECT, accept_all, entries, expect, to};
use crate::diff::linux::Linux;
use crate::diff::model::{Family, Packet, Side, Upper, plan};
use crate::diff::nft;
use crate::error::Result;

/// Runs the tests; adds the names of their rows.
pub(super) fn check(linux: &Linux, names: &mut Vec<String>) -> Result<()> {
    // The agent looks at flows of TCP and UDP only.
    let asked = Upper::Icmp { kind: 8, code: 0, id: 77 };
    let answered = Upper::Icmp { kind: 0, code: 0, id: 77 };
    changed(linux, "rule change under ICMP", (asked, answered), REJECT, "action=drop")?;
    names.push("rule change under an ICMP flow (5.7)".into());
    // It compares ports as text, so that 1500 lies between 1 and 2.
    let asked = Upper::Udp { from: 4000, to: 1500 };
    let answered = Upper::Udp { from: 1500, to: 4000 };
    let chain = "udp dport 1-2 accept";
    let line = "action=accept proto=udp dstports=1-2";
    changed(linux, "ports as text", (asked, answered), chain, line)?;
    names.push("rule change with ports compared as text (5.7)".into());
    Ok(())
}

/// A flow in both directions, which new rules forbid without the agent noticing.
fn changed(
    linux: &Linux,
    name: &str,
    (asked, answered): (Upper, Upper),
    rule: &str,
    line: &str,
) -> Result<()> {
    let mut ours = accept_all(linux, Family::V4)?;
    let out = to(Family::V4, asked);
    let own: IpAddr = plan(Family::V4).own;
    let back = Packet {
        side: Side::Uplink,
        source: out.destination,
        destination: own,
        ttl: 60,
        upper: answered,
        padding: 0,
    };
    for packet in [&out, &back] {
        let theirs = linux.end(std::slice::from_ref(packet))?;
        let found = (theirs, End::of(ours.verdict(packet)?));
        expect(name, found, (End::Accept, End::Accept))?;
    }
    linux.reload(nft::replace_by(Family::V4, &[rule.to_owned(), REJECT.to_owned()]))?;
    ours.edit(&entries(&[("0000", line)]))?;
    let theirs = linux.end(std::slice::from_ref(&out))?;
    expect(name, (theirs, End::of(ours.verdict(&out)?)), (End::Accept, End::Reject))
}
