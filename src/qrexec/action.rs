//! What the agent wants of the platform.

use super::agent::CallId;
use super::control::ControlError;
use super::request::RequestEnd;
use super::shell::Ending;

/// What the platform is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Connect, as vchan client, to `port` of `domain`; then `data_opened` or, if that cannot be, `data_closed`.
    OpenData {
        /// The call.
        call: CallId,
        /// Its server.
        domain: u16,
        /// The vchan port.
        port: u32,
    },
    /// Serve, as vchan server, `port` for dom0: the data channel of our own call. Then `data_opened`; `data_closed` when
    /// dom0 closes it or it cannot be.
    ServeData {
        /// The call.
        call: CallId,
        /// The vchan port.
        port: u32,
    },
    /// dom0 has asked for it by a call, which was answered.
    End(Ending),
    /// Our own call is over.
    RequestEnded(RequestEnd),
    /// Close the data channel, or give up connecting. What was written stays readable for the caller. Not to be
    /// reported back.
    CloseData {
        /// The call.
        call: CallId,
    },
    /// dom0 broke the protocol: close the control channel and serve a new one.
    ResetControl {
        /// Why.
        reason: ControlError,
    },
}
