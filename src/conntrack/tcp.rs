//! TCP as an observer in the middle sees it: handshake, windows, end.
//!
//! The tracker guards the client against segments from outside that its window excludes (RFC 5961), after the method
//! of Guido van Rooij, "Real Stateful TCP Packet Filtering". What the client itself sends is never dropped for its
//! sequence numbers: its rules accepted the flow, and a tracker that lost step must not be able to break it.

mod opening;
mod segment;

pub(crate) use segment::{Segment, flags};

use crate::conntrack::marks::Marks;
use crate::conntrack::{Class, Hold};

/// Largest window scale (RFC 7323, 2.3), assumed where the handshake was not seen.
const MAX_SCALE: u8 = 14;
/// How far an acknowledgement may lie behind what was sent, at least (as Linux allows).
const OLD_ACK_BYTES: u32 = 66_000;

/// Who sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sender {
    Client,
    Remote,
}

/// What a segment means for its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Pass it on.
    Pass,
    /// The old connection is over and this is the first segment of a new one: whether it may open is asked again.
    Reopen,
    /// Drop it.
    OutOfWindow,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum State {
    /// The client's SYN was seen.
    SynSent,
    /// The far side's SYN was seen, and nothing of the client yet.
    SynReceived,
    /// Both SYNs were seen.
    SynBoth,
    Established,
    /// Both FINs were seen.
    Closing,
    /// A reset was seen. The client may know better and go on.
    Reset,
}

/// One direction.
#[derive(Clone, Copy, Debug)]
struct Side {
    /// Behind the last byte it sent.
    end: u32,
    /// Behind the last byte that the other side is ready to take.
    limit: u32,
    /// Largest window it offered.
    window: u32,
}

/// What is left of a SYN of the client until it is answered: as much as [`Tracker::first`] needs of it.
#[derive(Clone, Copy, Debug, Default)]
struct Syn {
    sequence: u32,
    window: u16,
    payload: u16,
}

impl From<&Segment> for Syn {
    fn from(segment: &Segment) -> Self {
        let &Segment { sequence, window, payload, .. } = segment;
        Self { sequence, window, payload }
    }
}

/// Window scales of both sides, none larger than [`MAX_SCALE`]: half a byte for each.
#[derive(Clone, Copy, Debug, Default)]
struct Scales(u8);

impl Scales {
    fn new(client: u8, remote: u8) -> Self {
        Self(remote.min(MAX_SCALE) << 4 | client.min(MAX_SCALE))
    }

    #[inline(always)]
    fn client(self) -> u8 {
        self.0 & 0xf
    }

    #[inline(always)]
    fn remote(self) -> u8 {
        self.0 >> 4
    }
}

/// A SYN without window scaling; else [`Tracker::syn_scale`] is what it offers.
const NO_SCALE: u8 = u8::MAX;

fn offer_of(syn: &Segment) -> u8 {
    syn.scale.map_or(NO_SCALE, |scale| scale.min(MAX_SCALE))
}

// Marks of a connection.
const CLIENT_IS_FINISHED: u8 = 1;
const REMOTE_IS_FINISHED: u8 = 2;
/// The first SYN offered window scaling.
const IS_SCALING_OFFERED: u8 = 4;
/// The client sent a SYN on a connection that we take for open: it takes the place of the old one if answered.
const IS_RESTARTING: u8 = 8;
/// The handshake was not seen, so acknowledgements of earlier bytes cannot be judged.
const IS_PICKED_UP: u8 = 16;

/// State of one connection. Every flow has room for one, so it is small.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tracker {
    client: Side,
    remote: Side,
    /// Highest acknowledgement of the client: the far side's next byte, as far as the client knows.
    client_acked: u32,
    /// The client's latest SYN: the first one until it is answered, and one that restarts the connection if
    /// [`IS_RESTARTING`].
    syn: Syn,
    /// What that offers, or [`NO_SCALE`].
    syn_scale: u8,
    scales: Scales,
    state: State,
    marks: Marks,
}
/// `a` at or before `b` on the sequence circle.
fn at_most(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) as i32 >= 0
}

fn max(a: u32, b: u32) -> u32 {
    if at_most(a, b) { b } else { a }
}

