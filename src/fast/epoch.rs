//! What the fast path may take for granted, and for how long.

/// A stretch of time in which dom0 changed nothing that a stage of the pipeline looks at: clients and their addresses,
/// rules, our own addresses, the uplink, what is opened.
///
/// Its number is above [`Passed::BOTH`], which is set in each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Epoch(u32);

impl Epoch {
    const STEP: u32 = Passed::BOTH + 1;

    /// The one that a firewall starts with.
    pub(crate) const FIRST: Self = Self(Self::STEP | Passed::BOTH);
    /// Never noted.
    const LAST: Self = Self(u32::MAX);

    /// Ends it. The last of a thousand million epochs is never noted: the fast path is closed then, and all packets go
    /// through the stages.
    pub(crate) fn advance(&mut self) {
        self.0 = self.0.saturating_add(Self::STEP);
    }
}

/// The latest epoch in which a packet of a flow passed every stage, and which way: from the client to the uplink, or from
/// the uplink to the client. Zero if there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed(u32);

impl Passed {
    const UP: u32 = 1;
    const DOWN: u32 = 2;
    const BOTH: u32 = Self::UP | Self::DOWN;

    /// Whether a packet passed from the client to the uplink in this epoch.
    #[inline(always)]
    pub(crate) fn is_up(self, epoch: Epoch) -> bool {
        self.0 | Self::DOWN == epoch.0
    }

    /// Whether a packet passed from the uplink to the client in this epoch.
    #[inline(always)]
    pub(crate) fn is_down(self, epoch: Epoch) -> bool {
        self.0 | Self::UP == epoch.0
    }

    pub(crate) fn note_up(&mut self, epoch: Epoch) {
        self.note(epoch, Self::UP);
    }

    pub(crate) fn note_down(&mut self, epoch: Epoch) {
        self.note(epoch, Self::DOWN);
    }

    fn note(&mut self, epoch: Epoch, way: u32) {
        // What passed in an earlier one counts no more.
        let ways = if self.0 | Self::BOTH == epoch.0 { self.0 & Self::BOTH } else { 0 };
        self.0 = if epoch == Epoch::LAST { 0 } else { epoch.0 & !Self::BOTH | ways | way };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(passed: Passed, epoch: Epoch) -> (bool, bool) {
        (passed.is_up(epoch), passed.is_down(epoch))
    }

    #[test]
    fn an_epoch_is_itself_and_no_other_one() {
        let mut epoch = Epoch::FIRST;
        let mut passed = Passed::default();
        assert_eq!(ways(passed, epoch), (false, false));
        passed.note_up(epoch);
        assert_eq!(ways(passed, epoch), (true, false));
        passed.note_down(epoch);
        assert_eq!(ways(passed, epoch), (true, true));
        epoch.advance();
        assert_eq!(ways(passed, epoch), (false, false));
    }

    #[test]
    fn what_passed_one_way_in_an_earlier_epoch_does_not_count_with_what_passes_the_other_way_now() {
        let mut epoch = Epoch::FIRST;
        let [mut up, mut down] = [Passed::default(); 2];
        up.note_up(epoch);
        down.note_down(epoch);
        epoch.advance();
        up.note_down(epoch);
        down.note_up(epoch);
        assert_eq!(ways(up, epoch), (false, true));
        assert_eq!(ways(down, epoch), (true, false));
    }

    #[test]
    fn the_last_epoch_is_never_noted() {
        let mut epoch = Epoch(Epoch::LAST.0 - Epoch::STEP);
        let mut passed = Passed::default();
        passed.note_up(epoch);
        passed.note_down(epoch);
        assert_eq!(ways(passed, epoch), (true, true));
        for _ in 0..2 {
            epoch.advance();
            assert_eq!((epoch, ways(passed, epoch)), (Epoch::LAST, (false, false)));
            let mut last = passed;
            last.note_up(epoch);
            last.note_down(epoch);
            assert_eq!(ways(last, epoch), (false, false));
        }
    }
}
