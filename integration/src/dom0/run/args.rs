//! Command-line arguments: `--name value`, a few flags, and the rest in order.

use std::collections::HashMap;

use super::{Failure, Result};

const FLAGS: [&str; 6] = ["detach", "json", "after", "just-exec", "list", "dump"];

/// Parsed arguments of a command.
#[derive(Debug, Default)]
pub(crate) struct Args {
    options: HashMap<String, String>,
    positional: Vec<String>,
}

impl Args {
    pub(crate) fn parse(words: &[String]) -> Result<Self> {
        let mut args = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.strip_prefix("--") {
                Some("") => {
                    args.positional.extend(words.by_ref().cloned());
                }
                Some(flag) if FLAGS.contains(&flag) => {
                    args.options.insert(flag.to_owned(), String::new());
                }
                Some(name) => {
                    let value = words
                        .next()
                        .ok_or_else(|| Failure::Usage(format!("--{name} needs a value")))?;
                    args.options.insert(name.to_owned(), value.clone());
                }
                None => args.positional.push(word.clone()),
            }
        }
        Ok(args)
    }

    pub(crate) fn has(&self, flag: &str) -> bool {
        self.options.contains_key(flag)
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    pub(crate) fn needed(&self, name: &str) -> Result<&str> {
        self.get(name).ok_or_else(|| Failure::Usage(format!("--{name} is missing")))
    }

    /// A number, when it is given.
    pub(crate) fn number(&self, name: &str) -> Result<Option<u32>> {
        let parse =
            |text: &str| text.parse().map_err(|_| Failure::Usage(format!("--{name} is no number")));
        self.get(name).map(parse).transpose()
    }

    pub(crate) fn needed_number(&self, name: &str) -> Result<u32> {
        self.number(name)?.ok_or_else(|| Failure::Usage(format!("--{name} is missing")))
    }

    pub(crate) fn positional(&self) -> Vec<&str> {
        self.positional.iter().map(String::as_str).collect()
    }

    /// The positional argument `index`, which must be there.
    pub(crate) fn at(&self, index: usize, what: &str) -> Result<&str> {
        self.positional
            .get(index)
            .map(String::as_str)
            .ok_or_else(|| Failure::Usage(format!("{what} is missing")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Args> {
        Args::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_flags_and_the_rest() {
        let args = parse(&["--socket", "/s", "write", "--json", "/k", "--", "--v"]).unwrap();
        assert_eq!(args.needed("socket").unwrap(), "/s");
        assert!(args.has("json") && !args.has("detach"));
        assert_eq!(args.positional(), ["write", "/k", "--v"]);
        assert!(matches!(args.needed_number("domid"), Err(Failure::Usage(_))));
        assert!(matches!(parse(&["--socket"]), Err(Failure::Usage(_))));
        assert!(matches!(
            parse(&["--domid", "x"]).unwrap().number("domid"),
            Err(Failure::Usage(_))
        ));
    }
}
