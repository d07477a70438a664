//! Values of the `fw-...` words: lists of entries, addresses, numbers. All are strict, and one bad entry makes the
//! whole value unusable: half a list may be more dangerous than none.

use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr};
use core::num::{NonZeroU16, NonZeroU32};

use rules::Excerpt;

use super::features::{LogLevel, WordReason};
use super::text;
use crate::exposure::{Allow, Forward, Scope, Transport};
use crate::mss::MssClamp;

/// Entries of one list.
const MAX_ENTRIES: usize = 64;

/// `off`, `drops` or `debug`.
pub(super) fn log_level(value: &[u8]) -> Result<LogLevel, WordReason> {
    match value {
        b"off" => Ok(LogLevel::Off),
        b"drops" => Ok(LogLevel::Drops),
        b"debug" => Ok(LogLevel::Debug),
        _ => Err(not(value, "off, drops or debug")),
    }
}

/// A number of flows.
pub(super) fn count(value: &[u8]) -> Result<Option<NonZeroU32>, WordReason> {
    match number(value) {
        Some(count) => Ok(Some(count)),
        None => Err(not(value, "a number above 0")),
    }
}

/// `mtu` or a number of bytes.
pub(super) fn mss_clamp(value: &[u8]) -> Result<Option<MssClamp>, WordReason> {
    if value == b"mtu" {
        return Ok(Some(MssClamp::Mtu));
    }
    let bytes = number(value).and_then(|number| NonZeroU16::try_from(number).ok());
    match bytes.filter(|bytes| bytes.get() >= MssClamp::MIN_BYTES) {
        Some(bytes) => Ok(Some(MssClamp::Bytes(bytes))),
        None => Err(not(value, "mtu or a number of bytes from 28 to 65535")),
    }
}

/// The address of one host.
pub(super) fn ipv4(value: &[u8]) -> Result<Option<Ipv4Addr>, WordReason> {
    match text::host4(value) {
        Some(address) => Ok(Some(address)),
        None => Err(not(value, "an IPv4 host address")),
    }
}

/// Addresses of clients.
pub(super) fn addresses(value: &[u8]) -> Result<Vec<IpAddr>, WordReason> {
    list(value, "a host address", text::host)
}

/// `SRC>DST[/proto[/port]]`, comma separated. A slash is part of no address, so that a port can follow an IPv6 one.
pub(super) fn allow(value: &[u8]) -> Result<Vec<Allow>, WordReason> {
    list(value, "SRC>DST[/proto[/port]] with two clients of one family", |entry| {
        let (from, rest) = split_once(entry, b'>')?;
        let mut parts = rest.split(|byte| *byte == b'/');
        let (from, to) = (text::host(from)?, text::host(parts.next()?)?);
        let scope = match (parts.next(), parts.next(), parts.next()) {
            (None, ..) => Scope::All,
            (Some(b"icmp"), None, _) => Scope::Icmp,
            (Some(name), None, _) => Scope::Ports(transport(name)?, None),
            (Some(name), Some(port), None) => {
                Scope::Ports(transport(name)?, Some(self::port(port)?))
            }
            (Some(_), Some(_), Some(_)) => return None,
        };
        let is_pair = from != to && from.is_ipv4() == to.is_ipv4();
        is_pair.then_some(Allow { from, to, scope })
    })
}

/// `proto/port>CLIENT[/port]`, comma separated. Two entries for one port of our address contradict each other.
pub(super) fn forward(value: &[u8]) -> Result<Vec<Forward>, WordReason> {
    let entries = list(value, "proto/port>CLIENT[/port]", |entry| {
        let (outside, inside) = split_once(entry, b'>')?;
        let (name, outside_port) = split_once(outside, b'/')?;
        let (transport, port) = (transport(name)?, port(outside_port)?);
        let (client, client_port) = match split_once(inside, b'/') {
            Some((client, inside_port)) => (client, self::port(inside_port)?),
            None => (inside, port),
        };
        Some(Forward { transport, port, client: text::host(client)?, client_port })
    })?;
    let place = |one: &Forward| (one.transport, one.port, one.client.is_ipv4());
    let is_repeated = |(at, one): (usize, &Forward)| {
        entries.iter().take(at).any(|other| place(other) == place(one))
    };
    if entries.iter().enumerate().any(is_repeated) {
        return Err(not(value, "one entry per protocol and port"));
    }
    Ok(entries)
}

fn list<T>(
    value: &[u8],
    wanted: &'static str,
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Vec<T>, WordReason> {
    let parts = || value.split(|byte| *byte == b',');
    if parts().nth(MAX_ENTRIES).is_some() {
        return Err(WordReason::TooMany(MAX_ENTRIES));
    }
    parts().map(|part| parse(part).ok_or_else(|| not(part, wanted))).collect()
}

fn transport(name: &[u8]) -> Option<Transport> {
    match name {
        b"tcp" => Some(Transport::Tcp),
        b"udp" => Some(Transport::Udp),
        _ => None,
    }
}

fn port(text: &[u8]) -> Option<NonZeroU16> {
    number(text).and_then(|number| NonZeroU16::try_from(number).ok())
}

/// Decimal digits without sign or leading zero.
fn number(text: &[u8]) -> Option<NonZeroU32> {
    let is_plain = text.iter().all(u8::is_ascii_digit) && text.first() != Some(&b'0');
    core::str::from_utf8(text).ok()?.parse().ok().filter(|_| is_plain)
}

fn split_once(text: &[u8], separator: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|byte| *byte == separator)?;
    Some((text.get(..at)?, text.get(at.checked_add(1)?..)?))
}

