//! Files with rule sets: text as `qubesdb-multiread /qubes-firewall/` prints it or as people write it, or JSON.

use std::fs;
use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;

use clap::Args;
use rules::{Family, RuleKey, RuleSet, RuleSetError};
use serde_json::Value;

use crate::case::{self, SetLine};
use crate::engine::KnownNames;

pub(crate) const HELP: &str = r#"A rule file is text, one entry a line; # begins a comment line:
  policy drop                                       KEY VALUE, KEY=VALUE or KEY = VALUE
  0000 action=accept proto=tcp dstports=443-443
  action=accept specialtarget=dns                   a rule alone follows the one before it
  /qubes-firewall/10.137.0.5/0000 = action=accept   a dump, also of several clients
or a JSON object: {"client":...,"policy":...,"rules":...} as for qfw eval, or the keys
alone: {"policy":"drop","0000":"action=accept"}. A file named - is the standard input."#;

/// Resolvers of every Qubes client and firewall.
const USUAL_RESOLVERS: [IpAddr; 2] = [
    IpAddr::V4(std::net::Ipv4Addr::new(10, 139, 1, 1)),
    IpAddr::V4(std::net::Ipv4Addr::new(10, 139, 1, 2)),
];

/// What is known beside the rules. Options win over what the file says.
#[derive(Args)]
pub(crate) struct Around {
    /// Address of the client whose rules they are
    #[arg(long, value_name = "IP")]
    pub(crate) client: Option<IpAddr>,
    /// Resolvers of clients and firewall [default: 10.139.1.1,10.139.1.2]
    #[arg(long = "dns-server", value_name = "IP", value_delimiter = ',')]
    dns_servers: Vec<IpAddr>,
    /// Addresses of a name; NAME= for one that does not exist
    #[arg(long, value_name = "NAME=IP,...", value_parser = resolved)]
    resolve: Vec<(String, Vec<IpAddr>)>,
}

fn resolved(text: &str) -> Result<(String, Vec<IpAddr>), String> {
    let (name, addresses) = text.split_once('=').ok_or("expected NAME=ADDRESS,...")?;
    let addresses = addresses.split(',').filter(|address| !address.is_empty());
    let parsed = addresses
        .map(|address| address.parse().map_err(|_| format!("{address:?} is not an address")))
        .collect::<Result<_, String>>()?;
    Ok((name.to_owned(), parsed))
}

/// The rules of one client, not understood yet.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Its address, if it was said.
    pub(crate) client: Option<IpAddr>,
    entries: Vec<Entry>,
    pub(crate) dns_servers: Vec<IpAddr>,
    pub(crate) names: KnownNames,
}

#[derive(Debug)]
struct Entry {
    key: String,
    value: String,
    /// Counted from 1, in a text file.
    line: Option<usize>,
}

impl Tree {
    /// The family of the client; IPv4 if nothing is said about it.
    pub(crate) fn family(&self) -> Family {
        self.client.map_or(Family::V4, Family::of)
    }

    /// Reads it as the firewall does.
    pub(crate) fn parse(&self) -> Result<RuleSet, RuleSetError> {
        let entries = self.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone()));
        case::parse(self.family(), &entries.collect::<Vec<_>>())
    }

    /// Where in the file a rule is.
    pub(crate) fn line_of(&self, key: RuleKey) -> Option<usize> {
        let key = key.to_string();
        // Of two with one number the second is too many.
        self.entries.iter().rev().find(|entry| entry.key == key)?.line
    }

    /// How the client is called.
    pub(crate) fn title(&self) -> String {
        self.client.map_or_else(|| "rules".to_owned(), |client| client.to_string())
    }

    fn complete(&mut self, around: &Around) {
        self.client = around.client.or(self.client);
        if !around.dns_servers.is_empty() {
            self.dns_servers.clone_from(&around.dns_servers);
        } else if self.dns_servers.is_empty() {
            self.dns_servers = USUAL_RESOLVERS.to_vec();
        }
        for (name, addresses) in &around.resolve {
            self.names.insert(name, addresses.clone());
        }
    }
}

