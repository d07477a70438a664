//! What dom0 is told about the host names in rules: `/dns/<ip>/<name>`, in the form of the Linux agent
//! (Qubes core-agent-linux): the text of a Python set, `{'192.0.2.1/32', '192.0.2.7/32'}`.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::net::IpAddr;

use qubesdb::{MAX_VALUE_BYTES, Path};
use rules::HostName;

use super::{Action, Control};

impl Control {
    /// Publishes the addresses of a name of a client's rules. A name that has none, or whose key would
    /// be too long, is not published.
    pub fn publish_name(
        &mut self,
        client: IpAddr,
        name: &HostName,
        addresses: impl Iterator<Item = IpAddr>,
    ) {
        // dom0 would cut a longer key and store another one.
        let Ok(path) = Path::entry(&format!("/dns/{client}/{name}")) else { return };
        let value = text(addresses.collect());
        self.actions.push_back(match value {
            Some(value) => Action::WriteDb { path, value: value.into_bytes() },
            None => Action::RemoveDb { path },
        });
    }

    /// Removes all that was published about a client's names.
    pub fn withdraw_names(&mut self, client: IpAddr) {
        if let Ok(path) = Path::removal(&format!("/dns/{client}/")) {
            self.actions.push_back(Action::RemoveDb { path });
        }
    }
}

/// As many of the addresses as fit, ascending; nothing if there are none.
fn text(mut addresses: Vec<IpAddr>) -> Option<String> {
    addresses.sort_unstable();
    addresses.dedup();
    let mut text = String::new();
    for address in addresses {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let separator = if text.is_empty() { "{" } else { ", " };
        let item = format!("{separator}'{address}/{bits}'");
        if text.len() + item.len() >= MAX_VALUE_BYTES {
            break;
        }
        text.push_str(&item);
    }
    (!text.is_empty()).then(|| text + "}")
}

#[cfg(test)]
mod tests {
    use core::net::{Ipv4Addr, Ipv6Addr};

    use rules::{Family, RuleSet};

    use super::*;
    use crate::control::Limits;

    fn name(text: &str) -> HostName {
        let line = format!("action=accept dsthost={text}");
        let entries = [(&b"policy"[..], &b"drop"[..]), (&b"0000"[..], line.as_bytes())];
        RuleSet::parse(Family::V4, entries).unwrap().names().next().unwrap().clone()
    }

    fn published(client: IpAddr, text: &str, addresses: &[IpAddr]) -> Vec<Action> {
        let mut control = Control::new("", Limits::default());
        while control.poll_action().is_some() {}
        control.publish_name(client, &name(text), addresses.iter().copied());
        core::iter::from_fn(|| control.poll_action()).collect()
    }

    fn write(path: &str, value: &str) -> Vec<Action> {
        vec![Action::WriteDb { path: Path::entry(path).unwrap(), value: value.into() }]
    }

    #[test]
    fn addresses_are_written_as_the_linux_agent_writes_them() {
        let client = IpAddr::from([10, 137, 0, 9]);
        let addresses = [[192, 0, 2, 7], [192, 0, 2, 1], [192, 0, 2, 7]].map(IpAddr::from);
        let expected = write("/dns/10.137.0.9/a.example", "{'192.0.2.1/32', '192.0.2.7/32'}");
        assert_eq!(published(client, "a.example", &addresses), expected);
        let client = "fd09:24ef:4179::a89:9".parse().unwrap();
        let expected = write("/dns/fd09:24ef:4179::a89:9/a.example", "{'2001:db8::5/128'}");
        let address = "2001:db8::5".parse().unwrap();
        assert_eq!(published(client, "a.example", &[address]), expected);
    }

    #[test]
    fn what_cannot_be_written_is_not() {
        let client = IpAddr::from([10, 137, 0, 9]);
        let fits = "a".repeat(63 - "/dns/10.137.0.9/".len());
        let address = [IpAddr::V4(Ipv4Addr::LOCALHOST)];
        assert_eq!(published(client, &fits, &address).len(), 1);
        assert_eq!(published(client, &(fits + "a"), &address), []);
        let path = Path::entry("/dns/10.137.0.9/a").unwrap();
        assert_eq!(published(client, "a", &[]), [Action::RemoveDb { path }]);
    }

    #[test]
    fn a_value_is_never_longer_than_dom0_takes() {
        let long = |n: u128| IpAddr::V6(Ipv6Addr::from_bits(u128::MAX - n));
        for count in 1..200 {
            let text = text((0..count).map(long).collect()).unwrap();
            assert!(text.len() <= MAX_VALUE_BYTES && text.ends_with("'}"));
        }
    }
}
