//! Foreign functions and system calls that no safe interface covers.
//!
//! The one module outside the image with unsafe code, with its children. [`tap`] and [`own_network`] are for every test on the host's
//! network stack. `xen` is dom0's side of the lab: libxenvchan for links, libxencall for three hypercalls. `frontend` is for a frontend that
//! breaks the rules, `toolstack` calls libxl.
#![expect(
    unsafe_code,
    reason = "calls into libxenvchan, libxencall and libxl, the ioctl of TAP devices, unshare, fork"
)]

use std::fs::File;
use std::io;

use rustix::ioctl::{Setter, ioctl, opcode};
use rustix::thread::{UnshareFlags, unshare_unsafe};

#[cfg(feature = "lab")]
mod frontend;
#[cfg(feature = "lab")]
mod toolstack;

#[cfg(feature = "lab")]
pub use frontend::{EventChannel, SharedPage};
#[cfg(feature = "lab")]
pub use toolstack::Toolstack;
#[cfg(feature = "lab")]
pub use xen::{Hypervisor, Vchan};

/// The part of `struct ifreq` that TUNSETIFF reads (Linux if.h), padded to the size that the kernel copies.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<InterfaceRequest>() == 40);

/// TUNSETIFF, IFF_TAP | IFF_NO_PI (Linux if_tun.h). The number encodes an `int` argument, the kernel reads an `ifreq`.
const SET_INTERFACE: rustix::ioctl::Opcode = opcode::write::<i32>(b'T', 202);
const TAP_WITHOUT_HEADER: u16 = 0x0002 | 0x1000;

/// Makes a TAP device in the network namespace of the calling thread. Reading takes a frame that the stack sends,
/// writing hands it one; both never block. The device goes when the file is closed.
///
/// # Errors
/// When `/dev/net/tun` is missing, permission is, or the name is taken or too long.
pub fn tap(name: &str) -> io::Result<File> {
    let mut request = InterfaceRequest { name: [0; 16], flags: TAP_WITHOUT_HEADER, rest: [0; 22] };
    // The last byte stays: it ends the name.
    match request.name.get_mut(..name.len()).filter(|_| name.len() < 16) {
        Some(place) => place.copy_from_slice(name.as_bytes()),
        None => return Err(io::ErrorKind::InvalidInput.into()),
    }
    let flags =
        rustix::fs::OFlags::RDWR | rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::CLOEXEC;
    let device = File::from(rustix::fs::open("/dev/net/tun", flags, rustix::fs::Mode::empty())?);
    // SAFETY: the kernel reads one `ifreq` of 40 bytes, which the request is (asserted above), and keeps no reference.
    unsafe { ioctl(&device, Setter::<SET_INTERFACE, _>::new(request))? };
    Ok(device)
}

/// Gives the calling thread an empty network namespace of its own; programs that it starts are in it too.
///
/// # Errors
/// When permission is missing, or the kernel has no network namespaces.
pub fn own_network() -> io::Result<()> {
    // SAFETY: only a new network namespace is asked for: descriptors and memory stay shared with the other threads.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.map_err(Into::into)
}

/// Divides the process: the number of the new one in the old one, `None` in the new one, which has a copy of everything but other
/// threads.
///
/// # Errors
/// When there are other threads (the copy of a lock that one of them holds would never be released), or too many processes.
#[cfg(feature = "lab")]
pub fn fork() -> io::Result<Option<rustix::process::Pid>> {
    unsafe extern "C" {
        fn fork() -> std::ffi::c_int;
    }
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("more than one thread"));
    }
    // SAFETY: this is the process' only thread, as was just counted, and only itself could start another: so the new process begins
    // with no lock held and may go on as an ordinary one.
    match unsafe { fork() } {
        -1 => Err(io::Error::last_os_error()),
        child => Ok(rustix::process::Pid::from_raw(child)),
    }
}

#[cfg(feature = "lab")]
mod xen {
    use std::ffi::{CString, c_char, c_int, c_uint, c_void};
    use std::io;
    use std::os::fd::{AsFd, BorrowedFd};
    use std::path::Path;
    use std::ptr::NonNull;

    use crate::dom0::xentime::RunState;

    /// The first members of `struct libxenvchan` (libxenvchan.h); only the port is read here.
    #[repr(C)]
    struct RawVchan {
        grants: *mut c_void,
        ring: *mut c_void,
        event: *mut c_void,
        event_port: u32,
    }

    const _: () = assert!(std::mem::offset_of!(RawVchan, event_port) == 24);

