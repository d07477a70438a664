//! A real link as the state machines use it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use super::clock::SharedHypervisor;
use crate::dom0::ring::{Link, Refused, Ring};
use crate::ffi::Vchan;

/// A vchan and the hypervisor that knows whether its event channel still leads anywhere.
pub(crate) struct VchanLink {
    vchan: Vchan,
    hypervisor: SharedHypervisor,
}

impl VchanLink {
    pub(crate) fn server(
        hypervisor: &SharedHypervisor,
        domid: u32,
        path: &str,
        size: usize,
    ) -> io::Result<Self> {
        Ok(Self { vchan: Vchan::server(domid, path, size, size)?, hypervisor: hypervisor.clone() })
    }

    pub(crate) fn client(
        hypervisor: &SharedHypervisor,
        domid: u32,
        path: &str,
    ) -> io::Result<Self> {
        Ok(Self { vchan: Vchan::client(domid, path)?, hypervisor: hypervisor.clone() })
    }

    /// Takes an event; only when the descriptor is readable.
    pub(crate) fn take_event(&mut self) {
        self.vchan.wait();
    }
}

impl AsFd for VchanLink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.vchan.as_fd()
    }
}

impl Ring for VchanLink {
    /// As Qubes' library tells it: a live byte of 1 counts only while the event channel is bound to a domain.
    fn link(&mut self) -> Link {
        match self.vchan.is_open() {
            2 => Link::Waiting,
            1 => match self.hypervisor.borrow_mut().is_interdomain(self.vchan.port()) {
                Ok(true) => Link::Open,
                Ok(false) | Err(_) => Link::Closed,
            },
            _ => Link::Closed,
        }
    }

    fn data_ready(&mut self) -> usize {
        self.vchan.data_ready()
    }

    fn space(&mut self) -> usize {
        self.vchan.space()
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Refused> {
        self.vchan.read(buffer).map_err(|_| Refused)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<usize, Refused> {
        self.vchan.write(bytes).map_err(|_| Refused)
    }
}