/// Reads a file. With an address in `around`, of several clients only that one.
pub(crate) fn read(path: &Path, around: &Around) -> io::Result<Vec<Tree>> {
    let mut bytes = Vec::new();
    if path.as_os_str() == "-" {
        io::stdin().lock().read_to_end(&mut bytes)?;
    } else {
        bytes = fs::read(path).map_err(|error| about(path, &error))?;
    }
    // What is not text is refused with its rule.
    let text = String::from_utf8_lossy(&bytes);
    let mut trees = match text.trim_start().starts_with('{') {
        true => vec![json(&text).map_err(|error| about(path, &error))?],
        false => text_trees(&text),
    };
    if trees.len() > 1
        && let Some(client) = around.client
    {
        trees.retain(|tree| tree.client == Some(client));
        if trees.is_empty() {
            return Err(about(path, &format!("no rules of {client}")));
        }
    }
    trees.iter_mut().for_each(|tree| tree.complete(around));
    Ok(trees)
}

/// Reads the rules of one client.
pub(crate) fn read_one(path: &Path, around: &Around) -> io::Result<Tree> {
    let mut trees = read(path, around)?;
    match trees.len() {
        1 => trees.pop().ok_or_else(|| about(path, &"no rules")),
        _ => Err(about(path, &"rules of several clients: say --client")),
    }
}

fn about(path: &Path, problem: &dyn std::fmt::Display) -> io::Error {
    io::Error::other(format!("{}: {problem}", path.display()))
}

fn json(text: &str) -> Result<Tree, serde_json::Error> {
    let value: Value = serde_json::from_str(text)?;
    if value.get("rules").is_none() {
        // Through the same reader, which keeps keys that come twice.
        return Ok(set(&serde_json::from_str(&format!("{{\"rules\":{text}}}"))?));
    }
    Ok(set(&serde_json::from_str(text)?))
}

/// The tree that a JSON object describes.
pub(crate) fn set(set: &SetLine) -> Tree {
    let entries = set.entries().into_iter();
    Tree {
        client: set.client,
        entries: entries.map(|(key, value)| Entry { key, value, line: None }).collect(),
        dns_servers: set.dns_servers().to_vec(),
        names: set.names(),
    }
}

fn text_trees(text: &str) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((client, key, value)) = entry(line) else { continue };
        let known = trees.iter().position(|tree| tree.client == client);
        if known.is_none() {
            trees.push(Tree { client, ..Tree::default() });
        }
        let at = known.unwrap_or(trees.len().saturating_sub(1));
        let Some(tree) = trees.get_mut(at) else { continue };
        let key = key.map_or_else(|| format!("{:04}", next_number(tree)), str::to_owned);
        tree.entries.push(Entry { key, value: value.to_owned(), line: Some(number) });
    }
    if trees.is_empty() {
        trees.push(Tree::default());
    }
    trees
}

/// Client, key and value of a line; nothing for an entry of a dump that is none of a rule tree.
fn entry(line: &str) -> Option<(Option<IpAddr>, Option<&str>, &str)> {
    if let Some((key, value)) = line.split_once('=')
        && (key == "policy" || RuleKey::parse(key.as_bytes()).is_some())
    {
        return Some((None, Some(key), value));
    }
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    if first.contains('=') || first.is_empty() {
        return Some((None, None, line));
    }
    let value = if rest == "=" { "" } else { rest.strip_prefix("= ").unwrap_or(rest) };
    let path = match first.strip_prefix('/') {
        Some(path) => path.strip_prefix("qubes-firewall/")?,
        None => first,
    };
    match path.split_once('/') {
        Some((client, key)) => Some((Some(client.parse().ok()?), Some(key), value)),
        // The commit mark of a tree.
        None if path.parse::<IpAddr>().is_ok() => None,
        None => Some((None, Some(path), value)),
    }
}

fn next_number(tree: &Tree) -> usize {
    let numbers =
        tree.entries.iter().rev().filter_map(|entry| RuleKey::parse(entry.key.as_bytes()));
    numbers.map(|key| usize::from(key.number()).saturating_add(1)).next().unwrap_or(0)
}