impl Tracker {
    /// Follows one more segment.
    pub(crate) fn step(&mut self, sender: Sender, segment: &Segment) -> Step {
        let is_syn = segment.has(flags::SYN);
        match sender {
            Sender::Client if is_syn => self.syn_of_client(segment),
            Sender::Client => self.data_of_client(segment),
            Sender::Remote if is_syn => self.syn_of_remote(segment),
            Sender::Remote if segment.has(flags::RST) => self.reset_of_remote(segment),
            Sender::Remote => self.data_of_remote(segment),
        }
    }

    /// The next segment of a connection that stands, which has ACK and neither SYN nor FIN nor RST: the same as
    /// [`Tracker::step`]. `None`, and no change, if the connection does not stand or the segment is not to pass.
    #[inline(always)]
    pub(crate) fn go_on(&mut self, sender: Sender, segment: &Segment) -> Option<()> {
        if self.state != State::Established {
            return None;
        }
        match sender {
            Sender::Client => self.note_client(segment),
            Sender::Remote if self.is_in_window(segment) => self.note_remote(segment),
            Sender::Remote => return None,
        }
        Some(())
    }

    /// Whether a segment of the client with this number can be on its way: not beyond what it sent, and not further back
    /// than what the far side may not have acknowledged yet.
    pub(crate) fn has_sent_lately(&self, sequence: u32) -> bool {
        let oldest = self.client.end.wrapping_sub(self.remote.window.max(OLD_ACK_BYTES));
        at_most(oldest, sequence) && at_most(sequence, self.client.end)
    }

    /// Lifetime class of the connection now.
    pub(crate) fn class(&self) -> Class {
        match self.state {
            State::Established => Class::TcpEstablished,
            State::SynSent
            | State::SynReceived
            | State::SynBoth
            | State::Closing
            | State::Reset => Class::TcpTransitory,
        }
    }

    /// How far the connection has come, for people.
    pub(crate) fn state_name(&self) -> &'static str {
        match self.state {
            State::SynSent => "syn-sent",
            State::SynReceived | State::SynBoth => "syn-received",
            State::Established => "established",
            State::Closing => "closing",
            State::Reset => "reset",
        }
    }

    /// Whether it may be evicted.
    pub(crate) fn hold(&self) -> Hold {
        if self.state == State::Established { Hold::Firm } else { Hold::Loose }
    }

    fn data_of_client(&mut self, segment: &Segment) -> Step {
        if segment.has(flags::RST) {
            self.state = State::Reset;
            return Step::Pass;
        }
        if matches!(self.state, State::SynSent | State::SynReceived) {
            // An answer to something old that the far side sent; no part of this handshake.
            return Step::Pass;
        }
        self.note_client(segment);
        if segment.has(flags::FIN) {
            self.marks.set(CLIENT_IS_FINISHED, true);
        }
        self.settle();
        Step::Pass
    }

    #[inline(always)]
    fn note_client(&mut self, segment: &Segment) {
        let window = u32::from(segment.window) << self.scales.client();
        self.client.window = self.client.window.max(window);
        self.client.end = max(self.client.end, segment.end());
        self.client_acked = max(self.client_acked, segment.acknowledgement);
        let limit = segment.acknowledgement.wrapping_add(window.max(1));
        self.remote.limit = max(self.remote.limit, limit);
    }

    fn data_of_remote(&mut self, segment: &Segment) -> Step {
        if self.state == State::SynReceived {
            return Step::OutOfWindow;
        }
        if self.state == State::SynSent {
            // The far side acknowledges an older connection; the client answers with a reset that ends it there.
            return Step::Pass;
        }
        if !self.is_in_window(segment) {
            return Step::OutOfWindow;
        }
        self.note_remote(segment);
        if segment.has(flags::FIN) {
            self.marks.set(REMOTE_IS_FINISHED, true);
        }
        if self.are_both_finished() {
            self.state = State::Closing;
        }
        Step::Pass
    }

    #[inline(always)]
    fn note_remote(&mut self, segment: &Segment) {
        let window = u32::from(segment.window) << self.scales.remote();
        self.remote.window = self.remote.window.max(window);
        self.remote.end = max(self.remote.end, segment.end());
        let limit = segment.acknowledgement.wrapping_add(window.max(1));
        self.client.limit = max(self.client.limit, limit);
    }

    /// A reset counts only where the client would take it: in its window, or as the answer to its SYN.
    fn reset_of_remote(&mut self, segment: &Segment) -> Step {
        let is_believable = match self.state {
            State::SynSent => segment.has(flags::ACK) && self.acknowledges_syn(segment),
            _ => {
                at_most(self.client_acked, segment.sequence)
                    && at_most(segment.sequence, self.remote.limit)
            }
        };
        if !is_believable {
            return Step::OutOfWindow;
        }
        self.state = State::Reset;
        Step::Pass
    }

    /// The acknowledgement covers the SYN, and perhaps data that it carried.
    fn acknowledges_syn(&self, segment: &Segment) -> bool {
        at_most(self.syn.sequence.wrapping_add(1), segment.acknowledgement)
            && at_most(segment.acknowledgement, self.client.end)
    }

    #[inline(always)]
    fn is_in_window(&self, segment: &Segment) -> bool {
        let oldest = self.client_acked.wrapping_sub(self.client.window.max(1));
        at_most(segment.sequence, self.remote.limit)
            && at_most(oldest, segment.end())
            && (self.marks.has(IS_PICKED_UP) || self.is_acknowledgement_plausible(segment))
    }

    fn is_acknowledgement_plausible(&self, segment: &Segment) -> bool {
        let oldest = self.client.end.wrapping_sub(self.remote.window.max(OLD_ACK_BYTES));
        !segment.has(flags::ACK)
            || at_most(segment.acknowledgement, self.client.end)
                && at_most(oldest, segment.acknowledgement)
    }

    /// The client goes on with the connection: established, unless both sides have finished.
    fn settle(&mut self) {
        self.state = if self.are_both_finished() { State::Closing } else { State::Established };
    }

    fn are_both_finished(&self) -> bool {
        self.marks.has(CLIENT_IS_FINISHED) && self.marks.has(REMOTE_IS_FINISHED)
    }
}

