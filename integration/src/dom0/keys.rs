//! What dom0 writes into a firewall VM's QubesDB, and in which order (qubes-core-admin: `create_qdb_entries`,
//! the event `domain-qdb-create`, `reload_firewall_for_vm`, `reload_connected_ips`).
#![forbid(unsafe_code)]

use serde_json::Value;

/// One operation on the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets an entry.
    Write(String, String),
    /// Removes an entry or, with a trailing slash, a tree; it may be absent.
    Remove(String),
}

/// A client of the firewall VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// Its real address.
    pub ip: String,
    /// Its IPv6 address.
    pub ip6: Option<String>,
    /// Only running clients get rules and mapped addresses when the firewall starts.
    pub is_running: bool,
    /// Value of `policy`.
    pub policy: String,
    /// Rules of the IPv4 tree by key, ascending.
    pub rules: Vec<(String, String)>,
    /// Rules of the IPv6 tree by key, ascending.
    pub rules6: Vec<(String, String)>,
    /// The address that it believes to have (`net.fake-ip`).
    pub visible_ip: Option<String>,
    /// The gateway that it believes in (`net.fake-gateway`).
    pub visible_gateway: Option<String>,
}

/// A VM that provides network, as far as its QubesDB tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vm {
    /// Entries before the network part, in order.
    general: Vec<(String, String)>,
    /// Entries of the network part, in order.
    network: Vec<(String, String)>,
    /// Entries after it, in order: time zone, devices, services, features.
    rest: Vec<(String, String)>,
    /// All configured clients.
    pub clients: Vec<Client>,
}

/// Why a description cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("VM description: {0}")]
pub struct BadDescription(String);

impl Vm {
    /// From the JSON description.
    ///
    /// # Errors
    /// When a needed member is missing or one has the wrong type.
    pub fn from_json(value: &Value) -> Result<Self, BadDescription> {
        let vm = Members(value);
        Ok(Self {
            general: general(vm)?,
            network: network(vm)?,
            rest: rest(vm)?,
            clients: clients(vm)?,
        })
    }

    /// Everything that dom0 writes before the VM runs, in order. The same again at a change of its netvm.
    pub fn start(&self) -> Vec<Op> {
        let entries = [&self.general, &self.network, &self.rest].into_iter().flatten().cloned();
        let mut ops: Vec<_> = entries.map(|(key, value)| Op::Write(key, value)).collect();
        ops.extend(self.connected_ips());
        for client in self.clients.iter().filter(|client| client.is_running) {
            ops.extend(mapped_ip(client));
            ops.extend(client_rules(client));
        }
        ops
    }

    /// What dom0 writes before the vif of a starting client exists: the lists, the mapped address, the rules.
    /// `None` when it is no client.
    pub fn client_start(&self, ip: &str) -> Option<Vec<Op>> {
        let client = self.client(ip)?;
        let mut ops = self.connected_ips();
        ops.extend(mapped_ip(client));
        ops.extend(client_rules(client));
        Some(ops)
    }

    /// What dom0 writes once more when a client has started: its rules.
    pub fn client_started(&self, ip: &str) -> Option<Vec<Op>> {
        self.client(ip).map(client_rules)
    }

    fn client(&self, ip: &str) -> Option<&Client> {
        self.clients.iter().find(|client| client.ip == ip)
    }

    /// All configured clients, running or not, by the address that they believe to have.
    fn connected_ips(&self) -> Vec<Op> {
        let visible =
            |client: &Client| client.visible_ip.clone().unwrap_or_else(|| client.ip.clone());
        let ips: Vec<_> = self.clients.iter().map(visible).collect();
        let ips6: Vec<_> = self.clients.iter().filter_map(|client| client.ip6.clone()).collect();
        vec![
            Op::Write("/connected-ips".into(), ips.join(" ")),
            Op::Write("/connected-ips6".into(), ips6.join(" ")),
        ]
    }
}

/// The reload of one tree: old rules away, policy, rules ascending, the mark that makes them valid.
pub fn firewall_tree(ip: &str, policy: &str, rules: &[(String, String)]) -> Vec<Op> {
    let tree = format!("/qubes-firewall/{ip}");
    let mut rules = rules.to_vec();
    rules.sort();
    let mut ops =
        vec![Op::Remove(format!("{tree}/")), Op::Write(format!("{tree}/policy"), policy.into())];
    ops.extend(rules.into_iter().map(|(key, rule)| Op::Write(format!("{tree}/{key}"), rule)));
    ops.push(Op::Write(tree, String::new()));
    ops
}

