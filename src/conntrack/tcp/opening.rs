//! How a connection begins: the SYN of either side, both at once, and one that begins it anew.

use super::*;

impl Tracker {
    /// The state after a client's segment that belongs to no flow; `None` if such a segment cannot start one. A bare
    /// acknowledgement can: the connection is older than we are.
    pub(crate) fn first(segment: &Segment) -> Option<Self> {
        use flags::{ACK, FIN, RST, SYN};
        let window = u32::from(segment.window);
        let end = segment.end();
        let limit = end.wrapping_add(window.max(1));
        let client = Side { end, limit, window };
        let tracker = Self {
            client,
            remote: Side { end: 0, limit: 0, window: 0 },
            client_acked: segment.acknowledgement,
            syn: segment.into(),
            syn_scale: offer_of(segment),
            scales: Scales::default(),
            state: State::SynSent,
            marks: Marks::default().with(IS_SCALING_OFFERED, segment.scale.is_some()),
        };
        match segment.flags & (FIN | SYN | RST | ACK) {
            SYN => {
                let scales = Scales::new(segment.scale.unwrap_or(0), 0);
                Some(Self { scales, ..tracker })
            }
            ACK => {
                let client = Side { window: window << MAX_SCALE, ..client };
                let end = segment.acknowledgement;
                let remote = Side { end, limit: end.wrapping_add(client.window.max(1)), ..client };
                Some(Self {
                    client,
                    remote,
                    scales: Scales::new(MAX_SCALE, MAX_SCALE),
                    state: State::Established,
                    marks: tracker.marks.with(IS_PICKED_UP, true),
                    ..tracker
                })
            }
            _ => None,
        }
    }

    /// The state after a SYN from outside to a port that is open to the world. Nothing else starts such a flow: a
    /// connection that is older than we are was lost with the port that it used.
    pub(crate) fn first_of_remote(segment: &Segment) -> Option<Self> {
        use flags::{ACK, FIN, RST, SYN};
        let (window, end) = (u32::from(segment.window), segment.end());
        let is_syn = segment.flags & (FIN | SYN | RST | ACK) == SYN;
        is_syn.then_some(Self {
            client: Side { end: 0, limit: 0, window: 0 },
            remote: Side { end, limit: end, window },
            client_acked: end,
            syn: Syn::default(),
            syn_scale: NO_SCALE,
            scales: Scales::new(0, segment.scale.unwrap_or(0)),
            state: State::SynReceived,
            marks: Marks::default().with(IS_SCALING_OFFERED, segment.scale.is_some()),
        })
    }

    pub(super) fn syn_of_client(&mut self, segment: &Segment) -> Step {
        match self.state {
            State::SynReceived => self.meet_client(segment),
            _ if segment.has(flags::ACK) => self.accept_of_client(segment),
            // Sent again, or with a new initial sequence number.
            State::SynSent => {
                if let Some(anew) = Self::first(segment) {
                    *self = anew;
                }
                Step::Pass
            }
            State::Closing | State::Reset => Step::Reopen,
            // The client lost its state. A far side that did not will challenge it (RFC 5961, 4).
            State::SynBoth | State::Established => {
                self.note_restart(segment);
                Step::Pass
            }
        }
    }

    /// Notes a SYN that restarts the connection; one that cannot begin any takes the place of an earlier one, too.
    fn note_restart(&mut self, segment: &Segment) {
        self.syn = segment.into();
        self.syn_scale = offer_of(segment);
        self.marks.set(IS_RESTARTING, Self::first(segment).is_some());
    }

    /// The connection that the client's latest SYN begins in place of this one, if it is answered.
    fn restarted(&self) -> Option<Self> {
        let Syn { sequence, window, payload } = self.syn;
        let scale = (self.syn_scale != NO_SCALE).then_some(self.syn_scale);
        // What it acknowledges says nothing: it begins a connection.
        let acknowledgement = 0;
        let syn = Segment { flags: flags::SYN, sequence, acknowledgement, window, payload, scale };
        self.marks.has(IS_RESTARTING).then(|| Self::first(&syn)).flatten()
    }

    /// SYN+ACK of the client: half of a simultaneous open.
    fn accept_of_client(&mut self, segment: &Segment) -> Step {
        if self.state == State::SynBoth {
            self.note_client(segment);
        }
        Step::Pass
    }

    /// The client's SYN, which answers that of the far side or crosses it, sets the frame for its sequence numbers.
    fn meet_client(&mut self, segment: &Segment) -> Step {
        let window = u32::from(segment.window);
        self.scales = match segment.scale {
            Some(scale) if self.marks.has(IS_SCALING_OFFERED) => {
                Scales::new(scale, self.scales.remote())
            }
            _ => Scales::default(),
        };
        let end = segment.end();
        let limit = end.wrapping_add(self.remote.window.max(1));
        self.client = Side { end, limit, window };
        self.marks.set(CLIENT_IS_FINISHED, false);
        self.remote.limit = self.remote.end.wrapping_add(window.max(1));
        self.state = State::SynBoth;
        Step::Pass
    }

    pub(super) fn syn_of_remote(&mut self, segment: &Segment) -> Step {
        let answers = segment.has(flags::ACK);
        if let Some(mut anew) = self.restarted()
            && answers
            && anew.acknowledges_syn(segment)
        {
            anew.meet_remote(segment);
            *self = anew;
            return Step::Pass;
        }
        let is_expected = match self.state {
            State::SynSent => !answers || self.acknowledges_syn(segment),
            // Sent again: nothing new in it.
            State::SynBoth | State::Established => at_most(segment.end(), self.remote.end),
            State::SynReceived => match Self::first_of_remote(segment) {
                Some(anew) => {
                    *self = anew;
                    true
                }
                None => false,
            },
            State::Closing | State::Reset if !answers => return Step::Reopen,
            State::Closing | State::Reset => false,
        };
        if !is_expected {
            return Step::OutOfWindow;
        }
        if self.state == State::SynSent {
            self.meet_remote(segment);
        }
        Step::Pass
    }

    /// The first SYN of the far side sets the frame for its sequence numbers.
    fn meet_remote(&mut self, segment: &Segment) {
        let window = u32::from(segment.window);
        self.scales = match segment.scale {
            Some(scale) if self.marks.has(IS_SCALING_OFFERED) => {
                Scales::new(self.scales.client(), scale)
            }
            _ => Scales::default(),
        };
        let end = segment.end();
        let limit = end.wrapping_add(self.client.window.max(1));
        self.remote = Side { end, limit, window };
        self.marks.set(REMOTE_IS_FINISHED, false);
        self.client.limit = self.client.end.wrapping_add(window.max(1));
        self.client_acked = segment.sequence.wrapping_add(1);
        self.state = State::SynBoth;
    }
}
