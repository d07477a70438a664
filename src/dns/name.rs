//! Host names as DNS writes them, and back to the text of rules.

use core::fmt;

/// Bytes of a name in a message, length bytes and the root label included (RFC 1035, 2.3.4).
pub(crate) const MAX_WIRE_BYTES: usize = 255;
const MAX_LABEL_BYTES: usize = 63;
/// Characters of a name as text, with a dot at its end.
const MAX_TEXT_BYTES: usize = MAX_WIRE_BYTES - 1;

/// A whole name as it stands in a question, never compressed.
#[derive(Clone, Copy)]
pub(crate) struct WireName {
    bytes: [u8; MAX_WIRE_BYTES],
    len: usize,
}

impl WireName {
    /// The name that `text` stands for; `None` if DNS cannot carry it: an empty label, one of more than 63 bytes, or
    /// more than 255 bytes in all. One dot at the end means the same as none.
    pub(crate) fn of(text: &str) -> Option<Self> {
        let mut name = Self { bytes: [0; MAX_WIRE_BYTES], len: 0 };
        for label in text.strip_suffix('.').unwrap_or(text).split('.') {
            if label.is_empty() || label.len() > MAX_LABEL_BYTES {
                return None;
            }
            name.push(u8::try_from(label.len()).ok()?)?;
            label.bytes().try_for_each(|byte| name.push(byte))?;
        }
        name.push(0)?;
        Some(name)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or_default()
    }

    /// Gives each letter a case by chance, one bit of `bits` each: an answer repeats the question, so that somebody who
    /// does not see the question has to guess the cases as well.
    pub(crate) fn mix_case(&mut self, mut bits: impl FnMut() -> u64) {
        let (mut word, mut left) = (0, 0);
        for byte in self.bytes.get_mut(..self.len).unwrap_or_default() {
            if left == 0 {
                (word, left) = (bits(), u64::BITS);
            }
            // A length byte is at most 63, so that it is no letter.
            *byte =
                if word & 1 == 0 { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() };
            word >>= 1;
            left -= 1;
        }
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }
}

impl fmt::Debug for WireName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.bytes().escape_ascii())
    }
}

/// A name from a message in the text form of rules: lower case, no dot at its end.
#[derive(Clone, Copy)]
pub struct NameText {
    bytes: [u8; MAX_TEXT_BYTES],
    len: usize,
}

impl NameText {
    pub(crate) const EMPTY: Self = Self { bytes: [0; MAX_TEXT_BYTES], len: 0 };

    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII gets in, so the fallback is never taken.
        core::str::from_utf8(self.bytes.get(..self.len).unwrap_or_default()).unwrap_or_default()
    }

    /// Appends a label; `None` if it has a character that names in rules cannot have, or if the name becomes longer
    /// than DNS allows. The parser below does not look at the length, and the dot at the end keeps its place.
    pub(crate) fn push_label(&mut self, label: &[u8]) -> Option<()> {
        if self.len > 0 {
            self.push(b'.')?;
        }
        label.iter().try_for_each(|byte| match byte.to_ascii_lowercase() {
            byte @ (b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_') => self.push(byte),
            _ => None,
        })?;
        (self.len < MAX_TEXT_BYTES).then_some(())
    }

    /// The same name spelled with a dot at its end.
    pub(crate) fn with_root(mut self) -> Self {
        // There is room for it behind the longest name.
        let _ = self.push(b'.');
        self
    }

    fn push(&mut self, byte: u8) -> Option<()> {
        *self.bytes.get_mut(self.len)? = byte;
        self.len += 1;
        Some(())
    }
}

impl fmt::Debug for NameText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_becomes_labels_with_their_lengths() {
        let wire = |text| WireName::of(text).unwrap();
        assert_eq!(wire("www.example.org").bytes(), b"\x03www\x07example\x03org\x00");
        assert_eq!(wire("www.example.org.").bytes(), wire("www.example.org").bytes());
        assert_eq!(wire("_dns.a-b").bytes(), b"\x04_dns\x03a-b\x00");
    }

    #[test]
    fn what_dns_cannot_carry_is_no_name() {
        let label = "a".repeat(63);
        let longest = [label.as_str(), &label, &label, &"a".repeat(61)].join(".");
        assert_eq!(WireName::of(&longest).unwrap().bytes().len(), MAX_WIRE_BYTES);
        for bad in ["", ".", "a..b", ".a", "a..", &"a".repeat(64), &format!("{longest}a")] {
            assert!(WireName::of(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn cases_follow_the_bits_and_nothing_else_changes() {
        let mut name = WireName::of("ab.c0-d").unwrap();
        name.mix_case(|| 0b0110);
        assert_eq!(name.bytes(), b"\x02AB\x04c0-d\x00");
        name.mix_case(|| u64::MAX);
        assert_eq!(name.bytes(), b"\x02AB\x04C0-D\x00");
    }

    #[test]
    fn labels_become_text() {
        let mut text = NameText::EMPTY;
        text.push_label(b"WWW").unwrap();
        text.push_label(b"a_b-0").unwrap();
        assert_eq!(text.as_str(), "www.a_b-0");
        assert_eq!(text.push_label(b"a.b"), None);
        assert_eq!(text.push_label("ä".as_bytes()), None);
    }

    #[test]
    fn the_longest_name_leaves_room_for_the_dot_at_its_end() {
        let name = |last: usize| {
            let mut text = NameText::EMPTY;
            [63, 63, 63, last].iter().try_for_each(|len| text.push_label(&[b'a'; 63][..*len]))?;
            Some(text)
        };
        let longest = name(61).unwrap();
        assert_eq!(longest.as_str().len(), 253);
        assert_eq!(longest.with_root().as_str(), format!("{}.", longest.as_str()));
        assert!(WireName::of(longest.as_str()).is_some());
        assert!(name(62).is_none() && name(63).is_none());
    }
}
