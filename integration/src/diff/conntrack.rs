//! The kernel's table of flows in a namespace, emptied between rule sets: a set must not meet the flows of the one before.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink};

use crate::error::{Attempt, Result};
use crate::fail;
use crate::netns::Namespace;

/// A request for an answer (NLM_F_REQUEST | NLM_F_ACK of netlink.h) that deletes flows (NFNL_SUBSYS_CTNETLINK,
/// IPCTNL_MSG_CT_DELETE of nfnetlink_conntrack.h), all of both families as it names none.
const FORGET_ALL: [u8; 20] = {
    let [kind_low, kind_high] = 0x0102_u16.to_ne_bytes();
    let [flags_low, flags_high] = 0x0005_u16.to_ne_bytes();
    let [l0, l1, l2, l3] = 20_u32.to_ne_bytes();
    [l0, l1, l2, l3, kind_low, kind_high, flags_low, flags_high, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
};

/// The flows of a namespace.
pub(super) struct Conntrack {
    socket: OwnedFd,
}

impl Conntrack {
    pub(super) fn of(space: &Namespace) -> Result<Self> {
        let open = || {
            let (family, kind) = (AddressFamily::NETLINK, SocketType::RAW);
            net::socket_with(family, kind, SocketFlags::CLOEXEC, Some(netlink::NETFILTER))
                .map_err(io::Error::from)
        };
        let socket = space.run(open)?.doing(|| "cannot reach the kernel's netfilter")?;
        Ok(Self { socket })
    }

    pub(super) fn forget_all(&self) -> Result<()> {
        let kernel = netlink::SocketAddrNetlink::new(0, 0);
        net::sendto(&self.socket, &FORGET_ALL, SendFlags::empty(), &kernel)
            .map_err(io::Error::from)
            .doing(|| "cannot ask the kernel to forget flows")?;
        let mut answer = [0; 64];
        net::recv(&self.socket, &mut answer, RecvFlags::empty())
            .map_err(io::Error::from)
            .doing(|| "the kernel does not say whether it forgot flows")?;
        // Behind the header of the answer: an error number, 0 for none.
        if answer.get(16..20) != Some(&[0; 4]) {
            fail!("the kernel does not forget flows (it needs CONFIG_NF_CT_NETLINK): {answer:?}");
        }
        Ok(())
    }
}