/// Rules from text, one per line: `NNNN RULE` gives its number, else they count from the one before.
pub fn rules_from_lines(text: &str) -> Vec<(String, String)> {
    let mut next = 0;
    let mut rules = Vec::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let numbered = line.split_once(' ').and_then(|(key, rule)| {
            let is_number = key.len() >= 4 && key.bytes().all(|byte| byte.is_ascii_digit());
            is_number.then(|| key.parse::<u32>().ok()).flatten().map(|number| (number, rule))
        });
        let (number, rule) = numbered.unwrap_or((next, line));
        rules.push((format!("{number:04}"), rule.to_owned()));
        next = number.saturating_add(1);
    }
    rules
}

fn client_rules(client: &Client) -> Vec<Op> {
    let mut ops = firewall_tree(&client.ip, &client.policy, &client.rules);
    if let Some(ip6) = &client.ip6 {
        ops.extend(firewall_tree(ip6, &client.policy, &client.rules6));
    }
    ops
}

fn mapped_ip(client: &Client) -> Vec<Op> {
    [("visible-ip", &client.visible_ip), ("visible-gateway", &client.visible_gateway)]
        .into_iter()
        .map(|(name, value)| {
            let key = format!("/mapped-ip/{}/{name}", client.ip);
            value.clone().map_or(Op::Remove(key.clone()), |value| Op::Write(key, value))
        })
        .collect()
}

fn general(vm: Members<'_>) -> Result<Vec<(String, String)>, BadDescription> {
    let kind = if vm.optional("gateway")?.is_some() { "ProxyVM" } else { "NetVM" };
    let is_debug = vm.0.get("debug").and_then(Value::as_bool).unwrap_or(false);
    Ok(vec![
        pair("/name", vm.needed("name")?),
        pair("/type", vm.or("type", "StandaloneVM")?),
        pair("/default-user", vm.or("default_user", "user")?),
        pair("/qubes-vm-type", vm.or("vm_type", kind)?),
        pair("/qubes-vm-updateable", "True"),
        pair("/qubes-vm-persistence", "full"),
        pair("/qubes-debug-mode", if is_debug { "1" } else { "0" }),
        pair("/qubes-base-template", vm.or("template", "")?),
        pair("/qubes-random-seed", vm.or("random_seed", DEFAULT_SEED)?),
    ])
}

/// For descriptions without a seed; a lab's VM has RDRAND beside it.
const DEFAULT_SEED: &str =
    "bGFiIG9mIHRoZSBmaXJld2FsbDogdGhpcyBzZWVkIGlzIG5vdCBzZWNyZXQgYW5kIG11c3Qgbm90IGJlIHRydXN0ZWQ=";

fn network(vm: Members<'_>) -> Result<Vec<(String, String)>, BadDescription> {
    let ip = vm.needed("ip")?;
    let gateway_of_clients = vm.or("netvm_gateway", &ip)?;
    let mut keys = vec![
        pair("/qubes-netvm-network", gateway_of_clients.clone()),
        pair("/qubes-netvm-gateway", gateway_of_clients),
        pair("/qubes-netvm-netmask", "255.255.255.255"),
    ];
    if let Some(ip6) = vm.optional("ip6")? {
        keys.push(pair("/qubes-netvm-gateway6", ip6));
    }
    keys.extend(resolvers(vm, "netvm_dns", "/qubes-netvm")?);
    if let Some(gateway) = vm.optional("gateway")? {
        keys.push(pair("/qubes-mac", vm.or("mac", "00:16:3e:5e:6c:00")?));
        keys.push(pair("/qubes-ip", ip));
        keys.push(pair("/qubes-netmask", vm.or("netmask", "255.255.255.255")?));
        keys.push(pair("/qubes-gateway", gateway));
        keys.extend(resolvers(vm, "dns", "/qubes")?);
        if let Some(ip6) = vm.optional("ip6")? {
            keys.push(pair("/qubes-ip6", ip6));
        }
        if let Some(gateway6) = vm.optional("gateway6")? {
            keys.push(pair("/qubes-gateway6", gateway6));
        }
    }
    Ok(keys)
}

