//! Watch tokens: whose a watch is.

use alloc::string::String;

/// The part of the program that a request or a watch belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// The event loop itself (shutdown requests and the like).
    Platform,
    /// `netback`.
    Netback,
    /// `netfront`.
    Netfront,
}

impl Owner {
    const ALL: [Owner; 3] = [Owner::Platform, Owner::Netback, Owner::Netfront];

    fn letter(self) -> char {
        match self {
            Owner::Platform => 'p',
            Owner::Netback => 'b',
            Owner::Netfront => 'f',
        }
    }
}

/// Identifies a watch; comes back with every event.
///
/// An event may still be under way when its watch ends and the number is used again: the generation tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token {
    /// Who gets the events.
    pub owner: Owner,
    /// Number of the owner's choice.
    pub id: u32,
    /// Changes whenever the owner gives the number a new meaning.
    pub generation: u32,
}

impl Token {
    /// The text on the wire: owner letter, id and generation in hexadecimal.
    pub fn encode(&self) -> String {
        alloc::format!("{}-{:x}-{:x}", self.owner.letter(), self.id, self.generation)
    }

    /// Parses what [`Token::encode`] wrote.
    pub fn parse(text: &str) -> Option<Token> {
        let mut parts = text.split('-');
        let letter = parts.next()?;
        let owner = Owner::ALL.into_iter().find(|owner| {
            let mut chars = letter.chars();
            chars.next() == Some(owner.letter()) && chars.next().is_none()
        })?;
        let id = u32::from_str_radix(parts.next()?, 16).ok()?;
        let generation = u32::from_str_radix(parts.next()?, 16).ok()?;
        let token = Token { owner, id, generation };
        // Signs and leading zeros would be taken by `from_str_radix`.
        (parts.next().is_none() && token.encode() == text).then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_round_trip_and_others_are_refused() {
        for owner in Owner::ALL {
            for (id, generation) in [(0, 0), (15, 255), (u32::MAX, u32::MAX)] {
                let token = Token { owner, id, generation };
                assert_eq!(Token::parse(&token.encode()), Some(token));
            }
        }
        assert_eq!(Token { owner: Owner::Netfront, id: 31, generation: 2 }.encode(), "f-1f-2");
        for bad in
            ["", "b", "b-1", "b-1-2-3", "x-1-2", "b-+1-2", "b-01-2", "bb-1-2", "b-1-100000000"]
        {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
    }
}
