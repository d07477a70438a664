//! What the fast path may take for granted, and for how long.

/// A stretch of time in which dom0 changed nothing that a stage of the pipeline looks at: clients and their addresses,
/// rules, our own addresses, the uplink, what is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

impl Epoch {
    /// The one that a firewall starts with.
    pub(crate) const FIRST: Self = Self(1);

    /// Ends it. The last of four thousand million epochs equals none, not even itself as flows have it noted: the fast path
    /// is closed then, and all packets go through the stages.
    pub(crate) fn advance(&mut self) {
        self.0 = self.0.saturating_add(1);
    }

    fn noted(self) -> Noted {
        Noted(if self.0 == u32::MAX { 0 } else { self.0 })
    }
}

/// An epoch as a flow has it; 0 is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Noted(u32);

impl Noted {
    /// Whether it is this one.
    #[inline]
    pub(crate) fn is(self, epoch: Epoch) -> bool {
        self.0 == epoch.0
    }
}

/// The epochs in which a packet of a flow last passed every stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    /// From the client to the uplink.
    pub(crate) up: Noted,
    /// From the uplink to the client.
    pub(crate) down: Noted,
}

impl From<Epoch> for Noted {
    fn from(epoch: Epoch) -> Self {
        epoch.noted()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_is_itself_and_no_other_one() {
        let mut epoch = Epoch::FIRST;
        assert!(!Noted::default().is(epoch));
        let noted = Noted::from(epoch);
        assert!(noted.is(epoch));
        epoch.advance();
        assert!(!noted.is(epoch));
    }

    #[test]
    fn the_last_epoch_is_never_noted() {
        let mut epoch = Epoch(u32::MAX - 1);
        let noted = Noted::from(epoch);
        epoch.advance();
        let last = Noted::from(epoch);
        assert!(!noted.is(epoch) && !last.is(epoch));
        epoch.advance();
        assert!(!noted.is(epoch) && !last.is(epoch));
    }
}
