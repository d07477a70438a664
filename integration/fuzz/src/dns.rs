//! Answers of DNS servers: no message panics or is read without end, and what is read out of it stays in bounds.

use firewall::dns::message::{self, Kind, Outcome};
use rules::Family;

/// Most addresses of one answer; more are left out.
const MAX_ADDRESSES: usize = 64;
const MAX_NAME_BYTES: usize = 253;

/// The whole input is one message.
pub fn run(data: &[u8]) {
    let Ok(message) = message::read(data) else { return };
    assert_eq!(message.id().to_be_bytes(), data[..2]);
    if let Some(name) = message.name() {
        let is_legal =
            |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-._".contains(&byte);
        assert!(name.as_str().len() <= MAX_NAME_BYTES && name.as_str().bytes().all(is_legal));
    }
    let Ok(outcome) = message.outcome() else { return };
    if let Outcome::Addresses { addresses, .. } = outcome {
        let list: Vec<_> = addresses.iter().collect();
        assert!(!list.is_empty() && list.len() <= MAX_ADDRESSES);
        let family = message.kind().family();
        assert_eq!(Kind::of(family), message.kind());
        for (at, address) in list.iter().enumerate() {
            assert_eq!(Family::of(*address), family);
            assert!(!list[..at].contains(address), "an address twice");
        }
    }
}
