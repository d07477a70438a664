//! `firewall.Stats+openmetrics`: the counters of `firewall.Stats` as OpenMetrics text (OpenMetrics 1.0, section 3). All
//! samples of a family come together: for each family its head, and then a line for each port.

use core::fmt::{self, Write};

use super::FirewallServices;
use super::json::TooLong;
use super::lines::FIXED_PORTS;
use crate::event_loop::machine::Effort;
use crate::port::ClientId;
use crate::stats::{Counter, PortStats};
use crate::verdict::DropReason;

/// Families that are told in one piece: the firewall and the machine.
const SINGLE: usize = 19;
/// Families with a sample for each port.
const FAMILIES: usize = Counter::ALL.len();

/// Lines that there are at most with so many ports.
pub(super) const fn lines(ports: usize) -> usize {
    let of_families = FAMILIES.saturating_mul(ports.saturating_add(1));
    // Drops: the head, and a piece for each port and reason.
    let of_drops = ports.saturating_mul(DropReason::COUNT).saturating_add(1);
    SINGLE.saturating_add(of_families).saturating_add(of_drops).saturating_add(1)
}

/// Text into a buffer.
struct Out<'b> {
    buffer: &'b mut [u8],
    len: usize,
}

impl Write for Out<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let end = self.len.saturating_add(text.len());
        self.buffer.get_mut(self.len..end).ok_or(fmt::Error)?.copy_from_slice(text.as_bytes());
        self.len = end;
        Ok(())
    }
}

/// A name with the characters that OpenMetrics allows.
struct Name(&'static str);

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| f.write_char(if c == '-' { '_' } else { c }))
    }
}

/// The labels of a port.
struct Port {
    kind: &'static str,
    client: Option<(u16, Option<core::net::IpAddr>)>,
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port=\"{}\"", self.kind)?;
        if let Some((slot, client)) = self.client {
            write!(f, ",slot=\"{slot}\"")?;
            if let Some(client) = client {
                write!(f, ",client=\"{client}\"")?;
            }
        }
        Ok(())
    }
}