fn resolvers(
    vm: Members<'_>,
    member: &str,
    prefix: &str,
) -> Result<Vec<(String, String)>, BadDescription> {
    let given = match vm.0.get(member) {
        None => vec!["10.139.1.1".to_owned(), "10.139.1.2".to_owned()],
        Some(value) => strings(value).ok_or_else(|| vm.bad(member))?,
    };
    Ok(["primary", "secondary"]
        .iter()
        .zip(given)
        .map(|(name, ip)| pair(&format!("{prefix}-{name}-dns"), ip))
        .collect())
}

fn rest(vm: Members<'_>) -> Result<Vec<(String, String)>, BadDescription> {
    let mut keys = vec![
        pair("/qubes-timezone", vm.or("timezone", "Europe/Berlin")?),
        pair("/qubes-block-devices", ""),
        pair("/qubes-usb-devices", ""),
    ];
    let services = vm.map("services")?;
    if !services.iter().any(|(name, _)| name == "meminfo-writer") {
        keys.push(pair("/qubes-service/meminfo-writer", "0"));
    }
    keys.extend(
        services.into_iter().map(|(name, value)| (format!("/qubes-service/{name}"), value)),
    );
    keys.extend(vm.map("extra")?);
    Ok(keys)
}

fn clients(vm: Members<'_>) -> Result<Vec<Client>, BadDescription> {
    let Some(list) = vm.0.get("clients") else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or_else(|| vm.bad("clients"))?;
    list.iter()
        .map(|value| {
            let client = Members(value);
            Ok(Client {
                ip: client.needed("ip")?,
                ip6: client.optional("ip6")?,
                is_running: value.get("running").and_then(Value::as_bool).unwrap_or(true),
                policy: client.or("policy", "drop")?,
                rules: client.rules("rules")?,
                rules6: client.rules("rules6")?,
                visible_ip: client.optional("visible_ip")?,
                visible_gateway: client.optional("visible_gateway")?,
            })
        })
        .collect()
}

fn pair(key: &str, value: impl Into<String>) -> (String, String) {
    (key.to_owned(), value.into())
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(|item| item.as_str().map(str::to_owned)).collect()
}

/// The members of a JSON object.
#[derive(Clone, Copy)]
struct Members<'a>(&'a Value);

