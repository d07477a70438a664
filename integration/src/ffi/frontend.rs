//! What a network frontend in user space is made of: pages that another domain may write (libxengnttab), and an event channel
//! to it (libxenevtchn).
#![expect(
    unsafe_code,
    reason = "calls into libxengnttab and libxenevtchn, and a page that another domain writes"
)]

use std::ffi::{c_int, c_uint, c_void};
use std::io;
use std::ptr::NonNull;

/// Size of a page, bytes.
const PAGE: usize = 4096;

#[link(name = "xengnttab")]
unsafe extern "C" {
    fn xengntshr_open(logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xengntshr_close(handle: *mut c_void) -> c_int;
    fn xengntshr_share_pages(
        handle: *mut c_void,
        domain: u32,
        count: c_int,
        references: *mut u32,
        writable: c_int,
    ) -> *mut c_void;
    fn xengntshr_unshare(handle: *mut c_void, start: *mut c_void, count: u32) -> c_int;
}

/// A page of ours that another domain may read and write at any time.
#[derive(Debug)]
pub struct SharedPage {
    /// From `xengntshr_open`, closed in `drop`.
    handle: NonNull<c_void>,
    /// From `xengntshr_share_pages`: [`PAGE`] bytes, page aligned, unshared in `drop`.
    start: NonNull<u8>,
    reference: u32,
}

impl SharedPage {
    /// Shares a page of zeros with `domain`.
    ///
    /// # Errors
    /// When the library cannot open its device, or grant.
    pub fn new(domain: u32) -> io::Result<Self> {
        // SAFETY: a null logger is allowed.
        let handle = NonNull::new(unsafe { xengntshr_open(std::ptr::null_mut(), 0) })
            .ok_or_else(io::Error::last_os_error)?;
        let mut reference = 0;
        // SAFETY: `handle` was just opened; the library writes one number, for the one page that is asked for.
        let start =
            unsafe { xengntshr_share_pages(handle.as_ptr(), domain, 1, &raw mut reference, 1) };
        match NonNull::new(start.cast()) {
            Some(start) => Ok(Self { handle, start, reference }),
            None => {
                let error = io::Error::last_os_error();
                // SAFETY: `handle` is open and not used again.
                unsafe { xengntshr_close(handle.as_ptr()) };
                Err(error)
            }
        }
    }

    /// The grant reference by which the other domain finds it.
    pub fn reference(&self) -> u32 {
        self.reference
    }

    /// Writes the number at word `index`; those beyond the page are none.
    pub fn write(&mut self, index: usize, value: u32) {
        if index < PAGE / size_of::<u32>() {
            // SAFETY: within the page, which is mapped until `drop`, and aligned as the page is; volatile, as the other
            // domain looks at it at any time, and no reference to it is ever made.
            unsafe { self.start.as_ptr().cast::<u32>().add(index).write_volatile(value) };
        }
    }

    /// Reads the number at word `index`; 0 beyond the page.
    pub fn read(&self, index: usize) -> u32 {
        if index >= PAGE / size_of::<u32>() {
            return 0;
        }
        // SAFETY: as in `write`; any bits are a number.
        unsafe { self.start.as_ptr().cast::<u32>().add(index).read_volatile() }
    }
}

impl Drop for SharedPage {
    fn drop(&mut self) {
        // SAFETY: both are from the library, live, and not used again.
        unsafe {
            xengntshr_unshare(self.handle.as_ptr(), self.start.as_ptr().cast(), 1);
            xengntshr_close(self.handle.as_ptr());
        }
    }
}

#[link(name = "xenevtchn")]
unsafe extern "C" {
    fn xenevtchn_open(logger: *mut c_void, flags: c_uint) -> *mut c_void;
    fn xenevtchn_close(handle: *mut c_void) -> c_int;
    fn xenevtchn_bind_unbound_port(handle: *mut c_void, domain: u32) -> c_int;
    fn xenevtchn_notify(handle: *mut c_void, port: u32) -> c_int;
}

/// An event channel of ours to which another domain may bind.
#[derive(Debug)]
pub struct EventChannel {
    /// From `xenevtchn_open`, closed in `drop`, which unbinds the port.
    handle: NonNull<c_void>,
    port: u32,
}

impl EventChannel {
    /// Offers a port to `domain`.
    ///
    /// # Errors
    /// When the library cannot open its device, or there is no port.
    pub fn new(domain: u32) -> io::Result<Self> {
        // SAFETY: a null logger is allowed.
        let handle = NonNull::new(unsafe { xenevtchn_open(std::ptr::null_mut(), 0) })
            .ok_or_else(io::Error::last_os_error)?;
        // SAFETY: `handle` was just opened.
        let port = unsafe { xenevtchn_bind_unbound_port(handle.as_ptr(), domain) };
        match u32::try_from(port) {
            Ok(port) => Ok(Self { handle, port }),
            Err(_) => {
                let error = io::Error::last_os_error();
                // SAFETY: `handle` is open and not used again.
                unsafe { xenevtchn_close(handle.as_ptr()) };
                Err(error)
            }
        }
    }

    /// Its number here.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Sends an event; `false` where nobody is bound.
    pub fn notify(&mut self) -> bool {
        // SAFETY: the handle is open, the port is bound through it.
        unsafe { xenevtchn_notify(self.handle.as_ptr(), self.port) == 0 }
    }
}

impl Drop for EventChannel {
    fn drop(&mut self) {
        // SAFETY: from the library, live, and not used again.
        unsafe { xenevtchn_close(self.handle.as_ptr()) };
    }
}
