//! What the toolstack prepares before the domain starts: the pages and ports of xenstore and of the console.
#![forbid(unsafe_code)]

use crate::abi::DomId;
use crate::event::Channel;
use crate::hypercall;
use crate::shared::SharedPage;

/// The page shared with xenstored (Xen public/io/xs_wire.h, `xenstore_domain_interface`) and the port for its events,
/// masked until the first `unmask`. `None` if the toolstack made none. To be called once.
pub fn xenstore() -> Option<(SharedPage, Channel)> {
    let (page, port) = hypercall::store()?;
    Some((page, Channel::from_toolstack(port)))
}

/// Our own number, if Xen tells it; xenstore has it as well (relative path `domid`).
pub fn own_domain() -> Option<DomId> {
    hypercall::own_domain()
}
