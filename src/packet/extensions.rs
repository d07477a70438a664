//! What stands between the IP header and the layer above: options of IPv4, extension headers of IPv6.
//!
//! IPv6 chains are followed to their end, so that rules see the protocol that the receiver sees. An authentication
//! header is followed too (its content is in the clear); NAT then breaks what it authenticates, as with IPv4.

use crate::verdict::DropReason;

/// Extension headers of one packet; more are dropped.
const MAX_HEADERS: usize = 8;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
const MOBILITY: u8 = 135;
const HIP: u8 = 139;
const SHIM6: u8 = 140;

/// The end of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    /// The layer above IP; of a fragment that of its fragment header.
    pub(super) protocol: u8,
    /// Bytes of extension headers before it.
    pub(super) len: usize,
    /// Part of a datagram. A fragment header of a whole one (RFC 6946) is no more than another header.
    pub(super) is_fragment: bool,
}

/// Follows the extension headers at the start of `bytes` (RFC 8200, section 4), of which `next` is the first.
pub(super) fn follow(mut next: u8, bytes: &[u8]) -> Result<Chain, DropReason> {
    const BROKEN: DropReason = DropReason::ExtensionHeader;
    let mut len = 0;
    for position in 0..=MAX_HEADERS {
        let header = bytes.get(len..).unwrap_or_default();
        let step = match (next, header) {
            (HOP_BY_HOP, _) if position > 0 => return Err(BROKEN),
            (ROUTING, [_, _, kind, segments_left, ..]) if *kind == 0 || *segments_left > 0 => {
                return Err(DropReason::SourceRoute);
            }
            (FRAGMENT, [_, _, high, low, _, _, _, _, ..]) => {
                // Offset in eight-byte units, two reserved bits, more-fragments.
                if u16::from_be_bytes([*high, *low]) & 0xfff9 != 0 {
                    return Ok(Chain { protocol: FRAGMENT, len, is_fragment: true });
                }
                8
            }
            (AUTHENTICATION, [_, words, ..]) => (usize::from(*words) + 2) * 4,
            (
                HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6,
                [_, eights, _, _, ..],
            ) => (usize::from(*eights) + 1) * 8,
            (HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION, _)
            | (DESTINATION_OPTIONS | MOBILITY | HIP | SHIM6, _) => return Err(BROKEN),
            _ => return Ok(Chain { protocol: next, len, is_fragment: false }),
        };
        if step > header.len() {
            return Err(BROKEN);
        }
        next = header.first().copied().ok_or(BROKEN)?;
        len += step;
    }
    Err(BROKEN)
}

/// Walks the options of IPv4 (RFC 791, 3.1): source routes and options that overrun the header end the packet.
pub(super) fn check_options(mut options: &[u8]) -> Result<(), DropReason> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const LOOSE_ROUTE: u8 = 131;
    const STRICT_ROUTE: u8 = 137;
    loop {
        options = match options {
            [] | [END, ..] => return Ok(()),
            [NO_OPERATION, rest @ ..] => rest,
            [LOOSE_ROUTE | STRICT_ROUTE, ..] => return Err(DropReason::SourceRoute),
            [_, len, ..] if *len >= 2 => {
                options.get(usize::from(*len)..).ok_or(DropReason::SourceRoute)?
            }
            _ => return Err(DropReason::SourceRoute),
        };
    }
}