impl Members<'_> {
    fn bad(self, name: &str) -> BadDescription {
        BadDescription(format!("{name} is missing or has the wrong type"))
    }

    fn optional(self, name: &str) -> Result<Option<String>, BadDescription> {
        match self.0.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.bad(name)),
        }
    }

    fn needed(self, name: &str) -> Result<String, BadDescription> {
        self.optional(name)?.ok_or_else(|| self.bad(name))
    }

    fn or(self, name: &str, default: &str) -> Result<String, BadDescription> {
        Ok(self.optional(name)?.unwrap_or_else(|| default.to_owned()))
    }

    fn map(self, name: &str) -> Result<Vec<(String, String)>, BadDescription> {
        let Some(value) = self.0.get(name) else { return Ok(Vec::new()) };
        let object = value.as_object().ok_or_else(|| self.bad(name))?;
        let entry = |(key, value): (&String, &Value)| {
            value.as_str().map(|value| (key.clone(), value.to_owned()))
        };
        object.iter().map(entry).collect::<Option<_>>().ok_or_else(|| self.bad(name))
    }

    /// A list of rules, counted from 0000, or an object of them by key.
    fn rules(self, name: &str) -> Result<Vec<(String, String)>, BadDescription> {
        match self.0.get(name) {
            Some(value @ Value::Array(_)) => {
                let rules = strings(value).ok_or_else(|| self.bad(name))?;
                Ok(rules
                    .into_iter()
                    .enumerate()
                    .map(|(i, rule)| (format!("{i:04}"), rule))
                    .collect())
            }
            _ => self.map(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn write(key: &str, value: &str) -> Op {
        Op::Write(key.into(), value.into())
    }

    fn vm() -> Vm {
        let value = json!({
            "name": "sys-firewall", "ip": "10.137.0.6", "gateway": "10.137.0.5", "random_seed": "aGVsbG8gd29ybGQ=",
            "clients": [
                {"ip": "10.137.0.11", "rules": {
                    "0002": "action=accept specialtarget=dns",
                    "0000": "action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443"}},
                {"ip": "10.137.0.12", "running": false, "rules": ["action=accept"]},
            ],
        });
        Vm::from_json(&value).unwrap()
    }

    #[test]
    fn all_keys_of_the_recorded_dump_are_written() {
        let keys: Vec<_> = vm()
            .start()
            .into_iter()
            .filter_map(|op| match op {
                Op::Write(key, _) => Some(key),
                Op::Remove(_) => None,
            })
            .collect();
        for key in [
            "/type",
            "/qubes-vm-updateable",
            "/qubes-vm-type",
            "/qubes-vm-persistence",
            "/qubes-timezone",
            "/qubes-service/meminfo-writer",
            "/qubes-secondary-dns",
            "/qubes-random-seed",
            "/qubes-primary-dns",
            "/qubes-netvm-secondary-dns",
            "/qubes-netvm-primary-dns",
            "/qubes-netvm-network",
            "/qubes-netvm-netmask",
            "/qubes-netvm-gateway",
            "/qubes-netmask",
            "/qubes-mac",
            "/qubes-ip",
            "/qubes-gateway",
            "/qubes-firewall/10.137.0.11/policy",
            "/qubes-firewall/10.137.0.11/0002",
            "/qubes-firewall/10.137.0.11/0000",
            "/qubes-firewall/10.137.0.11",
            "/qubes-debug-mode",
            "/qubes-base-template",
            "/name",
            "/default-user",
            "/connected-ips6",
            "/connected-ips",
        ] {
            assert!(keys.contains(&key.to_owned()), "{key}");
        }
        assert_eq!(keys.first().unwrap(), "/name");
        assert!(vm().start().contains(&write("/connected-ips", "10.137.0.11 10.137.0.12")));
        assert!(
            !keys.iter().any(|key| key.contains("/10.137.0.12")),
            "a client that does not run has no rules yet"
        );
    }

    #[test]
    fn reload_is_rows_31_to_39() {
        let ops = vm().client_started("10.137.0.11").unwrap();
        let tree = "/qubes-firewall/10.137.0.11";
        assert_eq!(
            ops,
            [
                Op::Remove(format!("{tree}/")),
                write(&format!("{tree}/policy"), "drop"),
                write(
                    &format!("{tree}/0000"),
                    "action=accept proto=tcp dst4=198.51.100.0/24 dstports=443-443"
                ),
                write(&format!("{tree}/0002"), "action=accept specialtarget=dns"),
                write(tree, ""),
            ]
        );
    }

    #[test]
    fn client_start_writes_the_lists_first() {
        let ops = vm().client_start("10.137.0.12").unwrap();
        assert_eq!(ops.first().unwrap(), &write("/connected-ips", "10.137.0.11 10.137.0.12"));
        assert_eq!(ops.last().unwrap(), &write("/qubes-firewall/10.137.0.12", ""));
        assert!(ops.contains(&Op::Remove("/mapped-ip/10.137.0.12/visible-ip".into())));
        assert_eq!(vm().client_start("10.137.0.99"), None);
    }

    #[test]
    fn vm_without_netvm_has_no_uplink_keys() {
        let vm = Vm::from_json(&json!({"name": "fw", "ip": "10.137.0.6"})).unwrap();
        let ops = vm.start();
        assert!(ops.contains(&write("/qubes-vm-type", "NetVM")));
        assert!(!ops.iter().any(
            |op| matches!(op, Op::Write(key, _) if key == "/qubes-ip" || key == "/qubes-gateway")
        ));
        assert!(ops.contains(&write("/connected-ips", "")));
    }

    #[test]
    fn lines_may_leave_gaps() {
        let rules = rules_from_lines("action=accept\n0004 action=drop\naction=accept proto=icmp\n");
        let expected = [
            ("0000", "action=accept"),
            ("0004", "action=drop"),
            ("0005", "action=accept proto=icmp"),
        ];
        let expected: Vec<_> =
            expected.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        assert_eq!(rules, expected);
    }

    #[test]
    fn description_without_address_is_refused() {
        assert!(Vm::from_json(&json!({"name": "fw"})).is_err());
        assert!(Vm::from_json(&json!({"name": 1, "ip": "1.2.3.4"})).is_err());
    }
}