    #[link(name = "xenvchan")]
    unsafe extern "C" {
        fn libxenvchan_server_init(
            logger: *mut c_void,
            domain: c_int,
            xs_path: *const c_char,
            read_min: usize,
            write_min: usize,
        ) -> *mut RawVchan;
        fn libxenvchan_client_init(
            logger: *mut c_void,
            domain: c_int,
            xs_path: *const c_char,
        ) -> *mut RawVchan;
        fn libxenvchan_close(ctrl: *mut RawVchan);
        fn libxenvchan_read(ctrl: *mut RawVchan, data: *mut c_void, size: usize) -> c_int;
        fn libxenvchan_write(ctrl: *mut RawVchan, data: *const c_void, size: usize) -> c_int;
        fn libxenvchan_wait(ctrl: *mut RawVchan) -> c_int;
        fn libxenvchan_fd_for_select(ctrl: *mut RawVchan) -> c_int;
        fn libxenvchan_is_open(ctrl: *mut RawVchan) -> c_int;
        fn libxenvchan_data_ready(ctrl: *mut RawVchan) -> c_int;
        fn libxenvchan_buffer_space(ctrl: *mut RawVchan) -> c_int;
    }

    /// One end of a link. Neither `Send` nor `Sync`: the library keeps no lock.
    #[derive(Debug)]
    pub struct Vchan {
        /// From an init function of the library, not closed before `drop`.
        raw: NonNull<RawVchan>,
    }

    impl Vchan {
        /// Offers a link to `domain` at the xenstore directory `path`, with rings of at least these sizes (bytes).
        ///
        /// # Errors
        /// When the library cannot grant, bind or write to xenstore.
        pub fn server(
            domain: u32,
            path: &str,
            read_min: usize,
            write_min: usize,
        ) -> io::Result<Self> {
            let (domain, path) = (c_domain(domain)?, CString::new(path)?);
            // SAFETY: `path` is a NUL-terminated string that lives through the call; a null logger is allowed.
            let raw = unsafe {
                libxenvchan_server_init(
                    std::ptr::null_mut(),
                    domain,
                    path.as_ptr(),
                    read_min,
                    write_min,
                )
            };
            NonNull::new(raw).map(|raw| Self { raw }).ok_or_else(io::Error::last_os_error)
        }

        /// Connects to the link that `domain` offers at the xenstore directory `path`.
        ///
        /// # Errors
        /// When nothing usable is offered there.
        pub fn client(domain: u32, path: &str) -> io::Result<Self> {
            let (domain, path) = (c_domain(domain)?, CString::new(path)?);
            // SAFETY: as in `server`.
            let raw =
                unsafe { libxenvchan_client_init(std::ptr::null_mut(), domain, path.as_ptr()) };
            NonNull::new(raw).map(|raw| Self { raw }).ok_or_else(io::Error::last_os_error)
        }

        /// Number of the local event channel.
        pub fn port(&self) -> u32 {
            // SAFETY: `raw` is live (see the field), and the port is set once by the init function.
            unsafe { (*self.raw.as_ptr()).event_port }
        }

        /// 0: the other side is gone; 1: both are there; 2: no client has connected yet.
        pub fn is_open(&self) -> i32 {
            // SAFETY: `raw` is live.
            unsafe { libxenvchan_is_open(self.raw.as_ptr()) }
        }

        /// Bytes that can be read.
        pub fn data_ready(&self) -> usize {
            // SAFETY: `raw` is live.
            usize::try_from(unsafe { libxenvchan_data_ready(self.raw.as_ptr()) }).unwrap_or(0)
        }

        /// Bytes that can be written.
        pub fn space(&self) -> usize {
            // SAFETY: `raw` is live.
            usize::try_from(unsafe { libxenvchan_buffer_space(self.raw.as_ptr()) }).unwrap_or(0)
        }

        /// Reads what is there, up to the length of `buffer`; never blocks.
        ///
        /// # Errors
        /// When nothing is there and the link is closed.
        pub fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            // SAFETY: `raw` is live and the library writes at most `len` bytes to the buffer.
            let n = unsafe {
                libxenvchan_read(self.raw.as_ptr(), buffer.as_mut_ptr().cast(), buffer.len())
            };
            usize::try_from(n).map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        /// Writes what there is space for; never blocks.
        ///
        /// # Errors
        /// When the link is closed.
        pub fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // SAFETY: `raw` is live and the library reads at most `len` bytes from the buffer.
            let n =
                unsafe { libxenvchan_write(self.raw.as_ptr(), bytes.as_ptr().cast(), bytes.len()) };
            usize::try_from(n).map_err(|_| io::ErrorKind::BrokenPipe.into())
        }

