//! What this VM asks dom0 to note of it, once after its start: the feature `qubes-firewall`, without which dom0 writes no
//! rules for the qubes behind it. As Qubes' own agent does it: a key in QubesDB for each feature, then a call of
//! `qubes.FeaturesRequest`, at which dom0 reads them. dom0 takes it of a standalone VM; of any other, and where its policy
//! says no, nothing changes, and the feature is there if `rust-firewall-dom0 create` or a person has set it.

use super::EventLoop;
use super::machine::Machine;
use crate::log::{Sink, Source};
use crate::qrexec::RequestEnd;

const KEY: &str = "/features-request/qubes-firewall";
const VALUE: &[u8] = b"1";
const SERVICE: &str = "qubes.FeaturesRequest";

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Announcement {
    /// Nothing was done.
    #[default]
    Due,
    /// The key was handed to the QubesDB client.
    Written,
    /// dom0 was asked, or the key could not be written. Not again before the next start.
    Over,
}

impl<S: Sink> EventLoop<S> {
    /// The next step, if its time has come. Costs a comparison once it is over.
    pub(super) fn announce_features<M: Machine>(&mut self, machine: &mut M) {
        if self.announcement == Announcement::Over || !self.is_database_up || !self.agent.is_ready()
        {
            return;
        }
        if self.announcement == Announcement::Due {
            self.announcement = match self.database.write(KEY, VALUE) {
                Ok(()) => Announcement::Written,
                Err(error) => {
                    self.log.line(
                        self.now,
                        Source::Control,
                        format_args!("feature qubes-firewall not asked for: {error}"),
                    );
                    Announcement::Over
                }
            };
            // It is sent, and the answer read, in the turns that follow.
            let _ = self.serve_database(machine);
        }
        // dom0 reads the key when it is asked: it must be there.
        if self.announcement == Announcement::Written && self.database.is_settled() {
            // Without success: dom0 speaks version 2, or has no room now, which is as good as no for something so small.
            if !self.agent.request(SERVICE) {
                self.log.line(
                    self.now,
                    Source::Qrexec,
                    format_args!("{SERVICE} not called: dom0 does not take calls now"),
                );
            }
            self.announcement = Announcement::Over;
        }
    }

    /// What became of the call.
    pub(super) fn announced(&mut self, end: RequestEnd) {
        let said = match end {
            RequestEnd::Ran(0) => "done",
            RequestEnd::Ran(_) => "failed in dom0",
            RequestEnd::Refused => "refused by dom0, which is harmless",
            RequestEnd::Lost => "no answer of dom0",
        };
        self.log.line(self.now, Source::Qrexec, format_args!("{SERVICE}: {said}"));
    }
}
