//! What the clients do, and what their tools print of it.

use crate::scenarios::steps;

/// What is measured.
pub(super) struct Workload {
    /// In the figures' names.
    pub(super) key: &'static str,
    /// The client's command; SERVER and SERVER6 stand for the server's addresses, OTHER for that of the other client. Port 5202
    /// is for what goes on beside.
    pub(super) line: &'static str,
    /// What goes on meanwhile, if anything.
    pub(super) beside: Option<Beside>,
    /// Whether a bound is set for it: it gets more turns.
    pub(super) is_judged: bool,
    /// Rate, and the amount that was transferred, from what the command printed.
    pub(super) read: fn(&str) -> Option<(f64, f64)>,
    /// Of the amount, what processor time is given for, and its name.
    pub(super) per: (f64, &'static str),
    /// Of the rate.
    pub(super) unit: (f64, &'static str),
}

/// A command of iperf3 that begins before the client's own and outlasts it.
#[derive(Clone, Copy)]
pub(super) struct Beside {
    /// Whether the other client runs it.
    pub(super) is_others: bool,
    pub(super) line: &'static str,
}

/// All, in running order.
pub(super) const WORKLOADS: &[Workload] = &[
    tcp("tcp4_up", "iperf3 -f k -n 96M -c SERVER"),
    tcp("tcp4_down", "iperf3 -f k -n 96M -R -c SERVER"),
    tcp("tcp6_up", "iperf3 -f k -n 96M -c SERVER6"),
    tcp("tcp6_down", "iperf3 -f k -n 96M -R -c SERVER6"),
    udp("udp64", "iperf3 -f k -u -l 64 -b 0 -t 5 -c SERVER"),
    Workload { is_judged: true, ..ping("rtt_idle", "ping -c 50 -i 0.2 SERVER", round_trip) },
    Workload { is_judged: false, ..tcp("tcp4_up_8", "iperf3 -f k -P 8 -n 48M -c SERVER") },
    Workload { is_judged: false, ..tcp("tcp4_down_8", "iperf3 -f k -P 8 -n 48M -R -c SERVER") },
    Workload { is_judged: false, ..udp("udp1400", "iperf3 -f k -u -l 1400 -b 0 -t 5 -c SERVER") },
    Workload { is_judged: false, ..tcp("between_clients", "iperf3 -f k -n 24M -c OTHER") },
    Workload {
        beside: Some(Beside { is_others: false, line: "iperf3 -R -t 20 -p 5202 -c SERVER" }),
        ..ping("rtt_load", "sleep 1; ping -c 100 -i 0.1 SERVER", worst)
    },
    Workload {
        beside: Some(Beside {
            is_others: true,
            line: "iperf3 -u -l 64 -b 0 -t 20 -p 5202 -c SERVER",
        }),
        is_judged: true,
        ..ping("flooded_p99", "sleep 1; ping -c 200 -i 0.05 SERVER", worst)
    },
];

const fn tcp(key: &'static str, line: &'static str) -> Workload {
    let (per, unit) = ((1e9, "GB"), (1e6, "MB/s"));
    Workload { key, line, beside: None, is_judged: true, read: bytes, per, unit }
}

const fn udp(key: &'static str, line: &'static str) -> Workload {
    let (per, unit) = ((1e6, "million packets"), (1.0, "packets/s"));
    Workload { key, line, beside: None, is_judged: true, read: datagrams, per, unit }
}

const fn ping(
    key: &'static str,
    line: &'static str,
    read: fn(&str) -> Option<(f64, f64)>,
) -> Workload {
    let (per, unit) = ((1.0, "ping"), (1.0, "ms"));
    Workload { key, line, beside: None, is_judged: false, read, per, unit }
}

impl Workload {
    /// Whether processor time is given for packets: those that the firewall handed to the NetVM, whose server may not keep up.
    pub(super) fn counts_packets(&self) -> bool {
        self.per.1 == "million packets"
    }

    /// Whether its rate is a time: less is better.
    pub(super) fn is_ping(&self) -> bool {
        self.per.1 == "ping"
    }
}

/// The receiver's line of iperf3: bytes per second, and bytes.
fn bytes(text: &str) -> Option<(f64, f64)> {
    let (rate, seconds) = receiver(text)?;
    Some((rate, rate * seconds))
}

/// The same for datagrams: how many arrived each second, and in all.
fn datagrams(text: &str) -> Option<(f64, f64)> {
    let (_, seconds) = receiver(text)?;
    let line = text.lines().rev().find(|line| line.contains("receiver"))?;
    let counts = |word: &str| -> Option<(f64, f64)> {
        let (lost, total) = word.split_once('/')?;
        Some((lost.parse().ok()?, total.parse().ok()?))
    };
    let (lost, total) = line.split_whitespace().find_map(counts)?;
    let arrived = total - lost;
    (arrived > 0.0 && seconds > 0.0).then_some((arrived / seconds, arrived))
}

/// Bytes per second and seconds.
fn receiver(text: &str) -> Option<(f64, f64)> {
    let line = text.lines().rev().find(|line| line.contains("receiver"))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let before = |unit: &str| {
        let at = words.iter().position(|word| *word == unit)?;
        words.get(at.checked_sub(1)?).copied()
    };
    let kilobits: f64 = before("Kbits/sec")?.parse().ok()?;
    let seconds: f64 = before("sec")?.split_once('-')?.1.parse().ok()?;
    (kilobits > 0.0 && seconds > 0.0).then_some((kilobits * 1000.0 / 8.0, seconds))
}

/// The average of ping, in milliseconds, and how many were answered.
fn round_trip(text: &str) -> Option<(f64, f64)> {
    let (_, numbers) = text.rsplit_once(" = ")?;
    let average = numbers.split('/').nth(1)?.parse().ok()?;
    Some((average, f64::from(steps::replies(text)?)))
}

/// The 99th percentile of the times, in milliseconds, and how many were answered. One that was not counts as a second.
fn worst(text: &str) -> Option<(f64, f64)> {
    let sent: usize = text.lines().find_map(|line| {
        line.split_once(" packets transmitted")?.0.split_whitespace().next_back()?.parse().ok()
    })?;
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once(" time=")?.1.split_whitespace().next()?.parse().ok())
        .collect();
    let answered = times.len();
    times.resize(sent.max(answered), 1000.0);
    times.sort_by(f64::total_cmp);
    let at = times.len().saturating_mul(99).div_ceil(100).saturating_sub(1);
    Some((*times.get(at)?, answered as f64))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TCP: &str = "[ ID] Interval           Transfer     Bitrate         Retr
[  5]   0.00-8.01   sec  20.0 MBytes  20933 Kbits/sec    0             sender
[  5]   0.00-8.00   sec  19.5 MBytes  20000 Kbits/sec                  receiver
";
    const UDP: &str =
        "[ ID] Interval           Transfer     Bitrate         Jitter    Lost/Total Datagrams
[  5]   0.00-5.00   sec  1.22 MBytes  2048 Kbits/sec  0.000 ms  0/20000 (0%)  sender
[  5]   0.00-5.00   sec  1.10 MBytes  1843 Kbits/sec  0.114 ms  2000/20000 (10%)  receiver
";
    const PING: &str = "30 packets transmitted, 30 received, 0% packet loss, time 5900ms
rtt min/avg/max/mdev = 0.500/1.250/3.000/0.100 ms";

    #[test]
    fn what_the_tools_print_is_read() {
        assert_eq!(bytes(TCP), Some((2_500_000.0, 20_000_000.0)));
        assert_eq!(datagrams(UDP), Some((3600.0, 18_000.0)));
        assert_eq!(round_trip(PING), Some((1.25, 30.0)));
        let times = "64 bytes from 192.0.2.1: icmp_seq=1 ttl=62 time=4.5 ms
64 bytes from 192.0.2.1: icmp_seq=2 ttl=62 time=1.5 ms

2 packets transmitted, 2 received, 0% packet loss, time 100ms";
        assert_eq!(worst(times), Some((4.5, 2.0)));
        let lost = times.replace("2 packets transmitted", "3 packets transmitted");
        assert_eq!(worst(&lost), Some((1000.0, 2.0)));
        for read in [bytes, datagrams, round_trip, worst] {
            assert_eq!(read("iperf3: error - unable to connect to server"), None);
            assert_eq!(read(""), None);
        }
    }
}
