//! The byte rings of the xenstore page (Xen public/io/xs_wire.h, `struct xenstore_domain_interface`).

use crate::shared::SharedPage;

/// Bytes of each of the two rings.
pub(super) const RING_BYTES: u32 = 1024;

const REQ: usize = 0;
const RSP: usize = 1024;
const REQ_CONS: usize = 2048;
const REQ_PROD: usize = 2052;
const RSP_CONS: usize = 2056;
const RSP_PROD: usize = 2060;

/// An index pair of the page is impossible. The store is trusted: this is the end of the connection, not an attack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Corrupt;

/// Our end. The store may have served an earlier kernel of this domain: indices start anywhere.
#[derive(Debug)]
pub(super) struct Transport {
    page: SharedPage,
    req_prod: u32,
    rsp_cons: u32,
}

impl Transport {
    pub(super) fn new(page: SharedPage) -> Transport {
        let req_prod = page.load_acquire_u32(REQ_PROD);
        let rsp_cons = page.load_acquire_u32(RSP_CONS);
        Transport { page, req_prod, rsp_cons }
    }

    /// Puts as much of `bytes` as fits on the ring; returns how much.
    pub(super) fn send(&mut self, bytes: &[u8]) -> Result<usize, Corrupt> {
        let cons = self.page.load_acquire_u32(REQ_CONS);
        let used = self.req_prod.wrapping_sub(cons);
        let room = RING_BYTES.checked_sub(used).ok_or(Corrupt)?;
        let len = bytes.len().min(room as usize);
        for_each_span(self.req_prod, len, |at, span| {
            if let Some(part) = bytes.get(span) {
                self.page.copy_in(REQ.saturating_add(at), part);
            }
        });
        self.req_prod = self.req_prod.wrapping_add(len as u32);
        if len > 0 {
            self.page.store_release_u32(REQ_PROD, self.req_prod);
        }
        Ok(len)
    }

    /// Takes up to `bytes.len()` bytes off the ring; returns how many.
    pub(super) fn receive(&mut self, bytes: &mut [u8]) -> Result<usize, Corrupt> {
        let prod = self.page.load_acquire_u32(RSP_PROD);
        let ready = prod.wrapping_sub(self.rsp_cons);
        if ready > RING_BYTES {
            return Err(Corrupt);
        }
        let len = bytes.len().min(ready as usize);
        for_each_span(self.rsp_cons, len, |at, span| {
            if let Some(part) = bytes.get_mut(span) {
                self.page.copy_out(RSP.saturating_add(at), part);
            }
        });
        self.rsp_cons = self.rsp_cons.wrapping_add(len as u32);
        if len > 0 {
            self.page.store_release_u32(RSP_CONS, self.rsp_cons);
        }
        Ok(len)
    }
}

/// Splits `len` bytes from ring index `index` on at the end of the ring: offset in the ring, range in the buffer.
fn for_each_span(index: u32, len: usize, mut copy: impl FnMut(usize, core::ops::Range<usize>)) {
    let start = (index % RING_BYTES) as usize;
    let first = len.min((RING_BYTES as usize).saturating_sub(start));
    copy(start, 0..first);
    copy(0, first..len);
}
