//! Planted defects of the core, of the control plane and of their wiring: broken on purpose at run time, so that the
//! simulation of the whole system can show that it notices. `xen::planted` does the same for the drivers.
//!
//! At most one is active at a time, chosen by `plant` for the present thread; each is one condition at the place of the
//! check or the act. Without the feature `fake` `is_planted` is constant `false`: the image has nothing of it.
//! `cargo xtask test --long mutants` wants each of them found.

macro_rules! defects {
    ($($(#[doc = $text:literal])+ $variant:ident = $name:literal,)+) => {
        /// A way to break the firewall.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Defect {
            $($(#[doc = $text])+ $variant,)+
        }

        #[cfg(feature = "fake")]
        impl Defect {
            /// All of them, in the order in which dom0's word travels.
            pub const ALL: &[Defect] = &[$(Defect::$variant,)+];

            /// A name for command lines and records, which stays.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self {
                    $(Defect::$variant => $name,)+
                }
            }

            /// What it does.
            #[must_use]
            pub fn description(self) -> &'static str {
                match self {
                    $(Defect::$variant => concat!($($text,)+).trim_ascii(),)+
                }
            }

            /// The defect of that name.
            #[must_use]
            pub fn parse(name: &str) -> Option<Defect> {
                Defect::ALL.iter().copied().find(|defect| defect.name() == name)
            }
        }
    };
}

defects! {
    // dom0's word.
    /// A link to QubesDB that was lost is not built again.
    DatabaseNotReopened = "database-not-reopened",
    /// With the link to QubesDB all rules are lost.
    DatabaseLossForgets = "database-loss-forgets",
    /// Rules are in force before their commit mark.
    RulesBeforeMark = "rules-before-mark",
    /// A tree that cannot be understood leaves the old rules in force.
    MalformedKeepsOld = "malformed-keeps-old",
    /// A tree that is gone leaves the old rules in force.
    RemovedTreeStays = "removed-tree-stays",
    /// A commit is not acknowledged.
    HandledNotWritten = "handled-not-written",
    /// Another address of ours is not taken.
    OwnAddressStays = "own-address-stays",
    /// The control channel of a qrexec daemon that went is not offered again.
    AgentNotOffered = "agent-not-offered",
    /// A shutdown is acknowledged and not done.
    ShutdownIgnored = "shutdown-ignored",
    /// A pause of the domain counts as time.
    PauseCounts = "pause-counts",

    // What follows for packets.
    /// An edit starts no new generation.
    GenerationKept = "generation-kept",
    /// An edit ends all flows of its client.
    EditEndsFlows = "edit-ends-flows",
    /// A flow that the rules forbid goes on.
    ForbiddenFlowPasses = "forbidden-flow-passes",
    /// A client without rules may do everything.
    NoRulesAccept = "no-rules-accept",
    /// A client whose rules are refused may do everything.
    RefusedRulesAccept = "refused-rules-accept",
    /// The flows of a client that went are kept for the next one at its address.
    DetachedFlowsKept = "detached-flows-kept",
    /// Clients with the same port share one on our address.
    PortShared = "port-shared",
    /// A client's source address is not checked.
    SourceUnchecked = "source-unchecked",

    // Names.
    /// An answer about a name may come from any of the resolvers.
    AnswerFromAnyone = "answer-from-anyone",
    /// An answer about a name may have any number.
    AnswerOfAnyNumber = "answer-of-any-number",
    /// An answer may be about another name.
    AnswerToAnything = "answer-to-anything",
    /// The address of a name counts for as long as any may.
    TtlIgnored = "ttl-ignored",
    /// Names are asked for once.
    NamesNotRefreshed = "names-not-refreshed",
}

#[cfg(feature = "fake")]
std::thread_local! {
    static PLANTED: core::cell::Cell<Option<Defect>> = const { core::cell::Cell::new(None) };
}

/// Makes a defect the active one of this thread; `None`: everything is whole again.
#[cfg(feature = "fake")]
pub fn plant(defect: Option<Defect>) {
    PLANTED.set(defect);
}

/// Whether this defect is the active one.
#[cfg(feature = "fake")]
#[must_use]
pub fn is_planted(defect: Defect) -> bool {
    PLANTED.get() == Some(defect)
}

/// Without the in-memory hypervisor there are no defects.
#[cfg(not(feature = "fake"))]
#[inline(always)]
#[must_use]
pub const fn is_planted(_: Defect) -> bool {
    false
}

#[cfg(all(test, feature = "fake"))]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_no_defect_of_the_drivers_has_one() {
        let drivers = xen::planted::Defect::ALL.iter().map(|defect| defect.name());
        let names: BTreeSet<&str> =
            Defect::ALL.iter().map(|defect| defect.name()).chain(drivers).collect();
        assert_eq!(names.len(), Defect::ALL.len() + xen::planted::Defect::ALL.len());
        assert!(Defect::ALL.len() >= 12);
        for defect in Defect::ALL {
            assert_eq!(Defect::parse(defect.name()), Some(*defect));
            assert!(defect.description().ends_with('.'), "{}", defect.name());
        }
        assert_eq!(Defect::parse("no-such-defect"), None);
    }

    #[test]
    fn one_defect_is_active_on_one_thread() {
        plant(Some(Defect::PortShared));
        assert!(is_planted(Defect::PortShared) && !is_planted(Defect::TtlIgnored));
        std::thread::spawn(|| assert!(!is_planted(Defect::PortShared))).join().unwrap();
        plant(None);
        assert!(Defect::ALL.iter().all(|defect| !is_planted(*defect)));
    }
}
