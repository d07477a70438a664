//! Planted defects: the drivers, broken on purpose at run time, so that the simulation can show that it notices.
//!
//! One build has all of them, and at most one is active at a time, chosen by `plant` for the present thread. Each is one
//! condition at the place where the check or the act is; where two places hold the same thing back, both ask for it, as it
//! is the behaviour that is broken. Without the feature `fake` [`is_planted`] is constant `false`: the image has nothing of
//! it. `cargo xtask test --long mutants` wants each of them found.
#![forbid(unsafe_code)]

macro_rules! defects {
    ($($(#[doc = $text:literal])+ $variant:ident = $name:literal,)+) => {
        /// A way to break the drivers.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Defect {
            $($(#[doc = $text])+ $variant,)+
        }

        #[cfg(any(test, feature = "fake"))]
        impl Defect {
            /// All of them, in the order of the packet's path.
            pub const ALL: &[Defect] = &[$(Defect::$variant,)+];

            /// A name for command lines and records, which stays.
            pub fn name(self) -> &'static str {
                match self {
                    $(Defect::$variant => $name,)+
                }
            }

            /// What it does.
            pub fn description(self) -> &'static str {
                match self {
                    $(Defect::$variant => concat!($($text,)+).trim_ascii(),)+
                }
            }

            /// The defect of that name.
            pub fn parse(name: &str) -> Option<Defect> {
                Defect::ALL.iter().copied().find(|defect| defect.name() == name)
            }
        }
    };
}

defects! {
    // From a client.
    /// A TX request may reach beyond its page.
    TxSpanUnchecked = "tx-span-unchecked",
    /// A TX request of no bytes is taken.
    TxEmptyAccepted = "tx-empty-accepted",
    /// A frame shorter or longer than any frame is taken.
    TxLengthUnchecked = "tx-length-unchecked",
    /// Further slots may hold more bytes than the packet.
    TxSizesUnchecked = "tx-sizes-unchecked",
    /// A packet may have any number of slots: those beyond the last place count for nothing.
    TxSlotsUncounted = "tx-slots-uncounted",
    /// A slot's size is read again from the shared page after the copy.
    TxSlotReadTwice = "tx-slot-read-twice",
    /// An extra info of unknown type is passed over.
    TxExtraUnknown = "tx-extra-unknown",
    /// A client's word that a checksum is right counts as leave to compute it anew.
    TxChecksumBelieved = "tx-checksum-believed",
    /// A client's partial checksum counts as a complete one.
    TxBlankIgnored = "tx-blank-ignored",
    /// A failed grant copy counts as done.
    TxCopyFailureIgnored = "tx-copy-failure-ignored",
    /// A refused request gets no response.
    TxErrorUnanswered = "tx-error-unanswered",
    /// A request gets two responses.
    TxAnsweredTwice = "tx-answered-twice",
    /// One client may fill the whole batch of a turn.
    ClientBudgetIgnored = "client-budget-ignored",

    // The rings.
    /// A producer index may be ahead by more than the ring holds.
    RingAheadAccepted = "ring-ahead-accepted",
    /// A producer index may go back over what was seen.
    RingBackAccepted = "ring-back-accepted",
    /// No event is asked for at the next request.
    RingEventNotAsked = "ring-event-not-asked",
    /// Responses are published and nobody is told.
    NotifyForgotten = "notify-forgotten",

    // To a client.
    /// A frame goes to the client in the next slot.
    DeliveredToAnother = "delivered-to-another",
    /// A frame that could not be copied to a client is answered as if it had been.
    RxCopyFailureIgnored = "rx-copy-failure-ignored",
    /// Any number of frames may wait for a client that posts no buffers.
    RxQueueUnbounded = "rx-queue-unbounded",
    /// What waits for a client that posts no buffers waits for ever.
    RxQueueNeverDropped = "rx-queue-never-dropped",
    /// Every frame is sent as one whose checksum was verified.
    ValidatedClaimed = "validated-claimed",

    // To the uplink.
    /// A frame is granted to the uplink before its verdict.
    GrantedBeforeVerdict = "granted-before-verdict",
    /// A client's frame counts as that of the client in the next slot.
    OriginConfused = "origin-confused",
    /// A page is granted with what it held before behind the frame.
    SentPageNotCleared = "sent-page-not-cleared",
    /// A frame is granted for writing.
    SentPageWritable = "sent-page-writable",
    /// The grant of a sent frame is kept after its response.
    SentGrantKept = "sent-grant-kept",
    /// A response to nothing that was sent is believed.
    ResponseIdTrusted = "response-id-trusted",
    /// A TX response frees no id, so that the frontend runs out of them.
    SentIdNotFreed = "sent-id-not-freed",

    // From the uplink.
    /// A receive buffer is posted with what its page held before.
    BufferNotCleared = "buffer-not-cleared",
    /// A received page is used while the backend may still write it.
    ReceivedPageStillGranted = "received-page-still-granted",
    /// A page that the backend has mapped counts as given back.
    BusyPageReused = "busy-page-reused",
    /// Pages in quarantine are never looked at again.
    QuarantineForgotten = "quarantine-forgotten",
    /// An RX response may name any buffer.
    RxIdTrusted = "rx-id-trusted",
    /// An RX response may be of any length and offset.
    RxSpanUnchecked = "rx-span-unchecked",
    /// An RX response's data are read from the start of the page.
    RxOffsetIgnored = "rx-offset-ignored",
    /// The uplink's word that a checksum is right counts as leave to compute it anew.
    RxChecksumBelieved = "rx-checksum-believed",
    /// The uplink's partial checksum counts as a complete one.
    RxBlankIgnored = "rx-blank-ignored",
    /// An extra info of the uplink of unknown type is passed over.
    RxExtraUnknown = "rx-extra-unknown",

    // Connections.
    /// A storm of events is served event by event.
    EventStormServed = "event-storm-served",
    /// The event channel of a client that goes stays open.
    PortLeaked = "port-leaked",
    /// The rings of a client that goes stay mapped.
    MappingLeaked = "mapping-leaked",
    /// The watch on a client that is gone stays.
    WatchLeaked = "watch-leaked",
    /// A client that closes is served on.
    FrontendStateIgnored = "frontend-state-ignored",
    /// An uplink that closes is used on.
    BackendStateIgnored = "backend-state-ignored",
    /// A peer's state may be looked at any number of times.
    LooksUnlimited = "looks-unlimited",
}

#[cfg(any(test, feature = "fake"))]
std::thread_local! {
    static PLANTED: core::cell::Cell<Option<Defect>> = const { core::cell::Cell::new(None) };
}

/// Makes a defect the active one of this thread; `None`: the drivers are whole again.
#[cfg(any(test, feature = "fake"))]
pub fn plant(defect: Option<Defect>) {
    PLANTED.set(defect);
}

/// Whether this defect is the active one.
#[cfg(any(test, feature = "fake"))]
pub fn is_planted(defect: Defect) -> bool {
    PLANTED.get() == Some(defect)
}

/// Without the in-memory hypervisor there are no defects.
#[cfg(not(any(test, feature = "fake")))]
#[inline(always)]
pub const fn is_planted(_: Defect) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_unique_plain_and_parsed_back() {
        let names: BTreeSet<&str> = Defect::ALL.iter().map(|defect| defect.name()).collect();
        assert_eq!(names.len(), Defect::ALL.len());
        assert!(names.len() >= 22);
        for defect in Defect::ALL {
            let name = defect.name();
            let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte == b'-';
            assert!(name.bytes().all(is_plain), "{name}");
            assert_eq!(Defect::parse(name), Some(*defect));
            assert!(defect.description().ends_with('.'), "{name}");
        }
        assert_eq!(Defect::parse("no-such-defect"), None);
    }

    #[test]
    fn one_defect_is_active_on_one_thread() {
        plant(Some(Defect::PortLeaked));
        assert!(is_planted(Defect::PortLeaked) && !is_planted(Defect::WatchLeaked));
        std::thread::spawn(|| assert!(!is_planted(Defect::PortLeaked))).join().expect("no panic");
        plant(None);
        assert!(Defect::ALL.iter().all(|defect| !is_planted(*defect)));
    }
}