        /// Takes an event; blocks when there is none, so look at the descriptor first.
        pub fn wait(&mut self) {
            // SAFETY: `raw` is live.
            unsafe { libxenvchan_wait(self.raw.as_ptr()) };
        }
    }

    impl AsFd for Vchan {
        /// The descriptor that becomes readable with an event.
        fn as_fd(&self) -> BorrowedFd<'_> {
            // SAFETY: the library keeps the descriptor open until `libxenvchan_close`, which needs `&mut self`;
            // it is not negative while its event channel handle exists, which is from init to close.
            unsafe { BorrowedFd::borrow_raw(libxenvchan_fd_for_select(self.raw.as_ptr())) }
        }
    }

    impl Drop for Vchan {
        fn drop(&mut self) {
            // SAFETY: `raw` is live and not used again.
            unsafe { libxenvchan_close(self.raw.as_ptr()) }
        }
    }

    fn c_domain(domain: u32) -> io::Result<c_int> {
        c_int::try_from(domain).map_err(|_| io::ErrorKind::InvalidInput.into())
    }

    #[link(name = "xencall")]
    unsafe extern "C" {
        fn xencall_open(logger: *mut c_void, flags: c_uint) -> *mut c_void;
        fn xencall_close(handle: *mut c_void) -> c_int;
        fn xencall_alloc_buffer(handle: *mut c_void, size: usize) -> *mut c_void;
        fn xencall_free_buffer(handle: *mut c_void, buffer: *mut c_void);
        fn xencall1(handle: *mut c_void, op: c_uint, arg: u64) -> c_int;
        fn xencall2(handle: *mut c_void, op: c_uint, arg1: u64, arg2: u64) -> c_int;
        fn xencall3(handle: *mut c_void, op: c_uint, arg1: u64, arg2: u64, arg3: u64) -> c_int;
    }

    /// `__HYPERVISOR_vcpu_op`, `__HYPERVISOR_event_channel_op` (Xen public/xen.h).
    const VCPU_OP: c_uint = 24;
    const EVENT_CHANNEL_OP: c_uint = 32;
    /// `VCPUOP_get_runstate_info` (Xen public/vcpu.h).
    const GET_RUNSTATE_INFO: u64 = 4;
    /// `EVTCHNOP_status`, `EVTCHNSTAT_interdomain`, `DOMID_SELF` (Xen public/event_channel.h, xen.h).
    const STATUS: u64 = 5;
    const INTERDOMAIN: u32 = 2;
    const DOMID_SELF: u16 = 0x7ff0;

    /// `__HYPERVISOR_domctl`, `XEN_DOMCTL_unpausedomain`, `XEN_DOMCTL_INTERFACE_VERSION` of Xen 4.17 (Xen public/xen.h, domctl.h). Xen
    /// refuses any other version.
    const DOMCTL: c_uint = 36;
    const UNPAUSE_DOMAIN: u32 = 4;
    const DOMCTL_VERSION: u32 = 0x15;

    /// `struct xen_domctl` (Xen public/domctl.h) of a command without arguments.
    #[repr(C)]
    struct RawDomctl {
        cmd: u32,
        interface_version: u32,
        domain: u16,
        pad: [u16; 3],
        arguments: [u64; 16],
    }

    const _: () = assert!(size_of::<RawDomctl>() == 144);

    /// `struct vcpu_runstate_info` (Xen public/vcpu.h).
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct RawRunState {
        state: i32,
        state_entry_time: u64,
        time: [u64; 4],
    }

    const _: () = assert!(size_of::<RawRunState>() == 48);

    /// `struct evtchn_status` (Xen public/event_channel.h).
    #[repr(C)]
    #[derive(Clone, Copy, Default)]
    struct RawStatus {
        dom: u16,
        port: u32,
        status: u32,
        vcpu: u32,
        detail: [u32; 2],
    }

    const _: () = assert!(size_of::<RawStatus>() == 24);

    /// Hypercalls through the kernel's privcmd device.
    #[derive(Debug)]
    pub struct Hypervisor {
        /// From `xencall_open`, closed in `drop`.
        handle: NonNull<c_void>,
        /// Memory that the hypervisor can reach, of at least [`BUFFER_LEN`] bytes, page aligned, freed in `drop`.
        buffer: NonNull<c_void>,
    }

    /// Size of the buffer for arguments, bytes.
    const BUFFER_LEN: usize = 256;
    const _: () = assert!(
        size_of::<RawRunState>() <= BUFFER_LEN
            && size_of::<RawStatus>() <= BUFFER_LEN
            && size_of::<RawDomctl>() <= BUFFER_LEN
    );

    impl Hypervisor {
        /// Opens the device.
        ///
        /// # Errors
        /// When there is no Xen, or no permission.
        pub fn open() -> io::Result<Self> {
            // The library reports a missing device only as a null handle.
            if !Path::new("/dev/xen/privcmd").exists() && !Path::new("/proc/xen/privcmd").exists() {
                return Err(io::Error::new(
                    io::ErrorKind::NotFound,
                    "no /dev/xen/privcmd (module xen-privcmd)",
                ));
            }
            // SAFETY: a null logger is allowed.
            let handle = NonNull::new(unsafe { xencall_open(std::ptr::null_mut(), 0) })
                .ok_or_else(io::Error::last_os_error)?;
            // SAFETY: `handle` was just opened.
            let buffer = NonNull::new(unsafe { xencall_alloc_buffer(handle.as_ptr(), BUFFER_LEN) });
            match buffer {
                Some(buffer) => Ok(Self { handle, buffer }),
                None => {
                    // SAFETY: `handle` is open and not used again.
                    unsafe { xencall_close(handle.as_ptr()) };
                    Err(io::ErrorKind::OutOfMemory.into())
                }
            }
        }

        /// The accounting of one of our own domain's vCPUs.
        ///
        /// # Errors
        /// When the hypervisor refuses.
        pub fn run_state(&mut self, vcpu: u32) -> io::Result<RunState> {
            let argument = self.buffer.cast::<RawRunState>();
            // SAFETY: the buffer is page aligned and large enough (asserted above), and only we use it.
            unsafe { argument.write(RawRunState::default()) };
            // SAFETY: the handle is open; the hypervisor writes one `vcpu_runstate_info` to the buffer.
            let result = unsafe {
                xencall3(
                    self.handle.as_ptr(),
                    VCPU_OP,
                    GET_RUNSTATE_INFO,
                    vcpu.into(),
                    argument.as_ptr().expose_provenance() as u64,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: as for the write; any bits are valid for this type.
            let raw = unsafe { argument.read() };
            // Bit 63 would mark an update in progress of a registered area; it is never set in a copy.
            Ok(RunState { entry_ns: raw.state_entry_time & (u64::MAX >> 1), spent_ns: raw.time })
        }

        /// Lets a paused domain run.
        ///
        /// # Errors
        /// When the hypervisor refuses: no such domain, or another version of Xen.
        pub fn unpause(&mut self, domain: u32) -> io::Result<()> {
            let domain = u16::try_from(domain).map_err(|_| io::ErrorKind::InvalidInput)?;
            let argument = self.buffer.cast::<RawDomctl>();
            let command = RawDomctl {
                cmd: UNPAUSE_DOMAIN,
                interface_version: DOMCTL_VERSION,
                domain,
                pad: [0; 3],
                arguments: [0; 16],
            };
            // SAFETY: the buffer is page aligned and large enough (asserted above), and only we use it.
            unsafe { argument.write(command) };
            // SAFETY: the handle is open; the hypervisor reads and may write one `xen_domctl` in the buffer.
            let result = unsafe {
                xencall1(self.handle.as_ptr(), DOMCTL, argument.as_ptr().expose_provenance() as u64)
            };
            if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        }

        /// Whether a local event channel still leads to another domain: it does not once that domain has died.
        ///
        /// # Errors
        /// When the hypervisor refuses.
        pub fn is_interdomain(&mut self, port: u32) -> io::Result<bool> {
            let argument = self.buffer.cast::<RawStatus>();
            // SAFETY: the buffer is page aligned and large enough (asserted above), and only we use it.
            unsafe { argument.write(RawStatus { dom: DOMID_SELF, port, ..RawStatus::default() }) };
            // SAFETY: the handle is open; the hypervisor reads and writes one `evtchn_status` in the buffer.
            let result = unsafe {
                xencall2(
                    self.handle.as_ptr(),
                    EVENT_CHANNEL_OP,
                    STATUS,
                    argument.as_ptr().expose_provenance() as u64,
                )
            };
            if result < 0 {
                return Err(io::Error::last_os_error());
            }
            // SAFETY: as for the write; any bits are valid for this type.
            Ok(unsafe { argument.read() }.status == INTERDOMAIN)
        }
    }

    impl Drop for Hypervisor {
        fn drop(&mut self) {
            // SAFETY: both are from the library, live, and not used again.
            unsafe {
                xencall_free_buffer(self.handle.as_ptr(), self.buffer.as_ptr());
                xencall_close(self.handle.as_ptr());
            }
        }
    }
}
