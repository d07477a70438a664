//! Grant tables, version 1: Xen public/grant_table.h.

/// `GNTTABOP_map_grant_ref`.
pub const OP_MAP: u32 = 0;
/// `GNTTABOP_unmap_grant_ref`.
pub const OP_UNMAP: u32 = 1;
/// `GNTTABOP_copy`.
pub const OP_COPY: u32 = 5;
/// `GNTTABOP_query_size`.
pub const OP_QUERY_SIZE: u32 = 6;

/// Entries in one 4096-byte frame of a version 1 table.
pub const ENTRIES_PER_FRAME: u32 = 512;
/// Size of a version 1 entry: `{u16 flags; u16 domid; u32 frame}`.
pub const ENTRY_BYTES: usize = 8;
/// Offset of the domain in an entry.
pub const ENTRY_DOMID: usize = 2;
/// Offset of the frame number in an entry.
pub const ENTRY_FRAME: usize = 4;
/// `GNTTAB_NR_RESERVED_ENTRIES`: 0 is the console, 1 is xenstore, filled in by the toolstack.
pub const RESERVED_ENTRIES: u32 = 8;

/// `GTF_permit_access`, a value of the two type bits.
pub const GTF_PERMIT_ACCESS: u16 = 1;
/// Mask of the type bits.
pub const GTF_TYPE_MASK: u16 = 3;
/// `GTF_readonly`.
pub const GTF_READONLY: u16 = 1 << 2;
/// `GTF_reading`: set by Xen while the peer has the page mapped or is copying from it.
pub const GTF_READING: u16 = 1 << 3;
/// `GTF_writing`: the same for a writable mapping or a copy into it.
pub const GTF_WRITING: u16 = 1 << 4;

/// `GNTMAP_host_map`.
pub const MAP_HOST: u32 = 1 << 1;
/// `GNTMAP_readonly`.
pub const MAP_READONLY: u32 = 1 << 2;

/// `GNTCOPY_source_gref`.
pub const COPY_SOURCE_GREF: u16 = 1 << 0;
/// `GNTCOPY_dest_gref`.
pub const COPY_DEST_GREF: u16 = 1 << 1;

/// A status code of one grant operation: 0 is success, errors are negative.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct GrantStatus(pub i16);

impl GrantStatus {
    /// `GNTST_okay`.
    pub const OKAY: GrantStatus = GrantStatus(0);
    /// `GNTST_general_error`: entry not granted, granted to somebody else, read-only, or busy.
    pub const GENERAL_ERROR: GrantStatus = GrantStatus(-1);
    /// `GNTST_bad_domain`: no such domain (dead).
    pub const BAD_DOMAIN: GrantStatus = GrantStatus(-2);
    /// `GNTST_bad_gntref`: beyond the end of the peer's table.
    pub const BAD_GNTREF: GrantStatus = GrantStatus(-3);
    /// `GNTST_bad_handle`: unmap of something not mapped.
    pub const BAD_HANDLE: GrantStatus = GrantStatus(-4);
    /// `GNTST_no_device_space`.
    pub const NO_DEVICE_SPACE: GrantStatus = GrantStatus(-7);
    /// `GNTST_permission_denied`.
    pub const PERMISSION_DENIED: GrantStatus = GrantStatus(-8);
    /// `GNTST_bad_page`.
    pub const BAD_PAGE: GrantStatus = GrantStatus(-9);
    /// `GNTST_bad_copy_arg`: crosses the end of a page.
    pub const BAD_COPY_ARG: GrantStatus = GrantStatus(-10);
    /// `GNTST_address_too_big`.
    pub const ADDRESS_TOO_BIG: GrantStatus = GrantStatus(-11);
    /// `GNTST_eagain`: the peer's page is paged out.
    pub const EAGAIN: GrantStatus = GrantStatus(-12);
    /// `GNTST_no_space`: out of handles.
    pub const NO_SPACE: GrantStatus = GrantStatus(-13);
}

/// Argument of [`OP_MAP`] (`struct gnttab_map_grant_ref`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct MapGrantRef {
    /// In: guest-physical address of the page to put the peer's page at (PVH).
    pub host_addr: u64,
    /// In: [`MAP_HOST`], [`MAP_READONLY`].
    pub flags: u32,
    /// In: reference in the peer's table.
    pub gref: u32,
    /// In: the peer.
    pub dom: u16,
    /// Out: status.
    pub status: GrantStatus,
    /// Out: handle for the unmap operation.
    pub handle: u32,
    /// Out: bus address, unused here.
    pub dev_bus_addr: u64,
}
const _: () = assert!(size_of::<MapGrantRef>() == 32);
const _: () = assert!(core::mem::offset_of!(MapGrantRef, handle) == 20);

/// Argument of [`OP_UNMAP`] (`struct gnttab_unmap_grant_ref`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnmapGrantRef {
    /// In: the address given to the map operation.
    pub host_addr: u64,
    /// In: 0.
    pub dev_bus_addr: u64,
    /// In: handle that the map operation returned.
    pub handle: u32,
    /// Out: status.
    pub status: GrantStatus,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<UnmapGrantRef>() == 24);

/// One side of a copy.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct CopySide {
    /// Grant reference (low 32 bits) or frame number of a local page, as the flags say.
    pub ref_or_gfn: u64,
    /// Owner: the peer, or `DOMID_SELF` for a local page.
    pub dom: u16,
    /// First byte within the page.
    pub offset: u16,
    /// Padding.
    pub pad: u32,
}
const _: () = assert!(size_of::<CopySide>() == 16);

/// Argument of [`OP_COPY`] (`struct gnttab_copy`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct GrantCopy {
    /// Where to read.
    pub source: CopySide,
    /// Where to write.
    pub dest: CopySide,
    /// Bytes; neither side may cross the end of its page.
    pub len: u16,
    /// [`COPY_SOURCE_GREF`], [`COPY_DEST_GREF`].
    pub flags: u16,
    /// Out: status.
    pub status: GrantStatus,
    /// Padding.
    pub pad: u16,
}
const _: () = assert!(size_of::<GrantCopy>() == 40);
const _: () = assert!(core::mem::offset_of!(GrantCopy, status) == 36);

/// Argument of [`OP_QUERY_SIZE`] (`struct gnttab_query_size`).
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct QuerySize {
    /// In: `DOMID_SELF`.
    pub dom: u16,
    /// Padding.
    pub pad: u16,
    /// Out: frames the table has now.
    pub nr_frames: u32,
    /// Out: frames it may grow to.
    pub max_nr_frames: u32,
    /// Out: status.
    pub status: GrantStatus,
    /// Padding.
    pub pad2: u16,
}
const _: () = assert!(size_of::<QuerySize>() == 16);