fn not(part: &[u8], wanted: &'static str) -> WordReason {
    WordReason::Bad { part: Excerpt::new(part), wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn pair(from: &str, to: &str, scope: Scope) -> Allow {
        Allow { from: ip(from), to: ip(to), scope }
    }

    fn to_client(transport: Transport, port: u16, client: &str, client_port: u16) -> Forward {
        let [port, client_port] = [port, client_port].map(|port| NonZeroU16::new(port).unwrap());
        Forward { transport, port, client: ip(client), client_port }
    }

    #[test]
    fn pairs_of_clients() {
        let ssh = NonZeroU16::new(22);
        let text = "10.137.0.10>10.137.0.11,192.0.2.1>8.8.8.8/icmp,10.0.0.1>10.0.0.2/udp,\
                    fd09::a>fd09::b/tcp/22,fd09::a>fd09::b";
        assert_eq!(
            allow(text.as_bytes()).unwrap(),
            [
                pair("10.137.0.10", "10.137.0.11", Scope::All),
                pair("192.0.2.1", "8.8.8.8", Scope::Icmp),
                pair("10.0.0.1", "10.0.0.2", Scope::Ports(Transport::Udp, None)),
                pair("fd09::a", "fd09::b", Scope::Ports(Transport::Tcp, ssh)),
                pair("fd09::a", "fd09::b", Scope::All),
            ]
        );
    }

    #[test]
    fn pairs_that_are_none() {
        for entry in [
            "10.0.0.1",
            "10.0.0.1>",
            ">10.0.0.1",
            "10.0.0.1>10.0.0.1",
            "10.0.0.1>fd09::1",
            "10.0.0.1>10.0.0.2/",
            "10.0.0.1>10.0.0.2/TCP",
            "10.0.0.1>10.0.0.2/sctp",
            "10.0.0.1>10.0.0.2/tcp/",
            "10.0.0.1>10.0.0.2/tcp/0",
            "10.0.0.1>10.0.0.2/tcp/022",
            "10.0.0.1>10.0.0.2/tcp/+22",
            "10.0.0.1>10.0.0.2/tcp/65536",
            "10.0.0.1>10.0.0.2/tcp/1-2",
            "10.0.0.1>10.0.0.2/tcp/22/22",
            "10.0.0.1>10.0.0.2/icmp/8",
            "10.0.0.1>10.0.0.2/24",
            "10.0.0.1>10.0.0.2>10.0.0.3",
            "10.0.0.1> 10.0.0.2",
            "127.0.0.1>10.0.0.2",
            "10.0.0.1>224.0.0.1",
            "work>vault",
            "",
            "\u{fc}",
        ] {
            let wanted = "SRC>DST[/proto[/port]] with two clients of one family";
            let text = format!("10.0.0.8>10.0.0.9,{entry}");
            assert_eq!(allow(text.as_bytes()), Err(not(entry.as_bytes(), wanted)), "{entry}");
        }
    }

    #[test]
    fn forwarded_ports() {
        use Transport::{Tcp, Udp};
        let text = "tcp/80>10.137.0.10,tcp/8443>10.137.0.10/443,udp/80>203.0.113.4,\
                    tcp/80>fd09::a,udp/53>fd09::a/5353";
        assert_eq!(
            forward(text.as_bytes()).unwrap(),
            [
                to_client(Tcp, 80, "10.137.0.10", 80),
                to_client(Tcp, 8443, "10.137.0.10", 443),
                to_client(Udp, 80, "203.0.113.4", 80),
                to_client(Tcp, 80, "fd09::a", 80),
                to_client(Udp, 53, "fd09::a", 5353),
            ]
        );
    }

    #[test]
    fn forwarded_ports_that_are_none() {
        for entry in [
            "80>10.0.0.1",
            "tcp>10.0.0.1",
            "tcp/>10.0.0.1",
            "tcp/0>10.0.0.1",
            "tcp/70000>10.0.0.1",
            "icmp/8>10.0.0.1",
            "tcp/80>",
            "tcp/80>10.0.0.1/",
            "tcp/80>10.0.0.1/0",
            "tcp/80>10.0.0.1/80/80",
            "tcp/80>10.0.0.1:80",
            "tcp/80>0.0.0.0",
            "tcp/80>::",
            "tcp/80/80>10.0.0.1",
            "tcp/80-81>10.0.0.1",
            "10.0.0.1",
        ] {
            let expected = Err(not(entry.as_bytes(), "proto/port>CLIENT[/port]"));
            assert_eq!(forward(entry.as_bytes()), expected, "{entry}");
        }
    }

    #[test]
    fn a_port_is_forwarded_once_per_family() {
        let twice = b"tcp/80>10.0.0.1,udp/80>10.0.0.1,tcp/80>10.0.0.2/81";
        assert_eq!(forward(twice), Err(not(twice, "one entry per protocol and port")));
        assert!(forward(b"tcp/80>10.0.0.1,tcp/80>fd09::1").is_ok());
    }

    #[test]
    fn lists_are_bounded() {
        let entries = vec!["10.0.0.1"; MAX_ENTRIES];
        assert_eq!(addresses(entries.join(",").as_bytes()).unwrap().len(), MAX_ENTRIES);
        let more = entries.join(",") + ",10.0.0.1";
        assert_eq!(addresses(more.as_bytes()), Err(WordReason::TooMany(MAX_ENTRIES)));
        assert_eq!(addresses(b"10.0.0.1,"), Err(not(b"", "a host address")));
    }

    #[test]
    fn numbers_are_plain() {
        for (text, number) in [("1", 1), ("4294967295", u32::MAX)] {
            assert_eq!(count(text.as_bytes()), Ok(NonZeroU32::new(number)));
        }
        for text in ["0", "01", "+1", "-1", "1k", " 1", "4294967296", "0x10"] {
            assert!(count(text.as_bytes()).is_err(), "{text}");
        }
    }
}