#[cfg(test)]
mod tests {
    use super::flags::*;
    use super::*;

    const CLIENT_ISN: u32 = u32::MAX - 10;
    const REMOTE_ISN: u32 = 0x7fff_fff0;

    fn segment(flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Segment {
        Segment { flags, sequence, acknowledgement, window: 1000, payload, scale: None }
    }

    /// Sequence numbers relative to the first byte of each side.
    fn client(flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Segment {
        let base = (CLIENT_ISN.wrapping_add(1), REMOTE_ISN.wrapping_add(1));
        segment(flags, base.0.wrapping_add(sequence), base.1.wrapping_add(acknowledgement), payload)
    }

    fn remote(flags: u8, sequence: u32, acknowledgement: u32, payload: u16) -> Segment {
        let base = (REMOTE_ISN.wrapping_add(1), CLIENT_ISN.wrapping_add(1));
        segment(flags, base.0.wrapping_add(sequence), base.1.wrapping_add(acknowledgement), payload)
    }

    fn opened() -> Tracker {
        let mut tracker = Tracker::first(&segment(SYN, CLIENT_ISN, 0, 0)).unwrap();
        assert_eq!((tracker.class(), tracker.hold()), (Class::TcpTransitory, Hold::Loose));
        let syn_ack = segment(SYN | ACK, REMOTE_ISN, CLIENT_ISN.wrapping_add(1), 0);
        assert_eq!(tracker.step(Sender::Remote, &syn_ack), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpTransitory);
        assert_eq!(tracker.step(Sender::Client, &client(ACK, 0, 0, 0)), Step::Pass);
        assert_eq!((tracker.class(), tracker.hold()), (Class::TcpEstablished, Hold::Firm));
        tracker
    }

    #[test]
    fn only_a_syn_or_a_bare_ack_starts_a_flow() {
        for flags in 0..=0xffu8 {
            let starts = Tracker::first(&segment(flags, 1, 2, 0)).is_some();
            let relevant = flags & (FIN | SYN | RST | ACK);
            assert_eq!(starts, relevant == SYN || relevant == ACK, "flags {flags:#x}");
        }
    }

    #[test]
    fn data_passes_both_ways_across_the_wrap() {
        let mut tracker = opened();
        for round in 0..100 {
            let (up, down) = (round * 100, round * 900);
            assert_eq!(tracker.step(Sender::Client, &client(ACK, up, down, 100)), Step::Pass);
            assert_eq!(tracker.step(Sender::Remote, &remote(ACK, down, up + 100, 900)), Step::Pass);
        }
        assert_eq!(tracker.class(), Class::TcpEstablished);
    }

    #[test]
    fn segments_outside_the_client_window_are_stopped() {
        let mut tracker = opened();
        assert_eq!(tracker.step(Sender::Client, &client(ACK, 0, 5000, 0)), Step::Pass);
        for (sequence, acknowledgement) in
            [(6001, 0), (3000, 0), (5000, 1), (5000, 0u32.wrapping_sub(70_000))]
        {
            let segment = remote(ACK, sequence, acknowledgement, 10);
            assert_eq!(tracker.step(Sender::Remote, &segment), Step::OutOfWindow, "{segment:?}");
        }
        for sequence in [4000, 5000, 6000] {
            assert_eq!(tracker.step(Sender::Remote, &remote(ACK, sequence, 0, 10)), Step::Pass);
        }
    }

    #[test]
    fn window_scaling_counts_only_if_both_offer_it() {
        for (ours, theirs, is_ok) in
            [(Some(0), Some(3), true), (Some(7), Some(0), true), (Some(7), None, false)]
        {
            let mut tracker =
                Tracker::first(&Segment { scale: ours, ..segment(SYN, CLIENT_ISN, 0, 0) }).unwrap();
            let syn_ack = segment(SYN | ACK, REMOTE_ISN, CLIENT_ISN.wrapping_add(1), 0);
            tracker.step(Sender::Remote, &Segment { scale: theirs, ..syn_ack });
            tracker.step(Sender::Client, &client(ACK, 0, 0, 0));
            let far = if ours == Some(0) { 999 } else { 100_000 };
            let step = tracker.step(Sender::Remote, &remote(ACK, far, 0, 1));
            assert_eq!(step == Step::Pass, is_ok, "{ours:?} {theirs:?}");
        }
    }

    #[test]
    fn simultaneous_open_establishes() {
        let mut tracker = Tracker::first(&segment(SYN, CLIENT_ISN, 0, 0)).unwrap();
        assert_eq!(tracker.step(Sender::Remote, &segment(SYN, REMOTE_ISN, 0, 0)), Step::Pass);
        let syn_ack = segment(SYN | ACK, CLIENT_ISN, REMOTE_ISN.wrapping_add(1), 0);
        assert_eq!(tracker.step(Sender::Client, &syn_ack), Step::Pass);
        assert_eq!(tracker.step(Sender::Remote, &remote(ACK, 0, 0, 0)), Step::Pass);
        assert_eq!(tracker.step(Sender::Client, &client(ACK, 0, 0, 10)), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpEstablished);
    }

    fn opened_from_outside(scales: [Option<u8>; 2]) -> Tracker {
        let [theirs, ours] = scales;
        let syn = Segment { scale: theirs, ..segment(SYN, REMOTE_ISN, 0, 0) };
        let mut tracker = Tracker::first_of_remote(&syn).unwrap();
        assert_eq!((tracker.class(), tracker.hold()), (Class::TcpTransitory, Hold::Loose));
        assert_eq!(tracker.step(Sender::Remote, &syn), Step::Pass);
        let answer = segment(SYN | ACK, CLIENT_ISN, REMOTE_ISN.wrapping_add(1), 0);
        let answer = Segment { scale: ours, ..answer };
        assert_eq!(tracker.step(Sender::Client, &answer), Step::Pass);
        assert_eq!(tracker.step(Sender::Client, &answer), Step::Pass);
        assert_eq!(tracker.step(Sender::Remote, &remote(ACK, 0, 0, 10)), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpTransitory);
        assert_eq!(tracker.step(Sender::Client, &client(ACK, 0, 10, 0)), Step::Pass);
        assert_eq!((tracker.class(), tracker.hold()), (Class::TcpEstablished, Hold::Firm));
        tracker
    }

    #[test]
    fn a_connection_from_outside_is_guarded_like_one_from_inside() {
        for (scales, reach) in
            [([None, None], 1000), ([Some(0), Some(3)], 8000), ([Some(2), None], 1000)]
        {
            let mut tracker = opened_from_outside(scales);
            let last = remote(ACK, 10 + reach, 0, 1);
            assert_eq!(tracker.step(Sender::Remote, &last), Step::Pass, "{scales:?}");
            let far = remote(ACK, 11 + reach, 0, 1);
            assert_eq!(tracker.step(Sender::Remote, &far), Step::OutOfWindow, "{scales:?}");
            let blind = remote(RST, 9, 0, 0);
            assert_eq!(tracker.step(Sender::Remote, &blind), Step::OutOfWindow);
        }
    }

    #[test]
    fn only_a_syn_from_outside_starts_a_flow() {
        for flags in 0..=0xffu8 {
            let starts = Tracker::first_of_remote(&segment(flags, 1, 2, 0)).is_some();
            assert_eq!(starts, flags & (FIN | SYN | RST | ACK) == SYN, "flags {flags:#x}");
        }
    }

    #[test]
    fn before_the_client_answers_only_its_opener_may_go_on() {
        let mut tracker = Tracker::first_of_remote(&segment(SYN, REMOTE_ISN, 0, 0)).unwrap();
        for flags in [ACK, FIN | ACK, SYN | ACK] {
            let step = tracker.step(Sender::Remote, &remote(flags, 0, 0, 10));
            assert_eq!(step, Step::OutOfWindow, "flags {flags:#x}");
        }
        let stray = segment(RST, REMOTE_ISN.wrapping_add(2), 0, 0);
        assert_eq!(tracker.step(Sender::Remote, &stray), Step::OutOfWindow);
        assert_eq!(tracker.step(Sender::Remote, &remote(RST, 0, 0, 0)), Step::Pass);
        assert_eq!(tracker.step(Sender::Remote, &segment(SYN, 5, 0, 0)), Step::Reopen);
        // The port is closed.
        let mut tracker = Tracker::first_of_remote(&segment(SYN, REMOTE_ISN, 0, 0)).unwrap();
        let refusal = segment(RST | ACK, 0, REMOTE_ISN.wrapping_add(1), 0);
        assert_eq!(tracker.step(Sender::Client, &refusal), Step::Pass);
        assert_eq!(tracker.step(Sender::Remote, &segment(SYN, 5, 0, 0)), Step::Reopen);
    }

    #[test]
    fn closing_needs_both_ends_and_allows_a_new_connection() {
        let mut tracker = opened();
        tracker.step(Sender::Client, &client(FIN | ACK, 0, 0, 0));
        assert_eq!(tracker.class(), Class::TcpEstablished);
        tracker.step(Sender::Remote, &remote(FIN | ACK, 0, 1, 0));
        assert_eq!((tracker.class(), tracker.hold()), (Class::TcpTransitory, Hold::Loose));
        tracker.step(Sender::Client, &client(ACK, 1, 1, 0));
        assert_eq!(tracker.class(), Class::TcpTransitory);
        assert_eq!(tracker.step(Sender::Client, &segment(SYN, 77, 0, 0)), Step::Reopen);
    }

    #[test]
    fn a_blind_reset_is_stopped_and_a_believed_one_is_not_final() {
        let mut tracker = opened();
        tracker.step(Sender::Client, &client(ACK, 0, 500, 0));
        for sequence in [499, 1501, 0x8000_0000] {
            let step = tracker.step(Sender::Remote, &remote(RST, sequence, 0, 0));
            assert_eq!(step, Step::OutOfWindow);
            assert_eq!(tracker.class(), Class::TcpEstablished);
        }
        assert_eq!(tracker.step(Sender::Remote, &remote(RST, 500, 0, 0)), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpTransitory);
        // RFC 5961: the client challenges it and goes on.
        assert_eq!(tracker.step(Sender::Client, &client(ACK, 0, 500, 0)), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpEstablished);
    }

    #[test]
    fn a_refused_connection_needs_the_right_acknowledgement() {
        let mut tracker = Tracker::first(&segment(SYN, CLIENT_ISN, 0, 0)).unwrap();
        for guess in [0, CLIENT_ISN, CLIENT_ISN.wrapping_add(2)] {
            let reset = segment(RST | ACK, 0, guess, 0);
            assert_eq!(tracker.step(Sender::Remote, &reset), Step::OutOfWindow);
        }
        let reset = segment(RST | ACK, 0, CLIENT_ISN.wrapping_add(1), 0);
        assert_eq!(tracker.step(Sender::Remote, &reset), Step::Pass);
        assert_eq!(tracker.step(Sender::Client, &segment(SYN, 1, 0, 0)), Step::Reopen);
    }

    #[test]
    fn a_connection_that_both_sides_start_anew_replaces_the_old_one() {
        let mut tracker = opened();
        let syn = segment(SYN, 0x5000_0000, 0, 0);
        assert_eq!(tracker.step(Sender::Client, &syn), Step::Pass);
        // The old connection still stands: the far side may challenge the SYN.
        assert_eq!(tracker.step(Sender::Remote, &remote(ACK, 0, 0, 0)), Step::Pass);
        let far_isn = REMOTE_ISN.wrapping_add(0x4000_0000);
        let guess = segment(SYN | ACK, far_isn, 0x5000_0002, 0);
        assert_eq!(tracker.step(Sender::Remote, &guess), Step::OutOfWindow);
        let answer = segment(SYN | ACK, far_isn, 0x5000_0001, 0);
        assert_eq!(tracker.step(Sender::Remote, &answer), Step::Pass);
        let ack = segment(ACK, 0x5000_0001, far_isn.wrapping_add(1), 10);
        assert_eq!(tracker.step(Sender::Client, &ack), Step::Pass);
        let data = segment(ACK, far_isn.wrapping_add(1), 0x5000_000b, 100);
        assert_eq!(tracker.step(Sender::Remote, &data), Step::Pass);
        assert_eq!(tracker.class(), Class::TcpEstablished);
    }

    #[test]
    fn all_of_the_syn_that_restarts_a_connection_counts() {
        const ISN: u32 = 0x5000_0000;
        const FAR_ISN: u32 = REMOTE_ISN.wrapping_add(0x4000_0000);
        for (scale, reach) in
            [(None, 1000), (Some(0), 1000), (Some(3), 8000), (Some(255), 1000 << 14)]
        {
            let mut tracker = opened();
            // One that is no beginning takes the place of an earlier one.
            tracker.step(Sender::Client, &segment(SYN, ISN, 0, 0));
            tracker.step(Sender::Client, &segment(SYN | FIN, ISN, 0, 0));
            let answer = segment(SYN | ACK, FAR_ISN, ISN + 1, 0);
            assert_eq!(tracker.step(Sender::Remote, &answer), Step::OutOfWindow);
            // With data (RFC 7413), of which the far side acknowledges as much as it likes.
            let syn = Segment { scale, ..segment(SYN, ISN, 0, 500) };
            tracker.step(Sender::Client, &syn);
            let answer = Segment { scale: Some(0), ..segment(SYN | ACK, FAR_ISN, ISN + 502, 0) };
            assert_eq!(tracker.step(Sender::Remote, &answer), Step::OutOfWindow);
            let answer = Segment { acknowledgement: ISN + 501, ..answer };
            assert_eq!(tracker.step(Sender::Remote, &answer), Step::Pass);
            let ack = segment(ACK, ISN + 501, FAR_ISN + 1, 0);
            assert_eq!(tracker.step(Sender::Client, &ack), Step::Pass);
            let data = |ahead| segment(ACK, FAR_ISN + 1 + ahead, ISN + 501, 1);
            assert_eq!(tracker.step(Sender::Remote, &data(reach + 1)), Step::OutOfWindow);
            assert_eq!(tracker.step(Sender::Remote, &data(reach)), Step::Pass, "{scale:?}");
        }
    }

    #[test]
    fn a_connection_older_than_us_is_picked_up() {
        let mut tracker = Tracker::first(&client(ACK, 0, 0, 0)).unwrap();
        assert_eq!(tracker.class(), Class::TcpEstablished);
        // Acknowledges bytes that we did not see.
        assert_eq!(tracker.step(Sender::Remote, &remote(ACK, 0, 5000, 1448)), Step::Pass);
        assert_eq!(
            tracker.step(Sender::Remote, &remote(ACK, 0x4000_0000, 0, 1)),
            Step::OutOfWindow
        );
    }

    #[test]
    fn illegal_flags_are_told_from_legal_ones() {
        for flags in [0, SYN | FIN, SYN | RST, FIN, FIN | RST | ACK, URG, 0x08] {
            assert!(!segment(flags, 0, 0, 0).has_legal_flags(), "flags {flags:#x}");
        }
        for flags in [SYN, SYN | ACK, ACK | 0x08, RST, RST | ACK, FIN | ACK | 0x08, SYN | 0xc0] {
            assert!(segment(flags, 0, 0, 0).has_legal_flags(), "flags {flags:#x}");
        }
    }
}
