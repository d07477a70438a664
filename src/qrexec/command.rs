//! The text of a call: `user ":" ["nogui:"] command NUL` (Qubes `exec.c`).
//!
//! ```text
//! command = "QUBESRPC" SP service ["+" argument] SP source [SP target-type SP target] | any shell text
//! ```

/// Why a text is not a command. The caller gets exit code 125.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// No NUL at the end, or one before it.
    #[error("command is not terminated by one NUL")]
    NotTerminated,
    /// Longer than what is kept of a message.
    #[error("command too long")]
    TooLong,
    /// Not UTF-8.
    #[error("command is not text")]
    NotText,
    /// No colon after the user.
    #[error("command without user")]
    NoUser,
    /// `QUBESRPC` without service name.
    #[error("command without service")]
    NoService,
    /// `QUBESRPC service` without the caller's name.
    #[error("command without source")]
    NoSource,
    /// A target needs two words.
    #[error("command with an incomplete target or more words than known")]
    BadTarget,
}

/// What is to be run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command<'t> {
    /// A service.
    Service(ServiceCall<'t>),
    /// A shell command. There is no shell.
    Shell(&'t str),
}

/// A call of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServiceCall<'t> {
    /// User to run as; there are no users here.
    pub user: &'t str,
    /// Did the text ask not to wait for a graphical session?
    pub is_nogui: bool,
    /// Name of the service, not empty.
    pub service: &'t str,
    /// What followed `+`. Calls through the policy always carry a `+`, direct ones from dom0 do not: an empty
    /// argument and none mean the same.
    pub argument: Option<&'t str>,
    /// `dom0` or the name of the calling VM, as dom0 says.
    pub source: &'t str,
    /// The target that the caller named, if dom0 passed it on.
    pub target: Option<Target<'t>>,
}

/// A call's original target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target<'t> {
    /// `name` or `keyword`.
    pub kind: &'t str,
    /// The rest.
    pub name: &'t str,
}

impl<'t> Command<'t> {
    /// Parses the text field of a message, NUL included.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub fn parse(text: &'t [u8]) -> Result<Self, CommandError> {
        let text = text.strip_suffix(b"\0").ok_or(CommandError::NotTerminated)?;
        if text.contains(&0) {
            return Err(CommandError::NotTerminated);
        }
        let text = core::str::from_utf8(text).map_err(|_| CommandError::NotText)?;
        let (user, command) = text.split_once(':').ok_or(CommandError::NoUser)?;
        let (is_nogui, command) = match command.strip_prefix("nogui:") {
            Some(rest) => (true, rest),
            None => (false, command),
        };
        let mut words = command.split(' ');
        if words.next() != Some("QUBESRPC") {
            return Ok(Self::Shell(command));
        }
        let name = words.next().unwrap_or_default();
        let (service, argument) = match name.split_once('+') {
            Some((service, argument)) => (service, Some(argument)),
            None => (name, None),
        };
        if service.is_empty() {
            return Err(CommandError::NoService);
        }
        let source = words.next().filter(|s| !s.is_empty()).ok_or(CommandError::NoSource)?;
        let target = parse_target(words)?;
        Ok(Self::Service(ServiceCall { user, is_nogui, service, argument, source, target }))
    }
}

fn parse_target<'t>(
    mut words: impl Iterator<Item = &'t str>,
) -> Result<Option<Target<'t>>, CommandError> {
    match (words.next(), words.next(), words.next()) {
        (None, _, _) => Ok(None),
        (Some(kind), Some(name), None) if !kind.is_empty() && !name.is_empty() => {
            Ok(Some(Target { kind, name }))
        }
        _ => Err(CommandError::BadTarget),
    }
}
