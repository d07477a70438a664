//! libxl in this process, as libvirtd has it: `xl` loads it anew for each command.

use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::io;
use std::ptr::NonNull;

#[link(name = "xenlight")]
unsafe extern "C" {
    fn libxl_ctx_alloc(
        ctx: *mut *mut c_void,
        version: c_int,
        flags: c_uint,
        logger: *mut c_void,
    ) -> c_int;
    fn libxl_ctx_free(ctx: *mut c_void) -> c_int;
    fn libxl_device_nic_init(nic: *mut c_void);
    fn libxl_device_nic_from_json(ctx: *mut c_void, nic: *mut c_void, text: *const c_char)
    -> c_int;
    fn libxl_device_nic_add(
        ctx: *mut c_void,
        domid: u32,
        nic: *mut c_void,
        how: *const c_void,
    ) -> c_int;
    fn libxl_device_nic_dispose(nic: *mut c_void);
}

#[link(name = "xentoollog")]
unsafe extern "C" {
    fn xtl_createlogger_stdiostream(file: *mut c_void, least: c_int, flags: c_uint) -> *mut c_void;
    fn xtl_logger_destroy(logger: *mut c_void);
}

unsafe extern "C" {
    /// C's `stderr` (stdio.h).
    static stderr: *mut c_void;
}

/// `LIBXL_VERSION` (libxl.h), `XTL_ERROR` (xentoollog.h).
const VERSION: c_int = 0;
const ERRORS: c_int = 8;

/// Room for `libxl_device_nic`, of which only libxl knows the members; it has 504 bytes (Xen 4.17).
type Nic = [u64; 512];

/// A connection to the hypervisor and to xenstore. Neither `Send` nor `Sync`. Errors are told on standard error.
#[derive(Debug)]
pub struct Toolstack {
    /// From `libxl_ctx_alloc`, freed in `drop`.
    ctx: NonNull<c_void>,
    /// From `xtl_createlogger_stdiostream`, destroyed in `drop`.
    logger: NonNull<c_void>,
}

impl Toolstack {
    /// Opens it.
    ///
    /// # Errors
    /// When libxl cannot.
    pub fn open() -> io::Result<Self> {
        // SAFETY: C's `stderr` is open from the start of the process and is not closed.
        let logger = unsafe { xtl_createlogger_stdiostream(stderr, ERRORS, 0) };
        let logger = NonNull::new(logger).ok_or_else(|| io::Error::other("no logger"))?;
        let mut ctx = std::ptr::null_mut();
        // SAFETY: `ctx` is a place for one pointer; the logger lives as long as the context, as `drop` ends it afterwards.
        let status = unsafe { libxl_ctx_alloc(&raw mut ctx, VERSION, 0, logger.as_ptr()) };
        match NonNull::new(ctx).filter(|_| status == 0) {
            Some(ctx) => Ok(Self { ctx, logger }),
            None => {
                // SAFETY: the logger is from above, and no context uses it.
                unsafe { xtl_logger_destroy(logger.as_ptr()) };
                Err(io::Error::other(format!("libxl_ctx_alloc: {status}")))
            }
        }
    }

    /// Gives a domain a network device, which libxl's JSON describes, and waits until its backend has taken it up, as
    /// `xl network-attach` does.
    ///
    /// # Errors
    /// When libxl refuses, or the backend does not answer in 10 s.
    pub fn attach_nic(&self, domid: u32, json: &str) -> io::Result<()> {
        let json = CString::new(json)?;
        let mut place: Box<Nic> = Box::new([0; 512]);
        let (ctx, nic) = (self.ctx.as_ptr(), (&raw mut *place).cast::<c_void>());
        // SAFETY: the context is open; `nic` is aligned room for more than the structure, initialised by libxl before it is read and
        // disposed of by it before the room is freed; `json` is a NUL-terminated string that lives through the call. No asynchronous
        // operation is asked for, so libxl keeps no pointer.
        let status = unsafe {
            libxl_device_nic_init(nic);
            let mut status = libxl_device_nic_from_json(ctx, nic, json.as_ptr());
            if status == 0 {
                status = libxl_device_nic_add(ctx, domid, nic, std::ptr::null());
            }
            libxl_device_nic_dispose(nic);
            status
        };
        match status {
            0 => Ok(()),
            status => Err(io::Error::other(format!("libxl_device_nic_add: {status}"))),
        }
    }
}

impl Drop for Toolstack {
    fn drop(&mut self) {
        // SAFETY: both are from `open`, used by nobody else, and not used afterwards; the context goes before its logger.
        unsafe {
            libxl_ctx_free(self.ctx.as_ptr());
            xtl_logger_destroy(self.logger.as_ptr());
        }
    }
}
