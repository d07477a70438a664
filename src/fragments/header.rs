//! Headers of datagrams and of their fragments (RFC 791 3.2, RFC 8200 4.5).

use super::piece::{FRAGMENT_HEADER_BYTES, NextHeader};
use crate::verdict::DropReason;
use crate::wire::checksum::Sum;
use crate::wire::{read, write, write_u16};

/// Names a fragment header.
const FRAGMENT: u8 = 44;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const IPV6_HEADER_BYTES: usize = 40;
/// An option of IPv4 that does nothing.
const NO_OPERATION: u8 = 1;

/// Which piece of a datagram a header is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// In bytes.
    pub(super) offset: usize,
    pub(super) has_more: bool,
    pub(super) identification: u32,
    /// Payload bytes of the piece.
    pub(super) len: usize,
}

/// Turns the header of the first fragment into that of the whole, which is `len` bytes long.
pub(super) fn make_whole_v4(
    header: &mut [u8],
    len: usize,
    congestion: u8,
    is_dont_fragment: bool,
) -> Result<(), DropReason> {
    let total_len = u16::try_from(len).map_err(|_| DropReason::FragmentMalformed)?;
    let [service] = read(header, 1);
    write(header, 1, [service & 0xfc | congestion]);
    write_u16(header, 2, total_len);
    write_u16(header, 6, if is_dont_fragment { DONT_FRAGMENT } else { 0 });
    set_checksum(header);
    Ok(())
}

/// The same for IPv6: the header that named the fragment header names what followed it.
pub(super) fn make_whole_v6(
    header: &mut [u8],
    len: usize,
    congestion: u8,
    next: NextHeader,
) -> Result<(), DropReason> {
    let payload_len = u16::try_from(len - IPV6_HEADER_BYTES);
    let [second] = read(header, 1);
    write(header, 1, [second & 0xcf | congestion << 4]);
    write_u16(header, 4, payload_len.map_err(|_| DropReason::FragmentMalformed)?);
    write(header, usize::from(next.at), [next.protocol]);
    Ok(())
}

/// Writes the header of one piece from that of the whole. `None` if it does not fit.
pub(super) fn write_piece_v4(out: &mut [u8], whole: &[u8], place: &Place) -> Option<()> {
    out.copy_from_slice(whole);
    write_u16(out, 2, u16::try_from(out.len() + place.len).ok()?);
    write_u16(out, 4, place.identification as u16);
    let [flags] = read(whole, 6);
    let dont = u16::from(flags) << 8 & DONT_FRAGMENT;
    let more = if place.has_more { MORE_FRAGMENTS } else { 0 };
    write_u16(out, 6, dont | more | u16::try_from(place.offset / 8).ok()?);
    if place.offset > 0 {
        blank_first_only_options(out.get_mut(20..)?);
    }
    set_checksum(out);
    Some(())
}

/// Writes the headers of one piece, the fragment header last. `None` if they do not fit.
pub(super) fn write_piece_v6(
    out: &mut [u8],
    whole: &[u8],
    next_at: usize,
    place: &Place,
) -> Option<()> {
    let (headers, fragment) = out.split_at_mut_checked(whole.len())?;
    headers.copy_from_slice(whole);
    let payload_len = whole.len() + FRAGMENT_HEADER_BYTES + place.len - IPV6_HEADER_BYTES;
    write_u16(headers, 4, u16::try_from(payload_len).ok()?);
    let [next] = read(whole, next_at);
    write(headers, next_at, [FRAGMENT]);
    write(fragment, 0, [next, 0]);
    write_u16(fragment, 2, u16::try_from(place.offset).ok()? | u16::from(place.has_more));
    write(fragment, 4, place.identification.to_be_bytes());
    Some(())
}

/// Options without the copied flag belong into the first fragment alone (RFC 791, 3.1). Ingress has walked them.
fn blank_first_only_options(mut options: &mut [u8]) {
    const COPIED: u8 = 0x80;
    loop {
        let (kind, len) = match options {
            [] | [0, ..] => return,
            [NO_OPERATION, ..] => (NO_OPERATION, 1),
            [kind, len, ..] => (*kind, usize::from(*len).max(2)),
            [_] => return,
        };
        let Some((option, rest)) = options.split_at_mut_checked(len) else { return };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

fn set_checksum(header: &mut [u8]) {
    write_u16(header, 10, 0);
    let checksum = Sum::default().bytes(header).complete();
    write_u16(header, 10, checksum);
}