impl FirewallServices<'_> {
    /// Writes line `number`; `None` if there is nothing to say.
    pub(super) fn metric(
        &self,
        number: usize,
        buffer: &mut [u8],
    ) -> Option<Result<usize, TooLong>> {
        let mut out = Out { buffer, len: 0 };
        let written = self.write_metric(number, &mut out);
        match written {
            Ok(()) if out.len == 0 => None,
            Ok(()) => Some(Ok(out.len)),
            Err(fmt::Error) => Some(Err(TooLong)),
        }
    }

    fn write_metric(&self, number: usize, out: &mut Out<'_>) -> fmt::Result {
        let ports = usize::from(self.firewall.limits().clients).saturating_add(FIXED_PORTS);
        let Some(number) = number.checked_sub(SINGLE) else { return self.single(number, out) };
        let of_families = FAMILIES.saturating_mul(ports.saturating_add(1));
        let Some(number) = number.checked_sub(of_families) else {
            let (family, line) = (number / (ports + 1), number % (ports + 1));
            return self.of_port(family, line, out);
        };
        let of_drops = ports.saturating_mul(DropReason::COUNT).saturating_add(1);
        if number < of_drops {
            return self.drops_of_port(number, out);
        }
        out.write_str("# EOF\n")
    }

    /// A family with one sample, or with those of all reasons for which frames were not sent.
    fn single(&self, number: usize, out: &mut Out<'_>) -> fmt::Result {
        let (firewall, facts) = (self.firewall, self.facts);
        let effort = &facts.effort;
        let gauge = |out: &mut Out<'_>, name, help, value: u64| {
            writeln!(
                out,
                "# TYPE rust_firewall_{name} gauge\n# HELP rust_firewall_{name} {help}\nrust_firewall_{name} {value}"
            )
        };
        match number {
            0 => {
                let version = env!("CARGO_PKG_VERSION");
                writeln!(
                    out,
                    "# TYPE rust_firewall info\n# HELP rust_firewall The program.\nrust_firewall_info{{version=\"{version}\"}} 1"
                )
            }
            1 => {
                let (seconds, ms) = (facts.uptime_ms / 1000, facts.uptime_ms % 1000);
                writeln!(
                    out,
                    "# TYPE rust_firewall_uptime_seconds gauge\n# UNIT rust_firewall_uptime_seconds seconds\n# HELP rust_firewall_uptime_seconds Time since the start.\nrust_firewall_uptime_seconds {seconds}.{ms:03}"
                )
            }
            2 => gauge(out, "flows", "Flows in the table.", firewall.flow_count() as u64),
            3 => gauge(
                out,
                "has_uplink",
                "1 while a NetVM is connected.",
                firewall.has_uplink().into(),
            ),
            4 => counter(
                out,
                "without_accept",
                "Frames that were about to leave without an accept; must stay 0.",
                firewall.stats().without_accept(),
            ),
            5 => {
                head(out, "unsent_frames", "Frames that a port did not take, by reason.")?;
                facts.unsent().try_for_each(|(reason, count)| {
                    writeln!(
                        out,
                        "rust_firewall_unsent_frames_total{{reason=\"{reason}\"}} {count}"
                    )
                })
            }
            _ => match effort_of(effort).get(number.saturating_sub(6)) {
                Some((name, help, value)) => counter(out, name, help, *value),
                None => Ok(()),
            },
        }
    }

    /// The head of a family, or its sample of a port.
    fn of_port(&self, family: usize, line: usize, out: &mut Out<'_>) -> fmt::Result {
        let Some(counter) = Counter::ALL.get(family).copied() else { return Ok(()) };
        let name = Name(counter.name());
        let Some(port) = line.checked_sub(1) else {
            return head(out, name, counter.explanation());
        };
        let Some((labels, stats)) = self.port_stats(port) else { return Ok(()) };
        writeln!(out, "rust_firewall_{name}_total{{{labels}}} {}", stats.get(counter))
    }

    /// The head of the drops, or one reason of a port; those that nothing ended with are left out.
    fn drops_of_port(&self, line: usize, out: &mut Out<'_>) -> fmt::Result {
        let Some(line) = line.checked_sub(1) else {
            return head(
                out,
                "dropped_packets",
                "Packets from this port that ended here, by reason.",
            );
        };
        let reason = DropReason::ALL.get(line % DropReason::COUNT).copied();
        let Some(((labels, stats), reason)) = self.port_stats(line / DropReason::COUNT).zip(reason)
        else {
            return Ok(());
        };
        match stats.dropped(reason) {
            0 => Ok(()),
            count => writeln!(
                out,
                "rust_firewall_dropped_packets_total{{{labels},reason=\"{}\"}} {count}",
                reason.name()
            ),
        }
    }

    /// Port number `index`, as in `firewall.Stats`.
    fn port_stats(&self, index: usize) -> Option<(Port, &PortStats)> {
        let stats = self.firewall.stats();
        match index {
            0 => Some((Port { kind: "uplink", client: None }, stats.uplink())),
            1 => Some((Port { kind: "departed", client: None }, stats.departed())),
            _ => {
                let slot = u16::try_from(index.saturating_sub(FIXED_PORTS)).ok()?;
                let vif = self.vif(slot)?;
                let address = vif.ip4.map(Into::into).or(vif.ip6.map(Into::into));
                let client = Some((slot, address));
                Some((Port { kind: "client", client }, stats.client(ClientId(slot))?))
            }
        }
    }
}

fn head(out: &mut Out<'_>, name: impl fmt::Display, help: &str) -> fmt::Result {
    writeln!(out, "# TYPE rust_firewall_{name} counter\n# HELP rust_firewall_{name} {help}")
}

fn counter(out: &mut Out<'_>, name: &str, help: &str, value: u64) -> fmt::Result {
    head(out, name, help)?;
    writeln!(out, "rust_firewall_{name}_total {value}")
}

/// What the hypervisor was asked for.
fn effort_of(effort: &Effort) -> [(&'static str, &'static str, u64); SINGLE - 6] {
    let [from_clients, from_uplink, to_clients, to_uplink] = effort.batches;
    [
        ("hypercalls", "Hypercalls of all kinds.", effort.hypercalls),
        ("copies", "Batches of copies to and from clients' pages.", effort.copies),
        ("copy_operations", "Copies in them.", effort.copy_operations),
        ("copied_bytes", "Bytes that they copied.", effort.copied_bytes),
        ("notifications", "Events sent to peers.", effort.notifications),
        ("sleeps", "Times that the firewall went to sleep.", effort.sleeps),
        ("timers", "Times that the timer was set.", effort.timers),
        ("batches_from_clients", "Turns in which frames came from clients.", from_clients),
        ("batches_from_uplink", "Turns in which frames came from the uplink.", from_uplink),
        ("batches_to_clients", "Turns in which frames went to clients.", to_clients),
        ("batches_to_uplink", "Turns in which frames went to the uplink.", to_uplink),
        (
            "allocations",
            "Blocks of the heap that frames on their way were given; must stay 0.",
            effort.allocations,
        ),
        (
            "limited_vifs",
            "Clients' devices that were offered fewer features, for want of xenstore nodes.",
            effort.limited_vifs,
        ),
    ]
}
