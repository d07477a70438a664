//! What the agent can run.

use super::command::ServiceCall;

/// Exit status of a call, as the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode(pub i32);

impl ExitCode {
    /// Done.
    pub const SUCCESS: Self = Self(0);
    /// A problem of qrexec itself: a command that cannot be parsed.
    pub const QREXEC_PROBLEM: Self = Self(125);
    /// Refused: too many calls at once.
    pub const REFUSED: Self = Self(126);
    /// There is no such service.
    pub const NOT_FOUND: Self = Self(127);
}

/// The name is not in the table; the caller gets exit code 127.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such service")]
pub struct NoSuchService;

/// What a session has to say when there is room for more output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// So many bytes of the buffer were filled with standard output.
    Stdout(usize),
    /// So many bytes of the buffer were filled with standard error.
    Stderr(usize),
    /// Nothing before more input has come. The call ends if nothing moves for [`super::PEER_TIMEOUT`].
    Waiting,
    /// Nothing yet: to be asked again in the next turn, however soon that is.
    Later,
    /// All output was taken; the call ends.
    Exit(ExitCode),
}

/// The services. The implementor holds whatever they need; what belongs to one call is its `Session`.
///
/// Output is pulled: `poll` is called when the last piece has gone into the data channel, so that a slow caller costs
/// one buffer and nothing else. Input comes in pieces of any size and must be taken (and bounded) at once.
pub trait Services {
    /// State of one running call.
    type Session;

    /// Begins a call.
    ///
    /// # Errors
    /// [`NoSuchService`]: the name is unknown.
    fn start(&mut self, call: &ServiceCall<'_>) -> Result<Self::Session, NoSuchService>;

    /// A piece of the caller's standard input.
    fn stdin(&mut self, session: &mut Self::Session, bytes: &[u8]);

    /// The end of the caller's standard input.
    fn stdin_end(&mut self, session: &mut Self::Session);

    /// The next piece of output, or the end.
    fn poll(&mut self, session: &mut Self::Session, buffer: &mut [u8]) -> Progress;
}

/// What dom0 calls in every VM: at host suspend, to set the clock, and to wait until the VM is up. Nothing of it
/// needs an action here, except that the date is read to its end.
#[derive(Debug, Default)]
pub struct StandardServices;

/// A running standard service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StandardSession {
    /// Nothing left to do.
    Done,
    /// The caller's input is being read.
    Reading,
}

/// Services that are done when they are called.
const AT_ONCE: [&str; 7] = [
    "qubes.SuspendPreAll",
    "qubes.SuspendPre",
    "qubes.SuspendPost",
    "qubes.SuspendPostAll",
    "qubes.WaitForSession",
    "qubes.WaitForNetworkUplink",
    "qubes.WaitForRunningSystem",
];

/// Takes one line on standard input. The clock comes from Xen, so that the date is not used.
const SET_DATE_TIME: &str = "qubes.SetDateTime";

impl Services for StandardServices {
    type Session = StandardSession;

    fn start(&mut self, call: &ServiceCall<'_>) -> Result<StandardSession, NoSuchService> {
        if AT_ONCE.contains(&call.service) {
            Ok(StandardSession::Done)
        } else if call.service == SET_DATE_TIME {
            Ok(StandardSession::Reading)
        } else {
            Err(NoSuchService)
        }
    }

    fn stdin(&mut self, _: &mut StandardSession, _: &[u8]) {}

    fn stdin_end(&mut self, session: &mut StandardSession) {
        *session = StandardSession::Done;
    }

    fn poll(&mut self, session: &mut StandardSession, _: &mut [u8]) -> Progress {
        match session {
            StandardSession::Done => Progress::Exit(ExitCode::SUCCESS),
            StandardSession::Reading => Progress::Waiting,
        }
    }
}
