//! `/mapped-ip/<ip>/visible-ip` and `visible-gateway`: clients that are told other addresses than their real ones.
//!
//! As in Linux, a client is mapped if both keys are there, not empty, and the visible address is not the real one.
//! dom0 writes them one by one, and before the vif is there; a client whose mapping is not complete yet uses an address
//! that its vif does not accept. What cannot be understood shuts the client's vif.

use alloc::vec::Vec;
use core::net::Ipv4Addr;

use qubesdb::Store;
use rules::Excerpt;

use super::error::{ConfigError, Problem};
use super::{HOST4, Report, text};
use crate::visible::{MappedIp, Visible};

/// Keys of all mappings begin with this.
pub(crate) const PREFIX: &str = "/mapped-ip/";

/// Reads all mappings, ascending by real address.
pub fn mapped_ips(store: &Store, report: &mut Report<'_>) -> Vec<MappedIp> {
    let mut mapped = Vec::new();
    for (key, value) in store.iter_prefix(PREFIX) {
        let Some(name) = key.strip_prefix(PREFIX).and_then(|rest| rest.strip_suffix(ADDRESS))
        else {
            continue;
        };
        let Some(real) = text::host4(name.as_bytes()) else {
            report(problem(name, name.as_bytes()));
            continue;
        };
        let gateway_key = alloc::format!("{PREFIX}{name}{GATEWAY}");
        let gateway = store.get(&gateway_key).unwrap_or_default();
        let visible = match visible(real, value, gateway) {
            Ok(Some(visible)) => visible,
            Ok(None) => continue,
            Err(part) => {
                report(problem(name, part));
                Visible::Unknown
            }
        };
        mapped.push(MappedIp { real, visible });
    }
    mapped.sort_unstable_by_key(|one| one.real);
    mapped
}

const ADDRESS: &str = "/visible-ip";
const GATEWAY: &str = "/visible-gateway";

/// Nothing if the client is not mapped; an error is the part that cannot be understood.
fn visible<'a>(
    real: Ipv4Addr,
    address: &'a [u8],
    gateway: &'a [u8],
) -> Result<Option<Visible>, &'a [u8]> {
    if address.is_empty() || gateway.is_empty() {
        return Ok(None);
    }
    let address = text::host4(address).ok_or(address)?;
    if address == real {
        return Ok(None);
    }
    let host = text::host4(gateway).filter(|host| *host != address).ok_or(gateway)?;
    Ok(Some(Visible::As { address, gateway: host }))
}

fn problem(name: &str, value: &[u8]) -> ConfigError {
    let (client, value) = (Excerpt::new(name.as_bytes()), Excerpt::new(value));
    ConfigError { key: "/mapped-ip", problem: Problem::BadMapping { client, value, wanted: HOST4 } }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::testdb::TestDb;

    fn read(entries: &[(&str, &str)]) -> (Vec<MappedIp>, Vec<String>) {
        let db = TestDb::with(entries);
        let mut reports = Vec::new();
        let mapped = mapped_ips(db.client.store(), &mut |error| reports.push(error.to_string()));
        (mapped, reports)
    }

    fn of_nine(address: &str, gateway: &str) -> (Vec<MappedIp>, Vec<String>) {
        let keys = ["/mapped-ip/10.137.0.9/visible-ip", "/mapped-ip/10.137.0.9/visible-gateway"];
        read(&[(keys[0], address), (keys[1], gateway)])
    }

    const NINE: Ipv4Addr = Ipv4Addr::new(10, 137, 0, 9);

    #[test]
    fn both_keys_make_a_mapping() {
        let address = Ipv4Addr::new(192, 168, 1, 128);
        let visible = Visible::As { address, gateway: Ipv4Addr::new(192, 168, 1, 1) };
        let mapped = vec![MappedIp { real: NINE, visible }];
        assert_eq!(of_nine("192.168.1.128", "192.168.1.1"), (mapped, vec![]));
    }

    #[test]
    fn incomplete_or_equal_is_no_mapping() {
        for (address, gateway) in
            [("", ""), ("192.168.1.128", ""), ("", "192.168.1.1"), ("10.137.0.9", "10.137.0.6")]
        {
            assert_eq!(of_nine(address, gateway), (vec![], vec![]), "{address} {gateway}");
        }
        assert_eq!(read(&[("/mapped-ip/10.137.0.9/visible-ip", "1.2.3.4")]), (vec![], vec![]));
        assert_eq!(read(&[("/mapped-ip/10.137.0.9/visible-gateway", "x")]), (vec![], vec![]));
    }

    #[test]
    fn what_is_not_understood_shuts_the_client() {
        for (address, gateway, part) in [
            ("192.168.1", "192.168.1.1", "192.168.1"),
            ("fd09::9", "192.168.1.1", "fd09::9"),
            ("192.168.1.128", "none", "none"),
            ("192.168.1.128", "224.0.0.1", "224.0.0.1"),
            ("192.168.1.128", "192.168.1.128", "192.168.1.128"),
        ] {
            let report = format!(
                "/mapped-ip: '{part}' of client '10.137.0.9' is not an IPv4 host address of its \
                 own; the client is shut out"
            );
            let mapped = vec![MappedIp { real: NINE, visible: Visible::Unknown }];
            assert_eq!(of_nine(address, gateway), (mapped, vec![report]), "{address} {gateway}");
        }
    }

    #[test]
    fn keys_that_are_no_client_are_named() {
        let entries = [
            ("/mapped-ip/fd09::9/visible-ip", "fd09::a"),
            ("/mapped-ip/x", "y"),
            ("/mapped-ip/10.137.0.9/other", "z"),
        ];
        let (mapped, reports) = read(&entries);
        assert_eq!((mapped, reports.len()), (vec![], 1));
        assert!(reports[0].starts_with("/mapped-ip: 'fd09::9' of client 'fd09::9' is not"));
    }
}
