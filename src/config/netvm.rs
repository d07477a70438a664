//! A NetVM that is a client of ours: an operating system without netback, a BSD for example, has no other way to
//! provide the network. The words are those of qubes-mirage-firewall, on the kernel command line only, because without
//! `netvm` dom0 writes no uplink addresses.

use core::net::Ipv4Addr;

use rules::Excerpt;

use super::features::{Origin, Word, WordProblem, WordReason, Words};

/// Our own address towards the NetVM.
pub(super) const ADDRESS: &str = "--ipv4";
/// The NetVM's address: the `ip` of its vif.
pub(super) const GATEWAY: &str = "--ipv4-gw";
/// The resolvers.
pub(super) const DNS: &str = "--ipv4-dns";
pub(super) const DNS2: &str = "--ipv4-dns2";
/// Where the words of the resolvers are missing: the addresses that every Qubes NetVM answers to.
const QUBES_DNS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 139, 1, 1), Ipv4Addr::new(10, 139, 1, 2)];

/// A NetVM behind a client vif. IPv4 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientSideNetvm {
    /// Our own address towards it.
    pub address: Ipv4Addr,
    /// Its address.
    pub gateway: Ipv4Addr,
    /// Our resolvers, the first first.
    pub dns: [Ipv4Addr; 2],
}

/// Both addresses are needed, and none of the words may be one that is not understood.
pub(super) fn client_side(words: &Words) -> Result<Option<ClientSideNetvm>, WordProblem> {
    let [dns, dns2] = &words.ipv4_dns;
    if [&words.ipv4, &words.ipv4_gateway, dns, dns2].contains(&&Word::Bad) {
        return Ok(None);
    }
    let value = |word: &Word<_>| word.value().flatten();
    let (address, gateway) = match (value(&words.ipv4), value(&words.ipv4_gateway)) {
        (Some(address), Some(gateway)) => (address, gateway),
        (Some(_), None) => return Err(problem(ADDRESS, WordReason::Without(GATEWAY))),
        (None, Some(_)) => return Err(problem(GATEWAY, WordReason::Without(ADDRESS))),
        (None, None) => return Ok(None),
    };
    if address == gateway {
        let part = Excerpt::new(alloc::format!("{gateway}").as_bytes());
        let wanted = "another address than that of --ipv4";
        return Err(problem(GATEWAY, WordReason::Bad { part, wanted }));
    }
    let [first, second] = QUBES_DNS;
    let dns = [value(dns).unwrap_or(first), value(dns2).unwrap_or(second)];
    Ok(Some(ClientSideNetvm { address, gateway, dns }))
}

fn problem(word: &str, reason: WordReason) -> WordProblem {
    WordProblem { origin: Origin::CommandLine, word: Excerpt::new(word.as_bytes()), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> (Option<ClientSideNetvm>, Vec<String>) {
        let mut reports = Vec::new();
        let words = Words::of_command_line(line, &mut |problem| reports.push(problem.to_string()));
        (words.client_side_netvm(), reports)
    }

    const NETVM: ClientSideNetvm = ClientSideNetvm {
        address: Ipv4Addr::new(10, 137, 0, 20),
        gateway: Ipv4Addr::new(10, 137, 0, 21),
        dns: QUBES_DNS,
    };

    #[test]
    fn words_of_mirage_describe_a_client_side_netvm() {
        let line = "quiet --ipv4=10.137.0.20 --ipv4-gw=10.137.0.21";
        assert_eq!(read(line), (Some(NETVM), vec![]));
        let (netvm, reports) = read(&format!("{line} --ipv4-dns=9.9.9.9 --ipv4-dns2=1.1.1.1"));
        assert_eq!((netvm.unwrap().dns, reports), ([[9; 4].into(), [1; 4].into()], vec![]));
        let (netvm, _) = read(&format!("{line} --ipv4-dns2=1.1.1.1"));
        assert_eq!(netvm.unwrap().dns, [QUBES_DNS[0], [1; 4].into()]);
        assert_eq!(read("--ipv5=1 --ipv4-mask=2 --dns=3 -l"), (None, vec![]));
    }

    #[test]
    fn half_or_damaged_words_describe_none() {
        for (line, report) in [
            ("--ipv4=10.137.0.20", "'--ipv4': without --ipv4-gw, feature stays off"),
            ("--ipv4-gw=10.137.0.20", "'--ipv4-gw': without --ipv4, feature stays off"),
            (
                "--ipv4=10.137.0.20 --ipv4-gw=10.137.0.20",
                "'--ipv4-gw': '10.137.0.20' is not another address than that of --ipv4, feature \
                 stays off",
            ),
            (
                "--ipv4=10.137.0.20 --ipv4-gw=10.137.0.21 --ipv4-dns=dns",
                "'--ipv4-dns=dns': 'dns' is not an IPv4 host address, feature stays off",
            ),
            (
                "--ipv4=10.137.0.20 --ipv4-gw=fd09::1",
                "'--ipv4-gw=fd09::1': 'fd09::1' is not an IPv4 host address, feature stays off",
            ),
            (
                "--ipv4=10.0.0.1 --ipv4-gw=10.0.0.2 --ipv4=10.0.0.1",
                "'--ipv4=10.0.0.1': word appears twice, feature stays off",
            ),
        ] {
            assert_eq!(read(line), (None, vec![format!("command line {report}")]), "{line}");
        }
    }
}
